"""The number of threads of the harnesses: the choice of a trial, a requested number, and a resumed run's number."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import threads
from benchmarks.common import hardware
from benchmarks.copy_task import __main__ as copy_task_command
from benchmarks.copy_task.data import Recall
from benchmarks.copy_task.options import parse_options
from benchmarks.copy_task.train import trial_step
from benchmarks.language_model.checkpoint import Checkpoint

from .conftest import threads as computing_with
from .copy_task import conftest as copy_task
from .language_model.conftest import TEXT, losses, results, train


@pytest.fixture(autouse=True)
def machine_of_two() -> Iterator[None]:
    with computing_with(2):
        yield


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def measured(monkeypatch, one: float, many: float) -> list[tuple[int, ...]]:
    """Replace the measured seconds of steps, and return a list of the numbers of threads that trials ask for."""
    asked = []

    def step_times(step, numbers: tuple[int, ...]) -> list[float]:
        asked.append(numbers)
        step()
        return [one, many]

    monkeypatch.setattr(threads, "step_times", step_times)
    return asked


def test_the_faster_number_wins_and_ties_go_to_one():
    assert [threads.choice(1.0, many, 4) for many in (0.5, 0.94, 0.96, 1.0, 15.0)] == [4, 4, 1, 1, 1]


def test_numbers_of_threads_take_turns():
    seen = []
    threads.step_times(lambda: seen.append(torch.get_num_threads()), (1, 2))
    assert seen == [1, 1, 2, 2] * threads.ROUNDS


def test_long_steps_are_tried_once(monkeypatch):
    monkeypatch.setattr(threads, "SECONDS", 0.01)
    seen = []
    times = threads.step_times(lambda: seen.append(torch.get_num_threads()) or time.sleep(0.02), (1, 2))
    assert seen == [1, 1, 2, 2]
    assert min(times) >= 0.02


@pytest.mark.parametrize(("device", "most"), [("cuda", 3), ("cpu", 1)])
def test_no_trial_where_there_is_nothing_to_choose(device, most):
    assert threads.settle_threads(None, most, device, pytest.fail) == ""
    assert torch.get_num_threads() == most


@pytest.mark.parametrize(("many", "chosen"), [(0.010, 2), (0.444, 1)])
def test_copy_task_says_what_it_found(many, chosen, tmp_path, monkeypatch, capsys):
    """A resumed run keeps the number, whatever a trial would find then."""
    monkeypatch.setattr(copy_task.document, "draw_pictures", lambda *_: [])
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    asked = measured(monkeypatch, 0.029, many)
    found = copy_task.run(tmp_path)
    assert asked == [(1, 2)]
    assert found["hardware"]["threads"] == torch.get_num_threads() == chosen
    times = f"29.0 ms with one and {1000 * many:.1f} ms with 2"
    assert f"Computing with {chosen} of 2 threads: a training step took {times}; --" in capsys.readouterr().out
    torch.set_num_threads(3)
    assert copy_task.run(tmp_path, "--resume")["hardware"]["threads"] == torch.get_num_threads() == chosen
    assert copy_task.run(tmp_path, "--resume", "--threads", "3")["hardware"]["threads"] == 3
    assert asked == [(1, 2)]
    assert "Computing" not in capsys.readouterr().out


@pytest.mark.parametrize(("processes", "tried"), [(1, [(1, 4)]), (2, [(1, 2)]), (3, [])])
def test_processes_share_the_threads(processes, tried, tmp_path, monkeypatch):
    torch.set_num_threads(4)
    asked = measured(monkeypatch, 0.029, 0.010)
    monkeypatch.setattr(copy_task_command, "train_all", lambda *_: None)
    arguments = [*copy_task.SMALL, "--processes", str(processes), "--out", str(tmp_path)]
    options = parse_options(arguments)
    copy_task_command.run(options, copy_task_command.Console())
    assert asked == tried
    assert torch.get_num_threads() == hardware()["threads"] == 4 // processes


def test_existing_results_are_refused_before_the_trial(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(copy_task_command, "trial_step", pytest.fail)
    (tmp_path / "results.json").write_text(json.dumps({}))
    assert "already holds results" in copy_task.refusal(capsys, *copy_task.SMALL, "--out", str(tmp_path))


def test_copy_tasks_trial_step_trains():
    options = parse_options(copy_task.SMALL)
    step = trial_step(options, Recall(options.symbols, options.vocabulary))
    losses = [step()[0].item() for _ in range(50)]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("alphabet", ["characters", "bytes"])
def test_language_model_says_what_it_found(alphabet, text, tmp_path, monkeypatch, capsys):
    asked = measured(monkeypatch, 0.029, 0.010)
    small = ("--hidden", 8, "--limit", 800, "--dropout", 0.3, "--alphabet", alphabet, "--batch", 6)
    assert train(text, tmp_path / "tried", *small, "--epochs", 1) == 0
    assert asked == [(1, 2)]
    assert "Computing with 2 of 2 threads: a training step took 29.0 ms" in capsys.readouterr().out
    assert Checkpoint.load(tmp_path / "tried" / "lstm.pt").training["threads"] == torch.get_num_threads() == 2
    torch.set_num_threads(3)
    assert train(text, tmp_path / "tried", *small, "--resume") == 0
    assert results(tmp_path / "tried")["hardware"]["threads"] == torch.get_num_threads() == 2
    assert train(text, tmp_path / "forced", *small, "--threads", 2) == 0
    assert asked == [(1, 2)]
    assert "Computing" not in capsys.readouterr().out
    assert losses(tmp_path / "tried") == losses(tmp_path / "forced")  # a trial leaves nothing behind
