"""The exchange of one recurrent module for another with the same parameters, from torch.nn to ours or back.

The new module takes the parameter objects themselves, not copies, so that optimisers, ties between modules, devices,
dtypes and ``requires_grad`` stay as they are. Anything that the new module might do differently is an obstacle.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

_CELLS_OF_TORCH = ("rnn_tanh", "rnn_relu", "lstm", "gru_reset_after")
_OPTIONS_THAT_TORCH_LACKS = ("weight_drop", "zoneout", "zoneout_cell", "gradient_clip", "learn_initial_state")


def exchanged(module: Any, kind: type, **more: Any) -> Any:
    """Make a ``kind`` with the parameters, the training state and the added attributes of ``module``."""
    other = kind(module.input_size, module.hidden_size, **_options(module), **more, device="meta")
    if hasattr(module, "dropout"):
        other.dropout = module.dropout  # bypasses the constructor, which warned when the original was made
    for name, parameter in module.named_parameters(remove_duplicate=False):
        other.register_parameter(name, parameter)
    if isinstance(other, nn.RNNBase):
        other._init_flat_weights()  # torch.nn's list of parameters does not notice that they changed
    for name in _added(module):
        setattr(other, name, getattr(module, name))
    return other.train(module.training)


def obstacle(module: Any, known: bool) -> str | None:
    """Return why a module cannot be exchanged, or None if it can; ``known`` says that its class has a counterpart."""
    kind = type(module)
    if parametrize.is_parametrized(module):
        names = [name for name, _ in module.get_submodule("parametrizations").named_children()]
        return f"{', '.join(names)}: parametrised, and parametrisations belong to their module"
    if not known:
        return f"{kind.__module__}.{kind.__qualname__} is a subclass, which may do other things than its base"
    hooks = [name.strip("_") for name, value in vars(module).items() if name.endswith("_hooks") and value]
    if hooks:
        return f"{', '.join(hooks)}: hooks may rely on the module as it is"
    if module._compiled_call_impl is not None:
        return "compiled: what .compile() made goes on running this module, so compile the new one instead"
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
    """Make torch.nn's counterpart of one of our modules, for which ``obstacle_to_torch`` must be None."""
    return exchanged(module, type(module)._of_torch)


def obstacle_to_torch(module: Any) -> str | None:
    """Return why none of torch.nn's modules can replace one of ours, or None if one can."""
    if module.cell not in _CELLS_OF_TORCH:
        return f"a cell that torch.nn lacks, {module.cell!r}"
    options = [name for name in _OPTIONS_THAT_TORCH_LACKS if getattr(module, name, None)]
    if getattr(module, "variational", False) and module.dropout > 0 and module.num_layers > 1:
        options.append("variational")
    if options:
        return f"{', '.join(f'{name}={getattr(module, name)}' for name in options)}: options that torch.nn lacks"
    return obstacle(module, "_of_torch" in vars(type(module)))


def _options(module: Any) -> dict[str, Any]:
    """Return the options that torch.nn's modules and ours share, by name."""
    names = ("bias", "nonlinearity", "num_layers", "batch_first", "bidirectional")
    options = {name: getattr(module, name) for name in names if hasattr(module, name)}
    if isinstance(module, nn.RNN):  # computes by its mode; old pickles have no other word for the nonlinearity
        options["nonlinearity"] = module.mode.removeprefix("RNN_").lower()
    if getattr(module, "proj_size", 0):  # torch.nn.RNN and GRU refuse the argument
        options["proj_size"] = module.proj_size
    return options


def _pristine(module: Any) -> nn.Module:
    """Make a module of the same kind and sizes, fresh from its constructor."""
    return type(module)(module.input_size, module.hidden_size, **_options(module), device="meta")


def _added(module: Any) -> list[str]:
    """Return the attributes that this module has beyond those of a fresh one."""
    usual = vars(_pristine(module))
    return [name for name in vars(module) if name not in usual]


def _contents(module: nn.Module) -> dict[str, torch.Size | type]:
    """Return the shapes of parameters and buffers, and the types of submodules, by name."""
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name: t.shape for name, t in tensors} | {name: type(child) for name, child in module.named_children()}
