"""Sequences of different lengths in one call: results, gradients, mistakes, and no wasted work on the CPU."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.speed.clock import peak_growth
from fused_rnn import ops

from .conftest import (
    FUSED,
    LENGTHS,
    Shape,
    of_few_cells,
    operands,
    random_like,
    regularised,
    relative_error,
    some_of,
    threads,
)


def test_lengths_equal_reference(cell, backend, reverse):
    op = operands(cell, Shape(7, len(LENGTHS), 5, 18), reverse=reverse, lengths=LENGTHS)
    d_results = random_like(op.run("reference"))
    exact = op.results_and_gradients("reference", d_results)
    assert relative_error(op.results_and_gradients(backend, d_results), exact) < 1e-11


@pytest.mark.parametrize("lengths", [[0], [1], [4, 0], [1, 3]], ids=str)
def test_lengths_equal_reference_in_short_calls(cell, backend, reverse, lengths):
    op = operands(cell, Shape(4, len(lengths), 5, 18), reverse=reverse, lengths=lengths)
    d_results = random_like(op.run("reference"))
    exact = op.results_and_gradients("reference", d_results)
    assert relative_error(op.results_and_gradients(backend, d_results), exact) < 1e-11


@of_few_cells
def test_lengths_gradcheck(cell, backend, reverse):
    op = operands(cell, Shape(3, 3, 2, 3), reverse=reverse, lengths=[2, 0, 3])
    assert torch.autograd.gradcheck(op.function(backend), tuple(op.tensors.values()))
    assert torch.autograd.gradgradcheck(op.function(backend), tuple(op.tensors.values()))


def test_what_stands_past_the_end_does_not_matter(cell, backend, reverse):
    """NaN in the padding, or in the gradient of an output there, does not propagate."""
    op = operands(cell, Shape(7, len(LENGTHS), 3, 9), reverse=reverse, lengths=LENGTHS)
    d_results = random_like(op.run("reference"))
    exact = op.results_and_gradients("reference", d_results)
    past = torch.arange(7).unsqueeze(1) >= op.lengths
    op.tensors["input"] = op.tensors["input"].detach().masked_fill(past.unsqueeze(2), torch.nan).requires_grad_()
    d_results[0] = d_results[0].masked_fill(past.unsqueeze(2), torch.nan)
    assert relative_error(op.results_and_gradients(backend, d_results), exact) < 1e-11


@pytest.mark.parametrize("backend", [*FUSED, "reference"])
def test_wrong_lengths(backend):
    op = operands("gru", Shape(3, 2, 1, 1))
    for error, message, lengths in (
        (TypeError, "int64 tensor, got torch.float32", torch.ones(2)),
        (TypeError, "int64 tensor, got list", [1, 2]),
        (RuntimeError, r"shape \(2,\), one per sequence, got \(3,\)", torch.ones(3, dtype=torch.int64)),
        (RuntimeError, "lengths is on meta but input is on cpu", torch.ones(2, dtype=torch.int64, device="meta")),
        (RuntimeError, "between 0 and T = 3, got 4", torch.tensor([4, 1])),
        (RuntimeError, "between 0 and T = 3, got -1", torch.tensor([2, -1])),
    ):
        op.lengths = lengths
        with pytest.raises(error, match=message):
            op.run(backend)


# The CPU backend --------------------------------------------------------------------------------------------

ORDERS: dict[str, Callable[[list[int]], list[int]]] = {
    "falling": lambda lengths: sorted(lengths, reverse=True),
    "rising": sorted,
    "mixed": lambda lengths: lengths,
}
# several chunks of rows; steps larger than a chunk; and too few sequences, so that threads share units
CHUNKED = [(Shape(40, 60, 5, 18), 19), (Shape(4, 700, 2, 5), 3), (Shape(300, 7, 6, 190), 131)]


@of_few_cells
@pytest.mark.parametrize("order", some_of(ORDERS, "mixed"))
@pytest.mark.parametrize(("shape", "prime"), CHUNKED, ids=str)
def test_lengths_equal_reference_over_many_chunks(cell, reverse, shape, prime, order):
    lengths = ORDERS[order]([row * prime % (shape.T + 1) for row in range(shape.B)])
    op = regularised(operands(cell, shape, reverse=reverse, lengths=lengths))
    d_results = random_like(op.run("reference"))
    exact = op.results_and_gradients("reference", d_results)
    for number in (1, 2, 3):
        with threads(number):
            assert relative_error(op.results_and_gradients("cpu", d_results), exact) < 1e-11


@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recompute"])
def test_no_sequence_has_a_step(cell, reverse, recompute):
    op = operands(cell, Shape(30, 9, 5, 18), reverse=reverse, lengths=[0] * 9)
    op.recompute = recompute
    results = op.run("cpu")
    assert (results[0] == 0).all()
    gradients = dict(zip(op.tensors, torch.autograd.grad(results, list(op.tensors.values()), random_like(results))))
    states = {name: gradients.pop(name) for name in ("h_0", "c_0") if name in gradients}
    for name, last in zip(states, results[1:]):
        assert torch.equal(last, op.tensors[name])
    for gradient, d_last in zip(states.values(), random_like(results)[1:]):
        assert torch.equal(gradient, d_last)
    assert all((gradient == 0).all() for gradient in gradients.values())


GUARDED = """if True:
    import ctypes, itertools, mmap
    import torch
    from dataclasses import replace
    from fused_rnn.ops import CELLS
    from tests.conftest import Shape, operands, random_like, regularised

    SIZE = mmap.PAGESIZE // 8  # a row of float64 fills a page
    LENGTHS = [2, 0, 5, 1, 1, 4, 0, 0, 3]
    libc = ctypes.CDLL(None, use_errno=True)

    def guarded(values):
        memory = mmap.mmap(-1, values.numel() * 8)
        tensor = torch.frombuffer(memory, dtype=torch.float64).view(values.shape).copy_(values.detach())
        for time in range(values.shape[0]):
            for row, length in enumerate(LENGTHS):
                if time >= length:
                    page = ctypes.c_void_p(tensor[time, row].data_ptr())
                    assert libc.mprotect(page, mmap.PAGESIZE, 0) == 0
        return tensor

    for cell, reverse, recompute in itertools.product(CELLS, (False, True), (False, True)):
        print(cell, reverse, recompute, flush=True)
        op = regularised(operands(cell, Shape(6, len(LENGTHS), SIZE, SIZE), reverse=reverse, lengths=LENGTHS))
        d_results = [guarded(d) if d.dim() == 3 else d for d in random_like(op.run("cpu"))]
        op.tensors["input"] = guarded(op.tensors["input"]).requires_grad_()
        masks = {name: guarded(mask) for name in ("keep_h", "keep_c") if (mask := getattr(op, name)) is not None}
        replace(op, recompute=recompute, **masks).results_and_gradients("cpu", d_results)
    """


def test_steps_that_sequences_do_not_have_are_not_touched():
    """Past the ends, input, masks and gradients may be in unreadable memory."""
    command = [sys.executable, "-c", GUARDED]
    run = subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert run.returncode == 0, f"status {run.returncode} after\n{run.stdout}{run.stderr}"
    assert len(run.stdout.splitlines()) == 4 * len(ops.CELLS)


def test_steps_that_sequences_do_not_have_take_no_memory():
    """Outputs, cell states and other saved values of 200,000 rows take 300 MiB, but only 2,100 rows exist."""
    op = operands("lstm", Shape(2000, 100, 1, 64), lengths=[2000, *[1] * 99], dtype=torch.float32)

    def step() -> None:
        *_, c_n = op.run("cpu")[:3]
        torch.autograd.grad(c_n.sum(), list(op.tensors.values()))

    step()
    assert peak_growth(step) < 30
