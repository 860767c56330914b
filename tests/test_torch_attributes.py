"""Programs find the same interface beyond ``forward`` in our modules as in torch.nn's recurrent modules."""

import inspect
import types
import weakref
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

import fused_rnn
from fused_rnn.arguments import ModuleOptions

from .test_cell_modules import PAIRS as CELL_PAIRS
from .test_cell_modules import pair as cell_pair
from .test_modules import MODULES, PAIRS, B, H, I, P, T, flat, is_lstm, pair, random_state

CONFIGURATIONS = [
    {},
    {"num_layers": 2, "bidirectional": True, "bias": False},
    {"num_layers": 3, "batch_first": True, "dropout": 0.5},
]
CASES = [(name, options) for name in PAIRS for options in CONFIGURATIONS]
CASES += [("lstm", {"proj_size": P}), ("lstm", {"proj_size": P, "num_layers": 2, "bidirectional": True})]
CLASSES = [getattr(fused_rnn, name) for name in fused_rnn.__all__ if name.endswith(("RNN", "LSTM", "GRU", "Cell"))]
CLASSES.remove(fused_rnn.RecurrentCell)


def attributes(module: nn.Module) -> dict[str, object]:
    """Return the module's attributes beyond those of every module, by name."""
    return {name: plain(getattr(module, name)) for name in set(dir(module)) - set(dir(nn.Module()))}


def plain(value):
    """Return a value that can be compared with ``==``; all methods become equal."""
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, weakref.ref):
        return plain(value())
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return types.MethodType if isinstance(value, types.MethodType) else value


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_attributes_of_sequences(name, options):
    ours, theirs = (attributes(module) for module in pair(name, **options))
    assert {name: ours.get(name, "missing") for name in theirs} == theirs


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("name", CELL_PAIRS)
def test_attributes_of_single_steps(name, bias):
    ours, theirs = (attributes(module) for module in cell_pair(name, bias=bias))
    assert {name: ours.get(name, "missing") for name in theirs} == theirs


@pytest.mark.parametrize("name", [name for name in MODULES if name not in (*PAIRS, "gru_reset_after")])
def test_no_mode_of_torch_where_torch_has_no_such_cell(name):
    """Exporters go by the mode."""
    mode = MODULES[name](I, H).mode
    assert mode not in ("RNN_TANH", "RNN_RELU", "LSTM", "GRU")
    assert ("LSTM" in mode) == is_lstm(MODULES[name](I, H))


# Calls ------------------------------------------------------------------------------------------------------


def result_or_error(call, *arguments):
    try:
        return plain(call(*arguments))
    except Exception as error:
        return type(error), str(error)


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_sizes_that_are_expected(name, options):
    padded, packed = torch.zeros(2, 3, I), (torch.zeros(5, I), torch.tensor([3, 2]))
    for method in ("get_expected_hidden_size", *(["get_expected_cell_size"] if name == "lstm" else [])):
        for given in ((padded, None), packed):
            ours, theirs = (getattr(module, method)(*given) for module in pair(name, **options))
            assert ours == theirs


@pytest.mark.parametrize("batch_sizes", [None, torch.tensor([3, 2])], ids=["padded", "packed"])
@pytest.mark.parametrize("shape", [(T, B, I), (T, B, I + 1), (T, I), (T, I + 1), (1, T, B, I)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_check_of_the_input(name, dtype, shape, batch_sizes):
    x = torch.zeros(shape, dtype=dtype)
    ours, theirs = (result_or_error(module.check_input, x, batch_sizes) for module in pair(name))
    kinds = [outcome and outcome[0] for outcome in (ours, theirs)]
    if dtype == torch.float64:
        assert kinds[0] == kinds[1]
    else:  # the mistake seen first may differ
        assert kinds[1] is ValueError
        assert kinds[0] in (ValueError, RuntimeError)


@pytest.mark.parametrize("shape", [(2, B, H), (2, B + 1, H), (1, B, H), (2, B, H + 1), (2, H)], ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_check_of_the_states(name, shape):
    x, outcomes = torch.zeros(T, B, I, dtype=torch.float64), []
    for module in pair(name, num_layers=2):
        outcomes.append([result_or_error(module.check_forward_args, x, random_state(module, *shape), None)])
        outcomes[-1].append(result_or_error(module.check_hidden_size, torch.zeros(shape), (2, B, H)))
        outcomes[-1].append(result_or_error(module.check_hidden_size, torch.zeros(shape), (2, B, H), "want {} not {}"))
    (ours, *rest), (theirs, *expected) = outcomes
    assert (ours and ours[0]) == (theirs and theirs[0])
    assert rest == expected


def test_forward_asks_the_methods():
    """A subclass may override the checks, as in torch.nn."""

    class Lenient(fused_rnn.GRU):
        def check_hidden_size(self, *arguments) -> None:
            asked.append(arguments[:2])

        def check_input(self, *arguments) -> None:
            asked.append(arguments)

    asked: list = []
    x, h = torch.zeros(T, B, I), torch.zeros(1, B, H)
    Lenient(I, H)(x, h)
    Lenient(I, H)(nn.utils.rnn.pack_padded_sequence(x, [T] * B))
    assert [plain(arguments) for arguments in asked] == [
        *([plain(x), None], [plain(h), [1, B, H]], [plain(x.flatten(0, 1)), [B] * T])
    ]


@pytest.mark.parametrize("permutation", [None, torch.tensor([2, 0, 1])], ids=["none", "some"])
@pytest.mark.parametrize("name", PAIRS)
def test_permuted_states(name, permutation):
    ours, theirs = pair(name)
    state = random_state(ours, 1, B, H)
    assert plain(ours.permute_hidden(state, permutation)) == plain(theirs.permute_hidden(state, permutation))


# Lists of weights -------------------------------------------------------------------------------------------


def results(module: nn.Module) -> list[torch.Tensor]:
    return flat(module(torch.linspace(-1, 1, T * B * I, dtype=torch.float64).view(T, B, I)))


@pytest.mark.parametrize("name", PAIRS)
def test_lists_of_weights_are_up_to_date(name):
    for module in pair(name, num_layers=2):
        assert all(map(torch.equal, module._flat_weights, module.parameters()))
        module.weight_hh_l1 = nn.Parameter(torch.zeros_like(module.weight_hh_l1))
        assert module._flat_weights[module._flat_weights_names.index("weight_hh_l1")] is module.weight_hh_l1
        assert module.all_weights[1][1] is module.weight_hh_l1
        module._update_flat_weights()
        assert not module._weights_have_changed()
        module.float()._init_flat_weights()
        assert {weight.dtype for weight in module._flat_weights} == {torch.float32}


@pytest.mark.parametrize("name", PAIRS)
def test_programs_that_take_a_parameter_away_and_set_the_list(name):
    """Hand-written DropConnect and hypernetworks do this."""
    outcomes = []
    for module in pair(name):
        weight = module.weight_hh_l0.detach() / 2
        del module.weight_hh_l0
        module.weight_hh_l0 = weight
        module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
        outcomes.append(results(module))
        module._flat_weights[1] = weight * 3
        outcomes.append(results(module))
    torch.testing.assert_close(outcomes[:2], outcomes[2:])
    assert not torch.equal(outcomes[0][0], outcomes[1][0])


def test_a_parameter_is_not_overlaid():
    """torch.nn's forward would read the list, and not the parameter."""
    module = fused_rnn.GRU(I, H)
    with pytest.raises(TypeError, match="weight_ih_l0 is a parameter, in whose place .* cannot put a Tensor: use"):
        module._flat_weights = [2 * weight if weight.dim() == 2 else weight for weight in module._flat_weights]
    module._flat_weights[1] = nn.Parameter(torch.zeros(3 * H, H))
    assert not module.weight_hh_l0.any()


# Constructors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_signatures_name_every_argument(kind):
    parameters = inspect.signature(kind).parameters
    assert all(p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters.values())
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    assert repr(kind(I, H, **defaults)) == repr(kind(I, H)) == f"{kind.__name__}({I}, {H})"
    assert {"device", "dtype", "bias", "backend", *kind._defaults} <= {*defaults, "proj_size"}
    in_order = [p.default for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD][2:]
    assert repr(kind(I, H, *in_order)) == repr(kind(I, H))


def test_type_checkers_know_every_option():
    """Constructors with options of their own name the shared ones as a TypedDict."""
    parameters = inspect.signature(fused_rnn.Recurrent).parameters
    assert [name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY] == [*ModuleOptions.__annotations__]
    for kind in (fused_rnn.RNN, fused_rnn.GRU, fused_rnn.MultiplicativeLSTM):
        assert get_args(kind.__init__.__annotations__["options"]) == (ModuleOptions,)


def test_signatures_of_subclasses_are_their_own():
    class Square(fused_rnn.GRU):
        def __init__(self, size: int) -> None:
            super().__init__(size, size)

    assert list(inspect.signature(Square).parameters) == ["size"]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_skip_init(kind):
    state = torch.get_rng_state()
    module = torch.nn.utils.skip_init(kind, I, H, dtype=torch.float64)
    assert torch.equal(torch.get_rng_state(), state)
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {("cpu", torch.float64)}


@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint8, torch.tensor], ids=lambda kind: kind.__name__)
def test_sizes_are_whatever_counts_as_an_integer(integer):
    sizes = {"num_layers": integer(2), "proj_size": integer(P)}
    module = fused_rnn.LSTM(integer(I), integer(H), **sizes)
    assert {type(getattr(module, name)) for name in ("input_size", "hidden_size", *sizes)} == {int}
    assert repr(module) == repr(fused_rnn.LSTM(I, H, num_layers=2, proj_size=P))
    assert repr(fused_rnn.GRUCell(integer(I), integer(H))) == f"GRUCell({I}, {H})"


@pytest.mark.parametrize("size", [np.float64(2), 2.0, "2", None], ids=repr)
@pytest.mark.parametrize("name", ["input_size", "hidden_size", "num_layers", "proj_size"])
def test_sizes_that_are_no_integers(name, size):
    given = {"input_size": I, "hidden_size": H, name: size}
    with pytest.raises(TypeError, match=f"{name} should be of type int, got: {type(size).__name__}"):
        fused_rnn.LSTM(**given)
    if name in ("input_size", "hidden_size"):
        with pytest.raises(TypeError, match=f"{name} should be of type int, got: {type(size).__name__}"):
            fused_rnn.LSTMCell(**given)
