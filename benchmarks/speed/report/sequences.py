"""Sequences of different lengths, by how much of T·B they fill, and of episodes, by how many of all steps begin one.

Entries read *ours / theirs = ratio*.
"""

from benchmarks.common import digits, table
from benchmarks.speed.cases import CELLS, MODES
from benchmarks.speed.records import Measured, Results, titles

from . import MALLOC, block_of, origin, ratio

WAYS = {"packed": "packed", "lengths": "padded with `lengths`"}
THEIRS = "torch"


def method(found: Results) -> str:
    malloc = MALLOC[found.raw["allocator"]["name"]]
    return f"Times are medians of {found.plan['rounds']} rounds in which the ways take turns, with {malloc}"


# Different lengths --------------------------------------------------------------------------------------------


def fills(found: Results) -> str:
    shape = next(iter(found.shapes.values()))
    preamble = (
        f"{origin(found)}, B={shape.batch}, I=H={shape.hidden_size}, one layer, one direction. The longest sequence "
        f"has T={shape.steps} steps, the others fall off by a power law until the steps that there are fill so much of "
        f"T·B. Packing and unpacking are not timed. {method(found)}; memory is what a training step takes beyond its "
        "operands, in a process of its own, with malloc as it is by default."
    )
    times = [f"{mode.capitalize()}, ms:\n\n{fills_in(found, mode)}" for mode in MODES]
    return "\n\n".join([shares(found), preamble, *times, f"Peak memory of a training step, MiB:\n\n{memory(found)}"])


def shares(found: Results) -> str:
    """Return the cost of the smallest fill as a fraction of that of full sequences, ours and torch.nn's."""
    least, *_, most = found.shapes

    def share(cell: str, mode: str, way: str) -> str:
        cases = [found.at(cell, found.threads[0], fill, mode) for fill in (least, most)]
        part, whole = (case and case.ms(way) for case in cases)
        return f"{digits(100 * part / whole)} %" if part and whole else "–"

    rows = (
        [CELLS[cell], mode, *(share(cell, mode, way) for way in (*WAYS, THEIRS))]
        for cell in found.plan["cells"]
        for mode in MODES
    )
    return table([f"Time at {least} fill, of that at {most}", "", *WAYS.values(), "torch.nn, packed"], rows)


def fills_in(found: Results, mode: str) -> str:
    """Make a table with one row per fill, one column per cell and way of ours, beside torch.nn's packed sequences."""
    cells = found.plan["cells"]
    rows = []
    for fill, shape in found.shapes.items():
        cases = [found.at(cell, found.threads[0], fill, mode) for cell in cells]
        rows.append([fill, str(sum(shape.lengths)), *(ratio(case, way, THEIRS) for case in cases for way in WAYS)])
    head = [f"{CELLS[cell]}: {title} / torch.nn" for cell in cells for title in WAYS.values()]
    return table(["fill", "steps of all sequences", *head], rows)


def memory(found: Results) -> str:
    """Make such a table for the one cell whose memory is measured."""
    cases = [measured for measured in found.cases if measured.memory]
    rows = ([case.case.shape.name, *(ratio(case, way, THEIRS, "memory") for way in WAYS)] for case in cases)
    of = " and the ".join(dict.fromkeys(CELLS[measured.case.cell] for measured in cases))
    return table(["fill", *(f"{title} / torch.nn" for title in WAYS.values())], rows) + f"\n\nOf the {of}."


# Episodes -----------------------------------------------------------------------------------------------------


def resets(found: Results) -> str:
    shape = next(iter(found.shapes.values()))
    preamble = (
        f"{origin(found)}, T={shape.steps}, B={shape.batch}, I=H={shape.hidden_size}, one layer, one direction. So "
        "many of all steps, drawn at random, begin an episode. All that a way does with the boundaries is timed. "
        f"{method(found)}. The cost of `resets` is what a call takes beyond one without any."
    )
    return "\n\n".join([preamble, *(f"{mode.capitalize()}, ms:\n\n{resets_in(found, mode)}" for mode in MODES)])


def resets_in(found: Results, mode: str) -> str:
    """Make a table with one row per cell and share, one column per way with torch.nn."""
    others = {name: title for name, title in titles(found.cases).items() if name not in ("resets", "without")}
    rows = []
    for cell in found.plan["cells"]:
        for share in found.shapes:
            case = found.at(cell, found.threads[0], share, mode)
            rows.append([CELLS[cell], share, cost(case), *(ratio(case, "resets", other) for other in others)])
    return table(["cell", "episodes", "cost of `resets`", *(f"`resets` / {title}" for title in others.values())], rows)


def cost(case: Measured | None) -> str:
    """Return the additional time of a call due to resets, in percent."""
    if case is None or not {"resets", "without"} <= case.times.keys():
        return "–"
    if problem := case.problem("time", "resets") or case.problem("time", "without"):
        return problem
    return f"{100 * (case.ms('resets') / case.ms('without') - 1):+.1f} %"


fills_block, resets_block = map(block_of, (fills, resets))
