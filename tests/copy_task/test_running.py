"""Whole runs: their files and output; they end early, resume where they were stopped, and overwrite nothing."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from benchmarks.common import LARGEST, InputError, run_command
from benchmarks.copy_task import __main__ as command
from benchmarks.copy_task import train
from benchmarks.copy_task.data import Recall
from benchmarks.copy_task.model import CopyModel
from benchmarks.copy_task.report import sentence
from benchmarks.copy_task.results import RECORD
from benchmarks.copy_task.summary import summarise
from benchmarks.gpu.kit import processes

from ..limits import files_of_at_most
from .conftest import ONE_THREAD, SMALL, interrupt, record, run, without_times


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the folder of a small finished run, its output, and its results."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.copy_task", *SMALL, "--out", str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env=ONE_THREAD,
    )
    return folder, done.stdout, json.loads((folder / "results.json").read_text())


def test_results_state_everything(finished):
    _, _, results = finished
    configuration = results["configuration"]
    assert configuration["cell"] == ["lstm", "multiplicative_gru"]
    assert configuration["backend"] == "cpu"  # the backend that ran, not 'auto'
    assert {"protocol", "length", "symbols", "vocabulary", "trials", "lr", "clip", "seed", "dtype"} <= set(
        configuration
    )
    assert {"cpu", "gpu", "torch", "fused_rnn", "threads"} <= set(results["hardware"])
    keys = [(trial["length"], trial["cell"], trial["trial"]) for trial in results["trials"]]
    assert keys == [(n, cell, k) for n in (3, 5) for cell in configuration["cell"] for k in (0, 1)]
    for trial in results["trials"]:
        assert set(trial) == set(RECORD)
        assert trial["seed"] == trial["trial"]
        assert 0 <= trial["accuracy"] <= 1
        assert trial["loss"] > 0
        assert trial["baseline"] == {"accuracy": pytest.approx(1 / 3), "loss": pytest.approx(math.log(3))}
        assert [part["extra"] for part in trial["extra"]] == [1, 4]
        assert len(trial["epochs"]) == 2
        assert all(epoch["train_loss"] > 0 and epoch["held_out_loss"] > 0 for epoch in trial["epochs"])
        assert all(epoch["seconds"] > epoch["seconds_per_step"] > 0 for epoch in trial["epochs"])
        assert all(len(norms) == trial["length"] + 5 for norms in trial["gradient_norms"].values())


def test_tables_pictures_and_words(finished):
    folder, printed, results = finished
    names = {"results.json", "report.md", "table.md", "table.json", "lengths.png", "longer.png"}
    names |= {f"{kind}-{length}.png" for kind in ("curves", "gradients") for length in (3, 5)}
    assert {path.name for path in folder.iterdir()} == names
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in names if name.endswith("png"))
    rows = json.loads((folder / "table.json").read_text())
    assert rows == summarise(results["trials"])
    of_lstm = [trial["accuracy"] for trial in results["trials"] if (trial["length"], trial["cell"]) == (3, "lstm")]
    assert rows[0]["accuracy"]["mean"] == pytest.approx(np.mean(of_lstm))
    table = (folder / "table.md").read_text().splitlines()
    assert len(table) == 2 + 2 * (1 + 2)
    assert table[2].startswith("| 3 | (memoryless model) | 33.3 | 1.099 |")
    assert len({line.count("|") for line in table}) == 1
    for row in rows:
        assert sentence(row, Recall(2, 3)) in printed
    assert printed.count("guessing has 33.3%") == len(results["trials"]) + len(rows)


def test_report_shows_all_of_a_run(finished):
    folder, _, results = finished
    text = (folder / "report.md").read_text()
    rows = summarise(results["trials"])
    assert all(f"- {sentence(row, Recall(2, 3))}." in text for row in rows)
    assert (folder / "table.md").read_text() in text
    shown = set(re.findall(r"!\[.*?\]\((.*?)\)", text))
    assert shown == {path.name for path in folder.iterdir() if path.suffix == ".png"}
    for part in ("configuration", "hardware"):
        assert all(f"| {name} | " in text for name in results[part])
    assert "Not finished" not in text


def test_interrupted_run_resumes_to_the_same_results(finished, tmp_path, monkeypatch, without_pictures):
    calls = interrupt(4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert len(json.loads((tmp_path / "results.json").read_text())["trials"]) == 3
    resumed = run(tmp_path, "--resume")
    assert len(calls) == 4 + 5
    assert without_times(resumed["trials"]) == without_times(finished[2]["trials"])


KILLED = """
import os, signal, sys
from benchmarks.copy_task import __main__ as command

def run_once(*arguments, run_trial=command.run_trial):
    command.run_trial = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    return run_trial(*arguments)

command.run_trial = run_once
command.main(sys.argv[1:])
"""


def test_killed_run_is_compared_to_the_same_results(finished, tmp_path, without_pictures):
    """A process that is killed between two trials leaves the finished one; --compare resumes by itself."""
    ended = subprocess.run([sys.executable, "-c", KILLED, *SMALL, "--out", str(tmp_path)], check=False, env=ONE_THREAD)
    assert ended.returncode == -signal.SIGKILL
    (before,) = json.loads((tmp_path / "results.json").read_text())["trials"]
    resumed = run(tmp_path, "--compare")["trials"]
    assert resumed[0] == before
    assert without_times(resumed) == without_times(finished[2]["trials"])


def test_trials_side_by_side_give_the_same_results(finished, tmp_path):
    """An interruption ends all processes, and a new run then gives the same results."""
    command = [sys.executable, "-m", "benchmarks.copy_task", *SMALL, "--processes", "3", "--compare", "--out", tmp_path]
    started = subprocess.Popen([*command, "--sequences", "100000"], env=ONE_THREAD, **processes.GROUP)
    while started.poll() is None and len(processes.of_group(started.pid)) < 5:  # two of them only manage the others
        time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    assert started.wait(600) == 130
    deadline = time.monotonic() + 600
    while processes.of_group(started.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (tmp_path / "results.json").unlink()
    subprocess.run(command, check=True, capture_output=True, env=ONE_THREAD)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["configuration"] == {**finished[2]["configuration"], "processes": 3}
    assert without_times(results["trials"]) == without_times(finished[2]["trials"])


@pytest.fixture
def side_by_side(tmp_path):
    """Yield a run of endless trials when both of its processes have one, and their numbers; kill what is left of it."""
    command = [sys.executable, "-m", "tests.copy_task.endless", *SMALL, "--processes", "2", "--out", tmp_path]
    with subprocess.Popen(command, env=ONE_THREAD, stderr=subprocess.PIPE, text=True, **processes.GROUP) as started:
        while started.poll() is None and len(list(tmp_path.glob("*.trial"))) < 2:
            time.sleep(0.05)
        yield started, [int(path.stem) for path in tmp_path.glob("*.trial")]
        for left in processes.of_group(started.pid):
            os.kill(left, signal.SIGKILL)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.exhaustive), signal.SIGKILL])
def test_processes_end_with_the_main_one_even_if_it_is_killed(number, side_by_side):
    started, _ = side_by_side
    started.send_signal(number)
    assert started.wait(60) == -number
    deadline = time.monotonic() + 60
    while processes.of_group(started.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_killed_process_ends_the_run_with_a_sentence(side_by_side):
    started, (one, _) = side_by_side
    os.kill(one, signal.SIGKILL)
    error = started.communicate(timeout=60)[1]
    assert started.returncode == 1
    assert "Traceback" not in error
    assert "error: one of the --processes 2 ended within a trial" in error
    assert "--resume goes on" in error


def test_full_disk_leaves_the_finished_trials(finished, tmp_path, capsys, monkeypatch, without_pictures):
    interrupt(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    before = (tmp_path / "results.json").read_bytes()
    with files_of_at_most(len(before) + 100), pytest.raises(SystemExit) as ended:
        run_command(lambda: run(tmp_path, "--resume"), command.SAVED)
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert f"error: {tmp_path / 'results.json'} cannot be written: File too large; finished trials are saved" in error
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"results.json": before}
    assert without_times(run(tmp_path, "--resume")["trials"]) == without_times(finished[2]["trials"])


def test_results_are_not_overwritten(finished):
    folder, _, results = finished
    with pytest.raises(InputError, match="--resume"):
        run(folder)
    with pytest.raises(InputError, match=r"lr 0\.01, and this run has 0\.5"):
        run(folder, "--resume", "--lr", "0.5")
    assert json.loads((folder / "results.json").read_text()) == results


def test_diverged_model_is_said_to_have_diverged(tmp_path, capsys, without_pictures):
    options = ("--protocol", "echo", "--cell", "rnn", "--length", "3", "--trials", "1", "--lr", str(LARGEST))
    arguments = [*options, "--epochs", "3", "--hidden", "3", "--out", str(tmp_path)]
    command.main(arguments)
    text = (tmp_path / "results.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["trials"][0]["loss"] is None
    assert "diverged" in capsys.readouterr().out


@pytest.mark.parametrize(("option", "value"), [("--until", "0.4"), ("--minutes", "1e-9")])
def test_training_ends_early(option, value, tmp_path, capsys, without_pictures):
    arguments = ("--cell", "gru", "--length", "1", "2", "--trials", "1", "--epochs", "30", "--sequences", "60")
    results = run(tmp_path, *arguments, "--lr", "0.03", option, value)
    for trial in results["trials"]:
        epochs = trial["epochs"]
        if option == "--until":
            assert [epoch["held_out_accuracy"] > 0.4 for epoch in epochs] == [False] * (len(epochs) - 1) + [True]
            assert len(epochs) < 30
        else:
            assert len(epochs) == 1
    assert "100%" in capsys.readouterr().err.splitlines()[-1]  # the bar's total drops by the skipped steps


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_backend_reaches_the_cells(backend, tmp_path, monkeypatch, without_pictures):
    asked = []
    monkeypatch.setattr(
        train, "CopyModel", lambda *a, backend, **o: asked.append(backend) or CopyModel(*a, backend=backend, **o)
    )
    results = run(tmp_path, "--backend", backend, "--cell", "gru", "--length", "2", "--trials", "1")
    assert asked == [backend]
    assert results["configuration"]["backend"] == backend


def test_ascending_run_leaves_out_what_is_too_long(tmp_path, capsys, monkeypatch, without_pictures):
    """A cell skips longer lengths once it has not solved one, even after an interruption."""
    trained = []

    def trial(options, task, cell, length, trial, advance):
        trained.append((cell, length))
        if len(trained) == 4:
            raise KeyboardInterrupt
        advance(0.5)
        return record(0.5 if (cell, length) == ("gru", 7) else 0.995, 0.02, cell, length, trial)

    monkeypatch.setattr(command, "run_trial", trial)
    arguments = ("--cell", "lstm", "gru", "--length", "9", "5", "7", "--trials", "1", "--ascend")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, *arguments)
    run(tmp_path, *arguments, "--resume")
    assert trained == [("lstm", 5), ("gru", 5), ("lstm", 7), ("gru", 7), ("gru", 7), ("lstm", 9)]
    assert "100%" in capsys.readouterr().err.splitlines()[-1]
