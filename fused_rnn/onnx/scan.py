"""Translation to a Scan of calls without an ONNX operator: multiplicative cells, zoneout, and all cell states.

The body of the Scan is the reference at a single step, which torch.onnx exports by itself; so no equation is repeated
here. As in ``recompute``, a sequence past its end is one without steps.
"""

import functools

import onnx
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
    ir.DataType.INT64: torch.int64,
}


def translate(q: Operands, cells: bool) -> dict[str, ir.Value]:
    """Return the results by name, with the cell states of all steps or without."""
    given = {name: value for name, value in zip(q._fields, q.tensors) if value is not None}
    state = [name for name in ("h_0", "c_0") if name in given]
    timed = [name for name in ("input", *MASKS, "lengths") if name in given]
    results = [*(name.replace("_0", "_n") for name in state), "output", *(["cells"] if cells else [])]
    direction = int(q.reverse)
    attributes = {
        "body": _body(q.cell, cells, given, [*state, *timed]),
        "num_scan_inputs": len(timed),
        "scan_input_directions": [direction] * len(timed),
        "scan_output_directions": [direction] * (len(results) - len(state)),
    }
    if q.lengths is not None:
        given["lengths"] = _active(q)
    node = ir.node("Scan", [given[name] for name in (*state, *timed)], attributes, num_outputs=len(results))
    evaluator.default().nodes.append(node)  # as op.Scan would, which supports only one output
    return dict(zip(results, node.outputs))


def fix_names(model: ir.Model) -> None:
    """Make names unique over all graphs of a model, whose bodies come with their own; optimising does the same."""
    ir.passes.common.LiftSubgraphInitializersToMainGraphPass()(model)
    ir.passes.common.NameFixPass()(model)


def _active(q: Operands) -> ir.Value:
    """Return (T, B) int64: 1 if a sequence has the step, 0 past its end."""
    steps = op.Squeeze(op.Shape(q.input, start=0, end=1), [0])
    times = op.Unsqueeze(op.Range(0, steps, 1), [1])
    return op.Cast(op.Less(times, op.Unsqueeze(q.lengths, [0])), to=ir.DataType.INT64)


def _body(cell: str, cells: bool, given: dict[str, ir.Value], inputs: list[str]) -> ir.Graph:
    """Make the graph of one step, which has these inputs and refers to the weights around it."""
    kinds = tuple((name, _shape_in_a_step(name, value), _DTYPES[value.dtype]) for name, value in given.items())
    graph = ir.from_proto(onnx.load_model_from_string(_exported_step(cell, cells, kinds))).graph
    inner = dict(zip(given, graph.inputs))
    for name in given:
        if name in WEIGHTS:
            ir.convenience.replace_all_uses_with(inner[name], given[name])
    nodes, outputs, initializers = list(graph), list(graph.outputs), list(graph.initializers.values())
    for part in (graph.inputs, graph.outputs, graph.initializers):
        part.clear()  # values that belong to one graph cannot be another's
    graph.remove(nodes)
    return ir.Graph([inner[name] for name in inputs], outputs, nodes=nodes, initializers=initializers, name=cell)


def _shape_in_a_step(name: str, value: ir.Value) -> tuple[int, ...]:
    """Return the shape of an operand in a step, with three sequences in place of any number."""
    if name in WEIGHTS:
        return tuple(value.shape)
    sizes = dict(zip(SHAPES[name], value.shape)) | {"B": 3}
    return tuple(sizes[letter] for letter in SHAPES[name] if letter != "T")


@functools.cache  # layers of the same sizes share it
def _exported_step(cell: str, cells: bool, kinds: tuple[tuple[str, tuple[int, ...], torch.dtype], ...]) -> bytes:
    """Export the ONNX model of a step, for operands of these names, shapes and dtypes."""
    example = {name: torch.zeros(shape, dtype=dtype) for name, shape, dtype in kinds}
    shapes = {name: {} if name in WEIGHTS else {0: Dim.DYNAMIC} for name in example}
    how = {"dynamic_shapes": {"given": shapes}, "opset_version": op.version, "verbose": False}
    program = torch.onnx.export(_Step(cell, cells).eval(), kwargs={"given": example}, **how)
    return program.model_proto.SerializeToString()  # bytes, because a caller could change a message


class _Step(nn.Module):
    """One step of the reference, on operands without their dimension of time."""

    def __init__(self, cell: str, cells: bool) -> None:
        super().__init__()
        self.cell, self.cells = cell, cells

    def forward(self, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return the state after the step, then its output and perhaps its cell state."""
        timed = {name: given[name].unsqueeze(0) for name in ("input", *MASKS) if name in given}
        how = {"cell": self.cell, "reverse": False, "gradient_clip": 0.0}
        q = Operands(**(dict.fromkeys(Operands._fields) | given | timed | how))
        output, state, *cells = q.by_reference(self.cells)
        state = state if q.spec.has_cell_state else (state,)
        return *state, output.squeeze(0), *(sequence.squeeze(0) for sequence in cells)
