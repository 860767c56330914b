"""The tables of speed and memory on a CPU as pictures: ratios to the fastest rival, memory, share of the floor."""

from collections.abc import Callable
from functools import partial

from matplotlib.figure import Figure

from benchmarks.pictures import PALETTE, Picture, heat_map, plt

from .cases import CELLS
from .records import Column, columns, fastest_rival, shares, timed_at

COLOURS = {"fused": PALETTE[1], "torch": PALETTE[4], "eager": PALETTE[0]}
LABELS = {"fused": "fused", "torch": "torch.nn", "eager": "eager loop"}


def pictures(result: dict) -> list[Picture]:
    faster = "How many times faster than the fastest rival"
    found = [Picture("faster", faster, partial(_map_figure, result, _times_faster, faster, "{:.2f}×"))]
    if result["memory"]:
        memory = "Peak memory of a training step, MiB"
        found.append(Picture("memory", memory, partial(_memory_figure, result, memory)))
    if result.get("ceilings"):
        floor = "Share of the physical floor in the time"
        found.append(Picture("floor", floor, partial(_map_figure, result, _share, floor, "{:.0%}")))
    return found


def _map_figure(
    result: dict, value: Callable[[dict, str, int, Column], float | None], caption: str, text: str
) -> Figure:
    """A panel for each number of threads: a row for each cell, a column for each shape and mode."""
    threads = sorted({record["threads"] for record in result["times"]})
    cells = [cell for cell in CELLS if cell in result["plan"]["cells"]]
    places = columns(result)
    figure, panels = plt.subplots(len(threads), 1, figsize=(11, 0.6 + 3 * len(threads)), squeeze=False)
    for axes, count in zip(panels[:, 0], threads):
        values = [[value(result, cell, count, place) for place in places] for cell in cells]
        names = [f"({place.shape})\n{place.mode}" for place in places]
        heat_map(axes, [CELLS[cell] for cell in cells], names, values, text)
        axes.set_title(f"threads: {count}")
    figure.suptitle(caption)
    return figure


def _times_faster(result: dict, cell: str, threads: int, place: Column) -> float | None:
    ours, theirs = timed_at(result, cell, threads, place).get("fused"), fastest_rival(result, cell, threads, place)
    return theirs["median_ms"] / ours["median_ms"] if ours and theirs else None


def _share(result: dict, cell: str, threads: int, place: Column) -> float | None:
    return shares(result, cell, threads, place).get("fused")


def _memory_figure(result: dict, caption: str) -> Figure:
    shapes = list(dict.fromkeys(record["shape"] for record in result["memory"]))
    figure, panels = plt.subplots(1, len(shapes), figsize=(11, 4.2), sharey=True, squeeze=False)
    cells = [cell for cell in CELLS if any(record["cell"] == cell for record in result["memory"])]
    for axes, shape in zip(panels[0], shapes):
        for position, (name, colour) in enumerate(COLOURS.items()):
            records = [r for r in result["memory"] if (r["shape"], r["candidate"]) == (shape, name)]
            rows = [cells.index(record["cell"]) + (position - 1) * 0.27 for record in records]
            sizes = [record["peak_mib"] for record in records]
            axes.barh(rows, sizes, height=0.25, color=colour, label=LABELS[name])
        axes.set(title=f"({shape})", xlabel="MiB")
        axes.set_yticks(range(len(cells)), [CELLS[cell] for cell in cells])
    panels[0][0].invert_yaxis()
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right center")
    figure.suptitle(caption)
    return figure
