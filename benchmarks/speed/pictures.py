"""The tables as pictures: how many times faster, memory, the share of the floor, and how cost grows."""

from collections.abc import Callable
from functools import partial

from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from benchmarks.pictures import PALETTE, Picture, heat_map, plt

from .cases import AXES, CELLS, MODES
from .findings import Curve, curves, line
from .plan import GPU_SIZES, GPU_STEPS
from .records import Measured, Results, is_fused

BARS = {"fused": ("fused", PALETTE[1]), "torch": ("torch.nn", PALETTE[4]), "eager": ("eager loop", PALETTE[0])}
COLOURS = {cell: PALETTE[position % len(PALETTE)] for position, cell in enumerate(CELLS)}
LINES = {"fused": "-", "torch": "--", "eager": ":"}
PER_STEP, SHARE = "microseconds per step", "% of the time"
GROWTH = {  # by axis, its name and the unit of what grows
    "steps": ("T", "milliseconds"),
    "batch": ("B", PER_STEP),
    "hidden_size": ("H", PER_STEP),
    "layers": ("the number of layers", "milliseconds"),
}


def times_faster(measured: Measured) -> float | None:
    """Return the time of the fastest rival divided by that of the fastest fused candidate."""
    times = [(is_fused(record), measured.ms(name)) for name, record in measured.times.items()]
    ours, theirs = ([ms for fused, ms in times if ms and fused == side] for side in (True, False))
    return min(theirs) / min(ours) if ours and theirs else None


def _maps(
    panels: dict[str, list[list[Measured | None]]],
    value: Callable[[Measured], float | None],
    rows: list[str],
    columns: list[str],
    caption: str,
    text: str,
    **layout: object,
) -> Figure:
    """Draw a heat map for each of ``panels``, of a value of each of its cases."""
    figure, axes = plt.subplots(squeeze=False, **layout)
    for panel, (title, cases) in zip(axes.flat, panels.items()):
        heat_map(panel, rows, columns, [[case and value(case) for case in row] for row in cases], text)
        panel.set_title(title)
    figure.suptitle(caption)
    return figure


# Tables of a CPU ----------------------------------------------------------------------------------------------


def pictures(result: dict) -> list[Picture]:
    found = Results(result)
    faster, memory = "How many times faster than the fastest rival", "Peak memory of a training step, MiB"
    floor = "Share of the physical floor in the time"
    drawn = [Picture("faster", faster, partial(_map_figure, found, times_faster, faster, "{:.2f}×"))]
    if any(measured.memory for measured in found.cases):
        drawn.append(Picture("memory", memory, partial(_memory_figure, found, memory)))
    if found.ceilings:

        def share(measured: Measured) -> float | None:
            return found.shares(measured).get("fused")

        drawn.append(Picture("floor", floor, partial(_map_figure, found, share, floor, "{:.0%}")))
    return drawn


def _map_figure(found: Results, value: Callable[[Measured], float | None], caption: str, text: str) -> Figure:
    """Draw a panel for each number of threads, with a row for each cell and a column for each shape and mode."""
    threads = sorted({measured.threads for measured in found.cases})
    cells = [cell for cell in CELLS if cell in found.plan["cells"]]
    cases = {
        f"threads: {count}": [[found.at(cell, count, *place) for place in found.columns] for cell in cells]
        for count in threads
    }
    names = [f"({shape})\n{mode}" for shape, mode in found.columns]
    layout = {"nrows": len(threads), "figsize": (11, 0.6 + 3 * len(threads))}
    return _maps(cases, value, [CELLS[cell] for cell in cells], names, caption, text, **layout)


def _memory_figure(found: Results, caption: str) -> Figure:
    cases = [measured for measured in found.cases if measured.memory]
    shapes = list(dict.fromkeys(measured.case.shape.name for measured in cases))
    figure, panels = plt.subplots(1, len(shapes), figsize=(11, 4.2), sharey=True, squeeze=False)
    cells = [cell for cell in CELLS if any(measured.case.cell == cell for measured in cases)]
    for axes, shape in zip(panels[0], shapes):
        for position, (name, (label, colour)) in enumerate(BARS.items()):
            bars = {
                cells.index(measured.case.cell) + (position - 1) * 0.27: mib
                for measured in cases
                if measured.case.shape.name == shape and (mib := measured.quantity("memory", name)) is not None
            }
            axes.barh(list(bars), list(bars.values()), height=0.25, color=colour, label=label)
        axes.set(title=f"({shape})", xlabel="MiB")
        axes.set_yticks(range(len(cells)), [CELLS[cell] for cell in cells])
    panels[0][0].invert_yaxis()
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right center")
    figure.suptitle(caption)
    return figure


# How cost grows: solid lines are the fused cells, dashed torch.nn, dotted the eager loop ------------------------


def scaling_pictures(result: dict) -> list[Picture]:
    """Draw a picture for each measured axis, and one of the share of the floor."""
    found = Results(result)
    drawn, lines = [], curves(found)
    for axis, (name, unit) in GROWTH.items():
        scale = 1000 / found.base["steps"] if unit == PER_STEP else 1
        values = [(curve, [scale * ms for ms in curve.ms]) for curve in lines if curve.axis == axis]
        caption = f"{unit.capitalize()} against {name}"
        drawn += [Picture(AXES[axis], caption, partial(_growth_figure, values, name, unit, caption))] if values else []
    shares = [(curve, [100 * (share or 0) for share in curve.shares]) for curve in lines if curve.axis == "hidden_size"]
    if any(any(values) for _, values in shares):
        caption = "Share of the physical floor in the time, against H"
        drawn.append(Picture("floor", caption, partial(_growth_figure, shares, "H", SHARE, caption)))
    return drawn


def _growth_figure(lines: list[tuple[Curve, list[float]]], name: str, unit: str, caption: str) -> Figure:
    figure, panels = plt.subplots(1, len(MODES), figsize=(11, 4.2), sharey=unit == SHARE)
    for axes, mode in zip(panels, MODES):
        for curve, values in ((curve, values) for curve, values in lines if curve.mode == mode):
            title = CELLS[curve.cell] if curve.candidate == "fused" else None
            style = {"color": COLOURS[curve.cell], "linewidth": 1.6 if title else 1.0, "marker": "." if title else None}
            axes.plot(curve.sizes, values, LINES.get(curve.candidate, "-."), label=title, **style)
            if curve.axis == "steps" and title and len(values) > 1:
                intercept, slope = line(curve)
                ends = [curve.sizes[0], curve.sizes[-1]]
                axes.plot(ends, [intercept + slope * end for end in ends], color="black", linewidth=0.6, zorder=0)
        axes.set(title=mode, xlabel=name)
        if name in ("B", "H"):
            axes.set_xscale("log", base=2)
            _plain(axes.xaxis)
        else:
            axes.set_xlim(0, None)
        if unit == PER_STEP:
            axes.set_yscale("log")
            _plain(axes.yaxis)
        else:
            axes.set_ylim(0, None)
    panels[0].set_ylabel(unit)
    title = "solid: fused\ndashed: torch.nn\ndotted: eager loop"
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", title=title)
    figure.suptitle(caption)
    return figure


def _plain(axis: Axis) -> None:
    """Write the numbers of a logarithmic axis as such, not as powers."""
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


# A GPU, at the sizes of the tables ----------------------------------------------------------------------------


def gpu_pictures(result: dict) -> list[Picture]:
    """Show how many times faster the fused cells are than the fastest rival, dtype by dtype."""
    cases = {
        (case.dtype, case.mode, case.cell, case.shape.hidden_size, case.shape.batch): measured
        for measured in Results(result).cases
        if (case := measured.case).group in ("main", "grid", "chosen") and measured.times
        if (case.shape.hidden_size, case.shape.batch) in GPU_SIZES and case.shape.steps == GPU_STEPS
    }
    dtypes = dict.fromkeys(dtype for dtype, *_ in cases)
    captions = {dtype: f"{dtype}: how many times faster than the fastest rival" for dtype in dtypes}
    return [
        Picture(f"faster-{dtype}", caption, partial(_gpu_figure, cases, dtype, caption))
        for dtype, caption in captions.items()
    ]


def _gpu_figure(cases: dict[tuple, Measured], dtype: str, caption: str) -> Figure:
    sizes = [size for size in GPU_SIZES if any((of, *place[-2:]) == (dtype, *size) for of, *place in cases)]
    panels = {
        mode: [[cases.get((dtype, mode, cell, *size)) for size in sizes] for cell in CELLS]
        for mode in ("forward", "training")
    }
    names = [f"H={hidden}\nB={batch}" for hidden, batch in sizes]
    layout = {"ncols": 2, "figsize": (12, 4), "sharey": True}
    return _maps(panels, times_faster, list(CELLS.values()), names, caption, "{:.2f}×", **layout)
