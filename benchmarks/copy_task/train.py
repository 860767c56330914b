"""One trial: a fresh model of one cell trains at one length with one seed, and is then measured.

A run resumes at trials: each depends on its seed alone and returns a record ready for JSON, so an interrupted run that
repeats it gets the same record, except for times, unless ``--minutes`` lets the clock decide.
"""

import math
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.common import DTYPES
from benchmarks.cuda_graph import GraphedStep, Recorder
from benchmarks.optimisers import make_optimiser, set_learning_rate

from .data import Data, Pair, Task
from .model import CopyModel, gradient_norms


def run_trial(
    options: Namespace,
    task: Task,
    cell: str,
    length: int,
    trial: int,
    advance: Callable[[float], None] = lambda _: None,
) -> dict:
    """Train and measure one model; after every step ``advance`` receives the completed fraction of the training."""
    started = time.perf_counter()
    seed = options.seed + trial
    torch.manual_seed(seed)
    model = _new_model(options, task, cell, length)
    data = Data(task, length, seed, options.grow_from)
    test = data.held_out("test", options.held_out)
    sample = _to_model(model, tuple(part[:, : options.batch] for part in test))
    norms_before = gradient_norms(model, task, *sample)
    epochs = _train(options, task, model, data, advance)
    loss, accuracy = evaluate(model, task, test, options.batch)
    return {
        "cell": cell,
        "length": length,
        "trial": trial,
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "accuracy": accuracy,
        "loss": loss,
        "answers": options.held_out * task.answers(length),
        "baseline": vars(task.baseline(length)),
        "extra": [_at_extra_length(options, task, model, data, extra) for extra in options.extra],
        "epochs": epochs,
        "gradient_norms": {"before": norms_before, "after": gradient_norms(model, task, *sample)},
        "seconds": time.perf_counter() - started,
    }


def trial_step(options: Namespace, task: Task) -> Callable[[], object]:
    """Return a training step of the first cell at the shortest length, with a model of its own, to be timed."""
    length = min(options.length)
    model = _new_model(options, task, options.cell[0], length)
    (batch,) = next(Data(task, length, options.seed).training(options.batch, options.batch))
    optimiser = make_optimiser("adam", model.parameters(), options.lr)
    return partial(_step, model, task, optimiser, options.clip, *_to_model(model, batch))


def _new_model(options: Namespace, task: Task, cell: str, length: int) -> CopyModel:
    return CopyModel(
        cell,
        task,
        options.hidden,
        options.layers,
        options.keep_bias,
        task.delay(length),
        backend=options.backend,
        device=options.device,
        dtype=DTYPES[options.dtype],
    )


def _train(
    options: Namespace, task: Task, model: CopyModel, data: Data, advance: Callable[[float], None]
) -> list[dict]:
    """Train until ``options`` say that it is enough; return losses, accuracies and times of each epoch."""
    began = time.perf_counter()
    optimiser = make_optimiser("adam", model.parameters(), options.lr)
    step = partial(_step, model, task, optimiser, options.clip)
    if options.cuda_graph:
        step = GraphedStep(step, model.parameters(), Recorder(model.decoder.weight.device))
    validation = data.held_out("validation", options.held_out)
    epochs, steps, done = [], 0, 0.0
    for batches in data.training(options.sequences, options.batch):
        times, train = [], Mean()
        for batch in batches:
            started = time.perf_counter()
            set_learning_rate(optimiser, learning_rate(options, done))
            loss, accuracy = step(*_to_model(model, batch))
            _wait(model)
            times.append(time.perf_counter() - started)
            train.add(loss, accuracy, count=batch[0].shape[1])
            if accuracy > options.grow_at:
                data.lengthen()
            steps += 1
            done = progress(options, steps, time.perf_counter() - began)
            advance(done)
            if done == 1:
                break
        train_loss, train_accuracy = train.value()
        held_out_loss, held_out_accuracy = evaluate(model, task, validation, options.batch)
        epochs.append(
            {
                "train_length": data.training_length,
                "train_loss": train_loss,
                "train_accuracy": train_accuracy,
                "held_out_loss": held_out_loss,
                "held_out_accuracy": held_out_accuracy,
                "seconds": sum(times),
                "seconds_per_step": sum(times) / len(times),
            }
        )
        if done == 1 or (options.until is not None and held_out_accuracy > options.until):
            break
    return epochs


def progress(options: Namespace, steps: int, seconds: float) -> float:
    """Return the completed fraction of a training: of its steps or of its time, whichever is larger."""
    by_steps = steps / (options.epochs * -(-options.sequences // options.batch))
    by_time = 0.0 if options.minutes is None else seconds / (60 * options.minutes)
    return min(max(by_steps, by_time), 1.0)


def learning_rate(options: Namespace, done: float) -> float:
    """Return the rate at this progress: ``--schedule cosine`` lets it fall from ``--lr`` to 0 along half a cosine."""
    return options.lr * (1 + math.cos(math.pi * done)) / 2 if options.schedule == "cosine" else options.lr


def _step(model: CopyModel, task: Task, optimiser, clip: float | None, inputs: Tensor, targets: Tensor) -> Pair:
    """Take one optimisation step; return the loss and the accuracy before it, on the device."""
    optimiser.zero_grad(set_to_none=True)
    outputs = model(inputs, len(targets))
    loss = task.loss(outputs, targets)
    loss.backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimiser.step()
    return loss.detach(), task.accuracy(outputs.detach(), targets)


@torch.no_grad()
def evaluate(model: CopyModel, task: Task, sequences: Pair, batch: int) -> tuple[float, float]:
    """Return mean loss and accuracy over held-out sequences, ``batch`` at a time."""
    mean = Mean()
    for part in zip(*(tensor.split(batch, dim=1) for tensor in sequences)):
        inputs, targets = _to_model(model, part)
        outputs = model(inputs, len(targets))
        mean.add(task.loss(outputs, targets), task.accuracy(outputs, targets), count=inputs.shape[1])
    return mean.value()


def _at_extra_length(options: Namespace, task: Task, model: CopyModel, data: Data, extra: int) -> dict[str, float]:
    """Measure the model on sequences ``extra`` longer than those it trained on."""
    loss, accuracy = evaluate(model, task, data.held_out("test", options.held_out, extra), options.batch)
    return {"extra": extra, "accuracy": accuracy, "loss": loss}


class Mean:
    """The mean of (loss, accuracy) over batches of unequal size, summed where the batches are computed."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, loss: Tensor, accuracy: Tensor, count: int) -> None:
        self.total = self.total + count * torch.stack([loss.double(), accuracy])
        self.count += count

    def value(self) -> tuple[float, float]:
        loss, accuracy = (self.total / self.count).tolist()
        return loss, accuracy


def _to_model(model: CopyModel, batch: Pair) -> Pair:
    """Move the batch to the model's device, the inputs also to its dtype."""
    inputs, targets = batch
    return inputs.to(model.decoder.weight), targets.to(model.decoder.weight.device)


def _wait(model: CopyModel) -> None:
    """Wait for queued GPU work, so that the clock measures it."""
    if model.decoder.weight.is_cuda:
        torch.cuda.synchronize(model.decoder.weight.device)
