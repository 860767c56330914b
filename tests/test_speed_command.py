"""``python -m benchmarks.speed``: each kind of results is whole and can be shown, wrong input is explained."""

import json
import os
import signal
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks import common, report
from benchmarks.gpu import machine
from benchmarks.speed import __main__ as speed
from benchmarks.speed import child
from benchmarks.speed.cases import AXES, MODES, STEP_CELLS, STEP_MODES
from benchmarks.speed.plan import CORES, PLANS, QUICK_POINTS, Plan
from benchmarks.speed.records import Results

on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
POINTS = ["--points", *QUICK_POINTS]  # measures the groups of a GPU on a CPU


@pytest.fixture
def quick(tmp_path):
    """Return a function that does a smoke run, in a subprocess as always, and returns its results and report."""

    def run(kind: str, *arguments: str) -> tuple[Results, str]:
        path = tmp_path / f"{kind}-quick.json"
        speed.main([*arguments, "--quick", "--out", str(path)])
        assert [file.name for file in tmp_path.iterdir()] == [path.name]
        (result,) = report.load_results(kind, tmp_path)
        assert result["finished"]
        assert result["command"].startswith("python -m benchmarks.speed ")
        return Results(result), report.block(kind, [result])

    return run


def told(monkeypatch, *parts: dict | type[BaseException]) -> None:
    """Make the measuring process yield these records, and raise these exceptions."""

    def records(*_):
        for part in parts:
            if not isinstance(part, dict):
                raise part
            yield part

    monkeypatch.setattr(speed, "records", records)


def test_a_quick_run_writes_results_that_the_report_can_show(quick):
    chosen = ["--cells", "multiplicative_gru", "--shapes", "a", "d", "--threads", "1", "--backend", "reference"]
    found, shown = quick("speed", *chosen)
    assert [(m.case.shape.name, m.case.mode, *m.times) for m in found.cases] == [
        (shape, mode, "fused", "eager")
        for shape, modes in {"a": ("training", "forward"), "d": ("forward", "stream")}.items()
        for mode in modes
    ]
    assert all(m.ms(name) > 0 for m in found.cases for name in m.times)
    assert [m.memory.keys() == m.times.keys() for m in found.cases] == [True, False, False, False]
    assert found.machine["torch"] == torch.__version__
    assert found.raw["allocator"]["environment"]["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    assert found.plan["tf32"] is False
    assert found.ceilings[1]["product_float32_tflops"] > 0
    assert "| MultiplicativeGRU | 1 | eager loop |" in shown


def test_a_quick_run_of_single_steps(quick):
    found, shown = quick("steps", "--single-steps", "--shapes", "H64B8", "--backend", "reference")
    assert {(m.case.cell, m.case.mode, *m.times) for m in found.cases} == {
        (cell, mode, "fused", "torch") for cell in STEP_CELLS for mode in STEP_MODES
    }
    assert (found.ceilings, found.threads) == ({}, [1])
    assert not any(measured.memory for measured in found.cases)
    assert shown.count("| LSTMCell | 1 | torch.nn.LSTMCell |") == len(STEP_MODES)


def test_a_quick_run_of_sizes_that_grow(quick, tmp_path):
    found, shown = quick("scaling", "--sweep", "--cells", "gru", "--backend", "reference")
    assert {(m.case.group, m.case.mode, *m.times) for m in found.cases} == {
        (axis, mode, "fused", "torch", "eager") for axis in AXES for mode in MODES
    }
    assert all(m.ms(name) > 0 and found.floor_ms(m) > 0 for m in found.cases for name in m.times)
    report.draw(tmp_path)
    for name in (*AXES.values(), "floor"):
        assert f"](results/scaling-quick-{name}.svg)" in shown
        assert (tmp_path / f"scaling-quick-{name}.svg").exists()


def test_a_quick_run_of_sequences_of_different_lengths(quick):
    found, shown = quick("fills", "--fills", "--cells", "lstm", "--backend", "reference")
    assert {(m.case.shape.name, m.case.mode, *m.times) for m in found.cases} == {
        (fill, mode, "packed", "lengths", "torch") for fill in ("10 %", "100 %") for mode in MODES
    }
    (with_memory,) = (measured for measured in found.cases if measured.memory)
    assert list(with_memory.memory) == ["packed", "lengths", "torch"]
    assert "| LSTM | forward |" in shown


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_gpu)])
def test_a_quick_run_of_episodes(quick, device):
    found, shown = quick("resets", "--resets", "--cells", "gru_reset_after", "--device", device)
    assert {(m.case.shape.name, m.case.shape.episodes, m.case.mode, *m.times) for m in found.cases} == {
        (f"{share} %", share, mode, "resets", "without", "steps", "split", "packed")
        for share in (0, 1, 10)
        for mode in MODES
    }
    assert all(m.ms(name) > 0 for m in found.cases for name in m.times)
    assert "| GRU, reset after | 10 % |" in shown


def test_a_quick_run_of_the_groups_of_a_gpu(quick, capsys):
    found, shown = quick("gpu", *POINTS, "--candidates", "torch", "eager")
    assert found.raw["digests"] == machine.digests()
    assert len(found.raw["digests"]["kernels"]) == 64
    assert found.plan["clock"] == "host clock"
    timed = [("lstm", 3), ("multiplicative_gru", 2), ("gru_reset_after", 2), ("lstm", 4)]
    assert [(m.case.cell, len(m.times)) for m in found.cases] == [point for point in timed for _ in range(2)]
    assert all(m.quantity("us", name) > 0 for m in found.cases for name in m.times)
    out = capsys.readouterr().out
    assert "lstm float32 H=8 B=2 T=4, forward: cpu " in out
    assert "8 cases measured, 0 skipped" in out
    assert "**Training step, µs per step**" in shown


@pytest.mark.parametrize("cell", [pytest.param("lstm", marks=on_gpu), pytest.param("gru", marks=on_gpu)])
def test_on_a_gpu_every_candidate_is_timed_by_events(tmp_path, cell):
    path = tmp_path / "gpu.json"
    chosen = ["--cells", cell, "--dtypes", "float32", "--hidden", "32", "--batch", "3", "--steps", "8"]
    speed.main(["--device", "cuda", *chosen, "--candidates", "torch", "eager", "graphed", "--out", str(path)])
    for case in json.loads(path.read_text())["cases"]:
        times = {found["candidate"]: found for found in case["times"]}
        assert {"torch", "eager", "graphed"} <= times.keys()
        assert all(found["median_ms"] > 0 for found in times.values())
        assert times["cuda"]["plans"]
        assert times["torch"]["weights_in_one_piece"]
        assert all(memory["peak_bytes"] > 0 for memory in case.get("memory", []))


# What happens to results --------------------------------------------------------------------------------------


def test_an_interrupted_run_of_a_gpu_leaves_every_case_in_its_file(tmp_path, monkeypatch):
    path = tmp_path / "gpu.json"
    told(monkeypatch, {"cases": [{"times": []}], "seconds": 1.0}, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        speed.main([*POINTS, "--quick", "--out", str(path)])
    result = json.loads(path.read_text())
    assert not result["finished"]
    assert result["cases"][0]["times"] == []
    assert [case["skipped"] for case in result["cases"][1:]] == [speed.NOT_REACHED] * 7


def test_an_interrupted_run_of_a_cpu_writes_nothing(tmp_path, monkeypatch):
    told(monkeypatch, {"cases": [{"times": []}], "seconds": 1.0}, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        speed.main(["--quick", "--backend", "reference", "--out", str(tmp_path / "speed.json")])
    assert list(tmp_path.iterdir()) == []


def test_what_was_not_timed_ends_the_command_with_an_error(tmp_path, monkeypatch):
    path = tmp_path / "gpu.json"
    record = {"candidate": "eager", "title": "eager loop"}
    times = [{**record, "wrong": "it is off"}, {**record, "failed": "TypeError: no"}, {**record, "median_ms": 1.0}]
    told(monkeypatch, {"cases": [{"failed": "RuntimeError: no memory"}, {"times": times}], "seconds": 1.0})
    with pytest.raises(SystemExit) as stopped:
        speed.main([*POINTS, "--quick", "--out", str(path)])
    assert stopped.value.code.splitlines() == [
        "error: these were not timed:",
        "lstm float32 H=8 B=2 T=4, forward: RuntimeError: no memory",
        "lstm float32 H=8 B=2 T=4, training, eager loop: it is off",
        "lstm float32 H=8 B=2 T=4, training, eager loop: TypeError: no",
    ]
    assert json.loads(path.read_text())["finished"]


@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN], ids=["terminal", "background"])
def test_ctrl_c_ends_a_process_that_measures_unless_it_was_started_to_ignore_it(monkeypatch, capfd, before):
    monkeypatch.setattr(sys, "argv", ["measure", "1", json.dumps(asdict(PLANS["speed"]))])
    outside = signal.signal(signal.SIGINT, before)

    def measure(plan):
        os.write(1, b"compiling ...")  # as other people's kernels do
        yield {"ignored": signal.getsignal(signal.SIGINT) == signal.SIG_IGN, "kind": plan.kind}

    try:
        child.serve(measure, Plan)
        assert signal.getsignal(signal.SIGINT) in (signal.SIG_DFL, signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGINT, outside)
    written = capfd.readouterr()
    assert json.loads(written.out) == {"ignored": before == signal.SIG_IGN, "kind": "speed"}
    assert "compiling ..." in written.err


# What is asked for ------------------------------------------------------------------------------------------------


def test_list_shows_the_points_and_measures_nothing(capsys):
    speed.main(["--device", "cuda", "--list", "--cells", "lstm"])
    cases = replace(PLANS["gpu"], cells=("lstm",)).cases()
    assert capsys.readouterr().out.splitlines() == list(dict.fromkeys(map(str, cases)))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--cells", "elman"], "invalid choice: 'elman'"),
        (["--dtype", "float64"], "invalid choice: 'float64'"),
        (["--shapes", "z"], "invalid choice: 'z'"),
        (["--sweep", "width"], "invalid choice: 'width'"),
        (["--points", "best"], "invalid choice: 'best'"),
        (["--candidates", "keras"], "invalid choice: 'keras'"),
        (["--rounds", "0"], "must be at least 1"),
        (["--hidden", "0"], "must be at least 1"),
        (["--minutes", "0"], "must be a finite number above 0"),
        (["--backend", "cuda"], "cannot run here"),
        (["--sweep", "--backend", "cuda"], "cannot run here"),
        (["--backend", "reference", "--threads", "100000"], "--threads 100000 is too many"),
        (["--device", "tpu"], "--device tpu is unknown"),
        (["--device", "cuda:99"], "--device cuda:99 is not there"),
        (["--sweep", "--device", "cuda:99"], "--device cuda:99 is not there"),
        (["--cells", "lstm_cell"], "--cells lstm_cell is not measured there: here are rnn, lstm,"),
        (["--fills", "--cells", "rnn"], "--cells rnn is not measured there: here are lstm, gru_reset_after"),
        (["--resets", "--cells", "rnn"], "--cells rnn is not measured there: here are lstm, gru_reset_after"),
        (["--resets", "--backend", "cuda"], "cannot run here"),
        (["--single-steps", "--shapes", "a"], "--shapes a is not measured there: here are H64B1, H64B8,"),
        (["--sweep", "--shapes", "a"], "--shapes names shapes of the tables of a CPU"),
        (["--single-steps", "--device", "cuda"], "--single-steps measures a CPU, and --device is cuda"),
        (["--points", "honest", "--batch", "3"], "give one of them, not 2"),
        (["--fills", "--sweep"], "give one of them, not 2"),
        (["--resets", "--points", "honest"], "give one of them, not 2"),
        (["--dtypes", "float32", "bfloat16"], "--dtypes float32 bfloat16 is too many"),
        (["--backends", "cpu", "reference"], "--backends cpu reference is too many"),
        (["--fills", "--candidates", "eager"], "--candidates does not go with --fills, which has its own rivals"),
        (["--resets", "--candidates", "eager"], "--candidates does not go with --resets, which has its own rivals"),
        (["--sweep", "--threads", "1", "2"], "--threads 1 2 is too many"),
    ],
    ids=" ".join,
)
def test_wrong_input_ends_with_one_sentence_and_status_2(capsys, tmp_path, arguments, complaint):
    path = tmp_path / "results.json"
    with pytest.raises(SystemExit) as stopped:
        common.run_command(lambda: speed.main([*arguments, "--out", str(path)]))
    assert stopped.value.code == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert complaint in sentence
    assert not path.exists()


RUNS = speed.ROOT / "runs"


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ("", report.RESULTS / "speed-resident.json"),
        ("--rounds 3", report.RESULTS / "speed-resident.json"),
        ("--allocator default", report.RESULTS / "speed-default.json"),
        ("--dtype bfloat16", report.RESULTS / "speed-resident-bfloat16.json"),
        ("--all-rivals", report.RESULTS / "rivals-resident.json"),
        ("--single-steps", report.RESULTS / "steps-resident.json"),
        ("--sweep", report.RESULTS / "scaling-cpu.json"),
        ("--sweep --dtype bfloat16 --minutes 3", report.RESULTS / "scaling-cpu-bfloat16.json"),
        ("--fills", report.RESULTS / "fills-cpu.json"),
        ("--resets", report.RESULTS / "resets-cpu.json"),
        ("--resets --rounds 9 --minutes 3", report.RESULTS / "resets-cpu.json"),
        ("--cells lstm", RUNS / "speed-resident.json"),
        (f"--threads {CORES}", RUNS / "speed-resident.json"),
        ("--quick", RUNS / "speed-resident.json"),
        ("--sweep steps", RUNS / "scaling-cpu.json"),
        ("--sweep --quick", RUNS / "scaling-cpu.json"),
        ("--fills --cells lstm", RUNS / "fills-cpu.json"),
        (f"--fills --threads {max(2, CORES)}", RUNS / "fills-cpu.json"),
        ("--resets --cells lstm", RUNS / "resets-cpu.json"),
        ("--resets --quick", RUNS / "resets-cpu.json"),
        (f"--resets --threads {max(2, CORES)}", RUNS / "resets-cpu.json"),
        ("--points honest", RUNS / "gpu-cpu-honest.json"),
    ],
    ids=str,
)
def test_only_what_is_whole_goes_where_the_report_looks(monkeypatch, arguments, path):
    monkeypatch.setattr(speed, "CORES", max(2, CORES))
    monkeypatch.setattr(common, "check_backend", lambda *_: SimpleNamespace(backend="cpu"))
    assert speed.output_path(speed.plan_from(speed.parse(arguments.split()))) == path


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ("--minutes 5", report.RESULTS / "gpu-nvidia-h200-test.json"),
        ("--points honest people", report.RESULTS / "gpu-nvidia-h200-test-honest-people.json"),
        ("--sweep --dtype bfloat16", report.RESULTS / "scaling-nvidia-h200-test-bfloat16.json"),
        ("--resets --minutes 5", report.RESULTS / "resets-nvidia-h200-test.json"),
        ("--resets --backends triton", report.RESULTS / "resets-nvidia-h200-test-triton.json"),
        ("--hidden 64", RUNS / "gpu-nvidia-h200-test.json"),
        ("--steps 64", RUNS / "gpu-nvidia-h200-test.json"),
        ("--points honest --cells lstm", RUNS / "gpu-nvidia-h200-test-honest.json"),
        ("--backends cuda", RUNS / "gpu-nvidia-h200-test.json"),
        ("--candidates torch", RUNS / "gpu-nvidia-h200-test.json"),
    ],
    ids=str,
)
def test_on_a_gpu_whole_groups_go_where_the_report_looks(monkeypatch, arguments, path):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200 (test)")
    monkeypatch.setattr(common, "open_device", torch.device)
    chosen = {"auto": "cuda"}
    monkeypatch.setattr(common, "check_backend", lambda *of: SimpleNamespace(backend=chosen.get(of[2], of[2])))
    assert speed.output_path(speed.plan_from(speed.parse(["--device", "cuda:1", *arguments.split()]))) == path
