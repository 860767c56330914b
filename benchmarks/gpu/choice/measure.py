"""Kernels of clusters and of blocks side by side: which sizes are tried, and what is measured at each."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import torch

from benchmarks.gpu import plans
from benchmarks.gpu.kernel.check import Judge, both
from benchmarks.gpu.plans import DIRECTIONS, Layer
from benchmarks.speed.clock import HostClock
from fused_rnn import cuda

from .results import CELLS, DTYPES, FAMILIES

FORCED = {family: f"exchange={family}" for family in FAMILIES}
# H x B, the most telling sizes first; those that are no multiples of 8, which travel value by value, have fewer.
HIDDEN, BATCHES = (512, 128, 256, 768, 64, 384, 640, 192), (64, 16, 32, 128, 256, 1, 512)
GRIDS = ((HIDDEN, BATCHES), ((500, 250, 650, 100), (64, 16)))
STEPS, ROUNDS = 256, 4
JUDGED_STEPS, FEATURES = 32, 16  # errors add up along a sequence; features are not the kernels' business


def points(
    cells: Sequence[str] = CELLS,
    dtypes: Sequence[str] = DTYPES,
    hidden: Sequence[int] | None = None,
    batches: Sequence[int] | None = None,
    steps: int = STEPS,
) -> list[Layer]:
    """The most telling sizes of all cells and dtypes first, so that every one has some when the time is over."""
    given = hidden or batches
    grids = ((hidden or HIDDEN, batches or BATCHES),) if given else GRIDS
    ranked = [pair for grid in grids for pair in product(*(enumerate(sizes) for sizes in grid))]
    ranked.sort(key=lambda pair: pair[0][0] + pair[1][0])  # how far down both sizes stand
    return [Layer(cell, dtype, h, b, steps) for (_, h), (_, b) in ranked for dtype, cell in product(dtypes, cells)]


def measure(layer: Layer, clock: HostClock, chip: cuda.Chip, kernels: cuda.Kernels = cuda.ON_GPU) -> dict:
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
        with plans.failure_recorded(record["cluster"]):  # what is not the fault of one of them, as too little memory
            _time(layer, {name: found for name, found in record.items() if "refused" not in found}, clock, kernels)
    return record


def _time(layer: Layer, record: dict[str, dict], clock: HostClock, kernels: cuda.Kernels) -> None:
    sizes = {"T": JUDGED_STEPS, "B": layer.batch, "I": FEATURES, "H": layer.hidden}
    judge = Judge(layer.cell, getattr(torch, layer.dtype), clock.device, **sizes)
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
