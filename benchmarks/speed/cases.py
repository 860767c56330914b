"""What a case is, and how a module runs it.

A *case* is a cell at a shape, in a dtype and one mode: training, forward and backward; forward, no gradients; stream,
the same with a call for each step, which is handed the state of the one before; stream_recording, such calls that
record a gradient; stream_training, these with the backward pass through all of them. Which cases are measured stands
in ``plan``, the ways to run them in ``candidates``.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

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

    @property
    def record(self) -> dict:
        """What a file of results says of it: what is not as it mostly is."""
        kept = (field for field in fields(self) if field.name not in ("modes", "memory"))
        return {field.name: value for field in kept if (value := getattr(self, field.name)) != field.default}

    @property
    def sizes(self) -> str:
        """In short, without what is as it mostly is."""
        input = f"I={self.input_size} " if self.input_size != self.hidden_size else ""
        layers = f" {self.layers} layers" if self.layers > 1 else ""
        directions = " bidirectional" if self.directions > 1 else ""
        lengths = f" lengths {self.lengths[-1]} to {self.steps}" if self.lengths else ""
        return f"{input}H={self.hidden_size} B={self.batch} T={self.steps}{layers}{directions}{lengths}"

    def __str__(self) -> str:
        sizes = f"B={self.batch}, I={self.input_size}, H={self.hidden_size}, T={self.steps}"
        return f"{sizes}, a gradient of the last output alone" if self.last_only else sizes


AXES = {"steps": "T", "batch": "B", "hidden_size": "H", "layers": "layers"}  # of what grows
MODES = ("training", "forward")
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
STEP_MODES = ("stream", "stream_recording", "stream_training")
TITLES = {**CELLS, **STEP_CELLS}
NAMES = {cell: "rnn_tanh" if cell == "rnn" else cell for cell in CELLS}  # as functions and kernels have them
EQUATIONS = {cell: ops.CELLS[name] for cell, name in NAMES.items()}


@dataclass(frozen=True)
class Case:
    cell: str
    shape: Shape
    mode: str
    dtype: str = "float32"
    group: str = ""  # of cases that are shown together

    def __str__(self) -> str:
        return f"{self.cell} {self.dtype} {self.shape.sizes}"

    @property
    def record(self) -> dict:
        """What a file of results says of it."""
        return {
            **{name: getattr(self, name) for name in ("cell", "dtype", "group", "mode")},
            "shape": self.shape.record,
        }


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
