"""The README's blocks on warp kernels beside block kernels, and on the micro-measurements."""

from itertools import product

import pytest

from benchmarks import common
from benchmarks.gpu.choice import family, results
from benchmarks.gpu.choice import report as choice_report
from benchmarks.gpu.micro import MEASUREMENTS
from benchmarks.gpu.micro import report as micro_report


def test_the_report_shows_a_few_of_the_micro_measurements():
    names = {name for _, name, _ in micro_report.ROWS}
    assert names <= set(MEASUREMENTS)
    records = [{"name": "counter_barrier", "blocks": blocks, "unit": "us", "median": blocks / 8} for blocks in (2, 8)]
    device = {"device": "A GPU", "multiprocessors": 99, "clock_khz": 1_500_000}
    result = {"date": "2026-01-02T03", "command": "python -m it", "device": device, "records": records}
    lines = micro_report.block([result]).splitlines()
    assert "| barrier of 2 / 8 / 16 / 128 blocks at a counter | 0.250 / 1.00 / – / – µs |" in lines
    assert any("2026-01-02 with `python -m it`: A GPU, 99 multiprocessors, 1.50 GHz" in line for line in lines)
    assert micro_report.block([]) == "Not yet run on a GPU."


def compared(points: list[dict] | None = None, **changes) -> dict:
    """Return results of cluster kernels beside block kernels, measured with the sources here."""
    return {
        "file": "choice-a-gpu",
        "date": "2026-01-02T03:04:05+00:00",
        "hardware": {"gpu": "A GPU", "torch": "2.0"},
        "digests": {"family": family.digest()},
        "points": [both(64, 16, (1, 2), (3, 4.5))] if points is None else points,
        **changes,
    }


def both(hidden: int, batch: int, cluster: tuple | str, blocks: tuple | str, **which: str | int) -> dict:
    """Return a point: µs forward and backward of each family, or why it has no times."""

    def side(times: tuple | str) -> dict:
        if isinstance(times, str):
            return {"failed": times}
        readings = {name: {"us_per_step": us} for name, us in zip(("forward", "backward"), times)}
        return {"error": {"relative": 0.001, "allowed": 0.002}, **readings}

    kind = {"cell": "lstm", "dtype": "bfloat16", **which}
    return {**kind, "hidden": hidden, "batch": batch, "steps": 99, "cluster": side(cluster), "blocks": side(blocks)}


def bullets(*points: dict) -> list[str]:
    return [line for line in choice_report.block([compared(list(points))]).splitlines() if line.startswith("- ")]


def test_the_report_has_a_table_of_one_cell_in_clusters_and_a_line_for_each_other():
    points = [
        both(512, 64, (2.344, 1.656), (5, 5)),
        both(64, 16, (0.5, 0.5), (1.5, 2.0)),
        both(64, 64, (0.5, 0.7), "no memory"),
        both(100, 16, (3, 4), (3, 3)),  # values travel one by one
        both(512, 16, (1, 1), (1, 1), dtype="float16"),
        both(64, 1, (1, 1), (4, 4), cell="rnn_relu", dtype="float16"),
        {**both(64, 1, (1, 1), (4, 4)), "skipped": "time was over"},
    ]
    lines = choice_report.block([compared(points)]).splitlines()
    assert lines[0] == choice_report.COMMON
    start = lines.index("| LSTM, bfloat16 | B=16 | B=64 |")
    assert lines[start + 1 : start + 5] == [
        "|---|---|---|",
        "| H=64 | 0.50 + 0.50 (3.50) | 0.50 + 0.70 (–) |",
        "| H=512 | – | 2.34 + 1.66 (2.50) |",
        "",
    ]
    assert lines[start + 5 :] == [
        "- LSTM, bfloat16: 0.857 to 3.50 times as fast, in the median 2.50; ahead at 2 of 4 points; "
        "behind at H=100 B=16 (0.857); without times at H=64 B=64, since no memory.",
        "- LSTM, float16: 1.00 times as fast, in the median 1.00; ahead at 0 of 1 points; behind at H=512 B=16 (1.00).",
        "- RNN, ReLU, float16: 4.00 times as fast, in the median 4.00; ahead at all 1 points.",
    ]
    (measured,) = (line for line in lines if line.startswith("Measured"))
    assert measured == (
        "Measured on 2026-01-02 with `python -m benchmarks.gpu.choice`: A GPU, torch 2.0, T=99. "
        "Points skipped for lack of time: 1."
    )
    assert choice_report.TITLES.keys() == set(results.CELLS)
    (missing,) = (line for line in lines if line.startswith("Not yet run on a GPU"))
    unmeasured = [f"`{cell}`" for cell in results.CELLS if cell != "lstm"]
    in_float16 = ", ".join(name for name in unmeasured if name != "`rnn_relu`")
    assert missing.endswith(f"blocks, in bfloat16: {', '.join(unmeasured)}; in float16: {in_float16}; in float32: all.")


def test_cells_that_were_not_run_are_named_by_the_dtypes_that_lack_them():
    everywhere = product(results.CELLS, results.DTYPES)
    points = [both(64, 16, (1, 2), (3, 4), cell=cell, dtype=dtype, input=8) for cell, dtype in everywhere]
    assert "Not yet run" not in choice_report.block([compared(points)])
    text = choice_report.block([compared([point for point in points if point["cell"] != "gru"])])
    assert " kernels of blocks, in bfloat16, float16, float32: `gru`.\n" in text


def test_points_of_a_modulated_input_are_named_with_their_features():
    (line,) = bullets(both(64, 16, (1, 1), (0.5, 0.5), cell="multiplicative_gru", input=8))
    assert line.startswith("- multiplicative GRU, bfloat16: 0.500 times")
    assert line.endswith("; behind at H=64 B=16 I=8 (0.500).")


def test_points_where_clusters_are_not_ahead_are_named_if_they_are_few():
    behind = [both(64, batch, (1, 1), (0.5, 0.5)) for batch in range(1, 6)]
    lost = [both(128, batch, "it hung", (1, 1)) for batch in range(1, 6)]
    few, many = bullets(*behind[:4], *lost[:4]), bullets(*behind, *lost)
    named = ", ".join(f"H=64 B={batch} (0.500)" for batch in range(1, 5))
    assert f"; behind at {named}; without times at H=128 B=1, H=128 B=2, H=128 B=3, H=128 B=4, since it hung." in few[0]
    assert many[0].endswith(
        "; ahead at 0 of 10 points; behind at 5 of them; without times at 5 of them, since it hung."
    )
    assert bullets(lost[0]) == ["- LSTM, bfloat16: ahead at 0 of 1 points; without times at H=128 B=1, since it hung."]


def test_every_chip_has_a_table_of_clusters_and_where_there_is_none_a_sentence():
    text = choice_report.block([compared(), compared(hardware={"gpu": "Another", "torch": "2.0"})])
    assert text.count("| H=64 | 1.00 + 2.00 (2.50) |") == 2
    assert text.index("**A GPU**") < text.index("**Another**")
    assert text.count(choice_report.COMMON) == 1
    other = compared([both(64, 16, (1, 2), (3, 4), cell="rnn_tanh")])
    assert "|" not in choice_report.block([other])
    assert "\n\n\n" not in choice_report.block([other])
    assert choice_report.block([]) == "Kernels of clusters beside kernels of blocks: not yet run on a GPU."


def test_malformed_results_of_clusters_are_refused_with_the_name_of_their_file():
    point = both(64, 16, (1, 2), (3, 4))
    del point["blocks"]
    with pytest.raises(
        common.InputError, match=r"choice-a-gpu.json holds no results of .*: points\[0\] lacks 'blocks'"
    ):
        choice_report.block([compared([point])])
