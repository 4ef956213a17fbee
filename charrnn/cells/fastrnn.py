"""FastRNN, a residual network in time (Kusupati et al. 2018, equation 2).

    a = tanh(x_t Wx + h_(t-1) Wh + b)
    h_t = beta h_(t-1) + alpha a

alpha and beta are two trained numbers a layer. The way back, dh_(t-1) = beta dh_t + ..., has a term
without a matrix, as in a residual network: with beta near 1 far gradients survive.
"""

from __future__ import annotations

import numpy as np

from charrnn.cells.base import Arrays, Call, Cell, Part
from charrnn.kernels.elementwise import elementwise, tanh
from charrnn.kernels.gemm import factor, gemm, halves
from charrnn.kernels.jit import kernel
from charrnn.kernels.seat import add_product, bounds, join, own_row
from charrnn.kernels.tile import tile_of

ALPHA, BETA = 0.3, 0.7
"""Where the two start: h begins as a running mean over some three characters."""


@elementwise("a", "h1")
def step(a, h0, h1, alpha, beta):
    a = tanh(a)
    return a, beta * h0 + alpha * a


@kernel
def forward(h, gates, ids, Wx, b, alpha, beta, Wh, r0, r1, arrivals, seat, code):
    """The equations above. h (T+1, B, H); gates (T, B, H); alpha, beta (1,); Wh packed."""
    H = h.shape[2]
    r0, r1, u0, u1 = bounds(Wh, h.shape[1], H, r0, r1, seat)
    half = halves(Wh, r1 - r0, H)
    for t in range(gates.shape[0]):
        x = factor(h[t, r0:r1], Wh, half)
        add_product(gates, x, H, t, Wh, ids, Wx, b, r0, r1, u0, u1, arrivals, seat, code)
        for nth in range(r0, r1):
            r = own_row(nth, r0, r1, seat)
            a, h0, h1 = gates[t, r, u0:u1], h[t, r, u0:u1], h[t + 1, r, u0:u1]
            step(a, h0, h1, alpha[0], beta[0])
        join(arrivals, seat)


@elementwise("a", "carry")
def undo(a, carry, d, alpha, beta):
    return alpha * d * (1 - a * a), beta * d


@kernel
def backward(dh, dh0, sums, gates, h, ways, alpha, beta, WhT, r0, r1, arrivals, seat, code):
    """Undo `forward`. dh (T, B, H); dh0 (B, H); gates (T, B, H) become their gradients.

    sums (T, B, 2): each row's part of the gradients of alpha and beta.
    """
    T, H = dh.shape[0], dh.shape[2]
    m0, m1, u0, u1 = bounds(WhT, dh.shape[1], H, r0, r1, seat)
    panels, half = WhT[u0 // WhT.shape[2] :], halves(WhT, m1 - m0, H)
    for t in range(T - 1, -1, -1):
        for r in range(r0, r1):
            a, h0, d, carry, way = gates[t, r], h[t, r], dh[t, r], dh0[r], ways[t, r]
            for j in range(H):
                d[j] += way * carry[j]
            to_alpha = to_beta = d[0] - d[0]
            for j in range(H):  # h_t = beta h_(t-1) + alpha a
                to_alpha += d[j] * a[j]
                to_beta += d[j] * h0[j]
            sums[t, r, 0] = to_alpha
            sums[t, r, 1] = to_beta
            undo(a, carry, d, alpha[0], beta[0])
        join(arrivals, seat)
        part = dh0[m0:m1, u0:u1]
        gemm(part, gates[t, m0:m1], panels, part, t, half, code)
        join(arrivals, seat)


@kernel
def _add_up(dalpha, dbeta, sums, accumulate):
    """Add to the gradients of alpha and beta those of all rows, from the last step to the first."""
    if not accumulate:
        dalpha[0] = dbeta[0] = 0
    for t in range(sums.shape[0] - 1, -1, -1):
        for r in range(sums.shape[1] - 1, -1, -1):
            dalpha[0] += sums[t, r, 0]
            dbeta[0] += sums[t, r, 1]


class FastRNN(Cell):
    """See the module's head."""

    name = "fastrnn"
    gates = 1
    reads = ("gates", "h")
    leaves = ("gates", "sums")
    squashes = {"a": "tanh"}

    def shapes(self, D: int, H: int) -> dict[str, tuple[int, ...]]:
        return super().shapes(D, H) | {"alpha": (1,), "beta": (1,)}

    def initialize(self, p: Arrays) -> None:
        p["alpha"][0], p["beta"][0] = ALPHA, BETA

    def work_shapes(self, T: int, B: int, H: int) -> dict[str, tuple[int, ...]]:
        return super().work_shapes(T, B, H) | {"sums": (T, B, 2)}

    def forward(self, p: Arrays, k: Arrays, w: Arrays, ids: np.ndarray, part: Part) -> Call:
        weights = (p["Wx"], p["b"], p["alpha"], p["beta"], k["Wh"])
        return forward, (w["h"], w["gates"], ids, *weights, *part, tile_of(k["Wh"]))

    def backward(self, p: Arrays, k: Arrays, w: Arrays, part: Part) -> Call:
        arrays = (w["dh"], w["dh0"], w["sums"], w["gates"], w["h"], w["ways"])
        return backward, (*arrays, p["alpha"], p["beta"], k["WhT"], *part, tile_of(k["WhT"]))

    def kept(self, p: Arrays, w: Arrays) -> np.ndarray:
        return np.broadcast_to(p["beta"], w["gates"].shape)

    def slope(self, p: Arrays, gates: np.ndarray) -> np.ndarray:
        return np.abs(p["alpha"]) * (1 - gates**2)

    def reductions(
        self, g: Arrays, w: Arrays, accumulate: bool, part: int = 0, parts: int = 1
    ) -> list[Call]:
        return [(_add_up, (g["alpha"], g["beta"], w["sums"], accumulate))][: part == 0]

    def to_torch(self, p: Arrays, gradients: bool = False) -> Arrays:
        return super().to_torch(p, gradients) | {"alpha": p["alpha"], "beta": p["beta"]}

    def from_torch(self, t: Arrays) -> Arrays:
        return super().from_torch(t) | {"alpha": t["alpha"], "beta": t["beta"]}


CELL = FastRNN
