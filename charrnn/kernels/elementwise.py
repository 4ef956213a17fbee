"""Non-linearities that the compiler turns into vector instructions.

float32 uses a rational tanh and a polynomial exp, both within a few units in the last place and
written without branches or calls; float64, which is for gradient checks, uses the C library.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload

from charrnn.kernels.jit import FAST_MATH

f32 = np.float32
POLICY = {"fastmath": FAST_MATH, "error_model": "numpy"}


def tanh(x):
    """Hyperbolic tangent."""
    return np.tanh(x)


def sigmoid(x):
    """Logistic function, ``1 / (1 + exp(-x))``."""
    half = x.dtype.type(0.5)
    return half * np.tanh(half * x) + half


def exp(x):
    """Exponential of x <= 0; in float32 never less than exp(-87)."""
    return np.exp(x)


@overload(tanh, jit_options=POLICY)
def _tanh(x):
    if x == types.float64:
        return lambda x: math.tanh(x)
    return _tanh32


def _tanh32(x):
    # Minimax rational approximation of degree 13 over 6 on the range outside of which float32's
    # tanh is 1 (the coefficients that Eigen and others use). Absolute error below 3e-7.
    x = min(max(x, f32(-7.90531110763549805)), f32(7.90531110763549805))
    q = x * x
    a = f32(-2.76076847742355e-16) * q + f32(2.00018790482477e-13)
    a = a * q + f32(-8.60467152213735e-11)
    a = a * q + f32(5.12229709037114e-08)
    a = a * q + f32(1.48572235717979e-05)
    a = a * q + f32(6.37261928875436e-04)
    a = a * q + f32(4.89352455891786e-03)
    b = f32(1.19825839466702e-06) * q + f32(1.18534705686654e-04)
    b = b * q + f32(2.26843463243900e-03)
    b = b * q + f32(4.89352518554385e-03)
    return x * a / b


@overload(sigmoid, jit_options=POLICY)
def _sigmoid(x):
    if x == types.float64:
        # By the sign, so that neither branch loses digits to cancellation or overflows.
        def impl(x):
            e = math.exp(-abs(x))
            return 1.0 / (1.0 + e) if x >= 0 else e / (1.0 + e)

        return impl
    return lambda x: f32(0.5) * tanh(f32(0.5) * x) + f32(0.5)


@overload(exp, jit_options=POLICY)
def _exp(x):
    if x == types.float64:
        return lambda x: math.exp(x)
    return _exp32


def _exp32(x):
    # 2**n * e**r with |r| <= ln(2)/2: Cephes' reduction and polynomial. Adding and subtracting
    # 1.5 * 2**23 rounds to the nearest integer.
    x = max(x, f32(-87.0))
    n = (x * f32(1.44269504088896341) + f32(12582912.0)) - f32(12582912.0)
    r = (x - n * f32(0.693359375)) - n * f32(-2.12194440e-4)
    p = f32(1.9875691500e-4) * r + f32(1.3981999507e-3)
    p = p * r + f32(8.3334519073e-3)
    p = p * r + f32(4.1665795894e-2)
    p = p * r + f32(1.6666665459e-1)
    p = p * r + f32(5.0000001201e-1)
    p = p * (r * r) + r + f32(1.0)
    return p * _power_of_two(n)


@intrinsic
def _power_of_two(typingctx, n):
    """2**n for an integral float32 in -126 .. 127, by writing the exponent's bits."""

    def codegen(context, builder, signature, args):
        integer = ir.IntType(32)
        exponent = builder.add(builder.fptosi(args[0], integer), ir.Constant(integer, 127))
        bits = builder.shl(exponent, ir.Constant(integer, 23))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(types.float32), codegen
