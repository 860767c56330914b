"""What is measured: a batch whose lengths fill some part of T·B, and the ways to run it.

The longest sequence has all T steps; the others fall off from there by a power law, the steeper the less is to be
filled. That is what sorted lengths of text or speech look like, and for little fill the hardest: most sequences have a
few steps, and one or two of them run nearly all the time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from benchmarks.speed.candidates import Candidate, Operands, Packed, Ready, fused, torch_nn
from benchmarks.speed.cases import Case, Shape

CELLS = ("lstm", "gru_reset_after")  # those that torch.nn has too, the RNN left out
MODES = ("training", "forward")
OURS = ("packed", "lengths")
THEIRS = "torch"


@dataclass(frozen=True)
class Plan:
    """What one run measures and how; travels to the child processes as JSON."""

    cells: tuple[str, ...] = CELLS
    fills: tuple[int, ...] = (1, 3, 10, 30, 50, 100)  # percent
    memory_fills: tuple[int, ...] = (1, 10, 100)  # of which the memory of the first cell is measured
    backend: str = "cpu"
    steps: int = 400
    batch: int = 200
    size: int = 64  # I and H
    dtype: str = "float32"
    warm_up: int = 1
    rounds: int = 5

    def shape(self, fill: int) -> Shape:
        lengths = lengths_that_fill(fill / 100, self.steps, self.batch)
        return Shape(f"{fill} %", self.batch, self.size, self.size, self.steps, modes=MODES, lengths=lengths)

    def cases(self) -> Iterator[Case]:
        for shape in map(self.shape, self.fills):
            for cell in self.cells:
                for mode in shape.modes:
                    yield Case(cell, shape, mode)


class Padded(Ready):
    """Padded sequences and their lengths; results are padded too."""

    def __init__(self, module: nn.Module, case: Case, sets: Sequence[Operands]) -> None:
        lengths = torch.tensor(case.shape.lengths)
        super().__init__(module, case, sets, lambda input: module(input, lengths=lengths))


def ways(case: Case, backend: str) -> list[Candidate]:
    """Ours, packed and with ``lengths``, and torch.nn's, packed."""
    ours, theirs = fused(case.cell, backend), torch_nn(case.cell)
    packed = {"ready": Packed, "translate": partial(Packed.translate, case.shape)}
    return [
        replace(ours, name="packed", title=f"{ours.title}, packed", **packed),
        replace(ours, name="lengths", title=f"{ours.title}, padded with lengths", ready=Padded),
        replace(theirs, name=THEIRS, title=f"{theirs.title}, packed", **packed),
    ]


def lengths_that_fill(part: float, steps: int, batch: int) -> tuple[int, ...]:
    """The lengths of ``batch`` sequences, falling from ``steps``, that fill this part of steps · batch, or nearly."""

    def lengths(power: float) -> tuple[int, ...]:
        return tuple(max(1, round(steps * (1 - number / batch) ** power)) for number in range(batch))

    low, high = 0.0, 1000.0  # powers of which the one fills all, and the other no more than it must
    for _ in range(50):
        power = (low + high) / 2
        low, high = (power, high) if sum(lengths(power)) > part * steps * batch else (low, power)
    return lengths(low)
