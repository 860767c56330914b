"""The cases of ``benchmarks.speed`` for pytest-benchmark: ``pytest benchmarks --benchmark-enable``.

Without ``--benchmark-enable`` every case runs once: that each candidate is right at the measured shapes is then
all that is tested. Nothing here asserts a time.
"""

import pytest

import fused_rnn

from .speed.cases import Candidate, Case, Plan, candidates, make_step
from .speed.check import build, mistake

PLAN = Plan()
PAIRS = [
    pytest.param(case, candidate, id=f"{case.cell}-{candidate.name}-{case.shape.name}-{case.mode}")
    for case in PLAN.cases()
    for candidate in candidates(case.cell, PLAN.backend)
]


@pytest.mark.parametrize(("case", "candidate"), PAIRS)
def test_speed(benchmark, case: Case, candidate: Candidate) -> None:
    status = fused_rnn.backends()[PLAN.backend]
    if candidate.name == "fused" and not status.startswith("available"):
        pytest.skip(status)
    module = build(candidate, case.shape)
    assert mistake(candidate, module, case) is None
    benchmark.group = f"{case.cell}-{case.shape.name}-{case.mode}"
    benchmark(make_step(module, case))
