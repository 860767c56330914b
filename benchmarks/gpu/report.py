"""The block of README.md that says how fast the cells are on a GPU; ``benchmarks.report`` puts it there.

Every number comes from a file that ``python -m benchmarks.gpu`` wrote. Entries read *fused / torch.nn / eager loop* at
the main sizes, a dash where there is no such candidate, with how many times faster (or smaller) fused is than each.
"""

from benchmarks import pictures as shown
from benchmarks.common import digits
from benchmarks.speed.cases import CELLS

from .pictures import pictures
from .points import MAIN_SIZES

NOT_RUN = "Not yet run on a GPU."
RIVALS = ("torch", "eager")
HEADINGS = {
    "forward": "Forward, {dtype}, µs per step",
    "training": "Training step, {dtype}, µs per step",
    "memory": "Peak memory of a training step, {dtype}, MiB",
}


def block(results: list[dict]) -> str:
    """One section per file of results, or one sentence where there is none."""
    return "\n\n".join(section(result) for result in results) if results else NOT_RUN


def section(result: dict) -> str:
    points = [p for p in result["points"] if "times" in p and (p["hidden"], p["batch"]) in MAIN_SIZES]
    parts = [preamble(result)]
    for dtype in dict.fromkeys(point["dtype"] for point in points):
        of_dtype = [point for point in points if point["dtype"] == dtype]
        for name, heading in HEADINGS.items():
            rows = table(of_dtype, name)
            if rows:
                parts.append(f"**{heading.format(dtype=dtype)}**\n\n{rows}")
    drawn = shown.markdown(pictures(result), result)
    return "\n\n".join([*parts, drawn] if drawn else parts)


def preamble(result: dict) -> str:
    machine, plan, ceilings = result["hardware"], result["plan"], result.get("ceilings", {})
    driver = machine.get("state", {}).get("driver_version", "unknown")
    steps = sorted({point["steps"] for point in result["points"]})
    skipped = sum("skipped" in point for point in result["points"])
    rates = ", ".join(
        f"{dtype} products at {digits(ceilings.get(f'product_{dtype}_tflops'))} TFLOP/s"
        for dtype in ("bfloat16", "float32")
    )
    return (
        f"Measured on {result['date'][:10]} with `python -m benchmarks.gpu`: {machine['gpu']}, driver {driver}, "
        f"torch {machine['torch']}, cuDNN {machine.get('cudnn')}, fused_rnn {machine['fused_rnn']}. "
        f"The same run measured {rates}, copies at {digits(ceilings.get('copy_tb_per_s'))} TB/s and "
        f"{digits(ceilings.get('launch_us'))} µs per launch. T={', '.join(map(str, steps))}, I=H; the input product is "
        f"included; {plan['clock']}, medians of up to {plan['rounds']} interleaved rounds; {plan['cold']}; TF32 off. "
        f"Points skipped for lack of time: {skipped}. "
        "Entries: fused / torch.nn / eager loop (times faster, or smaller, than each)."
    )


def table(points: list[dict], name: str) -> str:
    """One row per cell and fused backend, one column per main size; empty where nothing was measured."""
    sizes = [size for size in MAIN_SIZES if any((p["hidden"], p["batch"]) == size for p in points)]
    found = {(p["cell"], (p["hidden"], p["batch"])): candidates(p, name) for p in points}
    rows = []
    for cell, title in CELLS.items():
        backends = {b for size in sizes for b, r in found.get((cell, size), {}).items() if is_fused(r)}
        for backend in sorted(backends):
            entries = " | ".join(entry(found.get((cell, size), {}), backend) for size in sizes)
            rows.append(f"| {title} | {backend} | {entries} |")
    if not rows:
        return ""
    head = " | ".join(f"H={hidden}, B={batch}" for hidden, batch in sizes)
    return "\n".join([f"| cell | backend | {head} |", "|---" * (2 + len(sizes)) + "|", *rows])


def is_fused(record: dict) -> bool:
    return record["title"].startswith("fused_rnn")


def candidates(point: dict, name: str) -> dict[str, dict]:
    """The records of a point by candidate, in one mode or of memory."""
    records = point["memory"] if name == "memory" else [r for r in point["times"] if r["mode"] == name]
    return {record["candidate"]: record for record in records}


def value(record: dict | None) -> float | None:
    if record is None:
        return None
    if record.get("peak_bytes"):
        return record["peak_bytes"] / 2**20
    return record.get("us_per_step")


def entry(records: dict[str, dict], backend: str) -> str:
    ours = records.get(backend)
    for problem in ("wrong", "failed"):
        if ours and problem in ours:
            return problem
    mine = value(ours)
    if mine is None:
        return "–"
    theirs = [value(records.get(rival)) for rival in RIVALS]
    numbers = " / ".join(digits(number) for number in (mine, *theirs))
    times = ", ".join("–" if number is None else f"{number / mine:.2f}×" for number in theirs)
    return f"{numbers} (**{times}**)"
