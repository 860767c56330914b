"""The findings of a run for people: a table in Markdown, JSON and on the terminal, and plain sentences.

Every score is accompanied by those of guessing and of a model without memory. A dash stands for a model that diverged.
"""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.common import replacing, write_json

from .data import Task
from .summary import SOLVED, summarise

VERDICTS = {
    "diverged": "diverged (its loss is no longer finite)",
    "solved": "solved",
    "better": "better than guessing and the {baseline}",
    "lower loss": "no more accurate than guessing but of lower loss than the {baseline}",
    "more accurate": "more accurate than guessing but of no lower loss than the {baseline}",
    "chance": "at chance (no better than guessing and the {baseline})",
}
TEXT = ("cell", "setting", "value")  # headings of text columns


def label(cell: str) -> str:
    """Return a cell's name for people: multiplicative_lstm is 'multiplicative LSTM'."""
    return " ".join(word.upper() if word in ("rnn", "lstm", "gru") else word for word in cell.split("_"))


def sentence(row: dict, task: Task) -> str:
    """Describe the result of one cell at one length, compared with the baseline."""
    baseline, outcomes = row["baseline"], row["outcomes"]
    verdicts = [VERDICTS[name].format(baseline=task.baseline_name) for name in VERDICTS if name in outcomes]
    if len(outcomes) > 1:
        counts = [outcomes[name] for name in VERDICTS if name in outcomes]
        verdicts = [f"{verdict} in {count} of {row['trials']} trials" for verdict, count in zip(verdicts, counts)]
    way = f" ({number(row['way'], 0, 100)} % of the way from there to perfect)" if "better" in outcomes else ""
    return (
        f"{label(row['cell'])}, length {row['length']}: {', '.join(verdicts)}; "
        f"accuracy {number(row['accuracy'], 1, 100)} % where guessing has {baseline['accuracy']:.1%}{way}, "
        f"{task.loss_name} {number(row['loss'], 3)} where the {task.baseline_name} has {baseline['loss']:.3f}"
    )


def longest_solved(rows: list[dict]) -> str:
    """State, for each cell, the greatest length that all of its trials solved, and the time that took."""
    sentences = []
    for cell in dict.fromkeys(row["cell"] for row in rows):
        solved = [row for row in rows if row["cell"] == cell and set(row["outcomes"]) == {"solved"}]
        if solved:
            row = max(solved, key=lambda row: row["length"])
            cost = f"{number(row['epochs'], 0)} epochs and {number(row['minutes'], 1)} minutes a trial"
            sentences.append(f"{label(cell)} {row['length']} ({cost})")
    if not sentences:
        return f"No cell solved any length (more than {SOLVED:.0%} right in every trial)."
    return f"The greatest lengths solved, more than {SOLVED:.0%} right in every trial: {', '.join(sentences)}."


def trial_sentence(record: dict, task: Task) -> str:
    """Describe a trial that has just finished, and its cost."""
    (row,) = summarise([record])
    step = number(row["seconds_per_step"], 1, 1000)
    return f"trial {record['trial'] + 1} of {sentence(row, task)}, {step} ms per step"


def table(rows: list[dict], task: Task) -> list[list[str]]:
    """Return the headings, then for every length the scores of guessing and the baseline, and one line per cell."""
    extras = [part["extra"] for part in rows[0]["extra"]]
    lines = [
        [
            *("length", "cell", "accuracy, %", task.loss_name),
            *(f"at length +{extra}, %" for extra in extras),
            *("ms per step", "s per epoch", "parameters"),
        ]
    ]
    for length in dict.fromkeys(row["length"] for row in rows):
        same = [row for row in rows if row["length"] == length]
        lines.append(_baseline_line(same[0], task, width=len(lines[0])))
        lines.extend(_line(row) for row in same)
    return lines


def _baseline_line(row: dict, task: Task, width: int) -> list[str]:
    accuracy, loss = row["baseline"]["accuracy"], row["baseline"]["loss"]
    line = [str(row["length"]), f"({task.baseline_name})", f"{accuracy * 100:.1f}", f"{loss:.3f}"]
    return line + [""] * (width - len(line))


def _line(row: dict) -> list[str]:
    return [
        str(row["length"]),
        label(row["cell"]),
        number(row["accuracy"], 1, 100),
        number(row["loss"], 3),
        *(number(part["accuracy"], 1, 100) for part in row["extra"]),
        number(row["seconds_per_step"], 1, 1000),
        number(row["seconds_per_epoch"], 2),
        f"{row['parameters']:,}",
    ]


def markdown(headings: list[str], lines: list[list[str]]) -> str:
    """Format a table of Markdown, text to the left and numbers to the right."""
    rule = ["---" if heading in TEXT else "---:" for heading in headings]
    return "".join(f"| {' | '.join(line)} |\n" for line in [headings, rule, *lines])


def write_tables(rows: list[dict], task: Task, folder: Path) -> list[Path]:
    """Write ``table.md`` and ``table.json``."""
    headings, *lines = table(rows, task)
    with replacing(folder / "table.md") as path:
        path.write_text(markdown(headings, lines))
    write_json(folder / "table.json", rows)
    return [folder / "table.md", folder / "table.json"]


def print_table(rows: list[dict], task: Task, console: Console) -> None:
    headings, *lines = table(rows, task)
    printed = Table(title="Copy task: mean over the trials ± standard error", box=SIMPLE_HEAD)
    for heading in headings:
        one_word = " " not in heading  # narrow terminals wrap the other columns
        printed.add_column(heading, justify="left" if heading == "cell" else "right", no_wrap=one_word)
    for line in lines:
        printed.add_row(*line, style="dim" if line[1].startswith("(") else None)
    console.print(printed)


def number(figure: dict, digits: int, scale: float = 1.0) -> str:
    """Format 'mean ± standard error', of which either may be missing."""
    mean, error = figure["mean"], figure["standard_error"]
    if mean is None:
        return "–"
    return f"{mean * scale:.{digits}f}" + ("" if error is None else f" ± {error * scale:.{digits}f}")
