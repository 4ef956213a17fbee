"""The plain recurrent network (Elman 1990).

    h_t = s(x_t Wx + h_(t-1) Wh + b)

with s one of tanh, relu, sigmoid, identity. ``gates`` holds h_t; every s' is a function of it.
"""

from __future__ import annotations

import numpy as np

from charrnn.cells.base import SLOPES, Arrays, Call, Cell, Part
from charrnn.kernels.elementwise import at_least, elementwise, sigmoid, tanh, where_positive
from charrnn.kernels.gemm import factor, gemm, halves
from charrnn.kernels.jit import kernel
from charrnn.kernels.seat import add_product, bounds, join, own_row
from charrnn.kernels.tile import tile_of

TANH, RELU, SIGMOID, IDENTITY = range(4)
CODES = {"tanh": TANH, "relu": RELU, "sigmoid": SIGMOID, "identity": IDENTITY}


@elementwise("a", "h1")
def step_tanh(a, h1):
    return (tanh(a),) * 2


@elementwise("a", "h1")
def step_relu(a, h1):
    return (at_least(a, 0.0),) * 2


@elementwise("a", "h1")
def step_sigmoid(a, h1):
    return (sigmoid(a),) * 2


@elementwise("h1")
def step_identity(a, h1):
    return (a,)


@elementwise("h", "d")
def undo_tanh(h, d, carry, way):
    d = d + way * carry
    return d * (1 - h * h), d


@elementwise("h", "d")
def undo_relu(h, d, carry, way):
    d = d + way * carry
    return where_positive(h, d, 0.0), d


@elementwise("h", "d")
def undo_sigmoid(h, d, carry, way):
    d = d + way * carry
    return d * h * (1 - h), d


@elementwise("h", "d")
def undo_identity(h, d, carry, way):
    d = d + way * carry
    return d, d


@kernel
def forward(h, gates, ids, Wx, b, Wh, activation, r0, r1, arrivals, seat, code):
    """The equation above. h (T+1, B, H); gates (T, B, H); Wh packed."""
    H = h.shape[2]
    r0, r1, u0, u1 = bounds(Wh, h.shape[1], H, r0, r1, seat)
    half = halves(Wh, r1 - r0, H)
    for t in range(gates.shape[0]):
        x = factor(h[t, r0:r1], Wh, half)
        add_product(gates, x, H, t, Wh, ids, Wx, b, r0, r1, u0, u1, arrivals, seat, code)
        for nth in range(r0, r1):
            r = own_row(nth, r0, r1, seat)
            a, h1 = gates[t, r, u0:u1], h[t + 1, r, u0:u1]
            if activation == TANH:
                step_tanh(a, h1)
            elif activation == RELU:
                step_relu(a, h1)
            elif activation == SIGMOID:
                step_sigmoid(a, h1)
            else:
                step_identity(a, h1)
        join(arrivals, seat)


@kernel
def backward(dh, dh0, gates, ways, WhT, activation, r0, r1, arrivals, seat, code):
    """Undo `forward`. dh (T, B, H); dh0 (B, H); gates (T, B, H) become their gradients."""
    T, H = dh.shape[0], dh.shape[2]
    r0, r1, u0, u1 = bounds(WhT, dh.shape[1], H, r0, r1, seat)
    panels, half = WhT[u0 // WhT.shape[2] :], halves(WhT, r1 - r0, H)
    for t in range(T - 1, -1, -1):
        for nth in range(r0, r1):
            r = own_row(nth, r0, r1, seat)
            a, d, carry = gates[t, r, u0:u1], dh[t, r, u0:u1], dh0[r, u0:u1]
            way = ways[t, r]
            if activation == TANH:
                undo_tanh(a, d, carry, way)
            elif activation == RELU:
                undo_relu(a, d, carry, way)
            elif activation == SIGMOID:
                undo_sigmoid(a, d, carry, way)
            else:
                undo_identity(a, d, carry, way)
        join(arrivals, seat)
        gemm(dh0[r0:r1, u0:u1], gates[t, r0:r1], panels, None, t, half, code)


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
        arrays = (w["h"], w["gates"], ids, p["Wx"], p["b"], k["Wh"])
        return forward, (*arrays, code, *part, tile_of(k["Wh"]))

    def slope(self, p: Arrays, gates: np.ndarray) -> np.ndarray:
        return SLOPES[self.activation](gates)

    def backward(self, p: Arrays, k: Arrays, w: Arrays, part: Part) -> Call:
        code = CODES[self.activation]
        arrays = (w["dh"], w["dh0"], w["gates"], w["ways"], k["WhT"])
        return backward, (*arrays, code, *part, tile_of(k["WhT"]))


CELL = RNN
