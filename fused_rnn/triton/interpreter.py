"""Repairs Triton's interpreter for bfloat16, which it keeps as the upper half of a float32, in an uint16.

Unrepaired, it truncates instead of rounding to bfloat16, and multiplies matrices of bfloat16 as if they held integers.
The kernels use no other operation in that type. This file is only imported if TRITON_INTERPRET=1 selects the
interpreter.
"""

import functools

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def repair() -> None:
    interpreter._convert_float = functools.partial(_convert, interpreter._convert_float)
    builder = interpreter.InterpreterBuilder
    builder.create_dot = functools.partialmethod(_dot, builder.create_dot)


def _convert(convert, values, source, target, rounding):
    if source == tl.float32 and target == tl.bfloat16:
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # ties to even
        return np.where(np.isnan(values), 0x7FC0, nearest).astype(np.uint16)
    if source == tl.bfloat16 and target == tl.float32:
        return values.astype(np.uint32) << 16
    return convert(values, source, target, rounding)


def _dot(builder, dot, left, right, *rest):
    return dot(builder, _widened(left), _widened(right), *rest)


def _widened(handle):
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
