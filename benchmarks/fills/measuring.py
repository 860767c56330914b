"""The processes that measure: one yields the times of every case; the others the peak memory of one way to run one."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from benchmarks.speed.cases import Case
from benchmarks.speed.check import Bench
from benchmarks.speed.child import serve
from benchmarks.speed.memory import peak_growth
from benchmarks.speed.timing import time_in_turn

from .cases import Plan, ways


def measure(plan: Plan, *name: str) -> Iterator[dict]:
    """Times; or given a way's name its memory, in training, of the one cell and fill that the plan then has."""
    if name:
        yield measure_memory(plan, *name)
        return
    for case in plan.cases():
        rows = {"rows": sum(case.shape.lengths)}
        yield {"records": [record | rows for record in time_in_turn(case, plan, ways(case, plan.backend))]}


def measure_memory(plan: Plan, name: str) -> dict:
    """How much a training step raises the resident set at its peak, over what its operands take."""
    (case,) = (case for case in plan.cases() if case.mode == "training")
    (way,) = (way for way in ways(case, plan.backend) if way.name == name)
    record = {"cell": case.cell, "shape": case.shape.name, "candidate": way.name, "title": way.title}
    ready = Bench(case.shape, getattr(torch, plan.dtype)).ready(way, case)
    # a short sequence first: libraries load code and start threads in their first call
    short = replace(case.shape, batch=2, steps=3, lengths=(3, 1))
    Bench(short, getattr(torch, plan.dtype)).ready(way, Case(case.cell, short, case.mode)).run()
    return {**record, "peak_mib": round(peak_growth(ready.run), 2)}


if __name__ == "__main__":
    serve(measure, Plan)
