"""Tools that look inside a model: their results, and the messages where they cannot work."""

import copy
import io
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils import flop_counter
from torch.utils.flop_counter import FlopCounterMode

import fused_rnn

from .conftest import Shape, operands, random_like, some_of
from .test_cell_modules import CELLS
from .test_modules import MODULES, PAIRS, B, H, I, P, T, pair
from .test_replacement import KINDS
from .test_torch_attributes import CLASSES

pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit:DeprecationWarning", "ignore:torch.ao:DeprecationWarning", "ignore::torch.jit.TracerWarning"
)
OF_TORCH = [kind.__name__ for kind in KINDS]


def tensors(result) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [t for part in result for t in tensors(part)]


def results_and_gradients(call, inputs: tuple, parameters: list[Tensor]) -> list[Tensor]:
    results = tensors(call(*inputs))
    return [*results, *torch.autograd.grad(sum(r.square().sum() for r in results), parameters)]


class Model(nn.Module):
    """A module of ours, or of torch.nn, in a program that unpacks its results."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor):
        output, state = self.rnn(x)
        return 2 * output, state


class Pair(nn.Module):
    """Two steps of one cell."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor):
        return self.cell(x, self.cell(x))


def model_of(kind: type, **options) -> tuple[nn.Module, Tensor]:
    """Return a program with a module of this kind, and its input."""
    torch.manual_seed(0)
    if kind.__name__.endswith("Cell"):
        return Pair(kind(I, H, **options)), torch.randn(B, I)
    return Model(kind(I, H, num_layers=2, bidirectional=True, **options)), torch.randn(T, B, I)


# torch.jit.trace --------------------------------------------------------------------------------------------


class Call(nn.Module):
    """A module whose arguments are only tensors, as jit.trace requires."""

    def __init__(self, module: nn.Module, form: str) -> None:
        super().__init__()
        self.module, self.form = module, form

    def forward(self, x: Tensor, *more: Tensor):
        if self.form == "lengths":
            return self.module(x, lengths=more[0])
        if self.form == "states":
            return self.module(x, more if len(more) > 1 else more[0])
        return self.module(x)

    def inputs(self, steps: int, batch: int) -> tuple[Tensor, ...]:
        x = torch.randn(steps, I) if self.form == "unbatched" else torch.randn(steps, batch, I)
        if self.form == "lengths":
            return x, torch.randint(0, steps + 1, (batch,))
        if self.form == "states":
            sizes = self.module._state_sizes().values()
            return x, *(torch.randn(self.module._runs, batch, size) for size in sizes)
        return (x,)


TRACED = {
    "one-layer": {},
    "layers": {"num_layers": 2, "bidirectional": True},
    "learnt-states": {"learn_initial_state": True},
    "eval-mode": {"zoneout": 0.5, "weight_drop": 0.5},
}
CASES = [(name, options) for name in MODULES for options in TRACED] + [("lstm", "projected")]


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no-grad"])
@pytest.mark.parametrize("form", some_of(["padded", "unbatched", "lengths", "states"], "padded", "lengths"))
@pytest.mark.parametrize(("name", "options"), CASES)
def test_traces_serve_every_size_with_and_without_gradients(name, options, form, grad):
    options = {"num_layers": 2, "bidirectional": True, "proj_size": P} if options == "projected" else TRACED[options]
    module = Call(MODULES[name](I, H, **options).train("zoneout" not in options), form)
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(module, module.inputs(4, 2))
    assert_equal_at_other_sizes(traced, module)


def assert_equal_at_other_sizes(traced: torch.jit.ScriptModule, module: Call, device: str = "cpu") -> None:
    """Assert that a trace, saved and loaded, serves other sizes, with gradients too, which jit.trace does not check."""
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    used = [name for name, _ in module.named_parameters() if module.form != "states" or "_0" not in name]
    for steps, batch in ((6, 5), (2, 1)):
        inputs = tuple(tensor.to(device) for tensor in module.inputs(steps, batch))
        expected, given = (
            results_and_gradients(call, inputs, [dict(call.named_parameters())[name] for name in used])
            for call in (module, loaded)
        )
        torch.testing.assert_close(given, expected)
        with torch.no_grad():
            torch.testing.assert_close(tensors(loaded(*inputs)), tensors(module(*inputs)), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(4, I), (I,)], ids=["batched", "unbatched"])
@pytest.mark.parametrize("name", CELLS)
def test_traces_of_single_steps(name, shape):
    step = CELLS[name](I, H)
    traced = torch.jit.trace(step, torch.randn(shape))
    x = (torch.randn(7 if len(shape) == 2 else I, *shape[1:]),)
    outcomes = [results_and_gradients(call, x, list(step.parameters())) for call in (traced, step)]
    torch.testing.assert_close(*outcomes)


WARNED = """
import warnings
import torch
import fused_rnn

for module in (fused_rnn.LSTM(2, 4, 2, proj_size=3), fused_rnn.GRUCell(2, 4)):
    with warnings.catch_warnings(record=True) as warned:
        torch.jit.trace(module, torch.zeros(5, 3, 2)[: 5 if isinstance(module, fused_rnn.LSTM) else 1].squeeze(0))
    assert {warning.category for warning in warned} <= {DeprecationWarning}, warned[-1]
"""


def test_a_trace_warns_of_none_of_our_checks():
    """The test runs in a process of its own, because pytest has its own filters."""
    subprocess.run([sys.executable, "-c", WARNED], check=True)


@pytest.mark.filterwarnings("default::torch.jit.TracerWarning")
def test_a_trace_of_the_reference_says_that_it_is_of_one_length():
    with pytest.warns(torch.jit.TracerWarning, match="len"):
        torch.jit.trace(fused_rnn.GRU(I, H, backend="reference"), torch.randn(T, B, I))


# torch.jit.script -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OF_TORCH)
def test_torchscript_compiles_torchs_module_with_our_parameters(kind):
    model, x = model_of(getattr(fused_rnn, kind))
    inputs, parameters = (x,), dict(model.named_parameters())
    expected = results_and_gradients(model, inputs, list(parameters.values()))
    with pytest.warns(UserWarning, match=rf"takes torch.nn.{kind}, with the same parameters.*give it a copy.deepcopy"):
        scripted = torch.jit.script(model)
    torch.testing.assert_close(results_and_gradients(scripted, inputs, list(parameters.values())), expected)
    assert dict(model.named_parameters()).keys() == parameters.keys()
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert type(next(model.children())) is getattr(nn, kind)


def test_torchscript_of_a_copy_leaves_the_model_alone():
    model, x = model_of(fused_rnn.LSTM)
    with pytest.warns(UserWarning, match="in the model that it was given"):
        scripted = torch.jit.script(copy.deepcopy(model))
    assert type(model.rnn) is fused_rnn.LSTM
    torch.testing.assert_close(scripted(x), model(x))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: fused_rnn.MultiplicativeGRU(I, H), "a cell that torch.nn lacks, 'multiplicative_gru'"),
        (lambda: fused_rnn.LSTM(I, H, zoneout=0.1), "zoneout=0.1: options that torch.nn lacks"),
        (lambda: fused_rnn.GRUCell(I, H, reset_after=False), "a cell that torch.nn lacks, 'gru'"),
    ],
    ids=["cell", "option", "single-step"],
)
def test_torchscript_says_what_it_cannot_compile_and_what_to_do(make, reason):
    module = make()
    with pytest.raises(RuntimeError, match=rf"cannot compile fused_rnn.{type(module).__name__}, .*\({reason}\): use"):
        torch.jit.script(nn.Sequential(module))


# torch.fx ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_fx_makes_one_node_of_a_call(kind):
    """The graph equals that of torch.nn's module, if there is one."""
    model, x = model_of(kind)
    graph = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(graph(x), model(x))
    assert graph.get_submodule(next(name for name, _ in model.named_children())) is next(model.children())
    if kind.__name__ in OF_TORCH:
        assert graph.code == torch.fx.symbolic_trace(model_of(getattr(nn, kind.__name__))[0]).code


def test_fx_hands_options_on():
    class WithOptions(Model):
        def forward(self, x: Tensor, state: Tensor, lengths: Tensor):
            return self.rnn(x, state, lengths), self.rnn(x, lengths=lengths, return_cells=True)

    model = WithOptions(fused_rnn.LSTM(I, H))
    graph = torch.fx.symbolic_trace(model)
    inputs = torch.randn(T, B, I), (torch.randn(1, B, H), torch.randn(1, B, H)), torch.tensor([2, T, 1])
    torch.testing.assert_close(graph(*inputs), model(*inputs))


def test_fx_says_that_it_cannot_look_into_a_module():
    for module in (fused_rnn.GRU(I, H), fused_rnn.GRUCell(I, H)):
        with pytest.raises(TypeError, match=f"torch.fx cannot look into fused_rnn.{type(module).__name__}, .*: trace"):
            torch.fx.symbolic_trace(module)


# torch.ao.quantization --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["LSTM", "GRUCell", "MultiplicativeLSTM"])
def test_quantisation_that_passes_by_is_told(kind):
    model = nn.Sequential(nn.Linear(I, I), getattr(fused_rnn, kind)(I, H))
    with pytest.warns(UserWarning, match=rf"leaves fused_rnn.{kind} as it is: fused_rnn.restore\(model\)"):
        quantised = torch.ao.quantization.quantize_dynamic(model)
    assert type(quantised[1]) is getattr(fused_rnn, kind)
    assert not hasattr(quantised[1], "qconfig")


# FLOP counters ----------------------------------------------------------------------------------------------


def flops(operands, backend: str, *differentiated: str) -> tuple[int, int]:
    """Return the FLOPs of forward and backward when these operands are differentiated."""
    for name, tensor in operands.tensors.items():
        kind = {"input": "input", "h_0": "states", "c_0": "states"}.get(name, "weights")
        tensor.requires_grad_(kind in differentiated)
    with FlopCounterMode(display=False) as counter:
        results = operands.run(backend)
        forward = counter.get_total_flops()
        torch.autograd.backward(results, random_like(results))
    return forward, counter.get_total_flops() - forward


@pytest.mark.parametrize(
    "differentiated", [("input", "states", "weights"), ("states", "weights"), ("input", "states")], ids=str
)
def test_flops_are_those_of_the_reference(cell, differentiated):
    op = operands(cell, Shape(T, B, I, H), dtype=torch.float32)
    forward, backward = flops(op, "reference", *differentiated)
    assert forward > 0 < backward
    assert flops(op, "cpu", *differentiated) == (forward, backward)
    op.recompute = True
    assert flops(op, "cpu", *differentiated) == (forward, forward + backward)


def test_flops_of_a_model_are_those_of_torchs():
    """FLOPs agree by module name, for a GRU, because torch's CPU implementation of it exposes its products."""
    counts = []
    for kind in (nn.GRU, fused_rnn.GRU):
        model, x = model_of(kind)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(x)
        counts.append({name: sum(by_operator.values()) for name, by_operator in counter.get_flop_counts().items()})
    assert counts[0] == counts[1]
    assert counts[1]["Model.rnn"] > 0


def test_flops_of_both_namespaces_are_known():
    names = ("forward", "backward", "backward_from_states")
    wanted = {getattr(getattr(torch.ops, space), name) for space in ("fused_rnn", "fused_rnn_triton") for name in names}
    assert wanted <= flop_counter.flop_registry.keys()


LATE = """
import sys
import torch
{first}
import {second} as second
assert (sys.modules.get("torch.utils.flop_counter") is None) == {light}
import fused_rnn
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    fused_rnn.GRU(2, 3)(torch.zeros(4, 5, 2))
assert counter.get_total_flops() == 2 * 4 * 5 * (9 * 2 + 9 * 3)
"""


@pytest.mark.parametrize("order", ["counter-first", "counter-last"])
def test_flops_are_counted_whichever_is_imported_first(order):
    """Importing fused_rnn does not import the counter, which imports Triton."""
    names = ["torch.utils.flop_counter", "fused_rnn"]
    first, second = names if order == "counter-first" else ("sys", "fused_rnn")
    code = LATE.format(first=f"import {first}", second=second, light=order == "counter-last")
    subprocess.run([sys.executable, "-c", code], check=True)


# Pruning, replicas ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAIRS)
def test_pruning(name):
    outcomes = []
    for module in pair(name):
        prune.l1_unstructured(module, "weight_hh_l0", 0.5)
        x = torch.linspace(-1, 1, T * B * I, dtype=torch.float64).view(T, B, I)
        outcomes.append(results_and_gradients(module, (x,), list(module.parameters())))
        prune.remove(module, "weight_hh_l0")
        outcomes[-1] += results_and_gradients(module, (x,), list(module.parameters()))
    torch.testing.assert_close(*outcomes)


@pytest.mark.parametrize("name", MODULES)
def test_replicas_of_data_parallel(name):
    """Replicas compute with weights that are not parameters."""
    module, x = MODULES[name](I, H, num_layers=2), torch.randn(T, B, I)
    replica = module._replicate_for_data_parallel()
    for key, parameter in module.named_parameters():
        setattr(replica, key, parameter.detach() / 2)
    half = copy.deepcopy(module)
    for parameter in half.parameters():
        parameter.data /= 2
    assert all(map(torch.equal, tensors(replica(x)), tensors(half(x))))
    assert all(map(torch.equal, replica._flat_weights, half.parameters()))
