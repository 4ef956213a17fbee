"""Vector instructions, written as LLVM's IR: what the tile and the formulas have in common.

All is emitted for the width of the processor that Numba compiles for.
"""

from __future__ import annotations

from functools import cached_property

from llvmlite import ir
from numba.core import cgutils

BYTES = ir.PointerType(ir.IntType(8))
ID = ir.IntType(32)
MOST_ROWS = 32
"""Of a tile, whatever it is made by."""


class Emitter:
    """Writes code for vectors of ``lanes`` numbers of type ``scalar`` where a builder stands."""

    def __init__(self, builder: ir.IRBuilder, scalar: ir.Type, lanes: int) -> None:
        self.builder, self.lanes = builder, lanes
        self.vector = ir.VectorType(scalar, lanes)
        self.index = ir.IntType(64)

    def at(self, value: int) -> ir.Constant:
        return ir.Constant(self.index, value)

    def phi(self, kind: ir.Type, *incoming: tuple[ir.Value, ir.Block]) -> ir.Value:
        phi = self.builder.phi(kind)
        for value, block in incoming:
            phi.add_incoming(value, block)
        return phi

    def step(self, pointer: ir.Value, *offsets: ir.Value) -> ir.Value:
        """The pointer some elements further."""
        for offset in offsets:
            pointer = self.builder.gep(pointer, [offset])
        return pointer

    def splat(self, x: ir.Value) -> ir.Value:
        """A vector with x in every lane."""
        b, undefined = self.builder, ir.Constant(ir.VectorType(x.type, self.lanes), ir.Undefined)
        one = b.insert_element(undefined, x, ir.Constant(ir.IntType(32), 0))
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return b.shuffle_vector(one, undefined, lanes)

    def mask(self, left: ir.Value) -> ir.Value:
        """The first ``left`` lanes."""
        lanes = ir.Constant(ir.VectorType(self.index, self.lanes), list(range(self.lanes)))
        return self.builder.icmp_signed("<", lanes, self.splat(left))

    def load(
        self, pointer: ir.Value, kind: ir.VectorType, mask: ir.Value | None = None
    ) -> ir.Value:
        """A vector; of a masked one the lanes beyond are zero, and are not read."""
        b = self.builder
        pointer = b.bitcast(pointer, ir.PointerType(kind))
        align = 8 if kind.element == ir.DoubleType() else 4
        if mask is None:
            return b.load(pointer, align=align)
        bits = ir.VectorType(ir.IntType(1), self.lanes)
        kinds = [pointer.type, ir.IntType(32), bits, kind]
        load = self._masked("load", kind, ir.FunctionType(kind, kinds))
        zeros = ir.Constant(kind, [0.0] * self.lanes)
        return b.call(load, [pointer, ir.Constant(ir.IntType(32), align), mask, zeros])

    def store(self, value: ir.Value, pointer: ir.Value, mask: ir.Value | None) -> None:
        b = self.builder
        pointer = b.bitcast(pointer, ir.PointerType(self.vector))
        align = 8 if self.vector.element == ir.DoubleType() else 4
        if mask is None:
            b.store(value, pointer, align=align)
            return
        bits = ir.VectorType(ir.IntType(1), self.lanes)
        kinds = [self.vector, pointer.type, ir.IntType(32), bits]
        store = self._masked("store", self.vector, ir.FunctionType(ir.VoidType(), kinds))
        b.call(store, [value, pointer, ir.Constant(ir.IntType(32), align), mask])

    def prefetch(self, pointer: ir.Value, *, to_write: bool) -> None:
        """Ask for a line: for the first cache, to write to it, or for the second one, to read."""
        b, number = self.builder, ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [BYTES] + [number] * 3)
        prefetch = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
        locality, data = 3 if to_write else 2, 1
        numbers = (ir.Constant(number, n) for n in (int(to_write), locality, data))
        b.call(prefetch, [b.bitcast(pointer, BYTES), *numbers])

    def _masked(self, name: str, kind: ir.VectorType, function: ir.FunctionType) -> ir.Function:
        full = f"llvm.masked.{name}.v{self.lanes}{kind.element.intrinsic_name}.p0"
        return cgutils.get_or_insert_function(self.builder.module, function, full)


def transposed(builder, rows):
    """The columns of n vectors of n lanes: exchanges of corners in blocks of 2, 4, 8, ... rows."""
    n, step, rows = len(rows), 1, list(rows)
    kind = ir.VectorType(ir.IntType(32), n)
    while step < n:
        low = ir.Constant(kind, [i if i & step == 0 else n + i - step for i in range(n)])
        high = ir.Constant(kind, [i + step if i & step == 0 else n + i for i in range(n)])
        for i in range(n):
            if i & step == 0:
                pair = rows[i], rows[i + step]
                rows[i] = builder.shuffle_vector(*pair, low)
                rows[i + step] = builder.shuffle_vector(*pair, high)
        step *= 2
    return rows


class TileEmitter(Emitter):
    """A tile of a product: some rows of ``C = A @ P``, or of ``C = D + A @ P``.

    Attributes
    ----------
    c, d, a, p : pointers to the first elements
    ldc, ldd, lda, p_step : elements between rows of C, of D and of A, and between panels of P
    K, columns, add : the inner dimension, C's columns, and whether D is added
    ids, bias : addresses of the numbers of D's rows, and of what is added to each; 0: none
    back : whether the last columns come first
    next, pace : bytes to ask for meanwhile, see `charrnn.kernels.tile.tile`
    """

    def __init__(
        self, builder: ir.IRBuilder, scalar: ir.Type, operand: ir.Type, lanes: int, vectors: int
    ) -> None:
        super().__init__(builder, scalar, lanes)
        self.operand = ir.VectorType(operand, lanes)
        self.panel = vectors * lanes
        self.c = self.d = self.a = self.p = self.ldc = self.ldd = None
        self.lda = self.p_step = self.K = self.columns = self.add = self.back = None
        self.ids = self.bias = self.next = self.pace = None

    def row_of_d(self, m: ir.Value) -> ir.Value:
        """Where the row begins that is added to row ``m`` of C."""
        b = self.builder
        number = b.load(self.step(self.given(self.ids, ID, self.in_order), m))
        return self.step(self.d, b.mul(b.sext(number, self.index), self.ldd))

    def added(self, row: ir.Value, column: ir.Value, mask: ir.Value | None) -> ir.Value:
        """A vector of a `row_of_d`, with the bias."""
        bias = self.given(self.bias, self.vector.element, self.zeros, column)
        row = self.step(row, column)
        return self.builder.fadd(*(self.load(x, self.vector, mask) for x in (row, bias)))

    def given(self, address: ir.Value, kind: ir.Type, other: ir.Value, *steps: ir.Value):
        """A pointer some steps from the address on, or to something else if that is 0."""
        b = self.builder
        place = self.step(b.inttoptr(address, kind.as_pointer()), *steps)
        return b.select(
            b.icmp_signed("==", address, self.at(0)), b.bitcast(other, place.type), place
        )

    @cached_property
    def in_order(self) -> ir.Value:
        numbers = ir.ArrayType(ID, MOST_ROWS)(list(range(MOST_ROWS)))
        return cgutils.global_constant(self.builder, "tile.in_order", numbers)

    @cached_property
    def zeros(self) -> ir.Value:
        zeros = ir.Constant(self.vector, [0.0] * self.lanes)
        return cgutils.global_constant(self.builder, "tile.zeros", zeros)
