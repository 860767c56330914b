"""torch.autocast: every public interface computes in its dtype, from operands in others, and gradients keep theirs."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn

from .conftest import Shape, operands, relative_error
from .test_cell_modules import CELLS, parts
from .test_functional import call
from .test_modules import MODULES, B, H, I, T, flat, is_lstm

P = 3
LOW = torch.bfloat16


def low(dtype: torch.dtype = LOW, enabled: bool = True) -> torch.autocast:
    return torch.autocast("cpu", dtype, enabled=enabled)


def given(module: nn.Module, seed: int = 0) -> list[Tensor]:
    """Return leaves: the input and the initial states of two bidirectional layers."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(T, B, I), (4, B, getattr(module, "proj_size", 0) or H), (4, B, H)][: 2 + is_lstm(module)]
    return [torch.randn(size, generator=generator).requires_grad_() for size in sizes]


def results_and_gradients(module: nn.Module, leaves: list[Tensor], form: str = "whole") -> list[Tensor]:
    x, *states = leaves
    hx = tuple(states) if len(states) > 1 else states[0]
    lengths = torch.tensor([T, 2, 4])
    if form == "packed":
        output, final = module(pack_padded_sequence(x, lengths, enforce_sorted=False), hx)
        results = flat((output.data, final))
    else:
        results = flat(module(x, hx, lengths=lengths) if form == "lengths" else module(x, hx))
    d_results = [torch.linspace(-1, 1, r.numel()).view_as(r).to(r.dtype) for r in results]
    return [*results, *torch.autograd.grad(results, [*leaves, *module.parameters()], d_results)]


@pytest.mark.parametrize("form", ["whole", "lengths", "packed"])
@pytest.mark.parametrize("name", [*MODULES, "projected"])
def test_equals_the_module_in_that_dtype(name, form, backend):
    """Results and gradients of all cells are equal bit for bit; the gradients come back in float32.

    The input's gradient may differ, because the sum over both directions is taken in float32 here.
    """
    torch.manual_seed(0)
    kind, extra = (MODULES["lstm"], {"proj_size": P}) if name == "projected" else (MODULES[name], {})
    module = kind(I, H, 2, bidirectional=True, backend=backend, **extra)
    narrow, leaves = copy.deepcopy(module).to(LOW), given(module)
    expected = results_and_gradients(narrow, [t.detach().to(LOW).requires_grad_() for t in leaves], form)
    with low():
        outcome = results_and_gradients(module, leaves, form)
    count = 2 + is_lstm(module)
    assert {t.dtype for t in outcome[:count]} == {LOW}
    assert {t.dtype for t in outcome[count:]} == {torch.float32}
    torch.testing.assert_close(outcome.pop(count), expected.pop(count).float(), rtol=1e-2, atol=1e-2)
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(outcome, expected))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU", "LSTM-projected"])
def test_error_is_at_most_twice_that_of_pytorch(name, backend):
    """Results and gradients are held against float64, with torch.nn's module under the same autocast."""
    kind, _, projected = name.partition("-")
    options = {"num_layers": 2, "bidirectional": True, "proj_size": P} if projected else {"bidirectional": True}
    torch.manual_seed(0)
    theirs = getattr(nn, kind)(20, 48, **options)
    ours = getattr(fused_rnn, kind)(20, 48, backend=backend, **options)
    exact = copy.deepcopy(theirs).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(60, 8, 20)

    def outcome(module: nn.Module, x: Tensor) -> list[Tensor]:
        x = x.requires_grad_()
        results = flat(module(x))
        loss = sum((r * torch.linspace(-1, 1, r.numel()).view_as(r)).sum() for r in results)
        return [*results, *torch.autograd.grad(loss, [x, *module.parameters()])]

    expected = outcome(exact, x.double())
    with low():
        errors = [relative_error(outcome(module, x.clone()), expected) for module in (ours, theirs)]
    assert 1e-4 < errors[0] <= 2 * errors[1]


def test_functions_and_single_steps(cell, backend):
    op = operands(cell, Shape(T, B, I, H), dtype=torch.float32)
    wide, narrow = op.tensors, op.to(LOW).tensors
    with low():
        output, _ = call(fused_rnn.functional, cell, wide, backend=backend)
    assert torch.equal(output, call(fused_rnn.functional, cell, narrow, backend=backend)[0])
    name = "rnn" if "rnn" in cell else cell
    step = CELLS[name](I, H, backend=backend)
    with low():
        state = step(wide["input"][0])
    assert all(torch.equal(a, b) for a, b in zip(parts(state), parts(step.to(LOW)(narrow["input"][0]))))


@pytest.mark.parametrize(("proj_size", "inside"), [(0, True), (P, False)], ids=["plain-inside", "projected-around"])
def test_compiles_to_one_graph(proj_size, inside):
    torch.manual_seed(0)
    module = fused_rnn.LSTM(I, H, 2, bidirectional=True, proj_size=proj_size)
    leaves = given(module)

    def run(x: Tensor, hx: tuple[Tensor, Tensor]):
        if not inside:
            return module(x, hx)
        with low():
            return module(x, hx)

    outcomes = []
    for function in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        function.parameters = module.parameters
        with low(enabled=not inside):
            outcomes.append(results_and_gradients(function, leaves))
    assert {results[0].dtype for results in outcomes} == {LOW}
    for a, b in zip(*outcomes):
        torch.testing.assert_close(a, b)


def test_float64_is_left_alone():
    module = fused_rnn.GRU(I, H, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64)
    with low():
        output = module(x)[0]
    assert torch.equal(output, module(x)[0])


def test_input_in_another_dtype():
    """The output of another autocast layer is accepted under autocast, and refused without, as in torch.nn."""
    module, x = fused_rnn.GRU(I, H), torch.randn(T, B, I)
    with low():
        assert torch.equal(module(x.to(LOW))[0], module(x)[0])
    with pytest.raises(ValueError, match="does not match weight dtype"):
        module(x.to(LOW))
    with low(), pytest.raises(RuntimeError, match=r"weight_ih is torch.bfloat16 but input is torch.float64: convert"):
        module(x.double())


def test_float16_on_the_cpu_runs_as_any_float16_call():
    """The call runs on the reference, with a warning; a backend named outright refuses."""
    fused_rnn.choice.warn_of_reference.cache_clear()
    module, x = fused_rnn.LSTM(I, H), torch.randn(T, B, I)
    with low(torch.float16), pytest.warns(UserWarning, match="the dtype is torch.float16"):
        output, _ = module(x)
    named = copy.deepcopy(module).half()
    named.backend = "reference"
    assert torch.equal(output, named(x.half())[0])
    module.backend = "cpu"
    with (
        low(torch.float16),
        pytest.raises(RuntimeError, match="'cpu' cannot run this call: the dtype is torch.float16"),
    ):
        module(x)


def test_backward_under_autocast_keeps_to_the_forward_pass(backend):
    """First and second gradients of a float32 call are the same bits under autocast as without."""
    op = operands("multiplicative_gru", Shape(3, 2, 3, 4), dtype=torch.float32)
    outcomes = []
    for enabled in (False, True):
        output = op.run(backend)[0]
        x = op.tensors["input"]
        with low(enabled=enabled):
            (first,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
            second = torch.autograd.grad(first.square().sum(), list(op.tensors.values()))
        outcomes.append([first, *second])
    assert all(torch.equal(a, b) for a, b in zip(*outcomes))


def test_replaced_modules():
    """A converted model still computes in mixed precision."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"embed": nn.Linear(I, H), "gru": nn.GRU(H, H), "step": nn.LSTMCell(H, H)})

    def run() -> Tensor:
        return model["step"](model["gru"](model["embed"](x))[0][-1])[0]

    x = torch.randn(T, B, I)
    exact = run()
    fused_rnn.replace(model)
    with low():
        output = run()
    assert output.dtype == LOW
    torch.testing.assert_close(output.float(), exact, rtol=2e-2, atol=1e-2)


def test_meta_tensors_under_the_autocast_of_another_device():
    module = fused_rnn.LSTM(I, H, device="meta", backend="cpu")
    with low():
        assert module(torch.empty(T, B, I, device="meta"))[0].dtype == torch.float32
