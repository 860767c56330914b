"""Several processes: the same losses as one process, their output and files, and how they end."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.common import InputError
from benchmarks.language_model.__main__ import _run
from benchmarks.language_model.checkpoint import Checkpoint
from benchmarks.language_model.corpus import standard_library
from benchmarks.language_model.distributed import World
from benchmarks.language_model.run import _check_agreed

from .conftest import BACKEND, assert_one_line, command, losses, results
from .test_resuming import assert_same_run

ENOUGH = 600  # timeout in seconds, however busy the machine
SMALL = ("--hidden", 16, "--backend", BACKEND, "--dtype", "float64")
RUNS = {  # small ones, each with different options
    "characters": ("--batch", 26, "--limit", 700, "--cell", "gru", "--tie", "--epochs", 2),
    "per-sequence": ("--batch", 10, "--limit", 700, "--loss-per", "sequence", "--epochs", 2, "--optimiser", "sgd"),
    "bytes": ("--batch", 4, "--limit", 800, "--alphabet", "bytes", "--bptt", 9, "--layers", 2, "--epochs", 2),
    "words": ("--batch", 4, "--limit", 900, "--alphabet", "words", "--bptt", 7, "--clip-by", "value", "--epochs", 1),
}
DROPPING = (*RUNS["bytes"], "--dropout", 0.3, "--weight-drop", 0.2)


@contextmanager
def started(log: Path, *arguments) -> Iterator[subprocess.Popen]:
    """Start a Python process whose output goes to ``log``; it does not outlive the test."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *map(str, arguments)],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=Path(__file__).parents[2],
            env=environment,
        )
        try:
            yield process
        finally:
            process.terminate()  # on SIGTERM a launcher ends its processes, too
            process.wait(ENOUGH)


def wait_until(happened: Callable[[], object], process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + ENOUGH
    while not happened():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def arguments(text: Path, out: Path, *more) -> list[str]:
    return [str(argument) for argument in ("train", "--text", text, "--out", out, *SMALL, *more)]


@pytest.fixture(scope="module")
def both(text, tmp_path_factory) -> Path:
    """Return a folder with the runs of two processes and their log; only the second process receives signals."""
    folder = tmp_path_factory.mktemp("both")
    commands = [
        (arguments(text, folder / "refused", "--batch", 7), None),
        *((arguments(text, folder / name, *RUNS[name]), None) for name in RUNS),
        (arguments(text, folder / "whole", *DROPPING), None),
        (arguments(text, folder / "parts", *DROPPING), 3),
        (arguments(text, folder / "parts", *DROPPING, "--resume"), 26),
        (arguments(text, folder / "parts", *DROPPING, "--resume"), None),
        (arguments(text, folder / "half", *RUNS["bytes"]), 28),
    ]
    (folder / "commands").write_text(json.dumps(commands))
    with started(folder / "log", "tests.language_model.workers", folder / "commands") as process:
        process.wait(ENOUGH)
    statuses = re.findall(r"^status (\d+)", (folder / "log").read_text(), re.M)
    assert statuses == ["2", *["0"] * len(RUNS), "0", "130", "130", "0", "130"]
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_have_the_losses_of_one(name, both, text, tmp_path):
    assert command(*arguments(text, tmp_path, *RUNS[name])) == 0
    one, two = results(tmp_path), results(both / name)
    assert losses(both / name) == [pytest.approx(pair, rel=1e-9) for pair in losses(tmp_path)]
    assert (one["configuration"]["processes"], two["configuration"]["processes"]) == (1, 2)
    if name == "characters":
        assert two["data"]["training_sentences"] % 26 == 1  # so one process had no sentence in the last batch


def test_one_process_writes_and_prints(both):
    assert {path.name for path in (both / "words").iterdir()} == {"results.json", "losses.png", "lstm.pt"}
    log = (both / "log").read_text()
    assert log.count("symbols to train on") == len(RUNS) + 5
    assert log.count("epoch 1 (") == len(RUNS) + 3


def test_batch_that_cannot_be_shared(both):
    assert (both / "log").read_text().count("error: --batch 7 cannot be shared evenly by 2 processes") == 1
    assert not (both / "refused").exists()


def test_two_stopped_processes_go_on_bit_for_bit(both):
    """Both draw dropout and carry a state, and stop together although only one received the signal."""
    assert_same_run(both / "parts", both / "whole")
    stopped = f"stopped; --resume goes on from {both / 'parts' / 'lstm.pt'}, saved after"
    for place in ("step 3 of epoch 1", "step 9 of epoch 2"):
        assert (both / "log").read_text().count(f"{stopped} {place}\n") == 1


def test_one_process_goes_on_from_two(both, text, capsys):
    assert Checkpoint.load(both / "half" / "lstm.pt").position["steps"] == 8
    assert command(*arguments(text, both / "half", *RUNS["bytes"], "--resume")) == 0
    assert losses(both / "half") == [pytest.approx(pair, rel=1e-9) for pair in losses(both / "bytes")]
    capsys.readouterr()
    assert command(*arguments(text, both / "parts", *DROPPING, "--resume")) == 2
    assert_one_line(capsys, "was trained by 2 processes, each with its own dropout, and cannot be resumed by 1")


def test_interrupted_torchrun_saves_and_a_killed_process_ends_the_run(tmp_path):
    """Ctrl-C under torchrun saves within an epoch; killing the first process ends the resumed run."""
    (tmp_path / "text.txt").write_text(standard_library(60_000))
    path, log = tmp_path / "out" / "lstm.pt", tmp_path / "log"
    sizes = ("--hidden", 4, "--alphabet", "bytes", "--batch", 2, "--bptt", 4, "--save-every", 1e-4)
    run = arguments(tmp_path / "text.txt", tmp_path / "out", *sizes, "--resume")

    def steps() -> int:
        return Checkpoint.load(path).position["steps"] if path.exists() else 0

    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "benchmarks.language_model")
    with started(log, *torchrun, *run) as process:
        wait_until(lambda: steps() > 0, process, log)
        process.send_signal(signal.SIGINT)
        assert process.wait(ENOUGH) != 0
    before = steps()
    assert log.read_text().count(f"stopped; --resume goes on from {path}, saved after step {before:,} of epoch 1") == 1

    (tmp_path / "commands").write_text(json.dumps([(run, None)]))
    with started(log, "tests.language_model.workers", tmp_path / "commands") as process:
        wait_until(lambda: steps() > before, process, log)
        os.kill(int(re.search(r"process 0 is (\d+)", log.read_text())[1]), signal.SIGKILL)
        assert process.wait(ENOUGH) != 0
    lost = f"error: another of the 2 processes is gone or does not answer; --resume goes on from {path}, saved after "
    assert log.read_text().count(lost) == 1
    assert steps() > before


def test_the_launcher_does_not_silence_a_process_that_notices_a_loss(text, tmp_path, monkeypatch, capsys):
    """The launcher sends SIGTERM when it notices the loss, perhaps just before the process reports it."""

    class Left(World):
        """The first of two processes; the other exits when training begins."""

        def gather(self, value):
            return [value] * self.size

        def from_first(self, make):
            return make()

        def parallel(self, model):
            return model

        def sum(self, *_):
            raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")

        def say(self, message):
            signal.raise_signal(signal.SIGTERM)
            super().say(message)

    def leave(status):
        raise SystemExit(status)

    def silence(*_):
        pytest.fail("SIGTERM ended the process")

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    before = signal.signal(signal.SIGTERM, silence)
    try:
        with pytest.raises(SystemExit) as ended:
            _run(arguments(text, tmp_path, *RUNS["bytes"]), Left(size=2))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 1
    assert "error: another of the 2 processes is gone or does not answer; nothing is" in capsys.readouterr().err


def test_one_gpu_for_several_processes(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    world = World(rank=3, size=4)
    assert [world.device(name) for name in ("cpu", "cuda")] == ["cpu", "cuda:1"]
    with pytest.raises(InputError, match="--device cuda:0 is one device for 4 processes: give cuda, or cpu"):
        world.device("cuda:0")


@pytest.mark.parametrize("name", ["generate", "evaluate"])
def test_only_training_is_shared(name):
    arguments = {"generate": [], "evaluate": ["--text", "nowhere.txt"]}[name]
    with pytest.raises(InputError, match=f"{name} runs in one process, but 2 were started"):
        _run([name, "--checkpoint", "nowhere.pt", *arguments], World(size=2))


def test_processes_that_cannot_be_joined(monkeypatch, text, tmp_path, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    assert command(*arguments(text, tmp_path / "out")) == 2
    assert_one_line(capsys, "cannot join the processes that WORLD_SIZE speaks of: ")
    assert not (tmp_path / "out").exists()


def test_processes_must_be_given_the_same():
    class Others(World):
        def gather(self, value):
            return [value, {**value, "text": "elsewhere", "lr": 0.5, "text_digest": "other"}]

    with pytest.raises(InputError, match=r"the 2 processes must be given the same, but differ in text_digest, lr$"):
        _check_agreed(Others(size=2), {"text": "here", "text_digest": "one", "lr": 0.1, "batch": 4})
