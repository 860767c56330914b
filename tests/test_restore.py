"""fused_rnn.restore: the way back from ``replace``, and then tools that know only torch.nn's modules."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import fused_rnn

from .test_modules import B, H, I, P, T, flat
from .test_replacement import KINDS, Tagger, hook, outcome

OURS = [getattr(fused_rnn, kind.__name__) for kind in KINDS]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_there_and_back_and_there_again(dtype, training, backend):
    torch.manual_seed(0)
    model = Tagger(dtype=dtype).train(training)
    model.middle[0].weight_hh_l0.requires_grad_(False)
    parameters, names = dict(model.named_parameters()), [name for name, _ in model.named_modules()]
    printed, expected, weights = repr(model), outcome(model), copy.deepcopy(model.state_dict())
    for _ in range(2):
        there = fused_rnn.replace(model, backend=backend)
        back = fused_rnn.restore(model)
        assert back.model is model
        assert list(back.replaced) == list(there.replaced)
        for name, entry in there.replaced.items():
            assert back.replaced[name] == entry.replace("fused_rnn", "torch.nn").replace(f", backend={backend}", "")
        assert back.kept == {}
        assert repr(model) == printed
        assert [name for name, _ in model.named_modules()] == names
        assert model.middle[0] is model.middle[2]
        assert not any(isinstance(module, fused_rnn.cell_based.CellBased) for module in model.modules())
        assert {module.training for module in model.modules()} == {training}
        after = dict(model.named_parameters())
        assert list(after) == list(parameters)
        assert all(after[name] is parameter for name, parameter in parameters.items())
        assert all(map(torch.equal, outcome(model), expected))
    model.load_state_dict(weights, strict=True)


def test_weights_that_change_afterwards_count():
    """torch.nn's modules keep a list of their weights, which must stay current."""
    model = nn.Sequential(fused_rnn.GRU(I, H))
    fused_rnn.restore(model)
    x = torch.randn(T, B, I)
    with torch.no_grad():
        model[0].weight_hh_l0.zero_()
    model[0].weight_ih_l0 = nn.Parameter(torch.zeros(3 * H, I))
    expected = fused_rnn.GRU(I, H)
    expected.load_state_dict(model[0].state_dict())
    torch.testing.assert_close(model(x)[0], expected(x)[0])
    torch.testing.assert_close(model.double()(x.double())[0], expected.double()(x.double())[0])


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_the_model_itself(kind):
    """Options that do not affect results are dropped: the backend, and recomputation."""
    module = kind(I, H, backend="reference", **({} if kind.__name__.endswith("Cell") else {"recompute": True}))
    report = fused_rnn.restore(module)
    assert type(report.model) is getattr(nn, kind.__name__)
    assert str(report) == f"replaced: 1\n  the model itself: torch.nn.{kind.__name__}({I}, {H})\nkept: 0"
    assert repr(fused_rnn.replace(report.model).model) == f"{kind.__name__}({I}, {H})"


def test_meta_device():
    model = nn.Sequential(fused_rnn.GRU(I, H, device="meta"))
    fused_rnn.restore(model)
    assert model[0](torch.empty(T, B, I, device="meta"))[0].device.type == "meta"


def test_variational_dropout_that_drops_nothing_is_forgotten():
    for options in ({"num_layers": 2}, {}):
        report = fused_rnn.restore(nn.Sequential(fused_rnn.GRU(I, H, variational=True, **options)))
        assert type(report.model[0]) is nn.GRU


# What is left alone -------------------------------------------------------------------------------------------


class Special(fused_rnn.LSTM):
    pass


def after(method: str, *arguments) -> nn.Module:
    """Return a module on which this method was called."""
    module = fused_rnn.LSTM(I, H)
    getattr(module, method)(*arguments)
    return module


KEPT = {
    "reset-before": (lambda: fused_rnn.GRU(I, H, reset_after=False), "a cell that torch.nn lacks, 'gru'"),
    "reset-before-step": (lambda: fused_rnn.GRUCell(I, H, reset_after=False), "a cell that torch.nn lacks, 'gru'"),
    "multiplicative": (lambda: fused_rnn.MultiplicativeLSTM(I, H), "torch.nn lacks, 'multiplicative_lstm'"),
    "multiplicative-step": (lambda: fused_rnn.MultiplicativeGRUCell(I, H), "torch.nn lacks, 'multiplicative_gru'"),
    "weight-drop": (lambda: fused_rnn.RNN(I, H, weight_drop=0.5), "weight_drop=0.5: options that torch.nn lacks"),
    "zoneout": (
        lambda: fused_rnn.LSTM(I, H, zoneout=0.1, zoneout_cell=0.2),
        "zoneout=0.1, zoneout_cell=0.2: options that torch.nn lacks",
    ),
    "clip": (lambda: fused_rnn.GRU(I, H, gradient_clip=1.0), "gradient_clip=1.0: options that torch.nn lacks"),
    "learnt": (lambda: fused_rnn.GRU(I, H, learn_initial_state=True), "learn_initial_state=True: options that torch"),
    "variational": (
        lambda: fused_rnn.GRU(I, H, 2, dropout=0.5, variational=True),
        "variational=True: options that torch.nn lacks",
    ),
    "subclass": (lambda: Special(I, H), "tests.test_restore.Special is a subclass"),
    "forward-hook": (lambda: after("register_forward_hook", hook), "forward_hooks: "),
    "state-dict-hook": (lambda: after("register_state_dict_post_hook", hook), "state_dict_hooks: "),
    "load-pre-hook": (lambda: after("register_load_state_dict_pre_hook", hook), "load_state_dict_pre_hooks: "),
    "parametrised": (lambda: weight_norm(fused_rnn.GRU(I, H), "weight_hh_l0"), "weight_hh_l0: parametrised"),
    "own-forward": (lambda: after("__setattr__", "forward", hook), "forward: replaced in this one module"),
    "own-buffer": (lambda: after("register_buffer", "mask", torch.ones(H)), "mask: not the parameters, buffers"),
    "other-shape": (lambda: after("__setattr__", "bias_hh_l0", nn.Parameter(torch.ones(2))), "bias_hh_l0: not the"),
}


@pytest.mark.parametrize("case", KEPT)
def test_left_alone_with_the_reason(case):
    make, reason = KEPT[case]
    kept = make()
    model = nn.Sequential(kept, nn.Sequential(fused_rnn.GRU(H, H)))
    report = fused_rnn.restore(model)
    assert model[0] is kept
    assert list(report.replaced) == ["1.0"]
    assert list(report.kept) == ["0"]
    assert reason in report.kept["0"]
    assert f"kept: 1\n  0: {report.kept['0']}" in str(report)


def test_options_that_are_no_longer_wanted():
    """A trained model can reset options that do not affect eval mode, or the forward pass, and then be restored."""
    module = fused_rnn.LSTM(I, H, 2, weight_drop=0.5, gradient_clip=1.0, dropout=0.5, variational=True).eval()
    module.weight_drop, module.gradient_clip, module.variational = 0.0, None, False
    restored = fused_rnn.restore(module).model
    assert type(restored) is nn.LSTM
    x = torch.randn(T, B, I)
    torch.testing.assert_close(flat(restored(x)), flat(module(x)))


def test_mistakes():
    with pytest.raises(TypeError, match="model should be a torch.nn.Module, got: list"):
        fused_rnn.restore([fused_rnn.GRU(I, H)])
    report = fused_rnn.restore(Tagger())
    assert (report.replaced, report.kept) == ({}, {})


# Tools --------------------------------------------------------------------------------------------------------


class Classifier(nn.Module):
    """A model that TorchScript can compile."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = fused_rnn.LSTM(I, H, 2, bidirectional=True, proj_size=P, batch_first=True)
        self.step = fused_rnn.GRUCell(2 * P, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output, _ = self.rnn(x)
        return self.step(output[:, -1])


class LastOutput(nn.Module):
    """Recurrent modules one after the other."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x, _ = layer(x)
        return x[-1]


@pytest.fixture
def trained() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Return a restored model in eval mode, an input, and the fused model's output for it."""
    torch.manual_seed(0)
    model, x = Classifier().eval(), torch.randn(B, T, I)
    with torch.no_grad():
        expected = model(x)
    assert len(fused_rnn.restore(model).replaced) == 2
    return model, x, expected


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript_of_a_restored_model(how, trained):
    model, x, expected = trained
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(model) if how == "script" else torch.jit.trace(model, x), buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    assert "fused_rnn" not in str(loaded.inlined_graph)
    torch.testing.assert_close(loaded(x), expected)


@pytest.mark.filterwarnings("ignore:torch.ao:DeprecationWarning", "ignore:torch.quantize_per_tensor:UserWarning")
def test_dynamic_quantisation_of_a_restored_model():
    """The LSTM has no projection, because torch's quantised LSTM supports none."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"rnn": fused_rnn.LSTM(I, H, 2), "step": fused_rnn.GRUCell(H, H)})
    x = torch.randn(T, B, I)
    output = model["rnn"](x)[0]
    expected = [output, model["step"](output[-1])]
    fused_rnn.restore(model)
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM, nn.GRUCell}, dtype=torch.qint8)
    assert [type(module) for module in quantised.values()] == [
        *(torch.ao.nn.quantized.dynamic.LSTM, torch.ao.nn.quantized.dynamic.GRUCell)
    ]
    output = quantised["rnn"](x)[0]
    for given, exact in zip([output, quantised["step"](output[-1])], expected):
        torch.testing.assert_close(given, exact, rtol=0, atol=0.02)  # weights of 8 bits


def test_exports_a_restored_model(trained):
    """torch.export's program does not need fused_rnn."""
    model, x, expected = trained
    program = torch.export.export(model, (x,))
    assert "fused_rnn" not in str(program.graph)
    torch.testing.assert_close(program.module()(x), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [True, False], ids=["torch.export", "TorchScript"])
def test_onnx_of_a_restored_model(dynamo, tmp_path):
    """ONNX's own evaluator, which knows no projections, runs the model."""
    evaluator = pytest.importorskip("onnx.reference", reason="torch.onnx.export needs onnx and onnxscript")
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs onnx and onnxscript")
    torch.manual_seed(0)
    model, x = LastOutput(fused_rnn.GRU(I, H, bidirectional=True), fused_rnn.LSTM(2 * H, H)), torch.randn(T, B, I)
    expected = model.eval()(x)
    fused_rnn.restore(model)
    path = str(tmp_path / "model.onnx")
    torch.onnx.export(model, (x,), path, dynamo=dynamo, input_names=["x"])
    (output,) = evaluator.ReferenceEvaluator(path).run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), expected)
