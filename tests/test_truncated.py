"""Truncated back-propagation as old programs write it: the state of one call is detached in place for the next.

torch refuses ``detach_()`` on views, and torch.nn's states of a batch are not views.
"""

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_rnn

MODULES = [getattr(fused_rnn, name) for name in ("RNN", "LSTM", "GRU", "MultiplicativeLSTM", "MultiplicativeGRU")]
CELLS = [getattr(fused_rnn, f"{module.__name__}Cell") for module in MODULES]
BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])


def packed(x: torch.Tensor) -> PackedSequence:
    return pack_padded_sequence(x, [3, 4, 4, 1], enforce_sorted=False)


def values(output: torch.Tensor | PackedSequence) -> torch.Tensor:
    return output.data if isinstance(output, PackedSequence) else output


def parts_of(state) -> tuple[torch.Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


@BACKENDS
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True}, {"batch_first": True}], ids=str)
@pytest.mark.parametrize("form", ["padded", "packed", "lengths", "unbatched"])
@pytest.mark.parametrize("module", MODULES)
def test_states_of_sequences(module, form, options, backend):
    rnn = module(3, 5, dtype=torch.float64, backend=backend, **options)
    x = torch.randn(*((4, 3) if form == "unbatched" else (4, 4, 3)), dtype=torch.float64)
    x = packed(x) if form == "packed" else x
    how = {"lengths": torch.tensor([3, 4, 0, 1])} if form == "lengths" else {}
    output, state = rnn(x, **how)
    truncate(rnn, values(output).square().sum(), state)
    assert torch.equal(values(rnn(x, state, **how)[0]), values(rnn(x, **how)[0]))


@BACKENDS
@pytest.mark.parametrize("batch", [(), (2,)], ids=["unbatched", "batched"])
@pytest.mark.parametrize("cell", CELLS)
def test_states_of_single_steps(cell, batch, backend):
    step = cell(3, 5, dtype=torch.float64, backend=backend)
    x = torch.randn(*batch, 3, dtype=torch.float64)
    state = step(x)
    truncate(step, sum(part.clone().square().sum() for part in parts_of(state)), state)
    assert all(map(torch.equal, parts_of(step(x, state)), parts_of(step(x))))


def truncate(module, loss, state) -> None:
    """Detach a state in place and zero it; check that the loss keeps its gradients."""
    expected = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)
    for part in parts_of(state):
        assert not part._is_view()
        part.detach_().zero_()
    gradients = torch.autograd.grad(loss, list(module.parameters()))
    assert all(map(torch.equal, gradients, expected))
