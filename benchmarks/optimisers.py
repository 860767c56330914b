"""The harnesses' optimisers, in one form for each kind of device.

On a GPU this is the form that a CUDA graph can hold, with or without a graph: everything that changes from step to
step, including the learning rate, is in the GPU's memory. This form rounds differently from the one with numbers on the
host, so runs with and without a graph could not have the same bits if each used its own.
"""

import warnings
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

OPTIMISERS = {
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "rmsprop": partial(torch.optim.RMSprop, alpha=0.95),  # char-rnn's
}
ON_GPU = {
    "adam": {"fused": True, "capturable": True},
    "sgd": {"fused": True},  # the only form that keeps the learning rate on the GPU
    "rmsprop": {"capturable": True},
}


def make_optimiser(name: str, parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
    """Make the optimiser of that name, a key of ``OPTIMISERS``, for ``parameters`` on one device."""
    parameters = list(parameters)
    device = parameters[0].device
    if device.type != "cuda":
        return OPTIMISERS[name](parameters, lr=lr)
    warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")  # a warning of its speed
    return OPTIMISERS[name](parameters, lr=torch.tensor(lr, dtype=torch.float32, device=device), **ON_GPU[name])


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of the next steps, in place if it is in memory, because graphs read it there."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def restore(optimiser: torch.optim.Optimizer, state: dict) -> None:
    """Continue from the state of another optimiser of the same name: ``state`` is its ``state_dict``.

    The form of the steps, and the place of the learning rate, stay as they are here.
    """
    optimiser.load_state_dict({**state, "param_groups": optimiser.state_dict()["param_groups"]})
