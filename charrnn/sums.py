"""Who sums what up to the weights' gradients, which are sums over the rows of all time steps.

A thread may have a share of a gradient's columns, for which it reads all rows: then it also packs
what the others pack, and half of what it reads has been written by another processor. Where that
counts, because products are fast and weights few beside the rows, gradients are made of two sums:
every `SPAN` rows are halved, one sum takes the first halves and another the second ones, and in the
end they are added. With two threads each then has half of the rows. Which sums there are depends on
shapes and on the machine, and each goes from the last row to the first, so that the bits do not
depend on threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from charrnn.kernels import jit
from charrnn.kernels.gemm import DEPTH
from charrnn.threads import LINE, share

SPAN = 2 * DEPTH
"""Rows that are halved. A window that comes in segments is cut between spans."""

GRAIN = 16
"""Rows that half a span is a multiple of, if there are as many."""

MOST = 24_000
"""Weights for each row of the batch up to which gradients are made of two sums.

Up to there two threads take steps 1.01 to 1.13 times as fast; beyond, at lstm 1x512, B 32 (38,000)
and 2x512, B 64 (51,000), 0.99 to 1.01. With vectors of 512 bits and no matrix unit it is 1.00 to
1.07, with shorter ones 0.99 to 1.01.
"""

FEWEST = 8
"""Rows of a batch from which on they are."""


class Portion(NamedTuple):
    """What one thread adds in one go to one of the sums.

    Attributes
    ----------
    rows : of the time steps' rows, one after the other
    half : which of the sums
    again : whether something has been added to it before
    last : whether nothing of these rows comes after it
    part, parts : share of the gradients' columns
    thread : whose it is
    """

    rows: slice
    half: int
    again: bool
    last: bool
    part: int
    parts: int
    thread: int

    def share(self, columns: int) -> tuple[int, int]:
        """Bounds of its share of so many columns."""
        return share(columns, self.part, self.parts, LINE)


def are_halved(weights: int, B: int) -> bool:
    """Whether the gradients of so many weights are made of two sums, for batches of B rows.

    Where vectors are shorter, products take so long that it does not count.
    """
    return jit.VECTOR_BITS == 512 and B >= FEWEST and weights <= MOST * B


def blocks(rows: int, sums: int) -> list[tuple[slice, int]]:
    """Rows that are added in one go, and to which sum, from the last to the first."""
    found = []
    for r0 in range(0, rows, SPAN):
        size = min(SPAN, rows - r0)
        middle = DEPTH if sums == 1 else share(size, 1, 2, GRAIN)[0] or size // 2
        for half, (begin, end) in enumerate(((0, min(middle, size)), (middle, size))):
            if begin < end:
                found.append((slice(r0 + begin, r0 + end), half % sums))
    return found[::-1]


def portions(rows: int, sums: int, thread: int, threads: int, again: bool) -> Iterator[Portion]:
    """What a thread of so many adds to one sum or two, the last rows first.

    ``again``: to what is there already.
    """
    found = blocks(rows, sums)
    mine, part, parts = {0, 1}, thread, threads
    if sums == 2 and threads % 2 == 0:
        mine, part, parts = {thread % 2}, thread // 2, threads // 2
    begun = {0, 1} if again else set()
    ends = {half: block for block, half in found}
    for block, half in found:
        if half in mine:
            last = ends[half] == block
            yield Portion(block, half, half in begun, last, part, parts, thread)
            begun.add(half)
