"""The measuring process: it yields, for every case, a record for each way. The ways of a case take turns."""

from collections.abc import Iterator

import torch

from benchmarks.speed.child import serve
from benchmarks.speed.clock import clock_for, summary

from .cases import TITLES, WITHOUT, Plan, ways
from .check import Batch, Judge, step_of, weights_of


def measure(plan: Plan) -> Iterator[dict]:
    clock = clock_for(torch.device(plan.device))
    for cell in plan.cells:
        weights = weights_of(cell, plan)
        for share in plan.shares:
            batch = Batch.drawn(plan, share)
            judges = {named: Judge(cell, plan, batch, weights, named) for named in (True, False)}
            for mode in ("training", "forward"):
                place = {"cell": cell, "share": share, "mode": mode}
                yield {"records": measure_case(plan, place, batch, weights, judges, clock)}


def measure_case(plan: Plan, place: dict, batch: Batch, weights: dict, judges: dict[bool, Judge], clock) -> list[dict]:
    """Return the median and interquartile range in ms, or the error of a way."""
    records, running = [], []
    for name, (module, way) in ways(place["cell"], plan, weights).items():
        record = {**place, "candidate": name, "title": TITLES[name]}
        records.append(record)
        call = step_of(place["mode"], module, way, batch)
        complaint = judges[name != WITHOUT].complaint(call())
        if complaint:
            record["wrong"] = complaint
        else:
            running.append((record, call, []))
    for _ in range(plan.warm_up + plan.rounds):
        for _, call, times in running:
            times.append(clock.time(call).ms)
    for record, _, times in running:
        record.update(summary(times[plan.warm_up :]))
    return records


if __name__ == "__main__":
    serve(measure, Plan)
