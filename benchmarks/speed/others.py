"""Other people's fused recurrent layers, as rivals where they are installed; both need a CUDA device.

haste (LMNT, 2020) has its own layers, whose gates stand in another order: they keep their parameters as they are, and
results are translated. FlashRNN (Pöppel, Beck & Hochreiter 2024) is a function of W x, U and b; W x is computed here.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .eager import Layers


class Haste(nn.Module):
    """haste_pytorch's LSTM or GRU with our weights."""

    # by cell: the class, where each of its gates stands in ours (the way back is the same), and which bias is which
    LAYOUTS = {  # noqa: RUF012
        "lstm": ("LSTM", (0, 2, 1, 3), {"bias_ih": "bias", "bias_hh": None}),
        "gru_reset_after": ("GRU", (1, 0, 2), {"bias_ih": "bias", "bias_hh": "recurrent_bias"}),
    }

    def __init__(self, cell: str, input_size: int, hidden_size: int) -> None:
        import haste_pytorch

        super().__init__()
        self.cell = cell
        self.layer = getattr(haste_pytorch, self.LAYOUTS[cell][0])(input_size, hidden_size)

    @torch.no_grad()
    def load_state_dict(self, weights: dict[str, Tensor]) -> None:
        _, order, biases = self.LAYOUTS[self.cell]
        theirs = {name: _reordered(weight, order) for name, weight in weights.items()}
        self.layer.kernel.copy_(theirs["weight_ih_l0"].t())
        self.layer.recurrent_kernel.copy_(theirs["weight_hh_l0"].t())
        if biases["bias_hh"] is None:
            self.layer.bias.copy_(theirs["bias_ih_l0"] + theirs["bias_hh_l0"])
        else:
            self.layer.bias.copy_(theirs["bias_ih_l0"])
            self.layer.recurrent_bias.copy_(theirs["bias_hh_l0"])

    def forward(self, input: Tensor):
        return self.layer(input)

    @classmethod
    def translate(cls, cell: str, results: dict[str, Tensor]) -> dict[str, Tensor]:
        """Results by our names and in our order."""
        _, order, biases = cls.LAYOUTS[cell]
        theirs = {name: tensor for name, tensor in results.items() if "layer." in name}
        ours = {name: tensor for name, tensor in results.items() if name not in theirs}
        if theirs:
            ours["gradient of weight_ih_l0"] = _reordered(theirs["gradient of layer.kernel"].t(), order)
            ours["gradient of weight_hh_l0"] = _reordered(theirs["gradient of layer.recurrent_kernel"].t(), order)
            for name, bias in biases.items():  # where there is one bias, both have its gradient
                ours[f"gradient of {name}_l0"] = _reordered(theirs[f"gradient of layer.{bias or 'bias'}"], order)
        return ours


def _reordered(weight: Tensor, order: tuple[int, ...]) -> Tensor:
    gates = weight.chunk(len(order))
    return torch.cat([gates[position] for position in order])


class FlashRNN(Layers):
    """flashrnn's function with one head, on parameters in our layout, which is its own."""

    FUNCTIONS = {"lstm": "lstm", "rnn": "elman"}  # noqa: RUF012

    def __init__(self, cell: str, input_size: int, hidden_size: int) -> None:
        super().__init__(cell, input_size, hidden_size)
        self.function, self.hidden_size = self.FUNCTIONS[cell], hidden_size

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        from flashrnn import flashrnn

        gates, size = self.equations.gates, self.hidden_size
        projected = linear(input, self.weight_ih_l0).transpose(0, 1).unflatten(2, (gates, 1, size))  # B, T, G, 1, H
        recurrent = self.weight_hh_l0.view(gates, 1, size, size)
        bias = (self.bias_ih_l0 + self.bias_hh_l0).view(gates, 1, size)
        dtype = str(input.dtype).removeprefix("torch.")
        states, last = flashrnn(projected, recurrent, bias, function=self.function, backend="cuda_fused", dtype=dtype)
        return states[0, :, :, 0].transpose(0, 1), last  # h of 1 or 2 states, each B, T, 1, H
