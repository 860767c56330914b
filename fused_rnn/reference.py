"""The oracle: every cell of the package in plain PyTorch, one Python step at a time.

Each function computes a whole sequence exactly as its equation reads. It imports only torch, knows nothing
of kernels, runs in any dtype on any device and can be differentiated any number of times. Every kernel is
tested against these functions in float64, and double backward of the fused operators runs through them.

Shapes in all functions: ``input`` (T, B, I), ``h_0`` and ``c_0`` (B, H), ``weight_ih`` (G*H, I), ``weight_hh``
(G*H, H), biases (G*H) with G = 1 gate for the RNN, 4 for LSTMs (i, f, g, o) and 3 for GRUs (r, z, n);
``weight_mih`` (I, I), ``weight_mhh`` (I, H), ``bias_m`` (I), or (H, I), (H, H) and None for the variant that modulates
h₋. The results are the outputs (T, B, H) and the final state. ``reverse=True`` runs from the last step to the first;
outputs stay in the input's order, and the final state is that of step 0. A missing ``state`` is zeros. All tensors
share one dtype and device. With ``return_cells=True`` the LSTMs also return the cell states of all steps (T, B, H).

``lengths`` (B), int64, gives each sequence its own number of steps, 0 to T: outputs and cell states past the end are
zero, the final state is that of the last real step, and a reverse run starts there.

``resets`` (T, B), bool, cuts sequences into episodes: True at (t, b) is a boundary between steps t-1 and t of sequence
b, and each episode is computed as if it were alone. No state crosses a boundary, in either direction: the episode
beyond it begins with ``h_reset`` and ``c_reset``, (H) or (B, H), or with zeros if these are missing. ``state`` is the
initial state of the first episode in reading order. A boundary at t = 0 separates it from that episode in a forward
run, and has no effect in a reverse run; nor has one at or past the end of a sequence. The final state is that of the
episode read last.

Two options regularise any cell. ``keep_h`` and, in the LSTMs, ``keep_c`` (T, B, H) are zoneout (Krueger et al. 2016,
arXiv:1606.01305): the fraction k, from 0 to 1, of its old state that each unit keeps in each step. A step ends with
k⊙h₋ + (1−k)⊙h and k⊙c₋ + (1−k)⊙c in place of h and c, where h is computed from c before its zoneout. k is 0 or 1 if the
masks are drawn at random, and the probability itself for the expectation. ``gradient_clip`` limits the magnitude of the
gradients of the pre-activations, that is of every product of a weight with x or a state in every step (Graves 2013,
arXiv:1308.0850, section 2.1), before they go on to states, inputs and weights; None is no limit. Clipped gradients
cannot be differentiated again.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Unpack  # a dependency of torch; the standard library has it from Python 3.11 on

__all__ = ["Options", "PairOptions", "gru", "lstm", "multiplicative_gru", "multiplicative_lstm", "rnn"]

Linear = Callable[..., Tensor]
Pair = tuple[Tensor, Tensor]
PairResult = tuple[Any, ...]  # of the LSTMs: output, (h_n, c_n) and, with return_cells, cell states
Choice = TypeVar("Choice")


class Options(TypedDict, total=False):
    """Keyword arguments of every function.

    Attributes:
        reverse: run from the last step to the first; False.
        lengths: (B) int64, the steps of each sequence, 0 to T; None is T for all.
        keep_h: (T, B, H), zoneout: the fraction of its old h that each unit keeps in each step; None.
        gradient_clip: the largest magnitude of the gradients of the pre-activations; None is no limit.
        resets: (T, B) bool, True where an episode begins; None for a single episode.
        h_reset: (H) or (B, H), the initial state of all episodes but the first, which begins with ``state``; None is
            zeros.
    """

    reverse: bool
    lengths: Tensor | None
    keep_h: Tensor | None
    gradient_clip: float | None
    resets: Tensor | None
    h_reset: Tensor | None


class PairOptions(Options, total=False):
    """Keyword arguments of the functions whose cells have a cell state.

    Attributes:
        return_cells: return the cell states of all steps (T, B, H) as a third result; False.
        keep_c: (T, B, H), as ``keep_h`` for c; None.
        c_reset: (H) or (B, H), as ``h_reset`` for c; None.
    """

    return_cells: bool
    keep_c: Tensor | None
    c_reset: Tensor | None


def rnn(
    input: Tensor,
    state: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    **options: Unpack[Options],
) -> Pair:
    """Elman network (Elman 1990): h = tanh(W x + b + U h₋), or relu in place of tanh.

    Returns (output (T, B, H), h_n (B, H)). Shapes are given at the head of this module.
    """
    activation = _named("nonlinearity", nonlinearity, {"tanh": torch.tanh, "relu": torch.relu})

    def step(linear: Linear, x: Tensor, h: Tensor) -> Tensor:
        return activation(linear(x, weight_ih, bias_ih) + linear(h, weight_hh, bias_hh))

    return _scan(step, input, _or_zeros(state, input, weight_hh), **options)


def lstm(
    input: Tensor,
    state: Pair | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    **options: Unpack[PairOptions],
) -> PairResult:
    """Long short-term memory (Hochreiter & Schmidhuber 1997, with Gers et al.'s forget gate), as torch.nn.LSTM.

    i, f, o = σ(W x + U h₋ + b); g = tanh(W x + U h₋ + b); c = f⊙c₋ + i⊙g; h = o⊙tanh(c).
    Returns (output (T, B, H), (h_n, c_n)) and, with ``return_cells``, the cell states (T, B, H).
    """

    def step(linear: Linear, x: Tensor, state: Pair) -> Pair:
        return _lstm_step(linear, x, state, weight_ih, weight_hh, bias_ih, bias_hh)

    return _scan_pair(step, input, _or_zero_pair(state, input, weight_hh), **options)


def gru(
    input: Tensor,
    state: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    reset_after: bool = True,
    **options: Unpack[Options],
) -> Pair:
    """Gated recurrent unit, with the reset gate applied after or before the recurrent product.

    ``reset_after=True`` is torch.nn.GRU and cuDNN: r, z = σ(W x + b + U h₋ + b');
    n = tanh(W_n x + b_n + r⊙(U_n h₋ + b'_n)); h = (1−z)⊙n + z⊙h₋.
    ``reset_after=False`` is Chung et al. 2014 (arXiv:1412.3555), which has one bias:
    r, z = σ(W x + U h₋ + b); n = tanh(W_n x + U_n (r⊙h₋) + b_n); h = (1−z)⊙h₋ + z⊙n.
    z weighs the other term there. Returns (output (T, B, H), h_n (B, H)).
    """
    if bias_hh is not None and not reset_after:
        raise ValueError("bias_hh goes with reset_after=True, and reset_after=False has one bias, bias_ih")

    def step(linear: Linear, x: Tensor, h: Tensor) -> Tensor:
        if not reset_after:
            return _gru_step(linear, x, h, weight_ih, weight_hh, bias_ih)
        r_x, z_x, n_x = linear(x, weight_ih, bias_ih).chunk(3, -1)
        r_h, z_h, n_h = linear(h, weight_hh, bias_hh).chunk(3, -1)
        r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
        n = torch.tanh(n_x + r * n_h)
        return (1 - z) * n + z * h

    return _scan(step, input, _or_zeros(state, input, weight_hh), **options)


def multiplicative_lstm(
    input: Tensor,
    state: Pair | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    weight_mih: Tensor,
    weight_mhh: Tensor,
    bias_ih: Tensor | None = None,
    bias_m: Tensor | None = None,
    *,
    variant: str = "input",
    **options: Unpack[PairOptions],
) -> PairResult:
    """LSTM whose input or hidden state is modulated in every step. It is not xLSTM's matrix memory.

    ``variant="input"`` scales x by a state-dependent m: m = W_m x + U_m h₋ + b_m; x̂ = m⊙x; LSTM step on x̂.
    ``variant="hidden"`` is Krause et al.'s mLSTM (arXiv:1609.07959): m = (W_m x)⊙(U_m h₋), with no bias; LSTM step with
    m in place of h₋. That step is ``lstm``'s, h = o⊙tanh(c); some authors write tanh(o⊙c), which gives other values.
    Returns (output (T, B, H), (h_n, c_n)) and, with ``return_cells``, the cell states (T, B, H).
    """
    if bias_m is not None and variant == "hidden":
        raise ValueError("bias_m goes with variant='input', and variant='hidden' has no bias there")

    def modulate_input(linear: Linear, x: Tensor, state: Pair) -> Pair:
        x = _modulate(linear, x, state[0], weight_mih, weight_mhh, bias_m)
        return _lstm_step(linear, x, state, weight_ih, weight_hh, bias_ih, None)

    def modulate_hidden(linear: Linear, x: Tensor, state: Pair) -> Pair:
        m = linear(x, weight_mih) * linear(state[0], weight_mhh)
        return _lstm_step(linear, x, (m, state[1]), weight_ih, weight_hh, bias_ih, None)

    step = _named("variant", variant, {"input": modulate_input, "hidden": modulate_hidden})
    return _scan_pair(step, input, _or_zero_pair(state, input, weight_hh), **options)


def multiplicative_gru(
    input: Tensor,
    state: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    weight_mih: Tensor,
    weight_mhh: Tensor,
    bias_ih: Tensor | None = None,
    bias_m: Tensor | None = None,
    **options: Unpack[Options],
) -> Pair:
    """Reset-before GRU on x̂ = m⊙x with m = W_m x + U_m h₋ + b_m.

    Returns (output (T, B, H), h_n (B, H)). Shapes are given at the head of this module.
    """

    def step(linear: Linear, x: Tensor, h: Tensor) -> Tensor:
        x = _modulate(linear, x, h, weight_mih, weight_mhh, bias_m)
        return _gru_step(linear, x, h, weight_ih, weight_hh, bias_ih)

    return _scan(step, input, _or_zeros(state, input, weight_hh), **options)


class _ClipGradient(torch.autograd.Function):
    """The identity with a clipped gradient; a Function rather than a hook, so that forward-mode AD supports it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, limit: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.limit = inputs[1]

    @staticmethod
    def backward(ctx, d: Tensor) -> tuple[Tensor, None]:
        return _Clip.apply(d, ctx.limit), None

    @staticmethod
    def jvp(ctx, tangent: Tensor, _) -> Tensor:
        return tangent.view_as(tangent)


class _Clip(torch.autograd.Function):
    """A clipped gradient. It refuses its own derivative, which the forward pass would clip once more."""

    generate_vmap_rule = True

    @staticmethod
    def forward(d: Tensor, limit: float) -> Tensor:
        return d if limit > torch.finfo(d.dtype).max else d.clamp(-limit, limit)  # which refuses such a limit

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx, d: Tensor) -> None:
        raise RuntimeError("clipped gradients have no derivatives: double backward goes with gradient_clip=None")


def _linear(gradient_clip: float | None) -> Linear:
    """Return torch's linear, with the gradient of its result clipped."""
    if gradient_clip is None:
        return F.linear
    return lambda *operands: _ClipGradient.apply(F.linear(*operands), gradient_clip)


def _lstm_step(
    linear: Linear,
    x: Tensor,
    state: Pair,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
) -> Pair:
    h, c = state
    i, f, g, o = (linear(x, weight_ih, bias_ih) + linear(h, weight_hh, bias_hh)).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru_step(
    linear: Linear, x: Tensor, h: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor | None
) -> Tensor:
    r_x, z_x, n_x = linear(x, weight_ih, bias_ih).chunk(3, -1)
    u_r, u_z, u_n = weight_hh.chunk(3, 0)
    r, z = torch.sigmoid(r_x + linear(h, u_r)), torch.sigmoid(z_x + linear(h, u_z))
    n = torch.tanh(n_x + linear(r * h, u_n))
    return (1 - z) * h + z * n


def _modulate(
    linear: Linear, x: Tensor, h: Tensor, weight_mih: Tensor, weight_mhh: Tensor, bias_m: Tensor | None
) -> Tensor:
    return (linear(x, weight_mih, bias_m) + linear(h, weight_mhh)) * x


def _scan(
    step: Callable[[Linear, Tensor, Tensor], Tensor],
    input: Tensor,
    h: Tensor,
    *,
    reverse: bool = False,
    lengths: Tensor | None = None,
    keep_h: Tensor | None = None,
    gradient_clip: float | None = None,
    resets: Tensor | None = None,
    h_reset: Tensor | None = None,
) -> Pair:
    """Scan over the steps of a cell whose state is h alone."""
    linear = _linear(gradient_clip)
    begin = _Beginnings(resets, (h_reset,), reverse, lengths)

    def one_step(x: Tensor, state: tuple[Tensor]) -> tuple[Tensor]:
        return (step(linear, x, *state),)

    states, (h,) = _scan_all(one_step, input, (h,), (keep_h,), reverse, lengths, begin)
    return torch.stack([h for (h,) in states]), h


def _scan_pair(
    step: Callable[[Linear, Tensor, Pair], Pair],
    input: Tensor,
    state: Pair,
    *,
    reverse: bool = False,
    lengths: Tensor | None = None,
    return_cells: bool = False,
    keep_h: Tensor | None = None,
    keep_c: Tensor | None = None,
    gradient_clip: float | None = None,
    resets: Tensor | None = None,
    h_reset: Tensor | None = None,
    c_reset: Tensor | None = None,
) -> PairResult:
    """Scan over the steps of a cell whose state is (h, c)."""
    linear, keep = _linear(gradient_clip), (keep_h, keep_c)
    begin = _Beginnings(resets, (h_reset, c_reset), reverse, lengths)

    def one_step(x: Tensor, state: Pair) -> Pair:
        return step(linear, x, state)

    states, (h_n, c_n) = _scan_all(one_step, input, state, keep, reverse, lengths, begin)
    output = torch.stack([h for h, _ in states])
    return (output, (h_n, c_n), torch.stack([c for _, c in states])) if return_cells else (output, (h_n, c_n))


class _Beginnings(NamedTuple):
    """The boundaries between episodes, and the initial states of all episodes but the first."""

    resets: Tensor | None
    states: tuple[Tensor | None, ...]
    reverse: bool
    lengths: Tensor | None

    def at(self, t: int, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the state before step t: ``state``, which the previous step left, or that of a new episode."""
        boundary = t + 1 if self.reverse else t
        if self.resets is None or boundary == self.resets.shape[0]:
            return state
        begins = self.resets[boundary] if self.lengths is None else self.resets[boundary] & (boundary < self.lengths)
        parts = zip(state, self.states)
        return tuple(torch.where(begins.unsqueeze(1), 0 if new is None else new, old) for old, new in parts)


def _scan_all(
    step: Callable,
    input: Tensor,
    state: tuple[Tensor, ...],
    keep: tuple[Tensor | None, ...],
    reverse: bool,
    lengths: Tensor | None,
    beginnings: "_Beginnings",
) -> tuple[list[tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """Return the states after all steps, in input order and zero past the end of a sequence; and the final state."""
    states = []
    times = range(len(input))
    for t in reversed(times) if reverse else times:
        active = None if lengths is None else (t < lengths).unsqueeze(1)
        # inputs past the end must have no effect, not even as NaN times zero in a gradient
        x = input[t] if active is None else torch.where(active, input[t], 0)
        state = beginnings.at(t, state)
        parts = zip(step(x, state), state, keep)
        after = tuple(new if k is None else k[t] * old + (1 - k[t]) * new for new, old, k in parts)
        if active is not None:
            after = tuple(torch.where(active, new, old) for new, old in zip(after, state))
        state = after
        states.append(state if active is None else tuple(torch.where(active, part, 0) for part in state))
    return states[::-1] if reverse else states, state


def _named(option: str, name: str, choices: dict[str, Choice]) -> Choice:
    if name not in choices:
        raise ValueError(f"unknown {option} {name!r}: expected {' or '.join(map(repr, choices))}")
    return choices[name]


def _or_zeros(state: Tensor | None, input: Tensor, weight_hh: Tensor) -> Tensor:
    return input.new_zeros(input.shape[1], weight_hh.shape[1]) if state is None else state


def _or_zero_pair(state: Pair | None, input: Tensor, weight_hh: Tensor) -> Pair:
    zeros = _or_zeros(None, input, weight_hh)
    return (zeros, zeros) if state is None else state
