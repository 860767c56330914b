"""The records of the kit's tests while they run, and the end of their processes."""

import re
import subprocess
import sys
import time

import pytest

from benchmarks.gpu.kit import exits, processes, progress

from .gpu_kit import run_all

EXAMPLES = """
import os, signal, time
from pathlib import Path
import pytest

pytestmark = pytest.mark.gpu

@pytest.fixture
def broken(): raise OSError("no such thing")

def test_bad(): assert "the value" == "another"
def test_that_cannot_begin(broken): pass
def test_good(): pass

def test_that_ends_the_run():
    told = Path({told!r})
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and told.read_text().count("FAILED") < 2:
        time.sleep(0.1)
    os.kill(os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("count", ["1", "2"], ids=["one process", "two processes"])
def test_failures_are_written_as_they_happen(tmp_path, count):
    """Failures are written even if the run is killed right after them."""
    examples, told = tmp_path / "test_examples.py", tmp_path / "out" / "tests.txt"
    examples.write_text(EXAMPLES.format(told=str(told)))
    result = run_all(tmp_path / "out", PARTS="tests", TESTS=str(examples), PROCESSES=count)
    assert "tests: exit status -9, after" in result.stdout
    assert re.search(r" s: FAILED in its call after .* s: .*::test_bad\n(    .*\n)*    E .*the value", told.read_text())
    assert re.search(r"its setup after .*::test_that_cannot_begin\n(    .*\n)*    .*no such thing", told.read_text())


def test_progress_names_what_takes_long(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.01)
    watcher = progress.Watcher(tmp_path / "tests.txt")
    watcher.pytest_xdist_node_collection_finished(["a", "b", "c"])
    watcher.pytest_runtest_logstart("a")
    deadline = time.monotonic() + 60
    while "long at it" not in (tmp_path / "tests.txt").read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    watcher.over.set()
    assert re.search(r" s: of 3 tests none is done; long at it: a \(\d+ s\)\n", (tmp_path / "tests.txt").read_text())


def test_processes_that_do_not_leave_are_described(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.2)
    watcher = progress.Watcher(tmp_path / "tests.txt")
    with subprocess.Popen(["sleep", "60"]) as late:
        leaving = watcher.pytest_sessionfinish()
        next(leaving)
        deadline = time.monotonic() + 60
        while f"where process {late.pid} stands" not in (tmp_path / "tests.txt").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        late.kill()
    assert (
        f"these have not ended:\nprocess {late.pid}: sleep 60\n  thread sleep: S, in "
        in (tmp_path / "tests.txt").read_text()
    )
    with pytest.raises(StopIteration):
        leaving.send(None)
    assert "all processes of the tests had ended after" in (tmp_path / "tests.txt").read_text()


LATE = """
import atexit, time
import pytest

pytestmark = pytest.mark.gpu

def sleep_for_long(): time.sleep(%d)
def test_good(): atexit.register(sleep_for_long)
"""


@pytest.mark.exhaustive  # ten seconds of waiting
def test_python_says_where_late_processes_stand(tmp_path):
    """Late processes write their tracebacks before they are killed, ten seconds after they were told to exit."""
    (tmp_path / "test_late.py").write_text(LATE % 60)
    result = run_all(tmp_path / "out", PARTS="tests", TESTS=str(tmp_path / "test_late.py"))
    assert "1 passed" in result.stdout
    told = (tmp_path / "out" / "tests.txt").read_text()
    assert re.search(r"Timeout .*\n(.*\n)*.* in sleep_for_long\n", told)
    assert re.search(r"these have not ended:\nprocess ", told)


# How processes end ------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_ends_of_processes_are_timed(capsys):
    exits.main(["--device", "cpu", "--cases", "torch", "cpu", "--together", "2"])
    lines = capsys.readouterr().out.splitlines()
    shown = r"\s+[\d.]+ s to its last line, then \d+\.\d\d s of Python's exit handlers, \d+\.\d\d s of the rest"
    assert [re.sub(shown, "", line) for line in lines] == ["torch", "cpu", "2 at once, the slowest:", "cpu"]


@pytest.mark.parametrize(
    ("limit", "case", "complaint"),
    [
        (60, "import threading, time; threading.Thread(target=time.sleep, args=(1.5,)).start()", r"took \d+\.\d s to"),
        (
            2,
            "import time, threading; threading.Thread(target=time.sleep, args=(60,)).start()",
            "did not end within 2 s",
        ),
        (60, "import subprocess; subprocess.Popen(['sleep', '60'], stdout=-3)", "left 1 processes running"),
        (60, "import os; os.abort()", "ended with exit status -6"),
    ],
    ids=["late", "never", "child", "crash"],
)
def test_bad_ends_are_found(monkeypatch, capsys, limit, case, complaint):
    monkeypatch.setattr(exits, "PATIENCE", 0.3)
    monkeypatch.setattr(exits, "LIMIT", limit)
    program = f"import time\n{case}\nprint(time.monotonic(), flush=True)"
    monkeypatch.setattr(exits, "command", lambda *_: [sys.executable, "-c", program])
    found = exits.measure("case", "cpu")
    assert re.match(f"case {complaint}", found.problem(0.0))
    assert ("case has not ended:\nprocess " in capsys.readouterr().out) == ("sleep, args" in case)
    assert not any(process in found.left for process, _, _ in processes.running())
