"""Gates and gradients for TensorBoard, and the memory estimate."""

import pytest
import torch

from benchmarks.common import CELLS
from benchmarks.language_model import memory
from benchmarks.language_model.corpus import Batch
from benchmarks.language_model.loss import masked_cross_entropy
from benchmarks.language_model.model import BASELINES
from benchmarks.language_model.observe import GATES, gate_values, gradient_magnitudes

from .conftest import BACKEND, assert_one_line, config, losses, model, train


def batch(steps: int = 5, sequences: int = 3) -> Batch:
    numbers = torch.randint(2, 97, (steps, sequences), generator=torch.Generator().manual_seed(0))
    return Batch(numbers, numbers)


@pytest.mark.parametrize("cell", CELLS)
def test_gates_have_their_names(cell):
    """If the bias of a gate shuts it, the values by that name, and no others, are zero."""
    order = {"input": 0, "forget": 1, "output": 3, "reset": 0, "update": 1}  # among the rows of the weights
    for gate in GATES[cell]:
        language_model = model(cell)
        rows = slice(order[gate] * 13, (order[gate] + 1) * 13)
        with torch.no_grad():
            language_model.recurrent.bias_ih_l1[rows] = -50.0
        found = gate_values(language_model, batch())
        assert {name for name, values in found.items() if values.max() < 1e-9} == {f"{gate}_gate_l1"}
        assert all(values.shape == (5, 3, 13) for values in found.values())
    language_model = model(cell)
    found = gate_values(language_model, batch())
    assert found.keys() == {f"{name}_gate_l{layer}" for name in GATES[cell] for layer in (0, 1)}
    assert language_model.recurrent.backend == BACKEND


def test_gates_explain_the_state():
    """The update gate of a GRU's first step determines its output."""
    language_model = model("gru", layers=1)
    inputs = batch(1).inputs
    update = gate_values(language_model, Batch(inputs, inputs))["update_gate_l0"]
    recurrent = language_model.recurrent
    embedded = language_model.embedding(inputs)
    candidate = (embedded @ recurrent.weight_ih_l0[26:].T + recurrent.bias_ih_l0[26:]).tanh()
    torch.testing.assert_close(update * candidate, recurrent(embedded)[0])  # from a state of zeros


def test_gradient_magnitudes():
    language_model = model()
    scores, _ = language_model(batch().inputs)
    masked_cross_entropy(scores, batch().targets)[0].backward()
    found = gradient_magnitudes(language_model)
    assert found.keys() == dict(language_model.named_parameters()).keys()
    bias = language_model.decoder.bias.grad
    torch.testing.assert_close(10 ** found["decoder.bias"].double(), bias.abs(), rtol=1e-5, atol=0)
    assert len(found["embedding.weight"]) <= 15 * 11  # only those of symbols that were read


def test_tensorboard_has_scalars_and_histograms(text, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert train(text, tmp_path, "--tensorboard", "--cell", "lstm", "rnn", "--limit", 800) == 0
    for run, cell in enumerate(("lstm", "rnn")):
        folder = str(tmp_path / "tensorboard" / cell)
        events = accumulator.EventAccumulator(folder, size_guidance={"histograms": 0}).Reload()
        logged = [event.value for event in events.Scalars("held_out_loss")]
        assert logged == pytest.approx([held_out for _, held_out in losses(tmp_path, run)])
        assert len(events.Histograms("log10_gradient/recurrent.weight_hh_l0")) == 2
        gates = [name for name in events.Tags()["histograms"] if name.startswith("gates/")]
        assert gates == [f"gates/{gate}_gate_l0" for gate in GATES[cell]]
        for gate in gates:
            assert events.Histograms(gate)[1].histogram_value.min >= 0
            assert events.Histograms(gate)[1].histogram_value.max <= 1


def test_observing_changes_nothing(text, tmp_path):
    arguments = ("--limit", 800, "--dropout", 0.3, "--weight-drop", 0.2)
    assert train(text, tmp_path / "watched", "--tensorboard", *arguments) == 0
    assert train(text, tmp_path / "alone", *arguments) == 0
    assert losses(tmp_path / "watched") == losses(tmp_path / "alone")


# Memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
def test_estimate_counts_parameters_and_activations(cell):
    parameters = sum(parameter.numel() for parameter in model(cell).parameters())
    fixed, activations = memory.estimate(config(cell), "adam", 7, 3)
    assert fixed == 4 * 8 * parameters  # the parameters, their gradients and two averages, in float64
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        scores, _ = model(cell)(batch(7, 3).inputs)
        masked_cross_entropy(scores, batch(7, 3).targets)
    unique = {tensor.data_ptr(): tensor.nbytes for tensor in saved if tensor.dim() > 1 and tensor.shape[0] in (7, 21)}
    assert 0.5 * sum(unique.values()) < activations < 2 * sum(unique.values())


@pytest.mark.parametrize("cell", [*CELLS, *BASELINES])
@pytest.mark.parametrize("options", [{"tie": True, "embedding": 13}, {"layers": 1}, {"layers": 3}], ids=str)
def test_parameters_are_counted_without_making_any(cell, options):
    parameters = sum(parameter.numel() for parameter in model(cell, **options).parameters())
    assert memory.estimate(config(cell, **options), "sgd", 7, 3)[0] == 2 * 8 * parameters


def test_available_memory_is_that_of_the_machine():
    assert 2**20 < memory.available("cpu") < 2**50


@pytest.mark.parametrize("size", [("--hidden", 2_000_000), ("--hidden", 100_000, "--layers", 8)])
def test_what_cannot_fit_is_refused(size, text, tmp_path, capsys):
    assert train(text, tmp_path / "out", *size) == 2
    assert_one_line(capsys, "training lstm needs about ")
    assert not (tmp_path / "out").exists()


def test_what_just_fits_is_not_refused(text, tmp_path, monkeypatch, capsys):
    need = sum(memory.estimate(config(), "adam", 9, 4))
    monkeypatch.setattr(memory, "available", lambda device: need)
    memory.check_fits(config(), "adam", 9, 4, "cpu")
    assert train(text, tmp_path / "out", "--hidden", 200) == 2
    assert_one_line(capsys, "GiB free: lower --hidden")
