"""The model and its loss."""

import pytest
import torch

from benchmarks.common import CELLS
from benchmarks.language_model.alphabet import EOS, PAD
from benchmarks.language_model.corpus import Batch, Sentences
from benchmarks.language_model.loss import Mean, masked_cross_entropy, mean_loss

from .conftest import ALPHABET, TEXT, model


def test_masked_loss_equals_a_loop():
    torch.manual_seed(0)
    scores = torch.randn(5, 3, 97, dtype=torch.float64)
    targets = Batch.of([torch.randint(2, 97, (length,)) for length in (5, 2, 1)]).targets
    expected = [
        -scores[t, b].log_softmax(-1)[targets[t, b]].item() for b, length in enumerate((5, 2, 1)) for t in range(length)
    ]
    total, count = masked_cross_entropy(scores, targets)
    assert count == 8
    assert total.item() == pytest.approx(sum(expected), rel=1e-12)
    mean = Mean(torch.device("cpu"))
    mean.add(*masked_cross_entropy(scores[:, :1], targets[:, :1]))
    mean.add(*masked_cross_entropy(scores[:, 1:], targets[:, 1:]))
    assert mean.value() == pytest.approx(sum(expected) / 8, rel=1e-12)  # each symbol counts once, not each batch


def test_loss_ignores_the_padding():
    torch.manual_seed(0)
    language_model = model()
    batch = Batch.of([torch.tensor([5, 6, 7, 8, EOS]), torch.tensor([9, EOS])])
    scores, _ = language_model(batch.inputs)
    scores.retain_grad()
    loss, _ = masked_cross_entropy(scores, batch.targets)
    loss.backward()
    padding = batch.targets == PAD
    assert scores.grad[padding].abs().max() == 0
    assert scores.grad[~padding].abs().sum(-1).min() > 0
    other = batch.inputs.clone()
    other[2:, 1] = 50  # input past the end of the second sentence
    assert masked_cross_entropy(language_model(other)[0], batch.targets)[0].item() == pytest.approx(
        loss.item(), rel=1e-12
    )


@pytest.mark.parametrize("cell", CELLS)
def test_model_carries_its_state(cell):
    language_model = model(cell)
    inputs = torch.randint(97, (9, 4))
    whole, _ = language_model(inputs)
    first, state = language_model(inputs[:5])
    second, _ = language_model(inputs[5:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)


def test_tied_weights_are_one_parameter():
    free, tied = model(embedding=13), model(embedding=13, tie=True)
    assert tied.embedding.weight is tied.decoder.weight
    count = [sum(parameter.numel() for parameter in m.parameters()) for m in (free, tied)]
    assert count[0] - count[1] == 97 * 13


@pytest.mark.parametrize("training", [True, False], ids=["training", "measuring"])
def test_dropout_acts_in_training_only(training):
    language_model = model(dropout=0.4).train(training)
    dropped = {}

    def look(name, inputs):
        dropped[name] = (inputs[0] == 0).double().mean().item()

    for name in ("recurrent", "decoder"):
        getattr(language_model, name).register_forward_pre_hook(lambda _, inputs, name=name: look(name, inputs))
    language_model(torch.randint(2, 97, (50, 30)))
    assert dropped == pytest.approx(dict.fromkeys(("recurrent", "decoder"), 0.4 if training else 0.0), abs=0.03)


def test_measuring_needs_no_luck():
    language_model = model(dropout=0.5)
    batches = list(Sentences.from_text(TEXT, ALPHABET, 30).batches(10))
    assert mean_loss(language_model, batches) == mean_loss(language_model, batches)


@pytest.mark.parametrize("cell", CELLS)
def test_weight_drop_drops_recurrent_weights_in_training_only(cell):
    """Gradients show which weights were dropped, because theirs are zero."""
    language_model = model(cell, weight_drop=0.4, layers=1, hidden=40)
    inputs = torch.randint(2, 97, (6, 5))
    language_model.train()(inputs)[0].square().sum().backward()
    for name, parameter in language_model.recurrent.named_parameters():
        dropped = (parameter.grad == 0).double().mean().item()
        recurrent = name.startswith(("weight_hh", "weight_mhh"))
        assert dropped == pytest.approx(0.4 if recurrent else 0.0, abs=0.05)
    language_model.eval()
    without = model(cell, layers=1, hidden=40).eval()
    assert torch.equal(language_model(inputs)[0], without(inputs)[0])
    language_model.train()
    assert not torch.equal(language_model(inputs)[0], language_model(inputs)[0])


@pytest.mark.parametrize("cell", CELLS)
def test_autocast_computes_in_bfloat16_from_float32_parameters(cell):
    exact, rounded = model(cell, dtype="float64"), model(cell, dtype="float32", autocast=True)
    low = model(cell, dtype="bfloat16")
    for other in (rounded, low):
        other.load_state_dict(exact.state_dict())
    inputs = torch.randint(2, 97, (9, 4))
    scores, state = rounded(inputs)
    scores.sum().backward()
    assert scores.dtype == torch.bfloat16
    assert {p.dtype for p in rounded.parameters()} == {p.grad.dtype for p in rounded.parameters()} == {torch.float32}
    first, state = rounded(inputs[:5])
    carried = torch.cat([first, rounded(inputs[5:], state)[0]])
    expected = exact(inputs)[0]
    error, carried_error, low_error = ((s - expected).norm() for s in (scores, carried, low(inputs)[0]))
    assert 0 < error <= 2 * low_error  # of a model whose parameters are in bfloat16, too
    assert 0 < carried_error <= 2 * low_error
