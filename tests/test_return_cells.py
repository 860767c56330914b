"""Modules return the cell states of all steps: they equal those of single steps, in every layout, with gradients."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fused_rnn

from .test_modules import MODULES, B, H, I, T

NAMES = ("lstm", "multiplicative_lstm", "multiplicative_lstm_hidden")
LENGTHS = torch.tensor([2, T, 4])


def inputs() -> torch.Tensor:
    return torch.randn(T, B, I, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def module(name: str, **options):
    torch.manual_seed(1)
    return MODULES[name](I, H, 2, dtype=torch.float64, **options)


@pytest.mark.parametrize("name", NAMES)
def test_they_are_the_states_of_the_steps(name):
    lstm, x, state = module(name), inputs(), None
    output, final, cells = lstm(x, return_cells=True)
    for t in range(T):
        one, state = lstm(x[t : t + 1], state)
        torch.testing.assert_close(cells[t], state[1][-1])
        torch.testing.assert_close(output[t], one[0])
    torch.testing.assert_close(final, state)


@pytest.mark.parametrize("name", NAMES)
def test_both_directions_and_lengths(name):
    lstm, x = module(name, bidirectional=True), inputs()
    output, (_, c_n), cells = lstm(x, lengths=LENGTHS, return_cells=True)
    assert cells.shape == output.shape == (T, B, 2 * H)
    for b, length in enumerate(LENGTHS):
        torch.testing.assert_close(cells[length - 1, b, :H], c_n[2, b])
        torch.testing.assert_close(cells[0, b, H:], c_n[3, b])
        assert not cells[length:, b].any()


@pytest.mark.parametrize("name", NAMES)
def test_every_layout_gives_the_same(name):
    lstm, x = module(name), inputs()
    expected = lstm(x, lengths=LENGTHS, return_cells=True)[2]
    packed = lstm(pack_padded_sequence(x, LENGTHS, enforce_sorted=False), return_cells=True)[2]
    torch.testing.assert_close(pad_packed_sequence(packed)[0], expected)
    torch.testing.assert_close(lstm(x[:, 1], return_cells=True)[2], expected[:, 1])
    lstm.batch_first = True
    torch.testing.assert_close(lstm(x.transpose(0, 1), lengths=LENGTHS, return_cells=True)[2].transpose(0, 1), expected)


def test_they_have_all_units_beside_projected_outputs():
    lstm, x = module("lstm", proj_size=3), inputs()
    output, (_, c_n), cells = lstm(x, return_cells=True)
    assert (output.shape[-1], cells.shape[-1]) == (3, H)
    torch.testing.assert_close(cells[-1], c_n[-1])


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_gradients(name, recompute):
    lstm = module(name, recompute=recompute)
    oracle = module(name, backend="reference")
    grads = []
    for each in (lstm, oracle):
        x = inputs().requires_grad_()
        output, _, cells = each(x, return_cells=True)
        loss = (cells * torch.linspace(-1, 1, cells.numel(), dtype=x.dtype).view_as(cells)).sum() + output.sin().sum()
        grads.append(torch.autograd.grad(loss, [x, *each.parameters()]))
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in MODULES if name not in NAMES])
def test_cells_without_a_cell_state_refuse(name):
    with pytest.raises(ValueError, match="asks for cell states"):
        MODULES[name](I, H)(torch.randn(T, B, I), return_cells=True)


@pytest.mark.parametrize("kind", [fused_rnn.MultiplicativeLSTM, fused_rnn.MultiplicativeLSTMCell])
def test_an_unknown_variant_is_refused(kind):
    with pytest.raises(ValueError, match="unknown variant 'krause': expected 'input' or 'hidden'"):
        kind(I, H, variant="krause")
    assert "variant=hidden" in repr(kind(I, H, variant="hidden"))
