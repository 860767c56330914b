"""The command line of the copy task: options, and the presets of their defaults.

``PRESETS`` holds each protocol's published or recorded setting, ``DEMO`` and ``LONGEST`` the changes that ``--demo``
and ``--longest`` make to it. All are only defaults: a given option overrides them, and ``--help`` shows the values in
force.
"""

import argparse
import contextlib
import math
import time
from argparse import Namespace
from pathlib import Path

from benchmarks.common import (
    COMPARED,
    InputError,
    Parser,
    add_common_options,
    fraction,
    number,
    positive,
    positive_number,
)

from .data import Echo, Recall, Task

COMMON = {
    "cell": list(COMPARED),
    "length": [100, 200, 500, 1000],
    "vocabulary": 10,
    "trials": 3,
    "hidden": 128,
    "batch": 32,
    "extra": [10, 100],
    "grow_at": 0.99,
    "minutes": None,
    "ascend": False,
    "processes": 1,
    "out": Path("runs/copy_task"),
}
# recall: all gated cells learn with these at a length of 50, faster than at half the rate; one bias for all units would
# leave the LSTM at chance there. echo: as recorded.
PRESETS = {
    "recall": {
        **COMMON,
        **{"symbols": 10, "sequences": 3200, "held_out": 320, "epochs": 60, "until": 0.998},
        **{"lr": 1e-2, "schedule": "cosine", "clip": 1.0, "keep_bias": "chrono", "grow_from": None},
    },
    "echo": {
        **COMMON,
        **{"symbols": None, "sequences": 100, "held_out": 100, "epochs": 10, "until": None},
        **{"lr": 1e-2, "schedule": "constant", "clip": None, "keep_bias": 0.0, "grow_from": None},
    },
}
DEMO = {
    "length": [10, 20],
    "symbols": 5,
    "vocabulary": 8,
    "trials": 2,
    "extra": [5],
    "epochs": 20,
}
LONGEST = {
    "cell": ["lstm"],
    "length": [100, 200, 500, 1000, 2000, 5000],
    "trials": 1,
    "grow_from": 10,
    "until": 0.995,
    "minutes": 9.5,  # including the tests a trial takes less than ten
    "ascend": True,
}
NOT_DECIDING = ("out", "resume", "demo", "longest", "compare", "report", "threads")


def parse_options(arguments: list[str] | None = None) -> Namespace:
    """Return the checked options of a run; end the program or raise InputError if they are wrong."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--protocol", nargs="?")
    first.add_argument("--demo", action="store_true")
    first.add_argument("--longest", action="store_true")
    chosen, _ = first.parse_known_args(arguments)
    parser = _parser()
    preset = PRESETS.get(chosen.protocol, PRESETS["recall"])
    if chosen.demo:
        # a fresh folder, because people run the demo repeatedly
        folder = {"out": Path(time.strftime("runs/demo-%Y%m%d-%H%M%S"))}
        preset = preset | {name: value for name, value in DEMO.items() if preset[name] is not None} | folder
    elif chosen.longest:
        preset = preset | LONGEST | {"out": Path("runs/copy_task_longest")}
    parser.set_defaults(**preset)
    options = parser.parse_args(arguments)
    _check(options)
    options.resume |= options.compare
    return options


def _parser() -> Parser:
    parser = Parser(
        prog="python -m benchmarks.copy_task",
        description="How far back does each cell remember, and what does it cost? Trains cells at every length.",
    )
    parser.add_argument(
        "--protocol",
        choices=PRESETS,
        default="recall",
        help="recall: say the first symbols again after a delay; echo: repeat every row of integers as it comes",
    )
    presets = parser.add_mutually_exclusive_group()
    presets.add_argument("--demo", action="store_true", help="other defaults: a small task that trains within minutes")
    presets.add_argument(
        "--longest",
        action="store_true",
        help="other defaults: an LSTM at longer and longer delays, ten minutes for each, up to one it does not solve",
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="run every cell, length and trial asked for: as without it, but going on from what --out already holds",
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="train nothing: write the report anew from the results that --out holds, finished or not",
    )
    add_common_options(parser)
    parser.add_argument(
        "--length", type=positive, nargs="+", help="recall: blanks between symbols and delimiter; echo: rows"
    )
    parser.add_argument("--symbols", type=positive, help="symbols to recall (protocol recall only)")
    parser.add_argument("--vocabulary", type=positive, help="number of different symbols")
    parser.add_argument("--trials", type=positive, help="trials per cell and length, with seeds seed, seed+1, ...")
    parser.add_argument("--sequences", type=positive, help="training sequences per epoch")
    parser.add_argument("--held-out", type=positive, help="sequences to validate with, and as many to test with")
    parser.add_argument("--extra", type=positive, nargs="*", help="test also on sequences this much longer")
    parser.add_argument(
        "--schedule",
        choices=("cosine", "constant"),
        help="of the learning rate; cosine: it falls from --lr to 0 along half a cosine over --epochs, or over "
        "--minutes where they end first",
    )
    parser.add_argument(
        "--grow-from",
        type=positive,
        metavar="LENGTH",
        help="protocol recall: train at this length at first, and at one greater by a tenth after each batch of which "
        "more than --grow-at came right, up to --length; sequences that are held out all have --length",
    )
    parser.add_argument("--grow-at", type=fraction, metavar="ACCURACY", help="see --grow-from")
    parser.add_argument("--clip", type=positive_number, help="scale gradients of a larger norm down to this")
    parser.add_argument(
        "--until", type=fraction, help="end a trial's training after the epoch whose held-out accuracy is above this"
    )
    parser.add_argument(
        "--minutes",
        type=positive_number,
        help="end a trial's training when it has taken so long; how far it came then depends on the machine",
    )
    parser.add_argument(
        "--ascend",
        action="store_true",
        help="go from the shortest length to the longest, and leave out what is longer than a length that a cell did "
        "not solve",
    )
    parser.add_argument(
        "--processes",
        type=positive,
        help="train so many trials side by side, each in a process of its own; the results are the same, and the times "
        "those of processes that share the machine",
    )
    parser.add_argument(
        "--keep-bias",
        type=_keep_bias,
        help="initial shift towards keeping the state of the LSTMs' forget gate and the GRUs' update gate: a number "
        "for all units, or 'chrono', which draws each unit's as ln u, u uniform from 1 to the delay between a symbol "
        "and its answer less one, and shifts the LSTMs' input gate the other way (Tallec & Ollivier 2018). Without it "
        "all units forget within a few steps, and no gradient tells them otherwise",
    )
    return parser


def _keep_bias(text: str) -> float | str:
    """An argparse type: a finite number, or chrono."""
    if text == "chrono":
        return text
    with contextlib.suppress(ValueError):
        if math.isfinite(float(text)):
            return number(text)
    raise argparse.ArgumentTypeError(f"must be a finite number or chrono, got {text}")


def _check(options: Namespace) -> None:
    for name in ("cell", "length", "extra"):
        setattr(options, name, list(dict.fromkeys(getattr(options, name))))
    if options.protocol == "echo" and options.symbols is not None:
        raise InputError(
            f"--symbols {options.symbols} does not go with --protocol echo, which repeats all of a sequence"
        )
    if options.protocol == "echo" and options.longest:
        raise InputError("--longest does not go with --protocol echo, which has no delay")
    if options.protocol == "echo" and options.grow_from is not None:
        raise InputError(
            f"--grow-from {options.grow_from} does not go with --protocol echo, which has one set of sequences to "
            "train on"
        )
    if options.grow_from is None and options.grow_at != COMMON["grow_at"]:
        raise InputError(f"--grow-at {options.grow_at} says when sequences grow, and without --grow-from none does")
    if options.ascend:
        options.length.sort()
        if options.processes > 1:
            raise InputError(f"--processes {options.processes} does not go with --ascend, which waits for each length")
    if options.vocabulary < 2:
        raise InputError(f"--vocabulary {options.vocabulary} leaves nothing to remember: at least 2 symbols are needed")


def task_of(options: Namespace) -> Task:
    """Return the protocol that the options name."""
    if options.protocol == "recall":
        return Recall(options.symbols, options.vocabulary)
    return Echo(options.vocabulary)


def configuration_of(options: Namespace, backend: str) -> dict:
    """Return the settings that decide the results: every option but output paths, and the ``backend`` that runs."""
    deciding = {name: value for name, value in vars(options).items() if name not in NOT_DECIDING}
    return {**deciding, "backend": backend}
