"""The block of README.md on how cost grows; ``benchmarks.report`` puts it there.

Every number comes from a file that ``python -m benchmarks.scaling`` wrote.
"""

from benchmarks import pictures as shown
from benchmarks.common import NOT_MEASURED, digits, folded
from benchmarks.speed.cases import CELLS

from .findings import CLIFF, STRAIGHT, Curve, curves, deviation, failures, leap
from .pictures import pictures
from .sweeps import AXES, MODES


def block(results: list[dict]) -> str:
    """One section per file of results, or one sentence where there is none."""
    return "\n\n".join(section(result) for result in results) if results else NOT_MEASURED


def section(result: dict) -> str:
    rows = table(result)
    details = folded("Every cell: how straight, and the greatest leaps", rows) if rows else ""
    parts = [verdict(result), preamble(result), details, shown.markdown(pictures(result), result)]
    return "\n\n".join(part for part in parts if part)


def preamble(result: dict) -> str:
    machine, plan, ceilings = result["hardware"], result["plan"], result["ceilings"]
    base = ", ".join(f"{name}={result['base'][axis]}" for axis, name in AXES.items() if axis != "layers")
    where = machine["gpu"] if plan["device"] != "cpu" else f"{machine['cpu']}, threads: {machine['threads']}"
    rate, bandwidth = ceilings.get(f"product_{plan['dtype']}_tflops"), ceilings.get("copy_tb_per_s")
    return (
        f"Measured on {result['date'][:10]} with `python -m benchmarks.scaling`: {where}, torch {machine['torch']}, "
        f"fused_rnn {machine['fused_rnn']}, backend `{plan['backend']}`, {plan['dtype']}. One size at a time grows, "
        f"from {base} and one layer; I=H. Times are medians over {plan['passes']} passes, in which candidates take "
        f"turns, each corrected by a small product right before it for how fast the machine then was{_paces(result)}. "
        f"The same run measured products at {digits(rate and 1000 * rate)} GFLOP/s and copies at "
        f"{digits(bandwidth and 1000 * bandwidth)} GB/s; the floor is the longer of the time for all multiplications "
        "at that rate and the time for inputs, outputs, weights and their gradients at that bandwidth."
    )


def _paces(result: dict) -> str:
    """From the slowest to the fastest, in words."""
    paces = [record["pace"] for record in result["records"] if "pace" in record]
    return f" ({min(paces):.2f} to {max(paces):.2f} times as fast as at first)" if paces else ""


def verdict(result: dict) -> str:
    """What the fused cells are held to, and plainly what of it does not hold."""
    found = failures(result)
    claim = (
        f"Time against T is a straight line within {STRAIGHT:.0%} for every fused cell, and nowhere does a unit of "
        f"work cost more than {CLIFF:g} times as much as at the next smaller size"
    )
    return "\n".join([f"{claim}, but for this:", "", *(f"- {text}" for text in found)] if found else [f"{claim}."])


def table(result: dict) -> str:
    """One row per cell, mode and candidate: how straight, and the greatest leap along every axis."""
    groups: dict[tuple[str, str, str], dict[str, Curve]] = {}
    for curve in curves(result):
        groups.setdefault((curve.cell, curve.mode, curve.title), {})[curve.axis] = curve
    axes = [axis for axis in AXES if any(axis in group for group in groups.values())]
    if not axes:
        return ""
    lines = [
        f"| cell | | | off a straight line in T | {' | '.join(f'leap in {AXES[axis]}' for axis in axes)} |",
        "|---" * (4 + len(axes)) + "|",
    ]
    order = sorted(groups, key=lambda key: (list(CELLS).index(key[0]), MODES.index(key[1])))
    for cell, mode, title in order:
        group = groups[cell, mode, title]
        bend = deviation(group["steps"]) if "steps" in group else None
        entries = [_leap(group.get(axis)) for axis in axes]
        straight = "–" if bend is None else f"{bend:.0%}"
        lines.append(f"| {CELLS[cell]} | {mode} | {title} | {straight} | {' | '.join(entries)} |")
    note = "Leap: the greatest rise of the cost of a unit of work from a size to the next; below 1, it always falls."
    return "\n".join([*lines, "", note])


def _leap(curve: Curve | None) -> str:
    found = leap(curve) if curve else None
    return f"{found.ratio:.2f}× ({found.smaller} to {found.larger})" if found else "–"
