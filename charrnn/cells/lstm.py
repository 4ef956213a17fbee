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

from charrnn.cells.base import Arrays, Call, Cell
from charrnn.kernels.elementwise import sigmoid, tanh
from charrnn.kernels.gather import gather
from charrnn.kernels.gemm import gemm, halves
from charrnn.kernels.jit import kernel


@kernel
def forward(h, c, gates, ids, Wx, b, Wh, r0, r1):
    """The equations above. h, c (T+1, B, H); gates (T, B, 4H); Wh packed."""
    H = h.shape[2]
    half = halves(Wh, r1 - r0, H)
    for t in range(gates.shape[0]):
        if ids.shape[0] > 0:
            gather(gates[t], ids[t], Wx, b, r0, r1)
        gemm(gates[t, r0:r1], h[t, r0:r1], Wh, True, half)
        for r in range(r0, r1):
            i, f = gates[t, r, :H], gates[t, r, H : 2 * H]
            g, o = gates[t, r, 2 * H : 3 * H], gates[t, r, 3 * H :]
            c0, c1, h1 = c[t, r], c[t + 1, r], h[t + 1, r]
            # One or two arrays a loop: the compiler vectorises what it can prove apart.
            for j in range(H):
                i[j] = sigmoid(i[j])
            for j in range(H):
                f[j] = sigmoid(f[j])
            for j in range(H):
                g[j] = tanh(g[j])
            for j in range(H):
                o[j] = sigmoid(o[j])
            for j in range(H):
                c1[j] = f[j] * c0[j] + i[j] * g[j]
            for j in range(H):
                h1[j] = o[j] * tanh(c1[j])


@kernel
def backward(dh, dh0, dc, gates, c, WhT, r0, r1):
    """Undo `forward`. dh (T, B, H); dh0, dc (B, H); gates (T, B, 4H) become their gradients."""
    T, H = dh.shape[0], dh.shape[2]
    tanh_c, di = np.empty(H, dh.dtype), np.empty(H, dh.dtype)
    one = dh.dtype.type(1)
    half = halves(WhT, r1 - r0, 4 * H)
    for t in range(T - 1, -1, -1):
        for r in range(r0, r1):
            i, f = gates[t, r, :H], gates[t, r, H : 2 * H]
            g, o = gates[t, r, 2 * H : 3 * H], gates[t, r, 3 * H :]
            c0, c1, d, m, carry = c[t, r], c[t + 1, r], dh[t, r], dc[r], dh0[r]
            for j in range(H):
                d[j] += carry[j]
            for j in range(H):
                tanh_c[j] = tanh(c1[j])
            for j in range(H):  # h_t = o tanh(c_t)
                m[j] += d[j] * o[j] * (one - tanh_c[j] * tanh_c[j])
            for j in range(H):
                o[j] = d[j] * tanh_c[j] * o[j] * (one - o[j])
            for j in range(H):  # c_t = f c_(t-1) + i g
                di[j] = m[j] * g[j] * i[j] * (one - i[j])
            for j in range(H):
                g[j] = m[j] * i[j] * (one - g[j] * g[j])
            for j in range(H):
                i[j] = di[j]
            for j in range(H):
                gate, dm = f[j], m[j]
                f[j] = dm * c0[j] * gate * (one - gate)
                m[j] = dm * gate
        gemm(dh0[r0:r1], gates[t, r0:r1], WhT, False, half)


class LSTM(Cell):
    """See the module's head."""

    name = "lstm"
    gates = 4
    states = ("h", "c")
    torch_module = "LSTM"

    def initialize(self, p: Arrays) -> None:
        """Forget gates start open (Jozefowicz et al. 2015): their bias is 1."""
        H = len(p["Wh"])
        p["b"][H : 2 * H] = 1

    def forward(self, p: Arrays, k: Arrays, w: Arrays, ids: np.ndarray, r0: int, r1: int) -> Call:
        return forward, (w["h"], w["c"], w["gates"], ids, p["Wx"], p["b"], k["Wh"], r0, r1)

    def backward(self, p: Arrays, k: Arrays, w: Arrays, r0: int, r1: int) -> Call:
        return backward, (w["dh"], w["dh0"], w["dc0"], w["gates"], w["c"], k["WhT"], r0, r1)


CELL = LSTM
