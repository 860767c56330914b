"""Every cell by every way to run it, at every shape, dtype and mode, for pytest-benchmark.

    pytest benchmarks --benchmark-enable -k "multiplicative_gru and on_cpu and -a- and float32 and training"

An id reads cell-candidate-device-shape-dtype-mode; sizes are those of ``speed/plan.py``. The input product is always
included. Cases that cannot run on a machine are skipped with the reason; wrong ones fail and are not timed. Without
``--benchmark-enable`` each case runs once, as a test of its results only. Nothing here asserts a time.

On a GPU each round has other operands, starts with cold caches and is timed by CUDA events. torch.compile gets the
loop in pieces here (``STEPS_AT_ONCE``), because the whole one takes many minutes. pytest-benchmark measures one
candidate after the other. The README's figures come from ``python -m benchmarks.speed``, where candidates take turns.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import pytest
import torch

from .speed.candidates import RIVALS, Candidate, fused, obstacle, worthwhile
from .speed.cases import CELLS, Case
from .speed.clock import Instant, clock_for
from .speed.measure import Entry, Loop
from .speed.plan import CPU_DTYPES, GPU_DTYPES, GPU_SHAPES, PLANS, SHAPES

DEVICES = {
    "on_cpu": ("cpu", SHAPES, CPU_DTYPES, ("cpu", "torch", "eager", "script", "compiled")),
    "on_gpu": ("cuda", GPU_SHAPES, GPU_DTYPES, ("cuda", "triton", *RIVALS)),
}
PLAN = replace(PLANS["speed"], sets=2)


@dataclass(frozen=True)
class Point:
    """A case with the candidate that runs it, and its device."""

    case: Case
    name: str
    device: str

    def candidate(self) -> Candidate | None:
        if self.name in RIVALS:
            return RIVALS[self.name](self.case.cell) if worthwhile(self.name, self.case) else None
        return replace(fused(self.case.cell, self.name), name=self.name)

    def obstacle(self) -> str | None:
        """Return why it cannot run on this machine, or None."""
        if self.device == "cuda" and not torch.cuda.is_available():
            return "no CUDA device"
        return obstacle(self.name, self.device, self.case.dtype)


def parameters() -> Iterator:
    """Yield every point that has a candidate, ordered so that points with common operands are adjacent."""
    for place, (device, shapes, dtypes, names) in DEVICES.items():
        marks = [pytest.mark.gpu, pytest.mark.benchmark(timer=Instant)] if device == "cuda" else []
        for shape in shapes.values():
            for dtype in dtypes:
                cases = [Case(cell, shape, mode, dtype) for cell in CELLS for mode in shape.modes]
                for case, name in [(case, name) for case in cases for name in names]:
                    point = Point(case, name, device)
                    if point.candidate():
                        id = "-".join([case.cell, name, place, shape.name, dtype, case.mode])
                        yield pytest.param(point, id=id, marks=marks)


@lru_cache
def loop_for(device: str) -> Loop:
    return Loop(PLAN, clock_for(torch.device(device)))


@pytest.mark.parametrize("point", list(parameters()))
def test_speed(benchmark, point: Point) -> None:
    if reason := point.obstacle():
        pytest.skip(reason)
    loop, case, candidate = loop_for(point.device), point.case, point.candidate()
    entry = Entry(candidate, case, loop.bench(case), {"candidate": candidate.name, "title": candidate.title})
    loop.make_ready(entry)
    assert entry.runs, entry.record["wrong"]

    rounds = itertools.count(1)

    def next_round() -> None:
        entry.ready.load(next(rounds))
        loop.clock.chill()

    threads = f", threads: {torch.get_num_threads()}" if point.device == "cpu" else ""
    benchmark.group = f"{case.cell} {case.shape} {case.dtype} {case.mode}{threads}"
    benchmark.extra_info |= {"threads": torch.get_num_threads(), **entry.record, **loop.memory(entry)}
    assert "failed" not in benchmark.extra_info, benchmark.extra_info["failed"]
    benchmark.pedantic(entry.ready.run, setup=next_round, rounds=PLAN.rounds, warmup_rounds=PLAN.warm_up)
