"""The documents' statements on GPU speed: who is faster, every number, and whether kernels have changed since."""

from dataclasses import replace

from benchmarks import common, report
from benchmarks.gpu import machine
from benchmarks.gpu.choice import family
from benchmarks.speed.cases import Case
from benchmarks.speed.plan import GROUPS, sized
from benchmarks.speed.report import gpu as gpu_report

from .results import POINT, measured, results, us

TRAINING = replace(POINT, mode="training")
FORWARD = measured(POINT, cuda=us(0.8), torch=us(2.0), eager=us(40.0))
WRONG = measured(TRAINING, memory={"cuda": 3.0, "eager": 9.0}, cuda="it is off", eager="it is off")
CEILINGS = {"threads": 1, "product_bfloat16_tflops": 790.0, "copy_tb_per_s": 4.3, "launch_us": 4.0}
CHOICE = {
    "date": "2026-01-02T03:04:05+00:00",
    "hardware": {"gpu": "A GPU", "torch": "2.0"},
    "points": [],
}


def lines(*cases: dict, **changes: object) -> list[str]:
    return gpu_report.block([results("gpu", *cases, **changes)]).splitlines()


def test_the_report_shows_times_ratios_and_memory():
    skipped = [
        {**replace(POINT, shape=sized(64, 64), mode=mode).record, "threads": 1, "skipped": "no time"}
        for mode in ("forward", "training")
    ]
    shown = lines(FORWARD, WRONG, *skipped, ceilings=[CEILINGS])
    sizes = "LSTM | bfloat16 | H=512 B=64 T=256"
    assert "| cell | dtype | sizes | cuda | torch.nn | eager loop |" in shown
    assert f"| {sizes} | 0.800 | 2.00 = **2.50×** | 40.0 = **50.00×** |" in shown
    assert "| cell | dtype | sizes | cuda | eager loop |" in shown
    assert f"| {sizes} | 3.00 | 9.00 = **3.00×** |" in shown
    assert "**Forward, µs per step**" in shown
    assert not any("Training" in line for line in shown)  # wrong, and so not timed
    (told,) = (line for line in shown if line.startswith("Measured"))
    assert "A GPU, driver 580.1" in told
    assert "bfloat16 products at 790 TFLOP/s, copies at 4.30 TB/s and 4.00 µs per launch." in told
    assert "Points skipped for lack of time: 1." in told


def test_the_report_says_plainly_who_is_faster_and_by_how_much():
    ahead = [measured(POINT, cuda=us(2.0), torch=us(5.0)), measured(TRAINING, cuda=us(4.0), torch=us(12.0))]
    shape = sized(128, 16, layers=2)
    behind = [
        measured(replace(POINT, shape=shape), cuda=us(5.0), torch=us(2.0)),
        measured(replace(TRAINING, shape=shape), cuda=us(4.0), torch=us(8.0)),
    ]
    other_equations = [{**case, "cell": "gru"} for case in behind]
    assert [line for line in lines(*ahead, *behind, *other_equations) if line.startswith("- ")] == [
        "- bfloat16: **torch.nn is faster** at LSTM H=128 B=16 T=256 2 layers (forward 2.50 times).",
        "- bfloat16: elsewhere the fused cells are 2.00 to 3.00 times as fast as torch.nn.",
    ]


def test_the_report_compares_with_the_fastest_backend_without_options():
    shown = lines(measured(POINT, cuda=us(3.0), triton=us(2.0), triton_padded=us(1.0), torch=us(4.0)))
    assert any(line.endswith("| 3.00 = **1.50×** | 2.00 | 1.00 = **0.50×** | 4.00 = **2.00×** |") for line in shown)
    assert "- bfloat16: the fused cells are 2.00 times as fast as torch.nn." in shown


def test_the_report_has_a_column_of_host_time_only_where_it_was_measured():
    ours, theirs = us(2.0, host_us_per_call=200.0), us(2.0, host_us_per_call=50.0)
    shown = lines(measured(POINT, cuda=ours, torch=theirs, eager=us(2.0)))
    assert "**Time that the host is busy with a forward call, µs**" in shown
    assert any(line.endswith("| 200 | 50.0 = **0.25×** |") for line in shown)
    host = "- the host is busy with a forward call of the fused cells for 200 µs, with one of torch.nn for 50.0."
    assert host in shown
    assert "host" not in "".join(lines(FORWARD))


def test_the_report_shows_groups_by_themselves():
    text = "\n".join(lines(*({**FORWARD, "group": group} for group in ("rivals", "honest"))))
    honest, rivals = (text.index(f"<summary>{GROUPS[group]}</summary>") for group in ("honest", "rivals"))
    assert honest < rivals


def test_the_report_of_cells_without_a_rival_has_no_empty_paragraph():
    text = "\n".join(lines({**FORWARD, "cell": "gru"}))
    assert "\n\n\n" not in text
    assert "- bfloat16" not in text


def test_the_report_names_what_failed_wherever_it_was_tried():
    failed = {"failed": "no memory"}
    (told,) = (line for line in lines(FORWARD, measured(TRAINING, triton=failed)) if line.startswith("Measured"))
    assert told.endswith("Failed, and so not timed: fused_rnn, triton.")


def test_the_report_says_when_kernels_have_changed_since(tmp_path, capsys):
    digests = machine.digests()
    other = {**digests, "kernels": "0" * 64}
    same, changed = (results("gpu", FORWARD, digests=found) for found in (digests, other))
    assert gpu_report.OTHER_KERNELS not in gpu_report.block([same])
    assert gpu_report.OTHER_KERNELS in gpu_report.block([changed])
    for name, kinds in report.DOCUMENTS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("".join(f"{report.begin(kind)}{report.end(kind)}\n" for kind in kinds))
    for name, result in {"same": same, "changed": changed}.items():
        common.write_json(tmp_path / f"gpu-{name}.json", result)
    for name, digest in {"same": family.digest(), "changed": "0" * 64}.items():
        common.write_json(tmp_path / f"choice-{name}.json", {**CHOICE, "digests": {"family": digest}})
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
    text = "\n".join(lines(FORWARD, method="by hand", plan={"clock": "CUDA events"}))
    assert "Measured on 2026-01-02 by hand: A GPU" in text
    assert "interleaved" not in text


def test_the_report_draws_a_picture_for_each_dtype(tmp_path):
    case = Case("gru", POINT.shape, "training", "float32", "grid")
    common.write_json(tmp_path / "gpu-a-gpu.json", results("gpu", FORWARD, measured(case, cuda=us(1.0), eager=us(2.0))))
    report.draw(tmp_path)
    assert {path.name for path in tmp_path.glob("*.svg")} == {
        f"gpu-a-gpu-faster-{dtype}.svg" for dtype in ("bfloat16", "float32")
    }
    assert "](results/gpu-a-gpu-faster-bfloat16.svg)" in report.block("gpu", [results("gpu", FORWARD)])


def test_the_report_says_where_nothing_was_measured(tmp_path):
    assert report.load_results("gpu", tmp_path) == []
    assert "Not yet run on a GPU." in report.block("gpu", [])
