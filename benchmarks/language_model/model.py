"""The model: embedding, recurrent layers of any cell, dropout, decoder.

A call takes and returns the recurrent state, so that the one model trains on whole sentences, and generates
symbol by symbol without reading anything twice.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.common import CELLS, DTYPES, InputError

from .alphabet import PAD

State = Tensor | tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ModelConfig:
    """What makes one model's parameters differ in number or shape from another's."""

    cell: str  # a key of CELLS
    symbols: int  # size of the alphabet
    embedding: int  # features of the embedding
    hidden: int  # units per layer
    layers: int
    dropout: float  # of embedding, each layer's outputs
    tie: bool  # decode with the transposed embedding
    dtype: str  # a key of DTYPES

    def __post_init__(self) -> None:
        if self.tie and self.embedding != self.hidden:
            raise InputError(f"--tie needs --embedding equal to --hidden, got {self.embedding} and {self.hidden}")


class LanguageModel(nn.Module):
    """Scores of every next symbol, given the symbols so far."""

    def __init__(self, config: ModelConfig, backend: str = "auto"):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.symbols, config.embedding, padding_idx=PAD)
        self.dropout = nn.Dropout(config.dropout)
        self.recurrent = CELLS[config.cell](
            config.embedding,
            config.hidden,
            config.layers,
            dropout=config.dropout if config.layers > 1 else 0.0,
            backend=backend,
        )
        self.decoder = nn.Linear(config.hidden, config.symbols)
        if config.tie:
            self.embedding.weight = self.decoder.weight
        self.to(DTYPES[config.dtype])

    @property
    def device(self) -> torch.device:
        return self.decoder.weight.device

    def forward(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Scores (T, B, symbols) of what follows each of ``inputs`` (T, B), and the state after the last.

        state: as the recurrent module's, (layers, B, H) or a pair of them; None before the first symbol.
        """
        outputs, state = self.recurrent(self.dropout(self.embedding(inputs)), state)
        return self.decoder(self.dropout(outputs)), state
