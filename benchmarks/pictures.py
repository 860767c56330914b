"""The common parts of all pictures: their style, how they are saved, and how documents show them.

Equal figures give equal bytes, so that drawing a picture again changes no file.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # writes pictures to files, without a display

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.common import replacing

# Okabe and Ito's colours, which colour-blind readers can tell apart
PALETTE = ("#999999", "#0072b2", "#d55e00", "#56b4e9", "#e69f00", "#009e73", "#cc79a7")
STYLE = {
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "svg.fonttype": "none",  # letters as letters: outlines are most of a file
    "font.sans-serif": ["DejaVu Sans"],  # a file repeats every font of this list for each text
    "svg.hashsalt": "fused_rnn",  # otherwise names in the file would be random
}


@dataclass(frozen=True)
class Picture:
    """One picture of a file of results: ``name`` identifies it, ``caption`` describes it."""

    name: str
    caption: str
    draw: Callable[[], Figure]

    def file(self, result: dict) -> str:
        return f"{result['file']}-{self.name}.svg"


def save(figure: Figure, path: Path) -> Path:
    kind = path.suffix.removeprefix(".")
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    with replacing(path) as partial_path:
        figure.savefig(partial_path, format=kind, metadata=metadata)
        if kind == "svg":  # a hundredth of a point is finer than anybody sees
            partial_path.write_text(re.sub(r"(\d\.\d\d)\d+", r"\1", partial_path.read_text()))
    plt.close(figure)
    return path


def draw(pictures: Sequence[Picture], result: dict, folder: Path) -> list[Path]:
    """Draw the pictures of a file of results beside it."""
    with plt.rc_context(STYLE):
        return [save(picture.draw(), folder / picture.file(result)) for picture in pictures]


def markdown(pictures: Sequence[Picture], result: dict, folder: str = "results") -> str:
    """Show the pictures in a document; its path to their folder is ``folder``, by default benchmarks/README.md's."""
    return "\n\n".join(f"![{picture.caption}]({folder}/{picture.file(result)})" for picture in pictures)


def heat_map(
    axes: Axes, rows: Sequence[str], columns: Sequence[str], values: list[list[float | None]], text: str
) -> None:
    """Show ratios as a table, written by the format ``text``: blue above 1, orange below, darkest from 2 and 1/2 on."""
    colours = matplotlib.colors.LinearSegmentedColormap.from_list("ratio", ["#d55e00", "#ffffff", "#0072b2"])
    logs = np.log2(np.array(values, dtype=float))
    axes.pcolormesh(np.clip(logs, -1, 1), cmap=colours, vmin=-1.3, vmax=1.3, edgecolors="white", linewidth=2)
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            axes.text(x + 0.5, y + 0.5, text.format(value) if value else "–", ha="center", va="center")
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axes.invert_yaxis()
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
