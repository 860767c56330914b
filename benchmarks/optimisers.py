"""The harnesses' optimisers, in one form for each kind of device.

On a GPU that is the form which a CUDA graph can hold, with a graph or without: all that changes from step to step, the
learning rate too, lies in the GPU's memory. It rounds otherwise than the form with numbers of the host does, so that
a run could not have the same bits with a graph as without if each took its own.
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
    "sgd": {"fused": True},  # the only one of its forms that leaves the learning rate on the GPU
    "rmsprop": {"capturable": True},
}


def make_optimiser(name: str, parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
    """The optimiser of that name, a key of ``OPTIMISERS``, for ``parameters`` on one device."""
    parameters = list(parameters)
    device = parameters[0].device
    if device.type != "cuda":
        return OPTIMISERS[name](parameters, lr=lr)
    warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")  # it says: slower
    return OPTIMISERS[name](parameters, lr=torch.tensor(lr, dtype=torch.float32, device=device), **ON_GPU[name])


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Have the next steps taken at this rate; written where it lies, if in memory, for graphs that read it there."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def restore(optimiser: torch.optim.Optimizer, state: dict) -> None:
    """Go on with what another of the same name has come to: ``state`` is its ``state_dict``.

    How steps are computed, and from where the learning rate is read, stays as it is here.
    """
    optimiser.load_state_dict({**state, "param_groups": optimiser.state_dict()["param_groups"]})
