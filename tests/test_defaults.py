"""Results depend on the operands alone, whatever torch's default device and default dtype are.

The other device is ``meta``, whose tensors have no values, so a tensor made on it by mistake cannot go unseen.
"""

import contextlib
import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_rnn

from .conftest import Shape, operands, random_like, regularised
from .test_modules import MODULES, PAIRS

BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])
OPTIONS = [{}, {"num_layers": 2, "bidirectional": True}, {"recompute": True}, {"zoneout": 0.3}]
OPTIONS += [{"learn_initial_state": True, "weight_drop": 0.5}, {"num_layers": 2, "variational": True, "dropout": 0.5}]

PROJECTED = {"num_layers": 2, "bidirectional": True, "proj_size": 2}


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


ELSEWHERE = {"device": lambda: torch.device("meta"), "dtype": lambda: default_dtype(torch.float64)}
OTHER_DEFAULT = pytest.mark.parametrize("elsewhere", ELSEWHERE.values(), ids=ELSEWHERE)


def results_and_gradients(module: nn.Module, x: torch.Tensor, form: str) -> list[torch.Tensor]:
    """Return all results and gradients of a call, with the masks of one seed."""
    torch.manual_seed(3)
    x = x.detach().requires_grad_()
    how = {}
    if form == "packed":
        input = pack_padded_sequence(x, [2, 4, 1], enforce_sorted=False)
    else:
        input, how = x, {} if form == "padded" else {"lengths": torch.tensor([2, 4, 0], device="cpu")}
    output, state = module(input, **how)
    output = output.data if isinstance(output, PackedSequence) else output
    results = [output, *(state if isinstance(state, tuple) else (state,))]
    loss = sum(result.square().sum() for result in results)
    return [*results, *torch.autograd.grad(loss, [x, *module.parameters()])]


@OTHER_DEFAULT
@BACKENDS
@pytest.mark.parametrize("form", ["padded", "packed", "lengths"])
@pytest.mark.parametrize(("name", "options"), [*itertools.product(MODULES, OPTIONS), ("lstm", PROJECTED)], ids=str)
def test_modules(name, options, form, backend, elsewhere):
    module = MODULES[name](3, 5, device="cpu", dtype=torch.float32, backend=backend, **options)
    x = torch.randn(4, 3, 3)
    expected = results_and_gradients(module, x, form)
    with elsewhere():
        results = results_and_gradients(module, x, form)
    assert all(map(torch.equal, results, expected))


@OTHER_DEFAULT
@BACKENDS
@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recompute"])
def test_operators(cell, reverse, recompute, backend, elsewhere):
    """Gradients include the double backward of the call without clipping."""
    op = operands(cell, Shape(4, 3, 2, 5), reverse=reverse, lengths=[2, 4, 0], dtype=torch.float32)
    op.recompute = recompute
    d_results, limited = random_like(op.run("reference")), regularised(op)
    runs = []
    for place in (contextlib.nullcontext, elsewhere):
        with place():
            values = op.results_and_gradients(backend, d_results)
            values += limited.results_and_gradients(backend, d_results)
            first = torch.autograd.grad(op.run(backend)[0].sum(), op.tensors["input"], create_graph=True)[0]
            runs.append([*values, *torch.autograd.grad(first.square().sum(), op.tensors["weight_hh"])])
    assert all(map(torch.equal, *runs))


@OTHER_DEFAULT
@pytest.mark.parametrize("cell", ["RNNCell", "LSTMCell", "GRUCell", "MultiplicativeLSTMCell", "MultiplicativeGRUCell"])
def test_single_steps(cell, elsewhere):
    step = getattr(fused_rnn, cell)(3, 5, device="cpu", dtype=torch.float32)
    x = torch.randn(2, 3)
    expected = step(x, step(x))
    with elsewhere():
        state = step(x, step(x))
    pairs = zip(state, expected) if isinstance(state, tuple) else [(state, expected)]
    assert all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("name", PAIRS)
def test_new_modules_are_where_and_what_torchs_are(name):
    ours, theirs, options = PAIRS[name]
    with torch.device("meta"), default_dtype(torch.float64):
        made = [kind(3, 5, **options).weight_hh_l0 for kind in (ours, theirs)]
    assert made[0].device == made[1].device
    assert made[0].dtype == made[1].dtype


def test_weights_of_keras_keep_their_values():
    weights = [np.random.randn(*shape) for shape in ((3, 20), (5, 20), (20,))]
    expected = fused_rnn.from_keras(weights)
    with torch.device("meta"):
        module = fused_rnn.from_keras(weights, device="cpu")
        back = fused_rnn.to_keras(module)
    assert all(map(torch.equal, module.parameters(), expected.parameters()))
    assert all(map(np.array_equal, back, weights))
