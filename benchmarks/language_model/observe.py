"""The contents of TensorBoard beside the losses: the sizes of gradients, and the openness of gates.

Fused kernels do not expose their gates, so the same model computes them by the reference, on one batch.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from benchmarks.common import InputError

from .corpus import Batch, Text
from .model import LanguageModel

LSTM_GATES, GRU_GATES = ("forget", "input", "output"), ("reset", "update")
GATES = {  # in the order in which a step of the reference computes them
    "rnn": (),
    "lstm": LSTM_GATES,
    "gru": GRU_GATES,
    "multiplicative_lstm": LSTM_GATES,
    "multiplicative_gru": GRU_GATES,
    "gru_reset_after": GRU_GATES,
    "multiplicative_lstm_hidden": LSTM_GATES,
}
SCALARS = ("train_loss", "held_out_loss", "test_loss", "learning_rate")
STEPS, SEQUENCES = 64, 16  # of the batch on which gates are computed; the reference is slow


class _Sigmoids(TorchFunctionMode):
    """Records every result of torch.sigmoid while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Tensor] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.sigmoid:
            self.values.append(result)
        return result


@torch.no_grad()
def gate_values(model: LanguageModel, batch: Batch) -> dict[str, Tensor]:
    """Return the values (T, B, H) of every gate, by name and layer, without dropout; none for torch.nn's cells."""
    gates = GATES.get(model.config.cell, ())
    if not gates:
        return {}
    model.eval()
    backend = model.recurrent.backend
    model.recurrent.backend = "reference"
    try:
        with _Sigmoids() as sigmoids:
            model(batch.inputs.to(model.device))
    finally:
        model.recurrent.backend = backend
    per_layer = len(batch.inputs) * len(gates)
    return {
        f"{gate}_gate_l{layer}": torch.stack(sigmoids.values[layer * per_layer :][:per_layer][i :: len(gates)])
        for layer in range(model.config.layers)
        for i, gate in enumerate(gates)
    }


def gradient_magnitudes(model: LanguageModel) -> dict[str, Tensor]:
    """Return decimal logarithms of the absolute values of each parameter's last gradient that are not zero."""
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: g[g != 0].abs().float().log10() for name, g in gradients.items() if g is not None and g.any()}


class TensorBoard:
    """A log in ``folder``: scalars and histograms after every epoch, gates on the beginning of ``text``."""

    def __init__(self, folder: Path, text: Text):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError("--tensorboard needs the package tensorboard, which is not installed") from None
        self._writer = SummaryWriter(str(folder))
        batch = next(text.batches(SEQUENCES))
        self._batch = Batch(batch.inputs[:STEPS], batch.targets[:STEPS])

    def write(self, model: LanguageModel, epoch: dict) -> None:
        """Append the values of ``epoch``."""
        for name in SCALARS:
            if name in epoch:
                self._writer.add_scalar(name, epoch[name], epoch["epoch"])
        for name, values in gradient_magnitudes(model).items():
            self._writer.add_histogram(f"log10_gradient/{name}", values.cpu(), epoch["epoch"])
        for name, values in gate_values(model, self._batch).items():
            self._writer.add_histogram(f"gates/{name}", values.float().cpu(), epoch["epoch"])
        self._writer.flush()


Observe = Callable[[LanguageModel, dict], None]
