"""``python -m benchmarks.speed``: measure every case of ``cases`` and write one file of results.

Times come from one process per thread count, memory from one process per candidate. The whole table of a dtype goes
to benchmarks/results/, where ``python -m benchmarks.report`` finds it, and so does what --all-rivals or --single-steps
measures by itself; part of that, or a smoke run, goes to runs/.
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

from . import RESULTS, ROOT
from .candidates import candidates
from .cases import CPU_DTYPES, SHAPES, STEP_CELLS, STEP_SHAPES, TITLES, Plan
from .child import ALLOCATORS, TIME_LEFT, records

CORES = len(os.sched_getaffinity(0))
THREADS = tuple(count for count in (1, 2) if count <= CORES)
# Compiling a loop takes a minute, so few points have all rivals.
ALL_RIVALS = Plan(
    cells=("lstm", "gru", "multiplicative_lstm", "multiplicative_gru"), shapes=("a", "d"), all_rivals=True
)
# Python and dispatch are most of a single step, and know nothing of threads.
SINGLE_STEPS = Plan(cells=tuple(STEP_CELLS), shapes=tuple(STEP_SHAPES), ceilings=False)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = common.Parser(prog="python -m benchmarks.speed", description=__doc__)
    every_shape = {**SHAPES, **STEP_SHAPES}
    shapes = "; ".join(f"{name}: {shape}" for name, shape in every_shape.items())
    parser.add_argument(
        "--cells", nargs="+", choices=TITLES, metavar="CELL", help=f"of {', '.join(TITLES)}; all if left out"
    )
    parser.add_argument(
        "--shapes", nargs="+", choices=every_shape, metavar="SHAPE", help=f"of {shapes}; all if left out"
    )
    counts = ", ".join(map(str, THREADS))
    parser.add_argument(
        "--threads", nargs="+", type=common.positive, metavar="N", help=f"thread counts; {counts} if left out"
    )
    parser.add_argument("--dtype", choices=CPU_DTYPES, default=Plan.dtype, help="of weights and operands")
    few = f"{', '.join(ALL_RIVALS.cells)} at {', '.join(ALL_RIVALS.shapes)} by 1 thread"
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--single-steps",
        action="store_true",
        help=f"a call for each step, without and with gradients, of {', '.join(STEP_CELLS)} at "
        f"{', '.join(STEP_SHAPES)} by 1 thread, times alone",
    )
    kind.add_argument(
        "--all-rivals",
        action="store_true",
        help=f"compare with every other way to run a cell, times alone; the points that are left out are then {few}",
    )
    parser.add_argument("--rounds", type=common.positive, help="timed steps per candidate")
    parser.add_argument("--backend", choices=fused_rnn.backends(), help="what runs the fused cells")
    parser.add_argument("--allocator", choices=ALLOCATORS, default="resident", help="settings of malloc, for times")
    parser.add_argument("--quick", action="store_true", help="smoke run: 8 time steps, 1 round to warm up, 2 timed")
    parser.add_argument("--out", type=Path, help="file of results, in place of one in benchmarks/results or runs")
    parser.set_defaults(rounds=Plan.rounds, backend=Plan.backend)
    return parser.parse_args(arguments)


def whole_run(options: argparse.Namespace) -> tuple[str, Plan, tuple[int, ...]]:
    """The kind of results that are asked for, with the plan and the thread counts of its whole table."""
    if options.single_steps:
        return "steps", SINGLE_STEPS, (1,)
    return ("rivals", ALL_RIVALS, (1,)) if options.all_rivals else ("speed", Plan(), THREADS)


def plan_from(options: argparse.Namespace) -> Plan:
    """The plan that the command line asks for; raises InputError for what cannot run here."""
    common.check_backend("cpu", options.dtype, options.backend)
    _, base, threads = whole_run(options)
    options.threads = tuple(dict.fromkeys(options.threads or threads))
    if max(options.threads) > CORES:
        raise common.InputError(f"--threads {max(options.threads)} is too many: there are {CORES} cores")
    known = SINGLE_STEPS if options.single_steps else Plan()
    for option, chosen, possible in (
        ("--cells", options.cells, known.cells),
        ("--shapes", options.shapes, known.shapes),
    ):
        if others := [name for name in chosen or () if name not in possible]:
            goes = "does not go" if options.single_steps else "goes only"
            raise common.InputError(f"{option} {others[0]} {goes} with --single-steps: here are {', '.join(possible)}")
    cells = tuple(dict.fromkeys(options.cells or base.cells))
    shapes = tuple(dict.fromkeys(options.shapes or base.shapes))
    chosen = {"cells": cells, "shapes": shapes, "backend": options.backend, "rounds": options.rounds}
    plan = replace(base, dtype=options.dtype, **chosen)
    return replace(plan, most_steps=8, warm_up=1, rounds=2) if options.quick else plan


def output_path(options: argparse.Namespace, plan: Plan) -> Path:
    """Only the whole table belongs with the results that the report reads."""
    kind, base, threads = whole_run(options)
    whole = plan == replace(base, rounds=plan.rounds, dtype=plan.dtype) and options.threads == threads
    dtype = "" if plan.dtype == Plan.dtype else f"-{plan.dtype}"
    return options.out or (RESULTS if whole else ROOT / "runs") / f"{kind}-{options.allocator}{dtype}.json"


def measure_times(plan: Plan, options: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    """Records of the candidates, and the ceilings of the machine at each number of threads."""
    total = len(options.threads) * sum(case.cost for case in plan.cases())
    times, ceilings = [], []
    with tqdm(total=total, desc="time", bar_format=TIME_LEFT) as bar:
        for threads in options.threads:
            for part in records("speed.timing", options.allocator, threads, plan):
                times += part.get("records", [])
                ceilings += [{"threads": threads, **part["ceilings"]}] if "ceilings" in part else []
                bar.update(part["cost"])
    return times, ceilings


def measure_memory(plan: Plan, threads: int, times: list[dict]) -> list[dict]:
    """Peak memory of every candidate that is right, with malloc as it is by default."""
    wrong = {(time["cell"], time["shape"], time["candidate"]) for time in times if "wrong" in time}
    runs = [
        (replace(plan, cells=(cell,), shapes=(shape,)), candidate.name)
        for shape in plan.shapes
        if plan.shape(shape).memory and not plan.all_rivals
        for cell in plan.cells
        for candidate in candidates(cell, plan.backend)
        if (cell, shape, candidate.name) not in wrong
    ]
    bar = tqdm(runs, desc="memory", bar_format=TIME_LEFT)
    return [record for run in bar for record in records("speed.memory", "default", threads, *run)]


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    plan = plan_from(options)
    path = output_path(options, plan)
    times, ceilings = measure_times(plan, options)
    results = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hardware": {**common.hardware(), "threads": options.threads},
        "allocator": {"name": options.allocator, "environment": ALLOCATORS[options.allocator]},
        "plan": asdict(plan),
        "shapes": {name: asdict(plan.shape(name)) for name in plan.shapes},
        "ceilings": ceilings,
        "times": times,
        "memory": measure_memory(plan, max(options.threads), times),
    }
    common.write_json(path, results)
    print(f"wrote {path}")
    wrong = [f"{time['cell']}-{time['shape']}-{time['mode']}: {time['wrong']}" for time in times if "wrong" in time]
    if wrong:
        sys.exit("error: these candidates are wrong and were not timed:\n" + "\n".join(dict.fromkeys(wrong)))


if __name__ == "__main__":
    common.run_command(main, interrupted="interrupted; nothing was written")
