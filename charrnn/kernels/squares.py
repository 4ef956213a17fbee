"""Operands of the matrix unit: squares of 16 rows of 16 pairs, a register each and 1 KB in a piece.

A square holds pairs of bfloat16 numbers: rounded ones (uint32), or one of the three parts whose sum
a float32 number is (int32), and then the squares of the other two parts follow. So an inner
dimension of K is ceil(K / 32) squares, or three times as many. A packed (K, N) matrix consists
of panels, which are rows of four squares; packed rows (M, K) of rows of squares, for 16 rows each.
What lies beyond the matrix is zero, but for lines of `round_rows`, which the unit does not read.

Pairs of bfloat16 numbers are neighbours along the inner dimension, as the processor's instruction
for rounding makes them. The partner of a part is 16 further on, so that none has to be moved within
a vector. Where the inner dimension lies, and whether it is turned into the lines of a square:

    pack         down            as it comes
    pack_rows    down            turned
    round_rows   along a row     as it comes
    pack_t       along a row     turned
"""

from __future__ import annotations

from functools import cache

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, overload, register_jitable

from charrnn.kernels.amx import AREA, SIDE
from charrnn.kernels.bfloat16 import PARTS, emit_neighbours, emit_pair, emit_parts
from charrnn.kernels.vector import BYTES, Emitter, transposed


class SquareEmitter(Emitter):
    """Writes what fills a square of pairs, or one for each part of numbers.

    Attributes
    ----------
    first, below : where the numbers begin, and bytes between their rows
    down, across : rows and columns of numbers that there are
    to, apart : where the first square is, and elements from one to the next
    neighbours, turned : whether pairs come from one row, and whether that is a column of the square
    """

    def __init__(self, builder: ir.IRBuilder, parts: int, neighbours: bool, turned: bool) -> None:
        super().__init__(builder, ir.FloatType(), SIDE)
        self.parts, self.neighbours, self.turned = parts, neighbours, turned
        self.first = self.below = self.down = self.across = self.to = self.apart = None
        self.lines, self.masked = self.at(SIDE), False

    def emit(self) -> None:
        """All without masks where the numbers fill the square."""
        b = self.builder
        deep, wide = (SIDE, 2 * SIDE) if self.neighbours else (2 * SIDE, SIDE)
        whole = b.icmp_signed(">=", self.across, self.at(wide))
        high = b.icmp_signed(">=", self.down, self.at(deep))
        if self.neighbours and not self.turned:  # a row is a line, and nobody reads those beyond
            self.lines = b.select(high, self.lines, self.down)
        else:
            whole = b.and_(whole, high)
        with b.if_else(whole) as ways:
            for way, self.masked in zip(ways, (False, True), strict=True):
                with way:
                    (self.fill_parts if self.parts > 1 else self.fill_pairs)()

    def fill_parts(self) -> None:
        b, source = self.builder, self.numbers
        if self.turned:  # before there are parts, because these are more
            source = self.line
            with cgutils.for_range(b, self.at(2), intp=self.index) as loop:
                self.turn(self.numbers, loop.index)
        with cgutils.for_range(b, self.lines, intp=self.index) as loop:
            i = loop.index
            found = (b.bitcast(source(self.at(half), i), self.vector) for half in (0, 1))
            for q, value in enumerate(emit_parts(b, *found)):
                self.put(value, self.at(q), i)

    def fill_pairs(self) -> None:
        b = self.builder
        with cgutils.for_range(b, self.lines, intp=self.index) as loop:
            i = loop.index
            if self.neighbours:
                value = emit_neighbours(b, *(self.numbers(self.at(half), i) for half in (0, 1)))
            else:
                twice = b.mul(i, self.at(2))
                rows = (twice, b.add(twice, self.at(1)))
                value = emit_pair(b, *(self.numbers(self.at(0), row) for row in rows))
            self.put(value, self.at(0), i)
        if self.turned:
            self.turn(self.line, self.at(0))

    def turn(self, source, q: ir.Value) -> None:
        """Fill square ``q`` with the columns of ``source(q, 0)`` to ``source(q, 15)``."""
        rows = [source(q, self.at(i)) for i in range(SIDE)]
        for i, value in enumerate(transposed(self.builder, rows)):
            self.put(value, q, self.at(i))

    def numbers(self, half: ir.Value, i: ir.Value) -> ir.Value:
        """16 numbers of row i of the first or the second half; zeros where there are none.

        The second one is beside the first where pairs come from one row, else below it.
        """
        b, column = self.builder, self.at(0)
        further = b.mul(half, self.at(SIDE))
        if self.neighbours:
            column = further
        else:
            i = b.add(i, further)
        start = self.step(b.bitcast(self.first, BYTES), b.mul(self.below, i))
        start = self.step(b.bitcast(start, self.first.type), column)
        if not self.masked:
            return self.load(start, self.vector)
        mask = self.mask(b.sub(self.across, column))
        none = ir.Constant(mask.type, None)
        there = b.icmp_signed("<", i, self.down)
        return self.load(start, self.vector, b.select(there, mask, none))

    def line(self, q: ir.Value, i: ir.Value) -> ir.Value:
        """Line i of square ``q``."""
        return self.builder.load(self.place(q, i), align=4)

    def put(self, value: ir.Value, q: ir.Value, i: ir.Value) -> None:
        """Make ``value`` line i of square ``q``."""
        place = self.place(q, i)
        self.builder.store(self.builder.bitcast(value, place.type.pointee), place, align=4)

    def place(self, q: ir.Value, i: ir.Value) -> ir.Value:
        b = self.builder
        place = self.step(self.to, b.mul(self.apart, q), b.mul(self.at(SIDE), i))
        return b.bitcast(place, ir.VectorType(ir.IntType(32), SIDE).as_pointer())


@cache
def square(neighbours: bool, turned: bool):
    """What packs one square."""

    @intrinsic
    def put(typingctx, P, to, apart, W, r, c, rows, columns):
        """Fill the square at element ``to`` of P, or three of them, from W[r:rows, c:columns].

        Those of parts are ``apart`` elements from each other. P is contiguous, and W's rows are.
        """

        def codegen(context, builder, signature, args):
            parts = PARTS if P.dtype == types.int32 else 1
            e = SquareEmitter(builder, parts, neighbours, turned)
            to, e.apart, r, c, rows, columns = (args[i] for i in (1, 2, 4, 5, 6, 7))
            packed, source = (
                context.make_array(signature.args[i])(context, builder, value=args[i])
                for i in (0, 3)
            )
            e.below, e.to = builder.extract_value(source.strides, 0), e.step(packed.data, to)
            first = e.step(builder.bitcast(source.data, BYTES), builder.mul(r, e.below))
            e.first = e.step(builder.bitcast(first, source.data.type), c)
            e.down, e.across = builder.sub(rows, r), builder.sub(columns, c)
            e.emit()
            return context.get_dummy_value()

        return types.void(P, *[types.intp] * 2, W, *[types.intp] * 4), codegen

    return put


_down, _down_turned = square(False, False), square(False, True)
_along, _along_turned = square(True, False), square(True, True)


@register_jitable
def pack(P, W, n0, n1):
    """`charrnn.kernels.pack.pack`."""
    K, width, area = W.shape[0], P.shape[2], P.shape[1] * P.shape[2]
    for s in range(_squares(K)):
        for p in range(P.shape[0]):
            for j in range(0, width, SIDE):
                to = p * area + s * SIDE * width * parts_of(P) + j * SIDE
                _down(P, to, SIDE * width, W, 2 * SIDE * s, n0 + p * width + j, K, n1)


@register_jitable
def pack_t(P, W, n0, n1):
    """`charrnn.kernels.pack.pack_t`."""
    N, width, area = W.shape[0], P.shape[2], P.shape[1] * P.shape[2]
    for p in range(P.shape[0]):
        for s in range(_squares(n1 - n0)):
            for j in range(0, width, SIDE):
                to = p * area + s * SIDE * width * parts_of(P) + j * SIDE
                _along_turned(P, to, SIDE * width, W, p * width + j, n0 + 2 * SIDE * s, N, n1)


@register_jitable
def pack_rows(P, A, m0, m1):
    """`charrnn.kernels.pack.pack_rows`."""
    K = A.shape[0]
    for m in range(0, m1 - m0, SIDE):
        for s in range(_squares(K)):
            to = m * P.shape[1] + s * AREA * parts_of(P)
            _down_turned(P, to, AREA, A, 2 * SIDE * s, m0 + m, K, m1)


@register_jitable
def round_rows(half, A):
    """`charrnn.kernels.pack.round_rows`; rows are padded to whole squares.

    Those of a time step are, or all together if a step has one.
    """
    T, M, K = A.shape
    size = _squares(K) * SIDE * parts_of(half)
    if M == 1:
        high = (T + SIDE - 1) // SIDE * SIDE
        _put_rows(half, 0, A[:, 0], size)
        return half[: high * size].reshape(high, 1, size)
    high = (M + SIDE - 1) // SIDE * SIDE
    for t in range(T):
        _put_rows(half, t * high * size, A[t], size)
    return half[: T * high * size].reshape(T, high, size)


@register_jitable
def _put_rows(half, to, A, size):
    M, K = A.shape
    for m in range(0, M, SIDE):
        for s in range(_squares(K)):
            at = to + m * size + s * AREA * parts_of(half)
            _along(half, at, AREA, A, m, 2 * SIDE * s, M, K)


@register_jitable
def _squares(k):
    """Squares, for each part, that an inner dimension of k is packed in."""
    return (k + 2 * SIDE - 1) // (2 * SIDE)


def parts_of(P):
    """Parts that a number is packed in."""
    return PARTS if P.dtype == np.int32 else 1


@overload(parts_of)
def _parts_of(P):
    count = PARTS if P.dtype == types.int32 else 1
    return lambda P: count
