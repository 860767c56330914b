"""The picture and the table at the top of README.md: how many times faster a training step is, cell by cell.

Both are made of the results of ``benchmarks.speed`` and ``benchmarks.gpu``, all sizes together: the geometric mean, and
the least and the greatest ratio. Where a size was measured more than once, the last time counts.
"""

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from statistics import geometric_mean
from typing import NamedTuple

from matplotlib.figure import Figure

from benchmarks.common import NOT_MEASURED
from benchmarks.gpu.machine import other_kernels
from benchmarks.pictures import PALETTE, Picture, markdown, plt
from benchmarks.speed.cases import CELLS

# What a cell is held against: torch.nn's module of the same equations, or the loop over steps where there is none.
TORCH = {"rnn": "torch.nn.RNN", "lstm": "torch.nn.LSTM", "gru_reset_after": "torch.nn.GRU"}
LOOP = {"CPU": "eager", "GPU": "graphed"}
DTYPES = ("float32", "bfloat16", "float16 and float32")  # in the order of the columns
NAMED = {"file": "summary"}  # as the pictures of a file of results are named by it
CAPTION = "Training step: how many times as fast as torch.nn, or as a loop over steps"
EARLIER = "kernels that were earlier than those here"


class Column(NamedTuple):
    chip: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.chip}, {self.dtype}"


Ratios = dict[Column, dict[str, list[float]]]  # by column and cell: theirs / ours


def block(results: list[dict]) -> str:
    """The table, and where it was measured; one sentence where nothing has been measured."""
    found = ratios(results)
    if not found:
        return NOT_MEASURED
    head = ["| training step | beside | " + " | ".join(map(str, found)) + " |", "|---" * (2 + len(found)) + "|"]
    for cell, title in CELLS.items():
        entries = " | ".join(entry(of_cell.get(cell)) for of_cell in found.values())
        head.append(f"| {title} | {TORCH.get(cell, 'loop')} | {entries} |")
    drawn = markdown(pictures(results), NAMED, "benchmarks/results")
    return "\n\n".join([drawn, "\n".join(head), preamble(results)])


def entry(ratios: list[float] | None) -> str:
    if not ratios:
        return "–"
    return f"**{geometric_mean(ratios):.1f}×** ({min(ratios):.2f} to {max(ratios):.2f})"


def preamble(results: list[dict]) -> str:
    return (
        "Geometric mean, least and greatest of all sizes measured; above 1 the fused cell is faster. The loop runs "
        "PyTorch's operations step by step, on the GPU as a CUDA graph; in bfloat16 PyTorch copies the weights for "
        f"cuDNN in every call. Measured on {' and on '.join(machines(results))}."
    )


def machines(results: list[dict]) -> Iterator[str]:
    """What was measured where and when, once each."""
    for kind in ("CPU", "GPU"):
        files = [result for result in results if device(result) == kind and any(points(result))]
        for name in dict.fromkeys(_machine(result) for result in files):
            days = sorted({result["date"][:10] for result in files if _machine(result) == name})
            earlier = f", with {EARLIER}" if kind == "GPU" and any(map(other_kernels, files)) else ""
            yield f"{name} ({' to '.join(dict.fromkeys((days[0], days[-1])))}{earlier})"


def _machine(result: dict) -> str:
    hardware = result["hardware"]
    return hardware["gpu"] if device(result) == "GPU" else f"{hardware['cpu']}, {hardware['cores']} cores"


def device(result: dict) -> str:
    return "GPU" if "points" in result else "CPU"


def ratios(results: list[dict]) -> Ratios:
    """Theirs / ours, by column and cell, of the last measurement of each size."""
    latest = {place: ratio for result in sorted(results, key=lambda r: r["date"]) for place, ratio in points(result)}
    found: Ratios = defaultdict(lambda: defaultdict(list))
    for (column, cell, _), ratio in latest.items():
        found[column][cell].append(ratio)
    return dict(
        sorted(found.items(), key=lambda item: (item[0].chip != "CPU", item[0].chip, DTYPES.index(item[0].dtype)))
    )


def points(result: dict) -> Iterator[tuple[tuple[Column, str, tuple], float]]:
    """What was measured, as column, cell and size, and how many times as fast the fused cell was there."""
    kind = device(result)
    for (column, cell, size), times in _on_gpu(result) if kind == "GPU" else _on_cpu(result).items():
        ours, theirs = times.get("fused"), times.get("torch" if cell in TORCH else LOOP[kind])
        if ours and theirs:
            yield (column, cell, size), theirs / ours


def _on_gpu(result: dict) -> Iterator[tuple[tuple, dict[str, float]]]:
    """Each size with the times of a training step by candidate; what was wrong has none."""
    chip = result["hardware"]["gpu"].removeprefix("NVIDIA ")
    for point in result["points"]:
        if "times" not in point or point.get("ragged"):
            continue
        dtype = point["dtype"] if point["dtype"] == "bfloat16" else "float16 and float32"
        names = ("dtype", "hidden", "batch", "steps", "input_size", "layers", "directions")
        training = [time for time in point["times"] if time["mode"] == "training" and time.get("us_per_step")]
        times = {_name(time): time["us_per_step"] for time in training}
        yield (Column(chip, dtype), point["cell"], tuple(point.get(name) for name in names)), times


def _on_cpu(result: dict) -> dict[tuple, dict[str, float]]:
    """The same of a file of ``benchmarks.speed``."""
    found: dict[tuple, dict[str, float]] = defaultdict(dict)
    column = Column("CPU", result["plan"].get("dtype", "float32"))
    for record in result["times"]:
        last_only = result["shapes"][record["shape"]]["last_only"]
        if record["mode"] == "training" and not last_only and "median_ms" in record:
            place = column, record["cell"], (record["shape"], record["threads"])
            found[place][record["candidate"]] = record["median_ms"]
    return found


def _name(time: dict) -> str:
    return "fused" if time["candidate"] == "cuda" else time["candidate"]


def pictures(results: list[dict]) -> list[Picture]:
    """The table as bars from least to greatest, with a line at the mean; none where nothing has been measured."""
    found = ratios(results)
    return [Picture("training", CAPTION, partial(_figure, found))] if found else []


def _figure(found: Ratios) -> Figure:
    figure, axes = plt.subplots(figsize=(9, 5))
    height = 0.8 / len(found)
    for position, ((column, of_cell), colour) in enumerate(zip(found.items(), PALETTE[1:])):
        for row, cell in enumerate(CELLS):
            if not (measured := of_cell.get(cell)):
                continue
            y, mean = row + (position - (len(found) - 1) / 2) * height, geometric_mean(measured)
            axes.barh(y, max(measured) - min(measured), height * 0.9, min(measured), color=colour, alpha=0.5)
            axes.plot([mean, mean], [y - height * 0.45, y + height * 0.45], color=colour, linewidth=3)
        axes.barh(0, 0, color=colour, label=str(column))
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.margins(x=0.05)
    axes.use_sticky_edges = False
    axes.xaxis.set_major_formatter("{x:g}×")
    axes.set_yticks(
        range(len(CELLS)), [f"{title}\nbeside {TORCH.get(cell, 'a loop')}" for cell, title in CELLS.items()]
    )
    axes.invert_yaxis()
    axes.set_title(CAPTION)
    figure.legend(loc="outside lower center", ncols=len(found))
    return figure
