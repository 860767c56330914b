"""The quick path: which calls take it, and that results, gradients and errors do not show it."""

import contextlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import fused_rnn
from fused_rnn import ops, quick

from .test_cell_modules import CELLS
from .test_modules import MODULES, B, H, I, T, is_lstm

if not ops.LIBRARY_LOADED:
    pytest.skip("the quick path is to the compiled operators", allow_module_level=True)

STEPS = [("cell", name) for name in CELLS] + [("step", name) for name in MODULES]  # "step" is a module with T = 1
KINDS = [*STEPS, *(("module", name) for name in MODULES)]


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Subclass(Tensor):
    pass


def made(kind: str, name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    return (CELLS if kind == "cell" else MODULES)[name](I, H, dtype=torch.float64, **options)


def given(kind: str, module: nn.Module, with_state: bool) -> tuple:
    """Return an input and, if asked for, a state; all of them require gradients."""
    torch.manual_seed(1)
    shape = {"cell": (B, I), "step": (1, B, I), "module": (T, B, I)}[kind]
    of_state = (B, H) if kind == "cell" else (1, B, H)
    x, *parts = (torch.randn(size, dtype=torch.float64).requires_grad_() for size in (shape, of_state, of_state))
    if not with_state:
        return (x,)
    return x, tuple(parts) if is_lstm(module) else parts[0]


def flat(results) -> list[Tensor]:
    """Return the tensors of a call's results, or of its state, in order."""
    return [results] if isinstance(results, Tensor) else [tensor for part in results for tensor in flat(part)]


def full(module: nn.Module) -> Callable:
    """Return the module's call on the full path."""
    return lambda *arguments, **options: type(module).forward.__wrapped__(module, *arguments, **options)


@pytest.fixture
def full_calls(monkeypatch) -> list[str]:
    """The cell of each call of ``ops.run``, which every call on the full path makes."""
    calls, run = [], ops.run

    def counted(cell, *arguments, **options):
        calls.append(cell)
        return run(cell, *arguments, **options)

    monkeypatch.setattr(ops, "run", counted)
    return calls


@pytest.mark.parametrize("with_state", [False, True], ids=["no-state", "state"])
@pytest.mark.parametrize("gradients", [False, True], ids=["no-grad", "grad"])
@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_plain_calls_take_it(kind, name, gradients, with_state, full_calls):
    module = made(kind, name)
    with torch.set_grad_enabled(gradients):
        module(*given(kind, module, with_state))
        assert not full_calls
        full(module)(*given(kind, module, with_state))
    assert len(full_calls) == 1


@pytest.mark.parametrize(("kind", "name"), STEPS)
def test_single_steps_have_operators_of_their_own(kind, name, monkeypatch):
    """Only multiplicative cells and second derivatives use the operators of sequences."""
    calls = []

    def counted(operator):
        def call(*arguments):
            calls.append(operator)
            return operators[operator](*arguments)

        return call

    operators = {name: getattr(torch.ops.fused_rnn, name) for name in ("forward", "backward", "step", "step_backward")}
    for operator in ("forward", "backward"):
        monkeypatch.setattr(torch.ops.fused_rnn, operator, counted(operator))
    for bare, operator in (("_STEP", "step"), ("_STEP_BACKWARD", "step_backward")):
        monkeypatch.setattr(quick, bare, counted(operator))
    module = made(kind, name)
    arguments = given(kind, module, True)
    loss = sum(result.sum() for result in flat(module(*arguments)))
    loss.backward(retain_graph=True)
    expected = ["forward", "backward"] if ops.CELLS[module.cell].multiplicative else ["step", "step_backward"]
    assert calls == expected
    torch.autograd.grad(loss, arguments[0], create_graph=True)
    assert calls[2:] == ["backward"]


@pytest.mark.parametrize("with_state", [False, True], ids=["no-state", "state"])
@pytest.mark.parametrize("name", ["rnn", "lstm", "gru", "multiplicative_gru"])
def test_operators_that_are_python_are_called_past_the_dispatcher(name, with_state, monkeypatch):
    """GPU operators are called directly, except for batched or second derivatives and under dispatch modes."""
    calls, forward, backward = [], torch.ops.fused_rnn.forward, torch.ops.fused_rnn.backward

    def counted(title, operator):
        def call(*arguments):
            calls.append(title)
            return operator(*arguments)

        call.default = operator.default
        return call

    monkeypatch.setitem(quick.IN_PYTHON, "cpu", (counted("forward", forward), counted("backward", backward)))
    monkeypatch.setattr(torch.ops.fused_rnn, "backward", counted("dispatched", backward))
    module = made("module", name)
    arguments = given("module", module, with_state)
    tensors = [arguments[0], *flat(arguments[1:]), *module.parameters()]
    results, expected = (flat(call(*arguments)) for call in (module, full(module)))
    loss = sum(r.sin().sum() for r in results)
    gradients = torch.autograd.grad(loss, tensors, retain_graph=True)
    assert calls == ["forward", "backward"]
    expected += torch.autograd.grad(sum(r.sin().sum() for r in expected), tensors)
    assert all(map(torch.equal, [*results, *gradients], expected))
    del calls[:]
    torch.autograd.grad(loss, tensors[0], create_graph=True)
    with Watching():
        torch.autograd.grad(loss, tensors[0], retain_graph=True)
    torch.autograd.grad(loss, tensors[0], torch.ones(2, dtype=torch.float64), is_grads_batched=True)
    assert calls == ["dispatched"] * 3


BAD_STEPS = {
    "several steps": ({"input": torch.ones(2, B, I)}, "input of a single step"),
    "rank of the state": ({"h_0": torch.ones(1, B, H)}, "h_0 of a single step"),
    "units of the state": ({"h_0": torch.ones(B, H + 1)}, "c_0 must have shape"),
    "one state": ({"c_0": None}, "c_0 goes with cells that have a cell state"),
    "rank of the weight": ({"weight_hh": torch.ones(H)}, "weight_hh must have two dimensions"),
    "features": ({"weight_ih": torch.ones(4 * H, I + 1)}, "weight_ih must have shape"),
    "dtype": ({"bias_hh": torch.ones(4 * H, dtype=torch.float64)}, "bias_hh and input must have the same dtype"),
    "cell": ({"cell": "lstn"}, "unknown cell 'lstn'"),
    "no cell states": ({"cells": None}, "cells goes with cells that have a cell state"),
    "saved": ({"saved": torch.ones(1, B, H)}, "saved must have shape"),
    "gradient": ({"d_h_n": torch.ones(B, H + 1)}, "d_h_n must have shape"),
    "rank of the gradient": ({"d_c_n": torch.ones(1, B, H)}, "d_c_n of a single step"),
    "gradient of the output": ({"d_output": torch.ones(B, H)}, "d_output must have shape"),
}


@pytest.mark.parametrize(("wrong", "message"), BAD_STEPS.values(), ids=BAD_STEPS)
def test_operators_of_single_steps_check_what_they_are_given(wrong, message):
    of_step = {
        **{"input": torch.ones(B, I), "h_0": torch.ones(B, H), "c_0": torch.ones(B, H)},
        **{"weight_ih": torch.ones(4 * H, I), "weight_hh": torch.ones(4 * H, H)},
        **{"bias_ih": torch.ones(4 * H), "bias_hh": torch.ones(4 * H), "cell": "lstm"},
    }
    kept = {"d_output": None, "d_h_n": torch.ones(B, H), "d_c_n": None, "cells": torch.ones(1, B, H)}
    kept |= {"saved": torch.ones(1, B, 4 * H)}
    step, backward = torch.ops.fused_rnn.step, torch.ops.fused_rnn.step_backward
    step(*of_step.values(), True)
    backward(*kept.values(), *of_step.values(), True, True)
    calls = [lambda: backward(*(kept | of_step | wrong).values(), True, True)]
    if wrong.keys() <= of_step.keys():
        calls.append(lambda: step(*(of_step | wrong).values(), True))
    for call in calls:
        with pytest.raises(RuntimeError, match=message):
            call()


def test_the_weight_is_checked_before_there_is_memory_for_a_state():
    weights = torch.ones(4 * H, I), torch.ones(1, 1).expand(4 * H, 2**40)
    with pytest.raises(RuntimeError, match="weight_hh must have 4 rows for each of its columns"):
        torch.ops.fused_rnn.step(torch.ones(B, I), None, None, *weights, None, None, "lstm", False)


@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("with_state", [False, True], ids=["no-state", "state"])
@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_bits_are_those_of_the_full_path(kind, name, with_state, bias):
    """Second derivatives have the same bits, too, and so do gradients of only some tensors."""
    module = made(kind, name, bias=bias)
    arguments = given(kind, module, with_state)
    tensors = [arguments[0], *flat(arguments[1:]), *module.parameters()]
    both = []
    for call in (module, full(module)):
        results = list(flat(call(*arguments)))
        first = torch.autograd.grad(sum(r.sin().sum() for r in results), tensors, create_graph=True)
        second = torch.autograd.grad(sum(d.square().sum() for d in first), tensors, allow_unused=True)
        some = [torch.autograd.grad(flat(call(*arguments))[0].sum(), wanted) for wanted in ([tensors[0]], tensors[-1:])]
        with torch.no_grad():
            both.append([*results, *first, *second, *some[0], *some[1], *flat(call(*arguments))])
    for a, b in zip(*both, strict=True):
        assert a is b is None or torch.equal(a, b)


@pytest.mark.parametrize("with_state", [False, True], ids=["no-state", "state"])
@pytest.mark.parametrize("kind", ["cell", "step", "module"])
@pytest.mark.parametrize("name", ["rnn", "lstm"])
def test_backward_passes_in_other_situations(kind, name, with_state):
    """A backward pass may run within vmap or under autocast even if the forward pass did not."""
    module = made(kind, name)
    arguments = given(kind, module, with_state)
    tensors = [arguments[0], *flat(arguments[1:]), *module.parameters()]
    both = []
    for call in (module, full(module)):
        result = flat(call(*arguments))[0]
        torch.manual_seed(2)
        batched = torch.randn(2, *result.shape, dtype=result.dtype)
        grads = torch.autograd.grad(result, tensors, batched, is_grads_batched=True, retain_graph=True)
        with torch.autocast("cpu", torch.bfloat16):
            both.append([*grads, *torch.autograd.grad(result, tensors, batched[0])])
    for a, b in zip(*both, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("with_state", [False, True], ids=["no-state", "state"])
@pytest.mark.parametrize("options", [{}, {"dropout": 0.5}, {"dropout": 0.5, "variational": True}], ids=str)
@pytest.mark.parametrize("kind", ["step", "module"])
@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_several_layers_take_it(name, kind, options, with_state, full_calls):
    """Results equal those of the full path bit for bit, with the same random numbers."""
    module = made(kind, name, num_layers=3, **options)
    x, *state = given(kind, module, with_state)
    state = [
        tuple(part.expand(3, B, H) for part in flat(state[0])) if is_lstm(module) else state[0].expand(3, B, H)
        for _ in state
    ]
    both = []
    for call in (module, full(module)):
        torch.manual_seed(2)
        results = flat(call(x, *state))
        both.append([*results, *torch.autograd.grad(sum(r.sin().sum() for r in results), [x, *module.parameters()])])
        assert bool(full_calls) == (call is not module)
    assert all(map(torch.equal, *both))
    assert [r._is_view() for r in both[0]] == [r._is_view() for r in both[1]]


@pytest.mark.parametrize("wrong", [2, 4], ids=["too-few", "too-many"])
def test_states_of_other_layers_do_not(wrong):
    with pytest.raises(RuntimeError, match="hidden size"):
        fused_rnn.GRU(I, H, num_layers=3)(torch.randn(T, B, I), torch.zeros(wrong, B, H))


def test_a_parametrised_layer_does_not(full_calls):
    """A call that ends up on the full path draws its random numbers only once."""
    module = weight_norm(fused_rnn.GRU(I, H, num_layers=2, dropout=0.5), "weight_hh_l1")
    x, results = torch.randn(T, B, I), []
    for call in (module, full(module)):
        torch.manual_seed(2)
        results.append(call(x)[0])
    assert torch.equal(*results)
    assert len(full_calls) == 4


@pytest.mark.parametrize("kind", ["cell", "step", "module"])
@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_parts_of_larger_tensors(kind, name):
    """Slices and strided views give the same results and gradients as whole tensors."""
    module = made(kind, name)
    x, state = given(kind, module, True)
    whole = full(module)(x, state)

    def middle(tensor):
        return torch.stack([torch.zeros_like(tensor), tensor, -tensor])[1]

    def strided(tensor):
        return torch.stack([tensor, tensor], -1)[..., 1]

    for part in (middle, strided):
        parts = tuple(map(part, state)) if is_lstm(module) else part(state)
        found = module(part(x), parts)
        results = [sum(r.sin().sum() for r in flat(each)) for each in (whole, found)]
        grads = [torch.autograd.grad(r, [x, *module.parameters()], retain_graph=True) for r in results]
        assert all(map(torch.equal, flat(found), flat(whole)))
        assert all(map(torch.equal, *grads))
        d = part(torch.ones_like(flat(found)[-1]))
        both = [torch.autograd.grad(flat(each)[-1], x, d, retain_graph=True)[0] for each in (whole, found)]
        assert torch.equal(*both)


@pytest.mark.parametrize(("kind", "name"), [("cell", "lstm"), ("step", "lstm"), ("module", "rnn")])
def test_results_do_not_share_memory(kind, name):
    """Results share no memory with each other or with the operands, and none is a view."""
    module = made(kind, name)
    arguments = given(kind, module, True)
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            results = flat(module(*arguments))
        tensors = [*results, arguments[0], *flat(arguments[1:])]
        assert len({t.untyped_storage().data_ptr() for t in tensors}) == len(tensors)
        assert not any(r._is_view() for r in results)
        for result in results:
            result.detach_()


OPTIONS = {
    "bidirectional": {"bidirectional": True},
    "batch-first": {"batch_first": True},
    "projection": {"proj_size": 2},
    "recompute": {"recompute": True},
    "weight-drop": {"weight_drop": 0.5},
    "zoneout": {"zoneout": 0.1},
    "zoneout-cell": {"zoneout_cell": 0.1},
    "clipping": {"gradient_clip": 1.0},
    "learnt-state": {"learn_initial_state": True},
    "reference": {"backend": "reference"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_modules_with_options_do_not(options, full_calls):
    fused_rnn.LSTM(I, H, **options)(torch.randn(T, B, I))
    assert full_calls


def trace(module: nn.Module, x: Tensor) -> None:
    torch.jit.trace(module, (x,), check_trace=False)


def forward_mode(module: nn.Module, x: Tensor) -> None:
    with torch.autograd.forward_ad.dual_level():
        module(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))


def within(context: Callable[[], contextlib.AbstractContextManager]) -> Callable[[nn.Module, Tensor], None]:
    def call(module: nn.Module, x: Tensor) -> None:
        with context():
            module(x)

    return call


def parametrised(module: nn.Module, x: Tensor) -> None:
    weight_norm(module, next(name for name, _ in module.named_parameters()))(x)


def replaced(module: nn.Module, x: Tensor) -> None:
    weights = {name: parameter.detach() * 2 for name, parameter in module.named_parameters()}
    torch.func.functional_call(module, weights, (x,))


def leaked(module: nn.Module, x: Tensor) -> None:
    """Call with a tensor leaked from a transform that has ended."""
    outside = []

    def leaking(x):
        outside.append(x * 2)
        return outside[0].sum()

    torch.func.grad(leaking)(x)
    module(outside[0])


SITUATIONS = {
    "autocast": within(lambda: torch.autocast("cpu", torch.bfloat16)),
    "hooks": within(lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)),
    "dispatch-mode": within(Watching),
    "function-mode": within(lambda: torch.device("cpu")),
    "trace": trace,
    "forward-mode": forward_mode,
    "vmap": lambda module, x: torch.func.vmap(module, randomness="different")(torch.stack([x, x])),
    "grad": lambda module, x: torch.func.grad(lambda x: flat(module(x))[0].sum())(x),
    "parametrised": parametrised,
    "replaced": replaced,
    "leaked": leaked,
    "subclass": lambda module, x: module(x.as_subclass(Subclass)),
    "unbatched": lambda module, x: module(x.select(-2, 0)),
    "empty-batch": lambda module, x: module(x.narrow(-2, 0, 0)),
    "float16": lambda module, x: module.half()(x.half()),
    "meta": lambda module, x: module.to("meta")(x.to("meta")),
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:fused_rnn runs the plain PyTorch reference")
@pytest.mark.parametrize("call", SITUATIONS.values(), ids=SITUATIONS)
@pytest.mark.parametrize("kind", ["cell", "module"])
def test_calls_in_other_situations_do_not(kind, call, full_calls):
    module = (fused_rnn.GRUCell if kind == "cell" else fused_rnn.GRU)(I, H)
    call(module, torch.randn((B, I) if kind == "cell" else (T, B, I)))
    assert full_calls


def test_classes_that_derive_from_ours(full_calls):
    """Methods that they add do not matter; methods that they override are called."""

    class Adding(fused_rnn.GRU):
        """Another one."""

        size: int

        def __init__(self):
            super().__init__(I, H)
            self.size = H

        def forward(self, input, hx=None):
            return self.doubled(super().forward(input, hx)[0])

        def doubled(self, output):
            return 2 * output

    class Checking(Adding):
        def check_input(self, input, batch_sizes):
            super().check_input(input, batch_sizes)

    Adding()(torch.randn(T, B, I))
    assert not full_calls
    Checking()(torch.randn(T, B, I))
    assert full_calls


def test_calls_with_options_do_not(full_calls):
    module, x = fused_rnn.LSTM(I, H), torch.randn(T, B, I)
    module(x, lengths=torch.full((B,), T))
    module(x, None, torch.full((B,), T))
    module(x, return_cells=True)
    module(pack_sequence([x[:, 0]]))
    assert len(full_calls) == 4


MISTAKES = {
    "features": lambda x, h: (torch.cat([x, x], -1), h),
    "rank": lambda x, h: (x.unsqueeze(0).unsqueeze(0), h),
    "dtype": lambda x, h: (x.float(), h),
    "device": lambda x, h: (x.to("meta"), h),
    "state-units": lambda x, h: (x, torch.cat([h, h], -1)),
    "state-batch": lambda x, h: (x, h.expand(*h.shape[:-2], B + 1, H) if h.shape[-2] == 1 else torch.cat([h, h], -2)),
    "state-rank": lambda x, h: (x, h.unsqueeze(0).unsqueeze(0)),
    "state-layers": lambda x, h: (x, torch.stack([h, h]).squeeze(1)),
    "state-dtype": lambda x, h: (x, h.float()),
    "state-device": lambda x, h: (x, h.to("meta")),
    "state-list": lambda x, h: (x, [h.tolist()]),
    "no-input": lambda x, h: (None, h),
}


@pytest.mark.parametrize("gradients", [False, True], ids=["no-grad", "grad"])
@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_errors_are_those_of_the_full_path(kind, name, mistake, gradients):
    module = made(kind, name)
    x, state = given(kind, module, True)
    x, h = mistake(x, state[0] if is_lstm(module) else state)
    states = [(h, state[1]), (state[1], h), h, (h, h, h)] if is_lstm(module) else [h, (h, h), (h, None)]
    with torch.set_grad_enabled(gradients):
        for state in states:
            with pytest.raises(Exception) as expected:
                full(module)(x, state)
            with pytest.raises(expected.type) as raised:
                module(x, state)
            assert (raised.type, str(raised.value)) == (expected.type, str(expected.value))
            assert raised.value.__context__ is expected.value.__context__ is None


def test_an_error_that_the_full_path_does_not_have_stays(monkeypatch, full_calls):
    def failing(*arguments):
        raise RuntimeError("a kernel gave up")

    monkeypatch.setattr(quick, "_STEP", failing)
    with torch.no_grad(), pytest.raises(RuntimeError, match="a kernel gave up"):
        fused_rnn.GRUCell(I, H)(torch.randn(B, I))
    assert full_calls
