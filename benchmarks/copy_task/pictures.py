"""The findings of a run in pictures: learning curves, scores and times against length, gradient norms by step.

A cell has the same colour everywhere. Lines are means over the trials; bands and bars are standard errors.
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.common import CELLS
from benchmarks.pictures import PALETTE, STYLE, plt, save

from .data import Task
from .report import label

COLOURS = {cell: PALETTE[position % len(PALETTE)] for position, cell in enumerate(CELLS)}
REFERENCE_LINE = {"color": "black", "linestyle": ":", "linewidth": 1}


def draw_pictures(trials: list[dict], rows: list[dict], task: Task, folder: Path) -> list[Path]:
    """Draw all pictures of a run into ``folder``; return their paths."""
    lengths = sorted({trial["length"] for trial in trials})
    with plt.rc_context(STYLE):
        figures = {"lengths.png": lengths_figure(rows, lengths)}
        for length in lengths:
            same = [trial for trial in trials if trial["length"] == length]
            figures[f"curves-{length}.png"] = curves_figure(same, task)
            figures[f"gradients-{length}.png"] = gradients_figure(same)
        if rows[0]["extra"]:
            figures["longer.png"] = longer_figure(rows, lengths)
        return [save(figure, folder / name) for name, figure in figures.items()]


def curves_figure(trials: list[dict], task: Task) -> Figure:
    """Draw loss and accuracy by epoch, in training and on held-out sequences, of all cells at one length."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    for axes, name in ((left, "loss"), (right, "accuracy")):
        for cell, epochs in _by_cell(trials, lambda trial: trial["epochs"]).items():
            for part, line in (("train", "--"), ("held_out", "-")):
                values = [[epoch[f"{part}_{name}"] for epoch in trial] for trial in epochs]
                _line_and_band(axes, values, cell, line, label(cell) if part == "held_out" else None)
        axes.axhline(trials[0]["baseline"][name], label=task.baseline_name, **REFERENCE_LINE)
        axes.xaxis.get_major_locator().set_params(integer=True)
    left.set(xlabel="epoch", ylabel=task.loss_name, ylim=(0, None))
    right.set(xlabel="epoch", ylabel="accuracy", ylim=(0, 1.02))
    title = "solid: held out\ndashed: training"
    figure.legend(*right.get_legend_handles_labels(), loc="outside right center", title=title)
    figure.suptitle(f"Copy task, length {trials[0]['length']}")
    return figure


def lengths_figure(rows: list[dict], lengths: list[int]) -> Figure:
    """Draw accuracy and time of an optimisation step against length, with error bars."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    for position, cell in enumerate(cells):
        mine = sorted((row for row in rows if row["cell"] == cell), key=lambda row: row["length"])
        # side by side, so that bars of equal height do not hide each other
        places = [lengths.index(row["length"]) + (position - (len(cells) - 1) / 2) * 0.06 for row in mine]
        for axes, name, scale in ((left, "accuracy", 1), (right, "seconds_per_step", 1000)):
            means = _numbers([row[name]["mean"] for row in mine]) * scale
            errors = np.nan_to_num(_numbers([row[name]["standard_error"] for row in mine])) * scale
            axes.errorbar(places, means, errors, color=COLOURS[cell], marker="o", capsize=3, label=label(cell))
    left.axhline(rows[0]["baseline"]["accuracy"], label="guessing", **REFERENCE_LINE)
    left.set(ylabel="accuracy", ylim=(0, 1.02))
    right.set(ylabel="milliseconds per optimisation step", ylim=(0, None))
    for axes in (left, right):
        axes.set_xlabel("length")
        axes.set_xticks(range(len(lengths)), lengths)
        axes.set_xlim(-0.5, len(lengths) - 0.5)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center")
    figure.suptitle("Copy task: what the cells remember, and what that costs")
    return figure


def longer_figure(rows: list[dict], lengths: list[int]) -> Figure:
    """Draw accuracy on sequences longer than those of the training: one panel per training length."""
    size = (max(6.5, 2 + 2.8 * len(lengths)), 4.2)
    figure, panels = plt.subplots(1, len(lengths), figsize=size, sharey=True, squeeze=False)
    for axes, length in zip(panels[0], lengths):
        for row in (row for row in rows if row["length"] == length):
            figures = [row["accuracy"], *(part["accuracy"] for part in row["extra"])]
            means = _numbers([figure["mean"] for figure in figures])
            errors = np.nan_to_num(_numbers([figure["standard_error"] for figure in figures]))
            places = range(len(figures))
            axes.errorbar(
                places, means, errors, color=COLOURS[row["cell"]], marker="o", capsize=3, label=label(row["cell"])
            )
        axes.axhline(row["baseline"]["accuracy"], label="guessing", **REFERENCE_LINE)
        axes.set_xticks(range(len(figures)), ["K", *(f"K+{part['extra']}" for part in row["extra"])])
        axes.set(title=f"K = {length}", xlabel="length of the test", ylim=(0, 1.02))
    panels[0][0].set_ylabel("accuracy")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right center")
    figure.suptitle("Copy task: trained at length K, tested at K and beyond")
    return figure


def gradients_figure(trials: list[dict]) -> Figure:
    """Draw the norm of dL/dh_t by step, before and after training, of all cells at one length."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for axes, when in zip(panels, ("before", "after")):
        for cell, norms in _by_cell(trials, lambda trial, when=when: trial["gradient_norms"][when]).items():
            _line_and_band(axes, norms, cell, "-", label(cell))
        axes.set(title=f"{when} training", xlabel="time step t", yscale="log")
    panels[0].set_ylabel("‖dL/dh$_t$‖, mean over sequences")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    figure.suptitle(f"Copy task, length {trials[0]['length']}: how much of the gradient reaches each step")
    return figure


def _by_cell(trials: list[dict], part) -> dict[str, list]:
    groups: dict[str, list] = {}
    for trial in trials:
        groups.setdefault(trial["cell"], []).append(part(trial))
    return groups


def _line_and_band(axes: Axes, values: list[list[float | None]], cell: str, line: str, name: str | None) -> None:
    """Draw the mean over trials of ``values`` (trials, steps), and its standard error as a band.

    A trial that ended early keeps its last value.
    """
    steps = max(len(trial) for trial in values)
    array = np.stack([_numbers(trial + trial[-1:] * (steps - len(trial))) for trial in values])
    steps, mean = np.arange(1, array.shape[1] + 1), array.mean(0)
    marker = "." if len(steps) == 1 else None
    axes.plot(steps, mean, line, color=COLOURS[cell], marker=marker, label=name, linewidth=1.6 if line == "-" else 1.0)
    if len(values) > 1:
        error = array.std(0, ddof=1) / np.sqrt(len(values))
        axes.fill_between(steps, mean - error, mean + error, color=COLOURS[cell], alpha=0.15, linewidth=0)


def _numbers(values: list[float | None]) -> np.ndarray:
    """Convert to an array; None, from a diverged model, becomes NaN, which leaves a gap."""
    return np.array(values, dtype=float)
