"""``benchmarks/gpu/run_all.sh`` without a GPU: its parts at tiny sizes, its limits, and what it leaves behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import common
from benchmarks.gpu.kit import __main__ as kit
from benchmarks.gpu.kit import exits, harness, processes, progress
from benchmarks.report import BLOCKS

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu" / "run_all.sh"


def run_all(out: Path, **environment: str) -> subprocess.CompletedProcess:
    """The script, run from another folder than the project's, and not as part of a run of pytest-xdist."""
    ours = {*kit.VARIABLES, *(name for name in os.environ if name.startswith("PYTEST_XDIST"))}
    given = {name: value for name, value in os.environ.items() if name not in ours}
    given |= {"PYTHON": sys.executable, "DEVICE": "cpu", "PROCESSES": "2", **environment}
    return subprocess.run(
        [SCRIPT, out.name], check=False, capture_output=True, text=True, env=given, cwd=out.parent, timeout=1200
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


def test_an_interpreter_without_torch_is_named(tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "$@"\n')  # none of its packages
    python.chmod(0o755)
    result = run_all(tmp_path / "out", PYTHON=str(python))
    assert result.returncode == 2
    assert result.stderr == f"error: {python} has no torch: set PYTHON to an interpreter that has it\n"


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
    deadline = time.monotonic() + 60  # a process that is killed takes its time to go
    while any(process == int(left) for process, _, _ in processes.running()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_part_ends_with_the_command(tmp_path, no_parts, number):
    """Also where it is deaf to what ends the command."""
    ignore = f"import signal; signal.signal({int(number)}, signal.SIG_IGN); "
    tell = f"import os, time; os.kill({os.getpid()}, {int(number)}); time.sleep(63)"
    no_parts["part"] = part(ignore + tell)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stopped:
            common.run_command(lambda: kit.main([str(tmp_path)]))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped.value.code == 128 + number
    assert not any("sleep(63)" in processes.described(process) for process, _, _ in processes.running())


def test_parts_without_time_are_not_begun(tmp_path, no_parts, monkeypatch):
    monkeypatch.setenv("MINUTES", "0.001")
    no_parts["late"] = part("print('begun')")
    status, log = run_parts(tmp_path)
    assert status == 1
    assert "late: not begun: the 0.001 minutes were over" in log
    assert "begun\n" not in log


@pytest.mark.slow
def test_every_part_can_be_tried_without_a_gpu(tmp_path):
    """Except the micro-measurements, which say that they need one."""
    one = "tests/gpu/test_calls.py::test_nothing_gave_up_waiting"
    parts = " ".join(f"{name}=600" for name in ("smoke", "exit", "tests", "benchmark", "sanitizer", "scaling"))
    result = run_all(tmp_path / "out", TESTS=one, PARTS=parts, MINUTES="60", PROCESSES="1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert set(re.findall(r"^(\w+): exit status 0, after", result.stdout, re.MULTILINE)) == {
        name for name in kit.PARTS if name not in ("micro", "harness")
    }
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"log.txt", "tests.txt", "gpu.json", "scaling.json"}
    assert (tmp_path / "out" / "log.txt").read_text() == result.stdout
    assert "micro" not in settings(DEVICE="cpu").parts


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


LATE = """
import atexit, time
import pytest

pytestmark = pytest.mark.gpu

def sleep_for_long(): time.sleep(%d)
def test_good(): atexit.register(sleep_for_long)
"""


def test_python_says_where_late_processes_stand(tmp_path):
    """The process that tells them to leave kills them after ten seconds; by then they have said it."""
    (tmp_path / "test_late.py").write_text(LATE % 60)
    result = run_all(tmp_path / "out", PARTS="tests", TESTS=str(tmp_path / "test_late.py"))
    assert "1 passed" in result.stdout
    told = (tmp_path / "out" / "tests.txt").read_text()
    assert re.search(r"Timeout .*\n(.*\n)*.* in sleep_for_long\n", told)
    assert re.search(r"these have not ended:\nprocess ", told)


# How processes end ------------------------------------------------------------------------------------------


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


# Training ---------------------------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in harness.CORPUS.values():
        (folder / name).write_text(" no it was n't black monday \n" * 20)
    return folder


@pytest.mark.slow
def test_the_models_of_the_readme_are_trained_and_a_second_call_goes_on(tmp_path, corpus):
    """What the first call leaves is enough: nothing is trained anew."""
    done = {}
    for name, more in ("first", {}), ("second", {"RESUME": "first"}):
        result = run_all(tmp_path / name, PARTS="harness", PTB=str(corpus), **more)
        assert result.returncode == 0, result.stdout + result.stderr
        assert {path.name for path in (tmp_path / name).iterdir()} == {
            *("log.txt", "copy_task.json", "language_model.json", "checkpoint.00")
        }
        done[name] = {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.json")}
    assert done["first"] == done["second"]
    assert "8 of 8 trials were finished before." in result.stdout
    copied = json.loads(done["first"]["copy_task.json"])
    assert [(t["length"], t["cell"]) for t in copied["trials"]] == [(n, cell) for n in (3, 5) for cell in harness.CELLS]
    assert "2 trials side by side" in BLOCKS["copy"]([copied])
    (run,) = json.loads(done["first"]["language_model.json"])["runs"]
    assert [epoch["epoch"] for epoch in run["epochs"]] == [1, 2]
    shown = BLOCKS["language_model"]([json.loads(done["first"]["language_model.json"])])
    assert "--text ptb.train.txt --valid ptb.valid.txt --test ptb.test.txt --out runs/zaremba-small`" in shown


def test_without_a_corpus_one_sentence_says_what_is_left_out(tmp_path, capsys, monkeypatch):
    trained = []
    monkeypatch.setattr(harness, "train", lambda commands, *_: trained.extend(commands) or [])
    harness.main(["--device", "cpu", str(tmp_path)])
    assert trained == ["the copy task"]
    assert "The language model is left out: no folder with Penn Treebank was given.\n" in capsys.readouterr().out


def test_what_training_has_is_carried_in_files_that_are_small_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "PIECE", 1000)
    first, second, folder = (tmp_path / name for name in ("first", "second", "folder"))
    contents = {name: os.urandom(700) for name in harness.RESULTS.values()} | {harness.CHECKPOINT: os.urandom(2500)}
    for name, content in contents.items():
        with common.replacing(first / name) as path:
            path.write_bytes(content)
    saved = {}
    harness.save(first, folder, saved)
    pieces = [f"checkpoint.0{number}" for number in range(3)]
    assert {path.name for path in folder.iterdir()} == {*harness.RESULTS, *pieces}
    assert max(path.stat().st_size for path in folder.iterdir()) <= 1000
    (folder / pieces[0]).unlink()
    harness.save(first, folder, saved)
    assert not (folder / pieces[0]).exists()  # what has not changed is not written again
    harness.save(first, folder, {})
    harness.restore(folder, second)
    assert {name: (second / name).read_bytes() for name in contents} == contents


@pytest.fixture
def until_begun(tmp_path, monkeypatch) -> None:
    """To the harness the time is over as soon as the file ``begun`` is there."""
    now = SimpleNamespace(monotonic=lambda: 1e9 * (tmp_path / "begun").exists(), sleep=lambda _: time.sleep(0.05))
    monkeypatch.setattr(harness, "time", now)


STUBBORN = """
import signal, subprocess, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.SIG_IGN)
subprocess.Popen(["sleep", "62"])
Path("begun").touch()
time.sleep(60)
"""
SAVING = """
import time
from pathlib import Path
Path("runs/copy-gated").mkdir(parents=True)
try:
    Path("begun").touch()
    time.sleep(60)
except KeyboardInterrupt:
    Path("runs/copy-gated/results.json").write_text("what it had")
"""


@pytest.mark.usefixtures("until_begun")
@pytest.mark.parametrize("ignored", [False, True], ids=["heard", "ignored by the parent"])
def test_training_that_is_cut_off_saves_what_it_has(tmp_path, ignored):
    """The signal reaches it also where this process, as the background job of a script, was started deaf to it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
    try:
        problems = harness.train({"a": [sys.executable, "-c", SAVING]}, tmp_path, tmp_path / "out", 60, {})
    finally:
        signal.signal(signal.SIGINT, before)
    assert problems == ["a was not finished: go on from here"]
    assert (tmp_path / "out" / "copy_task.json").read_text() == "what it had"


def test_training_that_fails_is_named(tmp_path):
    commands = {name: [sys.executable, "-c", f"raise SystemExit({name})"] for name in ("0", "3")}
    assert harness.train(commands, tmp_path, tmp_path, 60, {}) == ["3 ended with exit status 3"]


@pytest.mark.usefixtures("until_begun")
def test_training_that_does_not_stop_is_killed_with_what_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "TO_STOP", 0.5)
    problems = harness.train({"a": [sys.executable, "-c", STUBBORN]}, tmp_path, tmp_path, 60, {})
    assert problems == ["a was not finished: go on from here"]
    assert not any("sleep 62" in processes.described(process) for process, _, _ in processes.running())


@pytest.mark.parametrize("works", [True, False], ids=["shares", "takes turns"])
def test_a_gpu_is_shared_where_the_service_works(tmp_path, monkeypatch, works):
    """With stand-ins for the service and for the interpreter that tries whether it works."""
    for name, code in (
        ("nvidia-cuda-mps-control", f'echo "$*$(cat)" >> {tmp_path}/said'),
        ("tries", f"{str(works).lower()}"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{code}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "tries"))
    with harness.shared_gpu("cuda", tmp_path) as more:
        assert (more == {f"CUDA_MPS_{name}_DIRECTORY": str(tmp_path / "mps") for name in ("PIPE", "LOG")}) == works
        assert (more is None) != works
    assert (tmp_path / "said").read_text() == "-d\nquit -t 2\n"
    with harness.shared_gpu("cpu", tmp_path) as more:
        assert more is None


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["--resume", "corpus"],
            "holds nothing to go on from: no copy_task.json, language_model.json or checkpoint.00",
        ),
        (["--corpus", "."], "lacks ptb.train.txt, ptb.valid.txt, ptb.test.txt"),
        (["--device", "tpu"], "--device tpu is unknown"),
    ],
    ids=["resume", "corpus", "device"],
)
def test_wrong_input_of_the_harness(monkeypatch, tmp_path, corpus, capsys, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        common.run_command(lambda: harness.main(["--device", "cpu", *arguments, "out"]))
    assert stopped.value.code == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
