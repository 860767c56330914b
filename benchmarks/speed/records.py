"""A reader of files of results, for the tables and the pictures.

``python -m benchmarks.speed`` writes a list of cases, each with the records of its candidates.
"""

from dataclasses import dataclass, field

from .cases import Case, Shape
from .ceilings import floor_ms

Records = dict[str, dict]  # by the name of the candidate


@dataclass
class Measured:
    """A case, and its records of times and of memory; a skipped case has none."""

    case: Case
    threads: int
    times: Records = field(default_factory=dict)
    memory: Records = field(default_factory=dict)
    skipped: str = ""  # why it was not measured
    failed: str = ""  # why none of it could be measured
    kernels: dict | None = None  # µs per step of the fused cell's kernels, if a profiler was used

    @property
    def place(self) -> tuple[str, str, Shape]:
        """The key that it shares with its other modes."""
        return self.case.cell, self.case.dtype, self.case.shape

    def ms(self, candidate: str) -> float | None:
        """Return the time of a candidate; only correct ones were timed."""
        return self.quantity("time", candidate)

    def quantity(self, kind: str, candidate: str) -> float | None:
        """Return the ``time`` in ms or in ``us`` per step, the ``host``'s µs of a call, or the ``memory`` in MiB."""
        name = {"memory": "peak_bytes", "host": "host_us_per_call"}.get(kind, "median_ms")
        number = self.records(kind).get(candidate, {}).get(name)
        if number is None:
            return None
        return {"us": 1000 * number / self.case.shape.steps, "memory": number / 2**20}.get(kind, number)

    def records(self, kind: str) -> Records:
        return self.memory if kind == "memory" else self.times

    def problem(self, kind: str, candidate: str) -> str:
        return problem_of(self.records(kind).get(candidate, {}))


class Results:
    """A file of results; ``raw`` is its content."""

    def __init__(self, raw: dict) -> None:
        self.raw, self.plan, self.machine = raw, raw["plan"], raw["hardware"]
        self.day, self.command = raw["date"][:10], raw.get("command")
        self.base: dict[str, int] = raw.get("base", {})  # the size from which others grow, one at a time
        self.cases = [_of_case(found) for found in raw["cases"]]
        self.threads: list[int] = self.machine["threads"]
        self.ceilings: dict[int, dict] = {found["threads"]: found for found in raw.get("ceilings", [])}

    @property
    def dtype(self) -> str:
        """The dtype of a file that has only one."""
        return self.plan["dtypes"][0]

    @property
    def backend(self) -> str:
        return self.plan["backends"][0]

    @property
    def shapes(self) -> dict[str, Shape]:
        return {measured.case.shape.name: measured.case.shape for measured in self.cases}

    @property
    def columns(self) -> list[tuple[str, str]]:
        """The names of shapes and the modes that were timed, mode by mode."""
        modes = list(dict.fromkeys(measured.case.mode for measured in self.cases))
        places = dict.fromkeys((measured.case.shape.name, measured.case.mode) for measured in self.cases)
        return sorted(places, key=lambda place: modes.index(place[1]))

    def at(self, cell: str, threads: int, shape: str, mode: str) -> Measured | None:
        """Return what was measured there, if anything."""
        place = cell, threads, shape, mode
        return next((m for m in self.cases if (m.case.cell, m.threads, m.case.shape.name, m.case.mode) == place), None)

    def floor_ms(self, measured: Measured) -> float | None:
        """Return the least possible time of a case; None if the ceilings were not measured."""
        return floor_ms(measured.case, self.ceilings.get(measured.threads, {}))

    def shares(self, measured: Measured) -> dict[str, float]:
        """Return the share of the floor in the time of every candidate."""
        floor = self.floor_ms(measured)
        times = {name: measured.ms(name) for name in measured.times}
        return {name: floor / ms for name, ms in times.items() if floor and ms}


def problem_of(record: dict) -> str:
    """Return ``wrong`` or ``failed`` if a record says so, else an empty string."""
    return next((problem for problem in ("wrong", "failed") if problem in record), "")


def is_fused(record: dict) -> bool:
    return record["title"].startswith("fused_rnn")


def titles(cases: list[Measured], kind: str = "time") -> dict[str, str]:
    """Return the candidates of some cases, and their titles."""
    return {name: record["title"] for measured in cases for name, record in measured.records(kind).items()}


def _of_case(found: dict) -> Measured:
    shape = {**found["shape"], "lengths": tuple(found["shape"].get("lengths", ())) or None}
    case = Case(found["cell"], Shape(**shape), found["mode"], found["dtype"], found["group"])
    times, memory = ({r["candidate"]: r for r in found.get(kind, [])} for kind in ("times", "memory"))
    reasons = {reason: found.get(reason, "") for reason in ("skipped", "failed")}
    return Measured(case, found["threads"], times, memory, **reasons, kernels=found.get("kernels_us_per_step"))
