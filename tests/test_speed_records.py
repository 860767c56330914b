"""Files of results of older forms: what the reports read of them is what they say."""

import pytest

from benchmarks.speed.cases import Case, Shape
from benchmarks.speed.plan import filled, sized
from benchmarks.speed.records import Results
from benchmarks.speed.report import gpu as gpu_report

from .results import POINT, measured, results

FUSED = {"candidate": "fused", "title": "fused_rnn"}


def read(file: str, hardware: dict, plan: dict, **lists: object) -> Results:
    return Results({"file": file, "date": "2026-01-02T03", "hardware": hardware, "plan": plan, **lists})


def test_a_file_of_now_is_read_as_it_was_written():
    case = measured(Case("lstm", filled("10 %"), "training", group="fills"), packed=1.0, torch="is off")
    (found,) = Results(results("fills", case)).cases
    assert found.case.record == {name: case[name] for name in found.case.record}
    assert found.case.shape.lengths == filled("10 %").lengths
    assert (found.ms("packed"), found.ms("torch"), found.problem("time", "torch")) == (1.0, None, "wrong")
    assert Results(results("fills", case)).command == "python -m it"


def test_times_and_memory_of_a_cpu():
    shape = {"name": "a", "batch": 32, "input_size": 11, "hidden_size": 128, "steps": 200, "memory": True}
    record = {"cell": "lstm", "shape": "a", "threads": 2, **FUSED}
    found = read(
        "speed-resident-bfloat16",
        {"threads": [1, 2]},
        {"backend": "cpu", "dtype": "bfloat16"},
        shapes={"a": shape},
        ceilings=[{"threads": 2, "product_bfloat16_tflops": 1.0, "copy_tb_per_s": 1.0}],
        times=[{**record, "mode": "training", "median_ms": 2.5}, {**record, "mode": "forward", "wrong": "it is off"}],
        memory=[{**record, "peak_mib": 7.12}],
    )
    training, forward = found.cases
    assert training.case == Case("lstm", Shape(**shape), "training", "bfloat16")
    assert (training.threads, training.ms("fused"), training.mib("fused")) == (2, 2.5, 7.12)
    assert found.shares(training)["fused"] == found.floor_ms(training) / 2.5
    assert (forward.ms("fused"), forward.problem("time", "fused"), forward.memory) == (None, "wrong", {})
    assert (found.backend, found.command) == ("cpu", "python -m benchmarks.speed --dtype bfloat16")


def test_sequences_of_different_lengths():
    record = {"cell": "lstm", "shape": "10 %", "candidate": "packed", "title": "fused_rnn, packed"}
    found = read(
        "fills-cpu",
        {"threads": 1},
        {"steps": 40, "batch": 20, "size": 6},
        times=[{**record, "mode": "training", "threads": 1, "median_ms": 2.5}],
        memory=[{**record, "peak_mib": 1.0}],
    )
    (training,) = found.cases
    assert training.case.shape == filled("10 %", 40, 20, 6)
    assert (training.ms("packed"), training.mib("packed")) == (2.5, 1.0)
    assert found.command == "python -m benchmarks.speed --fills"


def test_sizes_that_grow():
    record = {"cell": "gru", "axis": "layers", "batch": 16, "hidden_size": 128, "steps": 64, "mode": "forward", **FUSED}
    records = [{**record, "value": layers, "layers": layers, "median_ms": 1.0 * layers} for layers in (1, 2)]
    base = {"steps": 64, "batch": 16, "hidden_size": 128, "layers": 1}
    plan, ceilings = {"dtype": "float32"}, {"copy_tb_per_s": 1.0}
    found = read("scaling-cpu", {"threads": 1}, plan, base=base, ceilings=ceilings, records=records, skipped=[])
    assert [(m.case.group, m.case.shape.layers, m.ms("fused")) for m in found.cases] == [
        ("layers", 1, 1.0),
        ("layers", 2, 2.0),
    ]
    assert (found.base, found.ceilings) == (base, {1: {"threads": 1, **ceilings}})
    assert found.command == "python -m benchmarks.speed --sweep"


def test_points_of_a_gpu():
    point = {"cell": "lstm", "dtype": "bfloat16", "hidden": 512, "batch": 64, "steps": 256}
    ours, theirs = {"candidate": "cuda", "title": "fused_rnn, cuda"}, {"candidate": "torch", "title": "torch.nn.LSTM"}
    ragged = {"steps": 9, "batch": 3, "ragged": True, "group": "ragged", "skipped": "no time"}
    times = [
        {"mode": "forward", **ours, "us_per_step": 2.345, "host_us_per_call": 20.0},
        {"mode": "training", **theirs, "failed": "no memory"},
    ]
    memory = [{**theirs, "peak_bytes": 3 << 20}]
    kernels = {"forward": 1.5, "backward": 2.25, "prepare": 0.01, "other": 0.3}
    found = read(
        "gpu-a-gpu",
        {"threads": 16},
        {},
        command="python -m benchmarks.gpu --points main",
        points=[{**point, "times": times, "memory": memory, "kernels_us_per_step": kernels}, {**point, **ragged}],
    )
    forward, training, skipped = found.cases
    assert (forward.case.cell, forward.case.dtype, forward.case.group) == ("lstm", "bfloat16", "chosen")
    assert forward.case.shape.sizes == POINT.shape.sizes
    assert forward.us_per_step("cuda") == 2.345  # not by way of ms
    assert forward.ms("cuda") == pytest.approx(2.345 * 256 / 1000)
    assert "| LSTM | bfloat16 | H=512 B=64 T=256 | 1.50 | 2.25 | 0.01 | 0.30 |" in gpu_report.kernels([forward])
    assert (training.problem("time", "torch"), training.mib("torch"), forward.memory) == ("failed", 3.0, {})
    assert skipped.case.shape.lengths == sized(512, 3, 9, ragged=True).lengths
    assert skipped.skipped == "no time"
    assert found.command == "python -m benchmarks.speed --device cuda --points main"
