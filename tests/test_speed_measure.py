"""The measuring loop: it times only correct candidates, loses no record, and its clocks are right."""

import signal
import time
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks.speed import clock as clocks
from benchmarks.speed import measure as measuring
from benchmarks.speed.candidates import FUSED_FACTOR, Candidate, candidates, compiled
from benchmarks.speed.cases import CELLS, MODES, Case, Shape
from benchmarks.speed.ceilings import floor_ms, work
from benchmarks.speed.clock import HostClock, saved_bytes
from benchmarks.speed.measure import Entry, Loop, Pace, measure, plans
from benchmarks.speed.plan import PLANS, sized
from fused_rnn import cuda

from .results import Greedy, spoiled

GPU = replace(PLANS["gpu"], device="cpu", backends=("cpu",), warm_up=1, rounds=3)
CASES = [Case("lstm", sized(7, 3, 5), mode, group="main") for mode in ("forward", "training")]
CEILINGS = {"product_float32_tflops": 0.1, "copy_tb_per_s": 0.01}


@pytest.fixture
def measured(monkeypatch):
    """Return a function that measures the eager loop and a rival, and returns records by mode, kind and name."""

    def records(build, plan=GPU, cases=CASES) -> dict[str, dict[str, dict]]:
        def found(case, *arguments, **options):
            beside = Candidate("rival", "a rival", "lstm", build, FUSED_FACTOR)
            return [*candidates(case, ["cpu"], asked=["eager"]), beside]

        monkeypatch.setattr(measuring, "candidates", found)
        loop = Loop(plan, HostClock())
        by_mode = {}
        for case in cases:
            (record,) = loop.measure([case])
            by_mode[case.mode] = {name: {r["candidate"]: r for r in kind} for name, kind in record.items()}
        return by_mode

    return records


def test_a_candidate_is_checked_timed_and_its_memory_read():
    for case in CASES:
        (record,) = Loop(replace(GPU, candidates=("torch", "recompute")), HostClock()).measure([case])
        names = ["cpu", *(["cpu-recompute"] if case.mode == "training" else []), "torch"]
        assert [found["candidate"] for found in record["times"]] == names
        for found in record["times"]:
            assert found["median_ms"] > 0
            assert found["spread_ms"] >= 0
            assert found["host_us_per_call"] > 0
            assert found["ready_s"] > 0
            assert found["rounds"] == GPU.rounds
            assert 0 <= found["error"]["relative"] <= found["error"]["allowed"]
        assert [memory["candidate"] for memory in record.get("memory", [])] == (names if len(names) == 3 else [])
        assert all(memory["saved_bytes"] > 0 for memory in record.get("memory", []))


@pytest.mark.parametrize("factor", [1.0001, float("nan")])
def test_a_wrong_candidate_is_not_timed(measured, factor):
    records = measured(spoiled(factor))
    for mode in MODES:
        assert records[mode]["times"]["eager"]["median_ms"] > 0
        wrong = records[mode]["times"]["rival"]
        assert "median_ms" not in wrong
        assert " is off by" in wrong["wrong"]
        assert "PyTorch's plain loop" in wrong["wrong"]
    assert records["training"]["memory"].keys() == {"cpu", "eager"}


def test_a_candidate_that_becomes_wrong_is_not_timed(measured):
    class Fading(torch.nn.LSTM):
        calls = 0

        def forward(self, input):
            Fading.calls += 1
            output, state = super().forward(input)
            return output * (1 if Fading.calls < 4 else 2), state

    fading = measured(Fading, cases=CASES[:1])["forward"]["times"]["rival"]
    assert "output is off" in fading["wrong"]
    assert "median_ms" not in fading


def test_a_candidate_that_raises_is_recorded_and_the_others_are_timed(measured):
    records = measured(Greedy)
    assert records["forward"]["times"]["rival"]["median_ms"] > 0
    assert records["training"]["times"]["rival"]["failed"] == "OutOfMemoryError: Tried to allocate 20.00 GiB"
    assert records["training"]["times"]["eager"]["median_ms"] > 0


def test_a_candidate_that_is_never_ready_is_given_up(measured):
    class Slow(torch.nn.LSTM):
        def forward(self, input):
            left, _ = signal.getitimer(signal.ITIMER_REAL)
            assert 0 < left <= 90
            signal.setitimer(signal.ITIMER_REAL, 0.01)  # keeps the test short, and gives up no other candidate
            time.sleep(600)

    records = measured(Slow, replace(GPU, patience=90), CASES[:1])["forward"]["times"]
    assert records["rival"]["failed"] == "TimeoutError: it was not ready after 90 s"
    assert records["eager"]["median_ms"] > 0


def test_rounds_end_when_their_time_is_over(measured):
    plan = replace(GPU, rounds=10**6, least_rounds=2, seconds=0.05)
    rounds = [record["rounds"] for record in measured(torch.nn.LSTM, plan, CASES[:1])["forward"]["times"].values()]
    assert all(2 <= count < 10**5 for count in rounds)


def test_a_case_whose_exact_results_cannot_be_had_fails_alone(monkeypatch):
    def bench(self, case):
        raise RuntimeError(f"no memory for {case.mode}\nand more")

    monkeypatch.setattr(Loop, "bench", bench)
    assert Loop(GPU, HostClock()).measure(CASES) == [
        {"failed": f"RuntimeError: no memory for {case.mode}"} for case in CASES
    ]


def test_a_device_that_does_not_answer_ends_the_run(monkeypatch):
    class Lost(HostClock):
        def wait(self):
            raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(measuring, "clock_for", lambda device: Lost())
    parts = measure(replace(GPU, names=("main",), quick=True, ceilings=False))
    reason = "cpu: RuntimeError: an illegal memory access was encountered"
    assert next(parts)["cases"] == [{"failed": reason}]
    with pytest.raises(SystemExit, match=f"does not answer after lstm float32 H=8 B=2 T=4: {reason}"):
        next(parts)


def test_the_compiled_loop_is_right(monkeypatch):
    monkeypatch.setattr("benchmarks.speed.candidates.COMPILER", "aot_eager")
    case = Case("lstm", sized(7, 3, 2), "training", group="compiled")
    (record,) = Loop(replace(GPU, candidates=("compiled",)), HostClock()).measure([case])
    (_, found), (_, memory) = record["times"], record["memory"]
    assert found["title"] == compiled("lstm").title
    assert found["median_ms"] > 0
    assert "saved_bytes" not in memory  # hooks would trigger a recompilation


def test_sizes_that_are_measured_together_have_a_record_each():
    plan = replace(PLANS["scaling"], cells=("gru",), names=("batch",), backends=("reference",), quick=True, rounds=2)
    loop = Loop(replace(plan, passes=2), HostClock())
    (part,) = plan.parts()
    records = loop.measure(part.cases)
    assert len(records) == 2 * len(MODES)
    for record in records:
        assert [found["candidate"] for found in record["times"]] == ["fused", "torch", "eager"]
        assert all(found["rounds"] == 2 * 2 and found["pace"] > 0 for found in record["times"])


def test_times_do_not_depend_on_the_pace_of_the_machine():
    class Slowing(HostClock):
        ms = 1.0

        def time(self, call):
            return self.ms

    clock = Slowing()
    loop = Loop(replace(PLANS["scaling"], warm_up=0, rounds=1), clock)
    entry = Entry(None, CASES[0], None, {}, SimpleNamespace(run=dict, load=lambda number: None))
    for clock.ms in (1.0, 2.0, 4.0):
        loop.time_in_turn([entry])
    assert entry.paces == [1.0, 0.5, 0.25]
    assert loop.times(entry) == {"median_ms": 1.0, "spread_ms": 0.0, "rounds": 3, "pace": 0.5}
    assert isinstance(loop.pace, Pace)


@pytest.mark.parametrize("kind", ["speed", "scaling", "fills", "resets", "gpu"])
def test_what_there_is_no_time_for_is_skipped(kind):
    plan = replace(PLANS[kind], device="cpu", backends=("reference",), quick=True, minutes=1e-9)
    first, *rest = measure(plan) if plan.ceilings else (None, *measure(plan))
    assert first is None or first["ceilings"]["copy_tb_per_s"] > 0
    found = [record for part in rest for record in part["cases"]]
    assert found == [{"skipped": "the 0 s of the run were over"}] * len(plan.cases())


def test_the_ceilings_of_a_gpu_have_what_a_launch_costs():
    found = Loop(replace(GPU, quick=True), HostClock()).ceilings()
    for name in ("product_float16_tflops", "product_float32_tflops", "copy_tb_per_s", "launch_us"):
        assert found[name] > 0


# Clocks -----------------------------------------------------------------------------------------------------


def test_saved_bytes_counts_each_storage_once_and_no_operands():
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(3, 3))

        def forward(self, input):
            output = (input @ self.weight).tanh()  # the product saves its operands, tanh its result
            return output * output.view(-1).view_as(output)  # saves that result twice more

    assert saved_bytes(Module(), torch.randn(5, 3)) == 5 * 3 * 4


def test_the_host_time_of_a_call_is_that_of_calls_in_a_row_without_waiting(monkeypatch):
    class Device(HostClock):
        """Calls take 2 ms of the host; a wait for the work that they queue takes 100 ms."""

        def __init__(self):
            super().__init__()
            self.now = self.waits = self.calls = 0
            monkeypatch.setattr(clocks, "time", SimpleNamespace(perf_counter=lambda: self.now))

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
    assert busy == pytest.approx(2_000)  # without the waits of 100 ms each
    device = Device()
    device.busy_us(device.call, calls=10**6, seconds=0.009)
    assert device.calls == 5


@pytest.mark.skipif(not hasattr(torch.ops.fused_rnn, "cuda_plan"), reason="a build without CUDA kernels")
@pytest.mark.parametrize("cell", CELLS)
def test_a_record_says_how_the_kernels_divide_the_work(cell):
    case, chip = Case(cell, sized(7, 40, 5, input_size=11), "training", "bfloat16"), cuda.Chip(132, 232_448)
    found = plans(case, chip)
    assert list(found) == ["forward", "backward"]
    name = "rnn_tanh" if cell == "rnn" else cell
    for direction, plan in found.items():
        assert plan == asdict(cuda.plan(name, torch.bfloat16, 40, 7, 11, direction, chip))
    assert list(plans(replace(case, mode="forward"), chip)) == ["forward"]


def test_the_floor_is_the_longer_of_multiplying_and_moving():
    shape = Shape("small", batch=2, input_size=3, hidden_size=5, steps=7, layers=2)
    # a GRU's layers multiply each of 14 rows by 15·3 + 15·5 and 15·5 + 15·5 weights
    forward, training = Case("gru", shape, "forward"), Case("gru", shape, "training")
    assert work(forward) == (2 * 14 * (120 + 150), 14 * (3 + 5 + 5 + 5) + 120 + 150)
    assert work(training)[0] == 3 * work(forward)[0]
    assert floor_ms(forward, CEILINGS) == pytest.approx(4 * work(forward)[1] / 0.01e9)
    assert floor_ms(forward, {**CEILINGS, "copy_tb_per_s": 10}) == pytest.approx(7560 / 0.1e9)
    assert floor_ms(forward, {**CEILINGS, "copy_tb_per_s": None}) is None


def test_the_multiplicative_cells_have_their_modifier_in_the_floor():
    shape = Shape("small", batch=1, input_size=3, hidden_size=5, steps=1)
    assert work(Case("multiplicative_lstm", shape, "forward"))[0] == 2 * (20 * 3 + 20 * 5 + 3 * 3 + 3 * 5)
