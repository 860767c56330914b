"""What documents show of GPU results: who is faster, every number of the files, and whether kernels changed since."""

from itertools import product

import pytest

from benchmarks import common, report
from benchmarks.gpu import machine, points
from benchmarks.gpu import report as gpu_report
from benchmarks.gpu.choice import family, results
from benchmarks.gpu.choice import report as choice_report
from benchmarks.gpu.micro import MEASUREMENTS
from benchmarks.gpu.micro import report as micro_report
from benchmarks.gpu.points import GROUPS


def example(**changes) -> dict:
    def record(candidate, title, **values):
        return {"candidate": candidate, "title": title, **values}

    fused, cudnn, loop = ("cuda", "fused_rnn, cuda"), ("torch", "torch.nn.LSTM"), ("eager", "eager loop")
    times = [record(*fused, mode="forward", us_per_step=0.8), record(*cudnn, mode="forward", us_per_step=2.0)]
    times += [record(*loop, mode="forward", us_per_step=40.0), record(*fused, mode="training", wrong="it is off")]
    memory = [record(*fused, peak_bytes=3 << 20), record(*loop, peak_bytes=9 << 20)]
    hidden, batch = points.MAIN_SIZES[0]
    point = {"cell": "lstm", "dtype": "bfloat16", "hidden": hidden, "batch": batch, "steps": 256}
    return {
        "file": "gpu-a-gpu",
        "date": "2026-01-02T03:04:05+00:00",
        "hardware": {**common.hardware(), "gpu": "A GPU", "cudnn": 90000, "state": {"driver_version": "580.1"}},
        "plan": {"rounds": 30, "clock": "CUDA events", "cold": "caches are cold"},
        "ceilings": {"product_bfloat16_tflops": 790.0, "copy_tb_per_s": 4.3, "launch_us": 4.0},
        "points": [{**point, "times": times, "memory": memory}, {**point, "hidden": 64, "skipped": "no time"}],
        **changes,
    }


def with_times(*times: tuple, **point) -> dict:
    """A point of the example with these records: mode, candidate, title and what else there is."""
    named = [{"mode": mode, "candidate": name, "title": title, **values} for mode, name, title, values in times]
    return {**example()["points"][0], "times": named, "memory": [], **point}


CUDA, CUDNN = ("cuda", "fused_rnn, cuda"), ("torch", "torch.nn.LSTM")


def test_the_report_shows_times_ratios_and_memory():
    lines = gpu_report.block([example()]).splitlines()
    sizes = "LSTM | bfloat16 | H=512 B=64 T=256"
    assert "| cell | dtype | sizes | cuda | torch.nn | eager loop |" in lines
    assert f"| {sizes} | 0.800 | 2.00 = **2.50×** | 40.0 = **50.00×** |" in lines
    assert "| cell | dtype | sizes | cuda | eager loop |" in lines
    assert f"| {sizes} | 3.00 | 9.00 = **3.00×** |" in lines
    assert "**Forward, µs per step**" in lines
    assert not any("Training" in line for line in lines)  # wrong, and so not timed
    (measured,) = (line for line in lines if line.startswith("Measured"))
    assert "A GPU, driver 580.1" in measured
    assert "Points skipped for lack of time: 1." in measured


def test_the_report_says_plainly_who_is_faster_and_by_how_much():
    ahead = with_times(
        *(("forward", *CUDA, {"us_per_step": 2.0}), ("forward", *CUDNN, {"us_per_step": 5.0})),
        *(("training", *CUDA, {"us_per_step": 4.0}), ("training", *CUDNN, {"us_per_step": 12.0})),
    )
    behind = with_times(
        *(("forward", *CUDA, {"us_per_step": 5.0}), ("forward", *CUDNN, {"us_per_step": 2.0})),
        *(("training", *CUDA, {"us_per_step": 4.0}), ("training", *CUDNN, {"us_per_step": 8.0})),
        hidden=128,
        batch=16,
        layers=2,
    )
    other_equations = {**behind, "cell": "gru"}
    lines = gpu_report.block([example(points=[ahead, behind, other_equations])]).splitlines()
    assert [line for line in lines if line.startswith("- ")] == [
        "- bfloat16: **torch.nn is faster** at LSTM H=128 B=16 T=256 2 layers (forward 2.50 times).",
        "- bfloat16: elsewhere the fused cells are 2.00 to 3.00 times as fast as torch.nn.",
    ]


def test_the_report_compares_with_the_fastest_backend_without_options():
    point = with_times(
        ("forward", "cuda", "fused_rnn, cuda", {"us_per_step": 3.0}),
        ("forward", "triton", "fused_rnn, triton", {"us_per_step": 2.0}),
        ("forward", "triton-padded", "fused_rnn, triton, padded", {"us_per_step": 1.0}),
        ("forward", *CUDNN, {"us_per_step": 4.0}),
    )
    lines = gpu_report.block([example(points=[point])]).splitlines()
    assert any(line.endswith("| 3.00 = **1.50×** | 2.00 | 1.00 = **0.50×** | 4.00 = **2.00×** |") for line in lines)
    assert "- bfloat16: the fused cells are 2.00 times as fast as torch.nn." in lines


def test_the_report_has_a_column_of_host_time_only_where_it_was_measured():
    point = with_times(
        ("forward", *CUDA, {"us_per_step": 2.0, "host_us_per_call": 200.0}),
        ("forward", *CUDNN, {"us_per_step": 2.0, "host_us_per_call": 50.0}),
        ("forward", "eager", "eager loop", {"us_per_step": 2.0}),
    )
    lines = gpu_report.block([example(points=[point])]).splitlines()
    assert "**Time that the host is busy with a forward call, µs**" in lines
    assert any(line.endswith("| 200 | 50.0 = **0.25×** |") for line in lines)
    host = "- the host is busy with a forward call of the fused cells for 200 µs, with one of torch.nn for 50.0."
    assert host in lines
    assert "host" not in gpu_report.block([example()])


def test_the_report_shows_groups_by_themselves():
    shown = [{**example()["points"][0], "group": group} for group in ("rivals", "honest")]
    text = gpu_report.block([example(points=shown)])
    honest, rivals = (text.index(f"<summary>{gpu_report.TITLES[group]}</summary>") for group in ("honest", "rivals"))
    assert honest < rivals
    assert set(gpu_report.TITLES) == {*GROUPS, points.CHOSEN}


def test_the_report_of_cells_without_a_rival_has_no_empty_paragraph():
    text = gpu_report.block([example(points=[{**example()["points"][0], "cell": "gru"}])])
    assert "\n\n\n" not in text
    assert "- bfloat16" not in text


def test_the_report_says_when_kernels_have_changed_since(tmp_path, capsys):
    digests = machine.digests()
    same, changed = example(digests=digests), example(digests={**digests, "kernels": "0" * 64})
    assert gpu_report.OTHER_KERNELS not in gpu_report.block([same])
    assert gpu_report.OTHER_KERNELS in gpu_report.block([changed])
    for name, kinds in report.DOCUMENTS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("".join(f"{report.begin(kind)}{report.end(kind)}\n" for kind in kinds))
    for name, result in {"same": same, "changed": changed}.items():
        common.write_json(tmp_path / f"gpu-{name}.json", result)
    for name, digest in {"same": family.digest(), "changed": "0" * 64}.items():
        common.write_json(tmp_path / f"choice-{name}.json", compared(digests={"family": digest}))
    report.main(tmp_path, tmp_path)
    said = [line for line in capsys.readouterr().out.splitlines() if "other kernels" in line]
    others = "was measured with other kernels than those here, and the table says so"
    assert said == [f"gpu-changed.json {others}", f"choice-changed.json {others}"]
    assert (tmp_path / "benchmarks/README.md").read_text().count(gpu_report.OTHER_KERNELS) == 2


def test_digests_are_those_of_the_sources_of_the_kernels(tmp_path):
    for folder in machine.KERNELS:
        (tmp_path / folder).mkdir(parents=True)
    source = tmp_path / machine.KERNELS[0] / "cell.h"
    source.write_text("one")
    (tmp_path / "README.md").write_text("not a kernel")
    before = machine.digests(tmp_path)["kernels"]
    (tmp_path / "README.md").write_text("still not")
    assert machine.digests(tmp_path)["kernels"] == before
    source.write_text("two")
    assert machine.digests(tmp_path)["kernels"] != before


def test_results_that_were_measured_otherwise_say_how():
    text = gpu_report.block([example(method="by hand", plan={"clock": "CUDA events"})])
    assert "Measured on 2026-01-02 by hand: A GPU" in text
    assert "interleaved" not in text


def test_the_report_shows_the_kernels_alone_where_they_were_watched():
    parts = {"forward": 1.5, "backward": 2.25, "prepare": 0.01, "other": 0.3}
    point = {**example()["points"][0], "kernels_us_per_step": parts}
    lines = gpu_report.block([example(points=[point])]).splitlines()
    assert "| LSTM | bfloat16 | H=512 B=64 T=256 | 1.50 | 2.25 | 0.01 | 0.30 |" in lines


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


def test_the_report_draws_a_picture_for_each_dtype(tmp_path):
    common.write_json(tmp_path / "gpu-a-gpu.json", example())
    report.draw(tmp_path)
    assert (tmp_path / "gpu-a-gpu-faster-bfloat16.svg").exists()
    assert "](results/gpu-a-gpu-faster-bfloat16.svg)" in report.block("gpu", [example()])


def test_the_report_says_where_nothing_was_measured(tmp_path):
    assert report.load_results("gpu", tmp_path) == []
    assert "Not yet run on a GPU." in report.block("gpu", [])


def compared(points: list[dict] | None = None, **changes) -> dict:
    """Results of kernels of clusters beside kernels of blocks, measured with the sources here."""
    return {
        "file": "choice-a-gpu",
        "date": "2026-01-02T03:04:05+00:00",
        "hardware": {"gpu": "A GPU", "torch": "2.0"},
        "digests": {"family": family.digest()},
        "points": [both(64, 16, (1, 2), (3, 4.5))] if points is None else points,
        **changes,
    }


def both(hidden: int, batch: int, cluster: tuple | str, blocks: tuple | str, **which: str | int) -> dict:
    """A point: µs forward and backward of each family, or why it has no times."""

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
