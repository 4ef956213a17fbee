"""Maximum and sum of a row, in vectors.

The compiler keeps the order of a reduction and so leaves it scalar. Here lane j takes the elements
j, j + lanes, ...; then the lanes are folded in halves: always the same order for the same length.
"""

from __future__ import annotations

from llvmlite import ir
from numba.extending import intrinsic, overload

from charrnn.kernels.jit import VECTOR_BITS
from charrnn.kernels.vector import Emitter


def maximum(row):
    """The largest element of a contiguous row."""
    return row.max()


def total(row):
    """The sum of a contiguous row."""
    return row.sum()


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
            return _fold(write, array.data, size, combine, identity)

        return row.dtype(row), codegen

    @overload(function)
    def _function(row):
        return lambda row: fold(row)


def _fold(write, data, size, combine, identity):
    b, lanes, at = write.builder, write.lanes, write.at
    start = ir.Constant(write.vector, [identity] * lanes)
    before = b.block
    head, body, end = (b.append_basic_block(f"fold.{n}") for n in ("head", "body", "end"))
    b.branch(head)
    b.position_at_end(head)
    i, held = write.phi(write.index, (at(0), before)), write.phi(write.vector, (start, before))
    after = b.add(i, at(lanes))
    b.cbranch(b.icmp_signed("<=", after, size), body, end)
    b.position_at_end(body)
    held.add_incoming(combine(b, write.load(write.step(data, i), write.vector), held), body)
    i.add_incoming(after, body)
    b.branch(head)
    b.position_at_end(end)
    mask = write.mask(b.sub(size, i))
    rest = b.select(mask, write.load(write.step(data, i), write.vector, mask), start)
    held, width = combine(b, rest, held), lanes
    while width > 1:
        width //= 2
        order = ir.Constant(
            ir.VectorType(ir.IntType(32), lanes), [(n + width) % lanes for n in range(lanes)]
        )
        held = combine(b, b.shuffle_vector(held, held, order), held)
    return b.extract_element(held, ir.Constant(ir.IntType(32), 0))


_reduction(maximum, _larger, float("-inf"))
_reduction(total, _sum, 0.0)
