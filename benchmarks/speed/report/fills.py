"""Sequences of different lengths on a CPU, by how much of T·B they fill. Entries read *ours / theirs = ratio*."""

from benchmarks.common import digits, table
from benchmarks.speed.cases import CELLS, MODES
from benchmarks.speed.records import Results

from . import MALLOC, block_of, origin, ratio

WAYS = {"packed": "packed", "lengths": "padded with `lengths`"}
THEIRS = "torch"


def section(found: Results) -> str:
    parts = [shares(found), preamble(found)]
    parts += [f"{mode.capitalize()}, ms:\n\n{times(found, mode)}" for mode in MODES]
    return "\n\n".join([*parts, f"Peak memory of a training step, MiB:\n\n{memory(found)}"])


def shares(found: Results) -> str:
    """Return the cost of the smallest fill as a fraction of that of full sequences, ours and torch.nn's."""
    least, *_, most = found.shapes
    rows = []
    for cell in found.plan["cells"]:
        for mode in MODES:
            part, whole = (found.at(cell, found.threads[0], fill, mode) for fill in (least, most))
            ways = [_share(part and part.ms(way), whole and whole.ms(way)) for way in (*WAYS, THEIRS)]
            rows.append([CELLS[cell], mode, *ways])
    return table([f"Time at {least} fill, of that at {most}", "", *WAYS.values(), "torch.nn, packed"], rows)


def _share(part: float | None, whole: float | None) -> str:
    return f"{digits(100 * part / whole)} %" if part and whole else "–"


def preamble(found: Results) -> str:
    shape = next(iter(found.shapes.values()))
    return (
        f"{origin(found)}, B={shape.batch}, I=H={shape.hidden_size}, one layer, one direction. The longest sequence "
        f"has T={shape.steps} steps, the others fall off by a power law until the steps that there are fill so much of "
        f"T·B. Packing and unpacking are not timed. Times are medians of {found.plan['rounds']} rounds in which the "
        f"ways take turns, with {MALLOC[found.raw['allocator']['name']]}; memory is what a training step takes beyond "
        "its operands, in a process of its own, with malloc as it is by default."
    )


def times(found: Results, mode: str) -> str:
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


block = block_of(section)
