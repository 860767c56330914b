"""The base class of all modules of whole sequences: their options, and the stacking of layers and directions.

One layer in one direction is one call of ``ops.run``. ``packing`` and ``projection`` express what the kernels lack,
packed sequences and projections, in calls that they have. The modules by name are in ``modules``, those of a single
step in ``cell_modules``.
"""

import warnings
from collections.abc import Iterator
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import PackedSequence

from . import batching, ops, packing, projection, quick, streams
from .arguments import as_size, check_bools, check_positive, check_probabilities
from .cell_based import reshaped
from .torch_attributes import LikeRNNBase

RECURRENT_WEIGHTS = ("weight_hh", "weight_mhh")  # weights that multiply the state


def _quick_layer(module: "Recurrent", input: Tensor, hx: ops.State | None) -> tuple | None:
    return quick.layer(module, input, hx) if module._is_plain() else None


class Recurrent(LikeRNNBase):
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
        variational: draw the mask of ``dropout`` once per call for each sequence and feature and use it at every step
            (Gal & Ghahramani 2016), instead of a new mask for each step.
        weight_drop: probability of dropping an element of ``weight_hh`` or ``weight_mhh`` (DropConnect; Merity, Keskar
            & Socher 2018), in training mode only: drawn once per call for each layer and direction.
        zoneout: probability with which a unit keeps its hidden state in a step (Krueger et al. 2016); not with
            ``proj_size``.
        zoneout_cell: the same for cell states, in modules that have them.
        gradient_clip: the largest magnitude of the gradients of the pre-activations in each step (Graves 2013,
            arXiv:1308.0850, section 2.1), more than 0; None for no limit.
        learn_initial_state: add the parameters ``h_0`` (num_layers * directions, 1, H), with projections P for H, and,
            in cells with a cell state, ``c_0``. They start at zero, and every sequence begins with them unless ``hx``
            is given.

    Call: ``output, state = module(input, hx=None, lengths=None, resets=None)`` with input (T, B, I) or unbatched (T, I)
    and states (num_layers * directions, B, H) or (num_layers * directions, H); a missing state is zeros. The output is
    (T, B, directions * H). Cells with a cell state take and return the pair (h, c). ``lengths`` (B), int64, gives each
    sequence its own number of steps, 0 to T, and is equivalent to packing: outputs past the end are zero, final states
    are those of the last real step, and the reverse direction starts there. The input may also be a ``PackedSequence``,
    sorted or not; the output is then packed, too. Work and memory are proportional to the steps that it holds, plus at
    most as much again for padding.

    ``resets`` (T, B), with ``batch_first`` (B, T), unbatched (T,), bool, says where episodes begin within sequences:
    True at (t, b) is a boundary between steps t-1 and t of sequence b. Outputs, cell states and gradients are then
    those of running every episode by itself, in either direction. Each episode begins with the learnt initial state, or
    with zeros if none is learnt; the first episode that a direction reads begins with ``hx`` if that is given. So True
    in the first step makes the forward direction drop the state from a preceding chunk, and has no effect on the
    reverse direction. Final states are those of the episode read last. With a PackedSequence ``resets`` has the shape
    of the padded sequences, T being the longest, in the order in which the caller gave them.

    With ``return_cells=True`` the call returns a third result, the cell states of all steps of the last layer, shaped
    like the output but with H features in each direction; they are differentiable.

    ``recompute=True`` trades time for memory; results stay the same, and so do gradients up to rounding (in bfloat16
    this includes the rounding of the stored states). For each step and unit the forward pass then saves, beside its
    output, one value in LSTMs (the cell state) and none in other cells. Without it, it saves 5 in LSTMs, 4 in the GRU,
    3 in reset-before GRUs and 1 in the RNN; multiplicative cells save in addition the values of m in each step. A value
    takes the bytes of the dtype, 4 in float32. The backward pass recomputes the missing values, at the cost of the
    products of a forward pass, for an eighth of the steps at a time (but for at least 1024 steps times sequences), and
    meanwhile holds about 16 values for each of these steps and units. So recomputing pays for long sequences, or if
    several layers or calls wait for the same backward pass. The reference ignores this option: there autograd saves
    what it needs.

    Dropped elements depend on torch's generator alone, and kept ones are scaled by 1/(1 − probability), so that eval
    mode draws nothing and uses the weights as they are. Zoneout ends a step with k⊙h₋ + (1−k)⊙h in place of h, where k
    is drawn from 0 and 1 for each layer, direction, step, sequence and unit; in eval mode k is its expectation, the
    probability. The same holds for c, and h is computed from c before its zoneout. The masks k of a layer and direction
    take as much memory as its output. Gal & Ghahramani's second mask, of h₋ for each sequence, is not available,
    because the kernels multiply all sequences with the same weights; ``weight_drop`` drops elements of those.

    Under torch.autocast the module computes in autocast's dtype, except for float64, on every device.

    Raises torch.nn's exception types for the mistakes that torch.nn checks, and TypeError for a state that is not a
    tensor or a tuple of tensors.
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
        """Make and draw the parameters; the class describes the arguments."""
        super().__init__(input_size, hidden_size, bias, backend)
        num_layers, proj_size = as_size("num_layers", num_layers), as_size("proj_size", proj_size)
        check_positive(input_size=self.input_size, hidden_size=self.hidden_size, num_layers=num_layers)
        check_bools(bias=bias, batch_first=batch_first, recompute=recompute)
        check_bools(variational=variational, learn_initial_state=learn_initial_state)
        check_probabilities(dropout=dropout, weight_drop=weight_drop, zoneout=zoneout, zoneout_cell=zoneout_cell)
        ops.check_gradient_clip(gradient_clip)
        self._check_projection(proj_size)
        self._check_zoneout(zoneout, zoneout_cell, proj_size)
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                "dropout acts on the outputs of all but the last layer, so non-zero dropout expects num_layers "
                f"greater than 1, but got dropout={dropout} and num_layers={num_layers}",
                stacklevel=2 + ("__init__" in vars(type(self))),  # the caller's line
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
            layer_input = self.input_size if layer == 0 else self._output_size * self._directions
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

    def _weight_shape(self, name: str, layer_input: int) -> tuple[int, ...]:
        if name == "weight_hr":
            return self.proj_size, self.hidden_size
        shape = self._spec.weight_shape(name, layer_input, self.hidden_size)
        return (shape[0], self._output_size) if name == "weight_hh" else shape

    @quick.tried_first(_quick_layer)
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: ops.State | None = None,
        lengths: Tensor | None = None,
        return_cells: bool = False,
        resets: Tensor | None = None,
    ) -> tuple:
        """Run all layers, as ``Recurrent`` describes."""
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx, lengths, return_cells, resets)
        if isinstance(input, fx.Proxy):
            return self._as_one_node(input, hx, lengths=lengths, return_cells=return_cells, resets=resets)
        if input.dim() not in (2, 3):
            raise ValueError(f"{type(self).__name__}: Expected input to be 2D or 3D, got {input.dim()}D instead")
        batched = input.dim() == 3
        if not batched and lengths is not None:
            raise ValueError("lengths goes with batched input (3-D), and this input is unbatched (2-D)")
        if not batched:
            input = input.unsqueeze(1)
        elif self.batch_first:
            input = input.transpose(0, 1)
        self.check_input(input, None)
        initial = self._initial(hx, input.shape[1], batched)
        resets = self._checked_resets(resets, input.shape[0], input.shape[1], input.device, batched)
        sequences, final = self._run_layers([input], initial, [lengths], return_cells, [resets])
        output, *cells = (stretch for (stretch,) in sequences)
        if not batched:
            output, *cells = (sequence.squeeze(1) for sequence in (output, *cells))
            final = tuple(reshaped(part, (self._runs, part.shape[2])) for part in final)
        elif self.batch_first:
            output, *cells = (sequence.transpose(0, 1) for sequence in (output, *cells))
        return output, self._state_of(final), *cells

    def _is_plain(self) -> bool:
        """Whether each layer is one call of one cell, with at most dropout between them."""
        return not (
            self.batch_first
            or self.bidirectional
            or self.proj_size
            or self.recompute
            or self.weight_drop
            or self.zoneout
            or self.zoneout_cell
            or self.gradient_clip
            or self.learn_initial_state
        )

    def _forward_packed(
        self,
        input: PackedSequence,
        hx: ops.State | None,
        lengths: Tensor | None,
        return_cells: bool,
        resets: Tensor | None,
    ) -> tuple:
        """Run sequences in packing order, the longest first; resets and states come and go in the caller's order."""
        if lengths is not None:
            raise ValueError("a PackedSequence brings its lengths along: lengths goes with a padded tensor")
        data, batch_sizes, order, inverse = input
        self.check_input(data, batch_sizes)
        batching.check_shared("batch_sizes of a PackedSequence", batch_sizes, "a padded tensor and lengths")
        packing.check_layout(batch_sizes, len(data))
        layout = packing.Packing(batch_sizes, data.device)
        initial = self._initial(hx, layout.batch, batched=True)
        if initial is not None and order is not None:
            initial = tuple(part.index_select(1, order) for part in initial)
        resets = self._checked_resets(resets, layout.steps, layout.batch, data.device, batched=True)
        if resets is not None and order is not None:
            resets = resets.index_select(1, order)
        padded, final = self._run_layers(layout.pad(data), initial, layout.lengths, return_cells, layout.cut(resets))
        output, *cells = (PackedSequence(layout.pack(parts), batch_sizes, order, inverse) for parts in padded)
        return output, self.permute_hidden(self._state_of(final), inverse), *cells

    def _run_layers(
        self,
        inputs: list[Tensor],
        initial: tuple[Tensor, ...] | None,
        lengths: list[Tensor | None],
        return_cells: bool,
        resets: list[Tensor | None],
    ) -> tuple[tuple[list[Tensor], ...], tuple[Tensor, ...]]:
        """Return the last layer's outputs, perhaps with its cell states, and all layers' and directions' final states.

        Sequences come and go in stretches, see ``packing``; padded ones are a single stretch.
        """
        run = projection.run_lstm if self.proj_size else partial(packing.run, self.cell)
        how: dict = {"lengths": lengths, "gradient_clip": self.gradient_clip}
        how |= {"backend": self.backend, "recompute": self.recompute, "resets": resets}
        states = None if initial is None else [self._state_of(parts) for parts in zip(*map(torch.unbind, initial))]
        at_once = self.bidirectional and streams.can_fork(inputs, self.hidden_size)
        finals: list[tuple[Tensor, ...]] = []
        for layer in range(self.num_layers):
            last = layer + 1 == self.num_layers
            how["return_cells"] = return_cells and last
            calls = self._calls(layer, partial(run, **how), inputs, states, resets[0] is not None)
            results = (
                streams.run_both(next(calls), next(calls), inputs[0].device) if at_once else [call() for call in calls]
            )
            directions = []
            for outputs, final, *cells in results:
                directions.append((outputs, *cells))
                finals.append(final if self._spec.has_cell_state else (final,))
            sequences = tuple(map(_side_by_side, zip(*directions)))
            if not last:
                inputs = self._drop(sequences[0])
        return sequences, tuple(_stacked(parts) for parts in zip(*finals))

    def _calls(
        self, layer: int, run: partial, inputs: list[Tensor], states: list[ops.State] | None, in_episodes: bool
    ) -> Iterator[partial]:
        """Yield the call of each direction of a layer; its random numbers are drawn when it is asked for."""
        for direction, suffix in enumerate(self._suffixes(layer)):
            index = layer * self._directions + direction
            state = None if states is None else states[index]
            weights, masks = self._drawn_weights(suffix), [self._drawn_masks(stretch) for stretch in inputs]
            beginning = self._learnt(index) if in_episodes else {}
            yield partial(run, inputs, state, weights, reverse=direction == 1, masks=masks, **beginning)

    def _learnt(self, index: int) -> dict[str, Tensor]:
        """Return h_reset and c_reset (H), the learnt state with which every episode of a layer and direction begins."""
        names = self._state_sizes() if self.learn_initial_state else ()
        return {name.replace("_0", "_reset"): getattr(self, name)[index, 0] for name in names}

    def _drawn_weights(self, suffix: str) -> dict[str, Tensor]:
        """Return the weights of one layer and direction for one call; in training mode ``weight_drop`` is applied."""
        weights = self._weights(suffix)
        if self.training and self.weight_drop > 0:
            for name in RECURRENT_WEIGHTS:
                if name in weights:
                    weights[name] = nn.functional.dropout(weights[name], self.weight_drop)
        return weights

    def _drawn_masks(self, input: Tensor) -> dict[str, Tensor]:
        """Return zoneout's masks of the states of one layer and direction for one call."""
        masks: dict[str, Tensor] = {}
        if self.zoneout == 0 and self.zoneout_cell == 0:
            return masks
        shape = (*input.shape[:2], self.hidden_size)
        for name, probability in (("keep_h", self.zoneout), ("keep_c", self.zoneout_cell)):
            if probability > 0:
                # not derived from input, so that the members of torch.func.vmap may draw the same
                expected = torch.full(shape, probability, dtype=input.dtype, device=input.device)
                masks[name] = torch.bernoulli(expected) if self.training else expected
        return masks

    def _drop(self, outputs: list[Tensor]) -> list[Tensor]:
        """Apply ``dropout``, in training mode, to a layer's outputs (T, B, features) on their way to the next."""
        if not self.training or self.dropout == 0:
            return outputs
        if not self.variational:
            return [nn.functional.dropout(stretch, self.dropout) for stretch in outputs]
        mask = nn.functional.dropout(outputs[0].new_ones(outputs[0].shape[1:]), self.dropout)
        return [stretch * mask[: stretch.shape[1]] for stretch in outputs]

    def _initial(self, state: ops.State | None, batch: int, batched: bool) -> tuple[Tensor, ...] | None:
        """Return the parts of the initial state, each (layers * directions, B, features); raise if a shape is wrong."""
        if state is None:
            learnt = [getattr(self, name) for name in self._state_sizes()] if self.learn_initial_state else []
            return tuple(part.expand(-1, batch, -1) for part in learnt) or None
        parts = self._state_parts(state)
        self._check_states(parts, batch, batched)
        return parts if batched else tuple(part.unsqueeze(1) for part in parts)

    def _checked_resets(
        self, resets: Tensor | None, steps: int, batch: int, device: torch.device, batched: bool
    ) -> Tensor | None:
        """Return resets as (T, B); raise if they are not as the class describes."""
        if resets is None:
            return None
        if not batched:
            ops.check_resets(resets, (steps,), "(T,)", device)
            return resets.unsqueeze(1)
        if self.batch_first:
            ops.check_resets(resets, (batch, steps), "(B, T)", device)
            return resets.transpose(0, 1)
        ops.check_resets(resets, (steps, batch), "(T, B)", device)
        return resets

    def _check_projection(self, proj_size: int) -> None:
        if proj_size == 0:
            return
        if self.cell != "lstm":
            raise ValueError(f"proj_size argument is only supported for LSTM, not {type(self).__name__}")
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
    """Concatenate the outputs of the directions into one tensor for each stretch."""
    return directions[0] if len(directions) == 1 else [torch.cat(parts, -1) for parts in zip(*directions)]


def _stacked(parts: tuple[Tensor, ...]) -> Tensor:
    return reshaped(parts[0], (1, -1, parts[0].shape[1])) if len(parts) == 1 else torch.stack(parts)
