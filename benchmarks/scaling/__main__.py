"""``python -m benchmarks.scaling``: measure how cost grows with T, B, H and the number of layers; write one file.

The whole of it goes to benchmarks/results/, where ``python -m benchmarks.report`` finds it; part of it, or a smoke run,
goes to runs/. Sweeps that --minutes leave no time to begin are recorded as skipped.
"""

import argparse
import os
import sys
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import common
from benchmarks.speed import RESULTS, ROOT
from benchmarks.speed.cases import CELLS
from benchmarks.speed.child import ALLOCATORS, TIME_LEFT, records

from .sweeps import AXES, Plan

CORES = len(os.sched_getaffinity(0))
ALLOCATOR = "resident"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = common.Parser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), metavar="CELL", help="what to run")
    parser.add_argument(
        "--axes", nargs="+", choices=AXES, default=list(AXES), metavar="AXIS", help="what grows, one at a time"
    )
    common.add_backend_options(parser)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=Plan.dtype, help="of weights and operands")
    parser.add_argument("--threads", type=common.positive, default=1, metavar="N", help="of the CPU")
    parser.add_argument(
        "--minutes", type=common.positive_number, default=Plan.minutes, help="until which sweeps are begun"
    )
    parser.add_argument("--quick", action="store_true", help="smoke run: a few tiny sizes, 2 rounds")
    parser.add_argument("--out", type=Path, help="file of results, in place of one in benchmarks/results or runs")
    return parser.parse_args(arguments)


def plan_from(options: argparse.Namespace) -> Plan:
    """The plan that the command line asks for; raises InputError for what cannot run here."""
    choice = common.check_backend(options.device, options.dtype, options.backend)
    if options.threads > CORES:
        raise common.InputError(f"--threads {options.threads} is too many: there are {CORES} cores")
    cells, axes = tuple(dict.fromkeys(options.cells)), tuple(dict.fromkeys(options.axes))
    plan = Plan(cells, axes, choice.backend, options.device, options.dtype, options.minutes)
    return replace(plan, quick=True, passes=1, rounds=2) if options.quick else plan


def output_path(options: argparse.Namespace, plan: Plan) -> Path:
    """Only the whole of it belongs with the results that the report reads."""
    on_gpu = plan.device != "cpu"
    name = torch.cuda.get_device_name(plan.device) if on_gpu else "cpu"
    whole = (plan.cells, plan.axes, options.threads, plan.quick) == (Plan.cells, Plan.axes, 1, False)
    whole = whole and (on_gpu or plan.backend == Plan.backend)
    dtype = [] if plan.dtype == Plan.dtype else [plan.dtype]
    return options.out or (RESULTS if whole else ROOT / "runs") / common.file_name("scaling", name, *dtype)


def measure(plan: Plan, threads: int) -> dict[str, object]:
    """The ceilings of the device, the records of every sweep, and the sweeps that were skipped."""
    found: dict = {"ceilings": {}, "records": [], "skipped": []}
    with tqdm(total=sum(sweep.cost for sweep in plan.sweeps()), bar_format=TIME_LEFT, desc="scaling") as bar:
        for part in records("scaling.timing", ALLOCATOR, threads, plan):
            found["ceilings"] |= part.get("ceilings", {})
            found["records"] += part.get("records", [])
            found["skipped"] += [part["skipped"]] if "skipped" in part else []
            bar.update(part.get("cost", 0))
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
            "base": plan.table[0],
            **found,
        },
    )
    print(f"wrote {path}: {len(found['records'])} records, {len(found['skipped'])} sweeps skipped")
    problems = [
        f"{record['cell']}, {AXES[record['axis']]}={record['value']}, {record['mode']}, {record['title']}: {problem}"
        for record in found["records"]
        if (problem := record.get("wrong") or record.get("failed"))
    ]
    if problems:
        sys.exit("error: these were not timed:\n" + "\n".join(problems))


if __name__ == "__main__":
    common.run_command(main, interrupted="interrupted; nothing was written")
