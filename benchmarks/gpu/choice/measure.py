"""Kernels of clusters and of blocks side by side: which sizes are tried, and what is measured at each."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import torch

from benchmarks.gpu import plans
from benchmarks.gpu.kernel.check import Judge, both
from benchmarks.gpu.plans import DIRECTIONS, Layer
from benchmarks.speed.clock import HostClock
from fused_rnn import cuda, products

from .results import CELLS, DTYPES, FAMILIES, ONCE, modulates_input

# Where there is no cluster, blocks of the same kernels may hand each other messages.
FORCED = {"cluster": "exchange=warps", "blocks": "exchange=blocks"}
# H x B, the most telling sizes first; those that are no multiples of 8, which travel value by value, have fewer. With
# many sequences there are the sizes that people run so many with.
HIDDEN, BATCHES = (512, 128, 256, 768, 1024, 64, 384, 640, 192, 2048), (64, 16, 32, 128, 256, 1, 512)
MANY = ((256, 128, 192), (4096, 1024))
GRIDS = ((HIDDEN, BATCHES), ((500, 250, 650, 100), (64, 16)), MANY)
# Where the input is modulated, H x B x I up to what clusters are compiled for, which is fewer features for many units.
INPUTS = (128, 8, 256)  # the most of either, and few, with which blocks are fastest
MODULATED_GRIDS = (((512, 128, 256, 64, 384, 192), (64, 16, 32, 128, 256, 1, 512)), ((500, 250, 100), (64, 16)))
# What kernels of warps are compiled for: units where blocks exchange once a step, else, and features.
MOST = {"bfloat16": (2048, 768, 256), "float16": (2048, 768, 256), "float32": (512, 256, 128)}
STEPS, ROUNDS = 256, 3
# Of more sequences there are fewer steps: a step takes long enough, and sequences are as good as steps to judge by.
MOST_ROWS, MOST_JUDGED_ROWS = 256 * 1024, 64 * 1024
# Errors add up along a sequence. In float32 they are known for a longer one, because what tensor cores round off may
# all point one way; of a short one with a ReLU, where one unit within rounding of zero says more than all rounding.
JUDGED_STEPS, JUDGED_STEPS_IN_FLOAT32, JUDGED_STEPS_OF_RELU_IN_FLOAT32 = 16, 32, 4
JUDGED_INPUT = 16  # where features are not the kernels' business


def points(
    cells: Sequence[str] = CELLS,
    dtypes: Sequence[str] = DTYPES,
    hidden: Sequence[int] | None = None,
    batches: Sequence[int] | None = None,
    inputs: Sequence[int] | None = None,
    steps: int = STEPS,
) -> list[Layer]:
    """The most telling sizes of all cells and dtypes first, so that every one has some when the time is over."""
    ranked = [
        (rank, place, Layer(cell, dtype, h, b, min(steps, MOST_ROWS // b), input=i))
        for dtype, cell in product(dtypes, cells)
        for place, (rank, h, b, i) in enumerate(_sizes(cell, dtype, hidden, batches, inputs))
    ]
    return [layer for *_, layer in sorted(ranked, key=lambda found: found[:2])]


def _sizes(cell: str, dtype: str, *given: Sequence[int] | None) -> list[tuple[int, ...]]:
    """How far down their lists all sizes stand, then these: H, B, and I where the input is modulated, else None.

    Of those that are not given there are as large ones as there are kernels of warps for.
    """
    hidden, batches, inputs = given
    once, several_times, features = MOST[dtype]
    modulated = modulates_input(cell)
    grids = [
        (_up_to(once if cell in ONCE else several_times, sizes), of_batches)
        for sizes, of_batches in (MODULATED_GRIDS if modulated else GRIDS)
    ]
    if hidden or batches:
        grids = [(hidden or grids[0][0], batches or grids[0][1])]
    axis = (inputs or _up_to(features, INPUTS)) if modulated else (None,)
    ranked = [zip(*place) for grid in grids for place in product(*map(enumerate, (*grid, axis)))]
    return sorted(((sum(ranks), *sizes) for ranks, sizes in ranked), key=lambda found: found[0])


def _up_to(most: int, sizes: Sequence[int]) -> Sequence[int]:
    return [size for size in sizes if size <= most]


def measure(layer: Layer, clock: HostClock, chip: cuda.Chip, kernels: products.Kernels = cuda.ON_GPU) -> dict:
    """What both families do at a point: their plans, error and times, or why they have none.

    A family that refuses the point, fails or is wrong is not timed, and where there is no cluster nothing is.
    """
    record: dict = {family: {"plans": {}} for family in FAMILIES}
    for family, forced in FORCED.items():
        try:
            for direction in DIRECTIONS:
                plan = replace(layer, direction=direction).plan(chip, forced)
                record[family]["plans"][direction] = plan.forced
        except RuntimeError as error:
            record[family] = {"refused": str(error).splitlines()[0].removeprefix("fused_rnn: ")}
    if "refused" in record["cluster"]:
        record["blocks"]["not_timed"] = "there is no cluster beside it"
    else:
        failure: dict = {}  # that is not the fault of one of them, as too little memory
        with plans.failure_recorded(failure):
            _time(layer, {name: found for name, found in record.items() if "refused" not in found}, clock, kernels)
        for family in FAMILIES:
            record[family] |= failure
    return record


def judge_of(layer: Layer, device: torch.device) -> Judge:
    """What is right at a point; in float32 that is known closely, as no rounding of results covers what kernels do."""
    steps, closely = JUDGED_STEPS, layer.dtype == "float32"
    if closely:
        steps = JUDGED_STEPS_OF_RELU_IN_FLOAT32 if layer.cell == "rnn_relu" else JUDGED_STEPS_IN_FLOAT32
    sizes = {
        "T": min(steps, MOST_JUDGED_ROWS // layer.batch),
        "B": layer.batch,
        "I": layer.input or JUDGED_INPUT,
        "H": layer.hidden,
    }
    return Judge(layer.cell, getattr(torch, layer.dtype), device, closely, **sizes)


def _time(layer: Layer, record: dict[str, dict], clock: HostClock, kernels: products.Kernels) -> None:
    judge = judge_of(layer, clock.device)
    entries: list[plans.Entry] = []
    for family, found in record.items():
        with plans.enforced(FORCED[family]), plans.failure_recorded(found):
            own = both(kernels, layer.cell, judge.tensors, judge.d_results)
            operands = plans.Operands(layer, clock.device, kernels)
            clock.wait()
            cuda.raise_timed_out()
            error = judge.worst(own, f"on {clock.device}")
            found["error"] = error.record()
            if error.wrong:
                found["failed"] = f"its results are wrong: {error}"
                continue
            found |= {direction: {} for direction in DIRECTIONS}
            entries += [(FORCED[family], operands.forward, found["forward"])]
            entries += [(FORCED[family], operands.backward, found["backward"])]
    plans.time_in_turns(entries, layer.steps, clock, ROUNDS)
