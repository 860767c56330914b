"""The oracle itself: against torch.nn if torch has the cell, otherwise against scalar equations."""

import math
from pathlib import Path

import pytest
import torch

from fused_rnn import reference

from .conftest import FUSED, ODD_SHAPES, Operands, Shape, operands, random_like, relative_error


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


TORCH_MODULES = {
    "rnn_tanh": torch.nn.RNN,
    "rnn_relu": lambda *sizes, **kw: torch.nn.RNN(*sizes, nonlinearity="relu", **kw),
    "lstm": torch.nn.LSTM,
    "gru_reset_after": torch.nn.GRU,
}


@pytest.mark.parametrize("shape", [*ODD_SHAPES, Shape(9, 4, 6, 33)], ids=str)
@pytest.mark.parametrize("name", TORCH_MODULES)
def test_equals_torch(name, shape):
    """Same weights, same inputs, same states: same outputs as torch.nn's module."""
    op = operands(name, shape)
    module = TORCH_MODULES[name](shape.I, shape.H, dtype=torch.float64)
    weights = {n: t for n, t in op.tensors.items() if n.startswith(("weight", "bias"))}
    module.load_state_dict({f"{n}_l0": t for n, t in weights.items()})
    state = tuple(op.tensors[n].unsqueeze(0) for n in ("h_0", "c_0") if n in op.tensors)
    output, last = module(op.tensors["input"], state if len(state) == 2 else state[0])
    expected = [output, *(part[0] for part in (last if isinstance(last, tuple) else (last,)))]
    for value, exact in zip(op.run("reference"), expected):
        torch.testing.assert_close(value, exact, rtol=1e-12, atol=1e-12)


def scalar_step(name: str, x: float, h: float, c: float, w: dict[str, list[float]]) -> tuple[float, float]:
    """Return (h, c) after one step at I = H = 1 from the equations, in Python floats."""
    if name.startswith("multiplicative"):
        x = (w["weight_mih"][0] * x + w["weight_mhh"][0] * h + w["bias_m"][0]) * x
    a = [w["weight_ih"][g] * x + w["bias_ih"][g] for g in range(len(w["weight_ih"]))]
    u = w["weight_hh"]
    if name.endswith("lstm"):
        i, f, o = (sigmoid(a[g] + u[g] * h) for g in (0, 1, 3))
        c = f * c + i * math.tanh(a[2] + u[2] * h)
        return o * math.tanh(c), c
    r, z = sigmoid(a[0] + u[0] * h), sigmoid(a[1] + u[1] * h)
    return (1 - z) * h + z * math.tanh(a[2] + u[2] * (r * h)), c


@pytest.mark.parametrize("name", ["gru", "multiplicative_lstm", "multiplicative_gru"])
def test_follows_its_equations(name, reverse):
    """The cells that torch lacks equal the equations in plain floats."""
    op = operands(name, Shape(6, 1, 1, 1), reverse=reverse, scale=1.5)
    w = {n: t.flatten().tolist() for n, t in op.tensors.items()}
    h, c, expected = w["h_0"][0], w.get("c_0", [0.0])[0], []
    xs = w["input"][::-1] if reverse else w["input"]
    for x in xs:
        h, c = scalar_step(name, x, h, c, w)
        expected.append((h, c))
    outputs, cells = zip(*(expected[::-1] if reverse else expected))
    for result, values in zip(op.run("reference"), (outputs, [h], [c], cells)):
        assert result.flatten().tolist() == pytest.approx(values, rel=1e-12)


def test_follows_krause_et_al(reverse):
    """For one sequence, the variant that modulates h₋ equals arXiv:1609.07959, whose names are used here."""
    op = operands("multiplicative_lstm_hidden", Shape(6, 1, 3, 4), reverse=reverse, scale=1.5)
    t = op.tensors
    w_mx, w_mh = t["weight_mih"], t["weight_mhh"]
    (w_ix, w_fx, w_hx, w_ox), (w_im, w_fm, w_hm, w_om) = t["weight_ih"].chunk(4), t["weight_hh"].chunk(4)
    b_i, b_f, b_h, b_o = t["bias_ih"].chunk(4)
    h, c = t["h_0"][0], t["c_0"][0]
    outputs, cells = [None] * 6, [None] * 6
    for time in reversed(range(6)) if reverse else range(6):
        x = t["input"][time, 0]
        m = (w_mx @ x) * (w_mh @ h)
        h_hat = w_hx @ x + w_hm @ m + b_h
        i = torch.sigmoid(w_ix @ x + w_im @ m + b_i)
        o = torch.sigmoid(w_ox @ x + w_om @ m + b_o)
        f = torch.sigmoid(w_fx @ x + w_fm @ m + b_f)
        c = f * c + i * torch.tanh(h_hat)
        h = torch.tanh(c) * o
        outputs[time], cells[time] = h, c
    expected = [torch.stack(outputs).unsqueeze(1), h.unsqueeze(0), c.unsqueeze(0), torch.stack(cells).unsqueeze(1)]
    for backend in ("reference", *FUSED):
        d_results = random_like(expected)
        gradients = torch.autograd.grad(expected, list(t.values()), d_results, retain_graph=True)
        assert relative_error(op.results_and_gradients(backend, d_results), [*expected, *gradients]) < 1e-12


def test_lengths_equal_separate_runs(cell, reverse):
    """A padded batch with lengths gives what each sequence gives alone, cut to its length."""
    lengths = [4, 1, 0, 6]
    op = operands(cell, Shape(6, 4, 3, 5), reverse=reverse, lengths=lengths)
    results = op.run("reference")
    steps, finals = results[::3], results[1:3]  # output and cell states, h_n and c_n
    for b, length in enumerate(lengths):
        assert all((t[length:, b] == 0).all() for t in steps)
        states = {name: op.tensors[name][b : b + 1] for name in ("h_0", "c_0") if name in op.tensors}
        if length == 0:
            assert all(torch.equal(final[b : b + 1], state) for final, state in zip(finals, states.values()))
            continue
        alone = Operands(op.cell, {**op.tensors, **states, "input": op.tensors["input"][:length, b : b + 1]}, reverse)
        expected = [t.squeeze(-2) for t in alone.run("reference")]
        torch.testing.assert_close([t[:length, b] for t in steps], expected[::3])
        torch.testing.assert_close([t[b] for t in finals], expected[1:3])


@pytest.mark.parametrize("shape", ODD_SHAPES, ids=str)
def test_finite_differences(cell, shape, reverse):
    op = operands(cell, shape, reverse=reverse)
    assert torch.autograd.gradcheck(op.function("reference"), tuple(op.tensors.values()))


def test_second_derivatives(cell):
    op = operands(cell, Shape(3, 2, 2, 2))
    assert torch.autograd.gradgradcheck(op.function("reference"), tuple(op.tensors.values()))


def test_imports_only_torch():
    """The oracle stands apart from the package, so no bug of the package can leak into it."""
    lines = Path(reference.__file__).read_text().splitlines()
    imports = [line for line in lines if line.lstrip().startswith(("import ", "from "))]
    assert imports
    allowed = ("torch", "collections", "typing", "typing_extensions")
    assert all(line.split()[1].split(".")[0] in allowed for line in imports)
