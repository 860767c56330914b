"""``python -m benchmarks.host``: measure what the host does for a call on a GPU, on a machine without one.

Beside the sources here it measures earlier ones, if told where they are: a folder that holds ``fused_rnn`` with its
compiled library. ``git worktree add /tmp/d91c748 d91c748`` makes one, and ``FUSED_RNN_CUDA=0 python setup.py build_ext
--inplace`` in it the library, of which nothing but the schemas of operators is used.

The whole of it goes to benchmarks/results/; part of it, or a smoke run, goes to runs/.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from benchmarks import common
from benchmarks.speed import RESULTS, ROOT

from . import report

ROUNDS, REPEATS = 31, 15  # short processes in many turns, so that a burst of other load meets every source
HERE = "here"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = common.Parser(prog="python -m benchmarks.host", description=__doc__)
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="earlier sources, measured in turn with these")
    parser.add_argument("--rounds", type=common.positive, default=ROUNDS, help="of each process")
    parser.add_argument("--repeats", type=common.positive, default=REPEATS, help="processes for each of the sources")
    parser.add_argument("--quick", action="store_true", help="smoke run: one process with one round")
    parser.add_argument("--out", type=Path, help="file of results, in place of one in benchmarks/results or runs")
    options = parser.parse_args(arguments)
    if options.against and not (options.against / "fused_rnn" / "_C.so").exists():
        raise common.InputError(f"--against {options.against} must be a folder with fused_rnn and its library _C.so")
    if options.quick:
        options.rounds = options.repeats = 1
    return options


def output_path(options: argparse.Namespace) -> Path:
    """Return where results go: only a complete run belongs with those that the report reads."""
    whole = options.against and (options.rounds, options.repeats) == (ROUNDS, REPEATS)
    return options.out or (RESULTS if whole else ROOT / "runs") / "host-cpu.json"


def measured(folder: Path, rounds: int) -> list[dict]:
    """Return the records of one process with the ``fused_rnn`` of a folder."""
    command = [sys.executable, str(Path(__file__).with_name("measuring.py")), "--rounds", str(rounds)]
    environment = {**os.environ, "PYTHONPATH": str(folder.resolve()), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def measure(sources: dict[str, Path], rounds: int, repeats: int) -> list[dict]:
    """Return the records of all sources, each with the median of its processes, which take turns."""
    found: dict[tuple[str, tuple], list[float]] = defaultdict(list)
    for _ in range(repeats):
        for source, folder in sources.items():
            for record in measured(folder, rounds):
                us = record.pop("us")
                found[source, tuple(record.items())].append(us)
    return [
        {"source": source, **dict(record), "us": round(statistics.median(all_of_it), 1)}
        for (source, record), all_of_it in found.items()
    ]


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    path = output_path(options)
    sources = {HERE: ROOT} | ({options.against.resolve().name: options.against} if options.against else {})
    result = {
        "date": common.now(),
        "hardware": {**common.hardware(), "threads": 1},
        "plan": {"sources": list(sources), "rounds": options.rounds, "repeats": options.repeats},
        "times": measure(sources, options.rounds, options.repeats),
    }
    common.write_json(path, result)
    print(report.section(result))
    print(f"\nwrote {path}")


if __name__ == "__main__":
    common.run_command(main, saved="nothing was written")
