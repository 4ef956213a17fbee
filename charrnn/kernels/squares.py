"""Operands of the matrix unit: squares of 16 rows of 16 pairs, a register each and 1 KB in a piece.

A square holds pairs of bfloat16 numbers: rounded ones (uint32), or one of the three parts whose sum
a float32 number is (int32), and then the squares of the other two parts follow. So an inner
dimension of K is ceil(K / 32) squares, or three times as many. A packed (K, N) matrix consists
of panels, which are rows of four squares; packed rows (M, K) of rows of squares, for 16 rows each.
What lies beyond the matrix is zero.

Where the numbers of a pair come from, and how pairs lie in the square:

    pack         two rows of 16 columns      as they come
    pack_rows    two rows of 16 columns      turned
    round_rows   neighbours in one row       as they come
    pack_t       neighbours in one row       turned
"""

from __future__ import annotations

from functools import cache

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload, register_jitable

from charrnn.kernels.amx import SIDE
from charrnn.kernels.bfloat16 import PARTS, emit_neighbours, emit_pair, emit_parts, emit_split
from charrnn.kernels.vector import BYTES, Emitter, transposed

AREA = SIDE * SIDE
"""Pairs in a square."""


@cache
def square(neighbours: bool, turned: bool):
    """What packs one square."""

    @intrinsic
    def put(typingctx, P, to, apart, W, r, c, rows, columns):
        """Fill the square at element ``to`` of P, or three of them, from W[r:rows, c:columns].

        Those of parts are ``apart`` elements from each other. P is contiguous, and W's rows are.
        """

        def codegen(context, builder, signature, args):
            to, apart, r, c, rows, columns = (args[i] for i in (1, 2, 4, 5, 6, 7))
            e = Emitter(builder, ir.FloatType(), SIDE)
            packed, source = (
                context.make_array(signature.args[i])(context, builder, value=args[i])
                for i in (0, 3)
            )
            step = builder.extract_value(source.strides, 0)
            first = e.step(builder.bitcast(source.data, BYTES), builder.mul(r, step))
            first = e.step(builder.bitcast(first, e.vector.element.as_pointer()), c)
            down, across = builder.sub(rows, r), builder.sub(columns, c)
            high, wide = (SIDE, 2 * SIDE) if neighbours else (2 * SIDE, SIDE)
            whole = builder.and_(
                builder.icmp_signed(">=", down, e.at(high)),
                builder.icmp_signed(">=", across, e.at(wide)),
            )
            to = e.step(packed.data, to)
            how = to, apart, neighbours, turned, P.dtype == types.int32
            with builder.if_else(whole) as (all_of_it, some):
                with all_of_it:
                    _Square(e, first, step, None, None).fill(*how)
                with some:
                    _Square(e, first, step, down, across).fill(*how)
            return context.get_dummy_value()

        return types.void(P, *[types.intp] * 2, W, *[types.intp] * 4), codegen

    return put


class _Square:
    """Writes the code for one square from rows of float32 numbers, of which so many are there."""

    def __init__(self, e, first, step, down, across):
        self.e, self.first, self.step, self.down, self.across = e, first, step, down, across
        self.masks = {}

    def vector(self, row, column):
        """16 numbers of a row; zeros where there are none."""
        e, b = self.e, self.e.builder
        start = e.step(b.bitcast(self.first, BYTES), b.mul(self.step, e.at(row)))
        start = e.step(b.bitcast(start, self.first.type), e.at(column))
        if self.down is None:
            return e.load(start, e.vector)
        if column not in self.masks:
            self.masks[column] = e.mask(b.sub(self.across, e.at(column)))
        mask = self.masks[column]
        there = b.icmp_signed(">", self.down, e.at(row))
        return e.load(start, e.vector, b.select(there, mask, ir.Constant(mask.type, None)))

    def fill(self, to, apart, neighbours, turned, parts):
        e, b = self.e, self.e.builder
        rows = []
        for i in range(SIDE):
            if neighbours:
                loaded = self.vector(i, 0), self.vector(i, SIDE)
            else:
                loaded = self.vector(2 * i, 0), self.vector(2 * i + 1, 0)
            if parts:
                rows.append(emit_parts(b, *(emit_split(b, *loaded) if neighbours else loaded)))
            else:
                rows.append([(emit_neighbours if neighbours else emit_pair)(b, *loaded)])
        for q, lines in enumerate(zip(*rows, strict=True)):
            for i, line in enumerate(transposed(b, lines) if turned else lines):
                place = e.step(to, b.mul(apart, e.at(q)), e.at(i * SIDE))
                b.store(line, b.bitcast(place, line.type.as_pointer()), align=4)


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
