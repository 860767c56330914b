"""Results and gradients, for every shape, dtype and layout of the operands."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from fused_rnn import functional, ops

from ..conftest import LENGTHS, ODD_SHAPES, Operands, Shape, operands, random_like, regularised, relative_error
from ..test_functional import call
from ..test_ops import torch_results_and_gradients
from ..test_vmap import BATCHED, SHAPE
from ..test_vmap import error as vmap_error
from ..test_vmap import error_of_members as vmap_error_of_members
from .places import EVERY_BACKEND, EVERY_SHAPE, FLOATS, Place, sized, skip_unless_it_computes_in

pytestmark = pytest.mark.gpu


def public(op: Operands, place: Place, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Call the public function of the cell with tensors in the order of the operands."""
    named = dict(zip(op.tensors, tensors))
    state = (named["h_0"], named["c_0"]) if "c_0" in named else named["h_0"]
    how = {"reverse": op.reverse, "lengths": op.lengths, "backend": place.backend}
    if "c_0" in named:
        output, last, cells = call(functional, op.cell, named, state, **how, return_cells=True)
        return output, *last, cells
    return call(functional, op.cell, named, state, **how)


@pytest.mark.parametrize("shape", [*ODD_SHAPES, Shape(3, 9, 2, 3)], ids=str)
def test_gradcheck(place, cell, shape, reverse):
    op = place.operands(cell, shape, reverse=reverse)
    assert torch.autograd.gradcheck(partial(public, op, place), tuple(op.tensors.values()))


@pytest.mark.parametrize("shape", [Shape(3, 9, 40, 65)], ids=str)
def test_gradcheck_of_several_blocks(place, cell, shape):
    op = place.operands(cell, shape)
    assert torch.autograd.gradcheck(partial(public, op, place), tuple(op.tensors.values()), fast_mode=True)


def test_double_backward(place, cell):
    op = place.operands(cell, Shape(3, 2, 3, 4), lengths=[3, 1])
    assert torch.autograd.gradgradcheck(partial(public, op, place), tuple(op.tensors.values()))


@EVERY_BACKEND
@pytest.mark.parametrize("names", BATCHED.values(), ids=BATCHED)
def test_vmap(place, cell, names):
    """Batched calls equal a loop, up to rounding."""
    op = replace(place.operands(cell, SHAPE, dtype=torch.float32), lengths=torch.tensor([3, 1], device=place.device))
    if set(names) & set(op.tensors):
        assert vmap_error(op, place.backend, names, place.backend) < 1e-5
        assert vmap_error_of_members(op, place.backend, names, place.backend) < 1e-5


@EVERY_SHAPE
def test_float64_equals_reference(place, cell, shape, reverse):
    op = place.operands(cell, shape, reverse=reverse)
    d_results = random_like(op.run("reference"))
    exact = op.results_and_gradients("reference", d_results)
    assert relative_error(op.results_and_gradients(place.backend, d_results), exact) < 1e-11


def test_without_bias(place, cell):
    op = place.operands(cell, Shape(5, 3, 6, 20), bias=False)
    d_results = random_like(op.run("reference"))
    exact = op.results_and_gradients("reference", d_results)
    assert relative_error(op.results_and_gradients(place.backend, d_results), exact) < 1e-11


@EVERY_BACKEND
@FLOATS
@EVERY_SHAPE
def test_error_is_at_most_twice_that_of_pytorch(place, cell, dtype, shape):
    """Errors are against float64 on the same rounded operands, in the mean of several draws.

    PyTorch's error is that of the reference or, if torch.nn has the cell, the smaller of both.
    """
    skip_unless_it_computes_in(place, dtype)
    draws = [errors(place, place.operands(cell, shape, scale=1.0, dtype=dtype, seed=seed)) for seed in range(4)]
    ours, *theirs = (sum(values) / len(draws) for values in zip(*draws))
    assert ours <= 2 * min(theirs)


def errors(place: Place, op: Operands) -> list[float]:
    """Return the errors of this backend, of the reference, and of torch.nn if it has the cell."""
    op.return_cells = op.cell != "lstm"  # torch.nn returns none
    d_results = random_like(op.run("reference"))
    exact = op.to(torch.float64).results_and_gradients("reference", d_results)
    values = [op.results_and_gradients(name, d_results) for name in (place.backend, "reference")]
    if op.cell in ("lstm", "gru_reset_after"):
        values.append(torch_results_and_gradients(op, d_results))
    return [relative_error(v, exact) for v in values]


@EVERY_BACKEND
@FLOATS
@pytest.mark.parametrize("value", [30.0, -30.0, 1e4, -1e4])
def test_saturated_gates(place, cell, dtype, value):
    """Huge pre-activations saturate and never make a NaN."""
    skip_unless_it_computes_in(place, dtype)
    if cell == "rnn_relu":
        pytest.skip("grows without bound, by its equation")
    op = place.operands(cell, Shape(3, 2, 2, 19), dtype=dtype)
    replaced = {name: torch.full_like(t, value) for name, t in op.tensors.items() if name == "bias_ih"}
    exact = op.to(torch.float64).run("reference", **{name: t.double() for name, t in replaced.items()})
    allowed = 8 * torch.finfo(dtype).eps
    for result, expected in zip(op.run(place.backend, **replaced), exact):
        torch.testing.assert_close(result.double(), expected, rtol=allowed, atol=allowed)


def test_zoneout_and_clipping(place, cell, reverse):
    op = operands(cell, Shape(7, len(LENGTHS), 5, 40), reverse=reverse, lengths=LENGTHS)
    op = regularised(op, drawn=reverse).on(place.device)
    d_results = random_like(op.run("reference"))
    exact = op.results_and_gradients("reference", d_results)
    assert relative_error(op.results_and_gradients(place.backend, d_results), exact) < 1e-11
    op.recompute = True
    assert relative_error(op.results_and_gradients(place.backend, d_results), exact) < 1e-11


@pytest.mark.parametrize("hidden", [18, sized(Shape(1, 1, 1, 600), Shape(1, 1, 1, 60)).H])
def test_lengths(place, cell, reverse, hidden):
    """NaN past the end of a sequence, or in the gradient of an output there, does not spread."""
    op = place.operands(cell, Shape(7, len(LENGTHS), 5, hidden), reverse=reverse, lengths=LENGTHS)
    d_results = random_like(op.run("reference"))
    exact = op.results_and_gradients("reference", d_results)
    past = (torch.arange(7, device=place.device).unsqueeze(1) >= op.lengths).unsqueeze(2)
    op.tensors["input"] = op.tensors["input"].detach().masked_fill(past, torch.nan).requires_grad_()
    d_results[0] = d_results[0].masked_fill(past, torch.nan)
    assert relative_error(op.results_and_gradients(place.backend, d_results), exact) < 1e-11


def test_lengths_out_of_range_count_as_the_nearest(place, cell, reverse):
    """The values are not checked on a GPU; the CPU refuses them."""
    op = place.operands(cell, Shape(5, 4, 2, 3), reverse=reverse, lengths=[0, 5, 2, 5])
    d_results = random_like(op.run("reference"))
    expected = op.results_and_gradients(place.backend, d_results)
    op.lengths = torch.tensor([-3, 9, 2, 5], device=place.device)
    if not place.is_gpu:
        with pytest.raises(RuntimeError, match="lengths must be between 0 and T"):
            op.run(place.backend)
        return
    results = op.results_and_gradients(place.backend, d_results)
    assert all(torch.equal(a, b) for a, b in zip(results, expected))


def test_strided_operands(place, cell):
    """Strided operands, and strided or expanded gradients, are read correctly."""
    op = place.operands(cell, Shape(5, 4, 3, 6))
    d_results = random_like(op.run("reference"))
    exact = op.results_and_gradients("reference", d_results)
    for name, t in op.tensors.items():
        wide = torch.stack([t.detach(), torch.full_like(t, float("nan"))], -1)
        op.tensors[name] = wide[..., 0].requires_grad_()
    strided = [torch.stack([d, d], -1)[..., 0] for d in d_results]
    assert relative_error(op.results_and_gradients(place.backend, strided), exact) < 1e-11
    output = op.run(place.backend)[0]
    (gradient,) = torch.autograd.grad(output.sum(), op.tensors["input"])  # an expanded gradient, strides 0
    (expected,) = torch.autograd.grad(op.run("reference")[0].sum(), op.tensors["input"])
    torch.testing.assert_close(gradient, expected)


def off_by_one(t: Tensor) -> Tensor:
    """Return a copy that begins one element into its memory, so that nothing wider than an element is aligned."""
    memory = torch.full((t.numel() + 1,), float("nan"), dtype=t.dtype, device=t.device)
    memory[1:] = t.detach().flatten()
    return memory[1:].view(t.shape)


@EVERY_BACKEND
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [Shape(5, 4, 16, 32), Shape(4, 9, 24, 192)], ids=str)
def test_misaligned_operands(place, cell, dtype, shape):
    """Operands that are aligned only to an element give the same results, up to rounding."""
    skip_unless_it_computes_in(place, dtype)
    op = place.operands(cell, shape, dtype=dtype)
    d_results = random_like(op.run("reference"))
    expected = op.results_and_gradients(place.backend, d_results)
    op.tensors = {name: off_by_one(t).requires_grad_() for name, t in op.tensors.items()}
    assert all(t.data_ptr() % 16 for t in op.tensors.values())
    results = op.results_and_gradients(place.backend, [off_by_one(d) for d in d_results])
    assert relative_error(results, expected) <= 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
def test_recompute(place, cell, reverse, lengths):
    """A backward pass from states alone, in several parts, gives the same gradients."""
    steps = sized(Shape(300, 1, 1, 1), Shape(60, 1, 1, 1)).T
    lengths = None if lengths is None else [n * steps // 7 for n in lengths]
    op = place.operands(cell, Shape(steps, len(LENGTHS), 5, 18), reverse=reverse, lengths=lengths, scale=0.3)
    d_results = random_like(op.run("reference"))
    runs = [replace(op, recompute=r).results_and_gradients(place.backend, d_results) for r in (False, True)]
    assert relative_error(*runs) < 1e-11


@pytest.mark.parametrize("used", [["output"], ["h_n"], ["c_n"], ["cells"]], ids="+".join)
def test_gradients_of_some_results(place, cell, used):
    """A result that the loss does not use counts as a zero gradient, not as uninitialised memory."""
    if used[-1].startswith("c") and not ops.CELLS[cell].has_cell_state:
        pytest.skip("has no cell state")
    op = place.operands(cell, Shape(5, 3, 4, 6))
    gradients = []
    for name in (place.backend, "reference"):
        results = dict(zip(("output", "h_n", "c_n", "cells"), op.run(name)))
        loss = sum(results[key].square().sum() for key in used)
        gradients.append(torch.autograd.grad(loss, list(op.tensors.values())))
    assert relative_error(*gradients) < 1e-11


def test_gradients_of_some_operands(place, cell):
    """An operand that alone requires a gradient gets the same one as when all do."""
    op = place.operands(cell, Shape(4, 3, 2, 5))
    d_results = random_like(op.run("reference"))
    exact = dict(zip(op.tensors, op.results_and_gradients("reference", d_results)[len(d_results) :]))
    for name, tensor in op.tensors.items():
        frozen = {n: t.detach() for n, t in op.tensors.items() if n != name}
        (gradient,) = torch.autograd.grad(op.run(place.backend, **frozen), tensor, d_results)
        torch.testing.assert_close(gradient, exact[name])


@EVERY_BACKEND
def test_more_values_than_an_int32_counts(place):
    """The last sequence of a call whose arrays pass 2³¹ values equals the same sequence run alone."""
    shape = sized(Shape(1100, 512, 8, 1024), Shape(11, 5, 8, 10))
    if place.is_gpu and torch.cuda.mem_get_info(place.device)[0] < 64 * 2**30:
        pytest.skip("needs 64 GiB of free memory")
    op = place.operands("lstm", shape, dtype=torch.bfloat16)
    alone = {name: t[-1:] if name in ("h_0", "c_0") else t for name, t in op.tensors.items()}
    alone = {name: t[:, -1:] if name == "input" else t for name, t in alone.items()}
    runs = []
    for tensors in (op.tensors, alone):
        leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
        output = op.run(place.backend, **leaves)[0][:, -1:]
        runs.append([output, *torch.autograd.grad(output.sum(), [leaves["input"], leaves["weight_hh"]])])
        runs[-1][1] = runs[-1][1][:, -1:]
        runs[-1] = [t.detach().clone() for t in runs[-1]]
    assert relative_error(*runs) < 2e-2  # bfloat16: products of different numbers of rows round differently
