"""The memory of a trial, estimated before it begins: configurations that cannot fit are refused with the estimate.

Two parts grow with the length: the sequences, which are drawn as 64-bit integers, and the values that the forward pass
keeps for the backward pass. Both are counted here, the latter at its largest, when ``gradient_norms`` runs every step
as a call of its own. The estimate is of the peak, meant to be right within a factor of two.
"""

from argparse import Namespace
from pathlib import Path

import torch

from benchmarks.common import DTYPES, InputError, recurrent_parameters, spec_of

from .data import Task

GIB = 2**30
PER_CALL = 12_000  # bytes that PyTorch and Python keep of one step in one layer until the backward pass, at any size
NUMBER = 32  # bytes of a number in a record, of which there are two for each step: the norms of gradients
RECORD = 1000  # bytes of the rest of a trial's record, at least
REFERENCE = 1.5  # ratio of the values that autograd keeps of the reference to those that the kernels save


def check_memory(options: Namespace, task: Task, backend: str) -> None:
    """Raise InputError if the largest trials that run side by side cannot fit into the memory now free."""
    needs = {(n, cell): trial_bytes(options, task, cell, n, backend) for n in options.length for cell in options.cell}
    length, cell = max(needs, key=lambda trial: sum(needs[trial].values()))
    for device, of_one in needs[length, cell].items():
        needed, free = of_one * options.processes, free_bytes(device)
        if free is not None and needed > free:
            often = f" {options.processes} times" if options.processes > 1 else ""
            raise InputError(
                f"--length {length} with {cell}{often} needs about {needed / GIB:.1f} GiB of memory, and {device} has "
                f"{free / GIB:.1f} GiB free: take a smaller --length, --batch, --hidden, --layers or --held-out"
            )
    _check_records(options, task)


def _check_records(options: Namespace, task: Task) -> None:
    """Raise InputError if the records of all trials, which stay in memory until the end, cannot fit."""
    of_one = sum(RECORD + 2 * NUMBER * task.steps(length) for length in options.length)
    needed, free = options.trials * len(options.cell) * of_one, free_bytes("cpu")
    if free is not None and needed > free:
        raise InputError(
            f"--trials {options.trials} of {len(options.cell)} cells at {len(options.length)} lengths make results of "
            f"about {needed / GIB:.1f} GiB, and cpu has {free / GIB:.1f} GiB free: take fewer --trials"
        )


def trial_bytes(options: Namespace, task: Task, cell: str, length: int, backend: str) -> dict[str, int]:
    """Estimate the peak memory of ``run_trial`` on each device that it uses, where the configuration matters."""
    needs = {"cpu": _sequence_bytes(options, task, length)}
    needs[options.device] = needs.get(options.device, 0) + _training_bytes(options, task, cell, length, backend)
    return needs


def _sequence_bytes(options: Namespace, task: Task, length: int) -> int:
    """Count the sets that a trial holds at a time, one-hot vectors or rows of 64-bit integers, and two batches."""
    steps = task.steps(length)
    longest = task.steps(length + max(options.extra, default=0))
    rows = options.held_out * (steps + longest) + 2 * options.batch * steps
    if not task.fresh:
        rows += options.sequences * steps
    return rows * task.input_size * torch.int64.itemsize


def _training_bytes(options: Namespace, task: Task, cell: str, length: int, backend: str) -> int:
    """Count the values that forward keeps in all layers, and gradients and pre-activations of one layer at a time."""
    spec, hidden, itemsize = spec_of(cell), options.hidden, DTYPES[options.dtype].itemsize
    values = working = 0
    for features, layers in ((task.input_size, 1), (hidden, options.layers - 1)):
        saved = (spec.saved + spec.has_cell_state) * hidden + spec.modulated_size(features, hidden)
        if backend == "reference":
            saved = int(REFERENCE * saved)
        values += layers * (2 * features + saved + (4 if spec.has_cell_state else 3) * hidden)
        working = max(working, 2 * spec.gradients * hidden + features) if layers else working
    parameters = recurrent_parameters(cell, task.input_size, hidden, options.layers)
    steps = task.steps(length)
    # a parameter has its gradient and Adam's two means beside it
    return (steps * options.batch * (values + working) + 4 * parameters) * itemsize + steps * options.layers * PER_CALL


def free_bytes(device: str) -> int | None:
    """Return the memory available to a new computation on ``device``; None if the system does not tell."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = [_available(), left_in_group()]
    return min((limit for limit in limits if limit is not None), default=None)


def _available() -> int | None:
    """Return the memory that Linux could hand out without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def left_in_group(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the container's remaining memory (control groups, version 2), if limited; cached files count as free."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((folder / "memory.current").read_text())
        counters = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int(limit) - used + int(counters["active_file"]) + int(counters["inactive_file"])
    except (OSError, ValueError, KeyError):
        return None
