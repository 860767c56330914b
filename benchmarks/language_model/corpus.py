"""Text on disk to padded batches.

``read_text`` and ``standard_library`` bring text in, ``Sentences`` holds it as numbers, ``split`` keeps a part of it
apart to be measured on, and ``Sentences.batches`` deals it out as ``Batch``, which is all that training and
measuring see of it.
"""

import hashlib
import math
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.common import InputError

from .alphabet import EOS, PAD, Characters

STANDARD_LIBRARY_LIMIT = 1_000_000  # characters; all of it would keep a laptop busy for long
POOL = 32  # batches whose sentences are sorted by length together: little padding, and still shuffled


@dataclass(frozen=True)
class Batch:
    """What a step reads and what it is to predict, ``PAD`` past the end of a sequence.

    inputs: (T, B), the targets one step later, ``EOS`` first.
    targets: (T, B), a sequence and its ``EOS`` in each column.
    """

    inputs: Tensor
    targets: Tensor

    @classmethod
    def of(cls, sequences: list[Tensor]) -> "Batch":
        """Pad ``sequences``, each (t,) and ending in ``EOS``, to the longest."""
        targets = pad_sequence(sequences, padding_value=PAD)
        return cls(torch.cat([torch.full_like(targets[:1], EOS), targets[:-1]]), targets)

    def to(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs and targets on ``device``."""
        return self.inputs.to(device), self.targets.to(device)


class Sentences:
    """Sentences as numbers, each cut at ``max_length`` characters and ended with ``EOS``."""

    def __init__(self, sequences: list[Tensor]):
        self.sequences = sequences

    @classmethod
    def from_text(cls, text: str, alphabet: Characters, max_length: int) -> "Sentences":
        sentences = alphabet.sentences(text)
        return cls([torch.tensor([*alphabet.encode(sentence[:max_length]), EOS]) for sentence in sentences])

    def __len__(self) -> int:
        return len(self.sequences)

    def split(self, held_out: float) -> tuple["Sentences", "Sentences"]:
        """All but the last, and the last ``held_out`` (a fraction) of the sentences; at least one each of two."""
        kept = min(max(round(len(self) * (1 - held_out)), 1), len(self) - 1)
        return Sentences(self.sequences[:kept]), Sentences(self.sequences[kept:])

    def count(self) -> int:
        """Symbols to predict, ``EOS`` among them."""
        return sum(map(len, self.sequences))

    def unigram_entropy(self) -> float:
        """Nats per symbol that a model without memory needs, which knows only how frequent each symbol is."""
        counts = torch.cat(self.sequences).bincount().double()
        return torch.special.entr(counts / counts.sum()).sum().item()

    def batch_count(self, size: int) -> int:
        return math.ceil(len(self) / size)

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Every sentence once, ``size`` at a time, the last batch perhaps smaller.

        Without ``generator`` in order of length. With it in random order, sorted by length only within pools of
        ``POOL`` batches, so that sentences of like length meet, but not the same ones in every epoch.
        """
        lengths = torch.tensor([len(sequence) for sequence in self.sequences])
        if generator is None:
            groups = list(lengths.argsort(stable=True).split(size))
        else:
            pools = torch.randperm(len(self), generator=generator).split(size * POOL)
            groups = [group for pool in pools for group in pool[lengths[pool].argsort(stable=True)].split(size)]
            groups = [groups[i] for i in torch.randperm(len(groups), generator=generator)]
        for group in groups:
            yield Batch.of([self.sequences[i] for i in group])


@dataclass(frozen=True)
class Data:
    """The sentences of a training run: learnt from, measured after every epoch, measured at the end."""

    training: Sentences
    held_out: Sentences
    test: Sentences | None

    def digest(self) -> str:
        """Tells whether two runs had the same data."""
        parts = [self.training, self.held_out, self.test] if self.test else [self.training, self.held_out]
        content = torch.cat([sequence for part in parts for sequence in part.sequences])
        sizes = str([len(part) for part in parts])
        return hashlib.sha256(sizes.encode() + content.numpy().tobytes()).hexdigest()


def read_sentences(path: Path | None, alphabet: Characters, max_length: int, limit: int | None = None) -> Sentences:
    """The sentences in the first ``limit`` characters of a file, or of the standard library if ``path`` is None."""
    text = standard_library(limit or STANDARD_LIBRARY_LIMIT) if path is None else read_text(path)[:limit]
    sentences = Sentences.from_text(text, alphabet, max_length)
    if not len(sentences):
        raise InputError(f"{path} has no sentence: nothing in it is a letter, a digit or punctuation")
    return sentences


def read_text(path: Path) -> str:
    """The text of a file; InputError if it is missing, empty or not UTF-8."""
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise InputError(f"cannot read the text file {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: the byte at position {error.start} cannot be decoded") from None
    if not text.strip():
        raise InputError(f"the text file {path} is empty")
    return text


def standard_library(limit: int) -> str:
    """The first ``limit`` characters of the source text of Python's standard library, modules in order of name."""
    folder = Path(sysconfig.get_path("stdlib"))
    pieces, length = [], 0
    for path in sorted(folder.glob("*.py")):
        pieces.append(path.read_text(encoding="utf-8"))
        length += len(pieces[-1])
        if length >= limit:
            break
    if not pieces:
        raise InputError(f"no text given, and {folder} has no source text to use in its place: name one with --text")
    return "".join(pieces)[:limit]
