"""The benchmark of episodes: ways that compute the same, wrong ones that are found out, a report of the results."""

import pytest

from benchmarks import common, report
from benchmarks.resets import __main__ as resets
from benchmarks.resets.cases import CELLS, MODES, OURS, TITLES, WITHOUT, Plan, ways
from benchmarks.resets.check import Batch, Judge, step_of, weights_of

SMALL = Plan(steps=9, batch=4, size=6, backend="reference")


@pytest.mark.parametrize("share", [0, 30, 100])
@pytest.mark.parametrize("cell", CELLS)
def test_every_way_computes_what_the_reference_does(cell, share):
    batch, weights = Batch.drawn(SMALL, share), weights_of(cell, SMALL)
    found = ways(cell, SMALL, weights)
    assert list(found) == list(TITLES)
    for name, (module, way) in found.items():
        judge = Judge(cell, SMALL, batch, weights, name != WITHOUT)
        for mode in MODES:
            results = step_of(mode, module, way, batch)()
            assert len(results) == {"forward": 2, "training": 7}[mode]
            assert judge.complaint(results) is None


def test_what_knows_no_boundaries_is_found_out():
    batch, weights = Batch.drawn(SMALL, 30), weights_of("lstm", SMALL)
    module, way = ways("lstm", SMALL, weights)[WITHOUT]
    complaint = Judge("lstm", SMALL, batch, weights, True).complaint(step_of("forward", module, way, batch)())
    assert complaint.startswith("result 0 is off by ")


def test_batches_have_the_share_of_boundaries_that_they_say():
    flags = Batch.drawn(Plan(size=1), 10).resets
    assert flags.float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert not Batch.drawn(Plan(size=1), 0).resets.any()


def example() -> dict:
    times = {OURS: 10.2, WITHOUT: 10.0, "steps": 51.0, "split": 102.0}
    records = [
        {"cell": "lstm", "share": 10, "mode": mode, "candidate": name, "title": TITLES[name], "median_ms": ms}
        for mode in MODES
        for name, ms in times.items()
    ]
    wrong = {"cell": "lstm", "share": 10, "mode": "training", "candidate": "packed", "title": TITLES["packed"]}
    return {
        "file": "resets-cpu",
        "date": "2026-01-02T03:04:05+00:00",
        "hardware": {**common.hardware(), "threads": 1},
        "allocator": {"name": "resident"},
        "plan": {"cells": ["lstm"], "shares": [10], "backend": "cpu", "device": "cpu", "dtype": "float32"}
        | {"rounds": 5, "steps": 128, "batch": 128, "size": 256},
        "times": [*records, {**wrong, "wrong": "result 0 is off"}],
    }


def test_the_report_shows_what_was_measured():
    lines = report.block("resets", [example()]).splitlines()
    assert "| LSTM | 10 % | +2.0 % | 10.2 / 51.0 = **5.00×** | 10.2 / 102 = **10.00×** | wrong |" in lines
    assert "| LSTM | 10 % | +2.0 % | 10.2 / 51.0 = **5.00×** | 10.2 / 102 = **10.00×** | – |" in lines


def test_a_quick_run_writes_results_that_the_report_can_show(tmp_path):
    path = tmp_path / "resets-cpu.json"
    resets.main(["--quick", "--cells", "gru_reset_after", "--backend", "reference", "--out", str(path)])
    (result,) = report.load_results("resets", tmp_path)
    assert {(r["share"], r["mode"], r["candidate"]) for r in result["times"]} == {
        (share, mode, name) for share in (0, 10) for mode in MODES for name in TITLES
    }
    assert all(r["median_ms"] > 0 for r in result["times"])
    assert "| 10 % |" in report.block("resets", [result])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--cells", "rnn"], "invalid choice: 'rnn'"),
        (["--threads", "100000", "--backend", "reference"], "--threads 100000 is too many"),
        (["--backend", "cuda"], "--backend cuda cannot run here"),
        (["--device", "tpu"], "--device tpu is unknown"),
    ],
    ids=["cell", "threads", "backend", "device"],
)
def test_wrong_input_ends_with_one_sentence_and_status_2(capsys, tmp_path, arguments, complaint):
    path = tmp_path / "resets.json"
    with pytest.raises(SystemExit) as stopped:
        common.run_command(lambda: resets.main([*arguments, "--out", str(path)]))
    assert stopped.value.code == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert complaint in sentence
    assert not path.exists()


def test_only_the_whole_of_it_goes_where_the_report_looks():
    chosen = {"part": ["--cells", "lstm"], "quick": ["--quick"], "threads": ["--threads", "2"]}
    for arguments in ([*parts, "--backend", "auto"] for parts in chosen.values()):
        options = resets.parse(arguments)
        assert resets.output_path(options, resets.plan_from(options)) == resets.ROOT / "runs" / "resets-cpu.json"
    options = resets.parse([])
    assert resets.output_path(options, resets.plan_from(options)) == report.RESULTS / "resets-cpu.json"
