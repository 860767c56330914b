"""The check of a candidate's results, judged by the errors of PyTorch's plain loop in the same dtype.

Both are compared with the plain loop in float64, on the same operands (those of the dtype, widened). The tolerance of a
result is a multiple of the plain loop's error, and at least one rounding of the dtype, and the random walk of the
rounding errors of a sum in float32 over all T·B rows, as in gradients of weights. Rivals may approximate.
"""

import math
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor, nn

from .candidates import Candidate, Ready, fused
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


class Bench:
    """A shape in a dtype on a device, with everything that its candidates share: operands, weights, exact results."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device | str = "cpu", sets: int = 1) -> None:
        self.shape, self.dtype, self.device = shape, dtype, torch.device(device)
        self.sets = [random_operands(shape, dtype, device, seed) for seed in range(sets)]
        self._expected: dict[tuple[str, bool], tuple[dict[str, Tensor], dict[str, float]]] = {}

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
        """Return the candidate's worst error on the first operands, of some or all of the results."""
        exact, plain = self.expected(candidate)
        ready.load(0)
        walk = math.sqrt(self.shape.steps * self.shape.batch) * torch.finfo(torch.float32).eps
        floor = max(walk, torch.finfo(self.dtype).eps, candidate.least)
        errors = [
            Error(name, relative, plain[name], max(candidate.factor * plain[name], floor))
            for name, relative in self._relative(ready.translate(ready.run()), exact).items()
        ]
        return max(errors, key=lambda error: (error.wrong, error.relative / error.allowed))

    def expected(self, candidate: Candidate) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return the exact results and the plain loop's errors, for all candidates that know of episodes as it does."""
        key = cell, _ = candidate.equations, candidate.episodes
        if key not in self._expected:
            exact = self._by_plain_loop(cell, torch.float64, candidate.episodes)
            plain = self._by_plain_loop(cell, self.dtype, candidate.episodes)
            self._expected[key] = exact, self._relative(plain, exact)
        return self._expected[key]

    def _by_plain_loop(self, cell: str, dtype: torch.dtype, episodes: bool) -> dict[str, Tensor]:
        loop = fused(cell, "reference").build(**self.shape.module_sizes, device=self.device, dtype=dtype)
        loop.load_state_dict(self._weights(cell))
        call = partial(loop, resets=resets(self.shape, self.device) if episodes else None)
        operands = tuple(operand.to(dtype) for operand in self.sets[0])
        return make_step(loop, Case(cell, self.shape, "training"), operands, call)()

    def _relative(self, results: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
        errors = {}
        for name, result in results.items():
            difference, right = result.double() - exact[name], exact[name]
            if name == "output":  # values past the end of a sequence do not matter
                difference, right = (unpadded(self.shape, rows) for rows in (difference, right))
            # gradients of U are zero if every step begins an episode
            errors[name] = (difference.norm() / right.norm().clamp_min(1e-30)).item()
        return errors

    def _weights(self, cell: str) -> dict[str, Tensor]:
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []), self.device:
            torch.manual_seed(0)
            module = MODULES[cell](**self.shape.module_sizes)
        return module.to(self.dtype).state_dict()
