"""Models exported to ONNX give the same results in onnxruntime as here, also in other sizes than the example's.

An export takes one to three seconds, whatever the model, so tests export many modules at once.
"""

import logging
import subprocess
import sys
import textwrap
from collections import Counter

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils._pytree import tree_leaves

import fused_rnn
from fused_rnn import functional, onnx

I, H = 3, 4
SIZES = [(5, 3), (7, 2), (1, 1), (2, 6)]  # T and B; the first is exported
DYNAMIC = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
STATE, LENGTHS = {1: Dim.DYNAMIC}, {0: Dim.DYNAMIC}
OPERATORS = {"RNN", "LSTM", "GRU", "Scan"}

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # torch's and onnx's own


class Several(nn.Module):
    """Modules that are given the same sequences, and the same lengths and states if any."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        super().__init__()
        self.of = nn.ModuleDict(modules)
        self.eval()

    def forward(self, x: Tensor, h=None, c=None, lengths=None):
        """Return the flat results of each module."""
        results = []
        for module in self.of.values():
            pair = "LSTM" in type(module).__name__
            state = None if h is None else (h, c) if pair else h
            more = {"return_cells": True} if getattr(module, "with_cells", False) else {}
            results.append(tree_leaves(module(x, state, lengths, **more)))
        return results


@pytest.fixture(autouse=True)
def quiet(caplog):
    """Silence the notes of torch's and onnxscript's exporters."""
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        caplog.set_level(logging.ERROR, logger=name)


def export(model: nn.Module, args: tuple, **options):
    return onnx.export(model, args, verbose=False, **options)


def computed(program, args: tuple) -> list[Tensor]:
    """Return onnxruntime's results of a call."""
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    given = [t.numpy() for t in tree_leaves(args) if t is not None]
    names = [value.name for value in session.get_inputs()]
    return [torch.from_numpy(result) for result in session.run(None, dict(zip(names, given, strict=True)))]


def assert_equal(found: list[Tensor], model: nn.Module, args: tuple, names: list[str] | None = None) -> None:
    with torch.no_grad():
        results = model(*args)
    named = zip(names or [""], results if names else [results])
    expected = [(name, t) for name, part in named for t in tree_leaves(part)]
    for (name, there), here in zip(expected, found, strict=True):
        assert here.shape == there.shape, name
        assert torch.allclose(here, there, rtol=1e-5, atol=1e-5), name


def operators(program) -> list:
    return [node for node in program.model.graph if node.op_type in OPERATORS]


def attribute(node, name: str):
    return node.attributes[name].value


def call(T: int, B: int, layers: int, batch_first: bool = False) -> tuple[Tensor, ...]:
    """Return input, states and lengths; one length is zero if there are several."""
    x = torch.randn(B, T, I) if batch_first else torch.randn(T, B, I)
    lengths = torch.randint(1, T + 1, (B,))
    lengths[1:2] = 0
    return x, torch.randn(layers, B, H), torch.randn(layers, B, H), lengths


BOTH = {"input_size": I, "hidden_size": H, "bidirectional": True}
DEEP = BOTH | {"num_layers": 2, "batch_first": True}


def test_a_layer_of_both_directions_is_one_operator():
    torch.manual_seed(0)
    modules = {
        "tanh": fused_rnn.RNN(**DEEP),
        "relu": fused_rnn.RNN(**DEEP, nonlinearity="relu"),
        "lstm": fused_rnn.LSTM(**DEEP),
        "gru": fused_rnn.GRU(**DEEP),
        "gru_before": fused_rnn.GRU(**DEEP, reset_after=False),
    }
    model = Several(modules)
    shapes = (DYNAMIC, STATE, STATE, LENGTHS)
    program = export(model, call(*SIZES[0], 4, True), dynamic_shapes=shapes, opset_version=18)
    assert program.model.opset_imports[""] == 18
    found = operators(program)
    assert Counter(node.op_type for node in found) == {"RNN": 4, "LSTM": 2, "GRU": 4}
    assert all(attribute(node, "direction") == "bidirectional" for node in found)
    resets = [attribute(node, "linear_before_reset") for node in found if node.op_type == "GRU"]
    assert sorted(resets) == [0, 0, 1, 1]
    for sizes in SIZES:
        args = call(*sizes, 4, True)
        assert_equal(computed(program, args), model, args, list(modules))


def test_modules_in_eval_mode_with_every_option():
    torch.manual_seed(1)
    modules = {
        "no_bias": fused_rnn.LSTM(I, H, bias=False),
        "no_bias_before": fused_rnn.GRU(I, H, bias=False, reset_after=False),
        "projected": fused_rnn.LSTM(I, H, num_layers=2, proj_size=2),
        "regularised": fused_rnn.GRU(
            I, H, num_layers=2, dropout=0.5, variational=True, weight_drop=0.5, gradient_clip=1.0
        ),
        "learnt": fused_rnn.RNN(I, H, learn_initial_state=True, recompute=True),
    }
    with torch.no_grad():
        modules["learnt"].h_0.normal_()
    model = Several(modules)
    program = export(model, (torch.randn(5, 3, I),), dynamic_shapes=(DYNAMIC,))
    assert Counter(node.op_type for node in operators(program)) == {"LSTM": 3, "GRU": 3, "RNN": 1}
    for sizes in SIZES:
        args = (torch.randn(*sizes, I),)
        assert_equal(computed(program, args), model, args, list(modules))


@pytest.mark.parametrize("optimize", [True, False])
def test_what_onnx_has_no_operator_for_is_a_scan(optimize):
    """Each direction is a scan, and no name is used twice, even without optimisation."""
    torch.manual_seed(2)
    modules = {
        "hidden": fused_rnn.MultiplicativeLSTM(**BOTH, variant="hidden"),
        "multiplicative_gru": fused_rnn.MultiplicativeGRU(**BOTH),
        "cells": fused_rnn.LSTM(**BOTH, zoneout=0.2, zoneout_cell=0.1),
    }
    modules["cells"].with_cells = True
    model = Several(modules)
    shapes = (DYNAMIC, STATE, STATE, LENGTHS)
    program = export(model, call(*SIZES[0], 2), dynamic_shapes=shapes, optimize=optimize)
    assert Counter(node.op_type for node in operators(program)) == {"Scan": 6}
    for sizes in SIZES:
        args = call(*sizes, 2)
        assert_equal(computed(program, args), model, args, list(modules))


def test_the_example_streams(tmp_path, monkeypatch):
    """The example in the documentation runs: single steps, which take and return the states."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(3)
    _, example = onnx.__doc__.split("::\n", 1)
    code = textwrap.dedent("\n".join(line for line in example.splitlines() if not line or line.startswith("    ")))
    assert len([line for line in code.splitlines() if line]) <= 20
    code = code.rstrip() + "; outputs.append(y)"
    sequence, outputs = torch.randn(6, 1, 8), []
    scope = {"torch": torch, "fused_rnn": fused_rnn, "sensor": list(sequence.numpy()[:, None]), "outputs": outputs}
    models = []
    monkeypatch.setattr(nn.Module, "eval", lambda self: models.append(self) or self.train(False))
    exec(code, scope)
    stream = models[0]
    with torch.no_grad():
        expected, (h, c) = stream.lstm(sequence)
        expected = stream.head(expected)
    assert torch.allclose(torch.from_numpy(scope["h"]), h, atol=1e-5)
    assert torch.allclose(torch.from_numpy(scope["c"]), c, atol=1e-5)
    assert torch.allclose(torch.cat([torch.from_numpy(y) for y in outputs]), expected, atol=1e-5)


class Crossed(nn.Module):
    """Directions that must stay two operators, beside single steps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = fused_rnn.GRU(H, H), fused_rnn.GRU(H, H)
        self.cell = fused_rnn.LSTMCell(H, H)

    def forward(self, x: Tensor, lengths: Tensor):
        there = self.first.weight_ih_l0, self.first.weight_hh_l0, self.first.bias_ih_l0, self.first.bias_hh_l0
        back = self.second.weight_ih_l0, self.second.weight_hh_l0, None, self.second.bias_hh_l0
        output, h = functional.gru(x, None, *there)
        of_state = functional.gru(x, h, *back, reverse=True)  # begins with the other's final state
        of_output = functional.gru(output, None, *back, reverse=True)  # reads another input
        other_lengths = functional.gru(x, None, *there, reverse=True, lengths=lengths)
        return output, *of_state, *of_output, *other_lengths, *self.cell(x[0])


def test_directions_that_do_not_belong_together_stay_apart():
    torch.manual_seed(4)
    model = Crossed().eval()
    args = torch.randn(5, 3, H), torch.tensor([5, 0, 2])
    program = export(model, args, opset_version=23)
    assert program.model.opset_imports[""] == 23
    directions = Counter(attribute(node, "direction") for node in operators(program))
    assert directions == {"forward": 2, "reverse": 3}
    assert_equal(computed(program, args), model, args)


def test_programs_of_torch_export():
    """Programs that save values for a backward pass export too and still save them, with weights too large to fold."""
    torch.manual_seed(5)
    model = fused_rnn.LSTM(64, 64, bidirectional=True).eval()
    exported = torch.export.export(model, (torch.randn(5, 3, 64),), dynamic_shapes=(DYNAMIC,))
    program = export(exported, ())
    (node,) = operators(program)
    assert node.op_type == "LSTM"
    assert all(weight.const_value is not None for weight in node.inputs[1:4])  # W, R and B, as the operator reads them
    x = torch.randn(2, 6, 64)
    assert_equal(computed(program, (x,)), model, (x,))
    assert "everything" in str(exported.graph)


def test_the_table_alone():
    """The table also works in torch.onnx.export itself, where nothing is saved for a backward pass."""
    torch.manual_seed(6)
    model, x = fused_rnn.GRU(I, H, bidirectional=True).eval(), torch.randn(5, 3, I)
    table = onnx.table()
    with torch.no_grad():
        program = torch.onnx.export(model, (x,), custom_translation_table=table, verbose=False)
    assert Counter(attribute(node, "direction") for node in operators(program)) == {"forward": 1, "reverse": 1}
    assert_equal(computed(program, (x,)), model, (x,))
    translate = table[torch.ops.fused_rnn.forward.default]
    with pytest.raises(onnx.ExportError, match=r"or under torch.no_grad\(\)"):
        translate(*[None] * 13, "gru", False, 0.0, "everything")


def test_the_reference_is_unrolled_for_a_number_of_steps():
    torch.manual_seed(7)
    model = fused_rnn.MultiplicativeLSTM(I, H, backend="reference").eval()
    program = export(model, (torch.randn(3, 2, I),), dynamic_shapes=({1: Dim.DYNAMIC},))
    assert not operators(program)
    x = torch.randn(3, 5, I)
    assert_equal(computed(program, (x,)), model, (x,))


class Half(nn.Module):
    """The operator in float16, which modules call only on a GPU."""

    def __init__(self, model: fused_rnn.LSTM) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, h: Tensor, c: Tensor):
        weights = *(weight.half() for weight in self.model.parameters()), None, None, None
        return torch.ops.fused_rnn.forward(x, h, c, *weights, None, None, None, "lstm", False, 0.0, "nothing")[:3]


def test_float16():
    torch.manual_seed(8)
    model = fused_rnn.LSTM(I, H).eval()
    args = torch.randn(5, 3, I), torch.randn(3, H), torch.randn(3, H)
    halves = tuple(t.half() for t in args)
    found = computed(export(Half(model).eval(), halves), halves)
    with torch.no_grad():
        output, (h, c) = model(args[0], (args[1][None], args[2][None]))
    for here, there in zip(found, (output, h[0], c[0])):
        assert here.dtype == torch.float16
        assert torch.allclose(here.float(), there, atol=5e-3)


# Mistakes ------------------------------------------------------------------------------------------------------------


def test_an_opset_too_old():
    with pytest.raises(ValueError, match="opset_version=17 is too old: torch.onnx makes graphs of opset 18 or newer"):
        export(fused_rnn.GRU(I, H), (torch.randn(5, 3, I),), opset_version=17)


def test_one_tensor_in_two_places():
    x, state = torch.randn(1, 3, I), torch.zeros(1, 3, H)
    with pytest.raises(ValueError, match=r"one tensor, of shape \(1, 3, 4\), in two places"):
        export(fused_rnn.LSTM(I, H).eval(), (x, (state, state)))


def test_the_exporter_of_torchscript():
    with pytest.raises(ValueError, match="dynamo=False is TorchScript's exporter"):
        export(fused_rnn.GRU(I, H), (torch.randn(5, 3, I),), dynamo=False)


def test_what_would_be_unrolled_unasked():
    model = nn.ModuleDict({"rnn": fused_rnn.GRU(I, H, dtype=torch.float16)})
    with pytest.raises(onnx.ExportError, match=r"^rnn \(GRU\) would be unrolled, for .*float16.* as model.float\(\)"):
        export(model, (torch.randn(5, 3, I).half(),))


def test_something_else_than_a_model():
    with pytest.raises(TypeError, match="model must be a module or an exported program, got int"):
        onnx.export(3, (torch.randn(5, 3, I),), None)


class OfEpisodes(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = fused_rnn.GRU(3, 4)

    def forward(self, x, resets):
        return self.gru(x, resets=resets)


def test_episodes_within_sequences_are_refused():
    arguments = torch.randn(5, 2, 3), torch.zeros(5, 2, dtype=torch.bool)
    with pytest.raises(onnx.ExportError, match="episodes within sequences have no translation: .* without resets"):
        onnx.export(OfEpisodes().eval(), arguments, None)


def test_float64_is_a_scan_which_onnxruntime_runs():
    modules = {kind.__name__: kind(I, H, dtype=torch.float64) for kind in (fused_rnn.LSTM, fused_rnn.GRU)}
    model = Several(modules)
    *floats, lengths = call(*SIZES[0], 1)
    program = export(model, (*(t.double() for t in floats), lengths), dynamic_shapes=(DYNAMIC, STATE, STATE, LENGTHS))
    assert {node.op_type for node in operators(program)} == {"Scan"}
    for T, B in SIZES:
        *floats, lengths = call(T, B, 1)
        arguments = (*(t.double() for t in floats), lengths)
        assert_equal(computed(program, arguments), model, arguments, list(modules))


def test_bfloat16():
    model = fused_rnn.GRU(I, H, dtype=torch.bfloat16).eval()
    with pytest.raises(onnx.ExportError, match=r"bfloat16 here, .* export it in float32, as module.float\(\)"):
        export(model, (torch.randn(5, 3, I, dtype=torch.bfloat16),))


def test_other_errors_are_torchs():
    with pytest.raises(torch.onnx.OnnxExporterError):
        export(fused_rnn.GRU(I, H).eval(), (torch.randn(5, 3, I + 1),))


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_without_the_extra(missing, monkeypatch):
    monkeypatch.setattr(onnx, "find_spec", lambda name: None if name == missing else object())
    message = rf"fused_rnn.onnx needs {missing}, which is not installed: pip install 'fused_rnn\[onnx\]'"
    for call_it in (onnx.table, lambda: export(fused_rnn.GRU(I, H), (torch.randn(5, 3, I),))):
        with pytest.raises(ImportError, match=message):
            call_it()


def test_importing_the_package_imports_no_onnx():
    code = "import sys, fused_rnn.onnx; print({'onnx', 'onnxscript', 'onnx_ir', 'torch.onnx'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
