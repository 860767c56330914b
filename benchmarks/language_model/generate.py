"""Generation: the prompt is read once, then every symbol is made from the state and the symbol before it.

Hypotheses are the columns of a batch and each carries its recurrent state with it: nothing is fed twice, and the
state is never reset. A way of generating is a function that chooses the next symbols given their scores.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .alphabet import EOS, PAD
from .model import LanguageModel

Choose = Callable[[Tensor], Tensor]  # scores (B, symbols), -inf for what must not come -> numbers (B,)


def greedy(scores: Tensor) -> Tensor:
    """The likeliest symbol of each hypothesis. Shapes: (B, symbols) -> (B,)."""
    return scores.argmax(-1)


def sampler(temperature: float, seed: int) -> Choose:
    """Draws from the model's distribution, sharpened by a temperature below 1 or flattened by one above.

    Draws on the CPU, so that the same scores and seed give the same symbols whatever the device.
    """
    generator = torch.Generator().manual_seed(seed)

    def sample(scores: Tensor) -> Tensor:
        scores = scores.double()
        likeliest = scores.amax(-1, keepdim=True)  # subtracted first: a tiny temperature must not overflow
        probabilities = ((scores - likeliest) / temperature).softmax(-1).cpu()
        return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1).to(scores.device)

    return sample


@torch.no_grad()
def generate(model: LanguageModel, prompt: list[int], choose: Choose, length: int, hypotheses: int = 1) -> Tensor:
    """Continue ``prompt`` by at most ``length`` symbols.

    Returns numbers (at most length, hypotheses) on the CPU without the prompt: in each column the symbols up to and
    with the first ``EOS``, then ``PAD``. Ends early when every hypothesis has come to its ``EOS``.
    """
    model.eval()
    symbols = torch.tensor([EOS, *prompt], device=model.device).unsqueeze(1).expand(-1, hypotheses)
    state, generated = None, []
    ended = torch.zeros(hypotheses, dtype=torch.bool, device=model.device)
    while len(generated) < length and not ended.all():
        scores, state = model(symbols, state)
        scores = scores[-1]
        scores[:, PAD] = -torch.inf
        chosen = choose(scores).masked_fill(ended, PAD)
        generated.append(chosen)
        ended = ended | (chosen == EOS)
        symbols = chosen.unsqueeze(0)
    return torch.stack(generated).cpu()


METHODS: dict[str, Callable[[float, int], Choose]] = {  # by temperature and seed
    "greedy": lambda temperature, seed: greedy,
    "sample": sampler,
}
