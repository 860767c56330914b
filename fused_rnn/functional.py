"""Whole sequences with the weights as plain tensor arguments, through the fused kernels.

The functions mirror ``fused_rnn.reference`` argument for argument. The keyword arguments ``Options`` are the
reference's, plus ``backend`` and ``recompute``. Weights are ordinary tensors, so DropConnect, weight tying or spectral
norm need no special support: compute the weight and pass it in.

Shapes: ``input`` (T, B, I); ``state`` h_0 (B, H), or (h_0, c_0) for the LSTMs, None for zeros; ``weight_ih``
(G*H, I), ``weight_hh`` (G*H, H), biases (G*H) with G = 1 for the RNN, 4 (i, f, g, o) for LSTMs, 3 (r, z, n)
for GRUs; ``weight_mih`` (I, I), ``weight_mhh`` (I, H), ``bias_m`` (I), or (H, I), (H, H) and None for the variant that
modulates h₋. The functions return the outputs (T, B, H) and the final state. ``reverse=True`` runs from the last step
to the first and leaves the outputs in input order.

``lengths`` (B), int64, on the input's device, gives each sequence its own number of steps, 0 to T: outputs past the end
are zero, the final state is that of the last real step, and a reverse run starts there. With ``return_cells=True`` the
LSTMs return a third result, the cell states of all steps (T, B, H), which are zero past the end, too.

``keep_h`` and, in the LSTMs, ``keep_c`` (T, B, H) are the masks of zoneout: the fraction of its old state that each
unit keeps in each step. ``gradient_clip`` limits the magnitude of the gradients of all pre-activations. ``reference``
gives the formulas of both. Masks may have any dtype and receive no gradient.

``resets`` (T, B), bool, cuts sequences into episodes, as in ``fused_rnn.reference``: outputs, cell states and gradients
are those of running every episode by itself. The first episode in reading order begins with ``state``, the others with
``h_reset`` and ``c_reset``, (H) or (B, H), or with zeros.

``recompute=True`` saves only states for the backward pass, which rebuilds the gates: it trades time for memory, and the
gradients are the same up to rounding. ``fused_rnn.recurrent.Recurrent`` quantifies both.

All tensors share one device and one dtype (float32, float64, bfloat16, or on GPUs float16). Under torch.autocast they
are cast to its dtype, except float64. A wrong rank, a superfluous bias, or an unknown nonlinearity, variant or backend
raises ValueError; an unknown keyword, or a state of the wrong form, raises TypeError; sizes, dtypes or devices that do
not fit, and on the CPU lengths out of range, raise RuntimeError. On a GPU the values of lengths are not checked, but
clamped to the valid range.
"""

from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from . import ops
from .cells import cell_of_variant
from .operands import Options

__all__ = ["Options", "gru", "lstm", "multiplicative_gru", "multiplicative_lstm", "rnn"]

Pair = tuple[Tensor, Tensor]
PairResult = tuple[Any, ...]  # of the LSTMs: output, (h_n, c_n) and, with return_cells, cell states


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
    """Run an Elman network, see ``fused_rnn.reference.rnn``. Returns (output (T, B, H), h_n (B, H))."""
    weights = {"weight_ih": weight_ih, "weight_hh": weight_hh, "bias_ih": bias_ih, "bias_hh": bias_hh}
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"unknown nonlinearity {nonlinearity!r}: expected 'tanh' or 'relu'")
    return ops.run(f"rnn_{nonlinearity}", input, state, weights, **options)


def lstm(
    input: Tensor,
    state: Pair | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    **options: Unpack[Options],
) -> PairResult:
    """Run a long short-term memory, see ``fused_rnn.reference.lstm``.

    Returns (output (T, B, H), (h_n, c_n)) and, with ``return_cells``, the cell states (T, B, H).
    """
    weights = {"weight_ih": weight_ih, "weight_hh": weight_hh, "bias_ih": bias_ih, "bias_hh": bias_hh}
    return ops.run("lstm", input, state, weights, **options)


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
    """Run a gated recurrent unit, see ``fused_rnn.reference.gru``. Returns (output (T, B, H), h_n (B, H)).

    ``reset_after=True`` is torch.nn.GRU; ``reset_after=False`` is Chung et al. 2014 and takes no ``bias_hh``.
    """
    weights = {"weight_ih": weight_ih, "weight_hh": weight_hh, "bias_ih": bias_ih, "bias_hh": bias_hh}
    return ops.run("gru_reset_after" if reset_after else "gru", input, state, weights, **options)


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
    **options: Unpack[Options],
) -> PairResult:
    """Run an LSTM on m⊙x, or with (W_m x)⊙(U_m h₋) in place of h₋, see ``fused_rnn.reference.multiplicative_lstm``.

    ``variant="input"`` scales the input; ``variant="hidden"`` is Krause et al.'s mLSTM and takes no ``bias_m``. Neither
    is xLSTM's mLSTM. Returns (output (T, B, H), (h_n, c_n)) and, with ``return_cells``, the cell states (T, B, H).
    """
    weights = {
        **{"weight_ih": weight_ih, "weight_hh": weight_hh, "bias_ih": bias_ih},
        **{"weight_mih": weight_mih, "weight_mhh": weight_mhh, "bias_m": bias_m},
    }
    return ops.run(cell_of_variant(variant), input, state, weights, **options)


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
    """Run a reset-before GRU on m⊙x, see ``fused_rnn.reference.multiplicative_gru``.

    Returns (output (T, B, H), h_n (B, H)).
    """
    weights = {
        **{"weight_ih": weight_ih, "weight_hh": weight_hh, "bias_ih": bias_ih},
        **{"weight_mih": weight_mih, "weight_mhh": weight_mhh, "bias_m": bias_m},
    }
    return ops.run("multiplicative_gru", input, state, weights, **options)
