"""Single steps of the cells, for loops in which the next input depends on the last state.

``RNNCell``, ``LSTMCell`` and ``GRUCell`` are drop-ins for torch.nn's; ``GRUCell(reset_after=False)``,
``MultiplicativeLSTMCell`` and ``MultiplicativeGRUCell`` work alike. A step is one call of ``ops.run`` with T = 1; the
modules of whole sequences are faster if all inputs are known beforehand.
"""

from typing import ClassVar

import torch
from torch import Tensor, fx, nn

from . import ops, quick
from .cell_based import CellBased, reshaped
from .cells import cell_of_variant

__all__ = ["GRUCell", "LSTMCell", "MultiplicativeGRUCell", "MultiplicativeLSTMCell", "RNNCell"]


class RecurrentCell(CellBased):
    """One step of one cell.

    Args:
        input_size: I, features of the input, at least 1.
        hidden_size: H, features of the state, at least 1.
        bias: whether the cell has its biases; without them the attributes are None.
        device, dtype: of the parameters.
        backend: "auto", or one of ``fused_rnn.backends()``.

    Call: ``state = module(input, hx=None)`` with input (B, I) or unbatched (I) and states (B, H) or (H); a missing
    state is zeros. Cells with a cell state take and return the pair (h, c).

    Under torch.autocast the step is computed in autocast's dtype, except for float64, on every device.

    Parameters have the names of a layer's in ``fused_rnn``'s module of the same cell, without ``_l0``.

    Raises torch.nn's exception types for the mistakes that torch.nn checks, TypeError for a state that is not a tensor
    or a tuple of tensors, and ValueError for a size of zero.
    """

    weight_ih: Tensor
    weight_hh: Tensor
    _defaults: ClassVar[dict] = {"bias": True, "backend": "auto"}
    __constants__: ClassVar[list[str]] = ["input_size", "hidden_size", "bias"]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device=None,
        dtype=None,
        *,
        backend: str = "auto",
    ) -> None:
        """Make and draw the parameters; the class describes the arguments."""
        super().__init__(input_size, hidden_size, bias, backend)
        for name in ("input_size", "hidden_size"):
            if getattr(self, name) == 0:
                raise ValueError(f"{name} must be greater than zero, got 0")
        for name in self._spec.weights:
            shape = self._spec.weight_shape(name, self.input_size, self.hidden_size)
            present = name in self._weight_names()
            parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if present else None
            self.register_parameter(name, parameter)
        self.reset_parameters()

    @quick.tried_first(quick.step)
    def forward(self, input: Tensor, hx: ops.State | None = None) -> ops.State:
        """Run the step, as ``RecurrentCell`` describes."""
        if isinstance(input, fx.Proxy):
            return self._as_one_node(input, hx)
        self._check_rank("input", input)
        parts = None if hx is None else self._state_parts(hx)
        for index, part in enumerate(parts or ()):
            self._check_rank(f"hx[{index}]" if self._spec.has_cell_state else "hidden", part)
        batched = input.dim() == 2
        if not batched:
            input = input.unsqueeze(0)
            parts = None if parts is None else tuple(part.unsqueeze(0) for part in parts)
        self._check_sizes(input, parts)
        state = None if parts is None else self._state_of(parts)
        _, state = ops.run(self.cell, input.unsqueeze(0), state, self._weights(), backend=self.backend)
        if batched:
            return state
        return self._state_of(tuple(reshaped(part, part.shape[1:]) for part in self._state_parts(state)))

    def _check_rank(self, name: str, tensor: Tensor) -> None:
        if tensor.dim() not in (1, 2):
            kind = type(self).__name__
            raise ValueError(f"{kind}: Expected {name} to be 1D or 2D, got {tensor.dim()}D instead")

    def _check_sizes(self, input: Tensor, parts: tuple[Tensor, ...] | None) -> None:
        if input.shape[1] != self.input_size:
            raise RuntimeError(f"input has inconsistent input_size: got {input.shape[1]} expected {self.input_size}")
        for index, part in enumerate(parts or ()):
            if part.shape[0] != input.shape[0]:
                raise RuntimeError(
                    f"Input batch size {input.shape[0]} doesn't match hidden{index} batch size {part.shape[0]}"
                )
            if part.dim() != 2 or part.shape[1] != self.hidden_size:
                raise RuntimeError(
                    f"hidden{index} has inconsistent hidden_size: got {part.shape[1]}, expected {self.hidden_size}"
                )


class RNNCell(RecurrentCell):
    """One step of an Elman network, a drop-in for torch.nn.RNNCell: h = tanh(W x + b + U h₋), or relu.

    ``RecurrentCell`` describes the other arguments and the call.
    """

    _defaults: ClassVar[dict] = {"bias": True, "nonlinearity": "tanh", "backend": "auto"}
    __constants__: ClassVar[list[str]] = [*RecurrentCell.__constants__, "nonlinearity"]
    _of_torch = nn.RNNCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device=None,
        dtype=None,
        *,
        backend: str = "auto",
    ) -> None:
        self.nonlinearity = nonlinearity
        super().__init__(input_size, hidden_size, bias, device, dtype, backend=backend)

    @property
    def cell(self) -> str:
        """The cell's name, such as "lstm" or "gru_reset_after"."""
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}. Select from 'tanh' or 'relu'.")
        return f"rnn_{self.nonlinearity}"


class LSTMCell(RecurrentCell):
    """One step of a long short-term memory, a drop-in for torch.nn.LSTMCell; equations as in ``fused_rnn.LSTM``.

    ``RecurrentCell`` describes the arguments and the call.
    """

    cell = "lstm"
    _of_torch = nn.LSTMCell


class GRUCell(RecurrentCell):
    """One step of a gated recurrent unit, a drop-in for torch.nn.GRUCell; ``reset_after`` as in ``fused_rnn.GRU``.

    ``RecurrentCell`` describes the other arguments and the call.
    """

    _defaults = RecurrentCell._defaults | {"reset_after": True}
    _of_torch = nn.GRUCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device=None,
        dtype=None,
        *,
        reset_after: bool = True,
        backend: str = "auto",
    ) -> None:
        self.reset_after = reset_after
        super().__init__(input_size, hidden_size, bias, device, dtype, backend=backend)

    @property
    def cell(self) -> str:
        """The cell's name, such as "lstm" or "gru_reset_after"."""
        return "gru_reset_after" if self.reset_after else "gru"


class MultiplicativeLSTMCell(RecurrentCell):
    """One step of ``fused_rnn.MultiplicativeLSTM``, of either ``variant``.

    ``RecurrentCell`` describes the other arguments and the call.
    """

    _defaults = RecurrentCell._defaults | {"variant": "input"}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device=None,
        dtype=None,
        *,
        variant: str = "input",
        backend: str = "auto",
    ) -> None:
        cell_of_variant(variant)  # raises for an unknown one
        self.variant = variant
        super().__init__(input_size, hidden_size, bias, device, dtype, backend=backend)

    @property
    def cell(self) -> str:
        """The cell's name, such as "lstm" or "gru_reset_after"."""
        return cell_of_variant(self.variant)


class MultiplicativeGRUCell(RecurrentCell):
    """One step of ``fused_rnn.MultiplicativeGRU``; ``RecurrentCell`` describes the arguments and the call."""

    cell = "multiplicative_gru"
