"""The model's initial gates, and its gradient by time step."""

import math

import numpy as np
import pytest
import torch

from benchmarks.common import CELLS
from benchmarks.copy_task.data import Recall
from benchmarks.copy_task.model import CopyModel, gradient_norms

from .conftest import generator


def kind(cell: str) -> str:
    """Return rnn, lstm, gru, or gru_after for the GRU whose update gate is turned round."""
    return "gru_after" if cell == "gru_reset_after" else next(word for word in ("rnn", "lstm", "gru") if word in cell)


@pytest.mark.parametrize("cell", CELLS)
def test_keep_bias_shifts_one_gate(cell):
    def bias(keep_bias: float) -> torch.Tensor:
        torch.manual_seed(0)
        return CopyModel(cell, Recall(2, 3), 4, 2, keep_bias).recurrent.bias_ih_l1.detach()

    gates = {"rnn": [0.0], "lstm": [0.0, 3.0, 0.0, 0.0], "gru": [0.0, -3.0, 0.0], "gru_after": [0.0, 3.0, 0.0]}
    torch.testing.assert_close(bias(3.0) - bias(0.0), torch.tensor(gates[kind(cell)]).repeat_interleave(4))


@pytest.mark.parametrize("cell", CELLS)
def test_chrono_bias_spreads_over_the_delay(cell):
    """The gates keep states for 1 to delay - 1 steps, spread evenly over the units; see Tallec & Ollivier 2018."""
    torch.manual_seed(0)
    hidden, delay = 2000, 101
    bias = CopyModel(cell, Recall(2, 3), hidden, 2, "chrono", delay).recurrent.bias_ih_l1.detach().split(hidden)
    if cell == "rnn":
        assert bias[0].abs().max() < 0.1
        return
    keep = -bias[1] if kind(cell) == "gru" else bias[1]
    steps = keep.exp().sort().values
    torch.testing.assert_close(steps, torch.linspace(1, delay - 1, hidden), rtol=0.1, atol=4.0)
    if kind(cell) == "lstm":
        torch.testing.assert_close(bias[0], -keep, rtol=0, atol=0.1)
        assert bias[2].abs().max() < 0.1


@pytest.mark.parametrize("cell", ["gru", "multiplicative_gru", "gru_reset_after"])
def test_keep_bias_keeps_the_state(cell):
    state = torch.full((2, 1, 4), 0.5)
    _, last = CopyModel(cell, Recall(2, 3), 4, 2, keep_bias=30.0).recurrent(torch.ones(5, 1, 5), state)
    torch.testing.assert_close(last, state)


def loss_with_moved_state(model, task, inputs, targets, t: int, delta: torch.Tensor) -> float:
    """Return the loss with the top layer's h_t moved by ``delta``, both for its own output and for later steps."""
    outputs, state = [], None
    for step, x in enumerate(inputs.split(1)):
        _, state = model.recurrent(x, state)
        if step == t:
            hidden, *rest = state if isinstance(state, tuple) else (state,)
            hidden = hidden.clone()
            hidden[-1] += delta
            state = (hidden, *rest) if rest else hidden
        top = (state[0] if isinstance(state, tuple) else state)[-1]
        outputs.append(model.decoder(top))
    return task.loss(torch.stack(outputs[-len(targets) :]), targets).item()


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_gradient_norms_agree_with_finite_differences(cell, layers):
    torch.manual_seed(0)
    task = Recall(2, 3)
    model = CopyModel(cell, task, hidden=4, layers=layers, dtype=torch.float64)
    inputs, targets = task.draw(2, 3, generator())
    inputs = inputs.double()
    norms = gradient_norms(model, task, inputs, targets)
    assert len(norms) == len(inputs)
    assert all(parameter.grad is None for parameter in model.parameters())
    epsilon = 1e-5
    for t, norm in enumerate(norms):
        expected = []
        for b in range(3):
            one_sequence = inputs[:, b : b + 1], targets[:, b : b + 1]
            differences = [
                loss_with_moved_state(model, task, *one_sequence, t, delta)
                - loss_with_moved_state(model, task, *one_sequence, t, -delta)
                for delta in epsilon * torch.eye(4, dtype=torch.float64)
            ]
            expected.append(math.hypot(*differences) / (2 * epsilon))
        assert norm == pytest.approx(np.mean(expected), rel=1e-5)
