"""The command line's options, each explained where it is defined."""

import argparse
import shlex
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from benchmarks.common import (
    InputError,
    Parser,
    add_backend_options,
    add_common_options,
    fraction,
    positive,
    positive_number,
    seed,
    share,
)
from benchmarks.optimisers import OPTIMISERS

from . import __doc__ as description
from .alphabet import ALPHABETS
from .corpus import STANDARD_LIBRARY_LIMIT
from .methods import METHODS, SAMPLING, Choices
from .model import BASELINES
from .presets import PRESETS
from .train import CLIPS, SCHEDULES

# By command, the options that do nothing beside some values of another: that one, and its values with which they act.
ACTING = {
    "train": {
        "--bptt": ("alphabet", ("bytes", "words")),
        "--max-length": ("alphabet", ("characters",)),
        "--held-out": ("valid", (None,)),
        "--held-out-from": ("valid", (None,)),
        "--decay-after": ("schedule", ("epochs",)),
    },
    "generate": {
        "--temperature": ("method", SAMPLING),
        "--seed": ("method", SAMPLING),
        "--top-k": ("method", ("top-k",)),
        "--alpha": ("method", ("nucleus",)),
        "--beam-width": ("method", ("beam",)),
        "--normalise": ("method", ("beam",)),
    },
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse ``arguments``, or those of the process; ``command`` names the given command.

    ``command_line`` is the command to type to run it from its beginning.
    """
    parser = Parser(prog="python -m benchmarks.language_model", description=description)
    commands = parser.add_subparsers(dest="command", required=True)
    train_parser = commands.add_parser("train", help="train a model of every cell asked for")
    add_train_options(train_parser)
    add_generate_options(commands.add_parser("generate", help="continue a prompt"))
    add_evaluate_options(commands.add_parser("evaluate", help="measure a trained model on a text"))
    options = parser.parse_args(arguments)
    if options.command == "train" and options.preset is not None:
        train_parser.set_defaults(**PRESETS[options.preset])
        options = parser.parse_args(arguments)  # parsed again, because given options take precedence over the preset
    given = sys.argv[1:] if arguments is None else arguments
    if not getattr(options, "resume", False):  # a run goes on with the options that it began with
        _check_acting(options, {word.partition("=")[0] for word in given})
    to_type = [word for word in given if word != "--resume"]
    options.command_line = shlex.join(["python", "-m", "benchmarks.language_model", *to_type])
    return options


def _check_acting(options: argparse.Namespace, given: Collection[str]) -> None:
    """Raise InputError if an option was ``given`` that another one makes do nothing."""
    for name, (other, values) in ACTING.get(options.command, {}).items():
        value = getattr(options, other)
        if name in given and value not in values:
            needed = f"without --{other}" if None in values else f"with --{other} {' or '.join(values)}"
            raise InputError(f"{name} does nothing with --{other} {value}: it goes {needed}")


def add_train_options(parser: argparse.ArgumentParser) -> None:
    defaults = {"cell": ["lstm"], "hidden": 128, "batch": 64, "epochs": 5, "lr": 0.003}
    add_common_options(parser, baselines=BASELINES, out=Path("runs/language_model"), **defaults)
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        help="settings of a published model; options given beside it win (default: none, the defaults below)",
    )
    parser.add_argument(
        "--text",
        type=Path,
        help="UTF-8 file to learn from (default: the source text of Python's own standard library)",
    )
    parser.add_argument(
        "--limit",
        type=positive,
        help="use only so many characters (bytes, with --alphabet bytes) from the start of the text "
        f"(default: {STANDARD_LIBRARY_LIMIT} of the standard library, all of a file)",
    )
    parser.add_argument(
        "--valid", type=Path, help="UTF-8 file to measure on after every epoch (default: the end of the text)"
    )
    parser.add_argument(
        "--held-out", type=fraction, default=0.1, help="part of the text to measure on where there is no --valid"
    )
    parser.add_argument(
        "--held-out-from",
        choices=("end", "streams"),
        default="end",
        help="take that part from the end of the text, or from the end of each of the --batch streams that it is read "
        "in, and so from everywhere in the text (bytes and words only)",
    )
    parser.add_argument("--test", type=Path, help="UTF-8 file to measure on after the last epoch (default: none)")
    parser.add_argument(
        "--alphabet",
        choices=ALPHABETS,
        default="characters",
        help="the symbols the model knows: 95 characters, for sentences in padded batches; bytes of any file, which is "
        "not read into memory; or the words of the text, which spaces separate, a line at a time as in Penn Treebank",
    )
    parser.add_argument(
        "--max-length", type=positive, default=400, help="characters of a sentence to use; the rest is cut off"
    )
    parser.add_argument(
        "--bptt",
        type=positive,
        default=64,
        metavar="STEPS",
        help="steps of bytes or words at a time: the state is carried on to the next steps, the gradient not back",
    )
    parser.add_argument("--embedding", type=positive, help="features of the embedding (default: as many as --hidden)")
    parser.add_argument("--dropout", type=fraction, default=0.0, help="of the embedding and of every layer's outputs")
    parser.add_argument(
        "--weight-drop",
        type=fraction,
        default=0.0,
        help="of the weights that the state is multiplied with, drawn anew in each training step",
    )
    parser.add_argument(
        "--autocast", action="store_true", help="compute in bfloat16, with parameters and optimiser in float32"
    )
    parser.add_argument("--tie", action="store_true", help="use the embedding's weights as the decoder's, too")
    parser.add_argument(
        "--init",
        type=positive_number,
        metavar="RANGE",
        help="draw every parameter between -RANGE and RANGE (default: as torch.nn's modules do)",
    )
    parser.add_argument("--optimiser", choices=OPTIMISERS, default="adam", help="what follows the gradients")
    parser.add_argument(
        "--loss-per",
        choices=("symbol", "sequence"),
        default="symbol",
        help="take the gradient of the mean loss per symbol, or of the mean over sequences of the sum over their steps",
    )
    parser.add_argument(
        "--schedule",
        choices=SCHEDULES,
        default="epochs",
        help="when to decay the learning rate: at each epoch after --decay-after, or (plateau) after each whose "
        "held-out loss was not the lowest so far",
    )
    parser.add_argument(
        "--decay-after", type=positive, default=3, metavar="EPOCHS", help="epochs of constant learning rate"
    )
    parser.add_argument("--decay", type=share, default=0.5, help="factor on the learning rate each time, at most 1")
    parser.add_argument("--clip", type=positive_number, default=1.0, help="bound on the gradient")
    parser.add_argument("--clip-by", choices=CLIPS, default="norm", help="bound its norm, or each of its values")
    parser.add_argument(
        "--prompt",
        help="let every trained model continue this beginning of a sentence, in every way that generate has, and keep "
        "what it says in results.json (default: none)",
    )
    parser.add_argument(
        "--save-every",
        type=positive_number,
        default=10.0,
        metavar="MINUTES",
        help="save within an epoch so often, for --resume to go on from; epochs and Ctrl-C save anyhow",
    )
    parser.add_argument(
        "--tensorboard",
        action="store_true",
        help="write losses, and histograms of gradients and gates, for TensorBoard to OUT/tensorboard",
    )


def add_generate_options(parser: argparse.ArgumentParser) -> None:
    _add_checkpoint_options(parser)
    parser.add_argument("--prompt", default="", help="beginning of the sentence to continue (default: none)")
    parser.add_argument("--method", choices=METHODS, default="sample", help="how what comes next is chosen")
    parser.add_argument(
        "--temperature", type=positive_number, help="of sample, top-k and nucleus: below 1 safer, above 1 wilder"
    )
    parser.add_argument("--top-k", type=positive, help="symbols that top-k draws from, the likeliest")
    parser.add_argument(
        "--alpha", type=share, help="nucleus draws from the fewest symbols with this probability together"
    )
    parser.add_argument("--beam-width", type=positive, help="hypotheses that beam goes on from, the best")
    parser.add_argument(
        "--normalise",
        action="store_true",
        help="let beam rank hypotheses by log-probability per symbol: without it short ones have the advantage",
    )
    parser.add_argument("--length", type=positive, help="most symbols to generate")
    parser.add_argument("--seed", type=seed, help="of sample, top-k and nucleus")
    parser.set_defaults(**asdict(Choices()))


def choices_of(options: argparse.Namespace) -> Choices:
    """Return the options of ``generate`` that decide a continuation."""
    return Choices(**{field.name: getattr(options, field.name) for field in fields(Choices)})


def add_evaluate_options(parser: argparse.ArgumentParser) -> None:
    _add_checkpoint_options(parser)
    parser.add_argument("--text", type=Path, required=True, help="file to measure on")
    parser.add_argument("--batch", type=positive, default=64, help="sentences, or streams of bytes or words, per step")


def _add_checkpoint_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, help="file that train left in its --out")
    add_backend_options(parser)
