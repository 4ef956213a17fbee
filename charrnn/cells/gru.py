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

from charrnn.cells.base import Arrays, Call, Cell, Packing, Part, Product, Room, packed_pair, rows
from charrnn.kernels.elementwise import elementwise, sigmoid, tanh
from charrnn.kernels.gather import gather
from charrnn.kernels.gemm import factor, gemm, halves
from charrnn.kernels.jit import kernel
from charrnn.kernels.seat import add_product, bounds, join, own_row
from charrnn.kernels.softmax import column_sums
from charrnn.kernels.tile import tile_of
from charrnn.threads import LINE, share


@elementwise("r", "z", "n", "h1")
def step(r, z, n, q, h0, h1):
    r, z = sigmoid(r), sigmoid(z)
    n = tanh(n + r * q)
    return r, z, n, n + z * (h0 - n)


@kernel
def forward(h, gates, ids, Wx, b, bhn, Wh_rz, Wh_n, r0, r1, arrivals, seat, code):
    """The equations above. h (T+1, B, H); gates (T, B, 4H); Wh_rz and Wh_n packed."""
    H = h.shape[2]
    r0, r1, u0, u1 = bounds(Wh_n, h.shape[1], H, r0, r1, seat)
    rz, q_panels = gates[:, :, : 2 * H], Wh_n[u0 // Wh_n.shape[2] :]
    half = halves(Wh_rz, r1 - r0, H)
    for t in range(gates.shape[0]):
        if ids.shape[0] > 0:
            gather(gates[t], ids[t], Wx, b, r0, r1, 2 * H + u0, 2 * H + u1)
        x = factor(h[t, r0:r1], Wh_rz, half)
        add_product(rz, x, H, t, Wh_rz, ids, Wx, b, r0, r1, u0, u1, arrivals, seat, code)
        part = gates[t, r0:r1, 3 * H + u0 : 3 * H + u1]
        gemm(part, x, q_panels, bhn[u0:u1], t, x, code)
        for nth in range(r0, r1):
            r = own_row(nth, r0, r1, seat)
            reset, z = gates[t, r, u0:u1], gates[t, r, H + u0 : H + u1]
            n, q = gates[t, r, 2 * H + u0 : 2 * H + u1], gates[t, r, 3 * H + u0 : 3 * H + u1]
            step(reset, z, n, q, h[t, r, u0:u1], h[t + 1, r, u0:u1])
        join(arrivals, seat)


@elementwise("r", "z", "n", "q", "d", "carry")
def undo(r, z, n, q, h0, d, carry, way):
    d = d + way * carry
    dz = d * (h0 - n) * z * (1 - z)  # h_t = (1 - z) n + z h_(t-1)
    dn = d * (1 - z) * (1 - n * n)
    dr = dn * q * r * (1 - r)  # n = tanh(... + r q)
    return dr, dz, dn, dn * r, d, d * z


@kernel
def backward(dh, dh0, gates, h, ways, Wh_rzT, Wh_nT, r0, r1, arrivals, seat, code):
    """Undo `forward`. dh (T, B, H); dh0 (B, H); gates (T, B, 4H) become their gradients."""
    T, H = dh.shape[0], dh.shape[2]
    r0, r1, u0, u1 = bounds(Wh_nT, dh.shape[1], H, r0, r1, seat)
    first = u0 // Wh_nT.shape[2]
    panels_rz, panels_n, half = Wh_rzT[first:], Wh_nT[first:], halves(Wh_rzT, r1 - r0, 2 * H)
    for t in range(T - 1, -1, -1):
        for nth in range(r0, r1):
            r = own_row(nth, r0, r1, seat)
            reset, z = gates[t, r, u0:u1], gates[t, r, H + u0 : H + u1]
            n, q = gates[t, r, 2 * H + u0 : 2 * H + u1], gates[t, r, 3 * H + u0 : 3 * H + u1]
            h0, d, carry = h[t, r, u0:u1], dh[t, r, u0:u1], dh0[r, u0:u1]
            undo(reset, z, n, q, h0, d, carry, ways[t, r])
        join(arrivals, seat)
        part = dh0[r0:r1, u0:u1]
        gemm(part, gates[t, r0:r1, : 2 * H], panels_rz, part, t, half, code)
        gemm(part, gates[t, r0:r1, 3 * H :], panels_n, part, t, half, code)


class GRU(Cell):
    """See the module's head."""

    name = "gru"
    gates = 3
    reads = ("gates", "h")
    torch_module = "GRU"
    squashes = {"r": "sigmoid", "z": "sigmoid", "n": "tanh"}

    def shapes(self, D: int, H: int) -> dict[str, tuple[int, ...]]:
        return super().shapes(D, H) | {"bhn": (H,)}

    def work_shapes(self, T: int, B: int, H: int) -> dict[str, tuple[int, ...]]:
        return super().work_shapes(T, B, H) | {"gates": (T, B, 4 * H)}

    def packing(self, p: Arrays, room: Room, gradient: bool) -> Packing:
        H = len(p["Wh"])
        gates = packed_pair("Wh_rz", p["Wh"], room, gradient, 0, 2 * H)
        return gates + packed_pair("Wh_n", p["Wh"], room, gradient, 2 * H)

    def forward(self, p: Arrays, k: Arrays, w: Arrays, ids: np.ndarray, part: Part) -> Call:
        arrays = (w["h"], w["gates"], ids, p["Wx"], p["b"], p["bhn"], k["Wh_rz"], k["Wh_n"])
        return forward, (*arrays, *part, tile_of(k["Wh_n"]))

    def backward(self, p: Arrays, k: Arrays, w: Arrays, part: Part) -> Call:
        arrays = (w["dh"], w["dh0"], w["gates"], w["h"], w["ways"])
        return backward, (*arrays, k["Wh_rzT"], k["Wh_nT"], *part, tile_of(k["Wh_nT"]))

    def kept(self, p: Arrays, w: Arrays) -> np.ndarray:
        H = len(p["Wh"])
        return w["gates"][..., H : 2 * H]

    def weight_products(self, g: Arrays, w: Arrays) -> list[Product]:
        T, H = len(w["gates"]), len(g["Wh"])
        h, gates = rows(w["h"][:T]), rows(w["gates"])
        return [
            Product(g["Wh"], h, gates, 0, 2 * H, 0),
            Product(g["Wh"], h, gates, 2 * H, 3 * H, H),  # the columns of q
        ]

    def reductions(
        self, g: Arrays, w: Arrays, accumulate: bool, part: int = 0, parts: int = 1
    ) -> list[Call]:
        H = len(g["Wh"])
        c0, c1 = share(H, part, parts, LINE)
        return [(column_sums, (g["bhn"], rows(w["gates"]), c0, c1, 3 * H, accumulate))]

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
