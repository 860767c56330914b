"""The block on episodes within sequences; ``benchmarks.report`` puts it into benchmarks/README.md.

Every number comes from a file that ``python -m benchmarks.resets`` wrote. Entries read *ours / other = ratio*; a ratio
above 1 is in our favour.
"""

from benchmarks.common import NOT_MEASURED, digits
from benchmarks.speed.cases import CELLS
from benchmarks.speed.report import MALLOC

from .cases import MODES, OURS, TITLES, WITHOUT

OTHERS = [name for name in TITLES if name not in (OURS, WITHOUT)]


def block(results: list[dict]) -> str:
    """Make one section per file of results, or one sentence without results."""
    return "\n\n".join(section(result) for result in results) if results else NOT_MEASURED


def section(result: dict) -> str:
    tables = (f"{mode.capitalize()}, ms:\n\n{table(result, mode)}" for mode in MODES)
    return "\n\n".join([preamble(result), *tables])


def preamble(result: dict) -> str:
    machine, plan = result["hardware"], result["plan"]
    where = machine["cpu"] if plan["device"] == "cpu" else machine["gpu"]
    return (
        f"Measured on {result['date'][:10]} with `python -m benchmarks.resets`: {where}, threads: "
        f"{machine['threads']}, torch {machine['torch']}, fused_rnn {machine['fused_rnn']}, backend "
        f"`{plan['backend']}`, {plan['dtype']}, T={plan['steps']}, B={plan['batch']}, I=H={plan['size']}, one layer, "
        "one direction. So many of all steps, drawn at random, begin an episode. All that a way does with the "
        f"boundaries is timed. Times are medians of {plan['rounds']} rounds in which the ways take turns, with "
        f"{MALLOC[result['allocator']['name']]}. The cost of `resets` is what a call takes beyond one without any."
    )


def table(result: dict, mode: str) -> str:
    """Make a table with one row per cell and share."""
    head = ["cell", "episodes", "cost of `resets`", *(f"`resets` / {TITLES[name]}" for name in OTHERS)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for cell in result["plan"]["cells"]:
        for share in result["plan"]["shares"]:
            place = (cell, share, mode)
            found = {r["candidate"]: r for r in result["times"] if (r["cell"], r["share"], r["mode"]) == place}
            entries = [cost(found.get(OURS), found.get(WITHOUT))]
            entries += [entry(found.get(OURS), found.get(name)) for name in OTHERS]
            lines.append(f"| {CELLS[cell]} | {share} % | {' | '.join(entries)} |")
    return "\n".join(lines)


def cost(ours: dict | None, without: dict | None) -> str:
    """Return the additional time of a call due to resets, in percent."""
    if ours is None or without is None:
        return "–"
    if "wrong" in ours or "wrong" in without:
        return "wrong"
    return f"{100 * (ours['median_ms'] / without['median_ms'] - 1):+.1f} %"


def entry(ours: dict | None, theirs: dict | None) -> str:
    """Format ours / theirs = ratio."""
    if ours is None or theirs is None:
        return "–"
    if "wrong" in ours or "wrong" in theirs:
        return "wrong"
    mine, other = ours["median_ms"], theirs["median_ms"]
    return f"{digits(mine)} / {digits(other)} = **{other / mine:.2f}×**"
