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
from numba.core import cgutils, types
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
            b, e = builder, Emitter(builder, ir.FloatType(), SIDE)
            to, apart, r, c, rows, columns = (args[i] for i in (1, 2, 4, 5, 6, 7))
            packed, source = (
                context.make_array(signature.args[i])(context, b, value=args[i]) for i in (0, 3)
            )
            step, count = b.extract_value(source.strides, 0), PARTS if P.dtype == types.int32 else 1
            first = e.step(b.bitcast(source.data, BYTES), b.mul(r, step))
            first = e.step(b.bitcast(first, e.vector.element.as_pointer()), c)
            down, across = b.sub(rows, r), b.sub(columns, c)
            to = e.step(packed.data, to)
            masks = [e.mask(b.sub(across, e.at(i))) for i in ((0, SIDE) if neighbours else (0,))]

            def load(row, column):
                """16 numbers of a row; zeros where there are none."""
                start = e.step(b.bitcast(first, BYTES), b.mul(step, row))
                start = e.step(b.bitcast(start, first.type), e.at(column * SIDE))
                none = ir.Constant(masks[column].type, None)
                mask = b.select(b.icmp_signed("<", row, down), masks[column], none)
                return e.load(start, e.vector, mask)

            def line(q, i):
                place = e.step(to, b.mul(apart, q), b.mul(e.at(SIDE), i))
                return b.bitcast(place, ir.VectorType(ir.IntType(32), SIDE).as_pointer())

            with cgutils.for_range(b, e.at(SIDE), intp=e.index) as loop:
                i = loop.index
                if neighbours:
                    pair = load(i, 0), load(i, 1)
                    found = emit_split(b, *pair) if count > 1 else pair
                else:
                    twice = b.mul(i, e.at(2))
                    found = load(twice, 0), load(b.add(twice, e.at(1)), 0)
                if count > 1:
                    lines = emit_parts(b, *found)
                else:
                    lines = [(emit_neighbours if neighbours else emit_pair)(b, *found)]
                for q, value in enumerate(lines):
                    b.store(value, line(e.at(q), i), align=4)
            if turned:
                with cgutils.for_range(b, e.at(count), intp=e.index) as loop:
                    places = [line(loop.index, e.at(i)) for i in range(SIDE)]
                    values = transposed(b, [b.load(place, align=4) for place in places])
                    for value, place in zip(values, places, strict=True):
                        b.store(value, place, align=4)
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
