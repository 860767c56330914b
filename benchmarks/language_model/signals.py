"""Ctrl-C and SIGTERM, with which torchrun ends its workers: kept in mind until there is something whole to save."""

import signal
from types import FrameType


class Stopped(KeyboardInterrupt):
    """Training stopped between two steps, because of the signal ``number``."""

    def __init__(self, number: int):
        self.number = number


class Signals:
    """While it is entered the first of ``HEEDED`` that comes is only kept in ``received``; a second acts at once."""

    HEEDED = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: int | None = None
        self._handlers = {}

    def __enter__(self) -> "Signals":
        self._handlers = {number: signal.signal(number, self._receive) for number in self.HEEDED}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received = number
        self.__exit__()
