"""Training: one cell after the other on the same text, each epoch ending in a checkpoint.

Everything random comes from the seed: weights and dropout from torch's generators, whose states the checkpoint
keeps, the order of the sentences from the seed and the number of the epoch. So a resumed run on the CPU continues
bit for bit, and each cell's result does not depend on which others are trained beside it.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import nn
from tqdm import tqdm

from benchmarks.common import InputError, check_backend

from .alphabet import Alphabet
from .checkpoint import Checkpoint
from .corpus import Batch, Data
from .loss import Mean, masked_cross_entropy, mean_loss
from .model import BASELINES, LanguageModel, ModelConfig, State
from .observe import Observe

OPTIMISERS = {
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "rmsprop": partial(torch.optim.RMSprop, alpha=0.95),  # char-rnn's
}
SCHEDULES = ("epochs", "plateau")
CLIPS = {"norm": nn.utils.clip_grad_norm_, "value": nn.utils.clip_grad_value_}
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
    held_out_from: str
    alphabet: str
    max_length: int
    bptt: int
    batch: int
    epochs: int
    init: float | None
    loss_per: str
    optimiser: str
    lr: float
    schedule: str
    decay: float
    decay_after: int
    clip: float
    clip_by: str
    seed: int
    backend: str
    device: str

    def learning_rate(self, held_out: list[float]) -> float:
        """The learning rate of the epoch that follows those with these ``held_out`` losses.

        Smaller by ``decay`` with each epoch after the first ones, or with each that was no better than one before it.
        """
        if self.schedule == "epochs":
            steps = max(len(held_out) + 1 - self.decay_after, 0)
        else:
            steps = sum(held_out[i] >= min(held_out[:i]) for i in range(1, len(held_out)))
        return self.lr * self.decay**steps


def train(
    config: ModelConfig,
    settings: Settings,
    alphabet: Alphabet,
    data: Data,
    last: Checkpoint | None,
    observe: Observe | None = None,
) -> Iterator[Checkpoint]:
    """Train one model from its start, or from ``last``; yields a checkpoint after every epoch.

    ``observe`` is given the model, whose gradients are those of the last step, and the results of the epoch.
    """
    torch.manual_seed(settings.seed)
    if last is None:
        model, epochs = LanguageModel(config, settings.backend), []
        if settings.init is not None:
            for parameter in model.parameters():
                nn.init.uniform_(parameter, -settings.init, settings.init)
        model.to(settings.device)
    else:
        model, epochs = last.build_model(settings.device, settings.backend), last.epochs
    optimiser = OPTIMISERS[settings.optimiser](model.parameters(), lr=settings.lr)
    if last is not None:
        optimiser.load_state_dict(last.optimiser)
        _restore_random(last.random, settings.device)

    steps = data.training.batch_count(settings.batch)
    with tqdm(total=settings.epochs * steps, initial=len(epochs) * steps, desc=config.cell, unit="step") as progress:
        while len(epochs) < settings.epochs:
            epochs = [*epochs, _run_epoch(model, optimiser, settings, data, epochs, progress)]
            if observe is not None:
                observe(model, epochs[-1])
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
    before: list[dict],
    progress: tqdm,
) -> dict:
    """Train for the epoch after those ``before`` and measure; raises InputError if training diverged."""
    start = time.perf_counter()
    epoch = len(before) + 1
    learning_rate = settings.learning_rate([result["held_out_loss"] for result in before])
    for group in optimiser.param_groups:
        group["lr"] = learning_rate
    order = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
    train_loss = _train_epoch(model, optimiser, data.training.batches(settings.batch, order), settings, progress)
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
        "learning_rate": learning_rate,
        "seconds": seconds,
        "symbols_per_second": data.training.count() / seconds,
        "backend": _backend(model.config, settings),
    }


def _train_epoch(
    model: LanguageModel,
    optimiser: torch.optim.Optimizer,
    batches: Iterable[Batch],
    settings: Settings,
    progress: tqdm,
) -> float:
    """One step per batch; returns the mean over all symbols of the losses that the steps started from, in nats.

    Where a batch continues the one before, so does the state; its gradient does not (truncated back-propagation).
    """
    model.train()
    mean, state = Mean(model.device), None
    for batch in batches:
        inputs, targets = batch.to(model.device)
        scores, state = model(inputs, _detach(state) if batch.continues else None)
        loss, predicted = masked_cross_entropy(scores, targets)
        optimiser.zero_grad()
        (loss / (predicted if settings.loss_per == "symbol" else inputs.shape[1])).backward()
        CLIPS[settings.clip_by](model.parameters(), settings.clip)
        optimiser.step()
        mean.add(loss, predicted)
        progress.update()
    return mean.value()


def _backend(config: ModelConfig, settings: Settings) -> str:
    """What ran the cell, as results state it."""
    if config.cell in BASELINES:
        return "torch.nn"
    return check_backend(settings.device, config.computed_in, settings.backend).backend


def _detach(state: State) -> State:
    return tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()


def _random_state(device: str) -> dict[str, torch.Tensor]:
    """The states of the generators that dropout draws from, on the CPU and on ``device``."""
    state = {"cpu": torch.get_rng_state()}
    return {**state, "cuda": torch.cuda.get_rng_state(device)} if device != "cpu" else state


def _restore_random(state: dict[str, torch.Tensor], device: str) -> None:
    torch.set_rng_state(state["cpu"])
    if device != "cpu":
        torch.cuda.set_rng_state(state["cuda"], device)
