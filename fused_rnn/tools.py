"""Support for tools that look inside a model: torch.fx, TorchScript, torch.ao.quantization and FLOP counters.

They know torch.nn's modules by their classes, but not ours. This file uses the hooks that torch has for such classes.
"""

import warnings
from typing import Any

import torch
from torch import fx, nn

from . import exchange, flops

flops.register()
# torch.jit does the same for torch's own files: sizes matter only to checks here, which a trace may leave out
warnings.filterwarnings(
    "ignore", category=torch.jit.TracerWarning, module=r"fused_rnn\.(cell_modules|ops|torch_attributes)"
)


class SeenByTools(nn.Module):
    """A module whose steps run in one operator, which tools of torch cannot look into."""

    def _as_one_node(self, input: fx.Proxy, hx: Any, **options: Any) -> fx.Proxy:
        """Return the node that torch.fx makes of a call of torch.nn's modules, which it does not look into."""
        path = input.tracer.path_of_module(self) if isinstance(input.tracer, fx.Tracer) else ""
        if not path:
            raise TypeError(
                f"torch.fx cannot look into fused_rnn.{type(self).__name__}, whose steps run in one operator: "
                "trace a model that it is a part of, in which its call becomes one node"
            )
        arguments = (input,) if hx is None else (input, hx)
        given = {name: value for name, value in options.items() if value is not None and value is not False}
        return input.tracer.create_proxy("call_module", path, arguments, given)

    def __prepare_scriptable__(self) -> nn.Module:
        """Return what torch.jit.script compiles in place of this module, and leaves in the model that it was given."""
        obstacle = exchange.obstacle_to_torch(self)
        if obstacle is not None:
            raise RuntimeError(
                f"torch.jit.script cannot compile fused_rnn.{type(self).__name__}, and no module of torch.nn can stand "
                f"in for it ({obstacle}): use torch.jit.trace or torch.export"
            )
        warnings.warn(
            f"torch.jit.script takes torch.nn.{type(self).__name__}, with the same parameters, for fused_rnn's, and "
            "leaves it in the model that it was given: give it a copy.deepcopy of the model to keep that as it is",
            stacklevel=2,
        )
        return exchange.to_torch(self)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "qconfig":  # torch.ao.quantization sets it in all modules of a model
            warnings.warn(
                f"torch.ao.quantization leaves fused_rnn.{type(self).__name__} as it is: fused_rnn.restore(model), "
                "called before, makes it torch.nn's, if torch.nn has it",
                stacklevel=2,
            )
