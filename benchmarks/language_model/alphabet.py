"""Symbols: the ones that a model knows, and the conversion between text and numbers.

An alphabet gives every symbol a number. Two numbers mean the same in all of them: ``PAD`` fills the places past
the end of a sequence and is never learnt nor generated; ``EOS`` ends a sequence, and starts the next.
``ALPHABETS`` lists them by name; ``name`` and ``symbols`` are sufficient for a checkpoint to rebuild one. ``unit`` is
the word for one symbol, ``excluded`` the numbers that no text continues with.
"""

import io
import re
import string
import unicodedata
from collections import Counter

import numpy as np
from torch import Tensor

from benchmarks.common import InputError

PAD, EOS = 0, 1


class Characters:
    """Letters, punctuation, digits and space: 95 characters, with ``PAD`` and ``EOS`` 97 symbols.

    A sentence is a sequence: the text between two full stops, which ``EOS`` replaces.
    """

    name = "characters"
    unit = "character"
    excluded = (PAD,)

    def __init__(self, symbols: str = string.ascii_letters + string.punctuation + string.digits + " "):
        self.symbols = symbols
        self._numbers = {symbol: number for number, symbol in enumerate(symbols, start=EOS + 1)}
        self._dropped = re.compile(f"[^{re.escape(symbols)}]")

    def __len__(self) -> int:
        return EOS + 1 + len(self.symbols)

    def normalise(self, text: str) -> str:
        """Decompose accented letters (NFD), turn all white space into spaces, drop characters outside the alphabet."""
        return self._dropped.sub("", re.sub(r"\s", " ", unicodedata.normalize("NFD", text)))

    def sentences(self, text: str) -> list[str]:
        """Return the sentences of ``text``, normalised, with runs of spaces collapsed, without empty ones."""
        collapsed = (" ".join(sentence.split()) for sentence in self.normalise(text).split("."))
        return [sentence for sentence in collapsed if sentence]

    def encode(self, text: str, name: str = "the text") -> list[int]:
        """Return one number per character; raise InputError naming the characters that are not of this alphabet."""
        unknown = sorted(set(text) - self._numbers.keys())
        if unknown:
            named = ", ".join(map(ascii, unknown))
            raise InputError(f"{name} has {named}, but the model knows only letters, punctuation, digits and space")
        return [self._numbers[character] for character in text]

    def encode_prompt(self, prompt: str) -> list[int]:
        """Return the beginning of one sentence as numbers; raise InputError if it has unknown characters or ends."""
        if "." in prompt:
            raise InputError(f"--prompt {prompt!r} has a full stop, but must be the beginning of one sentence")
        return self.encode(prompt, "--prompt")

    def decode(self, numbers: Tensor) -> str:
        """Return the text of ``numbers`` (N,), leaving out ``PAD`` and ``EOS``."""
        return "".join(self.symbols[number - EOS - 1] for number in numbers.tolist() if number > EOS)


class Bytes:
    """The 256 bytes, with ``PAD`` and ``EOS`` 258 symbols: any file is a text, which never ends."""

    name = "bytes"
    unit = "byte"
    excluded = (PAD, EOS)

    def __init__(self, symbols: None = None):
        self.symbols = symbols  # always the same bytes

    def __len__(self) -> int:
        return EOS + 1 + 256

    def encode_prompt(self, prompt: str) -> list[int]:
        """Return the bytes of ``prompt`` in UTF-8 as numbers."""
        return [byte + EOS + 1 for byte in prompt.encode()]

    def decode(self, numbers: Tensor) -> str:
        """Return the text of ``numbers`` (N,) without ``PAD`` and ``EOS``; invalid UTF-8 becomes question marks."""
        return bytes(number - EOS - 1 for number in numbers.tolist() if number > EOS).decode(errors="replace")


class Words:
    """The words of a training text, separated by white space; ``EOS`` ends every line, an empty one too.

    The published counts of WikiText-2, which has empty lines between its paragraphs, and of Penn Treebank, which has
    none, use this rule. Only a newline ends a line. If the training text has the word ``<unk>``, it stands for words
    that are not in the vocabulary.
    """

    name = "words"
    unit = "word"
    excluded = (PAD,)
    UNKNOWN, END = "<unk>", "<eos>"

    def __init__(self, symbols: list[str]):
        self.symbols = symbols
        self._numbers = {symbol: number for number, symbol in enumerate(symbols, start=EOS + 1)} | {self.END: EOS}

    @classmethod
    def of(cls, text: str) -> "Words":
        """Build the vocabulary of ``text``, most frequent words first."""
        return cls([word for word, _ in Counter(text.split()).most_common() if word != cls.END])

    def __len__(self) -> int:
        return EOS + 1 + len(self.symbols)

    def encode(self, text: str) -> np.ndarray:
        """Return one number per word, and one per line, for its end: (N,), int32.

        Raises InputError naming words that are not in the vocabulary, unless it has ``<unk>``.
        """
        words = [word for line in io.StringIO(text) for word in (*line.split(), self.END)]
        unknown = self._numbers.get(self.UNKNOWN)
        if unknown is None:
            self._check_known(words, "the text")
        return np.fromiter((self._numbers.get(word, unknown) for word in words), np.int32, len(words))

    def encode_prompt(self, prompt: str) -> list[int]:
        """Return the beginning of a line as numbers; raise InputError naming words that are not in the vocabulary."""
        self._check_known(prompt.split(), "--prompt")
        return [self._numbers[word] for word in prompt.split()]

    def _check_known(self, words: list[str], name: str) -> None:
        unknown = list(dict.fromkeys(word for word in words if word not in self._numbers))
        if unknown:
            named = ", ".join(map(ascii, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
            raise InputError(f"{name} has words that are not in the model's vocabulary: {named}")

    def decode(self, numbers: Tensor) -> str:
        """Return the words of ``numbers`` (N,) with spaces between them, leaving out ``PAD`` and ``EOS``."""
        return " ".join(self.symbols[number - EOS - 1] for number in numbers.tolist() if number > EOS)


Alphabet = Characters | Bytes | Words
ALPHABETS = {alphabet.name: alphabet for alphabet in (Characters, Bytes, Words)}
