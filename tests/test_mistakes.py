"""Mistakes in using the modules: torch.nn raises for them, and ours raise the same type.

Where torch.nn makes no check and fails by accident, as with AttributeError for a state that is no tensor, ours raise
a fitting type; the tests of those mistakes say so.
"""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import fused_rnn

from .test_cell_modules import CELLS
from .test_modules import MODULES, PAIRS, B, H, I, T, is_lstm

P = 3


def state_for(module: nn.Module, *shape: int, **how):
    return (torch.zeros(shape, **how), torch.zeros(shape, **how)) if is_lstm(module) else torch.zeros(shape, **how)


def packed(features: int = I, sort: bool = False, **how) -> PackedSequence:
    lengths = torch.tensor([T, 5, 2] if sort else [2, T, 5])
    return pack_padded_sequence(torch.zeros(T, B, features, **how), lengths, enforce_sorted=sort)


def assert_same_type(theirs: Callable, ours: Callable) -> None:
    with pytest.raises(Exception) as expected:
        theirs()
    with pytest.raises(expected.type) as raised:
        ours()
    assert raised.type is expected.type
    assert str(raised.value)


CONSTRUCTOR_MISTAKES = {
    "nothing": lambda cls: cls(),
    "hidden-size-missing": lambda cls: cls(I),
    "unknown-option": lambda cls: cls(I, H, depth=1),
    "input-size-zero": lambda cls: cls(0, H),
    "input-size-negative": lambda cls: cls(-1, H),
    "input-size-string": lambda cls: cls("5", H),
    "hidden-size-zero": lambda cls: cls(I, 0),
    "hidden-size-negative": lambda cls: cls(I, -2),
    "hidden-size-float": lambda cls: cls(I, 2.5),
    "hidden-size-none": lambda cls: cls(I, None),
    "layers-zero": lambda cls: cls(I, H, 0),
    "layers-negative": lambda cls: cls(I, H, -1),
    "layers-float": lambda cls: cls(I, H, 1.5),
    "layers-string": lambda cls: cls(I, H, "2"),
    "dropout-above-one": lambda cls: cls(I, H, 2, dropout=1.5),
    "dropout-negative": lambda cls: cls(I, H, 2, dropout=-0.1),
    "dropout-nan": lambda cls: cls(I, H, 2, dropout=float("nan")),
    "dropout-bool": lambda cls: cls(I, H, 2, dropout=True),
    "dropout-none": lambda cls: cls(I, H, 2, dropout=None),
    "dropout-string": lambda cls: cls(I, H, 2, dropout="half"),
    "dropout-number-in-string": lambda cls: cls(I, H, 2, dropout="0.5"),
    "dropout-complex": lambda cls: cls(I, H, 2, dropout=1j),
    "dropout-tensor": lambda cls: cls(I, H, 2, dropout=torch.tensor(0.5)),
    "bias-int": lambda cls: cls(I, H, bias=3),
    "bias-none": lambda cls: cls(I, H, bias=None),
    "batch-first-int": lambda cls: cls(I, H, batch_first=1),
    "projection-negative": lambda cls: cls(I, H, proj_size=-1),
    "projection-as-large-as-state": lambda cls: cls(I, H, proj_size=H),
    "projection-float": lambda cls: cls(I, H, proj_size=2.5),
    "projection-string": lambda cls: cls(I, H, proj_size="2"),
    "dtype-integer": lambda cls: cls(I, H, dtype=torch.int64),
    "dtype-string": lambda cls: cls(I, H, dtype="float32"),
    "device-unknown": lambda cls: cls(I, H, device="gpu"),
}
CALL_MISTAKES = {
    "no-input": lambda m: m(),
    "list": lambda m: m([[1.0]]),
    "rank-four": lambda m: m(torch.zeros(1, T, B, I)),
    "rank-one": lambda m: m(torch.zeros(I)),
    "features": lambda m: m(torch.zeros(T, B, I + 1)),
    "no-steps": lambda m: m(torch.zeros(0, B, I)),
    "dtype": lambda m: m(torch.zeros(T, B, I, dtype=torch.float64)),
    "dtype-integer": lambda m: m(torch.zeros(T, B, I, dtype=torch.int64)),
    "device": lambda m: m(torch.zeros(T, B, I, device="meta")),
    "state-batch": lambda m: m(torch.zeros(T, B, I), state_for(m, 1, B + 1, H)),
    "state-hidden": lambda m: m(torch.zeros(T, B, I), state_for(m, 1, B, H + 1)),
    "state-layers": lambda m: m(torch.zeros(T, B, I), state_for(m, 2, B, H)),
    "state-unbatched": lambda m: m(torch.zeros(T, B, I), state_for(m, 1, H)),
    "state-rank-four": lambda m: m(torch.zeros(T, B, I), state_for(m, 1, 1, B, H)),
    "state-dtype": lambda m: m(torch.zeros(T, B, I), state_for(m, 1, B, H, dtype=torch.float64)),
    "state-device": lambda m: m(torch.zeros(T, B, I), state_for(m, 1, B, H, device="meta")),
    "state-for-unbatched-input": lambda m: m(torch.zeros(T, I), state_for(m, 1, B, H)),
    "state-layers-for-unbatched-input": lambda m: m(torch.zeros(T, I), state_for(m, 2, H)),
}
PACKED_MISTAKES = {
    "features": lambda m: m(packed(I + 1)),
    "features-sorted": lambda m: m(packed(I + 1, sort=True)),
    "dtype": lambda m: m(packed(dtype=torch.float64)),
    "device": lambda m: m(packed(device="meta")),
    "rank-two": lambda m: m(pack_sequence([torch.zeros(T, 2, I)])),
    "rank-none": lambda m: m(pack_sequence([torch.zeros(T)])),
    "state-batch": lambda m: m(packed(), state_for(m, 1, B - 1, H)),
    "state-batch-sorted": lambda m: m(packed(sort=True), state_for(m, 1, B + 1, H)),
    "state-hidden": lambda m: m(packed(), state_for(m, 1, B, H + 1)),
    "state-layers": lambda m: m(packed(), state_for(m, 2, B, H)),
    "state-unbatched": lambda m: m(packed(), state_for(m, B, H)),
    "state-dtype": lambda m: m(packed(), state_for(m, 1, B, H, dtype=torch.float64)),
    "state-device": lambda m: m(packed(), state_for(m, 1, B, H, device="meta")),
}
CELL_CONSTRUCTOR_MISTAKES = {
    "nothing": lambda cls: cls(),
    "unknown-option": lambda cls: cls(I, H, num_layers=1),
    "input-size-negative": lambda cls: cls(-1, H),
    "input-size-float": lambda cls: cls(2.5, H),
    "input-size-string": lambda cls: cls("5", H),
    "hidden-size-negative": lambda cls: cls(I, -1),
    "hidden-size-float": lambda cls: cls(I, 2.5),
    "hidden-size-string": lambda cls: cls(I, "7"),
    "dtype-integer": lambda cls: cls(I, H, dtype=torch.int64),
}
CELL_CALL_MISTAKES = {
    "list": lambda m: m([1.0]),
    "packed": lambda m: m(packed()),
    "rank-three": lambda m: m(torch.zeros(1, B, I)),
    "rank-zero": lambda m: m(torch.tensor(1.0)),
    "features": lambda m: m(torch.zeros(B, I + 1)),
    "features-unbatched": lambda m: m(torch.zeros(I + 1)),
    "dtype": lambda m: m(torch.zeros(B, I).double()),
    "dtype-integer": lambda m: m(torch.zeros(B, I).long()),
    "device": lambda m: m(torch.zeros(B, I, device="meta")),
    "state-batch": lambda m: m(torch.zeros(B, I), state_for(m, B + 1, H)),
    "state-hidden": lambda m: m(torch.zeros(B, I), state_for(m, B, H + 1)),
    "state-unbatched": lambda m: m(torch.zeros(B, I), state_for(m, H)),
    "state-rank-three": lambda m: m(torch.zeros(B, I), state_for(m, 1, B, H)),
    "state-for-unbatched-input": lambda m: m(torch.zeros(I), state_for(m, 1, H)),
    "state-dtype": lambda m: m(torch.zeros(B, I), state_for(m, B, H, dtype=torch.float64)),
    "state-device": lambda m: m(torch.zeros(B, I), state_for(m, B, H, device="meta")),
}
PLAIN = pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
CELL = pytest.mark.parametrize("name", ["RNNCell", "LSTMCell", "GRUCell"])


@pytest.mark.parametrize("mistake", CONSTRUCTOR_MISTAKES)
@PLAIN
def test_constructor_mistakes(name, mistake):
    ours, theirs, _ = PAIRS[name]
    make = CONSTRUCTOR_MISTAKES[mistake]
    assert_same_type(lambda: make(theirs), lambda: make(ours))


@pytest.mark.parametrize("mistake", CALL_MISTAKES)
@PLAIN
def test_call_mistakes(name, mistake):
    ours, theirs, _ = PAIRS[name]
    call = CALL_MISTAKES[mistake]
    assert_same_type(lambda: call(theirs(I, H)), lambda: call(ours(I, H)))


@pytest.mark.parametrize("mistake", PACKED_MISTAKES)
@PLAIN
def test_packed_mistakes(name, mistake):
    """torch.nn.LSTM does not check packed inputs; ours does, and raises what torch.nn.GRU raises."""
    ours, theirs = PAIRS[name][0], PAIRS["gru" if name == "lstm" else name][1]
    call = PACKED_MISTAKES[mistake]
    assert_same_type(lambda: call(theirs(I, H)), lambda: call(ours(I, H)))


@pytest.mark.parametrize("mistake", CELL_CONSTRUCTOR_MISTAKES)
@CELL
def test_cell_constructor_mistakes(name, mistake):
    make = CELL_CONSTRUCTOR_MISTAKES[mistake]
    assert_same_type(lambda: make(getattr(nn, name)), lambda: make(getattr(fused_rnn, name)))


@pytest.mark.parametrize("mistake", CELL_CALL_MISTAKES)
@CELL
def test_cell_call_mistakes(name, mistake):
    call = CELL_CALL_MISTAKES[mistake]
    assert_same_type(lambda: call(getattr(nn, name)(I, H)), lambda: call(getattr(fused_rnn, name)(I, H)))


@pytest.mark.parametrize("mistake", [m for m in CALL_MISTAKES if m not in ("no-input", "list")])
@pytest.mark.parametrize("name", ["gru", "multiplicative_lstm", "multiplicative_gru"])
def test_call_mistakes_of_the_new_cells(name, mistake):
    with pytest.raises((ValueError, RuntimeError)):
        CALL_MISTAKES[mistake](MODULES[name](I, H))


@pytest.mark.parametrize("mistake", [m for m in CELL_CALL_MISTAKES if m not in ("list", "packed")])
@pytest.mark.parametrize("name", ["gru", "multiplicative_lstm", "multiplicative_gru"])
def test_cell_call_mistakes_of_the_new_cells(name, mistake):
    with pytest.raises((ValueError, RuntimeError)):
        CELL_CALL_MISTAKES[mistake](CELLS[name](I, H))


@pytest.mark.parametrize("state", ["h_0-like-c_0", "c_0-like-h_0"])
def test_states_of_a_projection(state):
    size = {"h_0-like-c_0": H, "c_0-like-h_0": P}[state]
    wrong = torch.zeros(1, B, size), torch.zeros(1, B, size)
    theirs, ours = (cls(I, H, proj_size=P) for cls in (nn.LSTM, fused_rnn.LSTM))
    assert_same_type(lambda: theirs(torch.zeros(T, B, I), wrong), lambda: ours(torch.zeros(T, B, I), wrong))


@pytest.mark.parametrize(
    "cls", [fused_rnn.RNN, fused_rnn.GRU, fused_rnn.MultiplicativeLSTM, fused_rnn.MultiplicativeGRU]
)
def test_only_the_lstm_projects(cls):
    with pytest.raises(ValueError, match=f"proj_size argument is only supported for LSTM, not {cls.__name__}"):
        cls(I, H, proj_size=P)


@pytest.mark.parametrize("cls", [nn.RNN, nn.GRU, fused_rnn.RNN, fused_rnn.GRU])
def test_the_word_alone_is_refused(cls):
    with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM"):
        cls(I, H, proj_size=0)


FORMS = {
    "number": 0,
    "nones": (None, None),
    "wrong-kind": None,  # a pair for cells with one state, a tensor for cells with two
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", [*MODULES, *(f"{name}-cell" for name in CELLS)])
def test_form_of_the_state(name, form):
    """Ours raise TypeError; torch.nn fails by accident, with AttributeError, IndexError or TypeError."""
    if name.endswith("-cell"):
        module, x, h_0 = CELLS[name.removesuffix("-cell")](I, H), torch.zeros(B, I), torch.zeros(B, H)
    else:
        module, x, h_0 = MODULES[name](I, H), torch.zeros(T, B, I), torch.zeros(1, B, H)
    state = FORMS[form] if form != "wrong-kind" else h_0 if is_lstm(module) else (h_0, h_0)
    expected = r"a pair of tensors \(h_0, c_0\)" if is_lstm(module) else "one tensor h_0"
    with pytest.raises(TypeError, match=f"the initial state of this cell is {expected}, got"):
        module(x, state)


@pytest.mark.parametrize("cls", [nn.LSTM, nn.LSTMCell, fused_rnn.LSTM, fused_rnn.LSTMCell])
def test_number_of_states(cls):
    x, h_0 = torch.zeros(2, B, I), torch.zeros(1, B, H)
    x, h_0 = (x[0], h_0[0]) if "Cell" in cls.__name__ else (x, h_0)
    with pytest.raises(RuntimeError, match=r"two (hidden )?states"):
        cls(I, H)(x, (h_0,) * 3)


def test_packed_state_of_too_many_sequences():
    """torch.nn overlooks this mistake if the sequences are not sorted, and uses the first of the states."""
    with pytest.raises(RuntimeError, match=r"h_0: Expected hidden size \(1, 3, 7\) for batched \(3-D\) input"):
        fused_rnn.GRU(I, H)(packed(), torch.zeros(1, B + 1, H))


def test_other_mistakes():
    with pytest.raises(ValueError, match="unknown backend 'gpu': expected 'auto' or one of 'cpu'"):
        fused_rnn.LSTM(I, H, backend="gpu")
    with pytest.raises(ValueError, match="unknown backend 'gpu': expected 'auto' or one of 'cpu'"):
        fused_rnn.LSTMCell(I, H, backend="gpu")
    with pytest.raises(ValueError, match="sigmoid"):
        fused_rnn.RNN(I, H, nonlinearity="sigmoid")
    for cls in (nn.RNNCell, fused_rnn.RNNCell):
        with pytest.raises(RuntimeError, match="Unknown nonlinearity: sigmoid"):
            cls(I, H, nonlinearity="sigmoid")(torch.zeros(B, I))
    for sizes in ((0, H), (I, 0)):
        with pytest.raises(ValueError, match="_size must be greater than zero, got 0"):
            fused_rnn.GRUCell(*sizes)
    with pytest.raises(RuntimeError, match="'cuda' cannot run this call"):
        fused_rnn.LSTM(I, H, backend="cuda")(torch.zeros(T, B, I))
    with pytest.raises(RuntimeError, match="c_0 is torch.float64 but input is torch.float32"):
        fused_rnn.LSTM(I, H)(torch.zeros(T, B, I), (torch.zeros(1, B, H), torch.zeros(1, B, H).double()))
    projected, wide = fused_rnn.LSTM(I, H, proj_size=P), torch.zeros(1, B, P, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="h_0 is torch.float64 on cpu but input is torch.float32 on cpu"):
        projected(torch.zeros(T, B, I), (wide, torch.zeros(1, B, H)))
    with pytest.raises(RuntimeError, match="on meta but input is on cpu"):
        fused_rnn.LSTM(I, H, device="meta")(torch.zeros(T, B, I))
    with pytest.raises(ValueError, match="PackedSequence brings its lengths along"):
        fused_rnn.GRU(I, H)(packed(), lengths=torch.tensor([2, T, 5]))
