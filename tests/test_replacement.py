"""fused_rnn.replace: the same outputs before and after, the same parameters, and what is left alone."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import fused_rnn

from .test_modules import B, H, I, T, flat

# Both ways, each with the package whose modules it converts; tests of restore alone are in test_restore.py.
WAYS = pytest.mark.parametrize(("way", "before"), [("replace", nn), ("restore", fused_rnn)], ids=["there", "back"])
KINDS = [nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell]


class Tagger(nn.Module):
    """A model with recurrent modules at several depths, one of them used twice, and a cell in a loop."""

    def __init__(self, **how) -> None:
        super().__init__()
        self.embed = nn.Linear(I, H, **how)
        self.encoder = nn.LSTM(H, H, 2, batch_first=True, dropout=0.5, bidirectional=True, proj_size=2, **how)
        shared = nn.GRU(4, 4, **how)
        self.middle = nn.ModuleList(
            [shared, nn.Sequential(nn.RNN(4, H, nonlinearity="relu", bias=False, **how)), shared]
        )
        self.decoder = nn.ModuleDict(
            {"cell": nn.LSTMCell(H, H, **how), "other": nn.RNNCell(H, H, False, "relu", **how)}
        )
        self.head = nn.Linear(H, 3, **how)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, _ = self.encoder(self.embed(x))
        x, _ = self.middle[2](self.middle[0](x)[0])
        x, _ = self.middle[1](x)
        state, outputs = None, []
        for step in x.unbind(1):
            state = self.decoder["cell"](self.decoder["other"](step), state)
            outputs.append(self.head(state[0]))
        return torch.stack(outputs)


def outcome(model: nn.Module) -> list[torch.Tensor]:
    """Return output and gradients, with dropout drawn from a fixed seed."""
    dtype = next(model.parameters()).dtype
    x = torch.randn(B, T, I, generator=torch.Generator().manual_seed(0)).to(dtype)
    torch.manual_seed(1)
    output = model(x)
    wanted = [p for p in model.parameters() if p.requires_grad]
    return [output, *torch.autograd.grad(output.sin().sum(), wanted)]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_same_outputs_before_and_after(dtype, training, backend):
    torch.manual_seed(0)
    model = Tagger(dtype=dtype).train(training)
    model.middle[0].weight_hh_l0.requires_grad_(False)
    parameters, names = dict(model.named_parameters()), [name for name, _ in model.named_modules()]
    expected, weights = outcome(model), copy.deepcopy(model.state_dict())
    report = fused_rnn.replace(model, backend=backend)
    assert report.model is model
    assert list(report.replaced) == [
        *("encoder", "middle.0", "middle.1.0", "middle.2", "decoder.cell", "decoder.other"),
    ]
    assert report.kept == {}
    for a, b in zip(outcome(model), expected):
        torch.testing.assert_close(a, b)
    assert [name for name, _ in model.named_modules()] == names
    assert model.middle[0] is model.middle[2]
    after = dict(model.named_parameters())
    assert list(after) == list(parameters)
    assert all(after[name] is parameter for name, parameter in parameters.items())
    model.load_state_dict(weights, strict=True)
    for module in model.modules():
        assert type(module) not in KINDS
        assert module.training is training
        assert getattr(module, "backend", backend) == backend


@WAYS
def test_optimisers_and_ties_go_on(way, before):
    torch.manual_seed(0)
    model = nn.ModuleList([before.GRU(H, H), before.GRU(H, H)])
    model[1].weight_hh_l0 = model[0].weight_hh_l0
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    assert len(getattr(fused_rnn, way)(model).replaced) == 2
    assert model[1].weight_hh_l0 is model[0].weight_hh_l0
    old = model[1].weight_hh_l0.clone()
    model[0](torch.randn(T, B, H))[0].sum().backward()
    optimiser.step()
    assert not torch.equal(model[1].weight_hh_l0, old)
    assert len(list(model.parameters())) == 7


@WAYS
def test_changes_made_after_construction_are_kept(way, before):
    module = before.LSTM(I, H, 2)
    module.batch_first, module.dropout, module.label = True, 1.0, "a"
    other = getattr(fused_rnn, way)(nn.Sequential(module)).model[0]
    assert type(other) is not type(module)
    assert (other.batch_first, other.dropout, other.label) == (True, 1.0, "a")
    x = torch.randn(B, T, I)
    torch.testing.assert_close(other(x)[0], module(x)[0])


@WAYS
def test_draws_no_random_numbers_and_repeats_no_warning(way, before):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(before.LSTM(I, H, dropout=0.5))
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(getattr(fused_rnn, way)(model).replaced) == ["0"]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_model_itself(kind):
    module = kind(I, H)
    x = torch.randn(T, B, I) if issubclass(kind, nn.RNNBase) else torch.randn(B, I)
    report = fused_rnn.replace(module)
    assert type(report.model) is getattr(fused_rnn, kind.__name__)
    for a, b in zip(results(report.model, x), results(module, x)):
        torch.testing.assert_close(a, b)
    assert str(report) == f"replaced: 1\n  the model itself: fused_rnn.{kind.__name__}({I}, {H})\nkept: 0"


def results(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    result = module(x)
    if isinstance(module, (nn.RNNBase, fused_rnn.recurrent.Recurrent)):
        return flat(result)
    return list(result) if isinstance(result, tuple) else [result]


def test_meta_device():
    model = nn.Sequential(nn.GRU(I, H, device="meta"))
    fused_rnn.replace(model)
    assert model[0](torch.empty(T, B, I, device="meta"))[0].device.type == "meta"


def test_an_rnn_computes_by_its_mode():
    """RNNs of old pickles have no other word for their nonlinearity."""
    rnn, x = nn.RNN(I, H, nonlinearity="relu"), torch.randn(T, B, I)
    del rnn.nonlinearity
    fused = fused_rnn.replace(rnn).model
    assert fused.nonlinearity == "relu"
    torch.testing.assert_close(fused(x), rnn(x))


def test_replacing_twice_changes_nothing():
    model = Tagger()
    fused_rnn.replace(model)
    modules = list(model.modules())
    report = fused_rnn.replace(model)
    assert (report.replaced, report.kept) == ({}, {})
    assert list(model.modules()) == modules


# What is left alone -------------------------------------------------------------------------------------------


class Special(nn.LSTM):
    pass


def hook(*arguments) -> None:
    pass


def with_a_deleted_weight() -> nn.LSTM:
    """Delete a weight as hand-written DropConnect does, after which it is no longer a parameter."""
    module = nn.LSTM(I, H)
    weight = module.weight_hh_l0.detach()
    del module.weight_hh_l0
    module.weight_hh_l0 = weight
    return module


def with_old_weight_norm() -> nn.LSTM:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(nn.LSTM(I, H), "weight_hh_l0")


def after(method: str, *arguments) -> nn.LSTM:
    """Return a module after a call of this method."""
    module = nn.LSTM(I, H)
    getattr(module, method)(*arguments)
    return module


KEPT = {
    "no-features": (lambda: nn.GRUCell(0, H), "a size of 0"),
    "subclass": (lambda: Special(I, H), "tests.test_replacement.Special is a subclass"),
    "forward-hook": (lambda: after("register_forward_hook", hook), "forward_hooks: "),
    "forward-pre-hook": (lambda: after("register_forward_pre_hook", hook), "forward_pre_hooks: "),
    "backward-hook": (lambda: after("register_full_backward_hook", hook), "backward_hooks: "),
    "backward-pre-hook": (lambda: after("register_full_backward_pre_hook", hook), "backward_pre_hooks: "),
    "state-dict-hook": (lambda: after("register_state_dict_post_hook", hook), "state_dict_hooks: "),
    "state-dict-pre-hook": (lambda: after("register_state_dict_pre_hook", hook), "state_dict_pre_hooks: "),
    "load-hook": (lambda: after("register_load_state_dict_post_hook", hook), "load_state_dict_post_hooks: "),
    "load-pre-hook": (lambda: after("register_load_state_dict_pre_hook", hook), "load_state_dict_pre_hooks: "),
    "old-weight-norm": (with_old_weight_norm, "forward_pre_hooks: "),
    "compiled": (lambda: after("compile"), "compiled: "),
    "parametrised": (lambda: weight_norm(nn.GRU(I, H), "weight_hh_l0"), "weight_hh_l0: parametrised"),
    "own-forward": (lambda: after("__setattr__", "forward", hook), "forward: replaced in this one module"),
    "own-buffer": (lambda: after("register_buffer", "mask", torch.ones(H)), "mask: not the parameters, buffers"),
    "own-submodule": (lambda: after("add_module", "drop", nn.Dropout()), "drop: not the parameters, buffers"),
    "deleted-weight": (with_a_deleted_weight, "weight_hh_l0: not the parameters, buffers"),
    "other-shape": (lambda: after("__setattr__", "bias_hh_l0", nn.Parameter(torch.ones(2))), "bias_hh_l0: not the"),
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("case", KEPT)
def test_left_alone_with_the_reason(case):
    make, reason = KEPT[case]
    kept, other = make(), nn.GRU(H, H)
    model = nn.Sequential(kept, nn.Sequential(other))
    report = fused_rnn.replace(model)
    assert model[0] is kept
    assert list(report.replaced) == ["1.0"]
    assert list(report.kept) == ["0"]
    assert reason in report.kept["0"]
    assert f"kept: 1\n  0: {report.kept['0']}" in str(report)


def test_mistakes():
    with pytest.raises(TypeError, match="model should be a torch.nn.Module, got: list"):
        fused_rnn.replace([nn.GRU(I, H)])
    for model in (Tagger(), nn.Linear(I, H)):
        modules = list(model.modules())
        with pytest.raises(ValueError, match="unknown backend 'gpu'"):
            fused_rnn.replace(model, backend="gpu")
        assert list(model.modules()) == modules
