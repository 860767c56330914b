"""The commands ``python -m benchmarks.language_model train|generate|evaluate``."""

import argparse
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.common import run_command

from .alphabet import EOS, PAD
from .beam import beam_search
from .checkpoint import Checkpoint
from .corpus import read
from .generate import generate, greedy, nucleus, sampler, top_k
from .loss import mean_loss
from .model import LanguageModel
from .options import parse
from .report import describe
from .run import train_command


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that ``arguments``, or those of the process, ask for."""
    options = parse(arguments)
    {"train": train_command, "generate": generate_command, "evaluate": evaluate_command}[options.command](options)


def generate_command(options: argparse.Namespace) -> None:
    """Print the prompt and how the model continues it, and how fast."""
    checkpoint = Checkpoint.load(options.checkpoint)
    model, alphabet = checkpoint.build_model(options.device, options.backend), checkpoint.build_alphabet()
    prompt = alphabet.encode_prompt(options.prompt)
    start = time.perf_counter()
    numbers = _continue(model, prompt, options)
    seconds = time.perf_counter() - start
    print(alphabet.decode(torch.cat([torch.tensor(prompt, dtype=torch.int64), numbers])))
    end = "the sentence ended" if EOS in numbers else "--length was reached"
    speed = f"{len(numbers)} {alphabet.unit}s, {len(numbers) / seconds:,.0f} per second"
    print(f"{speed}; {end}", file=sys.stderr)


def _continue(model: LanguageModel, prompt: list[int], options: argparse.Namespace) -> Tensor:
    """The symbols (N,) that ``--method`` continues the prompt with, the last perhaps ``EOS``."""
    if options.method == "beam":
        numbers = beam_search(model, prompt, options.beam_width, options.length, options.normalise).numbers[:, 0]
        return numbers[numbers != PAD]
    if options.method == "greedy":
        choose = greedy
    else:
        restrict = {"sample": None, "top-k": top_k(options.top_k), "nucleus": nucleus(options.alpha)}[options.method]
        choose = sampler(options.temperature, options.seed, restrict)
    return generate(model, prompt, choose, options.length).squeeze(1)


def evaluate_command(options: argparse.Namespace) -> None:
    """Print the loss of a trained model on a text, cut into sentences or read as a stream as its training text was."""
    checkpoint = Checkpoint.load(options.checkpoint)
    model, alphabet = checkpoint.build_model(options.device, options.backend), checkpoint.build_alphabet()
    text = read(options.text, alphabet, checkpoint.training["max_length"], checkpoint.training["bptt"])
    print(describe(mean_loss(model, text.batches(options.batch)), alphabet.unit))


if __name__ == "__main__":
    run_command(main)
