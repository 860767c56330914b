"""Training: one model on one text, by one process or by several, each epoch ending in a checkpoint.

All randomness comes from the seed: weights and dropout from torch's generators, whose states the checkpoint keeps, the
order of the sentences from the seed and the number of the epoch. So a run that continues from a checkpoint, of the end
of an epoch or of any step, continues bit for bit on the CPU, and each cell's result does not depend on the others that
are trained beside it. Several processes share each batch, and agree with one process up to rounding except for dropout,
which each draws itself.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.common import DTYPES, InputError, check_backend
from benchmarks.cuda_graph import GraphedStep, Recorder
from benchmarks.optimisers import make_optimiser, restore, set_learning_rate

from .alphabet import PAD, Alphabet
from .checkpoint import Checkpoint, Position
from .corpus import Batch, Data, Stream, Text
from .distributed import ALONE, World
from .loss import Mean, masked_cross_entropy, mean_loss
from .model import BASELINES, LanguageModel, ModelConfig, State
from .observe import Observe
from .signals import Signals, Stopped

SCHEDULES = ("epochs", "plateau")
CLIPS = {"norm": nn.utils.clip_grad_norm_, "value": nn.utils.clip_grad_value_}
DIVERGED = 100.0  # nats per symbol; guessing costs no more than the logarithm of the alphabet's size


@dataclass(frozen=True)
class Settings:
    """The settings that, with the model's configuration, decide the result of a run. ``__main__`` explains each."""

    text: str
    valid: str | None
    test: str | None
    text_digest: str  # of everything that was read from the texts
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
        """Return the learning rate of the epoch that follows those with these ``held_out`` losses.

        It shrinks by ``decay`` with each epoch after the first ones, or with each that was no better than an earlier
        one.
        """
        if self.schedule == "epochs":
            steps = max(len(held_out) + 1 - self.decay_after, 0)
        else:
            steps = sum(held_out[i] >= min(held_out[:i]) for i in range(1, len(held_out)))
        return self.lr * self.decay**steps


class Trainer:
    """A model in training, from its start or from ``last``; it keeps its position in the epoch from step to step.

    All processes of ``world`` make the same calls. Each draws its own dropout, from the seed and its rank.
    """

    def __init__(
        self,
        config: ModelConfig,
        settings: Settings,
        alphabet: Alphabet,
        data: Data,
        last: Checkpoint | None = None,
        world: World = ALONE,
        signals: Signals | None = None,
        cuda_graph: bool = False,
    ):
        self.config, self.settings, self.alphabet, self.data = config, settings, alphabet, data
        self.world, self.signals = world, signals or Signals()
        self.device = world.device(settings.device)
        self.loss_dtype = torch.promote_types(DTYPES[config.dtype], torch.float32)
        torch.manual_seed(settings.seed)
        if last is None:
            self.model = _new_model(config, settings).to(self.device)
        else:
            self.model = last.build_model(self.device, settings.backend)
        self.parallel = _settled(world, self.model)
        self.optimiser = make_optimiser(settings.optimiser, self.model.parameters(), settings.lr)
        self.update = partial(update, self.parallel, self.optimiser, settings)
        if cuda_graph:
            self.update = GraphedStep(self.update, self.model.parameters(), Recorder(self.model.device))
        self.epochs: list[dict] = []
        self._set_position(Position())
        if world.rank > 0:
            torch.manual_seed(settings.seed + (world.rank << 32))
        if last is not None:
            self._go_on_from(last)

    def _go_on_from(self, last: Checkpoint) -> None:
        restore(self.optimiser, last.optimiser)
        self.epochs = last.epochs
        self._set_position(Position(**last.position))
        if len(last.random) == self.world.size:  # run.py rejects other numbers if anything is drawn
            _restore_random(last.random[self.world.rank], self.device)

    def _set_position(self, position: Position) -> None:
        self.steps, self.seconds = position.steps, position.seconds
        own = position.sums[self.world.columns]  # a single one if the number of processes is unchanged
        self.mean = Mean(self.model.device, *map(sum, zip(*own)))
        self.state = position.state
        if self.state is not None:
            self.state = _each(lambda part: part[:, self.world.columns].contiguous().to(self.device), self.state)

    def run(self, save_every: float = math.inf, observe: Observe | None = None) -> Iterator[Checkpoint]:
        """Train to the last epoch; yield a checkpoint after every epoch, and within one every ``save_every`` minutes.

        Several processes yield one before the first step, too, so that there is always one to continue from. A last
        epoch that was trained as one of more is tested belatedly. Raises Stopped, after yielding a checkpoint, when any
        process has received a signal. ``observe`` receives the model, whose gradients are those of the last step, and
        the results of the epoch.
        """
        total, steps = self.settings.epochs, self.data.training.batch_count(self.settings.batch)
        done = len(self.epochs) * steps + self.steps
        self.save_every = save_every * 60
        self.saved_at = -math.inf if self.world.size > 1 and done == 0 else time.monotonic()
        show = {"desc": self.config.cell, "unit": "step", "disable": not self.world.is_first}
        with tqdm(total=total * steps, initial=done, **show) as self.progress:
            while len(self.epochs) < total:
                try:
                    for _ in self._train_epoch():
                        yield self._checkpoint()
                    self.epochs = [*self.epochs, self._measure_epoch()]
                except Stopped:
                    yield self._checkpoint()
                    raise
                self._set_position(Position())
                if observe is not None:
                    observe(self.model, self.epochs[-1])
                yield self._checkpoint()
        if "test_loss" not in self.epochs[-1] and (test_loss := self._test_loss(last=True)):
            self.epochs = [*self.epochs[:-1], {**self.epochs[-1], **test_loss}]
            yield self._checkpoint()

    def _train_epoch(self) -> Iterator[None]:
        """Run one step per remaining batch of the epoch; yield between two steps when it is time to save.

        If a batch continues the one before, so does the state; its gradient does not (truncated back-propagation).
        """
        self.model.train()
        set_learning_rate(self.optimiser, self._learning_rate())
        started = time.perf_counter() - self.seconds
        order = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + len(self.epochs) + 1)
        batches = self.data.training.batches(self.settings.batch, order, self.world.columns, self.steps)
        for batch in batches:
            symbols, sequences, due = self._confer(*batch.counts(), time.monotonic() - self.saved_at > self.save_every)
            if due:
                yield
            self._step(batch, symbols if self.settings.loss_per == "symbol" else sequences)
            self.progress.update()
            self.seconds = time.perf_counter() - started

    def _confer(self, *values: float) -> list[float]:
        """Return the sums of ``values`` over all processes; raise Stopped in all of them if any received a signal."""
        received = [self.signals.received == number for number in Signals.HEEDED]
        *sums, interrupted, terminated = self.world.sum(*values, *received)
        if interrupted or terminated:
            raise Stopped(Signals.HEEDED[0 if interrupted else 1])
        return sums

    def _step(self, batch: Batch, divisor: float) -> None:
        """Follow the gradient of the loss of the whole batch, divided by ``divisor``."""
        inputs, targets = batch.to(self.model.device)
        # the mean of the gradient over the processes is then the sum over the batch, divided by ``divisor``
        divided_by = torch.full((), divisor / self.world.size, dtype=self.loss_dtype, device=self.model.device)
        state = _parts(self.state) if batch.continues else ()
        loss, predicted, *state = self.update(inputs, targets, divided_by, *state)
        self.mean.add(loss, predicted)
        self.state = _whole(state)
        self.steps += 1

    def _measure_epoch(self) -> dict:
        """Return the results of the epoch whose steps are done; raise InputError if training diverged."""
        settings, epoch, start = self.settings, len(self.epochs) + 1, time.perf_counter()
        train_loss = self.mean.value(self.world)  # before each step's update; waits for the last of them
        self.seconds += time.perf_counter() - start
        held_out_loss = self._measure(self.data.held_out)
        if not (train_loss < DIVERGED and held_out_loss < DIVERGED):
            raise InputError(
                f"training of {self.config.cell} diverged in epoch {epoch} to {train_loss:.3g} nats: "
                f"lower --lr (given: {settings.lr}) or --clip (given: {settings.clip})"
            )
        return {
            **{"epoch": epoch, "train_loss": train_loss, "held_out_loss": held_out_loss},
            **self._test_loss(last=epoch == settings.epochs),
            "learning_rate": self._learning_rate(),
            "seconds": self.seconds,
            "symbols_per_second": self.data.training.count() / self.seconds,
            "backend": self._backend(),
        }

    def _test_loss(self, last: bool) -> dict[str, float]:
        """Return what the results of an epoch hold of the text to test on, if there is one: its loss, of the last."""
        return {"test_loss": self._measure(self.data.test)} if last and self.data.test is not None else {}

    def _learning_rate(self) -> float:
        return self.settings.learning_rate([result["held_out_loss"] for result in self.epochs])

    def _measure(self, text: Text) -> float:
        """Return nats per symbol of ``text``; raise Stopped as ``_confer`` does."""

        def watched() -> Iterator[Batch]:
            for batch in text.batches(self.settings.batch, columns=self.world.columns):
                self._confer()
                yield batch

        return mean_loss(self.model, watched(), self.world)

    def _backend(self) -> str:
        """Return the backend of the cell, as results state it."""
        if self.config.cell in BASELINES:
            return "torch.nn"
        return check_backend(self.device, self.config.computed_in, self.settings.backend).backend

    def _checkpoint(self) -> Checkpoint:
        self.saved_at = time.monotonic()
        state = None
        if self.state is not None and isinstance(self.data.training, Stream):  # sentences do not carry a state over
            state = _each(Tensor.cpu, self.state)
        random, sums, states = zip(*self.world.gather((_random_state(self.device), self.mean.sums(), state)))
        if state is not None:
            state = _each(lambda *parts: torch.stack(parts, 2).flatten(1, 2), *states)  # processes own columns in turn
        return Checkpoint(
            model=asdict(self.config),
            alphabet={"name": self.alphabet.name, "symbols": self.alphabet.symbols},
            training={**asdict(self.settings), "threads": torch.get_num_threads(), "digests": self.data.digests},
            weights=self.model.state_dict(),
            optimiser=self.optimiser.state_dict(),
            random=list(random),
            epochs=self.epochs,
            position=vars(Position(self.steps, self.seconds, list(sums), state)),
        )


def trial_step(config: ModelConfig, settings: Settings, alphabet: Alphabet, data: Data) -> Callable[[], None]:
    """Return a training step, of a model of its own and always of the same batch, to be timed."""
    trainer = Trainer(config, settings, alphabet, data)
    batch = next(data.training.batches(settings.batch, torch.Generator().manual_seed(settings.seed)))
    return partial(trainer._step, batch, batch.counts()[0])


def update(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    settings: Settings,
    inputs: Tensor,
    targets: Tensor,
    divided_by: Tensor,
    *state: Tensor,
) -> tuple[Tensor, ...]:
    """Take one step along the gradient of the loss ``divided_by`` something; all values are tensors, for CUDA graphs.

    Returns the loss and the number of symbols predicted, as ``masked_cross_entropy``, and the parts of the state.
    """
    scores, last = model(inputs, _whole(state))
    loss, predicted = masked_cross_entropy(scores, targets)
    optimiser.zero_grad()
    (loss / divided_by).backward()
    CLIPS[settings.clip_by](model.parameters(), settings.clip)
    optimiser.step()
    return loss.detach(), predicted, *(part.detach() for part in _parts(last))


def _new_model(config: ModelConfig, settings: Settings) -> LanguageModel:
    model = LanguageModel(config, settings.backend)
    if settings.init is not None:
        for parameter in model.parameters():
            nn.init.uniform_(parameter, -settings.init, settings.init)
    return model


def _settled(world: World, model: LanguageModel) -> nn.Module:
    """Return ``world.parallel(model)`` with the layout that it will keep.

    DistributedDataParallel changes the layout of its messages after its first backward pass. With three processes or
    more the order of their sums, and so the last bit, depends on the layout. So that pass is not a step.
    """
    parallel = world.parallel(model)
    if world.size > 1:
        scores, _ = parallel(torch.full((1, 1), PAD, device=model.device))
        scores.sum().backward()
        model.zero_grad()
    return parallel


def _parts(state: State) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


def _whole(parts: Sequence[Tensor]) -> State | None:
    """Return the state of these parts, or None of none."""
    return tuple(parts) if len(parts) > 1 else parts[0] if parts else None


def _each(function: Callable[..., Tensor], *states: State) -> State:
    """Apply ``function`` to the states, or to the parts of each if they are pairs."""
    return _whole(tuple(map(function, *map(_parts, states))))


def _random_state(device: str) -> dict[str, Tensor]:
    """Return the states of the generators that dropout draws from, on the CPU and on ``device``."""
    state = {"cpu": torch.get_rng_state()}
    return {**state, "cuda": torch.cuda.get_rng_state(device)} if device != "cpu" else state


def _restore_random(state: dict[str, Tensor], device: str) -> None:
    torch.set_rng_state(state["cpu"])
    if device != "cpu":
        torch.cuda.set_rng_state(state["cuda"], device)
