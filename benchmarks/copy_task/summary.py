"""The findings of a run in numbers: one row per length and cell over the trials' records.

A figure is the mean over the trials with the standard error of that mean; both are None if a trial diverged, and the
error is also None for a single trial. The baseline accompanies it, and ``outcome`` compares a trial with it.
"""

import math
import statistics
from collections import Counter
from collections.abc import Iterable

SOLVED = 0.99  # accuracies above this count


def mean_and_error(values: Iterable[float | None]) -> dict[str, float | None]:
    """Return the figure of ``values``, one per trial."""
    values = list(values)
    if None in values:
        return {"mean": None, "standard_error": None}
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "standard_error": error}


def typical(trial: dict, name: str) -> float:
    """Return a trial's time: the median over its epochs, which the first one's warm-up does not distort."""
    return statistics.median(epoch[name] for epoch in trial["epochs"])


def summarise(trials: list[dict]) -> list[dict]:
    """Return one row per length and cell, in the order of the trials."""
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
        "way": mean_and_error(way(trial) for trial in trials),
        "baseline": trials[0]["baseline"],
        "epochs": mean_and_error(len(trial["epochs"]) for trial in trials),
        "minutes": mean_and_error(trial["seconds"] / 60 for trial in trials),
        "seconds_per_step": mean_and_error(typical(trial, "seconds_per_step") for trial in trials),
        "seconds_per_epoch": mean_and_error(typical(trial, "seconds") for trial in trials),
        "gradient_decades": {
            when: mean_and_error(decades(trial["gradient_norms"][when]) for trial in trials)
            for when in ("before", "after")
        },
        "extra": [
            {
                "extra": same[0]["extra"],
                **{name: mean_and_error(e[name] for e in same) for name in ("accuracy", "loss")},
            }
            for same in zip(*(trial["extra"] for trial in trials))
        ],
        "outcomes": dict(Counter(outcome(trial) for trial in trials)),
    }


def way(trial: dict) -> float | None:
    """Return a trial's progress from guessing (0) to all symbols right (1); below 0 if guessing is better."""
    guess = trial["baseline"]["accuracy"]
    return None if trial["loss"] is None else (trial["accuracy"] - guess) / (1 - guess)


def decades(norms: list[float | None]) -> float | None:
    """Return log10 of the ratio of the gradient's norms at the first and last step; None if one is 0 or not finite."""
    first, last = norms[0], norms[-1]
    return math.log10(first / last) if first and last else None


def outcome(trial: dict) -> str:
    """Return one of 'diverged', 'solved', 'better', 'lower loss', 'more accurate', 'chance'.

    Solved is more than 99 % right. Otherwise there are two criteria: an accuracy above guessing by more than three
    standard deviations of guessing that many symbols, and a loss below the baseline's by more than a hundredth, which
    is more than chance gives a model that knows nothing. Better meets both, chance neither.
    """
    accuracy, loss, baseline = trial["accuracy"], trial["loss"], trial["baseline"]
    if loss is None:
        return "diverged"
    if accuracy > SOLVED:
        return "solved"
    guess = baseline["accuracy"]
    more_accurate = accuracy > guess + 3 * math.sqrt(guess * (1 - guess) / trial["answers"])
    lower_loss = loss < 0.99 * baseline["loss"]
    if more_accurate and lower_loss:
        return "better"
    return "more accurate" if more_accurate else "lower loss" if lower_loss else "chance"


def left_out(trials: list[dict], cell: str, length: int) -> bool:
    """Whether ``--ascend`` omits this, because the cell has not solved a shorter length."""
    return any(t["cell"] == cell and t["length"] < length and outcome(t) != "solved" for t in trials)
