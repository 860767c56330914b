"""Files of results: the measurements at each point, read from JSON that is not trusted."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import common
from benchmarks.gpu.plans import DIRECTIONS
from benchmarks.speed import RESULTS
from fused_rnn import cells

ONCE = ("lstm", "gru_reset_after", "rnn_tanh", "rnn_relu")  # cells whose blocks exchange once a step
CELLS = (
    *ONCE,
    *("gru", "multiplicative_lstm", "multiplicative_lstm_hidden", "multiplicative_gru"),
)
DTYPES = ("bfloat16", "float16", "float32")
FAMILIES = ("cluster", "blocks")
OBSTACLES = {"refused", "failed", "not_timed"}  # reasons why a family has no times, in the record of a point


@dataclass(frozen=True)
class Times:
    """The times of a family at a point, in µs per step, or why they are unknown."""

    forward: float = 0.0
    backward: float = 0.0
    obstacle: str = ""

    @property
    def total(self) -> float:
        return self.forward + self.backward

    def below(self, other: "Times") -> bool:
        """Whether this is faster, forward and backward together; not if either is unknown."""
        return not (self.obstacle or other.obstacle) and self.total < other.total


@dataclass(frozen=True)
class Outcome:
    """The measurements at a point."""

    cell: str
    dtype: str
    hidden: int
    batch: int
    cluster: Times
    blocks: Times
    features: int = 0  # of a modulated input, on which kernels depend; 0 for other cells

    @property
    def sizes(self) -> str:
        features = f" I={self.features}" if self.features else ""
        return f"H={self.hidden} B={self.batch}{features}"

    @property
    def whole_rows(self) -> bool:
        """Whether values travel in rows of 8 instead of one by one."""
        return self.hidden % 8 == 0 and self.features % 8 == 0

    @property
    def ahead(self) -> bool:
        """Whether the cluster is right and faster; not if either is wrong, or cannot run."""
        return self.cluster.below(self.blocks)


@dataclass(frozen=True)
class Results:
    """A file of results."""

    name: str
    chip: str
    date: str
    torch: str
    digest: str  # of the family's sources
    outcomes: tuple[Outcome, ...]  # without points that were skipped for lack of time
    carried: tuple[str, ...] = ()  # digests of later sources with the same machine code
    but_for: tuple[str, ...] = ()  # instructions that were ignored in that comparison

    def valid_for(self, digest: str) -> bool:
        """Whether sources of this digest were measured, or have the same machine code as those that were."""
        return digest in (self.digest, *self.carried)


def files(folder: Path = RESULTS) -> list[Path]:
    """List the committed files of results."""
    return sorted(folder.glob("choice-*.json"))


def load(folder: Path = RESULTS) -> list[Results]:
    """Load all files of results; raise InputError if two have the same cell, dtype and chip, or one is malformed."""
    found = [read(path) for path in files(folder)]
    names: dict[tuple[str, str, str], str] = {}
    for results in found:
        for cell, dtype in sorted({(outcome.cell, outcome.dtype) for outcome in results.outcomes}):
            other = names.setdefault((cell, dtype, results.chip), results.name)
            if other != results.name:
                both = f"{other} and {results.name} both have {cell} in {dtype} on {results.chip}"
                raise common.InputError(f"{both}, and these must be in one file of results")
    return found


def read(path: Path) -> Results:
    """Read a file of results; raise InputError with its defect."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as problem:  # a JSONDecodeError is a ValueError
        raise _malformed(path, problem) from None
    return parse(content, path)


def parse(content: object, path: Path) -> Results:
    """Parse the content of a file; raise InputError with its defect."""
    try:
        hardware = _get(content, "hardware", dict)
        records = _get({"carried": [], **content}, "carried", list)
        ignored = {name for record in records for name in _get({"but_for": [], **record}, "but_for", list)}
        return Results(
            path.name,
            _get(hardware, "gpu", str),
            _get(content, "date", str),
            _get(hardware, "torch", str),
            _get(_get(content, "digests", dict), "family", str),
            tuple(_outcomes(_get(content, "points", list))),
            tuple(_get(record, "family", str) for record in records),
            tuple(sorted(ignored)),
        )
    except ValueError as problem:
        raise _malformed(path, problem) from None


def _malformed(path: Path, problem: Exception) -> common.InputError:
    return common.InputError(f"{path} holds no results of python -m benchmarks.gpu.choice: {problem}")


def _outcomes(points: Sequence[object]) -> Iterator[Outcome]:
    seen = set()
    for number, point in enumerate(points):
        try:
            if isinstance(point, dict) and "skipped" in point:
                continue
            found = outcome(point)
            sizes = (found.cell, found.dtype, found.hidden, found.batch, found.features)
            if sizes in seen:
                raise ValueError("has the sizes of one before it")
            seen.add(sizes)
            yield found
        except ValueError as problem:
            raise ValueError(f"points[{number}] {problem}") from None


def outcome(point: object) -> Outcome:
    """Parse the record of a point; raise ValueError with its defect."""
    cell, dtype = (_get(point, name, str) for name in ("cell", "dtype"))
    for value, known in ((cell, CELLS), (dtype, DTYPES)):
        if value not in known:
            raise ValueError(f"has {value!r}, where one of {', '.join(known)} is needed")
    modulated = modulates_input(cell)
    sizes = [_get(point, name, int) for name in ("hidden", "batch", *(["input"] if modulated else []))]
    if min(sizes) < 1:
        raise ValueError(f"has the size {min(sizes)}, and sizes must be at least 1")
    hidden, batch, *features = sizes
    return Outcome(cell, dtype, hidden, batch, *(_times(_get(point, family, dict)) for family in FAMILIES), *features)


def modulates_input(cell: str) -> bool:
    """Whether the kernels or plans of a cell depend on the number of features."""
    return cells.CELLS[cell].modulates == "input"


def _times(found: dict) -> Times:
    directions = {name: _get(found, name, dict) for name in DIRECTIONS if OBSTACLES.isdisjoint(found)}
    for record in (found, *directions.values()):
        for name in OBSTACLES & record.keys():
            return Times(obstacle=_get(record, name, str))
    error = _get(found, "error", dict)
    if not _get(error, "relative", float) <= _get(error, "allowed", float):  # NaN counts as wrong
        return Times(obstacle="its results are wrong")
    return Times(*(_positive(directions[name], "us_per_step") for name in DIRECTIONS))


def _positive(content: dict, name: str) -> float:
    value = _get(content, name, float)
    if not 0 < value < float("inf"):
        raise ValueError(f"has {value} for '{name}', which must be a finite number above 0")
    return value


def _get(content: object, name: str, kind: type):
    """Return a value of a JSON object; raise ValueError if it is missing or has another type."""
    if not isinstance(content, dict):
        raise ValueError(f"is {content!r:.40} where an object with '{name}' is needed")
    if name not in content:
        raise ValueError(f"lacks '{name}'")
    value = content[name]
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise ValueError(f"has {value!r:.40} for '{name}', which must be {KINDS[kind]}")
    return value


KINDS = {dict: "an object", list: "a list", str: "text", int: "a whole number", float: "a number"}
