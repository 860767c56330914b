"""Zoneout and the clipping of gradients: the equations, every backend against the reference, the modules' options."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fused_rnn
from fused_rnn import ops

from .conftest import LENGTHS, Shape, operands, random_like, regularised, relative_error
from .precision import Yardstick
from .test_modules import MODULES, B, H, I, T, flat

DTYPE = torch.float64
SHAPE = Shape(7, len(LENGTHS), 5, 18)


# The equations ----------------------------------------------------------------------------------------------


def test_zoneout_keeps_parts_of_the_old_state(cell, reverse):
    """The expected states are single steps of the plain cell, mixed by hand."""
    op = replace(regularised(operands(cell, Shape(5, 2, 3, 4)), drawn=False), gradient_clip=None)
    op.reverse = reverse
    output, *last = op.run("reference")
    *last, cells = last if "c_0" in op.tensors else (*last, None)
    state = {name: op.tensors[name] for name in ("h_0", "c_0") if name in op.tensors}
    for t in reversed(range(5)) if reverse else range(5):
        one = replace(op, reverse=False, keep_h=None, keep_c=None, return_cells=False)
        _, *made = one.run("reference", input=op.tensors["input"][t : t + 1], **state)
        keep = (op.keep_h[t], None if op.keep_c is None else op.keep_c[t])
        state = {name: k * old + (1 - k) * new for (name, old), new, k in zip(state.items(), made, keep)}
        torch.testing.assert_close(output[t], state["h_0"])
        if cells is not None:
            torch.testing.assert_close(cells[t], state["c_0"])
    for result, expected in zip(last, state.values()):
        torch.testing.assert_close(result, expected)


def test_clipping_by_hand():
    """The backward pass of Elman's network is written out: gradients reach x, states and weights clipped."""
    op = replace(operands("rnn_tanh", Shape(4, 3, 2, 5), scale=1.5), gradient_clip=0.02)
    t, (d_output, d_h) = op.tensors, random_like(op.run("reference"))
    _, *gradients = op.results_and_gradients("reference", [d_output, d_h])[1:]
    states = [t["h_0"], *op.run("reference")[0]]
    d_x, d_w, d_u, d_b = [], 0, 0, 0
    for step in reversed(range(4)):
        d_a = (d_h + d_output[step]) * (1 - states[step + 1] ** 2)
        assert (d_a.abs() > 0.02).any()
        d_a = d_a.clamp(-0.02, 0.02)
        d_x.insert(0, d_a @ t["weight_ih"])
        d_w, d_u, d_b = d_w + d_a.T @ t["input"][step], d_u + d_a.T @ states[step], d_b + d_a.sum(0)
        d_h = d_a @ t["weight_hh"]
    assert list(t) == ["input", "h_0", "weight_ih", "weight_hh", "bias_ih", "bias_hh"]
    assert relative_error(gradients, [torch.stack(d_x), d_h, d_w, d_u, d_b, d_b]) < 1e-12


def test_every_pre_activation_is_clipped(cell):
    """The gradient of each bias is that of a pre-activation if there is one step of one sequence."""
    op = operands(cell, Shape(1, 1, 3, 4))
    d_results = [100 * d for d in random_like(op.run("reference"))]
    free, limited = (
        dict(zip(op.tensors, replace(op, gradient_clip=limit).results_and_gradients("reference", d_results)[-n:]))
        for n in [len(op.tensors)]
        for limit in (None, 0.05)
    )
    for name in op.tensors:
        if name.startswith("bias"):
            assert limited[name].abs().max() == 0.05 < free[name].abs().max()
    last_gates = "bias_ih" if cell != "gru_reset_after" else "bias_hh"
    torch.testing.assert_close(limited[last_gates][-4:], free[last_gates][-4:].clamp(-0.05, 0.05))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_limits_beyond_the_dtype(dtype):
    """Scaled losses bring scaled limits: 65536 is where gradient scalers begin, and more than float16 has."""
    limit = np.float64(1e39) if dtype != torch.float16 else 65536.0
    module = fused_rnn.GRU(2, 3, gradient_clip=limit, dtype=dtype)
    module.backend = "reference"
    free = copy.deepcopy(module)
    free.gradient_clip = None
    x = torch.randn(4, 2, 2, dtype=dtype)
    for each in (module, free):
        each(x)[0].sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(module.parameters(), free.parameters()))


def test_a_limit_that_nothing_reaches_changes_nothing(cell, backend):
    op = operands(cell, SHAPE)
    d_results = random_like(op.run("reference"))
    both = (replace(op, gradient_clip=limit).results_and_gradients(backend, d_results) for limit in (None, 1e6))
    assert all(torch.equal(a, b) for a, b in zip(*both))


# The backends -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recompute"])
def test_equals_reference(cell, backend, reverse, lengths, recompute):
    op = regularised(operands(cell, SHAPE, reverse=reverse, lengths=lengths), drawn=reverse)
    op.recompute = recompute
    d_results = random_like(op.run("reference"))
    exact = op.results_and_gradients("reference", d_results)
    assert relative_error(op.results_and_gradients(backend, d_results), exact) < 1e-11


@pytest.mark.parametrize("missing", ["keep_h", "keep_c"])
@pytest.mark.parametrize("name", ["lstm", "multiplicative_lstm_hidden"])
def test_one_state_alone(name, backend, missing):
    op = replace(regularised(operands(name, SHAPE)), **{missing: None})
    d_results = random_like(op.run("reference"))
    exact = op.results_and_gradients("reference", d_results)
    assert relative_error(op.results_and_gradients(backend, d_results), exact) < 1e-11


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_low_precision_is_no_worse_than_pytorch(cell, backend, dtype):
    """rnn_relu needs more draws than others, because rounding decides the slope of a unit near the kink."""
    draws = [
        regularised(operands(cell, Shape(20, 8, 12, 40), scale=1.0, seed=seed, dtype=dtype))
        for seed in range(8 if cell == "rnn_relu" else 3)
    ]
    yardstick = Yardstick(draws)
    yardstick.assert_no_worse(lambda op, d_results: op.results_and_gradients(backend, d_results))


def test_zoneout_gradcheck(cell, backend, reverse):
    op = regularised(operands(cell, Shape(3, 2, 2, 3), reverse=reverse), drawn=False)
    op.gradient_clip = None  # clipped gradients are not the derivatives
    assert torch.autograd.gradcheck(op.function(backend), tuple(op.tensors.values()))


def test_second_derivatives(cell, backend):
    op = regularised(operands(cell, Shape(3, 2, 2, 3)), drawn=False)
    inputs = list(op.tensors.values())
    for name in (backend, "reference"):
        firsts = torch.autograd.grad(sum(r.sin().sum() for r in op.run(name)), inputs, create_graph=True)
        with pytest.raises(RuntimeError, match="clipped gradients have no derivatives"):
            torch.autograd.grad(sum(f.square().sum() for f in firsts), inputs)
    op.gradient_clip = None
    assert torch.autograd.gradgradcheck(op.function(backend), tuple(inputs))


def test_a_unit_that_keeps_all_never_changes(cell, backend):
    op = operands(cell, SHAPE)
    op.keep_h = torch.ones(SHAPE.T, SHAPE.B, SHAPE.H, dtype=torch.bool)
    output = op.run(backend)[0]
    assert torch.equal(output, op.tensors["h_0"].expand_as(output))


def test_forward_derivatives(cell):
    """Forward derivatives, which the reference computes, are the same with and without clipping."""
    op = regularised(operands(cell, Shape(3, 2, 2, 3)))
    tensors = tuple(op.tensors.values())
    both = []
    for each in (op, replace(op, gradient_clip=None)):
        both.append(torch.func.jvp(each.function("auto"), tensors, tuple(random_like(tensors)))[1])
    assert all(torch.equal(a, b) for a, b in zip(*both))


# The modules ------------------------------------------------------------------------------------------------


def made(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    return MODULES[name](I, H, 2, dtype=DTYPE, bidirectional=True, **options)


def zoneout_of(name: str) -> dict[str, float]:
    return {"zoneout": 0.3} | ({"zoneout_cell": 0.4} if "lstm" in name else {})


def random_input(seed: int = 1) -> Tensor:
    return torch.randn(T, B, I, dtype=DTYPE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("name", MODULES)
def test_modules_draw_or_take_the_expectation(name, backend, training):
    """Modules equal a loop over layers by hand, with masks from the same seed in order of layers and directions."""
    module, x = made(name, gradient_clip=0.01, backend=backend, **zoneout_of(name)).train(training), random_input()
    torch.manual_seed(5)
    output, final = module(x)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    expected, hs = x, []
    for layer in range(2):
        parts = []
        for direction, suffix in enumerate(module._suffixes(layer)):
            masks = {}
            for key, p in zip(("keep_h", "keep_c"), zoneout_of(name).values()):
                masks[key] = torch.full((T, B, H), p, dtype=DTYPE)
                masks[key] = torch.bernoulli(masks[key]) if training else masks[key]
            weights = module._weights(suffix)
            how = {"reverse": direction == 1, "gradient_clip": 0.01, "backend": backend, **masks}
            part, last = ops.run(module.cell, expected, None, weights, **how)
            parts.append(part)
            hs.append(last)
        expected = torch.cat(parts, -1)
    assert torch.equal(output, expected)
    assert all(torch.equal(a, torch.stack(b)) for a, b in zip(flat((None, final))[1:], zip(*map(as_tuple, hs))))
    assert torch.equal(torch.get_rng_state(), state)
    leaves = list(module.parameters())
    gradients = (torch.autograd.grad(o.square().sum(), leaves, retain_graph=True) for o in (output, expected))
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def as_tuple(state) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_compiled_and_exported(name):
    """Training compiles to one graph; a program exported in eval mode takes the expectation."""
    module, x = made(name, gradient_clip=0.1, **zoneout_of(name)), random_input()
    results = []
    for run in (module, torch.compile(module, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(3)
        output = run(x)[0]
        results.append((output, *torch.autograd.grad(output.square().sum(), list(module.parameters()))))
    assert all(torch.equal(a, b) for a, b in zip(*results))
    program = torch.export.export(module.eval(), (x,))
    torch.testing.assert_close(program.module()(x)[0], module(x)[0])


def test_with_lengths_packing_autocast_and_recompute():
    """Recomputing keeps the drawn masks; packed sequences have the same expectation as lengths."""
    x, lengths = random_input(), torch.tensor([2, T, 4])
    options = zoneout_of("lstm") | {"gradient_clip": 0.1}
    results = []
    for recompute in (False, True):
        torch.manual_seed(3)
        results.append(made("lstm", recompute=recompute, **options)(x, lengths=lengths)[0])
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    module = made("lstm", **options).eval()
    output, _ = nn.utils.rnn.pad_packed_sequence(module(packed)[0])
    torch.testing.assert_close(output, module(x, lengths=lengths)[0])
    assert torch.equal(*results)
    with torch.autocast("cpu", torch.bfloat16):
        assert module.float()(x.float())[0].dtype == torch.bfloat16


def test_zoneout_of_the_cell_beside_projections():
    module, oracle = (made("lstm", proj_size=2, zoneout_cell=0.4, backend=b).eval() for b in ("auto", "reference"))
    torch.testing.assert_close(module(random_input())[0], oracle(random_input())[0])
    plain = made("lstm", proj_size=2).eval()
    assert not torch.allclose(module(random_input())[0], plain(random_input())[0])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gru", {"zoneout_cell": 0.1}, "zoneout_cell=0.1 is of cell states, which GRU does not have"),
        ("lstm", {"zoneout": 0.1, "proj_size": 2}, "zoneout=0.1 goes with proj_size=0, got 2"),
        ("lstm", {"zoneout": 1.5}, r"zoneout should be a number in range \[0, 1\].* got 1.5"),
        ("lstm", {"zoneout_cell": -1}, r"zoneout_cell should be a number in range \[0, 1\].* got -1"),
        ("rnn", {"gradient_clip": 0}, "gradient_clip must be greater than 0, or None for no limit, got 0"),
        ("rnn", {"gradient_clip": float("nan")}, "gradient_clip must be greater than 0.* got nan"),
    ],
)
def test_modules_refuse(name, options, message):
    with pytest.raises(ValueError, match=message):
        made(name, **options)


def test_repr_shows_the_options():
    module = made("lstm", **zoneout_of("lstm"), gradient_clip=2.0)
    assert "zoneout=0.3, zoneout_cell=0.4, gradient_clip=2.0" in repr(module)


@pytest.mark.parametrize(
    ("error", "message", "changed"),
    [
        (RuntimeError, r"keep_h must have shape \(3, 2, 4\) for T=3 and B=2 and H=4, got \(3, 4\)", {"keep_h": (3, 4)}),
        (ValueError, "keep_c is of cells that have a cell state, and cell 'gru' has none", {"keep_c": (3, 2, 4)}),
        (TypeError, r"keep_h must be a tensor \(T, B, H\) or None, got float", {"keep_h": 0.5}),
        (ValueError, "gradient_clip must be greater than 0", {"gradient_clip": -1.0}),
        (TypeError, "gradient_clip must be a number, or None for no limit, got str", {"gradient_clip": "1"}),
        (TypeError, "gradient_clip must be a number, or None for no limit, got bool", {"gradient_clip": True}),
    ],
)
def test_calls_refuse(backend, error, message, changed):
    op = operands("gru", Shape(3, 2, 3, 4))
    changed = {name: torch.rand(value) if isinstance(value, tuple) else value for name, value in changed.items()}
    with pytest.raises(error, match=message):
        replace(op, **changed).run(backend)
    op.keep_h = torch.rand(3, 2, 4, dtype=DTYPE, requires_grad=True)
    with pytest.raises(ValueError, match=r"keep_h is a mask, which has no gradient, .*: pass keep_h.detach\(\)"):
        op.run(backend)
