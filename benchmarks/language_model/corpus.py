"""Conversion of text on disk to batches.

``read`` loads a text as ``Sentences``, each a sequence of its own, in padded batches, or as a ``Stream``, one long
sequence in chunks from which the recurrent state is carried to the next. ``split`` holds out a part of it for
evaluation, and ``batches`` yields it as ``Batch``, the only form that training and evaluation see. A process that
trains together with others receives only its columns of each.
"""

import hashlib
import math
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.common import InputError

from .alphabet import ALPHABETS, EOS, PAD, Alphabet, Characters, Words

STANDARD_LIBRARY_LIMIT = 1_000_000  # characters; the whole of it would keep a laptop busy for long
BLOCK = 2**22  # symbols of a stream that are processed at a time, so that none is ever in memory as a whole
ALL = slice(None)
POOL = 32  # batches whose sentences are sorted by length together: little padding, and still shuffled


@dataclass(frozen=True)
class Batch:
    """Inputs and targets of a step, ``PAD`` past the end of a sequence.

    inputs: (T, B), the targets one step later, ``EOS`` first.
    targets: (T, B), a sequence and its ``EOS``, or the next part of a stream, in each column.
    continues: whether each column continues that of the batch before, with its recurrent state.
    """

    inputs: Tensor
    targets: Tensor
    continues: bool = False

    @classmethod
    def of(cls, sequences: list[Tensor]) -> "Batch":
        """Pad ``sequences``, each (t,) and ending in ``EOS``, to the longest; none make one step of padding."""
        targets = pad_sequence(sequences or [torch.tensor([PAD])], padding_value=PAD)
        return cls(torch.cat([torch.full_like(targets[:1], EOS), targets[:-1]]), targets)

    def to(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return inputs and targets on ``device``; copies to a GPU are only queued, and nothing waits for them."""
        parts = self.inputs, self.targets
        if device.type == "cuda":
            parts = tuple(part.pin_memory() for part in parts)
        return tuple(part.to(device, non_blocking=True) for part in parts)

    def counts(self) -> tuple[int, int]:
        """Return the numbers of symbols to predict, and of sequences that have any."""
        predicted = self.targets != PAD
        return int(predicted.sum()), int(predicted.any(0).sum())


class Sentences:
    """Sentences as numbers, each cut at ``max_length`` characters and ended with ``EOS``."""

    unit, batch_options = "sentences", "--batch"  # the unit of ``len``, and the option that sets the size of a batch

    def __init__(self, sequences: list[Tensor]):
        self.sequences = sequences

    @classmethod
    def from_text(cls, text: str, alphabet: Characters, max_length: int) -> "Sentences":
        sentences = alphabet.sentences(text)
        return cls([torch.tensor([*alphabet.encode(sentence[:max_length]), EOS]) for sentence in sentences])

    def __len__(self) -> int:
        return len(self.sequences)

    def split(self, held_out: float) -> tuple["Sentences", "Sentences"]:
        """Return all but the last, and the last ``held_out`` (a fraction) of the sentences; of two, one each."""
        kept = min(max(round(len(self) * (1 - held_out)), 1), len(self) - 1)
        return Sentences(self.sequences[:kept]), Sentences(self.sequences[kept:])

    def count(self) -> int:
        """Return the number of symbols to predict, including ``EOS``."""
        return sum(map(len, self.sequences))

    def unigram_entropy(self) -> float:
        """Return the nats per symbol of a model without memory, which knows only the frequency of each symbol."""
        counts = torch.cat(self.sequences).bincount().double()
        return torch.special.entr(counts / counts.sum()).sum().item()

    def longest(self) -> int:
        """Return the steps of the longest batch."""
        return max(map(len, self.sequences))

    def digest(self) -> bytes:
        lengths = str([len(sequence) for sequence in self.sequences])
        return hashlib.sha256(lengths.encode() + torch.cat(self.sequences).numpy().tobytes()).digest()

    def least(self, size: int) -> int:
        """Return the number of sentences that fill one batch."""
        return size

    def batch_count(self, size: int) -> int:
        return math.ceil(len(self) / size)

    def batches(
        self, size: int, generator: torch.Generator | None = None, columns: slice = ALL, skip: int = 0
    ) -> Iterator[Batch]:
        """Yield every sentence once, ``size`` at a time, the last batch perhaps smaller: ``columns``, after ``skip``.

        Without ``generator`` the order is that of length. With it the order is random, sorted by length only within
        pools of ``POOL`` batches, so that sentences of similar length meet, but not the same ones in every epoch.
        """
        lengths = torch.tensor([len(sequence) for sequence in self.sequences])
        if generator is None:
            groups = list(lengths.argsort(stable=True).split(size))
        else:
            pools = torch.randperm(len(self), generator=generator).split(size * POOL)
            groups = [group for pool in pools for group in pool[lengths[pool].argsort(stable=True)].split(size)]
            groups = [groups[i] for i in torch.randperm(len(groups), generator=generator)]
        for group in groups[skip:]:
            yield Batch.of([self.sequences[i] for i in group[columns]])


class Stream:
    """One sequence of symbols, read as several contiguous streams side by side, ``bptt`` steps at a time.

    values: (N,), of any integer type and perhaps a memory map, or (B, N) for B given streams; ``first`` is added to
    make them numbers.
    """

    unit, batch_options = "symbols", "--batch times --bptt"

    def __init__(self, values: np.ndarray, first: int, bptt: int):
        self.values = values
        self.first = first
        self.bptt = bptt

    def __len__(self) -> int:
        return self.values.size

    def split(self, held_out: float) -> tuple["Stream", "Stream"]:
        """Return all but the end, and the end, ``held_out`` (a fraction) of the symbols; at least one each of two."""
        return self._cut(self.values, held_out)

    def split_streams(self, held_out: float, size: int) -> tuple["Stream", "Stream"]:
        """Split each of ``size`` streams, so that every part of the text is evaluated; the remainder is dropped."""
        length = len(self) // size
        return self._cut(self.values[: size * length].reshape(size, length), held_out)

    def _cut(self, values: np.ndarray, held_out: float) -> tuple["Stream", "Stream"]:
        length = values.shape[-1]
        kept = min(max(round(length * (1 - held_out)), 1), length - 1)
        parts = (values[..., :kept], values[..., kept:])
        return tuple(Stream(part, self.first, self.bptt) for part in parts)

    def count(self) -> int:
        """Return the number of symbols to predict."""
        return len(self)

    def longest(self) -> int:
        """Return the steps of the longest batch."""
        return min(self.bptt, len(self))

    def unigram_entropy(self) -> float:
        """Return the nats per symbol of a model without memory, which knows only the frequency of each symbol."""
        counts = np.zeros(1 + max(int(block.max()) for block in self._blocks()), np.int64)
        for block in self._blocks():
            counts += np.bincount(block, minlength=len(counts))
        return torch.special.entr(torch.from_numpy(counts / len(self))).sum().item()

    def digest(self) -> bytes:
        digest = hashlib.sha256()
        for block in self._blocks():
            digest.update(np.ascontiguousarray(block))
        return digest.digest()

    def _blocks(self) -> Iterator[np.ndarray]:
        for row in np.atleast_2d(self.values):
            yield from (row[start : start + BLOCK] for start in range(0, len(row), BLOCK))

    def least(self, size: int) -> int:
        """Return the number of symbols that fill one batch."""
        return size * self.bptt

    def batch_count(self, size: int) -> int:
        return math.ceil(math.ceil(len(self) / size) / self.bptt)

    def batches(
        self, size: int, generator: torch.Generator | None = None, columns: slice = ALL, skip: int = 0
    ) -> Iterator[Batch]:
        """Yield every symbol once, in ``size`` streams of equal length, the last perhaps padded at its end.

        ``EOS`` comes first in each. The order is that of the text, so ``generator`` is not used. ``columns`` are the
        streams to read, and the first ``skip`` batches are left out.
        """
        streams = self._streams(size)
        length, streams = len(streams[0]), streams[columns]
        for start in range(skip * self.bptt, length, self.bptt):
            end = min(start + self.bptt, length)
            numbers = torch.full((end - start + 1, len(streams)), PAD)
            if start == 0:
                numbers[0] = EOS
            for column, values in zip(numbers.T, streams):
                part = values[max(start - 1, 0) : end]  # including the last symbol of the batch before
                column[1 if start == 0 else 0 :][: len(part)] = torch.from_numpy(part.astype(np.int64)) + self.first
            yield Batch(numbers[:-1], numbers[1:], continues=start > 0)

    def _streams(self, size: int) -> list[np.ndarray]:
        if self.values.ndim == 2:
            assert len(self.values) == size, "streams are read as they were cut"
            return list(self.values)
        length = math.ceil(len(self) / size)
        return [self.values[stream * length : (stream + 1) * length] for stream in range(size)]


Text = Sentences | Stream


@dataclass(frozen=True)
class Data:
    """The texts of a training run: for training, for evaluation after every epoch, and for evaluation at the end."""

    training: Text
    held_out: Text
    test: Text | None

    @cached_property
    def digests(self) -> dict[str, str]:
        """Digests by text, which tell whether two runs had the same."""
        return {name: text.digest().hex() for name, text in vars(self).items() if isinstance(text, Text)}

    def digest(self) -> str:
        """Return a digest of all the texts."""
        return hashlib.sha256(b"".join(map(bytes.fromhex, self.digests.values()))).hexdigest()


def make_alphabet(name: str, path: Path | None, limit: int | None) -> Alphabet:
    """Return the alphabet of that name; the vocabulary of ``Words`` is that of the training text."""
    return Words.of(_read(path, limit)) if name == Words.name else ALPHABETS[name]()


def read(path: Path | None, alphabet: Alphabet, max_length: int, bptt: int, limit: int | None = None) -> Text:
    """Read the first ``limit`` characters (bytes, for ``Bytes``) of a file, or without one of the standard library.

    Characters make sentences, cut at ``max_length``; bytes and words make streams, read ``bptt`` steps at a time.
    """
    if isinstance(alphabet, Characters):
        sentences = Sentences.from_text(_read(path, limit), alphabet, max_length)
        if not len(sentences):
            raise InputError(f"{path} has no sentence: nothing in it is a letter, a digit or punctuation")
        return sentences
    if isinstance(alphabet, Words):
        return Stream(alphabet.encode(_read(path, limit)), 0, bptt)
    values = np.frombuffer(_read(path, limit).encode(), np.uint8) if path is None else _map_bytes(path)[:limit]
    return Stream(values, EOS + 1, bptt)


def _read(path: Path | None, limit: int | None) -> str:
    return standard_library(limit or STANDARD_LIBRARY_LIMIT) if path is None else read_text(path)[:limit]


def _map_bytes(path: Path) -> np.ndarray:
    """Return the bytes of a file, (N,) of uint8, which are loaded into memory only on access."""
    try:
        if path.stat().st_size == 0:
            raise InputError(f"the text file {path} is empty")
        return np.memmap(path, np.uint8, "r")
    except OSError as error:
        raise InputError(f"cannot read the text file {path}: {error.strerror}") from None


def read_text(path: Path) -> str:
    """Read a file as ``open`` does, without a byte order mark; raise InputError if missing, empty or not UTF-8."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read the text file {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: the byte at position {error.start} cannot be decoded") from None
    if not text.strip():
        raise InputError(f"the text file {path} is empty")
    return text


def standard_library(limit: int) -> str:
    """Return the first ``limit`` characters of the sources of Python's standard library, modules in order of name."""
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
