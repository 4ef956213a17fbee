"""Gated recurrent unit (Cho et al. 2014), PyTorch's variant: reset acts after the product.

    r = sigmoid(x_t Wx_r + h_(t-1) Wh_r + b_r)          reset gate
    z = sigmoid(x_t Wx_z + h_(t-1) Wh_z + b_z)          update gate
    q = h_(t-1) Wh_n + bhn
    n = tanh   (x_t Wx_n + b_n + r q)                   candidate
    h_t = (1 - z) n + z h_(t-1)

``gates`` has 4H columns: r, z, n, PyTorch's order, and behind them q, which the way back needs.
"""

from __future__ import annotations

import numpy as np

from charrnn.cells.base import Arrays, Call, Cell, Packing, Product, packed_pair, rows
from charrnn.kernels.elementwise import sigmoid, tanh
from charrnn.kernels.gather import gather
from charrnn.kernels.gemm import gemm, halves
from charrnn.kernels.jit import kernel
from charrnn.kernels.softmax import column_sums


@kernel
def forward(h, gates, ids, Wx, b, bhn, Wh_rz, Wh_n, r0, r1):
    """The equations above. h (T+1, B, H); gates (T, B, 4H); Wh_rz and Wh_n packed."""
    H = h.shape[2]
    half = halves(Wh_rz, r1 - r0, H)
    for t in range(gates.shape[0]):
        if ids.shape[0] > 0:
            gather(gates[t], ids[t], Wx, b, r0, r1)
        for r in range(r0, r1):
            q = gates[t, r, 3 * H :]
            for j in range(H):
                q[j] = bhn[j]
        gemm(gates[t, r0:r1, : 2 * H], h[t, r0:r1], Wh_rz, True, half)
        gemm(gates[t, r0:r1, 3 * H :], h[t, r0:r1], Wh_n, True, half)
        for r in range(r0, r1):
            reset, z = gates[t, r, :H], gates[t, r, H : 2 * H]
            n, q = gates[t, r, 2 * H : 3 * H], gates[t, r, 3 * H :]
            h0, h1 = h[t, r], h[t + 1, r]
            for j in range(H):
                reset[j] = sigmoid(reset[j])
            for j in range(H):
                z[j] = sigmoid(z[j])
            for j in range(H):
                n[j] = tanh(n[j] + reset[j] * q[j])
            for j in range(H):
                h1[j] = n[j] + z[j] * (h0[j] - n[j])


@kernel
def backward(dh, dh0, gates, h, Wh_rzT, Wh_nT, r0, r1):
    """Undo `forward`. dh (T, B, H); dh0 (B, H); gates (T, B, 4H) become their gradients."""
    T, H = dh.shape[0], dh.shape[2]
    new = np.empty(H, dh.dtype)  # a gate's gradient, until its value is no longer needed
    one = dh.dtype.type(1)
    half = halves(Wh_rzT, r1 - r0, 2 * H)
    for t in range(T - 1, -1, -1):
        for r in range(r0, r1):
            reset, z = gates[t, r, :H], gates[t, r, H : 2 * H]
            n, q = gates[t, r, 2 * H : 3 * H], gates[t, r, 3 * H :]
            h0, d, carry = h[t, r], dh[t, r], dh0[r]
            for j in range(H):
                d[j] += carry[j]
            for j in range(H):  # h_t = (1 - z) n + z h_(t-1)
                carry[j] = d[j] * z[j]
            for j in range(H):
                new[j] = d[j] * (h0[j] - n[j]) * z[j] * (one - z[j])
            for j in range(H):
                n[j] = d[j] * (one - z[j]) * (one - n[j] * n[j])
            for j in range(H):
                z[j] = new[j]
            for j in range(H):  # n = tanh(... + r q)
                new[j] = n[j] * q[j] * reset[j] * (one - reset[j])
            for j in range(H):
                q[j] = n[j] * reset[j]
            for j in range(H):
                reset[j] = new[j]
        gemm(dh0[r0:r1], gates[t, r0:r1, : 2 * H], Wh_rzT, True, half)
        gemm(dh0[r0:r1], gates[t, r0:r1, 3 * H :], Wh_nT, True, half)


class GRU(Cell):
    """See the module's head."""

    name = "gru"
    gates = 3
    torch_module = "GRU"

    def shapes(self, D: int, H: int) -> dict[str, tuple[int, ...]]:
        return super().shapes(D, H) | {"bhn": (H,)}

    def work_shapes(self, T: int, B: int, H: int) -> dict[str, tuple[int, ...]]:
        return super().work_shapes(T, B, H) | {"gates": (T, B, 4 * H)}

    def packing(self, p: Arrays, operands: str, gradient: bool) -> Packing:
        H = len(p["Wh"])
        gates = packed_pair("Wh_rz", p["Wh"], operands, gradient, 0, 2 * H)
        return gates + packed_pair("Wh_n", p["Wh"], operands, gradient, 2 * H)

    def forward(self, p: Arrays, k: Arrays, w: Arrays, ids: np.ndarray, r0: int, r1: int) -> Call:
        arrays = (w["h"], w["gates"], ids, p["Wx"], p["b"], p["bhn"], k["Wh_rz"], k["Wh_n"])
        return forward, (*arrays, r0, r1)

    def backward(self, p: Arrays, k: Arrays, w: Arrays, r0: int, r1: int) -> Call:
        arrays = (w["dh"], w["dh0"], w["gates"], w["h"], k["Wh_rzT"], k["Wh_nT"])
        return backward, (*arrays, r0, r1)

    def weight_products(self, g: Arrays, w: Arrays) -> list[Product]:
        T, H = len(w["gates"]), len(g["Wh"])
        h, gates = rows(w["h"][:T]), rows(w["gates"])
        return [
            Product(g["Wh"], h, gates, 0, 2 * H, 0),
            Product(g["Wh"], h, gates, 2 * H, 3 * H, H),  # the columns of q
        ]

    def reductions(self, g: Arrays, w: Arrays) -> list[Call]:
        H = len(g["Wh"])
        return [(column_sums, (g["bhn"], rows(w["gates"]), 0, H, 3 * H, False))]

    def to_torch(self, p: Arrays, gradients: bool = False) -> Arrays:
        H = len(p["Wh"])
        torch = super().to_torch(p, gradients)
        torch["bias_hh"][2 * H :] = p["bhn"]
        return torch

    def from_torch(self, t: Arrays) -> Arrays:
        H = t["weight_hh"].shape[1]
        p = super().from_torch(t)
        p["b"][2 * H :] = t["bias_ih"][2 * H :]
        return p | {"bhn": t["bias_hh"][2 * H :]}


CELL = GRU
