"""How threads share the units of a layer: each does some for all rows, and they meet at every step.

By rows, each thread would read all of the recurrent weights at every time step; by units it reads
its own panels of them. A thread's seat is an int64 array of its own. Who sits alone does all units
of its rows and meets nobody.
"""

from __future__ import annotations

import numpy as np

from charrnn.kernels.gemm import gemm, gemm_gathered
from charrnn.kernels.jit import kernel
from charrnn.kernels.pack import aligned_zeros
from charrnn.kernels.program import YIELD, meet

MET, PLACE, PARTIES, GIVE_WAY = range(4)
"""Elements of a seat: see `meet`; whose it is, and of how many."""


def seats(parties: int) -> np.ndarray:
    """(parties, 8): a row, which fills a cache line, for everyone who shares the units."""
    made = aligned_zeros((parties, 8), np.int64)
    made[:, PLACE], made[:, PARTIES], made[:, GIVE_WAY] = np.arange(parties), parties, YIELD
    return made


ALONE = seats(1)[0]
NOWHERE = aligned_zeros((8,), np.int64)
"""The arrivals of who meets nobody."""


@kernel
def bounds(P, M, N, r0, r1, seat):
    """Rows m0 <= m < m1 and columns n0 <= n < n1 that a thread takes of (M, N).

    All columns of the rows r0 <= r < r1, or whole panels, as wide as those of P, of all rows.
    """
    parties, width = seat[PARTIES], P.shape[2]
    if parties == 1:
        return r0, r1, 0, N
    panels = (N + width - 1) // width
    n0 = panels * seat[PLACE] // parties * width
    n1 = panels * (seat[PLACE] + 1) // parties * width
    return 0, M, min(n0, N), min(n1, N)


@kernel
def own_row(nth, r0, r1, seat):
    """A row of r0 <= r < r1 for each ``nth`` of these numbers: everyone begins with another one.

    Units of a row lie side by side, and processors fetch what lies behind what they read: threads
    that were at the same row would take from each other what they are writing.
    """
    r = nth + (r1 - r0) * seat[PLACE] // seat[PARTIES]
    return r if r < r1 else r - (r1 - r0)


@kernel
def join(arrivals, seat):
    """Wait for all who share the units: what each has written is there for the others."""
    if seat[PARTIES] > 1:
        meet(arrivals, seat, seat[PARTIES], seat[GIVE_WAY])


@kernel
def add_product(gates, x, H, t, P, ids, Wx, b, m0, m1, u0, u1, arrivals, seat, code):
    """``gates[t] += h[t] @ W`` for a thread's `bounds` of rows and units; W (H, G H) packed as P.

    ``x`` is the `factor` that the thread's rows of h[t] are. With ``ids`` (T, B) the product is
    added to what these select, see `gather`, in place of what was in gates.
    """
    N, width = gates.shape[2], P.shape[2]
    size = N if seat[PARTIES] == 1 else H  # alone: all gates in one product
    parts = N // size
    for i in range(parts):
        first = (parts - 1 - i if t % 2 else i) * size  # what was last is near
        n0 = min(N, (first + u0 + width - 1) // width * width)
        n1 = min(N, (first + size - H + u1 + width - 1) // width * width)
        part, panels = gates[t, m0:m1, n0:n1], P[n0 // width :]
        if ids.shape[0] > 0:
            W, bias = Wx[:, n0:n1], b[n0:n1]
            gemm_gathered(part, x, panels, W, ids[t, m0:m1], bias, t, x, code)
        else:
            gemm(part, x, panels, part, t, x, code)
    if size < N and H % width > 0:  # a panel may lie across the units of two threads
        join(arrivals, seat)
