"""``python -m benchmarks.resets``: measure what episodes within sequences cost, by how many of all steps begin one.

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
from benchmarks.speed.child import ALLOCATORS, records

from .cases import CELLS, Plan

CORES = len(os.sched_getaffinity(0))
ALLOCATOR = "resident"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = common.Parser(prog="python -m benchmarks.resets", description=__doc__)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), metavar="CELL", help="what to run")
    parser.add_argument("--device", default=Plan.device, help="where to compute: cpu, cuda, cuda:1, ...")
    parser.add_argument("--threads", type=common.positive, default=1, metavar="N", help="of the CPU")
    parser.add_argument("--rounds", type=common.positive, default=Plan.rounds, help="timed steps per way")
    backends = ("auto", *fused_rnn.backends())
    parser.add_argument("--backend", choices=backends, default=Plan.backend, help="what runs our cells")
    parser.add_argument("--quick", action="store_true", help="smoke run: few, short sequences, 1 round")
    parser.add_argument("--out", type=Path, help="file of results, in place of one in benchmarks/results or runs")
    return parser.parse_args(arguments)


def plan_from(options: argparse.Namespace) -> Plan:
    """The plan that the command line asks for; raises InputError for what cannot run here."""
    backend = common.check_backend(options.device, Plan.dtype, options.backend).backend
    if options.threads > CORES:
        raise common.InputError(f"--threads {options.threads} is too many: there are {CORES} cores")
    cells = tuple(dict.fromkeys(options.cells))
    plan = Plan(cells=cells, backend=backend, device=options.device, rounds=options.rounds)
    return replace(plan, steps=12, batch=6, size=8, shares=(0, 10), rounds=1) if options.quick else plan


def output_path(options: argparse.Namespace, plan: Plan) -> Path:
    """Only the whole of it belongs with the results that the report reads."""
    whole = plan == Plan(rounds=plan.rounds, backend=plan.backend, device=plan.device) and options.threads == 1
    kind = plan.device.partition(":")[0]
    return options.out or (RESULTS if whole and options.backend == "auto" else ROOT / "runs") / f"resets-{kind}.json"


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    plan = plan_from(options)
    path = output_path(options, plan)
    times: list[dict] = []
    with tqdm(total=len(list(plan.cases())), bar_format=common.TIME_LEFT, desc="resets") as bar:
        for part in records("resets.measuring", ALLOCATOR, options.threads, plan):
            times += part["records"]
            bar.update()
    common.write_json(
        path,
        {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "hardware": {**common.hardware(), "threads": options.threads},
            "allocator": {"name": ALLOCATOR, "environment": ALLOCATORS[ALLOCATOR]},
            "plan": asdict(plan),
            "times": times,
        },
    )
    print(f"wrote {path}")
    wrong = [f"{r['cell']}, {r['share']} %, {r['mode']}, {r['title']}: {r['wrong']}" for r in times if "wrong" in r]
    if wrong:
        sys.exit("error: these are wrong and were not timed:\n" + "\n".join(wrong))


if __name__ == "__main__":
    common.run_command(main, interrupted="interrupted; nothing was written")
