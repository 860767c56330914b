"""The time budget of a run: whether another measurement still fits."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar


class Job(Protocol):
    """A measurement whose cost can be estimated beforehand."""

    @property
    def cost(self) -> float:
        """The expected duration, in units that all jobs of a run share."""


JobT = TypeVar("JobT", bound=Job)


class Budget:
    """The time that a run may take. It predicts a job's duration from the jobs before it."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = clock()
        self._seconds = seconds
        self._taken = self._cost = 0.0  # seconds and cost of the jobs so far

    @property
    def gone(self) -> float:
        return self._clock() - self._start

    @property
    def left(self) -> float:
        return self._seconds - self.gone

    def obstacle(self, cost: float) -> str | None:
        """Return why a job does not fit the remaining time, or None if it does."""
        if self.left <= 0:
            return f"the {self._seconds:.0f} s of the run were over"
        expected = cost * self._taken / self._cost if self._cost else 0.0
        if expected > self.left:
            return f"it would take about {expected:.0f} s, and {self.left:.0f} s were left"
        return None

    def spend(self, jobs: Sequence[JobT]) -> Iterator[tuple[JobT, str | None]]:
        """Yield each job with the reason to skip it, or None; a job takes the time until the next one is requested."""
        for job in jobs:
            obstacle, start = self.obstacle(job.cost), self.gone
            yield job, obstacle
            if obstacle is None:
                self._taken += self.gone - start
                self._cost += job.cost
