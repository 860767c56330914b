"""The choice of a backend: which backends can run here, and which one runs a call.

Importing this module loads the compiled library, if it exists.
"""

import functools
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from . import cuda, triton_backend

BACKENDS = ("cpu", "cuda", "triton", "reference")


@dataclass(frozen=True)
class Choice:
    """A backend and the reason why it was chosen."""

    backend: str
    reason: str


def _load_library() -> str | None:
    """Load the compiled operators. Returns None, or why they are missing."""
    path = Path(__file__).with_name("_C.so")
    if not path.exists():
        return f"the compiled library {path} does not exist (build it with 'pip install .')"
    try:
        torch.ops.load_library(path)
    except (OSError, RuntimeError) as error:
        return f"the compiled library {path} does not load: {error}"
    try:
        torch.ops.fused_rnn.cpu_instruction_set()
    except RuntimeError as error:
        return str(error)
    return None


_LIBRARY_ERROR = _load_library()
LIBRARY_LOADED = hasattr(torch.ops.fused_rnn, "forward")
_PLACES = {"cpu": "the CPU", "cuda": "a GPU"}
DTYPES = {
    "cpu": (torch.float32, torch.float64, torch.bfloat16),
    "cuda": cuda.DTYPES,
    "triton": triton_backend.DTYPES,
}
# backends by kind of device, the fastest first
_CANDIDATES = {"cpu": {"cpu": "C++"}, "cuda": {"cuda": "CUDA", "triton": "Triton"}, "xpu": {"triton": "Triton"}}


def backends() -> dict[str, str]:
    """Map every backend to 'available (avx512)', with the CPU's instructions or the GPU's name, or why it is not."""
    return {
        "cpu": _LIBRARY_ERROR or f"available ({torch.ops.fused_rnn.cpu_instruction_set()})",
        "cuda": cuda.status() if LIBRARY_LOADED else str(_LIBRARY_ERROR),
        "triton": triton_backend.status(),
        "reference": "available",
    }


def choose_backend(device: torch.device | str, dtype: torch.dtype, backend: str = "auto") -> Choice:
    """Return the backend that a call on ``device`` in ``dtype`` would use, and why.

    ``backend="auto"`` takes the fastest for this device and dtype. A backend named outright is returned as it is
    or refused with the reason; it is never replaced by another.

    Raises:
        ValueError: the name is unknown.
        RuntimeError: the named backend cannot run such a call here.
    """
    if isinstance(device, str):
        device = torch.device(device)
    if backend == "auto":
        obstacles = []
        for fused, kernels in _CANDIDATES.get(device.type, _CANDIDATES["cpu"]).items():
            obstacle = _obstacle(fused, device, dtype)
            if obstacle is None:
                return Choice(fused, f"the fused {kernels} kernels run it")
            obstacles.append(obstacle)
        return Choice("reference", f"no fused backend can run it: {'; '.join(obstacles)}")
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: expected 'auto' or one of {', '.join(map(repr, BACKENDS))}")
    obstacle = _obstacle(backend, device, dtype)
    if obstacle is not None:
        raise RuntimeError(f"backend {backend!r} cannot run this call: {obstacle}")
    return Choice(backend, "it was asked for")


def _obstacle(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why ``backend`` cannot run such a call, or None if it can. Only GPU backends look for a device."""
    if backend == "reference":
        return None
    missing = _missing(backend, device)
    if missing is not None:
        return missing
    if backend != "triton" and device.type not in (backend, "meta"):
        return f"the tensors are on {device}, the backend runs on {_PLACES[backend]}"
    if dtype not in DTYPES[backend]:
        return f"the dtype is {dtype}, the backend computes in {', '.join(str(d) for d in DTYPES[backend])}"
    return None


def _missing(backend: str, device: torch.device) -> str | None:
    """Return what the machine or the installation lacks for a backend; ``device`` matters if it is of its kind."""
    if backend == "triton":
        return triton_backend.obstacle(device)
    if backend == "cuda" and LIBRARY_LOADED:
        return cuda.obstacle(device.index if device.type == "cuda" else None)
    return _LIBRARY_ERROR


@functools.cache
def warn_of_reference(reason: str) -> None:
    """Warn, once per reason, that a call which named no backend runs on the reference."""
    warnings.warn(
        f"fused_rnn runs the plain PyTorch reference, which is slow: {reason}. "
        "backend='reference' asks for it outright and silences this warning.",
        stacklevel=2,
    )
