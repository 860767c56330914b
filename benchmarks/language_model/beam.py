"""Beam search: each step keeps the likeliest of all continuations of the likeliest hypotheses.

The hypotheses step together as the columns of a batch. A hypothesis with several continuations has its recurrent state
copied, so nothing is read twice. A hypothesis that has reached its ``EOS`` keeps its place and its log-probability, and
loses them only to likelier ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .alphabet import EOS, PAD
from .model import LanguageModel, State


@dataclass(frozen=True)
class Beam:
    """The hypotheses of a search, best first.

    numbers: (t, K) on the CPU, without the prompt: in each column the symbols up to and with ``EOS``, then ``PAD``.
    log_probabilities: (K), float64, of these symbols given the prompt, in nats.
    """

    numbers: Tensor
    log_probabilities: Tensor


@torch.no_grad()
def beam_search(
    model: LanguageModel,
    prompt: list[int],
    width: int,
    length: int,
    normalise: bool = False,
    excluded: Sequence[int] = (PAD,),
) -> Beam:
    """Return the ``width`` likeliest continuations of ``prompt`` by at most ``length`` symbols that the search finds.

    None has a symbol that is ``excluded``, apart from ``PAD`` after its end.
    ``normalise`` ranks by log-probability per symbol, ``EOS`` included; without it short ones have the advantage.
    Fewer hypotheses are returned if there are no more.
    """
    model.eval()
    symbols = torch.tensor([EOS, *prompt], device=model.device).unsqueeze(1)
    state: State | None = None
    numbers = symbols.new_empty(0, 1)
    totals = torch.zeros(1, dtype=torch.float64, device=model.device)
    ended = torch.zeros(1, dtype=torch.bool, device=model.device)
    while len(numbers) < length and not ended.all():
        scores, state = model(symbols, state)
        steps = _step_log_probabilities(scores[-1], ended, excluded)
        candidates = (totals.unsqueeze(1) + steps).flatten()
        counts = (numbers != PAD).sum(0) + ~ended  # symbols of each candidate
        ranks = candidates / counts.repeat_interleave(steps.shape[1]) if normalise else candidates
        best = ranks.topk(min(width, int(ranks.isfinite().sum()))).indices
        parents, chosen = best // steps.shape[1], best % steps.shape[1]
        numbers = torch.cat([numbers[:, parents], chosen.unsqueeze(0)])
        totals, ended = candidates[best], ended[parents] | (chosen == EOS)
        state = _columns(state, parents)
        symbols = chosen.unsqueeze(0)
    return Beam(numbers.cpu(), totals.cpu())


def _step_log_probabilities(scores: Tensor, ended: Tensor, excluded: Sequence[int]) -> Tensor:
    """Return each symbol's contribution to each hypothesis, (K, symbols): only ``PAD`` follows an end, at no cost."""
    scores = scores.double()
    scores[:, list(excluded)] = -torch.inf
    steps = scores.log_softmax(-1)
    steps[ended] = -torch.inf
    steps[ended, PAD] = 0.0
    return steps


def _columns(state: State, columns: Tensor) -> State:
    """Return the state of some of the hypotheses, each as often as ``columns`` (K) names it."""
    if isinstance(state, tuple):
        return tuple(part.index_select(1, columns) for part in state)
    return state.index_select(1, columns)
