"""Episodes within a sequence: each gives the results it gives alone, in functions and operators, with any option."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fused_rnn import functional, ops, recompute, reference

from .conftest import (
    LENGTHS,
    ODD_SHAPES,
    Operands,
    Shape,
    episodes,
    of_few_cells,
    operands,
    random_like,
    regularised,
    relative_error,
    threads,
    with_resets,
)
from .precision import Yardstick

SHAPE = Shape(7, len(LENGTHS), 5, 18)
DTYPE = torch.float64


def in_episodes(cell: str, *, lengths=None, shape: Shape = SHAPE, reverse=False, regular=True, **how) -> Operands:
    op = operands(cell, shape, reverse=reverse, lengths=lengths)
    return with_resets(regularised(op) if regular else op, **how)


# One episode after the other ----------------------------------------------------------------------------------


def run_alone(op: Operands) -> list[Tensor]:
    """Return the results of ``op.run``, from a call of the reference for every episode."""
    T, B = op.resets.shape
    steps, finals = [], []
    for b in range(B):
        length = T if op.lengths is None else int(op.lengths[b])
        found = episodes(op.resets[:, b], length)
        states = {name: t[b : b + 1] for name, t in op.tensors.items() if name in ("h_0", "c_0")}
        parts, final = [], list(states.values())
        for begin, end in reversed(found) if op.reverse else found:
            first = end == length if op.reverse else begin == 0 and not op.resets[0, b]
            here = states if first else {name: beginning(op, name, b) for name in states}
            alone = alone_of(op, begin, end, b, here)
            output, *final = alone.run("reference")
            final, cells = (final[:2], final[2:]) if "c_0" in states else (final, [])
            parts.append([output, *cells])
        parts = parts[::-1] if op.reverse else parts
        past = torch.zeros(T - length, 1, op.tensors["h_0"].shape[1], dtype=DTYPE)
        steps.append([torch.cat([*of_one, past]) for of_one in zip(*parts)] or [past] * len(states))
        finals.append(final)
    output, *cells = (torch.cat(of_all, 1) for of_all in zip(*steps))
    return [output, *(torch.cat(of_all) for of_all in zip(*finals)), *cells]


def beginning(op: Operands, name: str, b: int) -> Tensor:
    given = op.tensors.get(name.replace("_0", "_reset"))
    return torch.zeros_like(op.tensors[name][b : b + 1]) if given is None else given[b : b + 1]


def alone_of(op: Operands, begin: int, end: int, b: int, states: dict[str, Tensor]) -> Operands:
    def part(steps: Tensor | None) -> Tensor | None:
        return None if steps is None else steps[begin:end, b : b + 1]

    weights = {name: t for name, t in op.tensors.items() if name in ops.WEIGHTS}
    tensors = {"input": part(op.tensors["input"]), **states, **weights}
    more = {"keep_h": part(op.keep_h), "keep_c": part(op.keep_c), "gradient_clip": op.gradient_clip}
    return Operands(op.cell, tensors, op.reverse, **more)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
@pytest.mark.parametrize("learnt", [True, False], ids=["learnt", "zeros"])
def test_the_reference_gives_what_every_episode_gives_alone(cell, reverse, lengths, learnt):
    """This holds for results and gradients, with zoneout and clipping."""
    op = in_episodes(cell, lengths=lengths, reverse=reverse, learnt=learnt)
    expected = run_alone(op)
    d_results = random_like(expected)
    gradients = torch.autograd.grad(expected, list(op.tensors.values()), d_results)
    assert relative_error(op.results_and_gradients("reference", d_results), [*expected, *gradients]) < 1e-12


def test_the_reference_takes_boundaries(reverse):
    """The reference and the public functions take them in direct calls."""
    op = in_episodes("lstm", reverse=reverse, regular=False)
    tensors = dict(op.tensors)
    input, *state = (tensors.pop(name) for name in ("input", "h_0", "c_0"))
    for module in (reference, functional):
        output, final, cells = module.lstm(
            input, tuple(state), **tensors, resets=op.resets, reverse=reverse, return_cells=True
        )
        assert relative_error([output, *final, cells], run_alone(op)) < 1e-12


# The backends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
@pytest.mark.parametrize("again", [False, True], ids=["saved", "recompute"])
@pytest.mark.parametrize("regular", [False, True], ids=["plain", "regularised"])
def test_equals_reference(cell, backend, reverse, lengths, again, regular, monkeypatch):
    monkeypatch.setattr(recompute, "_FEWEST_ROWS", 1)  # parts of one step each, so episodes end between parts
    op = in_episodes(cell, lengths=lengths, reverse=reverse, regular=regular)
    op.recompute = again
    d_results = random_like(op.run("reference"))
    exact = op.results_and_gradients("reference", d_results)
    assert relative_error(op.results_and_gradients(backend, d_results), exact) < 1e-11


@pytest.mark.parametrize("shape", [*ODD_SHAPES[1:], Shape(2, 3, 40, 70), Shape(40, 2, 3, 150)], ids=str)
@pytest.mark.parametrize("missing", [(), ("h_reset",), ("c_reset",), ("h_reset", "c_reset")], ids="-".join)
def test_few_and_many_rows_and_states_that_are_missing(backend, reverse, shape, missing):
    op = in_episodes("lstm", shape=shape, reverse=reverse, regular=False)
    op.tensors = {name: t for name, t in op.tensors.items() if name not in missing}
    d_results = random_like(op.run("reference"))
    exact = op.results_and_gradients("reference", d_results)
    assert relative_error(op.results_and_gradients(backend, d_results), exact) < 1e-11


@pytest.mark.parametrize("shape", [Shape(6, 2, 3, 150), Shape(6, 40, 3, 8)], ids=str)
def test_threads_share_a_step(cell, shape):
    """Results are right if threads share sequences, or units of few sequences."""
    op = in_episodes(cell, shape=shape)
    d_results = random_like(op.run("reference"))
    exact = op.results_and_gradients("reference", d_results)
    with threads(3):
        assert relative_error(op.results_and_gradients("cpu", d_results), exact) < 1e-11


def test_gradcheck(cell, backend, reverse):
    op = in_episodes(cell, shape=Shape(4, 2, 2, 3), reverse=reverse, regular=False)
    assert torch.autograd.gradcheck(op.function(backend), tuple(op.tensors.values()))


@of_few_cells
def test_second_derivatives(cell, backend, reverse):
    op = in_episodes(cell, shape=Shape(3, 2, 2, 2), reverse=reverse, regular=False)
    assert torch.autograd.gradgradcheck(op.function(backend), tuple(op.tensors.values()))


def test_second_derivatives_of_what_a_call_does_not_read(cell, backend):
    """In one step no episode but the first begins in a reverse run."""
    op = in_episodes(cell, shape=Shape(1, 2, 2, 2), reverse=True, regular=False)
    assert torch.autograd.gradgradcheck(op.function(backend), tuple(op.tensors.values()))


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
def test_where_no_episode_begins_nothing_changes(cell, backend, reverse, lengths):
    """Results are equal to the bit."""
    plain = regularised(operands(cell, SHAPE, reverse=reverse, lengths=lengths))
    d_results = random_like(plain.run("reference"))
    never = replace(plain, resets=torch.zeros(SHAPE.T, SHAPE.B, dtype=torch.bool))
    both = (op.results_and_gradients(backend, d_results) for op in (plain, never))
    assert all(torch.equal(a, b) for a, b in zip(*both))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_low_precision_is_no_worse_than_pytorch(backend, dtype):
    draws = [
        with_resets(operands("lstm", Shape(20, 8, 12, 40), scale=1.0, seed=seed, dtype=dtype)) for seed in range(3)
    ]
    Yardstick(draws).assert_no_worse(lambda op, d_results: op.results_and_gradients(backend, d_results))


def test_what_an_episode_does_not_read_does_not_reach_it(cell, backend):
    """NaN in everything before a boundary, the initial state included, does not pass it."""
    op = operands(cell, Shape(6, 2, 3, 5))
    op.resets = torch.zeros(6, 2, dtype=torch.bool)
    op.resets[3] = True
    for name in ("input", "h_0", "c_0"):
        if name in op.tensors:
            spoilt = op.tensors[name].detach().clone()
            spoilt[:3] = torch.nan
            op.tensors[name] = spoilt.requires_grad_()
    output, *last = op.run(backend)
    assert not any(t.isnan().any() for t in (output[3:], *last[: 2 if "c_0" in op.tensors else 1]))


def test_functions_spread_one_state_over_all_sequences(backend):
    op = in_episodes("gru", regular=False)
    one = op.tensors["h_reset"][:1].detach()
    results = [op.run(backend, h_reset=state)[0] for state in (one[0], one.expand(SHAPE.B, -1))]
    assert torch.equal(*results)


def test_vmap_over_boundaries(backend):
    """Each member has its own boundaries, and gets its own gradients."""
    op = in_episodes("gru", shape=Shape(5, 3, 2, 4), regular=False)
    resets = torch.rand(4, 5, 3, generator=torch.Generator().manual_seed(1)) < 0.4

    def loss(weight: Tensor, resets: Tensor) -> Tensor:
        return replace(op, resets=resets).run(backend, weight_hh=weight)[0].sin().sum()

    weight = op.tensors["weight_hh"].detach()
    together = torch.func.vmap(torch.func.grad_and_value(loss), (None, 0))(weight, resets)
    apart = [torch.func.grad_and_value(loss)(weight, one) for one in resets]
    for found, expected in zip(together, zip(*apart)):
        torch.testing.assert_close(found, torch.stack(expected))


def test_forward_derivatives():
    op = in_episodes("lstm", shape=Shape(4, 2, 2, 3), regular=False)
    tensors = tuple(op.tensors.values())
    results = [
        torch.func.jvp(op.function(name), tensors, tuple(random_like(tensors)))[1] for name in ("auto", "reference")
    ]
    assert relative_error(*results) < 1e-12


def test_operators_pass_opcheck():
    op = in_episodes("lstm", shape=Shape(4, 2, 2, 3))
    begin = op.resets, op.tensors["h_reset"], op.tensors["c_reset"]
    arguments = (*op.arguments(), "lstm", True, 0.05, "everything", *begin)
    torch.library.opcheck(torch.ops.fused_rnn.forward.default, arguments)
    output, h_n, c_n, cells, saved = (t.detach() for t in torch.ops.fused_rnn.forward(*arguments))
    given = (*map(torch.randn_like, (output, h_n, c_n, cells)), output, cells, saved)
    for operator in (torch.ops.fused_rnn.backward, torch.ops.fused_rnn.backward_from_states):
        frozen = tuple(t.detach() if isinstance(t, Tensor) else t for t in arguments[:-4])
        torch.library.opcheck(operator.default, (*given, *frozen, True, True, *(t.detach() for t in begin)))


# Mistakes -----------------------------------------------------------------------------------------------------


def mistakes() -> Iterator[tuple]:
    flags = torch.zeros(3, 2, dtype=torch.bool)
    yield TypeError, r"resets must be a bool tensor \(T, B\) or None, got torch.float32", {"resets": torch.zeros(3, 2)}
    yield TypeError, r"resets must be a bool tensor \(T, B\) or None, got list", {"resets": [[True]]}
    yield RuntimeError, r"resets must have shape \(3, 2\), \(T, B\) of this input, got \(2, 3\)", {"resets": flags.T}
    yield RuntimeError, "resets is on meta but input is on cpu: move one of them", {"resets": flags.to("meta")}
    yield (
        ValueError,
        "h_reset is the state that episodes begin with, and goes with resets, which is missing",
        {"h_reset": torch.zeros(4)},
    )
    for error, message, state in (
        (RuntimeError, r"h_reset must have shape \(2, 4\) for B=2 and H=4, got \(3,\)", torch.zeros(3)),
        (RuntimeError, "h_reset is torch.float32 but input is torch.float64", torch.zeros(2, 4)),
        (TypeError, r"h_reset must be a tensor \(B, H\) or \(H\), or None for zeros, got float", 0.0),
    ):
        yield error, message, {"resets": flags, "h_reset": state}
    yield ValueError, "c_reset is of cells that have a cell state", {"resets": flags, "c_reset": torch.zeros(4)}


@pytest.mark.parametrize(("error", "message", "given"), [*mistakes()])
def test_calls_refuse(backend, error, message, given):
    t = operands("gru_reset_after", Shape(3, 2, 3, 4)).tensors
    with pytest.raises(error, match=message):
        functional.gru(t["input"], t["h_0"], t["weight_ih"], t["weight_hh"], backend=backend, **given)


def test_operators_refuse():
    """A direct caller gets an error and never reads out of bounds."""
    op = in_episodes("gru", shape=Shape(3, 2, 2, 4), regular=False)
    call = *op.arguments(), "gru", False, 0.0, "nothing"
    for wrong, message in (
        ((torch.zeros(3, 2),), "resets must be a bool tensor"),
        ((op.resets[:2],), "resets must have one entry per step and sequence"),
        ((None, op.tensors["h_reset"]), "h_reset goes with resets"),
        ((op.resets, op.tensors["h_reset"][:1]), "h_reset must have shape"),
        ((op.resets, None, op.tensors["h_reset"]), "c_reset goes with cells that have a cell state"),
    ):
        with pytest.raises(RuntimeError, match=message):
            torch.ops.fused_rnn.forward(*call, *wrong)
