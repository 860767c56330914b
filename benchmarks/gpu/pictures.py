"""How many times faster the fused cells are on a GPU than the fastest rival at the main sizes, dtype by dtype."""

from functools import partial

from matplotlib.figure import Figure

from benchmarks.pictures import Picture, heat_map, plt
from benchmarks.speed.cases import CELLS

from .candidates import MODES
from .points import CHOSEN, MAIN_SIZES, STEPS

PLAIN = ("main", "grid", CHOSEN)  # groups whose points are told apart by cell, dtype, H and B


def pictures(result: dict) -> list[Picture]:
    measured = [p for p in result["points"] if "times" in p and p.get("group", CHOSEN) in PLAIN]
    main = [p for p in measured if (p["hidden"], p["batch"]) in MAIN_SIZES and p["steps"] == STEPS]
    found = []
    for dtype in dict.fromkeys(point["dtype"] for point in main):
        points = {(p["cell"], p["hidden"], p["batch"]): p for p in main if p["dtype"] == dtype}
        caption = f"{dtype}: how many times faster than the fastest rival"
        found.append(Picture(f"faster-{dtype}", caption, partial(_figure, points, caption)))
    return found


def _figure(points: dict[tuple, dict], caption: str) -> Figure:
    sizes = [size for size in MAIN_SIZES if any(place[1:] == size for place in points)]
    figure, panels = plt.subplots(1, len(MODES), figsize=(12, 4), sharey=True)
    for axes, mode in zip(panels, MODES):
        values = [[_ratio(points.get((cell, *size)), mode) for size in sizes] for cell in CELLS]
        columns = [f"H={hidden}\nB={batch}" for hidden, batch in sizes]
        heat_map(axes, list(CELLS.values()), columns, values, "{:.2f}×")
        axes.set_title(mode)
    figure.suptitle(caption)
    return figure


def _ratio(point: dict | None, mode: str) -> float | None:
    """The time of the fastest rival by that of the fastest fused backend."""
    times = [time for time in (point or {}).get("times", []) if time["mode"] == mode and time.get("us_per_step")]
    ours = [time["us_per_step"] for time in times if time["title"].startswith("fused_rnn")]
    theirs = [time["us_per_step"] for time in times if not time["title"].startswith("fused_rnn")]
    return min(theirs) / min(ours) if ours and theirs else None
