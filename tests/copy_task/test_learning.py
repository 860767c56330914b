"""The models learn if there is something to learn."""

from itertools import pairwise

import pytest
import torch

from benchmarks.copy_task import train
from benchmarks.copy_task.data import Recall
from benchmarks.copy_task.options import parse_options
from benchmarks.copy_task.summary import outcome
from benchmarks.copy_task.train import learning_rate, progress, run_trial

LEARNING = [
    *("--length", "3", "--symbols", "2", "--vocabulary", "4", "--hidden", "24"),
    *("--lr", "0.01", "--epochs", "4", "--sequences", "3200", "--extra"),
]


class Shuffled(Recall):
    """Recall whose targets belong to other sequences: there is nothing to learn."""

    def draw(self, length, count, generator):
        inputs, targets = super().draw(length, count, generator)
        return inputs, targets[:, torch.randperm(count, generator=generator)]


def test_rate_falls_along_half_a_cosine():
    cosine, constant = (parse_options(["--lr", "0.3", "--schedule", name]) for name in ("cosine", "constant"))
    assert [learning_rate(cosine, done) for done in (0, 1 / 3, 1 / 2, 1)] == pytest.approx([0.3, 0.225, 0.15, 0])
    assert [learning_rate(constant, done) for done in (0, 1 / 2, 1)] == [0.3] * 3


def test_progress_is_of_steps_or_of_time():
    arguments = ["--epochs", "4", "--sequences", "50", "--batch", "20"]  # three steps in an epoch
    steps, minutes = parse_options(arguments), parse_options([*arguments, "--minutes", "2"])
    assert [progress(steps, k, 1e9) for k in (0, 3, 12)] == [0, 0.25, 1]
    assert [progress(minutes, k, 60) for k in (3, 9, 12)] == [0.5, 0.75, 1]
    assert progress(minutes, 3, 121) == 1


@pytest.mark.parametrize("cell", ["gru", "multiplicative_gru"])
def test_gated_cells_learn_to_recall(cell):
    trial = run_trial(parse_options(LEARNING), Recall(2, 4), cell, 3, 0)
    assert trial["accuracy"] > 0.9
    assert trial["loss"] < 0.3 * trial["baseline"]["loss"]
    assert trial["epochs"][-1]["held_out_loss"] < trial["epochs"][0]["train_loss"]


def test_no_cell_recalls_what_it_was_not_told():
    trial = run_trial(parse_options(LEARNING), Shuffled(2, 4), "gru", 3, 0)
    assert outcome(trial) == "chance"


def test_every_step_has_the_rate_of_its_progress(monkeypatch):
    """With a rate of 0 nothing is learned."""
    asked = []
    monkeypatch.setattr(train, "learning_rate", lambda options, done: asked.append(done) or 0.0)
    trial = run_trial(parse_options([*LEARNING, "--sequences", "96"]), Recall(2, 4), "gru", 3, 0)
    assert asked == pytest.approx([k / 12 for k in range(12)])
    assert outcome(trial) == "chance"
    assert trial["gradient_norms"]["after"] == trial["gradient_norms"]["before"]


def test_sequences_grow_as_they_are_learned():
    """They grow after a batch with enough right answers, and only then; an epoch has one batch here."""
    one_batch = ("--sequences", "100", "--batch", "100", "--epochs", "80", "--lr", "0.03")
    one_batch += ("--grow-from", "1", "--grow-at", "0.9")
    epochs = run_trial(parse_options([*LEARNING, *one_batch]), Recall(1, 2), "gru", 9, 0)["epochs"]
    lengths = [1, *(epoch["train_length"] for epoch in epochs)]
    grew = [after > before for before, after in pairwise(lengths)]
    learned = [epoch["train_accuracy"] > 0.9 and before < 9 for epoch, before in zip(epochs, lengths)]
    assert grew == learned
    assert lengths[-1] > lengths[0] == lengths[1]
