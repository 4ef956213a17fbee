"""The output layer: projection, softmax cross-entropy and its gradient, in blocks of time steps."""

from __future__ import annotations

import numpy as np

from charrnn.kernels.elementwise import elementwise, exp
from charrnn.kernels.gemm import gemm, halves
from charrnn.kernels.jit import kernel
from charrnn.kernels.reduce import maximum, total
from charrnn.kernels.seat import bounds

ROUNDED = 64
"""Rows that are rounded at a time, at the least, if one step's are fewer."""
COLUMNS = 12
"""Of the weights, for each of these rows, at the most: large ones are to pass by less often."""


@kernel
def project(out, x, P, bias, r0, r1, seat, code):
    """``out = x @ W + bias`` for the rows r0 <= r < r1, or columns as the seat says.

    out (T, B, at least N), x (T, B, K), W packed as P, bias (N,).
    """
    m0, m1, n0, n1 = bounds(P, x.shape[1], bias.size, r0, r1, seat)
    half = halves(P, max(m1 - m0, ROUNDED, (n1 - n0) // COLUMNS), x.shape[2])
    part = out[:, m0:m1, n0:n1]
    gemm(part, x[:, m0:m1], P[n0 // P.shape[2] :], bias[n0:n1], 0, half, code)


@kernel
def back_project(dx, dout, PT, N, r0, r1, seat, code):
    """Undo `project`: ``dx[t, r] = dout[t, r] @ W.T``, W.T packed as PT.

    dout's rows may be longer than W's N columns: the first N count.
    """
    m0, m1, n0, n1 = bounds(PT, dx.shape[1], dx.shape[2], r0, r1, seat)
    half = halves(PT, max(m1 - m0, ROUNDED, (n1 - n0) // COLUMNS), N)
    gemm(dx[:, m0:m1, n0:n1], dout[:, m0:m1, :N], PT[n0 // PT.shape[2] :], None, 0, half, code)


@elementwise("x")
def exponentials(x, top):
    return (exp(x - top),)


@kernel
def cross_entropy(losses, logits, targets, scale, gradient, r0, r1):
    """Softmax cross-entropy of the rows r0 <= r < r1, in nats.

    losses (T, B); logits (T, B, V), which become ``scale * (softmax(logits) - onehot(target))``,
    the gradient of ``scale * sum(losses)``, if ``gradient`` is set, else garbage; targets (T, B)
    int32, where a negative one has no loss; scale (1,). The maximum is subtracted first, so that no
    logit overflows.
    """
    for t in range(logits.shape[0]):
        for r in range(r0, r1):
            row = logits[t, r]
            target = targets[t, r]
            if target < 0:
                losses[t, r] = 0
                row[:] = 0
                continue
            top = maximum(row)
            above = row[target] - top
            exponentials(row, top)
            exps = total(row)
            losses[t, r] = np.log(exps) - above
            if gradient:
                factor = scale[0] / exps
                for j in range(row.size):
                    row[j] *= factor
                row[target] -= scale[0]


@kernel
def loss_sum(total, losses):
    """``total[0]`` becomes the sum of losses (T, B), in float64 and in order."""
    total[0] = 0.0
    for t in range(losses.shape[0]):
        row = losses[t]
        for r in range(row.size):
            total[0] += np.float64(row[r])


@kernel
def column_sums(out, x, c0, c1, shift, accumulate):
    """``out[c0:c1] = sum over rows of x[:, c0 + shift : c1 + shift]``, or ``+=``. x (R, N).

    The gradient of a bias, from the last row to the first.
    """
    sums = out[c0:c1]
    if not accumulate:
        sums[:] = 0
    for r in range(x.shape[0] - 1, -1, -1):
        row = x[r, c0 + shift : c1 + shift]
        for j in range(sums.size):
            sums[j] += row[j]
