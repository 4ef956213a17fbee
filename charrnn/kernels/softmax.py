"""The output layer: projection, softmax cross-entropy and its gradient, in blocks of time steps."""

from __future__ import annotations

import numpy as np

from charrnn.kernels.elementwise import exp
from charrnn.kernels.gemm import gemm, halves
from charrnn.kernels.jit import kernel
from charrnn.kernels.reduce import maximum, total

ROUNDED = 64
"""Rows that are rounded to bfloat16 at a time, if one step's are fewer."""


@kernel
def project(out, x, P, bias, r0, r1):
    """``out[t, r] = x[t, r] @ W + bias`` for the rows r0 <= r < r1.

    out (T, B, at least N), x (T, B, K), W packed as P, bias (N,).
    """
    N = bias.size
    for t in range(out.shape[0]):
        for r in range(r0, r1):
            row = out[t, r]
            for j in range(N):
                row[j] = bias[j]
    half = halves(P, max(r1 - r0, ROUNDED), x.shape[2])
    gemm(out[:, r0:r1, :N], x[:, r0:r1], P, True, half)


@kernel
def back_project(dx, dout, PT, N, r0, r1):
    """Undo `project`: ``dx[t, r] = dout[t, r] @ W.T``, W.T packed as PT.

    dout's rows may be longer than W's N columns: the first N count.
    """
    half = halves(PT, max(r1 - r0, ROUNDED), N)
    gemm(dx[:, r0:r1], dout[:, r0:r1, :N], PT, False, half)


@kernel
def cross_entropy(losses, logits, targets, scale, gradient, r0, r1):
    """Softmax cross-entropy of the rows r0 <= r < r1, in nats.

    losses (T, B); logits (T, B, V), which become ``scale * (softmax(logits) - onehot(target))``,
    the gradient of ``scale * sum(losses)``, if ``gradient`` is set, else garbage; targets (T, B)
    int32. The maximum is subtracted first, so that no logit overflows.
    """
    for t in range(logits.shape[0]):
        for r in range(r0, r1):
            row = logits[t, r]
            target = targets[t, r]
            top = maximum(row)
            above = row[target] - top
            for j in range(row.size):
                row[j] = exp(row[j] - top)
            exps = total(row)
            losses[t, r] = np.log(exps) - above
            if gradient:
                factor = scale / exps
                for j in range(row.size):
                    row[j] *= factor
                row[target] -= scale


@kernel
def column_sums(out, x, c0, c1, shift, accumulate):
    """``out[c0:c1] = sum over rows of x[:, c0 + shift : c1 + shift]``, or ``+=``. x (R, N).

    The gradient of a bias.
    """
    sums = out[c0:c1]
    if not accumulate:
        sums[:] = 0
    for r in range(x.shape[0]):
        row = x[r, c0 + shift : c1 + shift]
        for j in range(sums.size):
            sums[j] += row[j]
