"""The CUDA backend: the operators ``fused_rnn::forward`` and ``fused_rnn::backward`` on a GPU.

The kernels, ``fused_rnn::cuda_forward`` and ``fused_rnn::cuda_backward`` of ``csrc/cuda/ops.cpp``, run the time loop,
and ``products`` computes everything else. ``plan`` tells how they divide the work, and ``FUSED_RNN_CUDA_PLAN`` in the
environment forces a division.

Nothing here waits for the GPU, and a CUDA graph can capture a call; make one call before capturing, as is usual with
graphs. For the same reason the values of ``lengths`` are not checked on a GPU: they are clamped to the range 0 to T.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch.utils._python_dispatch import _disable_current_modes

from . import products
from .cells import CELLS
from .operands import ForwardLoop, Results

__all__ = ["Chip", "Plan", "current_chip", "decompositions", "plan", "raise_timed_out"]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _forward_on_gpu(*arguments):
    return torch.ops.fused_rnn.cuda_forward(*arguments)


def _backward_on_gpu(*arguments):
    return torch.ops.fused_rnn.cuda_backward(*arguments)


ON_GPU = products.Kernels(_forward_on_gpu, _backward_on_gpu)
# the operators on a GPU
forward = partial(products.forward, kernels=ON_GPU)
backward = partial(products.backward, kernels=ON_GPU)
gradients = partial(products.gradients, kernels=ON_GPU)  # without placeholders


def register() -> None:
    """Implement the operators on CUDA tensors by this backend, if the loaded library has the kernels."""
    if hasattr(torch.ops.fused_rnn, "cuda_forward"):
        torch.library.impl("fused_rnn::forward", "cuda", forward)
        torch.library.impl("fused_rnn::backward", "cuda", backward)
        torch.library.register_fake("fused_rnn::cuda_forward", _loop_fake)


def decompositions() -> dict[Callable, Callable]:
    """Return a table for ``run_decompositions`` of an exported program: the forward pass as its products and the loop.

    On a GPU Python code surrounds the loop. A program that was decomposed so needs only the compiled library, as in a
    package of AOTInductor in a process without Python; it cannot be differentiated, and runs on CUDA devices only.
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
    """Return 'available (NAME, sm_90)' for the first GPU that can run the kernels, or why none can."""
    missing = _missing()
    if missing:
        return missing
    count = max(1, torch.cuda.device_count())  # without a GPU, the obstacle of number 0 says so
    found = [_answer(torch.ops.fused_rnn.cuda_device, index) for index in range(count)]
    names = [name for name, obstacle in found if not obstacle]
    return f"available ({names[0]})" if names else found[0][1]


def obstacle(index: int | None) -> str | None:
    """Return why a GPU, by default the current one, cannot run the kernels, or None if it can."""
    missing = _missing()
    if missing:
        return missing
    if index is None:
        index = torch.cuda.current_device() if torch.cuda.is_initialized() else 0
    return _answer(torch.ops.fused_rnn.cuda_device, index)[1] or None


# as torch.compiler.assume_constant_result does, which would import the whole compiler with this module
obstacle._dynamo_marked_constant = True


def _missing() -> str | None:
    """Return what the library or torch lacks for any GPU, or None."""
    without = _answer(torch.ops.fused_rnn.without_cuda)
    if without:
        return f"this build of fused_rnn has no CUDA kernels: {without}"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    return None


def _answer(operator: Callable, *arguments: int):
    """Return an operator's answer about devices, unseen by modes and traces: they have no place for a text."""
    trace = torch._C._get_tracing_state()
    if trace is None and torch._C._len_torch_dispatch_stack() == 0:
        return operator(*arguments)
    torch._C._set_tracing_state(None)
    try:
        with _disable_current_modes():
            return operator(*arguments)
    finally:
        torch._C._set_tracing_state(trace)


def raise_timed_out() -> None:
    """Raise RuntimeError if a kernel timed out waiting for its own blocks since the last check.

    Every call checks for timeouts of earlier ones. A replayed CUDA graph makes no call: synchronise, then call this.
    The results of a kernel that timed out are NaN.
    """
    if hasattr(torch.ops.fused_rnn, "cuda_raise_timed_out"):
        torch.ops.fused_rnn.cuda_raise_timed_out()


# How the work is divided --------------------------------------------------------------------------------------

FORCED = "FUSED_RNN_CUDA_PLAN"  # environment variable, read at every call


@dataclass(frozen=True)
class Chip:
    """The properties of a GPU that plans depend on.

    These are the number of multiprocessors; the bytes of shared memory that a block may use; the numbers of clusters of
    1, 2, 4, 8 and 16 blocks that run at the same time with each block on a multiprocessor of its own, zeros if the GPU
    has no clusters; and the name, because measurements of kernels hold for the chips that they were made on.
    """

    multiprocessors: int
    shared_bytes: int
    clusters: tuple[int, ...] = (0, 0, 0, 0, 0)
    name: str = ""


@dataclass(frozen=True)
class Plan:
    """The division of work of a call. Teams of blocks run tiles of sequences; the parts of a team share the units.

    The parts of a team exchange states through L2 (``l2``), from where they come to shared memory in segments; a team
    of one part may keep them there (``one_block``). Warp kernels, whose steps stay in registers, run teams that are
    clusters of blocks, which push states into each other's shared memory (``cluster``), or larger teams that exchange
    words through L2 (``messages``). Fragments of weights have 16 outputs and 64 values of K. They are counted for the
    warp that has most of them: in its registers, in shared memory, and in L2, where every step reads them. The time is
    an estimate for an H200, by which the plan was chosen among others.
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
        """The number of blocks in the grid, all of which run at the same time."""
        return self.teams * self.parts

    @property
    def forced(self) -> str:
        """The value of ``FUSED_RNN_CUDA_PLAN`` that forces this division."""
        return f"exchange={self.exchange},{self.division}"

    @property
    def division(self) -> str:
        """The numbers of ``forced`` alone, which imply the exchange."""
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
    """Return the plan of a call of the kernels; this needs no GPU.

    Args:
        cell: name of a cell, as in :data:`fused_rnn.cells.CELLS`
        dtype: dtype of the tensors
        batch: sequences, B
        hidden: units, H
        input: features, I; needed for cells that modulate the input, because only their plans depend on it
        direction: ``forward`` or ``backward``
        chip: the GPU; by default the current one
        forced: a value in place of that of ``FUSED_RNN_CUDA_PLAN``, which is the default
        resets: whether the call has resets, which warp kernels do not support

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
    """Return the properties of the current GPU; raise RuntimeError if it cannot run the kernels."""
    if reason := obstacle(None):
        raise RuntimeError(f"fused_rnn: {reason}")
    multiprocessors, shared_bytes, clusters, name = torch.ops.fused_rnn.cuda_chip(torch.cuda.current_device())
    return Chip(multiprocessors, shared_bytes, tuple(clusters), name)
