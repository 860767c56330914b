"""The number of CPU threads for a harness: all of them, or one if more are no faster.

Threads that share a step wait for each other several times in it. If another program occupies one of the cores, each
wait may last as long as that program's time slice, and a step takes many times as long as with one thread. Only a trial
can tell whether this is the case.
"""

import statistics
import time
from collections.abc import Callable

import torch

ROUNDS = 7
SECONDS = 3.0  # no further round begins after this
TIE = 0.95  # more threads must take less than this fraction of one thread's time


def settle_threads(number: int | None, most: int, device: str, make_step: Callable[[], Callable[[], object]]) -> str:
    """Set torch's threads to ``number``, or, without one, on a CPU, to the faster of 1 and ``most`` in a trial.

    ``make_step`` returns the training step to try. Returns a sentence on the trial, empty if none was needed.
    """
    if number is not None or most == 1 or device != "cpu":
        torch.set_num_threads(most if number is None else number)
        return ""
    one, many = step_times(make_step(), (1, most))
    chosen = choice(one, many, most)
    torch.set_num_threads(chosen)
    return (
        f"Computing with {chosen} of {most} threads: a training step took {1000 * one:.1f} ms with one and "
        f"{1000 * many:.1f} ms with {most}; --threads forces a number."
    )


def choice(one: float, many: float, most: int) -> int:
    """Return the number of threads with shorter steps, of 1 and ``most``; 1 if they are nearly equal."""
    return most if many < TIE * one else 1


def step_times(step: Callable[[], object], numbers: tuple[int, ...]) -> list[float]:
    """Return the median seconds of a step with each of these numbers of threads, which take turns."""
    began = time.perf_counter()
    times: list[list[float]] = [[] for _ in numbers]
    while len(times[0]) < ROUNDS and not (times[0] and time.perf_counter() - began > SECONDS):
        for number, found in zip(numbers, times):
            torch.set_num_threads(number)
            step()  # starts threads and fills caches
            started = time.perf_counter()
            step()
            found.append(time.perf_counter() - started)
    return [statistics.median(found) for found in times]
