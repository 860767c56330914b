"""``benchmarks/gpu/run_all.sh`` without a GPU: its parts at tiny sizes, its limits, and what it leaves behind."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import common
from benchmarks.gpu.kit import __main__ as kit
from benchmarks.gpu.kit import exits, processes, progress

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu" / "run_all.sh"


def run_all(out: Path, **environment: str) -> subprocess.CompletedProcess:
    """The script, run from another folder than the project's."""
    given = {name: value for name, value in os.environ.items() if name not in kit.VARIABLES}
    given |= {"PYTHON": sys.executable, "DEVICE": "cpu", "PROCESSES": "2", **environment}
    return subprocess.run(
        [SCRIPT, out.name], check=False, capture_output=True, text=True, env=given, cwd=out.parent, timeout=300
    )


def settings(*arguments: str, **environment: str) -> kit.Settings:
    return kit.parse(["out", *arguments], environment)


@pytest.fixture
def no_parts(monkeypatch) -> dict[str, kit.Part]:
    """PARTS, to be filled by a test with commands of its own."""
    parts = {}
    monkeypatch.setattr(kit, "PARTS", parts)
    monkeypatch.setattr(kit, "KILL_AFTER", 0.5)
    monkeypatch.setattr(kit, "LEAST", 0.5)
    monkeypatch.setenv("DEVICE", "cpu")
    return parts


def part(code: str, seconds: float = 60) -> kit.Part:
    return kit.Part(seconds, "a test's", lambda *_: [sys.executable, "-c", code])


def run_parts(out: Path) -> tuple[int, str]:
    """The exit status, and the log."""
    with pytest.raises(SystemExit) as stopped:
        kit.main([str(out)])
    return int(stopped.value.code), (out / "log.txt").read_text()


# What is chosen ---------------------------------------------------------------------------------------------


def test_what_is_run_by_default_fits_ten_minutes():
    chosen = settings()
    assert chosen.minutes < 10
    assert sum(chosen.parts.values()) < 60 * chosen.minutes
    assert list(chosen.parts) == [name for name in kit.PARTS if name in chosen.parts]


def test_parts_come_in_the_order_and_with_the_limits_that_are_asked_for():
    assert list(settings(PARTS="micro tests=200 smoke").parts.items()) == [
        ("micro", kit.PARTS["micro"].seconds),
        ("tests", 200.0),
        ("smoke", kit.PARTS["smoke"].seconds),
    ]


def test_tests_are_chosen_in_the_words_of_pytest():
    chosen = kit.tests(settings(TESTS="-k 'lstm and not gru'"), 60)
    assert chosen[-4:] == ["-k", "lstm and not gru", *kit.TESTS]
    chosen = kit.tests(settings(TESTS="tests/gpu/test_calls.py::test_second_gpu"), 60)
    assert chosen[-2:] == ["gpu and not slow", "tests/gpu/test_calls.py::test_second_gpu"]


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"PARTS": "smoke all"}, "PARTS names all, and knows smoke, "),
        ({"PARTS": "smoke=soon"}, "PARTS gives soon, and must give a number above 0"),
        ({"MINUTES": "-1"}, "MINUTES gives -1, and must give a number above 0"),
        ({"PROCESSES": "0"}, "PROCESSES gives 0, and must give a number above 0"),
        ({"TESTS": "-k 'lstm"}, "TESTS cannot be read as words of a shell: No closing quotation"),
        ({"RESUME": "nowhere"}, "nowhere, and there is no such folder"),
        ({"DEVICE": "tpu"}, "--device tpu is unknown"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_input_ends_with_one_sentence_and_status_2(monkeypatch, capsys, tmp_path, environment, complaint):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stopped:
        common.run_command(lambda: kit.main([str(tmp_path / "out")]))
    assert stopped.value.code == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert complaint in sentence
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [[], ["file/out"]], ids=["missing", "in a file"])
def test_the_folder_must_be_given_and_be_one(monkeypatch, tmp_path, capsys, arguments):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEVICE", "cpu")
    with pytest.raises(SystemExit) as stopped:
        common.run_command(lambda: kit.main(arguments))
    assert stopped.value.code == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert ("log.txt cannot be written" if arguments else "required: FOLDER") in sentence


# How parts are run ------------------------------------------------------------------------------------------


def test_a_part_that_fails_does_not_stop_the_next(tmp_path, no_parts):
    no_parts |= {"first": part("print('one'); raise SystemExit(3)"), "second": part("print('two')")}
    status, log = run_parts(tmp_path)
    assert status == 1
    assert re.search(r"== first ==\n.*\none\nfirst: exit status 3, after .*\n\n== second ==\n.*\ntwo\n", log)
    assert re.search(r"\n\nfirst: exit status 3, .*\nsecond: exit status 0, after [\d.]+ s, .*\n$", log)


@pytest.mark.parametrize("deaf", [False, True], ids=["obedient", "deaf"])
def test_a_part_that_takes_too_long_is_ended(tmp_path, no_parts, deaf):
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " if deaf else ""
    no_parts |= {"slow": part(f"{ignore}import time; print('begun', flush=True); time.sleep(60)", 2), "next": part("")}
    status, log = run_parts(tmp_path)
    assert status == 1
    assert "begun\nslow: ended at its limit of 2 s, after " in log
    assert "next: exit status 0" in log


def test_what_a_part_leaves_running_is_named_and_ended(tmp_path, no_parts):
    """It holds the pipe open; nobody waits for that."""
    no_parts["parent"] = part("import subprocess; subprocess.Popen(['sleep', '61'])")
    status, log = run_parts(tmp_path)
    assert status == 0
    (left,) = re.findall(r"left running: process (\d+): sleep 61\n  thread sleep: S, in ", log)
    assert not any(process == int(left) for process, _, _ in processes.running())


def test_parts_without_time_are_not_begun(tmp_path, no_parts, monkeypatch):
    monkeypatch.setenv("MINUTES", "0.001")
    no_parts["late"] = part("print('begun')")
    status, log = run_parts(tmp_path)
    assert status == 1
    assert "late: not begun: the 0.001 minutes were over" in log
    assert "begun\n" not in log


# What tests write while they run ----------------------------------------------------------------------------

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
    """The run is killed when they have happened."""
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


# How processes end ------------------------------------------------------------------------------------------


def test_ends_of_processes_are_timed(capsys):
    exits.main(["--device", "cpu", "--cases", "torch", "cpu", "--together", "2"])
    lines = capsys.readouterr().out.splitlines()
    shown = r"\s+[\d.]+ s to its last line, then \d+\.\d\d s of Python's exit handlers, \d+\.\d\d s of the rest"
    assert [re.sub(shown, "", line) for line in lines] == ["torch", "cpu", "2 at once, the slowest:", "cpu"]


@pytest.mark.parametrize(
    ("case", "complaint"),
    [
        ("import threading, time; threading.Thread(target=time.sleep, args=(1.5,)).start()", r"took \d\.\d s to end"),
        ("import time, threading; threading.Thread(target=time.sleep, args=(60,)).start()", "did not end within 2 s"),
        ("import subprocess; subprocess.Popen(['sleep', '60'], stdout=-3)", "left 1 processes running"),
        ("import os; os.abort()", "ended with exit status -6"),
    ],
    ids=["late", "never", "child", "crash"],
)
def test_bad_ends_are_found(monkeypatch, capsys, case, complaint):
    monkeypatch.setattr(exits, "PATIENCE", 0.3)
    monkeypatch.setattr(exits, "LIMIT", 2)
    program = f"import time\n{case}\nprint(time.monotonic(), flush=True)"
    monkeypatch.setattr(exits, "command", lambda *_: [sys.executable, "-c", program])
    found = exits.measure("case", "cpu")
    assert re.match(f"case {complaint}", found.problem(0.0))
    assert ("case has not ended:\nprocess " in capsys.readouterr().out) == ("sleep, args" in case)
    for process in found.left:
        os.kill(process, signal.SIGKILL)
