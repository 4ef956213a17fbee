"""Reading characters: rows of a matrix by id, and the gradient's way back to them."""

from __future__ import annotations

import numpy as np

from charrnn.kernels.elementwise import elementwise
from charrnn.kernels.jit import kernel


@kernel
def gather(out, ids, W, b, m0, m1, n0, n1):
    """``out[m, n] = W[ids[m], n] + b[n]`` for m0 <= m < m1, n0 <= n < n1. ids (B,).

    The product of one-hot rows with W (V, N).
    """
    bias = b[n0:n1]
    for m in range(m0, m1):
        row, source = out[m, n0:n1], W[ids[m], n0:n1]
        for j in range(bias.size):
            row[j] = source[j] + bias[j]


@kernel
def embed(out, ids, W, r0, r1):
    """``out[t, r] = W[ids[t, r]]``. out (T, B, E), ids (T, B), W (V, E)."""
    for t in range(ids.shape[0]):
        for r in range(r0, r1):
            row, source = out[t, r], W[ids[t, r]]
            for j in range(row.size):
                row[j] = source[j]


@elementwise("out")
def add(out, x):
    return (out + x,)


@elementwise("out")
def add_four(out, x, y, z, w):
    return (out + x + y + z + w,)


@kernel
def scatter(dW, ids, dout, c0, c1, accumulate):
    """``dW[v, c0:c1] = sum of dout[r, c0:c1] where ids[r] = v``, or ``+=``.

    Undoes `gather` and `embed`, from the last row to the first. dW (V, N), ids (R,), dout (R, at
    least N). Rows of one id come one after the other, four at a time, because dW's row is read and
    written for each.
    """
    if not accumulate:
        for v in range(dW.shape[0]):
            dW[v, c0:c1] = 0
    last = np.full(dW.shape[0], -1)  # row of each id
    before = np.empty(ids.size, np.int64)  # the row of the same id before each row
    for r in range(ids.size):
        before[r], last[ids[r]] = last[ids[r]], r
    for newest in range(ids.size - 1, -1, -1):
        row, r = dW[ids[newest], c0:c1], newest
        if last[ids[newest]] != newest:
            continue
        while r >= 0:
            s = before[r]
            t = before[s] if s >= 0 else -1
            u = before[t] if t >= 0 else -1
            if u >= 0:
                add_four(row, dout[r, c0:c1], dout[s, c0:c1], dout[t, c0:c1], dout[u, c0:c1])
                r = before[u]
            else:
                add(row, dout[r, c0:c1])
                r = s
