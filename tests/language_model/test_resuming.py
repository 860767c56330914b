"""Going on after an interruption."""

import itertools
import math
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.language_model import loss as loss_module
from benchmarks.language_model import train as train_module
from benchmarks.language_model.checkpoint import Checkpoint
from benchmarks.language_model.loss import masked_cross_entropy, mean_loss

from ..limits import files_of_at_most
from .conftest import (
    LEARNING,
    assert_one_line,
    losses,
    results,
    train,
)

ROOT = Path(__file__).parents[2]
RESUMED = ("--cell", "lstm", "multiplicative_gru", "--dropout", 0.3, "--layers", 2)


@pytest.fixture(scope="module")
def uninterrupted(text, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    assert train(text, out, *RESUMED, "--epochs", 3, "--decay-after", 1) == 0
    return out


def assert_same_run(out: Path, other: Path) -> None:
    cells = [run["cell"] for run in results(other)["runs"]]
    for run, cell in enumerate(cells):
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
        (("--resume", "--max-length", 7), "max_length was 400 and is now 7\n"),
        (("--resume", "--epochs", 5), "--epochs is 5"),
    ],
    ids=["without-resume", "other-rate", "other-model", "shorter-sentences", "fewer-epochs"],
)
def test_finished_results_are_not_touched(arguments, message, trained, text, capsys):
    before = {path: path.read_bytes() for path in trained.iterdir()}
    assert train(text, trained, *LEARNING, "--valid", text, *arguments) == 2
    assert_one_line(capsys, message)
    assert {path: path.read_bytes() for path in trained.iterdir()} == before


def test_resuming_with_another_text(tmp_path, capsys):
    """The option is named whose text has changed; a text that has only moved is the same."""
    texts = {name: tmp_path / f"{name}.txt" for name in ("text", "valid", "test")}
    for path in texts.values():
        path.write_text("One. Two. " * 9)

    def resumed(*names: str) -> int:
        options = [word for name in names for word in (f"--{name}", texts[name])]
        return train(texts["text"], tmp_path / "out", "--hidden", 4, *options, "--resume")

    def refusal(*names: str) -> str:
        assert resumed(*names) == 2
        return capsys.readouterr().err.partition("lstm.pt cannot be resumed: ")[2]

    assert resumed("valid") == 0
    assert refusal() == f"--valid was {texts['valid']} and is now not given\n"
    assert refusal("valid", "test") == f"--test was not given and is now {texts['test']}\n"
    texts["valid"] = texts["valid"].rename(tmp_path / "moved.txt")
    assert resumed("valid") == 0
    texts["valid"].write_text("Three. ")
    capsys.readouterr()
    assert refusal("valid") == f"--valid {texts['valid']} is not the text that it was\n"
    texts["text"].write_text("One. Two. " * 8)
    both = [f"--{name} {texts[name]} is not the text that it was" for name in ("text", "valid")]
    assert refusal("valid") == f"{', '.join(both)}\n"


def test_checkpoints_from_before_texts_were_told_apart(text, tmp_path, capsys):
    assert train(text, tmp_path, "--limit", 500) == 0
    checkpoint = Checkpoint.load(tmp_path / "lstm.pt")
    del checkpoint.training["digests"]
    checkpoint.save(tmp_path / "lstm.pt")
    assert train(text, tmp_path, "--limit", 500, "--resume") == 0
    checkpoint.training["text_digest"] = "another"
    checkpoint.save(tmp_path / "lstm.pt")
    capsys.readouterr()
    assert train(text, tmp_path, "--limit", 500, "--resume") == 2
    assert_one_line(capsys, "cannot be resumed: one of --text, --valid and --test is not the text that it was")


def test_results_of_another_program_are_not_written_over(text, tmp_path, capsys):
    (tmp_path / "results.json").write_text("{}")
    for arguments in ((), ("--resume",)):
        assert train(text, tmp_path, *arguments) == 2
        assert_one_line(capsys, "holds results")
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("alphabet", ["bytes", "words"])
def test_resumed_stream_equals_uninterrupted(alphabet, text, tmp_path):
    """Runs are equal even if the learning rate follows the losses of earlier epochs."""
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


def test_a_run_that_ends_earlier_than_it_was_to_is_tested(text, tmp_path, monkeypatch, capsys):
    """Stopped just after the first of two epochs, it goes on with --epochs 1, and there is no epoch left to train."""
    arguments = ("--test", text, "--limit", 800, "--alphabet", "bytes", "--bptt", 7, "--hidden", 16)

    def save_and_stop(checkpoint, path, save=Checkpoint.save):
        save(checkpoint, path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", save_and_stop)
        assert train(text, tmp_path / "out", *arguments, "--epochs", 2) == 130
    capsys.readouterr()
    assert train(text, tmp_path / "out", *arguments, "--epochs", 1, "--resume") == 0
    assert "  test" in capsys.readouterr().out
    assert train(text, tmp_path / "whole", *arguments, "--epochs", 1) == 0
    assert_same_run(tmp_path / "out", tmp_path / "whole")
    (one,), (other,) = (results(tmp_path / name)["runs"][0]["epochs"] for name in ("out", "whole"))
    assert one["test_loss"] == other["test_loss"]


def test_full_disk_leaves_what_was_saved(uninterrupted, text, tmp_path, capfd):
    """A limit on the size of files stands for the disk."""
    arguments = (*RESUMED, "--epochs", 3, "--decay-after", 1, "--resume")
    assert train(text, tmp_path, *arguments, "--epochs", 2) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    capfd.readouterr()
    with files_of_at_most(len(before["lstm.pt"]) // 2):
        assert train(text, tmp_path, *arguments) == 1
    message = f"error: {tmp_path / 'lstm.pt'} cannot be written: File too large; what was finished is saved, --resume"
    assert message in capfd.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert train(text, tmp_path, *arguments) == 0
    assert_same_run(tmp_path, uninterrupted)


# Stopped within an epoch ------------------------------------------------------------------------------------


def signal_at(call: int, number: int, monkeypatch, module=train_module) -> None:
    """Raise the signal while ``module`` computes a loss for the ``call``-th time."""
    count = itertools.count(1)

    def loss(*arguments):
        if next(count) == call:
            signal.raise_signal(number)
        return masked_cross_entropy(*arguments)

    monkeypatch.setattr(module, "masked_cross_entropy", loss)


STOPPED = {
    alphabet: ("--alphabet", alphabet, "--limit", 800, "--hidden", 16, "--dropout", 0.3, *more)
    for alphabet, more in {"characters": (), "bytes": ("--bptt", 7, "--layers", 2, "--weight-drop", 0.2)}.items()
}


@pytest.fixture(scope="module")
def dropping(text, tmp_path_factory) -> dict[str, Path]:
    """Return the folders of uninterrupted runs with dropout by alphabet."""
    folder = tmp_path_factory.mktemp("dropping")
    for alphabet in STOPPED:
        assert train(text, folder / alphabet, *STOPPED[alphabet]) == 0
    return {alphabet: folder / alphabet for alphabet in STOPPED}


@pytest.mark.parametrize("alphabet", STOPPED)
def test_stopped_within_an_epoch_goes_on_bit_for_bit(alphabet, dropping, text, tmp_path, monkeypatch, capsys):
    """The run is stopped twice in its first epoch, with Ctrl-C and then as torchrun stops its workers."""
    path, before = tmp_path / "lstm.pt", signal.getsignal(signal.SIGTERM)
    for call, number, status, steps in ((2, signal.SIGINT, 130, 2), (1, signal.SIGTERM, 143, 3)):
        with monkeypatch.context() as patch:
            signal_at(call, number, patch)
            assert train(text, tmp_path, *STOPPED[alphabet], "--resume") == status
        message = f"\nstopped; --resume goes on from {path}, saved after step {steps} of epoch 1\n"
        assert capsys.readouterr().err.endswith(message)
    assert signal.getsignal(signal.SIGTERM) == before
    assert train(text, tmp_path, *STOPPED[alphabet], "--resume") == 0
    assert f"| {steps}/" in capsys.readouterr().err  # where the progress bar starts
    assert_same_run(tmp_path, dropping[alphabet])


def test_stopped_while_measuring_goes_on_bit_for_bit(dropping, text, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        signal_at(1, signal.SIGINT, patch, loss_module)
        assert train(text, tmp_path, *STOPPED["bytes"]) == 130
    assert Checkpoint.load(tmp_path / "lstm.pt").position["steps"] > 10
    assert train(text, tmp_path, *STOPPED["bytes"], "--resume") == 0
    assert_same_run(tmp_path, dropping["bytes"])


def test_second_interruption_stops_at_once(text, tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train_module, "masked_cross_entropy", interrupt)
    assert train(text, tmp_path, "--limit", 800) == 130
    assert "interrupted; what was finished is saved" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def ignoring_ctrl_c() -> Iterator[None]:
    """Ignore Ctrl-C, as background jobs of shell scripts do, with or without nohup."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ignoring_ctrl_c")
def test_where_ctrl_c_is_ignored_it_stops_nothing_and_sigterm_does(dropping, text, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        signal_at(3, signal.SIGTERM, patch)
        assert train(text, tmp_path, *STOPPED["bytes"]) == 143

    def interrupt(*arguments):
        signal.raise_signal(signal.SIGINT)
        return masked_cross_entropy(*arguments)

    monkeypatch.setattr(train_module, "masked_cross_entropy", interrupt)
    assert train(text, tmp_path, *STOPPED["bytes"], "--resume") == 0
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    assert_same_run(tmp_path, dropping["bytes"])


@pytest.mark.parametrize(
    ("job", "received"), [('"$@"', "2"), ('"$@" & wait $!', "None")], ids=["foreground", "background"]
)
def test_a_script_decides_whether_its_jobs_heed_ctrl_c(job, received):
    """A real shell starts the jobs, which do not train."""
    code = """if True:
        import signal
        from benchmarks.language_model.signals import Signals
        with Signals() as signals:
            signal.raise_signal(signal.SIGINT)
            print(signals.received)
        """
    command = ["sh", "-c", job, "sh", sys.executable, "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert ended.stdout.strip() == received


def test_saving_within_an_epoch_changes_nothing(dropping, text, tmp_path, monkeypatch):
    saved, save = [], Checkpoint.save

    def note(checkpoint, path):
        saved.append((len(checkpoint.epochs), checkpoint.position["steps"]))
        save(checkpoint, path)

    monkeypatch.setattr(Checkpoint, "save", note)
    assert train(text, tmp_path, *STOPPED["bytes"], "--save-every", 1e-9) == 0
    steps = math.ceil(math.ceil(720 / 6) / 7)
    assert list(dict.fromkeys(saved)) == [(epoch, step) for epoch in (0, 1) for step in range(steps)] + [(2, 0)]
    assert_same_run(tmp_path, dropping["bytes"])


def test_fewer_epochs_than_were_begun(text, tmp_path, monkeypatch, capsys):
    steps = math.ceil(math.ceil(720 / 6) / 7)
    with monkeypatch.context() as patch:
        signal_at(steps + 1, signal.SIGINT, patch)
        assert train(text, tmp_path, *STOPPED["bytes"]) == 130
    capsys.readouterr()
    assert train(text, tmp_path, *STOPPED["bytes"], "--epochs", 1, "--resume") == 2
    assert_one_line(capsys, "lstm.pt was saved after step 1 of epoch 2, --epochs is 1")
