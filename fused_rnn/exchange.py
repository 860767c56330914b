"""One recurrent module in place of another with the same parameters: torch.nn's for one of ours, or the other way.

The parameters are taken over themselves, not copied, so that optimisers, ties between modules, devices, dtypes and
``requires_grad`` stay as they are. What the other module might not do in the same way is an obstacle.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

_CELLS_OF_TORCH = ("rnn_tanh", "rnn_relu", "lstm", "gru_reset_after")
_OPTIONS_THAT_TORCH_LACKS = ("weight_drop", "zoneout", "zoneout_cell", "gradient_clip", "learn_initial_state")


def exchanged(module: Any, kind: type, **more: Any) -> Any:
    """A ``kind`` with the parameters, the training state and whatever attributes ``module`` was given."""
    other = kind(module.input_size, module.hidden_size, **_options(module), **more, device="meta")
    if hasattr(module, "dropout"):
        other.dropout = module.dropout  # not by the constructor, which warned of it when the model was made
    for name, parameter in module.named_parameters(remove_duplicate=False):
        other.register_parameter(name, parameter)
    if isinstance(other, nn.RNNBase):
        other._init_flat_weights()  # torch.nn's list of the parameters, which it would not see change
    for name in _added(module):
        setattr(other, name, getattr(module, name))
    return other.train(module.training)


def obstacle(module: Any, known: bool) -> str | None:
    """Why a module cannot be exchanged, or None if it can; ``known`` says that its class itself has a counterpart."""
    kind = type(module)
    if parametrize.is_parametrized(module):
        names = [name for name, _ in module.get_submodule("parametrizations").named_children()]
        return f"{', '.join(names)}: parametrised, and parametrisations belong to their module"
    if not known:
        return f"{kind.__module__}.{kind.__qualname__} is a subclass, which may do other things than its base"
    hooks = [name.strip("_") for name, value in vars(module).items() if name.endswith("_hooks") and value]
    if hooks:
        return f"{', '.join(hooks)}: hooks may rely on the module as it is"
    if 0 in (module.input_size, module.hidden_size):
        return "a size of 0, which torch.nn's cells alone allow"
    methods = [name for name in _added(module) if callable(getattr(kind, name, None))]
    if methods:
        return f"{', '.join(methods)}: replaced in this one module"
    given, expected = _contents(module), _contents(_pristine(module))
    if given != expected:
        odd = sorted(name for name in given | expected if given.get(name) != expected.get(name))
        return f"{', '.join(odd)}: not the parameters, buffers and submodules of a {kind.__name__}"
    return None


def to_torch(module: Any) -> nn.Module:
    """torch.nn's module in place of one of ours to which ``obstacle_to_torch`` knows no obstacle."""
    return exchanged(module, type(module)._of_torch)


def obstacle_to_torch(module: Any) -> str | None:
    """Why none of torch.nn's modules can stand in for one of ours, or None if one can."""
    if module.cell not in _CELLS_OF_TORCH:
        return f"a cell that torch.nn lacks, {module.cell!r}"
    options = [name for name in _OPTIONS_THAT_TORCH_LACKS if getattr(module, name, None)]
    if getattr(module, "variational", False) and module.dropout > 0 and module.num_layers > 1:
        options.append("variational")
    if options:
        return f"{', '.join(f'{name}={getattr(module, name)}' for name in options)}: options that torch.nn lacks"
    return obstacle(module, "_of_torch" in vars(type(module)))


def _options(module: Any) -> dict[str, Any]:
    """The options that torch.nn's modules and ours share, by name."""
    names = ("bias", "nonlinearity", "num_layers", "batch_first", "bidirectional")
    options = {name: getattr(module, name) for name in names if hasattr(module, name)}
    if getattr(module, "proj_size", 0):  # a word that torch.nn.RNN and GRU refuse
        options["proj_size"] = module.proj_size
    return options


def _pristine(module: Any) -> nn.Module:
    """A module of the same kind and sizes, as its constructor makes it."""
    return type(module)(module.input_size, module.hidden_size, **_options(module), device="meta")


def _added(module: Any) -> list[str]:
    """The attributes that this module has beside those of any of its kind."""
    usual = vars(_pristine(module))
    return [name for name in vars(module) if name not in usual]


def _contents(module: nn.Module) -> dict[str, torch.Size | type]:
    """By name, the shapes of parameters and buffers and the types of submodules."""
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name: t.shape for name, t in tensors} | {name: type(child) for name, child in module.named_children()}
