"""What is measured: cells, dtypes and sizes in groups, the most telling first.

``honest`` are sizes and dtypes for which cuDNN has persistent kernels: where it is at its best. ``people`` are shapes
that people run. ``main`` are the sizes of the tables in bfloat16, ``single`` one sequence at a time, ``ragged`` are
sequences of different lengths, packed and padded. ``grid`` is the rest of the tables. ``rivals`` has other people's
fused kernels beside ours, which compile for minutes: it comes last. ``chosen`` is what the command line names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from benchmarks.speed.cases import CELLS, Shape
from benchmarks.speed.cases import GPU_BATCHES as BATCHES
from benchmarks.speed.cases import GPU_DTYPES as DTYPES
from benchmarks.speed.cases import GPU_HIDDEN as HIDDEN
from benchmarks.speed.cases import GPU_SIZES as MAIN_SIZES
from benchmarks.speed.cases import GPU_STEPS as STEPS

LIBRARY_CELLS = ("lstm", "gru_reset_after")  # those that cuDNN has too, the RNN left out
SWEPT_CELLS = ("lstm", "gru", "multiplicative_lstm")
CHOSEN = "chosen"


@dataclass(frozen=True)
class Point:
    """A cell in a dtype at a size, in its group; I = H where no input size is given."""

    cell: str
    dtype: str
    hidden: int
    batch: int
    steps: int
    input_size: int | None = None
    layers: int = 1
    directions: int = 1
    ragged: bool = False  # whether lengths are spread evenly, from steps down to steps / batch
    group: str = CHOSEN

    def __str__(self) -> str:
        return f"{self.cell} {self.dtype} {self.sizes}"

    @property
    def sizes(self) -> str:
        input = f"I={self.input_size} " if self.input_size else ""
        layers = f" {self.layers} layers" if self.layers > 1 else ""
        directions = " bidirectional" if self.directions > 1 else ""
        lengths = f" lengths {self.lengths[-1]} to {self.steps}" if self.ragged else ""
        return f"{input}H={self.hidden} B={self.batch} T={self.steps}{layers}{directions}{lengths}"

    @property
    def lengths(self) -> tuple[int, ...] | None:
        """Of the sequences, longest first, where they differ."""
        if not self.ragged:
            return None
        return tuple(self.steps - number * self.steps // self.batch for number in range(self.batch))

    @property
    def shape(self) -> Shape:
        sizes = self.batch, self.input_size or self.hidden, self.hidden, self.steps
        return Shape(str(self), *sizes, layers=self.layers, directions=self.directions, lengths=self.lengths)

    @property
    def cost(self) -> float:
        """About how long the point takes, in arbitrary units: launches of a step, then its products."""
        return self.layers * self.directions * self.steps * (1 + self.batch * self.hidden**2 / 1e8)


def _table(dtypes: Sequence[str], group: str, cells: Sequence[str] = tuple(CELLS)) -> list[Point]:
    """The main sizes, one after the other."""
    return [Point(cell, dtype, *size, STEPS, group=group) for size, dtype, cell in product(MAIN_SIZES, dtypes, cells)]


def _sweep() -> list[Point]:
    """How batch and hidden size matter, about two of the main sizes."""
    sizes = [(hidden, batch) for hidden, batch in product(HIDDEN, BATCHES) if hidden == 512 or batch == 16]
    return [Point(cell, "bfloat16", *size, STEPS, group="grid") for cell, size in product(SWEPT_CELLS, sizes)]


def _groups() -> dict[str, list[Point]]:
    """Every group's points, both in the order in which they are measured."""
    lstm, gru = LIBRARY_CELLS

    def honest(cell: str, dtype: str, hidden: int, batch: int) -> Point:
        return Point(cell, dtype, hidden, batch, steps=512, group="honest")

    def people(hidden: int, batch: int, steps: int, dtype: str = "bfloat16", **options) -> Point:
        return Point(lstm, dtype, hidden, batch, steps, group="people", **options)

    def single(cell: str, dtype: str, hidden: int) -> Point:
        return Point(cell, dtype, hidden, 1, STEPS, group="single")

    def rivals(cell: str, hidden: int, dtype: str = "bfloat16") -> Point:
        return Point(cell, dtype, hidden, 16, steps=1024, group="rivals")

    found = {
        "honest": [
            *(honest(lstm, "float16", *size) for size in ((128, 16), (512, 64), (768, 16))),
            *(honest(lstm, "float32", *size) for size in ((128, 16), (512, 64))),
            *(honest(gru, "float16", *size) for size in ((128, 16), (512, 64))),
            honest(gru, "float32", 128, 16),
        ],
        "people": [
            people(768, 16, 1024),
            people(256, 4096, 24, input_size=32),
            people(128, 1024, 150, input_size=300, directions=2),
            people(256, 32, 512, directions=2),
            people(168, 62, 2058, "float32"),
            people(384, 32, STEPS, layers=2),
        ],
        "main": _table(["bfloat16"], "main"),
        "single": [single(lstm, "bfloat16", 512), single(lstm, "float32", 128), single(gru, "bfloat16", 512)],
        "ragged": [
            Point(lstm, "float32", 128, 32, steps, ragged=True, group="ragged") for steps in (1000, 100, 10, 4000)
        ],
        "grid": [*_table(["float32"], "grid"), *_table(["float16"], "grid", LIBRARY_CELLS), *_sweep()],
        "rivals": [rivals(lstm, 768), rivals(lstm, 128), rivals(gru, 128), rivals(lstm, 128, "float32")],
    }
    known = {(p.cell, p.dtype, p.hidden, p.batch) for p in found["main"] + found["single"]}
    found["grid"] = [p for p in found["grid"] if (p.cell, p.dtype, p.hidden, p.batch) not in known]
    return found


GROUPS = _groups()


def points_of(
    names: Sequence[str] | None = None, cells: Sequence[str] | None = None, dtypes: Sequence[str] | None = None
) -> list[Point]:
    """The points of some groups or of all, in the order of the groups, of some cells and dtypes or of all."""
    return [
        point
        for name, points in GROUPS.items()
        for point in points
        if name in (names or GROUPS) and point.cell in (cells or CELLS) and point.dtype in (dtypes or DTYPES)
    ]


def chosen_points(
    cells: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    hidden: Sequence[int] | None = None,
    batches: Sequence[int] | None = None,
    steps: int = STEPS,
) -> list[Point]:
    """Every combination of what is given, None being all; the main sizes first."""
    grid = product(dtypes or DTYPES, cells or CELLS, hidden or HIDDEN, batches or BATCHES)
    points = dict.fromkeys(Point(cell, dtype, h, b, steps) for dtype, cell, h, b in grid)
    return sorted(points, key=_order)


def _order(point: Point) -> int:
    size = (point.hidden, point.batch)
    return MAIN_SIZES.index(size) if size in MAIN_SIZES else len(MAIN_SIZES)


def tiny_points() -> list[Point]:
    """A few points that any CPU runs in a moment: as they come, in two layers and directions, and ragged."""
    return [
        Point("lstm", "float32", 8, 2, 4),
        Point("multiplicative_gru", "float32", 5, 3, 4),
        Point("gru_reset_after", "float32", 6, 3, 4, input_size=5, layers=2, directions=2, group="people"),
        Point("lstm", "float32", 6, 3, 7, ragged=True, group="ragged"),
    ]
