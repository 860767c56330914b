"""Other people's fused recurrent layers, as rivals if they are installed; all need a CUDA device.

haste (LMNT, 2020) has its own layers, with another order of gates: they keep their parameters as they are, and results
are translated. FlashRNN (Pöppel, Beck & Hochreiter 2024) and torchrl's Triton kernels are functions, called with
parameters in our layout. FlashRNN takes W x: that product is computed here.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .eager import Layers


class Haste(nn.Module):
    """haste_pytorch's LSTM or GRU with our weights."""

    # by cell: the class, the position of each of its gates in ours (an involution), and the names of its biases
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

    def translate(self, results: dict[str, Tensor]) -> dict[str, Tensor]:
        """Translate results to our names and our order of gates."""
        _, order, biases = self.LAYOUTS[self.cell]
        theirs = {name: tensor for name, tensor in results.items() if "layer." in name}
        ours = {name: tensor for name, tensor in results.items() if name not in theirs}
        if theirs:
            ours["gradient of weight_ih_l0"] = _reordered(theirs["gradient of layer.kernel"].t(), order)
            ours["gradient of weight_hh_l0"] = _reordered(theirs["gradient of layer.recurrent_kernel"].t(), order)
            for name, bias in biases.items():  # a single bias has the gradient of both
                ours[f"gradient of {name}_l0"] = _reordered(theirs[f"gradient of layer.{bias or 'bias'}"], order)
        return ours


def _reordered(weight: Tensor, order: tuple[int, ...]) -> Tensor:
    gates = weight.chunk(len(order))
    return torch.cat([gates[position] for position in order])


class FlashRNN(Layers):
    """flashrnn's function with one head, on parameters in our layout.

    Its LSTM and RNN have our order of gates. Its GRU resets after the product: the recurrent weights of the candidate
    come first; of the biases, the candidate's recurrent one comes first and its other one last.
    """

    FUNCTIONS = {"lstm": "lstm", "rnn": "elman", "gru_reset_after": "gru"}  # noqa: RUF012

    def __init__(self, cell: str, input_size: int, hidden_size: int, backend: str = "cuda_fused") -> None:
        super().__init__(cell, input_size, hidden_size)
        self.function, self.backend = self.FUNCTIONS[cell], backend

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        from flashrnn import flashrnn

        gates, size = self.equations.gates, self.hidden_size
        projected = linear(input, self.weight_ih_l0).transpose(0, 1).unflatten(2, (gates, 1, size))  # B, T, G, 1, H
        recurrent, bias = self.weight_hh_l0, self.bias_ih_l0 + self.bias_hh_l0
        if self.function == "gru":
            recurrent = _reordered(recurrent, (2, 0, 1))
            bias = torch.cat((self.bias_hh_l0[2 * size :], bias[: 2 * size], self.bias_ih_l0[2 * size :]))
        states, last = flashrnn(
            projected,
            recurrent.view(gates, 1, size, size),
            bias.view(-1, 1, size),
            function=self.function,
            backend=self.backend,
            dtype=str(input.dtype).removeprefix("torch."),
        )
        return states[0, :, :, 0].transpose(0, 1), last  # h of 1 or 2 states, each B, T, 1, H


class TorchRL(Layers):
    """torchrl's Triton functions on parameters in our layout, which is also theirs.

    They support float32 only. A bfloat16 point uses their closest option: float32 tensors, the recurrent product in
    bfloat16, the others in TF32.
    """

    FUNCTIONS = {"lstm": "lstm_triton", "gru_reset_after": "gru_triton"}  # noqa: RUF012
    PRECISION = {  # noqa: RUF012
        torch.float32: {"compute_dtype": torch.float32, "input_precision": "ieee"},
        torch.bfloat16: {"compute_dtype": torch.bfloat16, "input_precision": "tf32"},
    }

    def __init__(self, cell: str, input_size: int, hidden_size: int) -> None:
        super().__init__(cell, input_size, hidden_size)
        self.function = self.FUNCTIONS[cell]

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        from torchrl.modules.tensordict_module import _rnn_triton

        x = input.transpose(0, 1).float()
        weights = [getattr(self, f"{name}_l0").float() for name in self.equations.weights]
        start = x.new_zeros(*x.shape[:2], self.hidden_size)  # one per step, for resets
        states = [start, start] if self.equations.has_cell_state else [start]
        resets = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        function = getattr(_rnn_triton, self.function)
        output, *_, last = function(x, *states, *weights, resets, **self.PRECISION[input.dtype])
        return output.transpose(0, 1).to(input.dtype), last
