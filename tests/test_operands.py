"""The named tuples that the operators' schemas are made of, and what goes by their names."""

from typing import NamedTuple

import pytest
import torch

from fused_rnn import operands as named
from fused_rnn.cells import WEIGHTS

from .conftest import Shape, operands, regularised

EVERYWHERE = [(namespace, name) for namespace in ("fused_rnn", "fused_rnn_triton") for name in named.SCHEMAS]
IN_CUDA = [("fused_rnn", name) for name in named.LOOP_SCHEMAS]


@pytest.mark.parametrize(("namespace", "name"), EVERYWHERE + IN_CUDA)
def test_schemas_are_made_of_the_tuples(namespace, name):
    """Names, order and types; those of ``fused_rnn`` are text in C++."""
    operators = getattr(torch.ops, namespace)
    if name in named.LOOP_SCHEMAS and not hasattr(operators, name):
        pytest.skip(f"the library is built without CUDA kernels: {torch.ops.fused_rnn.without_cuda()}")
    schema = {**named.SCHEMAS, **named.LOOP_SCHEMAS}[name]
    assert str(getattr(operators, name).default._schema) == f"{namespace}::{name}{schema}"


def test_what_has_a_default_may_be_missing():
    """As a later operand must, for programs that were saved before."""

    class Later(NamedTuple):
        keep_x: torch.Tensor | None = None

    assert named._declared(named.Wanted, Later) == "bool input_gradient, bool weight_gradients, Tensor? keep_x=None"


def test_names_are_those_of_the_cells():
    assert named.Operands._fields[: len(named.DIFFERENTIABLE)] == named.DIFFERENTIABLE
    assert set(named.SHAPES) | set(WEIGHTS) == {*named.Operands._fields[:13], *named.Results._fields}


def call(lengths=None) -> named.Operands:
    op = regularised(operands("lstm", Shape(5, 3, 2, 4), lengths=lengths))
    return named.Operands(*op.arguments(), "lstm", False, 0.05)


def test_parts_by_name():
    q = call()
    assert (*q.tensors, *q.how) == q
    assert q.differentiable == tuple(getattr(q, name) for name in named.DIFFERENTIABLE)
    assert q.weights == tuple(getattr(q, name) for name in WEIGHTS)
    assert q.masks == (q.keep_h, q.keep_c)
    with pytest.raises(RuntimeError, match="unknown cell 'lstn'"):
        _ = q._replace(cell="lstn").spec


def test_groups_of_backward():
    arguments = tuple(range(4 + 3 + 16 + 2))
    groups = named.BackwardCall.of(arguments)
    assert (groups.d_results.d_cells, groups.kept.saved, groups.operands.gradient_clip) == (3, 6, 22)
    assert groups.wanted == named.Wanted(input_gradient=23, weight_gradients=24)
    assert groups.arguments == arguments


def test_shapes(cell):
    """Of operands, and of what the operators make of them."""
    op = operands(cell, Shape(5, 3, 2, 4))
    q = named.Operands(*op.arguments(), cell, False, 0.0)
    for name in named.DIFFERENTIABLE:
        if getattr(q, name) is not None:
            assert getattr(q, name).shape == q.shape(name) == q.shape(f"d_{name}")
    results = named.Results(*torch.ops.fused_rnn.forward(*q, "everything"))
    for name, result in results._asdict().items():
        assert result.shape == (q.shape(name) if result.numel() else (0,))


def test_operands_of_some_steps():
    q = call(lengths=[5, 2, 3])
    part = q.between(1, 3)
    assert torch.equal(part.input, q.input[1:3])
    assert torch.equal(part.keep_h, q.keep_h[1:3])
    assert torch.equal(part.keep_c, q.keep_c[1:3])
    assert part.lengths.tolist() == [2, 1, 2]
    of_all = {name for name in q._fields if getattr(part, name) is getattr(q, name)}
    assert set(q._fields) - of_all == {"input", "keep_h", "keep_c", "lengths"}
