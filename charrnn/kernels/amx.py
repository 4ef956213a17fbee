"""The tile of bfloat16 products for processors with a matrix unit: Intel's AMX.

It has eight registers of 16 rows of 64 bytes. One instruction adds the product of 16 rows of 16
pairs of bfloat16 (A, as it lies in memory) and 16 rows of pairs of 16 columns (P's layout) to 16x16
float32 sums: sixteen times the arithmetic of a vector instruction of float32. The registers are
always full: inner dimensions are padded to whole `GRAIN`s, rows beyond the last are read and not
written. A register whose rows do not lie each in one cache line takes several times as long to
load, so operands begin with a cache line and so do their rows.

The sums pass through a buffer on the stack, where rows and columns beyond the last are left and
what they are added to comes last, as in `charrnn.kernels.tile.Tile`.
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
        self.sums = cgutils.alloca_once(b, ir.ArrayType(self.vector, len(SUMS) * SIDE))
        self.sums.align = 64
        self.call("ldtilecfg", self.configuration())
        with b.if_else(b.icmp_signed(">", rows, self.at(SIDE))) as (many, few):
            with many:
                self.sweep(rows, down=2, across=2)
            with few:
                self.sweep(rows, down=1, across=4)
        self.call("tilerelease")

    def configuration(self) -> ir.Value:
        """Palette 1, then the bytes of a row and the rows of every register, all at their most."""
        number = len((*SUMS, *LEFT, *RIGHT))
        content = bytes([1, *[0] * 15, *[64, 0] * number, *[0] * 16, *[SIDE] * number, *[0] * 8])
        constant = cgutils.make_bytearray(content)
        made = cgutils.global_constant(self.builder, "tile.configuration", constant)
        return self.builder.bitcast(made, POINTER)

    def sweep(self, rows: ir.Value, down: int, across: int) -> None:
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
                self.product(down, n, column)
                self.finish(rows, n, column, left)
                b.branch(end)
            b.position_at_end(end)

    def product(self, down: int, across: int, column: ir.Value) -> None:
        """``down`` x ``across`` registers of sums, and these into the buffer."""
        b, panel = self.builder, self.at(self.panel)
        place = b.add(b.mul(b.sdiv(column, panel), self.p_step), b.srem(column, panel))
        a_row, p_row = (b.mul(n, self.at(4)) for n in (self.step_m, panel))
        for i in range(down * across):
            self.call("tilezero", BYTE(SUMS[i]))
        with cgutils.for_range_slice(
            b, self.at(0), self.K, self.at(SIDE), self.index
        ) as (k, _):  # fmt: skip
            left, right = b.gep(self.a, [k]), b.gep(self.p, [b.add(place, b.mul(k, panel))])
            for m in range(down):
                row = b.gep(left, [b.mul(self.at(m * SIDE), self.step_m)])
                self.call("tileloadd64", BYTE(LEFT[m]), b.bitcast(row, POINTER), a_row)
            for n in range(across):
                passing = RIGHT[n % 2]
                at = b.bitcast(b.gep(right, [self.at(n * SIDE)]), POINTER)
                self.call("tileloadd64", BYTE(passing), at, p_row)
                for m in range(down):
                    self.call("tdpbf16ps", BYTE(SUMS[m * across + n]), BYTE(LEFT[m]), BYTE(passing))
        buffer = b.bitcast(self.sums, POINTER)
        for m in range(down):
            for n in range(across):
                at = b.gep(buffer, [self.at((m * SIDE * across + n) * 64)])
                self.call("tilestored64", BYTE(SUMS[m * across + n]), at, self.at(64 * across))

    def finish(self, rows: ir.Value, across: int, column: ir.Value, left: ir.Value) -> None:
        """Store the sums, or D and the sums."""
        b = self.builder
        mask = self.mask(b.sub(left, self.at((across - 1) * SIDE)))
        masks = [None] * (across - 1) + [mask]
        with b.if_else(self.add) as (add, set_):
            for way in (add, set_):
                with way, cgutils.for_range(b, rows, intp=self.index) as loop:
                    c = b.gep(self.c, [b.add(b.mul(loop.index, self.ldc), column)])
                    d = b.gep(self.d, [b.add(b.mul(loop.index, self.ldd), column)])
                    for n, mask in enumerate(masks):
                        at = b.add(b.mul(loop.index, self.at(across)), self.at(n))
                        value = b.load(b.gep(self.sums, [self.at(0), at]), align=64)
                        if way is add:
                            other = b.gep(d, [self.at(n * SIDE)])
                            value = b.fadd(self.load(other, self.vector, mask), value)
                        self.store(value, b.gep(c, [self.at(n * SIDE)]), mask)

    def call(self, name: str, *args: ir.Value) -> None:
        """One of the unit's instructions; LLVM knows them by the numbers of the registers."""
        kind = ir.FunctionType(ir.VoidType(), [x.type for x in args])
        module = self.builder.module
        self.builder.call(cgutils.get_or_insert_function(module, kind, f"llvm.x86.{name}"), args)
