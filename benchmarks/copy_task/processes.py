"""Trials in processes of their own, side by side.

They import this module to begin, which a module that is run as a command cannot be.
"""

import multiprocessing
import os
import threading
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

import torch

from benchmarks.common import RunError

from .data import Task
from .train import run_trial


def side_by_side(options: Namespace, task: Task, left: list[tuple[str, int, int]]) -> Iterator[dict]:
    """Yield the records of the trials as they finish; the processes share the cores, and end with this one.

    Raises RunError if one of them is killed, as Linux does when memory runs out.
    """
    threads = torch.get_num_threads()  # of each process
    fresh = multiprocessing.get_context("spawn")  # a fork may not use a GPU
    with ProcessPoolExecutor(options.processes, fresh, begin_process, (threads,)) as pool:
        try:
            for done in as_completed([pool.submit(run_trial, options, task, *trial) for trial in left]):
                yield done.result()
        except BrokenProcessPool:
            raise RunError(
                f"one of the --processes {options.processes} ended within a trial, perhaps as memory ran out"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.kill()
            raise


def begin_process(threads: int) -> None:
    """Prepare a process for trials: the number of its threads, and its end as soon as the main one has ended.

    A main process that a signal kills cannot end the others, so each of them waits for that.
    """
    torch.set_num_threads(threads)
    main_process = multiprocessing.parent_process()

    def end_together() -> None:
        main_process.join()
        os._exit(1)

    threading.Thread(target=end_together, daemon=True).start()
