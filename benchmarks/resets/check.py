"""The check of a way's results and gradients against the reference in float64.

The tolerance is twice the reference's own error in the measured dtype, and at least the random walk of the rounding
errors of a sum over all T·B rows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .cases import CELLS, Plan, Results, Way

FACTOR = 2


@dataclass(frozen=True)
class Batch:
    """Operands of a call, and the gradients of its results."""

    input: Tensor  # (T, B, I)
    resets: Tensor  # (T, B)
    d_output: Tensor  # (T, B, H)

    @classmethod
    def drawn(cls, plan: Plan, share: int) -> "Batch":
        generator = torch.Generator().manual_seed(share)
        shape = plan.steps, plan.batch, plan.size
        input, d_output = torch.randn(2, *shape, generator=generator).to(plan.device, getattr(torch, plan.dtype))
        resets = torch.rand(shape[:2], generator=generator) < share / 100
        return cls(input.requires_grad_(), resets.to(plan.device), d_output)

    def widened(self) -> "Batch":
        return Batch(self.input.detach().double().requires_grad_(), self.resets, self.d_output.double())


def weights_of(cell: str, plan: Plan) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CELLS[cell][1](plan.size, plan.size).to(plan.device, getattr(torch, plan.dtype)).state_dict()


def step_of(mode: str, module: nn.Module, way: Way, batch: Batch) -> Callable[[], list[Tensor]]:
    """Make a call of the way: the forward pass without gradients, or a training step, which appends gradients."""

    def forward() -> list[Tensor]:
        with torch.no_grad():
            return list(way(batch.input, batch.resets))

    def train() -> list[Tensor]:
        results: Results = way(batch.input, batch.resets)
        leaves = [batch.input, *module.parameters()]
        return [*results, *torch.autograd.grad(results, leaves, [batch.d_output, batch.d_output[0]])]

    return {"forward": forward, "training": train}[mode]


class Judge:
    """The exact results of a batch, and the error of the reference in the measured dtype."""

    def __init__(self, cell: str, plan: Plan, batch: Batch, weights: dict[str, Tensor], with_resets: bool) -> None:
        self._floor = math.sqrt(plan.steps * plan.batch) * torch.finfo(torch.float32).eps
        resets = batch.resets if with_resets else torch.zeros_like(batch.resets)

        def results(batch: Batch) -> list[Tensor]:
            how = {"device": plan.device, "dtype": batch.input.dtype, "backend": "reference"}
            module = CELLS[cell][0](plan.size, plan.size, **how)
            module.load_state_dict(weights)

            def way(input: Tensor, _) -> Results:
                output, state = module(input, resets=resets)
                return output, (state[0] if isinstance(state, tuple) else state)[0]

            return step_of("training", module, way, batch)()

        self._exact = results(batch.widened())
        self._own = self._off(results(batch))

    def complaint(self, results: list[Tensor]) -> str | None:
        """Return what is wrong with the results of a training step, or its first ones, or None."""
        for number, (error, own) in enumerate(zip(self._off(results), self._own)):
            if not error <= max(FACTOR * own, self._floor):  # NaN counts as wrong
                return f"result {number} is off by {error:.1e} of its norm, where the reference is off by {own:.1e}"
        return None

    def _off(self, results: list[Tensor]) -> list[float]:
        pairs = zip(results, self._exact)
        # gradients of U are zero if every step begins an episode
        return [((found.double() - exact).norm() / exact.norm().clamp_min(1e-30)).item() for found, exact in pairs]
