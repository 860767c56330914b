"""The two protocols of the copy task: inputs, targets, and the scores of answers.

``Recall`` is the task of Henaff, Szlam & LeCun 2016 (§3.1, after Arjovsky, Shah & Bengio 2016): read S symbols, wait,
and repeat them after a delimiter. ``Echo`` asks for every row of a sequence at the step at which it is read. Both
know the scores of guessing, so that results at chance are recognised. ``Data`` draws the sequences of one trial from
the seed alone, so all cells of a trial see the same ones.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Baseline:
    """The scores of a model that learns nothing from its input."""

    accuracy: float  # of guessing
    loss: float


class Task(Protocol):
    """A protocol. Sequences are (T, B, features); targets belong to the last steps of their sequences."""

    input_size: int
    output_size: int
    loss_name: str
    baseline_name: str  # the model whose loss the baseline is
    fresh: bool  # whether every epoch draws new sequences for training

    def draw(self, length: int, count: int, generator: Generator) -> Pair:
        """Draw ``count`` random sequences: (inputs, targets)."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of the outputs at the targets' steps."""

    def accuracy(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the share of correct symbols."""

    def steps(self, length: int) -> int:
        """Return T, the steps of one sequence."""

    def delay(self, length: int) -> int:
        """Return the number of steps from reading a symbol to its target."""

    def answers(self, length: int) -> int:
        """Return how many symbols of one sequence the accuracy counts."""

    def baseline(self, length: int) -> Baseline:
        """Return the scores of guessing and of the best model that ignores its input."""


@dataclass(frozen=True)
class Recall:
    """S symbols, ``length`` blanks, a delimiter, then S blanks, at which the S symbols are the targets.

    Inputs are one-hot vectors of vocabulary + 2 categories, the last two being blank and delimiter. A sequence has
    2 S + length + 1 steps, and the target of a symbol is S + length + 1 steps after it: the T of the publications is
    length + 1. They average the loss over the whole sequence; here it is the mean over the recalled part alone,
    where a model without memory scores ln(vocabulary).
    """

    symbols: int
    vocabulary: int
    loss_name = "cross-entropy"
    baseline_name = "memoryless model"
    fresh = True

    @property
    def input_size(self) -> int:
        return self.vocabulary + 2

    @property
    def output_size(self) -> int:
        return self.vocabulary

    def draw(self, length: int, count: int, generator: Generator) -> Pair:
        """Draw inputs (2 S + length + 1, count, vocabulary + 2), targets (S, count) in 0..vocabulary-1."""
        blank, delimiter = self.vocabulary, self.vocabulary + 1
        targets = torch.randint(self.vocabulary, (self.symbols, count), generator=generator)
        categories = torch.full((self.steps(length), count), blank)
        categories[: self.symbols] = targets
        categories[self.symbols + length] = delimiter
        return F.one_hot(categories, self.input_size), targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(_at_least_float32(outputs).flatten(0, 1), targets.flatten())

    def accuracy(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(-1) == targets).double().mean()

    def steps(self, length: int) -> int:
        return 2 * self.symbols + length + 1

    def delay(self, length: int) -> int:
        return self.symbols + length + 1

    def answers(self, length: int) -> int:
        return self.symbols

    def baseline(self, length: int) -> Baseline:
        return Baseline(accuracy=1 / self.vocabulary, loss=math.log(self.vocabulary))


@dataclass(frozen=True)
class Echo:
    """``length`` rows of vocabulary + 1 random integers below the vocabulary, then a delimiter row; repeat each row.

    Inputs and targets are the integers themselves, and the delimiter row is filled with the vocabulary's size. The best
    constant predictor knows the delimiter row, which never changes, and predicts the mean of the integers before it.
    """

    vocabulary: int
    loss_name = "mean squared error"
    baseline_name = "constant predictor"
    fresh = False

    @property
    def input_size(self) -> int:
        return self.vocabulary + 1

    @property
    def output_size(self) -> int:
        return self.vocabulary + 1

    def draw(self, length: int, count: int, generator: Generator) -> Pair:
        """Draw inputs and targets, the same (length + 1, count, vocabulary + 1) integers."""
        rows = torch.randint(self.vocabulary, (self.steps(length), count, self.input_size), generator=generator)
        rows[-1] = self.vocabulary
        return rows, rows

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        outputs = _at_least_float32(outputs)
        return F.mse_loss(outputs, targets.to(outputs.dtype))

    def accuracy(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the share of the random integers that the rounded outputs equal; the delimiter row does not count."""
        return (outputs[:-1].round() == targets[:-1]).double().mean()

    def steps(self, length: int) -> int:
        return length + 1

    def delay(self, length: int) -> int:
        return 0

    def answers(self, length: int) -> int:
        return length * self.output_size

    def baseline(self, length: int) -> Baseline:
        variance = (self.vocabulary**2 - 1) / 12
        return Baseline(accuracy=1 / self.vocabulary, loss=variance * length / (length + 1))


class Data:
    """The sequences of one trial, drawn on the CPU from ``seed``, so that no device or cell changes them.

    Held-out sequences have ``length``. So have those of the training, unless ``first`` is given: then they start with
    that length, and grow when ``lengthen`` is called.
    """

    def __init__(self, task: Task, length: int, seed: int, first: int | None = None) -> None:
        self.task = task
        self.length = length
        self.seed = seed
        self.training_length = length if first is None else min(first, length)

    def lengthen(self) -> None:
        """Make later training sequences a tenth longer, up to ``length``."""
        self.training_length = min(self.training_length + -(-self.training_length // 10), self.length)

    def training(self, count: int, batch: int) -> Iterator[Iterator[Pair]]:
        """Yield epochs without end, each an iterator over batches of (inputs, targets) of ``count`` sequences.

        A task of fresh sequences draws every batch anew; any other shuffles one training set.
        """
        generator = self._generator("training")
        fixed = None if self.task.fresh else self.task.draw(self.training_length, count, generator)
        while True:
            yield self._epoch(fixed, count, batch, generator)

    def _epoch(self, fixed: Pair | None, count: int, batch: int, generator: Generator) -> Iterator[Pair]:
        if fixed is None:
            for start in range(0, count, batch):
                yield self.task.draw(self.training_length, min(batch, count - start), generator)
        else:
            for rows in torch.randperm(count, generator=generator).split(batch):
                yield tuple(part[:, rows] for part in fixed)

    def held_out(self, split: str, count: int, extra: int = 0) -> Pair:
        """Return a set that training never sees; ``split`` is validation or test, ``extra`` lengthens its sequences."""
        return self.task.draw(self.length + extra, count, self._generator(split))

    def _generator(self, split: str) -> Generator:
        splits = ("training", "validation", "test")
        return Generator().manual_seed(self.seed * len(splits) + splits.index(split))


def _at_least_float32(outputs: Tensor) -> Tensor:
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))
