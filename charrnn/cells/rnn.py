"""The plain recurrent network (Elman 1990).

    h_t = s(x_t Wx + h_(t-1) Wh + b)

with s one of tanh, relu, sigmoid, identity. ``gates`` holds h_t; every s' is a function of it.
"""

from __future__ import annotations

import numpy as np

from charrnn.cells.base import SLOPES, Arrays, Call, Cell, Part
from charrnn.kernels.elementwise import sigmoid, tanh
from charrnn.kernels.gemm import gemm, halves
from charrnn.kernels.jit import kernel
from charrnn.kernels.seat import add_product, bounds, join

TANH, RELU, SIGMOID, IDENTITY = range(4)
CODES = {"tanh": TANH, "relu": RELU, "sigmoid": SIGMOID, "identity": IDENTITY}


@kernel
def forward(h, gates, ids, Wx, b, Wh, activation, r0, r1, arrivals, seat, code):
    """The equation above. h (T+1, B, H); gates (T, B, H); Wh packed."""
    H = h.shape[2]
    zero = h.dtype.type(0)
    r0, r1, u0, u1 = bounds(Wh, h.shape[1], H, r0, r1, seat)
    half = halves(Wh, r1 - r0, H)
    for t in range(gates.shape[0]):
        add_product(gates, h, t, Wh, ids, Wx, b, r0, r1, u0, u1, half, arrivals, seat, code)
        for r in range(r0, r1):
            a, h1 = gates[t, r, u0:u1], h[t + 1, r, u0:u1]
            if activation == TANH:
                for j in range(u1 - u0):
                    a[j] = tanh(a[j])
            elif activation == RELU:
                for j in range(u1 - u0):
                    a[j] = max(a[j], zero)
            elif activation == SIGMOID:
                for j in range(u1 - u0):
                    a[j] = sigmoid(a[j])
            for j in range(u1 - u0):
                h1[j] = a[j]
        join(arrivals, seat)


@kernel
def backward(dh, dh0, gates, ways, WhT, activation, r0, r1, arrivals, seat, code):
    """Undo `forward`. dh (T, B, H); dh0 (B, H); gates (T, B, H) become their gradients."""
    T, H = dh.shape[0], dh.shape[2]
    zero, one = dh.dtype.type(0), dh.dtype.type(1)
    r0, r1, u0, u1 = bounds(WhT, dh.shape[1], H, r0, r1, seat)
    panels, half = WhT[u0 // WhT.shape[2] :], halves(WhT, r1 - r0, H)
    for t in range(T - 1, -1, -1):
        for r in range(r0, r1):
            a, d, carry = gates[t, r, u0:u1], dh[t, r, u0:u1], dh0[r, u0:u1]
            way = ways[t, r]
            for j in range(u1 - u0):
                d[j] += way * carry[j]
            if activation == TANH:
                for j in range(u1 - u0):
                    a[j] = d[j] * (one - a[j] * a[j])
            elif activation == RELU:
                for j in range(u1 - u0):
                    a[j] = d[j] if a[j] > zero else zero
            elif activation == SIGMOID:
                for j in range(u1 - u0):
                    a[j] = d[j] * a[j] * (one - a[j])
            else:
                for j in range(u1 - u0):
                    a[j] = d[j]
        join(arrivals, seat)
        gemm(dh0[r0:r1, u0:u1], gates[t, r0:r1], panels, False, half, code)


class RNN(Cell):
    """See the module's head."""

    name = "rnn"
    gates = 1
    torch_module = "RNN"
    activations = tuple(CODES)

    def __init__(self, activation: str = "tanh") -> None:
        super().__init__(activation)
        self.squashes = {"h": activation}

    def forward(self, p: Arrays, k: Arrays, w: Arrays, ids: np.ndarray, part: Part) -> Call:
        code = CODES[self.activation]
        return forward, (w["h"], w["gates"], ids, p["Wx"], p["b"], k["Wh"], code, *part)

    def slope(self, p: Arrays, gates: np.ndarray) -> np.ndarray:
        return SLOPES[self.activation](gates)

    def backward(self, p: Arrays, k: Arrays, w: Arrays, part: Part) -> Call:
        code = CODES[self.activation]
        return backward, (w["dh"], w["dh0"], w["gates"], w["ways"], k["WhT"], code, *part)


CELL = RNN
