"""Checkpoints: one file per cell with everything that generation, evaluation and further training need.

They are taken after an epoch or within one. Values that differ between processes which train together are kept of each,
so that the same number of processes continues as if nothing had happened.

Files are written atomically, so that an interruption leaves the previous one, and read without running code from them.
"""

import zipfile
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch

from benchmarks.common import InputError, check_backend, replacing

from .alphabet import ALPHABETS, Alphabet
from .model import LanguageModel, ModelConfig, State

FORMAT = "fused_rnn language model, version 3"


@dataclass
class Position:
    """The progress of training in the epoch after the finished ones."""

    steps: int = 0
    seconds: float = 0.0
    sums: list[tuple[float, int]] = field(default_factory=list)  # of each process: total loss, number of symbols
    state: State | None = None  # with which the columns of a stream continue, in their order


@dataclass
class Checkpoint:
    """The contents of a file."""

    model: dict  # fields of ModelConfig
    alphabet: dict  # name and symbols
    training: dict  # fields of train.Settings, threads, digests of the texts
    weights: dict  # state_dict of the model
    optimiser: dict  # state_dict of the optimiser
    random: list[dict]  # of each process: states of the generators that dropout draws from
    epochs: list[dict]  # results of each finished epoch
    position: dict  # fields of Position

    def save(self, path: Path) -> None:
        """Write the file; raise WritingError, and leave the one before, if that is not possible."""
        with replacing(path) as partial_path, partial_path.open("wb") as file:
            try:
                torch.save({"format": FORMAT, **vars(self)}, file)
            except RuntimeError as error:  # which torch raises in the place of the file's error
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read a file that ``save`` wrote, onto the CPU; raise InputError if it is missing or not a checkpoint."""
        try:
            _check_sums(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
        except OSError as error:
            raise InputError(f"cannot read the checkpoint {path}: {error.strerror}") from None
        except Exception:  # torch.load may raise anything on an arbitrary file
            raise InputError(f"{path} is damaged, or is not a checkpoint") from None
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise InputError(f"{path} is not a checkpoint of this language model, whose files say {FORMAT!r}")
        if content.keys() != {field.name for field in fields(cls)}:
            raise InputError(f"the checkpoint {path} is incomplete: it has only {', '.join(sorted(content))}")
        if content["model"].keys() != {field.name for field in fields(ModelConfig)}:
            raise InputError(f"the checkpoint {path} describes its model with other fields than this version has")
        return cls(**content)

    def describe_position(self) -> str:
        if self.position["steps"]:
            return f"after step {self.position['steps']:,} of epoch {len(self.epochs) + 1}"
        return f"after epoch {len(self.epochs)}" if self.epochs else "before the first step"

    def build_alphabet(self) -> Alphabet:
        return ALPHABETS[self.alphabet["name"]](self.alphabet["symbols"])

    def build_model(self, device: str, backend: str) -> LanguageModel:
        """Build the trained model on ``device``; raise InputError if the backend cannot run there."""
        config = ModelConfig(**self.model)
        check_backend(device, config.computed_in, backend)
        model = LanguageModel(config, backend).to(device)
        try:
            model.load_state_dict(self.weights)
        except RuntimeError:
            raise InputError(f"the checkpoint's weights do not fit the model that it describes: {self.model}") from None
        return model


def _check_sums(path: Path) -> None:
    """Raise BadZipFile if a part of the file is not what was written; torch.load does not look at the checksums."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(damaged)
