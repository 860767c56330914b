"""The process that measures time: yields, per case, its cost (for a progress bar) and a record per candidate.

Candidates of a case take turns, so that a machine that slows down for a while slows all of them.
"""

import time
from collections.abc import Iterator

import torch

from .cases import Case, Plan, candidates, make_step
from .check import build, mistake
from .child import serve


def measure_times(plan: Plan) -> Iterator[dict]:
    for case in plan.cases():
        yield {"cost": case.cost, "records": measure_case(case, plan)}


def measure_case(case: Case, plan: Plan) -> list[dict]:
    """One record per candidate: median and interquartile range in ms, or what is wrong with it."""
    records, running = [], []
    for candidate in candidates(case.cell, plan.backend):
        record = {"cell": case.cell, "shape": case.shape.name, "mode": case.mode, "threads": torch.get_num_threads()}
        record |= {"candidate": candidate.name, "title": candidate.title}
        records.append(record)
        module = build(candidate, case.shape)
        wrong = mistake(candidate, module, case)
        if wrong:
            record["wrong"] = wrong
        else:
            running.append((record, make_step(module, case), []))
    for _ in range(plan.warm_up + plan.rounds):
        for _, step, times in running:
            start = time.perf_counter()
            step()
            times.append(1000 * (time.perf_counter() - start))
    for record, _, times in running:
        record.update(summary(times[plan.warm_up :]))
    return records


def summary(times: list[float]) -> dict[str, float]:
    quarter, median, three_quarters = torch.tensor(times).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    return {"median_ms": round(median, 4), "spread_ms": round(three_quarters - quarter, 4)}


if __name__ == "__main__":
    serve(measure_times)
