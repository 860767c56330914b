"""LSTM with projections (Sak et al. 2014, arXiv:1402.1128), on the kernels of the LSTM without.

Equations: as the LSTM's, but h = R k with k = o⊙tanh(c). R (P, H) is ``weight_hr``; U, ``weight_hh``, is (4H, P).

From the second step on U h₋ = (U R) k₋. So k is the state of an LSTM with recurrent weights U R (4H, H), and all
h = R k are one product after the loop. Only the first step reads h_0, for which there is no k_0: it comes in as P more
features of the input, zero in all other steps, with weights U, while k_0 is zero. Gradients are autograd's, through
these products and sums. The mathematics is exact; U R is rounded once where otherwise every h would be.
"""

import torch
from torch import Tensor

from . import autocast, ops


@autocast.casting
def run_lstm(
    input: Tensor,
    state: tuple[Tensor, Tensor] | None,
    weights: dict[str, Tensor],
    *,
    reverse: bool = False,
    lengths: Tensor | None = None,
    return_cells: bool = False,
    keep_c: Tensor | None = None,
    gradient_clip: float | None = None,
    backend: str = "auto",
    recompute: bool = False,
) -> tuple:
    """``ops.run`` for an LSTM with ``weight_hr`` (P, H) among its weights, ``weight_hh`` (4H, P) and h_0 (B, P).

    Returns the outputs (T, B, P), the state (h_n (B, P), c_n (B, H)) and, if asked for, the cell states (T, B, H).
    """
    recurrent, project = weights["weight_hh"], weights["weight_hr"]
    weights = {name: weight for name, weight in weights.items() if name != "weight_hr"}
    weights["weight_hh"] = recurrent @ project
    h_0 = None
    if state is not None:
        h_0, c_0 = state
        input = torch.cat([input, _in_first_step(h_0, input, reverse, lengths)], -1)
        weights["weight_ih"] = torch.cat([weights["weight_ih"], recurrent], -1)
        state = torch.zeros_like(c_0), c_0
    how = {"reverse": reverse, "lengths": lengths, "backend": backend, "recompute": recompute}
    how |= {"keep_c": keep_c, "gradient_clip": gradient_clip}
    output, (k_n, c_n), *cells = ops.run("lstm", input, state, weights, return_cells=return_cells, **how)
    h_n = k_n @ project.T
    if h_0 is not None and lengths is not None:  # a sequence without steps ends as it began
        h_n = torch.where((lengths > 0).unsqueeze(1), h_n, h_0)
    return output @ project.T, (h_n, c_n), *cells


def _in_first_step(h_0: Tensor, input: Tensor, reverse: bool, lengths: Tensor | None) -> Tensor:
    """(T, B, P): h_0 in the step with which each sequence begins, zero elsewhere."""
    if (h_0.dtype, h_0.device) != (input.dtype, input.device):
        raise RuntimeError(f"h_0 is {h_0.dtype} on {h_0.device} but input is {input.dtype} on {input.device}")
    steps = len(input)
    times = torch.arange(steps, device=input.device).view(-1, 1, 1)
    last = steps - 1 if lengths is None else (lengths.clamp(max=steps) - 1).unsqueeze(1)
    return torch.where(times == (last if reverse else 0), h_0, 0)
