"""Runs commands of the harness in two processes, by the launcher of torchrun, which forks them here.

Imports are most of the cost of such a process, and forked ones share them; successive commands share the processes.
``python -m tests.language_model.workers FILE`` reads a list of [arguments, step] from FILE (JSON): the second process
is sent SIGINT in that step, or never if it is null. Each command's exit status is printed; the processes exit with the
last one's.
"""

import itertools
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

from torch.distributed import PrefixStore
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from benchmarks.common import run_command
from benchmarks.language_model import train
from benchmarks.language_model.__main__ import _run
from benchmarks.language_model.distributed import joined
from benchmarks.language_model.loss import masked_cross_entropy

PROCESSES = 2


def interrupt_in(step: int | None) -> None:
    """Raise SIGINT, in this process alone, in the training step of that number, counted from now."""
    count = itertools.count(1)

    def loss(*arguments):
        if next(count) == step:
            signal.raise_signal(signal.SIGINT)
        return masked_cross_entropy(*arguments)

    train.masked_cross_entropy = loss


def work(commands: list) -> None:
    print(f"process {os.environ['RANK']} is {os.getpid()}", flush=True)
    with joined() as world:
        store = world.store
        for number, (arguments, step) in enumerate(commands):
            world.store = PrefixStore(str(number), store)  # an empty one for each command
            interrupt_in(None if world.is_first else step)
            status = 0
            try:
                run_command(partial(_run, arguments, world), say=world.say)
            except SystemExit as end:
                status = end.code
            print(f"status {status}", flush=True)
    sys.exit(status)


if __name__ == "__main__":
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=PROCESSES,
        run_id="test",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="fork",
        max_restarts=0,
    )
    elastic_launch(config, work)(json.loads(Path(sys.argv[1]).read_text()))
