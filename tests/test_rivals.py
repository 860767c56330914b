"""The adapters of other people's libraries, tested with imitations, and with the libraries if installed."""

import inspect
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from benchmarks.speed.candidates import RIVALS, eager, obstacle
from benchmarks.speed.cases import Case, Shape
from benchmarks.speed.check import Bench
from benchmarks.speed.others import FlashRNN

SMALL = Shape("small", batch=3, input_size=5, hidden_size=7, steps=6)


class TheirLayer(torch.nn.Module):
    """haste's layer in PyTorch: transposed weights, gates in the order that its documentation gives."""

    def __init__(self, gates: int, input_size: int, hidden_size: int):
        super().__init__()
        self.kernel = torch.nn.Parameter(torch.empty(input_size, gates * hidden_size))
        self.recurrent_kernel = torch.nn.Parameter(torch.empty(hidden_size, gates * hidden_size))
        self.bias = torch.nn.Parameter(torch.empty(gates * hidden_size))
        if gates == 3:
            self.recurrent_bias = torch.nn.Parameter(torch.empty(gates * hidden_size))

    def forward(self, input):
        h = c = input.new_zeros(input.shape[1], self.recurrent_kernel.shape[0])
        output = []
        for x in input @ self.kernel + self.bias:
            if hasattr(self, "recurrent_bias"):
                (xz, xr, xn), (uz, ur, un) = (
                    x.chunk(3, 1),
                    (h @ self.recurrent_kernel + self.recurrent_bias).chunk(3, 1),
                )
                z, n = torch.sigmoid(xz + uz), torch.tanh(xn + torch.sigmoid(xr + ur) * un)
                h = z * h + (1 - z) * n
            else:
                i, g, f, o = (x + h @ self.recurrent_kernel).chunk(4, 1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
            output.append(h)
        return torch.stack(output), h


def their_function(Wx, R, b, states=None, function="lstm", config=None, backend="cuda_fused", dtype="bfloat16"):
    """flashrnn's function in PyTorch: (B, T, G, N, D), (G, N, D, D) and (G, N, D) give (S, B, T, N, D)."""
    assert backend == "cuda" or (backend == "cuda_fused" and function != "gru")
    assert dtype == "float32"
    h = c = torch.zeros_like(Wx[:, 0, 0])
    states = []
    for x in Wx.unbind(1):
        u = torch.einsum("gndk,bnk->bgnd", R, h)
        if function == "lstm":
            i, f, z, o = (x + u + b).unbind(1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(z)
            h = torch.sigmoid(o) * torch.tanh(c)
        elif function == "gru":  # x has three gates, h has three, and the bias has four
            r, z = torch.sigmoid(x[:, :2] + u[:, 1:] + b[1:3]).unbind(1)
            h = z * h + (1 - z) * torch.tanh(x[:, 2] + b[3] + r * (u[:, 0] + b[0]))
        else:
            h = torch.tanh((x + u + b)[:, 0])
        states.append(torch.stack((h, c) if function == "lstm" else (h,)))
    return torch.stack(states, 2), states[-1][:, :, None]


def gru_triton(x, hidden, w_ih, w_hh, b_ih, b_hh, is_init, compute_dtype, *, recompute=False, input_precision=None):
    """torchrl's function in PyTorch: x (B, T, I), hidden (B, T, H), is_init (B, T) give (B, T, H) and (B, H)."""
    assert {x.dtype, hidden.dtype, w_ih.dtype, w_hh.dtype, b_ih.dtype, b_hh.dtype} == {torch.float32}
    assert is_init.dtype == torch.bool
    assert not is_init.any()
    h, output = hidden[:, 0], []
    for t in range(x.shape[1]):
        (xr, xz, xn), (ur, uz, un) = (
            (x[:, t] @ w_ih.t() + b_ih).chunk(3, 1),
            (h @ w_hh.t() + b_hh).chunk(3, 1),
        )
        r, z = torch.sigmoid(xr + ur), torch.sigmoid(xz + uz)
        h = (1 - z) * torch.tanh(xn + r * un) + z * h
        output.append(h)
    return torch.stack(output, 1), h


def lstm_triton(
    x, hidden, cell, w_ih, w_hh, b_ih, b_hh, is_init, compute_dtype, *, recompute=False, input_precision=None
):
    """torchrl's LSTM in PyTorch: it returns all outputs, all cell states, and the last of each."""
    assert {x.dtype, hidden.dtype, cell.dtype, w_ih.dtype, w_hh.dtype, b_ih.dtype, b_hh.dtype} == {torch.float32}
    assert not is_init.any()
    h, c, outputs, cells = hidden[:, 0], cell[:, 0], [], []
    for t in range(x.shape[1]):
        i, f, g, o = (x[:, t] @ w_ih.t() + b_ih + h @ w_hh.t() + b_hh).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        outputs.append(h)
        cells.append(c)
    return torch.stack(outputs, 1), torch.stack(cells, 1), h, c


THEIR_FUNCTIONS = SimpleNamespace(gru_triton=gru_triton, lstm_triton=lstm_triton)


@pytest.mark.parametrize("mode", ["training", "forward"])
@pytest.mark.parametrize(
    ("library", "cell"),
    [
        *(("haste", cell) for cell in ("lstm", "gru_reset_after")),
        *(("flashrnn", cell) for cell in ("lstm", "rnn")),
        *(("flashrnn_alternating", cell) for cell in ("lstm", "rnn", "gru_reset_after")),
        *(("torchrl", cell) for cell in ("lstm", "gru_reset_after")),
    ],
)
def test_other_peoples_libraries_get_our_weights_and_give_our_results(monkeypatch, library, cell, mode):
    layers = {"LSTM": partial(TheirLayer, 4), "GRU": partial(TheirLayer, 3)}
    monkeypatch.setitem(sys.modules, "haste_pytorch", SimpleNamespace(**layers))
    monkeypatch.setitem(sys.modules, "flashrnn", SimpleNamespace(flashrnn=their_function))
    place = "torchrl.modules.tensordict_module"
    monkeypatch.setitem(sys.modules, place, SimpleNamespace(_rnn_triton=THEIR_FUNCTIONS))
    bench, candidate = Bench(SMALL, torch.float32), RIVALS[library](cell)
    ready = bench.ready(candidate, Case(cell, SMALL, mode))
    error = bench.error(candidate, ready)
    assert not error.wrong, str(error)
    names = set(ready.translate(ready.run()))
    assert names == set(bench.ready(eager(cell), Case(cell, SMALL, mode)).run())


def test_torchrl_gets_its_16_bit_products_on_float32_tensors(monkeypatch):
    asked = []

    def spy(*operands, **how):
        asked.append(how)
        return lstm_triton(*operands, **how)

    place, functions = "torchrl.modules.tensordict_module", SimpleNamespace(lstm_triton=spy)
    monkeypatch.setitem(sys.modules, place, SimpleNamespace(_rnn_triton=functions))
    for dtype in (torch.float32, torch.bfloat16):
        bench, candidate = Bench(SMALL, dtype), RIVALS["torchrl"]("lstm")
        ready = bench.ready(candidate, Case("lstm", SMALL, "training"))
        assert not bench.error(candidate, ready).wrong
        assert {result.dtype for result in ready.run().values()} == {dtype}
        assert asked[-1]["compute_dtype"] == dtype
    assert [how["input_precision"] for how in asked if how["compute_dtype"] == torch.float32] == 2 * ["ieee"]


@pytest.mark.parametrize("mode", ["training", "forward"])
@pytest.mark.parametrize("cell", FlashRNN.FUNCTIONS)
def test_flashrnn_itself_gets_our_weights_and_gives_our_results(cell, mode):
    """The test uses its plain PyTorch backend, which takes the same arguments as its kernels, and runs on a CPU."""
    pytest.importorskip("flashrnn")
    bench, candidate = Bench(SMALL, torch.float32), RIVALS["flashrnn_alternating"](cell)
    plain = replace(candidate, build=partial(FlashRNN, cell, backend="vanilla"))
    error = bench.error(plain, bench.ready(plain, Case(cell, SMALL, mode)))
    assert not error.wrong, str(error)


@pytest.mark.parametrize(
    ("module", "imitation"),
    [
        ("flashrnn", their_function),
        ("torchrl.modules.tensordict_module._rnn_triton", gru_triton),
        ("torchrl.modules.tensordict_module._rnn_triton", lstm_triton),
    ],
    ids=["flashrnn", "gru_triton", "lstm_triton"],
)
def test_imitations_take_what_the_packages_take(module, imitation):
    theirs = pytest.importorskip(module)
    name = "flashrnn" if imitation is their_function else imitation.__name__
    expected = inspect.signature(getattr(theirs, name)).parameters
    found = inspect.signature(imitation).parameters
    assert [(p.name, p.kind) for p in found.values()] == [(p.name, p.kind) for p in expected.values()]


def test_rivals_that_cannot_run_here_say_why(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert obstacle("haste", "cpu") == "haste needs a CUDA device"
    assert obstacle("haste", "cuda") == "haste_pytorch is not installed"
    assert obstacle("flashrnn", "cuda") == "flashrnn is not installed"
    assert obstacle("eager", "cpu") is obstacle("graphed", "cuda") is obstacle("cpu", "cpu") is None
    assert "cuda" in obstacle("cuda", "cpu")
