"""Ctrl-C and SIGTERM, with which torchrun ends its workers: kept in mind until there is something whole to save."""

import signal
from types import FrameType


class Stopped(KeyboardInterrupt):
    """Training stopped between two steps, because of the signal ``number``."""

    def __init__(self, number: int):
        self.number = number


class Signals:
    """While it is entered the first of ``HEEDED`` that comes is only kept in ``received``; a second acts at once.

    What the process was started to ignore stays ignored, the first time and the second: a shell has the background jobs
    of its scripts ignore Ctrl-C, which is meant for the script; ``kill``, that is SIGTERM, still stops them.
    """

    HEEDED = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: int | None = None
        self._handlers = {}

    def __enter__(self) -> "Signals":
        heeded = [number for number in self.HEEDED if signal.getsignal(number) != signal.SIG_IGN]
        self._handlers = {number: signal.signal(number, self._receive) for number in heeded}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received = number
        self.__exit__()
