"""One point: every candidate checked, then timed side by side, and its memory read.

Candidates take turns, one call each in a round, on operands that change from round to round. A candidate that is wrong
is not timed, one that raises is recorded with its message, and neither keeps the others from being measured. Results
are checked once more after the last round, so that an error that comes and goes has two chances to be seen.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from benchmarks.speed.cases import Case, random_operands
from benchmarks.speed.timing import summary

from .candidates import MODES, Graphed, Operands, Ready, Way, build
from .check import Judge, judges
from .clock import HostClock, Reading
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


@dataclass(frozen=True)
class Bench:
    """A point with all that its candidates share."""

    point: Point
    clock: HostClock
    plan: Plan
    sets: list[Operands]
    judges: dict[str, Judge]

    def ready(self, way: Way, mode: str) -> Ready:
        weights = self.judges[way.candidate.equations].weights
        module = build(way.candidate, self.point, weights, self.clock.device)
        return way.ready(module, Case(self.point.cell, self.point.shape, mode), self.sets)


@dataclass
class Entry:
    """One candidate in one mode, and what is recorded of it."""

    way: Way
    record: dict
    ready: Ready | None = None
    readings: list[Reading] = field(default_factory=list)

    @property
    def runs(self) -> bool:
        return not {"wrong", "failed"} & self.record.keys()


def measure_point(point: Point, ways: Sequence[Way], clock: HostClock, plan: Plan, left: float) -> dict:
    """The record of a point; ``left`` is how many seconds the whole run still has."""
    dtype = getattr(torch, point.dtype)
    sets = [random_operands(point.shape, dtype, clock.device, seed) for seed in range(plan.sets)]
    bench = Bench(point, clock, plan, sets, judges([way.candidate.equations for way in ways], point, sets[0]))
    times, memory = [], []
    for mode in MODES:
        entries = measure_mode(bench, mode, ways, left)
        times += [entry.record for entry in entries]
        if mode == "training":
            memory = [measure_memory(bench, entry) for entry in entries if entry.runs]
        entries.clear()  # with all that they hold on the device
    return {"times": times, "memory": memory, "ratios": ratios(times)}


def measure_mode(bench: Bench, mode: str, ways: Sequence[Way], left: float) -> list[Entry]:
    """Every candidate in one mode, those that run still ready to."""
    entries = []
    limit = min(bench.plan.patience, max(left, 10.0))
    for way in ways:
        if mode not in way.modes:
            continue
        entry = Entry(way, {"mode": mode, "candidate": way.name, "title": way.candidate.title})
        entries.append(entry)
        with recorded(entry, bench.clock), time_limit(limit):
            prepare(bench, entry, mode)
        if not entry.runs:
            entry.ready = None
            bench.clock.free()
    time_rounds(entries, bench.clock, bench.plan)
    for entry in entries:
        with recorded(entry, bench.clock):
            finish(bench, entry)
    return entries


def prepare(bench: Bench, entry: Entry, mode: str) -> None:
    """Build a candidate, run it once and judge it."""

    def first_run() -> None:
        entry.ready = bench.ready(entry.way, mode)
        entry.ready.run()
        bench.clock.wait()

    entry.record["ready_s"] = round(HostClock().time(first_run).ms / 1000, 3)
    judge_results(bench, entry)


def judge_results(bench: Bench, entry: Entry) -> None:
    entry.ready.load(0)  # those that the judges know the results of
    error = bench.judges[entry.way.candidate.equations].error(entry.ready.run(), entry.way.factor)
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


def finish(bench: Bench, entry: Entry) -> None:
    """Judge a candidate that was timed again, and write its times down if it is still right."""
    if entry.runs:
        judge_results(bench, entry)
    if not entry.runs:
        return
    steps = bench.point.steps
    device = summary([1000 * reading.ms / steps for reading in entry.readings])
    host = summary([1000 * reading.host_ms / steps for reading in entry.readings])
    entry.record |= {"us_per_step": device["median_ms"], "spread_us": device["spread_ms"]}
    entry.record |= {"host_us_per_step": host["median_ms"], "rounds": len(entry.readings)}


def measure_memory(bench: Bench, entry: Entry) -> dict:
    """Peak memory of a training step, and what its forward pass keeps for the backward pass."""
    way = entry.way
    memory = Entry(way, {"candidate": way.name, "title": way.candidate.title})
    with recorded(memory, bench.clock):
        if isinstance(entry.ready, Graphed):  # takes its memory when it is captured, none when it is replayed
            memory.record["peak_bytes"] = bench.clock.peak_bytes(lambda: bench.ready(way, "training").run())
        else:
            memory.record["peak_bytes"] = bench.clock.peak_bytes(entry.ready.run)
        if type(entry.ready) is Ready:  # hooks would have a compiled module compiled again
            memory.record["saved_bytes"] = saved_bytes(entry.ready.module, bench.sets[0][0])
    return memory.record


def saved_bytes(module: nn.Module, input: Tensor) -> int:
    """Bytes that autograd keeps of one forward pass, its outputs included, its input and the parameters not."""
    operands = [input, *module.parameters()]
    known = {tensor.untyped_storage().data_ptr() for tensor in operands}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = module(input.detach().requires_grad_())  # alive until here, so that no two storages share a place
    del output
    return sum(kept.values())


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
            raise DeviceLostError(f"{entry.way.name}: {entry.record['failed']}") from lost


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
