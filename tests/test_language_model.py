"""The language-model harness: alphabet, batches, loss, learning, generation, resuming, and what wrong input gets."""

import itertools
import json
import math
import subprocess
import sys
import unicodedata
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import fused_rnn
from benchmarks.common import CELLS, InputError, run_command
from benchmarks.language_model import train as train_module
from benchmarks.language_model.__main__ import main
from benchmarks.language_model.alphabet import EOS, PAD, Characters
from benchmarks.language_model.checkpoint import Checkpoint
from benchmarks.language_model.corpus import Batch, Sentences, standard_library
from benchmarks.language_model.generate import generate, greedy, sampler
from benchmarks.language_model.loss import Mean, masked_cross_entropy, mean_loss
from benchmarks.language_model.model import LanguageModel, ModelConfig

BACKEND = fused_rnn.choose_backend("cpu", torch.float32).backend  # the fastest that this machine has, without warning
SENTENCES = (
    "the cat sat on a mat",
    "every good dog has 2 ears, or 3",
    "what is red? Jam",
    "Never say never",
    "under a stone lives a toad",
    "one more line (the sixth)",
)
TEXT = ".\n".join(SENTENCES * 40) + "."
ALPHABET = Characters()
LEARNING = ("--epochs", 24, "--decay-after", 20, "--lr", 0.006)  # enough for every cell, whatever the seed


def command(*arguments) -> int:
    """Run the harness with ``arguments`` and return its exit status."""
    try:
        run_command(partial(main, [str(argument) for argument in arguments]))
    except SystemExit as error:
        return error.code
    return 0


def train(text: Path, out: Path, *arguments) -> int:
    """Train a tiny model; ``arguments`` win over the ones given here."""
    small = ("--hidden", 48, "--batch", 6, "--epochs", 2, "--lr", 0.012, "--backend", BACKEND)
    return command("train", "--text", text, "--out", out, *small, *arguments)


def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def losses(out: Path, run: int = 0) -> list[tuple[float, float]]:
    return [(epoch["train_loss"], epoch["held_out_loss"]) for epoch in results(out)["runs"][run]["epochs"]]


def unigram_entropy() -> float:
    """Nats per symbol of the text for a model without memory, computed from its characters."""
    counts = Counter(character for sentence in SENTENCES for character in [*sentence, "end"])
    return -sum(n / counts.total() * math.log(n / counts.total()) for n in counts.values())


def config(cell: str = "lstm", **changes) -> ModelConfig:
    defaults = {"symbols": 97, "embedding": 11, "hidden": 13, "layers": 2, "dropout": 0.0, "tie": False}
    return ModelConfig(**{"cell": cell, **defaults, "dtype": "float64", **changes})


def model(cell: str = "lstm", **changes) -> LanguageModel:
    torch.manual_seed(3)
    return LanguageModel(config(cell, **changes), BACKEND)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory) -> Path:
    """The folder of a finished run that has learnt its text, of an LSTM and a GRU."""
    out = tmp_path_factory.mktemp("trained") / "out"
    assert train(text, out, "--cell", "lstm", "gru", *LEARNING, "--valid", text) == 0
    return out


# Alphabet and batches ---------------------------------------------------------------------------------------


def test_alphabet_has_97_symbols_with_padding_and_end_first():
    printable = {chr(code) for code in range(32, 127)}  # ASCII's letters, digits, punctuation and the space
    assert len(ALPHABET) == 97
    assert (PAD, EOS) == (0, 1)
    assert set(ALPHABET.symbols) == printable
    assert sorted(ALPHABET.encode("".join(sorted(printable)))) == list(range(2, 97))


def test_alphabet_round_trip():
    for sentence in SENTENCES:
        numbers = torch.tensor([*ALPHABET.encode(sentence), EOS, PAD, PAD])
        assert ALPHABET.decode(numbers) == sentence


def test_normalising_decomposes_accents_drops_the_unknown_and_keeps_case():
    assert ALPHABET.normalise("Crème Brûlée") == "Creme Brulee"
    assert ALPHABET.normalise(unicodedata.normalize("NFC", "Å")) == "A"
    assert ALPHABET.normalise("a→b 漢\t“c”\n") == "ab  c "


def test_sentences_are_split_at_full_stops_and_spaces_collapsed():
    text = "  One  two.\n\nThree\tfour ... —. v1.5?"
    assert ALPHABET.sentences(text) == ["One two", "Three four", "v1", "5?"]


def test_sentences_are_cut_and_ended():
    (sequence,) = Sentences.from_text("abcdef", ALPHABET, 4).sequences
    assert sequence.tolist() == [*ALPHABET.encode("abcd"), EOS]


def test_batch_pads_and_shifts():
    batch = Batch.of([torch.tensor([5, 6, EOS]), torch.tensor([7, EOS])])
    assert batch.targets.tolist() == [[5, 7], [6, EOS], [EOS, PAD]]
    assert batch.inputs.tolist() == [[EOS, EOS], [5, 7], [6, EOS]]


@pytest.mark.parametrize("seed", [None, 1], ids=["by-length", "shuffled"])
def test_batches_hold_every_sentence_once(seed):
    words = [chr(97 + i % 26) * (1 + i * 7 % 50) + str(i) for i in range(101)]
    sentences = Sentences.from_text(".".join(words), ALPHABET, 1000)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    batches = list(sentences.batches(8, generator))
    decoded = [ALPHABET.decode(column) for batch in batches for column in batch.targets.unbind(1)]
    assert sorted(decoded) == sorted(words)
    assert len(batches) == sentences.batch_count(8) == 13
    assert sum(batch.targets.numel() for batch in batches) < 1.3 * sentences.count()  # little padding


def test_order_of_batches_follows_the_seed():
    sentences = Sentences.from_text(TEXT, ALPHABET, 100)

    def order(seed):
        return torch.cat(
            [batch.targets.flatten() for batch in sentences.batches(7, torch.Generator().manual_seed(seed))]
        )

    assert torch.equal(order(1), order(1))
    assert order(1).tolist() != order(2).tolist()


@pytest.mark.parametrize(("count", "part", "held_out"), [(10, 0.2, 2), (10, 0.0, 1), (10, 0.99, 9), (2, 0.5, 1)])
def test_split_keeps_the_end_apart(count, part, held_out):
    sentences = Sentences([torch.tensor([i + 2, EOS]) for i in range(count)])
    training, rest = sentences.split(part)
    assert len(rest) == held_out
    assert [sequence[0] - 2 for sequence in training.sequences + rest.sequences] == list(range(count))


def test_unigram_entropy():
    sentences = Sentences.from_text("aab.ab", ALPHABET, 10)  # a: 3, b: 2, EOS: 2
    expected = -sum(p * math.log(p) for p in (3 / 7, 2 / 7, 2 / 7))
    assert sentences.unigram_entropy() == pytest.approx(expected)


def test_standard_library_is_a_text_to_train_on():
    text = standard_library(20_000)
    assert len(text) == 20_000
    assert "import" in text
    assert text.startswith(standard_library(500))


# Model and loss ---------------------------------------------------------------------------------------------


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
    other[2:, 1] = 50  # what is read past the end of the second sentence
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


# Learning ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_learns(cell, text, tmp_path):
    assert train(text, tmp_path, "--cell", cell, *LEARNING) == 0
    (first, *_, last), entropy = losses(tmp_path), unigram_entropy()
    assert first[0] > 0.5 * entropy  # nothing gives the text away
    assert last[1] < 0.06 * entropy
    language_model = Checkpoint.load(tmp_path / f"{cell}.pt").build_model("cpu", BACKEND)
    for sentence in SENTENCES:
        numbers = generate(language_model, ALPHABET.encode(sentence[:2]), greedy, 60)
        assert numbers[-1] == EOS
        assert sentence[:2] + ALPHABET.decode(numbers[:, 0]) == sentence


def test_stochastic_gradient_descent_learns(text, tmp_path):
    assert train(text, tmp_path, "--optimiser", "sgd", "--lr", 2.0, "--epochs", 3, "--cell", "gru") == 0
    assert losses(tmp_path)[-1][1] < 0.5 * unigram_entropy()


def test_clipping_bounds_the_step(text, tmp_path):
    assert train(text, tmp_path, "--optimiser", "sgd", "--lr", 1.0, "--clip", 1e-12) == 0
    assert losses(tmp_path)[1][1] == pytest.approx(losses(tmp_path)[0][1], abs=1e-6)
    assert losses(tmp_path)[0][1] == pytest.approx(math.log(97), abs=0.3)  # as good as guessing


def test_training_drops_out(text, tmp_path):
    for dropout in (0.0, 0.5):
        assert train(text, tmp_path / str(dropout), "--dropout", dropout) == 0
    assert losses(tmp_path / "0.5")[-1][0] > losses(tmp_path / "0.0")[-1][0] + 0.1


def test_learning_rate_decays(trained):
    rates = [epoch["learning_rate"] for epoch in results(trained)["runs"][0]["epochs"]]
    assert rates == [0.006] * 20 + [0.003, 0.0015, 0.00075, 0.000375]


def test_decayed_learning_rate_reaches_the_optimiser(text, tmp_path):
    assert train(text, tmp_path, "--epochs", 3, "--decay-after", 1, "--decay", 1e-9) == 0
    (_, first), (_, second), (_, third) = losses(tmp_path)
    assert first == pytest.approx(second, abs=1e-5)
    assert second == pytest.approx(third, abs=1e-5)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_other_dtypes(dtype, text, tmp_path):
    assert train(text, tmp_path, "--dtype", dtype, "--epochs", 3) == 0
    assert losses(tmp_path)[-1][1] < 0.8 * unigram_entropy()
    weights = Checkpoint.load(tmp_path / "lstm.pt").weights
    assert {weight.dtype for weight in weights.values()} == {getattr(torch, dtype)}


# Results ----------------------------------------------------------------------------------------------------


def test_results(trained, text):
    content = results(trained)
    model_options = {"hidden": 48, "layers": 1, "embedding": 48, "dropout": 0.0, "tie": False, "dtype": "float32"}
    data_options = {"text": str(text), "valid": str(text), "test": None, "alphabet": "characters", "max_length": 400}
    learning_options = {"batch": 6, "epochs": 24, "optimiser": "adam", "lr": 0.006, "decay": 0.5, "decay_after": 20}
    other = {"cell": ["lstm", "gru"], "clip": 1.0, "seed": 0, "backend": BACKEND, "device": "cpu", "symbols": 97}
    expected = {**model_options, **data_options, **learning_options, **other}
    assert {name: content["configuration"][name] for name in expected} == expected
    assert content["hardware"]["torch"] == torch.__version__
    assert [run["cell"] for run in content["runs"]] == ["lstm", "gru"]
    for run in content["runs"]:
        assert [epoch["epoch"] for epoch in run["epochs"]] == list(range(1, 25))
        for epoch in run["epochs"]:
            assert epoch["backend"] == BACKEND
            assert epoch["held_out_bits_per_character"] == pytest.approx(epoch["held_out_loss"] / math.log(2))
            assert epoch["train_perplexity"] == pytest.approx(math.exp(epoch["train_loss"]))
    checkpoint = Checkpoint.load(trained / "gru.pt")
    parameters = checkpoint.build_model("cpu", BACKEND).parameters()
    assert content["runs"][1]["parameters"] == sum(parameter.numel() for parameter in parameters)


def test_folder_holds_a_picture_and_nothing_half_written(trained):
    assert {path.name for path in trained.iterdir()} == {"results.json", "losses.png", "lstm.pt", "gru.pt"}
    assert (trained / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_losses_go_to_tensorboard(text, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert train(text, tmp_path, "--tensorboard") == 0
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / "lstm")).Reload()
    logged = [event.value for event in events.Scalars("held_out_loss")]
    assert logged == pytest.approx([held_out for _, held_out in losses(tmp_path)])


def test_seed_decides_the_result(text, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert train(text, tmp_path / name, "--seed", seed, "--epochs", 1, "--dropout", 0.2) == 0
    assert losses(tmp_path / "a") == losses(tmp_path / "b") != losses(tmp_path / "c")


def test_evaluate_agrees_with_training(trained, text, capsys):
    assert command("evaluate", "--checkpoint", trained / "lstm.pt", "--text", text, "--backend", BACKEND) == 0
    nats = losses(trained)[-1][1]
    expected = f"{nats:.4f} nats, {nats / math.log(2):.4f} bits per character, perplexity {math.exp(nats):.5g}\n"
    assert capsys.readouterr().out == expected


def test_test_file_is_measured_at_the_end(trained, text, tmp_path):
    (tmp_path / "test.txt").write_text("A text that is not like it. At all.")
    assert train(text, tmp_path / "out", "--test", tmp_path / "test.txt") == 0
    first, last = results(tmp_path / "out")["runs"][0]["epochs"]
    assert "test_loss" not in first
    assert last["test_loss"] > last["held_out_loss"]


def test_limit_takes_the_start_of_the_text(text, tmp_path):
    assert train(text, tmp_path, "--limit", 500, "--valid", text) == 0
    content = results(tmp_path)["data"]
    assert 450 < content["training_symbols"] <= 500 < content["held_out_symbols"]


def test_default_text(tmp_path):
    arguments = ("--limit", 4000, "--batch", 4, "--hidden", 8, "--epochs", 1, "--backend", BACKEND)
    assert command("train", "--out", tmp_path, *arguments) == 0
    assert results(tmp_path)["configuration"]["text"] is None
    assert 1000 < results(tmp_path)["data"]["training_symbols"] < 4000


# Resuming ---------------------------------------------------------------------------------------------------

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


# Generation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
def test_carried_state_equals_reading_from_the_start(cell):
    language_model = model(cell)
    seen, read = [], []

    def choose(scores):
        seen.append(scores)
        return scores[:, EOS + 1 :].argmax(-1) + EOS + 1  # never ends

    language_model.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape[0]))
    prompt = ALPHABET.encode("Once upon")
    numbers = generate(language_model, prompt, choose, 12)
    assert read == [1 + len(prompt)] + [1] * 11  # nothing is read twice
    whole = torch.tensor([EOS, *prompt, *numbers[:, 0]]).unsqueeze(1)
    scores = language_model(whole)[0][len(prompt) : -1]
    torch.testing.assert_close(torch.stack(seen)[..., EOS:], scores[..., EOS:])


def test_hypotheses_end_one_by_one():
    plan = iter([[7, 8, 9], [EOS, 8, 9], [7, 8, EOS], [7, EOS, 9], [7, 8, 9]])
    numbers = generate(model(), [], lambda scores: torch.tensor(next(plan)), 100, hypotheses=3)
    assert numbers.T.tolist() == [[7, EOS, PAD, PAD], [8, 8, 8, EOS], [9, 9, EOS, PAD]]


def test_length_is_the_most():
    numbers = generate(model(), [5], lambda scores: torch.full((2,), 9), 6, hypotheses=2)
    assert numbers.tolist() == [[9, 9]] * 6


def test_padding_is_never_generated():
    language_model = model()
    with torch.no_grad():
        language_model.decoder.bias[PAD] = 100.0
    assert PAD not in generate(language_model, [], greedy, 1)
    assert PAD not in generate(language_model, [], sampler(1.0, 0), 1, hypotheses=500)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampling_follows_the_distribution(temperature):
    language_model, count = model(), 40_000
    with torch.no_grad():
        language_model.decoder.weight *= 20  # far from uniform
        scores = language_model(torch.tensor([[EOS]]))[0].flatten()
    expected = torch.cat([torch.zeros(1), (scores[EOS:] / temperature).softmax(-1)])
    numbers = generate(language_model, [], sampler(temperature, 0), 1, hypotheses=count)
    frequency = numbers.flatten().bincount(minlength=97) / count
    assert expected.max() > 2 / 97
    assert ((frequency - expected).abs() < 5 * (expected * (1 - expected) / count).sqrt() + 1e-4).all()


@pytest.mark.parametrize("temperature", [1e-3, 1e-320])
def test_sampling_at_a_low_temperature_is_greedy(temperature):
    language_model = model()
    expected = generate(language_model, [5, 6], greedy, 30)
    assert torch.equal(generate(language_model, [5, 6], sampler(temperature, 4), 30), expected)


def test_sampling_follows_the_seed(trained, capsys):
    def sample(seed):
        arguments = ("--method", "sample", "--temperature", 3, "--prompt", "the", "--length", 40, "--seed", seed)
        assert command("generate", "--checkpoint", trained / "lstm.pt", "--backend", BACKEND, *arguments) == 0
        return capsys.readouterr().out

    assert sample(1) == sample(1) != sample(2)


def test_generate_prints_the_text_and_its_speed(trained, capsys):
    arguments = ("--checkpoint", trained / "lstm.pt", "--method", "greedy", "--backend", BACKEND)
    assert command("generate", *arguments, "--prompt", "Nev") == 0
    out, err = capsys.readouterr()
    assert out == "Never say never\n"
    assert "13 characters" in err
    assert "per second; the sentence ended" in err
    assert command("generate", *arguments, "--prompt", "Nev", "--length", 4) == 0
    out, err = capsys.readouterr()
    assert out == "Never s\n"
    assert "--length was reached" in err


# Wrong input ------------------------------------------------------------------------------------------------


def assert_one_line(capsys, message: str) -> None:
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


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
        (("--prompt", "na→ve 漢"), "the text has '\\u2192', '\\u6f22', but the model knows only"),
        (("--prompt", "One. Two"), "has a full stop"),
        (("--temperature", 0), "must be a finite number above 0, got 0"),
        (("--temperature", -1), "must be a finite number above 0, got -1"),
        (("--length", 0), "must be at least 1, got 0"),
        (("--method", "oracle"), "invalid choice: 'oracle'"),
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
    elif kind == "other-model":
        torch.save({**torch.load(good, weights_only=True), "weights": nn.Linear(2, 2).state_dict()}, path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "No such file"),
        ("truncated", "is damaged, or is not a checkpoint"),
        ("empty", "is damaged, or is not a checkpoint"),
        ("text", "is damaged, or is not a checkpoint"),
        ("other-program", "is not a checkpoint of this language model"),
        ("code", "is damaged, or is not a checkpoint"),
        ("incomplete", "is incomplete"),
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


def test_encoding_names_what_it_does_not_know():
    with pytest.raises(InputError, match=r"'\\u20ac'"):
        ALPHABET.encode("5 €")


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
    finished = subprocess.run(arguments, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert finished.returncode == 2
    assert finished.stderr == "error: cannot read the checkpoint nowhere.pt: No such file or directory\n"
