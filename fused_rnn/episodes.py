"""Episodes within a sequence: from the boundaries that callers give to the steps that begin anew.

``resets`` (T, B), bool, as callers give it, has a boundary between steps t-1 and t where it is True at t, whichever way
a sequence is read. A time loop asks another question: does this step begin with the state of the step before it, or
anew? In a forward run that is the same tensor. In a reverse run the step before t is t+1, so the boundary stands at
t+1, and where there is no such step of the sequence, there is none: what is read first begins with the initial state.
"""

import torch
from torch import Tensor


def beginnings(resets: Tensor, reverse: bool, lengths: Tensor | None, after: Tensor | None = None) -> Tensor:
    """The steps (T, B) that begin anew; none past the end of a sequence.

    Args:
        resets: (T, B), the boundaries.
        reverse: whether steps run from the last to the first.
        lengths: (B), the steps of each sequence; None is T for all.
        after: (1, B), the boundaries after these steps, where sequences go on in another tensor.
    """
    steps = resets.shape[0]
    if not reverse:
        times = torch.arange(steps, device=resets.device).unsqueeze(1)
        return resets if lengths is None else resets & (times < lengths)
    ends = steps if lengths is None else lengths.clamp(max=steps)
    before = torch.arange(1, steps + 1, device=resets.device)  # of each step the one that is read before it
    begins = resets[before.clamp(max=steps - 1)] & (before.unsqueeze(1) < ends)
    return begins if after is None else torch.cat([begins[:-1], after])


def boundaries(begins: Tensor, reverse: bool) -> Tensor:
    """The boundaries (T, B) of which these are the ``beginnings``."""
    if not reverse:
        return begins
    after = torch.arange(-1, begins.shape[0] - 1, device=begins.device)
    return begins[after.clamp(min=0)] & (after.unsqueeze(1) >= 0)


def begun(states: Tensor, begins: Tensor | None, new: Tensor | None) -> Tensor:
    """States (..., H) with which steps begin: those of the step before, or where one ``begins`` anew these, or zero."""
    if begins is None:
        return states
    return torch.where(begins.unsqueeze(-1), 0 if new is None else new, states)
