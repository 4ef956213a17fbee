"""The plain recurrent network (Elman 1990).

    h_t = s(x_t Wx + h_(t-1) Wh + b)

with s one of tanh, relu, sigmoid, identity. ``gates`` holds h_t; every s' is a function of it.
"""

from __future__ import annotations

import numpy as np

from charrnn.cells.base import Arrays, Call, Cell
from charrnn.kernels.elementwise import sigmoid, tanh
from charrnn.kernels.gather import gather
from charrnn.kernels.gemm import gemm, halves
from charrnn.kernels.jit import kernel

TANH, RELU, SIGMOID, IDENTITY = range(4)
CODES = {"tanh": TANH, "relu": RELU, "sigmoid": SIGMOID, "identity": IDENTITY}


@kernel
def forward(h, gates, ids, Wx, b, Wh, activation, r0, r1):
    """The equation above. h (T+1, B, H); gates (T, B, H); Wh packed."""
    H = h.shape[2]
    zero = h.dtype.type(0)
    half = halves(Wh, r1 - r0, H)
    for t in range(gates.shape[0]):
        if ids.shape[0] > 0:
            gather(gates[t], ids[t], Wx, b, r0, r1)
        gemm(gates[t, r0:r1], h[t, r0:r1], Wh, True, half)
        for r in range(r0, r1):
            a, h1 = gates[t, r], h[t + 1, r]
            if activation == TANH:
                for j in range(H):
                    a[j] = tanh(a[j])
            elif activation == RELU:
                for j in range(H):
                    a[j] = max(a[j], zero)
            elif activation == SIGMOID:
                for j in range(H):
                    a[j] = sigmoid(a[j])
            for j in range(H):
                h1[j] = a[j]


@kernel
def backward(dh, dh0, gates, WhT, activation, r0, r1):
    """Undo `forward`. dh (T, B, H); dh0 (B, H); gates (T, B, H) become their gradients."""
    T, H = dh.shape[0], dh.shape[2]
    zero, one = dh.dtype.type(0), dh.dtype.type(1)
    half = halves(WhT, r1 - r0, H)
    for t in range(T - 1, -1, -1):
        for r in range(r0, r1):
            a, d, carry = gates[t, r], dh[t, r], dh0[r]
            for j in range(H):
                d[j] += carry[j]
            if activation == TANH:
                for j in range(H):
                    a[j] = d[j] * (one - a[j] * a[j])
            elif activation == RELU:
                for j in range(H):
                    a[j] = d[j] if a[j] > zero else zero
            elif activation == SIGMOID:
                for j in range(H):
                    a[j] = d[j] * a[j] * (one - a[j])
            else:
                for j in range(H):
                    a[j] = d[j]
        gemm(dh0[r0:r1], gates[t, r0:r1], WhT, False, half)


class RNN(Cell):
    """See the module's head."""

    name = "rnn"
    gates = 1
    torch_module = "RNN"
    activations = tuple(CODES)

    def forward(self, p: Arrays, k: Arrays, w: Arrays, ids: np.ndarray, r0: int, r1: int) -> Call:
        code = CODES[self.activation]
        return forward, (w["h"], w["gates"], ids, p["Wx"], p["b"], k["Wh"], code, r0, r1)

    def backward(self, p: Arrays, k: Arrays, w: Arrays, r0: int, r1: int) -> Call:
        code = CODES[self.activation]
        return backward, (w["dh"], w["dh0"], w["gates"], k["WhT"], code, r0, r1)


CELL = RNN
