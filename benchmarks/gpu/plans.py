"""``python -m benchmarks.gpu.plans``: kernels of blocks with one plan after the other, times beside estimates.

A plan says how the kernels divide a call's work (see ``fused_rnn.cuda.plan``); FUSED_RNN_CUDA_PLAN forces one. For a
layer and a direction this tries every division of a grid that fits the GPU, in turns, and times the kernels alone, with
the preparation of their operands, without the library's products. Without --cell it goes through the layers that the
constants of csrc/cuda/cost.h are fitted to. Results of every plan are held against those of the plan that the planner
chooses. On the CPU there are no kernels, but --list shows the plans and their estimates anywhere.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import common
from benchmarks.budget import Budget
from benchmarks.speed import ROOT
from benchmarks.speed.clock import HostClock, clock_for, summary
from fused_rnn import cuda, products
from fused_rnn.cells import CELLS

from . import machine

H200 = cuda.Chip(132, 232_448, (132, 66, 30, 15, 7), "NVIDIA H200")
DIRECTIONS = ("forward", "backward")
DTYPES = tuple(str(dtype).removeprefix("torch.") for dtype in cuda.DTYPES)
SEQUENCES, PARTS = (8, 16, 32, 64), (1, 2, 4, 8, 16, 32, 64, 128)
WITH_KERNELS = tuple(name for name in CELLS if CELLS[name].modulates is None or "rnn" not in name)
STEPS, ROUNDS, CALLS = 512, 3, 3  # calls in a row, so that the host is not the bottleneck


@dataclass(frozen=True)
class Layer:
    """One direction of a layer."""

    cell: str
    dtype: str
    hidden: int
    batch: int
    steps: int = STEPS
    direction: str = "forward"
    input: int | None = None  # features; as many as units if left out

    def __str__(self) -> str:
        features = "" if self.input is None else f" I={self.input}"
        return f"{self.cell} {self.dtype} H={self.hidden}{features} B={self.batch} T={self.steps} {self.direction}"

    @property
    def features(self) -> int:
        return self.input or self.hidden

    @property
    def cost(self) -> float:
        """Estimate the time to try all its plans, in arbitrary units."""
        return self.steps * (1 + self.batch * self.hidden**2 / 1e7)

    def plan(self, chip: cuda.Chip, forced: str = "") -> cuda.Plan:
        dtype = getattr(torch, self.dtype)
        return cuda.plan(self.cell, dtype, self.batch, self.hidden, self.features, self.direction, chip, forced)


# The layers to try, and earlier times that the estimates are compared with, besides the times of this command, which
# they are fitted to: µs per step of the kernels alone, forward and backward, T = 512, by the profiler on an H200, each
# with the plan that was chosen then.
_BLOCK, _TEAM = "sequences=8,parts=1", "sequences=8,parts={},segments=1"
MEASURED = {
    ("lstm", "bfloat16", 128, 16): ((_BLOCK, 5.80), (_BLOCK, 5.28)),
    ("lstm", "bfloat16", 512, 16): ((_TEAM.format(32), 3.67), (_TEAM.format(32), 4.35)),
    ("lstm", "bfloat16", 512, 64): ((_TEAM.format(16), 4.01), (_TEAM.format(16), 4.82)),
    ("lstm", "bfloat16", 1024, 16): ((_TEAM.format(64), 4.65), (_TEAM.format(64), 5.53)),
    ("lstm", "float16", 128, 16): ((_BLOCK, 5.78), (_BLOCK, 5.27)),
    ("lstm", "float16", 512, 64): ((_TEAM.format(16), 4.00), (_TEAM.format(16), 4.91)),
    ("lstm", "float16", 768, 16): ((_TEAM.format(64), 4.59), (_TEAM.format(48), 4.93)),
    ("lstm", "float32", 128, 16): ((_TEAM.format(8), 3.46), (_TEAM.format(8), 3.88)),
    ("lstm", "float32", 512, 64): ((_TEAM.format(16), 9.21), (_TEAM.format(16), 10.89)),
    ("gru_reset_after", "bfloat16", 512, 64): ((_TEAM.format(16), 3.73), (_TEAM.format(16), 4.90)),
    ("gru", "bfloat16", 512, 64): ((_TEAM.format(16), 5.93), (_TEAM.format(16), 6.15)),
    ("multiplicative_lstm", "bfloat16", 512, 64): (
        ("sequences=16,parts=32,segments=1", 8.93),
        (_TEAM.format(16), 10.91),
    ),
}


def plans(layer: Layer, chip: cuda.Chip, sequences: Sequence[int], parts: Sequence[int]) -> list[cuda.Plan]:
    """Return the plan that the planner chooses, then one of each division of the grid that fits, the cheapest first.

    All are of block kernels; ``benchmarks.gpu.choice`` compares warp kernels with them.
    """
    chosen = layer.plan(chip, "exchange=blocks")
    found = {}
    for tile in sequences:
        if tile >= 2 * max(layer.batch, SEQUENCES[0]):  # half of it would be empty
            continue
        for count in parts:
            with contextlib.suppress(RuntimeError):  # for plans that do not fit
                plan = layer.plan(chip, f"sequences={tile},parts={count}")
                found[plan.forced] = plan
    found.pop(chosen.forced, None)
    return [chosen, *sorted(found.values(), key=lambda plan: plan.nanoseconds)]


def forced(plan: cuda.Plan) -> contextlib.AbstractContextManager[None]:
    """Run calls inside with this plan."""
    return enforced(plan.forced)


def enforced(text: str) -> contextlib.AbstractContextManager[None]:
    """Run calls inside with the plan that this text forces."""
    return common.environment(cuda.FORCED, text)


class Operands:
    """Random operands of a layer, and its calls of the kernels."""

    def __init__(self, layer: Layer, device: torch.device, kernels: products.Kernels = cuda.ON_GPU) -> None:
        self.layer, self.kernels = layer, kernels
        spec, T, B, H = CELLS[layer.cell], layer.steps, layer.batch, layer.hidden
        generator = torch.Generator(device).manual_seed(0)

        def random(*shape: int, scale: float = 1.0) -> Tensor:
            values = torch.rand(shape, generator=generator, device=device) * 2 - 1
            return (scale * values).to(getattr(torch, layer.dtype))

        rows, modulates_input = spec.gates * H, spec.modulates == "input"
        modulated = spec.modulated_size(layer.features, H)
        self.input = random(T, B, modulated) if modulated else None
        self.states = [random(B, H), random(B, H) if spec.has_cell_state else None]
        self.weights = [
            random(rows, modulated, scale=H**-0.5) if modulates_input else None,
            random(rows, H, scale=H**-0.5),
            random(modulated, H, scale=H**-0.5) if modulated else None,
        ]
        self.projected = random(T, B, modulated if modulates_input else rows)
        self.biases = [
            random(modulated, scale=H**-0.5) if modulates_input else None,
            random(rows, scale=H**-0.5),
            random(rows, scale=H**-0.5) if spec.recurrent_bias else None,
        ]
        self.constants = [*[None] * 6, layer.cell, False]  # lengths, masks, and resets
        self.d_output = random(T, B, H)
        self.results = self.forward()

    def forward(self) -> tuple[Tensor, ...]:
        operands = [self.projected, self.input, *self.states, *self.weights, *self.biases, *self.constants]
        return self.kernels.forward(*operands, "everything")

    def backward(self) -> tuple[Tensor, ...]:
        output, _, _, cells, saved = self.results
        gradients = [self.d_output, None, None, None]
        operands = [output, cells, saved, self.input, *self.states, *self.weights, *self.constants]
        return self.kernels.backward(*gradients, *operands, 0.0)

    def run(self) -> tuple[Tensor, ...]:
        return getattr(self, self.layer.direction)()


def measure(operands: Operands, tried: Sequence[cuda.Plan], clock: HostClock, rounds: int = ROUNDS) -> list[dict]:
    """Measure a record of each plan; the first plan's results are the standard for the others."""
    records = [{**asdict(plan), "blocks": plan.blocks, "chosen": plan is tried[0]} for plan in tried]
    expected: tuple[Tensor, ...] = ()
    for plan, record in zip(tried, records):
        with forced(plan), failure_recorded(record):
            results = operands.run()
            expected = expected or results
            record["difference"] = difference(results, expected)
            if not record["difference"] <= allowed(expected[0].dtype):
                record["failed"] = "its results are not those of the plan that is chosen"
    entries = [(plan.forced, operands.run, record) for plan, record in zip(tried, records)]
    time_in_turns(entries, operands.layer.steps, clock, rounds)
    return records


Entry = tuple[str, Callable[[], object], dict]  # the forced plan, a call, and its record


def time_in_turns(entries: Sequence[Entry], steps: int, clock: HostClock, rounds: int = ROUNDS) -> None:
    """Add the time of each call to its record, unless that has a failure."""
    readings: list[list[float]] = [[] for _ in entries]
    for number in range(1 + rounds):  # the first one warms up
        for (plan, call, record), times in zip(entries, readings):
            if "failed" not in record:
                with enforced(plan), failure_recorded(record):
                    ms = clock.time(lambda call=call: [call() for _ in range(CALLS)])
                    cuda.raise_timed_out()  # after the clock's synchronisation
                    if number:
                        times.append(1000 * ms / (CALLS * steps))
    for (_, _, record), times in zip(entries, readings):
        if "failed" not in record:
            us = summary(times)
            record |= {"us_per_step": us["median_ms"], "spread_us": us["spread_ms"]}


@contextlib.contextmanager
def failure_recorded(record: dict) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        record["failed"] = str(error).splitlines()[0]


def difference(results: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest difference of two results, in units of the tensor's largest value; NaN if there is one."""
    pairs = [(a.double(), b.double()) for a, b in zip(results, expected) if b.numel()]
    return max(((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item() for a, b in pairs)


def allowed(dtype: torch.dtype) -> float:
    """Return the tolerance: orders of sums differ, which a sequence amplifies; wrong indices differ by order 1."""
    return 32 * torch.finfo(dtype).eps


def lines(layer: Layer, records: Sequence[dict]) -> str:
    """Format a layer's plans, one per line, the fastest first."""
    timed = sorted((r for r in records if "us_per_step" in r), key=lambda record: record["us_per_step"])
    found = [f"{layer}: µs per step"]
    for record in timed:
        found.append(f"  measured {record['us_per_step']:6.2f}  " + described(record))
    found += [f"  {described(record)}: {record['failed']}" for record in records if "failed" in record]
    return "\n".join(found)


def described(record: dict) -> str:
    weights = "+".join(str(record[name]) for name in ("held", "resident", "streamed"))
    division = ",".join(f"{name}={record[name]}" for name in ("sequences", "parts", "segments"))
    mark = "  <- chosen" if record["chosen"] else ""
    return f"estimated {record['nanoseconds'] / 1000:6.2f}  {division}  {weights} fragments of weights{mark}"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = common.Parser(prog="python -m benchmarks.gpu.plans", description=__doc__)
    parser.add_argument("--cell", choices=WITH_KERNELS, help="without it, all layers that the estimates are fitted to")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--hidden", type=common.positive, default=512, metavar="H")
    parser.add_argument("--batch", type=common.positive, default=64, metavar="B")
    parser.add_argument("--steps", type=common.positive, default=STEPS, metavar="T")
    parser.add_argument("--directions", nargs="+", choices=DIRECTIONS, default=DIRECTIONS)
    parser.add_argument(
        "--sequences", nargs="+", type=common.positive, default=SEQUENCES, metavar="N", help="of a tile"
    )
    parser.add_argument("--parts", nargs="+", type=common.positive, default=PARTS, metavar="N", help="blocks of a team")
    parser.add_argument("--minutes", type=common.positive_number, default=1.0, help="time for the whole run")
    parser.add_argument(
        "--list", action="store_true", help="show plans and estimates, of an H200 where there is no GPU"
    )
    parser.add_argument("--out", type=Path, help="file of results, in place of one in runs")
    return parser.parse_args(arguments)


def layers(options: argparse.Namespace) -> list[Layer]:
    asked = [(options.cell, options.dtype, options.hidden, options.batch)] if options.cell else MEASURED
    return [Layer(*layer, options.steps, direction) for layer in asked for direction in options.directions]


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.list:
        chip = H200 if cuda.obstacle(None) else cuda.current_chip()
        for layer in layers(options):
            print(f"{layer}: µs per step")
            tried = plans(layer, chip, options.sequences, options.parts)
            for plan in tried:
                print("  " + described({**asdict(plan), "chosen": plan is tried[0]}))
        return
    if obstacle := cuda.obstacle(None):
        raise common.InputError(f"the plans cannot be timed, only listed with --list: {obstacle}")
    run(options, clock_for(common.open_device("cuda")), cuda.current_chip())


def run(
    options: argparse.Namespace, clock: HostClock, chip: cuda.Chip, kernels: products.Kernels = cuda.ON_GPU
) -> None:
    """Measure and write the file of results, which grows with every layer."""
    budget = Budget(60 * options.minutes)
    result = {
        **common.origin("benchmarks.gpu.plans"),
        "hardware": machine.description(clock.device),
        "digests": machine.digests(),
        "layers": [],
    }
    path = options.out or ROOT / "runs" / common.file_name("plans", result["hardware"]["gpu"])
    for layer, obstacle in budget.spend(layers(options)):
        record = asdict(layer)
        if obstacle:
            record["skipped"] = obstacle
            print(f"{layer}: skipped: {obstacle}", flush=True)
        else:
            tried = plans(layer, chip, options.sequences, options.parts)
            record["plans"] = measure(Operands(layer, clock.device, kernels), tried, clock)
            print(lines(layer, record["plans"]), flush=True)
        result["layers"].append(record)
        common.write_json(path, result)
    print(f"wrote {path}, in {budget.gone:.0f} s")
    if any("failed" in plan for layer in result["layers"] for plan in layer.get("plans", [])):
        sys.exit("error: some plans failed, see above")


if __name__ == "__main__":
    common.run_command(main, saved="the layers that were finished are written")
