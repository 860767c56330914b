"""The block of README.md on speed and memory on a CPU; ``benchmarks.report`` puts it there.

Every number, name and date comes from a file that ``python -m benchmarks.speed`` wrote. Entries read
*ours / theirs = ratio*, more than 1 being in our favour.
"""

from benchmarks.gpu.report import digits

from .cases import CELLS, Shape

HEADINGS = {
    "training": "Training step (forward and backward), ms",
    "forward": "Forward only, ms",
    "memory": "Peak memory of a training step, MiB",
}
MALLOC = {
    "resident": "malloc told to keep what is freed, in huge pages: least noise, kindest to code that allocates a lot",
    "default": "malloc as it is by default",
}


def block(results: list[dict]) -> str:
    """One section per file of results, or one sentence where there is none."""
    return "\n\n".join(section(result) for result in results) if results else "Nothing has been measured yet."


def section(result: dict) -> str:
    """One file of results: where it was measured, then a table each for training, forward and memory."""
    tables = {mode: [r for r in result["times"] if r["mode"] == mode] for mode in ("training", "forward")}
    tables["memory"] = result["memory"]
    parts = [f"**{HEADINGS[name]}**\n\n{table(records)}" for name, records in tables.items() if records]
    return "\n\n".join([preamble(result), *parts])


def preamble(result: dict) -> str:
    machine, plan = result["hardware"], result["plan"]
    shapes = "; ".join(f"({name}) {Shape(**shape)}" for name, shape in result["shapes"].items())
    medians = [record for record in result["times"] if "median_ms" in record]
    spreads = sorted(record["spread_ms"] / record["median_ms"] for record in medians)
    noise = (
        f"; half of them typically lie in a band {spreads[len(spreads) // 2]:.0%} of the median wide" if spreads else ""
    )
    return (
        f"Measured on {result['date'][:10]} with `python -m benchmarks.speed`: {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['system']}, Python {machine['python']}, torch {machine['torch']}, "
        f"fused_rnn {machine['fused_rnn']}, backend `{plan['backend']}`, float32. Times are medians of "
        f"{plan['rounds']} interleaved rounds after {plan['warm_up']} to warm up{noise}; "
        f"{MALLOC[result['allocator']['name']]}. Shapes: {shapes}. "
        "Peak memory: growth of the resident set during one step, in a fresh process with malloc as it is by default. "
        "Entries: fused / other = how many times faster, or smaller."
    )


def table(records: list[dict]) -> str:
    """One row per cell, thread count and rival, one column per shape."""
    shapes = sorted({record["shape"] for record in records})
    found = {(r["cell"], r["threads"], r["candidate"], r["shape"]): r for r in records}
    threads = sorted({record["threads"] for record in records})
    lines = [
        f"| cell | threads | other | {' | '.join(f'({shape})' for shape in shapes)} |",
        "|---" * (3 + len(shapes)) + "|",
    ]
    for cell, title in CELLS.items():
        rivals = {r["candidate"]: r["title"] for r in records if r["cell"] == cell and r["candidate"] != "fused"}
        for rival, rival_title in rivals.items():
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
    mine, other = (record.get("median_ms", record.get("peak_mib")) for record in (ours, theirs))
    ratio = f"**{other / mine:.2f}×**" if mine else "–"  # a step may find all its memory in what was freed before
    return f"{digits(mine)} / {digits(other)} = {ratio}"
