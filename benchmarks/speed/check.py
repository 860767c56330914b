"""Whether a candidate computes what it should: nothing is timed before ``mistake`` has found none.

Outputs and gradients are compared with the reference in float64. A gradient is a sum over all T·B rows; summed
one after another in float32 their rounding errors walk at random, so √(T·B)·ε is what correct code may be off by.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from .cases import MODULES, Candidate, Case, Shape, make_step


def build(candidate: Candidate, shape: Shape) -> nn.Module:
    """The candidate's module at ``shape``, with the weights that all candidates of these equations share."""
    module = candidate.build(shape.input_size, shape.hidden_size)
    module.load_state_dict(_weights(candidate.equations, shape))
    return module


def mistake(candidate: Candidate, module: nn.Module, case: Case) -> str | None:
    """What is wrong with the candidate's results, or None."""
    exact = _exact(candidate.equations, case.shape)
    allowed = math.sqrt(case.shape.steps * case.shape.batch) * torch.finfo(torch.float32).eps
    for name, tensor in make_step(module, case)().items():
        error = ((tensor.double() - exact[name]).norm() / exact[name].norm()).item()
        if not error <= allowed:  # so that a NaN is a mistake
            return f"{name} is off by {error:.1e} of its norm, where rounding explains {allowed:.1e}"
    return None


@lru_cache(maxsize=2)  # the candidates and modes of one cell follow each other, and GRUs have two equations
def _exact(cell: str, shape: Shape) -> dict[str, Tensor]:
    """The results of a training step by name, from the reference in float64."""
    module = MODULES[cell](shape.input_size, shape.hidden_size, backend="reference", dtype=torch.float64)
    module.load_state_dict(_weights(cell, shape))
    return make_step(module, Case(cell, shape, "training"))()


def _weights(cell: str, shape: Shape) -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODULES[cell](shape.input_size, shape.hidden_size).state_dict()
