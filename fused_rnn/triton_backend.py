"""The Triton backend: the operators ``fused_rnn_triton::forward``, ``backward`` and ``backward_from_states``.

They have the schemas of ``fused_rnn::forward`` and so on, and a namespace of their own, because both serve CUDA tensors
and a dispatch key cannot tell them apart. They are declared here and need no compiled library. The kernels of
``fused_rnn/triton`` are surrounded by the same products as the CUDA kernels, those of ``products``.

Triton is optional: it is imported when the backend is first requested. With TRITON_INTERPRET=1 in the environment the
kernels run in Triton's interpreter, on the CPU and nowhere else, slowly; this is for tests.
"""

import functools

import torch
from torch import Tensor

from . import products
from .cells import WEIGHTS
from .operands import DIFFERENTIABLE, MASKS, SAVES, SCHEMAS, BackwardCall, ForwardCall, Operands

NAMESPACE = "fused_rnn_triton"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OLDEST, TOO_NEW, OLDEST_GPU = (3, 6), (4, 0), (8, 0)
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")  # its operators last as long as it does


def register() -> None:
    """Declare the operators, and implement the first two by this backend on every device."""
    for name, schema in SCHEMAS.items():
        _LIBRARY.define(name + schema)
    _LIBRARY.impl("forward", forward, "CompositeExplicitAutograd")
    _LIBRARY.impl("backward", backward, "CompositeExplicitAutograd")


# What can run here ------------------------------------------------------------------------------------------


def status() -> str:
    """Return 'available', or why the kernels cannot run here."""
    missing = _missing()
    if missing is None and not _interpreted() and not _gpu_there():
        return "there is no GPU that Triton could compile for"
    return missing or ("available (interpreted, on the CPU)" if _interpreted() else "available")


def obstacle(device: torch.device) -> str | None:
    """Return why the kernels cannot run on a device, or None if they can."""
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
    """Return what the installation lacks, or None."""
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


def _kernels() -> products.Kernels:
    from .triton import launch

    return products.Kernels(launch.forward, launch.backward)


def forward(*arguments) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Implement ``fused_rnn_triton::forward``."""
    q, save = ForwardCall.of(arguments)
    _check(q)
    if save not in SAVES:
        raise RuntimeError(f"fused_rnn: save must be 'nothing', 'states' or 'everything', got {save!r}")
    return products.forward(*arguments, kernels=_kernels())


def backward(*arguments) -> tuple[Tensor, ...]:
    """Implement ``fused_rnn_triton::backward``."""
    d_results, kept, q, _ = BackwardCall.of(arguments)
    _check(q)
    for name, tensor in {**d_results._asdict(), **kept._asdict()}.items():
        of_nothing = name == "cells" and not q.spec.has_cell_state
        _check_tensor(name, tensor, (0,) if of_nothing else q.shape(name), q.input)
    return products.backward(*arguments, kernels=_kernels())


def _check(q: Operands) -> None:
    """Keep direct callers from reading or writing out of bounds; ``ops.run`` has the better messages."""
    spec = q.spec
    if q.input.dim() != 3 or q.h_0.dim() != 2 or q.input.numel() == 0 or q.h_0.numel() == 0:
        raise RuntimeError("fused_rnn: input must be a non-empty (T, B, I) tensor and h_0 a non-empty (B, H) tensor")
    if q.input.dtype not in DTYPES:
        raise RuntimeError(f"fused_rnn: the Triton kernels do not compute in {q.input.dtype}")
    if spec.has_cell_state != (q.c_0 is not None):
        raise RuntimeError("fused_rnn: c_0 goes with cells that have a cell state, and only with these")
    for name, weight in zip(WEIGHTS, q.weights):
        if weight is None and name in spec.required_weights:
            raise RuntimeError(f"fused_rnn: {name} is missing")
        if weight is not None and name not in spec.weights and name != "bias_hh":
            raise RuntimeError(f"fused_rnn: {name} is not a parameter of {q.cell}")
    if q.bias_hh is not None and spec.reset_before:
        raise RuntimeError("fused_rnn: this cell has one bias, bias_ih")
    if q.keep_c is not None and not spec.has_cell_state:
        raise RuntimeError("fused_rnn: keep_c goes with cells that have a cell state")
    if q.resets is None and not q.h_reset is q.c_reset is None:
        raise RuntimeError("fused_rnn: h_reset and c_reset go with resets")
    if q.c_reset is not None and not spec.has_cell_state:
        raise RuntimeError("fused_rnn: c_reset goes with cells that have a cell state")
    for name in (*DIFFERENTIABLE, *MASKS):
        _check_tensor(name, getattr(q, name), q.shape(name), q.input)
    if not q.gradient_clip >= 0:
        raise RuntimeError(f"fused_rnn: gradient_clip must be positive, or 0 for none, got {q.gradient_clip}")
    if q.lengths is not None and (q.lengths.dtype != torch.int64 or q.lengths.shape != q.shape("lengths")):
        raise RuntimeError(f"fused_rnn: lengths must be an int64 tensor of shape {q.shape('lengths')}")
    if q.resets is not None and (q.resets.dtype != torch.bool or q.resets.shape != q.shape("resets")):
        raise RuntimeError(f"fused_rnn: resets must be a bool tensor of shape {q.shape('resets')}")


def _check_tensor(name: str, tensor: Tensor | None, shape: tuple[int, ...], like: Tensor) -> None:
    if tensor is None:
        return
    if tensor.shape != shape:
        raise RuntimeError(f"fused_rnn: {name} must have shape {shape}, got {tuple(tensor.shape)}")
    if tensor.dtype != like.dtype or tensor.device != like.device:
        raise RuntimeError(f"fused_rnn: {name} and input must have the same dtype and be on the same device")
