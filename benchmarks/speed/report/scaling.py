"""The growth of cost with T, B, H and the number of layers: the claims, and plainly where they do not hold."""

from benchmarks import pictures as shown
from benchmarks.common import digits, folded, table
from benchmarks.speed.cases import AXES, CELLS, MODES
from benchmarks.speed.findings import CLIFF, STRAIGHT, Curve, curves, deviation, failures, leap
from benchmarks.speed.pictures import scaling_pictures
from benchmarks.speed.records import Results

from . import block_of, origin


def section(found: Results) -> str:
    rows = leaps(found)
    details = folded("Every cell: how straight, and the greatest leaps", rows) if rows else ""
    drawn = shown.markdown(scaling_pictures(found.raw), found.raw)
    return "\n\n".join(part for part in (verdict(found), preamble(found), details, drawn) if part)


def preamble(found: Results) -> str:
    (ceilings,) = found.ceilings.values()
    base = ", ".join(f"{name}={found.base[axis]}" for axis, name in AXES.items() if axis != "layers")
    rate, bandwidth = ceilings.get(f"product_{found.dtype}_tflops"), ceilings.get("copy_tb_per_s")
    paces = [record["pace"] for measured in found.cases for record in measured.times.values() if "pace" in record]
    range = f" ({min(paces):.2f} to {max(paces):.2f} times as fast as at first)" if paces else ""
    return (
        f"{origin(found)}. One size at a time grows, from {base} and one layer; I=H. Times are medians over "
        f"{found.plan['passes']} passes, in which candidates take turns, each corrected by a small product right "
        f"before it for how fast the machine then was{range}. The same run measured products at "
        f"{digits(rate and 1000 * rate)} GFLOP/s and copies at {digits(bandwidth and 1000 * bandwidth)} GB/s; the "
        "floor is the longer of the time for all multiplications at that rate and the time for inputs, outputs, "
        "weights and their gradients at that bandwidth."
    )


def verdict(found: Results) -> str:
    """State the claims for the fused cells, and plainly which of them do not hold."""
    sentences = failures(found)
    claim = (
        f"Time against T is a straight line within {STRAIGHT:.0%} for every fused cell, and nowhere does a unit of "
        f"work cost more than {CLIFF:g} times as much as at the next smaller size"
    )
    return "\n".join(
        [f"{claim}, but for this:", "", *(f"- {text}" for text in sentences)] if sentences else [f"{claim}."]
    )


def leaps(found: Results) -> str:
    """Make a table with one row per cell, mode and candidate: straightness, and the largest leap along every axis."""
    groups: dict[tuple[str, str, str], dict[str, Curve]] = {}
    for curve in curves(found):
        groups.setdefault((curve.cell, curve.mode, curve.title), {})[curve.axis] = curve
    axes = [axis for axis in AXES if any(axis in group for group in groups.values())]
    if not axes:
        return ""
    rows = []
    for cell, mode, title in sorted(groups, key=lambda key: (list(CELLS).index(key[0]), MODES.index(key[1]))):
        group = groups[cell, mode, title]
        bend = deviation(group["steps"]) if "steps" in group else None
        straight = "–" if bend is None else f"{bend:.0%}"
        rows.append([CELLS[cell], mode, title, straight, *(_leap(group.get(axis)) for axis in axes)])
    head = ["cell", "", "", "off a straight line in T", *(f"leap in {AXES[axis]}" for axis in axes)]
    note = "Leap: the greatest rise of the cost of a unit of work from a size to the next; below 1, it always falls."
    return f"{table(head, rows)}\n\n{note}"


def _leap(curve: Curve | None) -> str:
    found = leap(curve) if curve else None
    return f"{found.ratio:.2f}× ({found.smaller} to {found.larger})" if found else "–"


block = block_of(section)
