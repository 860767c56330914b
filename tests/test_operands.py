"""The named tuples that the operators' schemas are made of, and the code that uses their names."""

from typing import NamedTuple

import pytest
import torch

from fused_rnn import operands as named
from fused_rnn.cells import WEIGHTS

from .conftest import Shape, operands, regularised, with_resets

EVERYWHERE = [(namespace, name) for namespace in ("fused_rnn", "fused_rnn_triton") for name in named.SCHEMAS]
IN_CUDA = [("fused_rnn", name) for name in named.LOOP_SCHEMAS]


@pytest.mark.parametrize(("namespace", "name"), EVERYWHERE + IN_CUDA)
def test_schemas_are_made_of_the_tuples(namespace, name):
    """Names, order and types agree; those of ``fused_rnn`` are text in C++."""
    operators = getattr(torch.ops, namespace)
    if name in named.LOOP_SCHEMAS and not hasattr(operators, name):
        pytest.skip(f"the library is built without CUDA kernels: {torch.ops.fused_rnn.without_cuda()}")
    schema = {**named.SCHEMAS, **named.LOOP_SCHEMAS}[name]
    assert str(getattr(operators, name).default._schema) == f"{namespace}::{name}{schema}"


def test_what_has_a_default_may_be_missing():
    """New operands must be optional, for programs that were saved before."""

    class Later(NamedTuple):
        keep_x: torch.Tensor | None = None

    assert named._declared(named.Wanted, Later) == "bool input_gradient, bool weight_gradients, Tensor? keep_x=None"


def test_names_are_those_of_the_cells():
    last = len(named.LATER)
    assert named.Operands._fields[-last:] == named.LATER == tuple(named.Operands._field_defaults)
    assert (*named.Operands._fields[: 3 + len(WEIGHTS)], *named.LATER[1:]) == named.DIFFERENTIABLE
    tensors = *named.Operands._fields[:13], *named.LATER
    assert set(named.SHAPES) | set(WEIGHTS) == {*tensors, *named.Results._fields}


def call(lengths=None) -> named.Operands:
    op = with_resets(regularised(operands("lstm", Shape(5, 3, 2, 4), lengths=lengths)))
    begin = op.resets, op.tensors["h_reset"], op.tensors["c_reset"]
    return named.Operands(*op.arguments(), "lstm", False, 0.05, *begin)


def test_parts_by_name():
    q = call()
    assert named.Operands.joined(q.tensors, q.how) == q
    assert set(q.tensors) | set(q.how) == set(q)
    assert q.differentiable == tuple(getattr(q, name) for name in named.DIFFERENTIABLE)
    assert q.weights == tuple(getattr(q, name) for name in WEIGHTS)
    assert q.masks == (q.keep_h, q.keep_c)
    with pytest.raises(RuntimeError, match="unknown cell 'lstn'"):
        _ = q._replace(cell="lstn").spec


def test_groups_of_backward():
    arguments = tuple(range(4 + 3 + 16 + 2 + 3))
    groups = named.BackwardCall.of(arguments)
    assert (groups.d_results.d_cells, groups.kept.saved, groups.operands.gradient_clip) == (3, 6, 22)
    assert groups.wanted == named.Wanted(input_gradient=23, weight_gradients=24)
    assert (groups.operands.resets, groups.operands.c_reset) == (25, 27)
    assert groups.arguments == arguments


def test_a_call_without_resets_is_what_it_was_before_there_were_any():
    """Optional arguments are neither passed nor needed."""
    for group, fields in ((named.ForwardCall, 16 + 1), (named.BackwardCall, 4 + 3 + 16 + 2)):
        arguments = tuple(range(fields))
        assert group.of(arguments).operands[-3:] == (None, None, None)
        assert group.of(arguments).arguments == arguments
    forward = named.ForwardCall.of(range(16 + 1 + 3))
    assert (forward.save, forward.operands[-3:], forward.arguments) == (16, (17, 18, 19), tuple(range(20)))


def test_shapes(cell):
    """The shapes by name are those of operands and of the operators' results."""
    op = operands(cell, Shape(5, 3, 2, 4))
    q = named.Operands(*op.arguments(), cell, False, 0.0)
    for name in named.DIFFERENTIABLE:
        if getattr(q, name) is not None:
            assert getattr(q, name).shape == q.shape(name) == q.shape(f"d_{name}")
    results = named.Results(*torch.ops.fused_rnn.forward(*named.ForwardCall(q, "everything").arguments))
    for name, result in results._asdict().items():
        assert result.shape == (q.shape(name) if result.numel() else (0,))


def test_operands_of_some_steps():
    q = call(lengths=[5, 2, 3])
    part = q.between(1, 3)
    assert torch.equal(part.input, q.input[1:3])
    assert torch.equal(part.keep_h, q.keep_h[1:3])
    assert torch.equal(part.keep_c, q.keep_c[1:3])
    assert torch.equal(part.resets, q.resets[1:3])
    assert part.lengths.tolist() == [2, 1, 2]
    of_all = {name for name in q._fields if getattr(part, name) is getattr(q, name)}
    assert set(q._fields) - of_all == {"input", "keep_h", "keep_c", "lengths", "resets"}
