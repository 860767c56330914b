"""The block of README.md that says how fast the cells are on a GPU; ``benchmarks.report`` puts it there.

Every number comes from a file that ``python -m benchmarks.gpu`` wrote, or that has the same form and says itself how
its numbers were measured. First stands, for each dtype, where the fused cells are ahead of torch.nn and where behind;
the tables by group of points are folded.
"""

import re
from collections.abc import Iterator
from dataclasses import fields

from benchmarks import pictures as shown
from benchmarks.common import digits, folded
from benchmarks.speed.cases import CELLS

from . import machine
from .candidates import MODES
from .pictures import pictures
from .points import CHOSEN, GROUPS, Point

NOT_RUN = "Not yet run on a GPU."
COMMON = (
    "I=H where no I is given; the input product is included; TF32 is off. In float16 and float32 the weights of "
    "torch.nn were laid out for cuDNN before; in bfloat16 PyTorch cannot do that, and copies them in every call. "
    "Beside the reset-before GRU stands torch.nn's, which resets after. Entries: what it takes = how many times as "
    "much as the best fused backend."
)
OTHER_KERNELS = "These were earlier kernels than those here."
OWN_EQUATIONS = ("gru",)  # torch.nn has no such cell: beside it stands its GRU, which resets after
TITLES = {
    "honest": "Where cuDNN is at its best",
    "people": "Shapes that people use",
    "main": "Every cell in bfloat16",
    "single": "One sequence at a time",
    "ragged": "Sequences of different lengths, packed and padded",
    "grid": "Other dtypes and sizes",
    "rivals": "Beside other people's kernels",
    CHOSEN: "All points",
}
HEADINGS = {
    "forward": "Forward, µs per step",
    "training": "Training step, µs per step",
    "host forward": "Time that the host is busy with a forward call, µs",
    "host training": "Time that the host is busy with a training step, µs",
    "memory": "Peak memory of a training step, MiB",
}
Readings = dict[str, dict]  # the records of a point by candidate


def block(results: list[dict]) -> str:
    """One section per file of results, or one sentence where there is none."""
    return "\n\n".join([COMMON, *map(section, results)]) if results else NOT_RUN


def section(result: dict) -> str:
    points = [point for point in result["points"] if "times" in point]
    title = f"**{result['hardware']['gpu']}, {result['date'][:10]}**"
    lines = verdict(points)
    parts = [title, *(["\n".join(lines)] if lines else []), preamble(result)]
    for group in (*GROUPS, CHOSEN):
        of_group = [point for point in points if point.get("group", CHOSEN) == group]
        tables = [f"**{heading}**\n\n{rows}" for name, heading in HEADINGS.items() if (rows := table(of_group, name))]
        if tables:
            parts.append(folded(TITLES[group], *tables))
    if any("kernels_us_per_step" in point for point in points):
        parts.append(folded("The kernels alone", kernels(points)))
    drawn = shown.markdown(pictures(result), result)
    return "\n\n".join([*parts, folded("Pictures", drawn)] if drawn else parts)


def verdict(points: list[dict]) -> list[str]:
    """A list: who is faster in each dtype, the best fused backend or torch.nn, and by how much; memory and the host."""
    points = [point for point in points if point["cell"] not in OWN_EQUATIONS]
    lines = [line for dtype in dict.fromkeys(p["dtype"] for p in points) for line in _speed(points, dtype)]
    if memory := [ratio for point in points if (ratio := over_torch(point, "memory"))]:
        lines.append(f"- memory of a training step: torch.nn takes {spread(memory)} times as much as the fused cells.")
    forward = [readings(point, "forward") for point in points]
    if ours := [busy for found in forward if (busy := least_of_ours(found, "host forward"))]:
        theirs = [busy for found in forward if (busy := value(found.get("torch"), "host forward"))]
        beside = f", with one of torch.nn for {spread(theirs)}" if theirs else ""
        lines.append(f"- the host is busy with a forward call of the fused cells for {spread(ours)} µs{beside}.")
    return lines


def _speed(points: list[dict], dtype: str) -> Iterator[str]:
    ahead, behind = [], []
    for point in points:
        if point["dtype"] == dtype:
            times = {mode: ratio for mode in MODES if (ratio := over_torch(point, mode))}
            ahead += [ratio for ratio in times.values() if ratio >= 1]
            slower = ", ".join(f"{mode} {digits(1 / ratio)}" for mode, ratio in times.items() if ratio < 1)
            behind += [f"{CELLS[point['cell']]} {sizes(point)} ({slower} times)"] if slower else []
    if behind:
        yield f"- {dtype}: **torch.nn is faster** at {'; '.join(behind)}."
    if ahead:
        elsewhere = "elsewhere " if behind else ""
        yield f"- {dtype}: {elsewhere}the fused cells are {spread(ahead)} times as fast as torch.nn."


def spread(numbers: list[float]) -> str:
    least, most = digits(min(numbers)), digits(max(numbers))
    return least if least == most else f"{least} to {most}"


def over_torch(point: dict, quantity: str) -> float | None:
    """How many times as much torch.nn takes as the best fused backend."""
    found = readings(point, quantity)
    ours, theirs = least_of_ours(found, quantity), value(found.get("torch"), quantity)
    return theirs / ours if ours and theirs else None


def preamble(result: dict) -> str:
    hardware = result["hardware"]
    driver = hardware.get("state", {}).get("driver_version", "unknown")
    method = result.get("method") or f"with `{result.get('command', 'python -m benchmarks.gpu')}`"
    skipped = sum("skipped" in point for point in result["points"])
    sentences = [
        f"Measured on {result['date'][:10]} {method}: {hardware['gpu']}, driver {driver}, torch {hardware['torch']}, "
        f"cuDNN {hardware.get('cudnn')}, fused_rnn {hardware['fused_rnn']}.",
        *([OTHER_KERNELS] if machine.other_kernels(result) else []),
        *([_ceilings(result["ceilings"])] if "ceilings" in result else []),
        *_clock(result["plan"]),
        *([f"Points skipped for lack of time: {skipped}."] if skipped else []),
        *_failures(result),
    ]
    return " ".join(sentences)


def _ceilings(found: dict) -> str:
    rates = ", ".join(
        f"{dtype} products at {digits(found.get(f'product_{dtype}_tflops'))} TFLOP/s"
        for dtype in ("bfloat16", "float32")
    )
    return (
        f"The same run measured {rates}, copies at {digits(found.get('copy_tb_per_s'))} TB/s and "
        f"{digits(found.get('launch_us'))} µs per launch."
    )


def _clock(plan: dict) -> Iterator[str]:
    if "rounds" in plan:
        clock = plan["clock"][0].upper() + plan["clock"][1:]
        yield f"{clock}, medians of up to {plan['rounds']} interleaved rounds; {plan['cold']}."


def _failures(result: dict) -> Iterator[str]:
    """What was never timed, though it was to be."""
    times = [time for point in result["points"] for time in point.get("times", [])]
    timed = {time["title"] for time in times if "us_per_step" in time}
    lost = sorted({time["title"] for time in times if {"failed", "wrong"} & time.keys()} - timed)
    if lost:
        yield f"Failed, and so not timed: {'; '.join(lost)}."


def sizes(point: dict) -> str:
    known = {field.name for field in fields(Point)}
    return Point(**{name: value for name, value in point.items() if name in known}).sizes


def readings(point: dict, quantity: str) -> Readings:
    """The records of a point in one mode or of memory."""
    mode = quantity.removeprefix("host ")
    records = point["memory"] if quantity == "memory" else [r for r in point["times"] if r["mode"] == mode]
    return {record["candidate"]: record for record in records}


def value(record: dict | None, quantity: str) -> float | None:
    if record is None:
        return None
    if quantity == "memory":
        return record["peak_bytes"] / 2**20 if record.get("peak_bytes") else None
    return record.get("host_us_per_call" if quantity.startswith("host") else "us_per_step")


def least_of_ours(found: Readings, quantity: str) -> float | None:
    """Of the fused backends as they are, with no option."""
    ours = [record for name, record in found.items() if is_fused(record) and "-" not in name]
    return min((number for record in ours if (number := value(record, quantity))), default=None)


def is_fused(record: dict) -> bool:
    return record["title"].startswith("fused_rnn")


def heading(title: str) -> str:
    return re.sub(r"^torch\.nn\.\w+", "torch.nn", title.removeprefix("fused_rnn, "))


def table(points: list[dict], quantity: str) -> str:
    """One row per point, a column for all that was measured somewhere; empty where nothing was."""
    found = [readings(point, quantity) for point in points]
    columns = {
        name: heading(record["title"])
        for records in found
        for name, record in records.items()
        if value(record, quantity) is not None
    }
    if not columns:
        return ""
    rows = [f"| cell | dtype | sizes | {' | '.join(columns.values())} |", "|---" * (3 + len(columns)) + "|"]
    for point, records in zip(points, found):
        ours = least_of_ours(records, quantity)
        entries = " | ".join(entry(records.get(name), quantity, ours) for name in columns)
        rows.append(f"| {CELLS[point['cell']]} | {point['dtype']} | {sizes(point)} | {entries} |")
    return "\n".join(rows)


def entry(record: dict | None, quantity: str, ours: float | None) -> str:
    for problem in ("wrong", "failed"):
        if record and problem in record:
            return problem
    number = value(record, quantity)
    if number is None or not ours or number == ours:
        return digits(number)
    return f"{digits(number)} = **{number / ours:.2f}×**"


def kernels(points: list[dict]) -> str:
    """What the profiler saw of the fused cells, where it watched."""
    parts = {"forward": "forward", "backward": "backward", "prepare": "packing the weights", "other": "all else"}
    rows = [f"| cell | dtype | sizes | {' | '.join(parts.values())} |", "|---" * (3 + len(parts)) + "|"]
    for point in points:
        if "kernels_us_per_step" in point:
            entries = " | ".join(f"{point['kernels_us_per_step'][part]:.2f}" for part in parts)
            rows.append(f"| {CELLS[point['cell']]} | {point['dtype']} | {sizes(point)} | {entries} |")
    return "µs per step by PyTorch's profiler.\n\n" + "\n".join(rows)
