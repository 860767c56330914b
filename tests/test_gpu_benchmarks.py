"""The GPU benchmark, run on the CPU at tiny sizes: what it times is right, nothing is lost, its budget holds."""

import json
import signal
import time
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks import common, report
from benchmarks.budget import Budget
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import machine, points
from benchmarks.gpu.candidates import MODES, backends_for, candidates, wanted_at, worthwhile
from benchmarks.gpu.measure import Plan, in_one_piece, measure_point, plans, ratios
from benchmarks.gpu.points import GROUPS, Point, chosen_points, points_of
from benchmarks.speed import clock
from benchmarks.speed.candidates import FUSED_FACTOR, Candidate, CompiledLoop
from benchmarks.speed.cases import CELLS, Case
from benchmarks.speed.check import Bench
from benchmarks.speed.clock import HostClock, saved_bytes
from fused_rnn import cuda

CPU = torch.device("cpu")
PLAN = Plan(warm_up=1, rounds=3, least_rounds=1)
RIVALS = ("torch", "eager")
POINT = Point("lstm", "float32", hidden=7, batch=3, steps=5)
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def measure(*rivals: Candidate, point: Point = POINT, plan: Plan = PLAN) -> dict:
    """The record of a point with the eager loop and these."""
    return measure_point(point, [*candidates(point, CPU, ["eager"]), *rivals], HostClock(), plan, left=100)


def rival(build) -> Candidate:
    return Candidate("rival", "a rival", "lstm", build, FUSED_FACTOR)


def by_mode(record: dict, name: str) -> dict[str, dict]:
    return {time["mode"]: time for time in record["times"] if time["candidate"] == name}


# What is measured -------------------------------------------------------------------------------------------


def test_the_most_telling_groups_come_first():
    chosen = points_of()
    assert list(dict.fromkeys(point.group for point in chosen)) == list(GROUPS)
    assert list(GROUPS)[:3] == ["honest", "people", "main"]
    assert list(GROUPS)[-1] == "rivals"  # which compile for minutes
    assert len(set(chosen)) == len(chosen) < 120
    names = [str(point) for point in chosen if point.group != "rivals"]
    assert len(set(names)) == len(names), "something is measured twice"


def test_the_tables_have_every_cell_at_the_main_sizes():
    for dtype, cells in (("bfloat16", CELLS), ("float32", CELLS), ("float16", points.LIBRARY_CELLS)):
        found = {(p.cell, p.hidden, p.batch) for p in points_of(["main", "grid"], dtypes=[dtype])}
        assert {(cell, *size) for cell in cells for size in points.MAIN_SIZES} <= found


def test_a_group_can_be_narrowed_to_cells_and_dtypes():
    chosen = points_of(["honest", "people"], ["lstm"], ["float32"])
    assert [str(point) for point in chosen] == [
        "lstm float32 H=128 B=16 T=512",
        "lstm float32 H=512 B=64 T=512",
        "lstm float32 H=168 B=62 T=2058",
    ]


def test_lengths_are_spread_evenly_and_longest_first():
    assert replace(POINT, batch=4, steps=10, ragged=True).lengths == (10, 8, 5, 3)
    for point in points_of(["ragged"]):
        assert point.lengths[0] == point.steps
        assert min(point.lengths) >= 1
        assert list(point.lengths) == sorted(point.lengths, reverse=True)


def test_what_is_chosen_is_measured_in_every_combination():
    chosen = chosen_points(["rnn", "gru"], ["float16"], [8, 512], [1, 64, 64], steps=9)
    assert {str(p) for p in chosen} == {
        f"{cell} float16 H={h} B={b} T=9" for cell in ("rnn", "gru") for h in (8, 512) for b in (1, 64)
    }
    assert len(chosen) == 8
    assert len(chosen_points(hidden=[64])) == len(points.DTYPES) * len(CELLS) * len(points.BATCHES)


def test_list_shows_the_points_and_measures_nothing(capsys):
    gpu.main(["--list", "--cells", "lstm"])
    assert capsys.readouterr().out.splitlines() == [str(point) for point in points_of(cells=["lstm"])]


def test_a_budget_skips_what_does_not_fit_and_says_so():
    now = [0.0]
    budget = Budget(10, clock=lambda: now[0])
    small, large = replace(POINT, steps=100), replace(POINT, steps=1000)
    skipped = []
    for job, obstacle in budget.spend([small, large, small, small, small]):
        skipped.append(obstacle)
        now[0] += 0 if obstacle else 4 * job.cost / small.cost
    assert skipped[0] is skipped[2] is None
    assert skipped[1] == "it would take about 40 s, and 6 s were left"
    assert skipped[3] == skipped[4] == "it would take about 4 s, and 2 s were left"
    now[0] = 11
    assert budget.obstacle(0.0) == "the 10 s of the run were over"


# How it is measured -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("cell", CELLS)
def test_every_candidate_is_right_and_timed(cell, dtype):
    point = replace(POINT, cell=cell, dtype=dtype)
    record = measure_point(point, candidates(point, CPU, ["recompute", *RIVALS]), HostClock(), PLAN, left=100)
    fused = backends_for(CPU, getattr(torch, dtype))
    rivals = ["torch", "eager"] if cell in ("rnn", "lstm", "gru", "gru_reset_after") else ["eager"]
    measured = {mode: [time["candidate"] for time in record["times"] if time["mode"] == mode] for mode in MODES}
    assert measured["forward"] == [*fused, *rivals]
    assert measured["training"] == [*(name + way for name in fused for way in ("", "-recompute")), *rivals]
    for timed in record["times"]:
        assert timed["us_per_step"] > 0, timed
        assert timed["host_us_per_call"] > 0, timed
        assert timed["rounds"] == PLAN.rounds
        assert 0 <= timed["error"]["relative"] <= timed["error"]["allowed"]
    assert all(memory["saved_bytes"] > 0 for memory in record["memory"])


@pytest.mark.parametrize("factor", [1.0001, float("nan")])
def test_a_wrong_candidate_is_not_timed(factor):
    class Spoiled(torch.nn.LSTM):
        def forward(self, input):
            output, state = super().forward(input)
            return factor * output, state

    record = measure(rival(Spoiled))
    for mode in MODES:
        assert by_mode(record, "eager")[mode]["us_per_step"] > 0
        wrong = by_mode(record, "rival")[mode]
        assert "us_per_step" not in wrong
        assert "is off by" in wrong["wrong"]
        assert "PyTorch's plain loop" in wrong["wrong"]
    measured = {memory["candidate"] for memory in record["memory"]}
    assert "eager" in measured
    assert "rival" not in measured


def test_a_candidate_that_becomes_wrong_is_not_timed():
    class Fading(torch.nn.LSTM):
        calls = 0

        def forward(self, input):
            Fading.calls += 1
            output, state = super().forward(input)
            return output * (1 if Fading.calls < 4 else 2), state

    assert "us_per_step" not in by_mode(measure(rival(Fading)), "rival")["forward"]


def test_a_candidate_that_raises_is_recorded_and_the_others_are_timed():
    class Greedy(torch.nn.LSTM):
        def forward(self, input):
            if input.requires_grad:
                raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB\nand more")
            return super().forward(input)

    record = measure(rival(Greedy))
    assert by_mode(record, "rival")["forward"]["us_per_step"] > 0
    assert by_mode(record, "rival")["training"]["failed"] == "OutOfMemoryError: Tried to allocate 20.00 GiB"
    assert by_mode(record, "eager")["training"]["us_per_step"] > 0


def test_a_candidate_that_is_never_ready_is_given_up():
    class Slow(torch.nn.LSTM):
        def forward(self, input):
            left, _ = signal.getitimer(signal.ITIMER_REAL)
            assert 0 < left <= 90
            signal.setitimer(signal.ITIMER_REAL, 0.01)  # so that nobody waits for long, and no other is given up
            time.sleep(600)

    record = measure(rival(Slow), plan=replace(PLAN, patience=90))
    assert by_mode(record, "rival")["forward"]["failed"] == "TimeoutError: it was not ready after 90 s"
    assert by_mode(record, "eager")["forward"]["us_per_step"] > 0


def test_rounds_end_when_their_time_is_over():
    plan = Plan(warm_up=1, rounds=10**6, least_rounds=2, seconds=0.05)
    rounds = [timed["rounds"] for timed in measure(plan=plan)["times"]]
    assert all(2 <= count < 10**5 for count in rounds)


def test_the_compiled_loop_is_right(monkeypatch):
    monkeypatch.setattr("benchmarks.speed.candidates.COMPILER", "aot_eager")
    point = replace(POINT, steps=2)
    (unrolled,) = (found for found in candidates(point, CPU, ["compiled"]) if found.name == "compiled")
    module = unrolled.build(3, 4)
    assert isinstance(module, CompiledLoop)
    assert module.at_once is None
    record = measure(unrolled, point=point)
    assert all(timed["us_per_step"] > 0 for timed in by_mode(record, "compiled").values())


def test_saved_bytes_counts_each_storage_once_and_no_operands():
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(3, 3))

        def forward(self, input):
            output = (input @ self.weight).tanh()  # the product keeps its operands, tanh its result
            return output * output.view(-1).view_as(output)  # which is kept again, twice

    assert saved_bytes(Module(), torch.randn(5, 3)) == 5 * 3 * 4


def test_ratios_say_how_many_times_faster_fused_is():
    fused, rival = {"mode": "forward", "candidate": "cuda"}, {"mode": "forward", "candidate": "torch"}
    fused |= {"title": "fused_rnn, cuda", "us_per_step": 2.0}
    rival |= {"title": "torch.nn.LSTM", "us_per_step": 5.0}
    assert ratios([fused, rival, {**rival, "mode": "training"}]) == {"forward": {"cuda over torch": 2.5}}


def test_the_host_time_of_a_call_is_that_of_calls_in_a_row_without_waiting(monkeypatch):
    class Device(HostClock):
        """Calls take 2 ms of the host; what they queue is done when it is waited for."""

        def __init__(self):
            super().__init__()
            self.now = self.waits = self.calls = 0
            monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: self.now))

        def wait(self):
            self.waits += 1
            self.now += 0.1

        def call(self):
            assert self.waits == 1
            self.calls += 1
            self.now += 0.002

    device = Device()
    busy = device.busy_us(device.call, calls=10)
    assert (device.calls, device.waits) == (10, 2)
    assert busy == pytest.approx(2_000)  # the waits, 100 ms each, are not in it
    device = Device()
    device.busy_us(device.call, calls=10**6, seconds=0.009)
    assert device.calls == 5


def test_the_weights_of_torch_nn_are_laid_out_for_cudnn_before_the_time_is_taken(monkeypatch):
    flattened = []
    flatten = torch.nn.LSTM.flatten_parameters

    def spy(module):
        flattened.append({name: weight.clone() for name, weight in module.named_parameters()})
        flatten(module)

    monkeypatch.setattr(torch.nn.LSTM, "flatten_parameters", spy)
    bench, (candidate,) = Bench(POINT.shape, torch.float32), candidates(POINT, CPU, ["torch"], ["cpu"])[1:]
    ready = bench.ready(candidate, Case(POINT.cell, POINT.shape, "forward"))
    ours = bench.ready(candidates(POINT, CPU, [])[0], Case(POINT.cell, POINT.shape, "forward")).module.state_dict()
    assert all(torch.equal(weight, ours[name]) for name, weight in flattened[-1].items())
    assert not in_one_piece(ready.module)  # as PyTorch does nothing on a CPU
    assert in_one_piece(torch.nn.Linear(3, 4, bias=False))


@pytest.mark.skipif(not hasattr(torch.ops.fused_rnn, "cuda_plan"), reason="a build without CUDA kernels")
@pytest.mark.parametrize("cell", CELLS)
def test_a_record_says_how_the_kernels_divide_the_work(cell):
    case, chip = (
        Case(cell, replace(POINT, cell=cell, batch=40, input_size=11).shape, "training"),
        cuda.Chip(132, 232_448),
    )
    found = plans(case, torch.bfloat16, chip)
    assert list(found) == ["forward", "backward"]
    name = "rnn_tanh" if cell == "rnn" else cell
    for direction, plan in found.items():
        assert plan == asdict(cuda.plan(name, torch.bfloat16, 40, POINT.hidden, 11, direction, chip))
    assert list(plans(replace(case, mode="forward"), torch.bfloat16, chip)) == ["forward"]


# Sequences of different lengths -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_and_padded_sequences_give_the_same_results(dtype):
    point = replace(POINT, dtype=dtype, batch=4, steps=9, ragged=True)
    record = measure_point(point, candidates(point, CPU, ["torch"]), HostClock(), PLAN, left=100)
    names = [timed["candidate"] for timed in record["times"] if timed["mode"] == "training"]
    assert names == ["cpu", "cpu-padded", "torch", "torch-padded"]
    for timed in record["times"]:
        assert timed["us_per_step"] > 0, timed
    saved = {memory["candidate"]: memory["saved_bytes"] for memory in record["memory"]}
    assert all(saved.values())


def test_an_error_in_a_packed_sequence_is_seen_wherever_it_is():
    point = replace(POINT, batch=4, steps=9, ragged=True)
    bench, packed = Bench(point.shape, torch.float32), candidates(point, CPU, [])[0]
    ready = bench.ready(packed, Case(point.cell, point.shape, "training"))
    assert not bench.error(packed, ready).wrong
    right = {name: tensor.clone() for name, tensor in ready.run().items()}
    assert len(right["output"]) == sum(point.lengths)
    for name, row in [("output", 0), ("output", -1), ("gradient of input", -1)]:
        spoiled = right[name].clone()
        spoiled[row] += 1
        ready.run = lambda results={**right, name: spoiled}: results
        error = bench.error(packed, ready)
        assert error.wrong
        assert error.result == name


def test_only_what_a_group_is_for_is_timed_there():
    assert wanted_at(replace(POINT, group="honest"), None) == ("torch",)
    assert "eager" in wanted_at(replace(POINT, group="main"), None)
    assert {"torch", "flashrnn", "torchrl"} <= set(wanted_at(replace(POINT, group="rivals"), None))
    assert wanted_at(replace(POINT, group="rivals"), ["eager"]) == ["eager"]


@pytest.mark.parametrize(
    ("change", "left_out"),
    [
        ({"directions": 2}, {"eager", "graphed", "flashrnn", "torchrl"}),
        ({"layers": 2}, {"flashrnn", "torchrl"}),
        ({"dtype": "float16"}, {"torchrl"}),
        ({"ragged": True}, {"eager", "flashrnn", "torchrl"}),
    ],
    ids=["directions", "layers", "float16", "ragged"],
)
def test_a_rival_that_cannot_run_a_point_is_left_out(change, left_out):
    names = ("torch", "eager", "graphed", "flashrnn", "torchrl")
    assert all(worthwhile(name, POINT) for name in names)
    missing = {name for name in names if not worthwhile(name, replace(POINT, **change))}
    assert left_out <= missing
    assert "torch" not in missing


# The command ------------------------------------------------------------------------------------------------


def test_a_tiny_run_writes_all_that_it_promises(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    gpu.main(["--device", "cpu", "--tiny", "--candidates", *RIVALS, "--out", str(path)])
    result = json.loads(path.read_text())
    assert result["finished"]
    assert result["hardware"]["torch"] == torch.__version__
    assert result["plan"]["clock"] == "host clock"
    assert result["plan"]["tf32"] is False
    assert result["digests"] == machine.digests()
    assert len(result["digests"]["kernels"]) == 64
    for name in ("product_float32_tflops", "copy_tb_per_s", "launch_us", "launch_and_wait_us"):
        assert result["ceilings"][name] > 0
    timed = [("lstm", 6), ("multiplicative_gru", 4), ("gru_reset_after", 4), ("lstm", 8)]
    assert [(p["cell"], len(p["times"])) for p in result["points"]] == timed
    assert all(time["us_per_step"] > 0 for point in result["points"] for time in point["times"])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert f"wrote {path}: 4 points measured, 0 skipped" in capsys.readouterr().out


def test_points_without_time_are_recorded_as_skipped(tmp_path):
    path = tmp_path / "gpu.json"
    gpu.main(["--device", "cpu", "--tiny", "--minutes", "1e-9", "--out", str(path)])
    result = json.loads(path.read_text())
    assert result["finished"]
    skipped = [point["skipped"] for point in result["points"] + result["compiled"]]
    assert skipped == 4 * ["the 0 s of the run were over"]


def test_an_interrupted_run_leaves_every_point_in_its_file(tmp_path, monkeypatch):
    def interrupted(point, *_):
        if point.cell == "lstm":
            return {"times": [], "memory": [], "ratios": {}}
        raise KeyboardInterrupt

    path = tmp_path / "gpu.json"
    monkeypatch.setattr(gpu, "measure_point", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gpu.main(["--device", "cpu", "--tiny", "--out", str(path)])
    result = json.loads(path.read_text())
    assert not result["finished"]
    assert "times" in result["points"][0]
    assert result["points"][1]["skipped"] == gpu.NOT_REACHED


def test_a_point_that_fails_is_recorded_and_ends_the_command_with_an_error(tmp_path, monkeypatch):
    def failing(point, *_):
        raise RuntimeError(f"no memory for {point.cell}")

    path = tmp_path / "gpu.json"
    monkeypatch.setattr(gpu, "measure_point", failing)
    with pytest.raises(SystemExit, match="RuntimeError: no memory for multiplicative_gru"):  # among others
        gpu.main(["--device", "cpu", "--tiny", "--candidates", "eager", "--out", str(path)])
    failed = [point["failed"] for point in json.loads(path.read_text())["points"]]
    cells = [point.cell for point in points.tiny_points()]
    assert failed == [f"RuntimeError: no memory for {cell}" for cell in cells]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--cells", "elman"], "invalid choice: 'elman'"),
        (["--dtypes", "float64"], "invalid choice: 'float64'"),
        (["--hidden", "0"], "must be at least 1"),
        (["--minutes", "0"], "must be a finite number above 0"),
        (["--candidates", "keras"], "invalid choice: 'keras'"),
        (["--points", "best"], "invalid choice: 'best'"),
        (["--points", "honest", "--batch", "3"], "--points names sizes already"),
        (["--backends", "reference"], "invalid choice: 'reference'"),
        (["--device", "tpu"], "--device tpu is unknown"),
        (["--device", "cuda:99"], "--device cuda:99 is not there"),
    ],
    ids=["cell", "dtype", "hidden", "minutes", "candidate", "group", "sizes", "backend", "device", "absent"],
)
def test_wrong_input_ends_with_one_sentence_and_status_2(capsys, arguments, complaint):
    with pytest.raises(SystemExit) as stopped:
        common.run_command(lambda: gpu.main(arguments))
    assert stopped.value.code == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert complaint in sentence


def test_only_whole_groups_on_a_gpu_go_where_the_report_looks(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200 (test)")
    cuda = torch.device("cuda", 0)
    paths = {
        name: gpu.output_path(gpu.parse(arguments), device)
        for name, arguments, device in [
            ("whole", ["--minutes", "5"], cuda),
            ("part", ["--hidden", "64"], cuda),
            ("steps", ["--steps", "64"], cuda),
            ("groups", ["--points", "honest", "people"], cuda),
            ("part of a group", ["--points", "honest", "--cells", "lstm"], cuda),
            ("backend", ["--backends", "cuda"], cuda),
            ("cpu", [], CPU),
        ]
    }
    assert paths["whole"] == report.RESULTS / "gpu-nvidia-h200-test.json"
    assert paths["groups"] == report.RESULTS / "gpu-nvidia-h200-test-honest-people.json"
    elsewhere = {paths[name].parent for name in ("part", "steps", "part of a group", "backend", "cpu")}
    assert elsewhere == {gpu.ROOT / "runs"}


@pytest.mark.parametrize("cell", [pytest.param("lstm", marks=on_gpu), pytest.param("gru", marks=on_gpu)])
def test_on_a_gpu_every_candidate_is_timed_by_events(tmp_path, cell):
    path = tmp_path / "gpu.json"
    chosen = ["--cells", cell, "--dtypes", "float32", "--hidden", "32", "--batch", "3", "--steps", "8"]
    gpu.main([*chosen, "--candidates", "torch", "eager", "graphed", "--out", str(path)])
    (point,) = json.loads(path.read_text())["points"]
    assert {"torch", "eager", "graphed"} <= {timed["candidate"] for timed in point["times"]}
    assert all(timed["us_per_step"] > 0 for timed in point["times"])
    assert all(timed["plans"] for timed in point["times"] if timed["candidate"] == "cuda")
    assert all(timed["weights_in_one_piece"] for timed in point["times"] if timed["candidate"] == "torch")
    assert all(memory["peak_bytes"] > 0 for memory in point["memory"])
