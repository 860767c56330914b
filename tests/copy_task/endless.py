"""The copy task with trials that do not end; each writes the number of its process into --out when it begins."""

import os
import time
from argparse import Namespace

from benchmarks.common import run_command
from benchmarks.copy_task import __main__ as command
from benchmarks.copy_task import processes


def endless(options: Namespace, *_) -> None:
    (options.out / f"{os.getpid()}.trial").touch()
    while True:
        time.sleep(0.05)


if __name__ == "__main__":
    processes.run_trial = endless
    run_command(command.main, command.SAVED)
