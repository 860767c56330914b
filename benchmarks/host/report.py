"""The block of README.md on the host's part of a GPU call; ``benchmarks.report`` puts it there.

Every number comes from a file that ``python -m benchmarks.host`` wrote.
"""

from benchmarks.common import NOT_MEASURED, digits

MODULES = {"lstm": "LSTM", "gru": "GRU"}
MODES = {"forward": "no gradient", "recorded": "recorded", "training": "training step"}
PARTS = {
    "forward": "products around the forward loop",
    "training": "products around the backward loop",
}


def block(results: list[dict]) -> str:
    """Make one section per file of results, or one sentence without results."""
    return "\n\n".join(section(result) for result in results) if results else NOT_MEASURED


def section(result: dict) -> str:
    machine, plan = result["hardware"], result["plan"]
    times = {(r["source"], r["cell"], r["layers"], r["mode"], r["part"]): r["us"] for r in result["times"]}
    sources = plan["sources"]
    preamble = (
        f"What the host does for a call on a GPU, without one, measured on {result['date'][:10]} with `python -m "
        f"benchmarks.host`: {machine['cpu']}, one thread, torch {machine['torch']}. µs of that thread, medians of "
        f"{plan['repeats']} processes' medians of {plan['rounds']} rounds. In place of the kernels their results are "
        "allocated, and products are of tiny tensors on the CPU: launches, cuBLAS, planning and the GPU's allocator "
        "are not in it."
    )
    return "\n\n".join([preamble, calls(times, sources), "In these calls:", parts(times, sources)])


def calls(times: dict[tuple, float], sources: list[str]) -> str:
    """Make the table of whole calls, with their time as a share of earlier sources'."""
    here, *earlier = sources
    lines = [f"| | {' | '.join(MODES.values())} |", "|---" * (1 + len(MODES)) + "|"]
    for cell, layers in _modules(times):
        entries = []
        for mode in MODES:
            us = times[here, cell, layers, mode, "call"]
            before = [times[source, cell, layers, mode, "call"] for source in earlier]
            shares = [f" of {digits(other)}: {us / other:.0%}" for other in before]
            entries.append(digits(us) + "".join(shares))
        lines.append(f"| {_title(cell, layers)} | {' | '.join(entries)} |")
    if earlier:
        lines.append(f"\nAfter *of*: the same at revision {', '.join(earlier)}.")
    return "\n".join(lines)


def parts(times: dict[tuple, float], sources: list[str]) -> str:
    """Make the table of parts: products with the kernels' results, and the rest of forward passes and training."""
    head = ["module, checks and choice", "recording", *PARTS.values(), "backward pass but its products"]
    lines = [f"| | | {' | '.join(head)} |", "|---" * (2 + len(head)) + "|"]
    for cell, layers in _modules(times):
        for source in sources:
            us = {(mode, part): value for (*of, mode, part), value in times.items() if of == [source, cell, layers]}
            forward, backward = (us[mode, "products"] for mode in PARTS)
            recorded, whole = us["recorded", "call"], us["forward", "call"]
            rest = us["training", "call"] - recorded - backward
            entries = [whole - forward, recorded - whole, forward, backward, rest]
            lines.append(f"| {_title(cell, layers)} | {source} | {' | '.join(map(digits, entries))} |")
    return "\n".join(lines)


def _modules(times: dict[tuple, float]) -> list[tuple[str, int]]:
    return list(dict.fromkeys((cell, layers) for _, cell, layers, *_ in times))


def _title(cell: str, layers: int) -> str:
    return f"{MODULES[cell]}, {layers} layer{'s' * (layers > 1)}"
