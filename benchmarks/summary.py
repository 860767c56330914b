"""The picture and the table at the top of README.md: how many times faster a training step is, cell by cell.

Both summarise the results of ``benchmarks.speed`` on CPUs and GPUs over all sizes: the geometric mean, and the smallest
and the largest ratio. If a size was measured more than once, the last time counts.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from statistics import geometric_mean

from matplotlib.figure import Figure

from benchmarks.common import NOT_MEASURED
from benchmarks.gpu.machine import other_kernels
from benchmarks.pictures import PALETTE, Picture, markdown, plt
from benchmarks.speed.cases import CELLS
from benchmarks.speed.records import Results

# The comparison of each cell: torch.nn's module of the same equations; cells that torch.nn lacks have the loop over
# steps.
TORCH = {"rnn": "torch.nn.RNN", "lstm": "torch.nn.LSTM", "gru_reset_after": "torch.nn.GRU"}
DTYPES = ("float32", "bfloat16", "float16 and float32")  # in the order of the columns
NAMED = {"file": "summary"}  # gives the pictures the names of those of a file of results
CAPTION = "Training step: how many times as fast as torch.nn, or as a loop over steps"
EARLIER = "kernels that were earlier than those here"


@dataclass(frozen=True)
class Column:
    chip: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.chip}, {self.dtype}"

    @property
    def place(self) -> tuple:
        """The sort key of columns; CPUs come first."""
        return self.chip != "CPU", self.chip, DTYPES.index(self.dtype)


Ratios = dict[Column, dict[str, list[float]]]  # by column and cell: theirs / ours


def block(results: list[dict]) -> str:
    """Make the picture, the table, and the machines; or one sentence without results."""
    found = ratios(results)
    if not found:
        return NOT_MEASURED
    lines = ["| training step | beside | " + " | ".join(map(str, found)) + " |", "|---" * (2 + len(found)) + "|"]
    for cell, title in CELLS.items():
        entries = " | ".join(entry(of_cell.get(cell)) for of_cell in found.values())
        lines.append(f"| {title} | {TORCH.get(cell, 'loop')} | {entries} |")
    drawn = markdown(pictures(results), NAMED, "benchmarks/results")
    return "\n\n".join([drawn, "\n".join(lines), preamble(results)])


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
    """List the measurements, with machine and date, once each."""
    for of_gpu in (False, True):
        files = [found for found in map(Results, results) if on_gpu(found) == of_gpu and any(points(found))]
        for name in dict.fromkeys(map(machine, files)):
            days = sorted({found.day for found in files if machine(found) == name})
            earlier = f", with {EARLIER}" if of_gpu and any(other_kernels(found.raw) for found in files) else ""
            yield f"{name} ({' to '.join(dict.fromkeys((days[0], days[-1])))}{earlier})"


def machine(found: Results) -> str:
    return found.machine["gpu"] if on_gpu(found) else f"{found.machine['cpu']}, {found.machine['cores']} cores"


def on_gpu(found: Results) -> bool:
    return found.raw["file"].startswith("gpu-")


def ratios(results: list[dict]) -> Ratios:
    """Return theirs / ours, by column and cell, of the last measurement of each size."""
    files = sorted(map(Results, results), key=lambda found: found.raw["date"])
    latest = {place: ratio for found in files for place, ratio in points(found)}
    by_column: Ratios = defaultdict(lambda: defaultdict(list))
    for (column, cell, *_), ratio in latest.items():
        by_column[column][cell].append(ratio)
    return dict(sorted(by_column.items(), key=lambda item: item[0].place))


def points(found: Results) -> Iterator[tuple[tuple[Column, str, str, int], float]]:
    """Yield column, cell, sizes and threads of all measurements, and how many times as fast the fused cell was."""
    of_gpu = on_gpu(found)
    chip = found.machine["gpu"].removeprefix("NVIDIA ") if of_gpu else "CPU"
    ours, loop = ("cuda", "graphed") if of_gpu else ("fused", "eager")
    for measured in found.cases:
        case, theirs = measured.case, "torch" if measured.case.cell in TORCH else loop
        if case.mode != "training" or case.shape.last_only or case.shape.lengths:
            continue
        if measured.ms(ours) and measured.ms(theirs):
            dtype = DTYPES[-1] if of_gpu and case.dtype != "bfloat16" else case.dtype
            yield (Column(chip, dtype), case.cell, str(case), measured.threads), measured.ms(theirs) / measured.ms(ours)


def pictures(results: list[dict]) -> list[Picture]:
    """Draw the table as bars from the smallest to the largest ratio, with a line at the mean; none without results."""
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
    names = [f"{title}\nbeside {TORCH.get(cell, 'a loop')}" for cell, title in CELLS.items()]
    axes.set_yticks(range(len(CELLS)), names)
    axes.invert_yaxis()
    axes.set_title(CAPTION)
    figure.legend(loc="outside lower center", ncols=len(found))
    return figure
