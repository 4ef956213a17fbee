"""Drawing symbols from logits: temperature, filters and the draw, one row at a time.

Probabilities are float64, and sums run in the order of ids: a sample is the same alone and among
others.
"""

from __future__ import annotations

import math

import numpy as np

from charrnn.kernels.jit import kernel

TEMPERATURE, LOG_PENALTY, TOP_K, TOP_P, MIN_P, UNKNOWN = range(6)
"""Elements of ``rule``; TOP_K 0 is off and UNKNOWN -1 is none."""


@kernel
def distribution(p, row, recent, rule, order):
    """The probabilities that the next symbol is drawn from, but for a common factor.

    In this order: repetition penalty, temperature, top-k, top-p, min-p. Each looks at what the one
    before has left over; ties go to the lowest ids.

    Parameters
    ----------
    p : (V,) float64 that takes them
    row : (V,) logits
    recent : (n,) int32 ids that are penalised, each once; negative ones stand for none
    rule : (6,) float64
    order : (V,) int64 scratch

    Returns
    -------
    float : their sum; 0 if no logit is finite or one is NaN
    """
    for v in range(p.size):
        p[v] = row[v]
    if rule[UNKNOWN] >= 0:
        p[int(rule[UNKNOWN])] = -np.inf
    if rule[LOG_PENALTY] > 0:
        # A difference of log-odds, unlike a factor on logits, ignores their arbitrary zero point.
        for v in recent:
            if v >= 0 and p[v] == row[v]:
                p[v] -= rule[LOG_PENALTY]
    best, sound = 0, True
    for v in range(p.size):
        sound &= p[v] == p[v]
        if p[v] > p[best]:
            best = v
    if not sound or not np.isfinite(p[best]):
        return 0.0
    if rule[TEMPERATURE] == 0:
        p[:] = 0
        p[best] = 1
        return 1.0
    top, total = p[best], 0.0
    for v in range(p.size):
        p[v] = math.exp((p[v] - top) / rule[TEMPERATURE])
        total += p[v]
    if 0 < rule[TOP_K] < p.size or rule[TOP_P] < 1:
        total = _keep_likeliest(p, order, int(rule[TOP_K]), rule[TOP_P], total)
    if rule[MIN_P] > 0:
        total = 0.0
        for v in range(p.size):
            if p[v] < rule[MIN_P]:  # of the likeliest, which has 1
                p[v] = 0
            total += p[v]
    return total


@kernel
def _keep_likeliest(p, order, top_k, top_p, total):
    """Zero all but the ``top_k`` likeliest and, of those, the nucleus; the sum of what is left.

    The nucleus is the smallest set of the likeliest that reaches the share ``top_p`` of the sum.
    Ids leave a heap, the likeliest first, and gather at the end of ``order`` (V,).
    """
    size = p.size
    for v in range(size):
        order[v] = v
    for i in range(size // 2 - 1, -1, -1):
        _sift_down(p, order, i, size)
    if 0 < top_k < p.size:
        total = 0.0
        for _ in range(top_k):
            size = _pop(p, order, size)
            total += p[order[size]]
        kept = size  # the others stay in the heap
    else:
        kept = 0
    reached, last = 0.0, p.size
    while last > kept and (top_p == 1 or last == p.size or reached < top_p * total):
        last -= 1
        if last < size:
            size = _pop(p, order, size)
        reached += p[order[last]]
    for i in range(last):
        p[order[i]] = 0
    return reached


@kernel
def _pop(p, order, size):
    """Move the likeliest of the heap ``order[:size]`` behind it; the heap's new size."""
    size -= 1
    order[0], order[size] = order[size], order[0]
    _sift_down(p, order, 0, size)
    return size


@kernel
def _sift_down(p, order, i, size):
    """Make a heap of what is one but for element ``i``: parents come before their children."""
    while 2 * i + 1 < size:
        child = 2 * i + 1
        if child + 1 < size and _before(p, order[child + 1], order[child]):
            child += 1
        if not _before(p, order[child], order[i]):
            return
        order[i], order[child] = order[child], order[i]
        i = child


@kernel
def _before(p, a, b):
    return p[a] > p[b] or (p[a] == p[b] and a < b)


@kernel
def pick(p, u, total):
    """The id at which the cumulated ``p`` (V,) first exceeds ``u`` in [0, 1) of its sum."""
    reached, last = 0.0, 0
    for v in range(p.size):
        reached += p[v]
        if p[v] > 0:
            last = v
        if reached > u * total:
            break
    return last


@kernel
def draw(ids, out, logits, u, history, step, rule, p, order, r0, r1):
    """Draw the next symbol of the samples r0 <= r < r1.

    Parameters
    ----------
    ids : (1, B) int32, what the model reads next
    out : (n, B) int32 that takes the symbol in row ``step[0]``; -1 if no logit is finite
    logits : (1, B, V)
    u : (n, B) float64 random numbers in [0, 1)
    history : (B, m) int32, the last m symbols of each sample, as a ring: `step` counts
    step : (2,) int64: the row of ``out``, which is counted up, and the place in the ring
    rule, p, order : as in `distribution`
    """
    n, place = step[0], step[1]
    for r in range(r0, r1):
        total = distribution(p, logits[0, r], history[r], rule, order)
        chosen = pick(p, u[n, r], total) if total > 0 else -1
        out[n, r] = chosen
        ids[0, r] = max(chosen, 0)
        history[r, place] = chosen
    step[0] = n + 1
    step[1] = (place + 1) % history.shape[1]


@kernel
def note(out, x, step, r0, r1):
    """Keep x (1, B) of the symbols that `draw` has just drawn in their row of out (n, B)."""
    for r in range(r0, r1):
        out[step[0] - 1, r] = x[0, r]
