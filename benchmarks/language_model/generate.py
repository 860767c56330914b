"""Generation symbol by symbol: the prompt is read once, then every symbol follows from the state and the one before.

Hypotheses are the columns of a batch and each carries its recurrent state with it: nothing is fed twice, and the
state is never reset. A method of generation is a function that chooses the next symbols given their scores; beam
search, which also chooses the hypotheses to continue, is in ``beam``.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .alphabet import EOS, PAD
from .model import LanguageModel

Choose = Callable[[Tensor], Tensor]  # scores (B, symbols), -inf for excluded symbols -> numbers (B,)
Restrict = Callable[[Tensor], Tensor]  # probabilities (B, symbols) -> the same, 0 for excluded symbols


def greedy(scores: Tensor) -> Tensor:
    """Choose the likeliest symbol of each hypothesis. Shapes: (B, symbols) -> (B,)."""
    return scores.argmax(-1)


def sampler(temperature: float, seed: int, restrict: Restrict | None = None) -> Choose:
    """Draw from the model's distribution, which a temperature below 1 sharpens and one above 1 flattens.

    ``restrict`` sees the distribution at that temperature, and the symbols that it keeps are drawn in proportion. Draws
    are on the CPU, so that the same scores and seed give the same symbols on every device.
    """
    generator = torch.Generator().manual_seed(seed)

    def sample(scores: Tensor) -> Tensor:
        scores = scores.double()
        likeliest = scores.amax(-1, keepdim=True)  # subtracted first, so that a tiny temperature does not overflow
        probabilities = ((scores - likeliest) / temperature).softmax(-1).cpu()
        if restrict is not None:
            probabilities = restrict(probabilities)
        return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1).to(scores.device)

    return sample


def top_k(count: int) -> Restrict:
    """Keep the ``count`` likeliest symbols of each hypothesis, or all if there are no more."""

    def restrict(probabilities: Tensor) -> Tensor:
        kept, symbols = probabilities.topk(min(count, probabilities.shape[-1]))
        return torch.zeros_like(probabilities).scatter(-1, symbols, kept)

    return restrict


def nucleus(alpha: float) -> Restrict:
    """Keep the smallest set of symbols whose mass is at least ``alpha`` (Holtzman et al. 2020)."""

    def restrict(probabilities: Tensor) -> Tensor:
        descending, symbols = probabilities.sort(descending=True, stable=True)
        before = descending.cumsum(-1) - descending  # mass of likelier symbols
        return torch.zeros_like(probabilities).scatter(-1, symbols, descending.where(before < alpha, 0.0))

    return restrict


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompt: list[int],
    choose: Choose,
    length: int,
    hypotheses: int = 1,
    excluded: Sequence[int] = (PAD,),
) -> Tensor:
    """Continue ``prompt`` by at most ``length`` symbols, none of them ``excluded``.

    Returns numbers (at most length, hypotheses) on the CPU without the prompt: in each column the symbols up to and
    including the first ``EOS``, then ``PAD``. Ends early when every hypothesis has reached its ``EOS``.
    """
    model.eval()
    symbols = torch.tensor([EOS, *prompt], device=model.device).unsqueeze(1).expand(-1, hypotheses)
    state, generated = None, []
    ended = torch.zeros(hypotheses, dtype=torch.bool, device=model.device)
    while len(generated) < length and not ended.all():
        scores, state = model(symbols, state)
        scores = scores[-1]
        scores[:, list(excluded)] = -torch.inf
        chosen = choose(scores).masked_fill(ended, PAD)
        generated.append(chosen)
        ended = ended | (chosen == EOS)
        symbols = chosen.unsqueeze(0)
    return torch.stack(generated).cpu()
