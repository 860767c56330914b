"""What a sweep shows: how straight time is against T, and where the cost of a unit of work leaps.

A unit of work is a multiplication of the cell's products. Between two neighbouring sizes its cost may fall as far as it
likes, since overhead is shared by more of it. Where it rises, the larger size is served worse: a cliff.
"""

from dataclasses import dataclass

from .sweeps import AXES

CLIFF = 2.0  # times as much for a unit of work as at the next smaller size
STRAIGHT = 0.1  # as part of the time that the line gives


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


@dataclass(frozen=True)
class Leap:
    """The greatest rise of the cost of a unit of work from one size to the next."""

    ratio: float
    smaller: int
    larger: int

    @property
    def cliff(self) -> bool:
        return self.ratio > CLIFF


def curves(result: dict) -> list[Curve]:
    """Every curve of a file of results that has a point; what was wrong or failed has none."""
    groups: dict[tuple, list[dict]] = {}
    for record in result["records"]:
        key = tuple(record[name] for name in ("cell", "axis", "mode", "candidate", "title"))
        groups.setdefault(key, []).extend([record] if record.get("median_ms") else [])
    found = []
    for key, records in groups.items():
        points = sorted(records, key=lambda record: record["value"])
        values = ([record[name] for record in points] for name in ("value", "median_ms", "flops"))
        shares = [record["floor_ms"] and record["floor_ms"] / record["median_ms"] for record in points]
        found += [Curve(*key, *values, shares)] if points else []
    return found


def leap(curve: Curve) -> Leap | None:
    """Where the cost of a unit of work rises most, or falls least; None for a single point."""
    cost = [ms / flops for ms, flops in zip(curve.ms, curve.flops)]
    sizes = curve.sizes
    leaps = [Leap(cost[k + 1] / cost[k], sizes[k], sizes[k + 1]) for k in range(len(cost) - 1)]
    return max(leaps, key=lambda leap: leap.ratio, default=None)


def line(curve: Curve) -> tuple[float, float]:
    """Intercept and slope of the straight line that is nearest in relative terms: least squares of a/t + b·x/t − 1."""
    u, v = [1 / ms for ms in curve.ms], [size / ms for size, ms in zip(curve.sizes, curve.ms)]
    uu, uv, vv = (sum(p * q for p, q in zip(*pair)) for pair in ((u, u), (u, v), (v, v)))
    determinant = uu * vv - uv * uv
    return (sum(u) * vv - sum(v) * uv) / determinant, (sum(v) * uu - sum(u) * uv) / determinant


def deviation(curve: Curve) -> float | None:
    """How far time is off its line at most, as a part of what the line gives; None for fewer than three points."""
    if len(curve.sizes) < 3:
        return None
    intercept, slope = line(curve)
    return max(abs(ms / (intercept + slope * size) - 1) for size, ms in zip(curve.sizes, curve.ms))


def failures(result: dict) -> list[str]:
    """Whatever the fused cells do not hold, in a sentence each: straight lines, no cliffs, all points measured."""
    found = []
    for curve in curves(result):
        if curve.candidate != "fused":
            continue
        bend, rise, of = deviation(curve), leap(curve), f"{curve.cell}, {curve.mode}"
        if curve.axis == "steps" and bend is not None and bend > STRAIGHT:
            found.append(f"{of}: time against T is off a straight line by {bend:.0%}")
        if rise and rise.cliff:
            sizes = f"{AXES[curve.axis]}={rise.smaller} to {rise.larger}"
            found.append(f"{of}: from {sizes} a unit of work costs {rise.ratio:.2f} times as much")
    for record in result["records"]:
        if problem := record.get("wrong") or record.get("failed"):
            size = f"{AXES[record['axis']]}={record['value']}"
            found.append(f"{record['cell']}, {record['mode']}, {record['title']}, {size}: {problem}")
    skipped = result["skipped"]
    return found + [f"{skip['cell']} against {AXES[skip['axis']]} was skipped: {skip['reason']}" for skip in skipped]
