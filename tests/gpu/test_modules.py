"""The modules against torch.nn's, autocast, threads, the compiler."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn

from ..conftest import Shape, relative_error
from ..test_ops import backward_arguments
from ..test_serving import in_threads
from .places import EVERY_BACKEND, skip_unless_it_computes_in

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("batch_first", [False, True], ids=["T-first", "B-first"])
def test_module_against_torch(place, batch_first):
    """Two bidirectional layers are equal; ours are in eval mode, in which cuDNN refuses to go backward."""
    options = {"num_layers": 2, "bidirectional": True, "batch_first": batch_first, "dtype": torch.float64}
    theirs = nn.LSTM(6, 10, device=place.device, **options)
    ours = fused_rnn.LSTM(6, 10, device=place.device, backend=place.backend, **options).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 4, 6, dtype=torch.float64, device=place.device)
    for module in (ours, theirs):
        output, (h_n, c_n) = module(x)
        (output.square().sum() + h_n.sum() + c_n.sum()).backward()
    assert relative_error([ours(x)[0]], [theirs(x)[0]]) < 1e-11
    gradients = [[p.grad for p in module.parameters()] for module in (ours, theirs)]
    assert relative_error(*gradients) < 1e-11


@EVERY_BACKEND
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_autocast_against_torch(place, name, dtype):
    """The error of results and gradients, against float64, is at most twice that of torch.nn in this dtype.

    torch.nn is converted to it: under autocast to bfloat16 PyTorch runs cuDNN's layers in float16, which is finer.
    """
    skip_unless_it_computes_in(place, dtype)
    theirs = getattr(nn, name)(24, 64, 2, bidirectional=True, device=place.device)
    ours = getattr(fused_rnn, name)(24, 64, 2, bidirectional=True, device=place.device, backend=place.backend)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(40, 9, 24, device=place.device)

    def outcome(module: nn.Module, x: Tensor) -> list[Tensor]:
        leaves = [x.clone().requires_grad_(), *module.parameters()]
        output, _ = module(leaves[0])
        return [output, *torch.autograd.grad((output * output.detach().cos()).sum(), leaves)]

    exact = outcome(copy.deepcopy(theirs).double(), x.double())
    with torch.autocast(place.device.type, dtype):
        output, *gradients = outcome(ours, x)
    assert output.dtype == dtype
    assert {t.dtype for t in gradients} == {torch.float32}
    converted = outcome(copy.deepcopy(theirs).to(dtype), x.to(dtype))
    assert relative_error([output, *gradients], exact) <= 2 * relative_error(converted, exact)


@EVERY_BACKEND
def test_backward_under_autocast_keeps_to_the_forward_pass(place, cell):
    """Gradients of a float32 call are the same bits under autocast, also those of products around the kernels."""
    op = place.operands(cell, Shape(5, 4, 6, 10), dtype=torch.float32)
    outcomes = []
    for enabled in (False, True):
        output = op.run(place.backend)[0]
        with torch.autocast(place.device.type, torch.bfloat16, enabled=enabled):
            outcomes.append(torch.autograd.grad(output.square().sum(), list(op.tensors.values())))
    assert all(torch.equal(a, b) for a, b in zip(*outcomes))


@EVERY_BACKEND
def test_threads_infer_at_once(place):
    """Python threads that share a module, each on its own stream, get the same bits as sequential calls."""
    module = fused_rnn.LSTM(24, 64, 2, device=place.device, backend=place.backend).eval()
    xs = [torch.randn(30 + 7 * n, 3 + n, 24, device=place.device) for n in range(4)]
    place.wait()

    def infer(x: Tensor) -> list[Tensor]:
        with torch.inference_mode(), place.on_stream(place.stream()):
            outputs = [module(x)[0] for _ in range(5)]
            place.wait()
        return outputs

    expected = [infer(x) for x in xs]
    for given, exact in zip(in_threads([partial(infer, x) for x in xs]), expected):
        assert all(torch.equal(a, b) for a, b in zip(given, exact))


PACKED = {"sorted": [5, 3, 3, 1], "unsorted": [1, 5, 2, 5], "in-stretches": [1, 2, 1, 17, 1, 5, 1, 1]}


@pytest.mark.parametrize("lengths", PACKED.values(), ids=PACKED)
@pytest.mark.parametrize("proj_size", [0, 4], ids=["plain", "projected"])
def test_packed_sequences_against_torch(place, proj_size, lengths):
    options = {"num_layers": 2, "bidirectional": True, "proj_size": proj_size, "dtype": torch.float64}
    theirs = nn.LSTM(6, 10, device=place.device, **options)
    ours = fused_rnn.LSTM(6, 10, device=place.device, backend=place.backend, **options)
    ours.load_state_dict(theirs.state_dict())
    how = {"dtype": torch.float64, "device": place.device, "requires_grad": True}
    batch = len(lengths)
    sizes = (max(lengths), batch, 6), (4, batch, proj_size or 10), (4, batch, 10)
    leaves = [torch.randn(size, **how) for size in sizes]
    packed = pack_padded_sequence(leaves[0], torch.tensor(lengths), enforce_sorted=False)
    outcomes = []
    for module in (ours, theirs):
        output, (h_n, c_n) = module(packed, tuple(leaves[1:]))
        loss = output.data.square().sum() + h_n.sin().sum() + c_n.cos().sum()
        gradients = torch.autograd.grad(loss, [*leaves, *module.parameters()], retain_graph=True)
        outcomes.append([output.data, h_n, c_n, *gradients])
    assert relative_error(*outcomes) < 1e-11


@pytest.mark.parametrize("name", ["RNNCell", "LSTMCell", "GRUCell"])
def test_single_steps_against_torch(place, name):
    theirs = getattr(nn, name)(6, 10, dtype=torch.float64, device=place.device)
    ours = getattr(fused_rnn, name)(6, 10, dtype=torch.float64, device=place.device, backend=place.backend)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 6, dtype=torch.float64, device=place.device, requires_grad=True)
    outcomes = []
    for cell in (ours, theirs):
        state = cell(x, cell(x))
        h = state[0] if isinstance(state, tuple) else state
        outcomes.append([h, *torch.autograd.grad(h.square().sum(), [x, *cell.parameters()])])
    assert relative_error(*outcomes) < 1e-11


def test_replaced_modules_of_a_model(place):
    """Parameters that cuDNN has laid out in one piece work in the fused modules."""
    how = {"dtype": torch.float64, "device": place.device}
    model = nn.ModuleDict({"lstm": nn.LSTM(6, 10, 2, bidirectional=True, **how), "head": nn.Linear(20, 2, **how)})
    x = torch.randn(5, 4, 6, **how)
    outcomes = []
    for _ in range(2):
        output = model["head"](model["lstm"](x)[0])
        outcomes.append([output, *torch.autograd.grad(output.square().sum(), list(model.parameters()))])
        fused_rnn.replace(model, backend=place.backend)
    assert type(model["lstm"]) is fused_rnn.LSTM
    assert relative_error(*outcomes) < 1e-11


def test_auto_takes_this_backend(place):
    module = fused_rnn.GRU(3, 5, device=place.device)
    choice = fused_rnn.choose_backend(place.device, torch.float32)
    assert choice.backend == place.backend
    x = torch.randn(4, 2, 3, device=place.device)
    named = fused_rnn.GRU(3, 5, device=place.device, backend=place.backend)
    named.load_state_dict(module.state_dict())
    assert torch.equal(module(x)[0], named(x)[0])


@EVERY_BACKEND
def test_compile_without_a_graph_break(place):
    for cls in (fused_rnn.LSTM, fused_rnn.MultiplicativeGRU):
        module = cls(6, 10, device=place.device, backend=place.backend)
        x = torch.randn(5, 4, 6, device=place.device, requires_grad=True)
        runs = [torch.compile(module, fullgraph=True, backend="aot_eager"), module]
        torch.testing.assert_close(*(torch.autograd.grad(run(x)[0].square().sum(), x) for run in runs))


@EVERY_BACKEND
@pytest.mark.parametrize("lengths", [None, [3, 1]], ids=["whole", "lengths"])
def test_opcheck(place, cell, lengths):
    op = place.operands(cell, Shape(3, 2, 3, 4), lengths=lengths, dtype=torch.float32)
    args = (*op.arguments(), cell, False, 0.0, "everything")
    torch.library.opcheck(torch.ops.fused_rnn.forward.default, args)
    torch.library.opcheck(torch.ops.fused_rnn.backward.default, backward_arguments(op, args))
