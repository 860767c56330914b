"""The CUDA backend: the operators ``fused_rnn::forward`` and ``fused_rnn::backward`` on a GPU.

The kernels, ``fused_rnn::cuda_forward`` and ``fused_rnn::cuda_backward`` of ``csrc/cuda/ops.cpp``, run the time loop,
and ``products`` does all else. How they divide the work ``plan`` tells, and ``FUSED_RNN_CUDA_PLAN`` in the environment
forces.

Nothing here waits for the GPU, and a CUDA graph can capture a call; make one call before capturing, as is usual with
graphs. For the same reason the values of ``lengths`` are not checked on a GPU: less than 0 counts as 0, more than T
as T.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from . import products
from .cells import CELLS
from .operands import ForwardLoop, Results

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _forward_on_gpu(*arguments):
    return torch.ops.fused_rnn.cuda_forward(*arguments)


def _backward_on_gpu(*arguments):
    return torch.ops.fused_rnn.cuda_backward(*arguments)


ON_GPU = products.Kernels(_forward_on_gpu, _backward_on_gpu)
# what the operators do on a GPU
forward = partial(products.forward, kernels=ON_GPU)
backward = partial(products.backward, kernels=ON_GPU)


def register() -> None:
    """Make this backend what the operators do on CUDA tensors, if the loaded library has the kernels."""
    if hasattr(torch.ops.fused_rnn, "cuda_forward"):
        torch.library.impl("fused_rnn::forward", "cuda", forward)
        torch.library.impl("fused_rnn::backward", "cuda", backward)
        torch.library.register_fake("fused_rnn::cuda_forward", _loop_fake)


def decompositions() -> dict[Callable, Callable]:
    """For ``run_decompositions`` of an exported program: the forward pass as its products and the loop.

    On a GPU what is around the loop is Python's. A program that was decomposed so needs the compiled library alone, as
    a package of AOTInductor in a process without Python; it cannot be differentiated, and runs on CUDA devices only.
    """
    table = torch.export.default_decompositions()
    table[torch.ops.fused_rnn.forward.default] = forward
    return table


def _loop_fake(*arguments):
    loop = ForwardLoop(*arguments)
    (T, B, _), H, cell = loop.projected.shape, loop.h_0.shape[1], CELLS[loop.cell]
    modulated = 0 if loop.input is None else loop.input.shape[2]
    sizes = {"T": T, "B": B, "H": H, "S": cell.saved * H + modulated}
    return Results.fake(loop.projected, cell, loop.save, sizes)


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
    resets: bool = False,
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
        resets: whether the call has some, which kernels of clusters and those by messages do not know

    Raises:
        RuntimeError: if there are no kernels for the cell or the dtype, if the layer is too large for the chip, if the
            forced plan does not fit it or is malformed, or if no chip is given and there is no GPU.
    """
    if not hasattr(torch.ops.fused_rnn, "cuda_plan"):
        raise RuntimeError(_missing())
    if input is None and cell in CELLS and CELLS[cell].modulates == "input":
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
        resets,
    )
    return Plan(*numbers)


def current_chip() -> Chip:
    """What a plan must know of the current GPU; RuntimeError if the kernels cannot run there."""
    if reason := obstacle(None):
        raise RuntimeError(f"fused_rnn: {reason}")
    multiprocessors, shared_bytes, clusters, name = torch.ops.fused_rnn.cuda_chip(torch.cuda.current_device())
    return Chip(multiprocessors, shared_bytes, tuple(clusters), name)
