"""The definition of a case, and how a module runs it.

A *case* is a cell at a shape, in a dtype and one mode. The modes are: training, forward and backward; forward, without
gradients; stream, forward with a call for each step, which takes the state of the one before; stream_recording, such
calls that record a gradient; stream_training, these with the backward pass through all of them. ``plan`` lists the
measured cases, ``candidates`` the ways to run them.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

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
    memory: bool = False  # whether the peak memory of a training step is also measured
    layers: int = 1
    directions: int = 1
    lengths: tuple[int, ...] | None = None  # of the sequences, longest first, if they differ
    last_only: bool = False  # whether only the last output has a gradient, which then vanishes on the way to the first
    episodes: int | None = None  # percent of all steps that begin one, if sequences are made of episodes

    @property
    def module_sizes(self) -> dict[str, int]:
        """The sizes as constructors of modules take them."""
        several = {"num_layers": self.layers} if self.layers > 1 else {}  # not every rival supports several
        both = {"bidirectional": True} if self.directions > 1 else {}
        return {"input_size": self.input_size, "hidden_size": self.hidden_size, **several, **both}

    @property
    def record(self) -> dict:
        """The entry in a file of results: all values that differ from the usual ones."""
        kept = (field for field in fields(self) if field.name not in ("modes", "memory"))
        return {field.name: value for field in kept if (value := getattr(self, field.name)) != field.default}

    @property
    def sizes(self) -> str:
        """A short description, without the usual values."""
        input = f"I={self.input_size} " if self.input_size != self.hidden_size else ""
        layers = f" {self.layers} layers" if self.layers > 1 else ""
        directions = " bidirectional" if self.directions > 1 else ""
        lengths = f" lengths {self.lengths[-1]} to {self.steps}" if self.lengths else ""
        episodes = "" if self.episodes is None else f" {self.episodes} % resets"
        return f"{input}H={self.hidden_size} B={self.batch} T={self.steps}{layers}{directions}{lengths}{episodes}"

    def __str__(self) -> str:
        sizes = f"B={self.batch}, I={self.input_size}, H={self.hidden_size}, T={self.steps}"
        return f"{sizes}, a gradient of the last output alone" if self.last_only else sizes


AXES = {"steps": "T", "batch": "B", "hidden_size": "H", "layers": "layers"}  # of growing sizes
MODES = ("training", "forward")
CELLS = {
    "rnn": "RNN",
    "lstm": "LSTM",
    "gru_reset_after": "GRU, reset after",
    "gru": "GRU, reset before",
    "multiplicative_lstm": "MultiplicativeLSTM",
    "multiplicative_gru": "MultiplicativeGRU",
}
MODULES = common.CELLS
# The cells whose single steps are measured: as layers called with one step at a time, and as modules for single steps.
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
NAMES = {cell: "rnn_tanh" if cell == "rnn" else cell for cell in CELLS}  # as functions and kernels name them
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
        """The entry in a file of results."""
        return {
            **{name: getattr(self, name) for name in ("cell", "dtype", "group", "mode")},
            "shape": self.shape.record,
        }


def random_operands(
    shape: Shape, dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Make the input and the gradient of the output, the same for all candidates of ``shape``; padded with zeros."""
    generator = torch.Generator(device).manual_seed(seed)
    sizes = shape.input_size, shape.directions * shape.hidden_size
    input, d_output = (
        torch.randn(shape.steps, shape.batch, size, generator=generator, device=device) for size in sizes
    )
    if shape.last_only:
        d_output[:-1] = 0
    return tuple(unpadded(shape, operand.to(dtype)) for operand in (input, d_output))


def unpadded(shape: Shape, rows: Tensor) -> Tensor:
    """Return ``rows`` (T, B, ...) with zeros past the end of each sequence."""
    if shape.lengths is None:
        return rows
    lengths = torch.tensor(shape.lengths, device=rows.device)
    inside = torch.arange(shape.steps, device=rows.device)[:, None] < lengths
    return rows * inside[..., None].to(rows.dtype)


def resets(shape: Shape, device: torch.device | str = "cpu") -> Tensor | None:
    """Draw the steps (T, B) that begin an episode, the same for all candidates of ``shape``; None without episodes."""
    if shape.episodes is None:
        return None
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(shape.steps, shape.batch, generator=generator) < shape.episodes / 100).to(device)


def make_step(
    module: nn.Module,
    case: Case,
    operands: tuple[Tensor, Tensor],
    call: Callable[..., tuple] | None = None,
    rows: bool = False,
) -> Callable[[], dict[str, Tensor]]:
    """Make the function to be timed, which runs ``case`` once and returns its results by name.

    ``operands`` are the input and the gradient of the output. ``call`` calls the module with an input, if it does not
    take that as it is. With ``rows`` the steps of a stream are (B, I) rather than (1, B, I).
    """
    call = call or module
    input, d_output = operands
    input = input.detach().requires_grad_(case.mode.endswith("training"))
    differentiated = {"input": input, **dict(module.named_parameters())}
    names, tensors = [f"gradient of {name}" for name in differentiated], list(differentiated.values())

    def run() -> Tensor:
        if "stream" not in case.mode:
            return call(input)[0]
        outputs, state = [], None
        for step in input.unbind() if rows else input.split(1):
            output, state = call(step, state)
            outputs.append(output)
        return torch.stack(outputs) if rows else torch.cat(outputs)

    def without_gradients() -> dict[str, Tensor]:
        with torch.no_grad():
            return {"output": run()}

    def recording() -> dict[str, Tensor]:
        return {"output": run().detach()}

    def training() -> dict[str, Tensor]:
        output = run()
        return {"output": output.detach(), **dict(zip(names, torch.autograd.grad(output, tensors, d_output)))}

    if case.mode.endswith("training"):
        return training
    return recording if case.mode.endswith("recording") else without_gradients
