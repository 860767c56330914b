"""LSTMs with projections equal torch.nn.LSTM, on the kernels of the LSTM without."""

import pytest
import torch
from torch import Tensor, nn

import fused_rnn
from fused_rnn import projection

from .conftest import relative_error
from .test_modules import B, H, I, T

P = 3


def pair(layers: int = 2, bidirectional: bool = True, bias: bool = True, dtype=torch.float64, **options) -> list:
    """Return torch.nn's module and ours, made from the same seed."""
    made = []
    for cls, extra in ((nn.LSTM, {}), (fused_rnn.LSTM, options)):
        torch.manual_seed(0)
        how = {"bidirectional": bidirectional, "bias": bias, "proj_size": P, "dtype": dtype}
        made.append(cls(I, H, layers, **how, **extra))
    return made


def initial(count: int, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(count, B, P, dtype=dtype), torch.randn(count, B, H, dtype=dtype)


def results_and_gradients(module: nn.Module, x: Tensor, state, **how) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in (x, *(state or ()))]
    output, (h_n, c_n) = module(leaves[0], tuple(leaves[1:]) or None, **how)
    results = [output, h_n, c_n]
    d_results = [torch.linspace(-1, 1, r.numel(), dtype=r.dtype).view_as(r) for r in results]
    return [*results, *torch.autograd.grad(results, [*leaves, *module.parameters()], d_results)]


@pytest.mark.parametrize("with_state", [False, True], ids=["no-state", "state"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("layers", [1, 2], ids=["one-way", "two-layers-both-ways"])
def test_equals_torch(layers, bias, with_state, backend):
    """The same seed gives torch.nn's parameters, results and gradients of everything."""
    theirs, ours = pair(layers, layers == 2, bias, backend=backend)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters()))
    assert [[p.shape for p in w] for w in ours.all_weights] == [[p.shape for p in w] for w in theirs.all_weights]
    x, state = torch.randn(T, B, I, dtype=torch.float64), initial(layers**2) if with_state else None
    assert relative_error(results_and_gradients(ours, x, state), results_and_gradients(theirs, x, state)) < 1e-12


@pytest.mark.parametrize("with_state", [False, True], ids=["no-state", "state"])
@pytest.mark.parametrize("recompute", [False, True], ids=["everything", "recompute"])
def test_lengths(with_state, recompute, backend):
    """Each sequence gives what it gives alone; one without steps ends as it began, with zero outputs."""
    _, module = pair(backend=backend, recompute=recompute)
    x, state, lengths = torch.randn(T, B, I, dtype=torch.float64), initial(4) if with_state else None, [4, 0, T]
    output, (h_n, c_n) = module(x, state, lengths=torch.tensor(lengths))
    for b, length in enumerate(lengths):
        assert (output[length:, b] == 0).all()
        alone = None if state is None else tuple(part[:, b : b + 1] for part in state)
        if length == 0:
            for last, first in zip((h_n, c_n), alone or (torch.zeros(4, 1, P), torch.zeros(4, 1, H))):
                assert (last[:, b] == first[:, 0]).all()
            continue
        expected, (h, c) = module(x[:length, b : b + 1], alone)
        for given, exact in ((output[:length, b], expected[:, 0]), (h_n[:, b], h[:, 0]), (c_n[:, b], c[:, 0])):
            torch.testing.assert_close(given, exact)


def test_h_0_comes_in_where_the_kernels_begin():
    """Values of lengths are not checked on a GPU: past T they count as T, below 0 as 0."""
    h_0, input = torch.ones(4, P), torch.zeros(T, 4, I)
    (placed,) = projection._in_first_steps(h_0, [input], True, [torch.tensor([T + 2, 3, 0, -1])])
    assert placed.sum(2).nonzero().tolist() == [[2, 1], [T - 1, 0]]
    for reverse, first in ((False, 0), (True, T - 1)):
        (placed,) = projection._in_first_steps(h_0, [input], reverse, [None])
        assert placed.sum(2).nonzero().tolist() == [[first, b] for b in range(4)]


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "reverse"])
def test_gradcheck(reverse, backend):
    shapes = {"weight_ih": (16, 2), "weight_hh": (16, 3), "bias_ih": (16,), "bias_hh": (16,), "weight_hr": (3, 4)}
    torch.manual_seed(0)
    weights = [0.5 * torch.randn(shape, dtype=torch.float64) for shape in shapes.values()]
    operands = [torch.randn(shape, dtype=torch.float64) for shape in ((3, 3, 2), (3, 3), (3, 4))]

    def run(x, h_0, c_0, *tensors):
        how = {
            "reverse": reverse,
            "lengths": [torch.tensor([3, 0, 2])],
            "masks": [{}],
            "resets": [None],
            "backend": backend,
        }
        (output,), final = projection.run_lstm([x], (h_0, c_0), dict(zip(shapes, tensors)), **how)
        return output, *final

    assert torch.autograd.gradcheck(run, [t.requires_grad_() for t in (*operands, *weights)])


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("with_state", [False, True], ids=["no-state", "state"])
def test_low_precision_is_no_worse_than_pytorch(dtype, with_state, backend):
    """Against float64 on the same rounded operands, the error is at most twice that of PyTorch in this dtype."""
    theirs, ours = pair(dtype=dtype, backend=backend)
    exact = pair()[0]
    exact.load_state_dict(theirs.state_dict())
    x, state = torch.randn(50, B, I, dtype=dtype), initial(4, dtype) if with_state else None
    wide = None if state is None else tuple(part.double() for part in state)
    expected = results_and_gradients(exact, x.double(), wide)
    errors = [relative_error(results_and_gradients(m, x, state), expected) for m in (ours, theirs)]
    assert errors[0] <= 2 * errors[1]


def test_compiles_to_one_graph():
    _, module = pair()
    x, state = torch.randn(T, B, I, dtype=torch.float64), initial(4)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for a, b in zip(results_and_gradients(module, x, state), results_and_gradients(compiled, x, state)):
        torch.testing.assert_close(a, b)
