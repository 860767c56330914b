"""The findings for growing sizes: how straight time is against T, and where the cost of a unit of work leaps.

A unit of work is a multiplication of the cell's products. Between two neighbouring sizes its cost may fall by any
amount, because more work shares the overhead. If it rises, the larger size is served worse: a cliff.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .cases import AXES
from .ceilings import work
from .records import Measured, Results

CLIFF = 2.0  # ratio of the costs of a unit of work at a size and at the next smaller one
STRAIGHT = 0.1  # as a fraction of the fitted time


@dataclass(frozen=True)
class Curve:
    """The times of one candidate along an axis, by growing size."""

    cell: str
    axis: str
    mode: str
    candidate: str
    title: str
    sizes: list[int]
    ms: list[float]
    flops: list[int]
    shares: list[float | None]  # of the floor in the time


class Leap(NamedTuple):
    """The largest rise of the cost of a unit of work from one size to the next; a cliff if above ``CLIFF``."""

    ratio: float
    smaller: int
    larger: int


def curves(found: Results) -> list[Curve]:
    """Return every curve of a file of results that has a point; wrong or failed cases have none."""
    groups: dict[tuple, list[Measured]] = {}
    for measured in found.cases:
        for name, record in measured.times.items():
            case = measured.case
            groups.setdefault((case.cell, case.group, case.mode, name, record["title"]), []).append(measured)
    lines = []
    for (cell, axis, mode, candidate, title), cases in groups.items():
        points = sorted((m for m in cases if m.ms(candidate)), key=size)
        sizes, ms = [size(m) for m in points], [m.ms(candidate) for m in points]
        flops, shares = [work(m.case)[0] for m in points], [found.shares(m).get(candidate) for m in points]
        lines += [Curve(cell, axis, mode, candidate, title, sizes, ms, flops, shares)] if points else []
    return lines


def size(measured: Measured) -> int:
    """Return the size that grows in its group."""
    return getattr(measured.case.shape, measured.case.group)


def leap(curve: Curve) -> Leap | None:
    """Find where the cost of a unit of work rises most, or falls least; None for a single point."""
    cost = [ms / flops for ms, flops in zip(curve.ms, curve.flops)]
    steps = zip(cost, cost[1:], curve.sizes, curve.sizes[1:])
    leaps = (Leap(after / before, *sizes) for before, after, *sizes in steps)
    return max(leaps, key=lambda leap: leap.ratio, default=None)


def line(curve: Curve) -> tuple[float, float]:
    """Return intercept and slope of the line that is nearest in relative terms: least squares of a/t + b·x/t − 1."""
    slope, intercept = np.polyfit(curve.sizes, curve.ms, 1, w=1 / np.array(curve.ms)).tolist()
    return intercept, slope


def deviation(curve: Curve) -> float | None:
    """Return the largest deviation of time from its line, as a fraction of the latter; None below three points."""
    if len(curve.sizes) < 3:
        return None
    intercept, slope = line(curve)
    return max(abs(ms / (intercept + slope * size) - 1) for size, ms in zip(curve.sizes, curve.ms))


def failures(found: Results) -> list[str]:
    """Return a sentence for each property that fused cells violate: straight lines, no cliffs, all points measured."""
    sentences = []
    for curve in curves(found):
        if curve.candidate != "fused":
            continue
        bend, rise, of = deviation(curve), leap(curve), f"{curve.cell}, {curve.mode}"
        if curve.axis == "steps" and bend is not None and bend > STRAIGHT:
            sentences.append(f"{of}: time against T is off a straight line by {bend:.0%}")
        if rise and rise.ratio > CLIFF:
            sizes = f"{AXES[curve.axis]}={rise.smaller} to {rise.larger}"
            sentences.append(f"{of}: from {sizes} a unit of work costs {rise.ratio:.2f} times as much")
    for measured in found.cases:
        of, at = f"{measured.case.cell}, {measured.case.mode}", f"{AXES[measured.case.group]}={size(measured)}"
        sentences += [f"{of}, {at}: {measured.failed}"] if measured.failed else []
        for record in measured.times.values():
            if problem := record.get("wrong") or record.get("failed"):
                sentences.append(f"{of}, {record['title']}, {at}: {problem}")
    skipped = {(m.case.cell, m.case.group): m.skipped for m in found.cases if m.skipped}
    return sentences + [f"{cell} against {AXES[axis]} was skipped: {why}" for (cell, axis), why in skipped.items()]
