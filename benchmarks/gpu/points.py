"""What is measured: cells, dtypes and sizes, the most telling first."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from benchmarks.speed.cases import CELLS, Shape
from benchmarks.speed.cases import GPU_BATCHES as BATCHES
from benchmarks.speed.cases import GPU_DTYPES as DTYPES
from benchmarks.speed.cases import GPU_HIDDEN as HIDDEN
from benchmarks.speed.cases import GPU_SIZES as MAIN_SIZES
from benchmarks.speed.cases import GPU_STEPS as STEPS

LIBRARY_CELLS = ("lstm", "gru_reset_after")  # those for which cuDNN has persistent kernels, in float16
SWEPT_CELLS = ("lstm", "gru", "multiplicative_lstm")


@dataclass(frozen=True)
class Point:
    """A cell in a dtype at a size; I = H."""

    cell: str
    dtype: str
    hidden: int
    batch: int
    steps: int

    def __str__(self) -> str:
        return f"{self.cell} {self.dtype} H={self.hidden} B={self.batch} T={self.steps}"

    @property
    def shape(self) -> Shape:
        return Shape(str(self), self.batch, self.hidden, self.hidden, self.steps)

    @property
    def cost(self) -> float:
        """About how long the point takes, in arbitrary units: launches of a step, then its products."""
        return self.steps * (1 + self.batch * self.hidden**2 / 1e8)


def rank(point: Point) -> int:
    """0 is measured first; 3 is measured only if it is asked for."""
    size = (point.hidden, point.batch)
    if size in MAIN_SIZES and point.dtype != "float16":
        return 0
    if size in MAIN_SIZES and point.cell in LIBRARY_CELLS:
        return 1
    swept = point.hidden == 512 or point.batch == 16
    return 2 if swept and point.dtype == "bfloat16" and point.cell in SWEPT_CELLS else 3


def _order(point: Point) -> tuple[int, int]:
    size = (point.hidden, point.batch)
    return rank(point), MAIN_SIZES.index(size) if size in MAIN_SIZES else len(MAIN_SIZES)


def chosen_points(
    cells: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    hidden: Sequence[int] | None = None,
    batches: Sequence[int] | None = None,
    steps: int = STEPS,
) -> list[Point]:
    """Every combination of what is given, None being all; the default subset where no dtype or size is given."""
    grid = product(dtypes or DTYPES, cells or CELLS, hidden or HIDDEN, batches or BATCHES)
    points = dict.fromkeys(Point(cell, dtype, h, b, steps) for dtype, cell, h, b in grid)
    if dtypes is hidden is batches is None:
        points = [point for point in points if rank(point) < 3]
    return sorted(points, key=_order)


def tiny_points() -> list[Point]:
    """Two points that any CPU runs in a moment."""
    return [Point("lstm", "float32", 8, 2, 4), Point("multiplicative_gru", "float32", 5, 3, 4)]
