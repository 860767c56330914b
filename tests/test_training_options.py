"""Options for training that torch.nn lacks: dropped recurrent weights, one mask for all steps, learnt states."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn
from fused_rnn.keras import to_keras

from .conftest import relative_error
from .test_modules import MODULES, B, H, I, T, flat, is_lstm

P, LAYERS = 3, 2
DTYPE = torch.float64


def made(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    return MODULES[name](I, H, LAYERS, dtype=DTYPE, **options)


def random_input(seed: int = 1) -> Tensor:
    return torch.randn(T, B, I, dtype=DTYPE, generator=torch.Generator().manual_seed(seed))


# weight_drop ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_weight_drop_drops_recurrent_weights_once_a_call(name, backend):
    """A call equals one with weights dropped beforehand, in the order of layers, directions and names."""
    module = made(name, bidirectional=True, weight_drop=0.4, backend=backend)
    plain, x = made(name, bidirectional=True, backend=backend), random_input()
    torch.manual_seed(7)
    results = flat(module(x))
    torch.manual_seed(7)
    dropped = {}
    for key, weight in plain.named_parameters():  # registered in that order
        recurrent = key.startswith(("weight_hh", "weight_mhh"))
        dropped[key] = nn.functional.dropout(weight, 0.4) if recurrent else weight
    assert len({key for key in dropped if dropped[key] is not getattr(plain, key)}) == 4 * (1 + ("mult" in name))
    expected = flat(torch.func.functional_call(plain, dropped, (x,)))
    assert all(torch.equal(a, b) for a, b in zip(results, expected))
    gradients = torch.autograd.grad(results[0].square().sum(), list(module.parameters()))
    exact = torch.autograd.grad(expected[0].square().sum(), list(plain.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(gradients, exact))
    for (key, _), gradient in zip(module.named_parameters(), gradients):
        if key.startswith(("weight_hh", "weight_mhh")):
            assert (gradient[dropped[key] == 0] == 0).all()


@pytest.mark.parametrize("name", ["gru", "multiplicative_lstm"])
def test_weight_drop_ends_with_training(name):
    module, plain, x = made(name, weight_drop=0.4), made(name), random_input()
    assert not torch.equal(module(x)[0], module(x)[0])
    state = torch.get_rng_state()
    assert torch.equal(module.eval()(x)[0], plain(x)[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert list(module.state_dict()) == list(plain.state_dict())


def test_weight_drop_with_projections_and_recompute():
    module = made("lstm", proj_size=P, weight_drop=1.0, recompute=True)
    plain = copy.deepcopy(module).eval()
    for layer in range(LAYERS):
        nn.init.zeros_(getattr(plain, f"weight_hh_l{layer}"))
    torch.testing.assert_close(module(random_input())[0], plain(random_input())[0])


# variational ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["T-first", "B-first", "lengths", "packed", "unbatched"])
def test_variational_dropout_is_one_mask_for_all_steps(form):
    """Layers run one by one, with a mask (B, features) from the same seed between the two, agree."""
    module = made("gru", dropout=0.5, variational=True, batch_first=form == "B-first")
    layers = [MODULES["gru"](size, H, dtype=DTYPE) for size in (I, H)]
    for index, layer in enumerate(layers):
        weights = {k.replace(f"l{index}", "l0"): p for k, p in module.state_dict().items() if f"l{index}" in k}
        layer.load_state_dict(weights)
    x, lengths = random_input(), torch.tensor([T, 4, 2])
    how = {"lengths": lengths} if form in ("lengths", "packed") else {}
    count = 1 if form == "unbatched" else B
    torch.manual_seed(3)
    mask = nn.functional.dropout(torch.ones(count, H, dtype=DTYPE), 0.5)
    first = layers[0](x[:, :count], **how)[0]
    expected = layers[1](first * mask, **how)[0]
    torch.manual_seed(3)
    if form == "packed":
        output = nn.utils.rnn.pad_packed_sequence(module(pack_padded_sequence(x, lengths))[0])[0]
    elif form == "unbatched":
        output = module(x[:, 0])[0].unsqueeze(1)
    else:
        output = module(x.transpose(0, 1))[0].transpose(0, 1) if form == "B-first" else module(x, **how)[0]
    torch.testing.assert_close(output, expected)
    assert 0 < (mask == 0).sum() < mask.numel()


def test_variational_dropout_ends_with_training():
    module, plain, x = made("lstm", dropout=0.5, variational=True), made("lstm"), random_input()
    assert not torch.equal(module(x)[0], module(x)[0])
    assert torch.equal(module.eval()(x)[0], plain(x)[0])


def test_a_seed_determines_what_is_dropped():
    """Results and gradients agree in eager mode, compiled to one graph, and exported, in both directions."""
    module = made("multiplicative_gru", bidirectional=True, dropout=0.3, variational=True, weight_drop=0.3)
    x = random_input()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(module, (x,)).module()
    outcomes = []
    for call in (module, module, compiled, exported):
        torch.manual_seed(5)
        output = call(x)[0]
        outcomes.append([output, *torch.autograd.grad(output.square().sum(), list(call.parameters()))])
    assert len(outcomes[0]) == len(outcomes[3])
    for other in outcomes[1:]:
        for a, b in zip(outcomes[0], other):
            torch.testing.assert_close(a, b)
    torch.manual_seed(6)
    assert not torch.allclose(module(x)[0], outcomes[0][0])


# Initial states ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "proj_size"), [*((name, 0) for name in MODULES), ("lstm", P)])
def test_learnt_initial_states_are_parameters(name, proj_size):
    """They are zero at first; the other parameters, their names and their random numbers do not change."""
    options = {"bidirectional": True, **({"proj_size": P} if proj_size else {})}
    module, plain = made(name, learn_initial_state=True, **options), made(name, **options)
    shapes = {"h_0": (2 * LAYERS, 1, proj_size or H), "c_0": (2 * LAYERS, 1, H)}
    learnt = ["h_0", "c_0"][: 1 + is_lstm(module)]
    assert list(module.state_dict()) == [*plain.state_dict(), *learnt]
    assert [tuple(getattr(module, key).shape) for key in learnt] == [shapes[key] for key in learnt]
    assert all((getattr(module, key) == 0).all() for key in learnt)
    assert len(module.all_weights[0]) == len(plain.all_weights[0])
    results, expected = (flat(each(random_input())) for each in (module, plain))
    if proj_size:  # h_0 lengthens the products, if only by zeros, which may change the order of summation
        assert relative_error(results, expected) < 1e-13
    else:
        assert all(torch.equal(a, b) for a, b in zip(results, expected))
    nn.init.normal_(module.h_0)
    module.reset_parameters()
    assert (module.h_0 == 0).all()
    assert (module.weight_hh_l0 != 0).any()


@pytest.mark.parametrize("form", ["whole", "B-first", "lengths", "packed", "unbatched"])
@pytest.mark.parametrize("proj_size", [0, P])
def test_learnt_initial_states_begin_every_sequence(form, proj_size, backend):
    """Passing the states as hx gives the same results; their gradient is the sum over the sequences."""
    module = made("lstm", proj_size=proj_size, learn_initial_state=True, backend=backend, batch_first=form == "B-first")
    nn.init.normal_(module.h_0)
    nn.init.normal_(module.c_0)
    x, lengths = random_input(), torch.tensor([2, T, 4])
    if form == "packed":
        x, how = pack_padded_sequence(x, lengths, enforce_sorted=False), {}
    else:
        x = {"unbatched": x[:, 0], "B-first": x.transpose(0, 1)}.get(form, x)
        how = {"lengths": lengths} if form == "lengths" else {}
    shape = (LAYERS, -1) if form == "unbatched" else (LAYERS, B, -1)
    hx = tuple(s.detach().expand(LAYERS, B, -1)[:, : shape[1]] for s in (module.h_0, module.c_0))
    hx = tuple((s[:, 0] if form == "unbatched" else s).clone().requires_grad_() for s in hx)
    outcomes = []
    for call, leaves in ((lambda: module(x, **how), [module.h_0, module.c_0]), (lambda: module(x, hx, **how), hx)):
        output, final = call()
        results = flat((output.data if form == "packed" else output, final))
        gradients = torch.autograd.grad(sum(r.square().sum() for r in results), leaves)
        outcomes.append((results, gradients))
    (given, learnt), (expected, each) = outcomes
    assert all(torch.equal(a, b) for a, b in zip(given, expected))
    for a, b in zip(learnt, each):
        torch.testing.assert_close(a, b.unsqueeze(1) if form == "unbatched" else b.sum(1, keepdim=True))
        assert (a != 0).any()


@pytest.mark.parametrize("name", MODULES)
def test_initial_states_of_each_sequence(name, backend):
    """hx may differ from sequence to sequence, and each gets the gradient that it has alone."""
    module, x = made(name, bidirectional=True, learn_initial_state=True, backend=backend), random_input()
    states = [torch.randn(2 * LAYERS, B, H, dtype=DTYPE, requires_grad=True) for _ in range(1 + is_lstm(module))]
    parameters = [module.h_0, *([module.c_0] if is_lstm(module) else [])]

    def gradients(chosen: slice) -> list[Tensor]:
        hx = [s[:, chosen] for s in states]
        output = module(x[:, chosen], tuple(hx) if is_lstm(module) else hx[0])[0]
        return torch.autograd.grad(output.square().sum(), [*states, *parameters], allow_unused=True)

    together = gradients(slice(None))
    assert together[len(states) :] == (None,) * len(states)  # learnt states are for calls without hx
    for b in range(B):
        alone = gradients(slice(b, b + 1))
        for part, whole in zip(alone[: len(states)], together):
            torch.testing.assert_close(part[:, b], whole[:, b])
            assert (part[:, b] != 0).any()


# Options ----------------------------------------------------------------------------------------------------


def test_options_are_shown():
    module = fused_rnn.GRU(I, H, 2, dropout=0.5, variational=True, weight_drop=0.25, learn_initial_state=True)
    assert repr(module) == (
        f"GRU({I}, {H}, num_layers=2, dropout=0.5, variational=True, weight_drop=0.25, learn_initial_state=True)"
    )


WRONG = {
    "weight_drop-above-one": (ValueError, {"weight_drop": 1.5}, r"weight_drop should be a number in range \[0, 1\]"),
    "weight_drop-bool": (ValueError, {"weight_drop": True}, "weight_drop should be a number"),
    "weight_drop-none": (TypeError, {"weight_drop": None}, "not 'NoneType'"),
    "variational-number": (TypeError, {"variational": 0.5}, "variational should be of type bool, got: float"),
    "learn-string": (TypeError, {"learn_initial_state": "yes"}, "learn_initial_state should be of type bool, got: str"),
}


@pytest.mark.parametrize(("error", "options", "message"), WRONG.values(), ids=WRONG)
def test_wrong_options(error, options, message):
    with pytest.raises(error, match=message):
        fused_rnn.LSTM(I, H, **options)


def test_replace_sets_none_of_these_options():
    model = nn.ModuleList([nn.LSTM(I, H, 2, dropout=0.5)])
    names = list(model.state_dict())
    fused_rnn.replace(model)
    assert repr(model[0]) == f"LSTM({I}, {H}, num_layers=2, dropout=0.5)"
    assert list(model.state_dict()) == names


def test_keras_has_no_learnt_initial_states():
    with pytest.raises(ValueError, match="learns no initial states"):
        to_keras(fused_rnn.GRU(I, H, learn_initial_state=True))
