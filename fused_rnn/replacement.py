"""``replace``: torch.nn's recurrent modules inside a model, exchanged for this package's.

A fused module takes over the parameters themselves, not copies, so optimisers, ties between modules, devices, dtypes
and ``requires_grad`` stay as they are. What a fused module might not do in the same way is kept: see ``_obstacle``.
"""

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.utils import parametrize

from . import cell_modules, modules
from .recurrent import CellBased, Recurrent, check_backend

__all__ = ["Replacement", "replace"]

_FUSED = {
    nn.RNN: modules.RNN,
    nn.LSTM: modules.LSTM,
    nn.GRU: modules.GRU,
    nn.RNNCell: cell_modules.RNNCell,
    nn.LSTMCell: cell_modules.LSTMCell,
    nn.GRUCell: cell_modules.GRUCell,
}


@dataclass
class Replacement:
    """What ``replace`` did.

    Attributes:
        model: the model to go on with: the one that was given, unless that was itself a recurrent module.
        replaced: by the name in the model, what the module is now. The model itself has the name "".
        kept: by name, why a recurrent module of torch.nn was left alone.
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

    In place: parameters remain the same objects, the training state and the order of modules what they are. A module
    that stands at several places is exchanged for one that does. Subclasses, modules with hooks or parametrisations
    and others for which a fused module might not stand in are kept, and the report says which and why.

    A model that is itself such a module cannot be exchanged in place: the report's ``model`` is the fused one.

    Args:
        model: changed in place.
        backend: of the fused modules, as for their constructors.

    Raises:
        TypeError: ``model`` is no torch.nn.Module.
        ValueError: the backend's name is unknown.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model should be a torch.nn.Module, got: {type(model).__name__}")
    check_backend(backend)
    report = Replacement(model)
    fused: dict[nn.Module, CellBased] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if not isinstance(module, nn.RNNBase | nn.RNNCellBase):
            continue
        obstacle = _obstacle(module)
        if obstacle is not None:
            report.kept[name] = obstacle
            continue
        if module not in fused:
            fused[module] = _fused(module, backend)
        report.replaced[name] = f"fused_rnn.{fused[module]!r}"
        if name:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, fused[module])
        else:
            report.model = fused[module]
    return report


def _fused(module: nn.Module, backend: str) -> CellBased:
    """The fused module with the parameters, the training state and whatever attributes ``module`` was given."""
    kind = _FUSED[type(module)]
    fused = kind(module.input_size, module.hidden_size, **_options(module), backend=backend, device="meta")
    if isinstance(fused, Recurrent) and isinstance(module, nn.RNNBase):
        fused.dropout = module.dropout  # not by the constructor, which warned of it when the model was made
    for name, parameter in module.named_parameters(remove_duplicate=False):
        fused.register_parameter(name, parameter)
    for name in _added(module):
        setattr(fused, name, getattr(module, name))
    return fused.train(module.training)


def _obstacle(module: nn.Module) -> str | None:
    """Why a fused module cannot stand in for this one, or None if it can."""
    kind = type(module)
    if parametrize.is_parametrized(module):
        names = [name for name, _ in module.get_submodule("parametrizations").named_children()]
        return f"{', '.join(names)}: parametrised, and parametrisations belong to their module"
    if kind not in _FUSED:
        return f"{kind.__module__}.{kind.__qualname__} is a subclass, which may do other things than torch.nn's"
    hooks = [name.strip("_") for name, value in vars(module).items() if name.endswith("_hooks") and value]
    if hooks:
        return f"{', '.join(hooks)}: hooks may rely on torch.nn's module"
    if 0 in (module.input_size, module.hidden_size):
        return "a size of 0, which torch.nn's cells alone allow"
    methods = [name for name in _added(module) if callable(getattr(kind, name, None))]
    if methods:
        return f"{', '.join(methods)}: replaced in this one module"
    given, expected = _contents(module), _contents(_pristine(module))
    if given != expected:
        odd = sorted(name for name in given | expected if given.get(name) != expected.get(name))
        return f"{', '.join(odd)}: not the parameters, buffers and submodules of torch.nn's module"
    return None


def _options(module: nn.Module) -> dict:
    names = ("bias", "nonlinearity", "num_layers", "batch_first", "bidirectional")
    options = {name: getattr(module, name) for name in names if hasattr(module, name)}
    if getattr(module, "proj_size", 0):  # a word that torch.nn.RNN and GRU refuse
        options["proj_size"] = module.proj_size
    return options


def _pristine(module: nn.Module) -> nn.Module:
    """A module of the same kind and sizes, as torch.nn makes it."""
    return type(module)(module.input_size, module.hidden_size, **_options(module), device="meta")


def _added(module: nn.Module) -> list[str]:
    """The attributes that this module has beside those of any of its kind."""
    usual = vars(_pristine(module))
    return [name for name in vars(module) if name not in usual]


def _contents(module: nn.Module) -> dict[str, torch.Size | type]:
    """By name, the shapes of parameters and buffers and the types of submodules."""
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name: t.shape for name, t in tensors} | {name: type(child) for name, child in module.named_children()}
