"""Export to ONNX, for onnxruntime and its like.

``export(model, args, path)`` is torch.onnx.export with the translation of this package's operators. Every layer of an
RNN, LSTM or GRU becomes one ONNX operator, bidirectional if the layer is, for any number of steps and sequences if
``dynamic_shapes`` says so. This covers whole sequences, ``lengths``, projections, states in and out, and single steps.
Calls without an ONNX operator become one Scan for each layer and direction: multiplicative cells, zoneout in eval mode,
``return_cells``, float64. A stream is a model of one step, whose states are inputs and outputs::

    import onnxruntime

    class Stream(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = fused_rnn.LSTM(8, 64), torch.nn.Linear(64, 1)

        def forward(self, x, h, c):
            output, (h, c) = self.lstm(x, (h, c))
            return self.head(output), h, c

    x, h, c = torch.randn(1, 1, 8), torch.zeros(1, 1, 64), torch.zeros(1, 1, 64)
    fused_rnn.onnx.export(Stream().eval(), (x, h, c), "stream.onnx", input_names=["x", "h", "c"])

    session = onnxruntime.InferenceSession("stream.onnx")
    h, c = h.numpy(), c.numpy()
    for x in sensor:  # each (1, 1, 8), float32
        y, h, c = session.run(None, {"x": x, "h": h, "c": c})

onnx and onnxscript are needed, ``pip install 'fused_rnn[onnx]'``, and imported when ``export`` or ``table`` is called.
On the CPU onnxruntime computes in float32 and float64, and has no recurrent operators for bfloat16; modules on a GPU
export float16. A module that runs on the reference is unrolled, for the number of steps of the example.
"""

import os
from collections.abc import Callable, Container
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ..cell_based import CellBased
from ..choice import choose_backend
from ..operands import ForwardCall
from .errors import ExportError

__all__ = ["ExportError", "export", "table"]

OLDEST_OPSET = 18  # torch.onnx makes graphs of this opset, and only tries to convert them to older ones


def export(
    model: nn.Module | torch.export.ExportedProgram,
    args: tuple = (),
    path: str | os.PathLike | None = None,
    *,
    opset_version: int | None = None,
    optimize: bool = True,
    custom_translation_table: dict[Callable, Callable] | None = None,
    export_params: bool = True,
    keep_initializers_as_inputs: bool = False,
    external_data: bool = True,
    **options: Any,
) -> "torch.onnx.ONNXProgram":
    """Export a model that holds modules of this package, by torch.onnx.export and with its options.

    Args:
        model: the model in eval mode, or an exported program from torch.export.export.
        args: an example of its positional inputs.
        path: the file to write; None for none.
        opset_version: 18 or newer; None for torch.onnx's choice.
        optimize: fold constants, including those computed from weights, and remove superfluous nodes.
        custom_translation_table: translations of other operators, or in place of ``table()``'s.
        export_params, keep_initializers_as_inputs, external_data: how weights are written.
        options: ``dynamic_shapes``, ``input_names``, ``output_names`` and so on.

    Returns:
        The program, as torch.onnx.export returns it.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        ValueError: the opset is too old, the example has one tensor in two places, or dynamo=False was requested.
        TypeError: the model is neither a module nor an exported program.
        ExportError: a module or a call has no translation; the message says what to do.
    """
    translations = table()
    if opset_version is not None and opset_version < OLDEST_OPSET:
        raise ValueError(
            f"opset_version={opset_version} is too old: torch.onnx makes graphs of opset {OLDEST_OPSET} or newer"
        )
    if not options.pop("dynamo", True):
        raise ValueError("dynamo=False is TorchScript's exporter, which does not know fused_rnn's operators: leave it")
    if isinstance(model, nn.Module):
        _check_fused(model)
        _check_distinct(args, options.get("kwargs"))
    elif isinstance(model, torch.export.ExportedProgram):
        model = _saving_little(model, translations)
    else:
        raise TypeError(f"model must be a module or an exported program, got {type(model).__name__}")
    from . import directions, scan, translation

    program = _translated(
        model,
        args,
        opset_version=opset_version,
        custom_translation_table=translations | (custom_translation_table or {}),
        **options,
    )
    directions.join(program.model)
    if optimize:
        translation.fold_weights(program.model)
        program.optimize()
    else:
        scan.fix_names(program.model)
    if path is not None:
        how = {"include_initializers": export_params, "keep_initializers_as_inputs": keep_initializers_as_inputs}
        program.save(path, external_data=external_data, **how)
    return program


def table() -> dict[Callable, Callable]:
    """Return the ``custom_translation_table`` for torch.onnx.export with this package's operators.

    It is for callers of torch.onnx.export itself, under torch.no_grad(). A bidirectional layer then becomes two
    operators.

    Raises:
        ImportError: onnx or onnxscript is not installed.
    """
    for name in ("onnx", "onnxscript"):
        if find_spec(name) is None:
            raise ImportError(f"fused_rnn.onnx needs {name}, which is not installed: pip install 'fused_rnn[onnx]'")
    from . import translation

    return translation.table()


def _check_fused(model: nn.Module) -> None:
    """Refuse modules that would be unrolled although nobody asked for it."""
    for name, module in model.named_modules():
        if not isinstance(module, CellBased) or module.backend != "auto":
            continue
        weight = next(module.parameters())
        choice = choose_backend(weight.device, weight.dtype)
        if choice.backend == "reference":
            raise ExportError(
                f"{name or 'the model'} ({type(module).__name__}) would be unrolled, for {choice.reason}: export it in "
                "float32, as model.float(), or with backend='reference' if that is what you want"
            )


def _check_distinct(*examples: Any) -> None:
    """Refuse tensors that torch.export would take for a single input, to the loss of the other."""
    seen: set[int] = set()
    for tensor in tree_leaves(examples):
        if isinstance(tensor, torch.Tensor) and id(tensor) in seen:
            raise ValueError(
                f"the example has one tensor, of shape {tuple(tensor.shape)}, in two places, which torch.export takes "
                "for one input: make another, as tensor.clone()"
            )
        seen.add(id(tensor))


def _translated(
    model: nn.Module | torch.export.ExportedProgram, args: tuple, **options: Any
) -> "torch.onnx.ONNXProgram":
    """Translate by torch.onnx.export; raise missing translations as such, not as the cause of other errors."""
    try:
        with torch.no_grad():  # saves nothing for a backward pass
            program = torch.onnx.export(model, args, optimize=False, **options)
    except torch.onnx.OnnxExporterError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ExportError):
                raise cause from None
            cause = cause.__cause__
        raise
    assert program is not None  # only TorchScript's exporter returns None
    return program


def _saving_little(program: torch.export.ExportedProgram, operators: Container) -> torch.export.ExportedProgram:
    """Return an equal program whose forward passes save no more than it reads."""
    program = program.run_decompositions({})  # a copy, with the same weights
    for node in program.graph.nodes:
        if node.target in operators:
            read = {user.args[1] for user in node.users if user.users}
            save = "everything" if 4 in read else "states" if 3 in read else "nothing"
            node.args = ForwardCall.of(node.args)._replace(save=save).arguments
    return program
