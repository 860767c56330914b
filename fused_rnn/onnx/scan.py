"""Calls that ONNX has no operator for as a Scan: multiplicative cells, zoneout, and cell states of all steps.

The body of the Scan is the reference at a single step, which torch.onnx exports by itself; so no equation is written
here again. As in ``recompute`` a sequence past its end is one that has no steps.
"""

import torch
from onnxscript import evaluator, ir
from onnxscript import opset18 as op
from torch import Tensor, nn
from torch.export import Dim

from ..operands import MASKS, SHAPES, WEIGHTS, Operands

_DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
}


class _Step(nn.Module):
    """One step by the reference, of operands without their dimension of time."""

    def __init__(self, q: Operands, cells: bool) -> None:
        super().__init__()
        self.q, self.cells = q._replace(**{name: None for name in q._fields[: len(q.tensors)]}), cells

    def forward(self, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The state, then what becomes outputs."""
        timed = {name: given[name].unsqueeze(0) for name in ("input", *MASKS) if name in given}
        q = self.q._replace(**(given | timed), reverse=False, gradient_clip=0.0)
        if q.c_0 is None:
            output, state = q.by_reference(return_cells=False)
            return state, output.squeeze(0)
        output, state, *cells = q.by_reference(return_cells=self.cells)
        return *state, output.squeeze(0), *(sequence.squeeze(0) for sequence in cells)


def translate(q: Operands, cells: bool) -> dict[str, ir.Value]:
    """Results by name."""
    present = {name: value for name, value in zip(q._fields, q.tensors) if value is not None}
    state = [name for name in ("h_0", "c_0") if name in present]
    timed = [name for name in ("input", *MASKS, "lengths") if name in present]
    scanned = {name: present[name] for name in timed}
    if q.lengths is not None:
        scanned["lengths"] = _active(q)
    body = _body(q, cells, present, [*state, *timed])
    results = ["output", "cells"] if cells else ["output"]
    direction = int(q.reverse)
    node = ir.Node(
        "",
        "Scan",
        inputs=[*(present[name] for name in state), *scanned.values()],
        attributes=ir.convenience.convert_attributes(
            {
                "body": body,
                "num_scan_inputs": len(timed),
                "scan_input_directions": [direction] * len(timed),
                "scan_output_directions": [direction] * len(results),
            }
        ),
        num_outputs=len(state) + len(results),
    )
    evaluator.default().nodes.append(node)  # as op.Scan would, which knows of one output only
    return dict(zip([*(name.replace("_0", "_n") for name in state), *results], node.outputs))


def _active(q: Operands) -> ir.Value:
    """(T, B) int64: 1 where a sequence has the step, 0 past its end."""
    steps = op.Squeeze(op.Shape(q.input, start=0, end=1), [0])
    times = op.Unsqueeze(op.Range(0, steps, 1), [1])
    return op.Cast(op.Less(times, op.Unsqueeze(q.lengths, [0])), to=ir.DataType.INT64)


def _body(q: Operands, cells: bool, present: dict[str, ir.Value], inputs: list[str]) -> ir.Graph:
    """The graph of one step, whose inputs are these and which sees the weights from within."""
    example = {name: _example(name, value) for name, value in present.items()}
    shapes = {name: {} if name in WEIGHTS else {0: Dim.DYNAMIC} for name in example}
    how = {"dynamic_shapes": {"given": shapes}, "opset_version": op.version, "verbose": False}
    program = torch.onnx.export(_Step(q, cells).eval(), kwargs={"given": example}, **how)
    graph = program.model.graph
    given = dict(zip(example, graph.inputs))
    nodes, outputs, initializers = list(graph), list(graph.outputs), list(graph.initializers.values())
    for part in (graph.inputs, graph.outputs, graph.initializers):
        part.clear()
    graph.remove(nodes)
    for name, value in given.items():
        if name in WEIGHTS:
            value.replace_all_uses_with(present[name])
    inside = [given[name] for name in inputs]
    return ir.Graph(inside, outputs, nodes=nodes, initializers=initializers, name=f"{q.cell}_step")


def _example(name: str, value: ir.Value) -> Tensor:
    """A tensor as an operand is in one step: that of three sequences."""
    if name == "lengths":
        return torch.ones(3, dtype=torch.int64)
    shape = value.shape if name in WEIGHTS else (3, value.shape[len(SHAPES[name]) - 1])
    return torch.zeros(tuple(shape), dtype=_DTYPES[value.dtype])
