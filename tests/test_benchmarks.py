"""The report of all harnesses and the suite of pytest-benchmark: the README shows what was measured, as it was."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from benchmarks import common, report
from benchmarks.speed import ROOT
from benchmarks.speed.cases import Case
from benchmarks.speed.plan import PLANS, SHAPES

from .results import measured, results

EXAMPLE = results("speed", measured(Case("lstm", SHAPES["a"], "training"), fused=12.5, torch=50.0))


def test_the_suite_runs_what_is_selected_and_says_why_the_rest_cannot(tmp_path):
    selected = "multiplicative_gru and eager and -d- and float32-forward or haste and H128B16"
    command = [sys.executable, "-m", "pytest", "benchmarks", "-rs", "--benchmark-enable", "-p", "no:cacheprovider"]
    path = tmp_path / "benchmark.json"
    command += ["-k", selected, f"--benchmark-json={path}"]
    # pytest-benchmark measures nothing where it finds itself among the processes of pytest-xdist
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment["OMP_NUM_THREADS"] = "1"
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=report.README.parent, env=environment
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (found,) = json.loads(path.read_text())["benchmarks"]
    assert found["param"] == "multiplicative_gru-eager-on_cpu-d-float32-forward"
    assert found["stats"]["rounds"] == PLANS["speed"].rounds
    assert found["extra_info"]["threads"] == 1
    if not torch.cuda.is_available():
        assert "no CUDA device" in ended.stdout


def empty_readme() -> str:
    return "before\n" + "".join(f"{report.begin(kind)}stale{report.end(kind)}\n" for kind in report.BLOCKS) + "after\n"


def test_the_report_replaces_its_blocks_and_nothing_else(tmp_path):
    readme, folder = tmp_path / "README.md", tmp_path / "results"
    readme.write_text(empty_readme())
    common.write_json(folder / "speed-resident.json", EXAMPLE)
    blocks = [report.block(kind, [EXAMPLE] if kind == "speed" else []) for kind in report.BLOCKS]
    for _ in range(2):  # a second run finds what the first one wrote
        report.main(readme, folder)
        assert readme.read_text() == "\n".join(["before", *blocks, "after\n"])


@pytest.mark.parametrize("kind", report.BLOCKS)
@pytest.mark.parametrize("text", ["", "{begin}", "{end}{begin}", "{begin}{end}{begin}{end}"])
def test_the_report_refuses_a_readme_without_its_two_markers(text, kind, tmp_path):
    begin, end = report.begin(kind), report.end(kind)
    readme = empty_readme().replace(f"{begin}stale{end}", text.format(begin=begin, end=end))
    with pytest.raises(common.InputError, match=f"README must have the line {begin} once"):
        report.insert(readme, tmp_path)


def test_the_readme_shows_the_results_that_are_there():
    readme = report.README.read_text()
    assert report.insert(readme) == readme, "run 'python -m benchmarks.report'"


def test_the_readme_shows_the_pictures_that_are_there():
    shown = set(re.findall(r"\]\((benchmarks/results/[^)]+\.svg)\)", report.README.read_text()))
    there = {str(path.relative_to(ROOT)) for path in report.RESULTS.glob("*.svg")}
    assert shown == there, "run 'python -m benchmarks.report'"
    assert there


RECORDS = [{"cell": "lstm", "times": [float(i) for i in range(100)]} for _ in range(3)]


def test_results_have_a_record_in_each_line(tmp_path):
    content = {"date": "today", "plan": {"cells": ["lstm"]}, "points": RECORDS, "long": [{"all": RECORDS * 3}]}
    common.write_json(tmp_path / "results.json", content)
    written = (tmp_path / "results.json").read_text()
    assert json.loads(written) == content
    lines = [line.strip(" ,") for line in written.splitlines()]
    assert '"plan": {"cells": ["lstm"]}' in lines
    assert lines.count(json.dumps(RECORDS[0])) == 3 + 9  # also where a record of records is too long for a line
    assert len(lines) == 24


@pytest.mark.parametrize("content", [[], {}, None, [[1, 2], []], {1: {"a": RECORDS[0]}, "b": "x" * 200}], ids=str)
def test_results_are_json_whatever_they_are(tmp_path, content):
    common.write_json(tmp_path / "results.json", content)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(content))
