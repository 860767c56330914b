"""Whether a candidate computes what it should, judged by the errors of PyTorch's plain loop in the same dtype.

Both are compared with the plain loop in float64, on the same operands (those of the dtype, widened): a result may be
off by a factor more than the plain loop's, and in any case by one rounding of the dtype, and by the random walk of
the rounding errors of a sum in float32 over all T·B rows, as gradients of weights are.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from benchmarks.speed.cases import Case, make_step

from .candidates import Operands, reference
from .points import Point


@dataclass(frozen=True)
class Error:
    """Of the result that comes nearest to, or goes furthest beyond, what is allowed."""

    result: str
    relative: float  # in the Euclidean norm
    pytorch: float  # of the plain loop
    allowed: float

    @property
    def wrong(self) -> bool:
        return not self.relative <= self.allowed  # so that a NaN is wrong

    def __str__(self) -> str:
        return (
            f"{self.result} is off by {self.relative:.1e} of its norm, where PyTorch's plain loop is off by "
            f"{self.pytorch:.1e} and {self.allowed:.1e} is allowed"
        )

    record = asdict


class Judge:
    """What is right at a point, for one cell: its exact results, and how far PyTorch is from them."""

    def __init__(self, cell: str, point: Point, operands: Operands) -> None:
        device, self.dtype = operands[0].device, operands[0].dtype
        self._rows = point.steps * point.batch
        case = Case(cell, point.shape, "training")
        own = reference(cell, point, device, self.dtype)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            own.reset_parameters()
        self.weights = own.state_dict()
        exact = reference(cell, point, device, torch.float64)
        exact.load_state_dict(self.weights)
        self._exact = make_step(exact, case, tuple(operand.double() for operand in operands))()
        self._own = self._relative(make_step(own, case, operands)())

    def error(self, results: dict[str, Tensor], factor: float) -> Error:
        """The worst error of some or all of the results."""
        walk = math.sqrt(self._rows) * torch.finfo(torch.float32).eps
        floor = max(walk, torch.finfo(self.dtype).eps)
        errors = [
            Error(name, relative, self._own[name], max(factor * self._own[name], floor))
            for name, relative in self._relative(results).items()
        ]
        return max(errors, key=lambda error: (error.wrong, error.relative / error.allowed))

    def _relative(self, results: dict[str, Tensor]) -> dict[str, float]:
        return {
            name: ((result.double() - self._exact[name]).norm() / self._exact[name].norm()).item()
            for name, result in results.items()
        }


def judges(equations: Sequence[str], point: Point, operands: Operands) -> dict[str, Judge]:
    """One for each cell whose equations a candidate follows."""
    return {cell: Judge(cell, point, operands) for cell in dict.fromkeys(equations)}
