"""Joins the directions of a layer, which torch.onnx translates each by itself, into one operator."""

from collections.abc import Iterator

from onnxscript import ir

_OPERATORS = ("RNN", "LSTM", "GRU")
_SHARED = {"X": 0, "sequence_lens": 4}  # by input position; each direction has its own other inputs
_AXES = (1, 0, 0)  # the axes of directions in Y, Y_h and Y_c


def join(model: ir.Model) -> None:
    """Make one bidirectional operator of every two that read the same sequences in opposite directions."""
    graph = model.graph
    found: dict[str, list[ir.Node]] = {"forward": [], "reverse": []}
    for node in graph:
        if node.domain == "" and node.op_type in _OPERATORS and _direction(node) in found:
            found[_direction(node)].append(node)
    for reverse in found["reverse"]:
        forward = next((node for node in found["forward"] if _fit(node, reverse)), None)
        if forward is not None:
            found["forward"].remove(forward)
            _join(graph, forward, reverse)
    graph.sort()


def _direction(node: ir.Node) -> str:
    return node.attributes["direction"].as_string() if "direction" in node.attributes else "forward"


def _fit(forward: ir.Node, reverse: ir.Node) -> bool:
    return (
        forward.op_type == reverse.op_type
        and _common_attributes(forward) == _common_attributes(reverse)
        and [part is None for part in forward.inputs] == [part is None for part in reverse.inputs]
        and all(_same(_input(forward, place), _input(reverse, place)) for place in _SHARED.values())
        and not _reads(forward, reverse)
        and not _reads(reverse, forward)
    )


def _common_attributes(node: ir.Node) -> dict:
    return {name: part.value for name, part in node.attributes.items() if name not in ("direction", "activations")}


def _input(node: ir.Node, place: int) -> ir.Value | None:
    return node.inputs[place] if place < len(node.inputs) else None


def _same(first: ir.Value | None, second: ir.Value | None) -> bool:
    """Whether two values are one, perhaps converted twice, as lengths are."""
    if first is second:
        return True
    makers = [None if value is None else value.producer() for value in (first, second)]
    return all(maker is not None and maker.op_type == "Cast" for maker in makers) and (
        makers[0].inputs[0] is makers[1].inputs[0]
        and makers[0].attributes["to"].value == makers[1].attributes["to"].value
    )


def _reads(node: ir.Node, other: ir.Node) -> bool:
    """Whether any input of a node was computed from the results of another."""
    seen, waiting = {node}, [node]
    while waiting:
        for value in _read_by(waiting.pop()):
            maker = None if value is None else value.producer()
            if maker is other:
                return True
            if maker is not None and maker not in seen:
                seen.add(maker)
                waiting.append(maker)
    return False


def _read_by(node: ir.Node) -> Iterator[ir.Value | None]:
    """Yield the inputs of a node, and the outer values that the graphs within it use."""
    yield from node.inputs
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in ir.traversal.RecursiveGraphIterator(attribute.as_graph()):
                yield from inner.inputs


def _join(graph: ir.Graph, forward: ir.Node, reverse: ir.Node) -> None:
    nodes, inputs = [], []
    for place, parts in enumerate(zip(forward.inputs, reverse.inputs)):
        if place in _SHARED.values() or parts[0] is None:
            inputs.append(parts[0])
            continue
        nodes.append(ir.node("Concat", parts, {"axis": 0}))
        inputs += nodes[-1].outputs
    attributes = _common_attributes(forward) | {"direction": "bidirectional"}
    if "activations" in forward.attributes:
        both = (node.attributes["activations"].as_strings() for node in (forward, reverse))
        attributes["activations"] = [name for names in both for name in names]
    joined = ir.node(forward.op_type, inputs, attributes, num_outputs=len(forward.outputs), name=forward.name)
    nodes.append(joined)
    for value, axis, *parts in zip(joined.outputs, _AXES, forward.outputs, reverse.outputs):
        split = ir.node("Split", [value], {"axis": axis, "num_outputs": 2}, num_outputs=2)
        nodes.append(split)
        for part, new in zip(parts, split.outputs):
            new.shape, new.type = part.shape, part.type
            ir.convenience.replace_all_uses_with(part, new)
    graph.insert_before(reverse, nodes)
    graph.remove((forward, reverse), safe=True)
