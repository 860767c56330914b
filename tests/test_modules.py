"""The modules as drop-ins: torch.nn's results, parameters and errors, and the stacking of layers and directions."""

import copy
import io

import pytest
import torch
import torch._inductor.config
from torch import nn

import fused_rnn

from .conftest import FUSED
from .packages import COMPILED_ONCE

PAIRS = {
    "rnn": (fused_rnn.RNN, nn.RNN, {}),
    "rnn_relu": (fused_rnn.RNN, nn.RNN, {"nonlinearity": "relu"}),
    "lstm": (fused_rnn.LSTM, nn.LSTM, {}),
    "gru": (fused_rnn.GRU, nn.GRU, {}),
}
MODULES = {
    "rnn": fused_rnn.RNN,
    "lstm": fused_rnn.LSTM,
    "gru_reset_after": fused_rnn.GRU,
    "gru": lambda *a, **kw: fused_rnn.GRU(*a, reset_after=False, **kw),
    "multiplicative_lstm": fused_rnn.MultiplicativeLSTM,
    "multiplicative_lstm_hidden": lambda *a, **kw: fused_rnn.MultiplicativeLSTM(*a, variant="hidden", **kw),
    "multiplicative_gru": fused_rnn.MultiplicativeGRU,
}
I, H, T, B, P = 5, 7, 6, 3, 2


def pair(name: str, **options) -> tuple[nn.Module, nn.Module]:
    """Return our module and torch.nn's, made from the same seed."""
    ours, theirs, extra = PAIRS[name]
    made = []
    for cls in (ours, theirs):
        torch.manual_seed(0)
        made.append(cls(I, H, dtype=torch.float64, **extra, **options))
    return made[0], made[1]


def is_lstm(module: nn.Module) -> bool:
    return "LSTM" in type(module).__name__


def flat(result) -> list[torch.Tensor]:
    output, state = result
    return [output, *(state if isinstance(state, tuple) else (state,))]


def random_state(module: nn.Module, *shape: int):
    state = torch.randn(shape, dtype=torch.float64)
    return (state, torch.randn_like(state)) if is_lstm(module) else state


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one-way", "both-ways"])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("name", PAIRS)
def test_equals_torch(name, num_layers, bidirectional, bias):
    """The same seed gives torch.nn's parameters, results and gradients of everything."""
    ours, theirs = pair(name, num_layers=num_layers, bidirectional=bidirectional, bias=bias)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters()))
    torch.manual_seed(1)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    state = random_state(theirs, num_layers * (1 + bidirectional), B, H)
    gradients = []
    for module in (ours, theirs):
        results = flat(module(x, state))
        loss = sum((r * torch.linspace(-1, 1, r.numel(), dtype=r.dtype).view_as(r)).sum() for r in results)
        gradients.append([*results, *torch.autograd.grad(loss, [x, *module.parameters()])])
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("with_state", [False, True], ids=["no-state", "state"])
@pytest.mark.parametrize("layout", ["time-first", "batch-first", "unbatched"])
@pytest.mark.parametrize("name", PAIRS)
def test_layouts(name, layout, with_state):
    ours, theirs = pair(name, num_layers=2, batch_first=layout == "batch-first")
    shape = {"time-first": (T, B, I), "batch-first": (B, T, I), "unbatched": (T, I)}[layout]
    state_shape = (2, H) if layout == "unbatched" else (2, B, H)
    x = torch.randn(shape, dtype=torch.float64)
    state = {"hx": random_state(theirs, *state_shape)} if with_state else {}
    for a, b in zip(flat(ours(x, **state)), flat(theirs(x, **state))):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("batch_first", [False, True], ids=["time-first", "batch-first"])
@pytest.mark.parametrize("name", PAIRS)
def test_lengths_do_what_packing_does(name, batch_first):
    ours, theirs = pair(name, num_layers=2, bidirectional=True, batch_first=batch_first)
    x = torch.randn(*((B, T) if batch_first else (T, B)), I, dtype=torch.float64)
    lengths = torch.tensor([2, T, 5])
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False)
    output, state = theirs(packed)
    output, _ = nn.utils.rnn.pad_packed_sequence(output, batch_first)
    for a, b in zip(flat(ours(x, lengths=lengths)), flat((output, state))):
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match="unbatched"):
        ours(x[0], lengths=lengths)


@pytest.mark.parametrize("name", PAIRS)
def test_state_dict_goes_both_ways(name):
    ours, theirs = pair(name, num_layers=2, bidirectional=True)
    for source, target in ((theirs, ours), (ours, theirs)):
        for p in source.parameters():
            nn.init.normal_(p)
        target.load_state_dict(source.state_dict(), strict=True)
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters()))


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one-way", "both-ways"])
@pytest.mark.parametrize("name", MODULES)
def test_fused_equals_reference_in_layers(name, bidirectional):
    """All cells, stacked: the fused backends and the reference agree, gradients included."""
    torch.manual_seed(0)
    module = MODULES[name](I, H, 2, bidirectional=bidirectional, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64)
    gradients = []
    for backend in ("reference", *FUSED):
        module.backend = backend
        results = flat(module(x))
        gradients.append([*results, *torch.autograd.grad(sum(r.square().sum() for r in results), module.parameters())])
    assert len(gradients) > 1
    for other in gradients[1:]:
        for a, b in zip(other, gradients[0]):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", MODULES)
def test_eval_mode_has_gradients(name):
    module = MODULES[name](I, H, dtype=torch.float64).eval()
    module(torch.randn(T, B, I, dtype=torch.float64))[0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize("name", MODULES)
def test_no_grad_saves_nothing_and_equals_training(name, monkeypatch):
    module = MODULES[name](I, H)
    x = torch.randn(T, B, I)
    expected = module(x)[0]
    forward, saved = torch.ops.fused_rnn.forward, []

    def spy(*arguments):
        results = forward(*arguments)
        saved.append(results[4].numel())
        return results

    monkeypatch.setattr(torch.ops.fused_rnn, "forward", spy)
    with torch.no_grad():
        output = module(x)[0]
    assert not output.requires_grad
    assert torch.equal(output, expected)
    module(x)
    assert saved[0] == 0 < saved[1]


@pytest.mark.parametrize("name", MODULES)
def test_compiles_to_one_graph(name):
    torch.manual_seed(0)
    module = MODULES[name](I, H, 2, bidirectional=True)
    x = torch.randn(T, B, I, requires_grad=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    gradients = []
    for call in (module, compiled):
        results = flat(call(x))
        gradients.append(torch.autograd.grad(sum(r.sum() for r in results), [x, *module.parameters()]))
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b)


def test_compiles_where_auto_takes_the_reference():
    module = fused_rnn.LSTM(I, H, dtype=torch.float16)
    x = torch.randn(T, B, I, dtype=torch.float16)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    module.backend = "reference"
    expected = module(x)[0]
    module.backend = "auto"
    torch.testing.assert_close(compiled(x)[0], expected)


@torch._inductor.config.patch(force_disable_caches=True)  # caches trust what older builds' operators returned
@torch._inductor.config.patch(COMPILED_ONCE)
def test_compiles_with_inductor():
    module = fused_rnn.LSTM(I, H)
    x = torch.randn(T, B, I)
    loss = torch.compile(lambda x: module(x)[0].square().sum(), fullgraph=True)
    loss(x).backward()
    compiled = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    module(x)[0].square().sum().backward()
    for a, p in zip(compiled, module.parameters()):
        torch.testing.assert_close(a, p.grad)


def test_dropout_between_layers_only():
    torch.manual_seed(0)
    module = fused_rnn.GRU(I, H, 2, dropout=1.0)
    x = torch.randn(T, B, I)
    only_second = fused_rnn.GRU(H, H)
    only_second.load_state_dict({n.replace("l1", "l0"): p for n, p in module.named_parameters() if "l1" in n})
    torch.testing.assert_close(module(x)[0], only_second(torch.zeros(T, B, H))[0])
    assert not torch.allclose(module.eval()(x)[0], only_second(torch.zeros(T, B, H))[0])
    module.train().dropout = 0.5
    assert not torch.equal(module(x)[0], module(x)[0])


@pytest.mark.parametrize("name", MODULES)
def test_copies_pickles_and_prints(name):
    module = MODULES[name](I, H, 2)
    x = torch.randn(T, B, I)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(module), torch.load(buffer, weights_only=False)):
        assert torch.equal(other(x)[0], module(x)[0])
    assert f"({I}, {H}, num_layers=2" in repr(module)


def test_parameters_of_the_new_cells():
    module = fused_rnn.MultiplicativeLSTM(I, H)
    assert {n: tuple(p.shape) for n, p in module.named_parameters()} == {
        "weight_ih_l0": (4 * H, I),
        "weight_hh_l0": (4 * H, H),
        "bias_ih_l0": (4 * H,),
        "weight_mih_l0": (I, I),
        "weight_mhh_l0": (I, H),
        "bias_m_l0": (I,),
    }
    names = [n for n, _ in fused_rnn.GRU(I, H, reset_after=False).named_parameters()]
    assert names == ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0"]
    assert [len(w) for w in fused_rnn.MultiplicativeGRU(I, H, 2, bias=False).all_weights] == [4, 4]


def test_meta_device():
    module = fused_rnn.LSTM(I, H, device="meta")
    output, (h, c) = module(torch.empty(T, B, I, device="meta"))
    assert (output.shape, h.shape, c.shape) == ((T, B, H), (1, B, H), (1, B, H))
    full = fused_rnn.LSTM(I, H)
    module.to_empty(device="cpu").load_state_dict(full.state_dict())
    x = torch.randn(T, B, I)
    assert torch.equal(module(x)[0], full(x)[0])


POSITIONAL = {
    "rnn": ("relu", False, True, 0.25, True),
    "lstm": (False, True, 0.25, True, P),
    "gru": (False, True, 0.25, True),
}


@pytest.mark.parametrize("name", POSITIONAL)
def test_arguments_by_position(name):
    """Arguments have the order that torch.nn documents, to the last one."""
    ours, theirs = PAIRS[name][:2]
    made = [
        ours(I, H, 2, *POSITIONAL[name], "cpu", torch.float64),
        # by position torch.nn's RNN and GRU read proj_size there, which they neither document nor take by name
        theirs(I, H, 2, *POSITIONAL[name], device="cpu", dtype=torch.float64),
    ]
    assert repr(made[0]) == repr(made[1])
    ours, theirs = ([(n, p.shape, p.dtype) for n, p in m.named_parameters()] for m in made)
    assert ours == theirs


OPTIONS = {
    "none": {},
    "all": {"num_layers": 2, "bias": False, "batch_first": True, "dropout": 0.5, "bidirectional": True},
    "bool": {"num_layers": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", PAIRS)
def test_prints_as_torch(name, options):
    ours, theirs = pair(name, **options)
    assert repr(ours) == repr(theirs)
    assert [[p.shape for p in w] for w in ours.all_weights] == [[p.shape for p in w] for w in theirs.all_weights]


def test_prints_its_own_options():
    assert repr(fused_rnn.LSTM(I, H, proj_size=P, recompute=True)) == f"LSTM({I}, {H}, proj_size={P}, recompute=True)"
    assert repr(fused_rnn.GRU(I, H, 2, reset_after=False, backend="cpu")) == (
        f"GRU({I}, {H}, num_layers=2, backend=cpu, reset_after=False)"
    )


@pytest.mark.parametrize("name", PAIRS)
def test_loads_what_torch_saved(name):
    ours, theirs = pair(name, num_layers=2)
    nn.init.normal_(theirs.weight_hh_l1)
    buffer = io.BytesIO()
    torch.save(theirs.state_dict(), buffer)
    buffer.seek(0)
    ours.load_state_dict(torch.load(buffer, weights_only=True))
    x = torch.randn(T, B, I, dtype=torch.float64)
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])


@pytest.mark.parametrize("layout", ["time-first", "batch-first", "unbatched"])
def test_dropout_draws_what_torch_draws(layout):
    ours, theirs = pair("gru", num_layers=3, dropout=0.5, bidirectional=True, batch_first=layout == "batch-first")
    x = torch.randn({"time-first": (T, B, I), "batch-first": (B, T, I), "unbatched": (T, I)}[layout]).double()
    results = []
    for module in (ours, theirs):
        torch.manual_seed(1)
        results.append(module(x)[0])
    torch.testing.assert_close(*results)
    assert not torch.allclose(results[0], ours.eval()(x)[0])


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_parametrisations(norm):
    ours, theirs = (norm(module.eval(), "weight_hh_l0") for module in pair("lstm"))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(T, B, I, dtype=torch.float64)
    gradients = []
    for module in (ours, theirs):
        output = module(x)[0]
        gradients.append([output, *torch.autograd.grad(output.square().sum(), list(module.parameters()))])
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b)


def test_functional_call():
    ours, theirs = pair("gru")
    x, weights = torch.randn(T, B, I, dtype=torch.float64), {n: 2 * p for n, p in ours.named_parameters()}
    expected, given = (torch.func.functional_call(m, weights, (x,))[0] for m in (theirs, ours))
    torch.testing.assert_close(given, expected)
    assert not torch.allclose(given, ours(x)[0])


def test_flatten_parameters_is_harmless():
    module = fused_rnn.LSTM(I, H)
    before = [p.data_ptr() for p in module.parameters()]
    assert module.flatten_parameters() is None
    assert before == [p.data_ptr() for p in module.parameters()]


@pytest.mark.parametrize("name", MODULES)
def test_dropout_without_effect_is_told_where_it_was_written(name):
    with pytest.warns(UserWarning, match="num_layers") as warned:
        MODULES[name](I, H, dropout=0.5)
    assert warned[0].filename == __file__


def test_auto_says_when_it_takes_the_reference():
    fused_rnn.choice.warn_of_reference.cache_clear()
    module = fused_rnn.LSTM(I, H, dtype=torch.float16)
    with pytest.warns(UserWarning, match="the dtype is torch.float16"):
        module(torch.zeros(T, B, I, dtype=torch.float16))
    with pytest.raises(RuntimeError, match="the dtype is torch.float16"):
        fused_rnn.choose_backend("cpu", torch.float16, "cpu")
    assert fused_rnn.choose_backend("cpu", torch.float32).backend == "cpu"
