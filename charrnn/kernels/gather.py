"""Reading characters: rows of a matrix by id, and the gradient's way back to them."""

from __future__ import annotations

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


@kernel
def scatter(dW, ids, dout, c0, c1, accumulate):
    """``dW[v, c0:c1] = sum of dout[r, c0:c1] where ids[r] = v``, or ``+=``.

    Undoes `gather` and `embed`, from the last row to the first. dW (V, N), ids (R,), dout (R, at
    least N).
    """
    if not accumulate:
        for v in range(dW.shape[0]):
            dW[v, c0:c1] = 0
    for r in range(ids.size - 1, -1, -1):
        row, source = dW[ids[r], c0:c1], dout[r, c0:c1]
        for j in range(row.size):
            row[j] += source[j]
