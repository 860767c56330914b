"""The block of benchmarks/README.md on sequences of different lengths; ``benchmarks.report`` puts it there.

Every number comes from a file that ``python -m benchmarks.fills`` wrote. Entries read *ours / theirs = ratio*, more
than 1 being in our favour.
"""

from benchmarks.common import NOT_MEASURED, digits
from benchmarks.speed.cases import CELLS
from benchmarks.speed.report import MALLOC, entry

from .cases import MODES, OURS, THEIRS

WAYS = {"packed": "packed", "lengths": "padded with `lengths`"}


def block(results: list[dict]) -> str:
    """One section per file of results, or one sentence where there is none."""
    return "\n\n".join(section(result) for result in results) if results else NOT_MEASURED


def section(result: dict) -> str:
    parts = [shares(result), preamble(result)]
    parts += [f"{mode.capitalize()}, ms:\n\n{table(result, mode)}" for mode in MODES]
    return "\n\n".join([*parts, f"Peak memory of a training step, MiB:\n\n{memory_table(result)}"])


def shares(result: dict) -> str:
    """What the least fill costs as a part of what full sequences cost, ours and torch.nn's."""
    least, *_, most = (f"{fill} %" for fill in result["plan"]["fills"])
    lines = []
    for cell in result["plan"]["cells"]:
        for mode in MODES:
            found = {(r["candidate"], r["shape"]): r.get("median_ms") for r in result["times"] if _of(r, cell, mode)}
            parts = [_share(found.get((way, least)), found.get((way, most))) for way in (*OURS, THEIRS)]
            lines.append(f"| {CELLS[cell]} | {mode} | {' | '.join(parts)} |")
    head = f"| Time at {least} fill, of that at {most} | | {' | '.join(WAYS.values())} | torch.nn, packed |"
    return "\n".join([head, "|---" * (2 + len(OURS) + 1) + "|", *lines])


def _share(part: float | None, whole: float | None) -> str:
    return f"{digits(100 * part / whole)} %" if part and whole else "–"


def preamble(result: dict) -> str:
    machine, plan = result["hardware"], result["plan"]
    return (
        f"Measured on {result['date'][:10]} with `python -m benchmarks.fills`: {machine['cpu']}, threads: "
        f"{machine['threads']}, torch {machine['torch']}, fused_rnn {machine['fused_rnn']}, backend "
        f"`{plan['backend']}`, {plan['dtype']}, B={plan['batch']}, I=H={plan['size']}, one layer, one direction. The "
        f"longest sequence has T={plan['steps']} steps, the others fall off by a power law until the steps that there "
        "are fill so much of T·B. Packing and unpacking are not timed. Times are medians of "
        f"{plan['rounds']} rounds in which the ways take turns, with {MALLOC[result['allocator']['name']]}; memory "
        "is what a training step takes beyond its operands, in a process of its own, with malloc as it is by default."
    )


def table(result: dict, mode: str) -> str:
    """One row per fill, one column per cell and way of ours, beside torch.nn's of packed sequences."""
    cells = result["plan"]["cells"]
    head = [f"{CELLS[cell]}: {title} / torch.nn" for cell in cells for title in WAYS.values()]
    lines = [f"| fill | steps of all sequences | {' | '.join(head)} |", "|---" * (2 + len(head)) + "|"]
    for fill in result["plan"]["fills"]:
        shape = f"{fill} %"
        found = {(r["cell"], r["candidate"]): r for r in result["times"] if (r["shape"], r["mode"]) == (shape, mode)}
        rows = next(record["rows"] for record in found.values())
        entries = [entry(found.get((cell, way)), found.get((cell, THEIRS))) for cell in cells for way in OURS]
        lines.append(f"| {shape} | {rows} | {' | '.join(entries)} |")
    return "\n".join(lines)


def memory_table(result: dict) -> str:
    """Likewise of the one cell whose memory is measured."""
    titles = [f"{title} / torch.nn" for title in WAYS.values()]
    lines = [f"| fill | {' | '.join(titles)} |", "|---" * (1 + len(titles)) + "|"]
    for shape in dict.fromkeys(record["shape"] for record in result["memory"]):
        found = {record["candidate"]: record for record in result["memory"] if record["shape"] == shape}
        entries = [entry(found.get(way), found.get(THEIRS)) for way in OURS]
        lines.append(f"| {shape} | {' | '.join(entries)} |")
    cells = dict.fromkeys(CELLS[record["cell"]] for record in result["memory"])
    return "\n".join([*lines, "", f"Of the {' and the '.join(cells)}."])


def _of(record: dict, cell: str, mode: str) -> bool:
    return (record["cell"], record["mode"]) == (cell, mode)
