"""``python -m benchmarks.gpu.kernel``: compile one kernel, check it, time it, and show what it consists of.

It compiles one kernel of csrc/cuda (cell x dtype x direction x exchange) for one architecture, and prints its
registers, spills and shared memory, the instructions of its time-step loop, and its plan. Then it compares the results
with the reference in float64, at the requested sizes, and times the kernel alone: the difference between --steps and
half of them, so that the launch and the packing of weights cancel out. Without a GPU of that architecture the kernel is
not timed, and it is checked on the host shim of the tests, at small sizes. Every run is appended to a file of results.

The compiled kernel stays in --folder, which may be copied to a machine that has a GPU and no nvcc: --built uses it
there.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import common
from benchmarks.gpu import machine, plans
from benchmarks.gpu.choice.results import DTYPES
from benchmarks.gpu.plans import H200, Layer
from benchmarks.speed import ROOT
from benchmarks.speed.clock import HostClock, clock_for, summary
from fused_rnn import cuda, products
from fused_rnn.cells import CELLS

from . import build, calls, sass
from .check import worst_error

FOLDER = ROOT / "build" / "kernel"
EXCHANGES = ("chosen", "one_block", "l2", "cluster")
DIVISION = ("exchange", "sequences", "parts", "segments")
ROUNDS, WARM_UP = 20, 3
CHECKED_STEPS = 8
ON_HOST = {"T": 3, "B": 11, "I": 7, "H": 70}  # upper limits
NO_DISASSEMBLER = "instructions are not counted: neither nvcc, PATH nor Triton has cuobjdump and nvdisasm"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = common.Parser(prog="python -m benchmarks.gpu.kernel", description=__doc__)
    parser.add_argument("--cell", choices=plans.WITH_KERNELS, default="lstm")
    parser.add_argument("--dtype", choices=plans.DTYPES, default="bfloat16")
    parser.add_argument("--hidden", type=common.positive, default=512, metavar="H")
    parser.add_argument("--batch", type=common.positive, default=64, metavar="B")
    parser.add_argument("--input", type=common.positive, metavar="I", help="features; H if left out")
    parser.add_argument("--direction", choices=plans.DIRECTIONS, default="forward")
    parser.add_argument(
        "--exchange",
        choices=EXCHANGES,
        default="chosen",
        help="how blocks hand each other states, compiled alone: cluster by the kernels of warps; by default as the "
        "kernels of blocks have it in the package, chosen by the plan",
    )
    forced = f"forced as by {cuda.FORCED}; the planner's choice if left out"
    parser.add_argument("--sequences", type=common.positive, metavar="N", help=f"of a tile, {forced}")
    parser.add_argument("--parts", type=common.positive, metavar="N", help=f"blocks of a team, {forced}")
    parser.add_argument("--segments", type=common.positive, metavar="N", help=f"of a state, {forced}")
    parser.add_argument(
        "--arch", type=architecture, help="compute capability as nvcc writes it; that of the GPU here, or else 90a"
    )
    parser.add_argument("--steps", type=steps, default=plans.STEPS, metavar="T", help="time steps, at least 2")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="for compiled kernels")
    parser.add_argument("--built", action="store_true", help="take the kernel from --folder, as compiled there before")
    parser.add_argument("--out", type=Path, help="file of results to append to, in place of one in runs")
    options = parser.parse_args(arguments)
    if options.exchange == "cluster" and options.dtype not in DTYPES:
        parser.error(f"--exchange cluster is for {', '.join(DTYPES)}, not for {options.dtype}")
    return options


def architecture(text: str) -> str:
    """An argparse type: a compute capability such as 80 or 90a."""
    if not re.fullmatch(r"\d{2,3}[af]?", text):
        raise argparse.ArgumentTypeError(f"must be like 80, 90a or 100, got {text}")
    return text


def steps(text: str) -> int:
    """An argparse type: time steps that can be halved."""
    if (value := common.positive(text)) < 2:
        raise argparse.ArgumentTypeError(f"must be at least 2, because half of them are timed as well, got {value}")
    return value


class Bench:
    """One kernel, from its source to its record."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self.layer = Layer(
            *(options.cell, options.dtype, options.hidden, options.batch, options.steps, options.direction),
            options.input,
        )
        self.kernel = (options.cell, options.dtype, options.direction, options.exchange)
        self.dtype = getattr(torch, options.dtype)
        self.arch = options.arch or own_architecture(device) or "90a"
        self.obstacle = obstacle(device, self.arch)
        self.device = torch.device("cpu") if self.obstacle else device
        self.chip = chip_of(self.device)
        self.record = {**asdict(self.layer), "arch": self.arch, "exchange": options.exchange, "chip": asdict(self.chip)}

    def run(self, folder: Path, built: bool, clock: HostClock) -> None:
        """Fill the record, and print a line or two for each of its parts."""
        target = folder / f"{'-'.join([*self.kernel, f'sm_{self.arch}'])}.so"
        about = target.with_suffix(".json")
        if not built:
            common.write_json(about, self.compile(target))
        found = known(about, target)
        library = build.Library(target, self.chip, self.device)
        plan = self.plan(library)
        kernels = found.pop("kernels")
        self.record |= found | kernels[build.symbol_of(kernels, self.layer.hidden, self.features, plan)]
        print("\n".join([*compiled_in_words(self.layer, self.record), f"plan: {plan}"]), flush=True)
        try:
            self.check(library)
            if self.obstacle:
                self.record["not_timed"] = self.obstacle
            elif "failed" not in self.record:
                self.record |= measure(self.layer, library, clock)
        except RuntimeError as error:  # from a launch or a wait
            self.record["failed"] = str(error).splitlines()[0]
        print(timing(self.record), flush=True)

    def compile(self, target: Path) -> dict:
        """Compile the kernel, in all its sizes if several; return its properties and the digest of its sources."""
        nvcc = build.find_nvcc(self.arch)
        begun = time.perf_counter()
        report = build.compiled(build.nvcc_command(nvcc, self.arch, build.macros(*self.kernel)), target)
        seconds, instructions = time.perf_counter() - begun, build.disassembled(target, nvcc)
        kernels = {
            symbol: {**asdict(taken), "step": None if instructions is None else counted(instructions[symbol])}
            for symbol, taken in build.resources(report, self.layer.direction).items()
        }
        return {
            "sources": machine.digests()["kernels"],
            "compiler": build.version_of(nvcc),
            "compile_seconds": round(seconds, 1),
            "kernels": kernels,
        }

    def plan(self, library: build.Library) -> cuda.Plan:
        sizes = {"T": self.layer.steps, "B": self.layer.batch, "I": self.layer.features, "H": self.layer.hidden}
        plan = library.plan(calls.sized(self.layer.direction, self.layer.cell, self.dtype, **sizes))
        self.record["plan"] = asdict(plan)
        return plan

    def check(self, library: build.Library) -> None:
        """Run the kernel if possible here, and record its error."""
        sizes = {"T": CHECKED_STEPS, "B": self.layer.batch, "I": self.layer.features, "H": self.layer.hidden}
        where = f"on {self.device}"
        if self.obstacle:
            if missing := build.host_obstacle():
                self.record["not_checked"] = missing
                print(f"check: not checked: {missing}")
                return
            where, sizes = "on the host shim", {size: min(n, ON_HOST[size]) for size, n in sizes.items()}
            library = self.on_host()
        error = worst_error(library, where, self.layer.cell, self.dtype, self.layer.direction, **sizes)
        self.record["check"] = error.record()
        print(f"check: {error}", flush=True)
        if error.wrong:
            self.record["failed"] = f"its results are wrong: {error}"

    @property
    def features(self) -> int:
        """The features of a modulated input, on which kernels depend; 0 for other cells."""
        return self.layer.features if CELLS[self.layer.cell].modulates == "input" else 0

    def on_host(self) -> build.Library:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "host.so"
            build.compile_on_host(build.SOURCE, target, "-O1", "-shared", *build.macros(*self.kernel))
            return build.Library(target, self.chip, torch.device("cpu"))


def known(about: Path, library: Path) -> dict:
    """Read the description of a compiled kernel; raise InputError if it is missing or the sources have changed."""
    if not (about.exists() and library.exists()):
        raise common.InputError(f"there is no compiled kernel {library}: it is made by a run without --built, by nvcc")
    found = json.loads(about.read_text())
    if found["sources"] != machine.digests()["kernels"]:
        raise common.InputError(f"{library} was compiled from other sources than those here, and must be made anew")
    return found


def compiled_in_words(layer: Layer, record: dict) -> list[str]:
    seconds = f"{record['compile_seconds']:.1f} s"
    return [
        f"{layer}, sm_{record['arch']}, exchange {record['exchange']}: {record['compiler']}, {seconds}",
        f"registers: {record['registers']} of a thread; {record['spill_stores']} + {record['spill_loads']} bytes "
        f"spilled and loaded again, {record['stack']} bytes of stack; {record['static_shared']} bytes of static shared "
        "memory",
        NO_DISASSEMBLER if record["step"] is None else step_in_words(record["step"]),
    ]


def own_architecture(device: torch.device) -> str | None:
    """Return nvcc's name of a GPU, with its architecture-specific features."""
    if device.type != "cuda":
        return None
    return build.architecture_of(*torch.cuda.get_device_capability(device))


def obstacle(device: torch.device, arch: str) -> str | None:
    """Return why a kernel cannot be timed here, or None if it can."""
    if device.type != "cuda":
        return "there is no GPU"
    own = own_architecture(device)
    return None if own.rstrip("af") == arch.rstrip("af") else f"the GPU is sm_{own}, the kernel for sm_{arch}"


def chip_of(device: torch.device) -> cuda.Chip:
    """Return the GPU that the kernel is planned for; an H200 without a GPU."""
    if device.type != "cuda":
        return H200
    return cuda.current_chip()


def counted(instructions: list[sass.Instruction]) -> dict:
    """Describe the time-step loop for the record."""
    loop = sass.time_loop(instructions)
    return {} if loop is None else {**asdict(sass.count(instructions, loop)), "address": loop.header}


def step_in_words(step: dict) -> str:
    if not step:
        return "time-step loop: none was found in the machine code, so its instructions are not counted"
    kinds = ", ".join(f"{number} {kind}" for kind, number in step["kinds"].items())
    return (
        f"time-step loop, at {step['address']:#x}: {step['instructions']} instructions, with those of {step['loops']} "
        f"loops inside it once each, without {step['polls']} that poll\n  {kinds}"
    )


def timing(record: dict) -> str:
    estimate = f"estimated {record['plan']['nanoseconds'] / 1000:.2f} µs per step"
    if "us_per_step" in record:
        return f"time: measured {record['us_per_step']:.2f} ± {record['spread_us']:.2f}, {estimate}"
    return f"time: not timed: {record.get('not_timed', 'it failed')}; {estimate}"


def measure(layer: Layer, library: build.Library, clock: HostClock) -> dict[str, float]:
    """Return µs per step of the kernel alone, and the interquartile range, from alternating calls of two lengths."""
    lengths = layer.steps, layer.steps // 2
    both = [prepare(replace(layer, steps=length), library.device) for length in lengths]
    long, short = map(library.prepared, both)
    found = []
    for number in range(WARM_UP + ROUNDS):
        difference = clock.time(long) - clock.time(short)
        if number >= WARM_UP:
            found.append(1000 * difference / (lengths[0] - lengths[1]))
    for call in both:
        build.check_waits(call)
    us = summary(found)
    return {"us_per_step": us["median_ms"], "spread_us": us["spread_ms"]}


def prepare(layer: Layer, device: torch.device) -> calls.Call:
    """Make a call on random operands, with random numbers for values of the forward pass that backward reads."""
    generator = torch.Generator(device).manual_seed(1)

    def random(like: Tensor, *shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=like.device).to(like.dtype)

    made = {}

    def forward(*operands: Tensor | None) -> tuple[Tensor, ...]:
        made["forward"] = calls.forward(random, *operands)
        return made["forward"].results

    def backward(*operands: Tensor | None) -> tuple[Tensor, ...]:
        made["backward"] = calls.backward(random, *operands)
        return made["backward"].results

    plans.Operands(layer, device, products.Kernels(forward, backward)).run()
    return made[layer.direction]


def forced_by(options: argparse.Namespace) -> str:
    """Return the text that forces the plan, from the options or else from the environment."""
    given = [(name, getattr(options, name)) for name in DIVISION]
    text = ",".join(f"{name}={value}" for name, value in given if value not in (None, "chosen"))
    return text or os.environ.get(cuda.FORCED, "")


def runs_in(path: Path) -> list[dict]:
    """Read the runs in a file of results, none without a file; raise InputError if it is another kind of file."""
    if not path.exists():
        return []
    try:
        return list(json.loads(path.read_text())["kernels"])
    except (ValueError, KeyError, TypeError):
        refused = f"--out {path} is no file of this command's results, to which runs are appended"
        raise common.InputError(refused) from None


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clock = clock_for(device)
    run = {
        **common.origin("benchmarks.gpu.kernel", arguments),
        "hardware": machine.description(clock.device),
        "digests": machine.digests(),
    }
    path = options.out or ROOT / "runs" / common.file_name("kernel", run["hardware"]["gpu"])
    earlier = runs_in(path)
    bench = Bench(options, clock.device)
    try:
        with plans.enforced(forced_by(options)):
            bench.run(options.folder, options.built, clock)
    except build.CompilerError as error:
        sys.exit(f"{error}error: the kernel did not compile")
    common.write_json(path, {"kernels": [*earlier, run | bench.record]})
    print(f"appended to {path}")
    if "failed" in bench.record:
        sys.exit(f"error: the kernel failed: {bench.record['failed']}")


if __name__ == "__main__":
    common.run_command(main, saved="nothing is written")
