"""``python -m benchmarks.gpu.choice``: where kernels of clusters are faster than those of blocks, and the table of it.

It times both families in turns, size by size: forward and backward kernels alone, with the preparation of their
operands. It compares results and gradients with the reference in float64. The file of results grows as the run does,
and belongs in benchmarks/results. --show prints what the files there say, and --write turns them into
csrc/cuda/cluster/measured.h, the table by which kernels of clusters are chosen. Results are valid for the sources of
the measured kernels; --carry-over records that they are valid for the present sources, too, if nvcc makes the same
machine code of both. None of the three options needs a GPU.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import common
from benchmarks.budget import Budget
from benchmarks.gpu import machine
from benchmarks.gpu.kernel.build import CompilerError
from benchmarks.speed import RESULTS, ROOT
from benchmarks.speed.clock import HostClock, clock_for
from fused_rnn import cuda, products

from . import carry, family, header, results
from .measure import STEPS, measure, points

WIDTH = max(map(len, results.CELLS))
WRITE_SECONDS = 2  # seconds between two writings of the results, which are slow for many points
POINT = ("cell", "dtype", "hidden", "batch", "steps", "input")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = common.Parser(prog="python -m benchmarks.gpu.choice", description=__doc__)
    parser.add_argument("--cells", nargs="+", choices=results.CELLS, default=results.CELLS)
    parser.add_argument("--dtypes", nargs="+", choices=results.DTYPES, default=results.DTYPES)
    sizes = "in place of those that are measured otherwise, the most telling first"
    parser.add_argument("--hidden", nargs="+", type=common.positive, metavar="H", help=sizes)
    parser.add_argument("--batches", nargs="+", type=common.positive, metavar="B", help=sizes)
    of_inputs = f"features of the cells whose input is modulated, {sizes}"
    parser.add_argument("--inputs", nargs="+", type=common.positive, metavar="I", help=of_inputs)
    parser.add_argument("--steps", type=common.positive, default=STEPS, metavar="T")
    parser.add_argument("--seconds", type=common.positive_number, default=240.0, help="time for the whole run")
    parser.add_argument("--out", type=Path, help="file of results, in place of one in runs")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--show", type=Path, nargs="*", metavar="FILE", help="print results, by default all committed")
    instead.add_argument("--write", action="store_true", help="make the table of the committed results")
    carry_over = "record in results that are valid for a revision of git that they are for the sources here"
    instead.add_argument("--carry-over", metavar="REVISION", help=carry_over)
    ignoring = "with --carry-over: instructions that do not count, such as NOP; the results say so"
    parser.add_argument("--but-for", nargs="+", default=[], metavar="INSTRUCTION", help=ignoring)
    options = parser.parse_args(arguments)
    if options.but_for and not options.carry_over:
        parser.error("--but-for names what --carry-over does not compare: give both")
    return options


def run(
    options: argparse.Namespace, clock: HostClock, chip: cuda.Chip, kernels: products.Kernels = cuda.ON_GPU
) -> None:
    """Measure, and write the file of results, which grows during the run."""
    budget = Budget(options.seconds)
    result = {
        **common.origin("benchmarks.gpu.choice"),
        "hardware": machine.description(clock.device),
        "chip": asdict(chip),
        "digests": {**machine.digests(), "family": family.digest()},
        "points": [],
    }
    path = options.out or ROOT / "runs" / common.file_name("choice", result["hardware"]["gpu"])
    tried = points(options.cells, options.dtypes, options.hidden, options.batches, options.inputs, options.steps)
    written = 0.0
    try:
        for layer, obstacle in budget.spend(tried):
            record = {name: value for name, value in asdict(layer).items() if name in POINT and value is not None}
            if obstacle:
                record["skipped"] = obstacle
            else:
                record |= measure(layer, clock, chip, kernels)
                print(line(results.outcome(record)), flush=True)
            result["points"].append(record)
            if budget.gone > written + WRITE_SECONDS:
                common.write_json(path, result)
                written = budget.gone
    finally:
        common.write_json(path, result)
    print(f"wrote {path}, in {budget.gone:.0f} s; {sum('skipped' in r for r in result['points'])} points were skipped")
    if any(failed(record) for record in result["points"]):
        sys.exit("error: some points failed, see above")


def failed(record: dict) -> bool:
    """Whether a kernel was wrong or failed, as opposed to refusing a point."""
    return "failed" in record or any(failed(value) for value in record.values() if isinstance(value, dict))


def line(outcome: results.Outcome) -> str:
    """Format a point as a line."""
    sides = [f"{name} {_in_words(getattr(outcome, name))}" for name in results.FAMILIES]
    if not (outcome.cluster.obstacle or outcome.blocks.obstacle):
        sides.append(f"{outcome.blocks.total / outcome.cluster.total:.2f} times as fast")
    features = f" I={outcome.features:<4}" if outcome.features else ""
    sizes = f"H={outcome.hidden:<4} B={outcome.batch:<4}{features}"
    return f"{outcome.cell:{WIDTH}} {outcome.dtype:8} {sizes} {'  '.join(sides)}"


def _in_words(times: results.Times) -> str:
    return times.obstacle or f"{times.forward:6.2f} +{times.backward:6.2f} µs"


def show(path: Path) -> None:
    """Print a file of results, one line per point, sorted by sizes."""
    found = results.read(path)
    print(f"{path.name}: {found.chip}, {found.date}, torch {found.torch}; µs per step, forward + backward")
    for outcome in sorted(
        found.outcomes, key=lambda o: (o.cell, o.dtype, not o.whole_rows, o.hidden, o.batch, o.features)
    ):
        print(line(outcome))
    print(f"ahead at {sum(outcome.ahead for outcome in found.outcomes)} of {len(found.outcomes)} points")


def write() -> None:
    """Write the table of the committed results, and report which ones it omits."""
    found = results.load()
    with common.replacing(header.PATH) as partial_path:
        partial_path.write_text(header.text(found))
    for each in filter(header.stale, found):
        print(f"{each.name} was measured with other sources than those here, and gives no rows")
    print(f"wrote {header.PATH}")


def carry_over(revision: str, but_for: Sequence[str]) -> None:
    """Record that results are valid for the present sources, if the machine code is the same."""
    try:
        carry.carry_over(revision, but_for)
    except CompilerError as error:
        sys.exit(f"{error}error: the kernels did not compile")
    print("python -m benchmarks.gpu.choice --write and python -m benchmarks.report make what follows from it")


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.write:
        write()
    elif options.carry_over:
        carry_over(options.carry_over, options.but_for)
    elif options.show is not None:
        paths = options.show or results.files()
        for path in paths:
            show(path)
        if not paths:
            print(f"there are no results in {RESULTS} yet")
    elif obstacle := cuda.obstacle(None):
        raise common.InputError(f"nothing can be measured, only --show, --write and --carry-over work: {obstacle}")
    else:
        run(options, clock_for(common.open_device("cuda")), cuda.current_chip())


if __name__ == "__main__":
    common.run_command(main, saved="the points that were finished are written")
