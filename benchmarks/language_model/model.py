"""The model: embedding, recurrent layers of any cell, dropout, decoder; recurrent weights may be dropped, too.

A call takes and returns the recurrent state, so that the one model trains on whole sentences, and generates
symbol by symbol without reading anything twice.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.common import CELLS, DTYPES, InputError

from .alphabet import PAD

BASELINES = {"torch_rnn": nn.RNN, "torch_lstm": nn.LSTM, "torch_gru": nn.GRU}  # --backend does not affect them
MODULES = {**CELLS, **BASELINES}
RECURRENT_WEIGHTS = ("weight_hh", "weight_mhh")  # prefixes of their names
State = Tensor | tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ModelConfig:
    """The settings that determine the number and shapes of a model's parameters, and its computation."""

    cell: str  # a key of MODULES
    symbols: int  # size of the alphabet
    embedding: int  # features of the embedding
    hidden: int  # units per layer
    layers: int
    dropout: float  # of embedding, each layer's outputs
    weight_drop: float  # of recurrent weights
    tie: bool  # decode with the transposed embedding
    dtype: str  # a key of DTYPES
    autocast: bool  # compute in bfloat16, with parameters in float32

    @property
    def computed_in(self) -> str:
        """The dtype of activations, a key of DTYPES."""
        return "bfloat16" if self.autocast else self.dtype

    def __post_init__(self) -> None:
        if self.autocast and self.dtype != "float32":
            raise InputError(f"--autocast needs --dtype float32, which it computes in bfloat16; got {self.dtype}")
        if self.tie and self.embedding != self.hidden:
            raise InputError(f"--tie needs --embedding equal to --hidden, got {self.embedding} and {self.hidden}")


class LanguageModel(nn.Module):
    """Scores every possible next symbol, given the symbols so far."""

    def __init__(self, config: ModelConfig, backend: str = "auto"):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.symbols, config.embedding, padding_idx=PAD)
        self.dropout = nn.Dropout(config.dropout)
        self.recurrent = MODULES[config.cell](
            config.embedding,
            config.hidden,
            config.layers,
            dropout=config.dropout if config.layers > 1 else 0.0,
            **({} if config.cell in BASELINES else {"backend": backend}),
        )
        self.decoder = nn.Linear(config.hidden, config.symbols)
        if config.tie:
            self.embedding.weight = self.decoder.weight
        self.to(DTYPES[config.dtype])

    @property
    def device(self) -> torch.device:
        return self.decoder.weight.device

    def forward(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return scores (T, B, symbols) of the successor of each of ``inputs`` (T, B), and the state after the last.

        state: as the recurrent module's, (layers, B, H) or a pair of them; None before the first symbol.
        """
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.autocast):
            outputs, state = self._recur(self.dropout(self.embedding(inputs)), state)
            return self.decoder(self.dropout(outputs)), state

    def _recur(self, inputs: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Run the recurrent layers, with ``weight_drop`` (Merity, Keskar & Socher 2018), also for torch.nn's cells.

        Dropped elements are drawn once per call, so they are the same at every step.
        """
        drop = self.config.weight_drop if self.training else 0.0
        if drop == 0:
            return self.recurrent(inputs, state)
        weights = {
            name: nn.functional.dropout(weight, drop) if name.startswith(RECURRENT_WEIGHTS) else weight
            for name, weight in self.recurrent.named_parameters()
        }
        return functional_call(self.recurrent, weights, (inputs, state))
