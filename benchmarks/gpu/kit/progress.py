"""A pytest plugin that records the progress of tests as they run: ``-p benchmarks.gpu.kit.progress --progress FILE``.

A run that is cut off at a time limit prints none of its findings. So every failure is appended to FILE as it happens,
and every ten seconds the progress of the run and its slow tests. At the end FILE states how long the processes of
pytest-xdist took to exit, and, if that was too long, what each was doing.
"""

import atexit
import faulthandler
import gc
import os
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from . import processes

EVERY = 10  # seconds between two lines, and the age at which a test is slow
PATIENCE = 3  # seconds within which a process should end
LINES = 60  # of a failure


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--progress", metavar="FILE", help="append failures and progress to this file as they happen")


def pytest_configure(config: pytest.Config) -> None:
    if path := config.getoption("progress"):
        watcher = Leaver(path) if hasattr(config, "workerinput") else Watcher(Path(path))
        config.pluginmanager.register(watcher, "fused_rnn_progress")


class Leaver:
    """Runs in worker processes: ends one soon after its request to end, or writes Python's stacks to FILE."""

    def __init__(self, path: str) -> None:
        # a descriptor, because the interpreter might close a file object before it is needed
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        atexit.register(self.leave)  # registered last, so that it runs first

    def leave(self) -> None:
        gc.freeze()  # skips the last garbage collection of everything that torch imported, which takes seconds
        faulthandler.dump_traceback_later(PATIENCE, file=self.file)


class Watcher:
    """Runs in the process that receives the reports of all tests."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a", buffering=1)
        self.started = time.monotonic()
        self.total = 0
        self.counts: Counter[str] = Counter()
        self.running: dict[str, float] = {}  # start times by test
        self.over = threading.Event()
        threading.Thread(target=self._tell, daemon=True).start()

    def say(self, text: str) -> None:
        self.file.write(f"{time.monotonic() - self.started:6.1f} s: {text}\n")

    def progress(self) -> str:
        if not self.total:
            return "no test has been found yet"
        found = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.counts.items())) or "none is done"
        now = time.monotonic()
        long = [f"{name} ({now - began:.0f} s)" for name, began in list(self.running.items()) if now - began > EVERY]
        return f"of {self.total} tests {found}" + (f"; long at it: {', '.join(long)}" if long else "")

    def _tell(self) -> None:
        while not self.over.wait(EVERY):
            self.say(self.progress())

    # What pytest, and pytest-xdist in the name of its processes, say -----------------------------------------

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.total = len(session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self.total = len(ids)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._failure(f"could not be collected: {report.nodeid}", report)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.running[nodeid] = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failure(f"FAILED in its {report.when} after {report.duration:.1f} s: {report.nodeid}", report)
        if report.failed or report.skipped or report.when == "call":
            self.counts[report.outcome] += 1
        if report.failed or report.when == "teardown":
            self.running.pop(report.nodeid, None)

    def _failure(self, title: str, report: pytest.CollectReport | pytest.TestReport) -> None:
        lines = report.longreprtext.splitlines()
        self.say("\n    ".join([title, *lines[-LINES:]]))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self):
        """Time the end of the other processes, for which pytest-xdist waits here."""
        self.over.set()
        self.say(self.progress())
        began = time.monotonic()
        left = threading.Event()
        threading.Thread(target=self._wait_for, args=(left,), daemon=True).start()
        try:
            return (yield)
        finally:
            left.set()
            self.say(f"all processes of the tests had ended after {time.monotonic() - began:.1f} s more")

    def _wait_for(self, left: threading.Event) -> None:
        if left.wait(PATIENCE):
            return
        late = processes.descendants(os.getpid())
        if late:
            self.say("\n".join(["these have not ended:", *map(processes.described, late)]))
        if late and not left.is_set():
            self.say(f"where process {late[0]} stands:\n{processes.stacks(late[0])}")
