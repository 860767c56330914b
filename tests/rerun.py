"""A stand-in for CUDA graphs in tests without a GPU: a recorder that runs a function anew for each replay."""

from collections.abc import Callable

import pytest
from torch import Tensor

from benchmarks.copy_task import __main__ as copy_task
from benchmarks.copy_task import train as copy_task_train
from benchmarks.language_model import run as language_model
from benchmarks.language_model import train as language_model_train

HARNESSES = ((copy_task, copy_task_train), (language_model, language_model_train))


class Rerun:
    """A ``Recorder`` on the CPU. ``recorded`` counts over all instances."""

    recorded = 0

    def __init__(self, device=None) -> None:
        pass

    def run(self, function: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        return function()

    def record(self, function: Callable[[], tuple[Tensor, ...]]) -> tuple[list[Tensor], Callable[[], None]]:
        """Compute nothing, like a GPU that records, so there are results only after a replay."""
        Rerun.recorded += 1
        results: list[Tensor] = []

        def replay() -> None:
            results[:] = function()

        return results, replay


def rerun_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the harnesses take ``--cuda-graph`` on a CPU."""
    monkeypatch.setattr(Rerun, "recorded", 0)
    for command, train in HARNESSES:
        monkeypatch.setattr(command, "check_cuda_graph", lambda *_: None)
        monkeypatch.setattr(train, "Recorder", Rerun)
