"""``python -m benchmarks.fills``: measure what sequences of different lengths cost, by how much of T·B they fill.

The whole of it goes to benchmarks/results/, where ``python -m benchmarks.report`` finds it; part of it, or a smoke run,
goes to runs/.
"""

import argparse
import os
import sys
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path

from tqdm import tqdm

import fused_rnn
from benchmarks import common
from benchmarks.speed import RESULTS, ROOT
from benchmarks.speed.child import ALLOCATORS, TIME_LEFT, records

from .cases import CELLS, OURS, THEIRS, Plan

CORES = len(os.sched_getaffinity(0))
ALLOCATOR = "resident"  # of the processes that measure time; memory is measured with malloc as it is by default


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = common.Parser(prog="python -m benchmarks.fills", description=__doc__)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), metavar="CELL", help="what to run")
    parser.add_argument("--threads", type=common.positive, default=1, metavar="N", help="of the CPU")
    parser.add_argument("--rounds", type=common.positive, default=Plan.rounds, help="timed steps per candidate")
    parser.add_argument("--backend", choices=fused_rnn.backends(), default=Plan.backend, help="what runs our cells")
    parser.add_argument("--quick", action="store_true", help="smoke run: few, short sequences, 1 round")
    parser.add_argument("--out", type=Path, help="file of results, in place of one in benchmarks/results or runs")
    return parser.parse_args(arguments)


def plan_from(options: argparse.Namespace) -> Plan:
    """The plan that the command line asks for; raises InputError for what cannot run here."""
    common.check_backend("cpu", Plan.dtype, options.backend)
    if options.threads > CORES:
        raise common.InputError(f"--threads {options.threads} is too many: there are {CORES} cores")
    plan = Plan(cells=tuple(dict.fromkeys(options.cells)), backend=options.backend, rounds=options.rounds)
    return (
        replace(plan, steps=20, batch=10, size=8, fills=(20, 100), memory_fills=(20,), rounds=1)
        if options.quick
        else plan
    )


def output_path(options: argparse.Namespace, plan: Plan) -> Path:
    """Only the whole of it belongs with the results that the report reads."""
    whole = plan == Plan(rounds=plan.rounds) and options.threads == 1
    return options.out or (RESULTS if whole else ROOT / "runs") / "fills-cpu.json"


def measure(plan: Plan, threads: int) -> dict[str, list[dict]]:
    """The records of the times of every case, and of memory."""
    memory = [
        (replace(plan, cells=plan.cells[:1], fills=(fill,)), name)
        for fill in plan.memory_fills
        for name in (*OURS, THEIRS)
    ]
    found: dict[str, list[dict]] = {"times": [], "memory": []}
    with tqdm(total=len(list(plan.cases())) + len(memory), bar_format=TIME_LEFT, desc="fills") as bar:
        for part in records("fills.measuring", ALLOCATOR, threads, plan):
            found["times"] += part["records"]
            bar.update()
        for run in memory:
            found["memory"] += records("fills.measuring", "default", threads, *run)
            bar.update()
    return found


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    plan = plan_from(options)
    path = output_path(options, plan)
    found = measure(plan, options.threads)
    common.write_json(
        path,
        {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "hardware": {**common.hardware(), "threads": options.threads},
            "allocator": {"name": ALLOCATOR, "environment": ALLOCATORS[ALLOCATOR]},
            "plan": asdict(plan),
            **found,
        },
    )
    print(f"wrote {path}")
    wrong = [
        f"{r['cell']}, {r['shape']}, {r['mode']}, {r['title']}: {r['wrong']}" for r in found["times"] if "wrong" in r
    ]
    if wrong:
        sys.exit("error: these are wrong and were not timed:\n" + "\n".join(wrong))


if __name__ == "__main__":
    common.run_command(main, interrupted="interrupted; nothing was written")
