"""What the modules of all cells share: parameters, their initialisation, the stacking of layers and directions.

One layer in one direction is one call of ``ops.run``; ``packing`` and ``projection`` turn what the kernels do not know
into what they do. The modules by name are in ``modules``, those of a single step in ``cell_modules``.
"""

import math
import numbers
import warnings
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import autocast, batching, ops, packing, projection

RECURRENT_WEIGHTS = ("weight_hh", "weight_mhh")  # those that the state is multiplied with


class CellBased(nn.Module):
    """What whole sequences and single steps of a cell share: its parameters, their initialisation, the backend.

    Subclasses set ``cell``, a key of ``ops.CELLS``, and ``_defaults``, the options that ``extra_repr`` shows where they
    are not as they are by default.
    """

    _defaults: ClassVar[dict]

    def __init__(self, input_size: int, hidden_size: int, bias: bool, backend: str) -> None:
        super().__init__()
        check_backend(backend)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        self.backend = backend

    @property
    def cell(self) -> str:
        """The key of ``ops.CELLS``."""
        raise NotImplementedError(f"{type(self).__name__} does not say which cell it is")

    @property
    def _spec(self) -> ops.Cell:
        return ops.CELLS[self.cell]

    def _weight_names(self) -> list[str]:
        names = self._spec.weights
        return list(names) if self.bias else [name for name in names if not name.startswith("bias")]

    def _weights(self, suffix: str = "") -> dict[str, Tensor]:
        """The weights of one layer and direction by name; parametrised ones are attributes, but no parameters."""
        weights: dict[str, Tensor] = {}
        for name in self._weight_names():
            parameter = self._parameters.get(name + suffix)  # several times quicker than an attribute
            weights[name] = getattr(self, name + suffix) if parameter is None else parameter
        return weights

    def reset_parameters(self) -> None:
        """Draw every parameter uniformly from ±1/√H, as torch.nn does."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def _state_parts(self, state: ops.State) -> tuple[Tensor, ...]:
        """(h_0,) or (h_0, c_0); raises if the state is not of the cell's form."""
        if self._spec.has_cell_state and isinstance(state, tuple | list) and len(state) != 2:
            raise RuntimeError(f"this cell has two states, h_0 and c_0, got {len(state)} of them")
        ops.check_state_form(self._spec, state)
        return tuple(state) if isinstance(state, tuple | list) else (state,)

    def _state_of(self, parts: tuple[Tensor, ...]) -> ops.State:
        return (parts[0], parts[1]) if self._spec.has_cell_state else parts[0]

    def extra_repr(self) -> str:
        """Sizes, and the options that are not as they are by default."""
        options = {name: getattr(self, name) for name in self._defaults}
        changed = [f"{name}={value}" for name, value in options.items() if value != self._defaults[name]]
        return ", ".join([f"{self.input_size}, {self.hidden_size}", *changed])


class Recurrent(CellBased):
    """Layers and directions of one cell.

    Args:
        input_size: I, features of the input, at least 1.
        hidden_size: H, features of the state, at least 1.
        num_layers: layers, each reading the outputs of the one below.
        bias: whether the cell has its biases.
        batch_first: input and output are (B, T, features) in place of (T, B, features); states are not affected.
        dropout: probability of dropping an output between layers, in training mode only.
        bidirectional: run each layer in both directions and concatenate their outputs.
        proj_size: P, features to which LSTM projects its outputs, less than H; 0 for no projection, see ``LSTM``.
        device, dtype: of the parameters.
        backend: "auto", or one of ``fused_rnn.backends()``.
        recompute: save only states for the backward pass, which rebuilds the gates; see below.
        variational: draw the mask of ``dropout`` once a call for each sequence and feature, the same at every step (Gal
            & Ghahramani 2016), in place of one for each step.
        weight_drop: probability of dropping an element of ``weight_hh`` or ``weight_mhh`` (DropConnect; Merity, Keskar
            & Socher 2018), in training mode only: drawn once a call for each layer and direction.
        zoneout: probability with which a unit keeps its hidden state in a step (Krueger et al. 2016); not with
            ``proj_size``.
        zoneout_cell: the same of cell states, for modules that have them.
        gradient_clip: the largest magnitude of the gradients of the pre-activations in each step (Graves 2013,
            arXiv:1308.0850, section 2.1), more than 0; None for no limit.
        learn_initial_state: add parameters ``h_0`` (num_layers * directions, 1, H), with projections P for H, and where
            the cell has a cell state ``c_0``, zero at first, which every sequence begins with unless given ``hx``.

    Call: ``output, state = module(input, hx=None, lengths=None)`` with input (T, B, I) or unbatched (T, I) and
    states (num_layers * directions, B, H) or (num_layers * directions, H); a missing state is zeros. The output is
    (T, B, directions * H). Cells with a cell state take and return the pair (h, c). ``lengths`` (B), int64, gives each
    sequence its own number of steps, 0 to T, and does what packing does: outputs past the end are zero, final states
    are those of the last real step, and the reverse direction starts there. A ``PackedSequence``, sorted or not, is
    taken too, and returned as output: it is padded, and the kernels are given its lengths. With ``return_cells=True``
    the call returns a third thing, the cell states of all steps of the last layer, formed as the output, of H features
    in each direction; they are differentiable.

    ``recompute=True`` trades time for memory; results stay the same, and gradients too up to rounding (in bfloat16 also
    that of the stored states). For each step and unit the forward pass then saves, beside its output, one value in
    LSTMs (the cell state), none in other cells; without it 5 in LSTMs, 4 in the GRU, 3 in reset-before GRUs and 1 in
    the RNN, and multiplicative cells as many more per step as m has. A value takes the bytes of the dtype, 4 in
    float32. The backward pass computes what was not saved once more, at the cost of the products of a forward pass, for
    an eighth of the steps at a time (but for at least 1024 steps times sequences), and while it does so holds about 16
    values for each of these steps and units. So it pays where sequences are long, or where several layers or calls wait
    for the same backward pass. The reference takes no notice: there autograd saves what it needs.

    What is dropped depends on torch's generator alone, and what is kept is scaled by 1/(1 − probability), so that in
    eval mode nothing is drawn and the weights are used as they are. Zoneout likewise: a step ends with k⊙h₋ + (1−k)⊙h
    in place of h, where k is drawn from 0 and 1 for each layer, direction, step, sequence and unit, and in eval mode is
    the probability, the expectation; likewise with c, h being made of the c before that. The k of a layer and direction
    take as much memory as its output. Gal & Ghahramani's second mask, of h₋ and for each sequence, is not to be had:
    the kernels multiply all sequences with the same weights. ``weight_drop`` drops those.

    Under torch.autocast the module computes in autocast's dtype, but for float64, on every device.

    Raises torch.nn's exception types for the mistakes that torch.nn checks, and TypeError for a state that is no
    tensor, or no pair of tensors.
    """

    _defaults: ClassVar[dict] = {
        **{"proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False},
        **{"backend": "auto", "recompute": False},
        **{"variational": False, "weight_drop": 0.0, "zoneout": 0.0, "zoneout_cell": 0.0, "gradient_clip": None},
        **{"learn_initial_state": False},
    }

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
        device=None,
        dtype=None,
        *,
        backend: str = "auto",
        recompute: bool = False,
        variational: bool = False,
        weight_drop: float = 0.0,
        zoneout: float = 0.0,
        zoneout_cell: float = 0.0,
        gradient_clip: float | None = None,
        learn_initial_state: bool = False,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, backend)
        _check_sizes(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        _check_bools(bias=bias, batch_first=batch_first, recompute=recompute)
        _check_bools(variational=variational, learn_initial_state=learn_initial_state)
        _check_probabilities(dropout=dropout, weight_drop=weight_drop, zoneout=zoneout, zoneout_cell=zoneout_cell)
        ops.check_gradient_clip(gradient_clip)
        self._check_projection(proj_size)
        self._check_zoneout(zoneout, zoneout_cell, proj_size)
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                "dropout acts on the outputs of all but the last layer, so non-zero dropout expects num_layers "
                f"greater than 1, but got dropout={dropout} and num_layers={num_layers}",
                stacklevel=2 + ("__init__" in vars(type(self))),  # at the caller's line
            )
        self.num_layers = num_layers
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self.recompute = recompute
        self.variational = variational
        self.weight_drop = float(weight_drop)
        self.zoneout = float(zoneout)
        self.zoneout_cell = float(zoneout_cell)
        self.gradient_clip = gradient_clip
        self.learn_initial_state = learn_initial_state
        for layer in range(num_layers):
            layer_input = input_size if layer == 0 else self._output_size * self._directions
            for suffix in self._suffixes(layer):
                for name in self._weight_names():
                    shape = self._weight_shape(name, layer_input)
                    parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                    self.register_parameter(name + suffix, parameter)
        if learn_initial_state:
            for name, size in self._state_sizes().items():
                parameter = nn.Parameter(torch.empty(self._runs, 1, size, device=device, dtype=dtype))
                self.register_parameter(name, parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every weight and bias uniformly from ±1/√H, as torch.nn does; learnt initial states become zero."""
        super().reset_parameters()
        if self.learn_initial_state:
            for name in self._state_sizes():
                nn.init.zeros_(getattr(self, name))

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def _runs(self) -> int:
        """Layers and directions: so many states there are."""
        return self.num_layers * self._directions

    @property
    def _output_size(self) -> int:
        return self.proj_size or self.hidden_size

    def _state_sizes(self) -> dict[str, int]:
        sizes = {"h_0": self._output_size, "c_0": self.hidden_size}
        return sizes if self._spec.has_cell_state else {"h_0": sizes["h_0"]}

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}", f"_l{layer}_reverse"][: self._directions]

    def _weight_names(self) -> list[str]:
        return super()._weight_names() + (["weight_hr"] if self.proj_size else [])

    def _weight_shape(self, name: str, layer_input: int) -> tuple[int, ...]:
        if name == "weight_hr":
            return self.proj_size, self.hidden_size
        shape = self._spec.weight_shape(name, layer_input, self.hidden_size)
        return (shape[0], self._output_size) if name == "weight_hh" else shape

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters, one list per layer and direction, as torch.nn has it."""
        suffixes = [suffix for layer in range(self.num_layers) for suffix in self._suffixes(layer)]
        return [list(self._weights(suffix).values()) for suffix in suffixes]

    def flatten_parameters(self) -> None:
        """Nothing to do here: torch.nn needs this for cuDNN, whose callers may go on calling it."""

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: ops.State | None = None,
        lengths: Tensor | None = None,
        return_cells: bool = False,
    ) -> tuple:
        """Run all layers: the call that the class describes."""
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx, lengths, return_cells)
        if input.dim() not in (2, 3):
            raise ValueError(f"{type(self).__name__}: Expected input to be 2D or 3D, got {input.dim()}D instead")
        batched = input.dim() == 3
        self._check_features(input)
        if not batched and lengths is not None:
            raise ValueError("lengths goes with batched input (3-D), and this input is unbatched (2-D)")
        if not batched:
            input = input.unsqueeze(1)
        elif self.batch_first:
            input = input.transpose(0, 1)
        initial = self._initial(hx, input.shape[1], batched)
        sequences, final = self._run_layers([input], initial, [lengths], return_cells)
        output, *cells = (stretch for (stretch,) in sequences)
        if not batched:
            output, *cells = (sequence.squeeze(1) for sequence in (output, *cells))
            final = tuple(reshaped(part, (len(part), part.shape[2])) for part in final)
        elif self.batch_first:
            output, *cells = (sequence.transpose(0, 1) for sequence in (output, *cells))
        return output, self._state_of(final), *cells

    def _forward_packed(
        self, input: PackedSequence, hx: ops.State | None, lengths: Tensor | None, return_cells: bool
    ) -> tuple:
        """Runs in the order of packing, the longest sequence first; states are given and returned in the caller's."""
        if lengths is not None:
            raise ValueError("a PackedSequence brings its lengths along: lengths goes with a padded tensor")
        data, batch_sizes, order, inverse = input
        if data.dim() != 2:
            raise RuntimeError(f"input must have 2 dimensions, got {data.dim()}: a PackedSequence of (T, I) tensors")
        batching.check_shared("batch_sizes of a PackedSequence", batch_sizes, "a padded tensor and lengths")
        self._check_features(data)
        layout = packing.Packing(batch_sizes, data.device)
        initial = self._initial(hx, layout.batch, batched=True)
        if initial is not None and order is not None:
            initial = tuple(part.index_select(1, order) for part in initial)
        padded, final = self._run_layers(layout.pad(data), initial, layout.lengths, return_cells)
        if inverse is not None:
            final = tuple(part.index_select(1, inverse) for part in final)
        output, *cells = (PackedSequence(layout.pack(parts), batch_sizes, order, inverse) for parts in padded)
        return output, self._state_of(final), *cells

    def _run_layers(
        self,
        inputs: list[Tensor],
        initial: tuple[Tensor, ...] | None,
        lengths: list[Tensor | None],
        return_cells: bool,
    ) -> tuple[tuple[list[Tensor], ...], tuple[Tensor, ...]]:
        """The last layer's outputs, perhaps with its cell states; the final states of all layers and directions.

        Sequences come and go in stretches, see ``packing``: those that are padded in a single one.
        """
        run = projection.run_lstm if self.proj_size else partial(packing.run, self.cell)
        how: dict = {"lengths": lengths, "gradient_clip": self.gradient_clip}
        how |= {"backend": self.backend, "recompute": self.recompute}
        states = None if initial is None else [self._state_of(parts) for parts in zip(*map(torch.unbind, initial))]
        finals: list[tuple[Tensor, ...]] = []
        for layer in range(self.num_layers):
            last = layer + 1 == self.num_layers
            how["return_cells"] = return_cells and last
            directions = []
            for direction, suffix in enumerate(self._suffixes(layer)):
                state = None if states is None else states[len(finals)]
                weights, masks = self._drawn_weights(suffix), [self._drawn_masks(stretch) for stretch in inputs]
                outputs, final, *cells = run(inputs, state, weights, reverse=direction == 1, masks=masks, **how)
                directions.append((outputs, *cells))
                finals.append(final if self._spec.has_cell_state else (final,))
            sequences = tuple(map(_side_by_side, zip(*directions)))
            if not last:
                inputs = self._drop(sequences[0])
        return sequences, tuple(_stacked(parts) for parts in zip(*finals))

    def _drawn_weights(self, suffix: str) -> dict[str, Tensor]:
        """The weights of one layer and direction, for one call: in training mode with ``weight_drop``."""
        weights = self._weights(suffix)
        if self.training and self.weight_drop > 0:
            for name in RECURRENT_WEIGHTS:
                if name in weights:
                    weights[name] = nn.functional.dropout(weights[name], self.weight_drop)
        return weights

    def _drawn_masks(self, input: Tensor) -> dict[str, Tensor]:
        """What zoneout keeps of the states of one layer and direction, for one call."""
        masks: dict[str, Tensor] = {}
        if self.zoneout == 0 and self.zoneout_cell == 0:
            return masks
        shape = (*input.shape[:2], self.hidden_size)
        for name, probability in (("keep_h", self.zoneout), ("keep_c", self.zoneout_cell)):
            if probability > 0:
                # no tensor that follows from input, so that members of torch.func.vmap may draw the same
                expected = torch.full(shape, probability, dtype=input.dtype, device=input.device)
                masks[name] = torch.bernoulli(expected) if self.training else expected
        return masks

    def _drop(self, outputs: list[Tensor]) -> list[Tensor]:
        """A layer's outputs (T, B, features) as the next one reads them: in training mode with ``dropout``."""
        if not self.training or self.dropout == 0:
            return outputs
        if not self.variational:
            return [nn.functional.dropout(stretch, self.dropout) for stretch in outputs]
        mask = nn.functional.dropout(outputs[0].new_ones(outputs[0].shape[1:]), self.dropout)
        return [stretch * mask[: stretch.shape[1]] for stretch in outputs]

    def _check_features(self, input: Tensor) -> None:
        if input.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.shape[-1]}"
            )
        dtype = self.weight_hh_l0.dtype
        if input.dtype != dtype and not autocast.is_on(input.device.type):
            raise ValueError(
                f"RNN input dtype ({input.dtype}) does not match weight dtype ({dtype}). "
                f"Convert input: input.to({dtype}), or convert model: model.to({input.dtype})"
            )

    def _initial(self, state: ops.State | None, batch: int, batched: bool) -> tuple[Tensor, ...] | None:
        """The parts of the initial state, each (layers * directions, B, features); raises if a shape is wrong."""
        sizes = self._state_sizes()
        if state is None:
            learnt = [getattr(self, name) for name in sizes] if self.learn_initial_state else []
            return tuple(part.expand(-1, batch, -1) for part in learnt) or None
        parts = self._state_parts(state)
        for (name, size), part in zip(sizes.items(), parts):
            shape = (self._runs, batch, size) if batched else (self._runs, size)
            if tuple(part.shape) != shape:
                kind = "batched (3-D)" if batched else "unbatched (2-D)"
                raise RuntimeError(f"{name}: Expected hidden size {shape} for {kind} input, got {tuple(part.shape)}")
        return parts if batched else tuple(part.unsqueeze(1) for part in parts)

    def _check_projection(self, proj_size: int) -> None:
        if proj_size == 0:
            return
        if self.cell != "lstm":
            raise ValueError(f"proj_size argument is only supported for LSTM, not {type(self).__name__}")
        if not isinstance(proj_size, int):
            raise TypeError(f"proj_size should be of type int, got: {type(proj_size).__name__}")
        if not 0 < proj_size < self.hidden_size:
            raise ValueError(
                f"proj_size must be 0, for no projection, or positive and smaller than hidden_size={self.hidden_size}, "
                f"got {proj_size}"
            )

    def _check_zoneout(self, zoneout: float, zoneout_cell: float, proj_size: int) -> None:
        if zoneout > 0 and proj_size > 0:
            raise ValueError(f"zoneout={zoneout} goes with proj_size=0, got {proj_size}: zoneout_cell goes with either")
        if zoneout_cell > 0 and not self._spec.has_cell_state:
            raise ValueError(
                f"zoneout_cell={zoneout_cell} is of cell states, which {type(self).__name__} does not have"
            )


def _side_by_side(directions: tuple[list[Tensor], ...]) -> list[Tensor]:
    """What each direction gives for each stretch, as one tensor for each stretch."""
    return directions[0] if len(directions) == 1 else [torch.cat(parts, -1) for parts in zip(*directions)]


def _stacked(parts: tuple[Tensor, ...]) -> Tensor:
    return reshaped(parts[0], (1, *parts[0].shape)) if len(parts) == 1 else torch.stack(parts)


def reshaped(state: Tensor, shape: Sequence[int]) -> Tensor:
    """A final state in another shape, and no view, which ``detach_()`` of truncated back-propagation would refuse.

    It shares the memory of ``state``, which nobody else may read.
    """
    return torch.ops.aten._unsafe_view(state, shape)


def check_backend(backend: str) -> None:
    """Raise ValueError unless there is a backend of this name, on whatever machine."""
    if backend != "auto" and backend not in ops.BACKENDS:
        known = ", ".join(map(repr, ops.BACKENDS))
        raise ValueError(f"unknown backend {backend!r}: expected 'auto' or one of {known}")


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if not isinstance(value, int):
            raise TypeError(f"{name} should be of type int, got: {type(value).__name__}")
        if value <= 0:
            raise ValueError(f"{name} must be greater than zero, got {value}")


def _check_bools(**values: bool) -> None:
    for name, value in values.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")


def _check_probabilities(**values: float) -> None:
    for name, value in values.items():
        float(value)  # TypeError, as from torch.nn, for what is nothing like a number
        if not isinstance(value, numbers.Real) or isinstance(value, bool) or not 0 <= value <= 1:
            raise ValueError(f"{name} should be a number in range [0, 1], a probability, got {value!r}")
