"""The one table of what is measured: shapes, cells, and for each cell the ways to run it.

A *case* is a cell at a shape in one mode (training: forward and backward; forward: no gradients). A *candidate*
is one way to run a case: the fused cell, or a rival that a user would otherwise take. The command line, the
pytest-benchmark suite and the report all read this file.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

import fused_rnn
from benchmarks import common

from .eager import EagerLoop


@dataclass(frozen=True)
class Shape:
    name: str
    batch: int
    input_size: int
    hidden_size: int
    steps: int
    modes: tuple[str, ...] = ("training", "forward")
    memory: bool = False  # whether the peak memory of a training step is measured too

    def __str__(self) -> str:
        return f"B={self.batch}, I={self.input_size}, H={self.hidden_size}, T={self.steps}"


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("a", batch=32, input_size=11, hidden_size=128, steps=200, memory=True),
        Shape("b", batch=64, input_size=128, hidden_size=256, steps=128, memory=True),
        Shape("c", batch=20, input_size=650, hidden_size=650, steps=35),
        Shape("d", batch=1, input_size=128, hidden_size=256, steps=100, modes=("forward",)),
    )
}

CELLS = {
    "rnn": "RNN",
    "lstm": "LSTM",
    "gru_reset_after": "GRU, reset after",
    "gru": "GRU, reset before",
    "multiplicative_lstm": "MultiplicativeLSTM",
    "multiplicative_gru": "MultiplicativeGRU",
}
MODULES = {**common.CELLS, "gru_reset_after": fused_rnn.GRU}


@dataclass(frozen=True)
class Candidate:
    name: str
    title: str
    equations: str  # the cell whose reference it must agree with
    build: Callable[[int, int], nn.Module]  # from I and H


def fused(cell: str, backend: str) -> Candidate:
    return Candidate("fused", "fused_rnn", cell, partial(MODULES[cell], backend=backend))


def eager(cell: str) -> Candidate:
    return Candidate("eager", "eager loop", cell, partial(EagerLoop, "rnn_tanh" if cell == "rnn" else cell))


TORCH_RNN = Candidate("torch", "torch.nn.RNN", "rnn", nn.RNN)
TORCH_LSTM = Candidate("torch", "torch.nn.LSTM", "lstm", nn.LSTM)
TORCH_GRU = Candidate("torch", "torch.nn.GRU", "gru_reset_after", nn.GRU)
RIVALS = {
    "rnn": (TORCH_RNN,),
    "lstm": (TORCH_LSTM,),
    "gru_reset_after": (TORCH_GRU,),
    "gru": (TORCH_GRU, eager("gru")),  # another equation, but what a user would otherwise take
    "multiplicative_lstm": (eager("multiplicative_lstm"),),
    "multiplicative_gru": (eager("multiplicative_gru"),),
}


def candidates(cell: str, backend: str) -> tuple[Candidate, ...]:
    """The fused cell on ``backend``, then its rivals."""
    return fused(cell, backend), *RIVALS[cell]


@dataclass(frozen=True)
class Case:
    cell: str
    shape: Shape
    mode: str

    @property
    def cost(self) -> int:
        """About how long a step takes, in arbitrary units, for the time left of a progress bar."""
        shape = self.shape
        products = shape.batch * shape.hidden_size * (shape.input_size + shape.hidden_size)
        overhead = 500_000  # of launching the operations of one time step
        return shape.steps * (products + overhead) * (3 if self.mode == "training" else 1)


@dataclass(frozen=True)
class Plan:
    """What one run measures and how; travels to the child processes as JSON."""

    cells: tuple[str, ...] = tuple(CELLS)
    shapes: tuple[str, ...] = tuple(SHAPES)
    backend: str = "cpu"
    warm_up: int = 5
    rounds: int = 15
    most_steps: int | None = None  # cuts every shape's T, for a smoke run

    def shape(self, name: str) -> Shape:
        shape = SHAPES[name]
        return replace(shape, steps=min(shape.steps, self.most_steps or shape.steps))

    def cases(self) -> Iterator[Case]:
        for shape in map(self.shape, self.shapes):
            for cell in self.cells:
                for mode in shape.modes:
                    yield Case(cell, shape, mode)


def random_operands(
    shape: Shape, dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 0
) -> tuple[Tensor, Tensor]:
    """The input and the gradient of the output, the same for all that run ``shape``."""
    generator = torch.Generator(device).manual_seed(seed)
    sizes = shape.input_size, shape.hidden_size
    input, d_output = (
        torch.randn(shape.steps, shape.batch, size, generator=generator, device=device) for size in sizes
    )
    return input.to(dtype), d_output.to(dtype)


def make_step(
    module: nn.Module, case: Case, operands: tuple[Tensor, Tensor] | None = None
) -> Callable[[], dict[str, Tensor]]:
    """What is timed: a function that runs ``case`` once and returns by name all that it computed.

    ``operands`` are the input and the gradient of the output; by default random ones, on the CPU.
    """
    input, d_output = operands or random_operands(case.shape, next(module.parameters()).dtype)
    input = input.detach().requires_grad_(case.mode == "training")
    differentiated = {"input": input, **dict(module.named_parameters())}
    names, tensors = [f"gradient of {name}" for name in differentiated], list(differentiated.values())

    def forward() -> dict[str, Tensor]:
        with torch.no_grad():
            return {"output": module(input)[0]}

    def training() -> dict[str, Tensor]:
        output, _ = module(input)
        return {"output": output.detach(), **dict(zip(names, torch.autograd.grad(output, tensors, d_output)))}

    return {"forward": forward, "training": training}[case.mode]
