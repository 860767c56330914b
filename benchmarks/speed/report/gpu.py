"""The speed of the cells on a GPU.

Each dtype begins with a summary of where the fused cells are ahead of torch.nn and where behind; the tables by group of
cases are folded. Files of the same form that were measured otherwise describe how themselves.
"""

import re
from collections.abc import Iterator

from benchmarks import pictures as shown
from benchmarks.common import digits, folded
from benchmarks.common import table as markdown
from benchmarks.gpu import machine
from benchmarks.speed.cases import CELLS
from benchmarks.speed.pictures import gpu_pictures
from benchmarks.speed.plan import GROUPS
from benchmarks.speed.records import Measured, Results, is_fused, titles

from . import multiple

NOT_RUN = "Not yet run on a GPU."
COMMON = (
    "I=H where no I is given; the input product is included; TF32 is off. In float16 and float32 the weights of "
    "torch.nn were laid out for cuDNN before; in bfloat16 PyTorch cannot do that, and copies them in every call. "
    "Beside the reset-before GRU stands torch.nn's, which resets after. Entries: what it takes = how many times as "
    "much as the best fused backend."
)
OTHER_KERNELS = "These were earlier kernels than those here."
OWN_EQUATIONS = ("gru",)  # torch.nn has no such cell; the comparison is with its GRU, which resets after the product
HEADINGS = {  # by the kind of quantity and the mode
    ("us", "forward"): "Forward, µs per step",
    ("us", "training"): "Training step, µs per step",
    ("host", "forward"): "Time that the host is busy with a forward call, µs",
    ("host", "training"): "Time that the host is busy with a training step, µs",
    ("memory", "training"): "Peak memory of a training step, MiB",
}


def block(results: list[dict]) -> str:
    """Make one section per file of results, or one sentence without results."""
    return "\n\n".join([COMMON, *(section(Results(result)) for result in results)]) if results else NOT_RUN


def section(found: Results) -> str:
    lines = verdict(found.cases)
    parts = [f"**{found.machine['gpu']}, {found.day}**", *(["\n".join(lines)] if lines else []), preamble(found)]
    for group, title in GROUPS.items():
        cases = [measured for measured in found.cases if measured.case.group == group]
        tables = [f"**{heading}**\n\n{rows}" for of, heading in HEADINGS.items() if (rows := table(cases, *of))]
        if tables:
            parts.append(folded(title, *tables))
    if watched := {measured.place: measured for measured in found.cases if measured.kernels}:
        parts.append(folded("The kernels alone", kernels(list(watched.values()))))
    drawn = shown.markdown(gpu_pictures(found.raw), found.raw)
    return "\n\n".join([*parts, folded("Pictures", drawn)] if drawn else parts)


def verdict(cases: list[Measured]) -> list[str]:
    """List which is faster in each dtype, the best fused backend or torch.nn, and by how much; memory; the host."""
    cases = [measured for measured in cases if measured.case.cell not in OWN_EQUATIONS]
    lines = [line for dtype in dict.fromkeys(m.case.dtype for m in cases) for line in _speed(cases, dtype)]
    if memory := [ratio for measured in cases if (ratio := over_torch(measured, "memory"))]:
        lines.append(f"- memory of a training step: torch.nn takes {spread(memory)} times as much as the fused cells.")
    forward = [measured for measured in cases if measured.case.mode == "forward"]
    if ours := [busy for measured in forward if (busy := least_of_ours(measured, "host"))]:
        theirs = [busy for measured in forward if (busy := measured.quantity("host", "torch"))]
        beside = f", with one of torch.nn for {spread(theirs)}" if theirs else ""
        lines.append(f"- the host is busy with a forward call of the fused cells for {spread(ours)} µs{beside}.")
    return lines


def _speed(cases: list[Measured], dtype: str) -> Iterator[str]:
    ratios: dict[tuple, dict[str, float]] = {}
    for measured in cases:
        if measured.case.dtype == dtype and (ratio := over_torch(measured, "us")):
            ratios.setdefault((measured.case.group, *measured.place), {})[measured.case.mode] = ratio
    ahead, behind = [], []
    for (_, cell, _, shape), times in ratios.items():
        ahead += [ratio for ratio in times.values() if ratio >= 1]
        slower = ", ".join(f"{mode} {digits(1 / ratio)}" for mode, ratio in times.items() if ratio < 1)
        behind += [f"{CELLS[cell]} {shape.sizes} ({slower} times)"] if slower else []
    if behind:
        yield f"- {dtype}: **torch.nn is faster** at {'; '.join(behind)}."
    if ahead:
        elsewhere = "elsewhere " if behind else ""
        yield f"- {dtype}: {elsewhere}the fused cells are {spread(ahead)} times as fast as torch.nn."


def spread(numbers: list[float]) -> str:
    least, most = digits(min(numbers)), digits(max(numbers))
    return least if least == most else f"{least} to {most}"


def over_torch(measured: Measured, kind: str) -> float | None:
    """Return torch.nn's quantity of a kind divided by that of the best fused backend."""
    ours, theirs = least_of_ours(measured, kind), measured.quantity(kind, "torch")
    return theirs / ours if ours and theirs else None


def preamble(found: Results) -> str:
    hardware = found.machine
    driver = hardware.get("state", {}).get("driver_version", "unknown")
    method = found.raw.get("method") or f"with `{found.command}`"
    skipped = len({(measured.case.group, *measured.place) for measured in found.cases if measured.skipped})
    sentences = [
        f"Measured on {found.day} {method}: {hardware['gpu']}, driver {driver}, torch {hardware['torch']}, "
        f"cuDNN {hardware.get('cudnn')}, fused_rnn {hardware['fused_rnn']}.",
        *([OTHER_KERNELS] if machine.other_kernels(found.raw) else []),
        *map(_ceilings, found.ceilings.values()),
        *_clock(found.plan),
        *([f"Points skipped for lack of time: {skipped}."] if skipped else []),
        *_failures(found.cases),
    ]
    return " ".join(sentences)


def _ceilings(found: dict) -> str:
    rates = {dtype: found.get(f"product_{dtype}_tflops") for dtype in ("bfloat16", "float32")}
    products = "".join(f"{dtype} products at {digits(rate)} TFLOP/s, " for dtype, rate in rates.items() if rate)
    return (
        f"The same run measured {products}copies at {digits(found.get('copy_tb_per_s'))} TB/s and "
        f"{digits(found.get('launch_us'))} µs per launch."
    )


def _clock(plan: dict) -> Iterator[str]:
    if "rounds" in plan:
        clock = plan["clock"][0].upper() + plan["clock"][1:]
        yield f"{clock}, medians of up to {plan['rounds']} interleaved rounds; {plan['cold']}."


def _failures(cases: list[Measured]) -> Iterator[str]:
    """Yield planned measurements that never happened."""
    names = [(measured, name, record["title"]) for measured in cases for name, record in measured.times.items()]
    timed = {title for measured, name, title in names if measured.ms(name)}
    lost = sorted({title for measured, name, title in names if measured.problem("time", name)} - timed)
    if lost:
        yield f"Failed, and so not timed: {'; '.join(lost)}."


def least_of_ours(measured: Measured, kind: str) -> float | None:
    """Return the least quantity of the fused backends, without options."""
    ours = [name for name, record in measured.times.items() if is_fused(record) and "-" not in name]
    numbers = [number for name in ours if (number := measured.quantity(kind, name))]
    return min(numbers, default=None)


def heading(title: str) -> str:
    return re.sub(r"^torch\.nn\.\w+", "torch.nn", title.removeprefix("fused_rnn, "))


def table(cases: list[Measured], kind: str, mode: str) -> str:
    """Make a table with one row per case in the mode, a column for each measured candidate; empty without any."""
    cases = [measured for measured in cases if measured.case.mode == mode and measured.times]
    columns = {
        name: heading(title)
        for name, title in titles(cases, kind).items()
        if any(measured.quantity(kind, name) is not None for measured in cases)
    }
    if not columns:
        return ""
    rows = (
        _named(measured, *(multiple(measured, kind, name, least_of_ours(measured, kind)) for name in columns))
        for measured in cases
    )
    return markdown(["cell", "dtype", "sizes", *columns.values()], rows)


def _named(measured: Measured, *entries: str) -> list[str]:
    case = measured.case
    return [CELLS[case.cell], case.dtype, case.shape.sizes, *entries]


def kernels(cases: list[Measured]) -> str:
    """Make a table of the profiler's times of the fused cells, if it was used."""
    parts = {"forward": "forward", "backward": "backward", "prepare": "packing the weights", "other": "all else"}
    rows = (_named(measured, *(f"{measured.kernels[part]:.2f}" for part in parts)) for measured in cases)
    return "µs per step by PyTorch's profiler.\n\n" + markdown(["cell", "dtype", "sizes", *parts.values()], rows)
