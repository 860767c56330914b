"""The one measuring loop, in a process of its own: it checks every candidate of a case, then times them side by side.

Candidates take turns, one call each in a round, so that a machine that slows down for a while slows all of them. Wrong
candidates are not timed, those that raise are recorded with the message, and neither prevent the others from being
measured. Results are checked again after the last round, so that an intermittent error has two chances to be seen.
"""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import ClassVar

import torch
from torch import nn

from benchmarks.budget import Budget
from benchmarks.gpu import machine
from fused_rnn import cuda

from .candidates import Candidate, CompiledLoop, Graphed, Ready, candidates
from .cases import NAMES, Case, random_operands
from .ceilings import ceilings
from .check import Bench
from .child import serve
from .clock import HostClock, clock_for, peak_growth, saved_bytes, summary
from .plan import Plan

SLOW = {"rivals": 2.5, "compiled": 2.5}  # by group, multiples of the patience for code that compiles for long


class DeviceLostError(Exception):
    """The device no longer answers, so nothing more can be measured in this process."""


@dataclass
class Entry:
    """One candidate in one case, and its record; its times in ms at the initial pace, and the paces that they had."""

    candidate: Candidate
    case: Case
    bench: Bench
    record: dict
    ready: Ready | None = None
    times: list[float] = field(default_factory=list)
    paces: list[float] = field(default_factory=list)

    @property
    def runs(self) -> bool:
        return not {"wrong", "failed"} & self.record.keys()


class Pace:
    """The speed of the device, as a multiple of its speed when this was made.

    Some measurements take minutes, in which processors change their clock and neighbours come and go. Their times are
    normalised to the initial pace, which a small product right before each measurement tells.
    """

    SIZES: ClassVar[dict[str, int]] = {"cpu": 256, "cuda": 4096}  # of the product, in rows

    def __init__(self, clock: HostClock) -> None:
        size = self.SIZES[clock.device.type]
        self._clock, self._matrix = clock, torch.randn(size, size, device=clock.device)
        self._out = torch.empty_like(self._matrix)
        self._first = median(self._ms() for _ in range(30))

    def now(self) -> float:
        return self._first / self._ms()

    def _ms(self) -> float:
        """Return the best of three times, because interruptions of a product say nothing of the pace."""
        return min(self._clock.time(lambda: torch.mm(self._matrix, self._matrix, out=self._out)) for _ in range(3))


def measure(plan: Plan, *candidate: str) -> Iterator[dict]:
    """Yield the device's ceilings, then for each part of the plan the records of its cases, or why they were skipped.

    With the name of a candidate: yield its peak memory, in the one training step that the plan then has.
    """
    if candidate:
        yield {"memory": peak_memory(plan, *candidate)}
        return
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    budget = Budget(60 * plan.minutes if plan.minutes else math.inf)
    loop = Loop(plan, clock_for(torch.device(plan.device)), budget)
    if plan.ceilings:
        yield {"ceilings": loop.ceilings()}
    for part, obstacle in budget.spend(plan.parts()):
        begun = budget.gone
        records = [{"skipped": obstacle}] * len(part.cases) if obstacle else loop.measure(part.cases)
        yield {"cases": records, "seconds": round(budget.gone - begun, 2)}
        if loop.lost:
            raise SystemExit(f"error: the device does not answer after {part.cases[-1]}: {loop.lost}")


class Loop:
    """Measures cases according to a plan, by a clock and within a budget."""

    def __init__(self, plan: Plan, clock: HostClock, budget: Budget | None = None) -> None:
        self.plan, self.clock, self.budget = plan, clock, budget or Budget(math.inf)
        self.pace = Pace(clock) if plan.passes > 1 else None
        self.lost = ""  # why the device stopped answering
        self._bench: Bench | None = None

    def ceilings(self) -> dict:
        found = ceilings(self.clock, self.plan.dtypes, small=self.plan.quick)
        launches = machine.launch_costs(self.clock) if self.plan.host_calls else {}
        return {"threads": torch.get_num_threads(), **found, **launches}

    def measure(self, cases: Sequence[Case]) -> list[dict]:
        """Return a record for each case, with those of the times of its candidates, and of their memory."""
        records: list[dict] = [{} for _ in cases]
        try:
            self.fill(records, cases)
        except DeviceLostError as lost:
            self.lost = str(lost)
            return [{"failed": self.lost} for _ in cases]
        self.clock.free()  # memory of the candidates
        return records

    def fill(self, records: list[dict], cases: Sequence[Case]) -> None:
        """Make the candidates of all cases ready at once, and pass over the cases as often as planned."""
        prepared = [self.prepare(case, record) for case, record in zip(cases, records)]
        for _ in range(self.plan.passes):
            for entries in prepared:
                self.time_in_turn(entries)
        for entries, record in zip(prepared, records):
            self.finish(entries, record)

    def prepare(self, case: Case, record: dict) -> list[Entry]:
        """Return the candidates of a case, the correct ones ready to run; none, with the reason, if its bench fails."""
        try:
            bench = self.bench(case)
            found = candidates(case, self.plan.backends, self.clock.device, self.plan.candidates)
            for candidate in found:
                bench.expected(candidate)
        except Exception as error:  # e.g. if the float64 results do not fit the memory
            record["failed"] = message(error)
            return []
        entries = [Entry(of, case, bench, {"candidate": of.name, "title": of.title}) for of in found]
        for entry in entries:
            with self.recorded(entry), time_limit(self.patience(case)):
                self.make_ready(entry)
            if not entry.runs:
                entry.ready = None
                self.clock.free()
        return entries

    def bench(self, case: Case) -> Bench:
        """Return the bench of the case before, which mostly has the same shape, or replace it."""
        dtype = getattr(torch, case.dtype)
        if self._bench is None or (self._bench.shape, self._bench.dtype) != (case.shape, dtype):
            self._bench = None
            self.clock.free()
            self._bench = Bench(case.shape, dtype, self.clock.device, self.plan.sets)
        return self._bench

    def patience(self, case: Case) -> float | None:
        if self.plan.patience is None:
            return None
        return min(self.plan.patience * SLOW.get(case.group, 1.0), max(self.budget.left, 10.0))

    def make_ready(self, entry: Entry) -> None:
        """Build a candidate, run it once and judge it."""

        def first_run() -> None:
            entry.ready = entry.bench.ready(entry.candidate, entry.case)
            entry.ready.run()
            self.clock.wait()

        entry.record["ready_s"] = round(HostClock().time(first_run) / 1000, 3)
        if entry.candidate.backend == "cuda":
            entry.record["plans"] = plans(entry.case)
        if self.clock.device.type == "cuda" and isinstance(entry.ready.module, nn.RNNBase):
            entry.record["weights_in_one_piece"] = in_one_piece(entry.ready.module)
        judge(entry)

    def time_in_turn(self, entries: Sequence[Entry]) -> None:
        """Run a pass of a case: rounds until there are enough, or their time is over."""
        plan, gone = self.plan, 0.0
        for number in range(plan.warm_up + plan.rounds):
            enough = number >= plan.warm_up + plan.least_rounds
            if enough and plan.seconds is not None and gone > plan.seconds:
                break
            for entry in entries:
                if not entry.runs:
                    continue
                with self.recorded(entry):
                    entry.ready.load(number)
                    pace = self.pace.now() if self.pace else 1.0
                    begun = time.perf_counter()
                    ms = self.clock.time(entry.ready.run)
                    gone += time.perf_counter() - begun
                    if number >= plan.warm_up:
                        entry.times.append(ms * pace)
                        entry.paces.append(pace)

    def finish(self, entries: Sequence[Entry], record: dict) -> None:
        """Judge candidates again, and record the times of those that are still right; then their memory."""
        for entry in entries:
            with self.recorded(entry):
                if entry.runs:
                    judge(entry)
                if entry.runs:
                    entry.record |= self.times(entry)
        if "failed" not in record:
            record["times"] = [entry.record for entry in entries]
        if self.plan.kind == "gpu" and entries and entries[0].case.mode == "training":
            record["memory"] = [self.memory(entry) for entry in entries if entry.runs]

    def times(self, entry: Entry) -> dict[str, float]:
        found = {**summary(entry.times), "rounds": len(entry.times)}
        if self.pace:
            found["pace"] = round(median(entry.paces), 3)
        if self.plan.host_calls:
            found["host_us_per_call"] = round(self.clock.busy_us(entry.ready.run, self.plan.host_calls), 1)
        return found

    def memory(self, entry: Entry) -> dict:
        """Return the peak memory of a training step, and the bytes that its forward pass keeps for backward."""
        of = entry.candidate
        memory = replace(entry, record={"candidate": of.name, "title": of.title})
        graphed = isinstance(entry.ready, Graphed)  # allocates memory when it is captured, none when it is replayed

        def anew() -> None:
            entry.bench.ready(of, entry.case).run()

        with self.recorded(memory):
            memory.record["peak_bytes"] = self.clock.peak_bytes(anew if graphed else entry.ready.run)
            if not graphed and not isinstance(entry.ready.module, CompiledLoop):  # hooks would cause recompilation
                memory.record["saved_bytes"] = saved_bytes(entry.ready.module, entry.ready.input, entry.ready.call)
        return memory.record

    @contextlib.contextmanager
    def recorded(self, entry: Entry) -> Iterator[None]:
        """Record exceptions; raise DeviceLostError if the device no longer answers."""
        try:
            yield
        except Exception as error:
            entry.record["failed"] = message(error)
            entry.ready = None
            try:
                self.clock.wait()
            except RuntimeError as lost:
                raise DeviceLostError(f"{entry.candidate.name}: {entry.record['failed']}") from lost


def judge(entry: Entry) -> None:
    error = entry.bench.error(entry.candidate, entry.ready)
    entry.record["error"] = error.record()
    if error.wrong:
        entry.record["wrong"] = str(error)


def in_one_piece(module: nn.Module) -> bool:
    """Whether the parameters are contiguous for cuDNN; otherwise PyTorch copies them in every call."""
    return len({parameter.untyped_storage().data_ptr() for parameter in module.parameters()}) == 1


def plans(case: Case, chip: cuda.Chip | None = None) -> dict[str, dict]:
    """Return, by direction, the CUDA kernels' plan for the first layer, by default on the current GPU."""
    directions = ("forward", "backward") if case.mode == "training" else ("forward",)
    cell, dtype, shape = NAMES[case.cell], getattr(torch, case.dtype), case.shape
    sizes = shape.batch, shape.hidden_size, shape.input_size
    return {direction: asdict(cuda.plan(cell, dtype, *sizes, direction, chip)) for direction in directions}


def peak_memory(plan: Plan, name: str) -> dict:
    """Return by how much a training step of the plan's only such case raises the peak of the resident set."""
    (case,) = (case for case in plan.cases() if case.mode == "training")
    (candidate,) = (way for way in candidates(case, plan.backends, asked=plan.candidates) if way.name == name)
    ready = Bench(case.shape, getattr(torch, case.dtype)).ready(candidate, case)
    # a short sequence first, because libraries load code and start threads in their first call
    few = {"batch": 2, "steps": 3, "lengths": (3, 1)} if case.shape.lengths else {"steps": 2}
    short = replace(case, shape=replace(case.shape, **few))
    candidate.ready(ready.module, short, [random_operands(short.shape, getattr(torch, case.dtype))]).run()
    peak = round(2**20 * peak_growth(ready.run))
    return {"candidate": candidate.name, "title": candidate.title, "peak_bytes": peak}


def message(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise TimeoutError in code that takes longer; only between Python's instructions, and in the main thread."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
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


if __name__ == "__main__":
    serve(measure, Plan)
