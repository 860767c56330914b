"""``python -m benchmarks.copy_task``: train every cell at every length, several times, and report the results."""

import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from tqdm import tqdm

from benchmarks.common import InputError, check_backend, run_command
from benchmarks.cuda_graph import check_cuda_graph
from benchmarks.threads import settle_threads

from .data import Task
from .document import write_report
from .memory import check_memory
from .options import configuration_of, parse_options, task_of
from .processes import side_by_side
from .report import longest_solved, print_table, sentence, trial_sentence
from .results import Results, found_before, read
from .summary import left_out, summarise
from .train import run_trial, trial_step

PROGRESS = "{l_bar}{bar}| {elapsed} gone, {remaining} left{postfix}"
SAVED = "finished trials are saved: with the same --out, --resume goes on and --report shows them"


def main(arguments: list[str] | None = None) -> None:
    options = parse_options(arguments)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    content = read(options.out / "results.json") if options.report else run(options, console)
    report(content, options.out, console)


def run(options: Namespace, console: Console) -> dict:
    """Check that the options are possible here, and train; return the content of ``results.json``."""
    task = task_of(options)
    choice = check_backend(options.device, options.dtype, options.backend)
    if options.cuda_graph:
        check_cuda_graph(options.device)
    check_memory(options, task, choice.backend)
    before = found_before(options.out, options.resume)
    settled = settle_threads(
        options.threads or (before and before["hardware"].get("threads")),
        most=max(1, torch.get_num_threads() // options.processes),
        device=options.device,
        make_step=partial(trial_step, options, task),
    )
    results = Results(options.out, configuration_of(options, choice.backend), options.resume)
    if settled:
        console.print(settled, soft_wrap=True)
    console.print(f"Results go to {options.out}; backend {choice.backend}, because {choice.reason}.", soft_wrap=True)
    train_all(options, task, results)
    return results.content


def report(content: dict, folder: Path, console: Console) -> None:
    """Write tables, pictures and ``report.md`` into ``folder``, and print the table and the sentences."""
    task = task_of(Namespace(**content["configuration"]))
    if not content["trials"]:
        raise InputError(f"{folder / 'results.json'} holds no finished trial yet: there is nothing to report")
    rows = summarise(content["trials"])
    paths = write_report(content, rows, task, folder)
    print_table(rows, task, console)
    for row in rows:
        console.print(f"{sentence(row, task)}.", soft_wrap=True)
    console.print(longest_solved(rows), soft_wrap=True)
    console.print(f"\nIn {folder}: results.json, {', '.join(path.name for path in paths)}", soft_wrap=True)


def train_all(options: Namespace, task: Task, results: Results) -> None:
    """Run the trials that ``results`` lacks, in a fixed order, with one progress bar."""
    trials = [(cell, n, trial) for n in options.length for cell in options.cell for trial in range(options.trials)]
    left = [trial for trial in trials if results.find(*trial) is None]
    if len(left) < len(trials):
        print(f"{len(trials) - len(left)} of {len(trials)} trials were finished before.", flush=True)
    # a trial's share of the bar: its length, which its time grows with, or 1 if all have the same --minutes
    sizes = {length: length if options.minutes is None else 1 for length in options.length}
    total = sum(sizes[length] for _, length, _ in left)
    with tqdm(total=total, bar_format=PROGRESS, smoothing=0, disable=not left) as bar:  # unsmoothed: cells differ

        def keep(record: dict) -> None:
            bar.write(trial_sentence(results.add(record, trials), task))

        if options.processes == 1:
            train_in_turn(options, task, results, left, sizes, bar, keep)
        else:
            for record in side_by_side(options, task, left):
                keep(record)
                bar.update(sizes[record["length"]])


def train_in_turn(
    options: Namespace,
    task: Task,
    results: Results,
    left: list[tuple[str, int, int]],
    sizes: dict[int, int],
    bar: tqdm,
    keep: Callable[[dict], None],
) -> None:
    """Run one trial after the other, in this process; the bar moves within a trial."""
    for cell, length, trial in left:
        end = bar.n + sizes[length]
        if not (options.ascend and left_out(results.trials, cell, length)):
            bar.set_postfix_str(f"{cell}, length {length}, trial {trial + 1}")

            def advance(done: float, begin: float = bar.n, size: int = sizes[length]) -> None:
                bar.update(begin + done * size - bar.n)

            keep(run_trial(options, task, cell, length, trial, advance))
        bar.total -= end - bar.n  # steps saved by an early end


if __name__ == "__main__":
    run_command(main, SAVED)
