"""``benchmarks/gpu/run_all.sh FOLDER``: run the parts one after the other, each with its own limit.

The output goes to FOLDER/log.txt, that of the tests to FOLDER/tests.txt, and results to files of their own there, all
while the parts run: a run that is cut off leaves what it had. If a part fails or runs out of time, the next one still
runs, and the exit status is 1.
"""

import argparse
import contextlib
import importlib.util
import os
import platform
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks import common
from benchmarks.speed import ROOT

from . import processes
from .harness import check_corpus

KIT = "benchmarks.gpu.kit"
TESTS = ("tests/gpu", "tests/test_speed_command.py")
KILL_AFTER = 5  # seconds between the request to end a part and killing it
LEAST = 5  # seconds below which a part is not begun


@dataclass(frozen=True)
class Settings:
    """The settings from the environment."""

    out: Path
    parts: dict[str, float]  # name -> seconds
    minutes: float
    tests: list[str]
    processes: int
    device: str
    corpus: Path | None
    resume: Path | None

    @property
    def on_cpu(self) -> bool:
        return self.device == "cpu"


@dataclass(frozen=True)
class Part:
    seconds: float  # its default limit
    what: str
    command: Callable[[Settings, float], list[str]]  # of the settings and the available seconds
    by_default: bool = True


def pytest(settings: Settings, *arguments: str) -> list[str]:
    """Return a command that runs tests in several processes, and writes their progress to tests.txt."""
    given = ["OMP_WAIT_POLICY=passive"]  # leaves the cores of waiting threads to the other processes
    given += ["FUSED_RNN_GPU_TESTS=cpu"] if settings.on_cpu else []
    several = ["-n", str(settings.processes), "--dist", "worksteal"]  # the slowest tests are adjacent
    if settings.processes == 1 or not importlib.util.find_spec("xdist"):
        several = []
    reported = ["-p", f"{KIT}.progress", "--progress", str(settings.out / "tests.txt")]
    return ["env", *given, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *reported, *several, *arguments]


def smoke(settings: Settings, seconds: float) -> list[str]:
    chosen = "one-block and (at_most_twice or float64)" + (" and lstm" if settings.on_cpu else "")
    return pytest(settings, "-m", "gpu", "-k", chosen, "tests/gpu/test_results.py")


def exit(settings: Settings, seconds: float) -> list[str]:
    size = ["--cases", "torch", "cpu", "--together", "2"] if settings.on_cpu else []
    return [sys.executable, "-m", f"{KIT}.exits", "--device", settings.device, *size]


def tests(settings: Settings, seconds: float) -> list[str]:
    """Select from all tests that need a GPU if the selection has no path."""
    paths = [word for word in settings.tests if (ROOT / word.partition("::")[0]).exists()]
    return pytest(settings, "-m", "gpu and not slow", *settings.tests, *([] if paths else TESTS))


def sanitizer(settings: Settings, seconds: float) -> list[str]:
    return [sys.executable, "-m", "tests.gpu.small_calls", settings.device]


def benchmark(settings: Settings, seconds: float) -> list[str]:
    size = ["--quick", "--points", "main", "people", "ragged", "--candidates", "eager"] if settings.on_cpu else []
    return speed(settings, seconds, "gpu.json", *size)


def resets(settings: Settings, seconds: float) -> list[str]:
    return speed(settings, seconds, "resets.json", "--resets", *(["--quick"] if settings.on_cpu else []))


def streams(settings: Settings, seconds: float) -> list[str]:
    out = ["--out", str(settings.out / "streams.json"), *(["--quick"] if settings.on_cpu else [])]
    return [sys.executable, "-m", "benchmarks.gpu.streams", "--device", settings.device, *out]


def micro(settings: Settings, seconds: float) -> list[str]:
    """Reserve half the time for compiling the program if build/micro is missing."""
    out = ["--out", str(settings.out / "micro.json")]
    return [sys.executable, "-m", "benchmarks.gpu.micro", "--seconds", str(seconds / 2), *out]


def scaling(settings: Settings, seconds: float) -> list[str]:
    size = ["--quick", "--cells", "lstm"] if settings.on_cpu else ["--dtype", "bfloat16"]
    return speed(settings, seconds, "scaling.json", "--sweep", *size)


def harness(settings: Settings, seconds: float) -> list[str]:
    """Reserve some seconds for its own beginning and end."""
    folders = {"--corpus": settings.corpus, "--resume": settings.resume}
    given = [str(word) for pair in folders.items() if pair[1] for word in pair]
    budget = ["--seconds", f"{max(seconds - 20, seconds / 2):.1f}", "--processes", str(min(12, settings.processes))]
    size = ["--tiny"] if settings.on_cpu else []
    command = [sys.executable, "-m", f"{KIT}.harness", "--device", settings.device]
    return [*command, *budget, *size, *given, str(settings.out)]


def speed(settings: Settings, seconds: float, file: str, *options: str) -> list[str]:
    """Return a command with a budget of three quarters of its time, because its last measurement may take longer."""
    budget = ["--device", settings.device, "--minutes", f"{0.75 * seconds / 60:.3f}"]
    return [sys.executable, "-m", "benchmarks.speed", *budget, *options, "--out", str(settings.out / file)]


PARTS = {  # the most informative first
    "smoke": Part(60, "one shape forward and backward: every cell, dtype and backend", smoke),
    "exit": Part(100, "how long processes that used a backend take to end", exit),
    "tests": Part(150, "the tests marked gpu, or those of TESTS", tests),
    "benchmark": Part(80, "python -m benchmarks.speed --device cuda", benchmark),
    "resets": Part(30, "python -m benchmarks.speed --device cuda --resets", resets),
    "micro": Part(80, "python -m benchmarks.gpu.micro", micro),
    "sanitizer": Part(65, "compute-sanitizer's memcheck and racecheck over small calls", sanitizer),
    "scaling": Part(300, "python -m benchmarks.speed --device cuda --sweep", scaling, by_default=False),
    "streams": Part(30, "python -m benchmarks.gpu.streams", streams, by_default=False),
    "harness": Part(300, "the copy task and the language model, trained side by side", harness, by_default=False),
}
VARIABLES = {
    "PARTS": "what to run, in this order; a limit in seconds may follow a name: 'smoke tests=200'",
    "MINUTES": "the limit of all together (9.5)",
    "TESTS": "what pytest is told beside its defaults: paths, -k ..., -m ...",
    "PROCESSES": "how many run tests and train models side by side (two fewer than there are cores)",
    "PTB": "folder with Penn Treebank's ptb.train.txt, ptb.valid.txt and ptb.test.txt, for the language model",
    "RESUME": "FOLDER of an earlier call, whose training the harness goes on with",
    "DEVICE": "cuda, or cpu: to try all this without a GPU, with tiny sizes",
}


def parse(arguments: list[str] | None, environment: Mapping[str, str]) -> Settings:
    listed = "".join(f"\n  {name:10} {part.what} ({part.seconds:.0f} s)" for name, part in PARTS.items())
    variables = "".join(f"\n  {name:10} {meaning}" for name, meaning in VARIABLES.items())
    parser = common.Parser(prog="benchmarks/gpu/run_all.sh", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"parts, and their limits:{listed}\n\nvariables of the environment:{variables}"
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where results and logs go")
    parser.add_argument("--from", dest="start", type=Path, default=Path(), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    start = options.start.resolve()
    corpus = folder("PTB", environment, start)
    if corpus:
        check_corpus(corpus)
    device = environment.get("DEVICE") or "cuda"
    default = [name for name, part in PARTS.items() if part.by_default and not (device == "cpu" and name == "micro")]
    chosen = environment["PARTS"].split() if environment.get("PARTS") else default
    return Settings(
        out=start / options.folder,
        parts=dict(map(limited, chosen)),
        minutes=number("MINUTES", environment, 9.5, common.positive_number),
        tests=words("TESTS", environment),
        processes=number("PROCESSES", environment, max(1, (os.cpu_count() or 1) - 2), common.positive),
        device=device,
        corpus=corpus,
        resume=folder("RESUME", environment, start),
    )


def limited(word: str) -> tuple[str, float]:
    """Return the named part, and its limit."""
    name, _, seconds = word.partition("=")
    if name not in PARTS:
        raise common.InputError(f"PARTS names {name}, and knows {', '.join(PARTS)}")
    if not seconds:
        return name, PARTS[name].seconds
    return name, number("PARTS", {"PARTS": seconds}, 0, common.positive_number)


def number(name: str, environment: Mapping[str, str], default: float, kind: Callable):
    try:
        return kind(environment[name]) if environment.get(name) else default
    except (ValueError, argparse.ArgumentTypeError):
        raise common.InputError(f"{name} gives {environment[name]}, and must give a number above 0") from None


def words(name: str, environment: Mapping[str, str]) -> list[str]:
    try:
        return shlex.split(environment.get(name, ""))
    except ValueError as error:
        raise common.InputError(f"{name} cannot be read as words of a shell: {error}") from None


def folder(name: str, environment: Mapping[str, str], start: Path) -> Path | None:
    if not environment.get(name):
        return None
    path = start / environment[name]
    if not path.is_dir():
        raise common.InputError(f"{name} gives {path}, and there is no such folder")
    return path


class Log:
    """Standard output, copied to a file that is flushed at once."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("ab", buffering=0)
        except OSError as error:
            raise common.InputError(f"{path} cannot be written: {error.strerror}") from None
        self.last = time.monotonic()  # time of the latest output

    def write(self, text: bytes) -> None:
        self.last = time.monotonic()
        self.file.write(text)
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()

    def say(self, text: str) -> None:
        self.write(f"{text}\n".encode())

    def copy(self, pipe) -> None:
        with contextlib.suppress(ValueError):  # if it has been closed
            while text := os.read(pipe.fileno(), 1 << 16):
                self.write(text)


def run(command: list[str], seconds: float, log: Log) -> str:
    """Run a command and all its child processes within its limit; return how it ended."""
    began = time.monotonic()
    log.say(shlex.join(command))
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, env=environment, **piped, **processes.GROUP)
    copier = threading.Thread(target=log.copy, args=(process.stdout,), daemon=True)
    copier.start()
    try:
        status = f"exit status {process.wait(seconds)}"
    except subprocess.TimeoutExpired:
        status = f"ended at its limit of {seconds:.0f} s"
    finally:
        end(process)  # if it is still running, also because this process is being terminated
    ended = time.monotonic()
    copier.join(1)  # a surviving process with the pipe open keeps its end from coming
    silence = max(0.0, ended - log.last)
    for left in processes.of_group(process.pid):
        log.say(f"left running: {processes.described(left)}")
        with contextlib.suppress(ProcessLookupError):
            os.kill(left, signal.SIGKILL)
    return f"{status}, after {ended - began:.1f} s, {silence:.1f} s after its last word"


def end(process: subprocess.Popen) -> None:
    """Ask a process and all of its group to end, then kill it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(KILL_AFTER)


def main(arguments: list[str] | None = None) -> None:
    began = time.monotonic()
    settings = parse(arguments, os.environ)
    common.open_device(settings.device)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # also ends the part that is running
    log = Log(settings.out / "log.txt")
    machine = common.hardware()
    log.say(f"{', '.join(f'{name} {value}' for name, value in machine.items())}, kernel {platform.release()}")
    statuses = {}
    for name, limit in settings.parts.items():
        seconds = min(limit, 60 * settings.minutes - KILL_AFTER - (time.monotonic() - began))
        log.say(f"\n== {name} ==")
        if seconds < LEAST:
            statuses[name] = f"not begun: the {settings.minutes:g} minutes were over"
        else:
            command = PARTS[name].command(settings, seconds)
            statuses[name] = run(command, seconds, log)
        log.say(f"{name}: {statuses[name]}")
    log.say("\n" + "\n".join(f"{name}: {status}" for name, status in statuses.items()))
    sys.exit(any(not status.startswith("exit status 0,") for status in statuses.values()))


if __name__ == "__main__":
    common.run_command(main, saved="what was found is written")
