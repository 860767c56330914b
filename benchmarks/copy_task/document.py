"""``DIR/report.md``: a complete run on one page, in words, tables and pictures, from its results alone."""

from pathlib import Path

from benchmarks.common import replacing

from .data import Task
from .pictures import draw_pictures
from .report import label, longest_solved, markdown, number, sentence, table, write_tables
from .summary import left_out

QUESTION = {
    "recall": "{symbols} symbols out of {vocabulary} are read, then as many blanks as the length says, then a "
    "delimiter; after it the symbols must come out in order. Loss and accuracy are those of these answers alone: "
    "guessing is right in one of {vocabulary}, and the memoryless model, which knows the task but not the symbols, has "
    "a cross-entropy of ln {vocabulary}.",
    "echo": "As many rows of {rows} random integers below {vocabulary} as the length says must come out as they are "
    "read. The constant predictor says their mean; accuracy is the share of integers that the rounded outputs hit.",
}


def write_report(content: dict, rows: list[dict], task: Task, folder: Path) -> list[Path]:
    """Write tables, pictures and the report that shows them into ``folder``; returns their paths."""
    tables = write_tables(rows, task, folder)
    pictures = draw_pictures(content["trials"], rows, task, folder)
    path = folder / "report.md"
    with replacing(path) as partial_path:
        partial_path.write_text(_document(content, rows, task, [picture.name for picture in pictures]))
    return [path, *tables, *pictures]


def _document(content: dict, rows: list[dict], task: Task, pictures: list[str]) -> str:
    configuration = content["configuration"]
    question = QUESTION[configuration["protocol"]].format(**configuration, rows=task.input_size)
    parts = [
        f"# Copy task, protocol {configuration['protocol']}",
        question,
        _state(content),
        "## How each cell ends",
        "".join(f"- {sentence(row, task)}.\n" for row in rows),
        longest_solved(rows),
        "## Accuracy and time by length",
        "Means over the trials ± standard error; times are medians over the epochs.",
        markdown(*_split(table(rows, task))),
        _show(pictures, "lengths"),
        *(["## Longer sequences than trained on", _show(pictures, "longer")] if "longer.png" in pictures else []),
        "## Loss and accuracy by epoch",
        _growth(configuration),
        _show(pictures, "curves"),
        "## Gradient norm by time step",
        "The norm of the loss's gradient with respect to h at step t. Below, the norm at the first step over the norm "
        "at the last, as a power of ten: far below 0 the gradient vanishes on its way back, above 0 it grows. A dash "
        "stands for a norm of zero, or one that is not finite.",
        markdown(*_split(_gradient_table(rows))),
        _show(pictures, "gradients"),
        "## Configuration",
        markdown(*_split(_settings(configuration))),
        "## Machine",
        markdown(*_split(_settings(content["hardware"]))),
    ]
    return "\n\n".join(part.rstrip() for part in parts if part) + "\n"


def _state(content: dict) -> str:
    """State the progress of the run: what is unfinished, and what ``--ascend`` omitted; empty if there is neither."""
    configuration, trials = content["configuration"], content["trials"]
    pairs = [(cell, length) for cell in configuration["cell"] for length in configuration["length"]]
    spared = [pair for pair in pairs if configuration.get("ascend") and left_out(trials, *pair)]
    wanted = (len(pairs) - len(spared)) * configuration["trials"]
    state = "" if len(trials) == wanted else f"**Not finished: {len(trials)} of {wanted} trials so far.** "
    if spared:
        names = ", ".join(f"{label(cell)} {length}" for cell, length in spared)
        state += f"Left out, because the cell has not solved a shorter length: {names}."
    return state


def _growth(configuration: dict) -> str:
    """Explain the curves of a training with growing sequences."""
    first = configuration.get("grow_from")
    return f"Training begins with sequences of length {first}, which grow as they are learned." if first else ""


def _gradient_table(rows: list[dict]) -> list[list[str]]:
    lines = [
        [
            str(row["length"]),
            label(row["cell"]),
            *(number(row["gradient_decades"][when], 1) for when in ("before", "after")),
        ]
        for row in rows
    ]
    return [["length", "cell", "before training", "after training"], *lines]


def _settings(values: dict) -> list[list[str]]:
    """List names and values, of any kind."""

    def text(value) -> str:
        return ", ".join(map(str, value)) if isinstance(value, list) else "–" if value is None else str(value)

    return [["setting", "value"], *([name, text(value)] for name, value in values.items())]


def _split(lines: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    headings, *rest = lines
    return headings, rest


def _show(pictures: list[str], stem: str) -> str:
    """Show the pictures whose names begin with ``stem`` in Markdown."""
    return "\n\n".join(f"![{name.removesuffix('.png')}]({name})" for name in pictures if name.startswith(stem))
