"""Results as ``python -m benchmarks.speed`` writes them, for tests of the programs that read them."""

from dataclasses import asdict

import torch

from benchmarks import common
from benchmarks.speed.cases import Case
from benchmarks.speed.plan import PLANS, sized

TITLES = {
    "fused": "fused_rnn",
    "cuda": "fused_rnn, cuda",
    "triton": "fused_rnn, triton",
    "triton-padded": "fused_rnn, triton, padded",
    "packed": "fused_rnn, packed",
    "lengths": "fused_rnn, padded with lengths",
    "resets": "fused_rnn, `resets`",
    "without": "fused_rnn, without",
    "steps": "torch.nn, a loop over steps",
    "split": "torch.nn, cut at every boundary",
    "torch": "torch.nn.LSTM",
    "eager": "eager loop",
    "graphed": "eager loop as a CUDA graph",
    "script": "TorchScript",
    "compiled": "torch.compile",
}
POINT = Case("lstm", sized(512, 64), "forward", "bfloat16", "main")


def measured(case: Case, memory: dict[str, float] | None = None, threads: int = 1, **times: float | str | dict) -> dict:
    """Return a case with the ms, the error or the whole record of each candidate, and MiB by candidate."""

    def record(name: str, found: float | str | dict) -> dict:
        values = {"wrong": found} if isinstance(found, str) else found
        values = values if isinstance(values, dict) else {"median_ms": values, "spread_ms": 0.1}
        return {"candidate": name, "title": TITLES[name], **values}

    found = {**case.record, "threads": threads}
    found["times"] = [record(name.replace("_", "-"), value) for name, value in times.items()]
    if memory:
        found["memory"] = [record(name, {"peak_bytes": mib * 2**20}) for name, mib in memory.items()]
    return found


def results(kind: str, *cases: dict, **changes: object) -> dict:
    """Return a file of results of these cases."""
    plan = PLANS[kind]
    machine = {"gpu": "A GPU", "cudnn": 90000, "state": {"driver_version": "580.1"}} if kind == "gpu" else {}
    clock = {"clock": "CUDA events", "cold": "caches are cold"} if kind == "gpu" else {}
    return {
        "file": {"gpu": "gpu-a-gpu", "scaling": "scaling-cpu"}.get(kind, f"{kind}-resident"),
        "date": "2026-01-02T03:04:05+00:00",
        "command": "python -m it",
        "hardware": {**common.hardware(), "threads": sorted({case["threads"] for case in cases} or {1}), **machine},
        "allocator": {"name": plan.allocator},
        "plan": {**asdict(plan), **clock, "cells": list(dict.fromkeys(case["cell"] for case in cases))},
        "ceilings": [],
        "base": plan.base,
        "cases": list(cases),
        **changes,
    }


def us(per_step: float, **more: object) -> dict:
    """Return the record of a candidate at ``POINT``, given its µs per step."""
    return {"median_ms": per_step * POINT.shape.steps / 1000, "spread_ms": 0.0, **more}


def spoiled(factor: float) -> type[torch.nn.Module]:
    """Return torch.nn's LSTM with an output that is wrong by a factor."""

    class Spoiled(torch.nn.LSTM):
        def forward(self, input):
            output, state = super().forward(input)
            return factor * output, state

    return Spoiled


class Greedy(torch.nn.LSTM):
    """An LSTM that runs out of memory if its input requires a gradient."""

    def forward(self, input):
        if input.requires_grad:
            raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB\nand more")
        return super().forward(input)
