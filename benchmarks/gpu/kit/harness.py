"""``python -m benchmarks.gpu.kit.harness FOLDER``: train the models of the README side by side on one GPU.

The copy task at its published lengths, four gated cells, three trials each, in a dozen processes; beside it, where the
corpus is given, the language model of ``--preset zaremba-small``. Both are the commands that a person would type, in a
folder of their own. What they have so far is copied to FOLDER every few seconds: ``copy_task.json`` and
``language_model.json``, which belong in benchmarks/results, and the model's checkpoint, cut into files that are small
enough to be carried. With ``--resume`` a run goes on from the FOLDER of one that was cut off.

Processes take turns on a GPU unless CUDA's multi-process service lets them share it. Where it can be started it is, for
the time of the run; elsewhere fewer processes train, so that each comes to an end.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import common
from benchmarks.speed import ROOT

from . import exits, processes

CORPUS = {"--text": "ptb.train.txt", "--valid": "ptb.valid.txt", "--test": "ptb.test.txt"}
COPY, MODEL = "runs/copy-gated", "runs/zaremba-small"  # in the folder where the commands run
CELLS = ("lstm", "gru", "multiplicative_lstm", "multiplicative_gru")
TINY_COPY = [
    *("--length", "3", "5", "--symbols", "2", "--sequences", "40", "--held-out", "6", "--extra", "1"),
    *("--trials", "1", "--hidden", "5", "--epochs", "2", "--batch", "4"),
]
TINY_MODEL = ["--hidden", "5", "--layers", "1", "--batch", "2", "--bptt", "4", "--epochs", "2"]
TAKING_TURNS = 4  # number of processes that share a GPU without the service; more would only slow each other down
EVERY = 5  # seconds between two copies
TO_STOP = 10  # seconds for a training to save its state
PIECE = 15 << 20  # bytes
PIECES = "checkpoint.{:02}"


def copy_task(options: argparse.Namespace, count: int) -> list[str]:
    size = TINY_COPY if options.tiny else []
    chosen = ["--compare", "--cell", *CELLS, "--processes", str(count), *size]
    return [sys.executable, "-m", "benchmarks.copy_task", *chosen, "--device", options.device, "--out", COPY]


def language_model(options: argparse.Namespace) -> list[str]:
    chosen = ["--preset", "zaremba-small", *(TINY_MODEL if options.tiny else []), "--device", options.device]
    texts = [word for pair in CORPUS.items() for word in pair]
    return [sys.executable, "-m", "benchmarks.language_model", "train", *chosen, *texts, "--out", MODEL, "--resume"]


# What is carried from one run to the next -------------------------------------------------------------------

RESULTS = {"copy_task.json": f"{COPY}/results.json", "language_model.json": f"{MODEL}/results.json"}
CHECKPOINT = f"{MODEL}/lstm.pt"


def save(work: Path, folder: Path, saved: dict[str, int]) -> None:
    """Copy changed files to ``folder``; ``saved`` records the copied state of each file."""
    for name, source in [*RESULTS.items(), (PIECES, CHECKPOINT)]:
        path = work / source
        if not path.exists() or saved.get(name) == path.stat().st_mtime_ns:
            continue
        saved[name] = path.stat().st_mtime_ns
        content = path.read_bytes()
        for number, begin in enumerate(range(0, len(content), PIECE)):  # results fit one piece
            with common.replacing(folder / name.format(number)) as partial_path:
                partial_path.write_bytes(content[begin : begin + PIECE])


def restore(folder: Path, work: Path) -> None:
    """Copy the files that ``save`` left in ``folder`` back to their places."""
    pieces = sorted(folder.glob("checkpoint.*"))
    found = {target: [folder / name] for name, target in RESULTS.items() if (folder / name).exists()}
    found |= {CHECKPOINT: pieces} if pieces else {}
    if not found:
        raise common.InputError(f"{folder} holds nothing to go on from: no {', '.join(RESULTS)} or checkpoint.00")
    for target, paths in found.items():
        with common.replacing(work / target) as partial_path:
            partial_path.write_bytes(b"".join(path.read_bytes() for path in paths))


def check_corpus(folder: Path) -> None:
    missing = [name for name in CORPUS.values() if not (folder / name).is_file()]
    if missing:
        raise common.InputError(f"--corpus {folder} lacks {', '.join(missing)}")


# Running ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def shared_gpu(device: str, work: Path) -> Iterator[dict[str, str] | None]:
    """Yield environment variables for processes that share the GPU; None if they take turns."""
    control = shutil.which("nvidia-cuda-mps-control") if device != "cpu" else None
    environment = {f"CUDA_MPS_{name}_DIRECTORY": str(work / "mps") for name in ("PIPE", "LOG")}
    if control is None:
        yield None
        return
    (work / "mps").mkdir()
    everything = {**os.environ, **environment}

    def ask(*command: str, said: str = "") -> int:
        quiet = {"stdout": subprocess.DEVNULL, "env": everything, "cwd": ROOT}
        try:
            return subprocess.run(command, check=False, input=said.encode(), timeout=60, **quiet).returncode
        except subprocess.TimeoutExpired:
            return -1

    try:
        works = ask(control, "-d") == 0 and ask(*exits.command("cuda", device)) == 0
        yield environment if works else None
    finally:
        ask(control, said="quit -t 2\n")


def stop(process: subprocess.Popen, name: str) -> str | None:
    """End a training that is still running, which saves its state; return what went wrong, if anything did."""
    cut = process.poll() is None
    if cut:
        process.send_signal(signal.SIGINT)
    try:
        status = process.wait(TO_STOP)
    except subprocess.TimeoutExpired:
        for each in (*processes.descendants(process.pid), process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        status = process.wait()
    if cut:
        return f"{name} was not finished: go on from here"
    return f"{name} ended with exit status {status}" if status else None


def train(commands: dict[str, list[str]], work: Path, folder: Path, seconds: float, more: dict[str, str]) -> list[str]:
    """Run the commands at the same time, until they end or time is up; return all problems."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, **more, "PYTHONPATH": path}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background job and its children ignore it
    deadline, saved = time.monotonic() + seconds - TO_STOP, {}
    started = {name: subprocess.Popen(command, cwd=work, env=environment) for name, command in commands.items()}
    try:
        while time.monotonic() < deadline and any(process.poll() is None for process in started.values()):
            time.sleep(max(0.0, min(EVERY, deadline - time.monotonic())))
            save(work, folder, saved)
    finally:
        # the model ends first, because the copy task kills its processes, which others that share the GPU may not
        # survive
        problems = [stop(process, name) for name, process in reversed(started.items())]
        save(work, folder, saved)
    return [problem for problem in problems if problem]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = common.Parser(prog="python -m benchmarks.gpu.kit.harness", description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where results go")
    parser.add_argument("--corpus", type=Path, help=f"folder with {', '.join(CORPUS.values())}, Penn Treebank's")
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="where the run to go on from left its results")
    parser.add_argument("--processes", type=common.positive, default=12, help="trials of the copy task side by side")
    parser.add_argument("--seconds", type=common.positive_number, default=280.0, help="time for all of it")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ..., or cpu")
    parser.add_argument("--tiny", action="store_true", help="smoke run: tiny models")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    began = time.monotonic()
    options = parse(arguments)
    common.open_device(options.device)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        if options.resume:
            restore(options.resume, work)
        if options.corpus:
            check_corpus(options.corpus)
            for name in CORPUS.values():
                (work / name).symlink_to((options.corpus / name).resolve())
        else:
            print("The language model is left out: no folder with Penn Treebank was given.")
        with shared_gpu(options.device, work) as shared:
            turns = options.device != "cpu" and shared is None
            count = min(options.processes, TAKING_TURNS) if turns else options.processes
            print(f"{count} processes {'take turns on' if turns else 'share'} {options.device}.", flush=True)
            commands = {"the copy task": copy_task(options, count)}
            if options.corpus:
                commands["the language model"] = language_model(options)
            left = options.seconds - (time.monotonic() - began)
            problems = train(commands, work, options.folder, left, shared or {})
    if problems:
        sys.exit("error: " + "; ".join(problems))


if __name__ == "__main__":
    common.run_command(main)
