"""Traces, FLOP counters, and the way to torch.nn's modules and back, with weights in one piece for cuDNN."""

import warnings

import pytest
import torch
from torch import nn

import fused_rnn

from ..conftest import Shape
from ..test_modules import MODULES, B, H, I, T, flat
from ..test_tools import Call, assert_equal_at_other_sizes, flops
from .places import EVERY_BACKEND

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning"),
]


@EVERY_BACKEND
@pytest.mark.parametrize("form", ["padded", "lengths", "states"])
def test_traces(place, form):
    module = Call(fused_rnn.LSTM(I, H, 2, bidirectional=True, device=place.device, backend=place.backend), form)
    traced = torch.jit.trace(module, tuple(tensor.to(place.device) for tensor in module.inputs(4, 2)))
    assert_equal_at_other_sizes(traced, module, place.device)


@EVERY_BACKEND
@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recompute"])
def test_flops(place, cell, recompute):
    """The count equals the reference's: operators that a backend's operators call are not counted again."""
    op = place.operands(cell, Shape(T, B, I, H), dtype=torch.float32)
    everything = ("input", "states", "weights")
    forward, backward = flops(op, "reference", *everything)
    op.recompute = recompute
    assert flops(op, place.backend, *everything) == (forward, backward + forward if recompute else backward)


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru_reset_after"])
def test_there_and_back(place, name):
    """The parameters remain the same objects, and cuDNN, which would warn otherwise, finds them in one piece."""
    model = nn.Sequential(MODULES[name](I, H, 2, bidirectional=True, device=place.device, backend=place.backend))
    x, parameters = torch.randn(T, B, I, device=place.device), list(model.parameters())
    expected = flat(model(x))
    fused_rnn.restore(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(flat(model(x)), expected, rtol=1e-4, atol=1e-5)
    fused_rnn.replace(model, backend=place.backend)
    torch.testing.assert_close(flat(model(x)), expected)
    assert all(a is b for a, b in zip(model.parameters(), parameters))
