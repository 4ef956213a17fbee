"""The optimizer's end of a step: norm, clipping and update rules over the one flat array.

Every function works on the elements ``i0 <= i < i1``; who calls decides on blocks whose bounds
depend on the array's size only, so that the threads that share the blocks do not show in the bits.
The gradient that enters is the raw one: each rule clips it by value (``limit``), then scales it
(``scale``, from clipping by norm), on the fly. The rules are PyTorch's. A rule's numbers come in an
array, so that its calls stay the same from step to step: ``limit``, ``scale`` and the rule's own.

Loops run from 0 over slices, and read each element once: with a first index that might be negative,
or a value read back from an array just written, the compiler gives up its vectors (9 times slower).
"""

from __future__ import annotations

import numpy as np

from charrnn.kernels.jit import kernel
from charrnn.kernels.reduce import clipped_squares, squared_distance, squares

NORM, CLIPPED, SCALE = range(3)
"""Elements of ``found``: the gradient's norm, its norm after clipping by value, the factor."""


@kernel
def add(total, other, i0, i1):
    """``total += other``."""
    row, summand = total[i0:i1], other[i0:i1]
    for i in range(row.size):
        row[i] += summand[i]


@kernel
def square_sum(sums, block, g, limit, i0, i1):
    """``sums[block]`` becomes the sum of squares of g clipped to +-limit.

    ``sums`` (blocks,) float64, in which small and large numbers have room.
    """
    row = g[i0:i1]
    sums[block] = squares(row) if limit == np.inf else clipped_squares(row, limit)


@kernel
def clip_factor(found, sums, bound, which):
    """``found[which]`` becomes the norm whose square is the sum of sums (blocks,) float64.

    ``found[SCALE]`` becomes the factor that clips it to ``bound``: 1 if it is within.
    """
    norm = np.sqrt(sums.sum())
    found[which] = norm
    found[SCALE] = bound / norm if norm > bound else 1.0


@kernel
def step_norms(norms, gradient, before, after, bounds):
    """Euclidean norms of a step, tensor by tensor: of the gradient, the update and the weights.

    ``norms`` (3, n) float64 is overwritten. The weights are ``before`` and ``after``; tensor k is
    at ``bounds[k, 0] <= i < bounds[k, 1]``.
    """
    for k in range(bounds.shape[0]):
        start, end = bounds[k, 0], bounds[k, 1]
        norms[0, k] = np.sqrt(squares(gradient[start:end]))
        norms[1, k] = np.sqrt(squared_distance(after[start:end], before[start:end]))
        norms[2, k] = np.sqrt(squares(after[start:end]))


@kernel
def median_norms(medians, squares, x):
    """``medians[t]``: the median over b of the Euclidean norms of the rows ``x[t, b]``.

    ``medians`` (T,) and ``squares`` (B,), both float64, are overwritten; x (T, B, n).
    """
    T, B, n = x.shape
    for t in range(T):
        for b in range(B):  # insertion sort: there are few rows
            square = 0.0
            for i in range(n):
                square += np.float64(x[t, b, i]) * np.float64(x[t, b, i])
            j = b
            while j > 0 and squares[j - 1] > square:
                squares[j] = squares[j - 1]
                j -= 1
            squares[j] = square
        medians[t] = (np.sqrt(squares[(B - 1) // 2]) + np.sqrt(squares[B // 2])) / 2


@kernel
def sgd(p, g, numbers, i0, i1):
    """``p -= rate * (g + decay * p)``."""
    p, g = p[i0:i1], g[i0:i1]
    limit, scale, rate, decay = numbers[0], numbers[1], numbers[2], numbers[3]
    for i in range(p.size):
        d = min(max(g[i], -limit), limit) * scale + decay * p[i]
        p[i] -= rate * d


@kernel
def momentum(p, v, g, numbers, i0, i1):
    """``v = mu * v + g + decay * p; p -= rate * v``."""
    p, v, g = p[i0:i1], v[i0:i1], g[i0:i1]
    limit, scale, rate, mu = numbers[0], numbers[1], numbers[2], numbers[3]
    decay = numbers[4]
    for i in range(p.size):
        d = min(max(g[i], -limit), limit) * scale + decay * p[i]
        velocity = mu * v[i] + d
        v[i] = velocity
        p[i] -= rate * velocity


@kernel
def adagrad(p, s, g, numbers, i0, i1):
    """``s += d**2; p -= rate * d / (sqrt(s) + epsilon)`` with d = g + decay * p."""
    p, s, g = p[i0:i1], s[i0:i1], g[i0:i1]
    limit, scale, rate, epsilon = numbers[0], numbers[1], numbers[2], numbers[3]
    decay = numbers[4]
    for i in range(p.size):
        d = min(max(g[i], -limit), limit) * scale + decay * p[i]
        square = s[i] + d * d
        s[i] = square
        p[i] -= rate * d / (np.sqrt(square) + epsilon)


@kernel
def rmsprop(p, s, g, numbers, i0, i1):
    """``s = rho * s + (1 - rho) * d**2; p -= rate * d / (sqrt(s) + epsilon)``."""
    p, s, g = p[i0:i1], s[i0:i1], g[i0:i1]
    limit, scale, rate, rho = numbers[0], numbers[1], numbers[2], numbers[3]
    one_rho, epsilon, decay = numbers[4], numbers[5], numbers[6]
    for i in range(p.size):
        d = min(max(g[i], -limit), limit) * scale + decay * p[i]
        square = rho * s[i] + one_rho * d * d
        s[i] = square
        p[i] -= rate * d / (np.sqrt(square) + epsilon)


@kernel
def adam(p, m, v, g, numbers, i0, i1):
    """Adam (Kingma and Ba 2015) and AdamW (Loshchilov and Hutter 2019).

    ``rate`` is already divided by ``1 - beta1**step`` and ``unbias2`` is
    ``1 / sqrt(1 - beta2**step)``. Adam's L2 term is ``decay``; AdamW's is ``shrink``, the factor
    of p before the update.
    """
    p, m, v, g = p[i0:i1], m[i0:i1], v[i0:i1], g[i0:i1]
    limit, scale, rate, beta1 = numbers[0], numbers[1], numbers[2], numbers[3]
    one_beta1, beta2, one_beta2, unbias2 = numbers[4], numbers[5], numbers[6], numbers[7]
    epsilon, decay, shrink = numbers[8], numbers[9], numbers[10]
    for i in range(p.size):
        d = min(max(g[i], -limit), limit) * scale + decay * p[i]
        first = beta1 * m[i] + one_beta1 * d
        second = beta2 * v[i] + one_beta2 * d * d
        m[i] = first
        v[i] = second
        p[i] = p[i] * shrink - rate * first / (np.sqrt(second) * unbias2 + epsilon)
