"""The estimate of a trial's memory, and the refusal that it leads to."""

import re
import subprocess
import sys

import pytest

from benchmarks.common import InputError
from benchmarks.copy_task import memory
from benchmarks.copy_task.data import Recall
from benchmarks.copy_task.options import parse_options, task_of

from .conftest import ONE_THREAD, refusal


def test_what_cannot_fit_is_refused_with_the_estimate(tmp_path, capsys):
    folder = tmp_path / "out"
    line = refusal(capsys, "--length", "100", "10000000000", "--cell", "lstm", "rnn", "--out", str(folder))
    assert "--length 10000000000 with lstm needs about" in line
    needed, free = map(float, re.findall(r"([\d.]+) GiB", line))
    assert needed > free > 0
    assert not folder.exists()


def test_the_largest_trial_decides_what_fits(monkeypatch):
    options = parse_options(["--cell", "rnn", "lstm", "--length", "500", "100", "--extra"])
    task = task_of(options)
    needed = memory.trial_bytes(options, task, "lstm", 500, "cpu")["cpu"]
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed)
    memory.check_memory(options, task, "cpu")
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed - 1)
    with pytest.raises(InputError, match="--length 500 with lstm"):
        memory.check_memory(options, task, "cpu")
    options.processes, more = 3, 3 * needed
    with pytest.raises(InputError, match="--length 500 with lstm 3 times needs"):
        memory.check_memory(options, task, "cpu")
    monkeypatch.setattr(memory, "free_bytes", lambda device: more)
    memory.check_memory(options, task, "cpu")
    monkeypatch.setattr(memory, "free_bytes", lambda device: None)  # nothing is refused if free memory is unknown
    memory.check_memory(options, task, "cpu")


def test_a_gpu_holds_the_training_and_the_cpu_the_sequences():
    task = Recall(10, 10)
    here, there = (
        memory.trial_bytes(parse_options(["--device", device]), task, "gru", 100, "cuda") for device in ("cpu", "cuda")
    )
    assert set(there) == {"cpu", "cuda"}
    assert here == {"cpu": sum(there.values())}
    assert there["cuda"] > there["cpu"] > 0


def test_every_size_counts():
    def needed(*arguments: str) -> int:
        options = parse_options(["--extra", "5", *arguments])
        return sum(memory.trial_bytes(options, task_of(options), "multiplicative_lstm", 20, "cpu").values())

    larger = ("--hidden", "500"), ("--layers", "2"), ("--batch", "64"), ("--held-out", "999"), ("--extra", "500")
    assert all(needed(*more) > needed() for more in [*larger, ("--dtype", "float64"), ("--symbols", "40")])
    assert needed("--protocol", "echo", "--sequences", "5000") > needed("--protocol", "echo")
    assert needed("--hidden", str(10**12)) > 10**24


def test_memory_left_in_a_container(tmp_path):
    assert memory.left_in_group(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.left_in_group(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 400\nfile 300\nactive_file 100\ninactive_file 50\n")
    assert memory.left_in_group(tmp_path) == 450


def test_estimate_is_what_a_trial_takes():
    """The estimate is within a factor of two of the peak's growth, after a small trial has loaded all code."""
    script = """
from pathlib import Path
from benchmarks.copy_task.memory import trial_bytes
from benchmarks.copy_task.options import parse_options, task_of
from benchmarks.copy_task.train import run_trial
peaks = []
for length in (2, 200):
    options = parse_options(["--backend", "cpu", "--sequences", "32", "--held-out", "32", "--epochs", "1", "--extra"])
    task = task_of(options)
    run_trial(options, task, "multiplicative_gru", length, 0)
    lines = Path("/proc/self/status").read_text().splitlines()
    peaks.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")))
print(peaks[1] - peaks[0], trial_bytes(options, task, "multiplicative_gru", length, "cpu")["cpu"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=ONE_THREAD)
    grown, estimate = map(int, done.stdout.split())
    assert 0.5 < estimate / grown < 2
