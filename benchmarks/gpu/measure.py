"""One point: every candidate checked, then timed side by side, and its memory read.

Candidates take turns, one call each in a round, on operands that change from round to round. A candidate that is wrong
is not timed, one that raises is recorded with its message, and neither keeps the others from being measured. Results
are checked once more after the last round, so that an error that comes and goes has two chances to be seen.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import nn

from benchmarks.speed.candidates import Candidate, CompiledLoop, Graphed, Ready
from benchmarks.speed.cases import NAMES, Case
from benchmarks.speed.check import Bench
from benchmarks.speed.clock import HostClock, Reading, saved_bytes, summary
from fused_rnn import cuda

from .candidates import MODES
from .points import Point


class DeviceLostError(Exception):
    """The device no longer answers, so nothing more can be measured in this process."""


@dataclass(frozen=True)
class Plan:
    """How much is measured; what a record says of it is the same for all points."""

    warm_up: int = 3  # rounds
    rounds: int = 30  # at most
    least_rounds: int = 5
    seconds: float = 1.5  # for the rounds of one mode of a point, beyond the least
    sets: int = 2  # of operands
    patience: float = 120.0  # seconds until a candidate must have run once; torch.compile needs the most
    host_calls: int = 20  # in a row, for the time that the host is busy with one


@dataclass
class Entry:
    """One candidate in one mode, and what is recorded of it."""

    candidate: Candidate
    case: Case
    record: dict
    ready: Ready | None = None
    readings: list[Reading] = field(default_factory=list)

    @property
    def runs(self) -> bool:
        return not {"wrong", "failed"} & self.record.keys()


def measure_point(point: Point, candidates: Sequence[Candidate], clock: HostClock, plan: Plan, left: float) -> dict:
    """The record of a point; ``left`` is how many seconds the whole run still has."""
    bench = Bench(point.shape, getattr(torch, point.dtype), clock.device, plan.sets)
    for candidate in candidates:
        bench.judge(candidate.equations)
    times, memory = [], []
    for mode in MODES:
        entries = measure_mode(bench, Case(point.cell, point.shape, mode), candidates, clock, plan, left)
        times += [entry.record for entry in entries]
        if mode == "training":
            memory = [measure_memory(bench, entry, clock) for entry in entries if entry.runs]
        entries.clear()  # with all that they hold on the device
    return {"times": times, "memory": memory, "ratios": ratios(times)}


def measure_mode(
    bench: Bench, case: Case, candidates: Sequence[Candidate], clock: HostClock, plan: Plan, left: float
) -> list[Entry]:
    """Every candidate in one mode, those that run still ready to."""
    entries = []
    limit = min(plan.patience, max(left, 10.0))
    for candidate in candidates:
        if candidate.training_only and case.mode != "training":
            continue
        record = {"mode": case.mode, "candidate": candidate.name, "title": candidate.title}
        entry = Entry(candidate, case, record)
        entries.append(entry)
        with recorded(entry, clock), time_limit(limit):
            prepare(bench, entry, clock)
        if not entry.runs:
            entry.ready = None
            clock.free()
    time_rounds(entries, clock, plan)
    for entry in entries:
        with recorded(entry, clock):
            finish(bench, entry, clock, plan)
    return entries


def prepare(bench: Bench, entry: Entry, clock: HostClock) -> None:
    """Build a candidate, run it once and judge it."""

    def first_run() -> None:
        entry.ready = bench.ready(entry.candidate, entry.case)
        entry.ready.run()
        clock.wait()

    entry.record["ready_s"] = round(HostClock().time(first_run).ms / 1000, 3)
    if entry.candidate.name.partition("-")[0] == "cuda":
        entry.record["plans"] = plans(entry.case, bench.dtype)
    if isinstance(entry.ready.module, nn.RNNBase):
        entry.record["weights_in_one_piece"] = in_one_piece(entry.ready.module)
    judge_results(bench, entry)


def in_one_piece(module: nn.Module) -> bool:
    """Whether the parameters lie as cuDNN wants them: if they do not, PyTorch copies them in every call."""
    return len({parameter.untyped_storage().data_ptr() for parameter in module.parameters()}) == 1


def plans(case: Case, dtype: torch.dtype, chip: cuda.Chip | None = None) -> dict[str, dict]:
    """By direction, how the CUDA kernels divide the work of the first layer, on the current GPU if no chip is given."""
    directions = ("forward", "backward") if case.mode == "training" else ("forward",)
    cell, shape = NAMES[case.cell], case.shape
    sizes = shape.batch, shape.hidden_size, shape.input_size
    return {direction: asdict(cuda.plan(cell, dtype, *sizes, direction, chip)) for direction in directions}


def judge_results(bench: Bench, entry: Entry) -> None:
    error = bench.error(entry.candidate, entry.ready)
    entry.record["error"] = error.record()
    if error.wrong:
        entry.record["wrong"] = str(error)


def time_rounds(entries: Sequence[Entry], clock: HostClock, plan: Plan) -> None:
    """Let the candidates take turns until there are enough rounds or the time for them is over."""
    gone = 0.0
    for number in range(plan.warm_up + plan.rounds):
        if gone > plan.seconds and number >= plan.warm_up + plan.least_rounds:
            break
        for entry in entries:
            if not entry.runs:
                continue
            with recorded(entry, clock):
                entry.ready.load(number)
                entry.readings.append(clock.time(entry.ready.run))
                gone += max(entry.readings[-1].ms, entry.readings[-1].host_ms) / 1000
    for entry in entries:
        del entry.readings[: plan.warm_up]


def finish(bench: Bench, entry: Entry, clock: HostClock, plan: Plan) -> None:
    """Judge a candidate that was timed again, and write its times down if it is still right."""
    if entry.runs:
        judge_results(bench, entry)
    if not entry.runs:
        return
    steps = bench.shape.steps
    device = summary([1000 * reading.ms / steps for reading in entry.readings])
    host = clock.busy_us(entry.ready.run, plan.host_calls)
    entry.record |= {"us_per_step": device["median_ms"], "spread_us": device["spread_ms"]}
    entry.record |= {"host_us_per_call": round(host, 1), "rounds": len(entry.readings)}


def measure_memory(bench: Bench, entry: Entry, clock: HostClock) -> dict:
    """Peak memory of a training step, and what its forward pass keeps for the backward pass."""
    candidate = entry.candidate
    memory = Entry(candidate, entry.case, {"candidate": candidate.name, "title": candidate.title})
    with recorded(memory, clock):
        if isinstance(entry.ready, Graphed):  # takes its memory when it is captured, none when it is replayed
            memory.record["peak_bytes"] = clock.peak_bytes(lambda: bench.ready(candidate, entry.case).run())
            return memory.record
        memory.record["peak_bytes"] = clock.peak_bytes(entry.ready.run)
        if not isinstance(entry.ready.module, CompiledLoop):  # hooks would have it compiled again
            memory.record["saved_bytes"] = saved_bytes(entry.ready.module, entry.ready.input, entry.ready.call)
    return memory.record


def ratios(times: Sequence[dict]) -> dict[str, dict[str, float]]:
    """By mode, how many times faster each fused backend is than each other candidate."""
    found: dict[str, dict[str, float]] = {}
    timed = [record for record in times if "us_per_step" in record]
    for ours in timed:
        if not ours["title"].startswith("fused_rnn"):
            continue
        for theirs in timed:
            if theirs["mode"] == ours["mode"] and theirs is not ours and ours["us_per_step"]:
                pair = f"{ours['candidate']} over {theirs['candidate']}"
                found.setdefault(ours["mode"], {})[pair] = round(theirs["us_per_step"] / ours["us_per_step"], 3)
    return found


@contextlib.contextmanager
def recorded(entry: Entry, clock: HostClock) -> Iterator[None]:
    """Record what is raised inside; raise DeviceLostError if the device does not answer any more."""
    try:
        yield
    except Exception as error:
        entry.record["failed"] = message(error)
        entry.ready = None
        try:
            clock.wait()
        except RuntimeError as lost:
            raise DeviceLostError(f"{entry.candidate.name}: {entry.record['failed']}") from lost


def message(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in code that takes longer; only between Python's instructions, and in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_) -> None:
        raise TimeoutError(f"it was not ready after {seconds:.0f} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
