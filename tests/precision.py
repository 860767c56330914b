"""The standard for results in low precision: PyTorch's own errors in the same dtype, tensor by tensor.

PyTorch computes a call in several ways: by the plain loop and, for some cells, by a module of torch.nn. The better of
these limits the error of every tensor. The gradient of a weight is also a sum over all steps and sequences, which
PyTorch computes as one large product for whole sequences, while the loop adds up small ones. The error of the large
product depends on library, processor and sizes alone (in float32 it may be three times the loop's), so such a gradient
is held against that product of the same operands if its error is larger.

Errors are means over several draws of the operands, because PyTorch's error may be small by luck in a single draw. They
are medians if there are kinks: a pre-activation of relu within rounding of zero has a gradient or none, and a draw with
one more of these than PyTorch has says nothing about the error of the rest.
"""

from collections.abc import Callable, Iterable
from statistics import fmean

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .conftest import Operands, random_like, relative_error, relative_errors

Way = Callable[[Operands, list[Tensor]], list[Tensor]]  # maps gradients of the results to results and gradients


class Yardstick:
    """PyTorch's errors in ``draws`` of the same call, by the plain loop and by ``others``."""

    def __init__(self, draws: Iterable[Operands], *others: Way, average: Callable[..., float] = fmean):
        self.average = average
        self.draws = []  # a call, the gradients of its results, and the float64 results and gradients
        theirs = []
        for op in draws:
            d_results = random_like(op.run("reference"))
            exact = op.to(torch.float64).results_and_gradients("reference", d_results)
            self.draws.append((op, d_results, exact))
            ways = [op.results_and_gradients("reference", d_results), *(other(op, d_results) for other in others)]
            anywhere = min(relative_error(values, exact) for values in ways)
            theirs.append(_at_least_of_large_products(anywhere, op, d_results, exact))
        self.theirs = self._averages(theirs)

    def assert_no_worse(self, way: Way) -> None:
        """Assert that errors of results and gradients by ``way`` are at most twice PyTorch's."""
        ours = self._averages([relative_errors(way(op, d_results), exact) for op, d_results, exact in self.draws])
        pairs = list(zip(ours, self.theirs, strict=True))
        assert all(our <= 2 * their for our, their in pairs), f"errors and PyTorch's, tensor by tensor: {pairs}"

    def _averages(self, errors: list[list[float]]) -> list[float]:
        """Average the errors of each tensor over the draws."""
        return [self.average(of_tensor) for of_tensor in zip(*errors)]


def _at_least_of_large_products(
    error: float, op: Operands, d_results: list[Tensor], exact: list[Tensor]
) -> list[float]:
    """Return ``error`` for every tensor, or the error of its large product if that is larger."""
    large = gradients_by_large_products(op, d_results)
    names = [*[None] * len(d_results), *op.tensors]
    return [max(error, relative_error([large[name]], [e])) if name in large else error for name, e in zip(names, exact)]


def gradients_by_large_products(op: Operands, d_results: list[Tensor]) -> dict[str, Tensor]:
    """Return the plain loop's gradients of the weights by name, but each summed over all steps at once.

    Each is the gradient of one product of the weight with its operands of all steps.
    """
    with Products() as products:
        results = op.run("reference")
    steps = [(torch.cat(inputs).detach(), weights[0], outputs) for inputs, weights, outputs in products.of_weights()]
    outputs = [output for *_, outputs in steps for output in outputs]
    d_outputs = iter(torch.autograd.grad(results, outputs, d_results, retain_graph=True))
    large = [F.linear(inputs, weight) for inputs, weight, _ in steps]
    d_large = [torch.cat([next(d_outputs) for _ in outputs]) for *_, outputs in steps]
    weights = {name: t for name, t in op.tensors.items() if name.startswith("weight")}
    return dict(zip(weights, torch.autograd.grad(large, list(weights.values()), d_large)))


class Products(TorchFunctionMode):
    """Record the products with weights that are computed within the context."""

    def __init__(self) -> None:
        super().__init__()
        self._products: dict[tuple, list[tuple[Tensor, Tensor, Tensor]]] = {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        if function is F.linear:
            input, weight, *_ = args
            which = weight.data_ptr(), weight.shape  # a loop may slice a weight again in every step
            self._products.setdefault(which, []).append((input, weight, output))
        return output

    def of_weights(self) -> list[tuple[tuple[Tensor, ...], ...]]:
        """Return, for each weight or part of one, the inputs, the weight and the outputs of its products in order."""
        return [tuple(zip(*products)) for products in self._products.values()]
