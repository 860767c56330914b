"""The benchmark of both directions at once: a run on the CPU, which leaves the environment alone, and its report."""

import json
import os

import pytest

from benchmarks import common
from benchmarks.gpu import streams as benchmark
from fused_rnn import streams


@pytest.mark.parametrize("wanted", [None, "1"])
def test_a_run_from_the_command_line(tmp_path, monkeypatch, capsys, wanted):
    monkeypatch.delenv(streams.WANTED, raising=False) if wanted is None else monkeypatch.setenv(streams.WANTED, wanted)
    path = tmp_path / "streams.json"
    benchmark.main(["--device", "cpu", "--quick", "--out", str(path)])
    assert os.environ.get(streams.WANTED) == wanted
    result = json.loads(path.read_text())
    assert [(r["dtype"], r["mode"]) for r in result["times"]] == [
        (dtype, mode) for dtype in benchmark.DTYPES for mode in benchmark.MODES
    ]
    assert all(r["ms_one"] > 0 and r["ms_two"] > 0 for r in result["times"])
    assert benchmark.section(result) in capsys.readouterr().out


def test_the_report_shows_what_was_measured():
    case = {"dtype": "float32", "hidden": 128, "batch": 16, "steps": 1000}
    times = [{**case, "mode": "forward", "ms_one": 2.5, "ms_two": 1.25}]  # a run that was interrupted
    result = {
        "date": "2030-01-02",
        "hardware": {"gpu": "NVIDIA H200", "torch": "2.13.0"},
        "plan": {"calls": 8, "rounds": 5},
        "times": times,
    }
    found = benchmark.block([result])
    assert "on NVIDIA H200, torch 2.13.0, measured on 2030-01-02 with `python -m benchmarks.gpu.streams`" in found
    assert "| float32 | 128 | 16 | 1000 | 2.50 → 1.25, **2.00×** | – |" in found


def test_the_cpu_has_no_streams_to_measure():
    with pytest.raises(common.InputError, match="--device cpu has no streams to measure: --quick"):
        benchmark.main(["--device", "cpu"])
