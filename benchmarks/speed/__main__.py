"""``python -m benchmarks.speed``: measure the fused cells beside their rivals, and write one file of results.

Without options: every cell at the shapes of the tables, on the CPU; with --device cuda, the groups of a GPU, or what
--sweep or --resets says. What is whole goes to benchmarks/results/, where ``python -m benchmarks.report`` finds it;
part of it, or a smoke run, to runs/. Times come from one process per number of threads, and a CPU's memory from one per
candidate. What does not fit --minutes is recorded as skipped. On a GPU the file is rewritten after every case. float32
means float32: TF32 is off.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path

import torch
from tqdm import tqdm

import fused_rnn
from benchmarks import common
from benchmarks.gpu import machine

from . import RESULTS, ROOT
from .candidates import OPTIONAL
from .cases import AXES, CELLS, STEP_CELLS, TITLES, Case
from .child import ALLOCATORS, records
from .clock import clock_type
from .plan import (
    CORES,
    GPU_BATCHES,
    GPU_DTYPES,
    GPU_HIDDEN,
    GPU_STEPS,
    OPTIONS,
    PLANS,
    POINTS,
    SHAPES,
    SHARES,
    STEP_SHAPES,
    TABLES,
    Plan,
    cost,
)
from .records import problem_of

ON_CPU_ONLY = ("steps", "rivals", "fills")
NOT_REACHED = "the run ended before it"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = common.Parser(prog="python -m benchmarks.speed", description=__doc__)
    add = parser.add_argument
    add("--device", default="cpu", help="where to compute: cpu, cuda, cuda:1, ...")
    few = PLANS["rivals"]
    kind = parser.add_argument_group("what is measured", "one of these, or the tables of the device").add_argument
    kind("--single-steps", action="store_true", help=f"a call for each step, also of {listed(list(STEP_CELLS)[3:])}")
    rivals = f"every other way to run a cell, at {listed(few.cells)} and {listed(few.names)}"
    kind("--all-rivals", action="store_true", help=f"{rivals} if nothing else is said")
    kind("--fills", action="store_true", help="sequences of different lengths, by how much of T·B they fill")
    shares = listed(SHARES).replace("%", "%%")  # argparse formats it
    episodes = f"sequences of episodes, by how much of all steps begin one: {shares}"
    kind("--resets", action="store_true", help=episodes)
    axes = f"how cost grows with each of {listed(AXES)}; with all if none is named"
    kind("--sweep", nargs="*", choices=AXES, metavar="AXIS", help=axes)
    kind("--points", nargs="+", choices=POINTS, metavar="GROUP", help=f"groups of a GPU, of {listed(POINTS)}")
    sizes = f"every combination of --hidden, --batch and --steps on a GPU; {listed(GPU_HIDDEN)} if left out"
    kind("--hidden", nargs="+", type=common.positive, metavar="H", help=sizes)
    kind("--batch", nargs="+", type=common.positive, metavar="B", help=f"{listed(GPU_BATCHES)} if left out")
    kind("--steps", type=common.positive, metavar="T", help=f"{GPU_STEPS} if left out")
    part = parser.add_argument_group("part of it", "all if left out").add_argument
    part("--cells", nargs="+", choices=TITLES, metavar="CELL", help=f"of {listed(TITLES)}")
    every_shape = {**SHAPES, **STEP_SHAPES}
    shapes = "; ".join(f"{name}: {shape}" for name, shape in every_shape.items())
    part("--shapes", nargs="+", choices=every_shape, metavar="SHAPE", help=f"of the tables of a CPU: {shapes}")
    dtypes = f"of weights and operands, of {listed(GPU_DTYPES)}; several only with groups or sizes of a GPU"
    part("--dtypes", "--dtype", nargs="+", choices=GPU_DTYPES, metavar="DTYPE", help=dtypes)
    backends = fused_rnn.backends()
    ours = f"what runs the fused cells, of {listed(backends)}; several only with groups or sizes of a GPU"
    part("--backends", "--backend", nargs="+", choices=backends, metavar="NAME", help=ours)
    beside = f"what is timed beside them, of {listed(OPTIONAL)}; what a case is for if left out"
    part("--candidates", nargs="+", choices=OPTIONAL, metavar="NAME", help=beside)
    threads = "numbers of threads of the CPU; several only for its tables, which have 1 and 2 if left out"
    part("--threads", nargs="+", type=common.positive, metavar="N", help=threads)
    add("--rounds", type=common.positive, help="timed calls per candidate, in each pass")
    add("--minutes", type=common.positive_number, help="until which anything is begun")
    add("--allocator", choices=ALLOCATORS, help="settings of malloc, for times; resident on a CPU if left out")
    add("--quick", "--tiny", action="store_true", help="smoke run: tiny sizes, 2 rounds")
    add("--list", action="store_true", help="show what would be measured, in its order, and measure nothing")
    add("--out", type=Path, help="file of results, in place of one in benchmarks/results or runs")
    options = parser.parse_args(arguments)
    options.kind = kind_of(options)
    return options


def listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def kind_of(options: argparse.Namespace) -> str:
    """Return the kind that was requested, or the tables of the device."""
    sizes = any((options.hidden, options.batch, options.steps))
    asked = [("steps", options.single_steps), ("rivals", options.all_rivals), ("fills", options.fills)]
    asked += [("resets", options.resets), ("scaling", options.sweep is not None)]
    asked += [("gpu", options.points), ("gpu", sizes)]
    kinds = [kind for kind, wanted in asked if wanted]
    if len(kinds) > 1:
        raise common.InputError(
            f"{listed(OPTIONS.values())}, --points, and --hidden, --batch or --steps each say what is to be measured: "
            f"give one of them, not {len(kinds)}"
        )
    return (kinds or ["speed" if options.device == "cpu" else "gpu"])[0]


def plan_from(options: argparse.Namespace) -> Plan:
    """Make the plan of the command line; raise InputError for what cannot run here."""
    kind, base = options.kind, PLANS[options.kind]
    if options.device != "cpu" and kind in ON_CPU_ONLY:
        raise common.InputError(f"{OPTIONS[kind]} measures a CPU, and --device is {options.device}: leave one out")
    if options.shapes and kind not in TABLES:
        raise common.InputError("--shapes names shapes of the tables of a CPU, and something else is to be measured")
    several = ("cells", "dtypes", "threads", "backends", "candidates", "hidden", "batch")
    given = {name: getattr(options, name) for name in several}
    given["names"] = options.shapes or options.sweep or options.points
    given = {name: tuple(dict.fromkeys(values)) for name, values in given.items() if values}
    given |= {name: value for name in ("steps", "rounds", "minutes", "allocator") if (value := getattr(options, name))}
    plan = replace(base, device=options.device, **given)
    check(plan)
    if options.quick:
        plan = replace(plan, quick=True, passes=1, warm_up=1, rounds=2)
    if options.list:
        return plan
    device = common.open_device(plan.device)
    if kind == "gpu":
        return plan
    backend = plan.backends[0] if options.backends or device.type == "cpu" else "auto"
    return replace(plan, backends=(common.check_backend(plan.device, plan.dtypes[0], backend).backend,))


def check(plan: Plan) -> None:
    """Raise InputError for names of another kind, several of what a kind has one of, or too many threads."""
    cells = CELLS if plan.kind == "rivals" else PLANS[plan.kind].cells
    shapes = {"steps": STEP_SHAPES, "speed": SHAPES, "rivals": SHAPES}.get(plan.kind, plan.names)
    for option, chosen, known in (("--cells", plan.cells, cells), ("--shapes", plan.names, shapes)):
        if others := [name for name in chosen if name not in known]:
            raise common.InputError(f"{option} {others[0]} is not measured there: here are {listed(known)}")
    single = [] if plan.kind == "gpu" else [("--dtypes", plan.dtypes), ("--backends", plan.backends)]
    single += [] if plan.kind in TABLES else [("--threads", plan.threads)]
    for option, values in single:
        if len(values) > 1:
            raise common.InputError(f"{option} {' '.join(map(str, values))} is too many: here is one at a time")
    if plan.candidates and plan.kind in ("steps", "fills", "resets"):
        raise common.InputError(f"--candidates does not go with {OPTIONS[plan.kind]}, which has its own rivals")
    if max(plan.threads, default=1) > CORES:
        raise common.InputError(f"--threads {max(plan.threads)} is too many: there are {CORES} cores")


def output_path(plan: Plan) -> Path:
    name = plan.allocator if plan.kind in TABLES else "cpu"
    name = name if plan.device == "cpu" else torch.cuda.get_device_name(plan.device)
    more = [dtype for dtype in plan.dtypes if dtype != "float32"]
    if plan.kind == "gpu":
        more = plan.names if plan.names != PLANS["gpu"].names else ()
    elif plan.device != "cpu":
        more += [backend for backend in plan.backends if backend != "cuda"]
    return (RESULTS if plan.whole else ROOT / "runs") / common.file_name(plan.kind, name, *more)


class Run:
    """A file of results: the times of each case of a plan with each number of threads."""

    def __init__(self, path: Path, plan: Plan, arguments: list[str] | None = None) -> None:
        self.path, self.plan, self.device = path, plan, common.open_device(plan.device)
        self.threads = plan.threads or (torch.get_num_threads(),)
        self.cases = [(case, threads) for threads in self.threads for case in plan.cases()]
        self.records = [{**case.record, "threads": threads, "skipped": NOT_REACHED} for case, threads in self.cases]
        clock = clock_type(self.device)
        self.result = {
            **common.origin("benchmarks.speed", arguments),
            "finished": False,
            "hardware": {**machine.description(self.device), "threads": self.threads},
            "digests": machine.digests(),
            "allocator": {"name": plan.allocator, "environment": ALLOCATORS[plan.allocator]},
            "plan": {**asdict(plan), "clock": clock.name, "cold": clock.cold, "tf32": False},
            "ceilings": [],
        }
        if plan.kind == "scaling":
            self.result["base"] = plan.base

    def write(self) -> None:
        common.write_json(self.path, {**self.result, "cases": self.records})

    def measure(self) -> None:
        """Measure times, in one process for each number of threads; then memory."""
        plan, begun, places = self.plan, time.monotonic(), iter(enumerate(self.cases))
        total = sum(cost(case, plan.device) for case, _ in self.cases)
        with tqdm(total=total, desc="time", bar_format=common.TIME_LEFT, disable=plan.kind == "gpu") as bar:
            for part in chain(*(records(plan.allocator, count, plan) for count in self.threads)):
                self.result["ceilings"] += [part["ceilings"]] if "ceilings" in part else []
                for found in part.get("cases", []):
                    number, (case, threads) = next(places)
                    self.records[number] = {**case.record, "threads": threads, **found}
                    bar.update(cost(case, plan.device))
                    if plan.kind == "gpu":
                        print(line(case, found, part["seconds"]), flush=True)
                if plan.kind == "gpu" or plan.device != "cpu":
                    self.write()
        self.measure_memory()
        seconds = round(time.monotonic() - begun, 1)
        self.result |= {"finished": True, "seconds": seconds, "state": machine.state(self.device)}
        self.write()

    def measure_memory(self) -> None:
        """Measure the peak memory of every correct candidate, with malloc's default settings."""
        runs = [
            (number, record["candidate"], case)
            for number, (case, threads) in enumerate(self.cases)
            if case.shape.memory and case.mode == "training" and threads == max(self.threads)
            for record in self.records[number].get("times", [])
            if self.plan.kind != "rivals" and "median_ms" in record
        ]
        for number, candidate, case in tqdm(runs, desc="memory", bar_format=common.TIME_LEFT, disable=not runs):
            plan = replace(self.plan, cells=(case.cell,), names=(case.shape.name,))
            for found in records("default", self.cases[number][1], plan, candidate):
                self.records[number].setdefault("memory", []).append(found["memory"])

    def problems(self) -> Iterator[str]:
        """Yield a sentence for every wrong result and every error."""
        for (case, _), record in zip(self.cases, self.records):
            for found in (record, *record.get("times", [])):
                if problem := problem_of(found):
                    of = f", {found['title']}" if "title" in found else ""
                    yield f"{case}, {case.mode}{of}: {found[problem]}"


def line(case: Case, found: dict, seconds: float) -> str:
    """Format a case as a line: µs per step of every candidate."""
    for reason in ("skipped", "failed"):
        if reason in found:
            return f"{case}, {case.mode}: {reason}: {found[reason]}"
    times = (
        f"{time['candidate']} {problem_of(time) or format(1000 * time['median_ms'] / case.shape.steps, '.3g')}"
        for time in found["times"]
    )
    return f"{case}, {case.mode}: {', '.join(times)}  ({seconds} s)"


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    plan = plan_from(options)
    if options.list:
        print("\n".join(dict.fromkeys(map(str, plan.cases()))))
        return
    run = Run(options.out or output_path(plan), plan, arguments)
    run.measure()
    skipped = sum("skipped" in record for record in run.records)
    print(f"wrote {run.path}: {len(run.records) - skipped} cases measured, {skipped} skipped")
    if problems := dict.fromkeys(run.problems()):
        sys.exit("error: these were not timed:\n" + "\n".join(problems))


if __name__ == "__main__":
    common.run_command(main, saved="of a GPU, what was finished is written, of a CPU nothing")
