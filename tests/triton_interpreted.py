"""The Triton kernels in Triton's interpreter, through the public operators, against the float64 reference.

Not collected with the other tests: TRITON_INTERPRET=1 holds for a whole process, so test_triton.py starts one for it.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

import fused_rnn
from fused_rnn import ops
from fused_rnn.triton import launch, math, plan, tiles

from .conftest import (
    FEW_CELLS,
    Operands,
    Shape,
    operands,
    random_like,
    regularised,
    relative_error,
    some_of,
    with_resets,
)
from .test_math import X, units_in_the_last_place
from .test_vmap import BATCHED, SHAPE
from .test_vmap import error as vmap_error
from .test_vmap import error_of_members as vmap_error_of_members

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SMALL = Shape(2, 13, 11, 29)  # most of one tile; a smaller part of it would take the interpreter as long


@pytest.fixture(scope="module", autouse=True)
def interpreted_fast(request) -> Iterator[None]:
    """Spare Triton's interpreter what takes it most of the time, and changes no result.

    It patches the functions of its language again in each call of a function. It also computes sums and products of
    integers a second time to see whether they overflow, which sizes this small do not; exhaustive runs check that.
    """
    patch_language, builder = interpreter._patch_lang, interpreter.interpreter_builder
    options, no_patches = builder.options, interpreter._LangPatchScope
    scopes = [patch_language(kernel.fn) for kernel in (product, tl.sum)]  # tl as kernels and its own functions see it
    interpreter._patch_lang = lambda function: no_patches()
    builder.options = replace(options, sanitize_overflow=request.config.getoption("--exhaustive"))
    yield
    interpreter._patch_lang, builder.options = patch_language, options
    for scope in reversed(scopes):
        scope.restore()


@pytest.fixture(params=some_of(ops.CELLS, *FEW_CELLS))
def cell(request) -> str:
    return request.param


@pytest.fixture
def streamed(monkeypatch):
    """Pretend that no weights fit the device's shared memory."""
    monkeypatch.setattr(plan, "resident_plans", lambda *sizes: [])
    plan.choose_plan.cache_clear()
    yield
    plan.choose_plan.cache_clear()


def is_resident(op: Operands) -> bool:
    H, I = op.tensors["weight_hh"].shape[1], op.tensors["input"].shape[2]
    key = (op.cell, op.tensors["input"].dtype)
    forward, backward = (plan.choose_plan(*key, way, I, H, launch.shared_bytes(None)) for way in (False, True))
    assert forward.resident == backward.resident
    return forward.resident


def assert_as_exact_as_pytorch(op: Operands) -> None:
    """Against float64 on the same rounded operands, the error is at most twice that of PyTorch in this dtype."""
    d_results = random_like(op.run("reference"))
    exact = op.to(torch.float64).results_and_gradients("reference", d_results)
    theirs = relative_error(op.results_and_gradients("reference", d_results), exact)
    assert relative_error(op.results_and_gradients("triton", d_results), exact) <= 2 * theirs


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_and_gradients(cell, dtype, reverse):
    op = operands(cell, SMALL, reverse=reverse, dtype=dtype)
    assert is_resident(op) == (dtype != torch.float32)
    assert_as_exact_as_pytorch(op)


@pytest.mark.parametrize(("dtype", "H"), [(torch.float32, 35), (torch.bfloat16, 67)], ids=["float32", "bfloat16"])
@pytest.mark.usefixtures("streamed")
def test_weights_in_several_blocks(cell, dtype, H):
    """There are several programs, the last with a single sequence, and sequences that end early or never begin."""
    lengths = [2, 0, 1] * 5 + [2, 1]
    op = operands(cell, Shape(2, len(lengths), 3, H), reverse=dtype == torch.float32, lengths=lengths, dtype=dtype)
    assert not is_resident(op)
    assert_as_exact_as_pytorch(op)


@pytest.mark.parametrize("cell", some_of(["rnn_tanh", "rnn_relu", "lstm", "gru", "gru_reset_after"], "gru"))
def test_error_of_larger_layers(cell):
    """Float32 shows the errors of our own nonlinearities and of long sums."""
    assert_as_exact_as_pytorch(operands(cell, Shape(2, 13, 33, 130), scale=1.0, dtype=torch.float32))


def test_lengths(cell, reverse):
    op = operands(cell, Shape(4, 13, 11, 15), reverse=reverse, lengths=[2, 0, 4, 1] * 3 + [3], dtype=torch.bfloat16)
    assert is_resident(op)
    assert_as_exact_as_pytorch(op)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["streamed", "resident"])
def test_zoneout_and_clipping(cell, reverse, dtype):
    shape, lengths = Shape(3, 13, 11, 29), [3, 1, 2, 0, 3] * 2 + [1, 2, 3]
    op = regularised(operands(cell, shape, reverse=reverse, lengths=lengths, dtype=dtype), drawn=reverse)
    assert is_resident(op) == (dtype != torch.float32)
    assert_as_exact_as_pytorch(op)


@pytest.mark.parametrize("cell", ["lstm", "gru", "multiplicative_lstm_hidden"])
def test_clipping_on_the_chip(cell):
    """The bfloat16 case has limits that clip either none or all of the gradients, by a wide margin."""
    op = regularised(operands(cell, SMALL, dtype=torch.bfloat16))
    d_results = random_like(op.run("reference"))
    free, wide, narrow = (
        replace(op, gradient_clip=limit).results_and_gradients("triton", d_results) for limit in (None, 1e4, 2.0**-20)
    )
    assert all(torch.equal(a, b) for a, b in zip(free, wide))
    for name, gradient in zip(op.tensors, narrow[-len(op.tensors) :]):
        if name.startswith("bias"):
            assert 0 < gradient.abs().max() <= SMALL.T * SMALL.B * 2.0**-20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["streamed", "resident"])
@pytest.mark.parametrize("learnt", some_of([False, True], True), ids=["zeros", "learnt"])
def test_resets(cell, reverse, dtype, learnt):
    lengths = [4, 1, 2, 0, 4] * 2 + [1, 2, 3] if learnt else None
    op = operands(cell, Shape(4, 13, 11, 29), reverse=reverse, lengths=lengths, dtype=dtype)
    op = with_resets(op, share=0.4, learnt=learnt)
    assert is_resident(op) == (dtype != torch.float32)
    assert_as_exact_as_pytorch(regularised(op) if learnt else op)


@pytest.mark.parametrize("cell", some_of(["lstm", "multiplicative_gru"], "multiplicative_gru"))
@pytest.mark.usefixtures("streamed")
def test_resets_in_several_programs_and_blocks(cell):
    op = with_resets(operands(cell, Shape(3, 17, 3, 35), reverse=True, dtype=torch.float32))
    assert_as_exact_as_pytorch(op)
    op.recompute = True
    assert_as_exact_as_pytorch(op)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["streamed", "resident"])
def test_where_no_episode_begins_nothing_changes(cell, dtype):
    op = operands(cell, SMALL, dtype=dtype)
    d_results = random_like(op.run("reference"))
    never = replace(op, resets=torch.zeros(SMALL.T, SMALL.B, dtype=torch.bool))
    both = (each.results_and_gradients("triton", d_results) for each in (op, never))
    assert all(torch.equal(a, b) for a, b in zip(*both))


def test_what_stands_past_the_end_does_not_matter(cell):
    """NaN in the padding, or in the gradient of an output there, reaches nothing."""
    op = operands(cell, Shape(2, 3, 2, 3), reverse=True, lengths=[2, 0, 1], dtype=torch.bfloat16)
    d_results = random_like(op.run("reference"))
    clean = op.results_and_gradients("triton", d_results)
    past = (torch.arange(2).unsqueeze(1) >= op.lengths).unsqueeze(2)
    op.tensors["input"] = op.tensors["input"].detach().masked_fill(past, torch.nan).requires_grad_()
    d_results[0] = d_results[0].masked_fill(past, torch.nan)
    assert all(torch.equal(a, b) for a, b in zip(op.results_and_gradients("triton", d_results), clean))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [-1e4, 1e30])
def test_saturated_gates(cell, dtype, value):
    """Huge pre-activations saturate, as in PyTorch, and never make a NaN, not even in gradients."""
    if cell == "rnn_relu" or ("multiplicative" in cell and value > 1e5):
        pytest.skip("grows without bound, by its equation")
    op = operands(cell, Shape(2, 1, 2, 3), dtype=dtype)
    op.tensors["bias_ih"] = torch.full_like(op.tensors["bias_ih"], value).requires_grad_()
    expected = op.run("reference")
    results = op.results_and_gradients("triton", random_like(expected))
    assert all(t.isfinite().all() for t in results)
    for ours, theirs in zip(results, expected):
        torch.testing.assert_close(ours, theirs, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-5)


def test_nan_propagates_in_its_sequence_alone(cell):
    op = operands(cell, Shape(3, 3, 2, 4), dtype=torch.float32)
    poisoned = op.tensors["h_0"].detach().clone()
    poisoned[1, 3] = torch.nan
    for ours, theirs in zip(op.run("triton", h_0=poisoned), op.run("reference", h_0=poisoned)):
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("used", [["output"], ["h_n"], ["c_n"], ["cells"]], ids="+".join)
def test_without_biases_and_some_gradients(cell, used):
    if used[-1].startswith("c") and not ops.CELLS[cell].has_cell_state:
        pytest.skip("has no cell state")
    op = operands(cell, SMALL, bias=False, dtype=torch.float32)
    gradients = []
    for name in ("triton", "reference"):
        results = dict(zip(("output", "h_n", "c_n", "cells"), op.run(name)))
        gradients.append(torch.autograd.grad(sum(results[key].sum() for key in used), list(op.tensors.values())))
    assert relative_error(*gradients) < 1e-5


def test_strided_operands_are_read_for_what_they_say():
    op = operands("multiplicative_lstm", SMALL, dtype=torch.float32)
    d_results = random_like(op.run("reference"))
    plain = op.results_and_gradients("triton", d_results)
    for name, t in op.tensors.items():
        op.tensors[name] = torch.stack([t.detach(), torch.full_like(t, torch.nan)], -1)[..., 0].requires_grad_()
    strided = [torch.stack([d, d], -1)[..., 0] for d in d_results]
    assert relative_error(op.results_and_gradients("triton", strided), plain) < 1e-6


@pytest.mark.parametrize("name", ["lstm", "multiplicative_gru"])
def test_recompute_and_same_bits_twice(name):
    op = operands(name, SMALL, lengths=[2, 1, 0] * 4 + [1], dtype=torch.float32)
    d_results = random_like(op.run("reference"))
    first, second = (op.results_and_gradients("triton", d_results) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    op.recompute = True
    assert relative_error(op.results_and_gradients("triton", d_results), first) < 1e-6


def test_double_backward():
    op = operands("multiplicative_gru", Shape(2, 2, 2, 3), dtype=torch.float32)
    x = op.tensors["input"]
    seconds = []
    for name in ("triton", "reference"):
        (first,) = torch.autograd.grad(op.run(name)[0].square().sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad(first.square().sum(), list(op.tensors.values())))
    assert relative_error(*seconds) < 1e-5


@pytest.mark.parametrize("batched", some_of(["sequences", "weights"], "sequences"))
def test_vmap(batched):
    names = BATCHED[batched]
    op = replace(operands("lstm", SHAPE, dtype=torch.float32), lengths=torch.tensor([3, 1]))
    assert vmap_error(op, "triton", names) < 1e-5
    assert vmap_error_of_members(op, "triton", names) < 1e-5


def test_opcheck():
    name = "multiplicative_lstm"
    op = operands(name, Shape(1, 1, 2, 3), lengths=[1], dtype=torch.bfloat16)
    args = (*op.arguments(), name, False, 0.0, "everything")
    torch.library.opcheck(torch.ops.fused_rnn_triton.forward.default, args)
    results = [t.detach() for t in torch.ops.fused_rnn_triton.forward(*args)]
    d_results = [t.clone() for t in results[:4]]
    d_results[0].requires_grad_()
    output, _, _, cells, saved = results
    args = (*d_results, output, cells, saved, *op.arguments(), name, False, 0.0, True, True)
    torch.library.opcheck(torch.ops.fused_rnn_triton.backward.default, args)


def test_compile_without_graph_breaks():
    op = operands("lstm", SMALL, dtype=torch.float32)
    d_results = random_like(op.run("reference"))
    eager = op.results_and_gradients("triton", d_results)
    compiled = torch.compile(op.function("triton"), backend="aot_eager", fullgraph=True)
    results = compiled(*op.tensors.values())
    gradients = torch.autograd.grad(results, list(op.tensors.values()), d_results)
    assert relative_error([*results, *gradients], eager) < 1e-6


def test_modules():
    lstm = torch.nn.LSTM(3, 4, num_layers=2, bidirectional=True)
    fused = fused_rnn.LSTM(3, 4, num_layers=2, bidirectional=True, backend="triton")
    fused.load_state_dict(lstm.state_dict())
    x = torch.randn(3, 2, 3)
    torch.testing.assert_close(fused(x)[0], lstm(x)[0])


@pytest.mark.parametrize("proj_size", [0, 2], ids=["plain", "projected"])
def test_packed_sequences(proj_size):
    lstm = torch.nn.LSTM(3, 4, bidirectional=True, proj_size=proj_size)
    fused = fused_rnn.LSTM(3, 4, bidirectional=True, proj_size=proj_size, backend="triton")
    fused.load_state_dict(lstm.state_dict())
    packed = torch.nn.utils.rnn.pack_sequence([torch.randn(n, 3) for n in (1, 3, 2)], enforce_sorted=False)
    state = torch.randn(2, 3, proj_size or 4), torch.randn(2, 3, 4)
    torch.testing.assert_close(fused(packed, state)[0].data, lstm(packed, state)[0].data)


def test_single_step():
    cell = torch.nn.GRUCell(3, 4)
    fused = fused_rnn.replace(cell, backend="triton").model
    torch.testing.assert_close(fused(torch.ones(2, 3)), cell(torch.ones(2, 3)))


def test_the_schemas_are_those_of_the_compiled_operators():
    if not hasattr(torch.ops.fused_rnn, "forward"):
        pytest.skip("there is no compiled library to compare with")
    for name in ("forward", "backward", "backward_from_states"):
        ours, theirs = (
            getattr(space, name).default._schema for space in (torch.ops.fused_rnn_triton, torch.ops.fused_rnn)
        )
        assert str(ours) == str(theirs).replace("fused_rnn::", "fused_rnn_triton::")


def test_operator_refuses_what_it_cannot_read():
    op = operands("lstm", Shape(2, 2, 3, 4), dtype=torch.float32)
    good = op.arguments()
    forward, backward = torch.ops.fused_rnn_triton.forward, torch.ops.fused_rnn_triton.backward
    with pytest.raises(RuntimeError, match="unknown cell 'lstn'"):
        forward(*good, "lstn", False, 0.0, "nothing")
    with pytest.raises(RuntimeError, match="save must be 'nothing', 'states' or 'everything', got 'all'"):
        forward(*good, "lstm", False, 0.0, "all")
    with pytest.raises(RuntimeError, match="c_0 goes with cells that have a cell state"):
        forward(*good, "gru", False, 0.0, "nothing")
    with pytest.raises(RuntimeError, match="weight_mih is missing"):
        forward(*good[:6], None, *good[7:], "multiplicative_lstm", False, 0.0, "nothing")
    for index in range(1, 7):
        for wrong in (good[index].detach()[..., :-1], good[index].detach().double()):
            with pytest.raises(RuntimeError, match=r"must have (the same )?(shape|dtype)"):
                forward(*good[:index], wrong, *good[index + 1 :], "lstm", False, 0.0, "nothing")
    with pytest.raises(RuntimeError, match="lengths must be an int64 tensor"):
        forward(*good[:-3], torch.ones(3, dtype=torch.int64), None, None, "lstm", False, 0.0, "nothing")
    for name, masks in (("keep_h", (torch.ones(2, 4), None)), ("keep_c", (None, torch.ones(2, 4)))):
        with pytest.raises(RuntimeError, match=f"{name} must have shape"):
            forward(*good[:-2], *masks, "lstm", False, 0.0, "nothing")
    with pytest.raises(RuntimeError, match="gradient_clip must be positive, or 0 for none, got -1"):
        forward(*good, "lstm", False, -1.0, "nothing")
    output, h_n, c_n, cells, saved = (t.detach() for t in forward(*good, "lstm", False, 0.0, "everything"))
    results = {"d_output": output, "d_h_n": h_n, "d_c_n": c_n, "d_cells": cells}
    results |= {"output": output, "cells": cells, "saved": saved}
    for name, result in results.items():
        with pytest.raises(RuntimeError, match=f"{name} must have shape"):
            backward(*({**results, name: result[..., 1:]}).values(), *good, "lstm", False, 0.0, True, True)


def test_float64_is_refused_with_the_reason():
    with pytest.raises(RuntimeError, match=r"dtype is torch.float64, the backend computes in torch.float32, .*float16"):
        operands("lstm", SMALL).run("triton")


def test_backward_under_autocast_keeps_to_the_forward_pass():
    """Gradients of a float32 call are the same bits under autocast, also those of products around the kernels."""
    op = operands("gru", SMALL, dtype=torch.float32)
    outcomes = []
    for enabled in (False, True):
        output = op.run("triton")[0]
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            outcomes.append(torch.autograd.grad(output.square().sum(), list(op.tensors.values())))
    assert all(torch.equal(a, b) for a, b in zip(*outcomes))


def evaluate(function: triton.JITFunction, x: torch.Tensor) -> torch.Tensor:
    """Return a function of fused_rnn/triton/math.py at x, as kernels that store float32 compute it."""
    y = torch.empty_like(x)
    elementwise[(1,)](function, x, y, len(x), triton.next_power_of_2(len(x)))
    return y


@triton.jit
def elementwise(FUNCTION: tl.constexpr, x, y, size, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    value = tl.load(x + i, mask=i < size, other=0.0)
    tl.store(y + i, FUNCTION(value, y.dtype.element_ty), mask=i < size)


def test_error_of_the_functions():
    """Errors are in units in the last place, over all normal numbers; σ becomes zero in its subnormal range."""
    every = torch.arange(-(2**31), 2**31, 40_009).int().view(torch.float32)
    every = every[every.isfinite()]
    for function, exact, lowest, highest, most in (
        (math.exp, torch.exp, -87, 88.37, 1.1),
        (math.sigmoid, torch.sigmoid, -87, torch.inf, 2.5),
        (math.tanh, torch.tanh, -torch.inf, torch.inf, 1.5),
    ):
        x = torch.cat([every, X])
        x = x[(lowest <= x) & (x <= highest)]
        assert units_in_the_last_place(evaluate(function, x), exact(x.double())) < most


def test_limits_of_the_functions():
    x = torch.tensor([0.0, -0.0, 1e-38, 1e-45, 200.0, -200.0, 1e30, -1e30, torch.inf, -torch.inf, torch.nan])
    for function, exact in ((math.tanh, torch.tanh), (math.sigmoid, torch.sigmoid)):
        torch.testing.assert_close(evaluate(function, x), exact(x), rtol=0, atol=0, equal_nan=True)
    x = torch.tensor([0.0, -0.0, 1e-45, 89.0, 1e30, torch.inf, torch.nan])
    torch.testing.assert_close(evaluate(math.exp, x), torch.exp(x), rtol=0, atol=0, equal_nan=True)


def multiplied(left: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the streaming kernels' product of 16 rows and 32 columns."""
    result = torch.empty(left.shape[0], weight.shape[1])
    product[(1,)](left, weight, result, left.shape[1], *result.shape, 16)
    return result


@pytest.mark.parametrize("K", [32, 64, 96, 1056, 5216])
def test_error_of_long_sums(K):
    """The error in float32 is at most twice that of PyTorch's product, also where K ends with half a part."""
    left, weight = torch.randn(plan.BLOCK_B, K), torch.randn(K, 32)
    exact = left.double() @ weight.double()
    assert relative_error([multiplied(left, weight)], [exact]) <= 2 * relative_error([left @ weight], [exact])


def test_long_sums_are_of_parts():
    """Floats from 2²⁸ on are 32 apart: a chain of additions loses all the ones, parts only those of the first part."""
    left, weight = torch.ones(plan.BLOCK_B, 1056), torch.ones(1056, 32)
    weight[0] = 2**28
    assert ((multiplied(left, weight).double() - 2**28 - 1055).abs() <= 64).all()


@triton.jit
def product(left, weight, result, K, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    zeros = tl.zeros((BLOCK_B, BLOCK_N), tl.float32)
    sums = tiles.add_products((zeros,), left, weight, 0, 0, K, BLOCK_N, False, BLOCK_K, "ieee")
    tl.store(result + tiles.offsets(BLOCK_N, 0, BLOCK_B, BLOCK_N), sums[0])
