"""Gradients of calls with few rows (steps x sequences), whose products the CPU backend computes in its own loops.

With more than ``FEW`` rows the library computes the products; the tests look at both sides of that limit.
"""

from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from fused_rnn import ops

from .conftest import Operands, Shape, of_few_cells, operands, random_like, regularised, relative_error, threads
from .precision import Yardstick

FEW = 8
SIZES = [(1, 1), (2, 1), (1, 3), (2, 2), (5, 1), (1, 6), (7, 1), (2, 4), (1, 8), (3, 3)]  # every T * B from 1 to 9
# around the tiles of a gradient: four lines, and two vectors of 2 to 8 doubles or 4 to 16 floats in columns
WIDTHS = [(1, 1), (3, 2), (5, 9), (16, 32), (31, 17), (35, 33), (70, 67)]


@of_few_cells
@pytest.mark.parametrize(("T", "B"), SIZES)
def test_gradcheck(cell, T, B):
    op = operands(cell, Shape(T, B, 3, 5))
    assert torch.autograd.gradcheck(op.function("cpu"), tuple(op.tensors.values()))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize(("I", "H"), WIDTHS)
def test_any_width_equals_reference(cell, reverse, I, H, bias):
    for T, B in SIZES:
        op = operands(cell, Shape(T, B, I, H), reverse=reverse, bias=bias)
        assert error_of(op) < 1e-12, (T, B)


def error_of(op: Operands) -> float:
    """Return the error of results and gradients of the CPU backend, against the reference."""
    d_results = random_like(op.run("reference"))
    return relative_error(op.results_and_gradients("cpu", d_results), op.results_and_gradients("reference", d_results))


@pytest.mark.parametrize("lengths", [[8], [0, 0], [3, 0, 5], [1, 2, 0, 4], [3, 6]], ids=str)
def test_lengths_and_regularisation(cell, reverse, lengths):
    """The rows of sequences that end early count as few, in any order, wherever they lie among many padded ones."""
    op = operands(cell, Shape(8, len(lengths), 5, 18), reverse=reverse, lengths=lengths)
    assert error_of(op) < 1e-12
    assert error_of(regularised(op, drawn=False)) < 1e-12


def test_strided_operands(cell):
    op = operands(cell, Shape(2, 3, 7, 19))
    d_results = random_like(op.run("reference"))
    exact = op.results_and_gradients("reference", d_results)
    for name, t in op.tensors.items():
        op.tensors[name] = torch.stack([t.detach(), torch.full_like(t, float("nan"))], -1)[..., 0].requires_grad_()
    strided = [torch.stack([d, d], -1)[..., 0] for d in d_results]
    assert relative_error(op.results_and_gradients("cpu", strided), exact) < 1e-12


def test_gradients_of_some_operands(cell):
    """If one operand alone requires a gradient, it gets the same one as when all do."""
    op = operands(cell, Shape(2, 3, 4, 9))
    d_results = random_like(op.run("reference"))
    exact = dict(zip(op.tensors, op.results_and_gradients("cpu", d_results)[len(d_results) :]))
    for name, tensor in op.tensors.items():
        frozen = {n: t.detach() for n, t in op.tensors.items() if n != name}
        (gradient,) = torch.autograd.grad(op.run("cpu", **frozen), tensor, d_results)
        assert torch.equal(gradient, exact[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [Shape(1, 1, 64, 64), Shape(1, 8, 37, 133), Shape(4, 2, 12, 40)], ids=str)
def test_low_precision_is_no_worse_than_pytorch(cell, dtype, shape):
    draws = [operands(cell, shape, scale=1.0, dtype=dtype, seed=seed) for seed in range(3)]
    yardstick = Yardstick([replace(op, return_cells=False) for op in draws])
    yardstick.assert_no_worse(lambda op, d_results: op.results_and_gradients("cpu", d_results))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_same_bits_by_any_number_of_threads(cell, dtype):
    op = operands(cell, Shape(2, 4, 83, 90), dtype=dtype)  # work enough for threads to share
    d_results = random_like(op.run("reference"))
    first, *others = [with_threads(op, d_results, number) for number in (1, 1, 2, 3)]
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def with_threads(op: Operands, d_results: list[torch.Tensor], number: int) -> list[torch.Tensor]:
    with threads(number):
        return op.results_and_gradients("cpu", d_results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=["f32", "f64", "bf16"])
def test_the_library_is_asked_for_nothing(cell, dtype):
    """The library takes longer to start than so few rows take to compute. With one more row, its operators appear."""
    assert library_calls(cell, Shape(2, FEW // 2, 5, 18), dtype) == set()
    assert library_calls(cell, Shape(1, FEW + 1, 5, 18), dtype) != set()


def library_calls(cell: str, shape: Shape, dtype: torch.dtype) -> set[str]:
    """Return PyTorch's operators that the backward operator calls."""
    op = operands(cell, shape, dtype=dtype)
    arguments = [None if t is None else t.detach() for t in op.arguments()]
    with torch.no_grad():
        output, h_n, c_n, cells, saved = torch.ops.fused_rnn.forward(*arguments, cell, False, 0.0, "everything")
        d_c_n = c_n if ops.CELLS[cell].has_cell_state else None
        call = (output, h_n, d_c_n, None, output, cells, saved, *arguments, cell, False, 0.0, True, True)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            torch.ops.fused_rnn.backward(*call)
    return {event.name for event in profiler.events() if event.name.startswith("aten::")}
