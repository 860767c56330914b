"""Symbols: which ones a model knows, and how text becomes numbers and numbers text.

An alphabet gives every symbol a number. Two numbers mean the same in all of them: ``PAD`` fills the places past
the end of a sequence and is never learnt nor generated; ``EOS`` ends a sequence, and starts the next.
``ALPHABETS`` lists them by name; what a checkpoint must know to build one again is its ``name`` and ``symbols``.
"""

import re
import string
import unicodedata

from torch import Tensor

from benchmarks.common import InputError

PAD, EOS = 0, 1


class Characters:
    """Letters, punctuation, digits and space: 95 characters, with ``PAD`` and ``EOS`` 97 symbols.

    A sentence is a sequence: what stands between two full stops, whose place ``EOS`` takes.
    """

    name = "characters"

    def __init__(self, symbols: str = string.ascii_letters + string.punctuation + string.digits + " "):
        self.symbols = symbols
        self._numbers = {symbol: number for number, symbol in enumerate(symbols, start=EOS + 1)}
        self._dropped = re.compile(f"[^{re.escape(symbols)}]")

    def __len__(self) -> int:
        return EOS + 1 + len(self.symbols)

    def normalise(self, text: str) -> str:
        """Decompose accented letters (NFD), turn all white space into spaces, drop characters that are not here."""
        return self._dropped.sub("", re.sub(r"\s", " ", unicodedata.normalize("NFD", text)))

    def sentences(self, text: str) -> list[str]:
        """The sentences of ``text``, normalised, with runs of spaces collapsed, without empty ones."""
        collapsed = (" ".join(sentence.split()) for sentence in self.normalise(text).split("."))
        return [sentence for sentence in collapsed if sentence]

    def encode(self, text: str) -> list[int]:
        """One number per character. Raises InputError naming the characters that are not of this alphabet."""
        unknown = sorted(set(text) - self._numbers.keys())
        if unknown:
            named = ", ".join(map(ascii, unknown))
            raise InputError(f"the text has {named}, but the model knows only letters, punctuation, digits and space")
        return [self._numbers[character] for character in text]

    def encode_prompt(self, prompt: str) -> list[int]:
        """The beginning of one sentence as numbers; raises InputError if it has unknown characters or ends."""
        if "." in prompt:
            raise InputError(f"the prompt {prompt!r} has a full stop, but must be the beginning of one sentence")
        return self.encode(prompt)

    def decode(self, numbers: Tensor) -> str:
        """The text of ``numbers`` (N,), leaving out ``PAD`` and ``EOS``."""
        return "".join(self.symbols[number - EOS - 1] for number in numbers.tolist() if number > EOS)


ALPHABETS = {alphabet.name: alphabet for alphabet in (Characters,)}
