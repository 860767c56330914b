"""``python -m benchmarks.report``: write the results of ``benchmarks.speed`` and ``benchmarks.gpu`` into README.md.

Each has a block between two markers. Every number, name and date there comes from the files in benchmarks/results/; a
test checks that the blocks are those that these files give. Entries of the CPU's tables read *ours / theirs = ratio*,
more than 1 being in our favour; the GPU's are made in ``benchmarks.gpu.report``.
"""

import json
import re
from pathlib import Path

from benchmarks import common
from benchmarks.gpu import report as gpu
from benchmarks.gpu.report import digits
from benchmarks.speed import RESULTS, ROOT
from benchmarks.speed.cases import CELLS, Shape

README = ROOT / "README.md"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
GPU_BEGIN, GPU_END = "<!-- gpu-benchmarks:begin -->", "<!-- gpu-benchmarks:end -->"

HEADINGS = {
    "training": "Training step (forward and backward), ms",
    "forward": "Forward only, ms",
    "memory": "Peak memory of a training step, MiB",
}
MALLOC = {
    "resident": "malloc told to keep what is freed, in huge pages: least noise, kindest to code that allocates a lot",
    "default": "malloc as it is by default",
}


def load_results(folder: Path = RESULTS, kind: str = "speed") -> list[dict]:
    """Every file of results of a kind, speed or gpu, in a fixed order: none if nothing has been measured yet."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{kind}-*.json"), reverse=True)]


def block(results: list[dict]) -> str:
    """The CPU's block, with its markers."""
    return "\n\n".join([BEGIN, *(section(result) for result in results), END])


def gpu_block(results: list[dict]) -> str:
    """The GPU's block, with its markers."""
    return "\n\n".join([GPU_BEGIN, gpu.block(results), GPU_END])


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


def insert(readme: str, results: list[dict], gpu_results: list[dict]) -> str:
    """The README with its blocks replaced; raises InputError if their markers are not there once, in order."""
    blocks = {(BEGIN, END): block(results), (GPU_BEGIN, GPU_END): gpu_block(gpu_results)}
    for (begin, end), text in blocks.items():
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if len(pattern.findall(readme)) != 1 or readme.count(begin) != 1 or readme.count(end) != 1:
            raise common.InputError(f"the README must have the line {begin} once, and after it {end} once")
        readme = pattern.sub(lambda _, text=text: text, readme)
    return readme


def main(readme: Path = README, folder: Path = RESULTS) -> None:
    results = load_results(folder)
    if not results:
        raise common.InputError(f"there are no results in {folder}: run 'python -m benchmarks.speed' first")
    if not readme.exists():
        raise common.InputError(f"there is no {readme} to write the tables into")
    gpu_results = load_results(folder, "gpu")
    text = insert(readme.read_text(), results, gpu_results)
    with common.replacing(readme) as partial_path:
        partial_path.write_text(text)
    print(f"wrote the tables of {len(results) + len(gpu_results)} result files into {readme}")


if __name__ == "__main__":
    common.run_command(main)
