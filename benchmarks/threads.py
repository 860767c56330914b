"""With how many threads of the CPU a harness computes: as many as there are, or one where these are no faster.

Threads that share a step wait for each other several times in it. Where another program has one of the cores, each
wait may last as long as that program is left to run, and a step takes many times as long as with one thread. Whether
that is so only a trial can tell.
"""

import statistics
import time
from collections.abc import Callable

import torch

ROUNDS = 7
SECONDS = 3.0  # after which no further round begins
TIE = 0.95  # more threads are to take less than so much of one thread's time


def settle_threads(number: int | None, most: int, device: str, make_step: Callable[[], Callable[[], object]]) -> str:
    """Have torch compute with ``number`` threads; without one, on a CPU, with 1 or ``most``, as a trial finds best.

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
    """The number of threads whose steps are shorter, of 1 and ``most``; 1 where there is little between them."""
    return most if many < TIE * one else 1


def step_times(step: Callable[[], object], numbers: tuple[int, ...]) -> list[float]:
    """Median seconds of a step with each of these numbers of threads, which take turns."""
    began = time.perf_counter()
    times: list[list[float]] = [[] for _ in numbers]
    while len(times[0]) < ROUNDS and not (times[0] and time.perf_counter() - began > SECONDS):
        for number, found in zip(numbers, times):
            torch.set_num_threads(number)
            step()  # in which threads begin and caches fill
            started = time.perf_counter()
            step()
            found.append(time.perf_counter() - started)
    return [statistics.median(found) for found in times]
