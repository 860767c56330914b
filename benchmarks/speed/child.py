"""Both ends of the pipe between the command and the processes that measure.

Each measurement runs in a process of its own, because an allocator reads its settings when a process starts.
``records`` starts one, with the thread count and a plan (a dataclass) as its arguments, and yields its output, one JSON
object per line; ``serve`` runs in it.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict

import torch

from . import ROOT

# "resident" keeps freed memory in the process, in huge pages: no page faults, and so the least noise. It favours
# code that allocates anew in every call. "default" are the settings of a program that changes none.
RESIDENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
    "MALLOC_TOP_PAD_": "268435456",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "THP_MEM_ALLOC_ENABLE": "1",
}
ALLOCATORS = {"resident": RESIDENT, "default": {}}


def records(allocator: str, threads: int, plan: object, *arguments: str) -> Iterator[dict]:
    """Run ``measure`` in a new process and yield the objects that it writes."""
    command = [sys.executable, "-m", "benchmarks.speed.measure", str(threads), json.dumps(asdict(plan)), *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in RESIDENT}
    environment |= ALLOCATORS[allocator]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT) as process:
        try:
            yield from map(json.loads, process.stdout)
        except BaseException:  # the command is interrupted, or no longer listens
            process.kill()
            raise
    if process.returncode:
        raise SystemExit(f"error: the process that measures (speed.measure) ended with status {process.returncode}")


def serve(measure: Callable[..., Iterable[dict]], plan_type: type) -> None:
    """Call ``measure`` with the plan and further arguments of the command line, and write what it yields."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # a script's background job ignores it, and so must this
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the command explains Ctrl-C
    threads, plan, *arguments = sys.argv[1:]
    torch.set_num_threads(int(threads))
    with os.fdopen(os.dup(1), "w") as pipe:
        os.dup2(2, 1)  # other people's kernels print while they compile, which is no record
        for record in measure(plan_type(**json.loads(plan)), *arguments):
            print(json.dumps(record), file=pipe, flush=True)
