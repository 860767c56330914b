"""The Triton backend: the operators ``fused_rnn_triton::forward``, ``backward`` and ``backward_from_states``.

They have the schemas of ``fused_rnn::forward`` and so on in csrc/ops.cpp, and a namespace of their own, because both
serve CUDA tensors and a dispatch key cannot tell them apart. They are declared here and need no compiled library.
Around the kernels of ``fused_rnn/triton`` stand the same products as around the CUDA kernels, those of ``cuda.py``.

Triton is optional: it is imported when the backend is first asked for. With TRITON_INTERPRET=1 in the environment the
kernels run in Triton's interpreter, on the CPU and on nothing else, slowly: that is for tests.
"""

import functools

import torch
from torch import Tensor

from . import cuda
from .cells import CELLS, WEIGHTS

NAMESPACE = "fused_rnn_triton"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OLDEST, TOO_NEW, OLDEST_GPU = (3, 6), (4, 0), (8, 0)
_OPERANDS = (
    "Tensor input, Tensor h_0, Tensor? c_0, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, "
    "Tensor? weight_mih, Tensor? weight_mhh, Tensor? bias_m, Tensor? lengths, Tensor? keep_h, Tensor? keep_c, "
    "str cell, bool reverse, float gradient_clip, "
)
_BACKWARD = (
    "(Tensor? d_output, Tensor? d_h_n, Tensor? d_c_n, Tensor? d_cells, Tensor output, Tensor cells, Tensor saved, "
    f"{_OPERANDS}bool input_gradient, bool weight_gradients) -> (Tensor d_input, Tensor d_h_0, Tensor d_c_0, "
    "Tensor d_weight_ih, Tensor d_weight_hh, Tensor d_bias_ih, Tensor d_bias_hh, Tensor d_weight_mih, "
    "Tensor d_weight_mhh, Tensor d_bias_m)"
)
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")  # its operators last as long as it does


def register() -> None:
    """Declare the operators, and make this backend what the first two do on every device."""
    _LIBRARY.define(
        f"forward({_OPERANDS}str save) -> (Tensor output, Tensor h_n, Tensor c_n, Tensor cells, Tensor saved)"
    )
    _LIBRARY.define(f"backward{_BACKWARD}")
    _LIBRARY.define(f"backward_from_states{_BACKWARD}")
    _LIBRARY.impl("forward", forward, "CompositeExplicitAutograd")
    _LIBRARY.impl("backward", backward, "CompositeExplicitAutograd")


# What can run here ------------------------------------------------------------------------------------------


def status() -> str:
    """'available', or why the kernels run on nothing here."""
    missing = _missing()
    if missing is None and not _interpreted() and not _gpu_there():
        return "there is no GPU that Triton could compile for"
    return missing or ("available (interpreted, on the CPU)" if _interpreted() else "available")


def obstacle(device: torch.device) -> str | None:
    """Why the kernels cannot run on a device, or None if they can."""
    missing = _missing()
    if missing is not None or device.type == "meta":
        return missing
    if _interpreted():
        return (
            None if device.type == "cpu" else f"TRITON_INTERPRET=1 runs it on the CPU, and the tensors are on {device}"
        )
    if not _gpu_there():
        return status()
    if device.type not in ("cuda", "xpu"):
        return f"the tensors are on {device}, the backend runs on a GPU"
    if device.type == "cuda" and torch.version.hip is None:
        major, minor = torch.cuda.get_device_capability(device)
        if (major, minor) < OLDEST_GPU:
            return f"{torch.cuda.get_device_name(device)} is sm_{major}{minor}, and Triton needs sm_80 or newer"
    return None


obstacle._dynamo_marked_constant = True  # as in cuda.py


@functools.cache
def _missing() -> str | None:
    """What the installation lacks, or None."""
    try:
        import triton
    except ImportError as error:
        return f"Triton cannot be imported: {error} (pip install 'fused_rnn[triton]')"
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if not OLDEST <= version < TOO_NEW:
        needed = "the kernels need at least 3.6 and less than 4"
        return f"Triton is {triton.__version__}, and {needed} (pip install 'fused_rnn[triton]')"
    return None


def _interpreted() -> bool:
    from .triton import launch

    return launch.INTERPRETED


def _gpu_there() -> bool:
    return torch.cuda.is_available() or torch.xpu.is_available()


# The operators ----------------------------------------------------------------------------------------------


def _kernels() -> cuda.Kernels:
    from .triton import launch

    return cuda.Kernels(launch.forward, launch.backward)


def forward(*arguments) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``fused_rnn_triton::forward``."""
    *operands, cell, _, gradient_clip, save = arguments
    _check(operands, cell, gradient_clip)
    if save not in ("nothing", "states", "everything"):
        raise RuntimeError(f"fused_rnn: save must be 'nothing', 'states' or 'everything', got {save!r}")
    return cuda.forward(*arguments, _kernels())


def backward(*arguments) -> tuple[Tensor, ...]:
    """``fused_rnn_triton::backward``."""
    *operands, cell, _, gradient_clip, _, _ = arguments[7:]
    _check(operands, cell, gradient_clip)
    input, h_0, spec = operands[0], operands[1], CELLS[cell]
    T, B, I, H = *input.shape, h_0.shape[1]
    columns = spec.saved * H + spec.modulated_size(I, H)
    cells = (T, B, H) if spec.has_cell_state else (0,)
    shapes = (T, B, H), (B, H), (B, H), (T, B, H), (T, B, H), cells, (T, B, columns)
    names = "d_output", "d_h_n", "d_c_n", "d_cells", "output", "cells", "saved"
    for name, tensor, shape in zip(names, arguments, shapes):
        _check_tensor(name, tensor, shape, input)
    return cuda.backward(*arguments, _kernels())


def _check(operands: tuple[Tensor | None, ...], cell: str, gradient_clip: float) -> None:
    """Keep a direct caller from reading or writing out of bounds; ``ops.run`` explains wrong arguments to people."""
    input, h_0, c_0, *weights, lengths, keep_h, keep_c = operands
    if cell not in CELLS:
        raise RuntimeError(f"fused_rnn: unknown cell {cell!r}")
    spec = CELLS[cell]
    if input.dim() != 3 or h_0.dim() != 2 or input.numel() == 0 or h_0.numel() == 0:
        raise RuntimeError("fused_rnn: input must be a non-empty (T, B, I) tensor and h_0 a non-empty (B, H) tensor")
    if input.dtype not in DTYPES:
        raise RuntimeError(f"fused_rnn: the Triton kernels do not compute in {input.dtype}")
    B, I, H = input.shape[1], input.shape[2], h_0.shape[1]
    if spec.has_cell_state != (c_0 is not None):
        raise RuntimeError("fused_rnn: c_0 goes with cells that have a cell state, and only with these")
    for name, tensor in (("h_0", h_0), ("c_0", c_0)):
        _check_tensor(name, tensor, (B, H), input)
    for name, weight in zip(WEIGHTS, weights):
        if weight is None and name in spec.weights and name.startswith("weight"):
            raise RuntimeError(f"fused_rnn: {name} is missing")
        if weight is not None and name not in spec.weights and name != "bias_hh":
            raise RuntimeError(f"fused_rnn: {name} is not a parameter of {cell}")
        _check_tensor(name, weight, spec.weight_shape(name, I, H), input)
    if weights[3] is not None and spec.reset_before:
        raise RuntimeError("fused_rnn: this cell has one bias, bias_ih")
    if keep_c is not None and not spec.has_cell_state:
        raise RuntimeError("fused_rnn: keep_c goes with cells that have a cell state")
    for name, keep in (("keep_h", keep_h), ("keep_c", keep_c)):
        _check_tensor(name, keep, (len(input), B, H), input)
    if not gradient_clip >= 0:
        raise RuntimeError(f"fused_rnn: gradient_clip must be positive, or 0 for none, got {gradient_clip}")
    if lengths is not None and (lengths.dtype != torch.int64 or lengths.shape != (B,)):
        raise RuntimeError(f"fused_rnn: lengths must be an int64 tensor of shape ({B},)")


def _check_tensor(name: str, tensor: Tensor | None, shape: tuple[int, ...], like: Tensor) -> None:
    if tensor is None:
        return
    if tensor.shape != shape:
        raise RuntimeError(f"fused_rnn: {name} must have shape {shape}, got {tuple(tensor.shape)}")
    if tensor.dtype != like.dtype or tensor.device != like.device:
        raise RuntimeError(f"fused_rnn: {name} and input must have the same dtype and be on the same device")
