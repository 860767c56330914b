"""``python -m benchmarks.gpu.kit.exits``: how long processes that used a backend take from their last line to the end.

Each case is a fresh process, the first of them without anything of ours. One that has not ended ``PATIENCE`` seconds
after its last line is described as Linux, the interpreter and a debugger see it. The command ends with an error where a
case takes that much longer than the first, or leaves processes behind.

Without a GPU most of it is the interpreter's last garbage collection over what torch has imported, a second or two, and
more after torch.compile; ``gc.freeze()`` before the end of a program spares it.
"""

import argparse
import atexit
import contextlib
import faulthandler
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

import fused_rnn
from benchmarks import common
from benchmarks.speed import ROOT

from . import processes

PATIENCE = 5.0
LIMIT = 60.0  # seconds after which a process that does not end is killed
LARGE = 2**36  # bytes, as in the largest of the tests


def differentiate(module: torch.nn.Module, device: str) -> None:
    """Run one call forward and backward, and leave nothing in the device's queue."""
    x = torch.randn(20, 4, 16, device=device, requires_grad=True)
    module(x)[0].sum().backward()
    wait(device)


def wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def fused(backend: str) -> Callable[[str], None]:
    return lambda device: differentiate(fused_rnn.LSTM(16, 32, device=device, backend=backend), device)


def compiled(compiler: str) -> Callable[[str], None]:
    def run(device: str) -> None:
        module = fused_rnn.LSTM(16, 32, device=device)
        differentiate(torch.compile(module, backend=compiler), device)

    return run


def large_memory(device: str) -> None:
    size = min(LARGE, torch.cuda.mem_get_info(device)[0] // 2) if device != "cpu" else 2**20
    memory = torch.ones(size, dtype=torch.int8, device=device)
    fused("auto")(device)
    wait(device)
    del memory  # torch keeps it cached


class Failing(torch.autograd.Function):
    @staticmethod
    def forward(_, x):
        return x.clone()

    @staticmethod
    def backward(*_):
        raise ArithmeticError


def failed_backward(device: str) -> None:
    """Raise an error in the thread that runs backward passes of a GPU."""
    x = torch.randn(20, 4, 16, device=device, requires_grad=True)
    output, _ = fused_rnn.LSTM(16, 32, device=device)(Failing.apply(x))
    try:
        output.sum().backward()
    except ArithmeticError:
        wait(device)


CASES: dict[str, Callable[[str], None]] = {
    "torch": lambda device: differentiate(torch.nn.LSTM(16, 32, device=device), device),
    **{name: fused(name) for name in ("cpu", "cuda", "triton")},
    "aot_eager": compiled("aot_eager"),
    "large-memory": large_memory,
    "failed-backward": failed_backward,
    "inductor": compiled("inductor"),
}


@dataclass(frozen=True)
class Exit:
    """The end of a process; times in seconds."""

    case: str
    work: float  # from its start to its last line
    handlers: float  # from there to the last of Python's exit handlers
    rest: float  # from there to the end of the process
    status: int | None  # None: killed
    left: list[int]  # processes that it left behind, and which were then killed

    @property
    def ending(self) -> float:
        return self.handlers + self.rest

    def problem(self, usual: float) -> str | None:
        """Return what is wrong; a normal process takes about ``usual`` seconds from its last line."""
        if self.status is None:
            return f"{self.case} did not end within {LIMIT:.0f} s of its last line"
        if self.status:
            return f"{self.case} ended with exit status {self.status}"
        if self.ending > usual + PATIENCE:
            return f"{self.case} took {self.ending:.1f} s to end"
        return f"{self.case} left {len(self.left)} processes running" if self.left else None

    def __str__(self) -> str:
        parts = f"{self.handlers:.2f} s of Python's exit handlers, {self.rest:.2f} s of the rest"
        return f"{self.case:16} {self.work:5.1f} s to its last line, then {parts}"


def command(case: str, device: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gpu.kit.exits", "--case", case, "--device", device]


def measure(case: str, device: str) -> Exit:
    """Run a case in a process of its own."""
    began = time.monotonic()
    process = subprocess.Popen(command(case, device), stdout=subprocess.PIPE, text=True, cwd=ROOT, **processes.GROUP)
    lines = [process.stdout.readline()]
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        print(f"{case} has not ended:\n{processes.described(process.pid)}\n{processes.stacks(process.pid)}", flush=True)
    status = None
    try:
        status = process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
    ended = time.monotonic()
    left = processes.of_group(process.pid)
    for each in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    lines.append(process.stdout.readline())
    said = [float(line) if line.strip() else ended for line in lines]  # a killed or crashed process has no such line
    return Exit(case, said[0] - began, said[1] - said[0], ended - said[1], status, left)


def play(case: str, device: str) -> None:
    """Run as the process of a case, whose last line is the time at which it was written."""
    atexit.register(lambda: print(time.monotonic(), flush=True))  # registered first, so that it runs last
    CASES[case](device)
    faulthandler.dump_traceback_later(PATIENCE)
    print(time.monotonic(), flush=True)


def possible(device: str) -> list[str]:
    """List the cases whose backend runs on the device."""

    def runs(backend: str) -> bool:
        try:
            fused_rnn.choose_backend(device, torch.float32, backend)
        except RuntimeError:
            return False
        return True

    return [case for case in CASES if case not in fused_rnn.backends() or runs(case)]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = common.Parser(prog="python -m benchmarks.gpu.kit.exits", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ..., or cpu")
    parser.add_argument("--cases", nargs="+", choices=CASES, metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--together", type=common.positive, default=12, help="processes that end at the same time")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.case:
        play(options.case, options.device)
        return
    common.open_device(options.device)
    cases = options.cases or possible(options.device)
    found = []
    for case in cases:
        found.append(measure(case, options.device))
        print(found[-1], flush=True)
    case = next((case for case in cases if case in fused_rnn.backends()), cases[0])
    with ThreadPoolExecutor(options.together) as pool:
        many = list(pool.map(measure, options.together * [case], options.together * [options.device]))
    print(f"{options.together} at once, the slowest:\n{max(many, key=lambda exit: exit.ending)}")
    problems = [problem for exit in [*found, *many] if (problem := exit.problem(found[0].ending))]
    if problems:
        sys.exit("error: " + "; ".join(problems))


if __name__ == "__main__":
    common.run_command(main)
