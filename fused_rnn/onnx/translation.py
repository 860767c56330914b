"""Translation of the operator ``forward`` to nodes of an ONNX graph, with the operands from torch.onnx.

Plain calls of the cells that ONNX has become one RNN, LSTM or GRU each; ``scan`` translates all others. ONNX has
another order of gates, takes both biases as one operand, and does not define the final state of a sequence without
steps.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from onnxscript import ir, optimizer
from onnxscript import opset18 as op

from ..operands import ForwardCall, Operands, Results
from ..ops import CELLS
from . import scan
from .errors import ExportError


@dataclass(frozen=True)
class Operator:
    """ONNX's operator for a cell: the order of its gates, in terms of the cell's, and its attributes."""

    name: str
    gates: tuple[int, ...]
    negated: int | None = None  # the gate, in ONNX's order, that is 1 minus the cell's
    attributes: dict = field(default_factory=dict)


OPERATORS = {
    "rnn_tanh": Operator("RNN", (0,), attributes={"activations": ["Tanh"]}),
    "rnn_relu": Operator("RNN", (0,), attributes={"activations": ["Relu"]}),
    "lstm": Operator("LSTM", (0, 3, 1, 2)),
    "gru": Operator("GRU", (1, 0, 2), negated=0, attributes={"linear_before_reset": 0}),
    "gru_reset_after": Operator("GRU", (1, 0, 2), attributes={"linear_before_reset": 1}),
}


def table() -> dict[Callable, Callable]:
    """Return the table that ``fused_rnn.onnx.table`` describes."""
    namespaces = (getattr(torch.ops, name) for name in ("fused_rnn", "fused_rnn_triton"))
    return {space.forward.default: _translate for space in namespaces if hasattr(space, "forward")}


def fold_weights(model: ir.Model) -> None:
    """Fold values computed from weights alone into constants; torch.onnx leaves large ones as they are."""
    kinds = ("Slice", "Neg", "Expand", "Concat", "Unsqueeze")
    optimizer.fold_constants(model, should_fold=lambda node: True if node.op_type in kinds else None)


def _translate(*arguments):  # untyped, because torch.onnx would read the types
    """Return the results of ``forward``, given its operands from torch.onnx: values, None, strings and numbers."""
    q, save = ForwardCall.of(arguments)
    if q.resets is not None:
        raise ExportError(
            "episodes within sequences have no translation: export the module without resets, and begin each episode "
            "with a call and an initial state of its own"
        )
    if save == "everything":
        raise ExportError(
            "a forward pass that saves what a backward pass reads has no translation: export with "
            "fused_rnn.onnx.export, or under torch.no_grad()"
        )
    if q.input.dtype == ir.DataType.BFLOAT16:
        raise ExportError(
            f"{q.cell} computes in bfloat16 here, and onnxruntime's recurrent operators do not: export it in float32, "
            "as module.float() and without autocast"
        )
    plain = save == "nothing" and not any(mask is not None for mask in q.masks)
    # ONNX defines its operators for float64 too, but onnxruntime does not have them
    if q.cell in OPERATORS and plain and q.input.dtype != ir.DataType.DOUBLE:
        return _complete(_operator(q))
    return _complete(scan.translate(q, cells=save == "states" and CELLS[q.cell].has_cell_state))


# torch.onnx reads the names of operands from this
_translate.__signature__ = inspect.Signature(
    [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ForwardCall.names()]
)


def _complete(results: dict[str, ir.Value]) -> list[ir.Value]:
    """Return all results in order; missing ones are empty, as from the operator itself."""
    return [results[name] if name in results else op.ConstantOfShape([0]) for name in Results._fields]


def _operator(q: Operands) -> dict[str, ir.Value]:
    operator = OPERATORS[q.cell]
    state = {"h": q.h_0} if q.c_0 is None else {"h": q.h_0, "c": q.c_0}
    attributes = {"direction": "reverse" if q.reverse else "forward", "hidden_size": q.h_0.shape[1]}
    output, *finals = getattr(op, operator.name)(
        q.input,
        op.Unsqueeze(_ordered(operator, q, q.weight_ih), [0]),
        op.Unsqueeze(_ordered(operator, q, q.weight_hh), [0]),
        _biases(operator, q),
        None if q.lengths is None else op.Cast(q.lengths, to=ir.DataType.INT32),
        *(op.Unsqueeze(part, [0]) for part in state.values()),
        **attributes,
        **operator.attributes,
    )
    results = {"output": op.Squeeze(output, [1])}
    for (name, before), final in zip(state.items(), finals):
        results[f"{name}_n"] = _after(q, before, op.Squeeze(final, [0]))
    return results


def _after(q: Operands, before: ir.Value, final: ir.Value) -> ir.Value:
    """Make a sequence without steps end with its initial state, where onnxruntime gives zeros."""
    return final if q.lengths is None else op.Where(op.Unsqueeze(op.Greater(q.lengths, 0), [1]), final, before)


def _ordered(operator: Operator, q: Operands, weight: ir.Value) -> ir.Value:
    """Reorder the gates of a weight or bias as ONNX has them."""
    if len(operator.gates) == 1:
        return weight
    H = q.h_0.shape[1]
    ordered = [op.Slice(weight, [gate * H], [(gate + 1) * H], [0]) for gate in operator.gates]
    if operator.negated is not None:
        ordered[operator.negated] = op.Neg(ordered[operator.negated])  # 1 − σ(a) = σ(−a)
    return op.Concat(*ordered, axis=0)


def _biases(operator: Operator, q: Operands) -> ir.Value | None:
    given = [bias for bias in (q.bias_ih, q.bias_hh) if bias is not None]
    if not given:
        return None
    nothing = op.Expand(op.CastLike(0.0, given[0]), [len(operator.gates) * q.h_0.shape[1]])
    both = (nothing if bias is None else _ordered(operator, q, bias) for bias in (q.bias_ih, q.bias_hh))
    return op.Unsqueeze(op.Concat(*both, axis=0), [0])
