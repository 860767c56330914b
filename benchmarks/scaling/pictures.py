"""How cost grows, in pictures: solid lines are the fused cells, dashed torch.nn, dotted the eager loop."""

from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from benchmarks.pictures import PALETTE, Picture, plt
from benchmarks.speed.cases import CELLS

from .findings import Curve, curves, line
from .sweeps import AXES, MODES

COLOURS = {cell: PALETTE[position % len(PALETTE)] for position, cell in enumerate(CELLS)}
LINES = {"fused": "-", "torch": "--", "eager": ":"}


def pictures(result: dict) -> list[Picture]:
    """A picture for each axis that was measured, and one of the share of the floor."""
    found = curves(result)
    axes = [axis for axis in AXES if any(curve.axis == axis for curve in found)]
    drawn = [Picture(AXES[axis], _caption(axis), partial(_figure, found, axis, result)) for axis in axes]
    if any(share for curve in found if curve.axis == "hidden_size" for share in curve.shares):
        caption = "Share of the physical floor in the time, against H"
        drawn.append(Picture("floor", caption, partial(_floor_figure, found, caption)))
    return drawn


def _caption(axis: str) -> str:
    return f"{_quantity(axis)[0].upper()}{_quantity(axis)[1:]} against {_name(axis)}"


def _name(axis: str) -> str:
    return "the number of layers" if axis == "layers" else AXES[axis]


def _quantity(axis: str) -> str:
    return "milliseconds" if axis in ("steps", "layers") else "microseconds per step"


def _figure(found: list[Curve], axis: str, result: dict) -> Figure:
    per_step = 1000 / result["base"]["steps"]
    figure, panels = plt.subplots(1, len(MODES), figsize=(11, 4.2))
    for axes, mode in zip(panels, MODES):
        for curve in (curve for curve in found if (curve.axis, curve.mode) == (axis, mode)):
            scale = 1 if axis in ("steps", "layers") else per_step
            _plot(axes, curve, [scale * ms for ms in curve.ms])
            if axis == "steps" and curve.candidate == "fused" and len(curve.sizes) > 1:
                intercept, slope = line(curve)
                ends = [curve.sizes[0], curve.sizes[-1]]
                axes.plot(ends, [intercept + slope * end for end in ends], color="black", linewidth=0.6, zorder=0)
        axes.set(title=mode, xlabel=_name(axis))
        if axis in ("batch", "hidden_size"):
            _plain_logarithms(axes)
        else:
            axes.set(xlim=(0, None), ylim=(0, None))
    panels[0].set_ylabel(_quantity(axis))
    return _finish(figure, panels[0], _caption(axis))


def _floor_figure(found: list[Curve], caption: str) -> Figure:
    figure, panels = plt.subplots(1, len(MODES), figsize=(11, 4.2), sharey=True)
    for axes, mode in zip(panels, MODES):
        for curve in (curve for curve in found if (curve.axis, curve.mode) == ("hidden_size", mode)):
            _plot(axes, curve, [100 * (share or 0) for share in curve.shares])
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set(title=mode, xlabel="H", ylim=(0, None))
    panels[0].set_ylabel("% of the time")
    return _finish(figure, panels[0], caption)


def _plain_logarithms(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for scale in (axes.xaxis, axes.yaxis):
        scale.set_major_formatter("{x:g}")
        scale.set_minor_formatter(NullFormatter())


def _plot(axes: Axes, curve: Curve, values: list[float]) -> None:
    name = CELLS[curve.cell] if curve.candidate == "fused" else None
    style = {"color": COLOURS[curve.cell], "linewidth": 1.6 if name else 1.0, "marker": "." if name else None}
    axes.plot(curve.sizes, values, LINES[curve.candidate], label=name, **style)


def _finish(figure: Figure, axes: Axes, caption: str) -> Figure:
    title = "solid: fused\ndashed: torch.nn\ndotted: eager loop"
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", title=title)
    figure.suptitle(caption)
    return figure
