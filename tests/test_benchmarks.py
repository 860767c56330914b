"""The pytest-benchmark suite measures selected cases; commands explain themselves; results have a record per line."""

import json
import os
import runpy
import subprocess
import sys

import pytest
import torch

from benchmarks import common, report
from benchmarks.speed.plan import PLANS


def test_the_suite_runs_what_is_selected_and_says_why_the_rest_cannot(tmp_path):
    selected = "multiplicative_gru and eager and -d- and float32-forward or haste and H128B16"
    command = [sys.executable, "-m", "pytest", "benchmarks", "-rs", "--benchmark-enable", "-p", "no:cacheprovider"]
    path = tmp_path / "benchmark.json"
    command += ["-k", selected, f"--benchmark-json={path}"]
    # pytest-benchmark measures nothing in the processes of pytest-xdist
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment["OMP_NUM_THREADS"] = "1"
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=report.ROOT, env=environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (found,) = json.loads(path.read_text())["benchmarks"]
    assert found["param"] == "multiplicative_gru-eager-on_cpu-d-float32-forward"
    assert found["stats"]["rounds"] == PLANS["speed"].rounds
    assert found["extra_info"]["threads"] == 1
    if not torch.cuda.is_available():
        assert "no CUDA device" in ended.stdout


COMMANDS = [
    ".".join(path.relative_to(report.ROOT).with_suffix("").parts).removesuffix(".__main__")
    for path in (report.ROOT / "benchmarks").rglob("*.py")
    if "common.run_command(" in path.read_text()
]


@pytest.mark.filterwarnings("ignore:.* found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_its_options(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(name, run_name="__main__")
    assert not ended.value.code
    assert capsys.readouterr().out.startswith("usage: ")


@pytest.mark.parametrize("harness", ["copy_task", "language_model"])
def test_pages_of_the_harnesses_tell_gated_recurrent_units_apart(harness):
    page = " ".join((report.ROOT / "benchmarks" / harness / "README.md").read_text().split())
    assert all(f"`{cell}`" in page for cell in ("gru_reset_after", "multiplicative_lstm_hidden"))
    assert "the recurrent product (Chung et al. 2014)" in page


def test_what_killed_processes_left_half_written_is_removed(tmp_path):
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    left = {process: tmp_path / f".a[1].json.{process}.partial" for process in (killed.pid, 1, os.getppid())}
    others = [tmp_path / f".b.json.{killed.pid}.partial", tmp_path / ".a[1].json.mine.partial"]
    for path in (*left.values(), *others):
        path.touch()
    common.write_json(tmp_path / "a[1].json", {})
    assert not left.pop(killed.pid).exists()
    assert set(tmp_path.iterdir()) == {tmp_path / "a[1].json", *left.values(), *others}


RECORDS = [{"cell": "lstm", "times": [float(i) for i in range(100)]} for _ in range(3)]


def test_results_have_a_record_in_each_line(tmp_path):
    content = {"date": "today", "plan": {"cells": ["lstm"]}, "points": RECORDS, "long": [{"all": RECORDS * 3}]}
    common.write_json(tmp_path / "results.json", content)
    written = (tmp_path / "results.json").read_text()
    assert json.loads(written) == content
    lines = [line.strip(" ,") for line in written.splitlines()]
    assert '"plan": {"cells": ["lstm"]}' in lines
    assert lines.count(json.dumps(RECORDS[0])) == 3 + 9  # also if a record of records is too long for a line
    assert len(lines) == 24


@pytest.mark.parametrize("content", [[], {}, None, [[1, 2], []], {1: {"a": RECORDS[0]}, "b": "x" * 200}], ids=str)
def test_results_are_json_whatever_they_are(tmp_path, content):
    common.write_json(tmp_path / "results.json", content)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(content))
