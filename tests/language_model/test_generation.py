"""Generation from a prompt: greedy, sampling and beam search with carried state."""

import itertools

import pytest
import torch

from benchmarks.common import CELLS
from benchmarks.language_model.alphabet import EOS, PAD, Bytes
from benchmarks.language_model.beam import beam_search
from benchmarks.language_model.generate import generate, greedy, nucleus, sampler, top_k
from benchmarks.language_model.methods import METHODS, Choices, continuation
from benchmarks.language_model.model import LanguageModel

from .conftest import ALPHABET, BACKEND, command, config, model


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


@pytest.mark.parametrize("method", METHODS)
def test_a_text_of_bytes_never_ends(method):
    """Its model has never had ``EOS`` to predict, whatever it says of it."""
    language_model, choices = model(symbols=258), Choices(length=7)
    language_model.decoder.bias.data[EOS] = 100.0
    assert continuation(language_model, ALPHABET, [5], method, choices).tolist() == [EOS]
    numbers = continuation(language_model, Bytes(), [5], method, choices)
    assert len(numbers) == 7
    assert numbers.min() > EOS


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


# Restricted sampling ----------------------------------------------------------------------------------------

PROBABILITIES = torch.tensor([[1, 8, 2, 5], [4, 4, 4, 4]], dtype=torch.float64) / 16  # their sums are exact


def test_top_k_keeps_the_likeliest():
    assert top_k(2)(PROBABILITIES).tolist()[0] == [0, 8 / 16, 0, 5 / 16]
    assert [(row > 0).sum() for row in top_k(3)(PROBABILITIES)] == [3, 3]  # no more even if several are equally likely
    assert torch.equal(top_k(9)(PROBABILITIES), PROBABILITIES)


@pytest.mark.parametrize(
    ("alpha", "kept"),
    [(0.01, (1, 1)), (8 / 16, (1, 2)), (0.51, (2, 3)), (13 / 16, (2, 4)), (0.82, (3, 4)), (1.0, (4, 4))],
)
def test_nucleus_keeps_the_smallest_set_with_the_mass(alpha, kept):
    restricted = nucleus(alpha)(PROBABILITIES)
    assert tuple((row > 0).sum().item() for row in restricted) == kept
    assert restricted[0].topk(kept[0]).indices.tolist() == [1, 3, 2, 0][: kept[0]]
    assert torch.equal(restricted[restricted > 0], PROBABILITIES[restricted > 0])


@pytest.mark.parametrize("restrict", [top_k(1), nucleus(1e-9)], ids=["top-k", "nucleus"])
def test_sampling_from_one_symbol_is_greedy(restrict):
    language_model = model()
    expected = generate(language_model, [5, 6], greedy, 30)
    assert torch.equal(generate(language_model, [5, 6], sampler(2.0, 4, restrict), 30), expected)


def test_restricted_sampling_follows_the_renormalised_distribution():
    count = 40_000
    scores = PROBABILITIES[:1].log().expand(count, -1)
    drawn = sampler(1.0, 0, nucleus(0.6))(scores)
    frequency = drawn.bincount(minlength=4) / count
    assert frequency.tolist() == pytest.approx([0, 8 / 13, 0, 5 / 13], abs=0.015)


# Beam search ------------------------------------------------------------------------------------------------


def few_symbols(cell: str, seed: int) -> LanguageModel:
    """Make a model of 5 symbols, ``PAD`` and ``EOS`` among them, that is far from uniform."""
    torch.manual_seed(seed)
    language_model = LanguageModel(config(cell, symbols=5), BACKEND)
    with torch.no_grad():
        language_model.decoder.weight *= 12
    return language_model


def log_probability(language_model: LanguageModel, prompt: list[int], numbers: tuple[int, ...]) -> float:
    """Return the log-probability of ``numbers`` after ``prompt``, reading everything from the start."""
    inputs = torch.tensor([EOS, *prompt, *numbers[:-1]]).unsqueeze(1)
    scores = language_model(inputs)[0][len(prompt) :, 0, EOS:]  # PAD cannot occur
    return scores.log_softmax(-1)[range(len(numbers)), torch.tensor(numbers) - EOS].sum().item()


def all_continuations(length: int) -> list[tuple[int, ...]]:
    """List all that end in their only ``EOS``, or have ``length`` symbols without it."""
    letters = range(EOS + 1, 5)
    ended = [(*word, EOS) for n in range(length) for word in itertools.product(letters, repeat=n)]
    return ended + list(itertools.product(letters, repeat=length))


def columns(numbers: torch.Tensor) -> list[tuple[int, ...]]:
    return [tuple(column[column != PAD].tolist()) for column in numbers.unbind(1)]


@pytest.mark.parametrize("normalise", [False, True], ids=["total", "per-symbol"])
@pytest.mark.parametrize("cell", CELLS)
def test_beam_as_wide_as_the_space_equals_exhaustive_search(cell, normalise):
    language_model, prompt = few_symbols(cell, 5), [2, 4]
    with torch.no_grad():
        expected = {c: log_probability(language_model, prompt, c) for c in all_continuations(4)}
    ranked = sorted(expected, key=lambda c: -expected[c] / (len(c) if normalise else 1))
    beam = beam_search(language_model, prompt, len(expected), 4, normalise)
    assert columns(beam.numbers) == ranked
    torch.testing.assert_close(beam.log_probabilities.tolist(), [expected[c] for c in ranked])


@pytest.mark.parametrize("seed", range(3))
def test_beam_of_the_vocabularys_width_finds_the_best_of_two_symbols(seed):
    language_model = few_symbols("gru", seed)
    with torch.no_grad():
        best = max(all_continuations(2), key=lambda c: log_probability(language_model, [], c))
    assert columns(beam_search(language_model, [], 5, 2).numbers)[0] == best


@pytest.mark.parametrize("cell", CELLS)
def test_beam_of_one_is_greedy(cell):
    for seed in range(3):
        language_model = few_symbols(cell, seed)
        expected = columns(generate(language_model, [3], greedy, 12))
        assert columns(beam_search(language_model, [3], 1, 12).numbers) == expected


def test_wider_beams_find_likelier_text():
    """A beam reports the log-probability of what it found, and a wide one finds likelier text than greedy search."""
    language_model = few_symbols("lstm", 2)
    found = [beam_search(language_model, [2], width, 8) for width in (1, 3, 30)]
    for beam in found:
        for numbers, total in zip(columns(beam.numbers), beam.log_probabilities):
            assert log_probability(language_model, [2], numbers) == pytest.approx(total.item())
    greedily, _, widely = (beam.log_probabilities[0].item() for beam in found)
    assert widely > greedily + 0.1


def test_ended_hypotheses_stay():
    """EOS is by far the likeliest first symbol; the search goes on, and the hypothesis that ended stays first."""
    language_model = model()
    with torch.no_grad():
        language_model.decoder.bias[EOS] = 30.0
    beam = beam_search(language_model, [], 4, 3)
    found = columns(beam.numbers)
    assert found[0] == (EOS,)
    assert [(len(numbers), numbers[-1]) for numbers in found[1:]] == [(2, EOS)] * 3
    language_model.decoder.bias.data[EOS] = -3.0
    assert all(
        len(numbers) == 3 and EOS not in numbers for numbers in columns(beam_search(language_model, [], 4, 3).numbers)
    )


def test_hypotheses_step_together():
    language_model, read = model("multiplicative_lstm"), []
    language_model.decoder.bias.data[EOS] = -100.0
    language_model.register_forward_pre_hook(lambda _, inputs: read.append(tuple(inputs[0].shape)))
    beam_search(language_model, [5, 6, 7], 10, 5)
    assert read == [(4, 1), *[(1, 10)] * 4]


WITH = {"greedy": (), "top-k": ("--temperature", 0.2), "nucleus": ("--temperature", 0.2), "beam": ("--normalise",)}


@pytest.mark.parametrize("method", WITH)
def test_every_method_continues_a_learnt_sentence(method, trained, capsys):
    arguments = ("--method", method, *WITH[method], "--backend", BACKEND)
    assert command("generate", "--checkpoint", trained / "gru.pt", "--prompt", "under", *arguments) == 0
    assert capsys.readouterr().out == "under a stone lives a toad\n"
