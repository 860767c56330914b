"""The network of the copy task, recurrent layers and a linear decoder, and the gradient of its loss at each step.

``gradient_norms`` measures dL/dh_t. The gradient of the layers' outputs would not do: it contains only the part that
reaches h_t from its own step's output, but gradients vanish or explode on the other path, through all later states. So
the sequence runs in T calls of one step that pass the state on, the decoder reads the very tensor that is passed on,
and autograd then sums both paths in its gradient, for any cell and backend. An LSTM's cell state is a third path,
beside h_t: gradients that reach earlier steps through it appear at their h, not at h_t.
"""

import torch
from torch import Tensor, nn

from benchmarks.common import CELLS

from .data import Task


class CopyModel(nn.Module):
    """Recurrent layers of one cell, then a linear decoder.

    Args:
        cell: a key of ``CELLS``.
        task: decides the sizes of input and output.
        hidden, layers: size and number of the recurrent layers.
        keep_bias: how much the gates initially favour keeping the state, or "chrono", which derives this from
            ``delay``, the number of steps from reading a symbol to its target.
        backend, device, dtype: as in ``fused_rnn``'s modules.
    """

    def __init__(
        self,
        cell: str,
        task: Task,
        hidden: int,
        layers: int,
        keep_bias: float | str = 0.0,
        delay: int = 0,
        *,
        backend: str = "auto",
        **where,
    ) -> None:
        super().__init__()
        self.recurrent = CELLS[cell](task.input_size, hidden, layers, backend=backend, **where)
        self.decoder = nn.Linear(hidden, task.output_size, **where)
        _favour_keeping(self.recurrent, keep_bias, delay)

    def forward(self, inputs: Tensor, steps: int) -> Tensor:
        """Return outputs (steps, B, output_size) at the last ``steps`` steps of inputs (T, B, input_size)."""
        outputs, _ = self.recurrent(inputs)
        return self.decoder(outputs[-steps:])


@torch.no_grad()
def _favour_keeping(recurrent: nn.Module, bias: float | str, delay: int) -> None:
    """Shift the gate that keeps the state by ``bias`` towards keeping, as Jozefowicz et al. 2015 do for the LSTM.

    That is the forget gate of LSTMs and the update gate of GRUs, the second of ``bias_ih`` in both. GRUs keep their
    state where that gate is 0, but the reset-after GRU where it is 1. A cell without such a gate stays as it is.
    "chrono" draws each unit's shift (Tallec & Ollivier 2018), so that some units follow every symbol and some last
    until it is due, and shifts the LSTM's input gate, the first, as far the other way: what a unit keeps for long, it
    takes in slowly.
    """
    kind = recurrent.cell.removeprefix("multiplicative_").removesuffix("_hidden")
    sign = {"lstm": 1, "gru": -1, "gru_reset_after": 1}.get(kind, 0)
    hidden = recurrent.hidden_size
    for layer in range(recurrent.num_layers if sign else 0):
        gates = getattr(recurrent, f"bias_ih_l{layer}").split(hidden)
        shift = chrono_bias(hidden, delay).to(gates[1]) if bias == "chrono" else bias
        gates[1].add_(sign * shift)
        if bias == "chrono" and kind == "lstm":
            gates[0].sub_(shift)


def chrono_bias(hidden: int, delay: int) -> Tensor:
    """Return ln u with u drawn uniformly from 1 to ``delay`` - 1: a gate of 1 - 1/(1+u) keeps a state about u steps."""
    return torch.empty(hidden).uniform_(1, max(delay - 1, 1)).log()


def gradient_norms(model: CopyModel, task: Task, inputs: Tensor, targets: Tensor) -> list[float]:
    """Return ‖dL/dh_t‖ for t = 1..T, of the top layer's h_t: L is one sequence's loss, averaged over sequences."""
    hiddens, state = [], None
    for step in inputs.split(1):
        _, state = model.recurrent(step, state)
        hidden = state[0] if isinstance(state, tuple) else state
        hidden.retain_grad()
        hiddens.append(hidden)
    outputs = model.decoder(torch.stack([hidden[-1] for hidden in hiddens[-len(targets) :]]))
    sequences = inputs.shape[1]
    (task.loss(outputs, targets) * sequences).backward()
    model.zero_grad(set_to_none=True)
    norms = torch.stack([hidden.grad[-1].double().norm(dim=-1).mean() for hidden in hiddens])
    return norms.tolist()
