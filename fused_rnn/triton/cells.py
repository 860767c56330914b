"""The mathematics of one step of every base cell: pointwise, in float32, over tiles of any shape.

This file is the Triton counterpart of csrc/cells, with the same names, gate order and saved values. Per-gate values
come in tuples. A cell is a pair of functions:

* ``forward(wx, uh, h_prev, c_prev, S) -> h, c, saved`` with wx = W x + b and uh = U h₋ + b';
* ``backward(saved, h_prev, c_prev, c, dh, dc, S) -> dh, dc, d``, which takes δh and returns the part of δh₋ that does
  not pass through U; d are the gradients of the pre-activations.

S is the type in which the kernel stores, which decides how exact the nonlinearities are. Cells without a cell state
pass c through. The reset-before GRU needs all of s = r⊙h₋ for its candidate n, so it has two functions each way:
``forward(wx, uh, h_prev, S) -> s, r, z`` and ``candidate(wx_n, us, z, h_prev, S) -> h, n``;
``backward(z, n, h_prev, dh) -> dh, da_z, da_n`` and ``reset(ds, r, h_prev, dh) -> dh, da_r``.

The multiplicative modifier of the input, m = W_m x + U_m h₋ + b_m and x̂ = m⊙x, combines with any of them; that of the
hidden state, m = U_m h₋ and x̂ = m⊙(W_m x) in place of h₋, combines with the LSTM.
"""

from dataclasses import dataclass

import triton
import triton.language as tl

from .math import sigmoid, tanh


@triton.jit
def rnn_tanh_forward(wx, uh, h_prev, c_prev, S: tl.constexpr):
    h = tanh(wx[0] + uh[0], S)
    return h, c_prev, (h,)


@triton.jit
def rnn_tanh_backward(saved, h_prev, c_prev, c, dh, dc, S: tl.constexpr):
    d = dh * (1.0 - saved[0] * saved[0])
    return tl.zeros_like(dh), dc, (d,)


@triton.jit
def rnn_relu_forward(wx, uh, h_prev, c_prev, S: tl.constexpr):
    a = wx[0] + uh[0]
    h = tl.where(a <= 0.0, 0.0, a)  # NaN stays NaN
    return h, c_prev, (h,)


@triton.jit
def rnn_relu_backward(saved, h_prev, c_prev, c, dh, dc, S: tl.constexpr):
    d = dh * tl.where(saved[0] > 0.0, 1.0, 0.0)
    return tl.zeros_like(dh), dc, (d,)


@triton.jit
def lstm_forward(wx, uh, h_prev, c_prev, S: tl.constexpr):
    i = sigmoid(wx[0] + uh[0], S)
    f = sigmoid(wx[1] + uh[1], S)
    g = tanh(wx[2] + uh[2], S)
    o = sigmoid(wx[3] + uh[3], S)
    saved = (i, f, g, o)
    c = lstm_cell_state(saved, c_prev)
    return o * tanh(c, S), c, saved


@triton.jit
def lstm_cell_state(saved, c_prev):
    return saved[1] * c_prev + saved[0] * saved[2]


@triton.jit
def lstm_backward(saved, h_prev, c_prev, c, dh, dc, S: tl.constexpr):
    i = saved[0]
    f = saved[1]
    g = saved[2]
    o = saved[3]
    tanh_c = tanh(c, S)  # recomputing is cheaper than saving
    dc = dc + dh * o * (1.0 - tanh_c * tanh_c)
    da_i = dc * g * i * (1.0 - i)
    da_f = dc * c_prev * f * (1.0 - f)
    da_g = dc * i * (1.0 - g * g)
    da_o = dh * tanh_c * o * (1.0 - o)
    return tl.zeros_like(dh), dc * f, (da_i, da_f, da_g, da_o)


@triton.jit
def gru_reset_after_forward(wx, uh, h_prev, c_prev, S: tl.constexpr):
    r = sigmoid(wx[0] + uh[0], S)
    z = sigmoid(wx[1] + uh[1], S)
    n = tanh(wx[2] + r * uh[2], S)
    return (1.0 - z) * n + z * h_prev, c_prev, (r, z, n, uh[2])


@triton.jit
def gru_reset_after_backward(saved, h_prev, c_prev, c, dh, dc, S: tl.constexpr):
    r = saved[0]
    z = saved[1]
    n = saved[2]
    q = saved[3]
    da_n = dh * (1.0 - z) * (1.0 - n * n)
    da_r = da_n * q * r * (1.0 - r)
    da_z = dh * (h_prev - n) * z * (1.0 - z)
    return dh * z, dc, (da_r, da_z, da_n, da_n * r)


@triton.jit
def gru_forward(wx, uh, h_prev, S: tl.constexpr):
    r = sigmoid(wx[0] + uh[0], S)
    z = sigmoid(wx[1] + uh[1], S)
    return r * h_prev, r, z


@triton.jit
def gru_candidate(wx_n, us, z, h_prev, S: tl.constexpr):
    n = tanh(wx_n + us, S)
    return (1.0 - z) * h_prev + z * n, n


@triton.jit
def gru_backward(z, n, h_prev, dh):
    da_z = dh * (n - h_prev) * z * (1.0 - z)
    da_n = dh * z * (1.0 - n * n)
    return dh * (1.0 - z), da_z, da_n


@triton.jit
def gru_reset(ds, r, h_prev, dh):
    return dh + ds * r, ds * h_prev * r * (1.0 - r)


@dataclass(frozen=True)
class Cell:
    """A base cell: its functions, and its sizes per unit and step."""

    forward: triton.JITFunction
    backward: triton.JITFunction
    gates: int  # rows of W and U
    saved: int  # values that backward reads beside h and c
    gradients: int  # of pre-activations
    cell_state: triton.JITFunction | None = None  # (saved, c_prev) -> c, for cells with a cell state
    bypass: bool = False  # whether h₋ reaches h other than through U
    candidate: triton.JITFunction | None = None  # the second halves of the reset-before GRU
    reset: triton.JITFunction | None = None

    @property
    def has_cell_state(self) -> bool:
        """Whether the cell has a state c beside h."""
        return self.cell_state is not None


CELLS = {
    "rnn_tanh": Cell(rnn_tanh_forward, rnn_tanh_backward, gates=1, saved=1, gradients=1),
    "rnn_relu": Cell(rnn_relu_forward, rnn_relu_backward, gates=1, saved=1, gradients=1),
    "lstm": Cell(lstm_forward, lstm_backward, gates=4, saved=4, gradients=4, cell_state=lstm_cell_state),
    "gru": Cell(
        gru_forward, gru_backward, gates=3, saved=3, gradients=3, bypass=True, candidate=gru_candidate, reset=gru_reset
    ),
    "gru_reset_after": Cell(
        gru_reset_after_forward, gru_reset_after_backward, gates=3, saved=4, gradients=4, bypass=True
    ),
}
