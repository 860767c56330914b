"""Training: one cell after the other on the same text, each epoch ending in a checkpoint.

Everything random comes from the seed: weights and dropout from torch's generators, whose states the checkpoint
keeps, the order of the sentences from the seed and the number of the epoch. So a resumed run on the CPU continues
bit for bit, and each cell's result does not depend on which others are trained beside it.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import nn
from tqdm import tqdm

from benchmarks.common import InputError, check_backend

from .alphabet import Characters
from .checkpoint import Checkpoint
from .corpus import Batch, Data
from .loss import Mean, masked_cross_entropy, mean_loss
from .model import LanguageModel, ModelConfig

OPTIMISERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
DIVERGED = 100.0  # nats per symbol, or not a number; guessing costs no more than the logarithm of the alphabet's size


@dataclass(frozen=True)
class Settings:
    """What, beside the model's configuration, decides the result of a training run. ``__main__`` explains each."""

    text: str
    valid: str | None
    test: str | None
    text_digest: str  # of all that was read from the texts
    limit: int | None
    held_out: float
    alphabet: str
    max_length: int
    batch: int
    epochs: int
    optimiser: str
    lr: float
    decay: float
    decay_after: int
    clip: float
    seed: int
    backend: str
    device: str

    def learning_rate(self, epoch: int) -> float:
        """The learning rate of ``epoch``, counted from 1: constant at first, then smaller by ``decay`` each time."""
        return self.lr * self.decay ** max(epoch - self.decay_after, 0)


def train(
    config: ModelConfig, settings: Settings, alphabet: Characters, data: Data, last: Checkpoint | None
) -> Iterator[Checkpoint]:
    """Train one model from its start, or from ``last``; yields a checkpoint after every epoch."""
    torch.manual_seed(settings.seed)
    if last is None:
        model, epochs = LanguageModel(config, settings.backend).to(settings.device), []
    else:
        model, epochs = last.build_model(settings.device, settings.backend), last.epochs
    optimiser = OPTIMISERS[settings.optimiser](model.parameters(), settings.lr)
    if last is not None:
        optimiser.load_state_dict(last.optimiser)
        _restore_random(last.random, settings.device)

    steps = data.training.batch_count(settings.batch)
    with tqdm(total=settings.epochs * steps, initial=len(epochs) * steps, desc=config.cell, unit="step") as progress:
        for epoch in range(len(epochs) + 1, settings.epochs + 1):
            epochs = [*epochs, _run_epoch(model, optimiser, settings, data, epoch, progress)]
            yield Checkpoint(
                model=asdict(config),
                alphabet={"name": alphabet.name, "symbols": alphabet.symbols},
                training=asdict(settings),
                weights=model.state_dict(),
                optimiser=optimiser.state_dict(),
                random=_random_state(settings.device),
                epochs=epochs,
            )


def _run_epoch(
    model: LanguageModel,
    optimiser: torch.optim.Optimizer,
    settings: Settings,
    data: Data,
    epoch: int,
    progress: tqdm,
) -> dict:
    """Train for one epoch and measure; raises InputError if training diverged."""
    start = time.perf_counter()
    for group in optimiser.param_groups:
        group["lr"] = settings.learning_rate(epoch)
    order = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
    train_loss = _train_epoch(model, optimiser, data.training.batches(settings.batch, order), settings.clip, progress)
    seconds = time.perf_counter() - start
    held_out_loss = mean_loss(model, data.held_out.batches(settings.batch))
    if not (train_loss < DIVERGED and held_out_loss < DIVERGED):
        raise InputError(
            f"training of {model.config.cell} diverged in epoch {epoch} to {train_loss:.3g} nats: "
            f"lower --lr (given: {settings.lr}) or --clip (given: {settings.clip})"
        )
    result = {"epoch": epoch, "train_loss": train_loss, "held_out_loss": held_out_loss}
    if data.test is not None and epoch == settings.epochs:
        result["test_loss"] = mean_loss(model, data.test.batches(settings.batch))
    return {
        **result,
        "learning_rate": settings.learning_rate(epoch),
        "seconds": seconds,
        "symbols_per_second": data.training.count() / seconds,
        "backend": check_backend(settings.device, model.config.dtype, settings.backend).backend,
    }


def _train_epoch(
    model: LanguageModel, optimiser: torch.optim.Optimizer, batches: Iterable[Batch], clip: float, progress: tqdm
) -> float:
    """One step per batch; returns the mean over all symbols of the losses that the steps started from, in nats."""
    model.train()
    mean = Mean(model.device)
    for batch in batches:
        inputs, targets = batch.to(model.device)
        scores, _ = model(inputs)
        loss, predicted = masked_cross_entropy(scores, targets)
        optimiser.zero_grad()
        (loss / predicted).backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimiser.step()
        mean.add(loss, predicted)
        progress.update()
    return mean.value()


def _random_state(device: str) -> dict[str, torch.Tensor]:
    """The states of the generators that dropout draws from, on the CPU and on ``device``."""
    state = {"cpu": torch.get_rng_state()}
    return {**state, "cuda": torch.cuda.get_rng_state(device)} if device != "cpu" else state


def _restore_random(state: dict[str, torch.Tensor], device: str) -> None:
    torch.set_rng_state(state["cpu"])
    if device != "cpu":
        torch.cuda.set_rng_state(state["cuda"], device)
