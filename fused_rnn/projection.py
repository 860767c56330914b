"""LSTM with projections (Sak et al. 2014, arXiv:1402.1128), on the kernels of the LSTM without.

Equations: as the LSTM's, but h = R k with k = o⊙tanh(c). R (P, H) is ``weight_hr``; U, ``weight_hh``, is (4H, P).

From the second step on U h₋ = (U R) k₋. So k is the state of an LSTM with recurrent weights U R (4H, H), and one
product after the loop gives all h = R k. Only the first step reads h_0, for which there is no k_0: it enters as P
additional features of the input, zero in all other steps, with weights U, while k_0 is zero. The initial states of
later episodes enter likewise, unless they are zero. Gradients are autograd's, through these products and sums. The
mathematics is exact; U R is rounded once, where otherwise every h would be.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from . import autocast, episodes, packing


@autocast.casting
def run_lstm(
    inputs: Sequence[Tensor],
    state: tuple[Tensor, Tensor] | None,
    weights: dict[str, Tensor],
    *,
    lengths: Sequence[Tensor | None],
    reverse: bool,
    resets: Sequence[Tensor | None],
    h_reset: Tensor | None = None,
    **how,
) -> tuple:
    """Run ``packing.run`` for an LSTM with ``weight_hr`` (P, H) among its weights, ``weight_hh`` (4H, P), h_0 (B, P).

    ``h_reset`` is (P), and requires a state.

    Returns the outputs (T, B, P) of each stretch, the state (h_n (B, P), c_n (B, H)) and, if requested, the cell states
    (T, B, H) of each stretch.
    """
    recurrent, project = weights["weight_hh"], weights["weight_hr"]
    weights = {name: weight for name, weight in weights.items() if name != "weight_hr"}
    weights["weight_hh"] = recurrent @ project
    h_0 = None
    if state is not None:
        h_0, c_0 = state
        state = torch.zeros_like(c_0), c_0
        begun = _in_first_steps(h_0, inputs, reverse, lengths)
        if resets[0] is not None:
            begins = _beginnings(resets, reverse, lengths)
            begun = (episodes.begun(part, steps, h_reset) for part, steps in zip(begun, begins))
        inputs = [torch.cat(parts, -1) for parts in zip(inputs, begun)]
        weights["weight_ih"] = torch.cat([weights["weight_ih"], recurrent], -1)
    outputs, (k_n, c_n), *cells = packing.run(
        "lstm", inputs, state, weights, lengths=lengths, reverse=reverse, resets=resets, **how
    )
    h_n = k_n @ project.T
    if h_0 is not None and lengths[0] is not None:  # a sequence without steps ends as it began
        h_n = torch.where((lengths[0] > 0).unsqueeze(1), h_n, h_0)
    return [output @ project.T for output in outputs], (h_n, c_n), *cells


def _in_first_steps(
    h_0: Tensor, inputs: Sequence[Tensor], reverse: bool, lengths: Sequence[Tensor | None]
) -> Iterator[Tensor]:
    """Return (T, B, P) for each stretch: h_0 in the step with which a sequence begins, zero elsewhere."""
    if (h_0.dtype, h_0.device) != (inputs[0].dtype, inputs[0].device):
        raise RuntimeError(f"h_0 is {h_0.dtype} on {h_0.device} but input is {inputs[0].dtype} on {inputs[0].device}")
    sizes = [part.shape[1] for part in inputs]
    for stretch, (part, ends) in enumerate(zip(inputs, lengths)):
        steps, batch, _ = part.shape
        # sequences from this one on begin in this stretch
        begin = [*sizes, 0][stretch + 1] if reverse else batch if stretch else 0
        new = nn.functional.pad(h_0[begin:batch], (0, 0, begin, 0)) if begin else h_0[:batch]
        times = torch.arange(steps, device=part.device).view(-1, 1, 1)
        last = steps - 1 if ends is None else (ends.clamp(max=steps) - 1).unsqueeze(1)
        yield torch.where(times == (last if reverse else 0), new, 0)


def _beginnings(resets: Sequence[Tensor], reverse: bool, lengths: Sequence[Tensor | None]) -> Iterator[Tensor]:
    """Yield the steps (T, B) of each stretch that begin anew."""
    for stretch, (boundaries, ends) in enumerate(zip(resets, lengths)):
        after = None
        if stretch + 1 < len(resets):  # only the first sequences continue there
            after = resets[stretch + 1][:1]
            after = nn.functional.pad(after, (0, boundaries.shape[1] - after.shape[1]))
        yield episodes.beginnings(boundaries, reverse, ends, after)
