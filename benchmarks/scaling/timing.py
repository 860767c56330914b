"""The process that measures: yields the ceilings of the device, then for each sweep its cost and its records.

A sweep takes minutes, in which processors change their clock and neighbours come and go. So every time is stated as it
would be at the pace that the device had at first, told by a small product right before it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import ClassVar

import torch

from benchmarks.budget import Budget
from benchmarks.speed.candidates import Candidate, Ready, candidates
from benchmarks.speed.cases import Case
from benchmarks.speed.ceilings import ceilings, floor_ms, work
from benchmarks.speed.check import Bench, bench_for
from benchmarks.speed.child import serve
from benchmarks.speed.clock import HostClock, clock_for, summary

from .sweeps import Plan, Sweep


@dataclass
class Entry:
    """One candidate at one size in one mode; without ``ready`` it is not timed. Paces are those of its times."""

    record: dict
    ready: Ready | None = None
    times: list[float] = field(default_factory=list)
    paces: list[float] = field(default_factory=list)


class Pace:
    """How fast the device is, as a multiple of how fast it was when this was made."""

    SIZES: ClassVar[dict[str, int]] = {"cpu": 256, "cuda": 4096}  # of the product, in rows

    def __init__(self, clock: HostClock) -> None:
        size = self.SIZES[clock.device.type]
        self._clock, self._matrix = clock, torch.randn(size, size, device=clock.device)
        self._out = torch.empty_like(self._matrix)
        self._first = median(self._ms() for _ in range(30))

    def now(self) -> float:
        return self._first / self._ms()

    def _ms(self) -> float:
        """The best of three, because whatever interrupts one product says nothing of the pace."""
        return min(self._clock.time(lambda: torch.mm(self._matrix, self._matrix, out=self._out)).ms for _ in range(3))


def measure(plan: Plan) -> Iterator[dict]:
    budget, clock = Budget(60 * plan.minutes), clock_for(torch.device(plan.device))
    pace = Pace(clock)
    found = ceilings(clock, [plan.dtype], small=plan.quick)
    yield {"ceilings": found}
    for sweep in plan.sweeps():
        obstacle = budget.obstacle(0.0)  # sweeps differ too much for one to tell how long the next will take
        if obstacle is None:
            yield {"cost": sweep.cost, "records": measure_sweep(sweep, plan, clock, pace, found)}
        else:
            yield {"cost": sweep.cost, "skipped": {"cell": sweep.cell, "axis": sweep.axis, "reason": obstacle}}
        clock.free()


def measure_sweep(sweep: Sweep, plan: Plan, clock: HostClock, pace: Pace, ceilings: dict) -> list[dict]:
    """One record per size, mode and candidate: median and interquartile range in ms, or why there is none."""
    sizes = [prepare(case, sweep.axis, plan, clock, ceilings) for case in sweep.cases()]
    for _ in range(plan.passes):
        for entries in sizes:
            time_in_turn(entries, plan, clock, pace)
    for entry in (entry for entries in sizes for entry in entries):
        if entry.times:
            entry.record.update(summary(entry.times), rounds=len(entry.times), pace=round(median(entry.paces), 3))
    return [entry.record for entries in sizes for entry in entries]


def prepare(case: Case, axis: str, plan: Plan, clock: HostClock, ceilings: dict) -> list[Entry]:
    """The candidates of a case, those that are right ready to run."""
    shape = case.shape
    sizes = {"batch": shape.batch, "hidden_size": shape.hidden_size, "steps": shape.steps, "layers": shape.layers}
    record = {"cell": case.cell, "axis": axis, "value": sizes[axis], **sizes, "mode": case.mode}
    record |= {"flops": work(case)[0], "floor_ms": floor_ms(case, plan.dtype, ceilings)}
    entries = []
    bench = bench_for(shape, getattr(torch, plan.dtype), clock.device)
    for candidate in candidates(case.cell, plan.backend):
        entry = Entry({**record, "candidate": candidate.name, "title": candidate.title})
        try:
            entry.ready = right(bench, candidate, case, entry.record)
        except RuntimeError as error:  # as when a size does not fit the memory
            entry.record["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        entries.append(entry)
    return entries


def right(bench: Bench, candidate: Candidate, case: Case, record: dict) -> Ready | None:
    """The candidate ready to run, or None with the mistake in ``record``."""
    ready = bench.ready(candidate, case)
    error = bench.error(candidate, ready)
    if error.wrong:
        record["wrong"] = str(error)
        return None
    return ready


def time_in_turn(entries: list[Entry], plan: Plan, clock: HostClock, pace: Pace) -> None:
    """Rounds of a size: as many as were planned, or as there is time for, but one."""
    gone = 0.0
    for number in range(plan.warm_up + plan.rounds):
        for entry in entries:
            if entry.ready:
                now = pace.now()
                ms = clock.time(entry.ready.run).ms
                gone += ms / 1000
                if number >= plan.warm_up:
                    entry.times.append(ms * now)
                    entry.paces.append(now)
        if gone > plan.seconds and number >= plan.warm_up:
            break


if __name__ == "__main__":
    serve(measure, Plan)
