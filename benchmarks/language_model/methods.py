"""The methods to continue a prompt, by name, and their parameters."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .alphabet import PAD, Alphabet
from .beam import beam_search
from .generate import generate, greedy, nucleus, sampler, top_k
from .model import LanguageModel

SAMPLING = ("sample", "top-k", "nucleus")
METHODS = ("greedy", *SAMPLING, "beam")


@dataclass(frozen=True)
class Choices:
    """The parameters of a continuation beside the model and the prompt; the options of ``generate`` explain each."""

    temperature: float = 1.0
    top_k: int = 10
    alpha: float = 0.95
    beam_width: int = 5
    normalise: bool = False
    length: int = 200
    seed: int = 0


def continuation(model: LanguageModel, alphabet: Alphabet, prompt: list[int], method: str, choices: Choices) -> Tensor:
    """Return the numbers (N,), at most ``choices.length`` of them, with which ``method`` continues ``prompt``.

    The last is ``EOS`` if the sentence ended, as those of ``alphabet`` may.
    """
    excluded = alphabet.excluded
    if method == "beam":
        hypotheses = beam_search(model, prompt, choices.beam_width, choices.length, choices.normalise, excluded)
        likeliest = hypotheses.numbers[:, 0]
        return likeliest[likeliest != PAD]
    if method == "greedy":
        choose = greedy
    else:
        restrict = {"sample": None, "top-k": top_k(choices.top_k), "nucleus": nucleus(choices.alpha)}[method]
        choose = sampler(choices.temperature, choices.seed, restrict)
    return generate(model, prompt, choose, choices.length, excluded=excluded).squeeze(1)


def continuations(model: LanguageModel, alphabet: Alphabet, prompt: str, choices: Choices) -> dict[str, str]:
    """Return ``prompt`` and the model's continuation, by method."""
    start = alphabet.encode_prompt(prompt)
    ends = {method: continuation(model, alphabet, start, method, choices) for method in METHODS}
    return {method: alphabet.decode(torch.cat([torch.tensor(start), end])) for method, end in ends.items()}
