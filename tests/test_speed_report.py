"""The report of the speed on a CPU: the measured ratios, the growth of cost, and nothing hidden."""

from dataclasses import replace

import pytest

from benchmarks import report
from benchmarks.speed.cases import AXES, MODES, Case, Shape
from benchmarks.speed.findings import CLIFF, Curve, deviation, failures, leap, line
from benchmarks.speed.plan import SHAPES, episodic, filled
from benchmarks.speed.records import Results

from .results import measured, results

TRAINING = Case("lstm", SHAPES["a"], "training")
CEILINGS = {"threads": 1, "product_float32_tflops": 0.1, "copy_tb_per_s": 0.01}


def lines(kind: str, *cases: dict, **changes: object) -> list[str]:
    return report.block(kind, [results(kind, *cases, **changes)]).splitlines()


# Tables ---------------------------------------------------------------------------------------------------------


def test_the_report_divides_medians():
    assert "| LSTM | 1 | torch.nn.LSTM | 12.5 / 50.0 = **4.00×** |" in lines(
        "speed", measured(TRAINING, fused=12.5, torch=50.0)
    )


def test_the_report_begins_with_the_least_and_the_greatest_ratio():
    first = measured(TRAINING, fused=12.5, torch=50.0)
    second = measured(TRAINING, threads=2, memory={"fused": 3.0, "torch": 9.0}, fused=10.0, torch=9.0)
    shown = lines("speed", first, second)
    assert "| cell | compared with | training | memory, training |" in shown
    assert "| LSTM | torch.nn.LSTM | 0.90 to 4.00× | 3.00× |" in shown


def test_a_gradient_of_the_last_output_alone_has_a_table_of_its_own():
    last = measured(replace(TRAINING, shape=SHAPES["e"]), fused=10.0, torch=90.0)
    shown = lines("speed", measured(TRAINING, fused=12.5, torch=50.0), last)
    assert "| cell | compared with | training | training from the last output |" in shown
    assert "| LSTM | torch.nn.LSTM | 4.00× | 9.00× |" in shown
    assert {"| cell | threads | other | (a) |", "| cell | threads | other | (e) |"} <= set(shown)


@pytest.mark.parametrize("problem", ["wrong", "failed"])
def test_the_report_says_where_a_candidate_was_not_timed(problem):
    shown = lines("speed", measured(TRAINING, fused={problem: "output is off"}, torch=50.0))
    assert f"| LSTM | torch.nn.LSTM | {problem} |" in shown
    assert f"| LSTM | 1 | torch.nn.LSTM | {problem} |" in shown


def test_the_report_sets_times_beside_the_floor():
    cases = measured(TRAINING, fused=12.5, torch=50.0)
    text = "\n".join(lines("speed", cases, ceilings=[CEILINGS]))
    flops = 6 * 32 * 200 * 512 * (11 + 128)
    row = f"| LSTM | 1 | torch.nn.LSTM | {flops / 0.1e9 / 12.5:.0%} / {flops / 0.1e9 / 50:.0%} |"
    assert row in text.splitlines()
    assert "1: products at 100 GFLOP/s, copies at 10.0 GB/s" in text
    assert "](results/speed-resident-floor.svg)" in text
    assert "floor" not in "\n".join(lines("speed", cases))  # if ceilings were not measured


def test_the_report_shows_all_rivals_as_multiples_of_the_fused_time():
    shown = lines("rivals", measured(TRAINING, fused=12.5, torch=50.0, script=8.0, compiled="output is off"))
    assert "| | threads | fused | torch.nn | TorchScript | torch.compile |" in shown
    assert "| LSTM, (a) training | 1 | 12.5 | 50.0 = **4.00×** | 8.00 = **0.64×** | wrong |" in shown


# Sequences of different lengths -----------------------------------------------------------------------------------


def test_the_report_shows_what_fills_cost():
    def fill(name: str, mode: str, **found) -> dict:
        return measured(Case("lstm", filled(name), mode, group="fills"), **found)

    memory = {"packed": 3.0, "lengths": 6.0, "torch": 1.5}
    cases = [fill("1 %", "training", memory=memory, packed=2.0, lengths=4.0, torch=5.0)]
    cases += [fill("1 %", "forward", packed=2.0, lengths=4.0, torch=5.0)]
    cases += [fill("10 %", "training", packed="is off", lengths="is off", torch="is off")]
    cases += [fill("10 %", "forward", torch=7.0)]
    cases += [fill("100 %", mode, packed=100.0, lengths=50.0, torch=125.0) for mode in MODES]
    shown = lines("fills", *cases)
    assert "| Time at 1 % fill, of that at 100 % | | packed | padded with `lengths` | torch.nn, packed |" in shown
    assert "| LSTM | training | 2.00 % | 8.00 % | 4.00 % |" in shown
    assert "| 1 % | 801 | 2.00 / 5.00 = **2.50×** | 4.00 / 5.00 = **1.25×** |" in shown
    assert "| 100 % | 80000 | 100 / 125 = **1.25×** | 50.0 / 125 = **2.50×** |" in shown
    rows = sum(filled("10 %").lengths)
    assert f"| 10 % | {rows} | wrong | wrong |" in shown
    assert f"| 10 % | {rows} | – | – |" in shown
    assert "| 1 % | 3.00 / 1.50 = **0.50×** | 6.00 / 1.50 = **0.25×** |" in shown


# Episodes within sequences ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "origin"),
    [("cpu", "with `python -m it`: A CPU, threads: 1, torch"), ("cuda", "with `python -m it`: A GPU, torch")],
)
def test_the_report_shows_what_resets_cost(device, origin):
    def share(name: str, mode: str, **found) -> dict:
        return measured(Case("lstm", episodic(name), mode, group="resets"), **found)

    ms = {"resets": 10.2, "without": 10.0, "steps": 51.0, "split": 102.0}
    cases = [share("10 %", "training", **ms, packed="is off"), share("10 %", "forward", **ms)]
    cases += [share("1 %", "training", **{**ms, "without": "is off"})]
    found = results("resets", *cases)
    found["hardware"] |= {"cpu": "A CPU", "gpu": "A GPU"}
    found["plan"] |= {"device": device}
    shown = report.block("resets", [found]).splitlines()
    ratios = "10.2 / 51.0 = **5.00×** | 10.2 / 102 = **10.00×**"
    assert f"| LSTM | 10 % | +2.0 % | {ratios} | wrong |" in shown
    assert f"| LSTM | 10 % | +2.0 % | {ratios} | – |" in shown
    assert f"| LSTM | 1 % | wrong | {ratios} | – |" in shown
    assert "| LSTM | 1 % | – | – | – | – |" in shown
    assert any(origin in line for line in shown)


# How cost grows ---------------------------------------------------------------------------------------------------


def curve(sizes: list[int], ms: list[float], flops: list[int] | None = None) -> Curve:
    names = {"cell": "lstm", "axis": "steps", "mode": "training", "candidate": "fused", "title": "fused_rnn"}
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
    assert found.ratio > CLIFF > leap(curve([1, 2, 4], [1.0, 1.5, 2.5])).ratio
    assert leap(curve([64, 128], [1.0, 4.0], flops=[1, 4])).ratio == 1  # work grows with the square of H
    assert leap(curve([1], [1.0])) is None


def grown(axis: str, size: int, cell: str = "lstm", **found) -> dict:
    sizes = {"steps": 64, "batch": 16, "hidden_size": 128, axis: size}
    shape = Shape(f"{AXES[axis]}={size}", input_size=sizes["hidden_size"], **sizes)
    return measured(Case(cell, shape, "training", group=axis), **found)


STEADY = [grown("steps", size, fused=1.0 * size) for size in (1, 2, 4)]
STEADY += [grown("hidden_size", size, fused=1.0 * size**2) for size in (1, 2)]


def test_the_report_says_where_everything_holds():
    block = "\n".join(lines("scaling", *STEADY, ceilings=[CEILINGS]))
    assert "as at the next smaller size." in block
    assert "| LSTM | training | fused_rnn | 0% | 1.00× (1 to 2) | 1.00× (1 to 2) |" in block
    assert "products at 100 GFLOP/s and copies at 10.0 GB/s" in block
    assert "](results/scaling-cpu-floor.svg)" in block


def test_the_report_shows_every_failure():
    cases = [*STEADY, grown("steps", 8, fused=20.0)]
    cases += [grown("batch", 1, fused=1.0, torch=1.0), grown("batch", 2, fused=5.0, torch=9.0)]
    cases += [grown("layers", 1, fused="output is off"), grown("layers", 2, torch={"failed": "no memory"})]
    cases += [{**grown("layers", 3), "failed": "no exact results"}]
    cases += [{**grown("layers", size, "gru"), "skipped": "the 9 s of the run were over"} for size in (1, 2)]
    result = results("scaling", *cases, ceilings=[CEILINGS])
    found = failures(Results(result))
    assert "time against T is off a straight line by" in found[0]
    assert found[1:] == [
        "lstm, training: from T=4 to 8 a unit of work costs 2.50 times as much",
        "lstm, training: from B=1 to 2 a unit of work costs 2.50 times as much",
        "lstm, training, fused_rnn, layers=1: output is off",
        "lstm, training, torch.nn.LSTM, layers=2: no memory",
        "lstm, training, layers=3: no exact results",
        "gru against layers was skipped: the 9 s of the run were over",
    ]
    block = report.block("scaling", [result])
    assert "as at the next smaller size, but for this:" in block
    assert all(f"- {sentence}" in block.splitlines() for sentence in found)
