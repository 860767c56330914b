"""The block of benchmarks/README.md on warp kernels beside block kernels, for ``benchmarks.report``.

Every number comes from a file that ``python -m benchmarks.gpu.choice`` wrote. A small table shows one cell and dtype,
and each of the others is a line; the files have every point.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from statistics import median

from benchmarks.common import digits
from benchmarks.speed import RESULTS
from benchmarks.speed.report.gpu import OTHER_KERNELS, spread

from . import header
from .results import CELLS, DTYPES, Outcome, Results, parse

NOT_RUN = "Kernels of clusters beside kernels of blocks: not yet run on a GPU."
NOT_RUN_OF = "Not yet run on a GPU beside each other, so that `auto` takes the kernels of blocks, {}."
COMMON = (
    "Kernels of clusters beside kernels of blocks: the time of the kernels alone, with "
    "those that pack weights. Entries: µs per step of the clusters, forward + backward (how many times as fast as the "
    "blocks, both together). A point of which one of the two is off from float64 by more than twice as much as PyTorch "
    "has no times; with a ReLU that may be a unit near zero, which rounding moves across the kink."
)
TITLES = {
    **{"lstm": "LSTM", "gru_reset_after": "GRU, reset after", "rnn_tanh": "RNN, tanh", "rnn_relu": "RNN, ReLU"},
    **{"gru": "GRU, reset before", "multiplicative_lstm": "multiplicative LSTM"},
    "multiplicative_lstm_hidden": "multiplicative LSTM, hidden variant",
    "multiplicative_gru": "multiplicative GRU",
}
CARRIED = "Their sources have changed since, and the compiler makes the same {} of them."
SHOWN = ("lstm", "bfloat16")  # the cell and dtype in the table
FEW = 4  # number of points that are named individually


def block(results: list[dict]) -> str:
    """List missing points, and make one section per file of results; or one sentence without results."""
    if not results:
        return NOT_RUN
    missing = "; ".join(_missing(outcome for result in results for outcome in _parsed(result).outcomes))
    return "\n\n".join([COMMON, *([NOT_RUN_OF.format(missing)] if missing else []), *map(section, results)])


def _missing(outcomes: Iterable[Outcome]) -> Iterator[str]:
    """Yield the cells without a point, by the dtypes that lack the same ones."""
    measured = {(outcome.cell, outcome.dtype) for outcome in outcomes}
    dtypes_without: dict[tuple[str, ...], list[str]] = {}
    for dtype in DTYPES:
        dtypes_without.setdefault(tuple(c for c in CELLS if (c, dtype) not in measured), []).append(dtype)
    for cells, dtypes in dtypes_without.items():
        if cells:
            named = "all" if cells == CELLS else ", ".join(f"`{cell}`" for cell in cells)
            yield f"in {', '.join(dtypes)}: {named}"


def other_kernels(result: dict) -> bool:
    """Whether a file of results was measured with other sources of these kernels than the present ones."""
    return header.stale(_parsed(result))


def _parsed(result: dict) -> Results:
    return parse(result, RESULTS / f"{result['file']}.json")


def _carried(found: Results) -> str:
    ignored = " and ".join(f"`{name}`" for name in found.but_for)
    return CARRIED.format(f"instructions but for {ignored}" if ignored else "machine code")


def section(result: dict) -> str:
    found = _parsed(result)
    skipped = sum("skipped" in point for point in result["points"])
    steps = ", ".join(map(str, sorted({point["steps"] for point in result["points"]})))
    sentences = [
        f"Measured on {found.date[:10]} with `python -m benchmarks.gpu.choice`: {found.chip}, torch {found.torch}, "
        f"T={steps}.",
        *([OTHER_KERNELS] if header.stale(found) else [_carried(found)] if header.carried(found) else []),
        *([f"Points skipped for lack of time: {skipped}."] if skipped else []),
    ]
    shown = [outcome for outcome in found.outcomes if (outcome.cell, outcome.dtype) == SHOWN]
    lines = "\n".join(summary(found.outcomes))
    return "\n\n".join(part for part in (f"**{found.chip}**", " ".join(sentences), table(shown), lines) if part)


def table(outcomes: Sequence[Outcome]) -> str:
    """Make a table with one row per H that is a multiple of 8, one column per B; empty without any."""
    at = {(o.hidden, o.batch): o for o in outcomes if o.hidden % 8 == 0}
    hidden, batches = (sorted({sizes[i] for sizes in at}) for i in range(2))
    if not at:
        return ""
    cell, dtype = SHOWN
    rows = [f"| {TITLES[cell]}, {dtype} | {' | '.join(f'B={b}' for b in batches)} |"]
    rows += ["|---" * (1 + len(batches)) + "|"]
    rows += [f"| H={h} | {' | '.join(entry(at.get((h, b))) for b in batches)} |" for h in hidden]
    return "\n".join(rows)


def entry(outcome: Outcome | None) -> str:
    if outcome is None or outcome.cluster.obstacle:
        return digits(None)
    times = f"{outcome.cluster.forward:.2f} + {outcome.cluster.backward:.2f}"
    return f"{times} ({digits(ratio(outcome))})"  # a dash if the blocks have no times


def ratio(outcome: Outcome) -> float | None:
    """Return how many times as fast the clusters are as the blocks, forward and backward together."""
    known = not (outcome.cluster.obstacle or outcome.blocks.obstacle)
    return outcome.blocks.total / outcome.cluster.total if known else None


def summary(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """List, for each cell and dtype, how far ahead the clusters are over all points, and where they are not."""
    for cell, dtype in product(CELLS, DTYPES):
        of_both = [outcome for outcome in outcomes if (outcome.cell, outcome.dtype) == (cell, dtype)]
        if not of_both:
            continue
        ahead, number = sum(outcome.ahead for outcome in of_both), len(of_both)
        parts = [f"ahead at {'all ' if ahead == number else f'{ahead} of '}{number} points"]
        if ratios := [found for outcome in of_both if (found := ratio(outcome))]:
            parts.insert(0, f"{spread(ratios)} times as fast, in the median {digits(median(ratios))}")
        yield f"- {TITLES[cell]}, {dtype}: {'; '.join([*parts, *_not_ahead(of_both)])}."


def _not_ahead(outcomes: Sequence[Outcome]) -> Iterator[str]:
    if behind := [outcome for outcome in outcomes if ratio(outcome) and not outcome.ahead]:
        yield f"behind at {_named(behind)}"
    # without the numbers of each point, which are in the file
    reasons = [(outcome.cluster.obstacle or outcome.blocks.obstacle or "").split(": ")[0] for outcome in outcomes]
    for reason in dict.fromkeys(filter(None, reasons)):
        lost = [outcome for outcome, its_reason in zip(outcomes, reasons) if its_reason == reason]
        yield f"without times at {_named(lost)}, since {reason}"


def _named(outcomes: Sequence[Outcome]) -> str:
    if len(outcomes) > FEW:
        return f"{len(outcomes)} of them"
    ratios = [f" ({digits(found)})" if (found := ratio(outcome)) else "" for outcome in outcomes]
    return ", ".join(f"{outcome.sizes}{ratio}" for outcome, ratio in zip(outcomes, ratios))
