"""Text to numbers: alphabets, sentences, batches."""

import math
import unicodedata

import pytest
import torch

from benchmarks.common import InputError
from benchmarks.language_model.alphabet import EOS, PAD
from benchmarks.language_model.corpus import Batch, Sentences, standard_library

from .conftest import ALPHABET, SENTENCES, TEXT


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


def test_encoding_names_what_it_does_not_know():
    with pytest.raises(InputError, match=r"'\\u20ac'"):
        ALPHABET.encode("5 €")
