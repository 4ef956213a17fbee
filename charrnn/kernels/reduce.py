"""Maximum and sums of rows, in vectors.

The compiler keeps the order of a reduction and so leaves it scalar. Here lane j takes the elements
j, j + lanes, ...; then the lanes are folded in halves: always the same order for the same length.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload

from charrnn.kernels.jit import VECTOR_BITS
from charrnn.kernels.vector import Emitter

TOGETHER = 4
"""Vectors of sums of squares side by side: chains of additions that the processor overlaps."""


def maximum(row):
    """The largest element of a contiguous row."""
    return row.max()


def total(row):
    """The sum of a contiguous row."""
    return row.sum()


def squares(row):
    """The sum in float64 of the squares of a contiguous row."""
    return (row.astype(np.float64) ** 2).sum()


def clipped_squares(row, limit):
    """`squares` of a row that is clipped to +-limit."""
    return (np.clip(row, -limit, limit).astype(np.float64) ** 2).sum()


def squared_distance(row, other):
    """`squares` of the differences of two contiguous rows."""
    return ((row - other).astype(np.float64) ** 2).sum()


def _larger(builder, x, y):
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


def _sum(builder, x, y):
    return builder.fadd(x, y)


def _reduction(function, combine, identity):
    """Give ``function`` its compiled form: a fold of ``combine`` from ``identity``."""

    @intrinsic
    def fold(typingctx, row):
        def codegen(context, builder, signature, args):
            array = context.make_array(row)(context, builder, value=args[0])
            scalar = ir.DoubleType() if row.dtype.bitwidth == 64 else ir.FloatType()
            size = builder.extract_value(array.shape, 0)
            write = Emitter(builder, scalar, VECTOR_BITS // row.dtype.bitwidth)

            def load(i, mask=None):
                return write.load(write.step(array.data, i), write.vector, mask)

            return _fold(write, load, size, combine, identity, 1)

        return row.dtype(row), codegen

    @overload(function)
    def _function(row):
        return lambda row: fold(row)


def _itself(builder, x):
    return x


def _clipped(builder, x, limit):
    negative = builder.fneg(limit)
    x = builder.select(builder.fcmp_ordered("<", x, negative), negative, x)
    return builder.select(builder.fcmp_ordered(">", x, limit), limit, x)


def _difference(builder, x, y):
    return builder.fsub(x, y)


def _sum_of_squares(element):
    """The fold of the squares of what ``element`` makes of rows' vectors, or of numbers in them."""

    def codegen(context, builder, signature, args):
        kinds = signature.args
        write = Emitter(builder, ir.DoubleType(), VECTOR_BITS // 64)
        scalar = context.get_data_type(kinds[0].dtype)
        kind = ir.VectorType(scalar, write.lanes)
        arrays = [
            context.make_array(k)(context, builder, value=x) if isinstance(k, types.Array) else None
            for k, x in zip(kinds, args, strict=True)
        ]
        numbers = [None if array else write.splat(x) for array, x in zip(arrays, args, strict=True)]

        def load(i, mask=None):
            operands = [
                write.load(write.step(array.data, i), kind, mask) if array else number
                for array, number in zip(arrays, numbers, strict=True)
            ]
            x = element(builder, *operands)
            x = x if kind == write.vector else builder.fpext(x, write.vector)
            return builder.fmul(x, x, flags=("contract",))

        def add(builder, x, y):
            return builder.fadd(x, y, flags=("contract",))

        return _fold(write, load, builder.extract_value(arrays[0].shape, 0), add, 0.0, TOGETHER)

    return codegen


@intrinsic
def _squares(typingctx, row):
    return types.float64(row), _sum_of_squares(_itself)


@intrinsic
def _clipped_squares(typingctx, row, limit):
    return types.float64(row, row.dtype), _sum_of_squares(_clipped)


@intrinsic
def _squared_distance(typingctx, row, other):
    return types.float64(row, row), _sum_of_squares(_difference)


overload(squares)(lambda row: lambda row: _squares(row))
overload(clipped_squares)(lambda row, limit: lambda row, limit: _clipped_squares(row, limit))
overload(squared_distance)(lambda row, other: lambda row, other: _squared_distance(row, other))


def _fold(write, load, size, combine, identity, together):
    """Fold ``load(i)``, vectors from element i on, ``together`` of them side by side."""
    b = write.builder
    start = ir.Constant(write.vector, [identity] * write.lanes)
    i, held = _fold_whole(write, load, size, combine, write.at(0), [start] * together)
    while len(held) > 1:
        held = [combine(b, x, y) for x, y in zip(held[::2], held[1::2], strict=True)]
    if together > 1:
        i, held = _fold_whole(write, load, size, combine, i, held)
    mask = write.mask(b.sub(size, i))
    rest = b.select(mask, load(i, mask), start)
    found, width = combine(b, rest, held[0]), write.lanes
    while width > 1:
        width //= 2
        places = [(n + width) % write.lanes for n in range(write.lanes)]
        order = ir.Constant(ir.VectorType(ir.IntType(32), write.lanes), places)
        found = combine(b, b.shuffle_vector(found, found, order), found)
    return b.extract_element(found, ir.Constant(ir.IntType(32), 0))


def _fold_whole(write, load, size, combine, begin, starts):
    """As many whole groups of vectors as there are from ``begin``: the next element, the folds."""
    b, at, before = write.builder, write.at, write.builder.block
    head, body, end = (b.append_basic_block(f"fold.{n}") for n in ("head", "body", "end"))
    b.branch(head)
    b.position_at_end(head)
    i = write.phi(write.index, (begin, before))
    held = [write.phi(write.vector, (start, before)) for start in starts]
    after = b.add(i, at(len(held) * write.lanes))
    b.cbranch(b.icmp_signed("<=", after, size), body, end)
    b.position_at_end(body)
    for n, x in enumerate(held):
        x.add_incoming(combine(b, load(b.add(i, at(n * write.lanes))), x), body)
    i.add_incoming(after, body)
    b.branch(head)
    b.position_at_end(end)
    return i, held


_reduction(maximum, _larger, float("-inf"))
_reduction(total, _sum, 0.0)
