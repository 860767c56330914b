"""The fused operators, as they ship, against the float64 reference: results, gradients, autograd's odd corners."""

import itertools
import platform
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

import fused_rnn
from fused_rnn import derivatives, ops

from .conftest import (
    FUSED,
    LENGTHS,
    ODD_SHAPES,
    Operands,
    Shape,
    operands,
    random_like,
    regularised,
    relative_error,
    some_of,
    threads,
)
from .precision import Yardstick

# sizes around the width of a vector, a panel and a tile, and sizes that exceed one chunk of the time loop
LARGER_SHAPES = [Shape(7, 3, 5, 33), Shape(9, 13, 67, 16), Shape(600, 2, 3, 5), Shape(5, 300, 2, 9)]
# single steps, the most rows (steps x sequences) that the CPU backend multiplies with unpacked weights, and one more
SHORT_SHAPES = [Shape(1, 1, 35, 33), Shape(1, 8, 7, 70), Shape(8, 1, 19, 34), Shape(3, 3, 19, 34)]


def test_the_cpu_backend_is_built():
    assert "cpu" in FUSED, fused_rnn.backends()["cpu"]


@pytest.mark.parametrize("shape", ODD_SHAPES, ids=str)
def test_gradcheck(cell, backend, shape, reverse):
    op = operands(cell, shape, reverse=reverse)
    assert torch.autograd.gradcheck(op.function(backend), tuple(op.tensors.values()))


@pytest.mark.parametrize("shape", [Shape(4, 3, 5, 17), Shape(3, 9, 19, 10)], ids=str)
def test_gradcheck_across_panels(cell, backend, shape):
    op = operands(cell, shape)
    assert torch.autograd.gradcheck(op.function(backend), tuple(op.tensors.values()), fast_mode=True)


def test_gradcheck_without_bias(cell, backend):
    op = operands(cell, Shape(3, 2, 3, 4), bias=False)
    assert torch.autograd.gradcheck(op.function(backend), tuple(op.tensors.values()))


@pytest.mark.parametrize("shape", [*ODD_SHAPES, *LARGER_SHAPES, *SHORT_SHAPES], ids=str)
def test_float64_equals_reference(cell, backend, shape, reverse):
    op = operands(cell, shape, reverse=reverse)
    d_results = random_like(op.run("reference"))
    exact = op.results_and_gradients("reference", d_results)
    assert relative_error(op.results_and_gradients(backend, d_results), exact) < 1e-11


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # busy machines are slow
@given(data=st.data())
def test_any_shape_equals_reference(data):
    sizes = [data.draw(st.integers(1, most), label=name) for name, most in zip("TBIH", (12, 20, 70, 70))]
    cell = data.draw(st.sampled_from(list(ops.CELLS)), label="cell")
    op = operands(cell, Shape(*sizes), reverse=data.draw(st.booleans()), bias=data.draw(st.booleans()))
    d_results = random_like(op.run("reference"))
    exact = op.results_and_gradients("reference", d_results)
    for backend in FUSED:
        assert relative_error(op.results_and_gradients(backend, d_results), exact) < 1e-11


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [Shape(20, 8, 12, 40), Shape(50, 33, 11, 64), Shape(2, 4, 37, 133)], ids=str)
def test_low_precision_is_no_worse_than_pytorch(cell, backend, dtype, shape):
    """Against float64 on the same rounded operands, errors are at most twice those of PyTorch in this dtype.

    PyTorch's are the smaller of its loop's and, where it has one, its module's (in bfloat16 oneDNN's kernel).
    """
    modules = [torch_results_and_gradients] if cell in ("lstm", "gru_reset_after") else []
    draws = [operands(cell, shape, scale=1.0, dtype=dtype, seed=seed) for seed in range(3)]
    yardstick = Yardstick([replace(op, return_cells=cell != "lstm") for op in draws], *modules)  # torch.nn returns none
    yardstick.assert_no_worse(lambda op, d_results: op.results_and_gradients(backend, d_results))


# bfloat16 has its own product on processors with AMX: sizes around its tiles of 16 x 32, more rows than it takes at a
# time, parts of a matrix that begin within a tile of another part, and threads that share panels
TILED_SHAPES = [Shape(4, 33, 5, 35), Shape(3, 150, 35, 17), Shape(6, 9, 67, 16), Shape(9, 17, 1, 65)]
TILED_SHAPES += [Shape(4, 3, 9, 200)]


@pytest.mark.parametrize("ends", [False, True], ids=["whole", "lengths"])
@pytest.mark.parametrize("shape", TILED_SHAPES, ids=str)
def test_bfloat16_of_any_size(cell, reverse, shape, ends):
    """Errors are bounded as above, with one thread and with two."""
    lengths = [row % (shape.T + 1) for row in range(shape.B)] if ends else None
    op = operands(cell, shape, scale=1.0, reverse=reverse, lengths=lengths, dtype=torch.bfloat16)
    yardstick = Yardstick([op])
    for number in (1, 2):
        with threads(number):
            yardstick.assert_no_worse(lambda op, d_results: op.results_and_gradients("cpu", d_results))


def torch_results_and_gradients(op: Operands, d_results: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the results and gradients of torch.nn's module of the same cell for the same operands."""
    t = op.tensors
    hidden, features = t["weight_hh"].shape[1], t["input"].shape[2]
    module = {"lstm": torch.nn.LSTM, "gru_reset_after": torch.nn.GRU}[op.cell](features, hidden).to(t["input"])
    weights = [name for name in t if name.startswith(("weight", "bias"))]
    module.load_state_dict({f"{name}_l0": t[name] for name in weights})
    states = [t[name].unsqueeze(0) for name in ("h_0", "c_0") if name in t]
    output, last = module(t["input"], tuple(states) if len(states) == 2 else states[0])
    results = [output, *(part[0] for part in (last if isinstance(last, tuple) else (last,)))]
    leaves = [t[n] for n in t if n not in weights] + [getattr(module, f"{n}_l0") for n in weights]
    return [*results, *torch.autograd.grad(results, leaves, d_results)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=["f32", "f64", "bf16"])
@pytest.mark.parametrize("value", [30.0, -30.0, 1e4, -1e4, 1e30])
def test_saturated_gates(cell, backend, dtype, value):
    """Huge pre-activations saturate, as in PyTorch, and never make a NaN."""
    if cell == "rnn_relu" or ("multiplicative" in cell and abs(value) > 1e5):
        pytest.skip("grows without bound, by its equation")
    op = operands(cell, Shape(3, 2, 2, 19), dtype=dtype)
    replaced = {name: torch.full_like(t, value) for name, t in op.tensors.items() if name == "bias_ih"}
    exact = op.run("reference", **replaced)
    for result, expected in zip(op.run(backend, **replaced), exact):
        torch.testing.assert_close(result, expected, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-5)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="others compute with them as fast as ever")
@pytest.mark.parametrize(
    ("batch", "size", "number"), [(1, 4, 1), (8, 4, 2), (2, 256, 2)], ids=["alone", "rows", "panels"]
)
def test_vanishing_gradients_pass_over_subnormal_numbers(batch, size, number):
    """Subnormal numbers, which slow CPU steps a hundredfold, become zero in a call; outside of it nothing changes."""
    # each step scales the gradient of the state by 0.1, and the input's gradient is 0.01 of the state's
    x, weights = torch.zeros(60, batch, size), (0.01 * torch.eye(size), 0.1 * torch.eye(size))
    smallest = torch.finfo(torch.float32).tiny

    def subnormal(run, **how) -> int:
        found = 0
        for reverse in (False, True):  # so that every thread has its share of the gradients that vanish
            given = x.clone().requires_grad_()
            run(given, None, *weights, reverse=reverse, **how)[0][0 if reverse else -1].sum().backward()
            sizes = given.grad.abs()
            assert sizes.max() == 0.01
            found += int(((sizes > 0) & (sizes < smallest)).sum())
        return found

    with threads(number):
        assert subnormal(fused_rnn.functional.rnn, backend="cpu") == 0
        assert subnormal(fused_rnn.reference.rnn) > 0


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_propagate(cell, backend, poison):
    """NaN and infinity in one sequence reach what they reach in PyTorch, and no other sequence."""
    op = operands(cell, Shape(6, 5, 3, 18), dtype=torch.float32)
    for name, place in (("input", (2, 1, 0)), ("h_0", (1, 3)), ("c_0", (1, 3)), ("bias_ih", (2,))):
        if name not in op.tensors:
            continue
        poisoned = op.tensors[name].detach().clone()
        poisoned[place] = poison
        for result, expected in zip(op.run(backend, **{name: poisoned}), op.run("reference", **{name: poisoned})):
            torch.testing.assert_close(result, expected, equal_nan=True, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("used", [["output"], ["h_n"], ["c_n"], ["cells"], ["output", "c_n"]], ids="+".join)
def test_gradients_of_some_results(cell, backend, used):
    """A result that the loss does not use counts as a zero gradient, not as uninitialised memory."""
    if used[-1].startswith("c") and not ops.CELLS[cell].has_cell_state:
        pytest.skip("has no cell state")
    op = operands(cell, Shape(5, 3, 4, 6))
    leaves = list(op.tensors.values())
    gradients = []
    for name in (backend, "reference"):
        results = dict(zip(("output", "h_n", "c_n", "cells"), op.run(name)))
        loss = sum(results[key].square().sum() for key in used)
        gradients.append(torch.autograd.grad(loss, leaves))
    assert relative_error(*gradients) < 1e-11


def test_gradients_of_some_operands(cell, backend):
    """An operand that alone requires a gradient gets the same one as when all do."""
    op = operands(cell, Shape(4, 3, 2, 5))
    d_results = random_like(op.run("reference"))
    exact = dict(zip(op.tensors, op.results_and_gradients("reference", d_results)[len(d_results) :]))
    for name, tensor in op.tensors.items():
        frozen = {n: t.detach() for n, t in op.tensors.items() if n != name}
        (gradient,) = torch.autograd.grad(op.run(backend, **frozen), tensor, d_results)
        torch.testing.assert_close(gradient, exact[name])


def test_double_backward(cell, backend):
    op = operands(cell, Shape(3, 2, 3, 4))
    assert torch.autograd.gradgradcheck(op.function(backend), tuple(op.tensors.values()))


@pytest.mark.parametrize("context", ["checkpoint", "save_on_cpu"])
def test_double_backward_beside_hooks_of_saved_tensors(backend, context):
    op = operands("gru", Shape(3, 2, 2, 2))
    x = op.tensors["input"]

    def penalty(x, name):
        (first,) = torch.autograd.grad(op.run(name, input=x)[0].square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x, create_graph=True)[0].square().sum()

    if context == "checkpoint":
        value = checkpoint(penalty, x, backend, use_reentrant=False)
    else:
        with torch.autograd.graph.save_on_cpu():
            value = penalty(x, backend)
    torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(penalty(x, "reference"), x))


def test_third_derivative(backend):
    """The third derivative of a scalar LSTM by its input equals the reference's."""
    op = operands("lstm", Shape(2, 1, 1, 1))
    derivatives = []
    for name in (backend, "reference"):
        value = op.run(name)[0].sum()
        for _ in range(3):
            (value,) = torch.autograd.grad(value.sum(), op.tensors["input"], create_graph=True)
        derivatives.append(value)
    torch.testing.assert_close(*derivatives)


def test_derivative_stops_at_the_operands(backend):
    """Double backward is right when an operand is itself a function of another one."""
    op = operands("gru", Shape(3, 2, 2, 2))
    gradients = []
    for name in (backend, "reference"):
        x = op.tensors["input"]
        tied = {"h_0": x.sum(0).tanh(), "weight_hh": op.tensors["weight_hh"] * x.mean()}
        (first,) = torch.autograd.grad(op.run(name, **tied)[0].square().sum(), x, create_graph=True)
        gradients.append(torch.autograd.grad(first.square().sum(), [x, op.tensors["weight_ih"]]))
    assert relative_error(*gradients) < 1e-10


def test_only_gradients_that_are_differentiated_go_through_autograd():
    """The autograd part of an operator is Python, which would slow single steps."""
    op = operands("lstm", Shape(1, 1, 2, 3))
    called = []

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_filename == derivatives.__file__:
            called.append(frame.f_code.co_name)

    for op.recompute, differentiated in itertools.product((False, True), (False, True)):
        output = op.run("cpu")[0].sum()
        called.clear()
        before = sys.getprofile()
        sys.setprofile(note)
        try:
            torch.autograd.grad(output, op.tensors["input"], create_graph=differentiated)
        finally:
            sys.setprofile(before)
        assert "_forward_backward" in called
        assert ("kernel" in called) == differentiated


def test_forward_mode_is_the_references(backend):
    """No kernel has forward-mode derivatives: auto takes the reference, a backend by name refuses; none says zero."""
    op = operands("lstm", Shape(3, 2, 2, 3))
    x = op.tensors["input"].detach()
    frozen = {name: t.detach() for name, t in op.tensors.items()}

    def output(x, name):
        return op.run(name, **{**frozen, "input": x})[0]

    tangents = [torch.func.jvp(lambda x, n=name: output(x, n), (x,), (x,))[1] for name in ("auto", "reference")]
    torch.testing.assert_close(*tangents)
    assert tangents[0].abs().sum() > 0
    with pytest.raises(NotImplementedError, match="no forward-mode derivatives"):
        torch.func.jvp(lambda x: output(x, backend), (x,), (x,))


def test_empty_batch(cell, backend):
    op = operands(cell, Shape(3, 0, 2, 4))
    for result, expected in zip(op.run(backend), op.run("reference")):
        assert result.shape == expected.shape
    op.run(backend)[0].sum().backward()
    assert (op.tensors["weight_hh"].grad == 0).all()


def test_operands_are_only_read(cell, backend):
    """A tensor that is copied on write is not even copied."""
    op = operands(cell, Shape(3, 2, 2, 4))
    lazy = {name: torch._lazy_clone(t.detach()).requires_grad_() for name, t in op.tensors.items()}
    op.run(backend, **lazy)[0].sum().backward()
    assert all(torch._C._is_cow_tensor(t) for t in lazy.values())


def test_strided_operands(cell, backend):
    """Transposed, expanded and sliced operands and gradients are read correctly."""
    op = operands(cell, Shape(5, 4, 3, 6))
    d_results = random_like(op.run("reference"))
    exact = op.results_and_gradients("reference", d_results)
    for name, t in op.tensors.items():
        wide = torch.stack([t.detach(), torch.full_like(t, float("nan"))], -1)
        op.tensors[name] = wide[..., 0].requires_grad_()
        assert not op.tensors[name].is_contiguous()
    strided = [torch.stack([d, d], -1)[..., 0] for d in d_results]
    assert relative_error(op.results_and_gradients(backend, strided), exact) < 1e-11
    output = op.run(backend)[0]
    (gradient,) = torch.autograd.grad(output.sum(), op.tensors["input"])  # an expanded gradient, strides 0
    (expected,) = torch.autograd.grad(op.run("reference")[0].sum(), op.tensors["input"])
    torch.testing.assert_close(gradient, expected)


def test_same_bits_twice(cell, backend):
    op = operands(cell, Shape(40, 17, 11, 70), dtype=torch.float32)
    d_results = random_like(op.run("reference"))
    first, second = (op.results_and_gradients(backend, d_results) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


# threads share sequences in the first shape, and panels in the others, which have few sequences or large weights
THREADED = [Shape(30, 21, 7, 19), Shape(9, 1, 5, 200), Shape(3, 3, 210, 190), Shape(2, 20, 3, 270), Shape(1, 2, 9, 390)]


@pytest.mark.parametrize("shape", THREADED, ids=str)
def test_threads_agree(cell, shape):
    op = operands(cell, shape)
    d_results = random_like(op.run("reference"))
    exact = op.results_and_gradients("reference", d_results)
    for number in (1, 2, 3):
        with threads(number):
            assert relative_error(op.results_and_gradients("cpu", d_results), exact) < 1e-11


WHOLE = [(cell, "whole") for cell in ops.CELLS]
OTHERWISE = [(cell, kind) for cell in ("lstm", "multiplicative_gru") for kind in ("lengths", "regularised")]


# a call takes seconds
@pytest.mark.parametrize(
    ("cell", "kind"), some_of(WHOLE + OTHERWISE, ("lstm", "whole"), ("multiplicative_gru", "regularised"))
)
def test_opcheck(cell, kind):
    op = operands(cell, Shape(3, 2, 3, 4), lengths=[3, 1] if kind == "lengths" else None, dtype=torch.float32)
    op = regularised(op) if kind == "regularised" else op
    args = (*op.arguments(), cell, False, op.gradient_clip or 0.0, "everything")
    torch.library.opcheck(torch.ops.fused_rnn.forward.default, args)
    op.gradient_clip = None  # opcheck would differentiate clipped gradients
    torch.library.opcheck(torch.ops.fused_rnn.backward.default, backward_arguments(op, args))


def backward_arguments(op: Operands, forward_arguments: tuple) -> tuple:
    """Return the operator's arguments, with copies of all results as their gradients."""
    output, h_n, c_n, cells, saved = (t.detach() for t in torch.ops.fused_rnn.forward(*forward_arguments))
    d_states = (c_n.clone(), cells.clone()) if ops.CELLS[op.cell].has_cell_state else (None, None)
    d_results = output.clone().requires_grad_(), h_n.clone(), *d_states
    return *d_results, output, cells, saved, *op.arguments(), op.cell, op.reverse, op.gradient_clip or 0.0, True, True


def test_opcheck_where_nothing_is_saved():
    frozen = [None if t is None else t.detach() for t in operands("lstm", Shape(3, 2, 3, 4)).arguments()]
    torch.library.opcheck(torch.ops.fused_rnn.forward.default, (*frozen, "lstm", False, 0.0, "nothing"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=["f32", "f64", "bf16"])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
def test_saved_states(cell, dtype, reverse, lengths):
    """``save="states"`` returns cell states only, and "nothing" not even these; the results are the same."""
    op = operands(cell, Shape(7, len(LENGTHS), 5, 18), lengths=lengths, dtype=dtype)
    *results, cells, _ = torch.ops.fused_rnn.forward(*op.arguments(), cell, reverse, 0.0, "everything")
    assert cells.shape == ((7, len(LENGTHS), 18) if ops.CELLS[cell].has_cell_state else (0,))
    for save in ("states", "nothing"):
        *others, states, saved = torch.ops.fused_rnn.forward(*op.arguments(), cell, reverse, 0.0, save)
        assert all(torch.equal(a, b) for a, b in zip(results, others))
        assert torch.equal(states, cells if save == "states" else cells.new_empty(0))
        assert saved.shape == (0,)


def test_cell_states(cell, backend, reverse):
    """Cell states are zero past the end, like outputs; other results and gradients have the same bits without them."""
    if not ops.CELLS[cell].has_cell_state:
        with pytest.raises(ValueError, match=f"cell states, and cell '{cell}' has none"):
            ops.run(cell, *[None] * 3, return_cells=True)
        return
    op = operands(cell, Shape(7, len(LENGTHS), 5, 18), reverse=reverse, lengths=LENGTHS)
    *results, cells = op.run(backend)
    past = (torch.arange(7).unsqueeze(1) >= op.lengths).unsqueeze(2)
    assert (cells.masked_select(past) == 0).all()
    d_results = random_like(results)
    gradients = torch.autograd.grad(results, list(op.tensors.values()), d_results)
    others = replace(op, return_cells=False).results_and_gradients(backend, d_results)
    assert all(torch.equal(a, b) for a, b in zip([*results, *gradients], others, strict=True))
    with torch.no_grad():
        assert torch.equal(op.run(backend)[-1], cells)


def test_backward_needs_what_forward_saved():
    op = operands("lstm", Shape(2, 1, 1, 1))
    output, *_ = torch.ops.fused_rnn.forward(*op.arguments(), "lstm", False, 0.0, "nothing")
    with pytest.raises(RuntimeError, match="save='nothing'"):
        output.sum().backward()


def test_operator_refuses_what_it_cannot_read():
    """A direct caller gets an error and never reads out of bounds."""
    op = operands("lstm", Shape(2, 2, 3, 4))
    good = op.arguments()
    with pytest.raises(RuntimeError, match="unknown cell 'lstn'"):
        torch.ops.fused_rnn.forward(*good, "lstn", False, 0.0, "nothing")
    backward = list(backward_arguments(op, (*good, "lstm", False, 0.0, "everything")))
    for index, name in enumerate(("d_output", "d_h_n", "d_c_n", "d_cells", "output", "cells", "saved")):
        wrong = [*backward[:index], backward[index].detach()[..., :-1], *backward[index + 1 :]]
        with pytest.raises(RuntimeError, match=f"{name} must have shape"):
            torch.ops.fused_rnn.backward(*wrong)
    with pytest.raises(RuntimeError, match="save must be 'nothing', 'states' or 'everything', got 'all'"):
        torch.ops.fused_rnn.forward(*good, "lstm", False, 0.0, "all")
    meta = [None if t is None else t.to("meta") for t in good]
    with pytest.raises(RuntimeError, match="save must be 'nothing', 'states' or 'everything', got 'all'"):
        torch.ops.fused_rnn.forward(*meta, "lstm", False, 0.0, "all")
    for index, name in ((1, "h_0"), (2, "c_0"), (3, "weight_ih"), (4, "weight_hh"), (5, "bias_ih"), (6, "bias_hh")):
        wrong = list(good)
        wrong[index] = good[index].detach()[..., :-1]
        with pytest.raises(RuntimeError, match=r"must have shape|c_0"):
            torch.ops.fused_rnn.forward(*wrong, "lstm", False, 0.0, "nothing")
        wrong[index] = good[index].detach().float()
        with pytest.raises(RuntimeError, match=f"{name} and input must have the same dtype"):
            torch.ops.fused_rnn.forward(*wrong, "lstm", False, 0.0, "nothing")
    for index, name in ((11, "keep_h"), (12, "keep_c")):
        wrong = list(good)
        wrong[index] = torch.ones(2, 2, 3, dtype=torch.float64)
        with pytest.raises(RuntimeError, match=f"{name} must have shape"):
            torch.ops.fused_rnn.forward(*wrong, "lstm", False, 0.0, "nothing")
    with pytest.raises(RuntimeError, match="gradient_clip must be positive, or 0 for none, got -1"):
        torch.ops.fused_rnn.forward(*good, "lstm", False, -1.0, "nothing")
