"""The process that measures memory: by how much one training step raises the resident set at its peak.

The kernel keeps that peak (VmHWM) and lets a process reset its own. A process measures one candidate only,
because allocators keep what an earlier step has freed.
"""

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from .candidates import candidates
from .cases import Plan, make_step
from .check import Bench
from .child import serve


def measure_memory(plan: Plan, name: str) -> Iterator[dict]:
    """One record for the candidate called ``name``, at the one cell and shape that the plan has."""
    (case,) = (case for case in plan.cases() if case.mode == "training")
    (candidate,) = (candidate for candidate in candidates(case.cell, plan.backend) if candidate.name == name)
    record = {"cell": case.cell, "shape": case.shape.name, "threads": torch.get_num_threads()}
    record |= {"candidate": candidate.name, "title": candidate.title}
    ready = Bench(case.shape, getattr(torch, plan.dtype)).ready(candidate, case)
    # a short sequence first: libraries load code and start threads in their first call
    make_step(ready.module, replace(case, shape=replace(case.shape, steps=2)))()
    yield {**record, "peak_mib": round(peak_growth(ready.run), 2)}


def peak_growth(step: Callable[[], object]) -> float:
    """MiB that the resident set grew by, at its peak, over its level just before the step."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    step()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    """A field of /proc/self/status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    serve(measure_memory, Plan)
