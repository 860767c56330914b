"""Training steps as CUDA graphs, on a CPU: when a step is recorded, where it reads, what the harnesses make of it.

What recording itself does is tested on a GPU, in tests/gpu/test_training.py.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import common, optimisers
from benchmarks.cuda_graph import WARM_UP, GraphedStep, check_cuda_graph

from .copy_task import conftest as copy_task
from .language_model.conftest import TEXT, command, losses, train
from .rerun import Rerun, rerun_on_cpu


class Fixed(Rerun):
    """A recorder whose results and gradients, like a graph's, stay in the memory of the recording."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self.ran = 0

    def run(self, function):
        self.ran += 1
        return function()

    def record(self, function):
        results = function()
        gradient = self.parameter.grad

        def replay() -> None:
            seen = self.parameter.grad
            for kept, computed in zip(results, function()):
                kept.copy_(computed)
            gradient.copy_(self.parameter.grad)
            self.parameter.grad = seen

        return results, replay


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def parameter() -> nn.Parameter:
    return nn.Parameter(torch.tensor(2.0))


@pytest.fixture
def step(parameter):
    """A step that multiplies the parameter by factors, sets its gradient, and keeps them in ``step.read``."""

    def step(factors: Tensor) -> tuple[Tensor]:
        step.read.append(factors)
        parameter.grad = factors.float().sum()
        return (parameter.detach() * factors,)

    step.read = []
    return step


def test_a_step_is_recorded_once_for_a_shape_that_comes_often(step, parameter):
    recorder = Fixed(parameter)
    graphed = GraphedStep(step, [parameter], recorder)
    for call in range(2 * WARM_UP):
        for size in (3, 2):
            factors = torch.full((size,), call + size / 10)
            (result,) = graphed(factors)
            assert torch.equal(result, 2 * factors)
            assert parameter.grad == factors.sum()  # from this shape's latest step, not the other's
        assert recorder.ran == 2 * min(call + 1, WARM_UP)
    of_graphs = {read.data_ptr() for read in step.read[2 * WARM_UP :]}
    assert len(of_graphs) == 2  # each graph reads the memory of its recording


def test_other_types_are_other_shapes(step, parameter):
    graphed = GraphedStep(step, [parameter], Fixed(parameter))
    for _ in range(WARM_UP + 1):
        graphed(torch.ones(2))
    (result,) = graphed(torch.ones(2, dtype=torch.float64))
    assert result.dtype == torch.float64


@pytest.mark.parametrize(
    "arguments",
    [
        ("--alphabet", "words", "--bptt", 10, "--limit", 4000, "--dropout", 0.3, "--layers", 2, "--weight-drop", 0.2),
        ("--alphabet", "bytes", "--bptt", 10, "--limit", 830, "--cell", "gru", "torch_lstm", "--optimiser", "rmsprop"),
        ("--limit", 4000, "--optimiser", "sgd", "--loss-per", "sequence"),
    ],
    ids=["words", "bytes", "sentences"],
)
def test_language_model_trains_as_without(arguments, text, tmp_path, monkeypatch):
    """Losses agree, also after resuming and on the first and last batches of an epoch, which have their own graphs."""
    rerun_on_cpu(monkeypatch)
    arguments = (*arguments, "--hidden", 8, "--decay-after", 1)
    assert train(text, tmp_path / "without", *arguments, "--epochs", 5) == 0
    assert Rerun.recorded == 0
    for epochs in (2, 5):
        assert train(text, tmp_path / "with", *arguments, "--epochs", epochs, "--cuda-graph", "--resume") == 0
    assert Rerun.recorded > 1
    assert losses(tmp_path / "with") == losses(tmp_path / "without")


def test_copy_task_trains_as_without(tmp_path, monkeypatch):
    rerun_on_cpu(monkeypatch)
    monkeypatch.setattr(copy_task.document, "draw_pictures", lambda *_: [])
    without = copy_task.run(tmp_path / "without", "--epochs", "5", "--grow-from", "2", "--grow-at", "0.5")
    assert Rerun.recorded == 0
    graphed = copy_task.run(tmp_path / "with", "--epochs", "5", "--grow-from", "2", "--grow-at", "0.5", "--cuda-graph")
    assert Rerun.recorded > len(graphed["trials"])
    assert copy_task.without_times(graphed["trials"]) == copy_task.without_times(without["trials"])


def test_graphs_need_a_gpu(text, tmp_path, capsys):
    assert command("train", "--text", text, "--out", tmp_path / "out", "--cuda-graph") == 2
    sentence = "error: --cuda-graph needs a GPU, and --device is cpu: give --device cuda, or leave it out"
    assert capsys.readouterr().err.splitlines() == [sentence]
    assert copy_task.refusal(capsys, "--cuda-graph", "--out", str(tmp_path / "out")) == sentence
    assert not (tmp_path / "out").exists()


def test_graphs_are_of_one_process():
    check_cuda_graph("cuda:1", 1)
    with pytest.raises(common.InputError, match="but 2 train together"):
        check_cuda_graph("cuda", 2)


@pytest.mark.parametrize(("first", "then"), [([], ["--cuda-graph"]), (["--cuda-graph"], [])], ids=["with", "without"])
def test_copy_task_goes_on(first, then, tmp_path, monkeypatch):
    """A run may change to graphs or from them, because they change only the time."""
    rerun_on_cpu(monkeypatch)
    monkeypatch.setattr(copy_task.document, "draw_pictures", lambda *_: [])
    whole = copy_task.run(tmp_path / "whole")
    calls = copy_task.interrupt(4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        copy_task.run(tmp_path / "parts", *first)
    recorded = Rerun.recorded
    assert bool(recorded) == bool(first)
    parts = copy_task.run(tmp_path / "parts", *then, "--resume")
    assert (Rerun.recorded > recorded) == bool(then)
    assert len(calls) == 4 + 5  # three trials of eight were finished before
    assert copy_task.without_times(parts["trials"]) == copy_task.without_times(whole["trials"])


@pytest.mark.parametrize("name", optimisers.OPTIMISERS)
def test_optimiser_keeps_its_form_where_it_goes_on(name):
    """State saved with a rate as a number, or with another rate, continues with the new rate, in its memory."""
    parameter = nn.Parameter(torch.ones(3))
    saved = optimisers.make_optimiser(name, [parameter], 0.5)
    parameter.grad = torch.ones(3)
    saved.step()
    form = {"fused": True} if name == "sgd" else {}
    fresh = optimisers.OPTIMISERS[name]([parameter], lr=torch.tensor(0.25), **form)
    optimisers.restore(fresh, saved.state_dict())
    (group,) = fresh.param_groups
    assert isinstance(group["lr"], Tensor)
    assert group["lr"] == 0.25
    assert group.get("fused") == form.get("fused")
    assert str(fresh.state_dict()["state"]) == str(saved.state_dict()["state"])
    place = group["lr"].data_ptr()
    optimisers.set_learning_rate(fresh, 0.125)
    assert (group["lr"].item(), group["lr"].data_ptr()) == (0.125, place)
    optimisers.set_learning_rate(saved, 0.125)
    assert saved.param_groups[0]["lr"] == 0.125
