"""The block of README.md on speed and memory on a CPU; ``benchmarks.report`` puts it there.

Every number, name and date comes from a file that ``python -m benchmarks.speed`` wrote. Entries read
*ours / theirs = ratio*, more than 1 being in our favour.
"""

from benchmarks import pictures as shown
from benchmarks.common import NOT_MEASURED, digits, folded

from .cases import CELLS, STEP_MODES, TITLES, Shape
from .pictures import pictures
from .records import columns, found_at, shares

KINDS = ("training", "last", "forward", "stream")
HEADINGS = {
    "training": "Training step (forward and backward), ms",
    "last": "Training step with a gradient of the last output alone, ms",
    "forward": "Forward only, ms",
    "stream": "Forward with a call for each step, ms for all",
    "stream_recording": "Forward with a call for each step that records a gradient, ms for all",
    "stream_training": "Forward with a call for each step and backward through all, ms for all",
    "memory": "Peak memory of a training step, MiB",
    "floor": "Share of the physical floor, fused / other",
}
SHORT_HEADINGS = {
    "training": "training",
    "last": "training from the last output",
    "forward": "forward",
    "stream": "single steps",
    "memory": "memory, training",
}
MALLOC = {
    "resident": "malloc told to keep what is freed, in huge pages: least noise, kindest to code that allocates a lot",
    "default": "malloc as it is by default",
}


def block(results: list[dict]) -> str:
    """One section per file of results, or one sentence where there is none."""
    return "\n\n".join(section(result) for result in results) if results else NOT_MEASURED


def section(result: dict) -> str:
    """One file of results: the ratios; folded, where they were measured and a table for each mode and for memory."""
    tables = measured(result)
    parts = [folded(HEADINGS[name], table(records)) for name, records in tables.items()]
    if result.get("ceilings"):
        parts.append(folded(HEADINGS["floor"], ceilings(result), floor_table(result)))
    drawn = folded("Pictures", shown.markdown(pictures(result), result))
    return "\n\n".join([f"**{dtype(result)}**", summary(result, tables), preamble(result), *parts, drawn])


def measured(result: dict) -> dict[str, list[dict]]:
    """The records of each kind of table, where there are any."""
    found: dict[str, list[dict]] = {kind: [] for kind in KINDS}
    for record in result["times"]:
        last_only = result["shapes"][record["shape"]].get("last_only")
        found["last" if last_only else record["mode"]].append(record)
    found["memory"] = result["memory"]
    return {name: records for name, records in found.items() if records}


def summary(result: dict, tables: dict[str, list[dict]]) -> str:
    """One row per cell and rival: the least and the greatest ratio over shapes and thread counts."""
    head = " | ".join(SHORT_HEADINGS[name] for name in tables)
    lines = [f"| cell | compared with | {head} |", "|---" * (2 + len(tables)) + "|"]
    for cell, title in CELLS.items():
        for rival, rival_title in rivals_of(cell, result["times"]).items():
            entries = " | ".join(_range(cell, rival, records) for records in tables.values())
            lines.append(f"| {title} | {rival_title} | {entries} |")
    return "\n".join(lines)


def rivals_of(cell: str, records: list[dict]) -> dict[str, str]:
    """Those of a cell, with their titles."""
    return {r["candidate"]: r["title"] for r in records if r["cell"] == cell and r["candidate"] != "fused"}


def _range(cell: str, rival: str, records: list[dict]) -> str:
    both = [record for record in records if record["cell"] == cell and record["candidate"] in ("fused", rival)]
    if any("wrong" in record for record in both):
        return "wrong"
    sizes = {(record["candidate"], record["threads"], record["shape"]): _size(record) for record in both}
    ratios = [
        theirs / ours
        for (name, *place), theirs in sizes.items()
        if name == rival and theirs and (ours := sizes.get(("fused", *place)))
    ]
    if not ratios:
        return "–"
    least, greatest = f"{min(ratios):.2f}", f"{max(ratios):.2f}"
    return f"{least}×" if least == greatest else f"{least} to {greatest}×"


def _size(record: dict) -> float | None:
    """Its time or memory, which what was wrong does not have."""
    return record.get("median_ms", record.get("peak_mib"))


def preamble(result: dict) -> str:
    machine, plan = result["hardware"], result["plan"]
    shapes = "; ".join(f"({name}) {Shape(**shape)}" for name, shape in result["shapes"].items())
    medians = [record for record in result["times"] if "median_ms" in record]
    spreads = sorted(record["spread_ms"] / record["median_ms"] for record in medians)
    noise = (
        f"; half of them typically lie in a band {spreads[len(spreads) // 2]:.0%} of the median wide" if spreads else ""
    )
    option = "" if dtype(result) == "float32" else f" --dtype {dtype(result)}"
    return (
        f"Measured on {result['date'][:10]} with `python -m benchmarks.speed{option}`: {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['system']}, Python {machine['python']}, torch {machine['torch']}, "
        f"fused_rnn {machine['fused_rnn']}, backend `{plan['backend']}`, {dtype(result)}. Times are medians of "
        f"{plan['rounds']} interleaved rounds after {plan['warm_up']} to warm up{noise}; "
        f"{MALLOC[result['allocator']['name']]}. Shapes: {shapes}. "
        "Peak memory: growth of the resident set during one step, in a fresh process with malloc as it is by default. "
        "Above: how many times faster, or smaller, least and greatest over shapes and thread counts. Below, after "
        "fused / other: each by itself."
    )


def dtype(result: dict) -> str:
    return result["plan"].get("dtype", "float32")


def ceilings(result: dict) -> str:
    """What the machine can do at all, as measured in the same run."""
    rates = ", ".join(
        f"{found['threads']}: products at {digits(1000 * found[f'product_{dtype(result)}_tflops'])} GFLOP/s, "
        f"copies at {digits(1000 * found['copy_tb_per_s'])} GB/s"
        for found in result["ceilings"]
    )
    return (
        f"Ceilings by number of threads, from the same run: {rates}. The floor is the longer of the time for all "
        "multiplications at the one rate and that for inputs, outputs, weights and their gradients at the other."
    )


def floor_table(result: dict) -> str:
    """One row per cell, thread count and rival, one column per shape and mode."""
    places, lines = columns(result), []
    for cell, title in CELLS.items():
        for count in result["hardware"]["threads"]:
            found = {place: shares(result, cell, count, place) for place in places}
            titles = {name: r["title"] for place in places for name, r in found_at(result, cell, count, place).items()}
            for rival, rival_title in ((name, text) for name, text in titles.items() if name != "fused"):
                pairs = [(found[place].get("fused"), found[place].get(rival)) for place in places]
                entries = " | ".join(" / ".join("–" if s is None else f"{s:.0%}" for s in pair) for pair in pairs)
                lines.append(f"| {title} | {count} | {rival_title} | {entries} |")
    head = " | ".join(f"({place.shape}) {place.mode}" for place in places)
    return "\n".join([f"| cell | threads | other | {head} |", "|---" * (3 + len(places)) + "|", *lines])


def table(records: list[dict]) -> str:
    """One row per cell, thread count and rival, one column per shape."""
    shapes = sorted({record["shape"] for record in records})
    found = {(r["cell"], r["threads"], r["candidate"], r["shape"]): r for r in records}
    threads = sorted({record["threads"] for record in records})
    lines = [
        f"| cell | threads | other | {' | '.join(f'({shape})' for shape in shapes)} |",
        "|---" * (3 + len(shapes)) + "|",
    ]
    for cell, title in TITLES.items():
        for rival, rival_title in rivals_of(cell, records).items():
            for count in threads:
                pairs = [[found.get((cell, count, name, shape)) for name in ("fused", rival)] for shape in shapes]
                entries = " | ".join(entry(*pair) for pair in pairs)
                lines.append(f"| {title} | {count} | {rival_title} | {entries} |")
    return "\n".join(lines)


def entry(ours: dict | None, theirs: dict | None) -> str:
    if ours is None or theirs is None:
        return "–"
    if "wrong" in ours or "wrong" in theirs:
        return "wrong"
    mine, other = _size(ours), _size(theirs)
    ratio = f"**{other / mine:.2f}×**" if mine else "–"  # a step may find all its memory in what was freed before
    return f"{digits(mine)} / {digits(other)} = {ratio}"


def steps_block(results: list[dict]) -> str:
    """What ``python -m benchmarks.speed --single-steps`` found; one sentence where it has not been run."""
    return "\n\n".join(steps_section(result) for result in results) if results else NOT_MEASURED


def steps_section(result: dict) -> str:
    """One file of results: a table for each mode."""
    machine, plan = result["hardware"], result["plan"]
    shapes = "; ".join(f"({name}) {Shape(**shape)}" for name, shape in result["shapes"].items())
    option = "" if dtype(result) == "float32" else f" --dtype {dtype(result)}"
    intro = (
        f"A call for each step, measured on {result['date'][:10]} with `python -m benchmarks.speed --single-steps"
        f"{option}`: {machine['cpu']}, {machine['system']}, Python {machine['python']}, torch {machine['torch']}, "
        f"fused_rnn {machine['fused_rnn']}, {dtype(result)}, medians of {plan['rounds']} interleaved rounds, "
        f"{MALLOC[result['allocator']['name']]}. Shapes: {shapes}. Entries: fused / other."
    )
    of_mode = {mode: [record for record in result["times"] if record["mode"] == mode] for mode in STEP_MODES}
    parts = [part for mode, records in of_mode.items() if records for part in (f"{HEADINGS[mode]}:", table(records))]
    return "\n\n".join([intro, *parts])


def rivals_block(results: list[dict]) -> str:
    """What ``python -m benchmarks.speed --all-rivals`` found; one sentence where it has not been run."""
    return "\n\n".join(rivals_section(result) for result in results) if results else NOT_MEASURED


def rivals_section(result: dict) -> str:
    """A row per cell, shape and mode, a column per rival: its time, as a multiple of the fused cell's."""
    machine, plan = result["hardware"], result["plan"]
    titles = {record["candidate"]: record["title"] for record in result["times"] if record["candidate"] != "fused"}
    rivals = {name: "torch.nn" if name == "torch" else title for name, title in titles.items()}
    lines = []
    for place in columns(result):
        for cell in plan["cells"]:
            for count in machine["threads"]:
                found = found_at(result, cell, count, place)
                ours = found.get("fused")
                entries = " | ".join(_multiple(ours, found.get(name)) for name in rivals)
                name = f"{CELLS[cell]}, ({place.shape}) {place.mode}"
                lines.append(f"| {name} | {count} | {_time(ours)} | {entries} |")
    intro = (
        f"Every other way to run a cell, measured on {result['date'][:10]} with `python -m benchmarks.speed "
        f"--all-rivals`: {machine['cpu']}, torch {machine['torch']}, {dtype(result)}, medians of {plan['rounds']} "
        f"interleaved rounds, {MALLOC[result['allocator']['name']]}. Entries: ms = times as long as the fused cell. "
        "torch.compile has the loop in pieces of as many steps as divide T: longer ones run a little faster, but the "
        "whole loop takes many minutes to compile."
    )
    head = [f"| | threads | fused | {' | '.join(rivals.values())} |", "|---" * (3 + len(rivals)) + "|"]
    return "\n\n".join([intro, "\n".join([*head, *lines])])


def _time(record: dict | None) -> str:
    return "wrong" if record and "wrong" in record else digits(record and record["median_ms"])


def _multiple(ours: dict | None, theirs: dict | None) -> str:
    if not ours or not theirs or "wrong" in ours or "wrong" in theirs:
        return _time(theirs)
    return f"{_time(theirs)} = **{theirs['median_ms'] / ours['median_ms']:.2f}×**"
