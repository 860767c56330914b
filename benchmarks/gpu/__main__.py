"""``python -m benchmarks.gpu``: time fused cells, cuDNN and hand-written loops side by side on one GPU.

The most telling points come first; those that do not fit --minutes are recorded as skipped. The file of results is
rewritten after every point. Whole groups go to benchmarks/results/, where ``python -m benchmarks.report`` finds them;
any other choice, and the CPU, to runs/. float32 means float32: TF32 is off throughout.
"""

import argparse
import shlex
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path

import torch

import fused_rnn
from benchmarks import common
from benchmarks.budget import Budget
from benchmarks.speed import RESULTS, ROOT
from benchmarks.speed.cases import CELLS
from benchmarks.speed.ceilings import ceilings
from benchmarks.speed.clock import HostClock, clock_for

from . import machine
from .candidates import OPTIONAL, candidates, wanted_at
from .measure import DeviceLostError, Plan, measure_point, message
from .points import (
    BATCHES,
    CHOSEN,
    DTYPES,
    GROUPS,
    HIDDEN,
    MAIN_SIZES,
    STEPS,
    Point,
    chosen_points,
    points_of,
    tiny_points,
)

TINY = Plan(warm_up=1, rounds=2, least_rounds=2)
COMPILED = (("lstm", "bfloat16"), ("multiplicative_lstm", "bfloat16"))  # compiling costs minutes: last, at one size
COMPILED_COST = 20  # times the cost of a point without it
RIVAL_PATIENCE = 300.0  # seconds: other people's kernels compile while they look for tiles that work
WITH_LOOPS = ("main", CHOSEN)
NOT_REACHED = "the run ended before it"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = common.Parser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--cells", nargs="+", choices=CELLS, metavar="CELL", help=f"of {listed(CELLS)}; all if left out"
    )
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, metavar="DTYPE", help=f"of {listed(DTYPES)}")
    named = f"groups of points, of {listed(GROUPS)}; all, in this order, if left out"
    parser.add_argument("--points", nargs="+", choices=GROUPS, metavar="GROUP", help=named)
    parser.add_argument("--hidden", nargs="+", type=common.positive, metavar="H", help=f"such as {listed(HIDDEN)}")
    parser.add_argument("--batch", nargs="+", type=common.positive, metavar="B", help=f"such as {listed(BATCHES)}")
    parser.add_argument("--steps", type=common.positive, metavar="T", help=f"time steps, {STEPS} if left out")
    beside = f"what is timed beside fused backends, of {listed(OPTIONAL)}; what a group is for if left out"
    parser.add_argument("--candidates", nargs="+", choices=OPTIONAL, metavar="NAME", help=beside)
    of_ours = [backend for backend in fused_rnn.backends() if backend != "reference"]
    ours = f"fused backends, of {listed(of_ours)}; all that run here if left out"
    parser.add_argument("--backends", nargs="+", choices=of_ours, metavar="NAME", help=ours)
    parser.add_argument("--minutes", type=common.positive_number, default=9.0, help="time for the whole run")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ..., or cpu, by the host's clock")
    parser.add_argument("--tiny", action="store_true", help="smoke run: two tiny points, 2 rounds")
    parser.add_argument("--list", action="store_true", help="show the points in their order, and measure nothing")
    parser.add_argument("--out", type=Path, help="file of results, in place of one in benchmarks/results or runs")
    parser.epilog = (
        "Where --hidden, --batch or --steps is given, every combination is measured, the others taking all values "
        "named above; without them the groups of --points, of the cells and dtypes that are given: see --list."
    )
    options = parser.parse_args(arguments)
    if options.points and sizes_of(options):
        parser.error("--points names sizes already, and --hidden, --batch and --steps name others: give one of them")
    return options


def sizes_of(options: argparse.Namespace) -> bool:
    """Whether sizes are given one by one."""
    return any((options.hidden, options.batch, options.steps))


def listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def points_from(options: argparse.Namespace) -> list[Point]:
    if options.tiny:
        return tiny_points()
    if sizes_of(options):
        return chosen_points(options.cells, options.dtypes, options.hidden, options.batch, options.steps or STEPS)
    return points_of(options.points, options.cells, options.dtypes)


def output_path(options: argparse.Namespace, device: torch.device) -> Path:
    """Only whole groups, on a GPU, belong with the results that the report reads."""
    choices = (options.cells, options.dtypes, options.candidates, options.backends, options.tiny)
    whole = not any(choices) and not sizes_of(options)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    folder = RESULTS if whole and device.type == "cuda" else ROOT / "runs"
    return options.out or folder / common.file_name("gpu", name, *(options.points or []))


class Run:
    """The file of results while it grows."""

    def __init__(self, path: Path, points: list[Point], clock: HostClock, plan: Plan, options: argparse.Namespace):
        self.path, self.clock, self.plan, self.options = path, clock, plan, options
        self.records = {point: {**asdict(point), "skipped": NOT_REACHED} for point in points}
        self.compiled: dict[Point, dict] = {}
        self.result = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]]),
            "finished": False,
            "hardware": machine.description(clock.device),
            "digests": machine.digests(),
            "plan": {**asdict(plan), "clock": clock.name, "cold": clock.cold, "tf32": False},
        }

    def write(self) -> None:
        parts = {"points": list(self.records.values()), "compiled": list(self.compiled.values())}
        common.write_json(self.path, {**self.result, **parts})

    def measure(self, budget: Budget) -> None:
        self.write()
        small = self.clock.device.type == "cpu"
        self.result["ceilings"] = ceilings(self.clock, DTYPES, small) | machine.launch_costs(self.clock)
        for point, obstacle in budget.spend(list(self.records)):
            rivals = [name for name in wanted_at(point, self.options.candidates) if name != "compiled"]
            self.records[point] = self.measure_one(point, obstacle, rivals, budget)
            self.write()
        if "compiled" in (self.options.candidates or OPTIONAL):
            self.measure_compiled(budget)
        self.result |= {"finished": True, "seconds": round(budget.gone, 1), "state": machine.state(self.clock.device)}
        self.write()

    def measure_compiled(self, budget: Budget) -> None:
        """Points once more, now the compiled loop beside the fused backends."""
        main = [p for p in self.records if (p.hidden, p.batch) == MAIN_SIZES[0] and (p.cell, p.dtype) in COMPILED]
        asked = list(self.records)[:1] if self.options.candidates else []  # else it is not worth its minutes
        for point in [p for p in main if p.group in WITH_LOOPS] or asked:
            obstacle = budget.obstacle(COMPILED_COST * point.cost)
            self.compiled[point] = self.measure_one(point, obstacle, ["compiled"], budget)
            self.write()

    def measure_one(self, point: Point, obstacle: str | None, rivals: list[str], budget: Budget) -> dict:
        record = asdict(point)
        if obstacle is None:
            before = budget.gone
            try:
                found = candidates(point, self.clock.device, rivals, self.options.backends)
                plan = replace(self.plan, patience=RIVAL_PATIENCE) if point.group == "rivals" else self.plan
                record |= measure_point(point, found, self.clock, plan, budget.left)
            except DeviceLostError as lost:
                self.records[point] = {**record, "failed": str(lost)}
                self.write()
                raise SystemExit(f"error: the device does not answer after {point}: {lost}") from None
            except Exception as error:  # as when the float64 results do not fit the memory
                record["failed"] = message(error)
            self.clock.free()
            record["seconds"] = round(budget.gone - before, 2)
        else:
            record["skipped"] = obstacle
        print(line(point, record), flush=True)
        return record


def line(point: Point, record: dict) -> str:
    """A point in a line: µs per step of every candidate in each mode."""
    for reason in ("skipped", "failed"):
        if reason in record:
            return f"{point}: {reason}: {record[reason]}"
    parts = []
    for time in record["times"]:
        problem = next((reason for reason in ("wrong", "failed") if reason in time), None)
        parts.append(f"{time['mode'][0]}:{time['candidate']} {problem or format(time['us_per_step'], '.3g')}")
    return f"{point}: {', '.join(parts)}  ({record['seconds']} s)"


def problems(result: Run) -> list[str]:
    """What was wrong or raised, in a sentence each."""
    found = []
    for point, record in [*result.records.items(), *result.compiled.items()]:
        if "failed" in record:
            found.append(f"{point}: {record['failed']}")
        for time in record.get("times", []):
            for reason in {"wrong", "failed"} & time.keys():
                found.append(f"{point}, {time['mode']}, {time['title']}: {time[reason]}")
    return found


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    budget = Budget(60 * options.minutes)
    points = points_from(options)
    if options.list:
        print("\n".join(map(str, points)))
        return
    device = common.open_device(options.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    run = Run(output_path(options, device), points, clock_for(device), TINY if options.tiny else Plan(), options)
    run.measure(budget)
    skipped = sum("skipped" in record for record in run.records.values())
    print(f"wrote {run.path}: {len(points) - skipped} points measured, {skipped} skipped, in {budget.gone:.0f} s")
    found = problems(run)
    if found:
        sys.exit("error: these were not timed:\n" + "\n".join(found))


if __name__ == "__main__":
    common.run_command(main, interrupted="interrupted; the points that were finished are written")
