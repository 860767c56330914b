"""The process that measures time: yields, per case, its cost (for a progress bar) and a record per candidate.

Candidates of a case take turns, so that a machine that slows down for a while slows all of them. First come the
ceilings of the machine at the same number of threads, where the plan has use for them.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from .candidates import Candidate, candidates
from .cases import Case, Plan
from .ceilings import ceilings
from .check import bench_for
from .child import serve
from .clock import HostClock, summary


class Rounds(Protocol):
    """Of a plan, how often what is run."""

    dtype: str
    warm_up: int
    rounds: int


def measure_times(plan: Plan) -> Iterator[dict]:
    if plan.ceilings:
        yield {"cost": 0, "ceilings": ceilings(HostClock(), [plan.dtype], small=plan.most_steps is not None)}
    for case in plan.cases():
        yield {"cost": case.cost, "records": measure_case(case, plan)}


def measure_case(case: Case, plan: Plan) -> list[dict]:
    return time_in_turn(case, plan, candidates(case.cell, plan.backend, plan.all_rivals))


def time_in_turn(case: Case, plan: Rounds, ways: Sequence[Candidate]) -> list[dict]:
    """One record per candidate: median and interquartile range in ms, or what is wrong with it."""
    bench, clock = bench_for(case.shape, getattr(torch, plan.dtype)), HostClock()
    records, running = [], []
    for candidate in ways:
        record = {"cell": case.cell, "shape": case.shape.name, "mode": case.mode, "threads": torch.get_num_threads()}
        record |= {"candidate": candidate.name, "title": candidate.title}
        records.append(record)
        ready = bench.ready(candidate, case)
        error = bench.error(candidate, ready)
        if error.wrong:
            record["wrong"] = str(error)
        else:
            running.append((record, ready, []))
    for _ in range(plan.warm_up + plan.rounds):
        for _, ready, times in running:
            times.append(clock.time(ready.run).ms)
    for record, _, times in running:
        record.update(summary(times[plan.warm_up :]))
    return records


if __name__ == "__main__":
    serve(measure_times, Plan)
