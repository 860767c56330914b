"""torch.autocast for the fused operators, which take operands of one dtype.

With autocast on, a call computes and returns results in autocast's dtype, on every device, as torch.nn's recurrent
modules do on a GPU: input, states and weights are cast first, and autocast is off inside. Gradients pass through the
casts, so each has its own tensor's dtype. float64 is left as it is, as autocast always does.
"""

import contextlib
import functools
from collections.abc import Callable

import torch
from torch import Tensor


def is_on(kind: str) -> bool:
    """Whether autocast is on for this kind of device."""
    return _is_known(kind) and torch.is_autocast_enabled(kind)


def _is_known(kind: str) -> bool:
    """Whether autocast knows this kind of device; it does not know some, such as meta."""
    return torch.amp.is_autocast_available(kind)


_is_known._dynamo_marked_constant = True  # torch 2.11 cannot trace this function


def off(kind: str) -> contextlib.AbstractContextManager:
    """Turn autocast off if it is on: a backward pass may run under it although its forward pass did not."""
    return torch.autocast(kind, enabled=False) if is_on(kind) else contextlib.nullcontext()


def casting(run: Callable) -> Callable:
    """Cast the operands of ``run`` to autocast's dtype, if autocast is on for the device of the positional ones."""

    @functools.wraps(run)
    def cast_and_run(*operands, **options):
        kind = _kind(operands)
        if not is_on(kind):
            return run(*operands, **options)
        dtype = torch.get_autocast_dtype(kind)
        with off(kind):
            return run(*_cast(operands, dtype), **_cast(options, dtype))

    return cast_and_run


def _kind(operands: tuple) -> str:
    """Return the kind of device of the first tensor, or of the first one in a list; meta if there is none."""
    for value in operands:
        first = value[0] if isinstance(value, list) else value
        if isinstance(first, Tensor):
            return first.device.type
    return "meta"


def _cast(value, dtype: torch.dtype):
    """Cast tensors, and pairs and dictionaries of them, to ``dtype``; leave anything else as it is."""
    if isinstance(value, Tensor):
        narrow = value.is_floating_point() and value.dtype != torch.float64
        return value.to(dtype) if narrow else value
    if isinstance(value, tuple | list):
        return tuple(_cast(part, dtype) for part in value)
    if isinstance(value, dict):
        return {name: _cast(part, dtype) for name, part in value.items()}
    return value
