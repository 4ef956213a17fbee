"""The tile of bfloat16 products for processors with a matrix unit: Intel's AMX.

It has eight registers of 16 rows of 64 bytes. One instruction adds the product of 16 rows of 16
pairs of bfloat16 (A, as it lies in memory) and 16 rows of pairs of 16 columns (P's layout) to 16x16
float32 sums: sixteen times the arithmetic of a vector instruction of float32. The registers are
always full: inner dimensions are padded to whole `GRAIN`s, rows beyond the last are read and not
written. A register whose rows do not lie each in one cache line takes several times as long to
load, so operands begin with a cache line and so do their rows.

A register of which some rows or columns lie beyond the last passes through a buffer on the stack.
Sums start from what they are added to.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils

from charrnn.kernels.vector import TileEmitter

SIDE = 16
"""Rows of a register, and float32 sums or pairs in a row of one."""
ROWS = 2 * SIDE
"""Most rows of a tile."""
SUMS, LEFT, RIGHT = (0, 1, 2, 3), (4, 5), (6, 7)
"""The registers: sums, and what passes of A and of P."""
BYTE, POINTER = ir.IntType(8), ir.IntType(8).as_pointer()


class MatrixTile(TileEmitter):
    """Writes the IR: 2x2 registers of sums, or 1x4 for few rows, over the inner dimension."""

    def emit(self, rows: ir.Value) -> None:
        b = self.builder
        self.rows = rows
        self.buffer = cgutils.alloca_once(b, ir.ArrayType(self.vector, len(SUMS) * SIDE))
        self.buffer.align = 64
        self.call("ldtilecfg", self.configuration())
        with b.if_else(b.icmp_signed(">", rows, self.at(SIDE))) as (many, few):
            with many:
                self.sweep(down=2, across=2)
            with few:
                self.sweep(down=1, across=4)
        self.call("tilerelease")

    def configuration(self) -> ir.Value:
        """Palette 1, then the bytes of a row and the rows of every register, all at their most."""
        number = len((*SUMS, *LEFT, *RIGHT))
        content = bytes([1, *[0] * 15, *[64, 0] * number, *[0] * 16, *[SIDE] * number, *[0] * 8])
        constant = cgutils.make_bytearray(content)
        made = cgutils.global_constant(self.builder, "tile.configuration", constant)
        return self.builder.bitcast(made, POINTER)

    def sweep(self, down: int, across: int) -> None:
        """All columns, ``across`` registers at a time; fewer for the last ones."""
        b, width = self.builder, self.at(across * SIDE)
        with cgutils.for_range_slice(b, self.at(0), self.columns, width, self.index) as (column, _):
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
        place = b.add(b.mul(b.sdiv(column, panel), self.p_step), b.srem(column, panel))
        for m in range(down):
            with b.if_else(self.add) as (add, zero):
                with add:
                    self.transfer(False, m, across, column, left)
                with zero:
                    for n in range(across):
                        self.call("tilezero", BYTE(SUMS[m * across + n]))
        stop, step = self.K, self.at(SIDE)
        with cgutils.for_range_slice(b, self.at(0), stop, step, self.index) as (k, _):
            a, p = b.gep(self.a, [k]), b.gep(self.p, [b.add(place, b.mul(k, panel))])
            for m in range(down):
                row = b.gep(a, [b.mul(self.at(m * SIDE), self.lda)])
                self.move("tileloadd64", LEFT[m], row, self.lda)
            for n in range(across):
                passing = RIGHT[n % 2]
                self.move("tileloadd64", passing, b.gep(p, [self.at(n * SIDE)]), panel)
                for m in range(down):
                    numbers = SUMS[m * across + n], LEFT[m], passing
                    self.call("tdpbf16ps", *map(BYTE, numbers))
        for m in range(down):
            self.transfer(True, m, across, column, left)

    def transfer(self, store: bool, m: int, across: int, column: ir.Value, left: ir.Value) -> None:
        """The m-th registers side by side to C, or from D: through the buffer if not all is."""
        b, sums, first = self.builder, SUMS[m * across : (m + 1) * across], self.at(m * SIDE)
        name, array, step = (
            ("tilestored64", self.c, self.ldc) if store else ("tileloadd64", self.d, self.ldd)
        )
        array = b.gep(array, [b.add(b.mul(first, step), column)])
        rows = b.sub(self.rows, first)
        whole = b.and_(
            b.icmp_signed(">=", rows, self.at(SIDE)),
            b.icmp_signed(">=", left, self.at(across * SIDE)),
        )
        with b.if_else(whole) as (directly, through):
            with directly:
                for n, number in enumerate(sums):
                    self.move(name, number, b.gep(array, [self.at(n * SIDE)]), step)
            with through:
                there = b.gep(self.buffer, [self.at(0), self.at(m * SIDE * across)])
                there = b.bitcast(there, array.type)
                width = self.at(across * SIDE)
                if store:
                    for n, number in enumerate(sums):
                        self.move(name, number, b.gep(there, [self.at(n * SIDE)]), width)
                    self.copy(array, step, there, width, rows, across, left)
                else:
                    self.copy(there, width, array, step, rows, across, left)
                    for n, number in enumerate(sums):
                        self.move(name, number, b.gep(there, [self.at(n * SIDE)]), width)

    def copy(self, to, to_step, source, step, rows, across, left):
        """Copy up to a register's rows of ``across`` vectors, the last of which is masked."""
        b = self.builder
        rows = b.select(b.icmp_signed("<", rows, self.at(SIDE)), rows, self.at(SIDE))
        masks = [None] * (across - 1) + [self.mask(b.sub(left, self.at((across - 1) * SIDE)))]
        with cgutils.for_range(b, rows, intp=self.index) as loop:
            for n, mask in enumerate(masks):
                first, second = (
                    b.gep(x, [b.add(b.mul(loop.index, s), self.at(n * SIDE))])
                    for x, s in ((to, to_step), (source, step))
                )
                self.store(self.load(second, self.vector, mask), first, mask)

    def move(self, name: str, number: int, first: ir.Value, step: ir.Value) -> None:
        """Load or store a register; its rows are ``step`` elements of 4 bytes apart."""
        b = self.builder
        self.call(name, BYTE(number), b.bitcast(first, POINTER), b.mul(step, self.at(4)))

    def call(self, name: str, *args: ir.Value) -> None:
        """One of the unit's instructions; LLVM knows them by the numbers of the registers."""
        kind = ir.FunctionType(ir.VoidType(), [x.type for x in args])
        module = self.builder.module
        self.builder.call(cgutils.get_or_insert_function(module, kind, f"llvm.x86.{name}"), args)
