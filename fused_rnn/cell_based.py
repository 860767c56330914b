"""The base of modules of whole sequences and of single steps: parameters, their initialisation, the backend."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from . import ops
from .arguments import as_size, check_backend
from .tools import SeenByTools


class CellBased(SeenByTools):
    """A module of one cell.

    Subclasses set ``cell``, a key of ``ops.CELLS``, and ``_defaults``, the options that ``extra_repr`` shows if they
    differ from these values. Subclasses with a counterpart in torch.nn name its class, ``_of_torch``.
    """

    _defaults: ClassVar[dict]
    _of_torch: ClassVar[type[nn.Module]]

    def __init__(self, input_size: int, hidden_size: int, bias: bool, backend: str) -> None:
        super().__init__()
        check_backend(backend)
        self.input_size = as_size("input_size", input_size)
        self.hidden_size = as_size("hidden_size", hidden_size)
        self.bias = bias
        self.backend = backend

    @property
    def cell(self) -> str:
        """The cell's name, such as "lstm" or "gru_reset_after"."""
        raise NotImplementedError(f"{type(self).__name__} does not say which cell it is")

    @property
    def _spec(self) -> ops.Cell:
        return ops.CELLS[self.cell]

    def _weight_names(self) -> list[str]:
        names = self._spec.weights
        return list(names) if self.bias else [name for name in names if not name.startswith("bias")]

    def _weights(self, suffix: str = "") -> dict[str, Tensor]:
        """Return the weights of one layer and direction by name; parametrised ones are attributes, not parameters."""
        weights: dict[str, Tensor] = {}
        for name in self._weight_names():
            parameter = self._parameters.get(name + suffix)  # several times faster than an attribute
            weights[name] = getattr(self, name + suffix) if parameter is None else parameter
        return weights

    def reset_parameters(self) -> None:
        """Draw every parameter uniformly from ±1/√H, as torch.nn does."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def _state_parts(self, state: ops.State) -> tuple[Tensor, ...]:
        """Split a state into (h_0,) or (h_0, c_0); raise if it does not have the cell's form."""
        if self._spec.has_cell_state and isinstance(state, tuple | list) and len(state) != 2:
            raise RuntimeError(f"this cell has two states, h_0 and c_0, got {len(state)} of them")
        ops.check_state_form(self._spec, state)
        return tuple(state) if isinstance(state, tuple | list) else (state,)

    def _state_of(self, parts: tuple[Tensor, ...]) -> ops.State:
        return (parts[0], parts[1]) if self._spec.has_cell_state else parts[0]

    def extra_repr(self) -> str:
        """Describe the sizes, and the options that differ from their defaults."""
        options = {name: getattr(self, name) for name in self._defaults}
        changed = [f"{name}={value}" for name, value in options.items() if value != self._defaults[name]]
        return ", ".join([f"{self.input_size}, {self.hidden_size}", *changed])


def reshaped(state: Tensor, shape: Sequence[int]) -> Tensor:
    """Reshape a final state without a view, for truncated back-propagation calls ``detach_()``, which refuses views.

    The result shares the memory of ``state``, which nobody else may read.
    """
    return torch.ops.aten._unsafe_view(state, shape)
