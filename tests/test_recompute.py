"""recompute=True: the same gradients as the ordinary path from fewer saved values, rebuilt in one part or several."""

import copy
import io
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import fused_rnn
from fused_rnn import functional, ops, recompute

from .conftest import LENGTHS, Operands, Shape, of_few_cells, operands, random_like, relative_error, some_of
from .precision import Yardstick
from .test_functional import call
from .test_modules import MODULES, B, H, I, T, flat
from .test_ops import backward_arguments, torch_results_and_gradients


@pytest.fixture(params=[1, 3], ids=["one-part", "parts"])
def parts(request, monkeypatch) -> int:
    """Return the largest number of parts that steps are cut into; of three, the last is short unless 3 divides T."""
    monkeypatch.setattr(recompute, "_FEWEST_ROWS", 1)
    monkeypatch.setattr(recompute, "_MOST_PARTS", request.param)
    return request.param


def both_ways(op: Operands, backend: str) -> tuple[list[Tensor], list[Tensor]]:
    """Return results and gradients of the ordinary path, and those with recompute."""
    d_results = random_like(op.run("reference"))
    return tuple(replace(op, recompute=r).results_and_gradients(backend, d_results) for r in (False, True))


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_equals_the_ordinary_path(cell, backend, reverse, parts, lengths, bias):
    op = operands(cell, Shape(7, len(LENGTHS), 5, 18), reverse=reverse, lengths=lengths, bias=bias)
    expected, results = both_ways(op, backend)
    assert relative_error(results, expected) < 1e-12


@pytest.mark.parametrize("shape", [Shape(1, 1, 1, 1), Shape(5, 1, 3, 4), Shape(600, 5, 3, 5)], ids=str)
def test_any_number_of_parts(cell, backend, reverse, shape):
    """A short sequence is one part, a long one is several, and either may have sizes below a tile."""
    assert len(list(recompute._parts(shape.T, shape.B, reverse))) == (3 if shape.T == 600 else 1)
    expected, results = both_ways(operands(cell, shape, reverse=reverse), backend)
    assert relative_error(results, expected) < 1e-11


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_same_bits_on_the_cpu(cell, reverse, dtype):
    """One part is rebuilt to the bit, as long as the products have their rows in the same order."""
    op = operands(cell, Shape(7, len(LENGTHS), 5, 18), reverse=reverse, dtype=dtype)
    expected, results = both_ways(op, "cpu")
    assert all(torch.equal(a, b) for a, b in zip(results, expected))


def test_same_bits_twice(cell, backend, parts):
    op = operands(cell, Shape(7, len(LENGTHS), 5, 18), lengths=LENGTHS, dtype=torch.bfloat16)
    (_, first), (_, second) = (both_ways(op, backend) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@cache
def yardstick(cell: str, reverse: bool, dtype: torch.dtype) -> Yardstick:
    modules = [torch_results_and_gradients] if cell in ("lstm", "gru_reset_after") and not reverse else []
    how = {"scale": 1.0, "dtype": dtype, "reverse": reverse}
    draws = [operands(cell, Shape(50, 33, 11, 64), seed=seed, **how) for seed in range(3)]
    return Yardstick([replace(op, return_cells=cell != "lstm") for op in draws], *modules)  # torch.nn returns none


@of_few_cells
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_low_precision_is_no_worse_than_pytorch(cell, backend, reverse, parts, dtype):
    """Rebuilt from rounded states, gradients still have at most twice the error of PyTorch's own."""
    yardstick(cell, reverse, dtype).assert_no_worse(
        lambda op, d_results: replace(op, recompute=True).results_and_gradients(backend, d_results)
    )


@pytest.mark.parametrize("lengths", [None, [2, 0, 3]], ids=["whole", "lengths"])
def test_gradcheck(cell, backend, reverse, parts, lengths):
    op = replace(operands(cell, Shape(3, 3, 2, 3), reverse=reverse, lengths=lengths), recompute=True)
    assert torch.autograd.gradcheck(op.function(backend), tuple(op.tensors.values()))


@of_few_cells
def test_double_backward(cell, backend):
    op = replace(operands(cell, Shape(3, 2, 3, 4)), recompute=True)
    assert torch.autograd.gradgradcheck(op.function(backend), tuple(op.tensors.values()))


def test_what_stands_past_the_end_does_not_matter(cell, backend, reverse, parts):
    """NaN in the padding, or in the gradient of an output there, does not propagate."""
    op = operands(cell, Shape(7, len(LENGTHS), 3, 9), reverse=reverse, lengths=LENGTHS)
    d_results = random_like(op.run("reference"))
    exact = op.results_and_gradients(backend, d_results)
    past = torch.arange(7).unsqueeze(1) >= op.lengths
    op.tensors["input"] = op.tensors["input"].detach().masked_fill(past.unsqueeze(2), torch.nan).requires_grad_()
    d_results[0] = d_results[0].masked_fill(past.unsqueeze(2), torch.nan)
    assert relative_error(replace(op, recompute=True).results_and_gradients(backend, d_results), exact) < 1e-12


def test_gradients_of_some_results_and_operands(cell, backend, parts):
    """The loss may ignore a result, an operand may need no gradient, and the input may be transposed."""
    op = replace(operands(cell, Shape(7, 3, 4, 6)), recompute=True)
    leaf = torch.randn(3, 7, 4, dtype=torch.float64, requires_grad=True)
    for wanted in (leaf, op.tensors["weight_hh"], op.tensors["h_0"]):
        tensors = {**op.tensors, "input": leaf.transpose(0, 1)}
        tensors = {n: t if n == "input" or t is wanted else t.detach() for n, t in tensors.items()}
        for used in range(len(op.run(backend))):
            losses = [replace(op, tensors=tensors).run(name)[used].square().sum() for name in (backend, "reference")]
            ours, exact = (torch.autograd.grad(loss, wanted) for loss in losses)
            assert relative_error(ours, exact) < 1e-11


def saved_values(run: Callable[[], Tensor], operands: Iterable[Tensor]) -> int:
    """Return the number of values that autograd holds after a forward pass, besides the operands."""
    operand_memory = {t.data_ptr() for t in operands}
    saved = {}

    def pack(tensor):
        if tensor.data_ptr() not in operand_memory:
            saved[tensor.data_ptr()] = tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    assert output.requires_grad
    return sum(saved.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_what_is_saved(cell, backend, dtype):
    """Outputs are saved in either case; besides them the cell states, or all that the backward pass reads."""
    op = operands(cell, Shape(7, 3, 5, 18), dtype=dtype)
    spec = ops.CELLS[cell]
    states = 18 if spec.has_cell_state else 0
    everything = states + spec.saved * 18 + spec.modulated_size(5, 18)
    for recomputes, beside_output in ((False, everything), (True, states)):
        run = partial(replace(op, recompute=recomputes).run, backend)
        assert saved_values(lambda run=run: run()[0], op.tensors.values()) == 7 * 3 * (18 + beside_output)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_what_is_saved_changes_no_bit_of_the_results(cell, dtype):
    """Kernels that save other values are other code, but round alike, over many steps and in odd sizes."""
    op = operands(cell, Shape(33, 64, 9, 31), dtype=dtype)
    everything, states = op.run("cpu"), replace(op, recompute=True).run("cpu")
    with torch.no_grad():
        nothing = op.run("cpu")
    assert all(map(torch.equal, everything, states))
    assert all(map(torch.equal, everything, nothing))


@pytest.mark.parametrize("cell", some_of(["lstm", "multiplicative_gru"], "lstm"))
def test_opcheck(cell):
    op = operands(cell, Shape(3, 2, 3, 4), lengths=[3, 1], dtype=torch.float32)
    args = (*op.arguments(), cell, False, 0.0, "states")
    torch.library.opcheck(torch.ops.fused_rnn.forward.default, args)
    torch.library.opcheck(torch.ops.fused_rnn.backward_from_states.default, backward_arguments(op, args))


# The public interface -----------------------------------------------------------------------------------------


def test_functional(cell, backend):
    op = operands(cell, Shape(6, 3, 4, 9))
    gradients, saved = [], []
    for options in ({"recompute": True}, {}):
        run = partial(call, functional, cell, op.tensors, backend=backend, **options)
        saved.append(saved_values(lambda run=run: run()[0], op.tensors.values()))
        gradients.append(torch.autograd.grad(run()[0].square().sum(), op.tensors["weight_hh"]))
    assert saved[0] < saved[1]
    assert relative_error(*gradients) < 1e-12


def module_gradients(module, x: Tensor, **options) -> list[Tensor]:
    results = flat(module(x, **options))
    return [*results, *torch.autograd.grad(sum(r.square().sum() for r in results), [x, *module.parameters()])]


@pytest.mark.parametrize("name", MODULES)
def test_layers_and_directions(name, parts):
    torch.manual_seed(0)
    module = MODULES[name](I, H, 2, bidirectional=True, batch_first=True, dtype=torch.float64)
    recomputing = MODULES[name](I, H, 2, bidirectional=True, batch_first=True, dtype=torch.float64, recompute=True)
    recomputing.load_state_dict(module.state_dict())
    x = torch.randn(B, T, I, dtype=torch.float64, requires_grad=True)
    saved = [saved_values(lambda m=m: m(x)[0], [x, *m.parameters()]) for m in (recomputing, module)]
    assert saved[0] < saved[1]
    for lengths in (None, torch.tensor([T, 2, 0])):
        gradients = [module_gradients(m, x, lengths=lengths) for m in (recomputing, module)]
        assert relative_error(*gradients) < 1e-12


@pytest.mark.parametrize("name", MODULES)
def test_compiles_to_one_graph(name):
    torch.manual_seed(0)
    module = MODULES[name](I, H, 2, bidirectional=True, recompute=True)
    x = torch.randn(T, B, I, requires_grad=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for a, b in zip(module_gradients(module, x), module_gradients(compiled, x)):
        torch.testing.assert_close(a, b)


def test_compiled_code_serves_any_number_of_parts(monkeypatch):
    monkeypatch.setattr(recompute, "_FEWEST_ROWS", B)
    module = fused_rnn.LSTM(I, H, recompute=True)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    compilations = []
    for steps in (9, 2, 20):  # none equals another dimension, because torch would then treat the two as one
        x = torch.randn(steps, B, I, requires_grad=True)
        for a, b in zip(module_gradients(module, x), module_gradients(compiled, x)):
            torch.testing.assert_close(a, b)
        compilations.append(counter.frame_count)
    assert compilations[0] == compilations[-1]


@pytest.mark.parametrize("name", MODULES)
def test_reference_ignores_it(name):
    torch.manual_seed(0)
    module = MODULES[name](I, H, backend="reference", recompute=True)
    x = torch.randn(T, B, I, requires_grad=True)
    recomputing = module_gradients(module, x)
    module.recompute = False
    assert all(torch.equal(a, b) for a, b in zip(recomputing, module_gradients(module, x)))


def test_copies_pickles_and_prints():
    module = fused_rnn.GRU(I, H, recompute=True)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(module), torch.load(buffer, weights_only=False)):
        assert other.recompute is True
    assert repr(module) == f"GRU({I}, {H}, recompute=True)"
    assert "recompute" not in repr(fused_rnn.GRU(I, H))


def test_mistakes():
    with pytest.raises(TypeError, match="recompute should be of type bool, got: int"):
        fused_rnn.LSTM(I, H, recompute=1)
