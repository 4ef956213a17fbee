"""What stands between two layers: residual link and dropout, and the way back through both.

A mask is never stored. Whether an element is dropped is a hash of the step's key and the element's
index, computed anew on the way back: it depends on neither threads nor history. ``places`` (T, B)
uint32 are the rows' numbers among all rows of a training step.
"""

from __future__ import annotations

import numpy as np

from charrnn.kernels.jit import kernel
from charrnn.kernels.program import COMPILED

u32 = np.uint32


@kernel
def _kept(index, key, threshold):
    """Whether element ``index`` survives. The mixer is Wang and Ettinger's lowbias32."""
    x = u32(u32(index) + key)
    x = u32(x ^ u32(x >> u32(16)))
    x = u32(x * u32(0x7FEB352D))
    x = u32(x ^ u32(x >> u32(15)))
    x = u32(x * u32(0x846CA68B))
    x = u32(x ^ u32(x >> u32(16)))
    return x >= threshold


if not COMPILED:
    _kept = np.errstate(over="ignore")(_kept)  # NumPy's numbers warn where the mixer wraps around


@kernel
def link(out, h, skip, places, key, threshold, scale, r0, r1):
    """``out = mask * (h + skip)``, all (T, B, H); an empty ``skip`` is no link.

    ``key`` (1,) uint32 is the step's; elements whose hash is below ``threshold`` (uint32) become
    zero, the others are multiplied by ``scale``; threshold 0 drops nothing.
    """
    T, _, H = out.shape
    zero = scale - scale
    for t in range(T):
        for r in range(r0, r1):
            row, source = out[t, r], h[t, r]
            if skip.shape[0] > 0:
                other = skip[t, r]
                for j in range(H):
                    row[j] = source[j] + other[j]
            else:
                for j in range(H):
                    row[j] = source[j]
            if threshold > 0:
                start = places[t, r] * u32(H)
                for j in range(H):
                    row[j] = row[j] * scale if _kept(start + j, key[0], threshold) else zero


@kernel
def unlink(dh, dout, places, key, threshold, scale, r0, r1):
    """Undo `link`: ``dout`` is masked in place and copied to ``dh``; a skip gets it from there.

    Without a skip both may be the same array.
    """
    T, _, H = dout.shape
    zero = scale - scale
    for t in range(T):
        for r in range(r0, r1):
            row, d = dout[t, r], dh[t, r]
            if threshold > 0:
                start = places[t, r] * u32(H)
                for j in range(H):
                    row[j] = row[j] * scale if _kept(start + j, key[0], threshold) else zero
            for j in range(H):
                d[j] = row[j]


@kernel
def add(out, x, r0, r1):
    """``out += x`` on the rows r0 <= r < r1 of every time step: a residual link's way back."""
    for t in range(out.shape[0]):
        for r in range(r0, r1):
            row, other = out[t, r], x[t, r]
            for j in range(row.size):
                row[j] += other[j]


@kernel
def clear(x, r0, r1):
    """Zero the rows r0 <= r < r1 of x (B, H)."""
    for r in range(r0, r1):
        row = x[r]
        for j in range(row.size):
            row[j] = 0
