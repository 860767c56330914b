"""The check of a kernel against the reference in float64, judged by the reference's error in the kernel's dtype."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.speed import check
from fused_rnn import ops, products
from fused_rnn.cells import CELLS, WEIGHTS

from . import calls
from .build import Library

STATES = ("h_0", "c_0")


@dataclass(frozen=True)
class Error(check.Error):
    """The error of the result closest to or furthest beyond its tolerance, with the kernel's device and sizes."""

    where: str
    T: int
    B: int
    I: int
    H: int

    def __str__(self) -> str:
        return f"{self.where} with T={self.T} B={self.B} I={self.I} H={self.H}: {super().__str__()}"


class Judge:
    """Exact results and gradients at some sizes, and the distance of the reference in the dtype from them.

    The tolerance is twice the reference's error, and at least 32 roundings of a number, because the order of sums
    differs from the reference's. That would hide results that are not quite float32. With ``closely``, at sizes where
    chance averages out, the tolerance is twice the worst error of the reference; only gradients of weights and biases
    have a minimum, the rounding errors of sums over all steps and sequences, which are torch's.
    """

    def __init__(
        self, cell: str, dtype: torch.dtype, device: torch.device, closely: bool = False, **sizes: int
    ) -> None:
        self.cell, self.sizes = cell, sizes
        self.tensors = random_operands(cell, dtype, device, **sizes)
        self._exact, self.d_results = by_reference(cell, self.tensors, torch.float64)
        plain, _ = by_reference(cell, self.tensors, dtype)
        self._plain = {name: relative_error(values, self._exact[name]) for name, values in plain.items()}
        eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
        self._least = self._least_of_sums = 32 * eps
        if closely:
            self._least = 2 * max(self._plain.values())
            self._least_of_sums = eps * (sizes["T"] * sizes["B"]) ** 0.5  # of errors with random signs

    def worst(self, own: dict[str, Tensor], where: str) -> Error:
        """Return the worst error of some results or gradients by name."""
        errors = []
        for name, values in own.items():
            reference, relative = self._plain[name], relative_error(values, self._exact[name])
            summed = name.startswith(("gradient of weight", "gradient of bias"))
            allowed = max(2 * reference, self._least, self._least_of_sums if summed else 0.0)
            errors.append(Error(name, relative, reference, allowed, where, **self.sizes))
        return max(errors, key=lambda error: (error.wrong, error.relative / error.allowed))


def worst_error(library: Library, where: str, cell: str, dtype: torch.dtype, direction: str, **sizes: int) -> Error:
    """Return the worst error of the kernel at these sizes: of results, or of gradients for the backward kernel."""
    judge = Judge(cell, dtype, library.device, **sizes)
    if direction == "forward":
        return judge.worst(forward(library, cell, judge.tensors), where)
    return judge.worst(backward(library, cell, judge.tensors, judge.d_results), where)


def random_operands(
    cell: str, dtype: torch.dtype, device: torch.device, T: int, B: int, I: int, H: int
) -> dict[str, Tensor]:
    """Make input, states and weights by name, in the dtype; weights are scaled by the root of their number of terms."""
    spec, generator = CELLS[cell], torch.Generator().manual_seed(0)
    shapes = {"input": (T, B, I), **dict.fromkeys(STATES[: 1 + spec.has_cell_state], (B, H))}
    shapes |= {name: spec.weight_shape(name, I, H) for name in spec.weights}
    tensors = {}
    for name, shape in shapes.items():
        scale = shape[-1] ** -0.5 if name.startswith("weight") else 1.0
        tensors[name] = (scale * torch.randn(shape, generator=generator)).to(device, dtype)
    return tensors


def by_reference(cell: str, tensors: dict[str, Tensor], dtype: torch.dtype) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Return results, and gradients named after their operands, for random gradients of the results; these as well."""
    t = {name: tensor.detach().to(dtype).requires_grad_() for name, tensor in tensors.items()}
    state = (t["h_0"], t["c_0"]) if "c_0" in t else t["h_0"]
    weights = {name: t[name] for name in t if name in WEIGHTS}
    output, last = ops.run(cell, t["input"], state, weights, backend="reference")
    results = [output, *(last if isinstance(last, tuple) else (last,))]
    generator = torch.Generator().manual_seed(1)
    kernel_dtype = tensors["input"].dtype  # the gradients are numbers of this dtype, too
    d_results = [torch.randn(r.shape, generator=generator).to(r.device, kernel_dtype) for r in results]
    gradients = torch.autograd.grad(results, list(t.values()), [d.to(dtype) for d in d_results])
    found = dict(zip(("output", "h_n", "c_n"), results)) | {f"gradient of {n}": g for n, g in zip(t, gradients)}
    return {name: tensor.detach() for name, tensor in found.items()}, d_results


def operands(tensors: dict[str, Tensor], dtype: torch.dtype, device: torch.device) -> list[Tensor | None]:
    """Return the operands in the order in which the operators of a layer take them."""
    named = [tensors.get(name) for name in ("input", *STATES, *WEIGHTS)]
    return [None if t is None else t.to(device, dtype) for t in named] + [None] * 3


def unwritten(like: Tensor, *shape: int) -> Tensor:
    """Allocate memory in which every value must be overwritten."""
    return like.new_full(shape, torch.nan)


@torch.no_grad()
def forward(library: Library, cell: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return results of the forward kernel."""
    return _results(
        _forward(products.Kernels(lambda *o: library.run(calls.forward(unwritten, *o)), None), cell, tensors)
    )


@torch.no_grad()
def backward(library: Library, cell: str, tensors: dict[str, Tensor], d_results: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return gradients of the backward kernel, for a forward pass on the CPU in float64."""
    dtype = tensors["input"].dtype
    in_full = operands(tensors, torch.float64, torch.device("cpu"))
    results = torch.ops.fused_rnn.forward(*in_full, cell, False, 0.0, "everything")
    kernels = products.Kernels(None, lambda *o: library.run(calls.backward(unwritten, *o)))
    return _gradients(kernels, cell, tensors, d_results, [result.to(library.device, dtype) for result in results])


@torch.no_grad()
def both(
    kernels: products.Kernels, cell: str, tensors: dict[str, Tensor], d_results: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Return results of the forward kernel, and gradients of the backward kernel for that forward pass."""
    results = _forward(kernels, cell, tensors)
    return _results(results) | _gradients(kernels, cell, tensors, d_results, results)


def _forward(kernels: products.Kernels, cell: str, tensors: dict[str, Tensor]) -> Sequence[Tensor]:
    given = operands(tensors, tensors["input"].dtype, tensors["input"].device)
    return products.forward(*given, cell, False, 0.0, "everything", kernels=kernels)


def _results(results: Sequence[Tensor]) -> dict[str, Tensor]:
    return {name: result for name, result in zip(("output", "h_n", "c_n"), results) if result.numel()}


def _gradients(
    kernels: products.Kernels,
    cell: str,
    tensors: dict[str, Tensor],
    d_results: Sequence[Tensor],
    results: Sequence[Tensor],
) -> dict[str, Tensor]:
    output, _, _, *saved = results
    given = operands(tensors, tensors["input"].dtype, tensors["input"].device)
    gradients = products.backward(
        *(*d_results, None, None)[:3], None, output, *saved, *given, cell, False, 0.0, True, True, kernels=kernels
    )
    names = ("input", *STATES, *WEIGHTS)
    return {f"gradient of {name}": gradient for name, gradient in zip(names, gradients) if name in tensors}


def relative_error(values: Tensor, exact: Tensor) -> float:
    return ((values.double() - exact).norm() / exact.norm().clamp_min(1e-30)).item()
