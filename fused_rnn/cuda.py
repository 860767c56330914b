"""The CUDA backend: the operators ``fused_rnn::forward`` and ``fused_rnn::backward`` on a GPU.

The kernels run the time loop and nothing else. What does not depend on the order of the steps is done here, for all
T·B rows at once, by the library behind torch's matrix products: W x before the loop (W_m x where x is modulated, both
where h₋ is), and after it every weight gradient and δx, from the gradients of the pre-activations that the kernels
leave behind. These products are in the dtype of the tensors, and in float32 obey torch's own switch of TF32.

The kernels come as a pair of functions, so that others can take their place: on a GPU the low-level operators
``fused_rnn::cuda_forward`` and ``fused_rnn::cuda_backward`` of ``csrc/cuda/ops.cpp``. How they divide the work ``plan``
tells, and ``FUSED_RNN_CUDA_PLAN`` in the environment forces.

Nothing here waits for the GPU, and a CUDA graph can capture a call; make one call before capturing, as is usual with
graphs. For the same reason the values of ``lengths`` are not checked on a GPU: less than 0 counts as 0, more than T
as T.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .cells import CELLS, WEIGHTS, Cell

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Kernels:
    """The time loop in both directions; arguments and results as in the schemas of csrc/cuda/ops.cpp."""

    forward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]


def _forward_on_gpu(*arguments):
    return torch.ops.fused_rnn.cuda_forward(*arguments)


def _backward_on_gpu(*arguments):
    return torch.ops.fused_rnn.cuda_backward(*arguments)


ON_GPU = Kernels(_forward_on_gpu, _backward_on_gpu)


def register() -> None:
    """Make this backend what the operators do on CUDA tensors, if the loaded library has the kernels."""
    if hasattr(torch.ops.fused_rnn, "cuda_forward"):
        torch.library.impl("fused_rnn::forward", "cuda", forward)
        torch.library.impl("fused_rnn::backward", "cuda", backward)


# What can run here ------------------------------------------------------------------------------------------


def status() -> str:
    """'available (NAME, sm_90)' for the first GPU that the kernels run on, or why they run on none."""
    missing = _missing()
    if missing:
        return missing
    count = max(1, torch.cuda.device_count())  # with none, number 0 says why
    found = [torch.ops.fused_rnn.cuda_device(index) for index in range(count)]
    names = [name for name, obstacle in found if not obstacle]
    return f"available ({names[0]})" if names else found[0][1]


def obstacle(index: int | None) -> str | None:
    """Why the kernels cannot run on a GPU, by default the current one, or None if they can."""
    missing = _missing()
    if missing:
        return missing
    if index is None:
        index = torch.cuda.current_device() if torch.cuda.is_initialized() else 0
    return torch.ops.fused_rnn.cuda_device(index)[1] or None


# what torch.compiler.assume_constant_result does, which would import all of the compiler with this module
obstacle._dynamo_marked_constant = True


def _missing() -> str | None:
    """What the library or torch lacks for any GPU, or None."""
    without = torch.ops.fused_rnn.without_cuda()
    if without:
        return f"this build of fused_rnn has no CUDA kernels: {without}"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    return None


def raise_timed_out() -> None:
    """Raise RuntimeError if a kernel gave up waiting for its own blocks since the last look.

    Every call looks by itself, at what earlier ones left. A replayed CUDA graph makes no call: synchronise, then look
    here. The results of the kernel that gave up are NaN.
    """
    if hasattr(torch.ops.fused_rnn, "cuda_raise_timed_out"):
        torch.ops.fused_rnn.cuda_raise_timed_out()


# How the work is divided --------------------------------------------------------------------------------------

FORCED = "FUSED_RNN_CUDA_PLAN"  # in the environment, read at every call


@dataclass(frozen=True)
class Chip:
    """What a plan must know of a GPU.

    Its multiprocessors; the bytes of shared memory that a block may take; how many clusters of 1, 2, 4, 8 and 16 blocks
    run at the same time, each block on a multiprocessor of its own, zeros where there are no clusters; and its name,
    by which it is known on what chips kernels were measured.
    """

    multiprocessors: int
    shared_bytes: int
    clusters: tuple[int, ...] = (0, 0, 0, 0, 0)
    name: str = ""


@dataclass(frozen=True)
class Plan:
    """How a call divides its work. Teams of blocks run tiles of sequences; the parts of a team share the units.

    The parts of a team exchange states through L2 (``l2``), from where they come to shared memory in segments; a team
    of one part may keep them there (``one_block``). Other kernels, whose steps stay in registers, run teams that are
    clusters of blocks, which push states into each other's shared memory (``cluster``), or are larger and hand each
    other words through L2 (``messages``). Fragments of weights have 16
    outputs and 64 values of K, and are counted for the warp that has most of them: those in its registers, those in
    shared memory, and those that are read from L2 in every step. The time is an estimate for an H200, by which the plan
    was chosen among others.
    """

    exchange: str
    sequences: int
    parts: int
    segments: int
    teams: int
    held: int
    resident: int
    streamed: int
    shared_bytes: int
    workspace_bytes: int
    nanoseconds: float

    @property
    def blocks(self) -> int:
        """Of the grid, all at work at the same time."""
        return self.teams * self.parts

    @property
    def forced(self) -> str:
        """The value of ``FUSED_RNN_CUDA_PLAN`` that forces this division."""
        return f"exchange={self.exchange},{self.division}"

    @property
    def division(self) -> str:
        """The numbers of ``forced`` alone, from which the exchange follows."""
        return f"sequences={self.sequences},parts={self.parts},segments={self.segments}"

    def __str__(self) -> str:
        return (
            f"{self.forced}: {self.teams} x {self.parts} blocks with {self.shared_bytes} bytes of shared memory each, "
            f"{self.held} + {self.resident} + {self.streamed} fragments of weights in registers, in shared memory and "
            f"streamed, a workspace of {self.workspace_bytes} bytes, about {self.nanoseconds / 1000:.2f} µs per step"
        )


def plan(
    cell: str,
    dtype: torch.dtype,
    batch: int,
    hidden: int,
    input: int | None = None,
    direction: str = "forward",
    chip: Chip | None = None,
    forced: str | None = None,
) -> Plan:
    """The plan of a call of the kernels, which need no GPU to be asked.

    Args:
        cell: name of a cell, as in :data:`fused_rnn.cells.CELLS`
        dtype: of the tensors
        batch: sequences, B
        hidden: units, H
        input: features, I; only cells that modulate the input have another plan for another I, and only these need it
        direction: ``forward`` or ``backward``
        chip: the GPU; by default the current one
        forced: what ``FUSED_RNN_CUDA_PLAN`` is taken to be; by default what it is

    Raises:
        RuntimeError: if there are no kernels for the cell or the dtype, if the layer is too large for the chip, if the
            forced plan does not fit it or is malformed, or if no chip is given and there is no GPU.
    """
    if not hasattr(torch.ops.fused_rnn, "cuda_plan"):
        raise RuntimeError(_missing())
    if input is None and _cell(cell).modulates == "input":
        raise RuntimeError(f"fused_rnn: the plan of {cell} depends on the size of the input, which is not given")
    numbers = torch.ops.fused_rnn.cuda_plan(
        cell,
        direction,
        str(dtype).removeprefix("torch."),
        batch,
        hidden if input is None else input,
        hidden,
        *vars(chip or current_chip()).values(),
        os.environ.get(FORCED, "") if forced is None else forced,
    )
    return Plan(*numbers)


def current_chip() -> Chip:
    """What a plan must know of the current GPU; RuntimeError if the kernels cannot run there."""
    if reason := obstacle(None):
        raise RuntimeError(f"fused_rnn: {reason}")
    multiprocessors, shared_bytes, clusters, name = torch.ops.fused_rnn.cuda_chip(torch.cuda.current_device())
    return Chip(multiprocessors, shared_bytes, tuple(clusters), name)


# The operators ----------------------------------------------------------------------------------------------


def forward(
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    weight_mih: Tensor | None,
    weight_mhh: Tensor | None,
    bias_m: Tensor | None,
    lengths: Tensor | None,
    keep_h: Tensor | None,
    keep_c: Tensor | None,
    cell: str,
    reverse: bool,
    gradient_clip: float,
    save: str,
    kernels: Kernels = ON_GPU,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``fused_rnn::forward``: (output (T, B, H), h_n (B, H), c_n (B, H) or empty, cells (T, B, H) or empty, saved)."""
    spec = _cell(cell)
    modulates_input = spec.modulates == "input"
    return kernels.forward(
        _project(input, weight_mih if modulates_input else weight_ih),
        _modulated(spec, input, weight_mih),
        h_0,
        c_0,
        weight_ih if modulates_input else None,
        weight_hh,
        weight_mhh,
        bias_m,
        bias_ih,
        bias_hh,
        lengths,
        keep_h,
        keep_c,
        cell,
        reverse,
        save,
    )


def backward(
    d_output: Tensor | None,
    d_h_n: Tensor | None,
    d_c_n: Tensor | None,
    d_cells: Tensor | None,
    output: Tensor,
    cells: Tensor,
    saved: Tensor,
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    weight_mih: Tensor | None,
    weight_mhh: Tensor | None,
    bias_m: Tensor | None,
    lengths: Tensor | None,
    keep_h: Tensor | None,
    keep_c: Tensor | None,
    cell: str,
    reverse: bool,
    gradient_clip: float,
    input_gradient: bool,
    weight_gradients: bool,
    kernels: Kernels = ON_GPU,
) -> tuple[Tensor, ...]:
    """``fused_rnn::backward``: gradients of input, h_0, c_0 and the weights, empty where not wanted or absent."""
    spec = _cell(cell)
    modulated = _modulated(spec, input, weight_mih)
    d_h_0, d_c_0, d, d_modulated = kernels.backward(
        d_output,
        d_h_n,
        d_c_n,
        d_cells,
        output,
        cells,
        saved,
        modulated,
        h_0,
        c_0,
        weight_ih if spec.modulates == "input" else None,
        weight_hh,
        weight_mhh,
        lengths,
        keep_h,
        keep_c,
        cell,
        reverse,
        gradient_clip,
    )
    products = _Products(spec, d, d_modulated, output, saved, input, modulated, h_0, lengths, reverse)
    if not input_gradient:
        d_input = _empty(input)
    elif spec.modulates == "input":
        d_input = d_modulated  # the part that does not pass through W_m
        _rows(d_input).addmm_(_rows(products.d_m), weight_mih)
    else:
        d_input = torch.mm(_rows(products.d_gates), weight_ih).view(input.shape)
        if spec.modulates == "hidden":
            _rows(d_input).addmm_(_rows(d_modulated), weight_mih)
    weights = zip(WEIGHTS, (weight_ih, weight_hh, bias_ih, bias_hh, weight_mih, weight_mhh, bias_m))
    wanted = [name for name, weight in weights if weight_gradients and weight is not None]
    gradients = products.weight_gradients(wanted)
    return d_input, d_h_0, d_c_0, *(gradients[name] if name in wanted else _empty(input) for name in WEIGHTS)


def _cell(name: str) -> Cell:
    if name not in CELLS:
        raise RuntimeError(f"fused_rnn: unknown cell {name!r}")
    return CELLS[name]


def _empty(like: Tensor) -> Tensor:
    """What stands for a missing result; each has memory of its own."""
    return like.new_empty(0)


def _project(input: Tensor, weight: Tensor) -> Tensor:
    """W x of all steps, (T, B, rows of W)."""
    return torch.mm(_rows(input), weight.t()).view(*input.shape[:2], -1)


def _modulated(cell: Cell, input: Tensor, weight_mih: Tensor | None) -> Tensor | None:
    """What a multiplicative cell scales by m, (T, B, values of m): x, or W_m x, of which x̂ then replaces h₋."""
    if cell.modulates == "hidden":
        return _project(input, weight_mih)
    return input if cell.multiplicative else None


def _rows(steps: Tensor) -> Tensor:
    """(T, B, columns) as (T·B, columns); a view for all that is passed here except inputs with strides of their own."""
    return steps.flatten(0, 1)


class _Products:
    """The products after the loop, from d (T, B, columns), the gradients of the pre-activations.

    The columns of d: H for each gate; in the reset-after GRU then H for the part of n that r scales, which takes the
    place of n beside U; in multiplicative cells then δm. Past the end of a sequence d and the outputs are zero.
    Matrix products take column slices of d as they are.
    """

    def __init__(
        self,
        cell: Cell,
        d: Tensor,
        d_modulated: Tensor,
        output: Tensor,
        saved: Tensor,
        input: Tensor,
        modulated: Tensor | None,
        h_0: Tensor,
        lengths: Tensor | None,
        reverse: bool,
    ) -> None:
        H = h_0.shape[1]
        self.cell, self.d, self.output, self.saved, self.input, self.h_0 = cell, d, output, saved, input, h_0
        self.modulated, self.d_modulated = modulated, d_modulated
        self.lengths, self.reverse = lengths, reverse
        self.d_gates = d[..., : cell.gates * H]
        self.d_m = d[..., cell.gradients * H :]
        # beside U: where n has a product of its own there, the last H columns, and before them r and z
        self.n_apart = cell.reset_before or cell.gradients > cell.gates
        self.d_rz = d[..., : 2 * H]
        self.d_n = d[..., (cell.gradients - 1) * H : cell.gradients * H]

    def weight_gradients(self, wanted: list[str]) -> dict[str, Tensor]:
        """At least those that are wanted, by name."""
        if not wanted:
            return {}
        x, d_gates = self._active(self.input), _rows(self.d_gates)
        result = {}
        if self.cell.multiplicative:
            result["weight_mhh"] = self._with_states(self.d_m)
            m = _rows(self.saved)[:, self.cell.saved * self.h_0.shape[1] :]
        if self.cell.modulates == "hidden":
            result["weight_mih"] = torch.mm(_rows(self.d_modulated).t(), x)
            result["weight_hh"] = torch.mm(d_gates.t(), m * self._active(self.modulated))
        else:
            result["weight_hh"] = self._recurrent()
        if self.cell.modulates == "input":
            result["weight_mih"] = torch.mm(_rows(self.d_m).t(), x)
            x = m * x
        result["weight_ih"] = torch.mm(d_gates.t(), x)
        if any(name.startswith("bias") for name in wanted):
            result |= self._bias_gradients()
        return result

    def _bias_gradients(self) -> dict[str, Tensor]:
        """Sums over all rows, in memory of their own."""
        H = self.h_0.shape[1]
        sums = self.d.sum((0, 1))
        gates, last = sums[: self.cell.gates * H], (self.cell.gradients - 1) * H
        recurrent = torch.cat([sums[: 2 * H], sums[last : last + H]]) if self.n_apart else gates.clone()
        return {"bias_ih": gates.clone(), "bias_hh": recurrent, "bias_m": sums[self.cell.gradients * H :].clone()}

    def _recurrent(self) -> Tensor:
        """The gradient of U; in the reset-before GRU U_n multiplies r⊙h₋."""
        if not self.n_apart:
            return self._with_states(self.d_gates)
        r = self.saved[..., : self.h_0.shape[1]] if self.cell.reset_before else None
        return torch.cat([self._with_states(self.d_rz), self._with_states(self.d_n, r)])

    def _with_states(self, d: Tensor, factor: Tensor | None = None) -> Tensor:
        """Σ dᵀ h₋ over all steps, h₋ scaled elementwise by a factor (T, B, H)."""
        after, before = slice(1, None), slice(None, -1)
        if self.reverse:
            after, before = before, after
        first, rest = self.h_0, self.output[before]
        if factor is not None:
            first, rest = self._first(factor) * first, factor[after] * rest
        return torch.mm(self._first(d).t(), first).addmm_(_rows(d[after]).t(), _rows(rest))

    def _first(self, steps: Tensor) -> Tensor:
        """Of (T, B, columns) the rows (B, columns) of every sequence's first step, which begins with h_0.

        A sequence without steps may show any row, where d is zero. In a reverse run the step after the last one of a
        sequence shows an output of zero, and adds nothing.
        """
        if not self.reverse:
            return steps[0]
        if self.lengths is None:
            return steps[-1]
        first = (self.lengths - 1).clamp(0, len(steps) - 1)
        return steps[first, torch.arange(len(first), device=first.device)]

    def _active(self, steps: Tensor) -> Tensor:
        """The rows of (T, B, columns) with zeros past the ends of sequences, where an input may hold anything."""
        if self.lengths is None:
            return _rows(steps)
        times = torch.arange(len(steps), device=steps.device).unsqueeze(1)
        return _rows(steps.masked_fill((times >= self.lengths).unsqueeze(2), 0))
