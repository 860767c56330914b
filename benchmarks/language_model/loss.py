"""The loss: cross-entropy of the next symbol, in nats, over everything that is not padding."""

import math
import sys
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from .alphabet import PAD
from .corpus import Batch
from .distributed import ALONE, World
from .model import LanguageModel

LARGEST = math.log(sys.float_info.max)  # nats, of which a float holds the perplexity


def masked_cross_entropy(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of the losses of all ``targets`` that are not ``PAD``, and their number; both ().

    scores: (T, B, symbols), reduced in float32 or wider. targets: (T, B).
    """
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).flatten(0, 1)
    return cross_entropy(scores, targets.flatten(), ignore_index=PAD, reduction="sum"), (targets != PAD).sum()


class Mean:
    """Mean loss per symbol over many batches; stays on the device, so that no step waits for its result."""

    def __init__(self, device: torch.device, total: float = 0.0, count: int = 0):
        self._total = torch.tensor(total, dtype=torch.float64, device=device)
        self._count = torch.tensor(count, dtype=torch.int64, device=device)

    def add(self, total: Tensor, count: Tensor) -> None:
        self._total += total.detach()
        self._count += count

    def sums(self) -> tuple[float, int]:
        """Return the total loss and the number of symbols, of this process."""
        return self._total.item(), self._count.item()

    def value(self, world: World = ALONE) -> float:
        """Return the mean over the additions of all processes."""
        total, count = world.sum(*self.sums())
        return total / count


@torch.no_grad()
def mean_loss(model: LanguageModel, batches: Iterable[Batch], world: World = ALONE) -> float:
    """Return nats per symbol over all ``batches``, of which every process has its columns, without dropout."""
    model.eval()
    mean, state = Mean(model.device), None
    for batch in batches:
        inputs, targets = batch.to(model.device)
        scores, state = model(inputs, state if batch.continues else None)
        mean.add(*masked_cross_entropy(scores, targets))
    return mean.value(world)


def in_units(nats: float, unit: str) -> dict[str, float]:
    """Convert a loss per symbol, one ``unit`` of text, to the other units in the literature.

    A perplexity is infinite where no float holds it, as of a model on a text unlike all that it has read.
    """
    perplexity = math.inf if nats > LARGEST else math.exp(nats)
    return {f"bits_per_{unit}": nats / math.log(2), "perplexity": perplexity}
