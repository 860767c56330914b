"""The harnesses' training steps as CUDA graphs: the same bits as without, and a host that waits for nothing."""

import contextlib
import signal
from pathlib import Path

import pytest
import torch

from benchmarks.copy_task import __main__ as copy_task
from benchmarks.copy_task import document
from benchmarks.cuda_graph import Recorder
from benchmarks.language_model import train as train_module
from benchmarks.language_model.checkpoint import Checkpoint
from benchmarks.language_model.loss import Mean

from ..copy_task.conftest import run, without_times
from ..language_model.conftest import TEXT, command, losses
from ..rerun import Rerun, rerun_on_cpu
from .places import EVERY_BACKEND, Place
from .test_graphs import waiting_is_an_error

pytestmark = pytest.mark.gpu

# streams of 13 batches: the last is shorter, and the first of an epoch has no state to continue from
STREAMS = ("--limit", 830, "--bptt", 10, "--batch", 6, "--hidden", 40, "--epochs", 6, "--decay-after", 2)
MODELS = {
    "adam": ("--alphabet", "bytes", "--layers", 2, "--dropout", 0.3, "--weight-drop", 0.2),
    "rmsprop": ("--alphabet", "bytes", "--cell", "gru", "--optimiser", "rmsprop", "--clip-by", "value"),
    "sgd": ("--alphabet", "bytes", "--optimiser", "sgd", "--lr", 1.0, "--autocast", "--tie", "--layers", 2),
    "multiplicative": ("--alphabet", "bytes", "--cell", "multiplicative_lstm", "--loss-per", "sequence"),
    "torch": ("--alphabet", "bytes", "--cell", "torch_lstm", "--layers", 2),
}


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def recorded(place: Place, monkeypatch) -> list[object]:
    """Return a list that gets an entry for every recorded graph."""
    if not place.is_gpu:
        rerun_on_cpu(monkeypatch)
    kind, found = Recorder if place.is_gpu else Rerun, []
    record = kind.record
    monkeypatch.setattr(kind, "record", lambda self, function: found.append(function) or record(self, function))
    return found


def train(place: Place, text: Path, out: Path, *arguments) -> int:
    where = ("--device", place.device.type, "--backend", place.backend)
    return command("train", "--text", text, "--out", out, *where, *STREAMS, *arguments)


def assert_same_training(folder: Path, other: Path) -> None:
    (path,) = folder.glob("*.pt")
    assert losses(folder) == losses(other)
    weights, others = (Checkpoint.load(each / path.name).weights for each in (folder, other))
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())


@EVERY_BACKEND
@pytest.mark.parametrize("model", MODELS)
def test_language_model_trains_to_the_same_bits(model, place, text, tmp_path, recorded):
    if model == "torch" and place.backend == "triton":
        pytest.skip("torch.nn's modules have no backend")
    assert train(place, text, tmp_path / "without", *MODELS[model]) == 0
    assert not recorded
    assert train(place, text, tmp_path / "with", *MODELS[model], "--cuda-graph") == 0
    assert len(recorded) == 3  # for the first batch of an epoch, the last, and those between
    assert_same_training(tmp_path / "with", tmp_path / "without")


def test_stopped_language_model_goes_on_to_the_same_bits(place, text, tmp_path, recorded, monkeypatch):
    """Training stops within an epoch, after replayed steps, and resumes with the generator of its dropout."""
    arguments = MODELS["adam"]
    assert train(place, text, tmp_path / "without", *arguments) == 0
    steps = []

    def add(self, *sums, add=Mean.add):
        steps.append(sums)
        if len(steps) == 9:
            signal.raise_signal(signal.SIGINT)
        add(self, *sums)

    for _ in range(2):
        steps.clear()
        with monkeypatch.context() as patch:
            patch.setattr(train_module.Mean, "add", add)
            assert train(place, text, tmp_path / "with", *arguments, "--cuda-graph", "--resume") == 130
        assert recorded
    assert train(place, text, tmp_path / "with", *arguments, "--cuda-graph", "--resume") == 0
    assert_same_training(tmp_path / "with", tmp_path / "without")


def test_replayed_step_of_the_language_model_does_not_wait(place, text, tmp_path, recorded, monkeypatch):
    """The host must be free to prepare the next batch while the GPU computes."""
    replayed = []

    def step(self, *arguments, step=train_module.Trainer._step):
        with waiting_is_an_error(place) if recorded and self.steps < 12 else contextlib.nullcontext():
            replayed.append(bool(recorded))
            step(self, *arguments)

    monkeypatch.setattr(train_module.Trainer, "_step", step)
    assert train(place, text, tmp_path, *MODELS["adam"], "--epochs", 1, "--cuda-graph") == 0
    assert sum(replayed) > 5


@EVERY_BACKEND
@pytest.mark.parametrize("options", [("--dtype", "bfloat16"), ("--grow-from", "2", "--grow-at", "0.2")], ids=str)
def test_copy_task_trains_to_the_same_bits(options, place, tmp_path, recorded, monkeypatch):
    monkeypatch.setattr(document, "draw_pictures", lambda *_: [])
    where = ("--device", place.device.type, "--backend", place.backend, "--trials", "1", "--epochs", "6", *options)
    results = [run(tmp_path / name, *where, *more) for name, more in (("a", ()), ("b", ("--cuda-graph",)))]
    assert len(recorded) >= len(results[1]["trials"])
    a, b = (without_times(result["trials"]) for result in results)
    assert a == b


def test_echo_trains_to_the_same_bits(place, tmp_path, recorded, monkeypatch):
    """Echo draws its batches from one set, and the last of an epoch is smaller than the others."""
    monkeypatch.setattr(document, "draw_pictures", lambda *_: [])
    where = ("--device", place.device.type, "--backend", place.backend, "--protocol", "echo")
    small = ("--cell", "lstm", "--length", "5", "--trials", "1", "--sequences", "10", "--batch", "4", "--clip", "1")
    found = []
    for name, more in (("a", ()), ("b", ("--cuda-graph",))):
        copy_task.main([*where, *small, "--hidden", "8", "--out", str(tmp_path / name), *more])
        found.append(without_times(copy_task.read(tmp_path / name / "results.json")["trials"]))
    assert len(recorded) == 2
    assert found[0] == found[1]
