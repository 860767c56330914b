"""The functional interface: arguments and results of the reference, and errors that say what is wrong."""

import inspect

import pytest
import torch

from fused_rnn import functional, ops, reference

from .conftest import FUSED, Shape, operands, random_like, relative_error

CALLS = {
    "rnn_tanh": ("rnn", {"nonlinearity": "tanh"}),
    "rnn_relu": ("rnn", {"nonlinearity": "relu"}),
    "lstm": ("lstm", {}),
    "gru": ("gru", {"reset_after": False}),
    "gru_reset_after": ("gru", {"reset_after": True}),
    "multiplicative_lstm": ("multiplicative_lstm", {}),
    "multiplicative_lstm_hidden": ("multiplicative_lstm", {"variant": "hidden"}),
    "multiplicative_gru": ("multiplicative_gru", {}),
}


FUNCTIONS = [name for name in reference.__all__ if inspect.isfunction(getattr(reference, name))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signature_mirrors_the_reference(name):
    ours, theirs = (list(inspect.signature(getattr(module, name)).parameters) for module in (functional, reference))
    assert ours == theirs


def test_functions_are_those_of_the_reference():
    assert [name for name in functional.__all__ if name != "Options"] == FUNCTIONS


def test_options_are_those_of_the_reference_and_two_more():
    options = functional.Options.__annotations__
    assert options == {**reference.PairOptions.__annotations__, "backend": str, "recompute": bool}
    run = inspect.signature(ops.run).parameters.values()
    assert {p.name for p in run if p.kind == p.KEYWORD_ONLY} == set(options)


@pytest.mark.parametrize("module", [functional, reference], ids=["functional", "reference"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_unknown_options_are_refused(module, name):
    op = operands(next(cell for cell, (known, _) in CALLS.items() if known == name), Shape(1, 1, 1, 1))
    with pytest.raises(TypeError, match="unexpected keyword argument 'length'"):
        call(module, op.cell, op.tensors, length=None)


@pytest.mark.parametrize("module", [functional, reference], ids=["functional", "reference"])
@pytest.mark.parametrize(
    ("cell", "wrong", "message"),
    [
        ("rnn_tanh", {"nonlinearity": "sigmoid"}, "unknown nonlinearity 'sigmoid': expected 'tanh' or 'relu'"),
        ("multiplicative_lstm", {"variant": "both"}, "unknown variant 'both': expected 'input' or 'hidden'"),
        ("gru", {"bias_hh": torch.zeros(3)}, "bias_hh .*"),
        ("multiplicative_lstm_hidden", {"bias_m": torch.zeros(1)}, "bias_m .*"),
    ],
    ids=str,
)
def test_unknown_names_and_superfluous_biases_are_refused(module, cell, wrong, message):
    name, options = CALLS[cell]
    tensors = operands(cell, Shape(2, 1, 1, 1)).tensors
    weights = {n: t for n, t in tensors.items() if n.startswith(("weight", "bias"))}
    with pytest.raises(ValueError, match=f"^{message}$"):
        getattr(module, name)(tensors["input"], None, **{**weights, **options, **wrong})


def call(module, cell: str, tensors: dict, state=None, **options):
    name, extra = CALLS[cell]
    weights = {n: t for n, t in tensors.items() if n.startswith(("weight", "bias"))}
    return getattr(module, name)(tensors["input"], state, **weights, **extra, **options)


@pytest.mark.parametrize("with_state", [False, True], ids=["zeros", "state"])
def test_equals_reference(cell, backend, with_state, reverse):
    op = operands(cell, Shape(6, 3, 4, 9), reverse=reverse)
    states = tuple(op.tensors[n] for n in ("h_0", "c_0") if n in op.tensors)
    state = None if not with_state else states if len(states) == 2 else states[0]
    how = {"reverse": reverse, **({"return_cells": True} if len(states) == 2 else {})}
    results = []
    for module, options in ((functional, {"backend": backend}), (reference, {})):
        output, last, *cells = call(module, cell, op.tensors, state, **how, **options)
        results.append([output, *(last if isinstance(last, tuple) else (last,)), *cells])
    assert relative_error(*results) < 1e-12


def test_cell_states_compile(backend):
    """Cell states compile to one graph, with their gradient, even if the backward pass rebuilds the gates."""
    op = operands("lstm", Shape(5, 3, 4, 6), lengths=[5, 0, 3])
    d_results = random_like(op.run("reference"))
    expected = op.results_and_gradients("reference", d_results)
    for op.recompute in (False, True):
        results = torch.compile(op.function(backend), fullgraph=True, backend="aot_eager")(*op.tensors.values())
        gradients = torch.autograd.grad(results, list(op.tensors.values()), d_results)
        assert relative_error([*results, *gradients], expected) < 1e-12


def test_weights_may_be_functions_of_parameters(cell, backend):
    """The gradient reaches the parameters that a weight was computed from, as in DropConnect."""
    op = operands(cell, Shape(5, 2, 3, 4))
    mask = (torch.rand(op.tensors["weight_hh"].shape, generator=torch.Generator().manual_seed(0)) > 0.5).double()
    tensors = {**op.tensors, "weight_hh": op.tensors["weight_hh"] * mask}
    output, _ = call(functional, cell, tensors, backend=backend)
    (gradient,) = torch.autograd.grad(output.square().sum(), op.tensors["weight_hh"])
    assert (gradient[mask == 0] == 0).all()
    assert (gradient[mask == 1] != 0).any()


@pytest.mark.parametrize("backend", [*FUSED, "reference"])
def test_mistakes(backend):
    op = operands("lstm", Shape(4, 3, 5, 2), dtype=torch.float32)
    t = {name: tensor.detach() for name, tensor in op.tensors.items()}
    state = (t["h_0"], t["c_0"])
    good = {"input": t["input"], "weight_ih": t["weight_ih"], "weight_hh": t["weight_hh"]}

    def run(state=state, **changed):
        return functional.lstm(state=state, **{**good, **changed}, backend=backend)

    run()
    cases = [
        (ValueError, r"input must be \(T, B, I\).*\(4, 3\)", {"input": torch.zeros(4, 3)}),
        (RuntimeError, r"at least one step and one feature, got \(0, 3, 5\)", {"input": torch.zeros(0, 3, 5)}),
        (RuntimeError, r"weight_ih must have shape \(8, 6\)", {"input": torch.zeros(4, 3, 6)}),
        (RuntimeError, r"weight_hh must have shape \(8, 2\)", {"weight_hh": torch.zeros(7, 2)}),
        (RuntimeError, r"weight_hh must be \(gates\*H, H\)", {"weight_hh": torch.zeros(8)}),
        (RuntimeError, r"bias_ih must have shape \(8,\)", {"bias_ih": torch.zeros(9)}),
        (RuntimeError, "bias_hh is torch.float64 but input is torch.float32", {"bias_hh": torch.zeros(8).double()}),
        (ValueError, "weight_ih is missing", {"weight_ih": None}),
        (RuntimeError, r"c_0 must have shape \(3, 2\)", {"state": (t["h_0"], torch.zeros(3, 3))}),
        (TypeError, r"a pair of tensors \(h_0, c_0\), got Tensor", {"state": t["h_0"]}),
    ]
    for error, message, changed in cases:
        with pytest.raises(error, match=message):
            run(**changed)
    with pytest.raises(ValueError, match="bias_hh is not a parameter of this cell"):
        functional.gru(torch.zeros(1, 1, 1), None, *[torch.zeros(3, 1)] * 2, None, torch.zeros(3), reset_after=False)
    m = operands("multiplicative_lstm", Shape(1, 1, 2, 2)).tensors
    with pytest.raises(ValueError, match="bias_m is not a parameter of this cell"):
        call(functional, "multiplicative_lstm_hidden", m)
    with pytest.raises(ValueError, match="unknown variant 'output': expected 'input' or 'hidden'"):
        functional.multiplicative_lstm(*[torch.zeros(1, 1, 1)] * 6, variant="output")
    with pytest.raises(ValueError, match="unknown nonlinearity 'sin'"):
        functional.rnn(torch.zeros(1, 1, 1), None, torch.zeros(1, 1), torch.zeros(1, 1), nonlinearity="sin")
