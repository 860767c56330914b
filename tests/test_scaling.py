"""The scaling harness: what it measures is right, its findings are those of the numbers, the report hides nothing."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks import common, report
from benchmarks.scaling import __main__ as scaling
from benchmarks.scaling import timing
from benchmarks.scaling.findings import Curve, deviation, failures, leap, line
from benchmarks.scaling.sweeps import AXES, MODES, QUICK_SIZES, Plan
from benchmarks.speed.candidates import candidates
from benchmarks.speed.cases import CELLS, Case, Shape
from benchmarks.speed.ceilings import floor_ms, work
from benchmarks.speed.check import Bench
from benchmarks.speed.clock import HostClock, Reading

QUICK = Plan(cells=("multiplicative_gru",), backend="reference", quick=True, passes=1, rounds=2)
CEILINGS = {"product_float32_tflops": 0.1, "copy_tb_per_s": 0.01}


# What is measured -------------------------------------------------------------------------------------------


def test_a_sweep_changes_one_size_and_reaches_far():
    for sweep in Plan().sweeps():
        sizes = [[getattr(shape, axis) for axis in (*AXES, "input_size")] for shape in sweep.shapes]
        changed = [len(set(values)) > 1 for values in zip(*sizes)]
        expected = [axis == sweep.axis for axis in AXES]
        assert changed == [*expected, sweep.axis == "hidden_size"]  # I = H
        along = [getattr(shape, sweep.axis) for shape in sweep.shapes]
        assert along == sorted(set(along))
        assert along[-1] >= 8 * along[0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cell", CELLS)
def test_several_layers_are_compared_with_the_reference(cell, mode):
    shape = Shape("small", batch=2, input_size=5, hidden_size=4, steps=3, layers=3)
    bench, case = Bench(shape, torch.float32), Case(cell, shape, mode)
    for candidate in candidates(cell, "reference"):
        ready = bench.ready(candidate, case)
        assert not bench.error(candidate, ready).wrong, candidate.title
        assert sum("weight_hh" in name for name in ready.run()) == (3 if mode == "training" else 0)


def test_the_floor_is_the_longer_of_multiplying_and_moving():
    shape = Shape("small", batch=2, input_size=3, hidden_size=5, steps=7, layers=2)
    # a GRU's layers multiply each of 14 rows by 15·3 + 15·5 and 15·5 + 15·5 weights
    forward, training = Case("gru", shape, "forward"), Case("gru", shape, "training")
    assert work(forward) == (2 * 14 * (120 + 150), 14 * (3 + 5 + 5 + 5) + 120 + 150)
    assert work(training)[0] == 3 * work(forward)[0]
    assert floor_ms(forward, "float32", CEILINGS) == pytest.approx(4 * work(forward)[1] / 0.01e9)
    assert floor_ms(forward, "float32", {**CEILINGS, "copy_tb_per_s": 10}) == pytest.approx(7560 / 0.1e9)
    assert floor_ms(forward, "float32", {**CEILINGS, "copy_tb_per_s": None}) is None


def test_the_multiplicative_cells_have_their_modifier_in_the_floor():
    shape = Shape("small", batch=1, input_size=3, hidden_size=5, steps=1)
    assert work(Case("multiplicative_lstm", shape, "forward"))[0] == 2 * (20 * 3 + 20 * 5 + 3 * 3 + 3 * 5)


def test_a_wrong_candidate_and_one_that_raises_are_not_timed(monkeypatch):
    def spoiled(cell, backend):
        class Spoiled(torch.nn.LSTM):
            def forward(self, input):
                output, state = super().forward(input)
                return 1.001 * output, state

        class Greedy(torch.nn.LSTM):
            def forward(self, input):
                raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB\nand more")

        right, theirs = candidates(cell, backend)
        return right, replace(theirs, factor=1.0, build=Spoiled), replace(theirs, name="greedy", build=Greedy)

    monkeypatch.setattr(timing, "candidates", spoiled)
    plan = replace(QUICK, cells=("lstm",), axes=("batch",))
    records = timing.measure_sweep(plan.sweeps()[0], plan, HostClock(), timing.Pace(HostClock()), CEILINGS)
    assert len(records) == 3 * len(MODES) * len(QUICK_SIZES["batch"])
    for right, wrong, failed in zip(records[::3], records[1::3], records[2::3]):
        assert right["median_ms"] > 0
        assert right["rounds"] == 2
        assert "is off by" in wrong["wrong"]
        assert failed["failed"] == "OutOfMemoryError: Tried to allocate 20.00 GiB"
        assert "median_ms" not in wrong.keys() | failed.keys()


def test_times_do_not_depend_on_the_pace_of_the_machine():
    class Slowing(HostClock):
        ms = 1.0

        def time(self, call):
            return Reading(self.ms, self.ms)

    clock = Slowing()
    pace, entry = timing.Pace(clock), timing.Entry({}, SimpleNamespace(run=dict))
    for clock.ms in (1.0, 2.0, 4.0):
        timing.time_in_turn([entry], replace(QUICK, warm_up=0, rounds=1), clock, pace)
    assert entry.times == [1.0, 1.0, 1.0]
    assert entry.paces == [1.0, 0.5, 0.25]


def test_sweeps_without_time_are_recorded_as_skipped():
    first, *rest = timing.measure(replace(QUICK, minutes=1e-9))
    assert first["ceilings"]["copy_tb_per_s"] > 0
    assert [part["skipped"]["axis"] for part in rest] == list(AXES)
    assert {part["skipped"]["reason"] for part in rest} == {"the 0 s of the run were over"}


# The findings -----------------------------------------------------------------------------------------------


def curve(sizes: list[int], ms: list[float], flops: list[int] | None = None, **names: str) -> Curve:
    names = {"cell": "lstm", "axis": "steps", "mode": "training", "candidate": "fused", "title": "fused_rnn", **names}
    return Curve(**names, sizes=sizes, ms=ms, flops=flops or sizes, shares=[None] * len(sizes))


def test_a_straight_line_is_found_and_a_bend_is_measured():
    straight = curve([1, 10, 100, 1000], [5 + 2 * size for size in (1, 10, 100, 1000)])
    assert line(straight) == pytest.approx((5, 2))
    assert deviation(straight) == pytest.approx(0, abs=1e-9)
    bent = curve([1, 10, 100, 1000], [7, 25, 205, 4010])
    assert deviation(bent) > 0.3
    assert deviation(curve([1, 2], [1, 9])) is None  # any two points lie on a line


def test_the_greatest_leap_is_where_a_unit_of_work_becomes_dearer():
    found = leap(curve([1, 2, 4, 8], [1.0, 1.5, 7.5, 15.0]))
    assert (found.smaller, found.larger) == (2, 4)
    assert found.ratio == pytest.approx(2.5)
    assert found.cliff
    assert not leap(curve([1, 2, 4], [1.0, 1.5, 2.5])).cliff
    assert leap(curve([64, 128], [1.0, 4.0], flops=[1, 4])).ratio == 1  # in H work grows with the square
    assert leap(curve([1], [1.0])) is None


def record(axis: str, value: int, ms: float | None, candidate: str = "fused", **values) -> dict:
    title = {"fused": "fused_rnn", "torch": "torch.nn.LSTM"}[candidate]
    found = {"cell": "lstm", "axis": axis, "value": value, "mode": "training", "candidate": candidate, "title": title}
    return found | {"flops": value, "floor_ms": 0.25} | ({"median_ms": ms, "spread_ms": 0.0} if ms else {}) | values


def example(*records: dict, **values) -> dict:
    return {
        "file": "scaling-cpu",
        "date": "2026-01-02T03:04:05+00:00",
        "hardware": {**common.hardware(), "threads": 1},
        "plan": {"backend": "cpu", "device": "cpu", "dtype": "float32", "passes": 3},
        "base": {"steps": 64, "batch": 16, "hidden_size": 128, "layers": 1},
        "ceilings": CEILINGS,
        "records": list(records),
        "skipped": [],
        **values,
    }


STEADY = [record("steps", size, ms) for size, ms in ((1, 1.0), (2, 2.0), (4, 4.0))]
STEADY += [record("hidden_size", size, 1.0 * size) for size in (1, 2)]


def test_the_report_says_where_everything_holds():
    block = report.block("scaling", [example(*STEADY)])
    assert "as at the next smaller size." in block
    assert "| LSTM | training | fused_rnn | 0% | 1.00× (1 to 2) | 1.00× (1 to 2) |" in block
    assert "products at 100 GFLOP/s and copies at 10.0 GB/s" in block
    assert "](results/scaling-cpu-floor.svg)" in block


def test_the_report_shows_every_failure():
    theirs = [record("batch", size, ms, "torch") for size, ms in ((1, 1.0), (2, 9.0))]
    bent = [record("steps", 8, 20.0), record("batch", 1, 1.0), record("batch", 2, 5.0)]
    lost = [record("layers", 1, None, wrong="output is off"), record("layers", 2, None, "torch", failed="no memory")]
    skipped = {"cell": "gru", "axis": "layers", "reason": "the 9 s of the run were over"}
    result = example(*STEADY, *theirs, *bent, *lost, skipped=[skipped])
    found = failures(result)
    assert len(found) == 6
    assert "time against T is off a straight line by" in found[0]
    assert found[1:] == [
        "lstm, training: from T=4 to 8 a unit of work costs 2.50 times as much",
        "lstm, training: from B=1 to 2 a unit of work costs 2.50 times as much",
        "lstm, training, fused_rnn, layers=1: output is off",
        "lstm, training, torch.nn.LSTM, layers=2: no memory",
        "gru against layers was skipped: the 9 s of the run were over",
    ]
    block = report.block("scaling", [result])
    assert "as at the next smaller size, but for this:" in block
    assert all(f"- {sentence}" in block.splitlines() for sentence in found)


# The command ------------------------------------------------------------------------------------------------


def test_a_quick_run_writes_results_that_the_report_can_show(tmp_path):
    path = tmp_path / "scaling-cpu.json"
    scaling.main(["--quick", "--cells", "gru", "--backend", "reference", "--out", str(path)])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    (result,) = report.load_results("scaling", tmp_path)
    assert result["hardware"]["threads"] == 1
    assert {(r["axis"], r["value"]) for r in result["records"]} == {
        (axis, v) for axis in AXES for v in QUICK_SIZES[axis]
    }
    assert {r["candidate"] for r in result["records"]} == {"fused", "torch", "eager"}
    assert all(r["median_ms"] > 0 and r["floor_ms"] > 0 for r in result["records"])
    report.draw(tmp_path)
    shown = report.block("scaling", [result])
    for name in (*AXES.values(), "floor"):
        assert f"](results/scaling-cpu-{name}.svg)" in shown
        assert (tmp_path / f"scaling-cpu-{name}.svg").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--cells", "elman"], "invalid choice: 'elman'"),
        (["--axes", "width"], "invalid choice: 'width'"),
        (["--dtype", "float64"], "invalid choice: 'float64'"),
        (["--minutes", "0"], "must be a finite number above 0"),
        (["--threads", "0"], "must be at least 1"),
        (["--threads", "100000", "--backend", "reference"], "--threads 100000 is too many"),
        (["--device", "tpu"], "--device tpu is unknown"),
        (["--device", "cuda:99"], "--device cuda:99 is not there"),
        (["--backend", "cuda"], "--backend cuda cannot run here"),
    ],
    ids=["cell", "axis", "dtype", "minutes", "no thread", "threads", "device", "absent", "backend"],
)
def test_wrong_input_ends_with_one_sentence_and_status_2(capsys, tmp_path, arguments, complaint):
    path = tmp_path / "scaling.json"
    with pytest.raises(SystemExit) as stopped:
        common.run_command(lambda: scaling.main([*arguments, "--out", str(path)]))
    assert stopped.value.code == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert complaint in sentence
    assert not path.exists()


def test_only_the_whole_of_it_goes_where_the_report_looks():
    chosen = {"whole": [], "bfloat16": ["--dtype", "bfloat16"], "part": ["--axes", "steps"], "quick": ["--quick"]}
    paths = {}
    for name, arguments in chosen.items():
        options = scaling.parse([*arguments, "--backend", "reference"])
        paths[name] = scaling.output_path(options, replace(scaling.plan_from(options), backend=Plan.backend))
    assert paths == {
        "whole": report.RESULTS / "scaling-cpu.json",
        "bfloat16": report.RESULTS / "scaling-cpu-bfloat16.json",
        "part": scaling.ROOT / "runs" / "scaling-cpu.json",
        "quick": scaling.ROOT / "runs" / "scaling-cpu.json",
    }
