"""The register tile of all matrix products, as vector IR behind an intrinsic.

A tile of C stays in registers over the whole inner dimension, because the compiler's own vectoriser
reaches 60 % of it. Each element is the sum, in the order of k, of one multiply-add a step that
starts from zero; what it is added to comes last, when it has had time to arrive from the cache.
So no result depends on how rows and columns fall into tiles.
"""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numba.np.numpy_support import from_dtype

from charrnn.kernels import amx
from charrnn.kernels.bfloat16 import emit_dot
from charrnn.kernels.jit import (
    HAS_AMX,
    HAS_BF16,
    LINE_BYTES,
    VECTOR_BITS,
    VECTOR_REGISTERS,
    Code,
    kernel,
)
from charrnn.kernels.vector import BYTES, TileEmitter

Grid = list[list[ir.Value]]
"""Values by rows and vectors of a tile."""

STANDS = {"bfloat16": types.uint32, "parts": types.int32, "whole": types.int64}
"""The types that stand for operands in the signature of a tile; others stand for themselves."""
NUMBERS = (*[types.intp] * 13, types.boolean, *[types.intp] * 2)
"""Those of its other arguments."""


def vectors_for(registers: int) -> int:
    """Vectors in a panel's row: a tile's accumulators leave some registers to the operands."""
    return 4 if registers == 32 else 2


def unrolled_for(bits: int) -> int:
    """Steps of the inner dimension in a turn of the loop: Intel's cores lose 6 to 9 % with one.

    Where vectors are short the compiler would keep some of the sums on the stack.
    """
    return 4 if bits > 128 else 1


VECTORS = vectors_for(VECTOR_REGISTERS)
"""Vectors in a panel's row."""
UNROLLED = unrolled_for(VECTOR_BITS)
ROWS = 6
"""Most rows of a tile: ROWS * VECTORS accumulators and the operands fit the registers."""
ASKED = 3
"""Lines that a tile asks for in a turn of its loop: enough for 32 rows by weights of H 512.

More are for nothing where all is near, which is felt from four on.
"""


def together(rows: int) -> int:
    """Panels that a tile of few rows covers at a time.

    A multiply-add takes some 4 cycles and a core begins 2 in each: it takes 8 independent sums to
    keep it busy, and more where operands come from the second cache.
    """
    return {1: 4, 2: 2, 3: 2 if VECTOR_REGISTERS == 32 else 1}.get(rows, 1)


def most_rows(operands: Any) -> int:
    """Most rows of a tile of ``operands``."""
    return amx.ROWS if by_matrix(operands) else ROWS


def by_matrix(operands: Any) -> bool:
    """Whether the matrix unit multiplies ``operands``, or what they are packed as."""
    return HAS_AMX and str(operands) in (*STANDS, *map(str, STANDS.values()))


def operands_of(P: Any) -> str:
    """What packed operands are, an array or its type: see `charrnn.kernels.pack.operand`."""
    if P.ndim == 4:
        return "whole"
    return {"uint32": "bfloat16", "int32": "parts"}.get(str(P.dtype), str(P.dtype))


def _kind_of(operand: types.Type) -> type[TileEmitter]:
    """What writes a tile of operands that this type stands for."""
    if not by_matrix(operand):
        return Tile
    return {types.int32: amx.PartsTile, types.int64: amx.WholeTile}.get(operand, amx.MatrixTile)


@partial(kernel, by_address=True)
def tile_code(
    scalar, operand, c, ldc, d, ldd, a, lda, p, p_step, K, rows, columns, ids, bias, back, next,
    pace,
):  # fmt: skip
    """`tile` at addresses, for C and D of type ``scalar``; ``operand`` stands for A and P."""
    _emit(
        scalar, operand, c, ldc, d, ldd, a, lda, p, p_step, K, rows, columns, ids, bias, back,
        next, pace,
    )  # fmt: skip


@intrinsic(prefer_literal=False)
def _emit(
    typingctx, scalar, operand, c, ldc, d, ldd, a, lda, p, p_step, K, rows, columns, ids, bias,
    back, next, pace,
):  # fmt: skip
    def codegen(context, builder, signature, args):
        number, stands = (t.instance_type for t in signature.args[:2])
        element = types.int32 if stands == STANDS["whole"] else stands
        kinds = [context.get_data_type(t) for t in (number, element)]
        lanes = VECTOR_BITS // number.bitwidth
        tile = _kind_of(stands)(builder, *kinds, lanes, VECTORS)
        c, ldc, d, ldd, a, lda, p, p_step, K, rows, columns, *more = args[2:]
        tile.c, tile.d = (builder.inttoptr(x, kinds[0].as_pointer()) for x in (c, d))
        tile.a, tile.p = (builder.inttoptr(x, kinds[1].as_pointer()) for x in (a, p))
        tile.ldc, tile.ldd, tile.lda = ldc, ldd, lda
        tile.p_step, tile.K, tile.columns = p_step, K, columns
        tile.add = builder.icmp_signed("!=", d, tile.at(0))
        tile.ids, tile.bias, tile.back, next, tile.pace = more
        tile.next = builder.inttoptr(next, BYTES)
        tile.emit(rows)
        return context.get_dummy_value()

    return types.void(scalar, operand, *NUMBERS), codegen


def _kinds(operands: str) -> tuple[types.Type, ...]:
    """The types of `tile_code`'s arguments."""
    stands = STANDS.get(operands) or from_dtype(np.dtype(operands))
    scalar = types.float32 if operands in STANDS else stands
    return *(types.TypeRef(t) for t in (scalar, stands)), *NUMBERS


def tile_of(P: np.ndarray) -> Code:
    """The code of `tile` for packed weights."""
    return tile_for(operands_of(P))


def tile_for(operands: str) -> Code:
    """The code of `tile` for operands: those that `charrnn.kernels.pack.operand` knows.

    Compiled once, it is called by all products: in each of them it would take seconds to optimise.
    """
    return Code(tile_code, _kinds(operands))


@intrinsic(prefer_literal=False)
def tile(
    typingctx, code, P, c, ldc, d, ldd, a, lda, p0, p_step, K, rows, columns, ids, bias, back, next,
    pace,
):  # fmt: skip
    """Some rows of C over the whole inner dimension, by the code at an address: see `tile_for`.

    ``C[m*ldc + p*panel + j] = sum_k A[m*lda + k] * P[p0 + p*p_step + k*panel + j]`` for
    m < rows <= `most_rows` and p*panel + j < columns, for C and A at the addresses ``c`` and ``a``;
    indices count elements. Those of P and A may be pairs of bfloat16; see `charrnn.kernels.amx` for
    what its tile asks of these.

    To that comes ``D[m*ldd + p*panel + j]`` if D has an address ``d`` that is not 0. If ``ids`` is
    one, of int32 numbers, ``ids[m]`` takes m's place there; if ``bias`` is one, it is that of a row
    which is added to D's.

    The matrix unit's tile goes through the panels ``back`` if it is told to, others never do.

    Meanwhile it asks for what will be needed next, from the address ``next`` on: `ASKED` lines for
    the second cache every `UNROLLED` steps of k, beginning ``pace`` bytes further each time. It has
    to be memory of this process, because who asks for other pages waits.
    """
    number = types.intp
    sig = types.void(number, P, *[number] * 13, types.boolean, *[number] * 2)
    kinds = _kinds(operands_of(P))

    def codegen(context, builder, signature, args):
        code, p, c, ldc, d, ldd, a, lda, p0, *more = args
        packed = context.make_array(P)(context, builder, value=p).data
        p = builder.ptrtoint(builder.gep(packed, [p0]), p0.type)
        dummy = context.get_dummy_value()
        values = [dummy, dummy, c, ldc, d, ldd, a, lda, p, *more]
        kind = context.call_conv.get_function_type(types.none, kinds)
        callee = builder.inttoptr(code, kind.as_pointer())
        context.call_conv.call_function(builder, callee, types.none, kinds, values)
        return dummy

    return sig, codegen


class Tile(TileEmitter):
    """Writes the IR: a switch over the row count, then loops over panels and the last columns."""

    def emit(self, rows: ir.Value) -> None:
        b = self.builder
        done = b.append_basic_block("tile.done")
        blocks = [b.append_basic_block(f"tile.{m}") for m in range(1, ROWS + 1)]
        switch = b.switch(rows, blocks[-1])
        for m, block in enumerate(blocks, 1):
            if m < ROWS:
                switch.add_case(self.at(m), block)
            b.position_at_end(block)
            most = together(m)
            least = max(1, most // 2)
            column = self.at(0)
            for panels in sorted({most, least}, reverse=True):
                column = self.sweep(m, panels, column)
            self.tail(m, least, column)
            b.branch(done)
        b.position_at_end(done)

    def sweep(self, rows: int, panels: int, first: ir.Value) -> ir.Value:
        """Tiles of ``panels`` whole panels, up to where `tail` begins; returns that column."""
        b, size = self.builder, panels * self.panel
        before = b.block
        head, body, end = (b.append_basic_block(f"sweep.{n}") for n in ("head", "body", "end"))
        b.branch(head)
        b.position_at_end(head)
        column = self.phi(self.index, (first, before))
        after, left = b.add(column, self.at(size)), b.sub(self.columns, column)
        more = b.icmp_signed(">", left, self.at(size + self.lanes))
        b.cbranch(b.or_(more, b.icmp_signed("==", left, self.at(size))), body, end)
        b.position_at_end(body)
        self.product(rows, panels * VECTORS, column, None)
        column.add_incoming(after, b.block)
        b.branch(head)
        b.position_at_end(end)
        return column

    def tail(self, rows: int, panels: int, first: ir.Value) -> None:
        """The last columns, at most a vector more than ``panels``: only the very last is masked.

        That vector alone has too few sums to keep the core busy, so it takes some of the others:
        whole panels of these, if they are more than one, so that it does not begin within one.
        """
        b, lanes, most = self.builder, self.lanes, panels * VECTORS
        shared = (most + 2) // 2 if panels == 1 else most // 2
        before = b.block
        head, end = (b.append_basic_block(f"tail.{n}") for n in ("head", "end"))
        b.branch(head)
        b.position_at_end(head)
        column = self.phi(self.index, (first, before))
        left = b.sub(self.columns, column)
        vectors = b.sdiv(b.add(left, self.at(lanes - 1)), self.at(lanes))
        blocks = [b.append_basic_block(f"tail.{v}") for v in range(1, most + 1)]
        switch = b.switch(vectors, blocks[shared - 1])
        switch.add_case(self.at(0), end)
        for v, block in enumerate(blocks, 1):
            if v != shared:
                switch.add_case(self.at(v), block)
            b.position_at_end(block)
            self.product(rows, v, column, left)
            column.add_incoming(b.add(column, self.at(v * lanes)), b.block)
            b.branch(head)
        b.position_at_end(end)

    def product(self, rows: int, vectors: int, column: ir.Value, left: ir.Value | None) -> None:
        """``rows`` x ``vectors`` accumulators, masked at the end if ``left`` columns are given."""
        b = self.builder
        size = self.at(self.panel)
        # Each pointer takes a register, so vectors of one panel are constant steps from its first.
        every = VECTORS if vectors > VECTORS // 2 else 1
        p = []
        for v in range(0, vectors, every):
            at = b.add(column, self.at(v * self.lanes))
            first = self.step(self.p, b.mul(b.sdiv(at, size), self.p_step), b.srem(at, size))
            p += [self.step(first, self.at(i * self.lanes)) for i in range(min(every, vectors - v))]
        a = [self.step(self.a, self.times(m, self.lda)) for m in range(rows)]
        columns = [b.add(column, self.at(v * self.lanes)) for v in range(vectors)]
        c = [[self.step(self.c, self.times(m, self.ldc), j) for j in columns] for m in range(rows)]
        for row in c:  # it is needed when the sums are done
            for pointer in row[:: max(1, LINE_BYTES // (VECTOR_BITS // 8))]:
                self.prefetch(pointer, to_write=True)
        zeros = ir.Constant(self.vector, [0.0] * self.lanes)
        sums = [[zeros] * vectors] * rows
        done = self.at(0)
        if rows > 1 and UNROLLED > 1:  # one row waits for the cache, not for the loop
            done = b.sub(self.K, b.srem(self.K, self.at(UNROLLED)))
            turns = b.mul(b.sdiv(done, self.at(UNROLLED)), b.sdiv(column, size))
            ahead = self.step(self.next, b.mul(turns, self.pace))
            sums = self.accumulate(sums, a, p, self.at(0), done, UNROLLED, ahead)
        sums = self.accumulate(sums, a, p, done, self.K, 1)
        masks: list[ir.Value | None] = [None] * vectors
        if left is not None:
            masks[-1] = self.mask(b.sub(left, self.at((vectors - 1) * self.lanes)))
        self.finish(sums, c, columns, masks)

    def accumulate(
        self, sums: Grid, a: list[ir.Value], p: list[ir.Value], k0: ir.Value, k1: ir.Value,
        unrolled: int, ahead: ir.Value | None = None,
    ) -> Grid:  # fmt: skip
        """Add the products of the steps k0 <= k < k1, whole multiples of ``unrolled`` of them.

        Meanwhile ask for the lines from ``ahead`` on, if there are any.
        """
        b = self.builder
        before = b.block
        loop, end = b.append_basic_block("k.loop"), b.append_basic_block("k.end")
        b.cbranch(b.icmp_signed("<", k0, k1), loop, end)
        b.position_at_end(loop)
        k = self.phi(self.index, (k0, before))
        asked = None if ahead is None else self.phi(BYTES, (ahead, before))
        first = [[self.phi(self.vector, (value, before)) for value in row] for row in sums]
        if asked is not None:
            for i in range(ASKED):
                self.prefetch(self.step(asked, self.at(i * LINE_BYTES)), to_write=False)
            asked.add_incoming(self.step(asked, self.pace), loop)
        last = first
        for u in range(unrolled):
            last = self.multiply(last, a, p, b.add(k, self.at(u)))
        after = b.add(k, self.at(unrolled))
        k.add_incoming(after, loop)
        for phi, value in zip(chain(*first), chain(*last), strict=True):
            phi.add_incoming(value, loop)
        b.cbranch(b.icmp_signed("<", after, k1), loop, end)
        b.position_at_end(end)
        return [
            [self.phi(self.vector, (x, before), (y, loop)) for x, y in zip(*rows, strict=True)]
            for rows in zip(sums, last, strict=True)
        ]

    def multiply(self, sums: Grid, a: list[ir.Value], p: list[ir.Value], k: ir.Value) -> Grid:
        """The sums and one multiply-add each."""
        b, rows, vectors = self.builder, len(a), len(p)
        row = b.mul(k, self.at(self.panel))
        x: dict[int, ir.Value] = {}
        y: dict[int, ir.Value] = {}
        new = [[*row] for row in sums]
        # The operands of which there are fewer stay in registers, the others pass one by one.
        few = rows < vectors
        for i, j in np.ndindex(*((vectors, rows) if few else (rows, vectors))):
            m, v = (j, i) if few else (i, j)
            if m not in x:
                x[m] = self.splat(b.load(self.step(a[m], k)))
            if v not in y:
                y[v] = self.load(self.step(p[v], row), self.operand)
            new[m][v] = self.multiply_add(x[m], y[v], new[m][v])
        return new

    def finish(
        self, sums: Grid, c: Grid, columns: list[ir.Value], masks: list[ir.Value | None]
    ) -> None:
        """Store the sums, or D and the sums."""
        b = self.builder
        with b.if_else(self.add) as (add, set_):
            for way in (add, set_):
                with way:
                    for m, row in enumerate(zip(sums, c, strict=True)):
                        d = self.row_of_d(self.at(m)) if way is add else None
                        for value, to, column, mask in zip(*row, columns, masks, strict=True):
                            if way is add:
                                value = b.fadd(self.added(d, column, mask), value)
                            self.store(value, to, mask)

    def multiply_add(self, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        b = self.builder
        if self.operand != self.vector:
            return emit_dot(b, x, y, z, HAS_BF16)
        # Fused where the processor can, on every path of one target alike.
        return b.fadd(b.fmul(x, y, flags=("contract",)), z, flags=("contract",))

    def times(self, m: int, stride: ir.Value) -> ir.Value:
        return self.builder.mul(self.at(m), stride)
