"""The two nonlinearities of gated cells, σ and tanh, in float32, from what every Triton target and the interpreter has.

Neither overflows: where an exponential does, its reciprocal is zero, which is the limit. NaN stays NaN.
"""

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    """1 - 2 / (e^2|x| + 1) loses digits near zero, so below 0.6 a minimax polynomial, relative error 3e-9, is taken."""
    z = x * x
    tail = (-5.89515806e-3 * z + 2.07959716e-2) * z - 5.37838303e-2
    small = x + x * z * ((tail * z + 1.33319241e-1) * z - 3.3333298e-1)
    large = 1.0 - 2.0 / (tl.exp(2.0 * tl.abs(x)) + 1.0)
    return tl.where(tl.abs(x) < 0.6, small, tl.where(x < 0.0, -large, large))
