"""What a run found, in numbers: one row per length and cell over the trials' records.

A figure is the mean over the trials with the standard error of that mean; both are None where a trial diverged, the
error also where there is a single trial. Beside it stands the baseline, and ``outcome`` judges a trial by it.
"""

import math
import statistics
from collections import Counter
from collections.abc import Iterable


def mean_and_error(values: Iterable[float | None]) -> dict[str, float | None]:
    """The figure of ``values``, one per trial."""
    values = list(values)
    if None in values:
        return {"mean": None, "standard_error": None}
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "standard_error": error}


def typical(trial: dict, name: str) -> float:
    """A trial's time: the median over its epochs, which the first one's warm-up does not distort."""
    return statistics.median(epoch[name] for epoch in trial["epochs"])


def summarise(trials: list[dict]) -> list[dict]:
    """One row per length and cell, in the order of the trials."""
    groups: dict[tuple, list[dict]] = {}
    for trial in trials:
        groups.setdefault((trial["length"], trial["cell"]), []).append(trial)
    return [_row(length, cell, group) for (length, cell), group in groups.items()]


def _row(length: int, cell: str, trials: list[dict]) -> dict:
    return {
        "length": length,
        "cell": cell,
        "trials": len(trials),
        "parameters": trials[0]["parameters"],
        "accuracy": mean_and_error(trial["accuracy"] for trial in trials),
        "loss": mean_and_error(trial["loss"] for trial in trials),
        "baseline": trials[0]["baseline"],
        "seconds_per_step": mean_and_error(typical(trial, "seconds_per_step") for trial in trials),
        "seconds_per_epoch": mean_and_error(typical(trial, "seconds") for trial in trials),
        "extra": [
            {
                "extra": same[0]["extra"],
                **{name: mean_and_error(e[name] for e in same) for name in ("accuracy", "loss")},
            }
            for same in zip(*(trial["extra"] for trial in trials))
        ],
        "outcomes": dict(Counter(outcome(trial) for trial in trials)),
    }


def outcome(trial: dict) -> str:
    """One of 'diverged', 'solved', 'better', 'chance'.

    Solved is at least 99 % right. Better has a loss below the baseline's and an accuracy above guessing by more than
    three standard deviations of guessing as many symbols.
    """
    accuracy, loss, baseline = trial["accuracy"], trial["loss"], trial["baseline"]
    if loss is None:
        return "diverged"
    if accuracy >= 0.99:
        return "solved"
    guess = baseline["accuracy"]
    threshold = guess + 3 * math.sqrt(guess * (1 - guess) / trial["answers"])
    return "better" if accuracy > threshold and loss < baseline["loss"] else "chance"
