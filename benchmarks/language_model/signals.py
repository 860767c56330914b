"""Ctrl-C and SIGTERM, with which torchrun ends its workers, deferred until the state to save is consistent."""

import signal
from types import FrameType


class Stopped(KeyboardInterrupt):
    """Training stopped between two steps, because of the signal ``number``."""

    def __init__(self, number: int):
        self.number = number


class Signals:
    """Stores the first of ``HEEDED`` that arrives within the context in ``received``; a second one acts at once.

    Signals that the process was started to ignore stay ignored, the first time and the second: a shell makes background
    jobs of its scripts ignore Ctrl-C, which is meant for the script; ``kill``, that is SIGTERM, still stops them.
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
