"""The arguments and results of the operators, each defined once: name, position, whether it is optional, shape.

The fields of the named tuples below are the arguments and results of the operators in their order, and the schemas are
made of them. ``fused_rnn_triton`` declares these schemas; those of ``fused_rnn``, which are text beside the C++ in
``csrc/ops.cpp`` and ``csrc/cuda/ops.cpp``, must be equal to them. Programs that ``torch.export`` saved refer to
arguments by name, so no name and no position may change, and new operands come after all others.

``Options`` are the keyword arguments that all functions of a whole sequence take beside states and weights.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from torch import Tensor

from . import episodes
from .cells import CELLS, WEIGHTS, Cell
from .reference import PairOptions

DIFFERENTIABLE = ("input", "h_0", "c_0", *WEIGHTS, "h_reset", "c_reset")  # the operands that have a gradient
MASKS = ("keep_h", "keep_c")
LATER = ("resets", "h_reset", "c_reset")  # optional operands, which come last
SAVES = ("nothing", "states", "everything")  # values of forward's argument ``save``

# Letters are dimensions: T steps, B sequences, I features, H units, S values of a step that backward reads. Weights
# have the cell's ``Cell.weight_shapes``; a gradient, d_..., has the shape of its tensor.
SHAPES = {
    **{"input": "TBI", "h_0": "BH", "c_0": "BH", "lengths": "B", "keep_h": "TBH", "keep_c": "TBH"},
    **{"resets": "TB", "h_reset": "BH", "c_reset": "BH"},
    **{"output": "TBH", "h_n": "BH", "c_n": "BH", "cells": "TBH", "saved": "TBS"},
}


class Options(PairOptions, total=False):
    """The options of ``functional`` and of ``ops.run``: those of ``reference``, and the choice of kernels.

    Attributes:
        backend: "auto", which is the default, or one of ``fused_rnn.backends()``.
        recompute: save only states for the backward pass, which rebuilds the gates; False.
    """

    backend: str
    recompute: bool


class Operands(NamedTuple):
    """The operands that forward, backward and backward_from_states have in common."""

    input: Tensor
    h_0: Tensor
    c_0: Tensor | None  # only in cells with a cell state
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    weight_mih: Tensor | None
    weight_mhh: Tensor | None
    bias_m: Tensor | None
    lengths: Tensor | None
    keep_h: Tensor | None
    keep_c: Tensor | None
    cell: str
    reverse: bool
    gradient_clip: float  # 0 for none
    resets: Tensor | None = None  # bool: the steps that begin anew, in the direction of the run; see ``episodes``
    h_reset: Tensor | None = None  # the initial state of these steps; None is zeros
    c_reset: Tensor | None = None

    @property
    def spec(self) -> Cell:
        """The cell; raises RuntimeError if the name is unknown."""
        if self.cell not in CELLS:
            raise RuntimeError(f"fused_rnn: unknown cell {self.cell!r}")
        return CELLS[self.cell]

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self[:_HOW] + self[_LATER:]

    @property
    def how(self) -> tuple[str, bool, float]:
        """All operands that are not tensors."""
        return self[_HOW:_LATER]

    @property
    def later(self) -> tuple[Tensor | None, ...]:
        """The operands named in ``LATER``, as arguments: empty for a call without resets."""
        return () if self.resets is None else self[_LATER:]

    @classmethod
    def joined(cls, tensors: Sequence[Tensor | None], how: tuple[str, bool, float]) -> "Operands":
        """Join ``tensors`` and ``how``, as the properties of these names split them."""
        return cls(*tensors[:_HOW], *how, *tensors[_HOW:])

    @property
    def differentiable(self) -> tuple[Tensor | None, ...]:
        """The operands named in ``DIFFERENTIABLE``."""
        return self[: _WEIGHTS.stop] + self[_H_RESET:]

    @property
    def weights(self) -> tuple[Tensor | None, ...]:
        """The operands named in ``WEIGHTS``."""
        return self[_WEIGHTS]

    @property
    def masks(self) -> tuple[Tensor | None, ...]:
        """The operands named in ``MASKS``."""
        return self[_MASKS]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an operand, a result or a gradient of either; the cell need not have it."""
        name, sizes = name.removeprefix("d_"), self.sizes
        if name in WEIGHTS:
            return self.spec.weight_shape(name, sizes["I"], sizes["H"])
        return tuple(sizes[letter] for letter in SHAPES[name])

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of the letters of ``SHAPES``."""
        spec, (T, B, I), H = self.spec, self.input.shape, self.h_0.shape[1]
        return {"T": T, "B": B, "I": I, "H": H, "S": spec.saved * H + spec.modulated_size(I, H)}

    def by_reference(self, return_cells: bool) -> tuple:
        """Run the reference on them: return outputs, the final state and, if requested, the cell states."""
        spec = self.spec
        given = {name: weight for name, weight in zip(WEIGHTS, self.weights) if weight is not None}
        given |= {"reverse": self.reverse, "lengths": self.lengths, "keep_h": self.keep_h, **spec.options}
        given["gradient_clip"] = self.gradient_clip or None
        if self.resets is not None:
            given |= {"resets": episodes.boundaries(self.resets, self.reverse), "h_reset": self.h_reset}
        if not spec.has_cell_state:
            return spec.reference(self.input, self.h_0, **given)
        state, of_c = (self.h_0, self.c_0), {"keep_c": self.keep_c, "c_reset": self.c_reset}
        return spec.reference(self.input, state, **given, **of_c, return_cells=return_cells)

    def between(self, begin: int, end: int) -> "Operands":
        """Return the operands of these steps, with the states of all steps; lengths count from ``begin``."""
        timed = [name for name in self._fields if SHAPES.get(name, "").startswith("T")]
        part = {name: None if getattr(self, name) is None else getattr(self, name)[begin:end] for name in timed}
        lengths = None if self.lengths is None else (self.lengths - begin).clamp(0, end - begin)
        return self._replace(**part, lengths=lengths)


_HOW, _LATER, _H_RESET = map(Operands._fields.index, ("cell", LATER[0], "h_reset"))
_WEIGHTS, _MASKS = (
    slice(Operands._fields.index(names[0]), Operands._fields.index(names[-1]) + 1) for names in (WEIGHTS, MASKS)
)


class Results(NamedTuple):
    """The results of forward, and of the forward loop; those that the cell lacks or that are not saved are empty."""

    output: Tensor
    h_n: Tensor
    c_n: Tensor
    cells: Tensor
    saved: Tensor

    @staticmethod
    def fake(like: Tensor, cell: Cell, save: str, sizes: dict[str, int]) -> tuple[Tensor, ...]:
        """Make tensors shaped like the results, where ``sizes`` are those of the letters of ``SHAPES``."""
        pair, states = cell.has_cell_state, save != "nothing"
        there = {"output": True, "h_n": True, "c_n": pair, "cells": pair and states, "saved": save == "everything"}
        shapes = {name: tuple(sizes[letter] for letter in SHAPES[name]) for name in Results._fields}
        return tuple(like.new_empty(shapes[name] if there[name] else (0,)) for name in Results._fields)


class ResultGradients(NamedTuple):
    """The gradients that backward takes; a missing one counts as zero."""

    d_output: Tensor | None
    d_h_n: Tensor | None
    d_c_n: Tensor | None
    d_cells: Tensor | None


class Kept(NamedTuple):
    """The results that backward reads again."""

    output: Tensor
    cells: Tensor
    saved: Tensor


class Wanted(NamedTuple):
    """The gradients that backward is to return beside those of the states."""

    input_gradient: bool
    weight_gradients: bool


class ForwardCall(NamedTuple):
    """The arguments of forward."""

    operands: Operands
    save: str

    @classmethod
    def of(cls, arguments: Sequence) -> "ForwardCall":
        """Group the arguments as the operator takes them; those with a default may be missing."""
        return cls(Operands(*arguments[:_LATER], *arguments[_LATER + 1 :]), arguments[_LATER])

    @property
    def arguments(self) -> tuple:
        """The arguments that ``of`` groups."""
        return (*self.operands[:_LATER], self.save, *self.operands.later)

    @staticmethod
    def names() -> tuple[str, ...]:
        """Return the names of the arguments, in order."""
        return (*Operands._fields[:_LATER], "save", *LATER)


_SIZES = (len(ResultGradients._fields), len(Kept._fields), _LATER, len(Wanted._fields))
# where the arguments of backward lie: d_results, kept, operands, wanted, later operands
_GROUPS = (*(slice(end - size, end) for size, end in zip(_SIZES, accumulate(_SIZES))), slice(sum(_SIZES), None))


class BackwardCall(NamedTuple):
    """The arguments of backward and backward_from_states, in groups."""

    d_results: ResultGradients
    kept: Kept
    operands: Operands
    wanted: Wanted

    @classmethod
    def of(cls, arguments: Sequence) -> "BackwardCall":
        """Group the arguments as the operators take them; those with a default may be missing."""
        d_results, kept, operands, wanted, later = map(arguments.__getitem__, _GROUPS)
        return cls(ResultGradients(*d_results), Kept(*kept), Operands(*operands, *later), Wanted(*wanted))

    @property
    def arguments(self) -> tuple:
        """The arguments that ``of`` groups."""
        return (*self.d_results, *self.kept, *self.operands[:_LATER], *self.wanted, *self.operands.later)


Gradients = NamedTuple("Gradients", [(f"d_{name}", Tensor) for name in DIFFERENTIABLE])
Gradients.__doc__ = "What backward returns; what is not wanted or does not exist is empty."


# The time loops on a GPU, around which ``products`` is ---------------------------------------------------------


class ForwardLoop(NamedTuple):
    """The operands of a forward loop, which returns ``Results``; operands that the cell does not read are missing."""

    projected: Tensor  # W x, or W_m x if x is modulated: (T, B, rows of the weight)
    input: Tensor | None  # the values that m scales: (T, B, values of m)
    h_0: Tensor
    c_0: Tensor | None
    weight_ih: Tensor | None
    weight_hh: Tensor
    weight_mhh: Tensor | None
    bias_m: Tensor | None
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    lengths: Tensor | None
    keep_h: Tensor | None
    keep_c: Tensor | None
    resets: Tensor | None
    h_reset: Tensor | None
    c_reset: Tensor | None
    cell: str
    reverse: bool
    save: str


class BackwardLoop(NamedTuple):
    """The operands of a backward loop, which returns ``LoopGradients``."""

    d_output: Tensor | None
    d_h_n: Tensor | None
    d_c_n: Tensor | None
    d_cells: Tensor | None
    output: Tensor
    cells: Tensor
    saved: Tensor
    input: Tensor | None  # this and the following as in ForwardLoop
    h_0: Tensor
    c_0: Tensor | None
    weight_ih: Tensor | None
    weight_hh: Tensor
    weight_mhh: Tensor | None
    lengths: Tensor | None
    keep_h: Tensor | None
    keep_c: Tensor | None
    resets: Tensor | None
    h_reset: Tensor | None
    c_reset: Tensor | None
    cell: str
    reverse: bool
    gradient_clip: float


class LoopGradients(NamedTuple):
    """The gradients of the states, of all pre-activations (T, B, columns), and of the values that m scales.

    Those of the initial states of episodes are sums over steps, and so in float32 if the tensors have 16-bit types.
    Gradients that the cell lacks are empty. ``products`` describes the columns.
    """

    d_h_0: Tensor
    d_c_0: Tensor
    d: Tensor
    d_input: Tensor
    d_h_reset: Tensor
    d_c_reset: Tensor


# Schemas --------------------------------------------------------------------------------------------------------

_TYPES = {Tensor: "Tensor", Tensor | None: "Tensor?", str: "str", bool: "bool", float: "float"}


def _declared(*groups: type) -> str:
    """Declare the fields of these tuples as in a schema; those that have a default are optional, and come last."""
    fields = [(*field, group._field_defaults) for group in groups for field in group.__annotations__.items()]
    fields.sort(key=lambda field: field[0] in field[2])
    return ", ".join(f"{_TYPES[kind]} {name}{'=None' if name in defaults else ''}" for name, kind, defaults in fields)


class _Saving(NamedTuple):
    save: str


_OF_BACKWARD = f"({_declared(ResultGradients, Kept, Operands, Wanted)}) -> ({_declared(Gradients)})"

# schemas of the operators that every namespace has, and of the loops that ``fused_rnn`` has with CUDA
SCHEMAS = {
    "forward": f"({_declared(Operands, _Saving)}) -> ({_declared(Results)})",
    "backward": _OF_BACKWARD,
    "backward_from_states": _OF_BACKWARD,
}
LOOP_SCHEMAS = {
    "cuda_forward": f"({_declared(ForwardLoop)}) -> ({_declared(Results)})",
    "cuda_backward": f"({_declared(BackwardLoop)}) -> ({_declared(LoopGradients)})",
}
