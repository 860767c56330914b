"""Episodes within a sequence: conversion between the boundaries that callers give and the steps that begin anew.

``resets`` (T, B), bool, as callers give it, is True at t for a boundary between steps t-1 and t, in either direction of
reading. A time loop needs to know something else: whether a step begins anew or with the state of the step before it.
In a forward run that is the same tensor. In a reverse run the step before t is t+1, so the relevant boundary is at t+1;
if the sequence has no step t+1, step t begins with the initial state, and there is no boundary.
"""

import torch
from torch import Tensor


def beginnings(resets: Tensor, reverse: bool, lengths: Tensor | None, after: Tensor | None = None) -> Tensor:
    """Return the steps (T, B) that begin anew, False past the end of a sequence.

    Args:
        resets: (T, B), the boundaries.
        reverse: whether steps run from the last to the first.
        lengths: (B), the steps of each sequence; None is T for all.
        after: (1, B), the boundaries after these steps, if sequences go on in another tensor.
    """
    steps = resets.shape[0]
    if not reverse:
        times = torch.arange(steps, device=resets.device).unsqueeze(1)
        return resets if lengths is None else resets & (times < lengths)
    ends = steps if lengths is None else lengths.clamp(max=steps)
    before = torch.arange(1, steps + 1, device=resets.device)  # for each step, the step read before it
    begins = resets[before.clamp(max=steps - 1)] & (before.unsqueeze(1) < ends)
    return begins if after is None else torch.cat([begins[:-1], after])


def boundaries(begins: Tensor, reverse: bool) -> Tensor:
    """Return the boundaries (T, B) that ``beginnings`` would convert to these steps."""
    if not reverse:
        return begins
    after = torch.arange(-1, begins.shape[0] - 1, device=begins.device)
    return begins[after.clamp(min=0)] & (after.unsqueeze(1) >= 0)


def begun(states: Tensor, begins: Tensor | None, new: Tensor | None) -> Tensor:
    """Return the states (..., H) with which steps begin: the previous ones, or ``new`` (None: zeros) in ``begins``."""
    if begins is None:
        return states
    return torch.where(begins.unsqueeze(-1), 0 if new is None else new, states)
