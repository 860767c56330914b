"""Drop-ins for torch.nn's recurrent modules, and the cells that torch.nn lacks.

``RNN``, ``LSTM`` and ``GRU`` take torch.nn's constructor and call, name and initialise their parameters as it
does, and load its ``state_dict`` unchanged. ``GRU(reset_after=False)``, ``MultiplicativeLSTM`` and
``MultiplicativeGRU`` work alike with the parameters that their equations have. Layers and directions are
stacked here; one layer in one direction is one call of ``ops.run``.
"""

import math
import numbers
import warnings

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import ops

__all__ = ["GRU", "LSTM", "RNN", "MultiplicativeGRU", "MultiplicativeLSTM"]


class Recurrent(nn.Module):
    """Layers and directions of one cell. Subclasses set ``cell``, a key of ``ops.CELLS``.

    Args:
        input_size: I, features of the input, at least 1.
        hidden_size: H, features of the state, at least 1.
        num_layers: layers, each reading the outputs of the one below.
        bias: whether the cell has its biases.
        batch_first: input and output are (B, T, features) in place of (T, B, features); states are not affected.
        dropout: probability of dropping an output between layers, in training mode only.
        bidirectional: run each layer in both directions and concatenate their outputs.
        proj_size: 0; torch.nn.LSTM's projections are not supported.
        backend: "auto", or one of ``fused_rnn.backends()``.
        recompute: save only states for the backward pass, which rebuilds the gates; see below.
        device, dtype: of the parameters.

    Call: ``output, state = module(input, hx=None, lengths=None)`` with input (T, B, I) or unbatched (T, I) and
    states (num_layers * directions, B, H) or (num_layers * directions, H); a missing state is zeros. The output is
    (T, B, directions * H). Cells with a cell state take and return the pair (h, c). ``lengths`` (B), int64, gives each
    sequence its own number of steps, 0 to T, and does what packing does: outputs past the end are zero, final states
    are those of the last real step, and the reverse direction starts there.

    ``recompute=True`` trades time for memory; results stay the same, and gradients too up to rounding (in bfloat16 also
    that of the stored states). For each step and unit the forward pass then saves, beside its output, one value in
    LSTMs (the cell state), none in other cells; without it 5 in LSTMs, 4 in the GRU, 3 in reset-before GRUs and 1 in
    the RNN, and multiplicative cells I more per step. A value takes the bytes of the dtype, 4 in float32. The backward
    pass computes what was not saved once more, at the cost of the products of a forward pass, for an eighth of the
    steps at a time (but for at least 1024 steps times sequences), and while it does so holds about 16 values for each
    of these steps and units. So it pays where sequences are long, or where several layers or calls wait for the same
    backward pass. The reference takes no notice: there autograd saves what it needs.

    Raises torch.nn's exception types for the same mistakes.
    """

    cell: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        backend: str = "auto",
        recompute: bool = False,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        _check_options(input_size, hidden_size, num_layers, bias, batch_first, dropout, proj_size, backend, recompute)
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                "dropout acts on the outputs of all but the last layer, so non-zero dropout expects num_layers "
                f"greater than 1, but got dropout={dropout} and num_layers={num_layers}",
                stacklevel=2 + ("__init__" in vars(type(self))),  # at the caller's line
            )
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.backend = backend
        self.recompute = recompute
        for layer in range(num_layers):
            layer_input = input_size if layer == 0 else hidden_size * self._directions
            for suffix in self._suffixes(layer):
                for name in self._weight_names():
                    shape = self._spec.weight_shape(name, layer_input, hidden_size)
                    parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                    self.register_parameter(name + suffix, parameter)
        self.reset_parameters()

    @property
    def _spec(self) -> ops.Cell:
        return ops.CELLS[self.cell]

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}", f"_l{layer}_reverse"][: self._directions]

    def _weight_names(self) -> list[str]:
        return [name for name in self._spec.weights if self.bias or not name.startswith("bias")]

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """The parameters, one list per layer and direction, as torch.nn has it."""
        return [
            [getattr(self, name + suffix) for name in self._weight_names()]
            for layer in range(self.num_layers)
            for suffix in self._suffixes(layer)
        ]

    def reset_parameters(self) -> None:
        """Draw every parameter uniformly from ±1/√H, as torch.nn does."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def flatten_parameters(self) -> None:
        """Nothing to do here: torch.nn needs this for cuDNN, whose callers may go on calling it."""

    def extra_repr(self) -> str:
        defaults = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False}
        defaults |= {"backend": "auto", "recompute": False}
        changed = [f"{name}={getattr(self, name)}" for name, value in defaults.items() if getattr(self, name) != value]
        return ", ".join([f"{self.input_size}, {self.hidden_size}", *changed])

    def forward(
        self, input: Tensor, hx: ops.State | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, ops.State]:
        batched = self._check_input(input)
        if not batched and lengths is not None:
            raise ValueError("lengths goes with batched input (3-D), and this input is unbatched (2-D)")
        if not batched:
            input = input.unsqueeze(1)
        elif self.batch_first:
            input = input.transpose(0, 1)
        states = self._split_state(hx, input.shape[1], batched)
        output, finals = self._run_layers(input, states, lengths)
        final = tuple(torch.stack(parts) for parts in zip(*finals))
        if not batched:
            output, final = output.squeeze(1), tuple(part.squeeze(1) for part in final)
        elif self.batch_first:
            output = output.transpose(0, 1)
        return output, (final if self._spec.has_cell_state else final[0])

    def _run_layers(
        self, input: Tensor, states: list[ops.State | None], lengths: Tensor | None
    ) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        finals = []
        for layer in range(self.num_layers):
            outputs = []
            for direction, suffix in enumerate(self._suffixes(layer)):
                weights = {name: getattr(self, name + suffix) for name in self._weight_names()}
                output, final = ops.run(
                    self.cell,
                    input,
                    states[len(finals)],
                    weights,
                    reverse=direction == 1,
                    lengths=lengths,
                    backend=self.backend,
                    recompute=self.recompute,
                )
                outputs.append(output)
                finals.append(final if self._spec.has_cell_state else (final,))
            input = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
            if self.dropout > 0 and layer + 1 < self.num_layers:
                input = nn.functional.dropout(input, self.dropout, self.training)
        return input, finals

    def _check_input(self, input: Tensor) -> bool:
        """Whether the input is batched; raises if it does not fit this module."""
        if isinstance(input, PackedSequence):
            raise TypeError(
                f"fused_rnn.{type(self).__name__} does not take a PackedSequence yet: pass the padded tensor and "
                "lengths, which torch.nn.utils.rnn.pad_packed_sequence makes of it"
            )
        if input.dim() not in (2, 3):
            raise ValueError(f"{type(self).__name__}: Expected input to be 2D or 3D, got {input.dim()}D instead")
        if input.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.shape[-1]}"
            )
        dtype = self.weight_hh_l0.dtype
        if input.dtype != dtype:
            raise ValueError(
                f"RNN input dtype ({input.dtype}) does not match weight dtype ({dtype}). "
                f"Convert input: input.to({dtype}), or convert model: model.to({input.dtype})"
            )
        return input.dim() == 3

    def _split_state(self, state: ops.State | None, batch: int, batched: bool) -> list[ops.State | None]:
        """The initial state of each layer and direction; raises if a shape is wrong."""
        count = self.num_layers * self._directions
        if state is None:
            return [None] * count
        ops.check_state_form(self._spec, state)
        parts = state if self._spec.has_cell_state else (state,)
        shape = (count, batch, self.hidden_size) if batched else (count, self.hidden_size)
        for name, part in zip(("h_0", "c_0"), parts):
            if tuple(part.shape) != shape:
                kind = "batched (3-D)" if batched else "unbatched (2-D)"
                raise RuntimeError(f"{name}: Expected hidden size {shape} for {kind} input, got {tuple(part.shape)}")
        parts = [part.unbind(0) if batched else part.unsqueeze(1).unbind(0) for part in parts]
        return list(zip(*parts)) if self._spec.has_cell_state else list(parts[0])


class RNN(Recurrent):
    """Elman network, a drop-in for torch.nn.RNN: h = tanh(W x + b + U h₋), or relu in place of tanh."""

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, nonlinearity: str = "tanh", *args, **kw):
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        self.nonlinearity = nonlinearity
        super().__init__(input_size, hidden_size, num_layers, *args, **kw)

    @property
    def cell(self) -> str:
        return f"rnn_{self.nonlinearity}"

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.nonlinearity == "tanh" else f", nonlinearity={self.nonlinearity}")


class LSTM(Recurrent):
    """Long short-term memory, a drop-in for torch.nn.LSTM (without ``proj_size``).

    i, f, o = σ(W x + U h₋ + b); g = tanh(W x + U h₋ + b); c = f⊙c₋ + i⊙g; h = o⊙tanh(c).
    """

    cell = "lstm"


class GRU(Recurrent):
    """Gated recurrent unit, a drop-in for torch.nn.GRU.

    ``reset_after=True`` (default) is torch.nn.GRU: n = tanh(W_n x + b_n + r⊙(U_n h₋ + b'_n)); h = (1−z)⊙n + z⊙h₋.
    ``reset_after=False`` is Chung et al. 2014: n = tanh(W_n x + U_n (r⊙h₋) + b_n); h = (1−z)⊙h₋ + z⊙n, with one
    bias, ``bias_ih``.
    """

    def __init__(self, *args, reset_after: bool = True, **kw):
        self.reset_after = reset_after
        super().__init__(*args, **kw)

    @property
    def cell(self) -> str:
        return "gru_reset_after" if self.reset_after else "gru"

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.reset_after else ", reset_after=False")


class MultiplicativeLSTM(Recurrent):
    """LSTM on x̂ = m⊙x with m = W_m x + U_m h₋ + b_m.

    Parameters beside the LSTM's: ``weight_mih`` (I, I), ``weight_mhh`` (I, H), ``bias_m`` (I); one ``bias_ih``.
    Neither Krause et al.'s mLSTM, which replaces h₋, nor xLSTM's matrix memory of the same name.
    """

    cell = "multiplicative_lstm"


class MultiplicativeGRU(Recurrent):
    """Reset-before GRU on x̂ = m⊙x with m = W_m x + U_m h₋ + b_m; parameters as MultiplicativeLSTM's."""

    cell = "multiplicative_gru"


def _check_options(
    input_size, hidden_size, num_layers, bias, batch_first, dropout, proj_size, backend, recompute
) -> None:
    """torch.nn's checks of the constructor's arguments, and the backend's name."""
    for name, value in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} should be of type int, got: {type(value).__name__}")
        if value <= 0:
            raise ValueError(f"{name} must be greater than zero, got {value}")
    for name, value in (("bias", bias), ("batch_first", batch_first), ("recompute", recompute)):
        if not isinstance(value, bool):
            raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")
    if not isinstance(dropout, numbers.Real) or isinstance(dropout, bool) or not 0 <= dropout <= 1:
        raise ValueError(
            f"dropout should be a number in range [0, 1], the probability of an element being zeroed, got {dropout!r}"
        )
    if proj_size != 0:
        raise NotImplementedError(f"fused_rnn has no projections yet: proj_size must be 0, got {proj_size}")
    if backend != "auto" and backend not in ops.BACKENDS:
        known = ", ".join(map(repr, ops.BACKENDS))
        raise ValueError(f"unknown backend {backend!r}: expected 'auto' or one of {known}")
