"""``python -m benchmarks.copy_task``: train every cell at every length, several times, and say what came of it."""

import sys
from argparse import Namespace

from rich.console import Console
from tqdm import tqdm

from benchmarks.common import check_backend, run_command

from .data import Task
from .options import configuration_of, parse_options, task_of
from .pictures import draw_pictures
from .report import print_table, sentence, trial_sentence, write_tables
from .results import Results
from .summary import summarise
from .train import run_trial

PROGRESS = "{l_bar}{bar}| {elapsed} gone, {remaining} left{postfix}"


def main(arguments: list[str] | None = None) -> None:
    options = parse_options(arguments)
    task = task_of(options)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    choice = check_backend(options.device, options.dtype, options.backend)
    results = Results(options.out, configuration_of(options, choice.backend), options.resume)
    console.print(f"Results go to {options.out}; backend {choice.backend}, because {choice.reason}.", soft_wrap=True)
    train_all(options, task, results)
    rows = summarise(results.trials)
    write_tables(rows, task, options.out)
    pictures = draw_pictures(results.trials, rows, task, options.out)
    print_table(rows, task, console)
    for row in rows:
        console.print(f"{sentence(row, task)}.", soft_wrap=True)
    names = ", ".join(path.name for path in pictures)
    console.print(f"\nIn {options.out}: results.json, table.md, table.json, {names}", soft_wrap=True)


def train_all(options: Namespace, task: Task, results: Results) -> None:
    """Run the trials that ``results`` lacks, in a fixed order, under one progress bar."""
    trials = [(cell, n, trial) for n in options.length for cell in options.cell for trial in range(options.trials)]
    left = [trial for trial in trials if results.find(*trial) is None]
    if len(left) < len(trials):
        print(f"{len(trials) - len(left)} of {len(trials)} trials were finished before.", flush=True)
    steps = options.epochs * -(-options.sequences // options.batch)
    # the bar counts time steps, so that long sequences weigh as much as they take; no smoothing, because cells differ
    total = steps * sum(length for _, length, _ in left)
    with tqdm(total=total, bar_format=PROGRESS, smoothing=0, disable=not left) as bar:
        for cell, length, trial in left:
            bar.set_postfix_str(f"{cell}, length {length}, trial {trial + 1}")
            record = run_trial(options, task, cell, length, trial, lambda length=length: bar.update(length))
            results.add(record)
            bar.write(trial_sentence(results.trials[-1], task))


if __name__ == "__main__":
    run_command(main)
