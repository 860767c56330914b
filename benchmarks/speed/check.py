"""The check of a candidate's results, judged by the errors of PyTorch's plain loop in the same dtype.

Both are compared with the plain loop in float64, on the same operands (those of the dtype, widened). The tolerance of a
result is a multiple of the plain loop's error, and at least one rounding of the dtype, and the random walk of the
rounding errors of a sum in float32 over all T·B rows, as in gradients of weights. Rivals may approximate.
"""

import math
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from .candidates import Candidate, Operands, Ready, fused
from .cases import MODULES, Case, Shape, make_step, random_operands, resets, unpadded


@dataclass(frozen=True)
class Error:
    """The error of the result that is closest to its tolerance, or exceeds it most."""

    result: str
    relative: float  # in the Euclidean norm
    pytorch: float  # of the plain loop
    allowed: float

    @property
    def wrong(self) -> bool:
        return not self.relative <= self.allowed  # NaN counts as wrong

    def __str__(self) -> str:
        return (
            f"{self.result} is off by {self.relative:.1e} of its norm, where PyTorch's plain loop is off by "
            f"{self.pytorch:.1e} and {self.allowed:.1e} is allowed"
        )

    record = asdict


class Judge:
    """The exact results at a shape, for one cell, and PyTorch's distance from them."""

    def __init__(self, cell: str, shape: Shape, operands: Operands, weights: dict[str, Tensor]) -> None:
        self.dtype = operands[0].dtype
        self._rows = shape.steps * shape.batch
        self._shape = shape
        case = Case(cell, shape, "training")

        def results(dtype: torch.dtype) -> dict[str, Tensor]:
            build = partial(fused(cell, "reference").build, device=operands[0].device, dtype=dtype)
            loop = build(**shape.module_sizes)
            loop.load_state_dict(weights)
            call = partial(loop, resets=resets(shape, operands[0].device))
            return make_step(loop, case, tuple(operand.to(dtype) for operand in operands), call)()

        self._exact = results(torch.float64)
        self._own = self._relative(results(self.dtype))

    def error(self, results: dict[str, Tensor], factor: float, least: float) -> Error:
        """Return the worst error of some or all of the results."""
        walk = math.sqrt(self._rows) * torch.finfo(torch.float32).eps
        floor = max(walk, torch.finfo(self.dtype).eps, least)
        errors = [
            Error(name, relative, self._own[name], max(factor * self._own[name], floor))
            for name, relative in self._relative(results).items()
        ]
        return max(errors, key=lambda error: (error.wrong, error.relative / error.allowed))

    def _relative(self, results: dict[str, Tensor]) -> dict[str, float]:
        errors = {}
        for name, result in results.items():
            exact = self._exact[name]
            difference = result.double() - exact
            if name == "output":  # values past the end of a sequence do not matter
                difference, exact = (unpadded(self._shape, rows) for rows in (difference, exact))
            # gradients of U are zero if every step begins an episode
            errors[name] = (difference.norm() / exact.norm().clamp_min(1e-30)).item()
        return errors


class Bench:
    """A shape in a dtype on a device, with everything that its candidates share: operands, weights and judges."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device | str = "cpu", sets: int = 1) -> None:
        self.shape, self.dtype, self.device = shape, dtype, torch.device(device)
        self.sets = [random_operands(shape, dtype, device, seed) for seed in range(sets)]
        self._judges: dict[tuple[str, bool], Judge] = {}

    def ready(self, candidate: Candidate, case: Case) -> Ready:
        """Make the candidate with the weights that all candidates of its equations share."""
        with self.device:
            module = candidate.build(**self.shape.module_sizes)
        module.load_state_dict(self._weights(candidate.equations))
        module = module.to(self.dtype)
        if isinstance(module, nn.RNNBase):  # else cuDNN's weights are copied in every call, as they are in bfloat16:
            module.flatten_parameters()  # PyTorch does nothing here then
        return candidate.ready(module, case, self.sets)

    def error(self, candidate: Candidate, ready: Ready) -> Error:
        """Return the candidate's error on the first operands."""
        judge = self.judge(candidate)
        ready.load(0)
        return judge.error(ready.translate(ready.run()), candidate.factor, candidate.least)

    def judge(self, candidate: Candidate) -> Judge:
        """Return the judge of all candidates of its equations that know of episodes as it does."""
        cell, key = candidate.equations, (candidate.equations, candidate.episodes)
        if key not in self._judges:
            shape = self.shape if candidate.episodes else replace(self.shape, episodes=None)
            self._judges[key] = Judge(cell, shape, self.sets[0], self._weights(cell))
        return self._judges[key]

    def _weights(self, cell: str) -> dict[str, Tensor]:
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []), self.device:
            torch.manual_seed(0)
            module = MODULES[cell](**self.shape.module_sizes)
        return module.to(self.dtype).state_dict()
