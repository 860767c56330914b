"""Every cell by every way to run it, at every shape, dtype and mode, for pytest-benchmark.

    pytest benchmarks --benchmark-enable -k "multiplicative_gru and on_cpu and -a- and float32 and training"

An id reads cell-candidate-device-shape-dtype-mode; sizes are those of ``speed/cases.py``. The input product is always
included. What cannot run on a machine is skipped with the reason, what is wrong fails and is not timed. Without
``--benchmark-enable`` each case runs once: that it is right is then all that is tested. Nothing here asserts a time.

On a GPU each round has other operands, starts with cold caches and is timed by CUDA events. torch.compile gets the
loop in pieces here (``STEPS_AT_ONCE``): whole, it takes many minutes. pytest-benchmark measures one candidate after the
other; in the README's figures they take turns: those come from ``python -m benchmarks.speed`` and ``benchmarks.gpu``.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch

import fused_rnn

from .speed.candidates import LIBRARIES, ON_CPU, RIVALS, Candidate, fused, obstacle
from .speed.cases import CELLS, CPU_DTYPES, GPU_DTYPES, GPU_SHAPES, SHAPES, Case, Plan
from .speed.check import bench_for
from .speed.clock import Instant, clock_for, saved_bytes

DEVICES = {
    "on_cpu": ("cpu", SHAPES, CPU_DTYPES, ("cpu", *ON_CPU)),
    "on_gpu": ("cuda", GPU_SHAPES, GPU_DTYPES, ("cuda", "triton", *RIVALS)),
}


@dataclass(frozen=True)
class Point:
    """A case with the way to run it, its dtype and its device."""

    case: Case
    name: str
    dtype: str
    device: str

    def candidate(self) -> Candidate | None:
        if self.name in RIVALS:
            return RIVALS[self.name](self.case.cell)
        return replace(fused(self.case.cell, self.name), name=self.name)

    def obstacle(self) -> str | None:
        """Why it cannot run on this machine, or None."""
        if self.device == "cuda" and not torch.cuda.is_available():
            return "no CUDA device"
        if self.name in RIVALS:
            return obstacle(self.name, self.device)
        try:
            fused_rnn.choose_backend(self.device, getattr(torch, self.dtype), self.name)
        except RuntimeError as error:
            return str(error)
        return None


def parameters() -> Iterator:
    """Every point that has a candidate, those with operands in common one after the other."""
    for place, (device, shapes, dtypes, names) in DEVICES.items():
        marks = [pytest.mark.gpu, pytest.mark.benchmark(timer=Instant)] if device == "cuda" else []
        for shape in shapes.values():
            for dtype in dtypes:
                cases = [Case(cell, shape, mode) for cell in CELLS for mode in shape.modes]
                for case, name in [(case, name) for case in cases for name in names]:
                    point = Point(case, name, dtype, device)
                    if name in LIBRARIES and (case.mode == "stream" or dtype not in LIBRARIES[name].dtypes):
                        continue  # their adapters take no states
                    if point.candidate():
                        id = "-".join([case.cell, name, place, shape.name, dtype, case.mode])
                        yield pytest.param(point, id=id, marks=marks)


@pytest.mark.parametrize("point", list(parameters()))
def test_speed(benchmark, point: Point) -> None:
    if reason := point.obstacle():
        pytest.skip(reason)
    clock, candidate = clock_for(torch.device(point.device)), point.candidate()
    bench = bench_for(point.case.shape, getattr(torch, point.dtype), clock.device, sets=2)
    ready = bench.ready(candidate, point.case)
    error = bench.error(candidate, ready)
    assert not error.wrong, str(error)

    rounds = itertools.count(1)

    def next_round() -> None:
        ready.load(next(rounds))
        clock.chill()

    threads = f", threads: {torch.get_num_threads()}" if point.device == "cpu" else ""
    benchmark.group = f"{point.case.cell} {point.case.shape} {point.dtype} {point.case.mode}{threads}"
    benchmark.extra_info |= {"threads": torch.get_num_threads(), "error": error.record()}
    benchmark.extra_info["peak_bytes"] = clock.peak_bytes(ready.run)
    if point.name not in ("compiled", "graphed"):  # hooks would have a loop compiled again, a graph has none
        benchmark.extra_info["saved_bytes"] = saved_bytes(ready.module, bench.sets[0][0])
    benchmark.pedantic(ready.run, setup=next_round, rounds=Plan.rounds, warmup_rounds=Plan.warm_up)
