"""Long short-term memory (Hochreiter and Schmidhuber 1997, with forget gates: Gers et al. 2000).

    i = sigmoid(x_t Wx_i + h_(t-1) Wh_i + b_i)         input gate
    f = sigmoid(x_t Wx_f + h_(t-1) Wh_f + b_f)         forget gate
    g = tanh   (x_t Wx_g + h_(t-1) Wh_g + b_g)         candidate
    o = sigmoid(x_t Wx_o + h_(t-1) Wh_o + b_o)         output gate
    c_t = f c_(t-1) + i g
    h_t = o tanh(c_t)

``gates`` columns are i, f, g, o, PyTorch's order. The memory's own way back, dc_(t-1) = f dc_t, has
no weight matrix in it: that is why far gradients survive.
"""

from __future__ import annotations

import numpy as np

from charrnn.cells.base import Arrays, Call, Cell, Part
from charrnn.kernels.elementwise import elementwise, sigmoid, tanh
from charrnn.kernels.gemm import factor, gemm, halves
from charrnn.kernels.jit import kernel
from charrnn.kernels.seat import add_product, bounds, join, own_row
from charrnn.kernels.tile import tile_of


@elementwise("i", "f", "g", "o", "c1", "h1")
def step(i, f, g, o, c0, c1, h1):
    i, f, g, o = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)
    c1 = f * c0 + i * g
    return i, f, g, o, c1, o * tanh(c1)


@kernel
def forward(h, c, gates, ids, Wx, b, Wh, r0, r1, arrivals, seat, code):
    """The equations above. h, c (T+1, B, H); gates (T, B, 4H); Wh packed."""
    H = h.shape[2]
    r0, r1, u0, u1 = bounds(Wh, h.shape[1], H, r0, r1, seat)
    half = halves(Wh, r1 - r0, H)
    for t in range(gates.shape[0]):
        x = factor(h[t, r0:r1], Wh, half)
        add_product(gates, x, H, t, Wh, ids, Wx, b, r0, r1, u0, u1, arrivals, seat, code)
        for nth in range(r0, r1):
            r = own_row(nth, r0, r1, seat)
            i, f = gates[t, r, u0:u1], gates[t, r, H + u0 : H + u1]
            g, o = gates[t, r, 2 * H + u0 : 2 * H + u1], gates[t, r, 3 * H + u0 : 3 * H + u1]
            step(i, f, g, o, c[t, r, u0:u1], c[t + 1, r, u0:u1], h[t + 1, r, u0:u1])
        join(arrivals, seat)


@elementwise("i", "f", "g", "o", "d", "dc")
def undo(i, f, g, o, c0, c1, d, dc, carry, way):
    d, tanh_c = d + way * carry, tanh(c1)
    dc = way * dc + d * o * (1 - tanh_c * tanh_c)  # h_t = o tanh(c_t)
    do = d * tanh_c * o * (1 - o)
    di = dc * g * i * (1 - i)  # c_t = f c_(t-1) + i g
    df = dc * c0 * f * (1 - f)
    dg = dc * i * (1 - g * g)
    return di, df, dg, do, d, dc * f


@kernel
def backward(dh, dh0, dc, gates, c, ways, WhT, r0, r1, arrivals, seat, code):
    """Undo `forward`. dh (T, B, H); dh0, dc (B, H); gates (T, B, 4H) become their gradients."""
    T, H = dh.shape[0], dh.shape[2]
    r0, r1, u0, u1 = bounds(WhT, dh.shape[1], H, r0, r1, seat)
    panels, half = WhT[u0 // WhT.shape[2] :], halves(WhT, r1 - r0, 4 * H)
    for t in range(T - 1, -1, -1):
        for nth in range(r0, r1):
            r = own_row(nth, r0, r1, seat)
            i, f = gates[t, r, u0:u1], gates[t, r, H + u0 : H + u1]
            g, o = gates[t, r, 2 * H + u0 : 2 * H + u1], gates[t, r, 3 * H + u0 : 3 * H + u1]
            c0, c1, d, m = c[t, r, u0:u1], c[t + 1, r, u0:u1], dh[t, r, u0:u1], dc[r, u0:u1]
            undo(i, f, g, o, c0, c1, d, m, dh0[r, u0:u1], ways[t, r])
        join(arrivals, seat)
        gemm(dh0[r0:r1, u0:u1], gates[t, r0:r1], panels, None, t, half, code)


class LSTM(Cell):
    """See the module's head."""

    name = "lstm"
    gates = 4
    states = ("h", "c")
    reads = ("gates", "c")
    torch_module = "LSTM"
    squashes = {"i": "sigmoid", "f": "sigmoid", "g": "tanh", "o": "sigmoid"}

    def initialize(self, p: Arrays) -> None:
        """Forget gates start open (Jozefowicz et al. 2015): their bias is 1."""
        H = len(p["Wh"])
        p["b"][H : 2 * H] = 1

    def forward(self, p: Arrays, k: Arrays, w: Arrays, ids: np.ndarray, part: Part) -> Call:
        arrays = (w["h"], w["c"], w["gates"], ids, p["Wx"], p["b"], k["Wh"])
        return forward, (*arrays, *part, tile_of(k["Wh"]))

    def backward(self, p: Arrays, k: Arrays, w: Arrays, part: Part) -> Call:
        arrays = (w["dh"], w["dh0"], w["dc0"], w["gates"], w["c"], w["ways"])
        return backward, (*arrays, k["WhT"], *part, tile_of(k["WhT"]))

    def kept(self, p: Arrays, w: Arrays) -> np.ndarray:
        H = len(p["Wh"])
        return w["gates"][..., H : 2 * H]

    def exposure(self, w: Arrays) -> Arrays:
        H = w["c"].shape[-1]
        return {"c": w["gates"][..., 3 * H :] * (1 - np.tanh(w["c"][1:]) ** 2)}


CELL = LSTM
