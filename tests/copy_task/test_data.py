"""The sequences against the published descriptions, and the scores of outputs."""

import itertools
import math

import pytest
import torch

from benchmarks.copy_task.data import Data, Echo, Recall
from benchmarks.copy_task.model import CopyModel, chrono_bias

from .conftest import generator


def test_recall_is_laid_out_as_published():
    """Henaff et al. 2016, §3.1, with T = length + 1: S symbols, T-1 blanks, a delimiter, S blanks; each symbol is
    due S + T steps later."""
    S, K, D, B = 4, 8, 7, 5
    inputs, targets = Recall(S, K).draw(D, B, generator())
    T = D + 1
    assert inputs.shape == (T + 2 * S, B, K + 2)
    assert (inputs.sum(-1) == 1).all()
    categories = inputs.argmax(-1)
    assert (categories[:S] < K).all()
    assert (categories[S : S + T - 1] == K).all()
    assert (categories[S + T - 1] == K + 1).all()
    assert (categories[S + T :] == K).all()
    assert torch.equal(targets, categories[:S])


def test_symbols_are_uniform():
    _, targets = Recall(10, 10).draw(1, 2000, generator())
    counts = torch.bincount(targets.flatten(), minlength=10)
    assert (counts - 2000).abs().max() < 5 * math.sqrt(2000 * 0.9)


def test_echo_is_laid_out_as_recorded():
    inputs, targets = Echo(10).draw(100, 30, generator())
    assert inputs.shape == (101, 30, 11)
    assert torch.equal(inputs, targets)
    assert set(inputs[:-1].unique().tolist()) == set(range(10))
    assert (inputs[-1] == 10).all()


def test_delay_is_from_a_symbol_to_its_answer():
    inputs, targets = Recall(4, 8).draw(7, 1, generator())
    assert len(inputs) - len(targets) == Recall(4, 8).delay(7)
    assert Echo(10).delay(7) == 0
    assert torch.equal(chrono_bias(4, Echo(10).delay(7)), torch.zeros(4))  # nothing to remember, nothing to keep


def test_splits_differ_and_repeat():
    def draw(seed: int) -> list[torch.Tensor]:
        data = Data(Recall(10, 10), 3, seed)
        training = data.training(count=4, batch=4)
        epochs = [next(iter(next(training)))[1] for _ in range(2)]
        return [*epochs, data.held_out("validation", 4)[1], data.held_out("test", 4)[1]]

    first, again, other = draw(0), draw(0), draw(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    distinct = [tuple(part.flatten().tolist()) for part in [*first, *other]]
    assert len(set(distinct)) == 8


def test_epochs_cover_every_sequence_once():
    data = Data(Echo(10), 2, seed=0)
    epochs = data.training(count=10, batch=4)
    first, second = ([targets for _, targets in next(epochs)] for _ in range(2))
    assert [part.shape[1] for part in first] == [4, 4, 2]

    def rows(parts: list[torch.Tensor]) -> list[list]:
        return torch.cat(parts, 1).transpose(0, 1).flatten(1).tolist()

    assert rows(first) != rows(second)
    assert sorted(rows(first)) == sorted(rows(second))
    assert [targets.shape[1] for _, targets in next(Data(Recall(2, 3), 2, 0).training(10, 4))] == [4, 4, 2]


def test_sequences_are_drawn_when_they_are_needed():
    (inputs, _), *_ = itertools.islice(next(Data(Recall(2, 3), 2, seed=0).training(10**11, 4)), 1)
    assert inputs.shape[1] == 4


def test_training_sequences_grow_when_told():
    data = Data(Recall(2, 3), 13, seed=0, first=10)
    lengths = []
    for batches in (next(data.training(count=2, batch=1)) for _ in range(3)):
        for inputs, _ in batches:
            lengths.append(len(inputs) - 2 * 2 - 1)
            data.lengthen()
    assert lengths == [10, 11, 13, 13, 13, 13]
    assert data.held_out("test", 1)[0].shape == Data(Recall(2, 3), 13, seed=0).held_out("test", 1)[0].shape
    assert Data(Recall(2, 3), 5, seed=0, first=10).training_length == 5
    single = Data(Recall(2, 3), 2, seed=0, first=1)
    single.lengthen()
    assert single.training_length == 2


def test_recall_baseline_is_what_uniform_logits_score():
    task = Recall(4, 7)
    _, targets = task.draw(5, 50, generator())
    baseline = task.baseline(5)
    assert baseline.loss == pytest.approx(task.loss(torch.zeros(4, 50, 7), targets).item())
    assert baseline.accuracy == pytest.approx(1 / 7)


def test_echo_baseline_is_what_the_best_constant_scores():
    task = Echo(10)
    _, targets = task.draw(100, 500, generator())
    constant = torch.full(targets.shape, 4.5)
    constant[-1] = 10
    baseline = task.baseline(100)
    assert round(baseline.loss, 2) == 8.17
    assert baseline.loss == pytest.approx(task.loss(constant, targets).item(), rel=0.01)
    assert baseline.accuracy == pytest.approx(task.accuracy(constant, targets).item(), abs=0.01)


def test_recall_scores_only_the_recalled_part():
    """The scored outputs are those of the last S steps, and the loss is the mean over their symbols."""
    task = Recall(3, 5)
    inputs, targets = task.draw(4, 2, generator())
    model = CopyModel("gru", task, hidden=6, layers=1)
    outputs = model(inputs.float(), len(targets))
    whole, _ = model.recurrent(inputs.float())
    assert torch.equal(outputs, model.decoder(whole)[-3:])
    expected = torch.stack([-outputs.log_softmax(-1)[s, b, targets[s, b]] for s in range(3) for b in range(2)]).mean()
    torch.testing.assert_close(task.loss(outputs, targets), expected)


def test_accuracy_counts_right_symbols():
    recall, targets = Recall(2, 3), torch.tensor([[0, 1], [2, 2]])
    outputs = torch.eye(3)[torch.tensor([[0, 1], [2, 0]])]
    assert recall.accuracy(outputs, targets).item() == 0.75
    echo, rows = Echo(3), torch.tensor([[[0, 1, 2, 2]], [[3, 3, 3, 3]]])
    assert echo.accuracy(rows + torch.tensor([0.4, -0.4, 0.6, 0]), rows).item() == 0.75
    assert echo.accuracy(rows * torch.tensor([[[1.0]], [[0.0]]]), rows).item() == 1  # the delimiter does not count


def test_answers_are_as_many_as_the_accuracy_counts():
    assert Recall(3, 5).answers(100) == 3
    assert Echo(10).answers(100) == 100 * 11
