"""Wrong input is answered with one sentence, and changes nothing."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from .conftest import BACKEND, LEARNING, assert_one_line, command, train


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"fine so far \xff", "not UTF-8 text: the byte at position 12"),
        ("漢字. 漢".encode(), "has no sentence"),
        (b"One. Two. Three. Four", "3 sentences to train on, and --batch is 6"),
        (b"One", "0 sentences to train on, and --batch is 6"),
    ],
    ids=["missing", "empty", "blank", "not-utf-8", "no-letters", "short", "one-sentence"],
)
def test_wrong_text(content, message, tmp_path, capsys):
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    assert train(tmp_path / "text.txt", tmp_path / "out") == 2
    assert_one_line(capsys, message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--cell", "gruu"), "invalid choice: 'gruu'"),
        (("--valid", "nowhere.txt"), "cannot read the text file nowhere.txt"),
        (("--tie", "--embedding", 7), "got 7 and 48"),
        (("--device", "abacus"), "--device abacus is unknown"),
        (("--lr", "0"), "must be a finite number above 0, got 0"),
        (("--lr", "nan"), "must be a finite number above 0, got nan"),
        (("--dropout", "1"), "must be at least 0 and below 1, got 1"),
        (("--held-out", "-0.1"), "must be at least 0 and below 1, got -0.1"),
        (("--seed", "-1"), "must be between 0 and"),
        (("--alphabet", "runes"), "invalid choice: 'runes'"),
        (("--alphabet", "bytes", "--batch", 100, "--bptt", 100), "--batch times --bptt is 10000"),
        (("--alphabet", "words", "--valid", __file__), "words that are not in the model's vocabulary: '"),
        (("--alphabet", "bytes", "--valid", "nowhere.txt"), "cannot read the text file nowhere.txt"),
        (("--alphabet", "bytes", "--valid", "/dev/null"), "the text file /dev/null is empty"),
        (("--autocast", "--dtype", "float64"), "--autocast needs --dtype float32"),
        (("--weight-drop", 1), "must be at least 0 and below 1, got 1"),
        (("--bptt", 0), "must be at least 1, got 0"),
        (("--init", 0), "must be a finite number above 0, got 0"),
        (("--init", 3e38), "must be at most 1e+37 to be computed with in float32, got 3e+38"),
        (("--lr", 1e300), "must be at most 1e+37 to be computed with in float32, got 1e+300"),
        (("--decay", 1e200), "must be above 0 and at most 1, got 1e+200"),
        (("--threads", 100_000), "the number of this machine's cores, got 100000"),
        (("--hidden", 10**10), "training lstm needs about"),
        (("--hidden", 10**300), "must be below 2**63"),
        (("--layers", 10**8), "training lstm needs about"),
        (("--clip-by", "force"), "invalid choice: 'force'"),
        (("--preset", "gpt"), "invalid choice: 'gpt'"),
        (("--held-out-from", "streams"), "goes with streams, and --alphabet characters makes sentences"),
        (("--prompt", "One. Two"), "--prompt 'One. Two' has a full stop"),
        (
            ("--alphabet", "words", "--prompt", "absent"),
            "--prompt has words that are not in the model's vocabulary: 'absent'",
        ),
        (("--bptt", 9), "--bptt does nothing with --alphabet characters: it goes with --alphabet bytes or words"),
        (("--preset", "char-rnn", "--max-length=9"), "--max-length does nothing with --alphabet bytes: it goes with"),
        (("--schedule", "plateau", "--decay-after", 2), "--decay-after does nothing with --schedule plateau: it goes"),
        (
            ("--valid", "a.txt", "--held-out", 0.2),
            "--held-out does nothing with --valid a.txt: it goes without",
        ),
        (("--backend", "triton"), "--backend triton cannot run here"),
    ],
    ids=lambda value: "".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_wrong_training_option(arguments, message, text, tmp_path, capsys):
    assert train(text, tmp_path / "out", *arguments) == 2
    assert_one_line(capsys, message)
    assert not (tmp_path / "out").exists()


def test_out_that_is_a_file(text, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert train(text, tmp_path / "out") == 2
    assert_one_line(capsys, "cannot be a folder")
    assert (tmp_path / "out").read_text() == "mine"


def test_divergence_is_told(text, tmp_path, capsys):
    assert train(text, tmp_path, "--optimiser", "sgd", "--lr", 1e6, "--clip", 1e6) == 2
    assert "error: training of lstm diverged in epoch 1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt", "na→ve 漢"), "--prompt has '\\u2192', '\\u6f22', but the model knows only"),
        (("--prompt", "One. Two"), "has a full stop"),
        (("--temperature", 0), "must be a finite number above 0, got 0"),
        (("--temperature", -1), "must be a finite number above 0, got -1"),
        (("--length", 0), "must be at least 1, got 0"),
        (("--beam-width", 0), "must be at least 1, got 0"),
        (("--top-k", 0), "must be at least 1, got 0"),
        (("--alpha", 0), "must be above 0 and at most 1, got 0"),
        (("--alpha", 1.01), "must be above 0 and at most 1, got 1.01"),
        (("--alpha", "nan"), "must be above 0 and at most 1, got nan"),
        (("--method", "oracle"), "invalid choice: 'oracle'"),
        (("--method", "greedy", "--temperature", 3), "--temperature does nothing with --method greedy: it goes with"),
        (("--method", "beam", "--seed", 3), "--seed does nothing with --method beam: it goes with --method sample or"),
        (("--top-k", 4), "--top-k does nothing with --method sample: it goes with --method top-k"),
        (("--method", "top-k", "--alpha", 0.9), "--alpha does nothing with --method top-k: it goes with --method nucl"),
        (("--beam-width", 4), "--beam-width does nothing with --method sample: it goes with --method beam"),
        (("--normalise",), "--normalise does nothing with --method sample: it goes with --method beam"),
    ],
    ids=lambda value: "".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_wrong_generation_option(arguments, message, trained, capsys):
    assert command("generate", "--checkpoint", trained / "lstm.pt", "--backend", BACKEND, *arguments) == 2
    assert_one_line(capsys, message)


class Planted:
    """An object whose unpickling would run code."""

    def __reduce__(self):
        return Path.touch, (Path("planted"),)


def broken_checkpoint(kind: str, good: Path, path: Path) -> None:
    if kind == "truncated":
        path.write_bytes(good.read_bytes()[:-1000])
    elif kind == "changed":  # a single bit, of a weight
        content, weight = bytearray(good.read_bytes()), torch.load(good, weights_only=True)["weights"]["decoder.weight"]
        content[content.index(weight.numpy().tobytes())] ^= 1
        path.write_bytes(content)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("This is not a checkpoint.")
    elif kind == "other-program":
        torch.save(nn.Linear(2, 2).state_dict(), path)
    elif kind == "code":
        torch.save({"format": Planted()}, path)
    elif kind == "incomplete":
        content = torch.load(good, weights_only=True)
        del content["weights"]
        torch.save(content, path)
    elif kind == "other-fields":
        content = torch.load(good, weights_only=True)
        del content["model"]["layers"]
        torch.save(content, path)
    elif kind == "other-model":
        torch.save({**torch.load(good, weights_only=True), "weights": nn.Linear(2, 2).state_dict()}, path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "No such file"),
        ("truncated", "is damaged, or is not a checkpoint"),
        ("changed", "is damaged, or is not a checkpoint"),
        ("empty", "is damaged, or is not a checkpoint"),
        ("text", "is damaged, or is not a checkpoint"),
        ("other-program", "is not a checkpoint of this language model"),
        ("code", "is damaged, or is not a checkpoint"),
        ("incomplete", "is incomplete"),
        ("other-fields", "describes its model with other fields"),
        ("other-model", "do not fit the model"),
    ],
    ids=lambda value: value if " " not in value else "",
)
def test_wrong_checkpoint(kind, message, trained, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "lstm.pt"
    broken_checkpoint(kind, trained / "lstm.pt", path)
    assert command("generate", "--checkpoint", path, "--backend", BACKEND) == 2
    assert_one_line(capsys, message)
    assert command("evaluate", "--checkpoint", path, "--text", text, "--backend", BACKEND) == 2
    assert_one_line(capsys, message)
    if kind != "missing":
        before = path.read_bytes()
        assert train(text, tmp_path, *LEARNING, "--valid", text, "--resume") == 2
        assert message in capsys.readouterr().err
        assert path.read_bytes() == before
    assert not Path("planted").exists()


def test_resuming_from_another_cells_checkpoint(trained, text, tmp_path, capsys):
    (tmp_path / "gru.pt").write_bytes((trained / "lstm.pt").read_bytes())
    assert train(text, tmp_path, "--cell", "gru", *LEARNING, "--valid", text, "--resume") == 2
    assert_one_line(capsys, "cell was lstm and is now gru")


def test_help_says_how_often_weights_are_dropped_and_which_gru_is_which(capsys):
    assert command("train", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "drawn anew in each training step" in text
    assert "gru resets before the recurrent product" in text


@pytest.mark.parametrize("name", ["train", "generate", "evaluate"])
def test_help_explains_every_option(name, capsys):
    assert command(name, "--help") == 0
    entries = capsys.readouterr().out.split("options:")[1].split("\n  -")[1:]
    assert len(entries) > 4
    for entry in entries:
        option, explanation = " ".join(entry.split()).split(" ", 1)
        assert "default: " in explanation or option in ("h,", "-checkpoint", "-text"), entry
        assert "default: None" not in explanation


def test_runs_as_a_module():
    arguments = [sys.executable, "-m", "benchmarks.language_model", "generate", "--checkpoint", "nowhere.pt"]
    finished = subprocess.run(arguments, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert finished.returncode == 2
    assert finished.stderr == "error: cannot read the checkpoint nowhere.pt: No such file or directory\n"
