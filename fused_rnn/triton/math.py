"""The two nonlinearities of gated cells, σ and tanh, of float32 values, for every target and the interpreter.

``S`` is the type in which the kernel stores. If that is float32 the exponential and the division have full precision,
unlike Triton's own, which compile to the device's approximations; these are exact enough beside the rounding of 16-bit
types. Neither function overflows: if an exponential does, its reciprocal is zero, which is the limit. NaN stays NaN.
"""

import triton
import triton.language as tl


@triton.jit
def exp(x, S: tl.constexpr):
    """e^x = 2^n (1 + p) with p = e^r - 1 for |r| <= ln(2)/2; x < -87 counts as -87; from 88.38 on infinite."""
    if S.primitive_bitwidth < 32:
        return tl.exp(x)
    else:
        x = tl.clamp(x, -87.0, 89.0, propagate_nan=tl.PropagateNan.ALL)
        shifted = x * 1.44269504 + 12582912.0  # 1.5 * 2^23, which leaves the nearest integer in the low mantissa bits
        n = shifted - 12582912.0
        r = (x - n * 0.693359375) + n * 2.12194440e-4  # n ln(2) in two parts, the first one exact
        # minimax, relative error 1.4e-8
        q = (((1.39465057e-3 * r + 8.36661569e-3) * r + 4.16662813e-2) * r + 1.66665428e-1) * r + 0.5
        power = ((shifted.to(tl.int32, bitcast=True) + 127) << 23).to(tl.float32, bitcast=True)
        return power * (1.0 + (q * (r * r) + r))


@triton.jit
def divide(a, b, S: tl.constexpr):
    """a / b, correctly rounded if S is float32."""
    if S.primitive_bitwidth < 32:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def sigmoid(x, S: tl.constexpr):
    return divide(1.0, 1.0 + exp(-x, S), S)


@triton.jit
def tanh(x, S: tl.constexpr):
    """1 - 2 / (e^2|x| + 1), which loses digits near zero; so a minimax polynomial below 0.6, relative error 3e-9."""
    z = x * x
    tail = (-5.89515806e-3 * z + 2.07959716e-2) * z - 5.37838303e-2
    small = x + x * z * ((tail * z + 1.33319241e-1) * z - 3.3333298e-1)
    large = 1.0 - divide(2.0, exp(2.0 * tl.abs(x), S) + 1.0, S)
    return tl.where(tl.abs(x) < 0.6, small, tl.where(x < 0.0, -large, large))
