"""The tile of bfloat16 products for processors with a matrix unit: Intel's AMX.

It has eight registers of 16 rows of 64 bytes. One instruction adds the product of 16 rows of 16
pairs of bfloat16 (A) and 16 rows of pairs of 16 columns (P) to 16x16 float32 sums: sixteen times
the arithmetic of a vector instruction of float32, in a cycle for each row of A, 8 at the least.
Operands are packed in `squares`.

Products of float32 numbers take six instructions: each number is the sum of three of bfloat16,
x = x0 + x1 + x2, of which each is 2^-8 of the one before at the most. Of the nine products of such
parts three are left out, x1 y2, x2 y1 and x2 y2, which are some 2^-24 of x y together, as float32's
own rounding is (Henry, Tang and Heinecke 2019, "Leveraging the bfloat16 artificial intelligence
datatype for higher-precision computations").

Sums start from zero; what they are added to comes last.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, product

from llvmlite import ir
from numba.core import cgutils

from charrnn.kernels.bfloat16 import PARTS, emit_parts
from charrnn.kernels.vector import BYTES, ID, TileEmitter

SIDE = 16
"""Rows of a register, and float32 sums or pairs in a row of one."""
AREA = SIDE * SIDE
"""Pairs in a register."""
ROWS = 2 * SIDE
"""Most rows of a tile."""
REGISTERS = 8
SUMS = (0, 1, 2, 3)
"""The registers of sums; what passes of A and P has the others."""
Square = tuple[int, int, int]
"""A register, the part that it holds, and which of the squares side by side."""
BYTE = ir.IntType(8)


class MatrixTile(TileEmitter):
    """Writes the IR: 2x2 registers of sums, or 1x4 for few rows, over the inner dimension."""

    products: tuple[tuple[int, int], ...] = ((0, 0),)
    """Which parts of A and of P are multiplied, one after the other."""

    def emit(self, rows: ir.Value) -> None:
        b = self.builder
        self.rows = rows
        self.buffer = self.room(self.vector, len(SUMS) * SIDE)
        self.configuration = self.room(BYTE, 64)
        with b.if_else(b.icmp_signed(">", rows, self.at(SIDE))) as (many, few):
            with many:
                self.configure(b.sub(rows, self.at(SIDE)), (2, 3, 5))
                self.sweep(down=2, across=2)
            with few:
                self.configure(rows, (0, 1, 2, 3, 4, 5, 6))
                self.sweep(down=1, across=4)
        self.call("tilerelease")

    def room(self, kind: ir.Type, count: int) -> ir.Value:
        """Lines on the stack; Numba's own way to get them fills them with zeros at every call."""
        with self.builder.goto_entry_block():
            room = self.builder.alloca(ir.ArrayType(kind, count))
        room.align = 64
        return room

    def configure(self, rows: ir.Value, some: tuple[int, ...]) -> None:
        """All registers at their most, but for the rows of ``some``: the unit's time goes by these.

        That is palette 1, from byte 16 on the bytes of every register's rows, from 48 on the rows.
        """
        b = self.builder
        content = bytes([1, *[0] * 15, *[64, 0] * REGISTERS, *[0] * 32])
        made = cgutils.global_constant(b, "tile.configuration", cgutils.make_bytearray(content))
        b.store(b.load(made), self.configuration)
        others = sum(SIDE << 8 * i for i in range(REGISTERS) if i not in some)
        heights = b.add(b.mul(rows, self.at(sum(1 << 8 * i for i in some))), self.at(others))
        place = self.step(b.bitcast(self.configuration, BYTES), self.at(48))
        b.store(heights, b.bitcast(place, heights.type.as_pointer()))
        self.call("ldtilecfg", b.bitcast(self.configuration, BYTES))

    def sweep(self, down: int, across: int) -> None:
        """All columns, ``across`` registers at a time; fewer for the last ones."""
        b, width = self.builder, self.at(across * SIDE)
        last = b.mul(b.sdiv(b.sub(self.columns, self.at(1)), width), width)
        with cgutils.for_range_slice(b, self.at(0), self.columns, width, self.index) as (done, _):
            column = b.select(self.back, b.sub(last, done), done)
            left = b.sub(self.columns, column)
            wanted = b.sdiv(b.add(left, self.at(SIDE - 1)), self.at(SIDE))
            end = b.append_basic_block("sweep.end")
            blocks = [b.append_basic_block(f"sweep.{n}") for n in range(1, across + 1)]
            switch = b.switch(wanted, blocks[-1])
            for n, block in enumerate(blocks, 1):
                if n < across:
                    switch.add_case(self.at(n), block)
                b.position_at_end(block)
                self.product(down, n, column, left)
                b.branch(end)
            b.position_at_end(end)

    def product(self, down: int, across: int, column: ir.Value, left: ir.Value) -> None:
        """``down`` x ``across`` registers of sums over the inner dimension."""
        b, panel = self.builder, self.at(self.panel)
        place = b.add(
            b.mul(b.sdiv(column, panel), self.p_step),
            b.mul(b.srem(column, panel), self.at(SIDE)),
        )
        self.begin(down, across)
        depth = SIDE * (1 + max(chain(*self.products)))
        with cgutils.for_range_slice(b, self.at(0), self.K, self.at(depth), self.index) as (k, _):
            a = self.step(self.a, b.mul(k, self.at(SIDE)))
            p = self.step(self.p, place, b.mul(k, panel))
            for _ in self.multiply(down, across, a, p, SIDE * self.panel):
                pass
            self.add_nothing()
        for m in range(down):
            self.finish(m, across, column, left)

    def begin(self, down: int, across: int) -> None:
        """Sums of zero."""
        for m, n in product(range(down), range(across)):
            self.call("tilezero", BYTE(SUMS[2 * m + n]))

    def multiply(
        self, down: int, across: int, a: ir.Value, p: ir.Value, apart: int
    ) -> Iterator[None]:
        """The products of a step, one by one; the squares of P's parts are so many pairs apart."""
        b = self.builder
        held: dict[int, tuple[int, int]] = {}
        for sums, first, second in self.order(down, across):
            for (number, part, line), pointer, further, beside in (
                (first, a, self.at(AREA), b.mul(self.at(SIDE), self.lda)),
                (second, p, self.at(apart), self.at(AREA)),
            ):
                if held.get(number) != (part, line):
                    held[number] = part, line
                    square = b.mul(self.at(part), further), b.mul(self.at(line), beside)
                    self.move("tileloadd64", number, self.step(pointer, *square), self.at(SIDE))
            self.call("tdpbf16ps", *map(BYTE, (sums, first[0], second[0])))
            yield

    def order(self, down: int, across: int) -> Iterator[tuple[int, Square, Square]]:
        """The products of a step: numbers of the sums, of what passes of A and of P.

        Those of an element always come in the same order. With two rows of registers for A and P
        each, all sums take one pair of parts after the other; with one row all parts of A stay.
        """
        if down == 2:
            for i, j in self.products:
                for n, m in product(range(across), range(down)):
                    yield SUMS[2 * m + n], (4 + m, i, m), (6 + n, j, n)
        else:
            for n, (i, j) in product(range(across), self.products):
                yield SUMS[n], (4 + i, i, 0), (7, j, n)

    def add_nothing(self) -> None:
        """An addition in vectors: without one the loop takes a quarter longer (Intel Xeon).

        Not so if it is short; instructions that round nothing do not help. Why is not known.
        """
        four = ir.VectorType(ir.FloatType(), 4)
        add = ir.InlineAsm(
            ir.FunctionType(four, [four]), "vaddps $0, $0, $0", "=x,0", side_effect=True
        )
        self.builder.call(add, [ir.Constant(four, [0.0] * 4)])

    def finish(self, m: int, across: int, column: ir.Value, left: ir.Value) -> None:
        """The m-th registers side by side to C, through the buffer if D is added or not all is."""
        b, sums, first = self.builder, SUMS[2 * m : 2 * m + across], self.at(m * SIDE)
        c = self.step(self.c, b.mul(first, self.ldc), column)
        rows, whole = b.sub(self.rows, first), b.icmp_signed(">=", left, self.at(across * SIDE))
        there = b.gep(self.buffer, [self.at(0), self.at(m * SIDE * across)])
        there, width = b.bitcast(there, c.type), self.at(across * SIDE)
        with b.if_else(b.and_(whole, b.not_(self.add))) as (directly, through):
            with directly:
                for n, number in enumerate(sums):
                    self.move("tilestored64", number, self.step(c, self.at(n * SIDE)), self.ldc)
            with through:
                for n, number in enumerate(sums):
                    self.move("tilestored64", number, self.step(there, self.at(n * SIDE)), width)
                self.copy(c, there, first, rows, column, across, left)

    def copy(self, c, there, first, rows, column, across, left):
        """From the buffer to C, plus D if it is added; the last vector of a row is masked."""
        b = self.builder
        rows = b.select(b.icmp_signed("<", rows, self.at(SIDE)), rows, self.at(SIDE))
        masks = self.masks(across, left)
        with cgutils.for_range(b, rows, intp=self.index) as loop:
            d = self.row_of_d(b.add(first, loop.index))
            for n, mask in enumerate(masks):
                to, source = (
                    self.step(x, b.mul(loop.index, step), self.at(n * SIDE))
                    for x, step in ((c, self.ldc), (there, self.at(across * SIDE)))
                )
                value = self.load(source, self.vector)
                with b.if_else(self.add) as (add, not_):
                    with add:
                        beside = b.add(column, self.at(n * SIDE))
                        total = b.fadd(self.added(d, beside, mask), value)
                        added = b.block
                    with not_:
                        as_it_is = b.block
                value = self.phi(self.vector, (total, added), (value, as_it_is))
                self.store(value, to, mask)

    def masks(self, across: int, left: ir.Value) -> list[ir.Value | None]:
        """Of a row's vectors of C, the last of which may reach beyond."""
        beyond = self.builder.sub(left, self.at((across - 1) * SIDE))
        return [None] * (across - 1) + [self.mask(beyond)]

    def move(self, name: str, number: int, first: ir.Value, step: ir.Value) -> None:
        """Load or store a register; its rows are ``step`` elements of 4 bytes apart."""
        b = self.builder
        self.call(name, BYTE(number), b.bitcast(first, BYTES), b.mul(step, self.at(4)))

    def call(self, name: str, *args: ir.Value) -> None:
        """One of the unit's instructions; LLVM knows them by the numbers of the registers."""
        kind = ir.FunctionType(ir.VoidType(), [x.type for x in args])
        module = self.builder.module
        self.builder.call(cgutils.get_or_insert_function(module, kind, f"llvm.x86.{name}"), args)


class PartsTile(MatrixTile):
    """The tile of float32 products. Neighbours of them have a part in common, which stays."""

    products = ((2, 0), (0, 0), (1, 0), (1, 1), (0, 1), (0, 2))


class WholeTile(PartsTile):
    """The tile of float32 products that makes P's parts itself: these are half as large again.

    P is packed as for vectors. While the unit multiplies some steps of the inner dimension, vector
    instructions make the parts of the next ones; each have a half of a buffer. Parts of P are cut,
    not rounded: A's are, so that what is left out of a product is as often too little as too much.
    """

    def emit(self, rows: ir.Value) -> None:
        self.turn = cgutils.alloca_once(self.builder, self.index)
        self.parts = self.room(ID, 2 * PARTS * len(SUMS) * AREA)
        super().emit(rows)

    def sweep(self, down: int, across: int) -> None:
        """All columns; those beyond the last are multiplied as well, and not stored."""
        b, width = self.builder, self.at(across * SIDE)
        last = b.mul(b.sdiv(b.sub(self.columns, self.at(1)), width), width)
        b.store(self.at(0), self.turn)
        with cgutils.for_range(b, width, intp=self.index) as loop:
            first = b.select(self.back, last, self.at(0))
            source = self.step(self.p, self.place(first))
            self.split(source, loop.index, self.half(self.at(0)), across)
        with cgutils.for_range_slice(b, self.at(0), self.columns, width, self.index) as (done, _):
            further = b.add(done, width)
            more = b.icmp_signed("<", further, self.columns)
            to_come = b.select(more, further, done)
            column, next = (b.select(self.back, b.sub(last, x), x) for x in (done, to_come))
            self.product_before(down, across, column, next)

    def product_before(self, down: int, across: int, column: ir.Value, next: ir.Value) -> None:
        """`product`; at its end the first parts of the columns from ``next`` on are there."""
        b, depth, size = self.builder, self.at(2 * SIDE), self.at(PARTS * len(SUMS) * AREA)
        place, place_of_next = self.place(column), self.place(next)
        self.begin(down, across)
        with cgutils.for_range_slice(b, self.at(0), self.K, depth, self.index) as (k, _):
            a = self.step(self.a, b.mul(k, self.at(PARTS * SIDE // 2)))
            here = b.load(self.turn)
            there = b.sub(size, here)
            further = b.add(k, depth)
            more = b.icmp_signed("<", further, self.K)
            same = b.add(place, b.mul(further, self.at(self.panel)))
            source = self.step(self.p, b.select(more, same, place_of_next))
            lines, products = across * SIDE, down * across * len(self.products)
            made = 0
            steps = self.multiply(down, across, a, self.half(here), across * AREA)
            for n, _ in enumerate(steps, 1):
                for line in range(made, made := lines * n // products):
                    self.split(source, self.at(line), self.half(there), across)
            b.store(there, self.turn)
        for m in range(down):
            self.finish(m, across, column, b.sub(self.columns, column))

    def masks(self, across: int, left: ir.Value) -> list[ir.Value | None]:
        """Of a row's vectors of C, any of which may reach beyond."""
        return [self.mask(self.builder.sub(left, self.at(n * SIDE))) for n in range(across)]

    def place(self, column: ir.Value) -> ir.Value:
        """Where a column begins in P."""
        b, panel = self.builder, self.at(self.panel)
        return b.add(b.mul(b.sdiv(column, panel), self.p_step), b.srem(column, panel))

    def half(self, first: ir.Value) -> ir.Value:
        """The half of the buffer that begins with this pair."""
        return self.step(self.builder.bitcast(self.parts, ID.as_pointer()), first)

    def split(self, source: ir.Value, line: ir.Value, half: ir.Value, across: int) -> None:
        """Make a line of each part's squares; ``source``: where P's first row of them is."""
        b = self.builder
        n, i = b.sdiv(line, self.at(SIDE)), b.srem(line, self.at(SIDE))
        first = self.step(source, b.mul(i, self.at(self.panel)), b.mul(n, self.at(SIDE)))
        partner = self.step(first, self.at(SIDE * self.panel))
        numbers = (self.load(x, self.vector) for x in (first, partner))
        for part, value in enumerate(emit_parts(b, *numbers, nearest=False)):
            square = b.mul(b.add(n, self.at(part * across)), self.at(AREA))
            to = self.step(half, square, b.mul(i, self.at(SIDE)))
            b.store(value, b.bitcast(to, value.type.as_pointer()), align=64)
