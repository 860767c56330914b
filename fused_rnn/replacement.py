"""``replace`` exchanges torch.nn's recurrent modules inside a model for this package's; ``restore`` does the reverse.

``exchange`` does this for a single module, and knows which modules cannot be exchanged.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from .arguments import check_backend
from .cell_based import CellBased
from .cell_modules import GRUCell, LSTMCell, RNNCell
from .exchange import exchanged, obstacle, obstacle_to_torch, to_torch
from .modules import GRU, LSTM, RNN

__all__ = ["Replacement", "replace", "restore"]

_FUSED: dict[type[nn.Module], type[CellBased]] = {
    kind._of_torch: kind for kind in (RNN, LSTM, GRU, RNNCell, LSTMCell, GRUCell)
}


@dataclass
class Replacement:
    """The report of ``replace`` or ``restore``.

    Attributes:
        model: the model to go on with: the given one, unless that was itself a recurrent module.
        replaced: maps the name of each exchanged module to a description of the new one. The model itself is named "".
        kept: maps the name of each recurrent module that was left alone to the reason.
    """

    model: nn.Module
    replaced: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = []
        for what, entries in (("replaced", self.replaced), ("kept", self.kept)):
            lines.append(f"{what}: {len(entries)}")
            lines += [f"  {name or 'the model itself'}: {entry}" for name, entry in entries.items()]
        return "\n".join(lines)


def replace(model: nn.Module, *, backend: str = "auto") -> Replacement:
    """Exchange every torch.nn.RNN, LSTM, GRU, RNNCell, LSTMCell and GRUCell inside a model for the fused module.

    The exchange is in place: parameters remain the same objects, and the training state and the order of modules stay.
    A module that is used in several places is exchanged for one that is. Subclasses, modules with hooks or
    parametrisations and others that a fused module might not replace faithfully are kept, and the report gives the
    reasons.

    A model that is itself such a module cannot be exchanged in place: the report's ``model`` is the fused one.

    Args:
        model: the model, changed in place.
        backend: the backend of the fused modules, as for their constructors.

    Raises:
        TypeError: ``model`` is not a torch.nn.Module.
        ValueError: the backend's name is unknown.
    """
    check_backend(backend)
    return _exchange(
        model,
        (nn.RNNBase, nn.RNNCellBase),
        lambda module: obstacle(module, type(module) in _FUSED),
        lambda module: exchanged(module, _FUSED[type(module)], backend=backend),
        "fused_rnn",
    )


def restore(model: nn.Module) -> Replacement:
    """Exchange the modules of this package inside a model for torch.nn's, for tools that know no others.

    This is the inverse of ``replace``, with the same care: in place, with the same parameter objects. Modules that
    torch.nn's cannot replace are kept, and the report gives the reason: a cell or an option that torch.nn lacks, or
    subclasses, hooks and so on as in ``replace``. An option that is no longer needed, such as ``weight_drop`` in a
    trained model, can be set to 0 before, and ``gradient_clip`` to None. ``backend`` and ``recompute``, which do not
    affect results, are dropped, and so is ``variational`` if there is no dropout.

    Args:
        model: the model, changed in place; pass ``copy.deepcopy(model)`` to keep the fused one.

    Raises:
        TypeError: ``model`` is not a torch.nn.Module.
    """
    return _exchange(model, (CellBased,), obstacle_to_torch, to_torch, "torch.nn")


def _exchange(
    model: nn.Module,
    kinds: tuple[type[nn.Module], ...],
    obstacle_to: Callable[[nn.Module], str | None],
    other: Callable[[nn.Module], nn.Module],
    package: str,
) -> Replacement:
    """Put ``other(module)``, a module of ``package``, in the place of every module of these kinds."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model should be a torch.nn.Module, got: {type(model).__name__}")
    report = Replacement(model)
    others: dict[nn.Module, nn.Module] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if not isinstance(module, kinds):
            continue
        reason = obstacle_to(module)
        if reason is not None:
            report.kept[name] = reason
            continue
        if module not in others:
            others[module] = other(module)
        report.replaced[name] = f"{package}.{others[module]!r}"
        if name:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, others[module])
        else:
            report.model = others[module]
    return report
