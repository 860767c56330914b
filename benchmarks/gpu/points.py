"""What is measured: cells, dtypes and sizes, the most telling first, and whether there is time for another."""

import time
from collections.abc import Callable, Iterator, Sequence
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


class Budget:
    """The time a run may take. What a job will take is told from all those before it."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = clock()
        self._seconds = seconds
        self._taken = self._cost = 0.0  # seconds and cost of the jobs so far

    @property
    def gone(self) -> float:
        return self._clock() - self._start

    @property
    def left(self) -> float:
        return self._seconds - self.gone

    def obstacle(self, cost: float) -> str | None:
        """Why a job does not fit the time that is left, or None if it does."""
        if self.left <= 0:
            return f"the {self._seconds:.0f} s of the run were over"
        expected = cost * self._taken / self._cost if self._cost else 0.0
        if expected > self.left:
            return f"it would take about {expected:.0f} s, and {self.left:.0f} s were left"
        return None

    def spend(self, jobs: Sequence[Point]) -> Iterator[tuple[Point, str | None]]:
        """Each job with the reason to skip it, or None; the time until the next is asked for is what it took."""
        for job in jobs:
            obstacle, start = self.obstacle(job.cost), self.gone
            yield job, obstacle
            if obstacle is None:
                self._taken += self.gone - start
                self._cost += job.cost
