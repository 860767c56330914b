"""The yardstick of low precision: its measurements are right, and it detects errors."""

import pytest
import torch

from .conftest import Shape, operands, random_like, regularised, relative_error
from .precision import Yardstick, gradients_by_large_products

SHAPE = Shape(6, 5, 3, 7)


@pytest.mark.parametrize("options", ["plain", "lengths", "regularised"])
def test_large_products_make_the_same_gradients(cell, reverse, options):
    op = operands(cell, SHAPE, reverse=reverse, lengths=[6, 0, 3, 1, 6] if options == "lengths" else None)
    op = regularised(op) if options == "regularised" else op
    d_results = random_like(op.run("reference"))
    gradients = dict(zip(op.tensors, op.results_and_gradients("reference", d_results)[len(d_results) :]))
    large = gradients_by_large_products(op, d_results)
    assert list(large) == [name for name in op.tensors if name.startswith("weight")]
    assert relative_error(list(large.values()), [gradients[name] for name in large]) < 1e-13


@pytest.mark.parametrize("spoilt", ["output", "input", "weight_hh", "bias_ih"])
def test_an_error_in_one_tensor_is_seen(spoilt):
    yardstick = Yardstick(operands("gru", SHAPE, dtype=torch.float32, seed=seed) for seed in range(2))
    op = yardstick.draws[0][0]
    place = ["output", "h_n", *op.tensors].index(spoilt)

    def loop(op, d_results, factor=1.0):
        values = op.results_and_gradients("reference", d_results)
        return [*values[:place], factor * values[place], *values[place + 1 :]]

    yardstick.assert_no_worse(loop)
    with pytest.raises(AssertionError, match="errors and PyTorch's, tensor by tensor"):
        yardstick.assert_no_worse(lambda *given: loop(*given, factor=1 + 1e-5))
    with pytest.raises(AssertionError, match="NaN"):
        yardstick.assert_no_worse(lambda *given: loop(*given, factor=float("nan")))


def test_the_better_way_of_pytorch_counts():
    """The less exact of a way and the loop does not count; both are compared with the same float64 results."""
    op = operands("lstm", SHAPE, dtype=torch.float32)
    loop = Yardstick([op])
    worse = Yardstick([op], lambda op, d: [1.1 * value for value in op.results_and_gradients("reference", d)])
    better = Yardstick([op], lambda op, d: op.to(torch.float64).results_and_gradients("reference", d))
    assert worse.theirs == loop.theirs
    assert all(theirs == 0 for theirs, name in zip(better.theirs[4:], op.tensors) if not name.startswith("weight"))
