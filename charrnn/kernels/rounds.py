"""Between the rounds of a repeated program: what the next needs, what the last has found."""

from __future__ import annotations

from charrnn.kernels.jit import kernel
from charrnn.kernels.update import NORM, SCALE


@kernel
def carry(x, r0, r1):
    """The last step's state becomes the state before the next window. x (T+1, B, H)."""
    for r in range(r0, r1):
        first, last = x[0, r], x[x.shape[0] - 1, r]
        for j in range(first.size):
            first[j] = last[j]


@kernel
def take(out, rows, round):
    """``out[:] = rows[round[0]]``: out (n,), rows (rounds, n)."""
    row = rows[round[0]]
    for j in range(out.size):
        out[j] = row[j]


@kernel
def keep(results, loss, found, numbers, round):
    """End a round: keep its loss, norm and factor in a row of results (rounds, 3), and count.

    ``loss`` (1,) and ``found`` are those of `charrnn.kernels.softmax.loss_sum` and
    `charrnn.kernels.update.clip_factor`; the factor goes to the update rule's numbers, (groups, n).
    """
    row = results[round[0]]
    row[0], row[1], row[2] = loss[0], found[NORM], found[SCALE]
    for group in range(numbers.shape[0]):
        numbers[group, 1] = found[SCALE]
    round[0] += 1
