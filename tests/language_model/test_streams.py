"""Bytes and words: streams whose state is carried from chunk to chunk, and the settings of published models."""

import math
import resource
from dataclasses import fields

import numpy as np
import pytest
import torch

from benchmarks.common import CELLS, InputError
from benchmarks.language_model.alphabet import EOS, PAD, Bytes, Characters, Words
from benchmarks.language_model.checkpoint import Checkpoint
from benchmarks.language_model.corpus import Stream, make_alphabet, read, read_text, standard_library
from benchmarks.language_model.loss import mean_loss
from benchmarks.language_model.model import LanguageModel
from benchmarks.language_model.options import parse
from benchmarks.language_model.train import Settings

from .conftest import BACKEND, SENTENCES, assert_one_line, command, config, losses, model, results, train

LINES = "\n".join(f" {sentence} <unk> " for sentence in SENTENCES * 20)
STREAM = ("--bptt", 12, "--batch", 5)


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """A file of words in the format of Penn Treebank: a sentence per line, spaces around it, <unk> for rare words."""
    path = tmp_path_factory.mktemp("lines") / "lines.txt"
    path.write_text(LINES)
    return path


# Alphabets --------------------------------------------------------------------------------------------------


def test_bytes_round_trip():
    alphabet, text = Bytes(), "naïve → 漢\n\0"
    numbers = alphabet.encode_prompt(text)
    assert len(alphabet) == 258
    assert [number - 2 for number in numbers] == list(text.encode())
    assert alphabet.decode(torch.tensor([*numbers, EOS, PAD])) == text
    assert alphabet.decode(torch.tensor(numbers[:3])) == "na\N{REPLACEMENT CHARACTER}"  # half a letter


def test_vocabulary_is_that_of_the_training_text_by_frequency():
    alphabet = Words.of("b a b\n\n c b <eos> a\n")
    assert alphabet.symbols == ["b", "a", "c"]
    assert len(alphabet) == 5
    assert alphabet.encode_prompt("c <eos> a") == [4, EOS, 3]
    assert alphabet.decode(torch.tensor([2, 4, EOS, PAD])) == "b c"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" b a \n\nc\n", [2, 3, EOS, EOS, 4, EOS]),  # as in the published counts of WikiText-2
        ("b\n \na", [2, EOS, EOS, 3, EOS]),  # the last line needs no newline
        *((f"b{mark}a\nc\n", [2, 3, EOS, 4, EOS]) for mark in "\v\f\x1c\x1d\x1e\x85\u2028\u2029"),
    ],
    ids=ascii,
)
def test_a_newline_ends_a_line_and_nothing_else_does(text, expected):
    assert Words.of("b b b a a c").encode(text).tolist() == expected


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"], ids=ascii)
def test_a_file_of_any_system_gives_the_same_words(newline, tmp_path):
    """A byte order mark is no part of the first word, and the newline of any system is one newline."""
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffb a\n\nb\n".replace("\n", newline).encode())
    alphabet = make_alphabet("words", path, None)
    assert alphabet.symbols == ["b", "a"]
    assert read(path, alphabet, max_length=9, bptt=3).values.tolist() == [2, 3, EOS, EOS, 2, EOS]
    assert Characters().sentences(read_text(path)) == ["b a b"]


def test_unknown_words():
    assert Words.of("a <unk>").encode("a x").tolist() == [2, 3, EOS]
    with pytest.raises(InputError, match=r"not in the model's vocabulary: 'x', 'y'$"):
        Words.of("a b").encode("a x b\ny x")
    with pytest.raises(InputError, match="'x'"):
        Words.of("a <unk>").encode_prompt("a x")  # unknown words of a prompt are not replaced


# Streams ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("symbols", "size", "bptt"), [(23, 4, 4), (24, 4, 3), (7, 1, 3), (5, 3, 9), (2, 4, 2)])
def test_streams_hold_every_symbol_once_in_order(symbols, size, bptt):
    stream = Stream(np.arange(symbols, dtype=np.uint8), 2, bptt)
    batches = list(stream.batches(size))
    targets = torch.cat([batch.targets for batch in batches])
    length = math.ceil(symbols / size)
    assert targets.T.flatten().tolist() == [*range(2, symbols + 2), *[PAD] * (length * size - symbols)]
    inputs = torch.cat([batch.inputs for batch in batches])
    assert torch.equal(inputs, torch.cat([torch.full((1, size), EOS), targets[:-1]]))
    assert [batch.continues for batch in batches] == [False] + [True] * (len(batches) - 1)
    assert len(batches) == stream.batch_count(size)
    assert max(len(batch.targets) for batch in batches) <= stream.longest() <= bptt


def test_stream_entropy_digest_and_split():
    values = np.array([5, 5, 0, 5], np.uint8)
    stream = Stream(values, 2, 3)
    assert stream.unigram_entropy() == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert stream.digest() == Stream(values.copy(), 2, 1).digest() != Stream(values[::-1], 2, 3).digest()
    training, held_out = stream.split(0.25)
    assert (training.values.tolist(), held_out.values.tolist()) == ([5, 5, 0], [5])


def test_the_end_of_every_stream_is_held_out():
    whole = Stream(np.arange(32, dtype=np.uint8), 2, 4)
    training, held_out = whole.split_streams(0.3, 3)  # 10 symbols a stream, and two left over
    for part, first, length in ((training, 0, 7), (held_out, 7, 3)):
        batches = list(part.batches(3))
        targets = torch.cat([batch.targets for batch in batches])
        assert targets.T.tolist() == [[2 + 10 * i + first + j for j in range(length)] for i in range(3)]
        assert (len(part), len(batches)) == (3 * length, part.batch_count(3))
        assert part.unigram_entropy() == pytest.approx(math.log(3 * length))
    assert np.shares_memory(training.values, whole.values)
    assert training.digest() == Stream(training.values.flatten(), 2, 4).digest()


def test_a_text_too_short_to_hold_out_of_every_stream(lines, tmp_path, capsys):
    short = ("--alphabet", "bytes", "--held-out-from", "streams", "--limit", 100, "--batch", 60)
    assert train(lines, tmp_path / "out", *short) == 2
    assert_one_line(capsys, "the text is shorter than one batch")


def test_bytes_are_a_memory_map(tmp_path):
    """A sparse file of 32 GiB is split into batches without being read into memory."""
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(2**35)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stream = read(path, Bytes(), 400, 50)
    batches = stream.batches(20)
    assert len(stream) == 2**35
    assert all(next(batches).targets.eq(2).all() for _ in range(100))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # KiB


def test_bytes_of_the_standard_library():
    values = read(None, Bytes(), 400, 50, limit=3000).values
    assert bytes(values) == standard_library(3000).encode()


@pytest.mark.parametrize("cell", CELLS)
def test_measuring_carries_the_state(cell):
    language_model = model(cell, symbols=20)
    values = torch.randint(18, (45,), generator=torch.Generator().manual_seed(0)).numpy()
    expected = mean_loss(language_model, Stream(values, 2, 45).batches(4))
    assert mean_loss(language_model, Stream(values, 2, 4).batches(4)) == pytest.approx(expected, rel=1e-12)


def test_training_carries_the_state_but_not_the_gradient(lines, tmp_path):
    """The chunks do not affect the loss with a negligible learning rate; with a real one they do."""
    arguments = ("--alphabet", "bytes", "--limit", 600, "--batch", 3, "--dtype", "float64", "--optimiser", "sgd")
    arguments = (*arguments, "--hidden", 12, "--clip", 1e9, "--epochs", 1, "--init", 0.5, "--loss-per", "sequence")
    found = {}
    for bptt in (9, 180):  # 180 is one step, so its loss is that of the initial weights
        for lr in (1e-12, 0.01):
            out = tmp_path / f"{bptt}-{lr}"
            assert train(lines, out, *arguments, "--bptt", bptt, "--lr", lr) == 0
            found[bptt, lr] = losses(out)[0]
    assert found[9, 1e-12][0] == pytest.approx(found[180, 1e-12][0], rel=1e-9)
    assert found[9, 0.01][1] != pytest.approx(found[180, 0.01][1], rel=1e-4)


# Learning ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["rnn", "gru", "multiplicative_lstm"])
def test_bytes_are_learnt(cell, text, tmp_path, capsys):
    arguments = (*STREAM, "--alphabet", "bytes", "--cell", cell, "--epochs", 6, "--decay-after", 4)
    assert train(text, tmp_path, *arguments) == 0
    assert losses(tmp_path)[-1][1] < 0.5
    assert results(tmp_path)["data"]["training_symbols"] == round(0.9 * len(text.read_bytes()))
    checkpoint = tmp_path / f"{cell}.pt"
    capsys.readouterr()
    arguments = ("--prompt", "every go", "--method", "greedy", "--length", 10, "--backend", BACKEND)
    assert command("generate", "--checkpoint", checkpoint, *arguments) == 0
    out, err = capsys.readouterr()
    assert out == "every good dog has\n"
    assert "10 bytes" in err


def test_words_are_learnt(lines, tmp_path, capsys):
    arguments = (*STREAM, "--alphabet", "words", "--epochs", 5, "--decay-after", 4, "--valid", lines)
    assert train(lines, tmp_path, *arguments) == 0
    epoch = results(tmp_path)["runs"][0]["epochs"][-1]
    assert epoch["held_out_loss"] < 0.2
    assert epoch["held_out_perplexity"] == pytest.approx(math.exp(epoch["held_out_loss"]))
    assert epoch["held_out_bits_per_word"] == pytest.approx(epoch["held_out_loss"] / math.log(2))
    assert "sentences" not in str(results(tmp_path)["data"])
    arguments = ("--checkpoint", tmp_path / "lstm.pt", "--backend", BACKEND)
    capsys.readouterr()
    assert command("generate", *arguments, "--prompt", "Never", "--method", "beam") == 0
    assert capsys.readouterr().out == "Never say never <unk>\n"
    assert command("generate", *arguments, "--prompt", "Never 漢 say") == 2
    assert "not in the model's vocabulary: '\\u6f22'" in capsys.readouterr().err
    assert command("evaluate", *arguments, "--text", lines, "--batch", 5) == 0
    assert capsys.readouterr().out.startswith(f"{epoch['held_out_loss']:.4f} nats")


# Settings ---------------------------------------------------------------------------------------------------


def initial_weights(language_config) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)  # the default of --seed
    return LanguageModel(language_config).state_dict()


def test_loss_per_sequence_is_the_sum_over_steps(lines, tmp_path):
    """Its gradient is that per symbol times the number of steps, if this is the same in all batches."""
    arguments = ("--alphabet", "bytes", "--limit", 400, "--held-out", 0.1, "--batch", 3, "--bptt", 12, "--epochs", 1)
    arguments = (*arguments, "--optimiser", "sgd", "--clip", 1e9, "--dtype", "float64")
    assert train(lines, tmp_path / "a", *arguments, "--loss-per", "sequence", "--lr", 0.1) == 0
    assert train(lines, tmp_path / "b", *arguments, "--loss-per", "symbol", "--lr", 1.2) == 0
    weights = [Checkpoint.load(tmp_path / name / "lstm.pt").weights for name in "ab"]
    torch.testing.assert_close(*weights)


def test_clipping_by_value_bounds_every_value(lines, tmp_path):
    arguments = ("--alphabet", "bytes", "--limit", 400, "--batch", 3, "--bptt", 120, "--epochs", 1)
    assert (
        train(lines, tmp_path, *arguments, "--optimiser", "sgd", "--clip-by", "value", "--clip", 1e-4, "--lr", 1) == 0
    )
    checkpoint = Checkpoint.load(tmp_path / "lstm.pt")
    before = initial_weights(config(**{**checkpoint.model, "dtype": "float32"}))
    change = torch.cat([(weight - before[name]).flatten() for name, weight in checkpoint.weights.items()]).abs()
    assert 0.9e-4 < change.max() < 1.1e-4  # the change in the only step
    assert change.norm() > 20 * change.max()


def test_initial_range(lines, tmp_path):
    arguments = ("--alphabet", "bytes", "--limit", 2000, "--epochs", 1, "--optimiser", "sgd", "--lr", 1e-9)
    assert train(lines, tmp_path, *arguments, "--init", 0.25) == 0
    for weight in Checkpoint.load(tmp_path / "lstm.pt").weights.values():
        assert 0.22 < weight.abs().max() <= 0.251
        assert weight.mean().abs() < 0.06


@pytest.mark.parametrize(
    ("held_out", "expected"), [([], 8), ([3.0, 2.0], 8), ([3.0, 3.0], 4), ([3.0, 4.0, 3.5, 2.0], 2), ([1, 2, 2], 2)]
)
def test_plateau_decays_after_epochs_that_were_no_better(held_out, expected):
    options = vars(parse(["train", "--schedule", "plateau", "--lr", "8", "--decay", "0.5"]))
    assert settings(options).learning_rate(held_out) == expected


def settings(options: dict) -> Settings:
    return Settings(**{field.name: options.get(field.name) for field in fields(Settings)})


@pytest.mark.parametrize(
    ("preset", "rates"),
    [
        ("zaremba-small", {1: 1, 4: 1, 5: 0.5, 13: 0.5**9}),
        ("zaremba-medium", {6: 1, 7: 1 / 1.2, 39: 1.2**-33}),
        ("char-rnn", {10: 0.002, 11: 0.00194, 50: 0.002 * 0.97**40}),
    ],
)
def test_presets_have_the_published_learning_rates(preset, rates):
    options = parse(["train", "--preset", preset])
    preset_settings = settings(vars(options))
    assert {epoch: preset_settings.learning_rate([1.0] * (epoch - 1)) for epoch in rates} == pytest.approx(rates)
    assert options.epochs == max(rates)


def test_options_win_over_the_preset(lines, tmp_path):
    arguments = ("--preset", "zaremba-small", "--text", lines, "--out", tmp_path, "--backend", BACKEND)
    assert command("train", *arguments, "--hidden", 10, "--epochs", 1) == 0
    configuration = results(tmp_path)["configuration"]
    expected = {"hidden": 10, "epochs": 1, "layers": 2, "bptt": 20, "clip": 5.0, "cell": ["lstm"], "alphabet": "words"}
    assert {name: configuration[name] for name in expected} == expected
