"""The list of cells, as Python needs to know them; their mathematics is in csrc/cells and in the reference."""

from collections.abc import Callable
from dataclasses import dataclass, field

from . import reference

WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_mih", "weight_mhh", "bias_m")


@dataclass(frozen=True)
class Cell:
    """The sizes and the parts of a cell."""

    reference: Callable
    gates: int  # rows of weight_ih and weight_hh, in units of H
    saved: int  # values per unit and step that backward reads beside h and c
    gradients: int  # of pre-activations per unit and step: one per gate, plus one if n has two parts
    has_cell_state: bool = False
    reset_before: bool = False  # whether U_n multiplies r⊙h₋ instead of h₋
    modulates: str | None = None  # by the multiplicative modifier: "input" (x̂ for x) or "hidden" (x̂ for h₋)
    recurrent_bias: bool = False  # whether bias_hh exists, as in torch.nn's cells
    options: dict = field(default_factory=dict)  # passed on to the reference
    weights: tuple[str, ...] = field(init=False)  # the parameters that it takes, in registration order
    required_weights: tuple[str, ...] = field(init=False)  # all except biases

    @property
    def multiplicative(self) -> bool:
        return self.modulates is not None

    def __post_init__(self) -> None:
        absent = set() if self.recurrent_bias else {"bias_hh"}
        if not self.multiplicative:
            absent |= {"weight_mih", "weight_mhh"}
        if self.modulates != "input":
            absent.add("bias_m")
        names = tuple(name for name in WEIGHTS if name not in absent)
        object.__setattr__(self, "weights", names)  # computed once, because single steps must be fast
        object.__setattr__(self, "required_weights", tuple(name for name in names if name.startswith("weight")))

    def modulated_size(self, input_size: int, hidden_size: int) -> int:
        """Return the number of values of m per step and sequence."""
        return {None: 0, "input": input_size, "hidden": hidden_size}[self.modulates]

    def weight_shapes(self, input_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
        """Return shapes by name, also of weights that this cell does not take."""
        rows, modulated = self.gates * hidden_size, self.modulated_size(input_size, hidden_size)
        return {
            "weight_ih": (rows, input_size),
            "weight_hh": (rows, hidden_size),
            "bias_ih": (rows,),
            "bias_hh": (rows,),
            "weight_mih": (modulated, input_size),
            "weight_mhh": (modulated, hidden_size),
            "bias_m": (modulated,),
        }

    def weight_shape(self, name: str, input_size: int, hidden_size: int) -> tuple[int, ...]:
        return self.weight_shapes(input_size, hidden_size)[name]


CELLS = {
    "rnn_tanh": Cell(
        reference.rnn, gates=1, saved=1, gradients=1, recurrent_bias=True, options={"nonlinearity": "tanh"}
    ),
    "rnn_relu": Cell(
        reference.rnn, gates=1, saved=1, gradients=1, recurrent_bias=True, options={"nonlinearity": "relu"}
    ),
    "lstm": Cell(reference.lstm, gates=4, saved=4, gradients=4, recurrent_bias=True, has_cell_state=True),
    "gru": Cell(reference.gru, gates=3, saved=3, gradients=3, reset_before=True, options={"reset_after": False}),
    "gru_reset_after": Cell(
        reference.gru, gates=3, saved=4, gradients=4, recurrent_bias=True, options={"reset_after": True}
    ),
    "multiplicative_lstm": Cell(
        reference.multiplicative_lstm, gates=4, saved=4, gradients=4, has_cell_state=True, modulates="input"
    ),
    "multiplicative_lstm_hidden": Cell(
        reference.multiplicative_lstm,
        gates=4,
        saved=4,
        gradients=4,
        has_cell_state=True,
        modulates="hidden",
        options={"variant": "hidden"},
    ),
    "multiplicative_gru": Cell(
        reference.multiplicative_gru, gates=3, saved=3, gradients=3, reset_before=True, modulates="input"
    ),
}


def cell_of_variant(variant: str) -> str:
    """Return the key of ``CELLS`` of a variant of the multiplicative LSTM; raise ValueError if the name is unknown."""
    if variant not in ("input", "hidden"):
        raise ValueError(f"unknown variant {variant!r}: expected 'input' or 'hidden'")
    return "multiplicative_lstm" if variant == "input" else "multiplicative_lstm_hidden"
