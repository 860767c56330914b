"""Sequences of episodes, by how many of all steps begin one. Entries read *ours / theirs = ratio*."""

from benchmarks.common import table
from benchmarks.speed.cases import CELLS, MODES
from benchmarks.speed.records import Measured, Results, titles

from . import MALLOC, block_of, origin, ratio

OURS, WITHOUT = "resets", "without"


def section(found: Results) -> str:
    return "\n\n".join([preamble(found), *(f"{mode.capitalize()}, ms:\n\n{times(found, mode)}" for mode in MODES)])


def preamble(found: Results) -> str:
    shape = next(iter(found.shapes.values()))
    return (
        f"{origin(found)}, T={shape.steps}, B={shape.batch}, I=H={shape.hidden_size}, one layer, one direction. So "
        "many of all steps, drawn at random, begin an episode. All that a way does with the boundaries is timed. Times "
        f"are medians of {found.plan['rounds']} rounds in which the ways take turns, with "
        f"{MALLOC[found.raw['allocator']['name']]}. The cost of `resets` is what a call takes beyond one without any."
    )


def times(found: Results, mode: str) -> str:
    """Make a table with one row per cell and share, one column per way with torch.nn."""
    others = {name: title for name, title in titles(found.cases).items() if name not in (OURS, WITHOUT)}
    rows = []
    for cell in found.plan["cells"]:
        for share in found.shapes:
            case = found.at(cell, found.threads[0], share, mode)
            rows.append([CELLS[cell], share, cost(case), *(ratio(case, OURS, other) for other in others)])
    return table(["cell", "episodes", "cost of `resets`", *(f"`resets` / {title}" for title in others.values())], rows)


def cost(case: Measured | None) -> str:
    """Return the additional time of a call due to resets, in percent."""
    if case is None or not {OURS, WITHOUT} <= case.times.keys():
        return "–"
    if problem := case.problem("time", OURS) or case.problem("time", WITHOUT):
        return problem
    return f"{100 * (case.ms(OURS) / case.ms(WITHOUT) - 1):+.1f} %"


block = block_of(section)
