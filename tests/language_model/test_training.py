"""Training: every cell learns, every option acts, and what a run leaves behind."""

import json
import math

import numpy as np
import pytest
import torch

from benchmarks.common import CELLS, LARGEST
from benchmarks.language_model import train as train_module
from benchmarks.language_model.alphabet import EOS
from benchmarks.language_model.checkpoint import Checkpoint
from benchmarks.language_model.generate import generate, greedy
from benchmarks.language_model.loss import in_units
from benchmarks.language_model.methods import METHODS
from benchmarks.language_model.model import BASELINES

from .conftest import ALPHABET, BACKEND, LEARNING, SENTENCES, command, losses, results, train, unigram_entropy


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_learns(cell, text, tmp_path):
    assert train(text, tmp_path, "--cell", cell, *LEARNING) == 0
    (first, *_, last), entropy = losses(tmp_path), unigram_entropy()
    assert first[0] > 0.5 * entropy  # nothing gives the text away
    assert last[1] < 0.06 * entropy
    language_model = Checkpoint.load(tmp_path / f"{cell}.pt").build_model("cpu", BACKEND)
    for sentence in SENTENCES:
        numbers = generate(language_model, ALPHABET.encode(sentence[:2]), greedy, 60)
        assert numbers[-1] == EOS
        assert sentence[:2] + ALPHABET.decode(numbers[:, 0]) == sentence


@pytest.mark.parametrize(("cell", "baseline"), [("lstm", "torch_lstm"), ("rnn", "torch_rnn")])
def test_the_cells_of_torch_begin_and_learn_alike(cell, baseline, text, tmp_path):
    assert train(text, tmp_path / "out", "--cell", cell, baseline, "--dtype", "float64", "--layers", 2) == 0
    np.testing.assert_allclose(losses(tmp_path / "out", 0), losses(tmp_path / "out", 1), rtol=1e-9)
    assert [run["epochs"][0]["backend"] for run in results(tmp_path / "out")["runs"]] == [BACKEND, "torch.nn"]


def test_every_cell_of_torch_can_be_compared_with(text, tmp_path):
    options = ("--autocast", "--weight-drop", 0.1, "--dropout", 0.1, "--layers", 2, "--tensorboard")
    assert train(text, tmp_path / "out", "--cell", *BASELINES, *options) == 0
    assert all(after < before for run in range(3) for (before, _), (after, _) in [losses(tmp_path / "out", run)])


def test_stochastic_gradient_descent_learns(text, tmp_path):
    assert train(text, tmp_path, "--optimiser", "sgd", "--lr", 2.0, "--epochs", 3, "--cell", "gru") == 0
    assert losses(tmp_path)[-1][1] < 0.5 * unigram_entropy()


def test_clipping_bounds_the_step(text, tmp_path):
    assert train(text, tmp_path, "--optimiser", "sgd", "--lr", 1.0, "--clip", 1e-12) == 0
    assert losses(tmp_path)[1][1] == pytest.approx(losses(tmp_path)[0][1], abs=1e-6)
    assert losses(tmp_path)[0][1] == pytest.approx(math.log(97), abs=0.3)  # as good as guessing


def test_training_drops_out(text, tmp_path):
    for dropout in (0.0, 0.5):
        assert train(text, tmp_path / str(dropout), "--dropout", dropout) == 0
    assert losses(tmp_path / "0.5")[-1][0] > losses(tmp_path / "0.0")[-1][0] + 0.1


def test_autocast_and_weight_drop_learn(text, tmp_path):
    assert train(text, tmp_path, "--autocast", "--weight-drop", 0.1, "--epochs", 5) == 0
    assert losses(tmp_path)[-1][1] < 0.6 * unigram_entropy()
    weights = Checkpoint.load(tmp_path / "lstm.pt").weights
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_learning_rate_decays(trained):
    rates = [epoch["learning_rate"] for epoch in results(trained)["runs"][0]["epochs"]]
    assert rates == [0.006] * 20 + [0.003, 0.0015, 0.00075, 0.000375]


def test_decayed_learning_rate_reaches_the_optimiser(text, tmp_path):
    assert train(text, tmp_path, "--epochs", 3, "--decay-after", 1, "--decay", 1e-9) == 0
    (_, first), (_, second), (_, third) = losses(tmp_path)
    assert first == pytest.approx(second, abs=1e-5)
    assert second == pytest.approx(third, abs=1e-5)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_other_dtypes(dtype, text, tmp_path):
    assert train(text, tmp_path, "--dtype", dtype, "--epochs", 3) == 0
    assert losses(tmp_path)[-1][1] < 0.8 * unigram_entropy()
    weights = Checkpoint.load(tmp_path / "lstm.pt").weights
    assert {weight.dtype for weight in weights.values()} == {getattr(torch, dtype)}


def test_results(trained, text):
    content = results(trained)
    model_options = {"hidden": 48, "layers": 1, "embedding": 48, "dropout": 0.0, "tie": False, "dtype": "float32"}
    data_options = {"text": str(text), "valid": str(text), "test": None, "alphabet": "characters", "max_length": 400}
    learning_options = {"batch": 6, "epochs": 24, "optimiser": "adam", "lr": 0.006, "decay": 0.5, "decay_after": 20}
    other = {"cell": ["lstm", "gru"], "clip": 1.0, "seed": 0, "backend": BACKEND, "device": "cpu", "symbols": 97}
    expected = {**model_options, **data_options, **learning_options, **other}
    assert {name: content["configuration"][name] for name in expected} == expected
    assert content["hardware"]["torch"] == torch.__version__
    assert [run["cell"] for run in content["runs"]] == ["lstm", "gru"]
    for run in content["runs"]:
        assert [epoch["epoch"] for epoch in run["epochs"]] == list(range(1, 25))
        for epoch in run["epochs"]:
            assert epoch["backend"] == BACKEND
            assert epoch["held_out_bits_per_character"] == pytest.approx(epoch["held_out_loss"] / math.log(2))
            assert epoch["train_perplexity"] == pytest.approx(math.exp(epoch["train_loss"]))
    checkpoint = Checkpoint.load(trained / "gru.pt")
    parameters = checkpoint.build_model("cpu", BACKEND).parameters()
    assert content["runs"][1]["parameters"] == sum(parameter.numel() for parameter in parameters)


def test_folder_holds_a_picture_and_nothing_half_written(trained):
    assert {path.name for path in trained.iterdir()} == {"results.json", "losses.png", "lstm.pt", "gru.pt"}
    assert (trained / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_seed_decides_the_result(text, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert train(text, tmp_path / name, "--seed", seed, "--epochs", 1, "--dropout", 0.2) == 0
    assert losses(tmp_path / "a") == losses(tmp_path / "b") != losses(tmp_path / "c")


def test_evaluate_agrees_with_training(trained, text, capsys):
    assert command("evaluate", "--checkpoint", trained / "lstm.pt", "--text", text, "--backend", BACKEND) == 0
    nats = losses(trained)[-1][1]
    expected = f"{nats:.4f} nats, {nats / math.log(2):.4f} bits per character, perplexity {math.exp(nats):.5g}\n"
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("arguments", [("--lr", LARGEST), ("--init", LARGEST)], ids=str)
def test_the_largest_numbers_can_be_computed_with(arguments, text, tmp_path, capsys):
    assert train(text, tmp_path, *arguments, "--limit", 500) == 2
    assert "error: training of lstm diverged" in capsys.readouterr().err


def test_there_is_one_cpu_by_whatever_number(text, tmp_path):
    arguments = ("--device", "cpu:0", "--limit", 500, "--resume")
    assert train(text, tmp_path, *arguments, "--epochs", 1) == train(text, tmp_path, *arguments) == 0
    assert results(tmp_path)["configuration"]["device"] == "cpu"


def test_test_file_is_measured_at_the_end(trained, text, tmp_path):
    (tmp_path / "test.txt").write_text("A text that is not like it. At all.")
    assert train(text, tmp_path / "out", "--test", tmp_path / "test.txt") == 0
    first, last = results(tmp_path / "out")["runs"][0]["epochs"]
    assert "test_loss" not in first
    assert last["test_loss"] > last["held_out_loss"]


def test_what_no_float_holds_is_infinity_in_text_and_null_in_results(text, tmp_path, monkeypatch, capsys):
    """The loss of a text on which a model is that sure of the wrong symbols."""
    monkeypatch.setattr(train_module.Trainer, "_test_loss", lambda self, last: {"test_loss": 1000.0} if last else {})
    assert train(text, tmp_path / "out", "--test", text, "--epochs", 1) == 0
    assert "1000.0000 nats, 1442.6950 bits per character, perplexity inf" in capsys.readouterr().out
    written = (tmp_path / "out" / "results.json").read_text()
    (epoch,) = json.loads(written, parse_constant=pytest.fail)["runs"][0]["epochs"]
    assert (epoch["test_loss"], epoch["test_perplexity"]) == (1000.0, None)
    assert math.isnan(in_units(math.nan, "byte")["perplexity"])


def test_prompt_is_continued_in_every_way(text, tmp_path):
    arguments = ("--cell", "gru", "lstm", "--prompt", "the ", "--seed", 3)
    assert train(text, tmp_path / "out", *arguments) == 0
    assert train(text, tmp_path / "out", *arguments, "--resume") == 0
    content = results(tmp_path / "out")
    said = {run["cell"]: run["samples"] for run in content["runs"]}
    checkpoint = Checkpoint.load(tmp_path / "out" / "lstm.pt")
    expected = generate(checkpoint.build_model("cpu", BACKEND), ALPHABET.encode("the "), greedy, 200).squeeze(1)
    assert {cell: tuple(ways) for cell, ways in said.items()} == {"gru": METHODS, "lstm": METHODS}
    assert said["lstm"]["greedy"] == "the " + ALPHABET.decode(expected)
    assert content["configuration"]["command_line"].startswith("python -m benchmarks.language_model train --text ")
    assert "--resume" not in content["configuration"]["command_line"]


def test_limit_takes_the_start_of_the_text(text, tmp_path):
    assert train(text, tmp_path, "--limit", 500, "--valid", text) == 0
    content = results(tmp_path)["data"]
    assert 450 < content["training_symbols"] <= 500 < content["held_out_symbols"]


def test_default_text(tmp_path):
    arguments = ("--limit", 4000, "--batch", 4, "--hidden", 8, "--epochs", 1, "--backend", BACKEND)
    assert command("train", "--out", tmp_path, *arguments) == 0
    assert results(tmp_path)["configuration"]["text"] is None
    assert 1000 < results(tmp_path)["data"]["training_symbols"] < 4000
