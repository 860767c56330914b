"""The state of other processes of this machine, from Linux, to diagnose those that should have ended."""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
DEBUGGERS = ("gdb", "cuda-gdb", "/usr/local/cuda/bin/cuda-gdb")
DEBUGGER_SECONDS = 20
# Starts a process that forms a group with all its children. A session of its own, the alternative in Python 3.10, would
# outlive a machine's time limit.
GROUP = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}


def running() -> Iterator[tuple[int, int, int]]:
    """Yield (process, parent, group) of all live processes."""
    for folder in PROC.iterdir():
        with contextlib.suppress(OSError, ValueError):
            state, parent, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if state not in "ZX":
                yield int(folder.name), int(parent), int(group)


def of_group(group: int) -> list[int]:
    return [process for process, _, its_group in running() if its_group == group]


def descendants(ancestor: int) -> list[int]:
    """List the children of a process, their children, and so on."""
    found, processes = [ancestor], sorted(running())
    for parent in found:
        found += [process for process, its_parent, _ in processes if its_parent == parent]
    return found[1:]


def described(process: int) -> str:
    """Describe the process and each of its threads in a line: name, state and the kernel function that it waits in."""
    folder = PROC / str(process)
    lines = [f"process {process}: {_read(folder / 'cmdline')[:200]}"]
    with contextlib.suppress(OSError):
        for thread in sorted((folder / "task").iterdir(), key=lambda path: int(path.name)):
            state = _read(thread / "stat").rpartition(")")[2].split()[:1]
            lines.append(f"  thread {_read(thread / 'comm')}: {''.join(state)}, in {_read(thread / 'wchan') or '?'}")
    return "\n".join(lines)


def stacks(process: int) -> str:
    """Return the stack of each thread, if there is a debugger; the process continues afterwards."""
    debugger = next(filter(None, map(shutil.which, DEBUGGERS)), None)
    if debugger is None:
        return "(no debugger here tells where its threads stand)"
    command = [debugger, "-batch", "-nx", "-p", str(process), "-ex", "thread apply all bt 30"]
    try:
        answer = subprocess.run(command, check=False, capture_output=True, text=True, timeout=DEBUGGER_SECONDS)
    except subprocess.TimeoutExpired:
        return f"({debugger} did not answer within {DEBUGGER_SECONDS} s)"
    return answer.stdout[-8000:] or answer.stderr[-1000:]


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""
