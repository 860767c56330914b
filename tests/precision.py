"""What results in low precision are held against: PyTorch's own errors in the same dtype, tensor by tensor.

PyTorch computes a call in several ways: by the plain loop and, for some cells, by a module of torch.nn. The better of
these says how large an error may be anywhere. The gradient of a weight is besides a sum over all steps and sequences,
for which whole sequences take one large product of PyTorch's, while the loop adds up small ones. How exact the large
product is depends on library, processor and sizes alone (in float32 it may be off by three times as much as the loop),
so such a gradient is held against that product of the same operands where this has the larger error.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .conftest import Operands, relative_error, relative_errors


def exact_and_allowed(op: Operands, d_results: list[Tensor], *others: list[Tensor]) -> tuple[list[Tensor], list[float]]:
    """Results and gradients in float64 of the same rounded operands, and the relative error that each may have.

    That is twice PyTorch's own in the dtype of ``op``. ``others`` are what other ways of PyTorch make of the same call
    than the plain loop.
    """
    exact = op.to(torch.float64).results_and_gradients("reference", d_results)
    ways = [op.results_and_gradients("reference", d_results), *others]
    theirs = [min(relative_error(way, exact) for way in ways)] * len(exact)
    places = {name: len(d_results) + place for place, name in enumerate(op.tensors)}
    for name, product in gradients_by_large_products(op, d_results).items():
        theirs[places[name]] = max(theirs[places[name]], relative_error([product], [exact[places[name]]]))
    return exact, [2 * error for error in theirs]


def assert_within(values: list[Tensor], exact: list[Tensor], allowed: list[float]) -> None:
    """None of the tensors has a larger error than it may have."""
    errors = relative_errors(values, exact)
    assert all(error <= most for error, most in zip(errors, allowed, strict=True)), list(zip(errors, allowed))


def gradients_by_large_products(op: Operands, d_results: list[Tensor]) -> dict[str, Tensor]:
    """The plain loop's gradients of the weights, but each summed over all steps at once, by name.

    That is the gradient of one product of the weight with all that it is multiplied with in the steps.
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
    """Keeps the products with weights that are computed while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self._products: dict[tuple, list[tuple[Tensor, Tensor, Tensor]]] = {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        if function is F.linear:
            input, weight, *_ = args
            which = weight.data_ptr(), weight.shape  # a loop may cut a weight into its parts anew in every step
            self._products.setdefault(which, []).append((input, weight, output))
        return output

    def of_weights(self) -> list[tuple[tuple[Tensor, ...], ...]]:
        """For each weight, or part of one, the inputs, the weight and the outputs, of one product after the other."""
        return [tuple(zip(*products)) for products in self._products.values()]
