"""The common parts of the language model's tests: a tiny text, a trained model, functions that run commands."""

import json
import math
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch

import fused_rnn
from benchmarks.common import run_command
from benchmarks.language_model.__main__ import main
from benchmarks.language_model.alphabet import Characters
from benchmarks.language_model.model import LanguageModel, ModelConfig

BACKEND = fused_rnn.choose_backend("cpu", torch.float32).backend  # the fastest that this machine has, without warning
SENTENCES = (
    "the cat sat on a mat",
    "every good dog has 2 ears, or 3",
    "what is red? Jam",
    "Never say never",
    "under a stone lives a toad",
    "one more line (the sixth)",
)
TEXT = ".\n".join(SENTENCES * 40) + "."
ALPHABET = Characters()
LEARNING = ("--epochs", 24, "--decay-after", 20, "--lr", 0.006)  # enough for every cell, whatever the seed


def command(*arguments) -> int:
    """Run the harness with ``arguments`` and return its exit status."""
    try:
        run_command(partial(main, [str(argument) for argument in arguments]))
    except SystemExit as error:
        return error.code
    return 0


def train(text: Path, out: Path, *arguments) -> int:
    """Train a tiny model; ``arguments`` override the ones given here."""
    small = ("--hidden", 48, "--batch", 6, "--epochs", 2, "--lr", 0.012, "--backend", BACKEND)
    return command("train", "--text", text, "--out", out, *small, *arguments)


def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def losses(out: Path, run: int = 0) -> list[tuple[float, float]]:
    return [(epoch["train_loss"], epoch["held_out_loss"]) for epoch in results(out)["runs"][run]["epochs"]]


def unigram_entropy() -> float:
    """Return the loss on the text of a model without memory, in nats per symbol, from the counts of characters."""
    counts = Counter(character for sentence in SENTENCES for character in [*sentence, "end"])
    return -sum(n / counts.total() * math.log(n / counts.total()) for n in counts.values())


def config(cell: str = "lstm", **changes) -> ModelConfig:
    defaults = {
        "symbols": 97,
        "embedding": 11,
        "hidden": 13,
        "layers": 2,
        "dropout": 0.0,
        "weight_drop": 0.0,
        "tie": False,
    }
    return ModelConfig(**{"cell": cell, **defaults, "dtype": "float64", "autocast": False, **changes})


def model(cell: str = "lstm", **changes) -> LanguageModel:
    torch.manual_seed(3)
    return LanguageModel(config(cell, **changes), BACKEND)


def assert_one_line(capsys, message: str) -> None:
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="session")
def trained(text, tmp_path_factory) -> Path:
    """Return the folder of a finished run, in which an LSTM and a GRU have learnt their text."""
    out = tmp_path_factory.mktemp("trained") / "out"
    assert train(text, out, "--cell", "lstm", "gru", *LEARNING, "--valid", text) == 0
    return out
