"""The results of language models beside published ones, as a block that ``benchmarks.report`` puts into README.md.

Every number but the published ones comes from a results.json of ``python -m benchmarks.language_model train``, kept as
benchmarks/results/language_model-*.json.
"""

from .alphabet import ALPHABETS
from .methods import METHODS

PUBLISHED = {  # by preset
    "zaremba-small": "Published for this model, the LSTM of Zaremba et al. 2014 without dropout, after 13 epochs: "
    "115.9 on the test set.",
    "zaremba-medium": "Published for this model (Zaremba et al. 2014), after 39 epochs: 82.7 on the test set.",
    "char-rnn": "With these settings, those of char-rnn (Karpathy 2015), others report about 1.40 to 1.45 nats.",
}
SHOWN = 4  # maximum number of epochs


def block(results: list[dict]) -> str:
    """Make one section per file of results, or one sentence without results."""
    return "\n\n".join(section(result) for result in results) if results else "No run has been recorded yet."


def section(result: dict) -> str:
    """Show the command, the machine, a table of losses, published results, and the best model's samples."""
    preset = result["configuration"]["preset"]
    parts = [f"`{result['configuration']['command_line']}`", preamble(result), table(result)]
    parts += [sentence for run in result["runs"] for sentence in stopped(run, result["configuration"]["epochs"])]
    if preset in PUBLISHED:
        parts.append(PUBLISHED[preset])
    best = min(result["runs"], key=lambda run: run["epochs"][-1]["held_out_loss"])
    if "samples" in best:
        parts.append(samples(best))
    return "\n\n".join(parts)


def stopped(run: dict, epochs: int) -> list[str]:
    """Return a sentence if a run ended before all its epochs."""
    last, cell = run["epochs"][-1]["epoch"], run["cell"].replace("_", " ")
    return [f"The run of the {cell} was stopped after epoch {last} of {epochs}."] if last < epochs else []


def preamble(result: dict) -> str:
    machine, data, measure = result["hardware"], result["data"], _measure(result)
    sizes = " and ".join(f"{data[f'{part}_symbols']:,}" for part in ("training", "held_out"))
    return (
        f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores, GPU {machine['gpu']}, torch "
        f"{machine['torch']}, fused_rnn {machine['fused_rnn']}, seed {result['configuration']['seed']}. {sizes} "
        f"{_unit(result)}s to train on and held out. Entries: {measure} in training / held out; the training text is "
        "measured as training goes on."
    )


def table(result: dict) -> str:
    """Make a table with one row per cell, a column for each of a few epochs."""
    count = max(len(run["epochs"]) for run in result["runs"])
    shown = sorted({round(1 + step * (count - 1) / (SHOWN - 1)) for step in range(SHOWN)})
    tested = any("test_loss" in run["epochs"][-1] for run in result["runs"])
    headings = [
        *("cell", "backend", "parameters"),
        *(f"epoch {epoch}" for epoch in shown),
        *(["test"] if tested else []),
        "minutes",
    ]
    lines = [headings, ["---", "---", *["---:"] * (len(headings) - 2)]]
    lines += [_row(run, shown, tested, _measure(result)) for run in result["runs"]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(run: dict, shown: list[int], tested: bool, measure: str) -> list[str]:
    epochs = {epoch["epoch"]: epoch for epoch in run["epochs"]}
    last = run["epochs"][-1]
    return [
        *(run["cell"].replace("_", " "), f"`{last['backend']}`", f"{run['parameters']:,}"),
        *(_losses(epochs[epoch], measure) if epoch in epochs else "–" for epoch in shown),
        *([_loss(last, "test", measure)] if tested else []),
        f"{sum(epoch['seconds'] for epoch in run['epochs']) / 60:.1f}",
    ]


def _losses(epoch: dict, measure: str) -> str:
    return f"{_loss(epoch, 'train', measure)} / {_loss(epoch, 'held_out', measure)}"


def _loss(epoch: dict, part: str, measure: str) -> str:
    name, places = ("perplexity", 1) if measure == "perplexity" else ("loss", 3)
    value = epoch.get(f"{part}_{name}")
    return "–" if value is None else f"{value:.{places}f}"


def _unit(result: dict) -> str:
    return ALPHABETS[result["configuration"]["alphabet"]].unit


def _measure(result: dict) -> str:
    """Return the usual measure of such models."""
    unit = _unit(result)
    return "perplexity" if unit == "word" else f"nats per {unit}"


def samples(run: dict) -> str:
    """Show a model's samples, by method."""
    lines = [f"What the {run['cell'].replace('_', ' ')} says:", ""]
    lines += ["| method | |", "|---|---|"]
    lines += [f"| {method} | {_in_a_cell(run['samples'][method])} |" for method in METHODS]
    return "\n".join(lines)


def _in_a_cell(text: str) -> str:
    """Escape text so that Markdown shows it unchanged within a table."""
    return "".join(f"\\{mark}" if mark in "\\`*_{}[]<>()#+!|~$" else mark for mark in text).replace("\n", " ")
