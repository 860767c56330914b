"""The cells as careful hand-written loops: the rivals that a good engineer would write.

For cells that torch.nn has, the main tables for CPUs compare with torch.nn alone; all others compare with the loop too.

Everything that does not depend on the state is one product before the loop. Each step then takes the fewest and largest
operations that plain PyTorch allows: products through addmm with the bias or projection as its addend, gates computed
together and chunked, [x̂ | h] joined so that both products are one. Weights are transposed once, as views, because the
library multiplies by a transposed view as fast as by a copy. The loops stay within what TorchScript understands.

Shapes: ``input`` (T, B, I); the state before (B, H), or a pair of them; ``weights``, with the biases, as in
``fused_rnn.reference``; results (T, B, H) and the state after the last step.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .cases import EQUATIONS

State = Tensor | tuple[Tensor, Tensor]


class Layers(nn.Module):
    """Layers of ``cell`` with the parameters of the fused module, for another forward pass."""

    def __init__(self, cell: str, input_size: int, hidden_size: int, num_layers: int = 1) -> None:
        super().__init__()
        self.equations, self.hidden_size, self.num_layers = EQUATIONS[cell], hidden_size, num_layers
        for layer in range(num_layers):
            for name in self.equations.weights:
                shape = self.equations.weight_shape(name, hidden_size if layer else input_size, hidden_size)
                self.register_parameter(f"{name}_l{layer}", nn.Parameter(torch.empty(shape)))


class EagerLoop(Layers):
    """Layers that run a loop of this file; the state is a list with that of each layer, zeros if None."""

    def __init__(self, cell: str, input_size: int, hidden_size: int, num_layers: int = 1) -> None:
        super().__init__(cell, input_size, hidden_size, num_layers)
        self.loop = LOOPS[cell]

    def forward(self, input: Tensor, hx: list[State] | None = None) -> tuple[Tensor, list[State]]:
        if hx is None:
            zeros = input.new_zeros(input.shape[1], self.hidden_size)
            hx = self.num_layers * [(zeros, zeros) if self.equations.has_cell_state else zeros]
        output, states = input, []
        for layer, start in enumerate(hx):
            weights = [getattr(self, f"{name}_l{layer}") for name in self.equations.weights]
            output, state = self.loop(output, start, weights)
            states.append(state)
        return output, states


def rnn(input: Tensor, h: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    u = weight_hh.t()
    outputs = []
    for projected in linear(input, weight_ih, bias_ih + bias_hh).unbind(0):
        h = torch.addmm(projected, h, u).tanh()
        outputs.append(h)
    return torch.stack(outputs), h


def lstm(input: Tensor, state: tuple[Tensor, Tensor], weights: list[Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    u = weight_hh.t()
    h, c = state
    outputs = []
    for projected in linear(input, weight_ih, bias_ih + bias_hh).unbind(0):
        i, f, g, o = torch.addmm(projected, h, u).chunk(4, 1)
        c = torch.addcmul(f.sigmoid() * c, i.sigmoid(), g.tanh())
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs), (h, c)


def gru_reset_after(input: Tensor, h: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    u, sizes = weight_hh.t(), (2 * weight_hh.shape[1], weight_hh.shape[1])
    outputs = []
    for projected in linear(input, weight_ih, bias_ih).unbind(0):
        x_gates, x_candidate = projected.split(sizes, 1)
        u_gates, u_candidate = torch.addmm(bias_hh, h, u).split(sizes, 1)
        r, z = (x_gates + u_gates).sigmoid().chunk(2, 1)
        n = torch.addcmul(x_candidate, r, u_candidate).tanh()
        h = torch.lerp(n, h, z)
        outputs.append(h)
    return torch.stack(outputs), h


def gru(input: Tensor, h: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    weight_ih, weight_hh, bias_ih = weights
    sizes = (2 * weight_hh.shape[1], weight_hh.shape[1])
    u_gates, u_candidate = weight_hh.t().split(sizes, 1)
    (w_gates, w_candidate), (b_gates, b_candidate) = weight_ih.split(sizes), bias_ih.split(sizes)
    x_gates, x_candidate = linear(input, w_gates, b_gates), linear(input, w_candidate, b_candidate)
    outputs = []
    for gates_t, candidate_t in zip(x_gates.unbind(0), x_candidate.unbind(0)):
        r, z = torch.addmm(gates_t, h, u_gates).sigmoid().chunk(2, 1)
        n = torch.addmm(candidate_t, r * h, u_candidate).tanh()
        h = torch.lerp(h, n, z)
        outputs.append(h)
    return torch.stack(outputs), h


def multiplicative_gru(input: Tensor, h: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    weight_ih, weight_hh, bias_ih, weight_mih, weight_mhh, bias_m = weights
    joined, u_m = torch.cat((weight_ih, weight_hh), 1).t(), weight_mhh.t()
    sizes = (2 * weight_hh.shape[1], weight_hh.shape[1])
    (w_gates, w_candidate), (b_gates, b_candidate) = joined.split(sizes, 1), bias_ih.split(sizes)
    outputs = []
    for x, m in zip(input.unbind(0), linear(input, weight_mih, bias_m).unbind(0)):
        scaled = torch.addmm(m, h, u_m) * x
        r, z = torch.addmm(b_gates, torch.cat((scaled, h), 1), w_gates).sigmoid().chunk(2, 1)
        n = torch.addmm(b_candidate, torch.cat((scaled, r * h), 1), w_candidate).tanh()
        h = torch.lerp(h, n, z)
        outputs.append(h)
    return torch.stack(outputs), h


def multiplicative_lstm(
    input: Tensor, state: tuple[Tensor, Tensor], weights: list[Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    weight_ih, weight_hh, bias_ih, weight_mih, weight_mhh, bias_m = weights
    joined, u_m = torch.cat((weight_ih, weight_hh), 1).t(), weight_mhh.t()
    h, c = state
    outputs = []
    for x, m in zip(input.unbind(0), linear(input, weight_mih, bias_m).unbind(0)):
        scaled = torch.addmm(m, h, u_m) * x
        i, f, g, o = torch.addmm(bias_ih, torch.cat((scaled, h), 1), joined).chunk(4, 1)
        c = torch.addcmul(f.sigmoid() * c, i.sigmoid(), g.tanh())
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs), (h, c)


LOOPS = {loop.__name__: loop for loop in (rnn, lstm, gru_reset_after, gru, multiplicative_gru, multiplicative_lstm)}
