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
from charrnn.kernels.elementwise import sigmoid, tanh
from charrnn.kernels.gemm import gemm, halves
from charrnn.kernels.jit import kernel
from charrnn.kernels.seat import add_product, bounds, join


@kernel
def forward(h, c, gates, ids, Wx, b, Wh, r0, r1, arrivals, seat, code):
    """The equations above. h, c (T+1, B, H); gates (T, B, 4H); Wh packed."""
    H = h.shape[2]
    r0, r1, u0, u1 = bounds(Wh, h.shape[1], H, r0, r1, seat)
    half = halves(Wh, r1 - r0, H)
    for t in range(gates.shape[0]):
        add_product(gates, h, t, Wh, ids, Wx, b, r0, r1, u0, u1, half, arrivals, seat, code)
        for r in range(r0, r1):
            i, f = gates[t, r, u0:u1], gates[t, r, H + u0 : H + u1]
            g, o = gates[t, r, 2 * H + u0 : 2 * H + u1], gates[t, r, 3 * H + u0 : 3 * H + u1]
            c0, c1, h1 = c[t, r, u0:u1], c[t + 1, r, u0:u1], h[t + 1, r, u0:u1]
            # One or two arrays a loop: the compiler vectorises what it can prove apart.
            for j in range(u1 - u0):
                i[j] = sigmoid(i[j])
            for j in range(u1 - u0):
                f[j] = sigmoid(f[j])
            for j in range(u1 - u0):
                g[j] = tanh(g[j])
            for j in range(u1 - u0):
                o[j] = sigmoid(o[j])
            for j in range(u1 - u0):
                c1[j] = f[j] * c0[j] + i[j] * g[j]
            for j in range(u1 - u0):
                h1[j] = o[j] * tanh(c1[j])
        join(arrivals, seat)


@kernel
def backward(dh, dh0, dc, gates, c, ways, WhT, r0, r1, arrivals, seat, code):
    """Undo `forward`. dh (T, B, H); dh0, dc (B, H); gates (T, B, 4H) become their gradients."""
    T, H = dh.shape[0], dh.shape[2]
    tanh_c, di = np.empty(H, dh.dtype), np.empty(H, dh.dtype)
    one = dh.dtype.type(1)
    r0, r1, u0, u1 = bounds(WhT, dh.shape[1], H, r0, r1, seat)
    panels, half = WhT[u0 // WhT.shape[2] :], halves(WhT, r1 - r0, 4 * H)
    for t in range(T - 1, -1, -1):
        for r in range(r0, r1):
            i, f = gates[t, r, u0:u1], gates[t, r, H + u0 : H + u1]
            g, o = gates[t, r, 2 * H + u0 : 2 * H + u1], gates[t, r, 3 * H + u0 : 3 * H + u1]
            c0, c1, m = c[t, r, u0:u1], c[t + 1, r, u0:u1], dc[r, u0:u1]
            d, carry, way = dh[t, r, u0:u1], dh0[r, u0:u1], ways[t, r]
            for j in range(u1 - u0):
                d[j] += way * carry[j]
            for j in range(u1 - u0):
                tanh_c[j] = tanh(c1[j])
            for j in range(u1 - u0):  # h_t = o tanh(c_t)
                m[j] = way * m[j] + d[j] * o[j] * (one - tanh_c[j] * tanh_c[j])
            for j in range(u1 - u0):
                o[j] = d[j] * tanh_c[j] * o[j] * (one - o[j])
            for j in range(u1 - u0):  # c_t = f c_(t-1) + i g
                di[j] = m[j] * g[j] * i[j] * (one - i[j])
            for j in range(u1 - u0):
                g[j] = m[j] * i[j] * (one - g[j] * g[j])
            for j in range(u1 - u0):
                i[j] = di[j]
            for j in range(u1 - u0):
                gate, dm = f[j], m[j]
                f[j] = dm * c0[j] * gate * (one - gate)
                m[j] = dm * gate
        join(arrivals, seat)
        gemm(dh0[r0:r1, u0:u1], gates[t, r0:r1], panels, False, half, code)


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
        return forward, (w["h"], w["c"], w["gates"], ids, p["Wx"], p["b"], k["Wh"], *part)

    def backward(self, p: Arrays, k: Arrays, w: Arrays, part: Part) -> Call:
        arrays = (w["dh"], w["dh0"], w["dc0"], w["gates"], w["c"], w["ways"])
        return backward, (*arrays, k["WhT"], *part)

    def kept(self, p: Arrays, w: Arrays) -> np.ndarray:
        H = len(p["Wh"])
        return w["gates"][..., H : 2 * H]

    def exposure(self, w: Arrays) -> Arrays:
        H = w["c"].shape[-1]
        return {"c": w["gates"][..., 3 * H :] * (1 - np.tanh(w["c"][1:]) ** 2)}


CELL = LSTM
