"""The commands ``python -m benchmarks.language_model train|generate|evaluate``."""

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial

import torch

from benchmarks.common import InputError, run_command

from .alphabet import EOS
from .checkpoint import Checkpoint
from .corpus import read
from .distributed import World, joined
from .loss import mean_loss
from .methods import continuation
from .options import choices_of, parse
from .report import describe
from .run import train_command


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command in ``arguments``, or in those of the process, perhaps as one of several processes."""
    with joined() as world:
        run_command(partial(_run, arguments, world), say=world.say)


def _run(arguments: Sequence[str] | None, world: World) -> None:
    options = parse(arguments)
    if options.command == "train":
        train_command(options, world)
    elif world.size > 1:
        raise InputError(f"{options.command} runs in one process, but {world.size} were started")
    else:
        {"generate": generate_command, "evaluate": evaluate_command}[options.command](options)


def generate_command(options: argparse.Namespace) -> None:
    """Print the prompt and the model's continuation, and the speed."""
    checkpoint = Checkpoint.load(options.checkpoint)
    model, alphabet = checkpoint.build_model(options.device, options.backend), checkpoint.build_alphabet()
    prompt = alphabet.encode_prompt(options.prompt)
    start = time.perf_counter()
    numbers = continuation(model, alphabet, prompt, options.method, choices_of(options))
    seconds = time.perf_counter() - start
    print(alphabet.decode(torch.cat([torch.tensor(prompt, dtype=torch.int64), numbers])))
    end = "the sentence ended" if EOS in numbers else "--length was reached"
    speed = f"{len(numbers)} {alphabet.unit}s, {len(numbers) / seconds:,.0f} per second"
    print(f"{speed}; {end}", file=sys.stderr)


def evaluate_command(options: argparse.Namespace) -> None:
    """Print the loss of a trained model on a text, cut into sentences or read as a stream like its training text."""
    checkpoint = Checkpoint.load(options.checkpoint)
    model, alphabet = checkpoint.build_model(options.device, options.backend), checkpoint.build_alphabet()
    text = read(options.text, alphabet, checkpoint.training["max_length"], checkpoint.training["bptt"])
    print(describe(mean_loss(model, text.batches(options.batch)), alphabet.unit))


if __name__ == "__main__":
    run_command(main)
