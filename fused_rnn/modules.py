"""Drop-ins for torch.nn's recurrent modules, and the cells that torch.nn lacks.

``RNN``, ``LSTM`` and ``GRU`` take torch.nn's constructor and call, name and initialise their parameters as it
does, and load its ``state_dict`` unchanged. ``GRU(reset_after=False)``, ``MultiplicativeLSTM`` and
``MultiplicativeGRU`` work alike, with the parameters that their equations have. ``recurrent.Recurrent`` describes the
call and the options that all modules share; this file adds the cell of each, and its own options.
"""

import torch
from torch import nn
from typing_extensions import Unpack

from .arguments import ModuleOptions, naming_options_of
from .cells import cell_of_variant
from .recurrent import Recurrent

__all__ = ["GRU", "LSTM", "RNN", "MultiplicativeGRU", "MultiplicativeLSTM"]


class RNN(Recurrent):
    """Elman network, a drop-in for torch.nn.RNN: h = tanh(W x + b + U h₋), or relu in place of tanh.

    ``Recurrent`` describes the other arguments and the call.
    """

    _of_torch = nn.RNN

    @naming_options_of(Recurrent.__init__)
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[ModuleOptions],
    ) -> None:
        _refuse_projection(self, options)
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        self.nonlinearity = nonlinearity
        sizes = input_size, hidden_size, num_layers
        super().__init__(*sizes, bias, batch_first, dropout, bidirectional, device=device, dtype=dtype, **options)

    @property
    def cell(self) -> str:
        """The cell's name, such as "lstm" or "gru_reset_after"."""
        return f"rnn_{self.nonlinearity}"


class LSTM(Recurrent):
    """Long short-term memory, a drop-in for torch.nn.LSTM.

    i, f, o = σ(W x + U h₋ + b); g = tanh(W x + U h₋ + b); c = f⊙c₋ + i⊙g; h = o⊙tanh(c).

    With ``proj_size`` = P > 0 (Sak et al. 2014), h = R (o⊙tanh(c)) with R = ``weight_hr_l{k}`` (P, H): outputs and h_0
    have P features, ``weight_hh_l{k}`` is (4H, P), and the layers above read P * directions features. The kernels run
    this as an LSTM with the recurrent weights U R, see ``fused_rnn/projection.py``. The result is exact, but the loop
    takes 4H·H multiplications per step and sequence, where torch.nn's two products take 4H·P and P·H.

    ``Recurrent`` describes the arguments and the call.
    """

    cell = "lstm"
    _of_torch = nn.LSTM


class GRU(Recurrent):
    """Gated recurrent unit, a drop-in for torch.nn.GRU.

    ``reset_after=True`` (default) is torch.nn.GRU: n = tanh(W_n x + b_n + r⊙(U_n h₋ + b'_n)); h = (1−z)⊙n + z⊙h₋.
    ``reset_after=False`` is Chung et al. 2014: n = tanh(W_n x + U_n (r⊙h₋) + b_n); h = (1−z)⊙h₋ + z⊙n, with one
    bias, ``bias_ih``.

    ``Recurrent`` describes the other arguments and the call.
    """

    _defaults = Recurrent._defaults | {"reset_after": True}
    _of_torch = nn.GRU

    @naming_options_of(Recurrent.__init__)
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
        **options: Unpack[ModuleOptions],
    ) -> None:
        _refuse_projection(self, options)
        self.reset_after = reset_after
        sizes = input_size, hidden_size, num_layers
        super().__init__(*sizes, bias, batch_first, dropout, bidirectional, device=device, dtype=dtype, **options)

    @property
    def cell(self) -> str:
        """The cell's name, such as "lstm" or "gru_reset_after"."""
        return "gru_reset_after" if self.reset_after else "gru"


class MultiplicativeLSTM(Recurrent):
    """LSTM whose input or hidden state is modulated in every step; it has one bias of the gates, ``bias_ih``.

    ``variant="input"`` (default) is the LSTM's step on x̂ = m⊙x, with m = W_m x + U_m h₋ + b_m. It adds to the LSTM's
    parameters ``weight_mih`` (I, I), ``weight_mhh`` (I, H) and ``bias_m`` (I).
    ``variant="hidden"`` is Krause et al. 2016 (arXiv:1609.07959): the LSTM's step with (W_m x)⊙(U_m h₋) in place of h₋.
    It adds to the LSTM's parameters ``weight_mih`` (H, I) and ``weight_mhh`` (H, H).
    Neither is xLSTM's matrix memory, which is also called mLSTM.

    ``Recurrent`` describes the other arguments and the call.
    """

    _defaults = Recurrent._defaults | {"variant": "input"}

    @naming_options_of(Recurrent.__init__)
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        variant: str = "input",
        **options: Unpack[ModuleOptions],
    ) -> None:
        cell_of_variant(variant)  # raises for an unknown one
        self.variant = variant
        sizes = input_size, hidden_size, num_layers
        super().__init__(*sizes, bias, batch_first, dropout, bidirectional, device=device, dtype=dtype, **options)

    @property
    def cell(self) -> str:
        """The cell's name, such as "lstm" or "gru_reset_after"."""
        return cell_of_variant(self.variant)


class MultiplicativeGRU(Recurrent):
    """Reset-before GRU on x̂ = m⊙x with m = W_m x + U_m h₋ + b_m; parameters as in ``MultiplicativeLSTM``.

    ``Recurrent`` describes the arguments and the call.
    """

    cell = "multiplicative_gru"


def _refuse_projection(module: Recurrent, options: ModuleOptions) -> None:
    """Raise ValueError for ``proj_size``, even 0, as torch.nn.RNN and GRU do."""
    if "proj_size" in options:
        raise ValueError(f"proj_size argument is only supported for LSTM, not {type(module).__name__}")
