"""Groups of losses as rows of a batch, so that all go back through time side by side.

Group g goes through the steps ``begins[g] <= t < begins[g] + K`` of a window (T, B); its rows are
``g*B <= v < (g + 1)*B`` of arrays (K, groups*B, N). It may begin before the window and end behind
it, where there is nothing.
"""

from __future__ import annotations

from charrnn.kernels.jit import kernel


@kernel
def take(out, x, begins, firsts, r0, r1):
    """``out[s, g*B + b] = x[begins[g] + s, b]``, or 0 for steps before ``firsts[g]`` and past x.

    The rows r0 <= v < r1. out (K, groups*B, N), x (T, B, N), begins and firsts (groups,) int64.
    """
    B = x.shape[1]
    for s in range(out.shape[0]):
        for v in range(r0, r1):
            g = v // B
            row, t = out[s, v], begins[g] + s
            if t < firsts[g] or t >= x.shape[0]:
                for j in range(row.size):
                    row[j] = 0
            else:
                source = x[t, v - g * B]
                for j in range(row.size):
                    row[j] = source[j]


@kernel
def give_back(out, x, begins, c0, c1):
    """``out[begins[g] + s, b] += x[s, g*B + b]``, columns c0 <= j < c1, from the last group to the
    first. Undoes `take`."""
    B = out.shape[1]
    for g in range(begins.size - 1, -1, -1):
        for s in range(max(0, -begins[g]), min(x.shape[0], out.shape[0] - begins[g])):
            for b in range(B):
                row, source = out[begins[g] + s, b, c0:c1], x[s, g * B + b, c0:c1]
                for j in range(row.size):
                    row[j] += source[j]
