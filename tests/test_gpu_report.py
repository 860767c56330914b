"""What the README shows of GPU results: who is faster, every number of the files, and whether kernels changed since."""

from benchmarks import common, report
from benchmarks.gpu import machine, points
from benchmarks.gpu import report as gpu_report
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
    readme = tmp_path / "README.md"
    readme.write_text("".join(f"{report.begin(kind)}{report.end(kind)}\n" for kind in report.BLOCKS))
    for name, result in {"same": same, "changed": changed}.items():
        common.write_json(tmp_path / f"gpu-{name}.json", result)
    report.main(readme, tmp_path)
    said = [line for line in capsys.readouterr().out.splitlines() if "other kernels" in line]
    assert said == ["gpu-changed.json was measured with other kernels than those here, and the table says so"]


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
    assert "](benchmarks/results/gpu-a-gpu-faster-bfloat16.svg)" in report.block("gpu", [example()])


def test_the_report_says_where_nothing_was_measured(tmp_path):
    assert report.load_results("gpu", tmp_path) == []
    assert "Not yet run on a GPU." in report.block("gpu", [])
