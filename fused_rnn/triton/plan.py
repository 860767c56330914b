"""The choice of a kernel and its block sizes, by a small table keyed on the cell, the dtype, I and H.

T and B play no part, so another length or a ragged last batch compiles nothing. Every plan knows an upper bound of the
shared memory that it takes, and is chosen only where that fits the device, so that no launch can fail for want of it.

Weights stay on the chip in 16-bit types, as far as they fit. float32 without TF32 has no tensor cores: there the
multiply-adds and not the fetching of weights take the time, and unrolled over whole matrices they are more than
compilers digest, so float32 always streams.
"""

import functools
from dataclasses import dataclass

import torch

from .cells import CELLS

BLOCK_B = 16  # rows of a tile of matrix instructions; smaller batches are masked
WIDEST = {False: 256, True: 128}  # units or features of a tile that stays on the chip; without the modifier and with it
NARROWER = 64  # units beside resets: the backward kernels of multiplicative cells have no registers for more
MOST_BYTES = 160 << 10  # of weights on the chip; beside more, eight warps spill registers
EXCHANGED = 4  # float32 tiles that a compiler may keep in shared memory at a time, on their way between layouts
# the streaming kernel by bytes per value: columns and K of a block of weights, and warps
BLOCKS = {2: (64, 64, 8), 4: (32, 16, 8)}
STAGES = (3, 2)  # blocks in flight, and one more


@dataclass(frozen=True)
class Plan:
    """How to launch a kernel; sizes are in values."""

    resident: bool
    shared_bytes: int  # at most
    warps: int
    stages: int
    blocks: tuple[tuple[str, int], ...]  # constants of the kernel, by name
    padded: int = 1  # the streaming kernel's sizes are multiples of it

    def round_up(self, size: int) -> int:
        return -(-size // self.padded) * self.padded


def split_name(name: str) -> tuple[str, str | None]:
    """A cell's name as that of its base cell, and what the multiplicative modifier acts on, if anything."""
    base = name.removeprefix("multiplicative_")
    if base == name:
        return name, None
    return base.removesuffix("_hidden"), "hidden" if base.endswith("_hidden") else "input"


def power_of_two(size: int) -> int:
    """The smallest one that holds ``size`` and that matrix instructions take."""
    return max(16, 1 << (size - 1).bit_length())


@functools.cache
def choose_plan(
    name: str, dtype: torch.dtype, backward: bool, I: int, H: int, shared_bytes: int, resets: bool = False
) -> Plan:
    """The first plan that fits ``shared_bytes`` of shared memory.

    Raises:
        RuntimeError: none does.
    """
    base, modulates = split_name(name)
    gates, size = CELLS[base].gates, dtype.itemsize
    crowded = resets and backward and modulates is not None and H > NARROWER
    plans = []
    if size < 4 and not crowded:
        plans += resident_plans(gates, size, I if modulates == "input" else 0, H, modulates == "hidden")
    plans += [streamed_plan(1 if backward else gates, size, stages) for stages in STAGES]
    for plan in plans:
        if plan.shared_bytes <= shared_bytes:
            return plan
    raise RuntimeError(
        f"the Triton kernels need {plans[-1].shared_bytes} bytes of shared memory for cell {name!r} in {dtype}, and "
        f"this device has {shared_bytes}"
    )


def resident_plans(gates: int, size: int, I: int, H: int, modulates_hidden: bool) -> list[Plan]:
    """The plan with all weights on the chip, or none if they are too many. I is 0 if no input is modulated."""
    h = power_of_two(H)
    i = power_of_two(I) if I else h if modulates_hidden else 16
    warps = 4 if max(h, i) <= 32 else 8  # eight hide each other's waits where there are columns for all of them
    if I and warps == 8:
        h, i = max(h, 32), max(i, 32)
    weights = size * (gates * h * h + (gates * h * i + i * h if I else h * h if modulates_hidden else 0))
    exchanged = EXCHANGED * 4 * BLOCK_B * max(h, i)
    if max(h, i) > WIDEST[I > 0 or modulates_hidden] or weights > MOST_BYTES:
        return []
    return [Plan(True, weights + exchanged, warps, 1, (("BLOCK_B", BLOCK_B), ("BLOCK_H", h), ("BLOCK_I", i)))]


def streamed_plan(sums: int, size: int, stages: int) -> Plan:
    """The plan with weights read in blocks, for one or several at a time."""
    columns, depth, warps = BLOCKS[size]
    in_flight = (stages - 1) * size * depth * (sums * columns + BLOCK_B)
    exchanged = EXCHANGED * 4 * BLOCK_B * columns
    blocks = (("BLOCK_B", BLOCK_B), ("BLOCK_N", columns), ("BLOCK_K", depth))
    return Plan(False, in_flight + exchanged, warps, stages, blocks, max(columns, depth))
