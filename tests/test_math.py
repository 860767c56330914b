"""The float32 nonlinearities of the kernels, seen through cells that reduce to them, in units in the last place."""

import pytest
import torch

from fused_rnn import functional

X = torch.cat([torch.linspace(-100, 100, 20_001), torch.linspace(-1, 1, 20_001), torch.logspace(-30, 1, 5_000)])


def units_in_the_last_place(value: torch.Tensor, exact: torch.Tensor) -> float:
    spacing = torch.nextafter(exact.float().abs(), torch.tensor(torch.inf)).double() - exact.float().abs().double()
    return ((value.double() - exact).abs() / spacing).max().item()


def tanh(x: torch.Tensor) -> torch.Tensor:
    """Return h of an RNN with W = 1 and U = 0: one sequence per value, and 16 equal units so that vectors are full."""
    one, zero = torch.ones(16, 1, dtype=x.dtype), torch.zeros(16, 16, dtype=x.dtype)
    return functional.rnn(x.view(1, -1, 1), None, one, zero, backend="cpu")[0][0, :, 3]


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    """Return c of an LSTM whose forget gate sees x, with c₋ = 1 and g = 0."""
    weight = torch.zeros(4, 16, 1, dtype=x.dtype)
    weight[1] = 1
    h, c = torch.zeros(len(x), 16, dtype=x.dtype), torch.ones(len(x), 16, dtype=x.dtype)
    recurrent = torch.zeros(64, 16, dtype=x.dtype)
    _, (_, c_n) = functional.lstm(x.view(1, -1, 1), (h, c), weight.view(64, 1), recurrent, backend="cpu")
    return c_n[:, 3]


@pytest.mark.parametrize(("function", "exact", "lowest"), [(tanh, torch.tanh, -100), (sigmoid, torch.sigmoid, -86)])
def test_error_is_a_few_units(function, exact, lowest):
    x = X[lowest <= X]
    assert units_in_the_last_place(function(x), exact(x.double())) < 2.5


def test_limits():
    x = torch.tensor([0.0, -0.0, 2e-38, torch.inf, -torch.inf, torch.nan, -200.0])
    torch.testing.assert_close(tanh(x), torch.tanh(x), rtol=0, atol=0, equal_nan=True)
    finite = torch.tensor([0.0, 200.0, -200.0, 1e30, -1e30, torch.nan])
    torch.testing.assert_close(sigmoid(finite), torch.sigmoid(finite), rtol=0, atol=0, equal_nan=True)
