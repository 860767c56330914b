"""What a trial takes of memory, before it is begun: a configuration that cannot fit is refused with the estimate.

Two things grow with the length: the sequences, which are drawn as 64-bit integers, and what the forward pass keeps
for the backward pass. Both are counted here, the latter at its largest: where ``gradient_norms`` runs every step as a
call of its own. The estimate is of the peak, meant to be right within a factor of two.
"""

from argparse import Namespace
from pathlib import Path

import torch

from benchmarks.common import CELLS, DTYPES, InputError
from fused_rnn import ops

from .data import Task

GIB = 2**30
PER_CALL = 12_000  # bytes that PyTorch and Python keep of one step in one layer until the backward pass, however small
REFERENCE = 1.5  # times what the kernels save is what autograd keeps of the reference


def check_memory(options: Namespace, task: Task, backend: str) -> None:
    """Raise InputError where the trial that takes most cannot fit into the memory that is free now."""
    needs = {(n, cell): trial_bytes(options, task, cell, n, backend) for n in options.length for cell in options.cell}
    (length, cell), needed = max(needs.items(), key=lambda item: item[1])
    free = free_bytes(options.device)
    if free is not None and needed > free:
        raise InputError(
            f"--length {length} with {cell} needs about {needed / GIB:.1f} GiB of memory, and {options.device} has "
            f"{free / GIB:.1f} GiB free: take a smaller --length, --batch, --hidden or --held-out"
        )


def trial_bytes(options: Namespace, task: Task, cell: str, length: int, backend: str) -> int:
    """Peak memory of ``run_trial``, as far as it depends on the configuration."""
    return _sequence_bytes(options, task, length) + _training_bytes(options, task, cell, length, backend)


def _sequence_bytes(options: Namespace, task: Task, length: int) -> int:
    """The sets that a trial holds at a time, one-hot vectors or rows of 64-bit integers, and two batches."""
    steps = task.steps(length)
    longest = task.steps(length + max(options.extra, default=0))
    rows = options.held_out * (steps + longest) + 2 * options.batch * steps
    if not task.fresh:
        rows += options.sequences * steps
    return rows * task.input_size * torch.int64.itemsize


def _training_bytes(options: Namespace, task: Task, cell: str, length: int, backend: str) -> int:
    """What forward keeps in all layers, and the gradients and pre-activations of one layer at a time."""
    spec = ops.CELLS[_cell_name(cell)]
    hidden, itemsize = options.hidden, DTYPES[options.dtype].itemsize
    values = working = 0
    for layer in range(options.layers):
        features = hidden if layer else task.input_size
        saved = spec.saved * hidden + (features if spec.multiplicative else 0)
        if backend == "reference":
            saved = int(REFERENCE * saved)
        values += 2 * features + saved + (4 if spec.has_cell_state else 3) * hidden
        working = max(working, 2 * spec.gradients * hidden + features)
    rows = task.steps(length) * options.batch
    calls = task.steps(length) * options.layers
    model = CELLS[cell](task.input_size, hidden, options.layers, device="meta")
    # a parameter has its gradient and Adam's two means beside it
    parameters = 4 * sum(parameter.numel() for parameter in model.parameters())
    return (rows * (values + working) + parameters) * itemsize + calls * PER_CALL


def _cell_name(cell: str) -> str:
    """The key of ``ops.CELLS`` for one of the harness's names."""
    return CELLS[cell](1, 1, device="meta").cell


def free_bytes(device: str) -> int | None:
    """Memory that a new computation can take on ``device``; None where the system does not tell."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = [_available(), _left_in_group()]
    return min((limit for limit in limits if limit is not None), default=None)


def _available() -> int | None:
    """What Linux says could be given out without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def _left_in_group() -> int | None:
    """What the container may still take (control groups, version 2), if it has a limit."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text().strip()
        return None if limit == "max" else int(limit) - int((folder / "memory.current").read_text())
    except OSError:
        return None
