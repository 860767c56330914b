"""The calls of csrc/cuda/api.h for ctypes: their structures, filled with the operands of ``products.Kernels``.

All users of a library with these calls in C (``build`` here, and the tests of the kernels on the host shim) take the
structures from here, so that a change of api.h affects one place in Python.
"""

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from fused_rnn import cuda
from fused_rnn.cells import CELLS
from fused_rnn.operands import BackwardLoop, ForwardLoop, LoopGradients, Results

BASE_CELLS = ["rnn_tanh", "rnn_relu", "lstm", "gru", "gru_reset_after"]  # in the order of CellId
TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]  # in the order of Type
EXCHANGES = ["chosen", "one_block", "l2", "cluster", "blocks", "messages", "warps"]  # in the order of ExchangeId
MODULATES = [None, "input", "hidden"]  # in the order of Modulates


class Chip(ctypes.Structure):
    """The properties of a device that plans depend on."""

    _fields_ = (
        ("multiprocessors", ctypes.c_int),
        ("shared_bytes", ctypes.c_int64),
        ("clusters", ctypes.c_int * 5),
        ("name", ctypes.c_char_p),
    )

    @classmethod
    def of(cls, chip: cuda.Chip) -> "Chip":
        clusters = (ctypes.c_int * 5)(*chip.clusters)
        return cls(chip.multiprocessors, chip.shared_bytes, clusters, chip.name.encode())


class Plan(ctypes.Structure):
    """A summary of a call's plan; its fields are those of ``fused_rnn.cuda.Plan``."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("sequences", "parts", "segments", "exchange_id")),
        *((name, ctypes.c_int) for name in ("teams", "held", "resident", "streamed")),
        ("shared_bytes", ctypes.c_int64),
        ("workspace_bytes", ctypes.c_int64),
        ("nanoseconds", ctypes.c_double),
    )

    @property
    def exchange(self) -> str:
        return EXCHANGES[self.exchange_id]

    @property
    def values(self) -> dict[str, float | str]:
        return {field.name: getattr(self, field.name) for field in fields(cuda.Plan)}

    def __repr__(self) -> str:
        return str(self.values)


LAYER = [("cell", ctypes.c_int), ("modulates", ctypes.c_int), ("type", ctypes.c_int), ("reverse", ctypes.c_bool)]
LAYER += [(size, ctypes.c_int64) for size in "TBIH"]
# of both directions; d_h_reset and d_c_reset exist in the forward direction too, where nobody reads them
CONSTANTS = ["lengths", "timed_out", "resets", "h_reset", "c_reset", "d_h_reset", "d_c_reset", "keep_h", "keep_c"]
ARRAYS = {
    "forward": "projected input h_0 c_0 weight_ih weight_hh weight_mhh bias_m bias_ih bias_hh "
    "output h_n c_n cells saved",
    "backward": "d_output d_h_n d_c_n d_cells output cells saved input h_0 c_0 weight_ih weight_hh weight_mhh "
    "d_h_0 d_c_0 d d_input",
}


def structure(arrays: str) -> type[ctypes.Structure]:
    pointers = [(name, ctypes.c_void_p) for name in [*CONSTANTS, *arrays.split()]]
    return type("Call", (ctypes.Structure,), {"_fields_": [*LAYER, *pointers, ("gradient_clip", ctypes.c_double)]})


STRUCTURES = {direction: structure(arrays) for direction, arrays in ARRAYS.items()}


def base_of(cell: str) -> str:
    """Return the base cell, without the multiplicative modifier."""
    return cell.removeprefix("multiplicative_").removesuffix("_hidden")


def which(cell: str) -> dict[str, int]:
    """Return the numbers of a base cell and of the operand that is modulated."""
    return {"cell": BASE_CELLS.index(base_of(cell)), "modulates": MODULATES.index(CELLS[cell].modulates)}


def sized(direction: str, cell: str, dtype: torch.dtype, T: int, B: int, I: int, H: int) -> ctypes.Structure:
    """Make a call with its sizes but no arrays, for planning; inputs that are not modulated count as one feature."""
    modulated = CELLS[cell].modulated_size(I, H) or 1
    return STRUCTURES[direction](**which(cell), type=TYPES.index(dtype), T=T, B=B, I=modulated, H=H)


@dataclass
class Call:
    """A call with its arrays, which it keeps alive: contiguous, as the operators of csrc/cuda make them."""

    direction: str
    structure: ctypes.Structure
    arrays: dict[str, Tensor]
    results: tuple[Tensor, ...]  # as the operators return them

    @property
    def timed_out(self) -> bool:
        """Whether a block timed out; waits for the device."""
        return bool(self.arrays["timed_out"].item())


New = Callable[..., Tensor]  # allocates a result, given a tensor with its dtype and device, and its shape


def forward(new: New, *loop) -> Call:
    """Make a call from the fields of ``ForwardLoop``, with results in memory that ``new`` makes."""
    q = ForwardLoop(*loop)
    spec, (T, B, _), H = CELLS[q.cell], q.projected.shape, q.h_0.shape[1]
    columns = spec.saved * H + (q.input.shape[2] if spec.multiplicative else 0)
    shapes = Results(
        output=(T, B, H),
        h_n=(B, H),
        c_n=(B, H) if spec.has_cell_state else (0,),
        cells=(T, B, H) if spec.has_cell_state and q.save != "nothing" else (0,),
        saved=(T, B, columns) if q.save == "everything" else (0,),
    )
    results = Results(*(new(q.h_0, *shape) for shape in shapes))
    if q.lengths is not None:
        # nothing is written past the ends of sequences, where the operator of csrc/cuda/ops.cpp has zeros, too
        results.saved.zero_()
    written = {name: result if result.numel() else None for name, result in results._asdict().items()}
    return _call("forward", q, written, (T, B, H), results)


def backward(new: New, *loop) -> Call:
    """Make a call from the fields of ``BackwardLoop``, likewise."""
    q = BackwardLoop(*loop)
    spec, (T, B, H) = CELLS[q.cell], q.output.shape
    inputs = q.input.shape[2] if spec.multiplicative else 0
    of_loop = [(B, H), (B, H), (T, B, spec.gradients * H + inputs), (T, B, inputs)]
    sums = q.h_0.new_empty(0, dtype=torch.promote_types(q.h_0.dtype, torch.float32))
    of_beginnings = [sums if state is None else new(sums, B, H) for state in (q.h_reset, q.c_reset)]
    results = LoopGradients(*(new(q.h_0, *shape) for shape in of_loop), *of_beginnings)
    written = results._asdict() | {
        name: None for name in ("d_h_reset", "d_c_reset") if not getattr(results, name).numel()
    }
    if not spec.has_cell_state:
        results = results._replace(d_c_0=q.h_0.new_empty(0))
    return _call("backward", q, written, (T, B, H), results, q.gradient_clip or math.inf)


def _call(
    direction: str,
    loop: ForwardLoop | BackwardLoop,
    written: dict[str, Tensor | None],
    sizes: tuple[int, int, int],
    results: Sequence[Tensor],
    gradient_clip: float = math.inf,
) -> Call:
    named = {**loop._asdict(), **written, "timed_out": torch.zeros(1, dtype=torch.int32, device=results[0].device)}
    names = [*ARRAYS[direction].split(), *CONSTANTS]
    arrays = {name: named[name].contiguous() for name in names if named.get(name) is not None}
    filled = STRUCTURES[direction](
        **which(loop.cell),
        type=TYPES.index(results[0].dtype),
        reverse=loop.reverse,
        **dict(zip("TBH", sizes)),
        I=arrays["input"].shape[2] if "input" in arrays else 1,
        **{name: tensor.data_ptr() for name, tensor in arrays.items()},
        gradient_clip=gradient_clip,
    )
    return Call(direction, filled, arrays, tuple(results))
