"""Speed and memory on a CPU: the tables of every cell, of single steps, and of every other way to run a cell.

Entries read *ours / theirs = ratio*; a ratio above 1 is in our favour.
"""

from collections.abc import Iterator

from benchmarks import pictures as shown
from benchmarks.common import digits, folded, table
from benchmarks.speed.cases import CELLS, TITLES
from benchmarks.speed.pictures import pictures
from benchmarks.speed.records import Measured, Results, titles

from . import MALLOC, block_of, multiple, ratio

HEADINGS = {  # by kind of table: of the column in a summary, and of the table
    "training": ("training", "Training step (forward and backward), ms"),
    "last": ("training from the last output", "Training step with a gradient of the last output alone, ms"),
    "forward": ("forward", "Forward only, ms"),
    "stream": ("single steps", "Forward with a call for each step, ms for all"),
    "stream_recording": ("steps, recorded", "Forward with a call for each step that records a gradient, ms for all"),
    "stream_training": ("steps, training", "Forward with a call for each step and backward through all, ms for all"),
    "memory": ("memory, training", "Peak memory of a training step, MiB"),
}


def section(found: Results) -> str:
    """Make the ratios; folded, the machine, and a table for each mode and for memory."""
    kinds = by_kind(found)
    parts = [folded(HEADINGS[kind][1], entries(cases, kind)) for kind, cases in kinds.items()]
    if found.ceilings:
        title = "Share of the physical floor, fused / other"
        parts.append(folded(title, ceilings(found), floor_table(found)))
    drawn = folded("Pictures", shown.markdown(pictures(found.raw), found.raw))
    return "\n\n".join([f"**{found.dtype}**", summary(kinds), preamble(found), *parts, drawn])


def by_kind(found: Results) -> dict[str, list[Measured]]:
    """Return the cases of each kind of table, if there are any."""
    kinds: dict[str, list[Measured]] = {kind: [] for kind in HEADINGS}
    for measured in found.cases:
        kinds["last" if measured.case.shape.last_only else measured.case.mode].append(measured)
    kinds["memory"] = [measured for measured in found.cases if measured.memory]
    return {kind: cases for kind, cases in kinds.items() if cases}


def summary(kinds: dict[str, list[Measured]]) -> str:
    """Make a table with one row per cell and rival: the least and greatest ratio over shapes and thread counts."""
    everything = [measured for kind, cases in kinds.items() if kind != "memory" for measured in cases]
    rows = (
        (
            title,
            name,
            *(_range([m for m in cases if m.case.cell == cell], rival, kind) for kind, cases in kinds.items()),
        )
        for cell, title in CELLS.items()
        for rival, name in rivals(everything, cell).items()
    )
    return table(["cell", "compared with", *(HEADINGS[kind][0] for kind in kinds)], rows)


def rivals(cases: list[Measured], cell: str) -> dict[str, str]:
    """Return the rivals of a cell, with their titles."""
    found = titles([measured for measured in cases if measured.case.cell == cell])
    return {name: title for name, title in found.items() if name != "fused"}


def _range(cases: list[Measured], rival: str, kind: str) -> str:
    problems = {measured.problem(kind, name) for measured in cases for name in ("fused", rival)} - {""}
    if problems:
        return max(problems)
    pairs = [[measured.quantity(kind, name) for name in ("fused", rival)] for measured in cases]
    ratios = [theirs / ours for ours, theirs in pairs if ours and theirs]
    if not ratios:
        return "–"
    least, greatest = f"{min(ratios):.2f}", f"{max(ratios):.2f}"
    return f"{least}×" if least == greatest else f"{least} to {greatest}×"


def preamble(found: Results) -> str:
    machine, plan = found.machine, found.plan
    times = [record for measured in found.cases for record in measured.times.values() if "median_ms" in record]
    spreads = sorted(record["spread_ms"] / record["median_ms"] for record in times)
    noise = (
        f"; half of them typically lie in a band {spreads[len(spreads) // 2]:.0%} of the median wide" if spreads else ""
    )
    return (
        f"Measured on {found.day} with `{found.command}`: {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['system']}, Python {machine['python']}, torch {machine['torch']}, "
        f"fused_rnn {machine['fused_rnn']}, backend `{found.backend}`, {found.dtype}. Times are medians of "
        f"{plan['rounds']} interleaved rounds after {plan['warm_up']} to warm up{noise}; "
        f"{MALLOC[found.raw['allocator']['name']]}. Shapes: {shapes(found)}. "
        "Peak memory: growth of the resident set during one step, in a fresh process with malloc as it is by default. "
        "Above: how many times faster, or smaller, least and greatest over shapes and thread counts. Below, after "
        "fused / other: each by itself."
    )


def shapes(found: Results) -> str:
    return "; ".join(f"({name}) {shape}" for name, shape in found.shapes.items())


def ceilings(found: Results) -> str:
    """State the limits of the machine, as measured in the same run."""
    rates = ", ".join(
        f"{threads}: products at {digits(1000 * rates[f'product_{found.dtype}_tflops'])} GFLOP/s, "
        f"copies at {digits(1000 * rates['copy_tb_per_s'])} GB/s"
        for threads, rates in found.ceilings.items()
    )
    return (
        f"Ceilings by number of threads, from the same run: {rates}. The floor is the longer of the time for all "
        "multiplications at the one rate and that for inputs, outputs, weights and their gradients at the other."
    )


def floor_table(found: Results) -> str:
    """Make a table with one row per cell, thread count and rival, one column per shape and mode."""

    def rows() -> Iterator[list[str]]:
        for cell, title in CELLS.items():
            for count in found.threads:
                cases = [found.at(cell, count, *place) for place in found.columns]
                shares = [found.shares(measured) if measured else {} for measured in cases]
                for rival, name in rivals(list(filter(None, cases)), cell).items():
                    pairs = [(share.get("fused"), share.get(rival)) for share in shares]
                    yield [title, str(count), name, *(" / ".join(map(_percent, pair)) for pair in pairs)]

    return table(["cell", "threads", "other", *(f"({shape}) {mode}" for shape, mode in found.columns)], rows())


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def entries(cases: list[Measured], kind: str = "time") -> str:
    """Make a table with one row per cell, thread count and rival, one column per shape: times, or memory."""
    shapes = sorted({measured.case.shape.name for measured in cases})
    found = {(m.case.cell, m.threads, m.case.shape.name): m for m in cases}
    rows = (
        [title, str(count), name, *(ratio(found.get((cell, count, shape)), "fused", rival, kind) for shape in shapes)]
        for cell, title in TITLES.items()
        for rival, name in rivals(cases, cell).items()
        for count in sorted({measured.threads for measured in cases})
    )
    return table(["cell", "threads", "other", *(f"({shape})" for shape in shapes)], rows)


def steps_section(found: Results) -> str:
    """Make the section of one file of results: a table for each mode."""
    machine = found.machine
    intro = (
        f"A call for each step, measured on {found.day} with `{found.command}`: {machine['cpu']}, "
        f"{machine['system']}, Python {machine['python']}, torch {machine['torch']}, "
        f"fused_rnn {machine['fused_rnn']}, {found.dtype}, medians of {found.plan['rounds']} interleaved rounds, "
        f"{MALLOC[found.raw['allocator']['name']]}. Shapes: {shapes(found)}. Entries: fused / other."
    )
    parts = (f"{HEADINGS[mode][1]}:\n\n{entries(cases)}" for mode, cases in by_kind(found).items())
    return "\n\n".join([intro, *parts])


def rivals_section(found: Results) -> str:
    """Make a table with a row per cell, shape and mode, a column per rival: its time over the fused cell's."""
    names = {name: title for name, title in titles(found.cases).items() if name != "fused"}
    rows = (
        [
            f"{CELLS[cell]}, ({shape}) {mode}",
            str(count),
            *(multiple(measured, "time", name, measured.ms("fused")) for name in ("fused", *names)),
        ]
        for shape, mode in found.columns
        for cell in found.plan["cells"]
        for count in found.threads
        if (measured := found.at(cell, count, shape, mode))
    )
    intro = (
        f"Every other way to run a cell, measured on {found.day} with `{found.command}`: "
        f"{found.machine['cpu']}, torch {found.machine['torch']}, {found.dtype}, medians of {found.plan['rounds']} "
        f"interleaved rounds, {MALLOC[found.raw['allocator']['name']]}. Entries: ms = times as long as the fused cell. "
        "torch.compile has the loop in pieces of as many steps as divide T: longer ones run a little faster, but the "
        "whole loop takes many minutes to compile."
    )
    head = ["", "threads", "fused", *("torch.nn" if name == "torch" else title for name, title in names.items())]
    return "\n\n".join([intro, table(head, rows)])


block, steps_block, rivals_block = map(block_of, (section, steps_section, rivals_section))
