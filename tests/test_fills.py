"""The benchmark of fills: lengths that fill what they should, ways that compute the same, a report of the results."""

import pytest
import torch

from benchmarks import common, report
from benchmarks.fills import __main__ as fills
from benchmarks.fills.cases import CELLS, MODES, OURS, THEIRS, Plan, lengths_that_fill, ways
from benchmarks.speed.cases import Case
from benchmarks.speed.check import Bench


@pytest.mark.parametrize("fill", Plan().fills)
def test_lengths_fill_what_they_should(fill):
    plan = Plan()
    lengths = plan.shape(fill).lengths
    assert list(lengths) == sorted(lengths, reverse=True)
    assert (len(lengths), lengths[0]) == (plan.batch, plan.steps)
    assert min(lengths) >= 1
    assert sum(lengths) == pytest.approx(fill / 100 * plan.steps * plan.batch, rel=0.01)


def test_no_more_is_filled_than_has_to_be():
    assert lengths_that_fill(0.0, 10, 4) == (10, 1, 1, 1)
    assert lengths_that_fill(1.0, 10, 4) == (10,) * 4


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cell", CELLS)
def test_every_way_computes_what_the_reference_does(cell, mode):
    shape = Plan(steps=20, batch=10, size=6).shape(25)
    bench, case = Bench(shape, torch.float32), Case(cell, shape, mode)
    found = ways(case, "reference")
    assert [way.name for way in found] == [*OURS, THEIRS]
    for way in found:
        error = bench.error(way, bench.ready(way, case))
        assert not error.wrong, f"{way.title}: {error}"


def record(candidate: str, fill: int, **values) -> dict:
    title = {
        "packed": "fused_rnn, packed",
        "lengths": "fused_rnn, padded with lengths",
        "torch": "torch.nn.LSTM, packed",
    }
    return {"cell": "lstm", "shape": f"{fill} %", "candidate": candidate, "title": title[candidate], **values}


def example() -> dict:
    ms = {("packed", 1): 2.0, ("lengths", 1): 4.0, ("torch", 1): 5.0}
    ms |= {("packed", 100): 100.0, ("lengths", 100): 50.0, ("torch", 100): 125.0}
    return {
        "file": "fills-cpu",
        "date": "2026-01-02T03:04:05+00:00",
        "hardware": {**common.hardware(), "threads": 1},
        "allocator": {"name": "resident"},
        "plan": {"cells": ["lstm"], "fills": [1, 10, 100], "backend": "cpu", "dtype": "float32", "rounds": 5}
        | {"batch": 200, "steps": 400, "size": 64},
        "times": [
            record(name, fill, mode=mode, rows=800 * fill, median_ms=value)
            for mode in MODES
            for (name, fill), value in ms.items()
        ]
        + [record(name, 10, mode="training", rows=8000, wrong="output is off") for name in (*OURS, THEIRS)]
        + [record("torch", 10, mode="forward", rows=8000, median_ms=7.0)],
        "memory": [
            record(name, 1, peak_mib=size) for name, size in (("packed", 3.0), ("lengths", 6.0), ("torch", 1.5))
        ],
    }


def test_the_report_shows_what_was_measured():
    lines = report.block("fills", [example()]).splitlines()
    assert "| Time at 1 % fill, of that at 100 % | | packed | padded with `lengths` | torch.nn, packed |" in lines
    assert "| LSTM | training | 2.00 % | 8.00 % | 4.00 % |" in lines
    assert "| 1 % | 800 | 2.00 / 5.00 = **2.50×** | 4.00 / 5.00 = **1.25×** |" in lines
    assert "| 100 % | 80000 | 100 / 125 = **1.25×** | 50.0 / 125 = **2.50×** |" in lines
    assert "| 10 % | 8000 | wrong | wrong |" in lines
    assert "| 10 % | 8000 | – | – |" in lines
    assert "| 1 % | 3.00 / 1.50 = **0.50×** | 6.00 / 1.50 = **0.25×** |" in lines


def test_a_quick_run_writes_results_that_the_report_can_show(tmp_path):
    path = tmp_path / "fills-cpu.json"
    fills.main(["--quick", "--cells", "lstm", "--backend", "reference", "--out", str(path)])
    (result,) = report.load_results("fills", tmp_path)
    assert {(r["shape"], r["mode"], r["candidate"]) for r in result["times"]} == {
        (f"{fill} %", mode, name) for fill in (20, 100) for mode in MODES for name in (*OURS, THEIRS)
    }
    assert all(r["median_ms"] > 0 for r in result["times"])
    assert [(r["shape"], r["candidate"]) for r in result["memory"]] == [("20 %", name) for name in (*OURS, THEIRS)]
    assert "| LSTM | forward |" in report.block("fills", [result])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--cells", "rnn"], "invalid choice: 'rnn'"),
        (["--threads", "100000", "--backend", "reference"], "--threads 100000 is too many"),
        (["--backend", "cuda"], "--backend cuda cannot run here"),
    ],
    ids=["cell", "threads", "backend"],
)
def test_wrong_input_ends_with_one_sentence_and_status_2(capsys, tmp_path, arguments, complaint):
    path = tmp_path / "fills.json"
    with pytest.raises(SystemExit) as stopped:
        common.run_command(lambda: fills.main([*arguments, "--out", str(path)]))
    assert stopped.value.code == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert complaint in sentence
    assert not path.exists()


def test_only_the_whole_of_it_goes_where_the_report_looks():
    chosen = {"whole": [], "part": ["--cells", "lstm"], "quick": ["--quick"], "threads": ["--threads", "2"]}
    paths = {name: fills.output_path(*plan_of(arguments)) for name, arguments in chosen.items()}
    runs = fills.ROOT / "runs" / "fills-cpu.json"
    assert paths == {"whole": report.RESULTS / "fills-cpu.json", "part": runs, "quick": runs, "threads": runs}


def plan_of(arguments: list[str]):
    options = fills.parse(arguments)
    return options, fills.plan_from(options)
