"""Going on after an interruption."""

import itertools
from pathlib import Path

import pytest
import torch

from benchmarks.language_model import train as train_module
from benchmarks.language_model.checkpoint import Checkpoint
from benchmarks.language_model.loss import mean_loss

from .conftest import (
    LEARNING,
    assert_one_line,
    losses,
    results,
    train,
)

RESUMED = ("--cell", "lstm", "multiplicative_gru", "--dropout", 0.3, "--layers", 2)


@pytest.fixture(scope="module")
def uninterrupted(text, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    assert train(text, out, *RESUMED, "--epochs", 3, "--decay-after", 1) == 0
    return out


def assert_same_run(out: Path, other: Path) -> None:
    for run, cell in enumerate(("lstm", "multiplicative_gru")):
        assert losses(out, run) == losses(other, run)
        weights, others = (Checkpoint.load(folder / f"{cell}.pt").weights for folder in (out, other))
        assert all(torch.equal(weight, others[name]) for name, weight in weights.items())


def test_resumed_equals_uninterrupted(uninterrupted, text, tmp_path):
    assert train(text, tmp_path, *RESUMED, "--epochs", 2, "--decay-after", 1) == 0
    assert train(text, tmp_path, *RESUMED, "--epochs", 3, "--decay-after", 1, "--resume") == 0
    assert_same_run(tmp_path, uninterrupted)
    assert results(tmp_path)["configuration"]["epochs"] == 3


def test_interrupted_in_any_epoch_goes_on(uninterrupted, text, tmp_path, monkeypatch, capsys):
    """Ctrl-C in the second epoch of the second cell: its first epoch and the whole first cell are kept."""
    calls = itertools.count(1)

    def interrupt(*arguments):
        if next(calls) == 5:
            raise KeyboardInterrupt
        return mean_loss(*arguments)

    arguments = (*RESUMED, "--epochs", 3, "--decay-after", 1, "--resume")
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "mean_loss", interrupt)
        assert train(text, tmp_path, *arguments) == 130
    assert "--resume" in capsys.readouterr().err
    assert [len(run["epochs"]) for run in results(tmp_path)["runs"]] == [3, 1]
    assert train(text, tmp_path, *arguments) == 0
    assert_same_run(tmp_path, uninterrupted)


def test_resuming_a_finished_run_changes_nothing(trained, text):
    before = losses(trained)
    assert train(text, trained, *LEARNING, "--valid", text, "--resume") == 0
    assert losses(trained) == before
    assert [run["cell"] for run in results(trained)["runs"]] == ["lstm", "gru"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "holds results already"),
        (("--resume", "--lr", 0.01), "lr was 0.006 and is now 0.01"),
        (("--resume", "--hidden", 25), "hidden was 48 and is now 25"),
        (("--resume", "--max-length", 7), "text_digest was"),
        (("--resume", "--epochs", 5), "--epochs is 5"),
    ],
    ids=["without-resume", "other-rate", "other-model", "other-text", "fewer-epochs"],
)
def test_finished_results_are_not_touched(arguments, message, trained, text, capsys):
    before = {path: path.read_bytes() for path in trained.iterdir()}
    assert train(text, trained, *LEARNING, "--valid", text, *arguments) == 2
    assert_one_line(capsys, message)
    assert {path: path.read_bytes() for path in trained.iterdir()} == before


def test_results_of_another_program_are_not_written_over(text, tmp_path, capsys):
    (tmp_path / "results.json").write_text("{}")
    for arguments in ((), ("--resume",)):
        assert train(text, tmp_path, *arguments) == 2
        assert_one_line(capsys, "holds results")
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("alphabet", ["bytes", "words"])
def test_resumed_stream_equals_uninterrupted(alphabet, text, tmp_path):
    """Also where the learning rate follows the losses of the epochs before."""
    arguments = (*RESUMED, "--alphabet", alphabet, "--bptt", 10, "--schedule", "plateau", "--optimiser", "rmsprop")
    arguments = (*arguments, "--limit", 800, "--hidden", 16)
    assert train(text, tmp_path / "whole", *arguments, "--epochs", 3) == 0
    assert train(text, tmp_path / "parts", *arguments, "--epochs", 1) == 0
    assert train(text, tmp_path / "parts", *arguments, "--epochs", 3, "--resume") == 0
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_resuming_with_another_vocabulary(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("a b c d e\n" * 20)
    arguments = ("--alphabet", "words", "--bptt", 5, "--hidden", 8)
    assert train(tmp_path / "text.txt", tmp_path / "out", *arguments) == 0
    capsys.readouterr()
    (tmp_path / "text.txt").write_text("a b c d e f\n" * 20)
    assert train(tmp_path / "text.txt", tmp_path / "out", *arguments, "--resume") == 2
    assert_one_line(capsys, "that has 5 words and the text 6")
