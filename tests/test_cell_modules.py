"""Modules of single steps: results and parameters equal torch.nn's, and steps equal the whole sequence."""

import copy
import io

import pytest
import torch
from torch import nn

import fused_rnn

from .conftest import relative_error
from .test_modules import MODULES, B, H, I, T, flat, is_lstm, random_state

CELLS = {
    "rnn": fused_rnn.RNNCell,
    "lstm": fused_rnn.LSTMCell,
    "gru_reset_after": fused_rnn.GRUCell,
    "gru": lambda *a, **kw: fused_rnn.GRUCell(*a, reset_after=False, **kw),
    "multiplicative_lstm": fused_rnn.MultiplicativeLSTMCell,
    "multiplicative_lstm_hidden": lambda *a, **kw: fused_rnn.MultiplicativeLSTMCell(*a, variant="hidden", **kw),
    "multiplicative_gru": fused_rnn.MultiplicativeGRUCell,
}
PAIRS = {
    "rnn": (fused_rnn.RNNCell, nn.RNNCell, {}),
    "rnn_relu": (fused_rnn.RNNCell, nn.RNNCell, {"nonlinearity": "relu"}),
    "lstm": (fused_rnn.LSTMCell, nn.LSTMCell, {}),
    "gru": (fused_rnn.GRUCell, nn.GRUCell, {}),
}


def pair(name: str, **options) -> tuple[nn.Module, nn.Module]:
    """Return our module and torch.nn's, made from the same seed."""
    ours, theirs, extra = PAIRS[name]
    made = []
    for cls in (ours, theirs):
        torch.manual_seed(0)
        made.append(cls(I, H, dtype=torch.float64, **extra, **options))
    return made[0], made[1]


def parts(state) -> tuple[torch.Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize("with_state", [False, True], ids=["no-state", "state"])
@pytest.mark.parametrize("batch", [(), (B,), (0,)], ids=["unbatched", "batched", "empty"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("name", PAIRS)
def test_equals_torch(name, bias, batch, with_state, backend):
    ours, theirs = pair(name, bias=bias)
    ours.backend = backend
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters()))
    assert (ours.bias_ih is None) == (theirs.bias_ih is None) == (not bias)
    x = torch.randn(*batch, I, dtype=torch.float64, requires_grad=True)
    given = tuple(s.requires_grad_() for s in parts(random_state(theirs, *batch, H))) if with_state else ()
    gradients = []
    for module in (ours, theirs):
        results = parts(module(x, (given if len(given) > 1 else given[0]) if given else None))
        gradients.append([*results, *torch.autograd.grad(sum(r.sin().sum() for r in results), [x, *given])])
        gradients[-1] += torch.autograd.grad(sum(r.sin().sum() for r in parts(module(x))), list(module.parameters()))
    for a, b in zip(*gradients):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CELLS)
def test_steps_make_the_sequence(name, backend):
    """T steps of a cell equal the module of whole sequences, gradients included."""
    torch.manual_seed(0)
    module = MODULES[name](I, H, dtype=torch.float64, backend=backend)
    cell = CELLS[name](I, H, dtype=torch.float64, backend=backend)
    cell.load_state_dict({key.removesuffix("_l0"): p for key, p in module.state_dict().items()})
    x, state = torch.randn(T, B, I, dtype=torch.float64), random_state(cell, B, H)
    expected = flat(module(x, tuple(s.unsqueeze(0) for s in state) if is_lstm(cell) else state.unsqueeze(0)))
    outputs = []
    for step in x:
        state = cell(step, state)
        outputs.append(parts(state)[0])
    results = [torch.stack(outputs), *(s.unsqueeze(0) for s in parts(state))]
    both = []
    for values, weights in ((results, cell), (expected, module)):
        loss = sum(v.square().sum() for v in values)
        both.append([*values, *torch.autograd.grad(loss, list(weights.parameters()))])
    assert relative_error(*both) < 1e-12


@pytest.mark.parametrize("name", CELLS)
def test_copies_pickles_compiles_and_meta(name):
    cell, x = CELLS[name](I, H), torch.randn(B, I)
    buffer = io.BytesIO()
    torch.save(cell, buffer)
    buffer.seek(0)
    compiled = torch.compile(cell, fullgraph=True, backend="aot_eager")
    for other in (copy.deepcopy(cell), torch.load(buffer, weights_only=False), compiled):
        torch.testing.assert_close(other(x), cell(x))
    states = parts(CELLS[name](I, H, device="meta")(torch.empty(B, I, device="meta")))
    assert [(s.shape, s.device.type) for s in states] == [((B, H), "meta")] * len(states)


@pytest.mark.parametrize("name", PAIRS)
def test_prints_as_torch(name):
    for options in ({}, {"bias": False}):
        ours, theirs = pair(name, **options)
        assert repr(ours) == repr(theirs)


def test_prints_its_own_options():
    assert repr(fused_rnn.GRUCell(I, H, reset_after=False, backend="cpu")) == (
        f"GRUCell({I}, {H}, backend=cpu, reset_after=False)"
    )


def test_parameters_of_the_new_cells():
    assert {n: tuple(p.shape) for n, p in fused_rnn.MultiplicativeLSTMCell(I, H).named_parameters()} == {
        "weight_ih": (4 * H, I),
        "weight_hh": (4 * H, H),
        "bias_ih": (4 * H,),
        "weight_mih": (I, I),
        "weight_mhh": (I, H),
        "bias_m": (I,),
    }
    assert list(fused_rnn.GRUCell(I, H, reset_after=False).state_dict()) == ["weight_ih", "weight_hh", "bias_ih"]
    assert list(fused_rnn.MultiplicativeGRUCell(I, H, bias=False).state_dict()) == [
        *("weight_ih", "weight_hh", "weight_mih", "weight_mhh")
    ]
