"""Warp kernels and block kernels side by side: the sizes, and the measurements at each."""

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

# exchange=warps lets the warp kernels use messages for sizes without a cluster.
FORCED = {"cluster": "exchange=warps", "blocks": "exchange=blocks"}
# H x B, the most informative sizes first. H that are not multiples of 8, whose values travel one by one, are fewer.
# Large batches come with the sizes that people use them with.
HIDDEN, BATCHES = (512, 128, 256, 768, 1024, 64, 384, 640, 192, 2048), (64, 16, 32, 128, 256, 1, 512)
MANY = ((256, 128, 192), (4096, 1024))
GRIDS = ((HIDDEN, BATCHES), ((500, 250, 650, 100), (64, 16)), MANY)
# H x B x I for modulated inputs, up to the sizes that clusters are compiled for; large H have fewer features.
INPUTS = (128, 8, 256)  # the most of either, and a small number, for which blocks are fastest
MODULATED_GRIDS = (((512, 128, 256, 64, 384, 192), (64, 16, 32, 128, 256, 1, 512)), ((500, 250, 100), (64, 16)))
# The largest sizes of warp kernels: units if blocks exchange once a step, units otherwise, and features.
MOST = {"bfloat16": (2048, 768, 256), "float16": (2048, 768, 256), "float32": (512, 256, 128)}
STEPS, ROUNDS = 256, 3
# Larger batches have fewer steps, because their steps are long enough to time, and sequences are as good for judging.
MOST_ROWS, MOST_JUDGED_ROWS = 256 * 1024, 64 * 1024
# Errors accumulate along a sequence. In float32 they are known for a longer one, because roundings of tensor cores may
# all have the same sign; but for a short one with a ReLU, where one unit within rounding of zero outweighs all
# rounding.
JUDGED_STEPS, JUDGED_STEPS_IN_FLOAT32, JUDGED_STEPS_OF_RELU_IN_FLOAT32 = 16, 32, 4
JUDGED_INPUT = 16  # for cells whose kernels do not depend on features


def points(
    cells: Sequence[str] = CELLS,
    dtypes: Sequence[str] = DTYPES,
    hidden: Sequence[int] | None = None,
    batches: Sequence[int] | None = None,
    inputs: Sequence[int] | None = None,
    steps: int = STEPS,
) -> list[Layer]:
    """List the most informative sizes of all cells and dtypes first, so that each has some when the time is over."""
    ranked = [
        (rank, place, Layer(cell, dtype, h, b, min(steps, MOST_ROWS // b), input=i))
        for dtype, cell in product(dtypes, cells)
        for place, (rank, h, b, i) in enumerate(_sizes(cell, dtype, hidden, batches, inputs))
    ]
    return [layer for *_, layer in sorted(ranked, key=lambda found: found[:2])]


def _sizes(cell: str, dtype: str, *given: Sequence[int] | None) -> list[tuple[int, ...]]:
    """Return positions of sizes in their lists, then the sizes: H, B, and I if the input is modulated, else None.

    Lists that are not given contain sizes up to the largest that warp kernels support.
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
    """Measure both families at a point: their plans, error and times, or why they have none.

    A family that refuses the point, fails or is wrong is not timed, and neither is timed without a warp kernel.
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
        failure: dict = {}  # a failure of neither family, such as too little memory
        with plans.failure_recorded(failure):
            _time(layer, {name: found for name, found in record.items() if "refused" not in found}, clock, kernels)
        for family in FAMILIES:
            record[family] |= failure
    return record


def judge_of(layer: Layer, device: torch.device) -> Judge:
    """Return the judge of a point; it is strict in float32, where no rounding of results hides the kernels' errors."""
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
