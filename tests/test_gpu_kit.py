"""``benchmarks/gpu/run_all.sh`` without a GPU: its parts at tiny sizes, its limits, and what it leaves behind."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from benchmarks import common
from benchmarks.gpu.kit import __main__ as kit
from benchmarks.gpu.kit import processes

from .gpu import small_calls
from .gpu_kit import run_all


def settings(*arguments: str, **environment: str) -> kit.Settings:
    return kit.parse(["out", *arguments], environment)


@pytest.fixture
def no_parts(monkeypatch) -> dict[str, kit.Part]:
    """Return an empty PARTS, which a test fills with commands of its own."""
    parts = {}
    monkeypatch.setattr(kit, "PARTS", parts)
    monkeypatch.setattr(kit, "KILL_AFTER", 0.5)
    monkeypatch.setattr(kit, "LEAST", 0.5)
    monkeypatch.setenv("DEVICE", "cpu")
    return parts


def part(code: str, seconds: float = 60) -> kit.Part:
    return kit.Part(seconds, "a test's", lambda *_: [sys.executable, "-c", code])


def run_parts(out: Path) -> tuple[int, str]:
    """Run the parts, and return the exit status and the log."""
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
    """Such a process holds the pipe open, but the kit does not wait for it."""
    no_parts["parent"] = part("import subprocess; subprocess.Popen(['sleep', '61'])")
    status, log = run_parts(tmp_path)
    assert status == 0
    (left,) = re.findall(r"left running: process (\d+): sleep 61\n  thread sleep: S, in ", log)
    deadline = time.monotonic() + 60  # a killed process takes a while to disappear
    while any(process == int(left) for process, _, _ in processes.running()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_part_ends_with_the_command(tmp_path, no_parts, number):
    """A part ends even if it ignores the signal that ends the command."""
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


@pytest.mark.exhaustive
def test_every_part_can_be_tried_without_a_gpu(tmp_path):
    """All parts run but the micro-measurements, which need a GPU, and the harness, which has its own tests."""
    one = "tests/gpu/test_calls.py::test_nothing_gave_up_waiting"
    parts = " ".join(
        f"{name}=600" for name in ("smoke", "exit", "tests", "benchmark", "resets", "sanitizer", "scaling")
    )
    result = run_all(tmp_path / "out", TESTS=one, PARTS=parts, MINUTES="60", PROCESSES="1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert set(re.findall(r"^(\w+): exit status 0, after", result.stdout, re.MULTILINE)) == {
        name for name in kit.PARTS if name not in ("micro", "harness")
    }
    written = {"log.txt", "tests.txt", "gpu.json", "resets.json", "scaling.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == written
    assert (tmp_path / "out" / "log.txt").read_text() == result.stdout
    assert "micro" not in settings(DEVICE="cpu").parts


INTERNAL = "========= Internal Sanitizer Error: The Sanitizer failed to handle a hardware exception.\n"


@pytest.mark.parametrize(
    ("output", "itself"),
    [
        ("cuda lstm returned\n" + INTERNAL, True),
        ("========= Error: Race reported between Write access and Read access\n" + INTERNAL, False),
        ("========= Invalid __global__ write of size 4 bytes\n" + INTERNAL, False),
        ("========= ERROR SUMMARY: 1 error\n", False),
    ],
)
def test_a_tool_that_breaks_down_is_excused_only_if_it_had_found_nothing(output, itself):
    assert small_calls.failed_itself(output) == itself
