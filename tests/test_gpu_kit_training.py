"""The models of the README, trained side by side by the kit: nothing is lost when time is over."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import common
from benchmarks.gpu.kit import harness, processes
from benchmarks.report import BLOCKS

from .gpu_kit import run_all


@pytest.fixture
def corpus(tmp_path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in harness.CORPUS.values():
        (folder / name).write_text(" no it was n't black monday \n" * 20)
    return folder


@pytest.mark.exhaustive
def test_the_models_of_the_readme_are_trained_and_a_second_call_goes_on(tmp_path, corpus):
    """The files of the first call are enough: nothing is trained again."""
    done = {}
    for name, more in ("first", {}), ("second", {"RESUME": "first"}):
        result = run_all(tmp_path / name, PARTS="harness", PTB=str(corpus), **more)
        assert result.returncode == 0, result.stdout + result.stderr
        assert {path.name for path in (tmp_path / name).iterdir()} == {
            *("log.txt", "copy_task.json", "language_model.json", "checkpoint.00")
        }
        done[name] = {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.json")}
    assert done["first"] == done["second"]
    assert "8 of 8 trials were finished before." in result.stdout
    copied = json.loads(done["first"]["copy_task.json"])
    assert [(t["length"], t["cell"]) for t in copied["trials"]] == [(n, cell) for n in (3, 5) for cell in harness.CELLS]
    assert "2 trials side by side" in BLOCKS["copy"]([copied])
    (run,) = json.loads(done["first"]["language_model.json"])["runs"]
    assert [epoch["epoch"] for epoch in run["epochs"]] == [1, 2]
    shown = BLOCKS["language_model"]([json.loads(done["first"]["language_model.json"])])
    assert "--text ptb.train.txt --valid ptb.valid.txt --test ptb.test.txt --out runs/zaremba-small`" in shown


def test_without_a_corpus_one_sentence_says_what_is_left_out(tmp_path, capsys, monkeypatch):
    trained = []
    monkeypatch.setattr(harness, "train", lambda commands, *_: trained.extend(commands) or [])
    harness.main(["--device", "cpu", str(tmp_path)])
    assert trained == ["the copy task"]
    assert "The language model is left out: no folder with Penn Treebank was given.\n" in capsys.readouterr().out


def test_what_training_has_is_carried_in_files_that_are_small_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "PIECE", 1000)
    first, second, folder = (tmp_path / name for name in ("first", "second", "folder"))
    contents = {name: os.urandom(700) for name in harness.RESULTS.values()} | {harness.CHECKPOINT: os.urandom(2500)}
    for name, content in contents.items():
        with common.replacing(first / name) as path:
            path.write_bytes(content)
    saved = {}
    harness.save(first, folder, saved)
    pieces = [f"checkpoint.0{number}" for number in range(3)]
    assert {path.name for path in folder.iterdir()} == {*harness.RESULTS, *pieces}
    assert max(path.stat().st_size for path in folder.iterdir()) <= 1000
    (folder / pieces[0]).unlink()
    harness.save(first, folder, saved)
    assert not (folder / pieces[0]).exists()  # unchanged files are not written again
    harness.save(first, folder, {})
    harness.restore(folder, second)
    assert {name: (second / name).read_bytes() for name in contents} == contents


@pytest.fixture
def until_begun(tmp_path, monkeypatch) -> None:
    """End the harness's time as soon as the file ``begun`` exists."""
    now = SimpleNamespace(monotonic=lambda: 1e9 * (tmp_path / "begun").exists(), sleep=lambda _: time.sleep(0.05))
    monkeypatch.setattr(harness, "time", now)


STUBBORN = """
import signal, subprocess, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.SIG_IGN)
subprocess.Popen(["sleep", "62"])
Path("begun").touch()
time.sleep(60)
"""
SAVING = """
import time
from pathlib import Path
Path("runs/copy-gated").mkdir(parents=True)
try:
    Path("begun").touch()
    time.sleep(60)
except KeyboardInterrupt:
    Path("runs/copy-gated/results.json").write_text("what it had")
"""


@pytest.mark.usefixtures("until_begun")
@pytest.mark.parametrize("ignored", [False, True], ids=["heard", "ignored by the parent"])
def test_training_that_is_cut_off_saves_what_it_has(tmp_path, ignored):
    """Training receives the signal even if this process, as a script's background job, was started to ignore it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
    try:
        problems = harness.train({"a": [sys.executable, "-c", SAVING]}, tmp_path, tmp_path / "out", 60, {})
    finally:
        signal.signal(signal.SIGINT, before)
    assert problems == ["a was not finished: go on from here"]
    assert (tmp_path / "out" / "copy_task.json").read_text() == "what it had"


def test_training_that_fails_is_named(tmp_path):
    commands = {name: [sys.executable, "-c", f"raise SystemExit({name})"] for name in ("0", "3")}
    assert harness.train(commands, tmp_path, tmp_path, 60, {}) == ["3 ended with exit status 3"]


@pytest.mark.usefixtures("until_begun")
def test_training_that_does_not_stop_is_killed_with_what_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "TO_STOP", 0.5)
    problems = harness.train({"a": [sys.executable, "-c", STUBBORN]}, tmp_path, tmp_path, 60, {})
    assert problems == ["a was not finished: go on from here"]
    assert not any("sleep 62" in processes.described(process) for process, _, _ in processes.running())


@pytest.mark.parametrize("works", [True, False], ids=["shares", "takes turns"])
def test_a_gpu_is_shared_where_the_service_works(tmp_path, monkeypatch, works):
    """Stand-ins replace the service and the interpreter that checks whether it works."""
    for name, code in (
        ("nvidia-cuda-mps-control", f'echo "$*$(cat)" >> {tmp_path}/said'),
        ("tries", f"{str(works).lower()}"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{code}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "tries"))
    with harness.shared_gpu("cuda", tmp_path) as more:
        assert (more == {f"CUDA_MPS_{name}_DIRECTORY": str(tmp_path / "mps") for name in ("PIPE", "LOG")}) == works
        assert (more is None) != works
    assert (tmp_path / "said").read_text() == "-d\nquit -t 2\n"
    with harness.shared_gpu("cpu", tmp_path) as more:
        assert more is None


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["--resume", "corpus"],
            "holds nothing to go on from: no copy_task.json, language_model.json or checkpoint.00",
        ),
        (["--corpus", "."], "lacks ptb.train.txt, ptb.valid.txt, ptb.test.txt"),
        (["--device", "tpu"], "--device tpu is unknown"),
    ],
    ids=["resume", "corpus", "device"],
)
def test_wrong_input_of_the_harness(monkeypatch, tmp_path, corpus, capsys, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        common.run_command(lambda: harness.main(["--device", "cpu", *arguments, "out"]))
    assert stopped.value.code == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
