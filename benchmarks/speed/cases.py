"""The one table of what is measured: cells, shapes, and what is done at each of them.

A *case* is a cell at a shape in one mode: training, forward and backward; forward, no gradients; stream, the same with
a call for each step, which is handed the state of the one before; stream_recording, such calls that record a gradient;
stream_training, these with the backward pass through all of them. The ways to run a case are in ``candidates``. The
commands, the pytest-benchmark suite and the report all read this file.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import fused_rnn
from benchmarks import common
from fused_rnn import ops


@dataclass(frozen=True)
class Shape:
    name: str
    batch: int
    input_size: int
    hidden_size: int
    steps: int
    modes: tuple[str, ...] = ("training", "forward")
    memory: bool = False  # whether the peak memory of a training step is measured too
    layers: int = 1
    directions: int = 1
    lengths: tuple[int, ...] | None = None  # of the sequences, longest first, where they differ
    last_only: bool = False  # whether only the last output has a gradient, which then vanishes on the way to the first

    @property
    def module_sizes(self) -> dict[str, int]:
        """As constructors of modules take them."""
        several = {"num_layers": self.layers} if self.layers > 1 else {}  # not every rival can have them
        both = {"bidirectional": True} if self.directions > 1 else {}
        return {"input_size": self.input_size, "hidden_size": self.hidden_size, **several, **both}

    def __str__(self) -> str:
        sizes = f"B={self.batch}, I={self.input_size}, H={self.hidden_size}, T={self.steps}"
        return f"{sizes}, a gradient of the last output alone" if self.last_only else sizes


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("a", batch=32, input_size=11, hidden_size=128, steps=200, memory=True),
        Shape("b", batch=64, input_size=128, hidden_size=256, steps=128, memory=True),
        Shape("c", batch=20, input_size=650, hidden_size=650, steps=35),
        Shape("d", batch=1, input_size=128, hidden_size=256, steps=100, modes=("forward", "stream")),
        Shape("e", batch=32, input_size=11, hidden_size=128, steps=200, modes=("training",), last_only=True),
    )
}

# On a GPU, where I = H: (H, B) of the tables, then what else may be asked for.
GPU_SIZES = ((512, 64), (1024, 16), (128, 16), (256, 64))
GPU_HIDDEN = (64, 128, 256, 512, 1024, 2048)
GPU_BATCHES = (1, 16, 64, 256)
GPU_STEPS = 256
GPU_DTYPES = ("bfloat16", "float32", "float16")

GPU_SHAPES = {
    shape.name: shape
    for shape in (
        *(Shape(f"H{hidden}B{batch}", batch, hidden, hidden, GPU_STEPS) for hidden, batch in GPU_SIZES),
        Shape("H512B1", 1, 512, 512, GPU_STEPS, modes=("forward", "stream")),
    )
}
# Single steps, in which the host's part of a call is most of its time: their sizes are those of decoders and policies.
STEP_MODES = ("stream", "stream_recording", "stream_training")
STEP_SHAPES = {
    f"H{hidden}B{batch}": Shape(f"H{hidden}B{batch}", batch, hidden, hidden, steps=50, modes=STEP_MODES)
    for hidden, batch in ((64, 1), (64, 8), (256, 1), (256, 8))
}
CPU_DTYPES = ("float32", "bfloat16")

CELLS = {
    "rnn": "RNN",
    "lstm": "LSTM",
    "gru_reset_after": "GRU, reset after",
    "gru": "GRU, reset before",
    "multiplicative_lstm": "MultiplicativeLSTM",
    "multiplicative_gru": "MultiplicativeGRU",
}
MODULES = {**common.CELLS, "gru_reset_after": fused_rnn.GRU}
# The cells of which single steps are measured: as layers called with one step at a time, and as modules made for that.
STEP_CELLS = {
    "rnn": "RNN",
    "lstm": "LSTM",
    "gru_reset_after": "GRU, reset after",
    "rnn_cell": "RNNCell",
    "lstm_cell": "LSTMCell",
    "gru_reset_after_cell": "GRUCell, reset after",
}
TITLES = {**CELLS, **STEP_CELLS}
NAMES = {cell: "rnn_tanh" if cell == "rnn" else cell for cell in CELLS}  # as functions and kernels have them
EQUATIONS = {cell: ops.CELLS[name] for cell, name in NAMES.items()}


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
        return shape.steps * (products + overhead) * (3 if self.mode.endswith("training") else 1)


@dataclass(frozen=True)
class Plan:
    """What one run measures and how; travels to the child processes as JSON."""

    cells: tuple[str, ...] = tuple(CELLS)
    shapes: tuple[str, ...] = tuple(SHAPES)
    backend: str = "cpu"
    warm_up: int = 5
    rounds: int = 15
    most_steps: int | None = None  # cuts every shape's T, for a smoke run
    dtype: str = "float32"
    all_rivals: bool = False  # every other way to run a cell, not only those of the main tables
    ceilings: bool = True  # whether times are held against what the machine can do at all

    def shape(self, name: str) -> Shape:
        shape = {**SHAPES, **STEP_SHAPES}[name]
        return replace(shape, steps=min(shape.steps, self.most_steps or shape.steps))

    def cases(self) -> Iterator[Case]:
        for shape in map(self.shape, self.shapes):
            for cell in self.cells:
                for mode in shape.modes:
                    yield Case(cell, shape, mode)


def random_operands(
    shape: Shape, dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 0
) -> tuple[Tensor, Tensor]:
    """The input and the gradient of the output, the same for all that run ``shape``; padded with zeros."""
    generator = torch.Generator(device).manual_seed(seed)
    sizes = shape.input_size, shape.directions * shape.hidden_size
    input, d_output = (
        torch.randn(shape.steps, shape.batch, size, generator=generator, device=device) for size in sizes
    )
    if shape.last_only:
        d_output[:-1] = 0
    return tuple(unpadded(shape, operand.to(dtype)) for operand in (input, d_output))


def unpadded(shape: Shape, rows: Tensor) -> Tensor:
    """``rows`` (T, B, ...) with zeros beyond the end of each sequence."""
    if shape.lengths is None:
        return rows
    lengths = torch.tensor(shape.lengths, device=rows.device)
    inside = torch.arange(shape.steps, device=rows.device)[:, None] < lengths
    return rows * inside[..., None].to(rows.dtype)


def make_step(
    module: nn.Module,
    case: Case,
    operands: tuple[Tensor, Tensor] | None = None,
    call: Callable[..., tuple] | None = None,
    rows: bool = False,
) -> Callable[[], dict[str, Tensor]]:
    """What is timed: a function that runs ``case`` once and returns by name all that it computed.

    ``operands`` are the input and the gradient of the output; by default random ones, on the CPU. ``call`` is how the
    module is called with an input, where it is not handed that as it is. ``rows`` says that the steps of a stream are
    (B, I) rather than (1, B, I).
    """
    call = call or module
    input, d_output = operands or random_operands(case.shape, next(module.parameters()).dtype)
    input = input.detach().requires_grad_(case.mode.endswith("training"))
    differentiated = {"input": input, **dict(module.named_parameters())}
    names, tensors = [f"gradient of {name}" for name in differentiated], list(differentiated.values())

    def forward() -> dict[str, Tensor]:
        with torch.no_grad():
            return {"output": call(input)[0]}

    def run_stream() -> Tensor:
        outputs, state = [], None
        for step in input.unbind() if rows else input.split(1):
            output, state = call(step, state)
            outputs.append(output)
        return torch.stack(outputs) if rows else torch.cat(outputs)

    def stream() -> dict[str, Tensor]:
        with torch.no_grad():
            return {"output": run_stream()}

    def stream_recording() -> dict[str, Tensor]:
        return {"output": run_stream().detach()}

    def differentiated_by(output: Tensor) -> dict[str, Tensor]:
        return {"output": output.detach(), **dict(zip(names, torch.autograd.grad(output, tensors, d_output)))}

    runs = {
        "forward": forward,
        "training": lambda: differentiated_by(call(input)[0]),
        "stream": stream,
        "stream_recording": stream_recording,
        "stream_training": lambda: differentiated_by(run_stream()),
    }
    return runs[case.mode]
