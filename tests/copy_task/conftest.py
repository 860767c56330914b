"""The common parts of the copy task's tests: a tiny run, commands that start or are refused, an invented record."""

import json
import math
import os

import pytest
import torch

from benchmarks.common import run_command
from benchmarks.copy_task import __main__ as command
from benchmarks.copy_task import document

SMALL = [
    *("--cell", "lstm", "multiplicative_gru", "--length", "3", "5", "--symbols", "2", "--vocabulary", "3"),
    *("--trials", "2", "--hidden", "5", "--batch", "4", "--epochs", "2", "--sequences", "10"),
    *("--held-out", "6", "--extra", "1", "4"),
]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # for subprocesses; models this small need no second thread
TIMES = {"seconds", "seconds_per_step"}


@pytest.fixture
def without_pictures(monkeypatch):
    """Skip pictures in tests of other things, because drawing takes longer than the runs."""
    monkeypatch.setattr(document, "draw_pictures", lambda *_: [])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(folder, *more: str) -> dict:
    """Run the command in this process, and return results.json."""
    command.main([*SMALL, "--out", str(folder), *more])
    return json.loads((folder / "results.json").read_text())


def interrupt(trial: int, patch: pytest.MonkeyPatch) -> list[tuple]:
    """Interrupt runs in the trial of that number, counted from 1; return a list that gets every trial's arguments."""
    run_trial, calls = command.run_trial, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == trial:
            raise KeyboardInterrupt
        return run_trial(*arguments)

    patch.setattr(command, "run_trial", interrupted)
    return calls


def without_times(value):
    """Return a record of results without times, which differ from run to run."""
    if isinstance(value, dict):
        return {name: without_times(part) for name, part in value.items() if name not in TIMES}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def refusal(capsys, *arguments: str) -> str:
    """Run the command, which must refuse, and return its one sentence."""
    with pytest.raises(SystemExit) as exit:
        run_command(lambda: command.main(list(arguments)))
    captured = capsys.readouterr()
    assert exit.value.code == 2
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


def record(accuracy: float, loss: float | None, cell: str = "lstm", length: int = 5, trial: int = 0) -> dict:
    """Return a trial's record with these results, for reports to describe."""
    scores = {"loss": 1.0, "accuracy": 0.5}
    epoch = {f"{part}_{name}": value for part in ("train", "held_out") for name, value in scores.items()}
    return {
        **{"cell": cell, "length": length, "trial": trial, "seed": trial, "parameters": 7, "answers": 1000},
        **{"accuracy": accuracy, "loss": loss, "baseline": {"accuracy": 0.1, "loss": math.log(10)}},
        "extra": [{"extra": 2, "accuracy": accuracy, "loss": loss}],
        "epochs": [{**epoch, "seconds": 2.0, "seconds_per_step": 0.5}] * (trial + 2),
        "gradient_norms": {"before": [1e-6, 1e-3, 1.0], "after": [0.0, 0.5, 1.0]},
        "seconds": 90.0,
    }
