"""Matrix products at the speed of the arithmetic units: a register tile and packed operands.

A product streams a packed operand through a tile of C that stays in registers over the whole inner
dimension. ``pack`` lays a (K, N) matrix out in panels of `PANEL` columns, each contiguous; weights
are packed once per training step and used at every time step. The last panel is padded with
zeros; C never is: its last columns go through masked loads and stores.

The tile is vector IR behind an intrinsic, because the compiler's own vectoriser reaches 60 % of
it. Each element of C is the sum, in the order of k, of one multiply-add a step that starts from
C's old value or zero: the result does not depend on how rows fall into tiles, and so not on how
the batch is divided over threads.

All functions have a Python body that says in NumPy what they do; it runs when the compiler is off.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, overload

from charrnn.kernels.jit import VECTOR_BITS, VECTOR_REGISTERS, kernel

VECTORS = 2
"""Vectors in a panel's row."""
ROWS = 8 if VECTOR_REGISTERS == 32 else 4
"""Most rows of a tile: ROWS * VECTORS accumulators and the operands fit the registers."""
PANEL_BYTES = VECTORS * VECTOR_BITS // 8
DEPTH = 256
"""Rows of the inner dimension that `gemm_tn` packs at a time: a panel of them stays in L1."""


def panel(dtype: Any) -> int:
    """Columns of a packed panel of ``dtype``."""
    return PANEL_BYTES // np.dtype(dtype).itemsize


def panels(columns: int, dtype: Any) -> int:
    """Panels that ``columns`` columns need."""
    return -(-columns // panel(dtype))


def packed(k: int, n: int, dtype: Any) -> np.ndarray:
    """Room for a packed (K, N) matrix: zeros of shape (panels, K, panel)."""
    return np.zeros((panels(n, dtype), k, panel(dtype)), dtype)


def _copier(count):
    """A function that copies ``count(dtype)`` elements as one vector, given element offsets."""

    def copy(target, t0, source, s0):
        n = count(target.dtype)
        target.reshape(-1)[t0 : t0 + n] = source.reshape(-1)[s0 : s0 + n]

    @intrinsic
    def vector_copy(typingctx, target, t0, source, s0):
        def codegen(context, builder, signature, args):
            dtype = signature.args[0].dtype
            scalar = ir.DoubleType() if dtype.bitwidth == 64 else ir.FloatType()
            vector = ir.VectorType(scalar, count(str(dtype)))
            where = []
            for i in (0, 2):
                array = context.make_array(signature.args[i])(context, builder, value=args[i])
                pointer = builder.gep(array.data, [args[i + 1]])
                where.append(builder.bitcast(pointer, ir.PointerType(vector)))
            align = dtype.bitwidth // 8
            builder.store(builder.load(where[1], align=align), where[0], align=align)
            return context.get_dummy_value()

        return types.void(target, types.intp, source, types.intp), codegen

    @overload(copy)
    def _copy(target, t0, source, s0):
        return lambda target, t0, source, s0: vector_copy(target, t0, source, s0)

    return copy


copy_panel = _copier(panel)
copy_rows = _copier(lambda dtype: ROWS)


def scratch_size(k: int, dtype: Any) -> int:
    """Elements of scratch that `gemm_tn` needs for an A of ``k`` columns."""
    return DEPTH * (panel(dtype) + -(-k // ROWS) * ROWS)


@kernel
def pack(P, W, n0, n1):
    """Pack the columns n0 <= n < n1 of W (K, N): ``P[p, k, j] = W[k, n0 + p * panel + j]``."""
    K, N = W.shape
    width = P.shape[2]
    for p in range(P.shape[0]):
        c0 = n0 + p * width
        columns = min(width, n1 - c0)
        if columns == width:
            for k in range(K):
                copy_panel(P, (p * K + k) * width, W, k * N + c0)
        else:
            for k in range(K):
                for j in range(columns):
                    P[p, k, j] = W[k, c0 + j]


@kernel
def pack_t(P, W, n0, n1):
    """Pack the transpose of the same columns: ``P[p, k, j] = W[p * panel + j, n0 + k]``."""
    K = W.shape[0]
    width = P.shape[2]
    for p in range(P.shape[0]):
        c0 = p * width
        columns = min(width, K - c0)
        for k0 in range(n0, n1, 16):  # one cache line of each row at a time
            for j in range(columns):
                for k in range(k0, min(k0 + 16, n1)):
                    P[p, k - n0, j] = W[c0 + j, k]


def gemm(C, A, P, accumulate):
    """``C = A @ W``, or ``C += A @ W``, for W packed as P.

    C (M, N) and A (M, K), or (T, M, N) and (T, M, K), have contiguous rows; P is
    (panels, K, panel).
    """
    product = A @ _unpacked(P, C.shape[-1])
    C[...] = C + product if accumulate else product


def gemm_tn(C, A, D, m0, m1, c0, c1, shift, scratch, accumulate):
    """A weight gradient, or the part ``C[m0:m1, c0:c1]`` of it.

    ``C = A.T @ D[:, shift : shift + N]``, or ``+=``, for C (K, N), A (R, K) and D (R, at least
    shift + N) with contiguous rows; R is all rows of a window.
    ``scratch`` has `scratch_size` elements.
    """
    product = A[:, m0:m1].T @ D[:, c0 + shift : c1 + shift]
    C[m0:m1, c0:c1] = C[m0:m1, c0:c1] + product if accumulate else product


def _unpacked(P, columns):
    return np.ascontiguousarray(P.transpose(1, 0, 2)).reshape(P.shape[1], -1)[:, :columns]


@overload(gemm)
def _gemm(C, A, P, accumulate):
    if C.ndim == 2:

        def impl(C, A, P, accumulate):
            _product(C, A, P, 1, C.shape[0], C.shape[1], A.shape[1], 0, C.strides[0], 0,
                     A.strides[0], accumulate)  # fmt: skip

    else:

        def impl(C, A, P, accumulate):
            _product(C, A, P, C.shape[0], C.shape[1], C.shape[2], A.shape[2], C.strides[0],
                     C.strides[1], A.strides[0], A.strides[1], accumulate)  # fmt: skip

    return impl


@kernel
def _product(C, A, P, T, M, N, K, c_step, c_row, a_step, a_row, accumulate):
    """`gemm` for T matrices that share P; steps between matrices and rows in bytes.

    Panels are the outer loop: one stays in the cache for all rows. Rows are shared out evenly over
    the tiles, because a tile of one row runs at half speed.
    """
    c_step, c_row = c_step // C.itemsize, c_row // C.itemsize
    a_step, a_row = a_step // A.itemsize, a_row // A.itemsize
    width = P.shape[2]
    p_step = P.strides[0] // P.itemsize
    tiles = -(-M // ROWS)
    for p in range(P.shape[0]):
        columns = min(width, N - p * width)
        for t in range(T):
            m = 0
            for tile in range(tiles, 0, -1):
                rows = -(-(M - m) // tile)
                _tile(
                    C, t * c_step + m * c_row + p * width, c_row,
                    A, t * a_step + m * a_row, a_row, 1,
                    P, p * p_step, K, rows, columns, accumulate,
                )  # fmt: skip
                m += rows


@overload(gemm_tn)
def _gemm_tn(C, A, D, m0, m1, c0, c1, shift, scratch, accumulate):
    width = panel(str(D.dtype))

    def impl(C, A, D, m0, m1, c0, c1, shift, scratch, accumulate):
        R = A.shape[0]
        ldc = C.strides[0] // C.itemsize
        lda = A.strides[0] // A.itemsize
        ldd = D.strides[0] // D.itemsize
        for r0 in range(0, R, DEPTH):
            depth = min(DEPTH, R - r0)
            for first in range(m0, m1, ROWS):  # A's columns, behind the room for D's panel
                start = DEPTH * (width + first - m0)
                rows = min(ROWS, m1 - first)
                if rows == ROWS:
                    for r in range(depth):
                        copy_rows(scratch, start + r * ROWS, A, (r0 + r) * lda + first)
                else:
                    for r in range(depth):
                        for m in range(rows):
                            scratch[start + r * ROWS + m] = A[r0 + r, first + m]
            for j0 in range(c0, c1, width):
                columns = min(width, c1 - j0)
                if columns == width:
                    for r in range(depth):
                        copy_panel(scratch, r * width, D, (r0 + r) * ldd + j0 + shift)
                else:
                    for r in range(depth):
                        for j in range(columns):
                            scratch[r * width + j] = D[r0 + r, j0 + j + shift]
                for first in range(m0, m1, ROWS):
                    _tile(
                        C, first * ldc + j0, ldc, scratch, DEPTH * (width + first - m0), 1, ROWS,
                        scratch, 0, depth, min(ROWS, m1 - first), columns, accumulate or r0 > 0,
                    )  # fmt: skip

    return impl


@kernel
def weight_product(C, A, D, m0, m1, c0, c1, shift, scratch, accumulate):
    """`gemm_tn` as a kernel of its own."""
    gemm_tn(C, A, D, m0, m1, c0, c1, shift, scratch, accumulate)


@intrinsic(prefer_literal=False)
def _tile(typingctx, C, c0, ldc, A, a0, step_m, step_k, P, p0, K, rows, columns, accumulate):
    """One tile of C over the whole inner dimension.

    ``C[c0 + m*ldc + j] (+)= sum_k A[a0 + m*step_m + k*step_k] * P[p0 + k*panel + j]`` for
    m < rows <= ROWS and j < columns <= panel, indices counting elements from each array's start.
    """
    scalars = [types.intp] * 3
    sig = types.void(
        C, types.intp, types.intp, A, *scalars, P, types.intp, types.intp, types.intp, types.intp,
        types.boolean,
    )  # fmt: skip

    def codegen(context, builder, signature, args):
        c, c0, ldc, a, a0, step_m, step_k, p, p0, K, rows, columns, accumulate = args
        dtype = signature.args[0].dtype
        scalar = ir.DoubleType() if dtype.bitwidth == 64 else ir.FloatType()
        start = {}
        for name, ty, value in (("c", C, c), ("a", A, a), ("p", P, p)):
            start[name] = context.make_array(ty)(context, builder, value=value).data
        tile = _Tile(builder, scalar, VECTOR_BITS // dtype.bitwidth)
        tile.c = builder.gep(start["c"], [c0])
        tile.a = builder.gep(start["a"], [a0])
        tile.p = builder.gep(start["p"], [p0])
        tile.ldc, tile.step_m, tile.step_k, tile.K = ldc, step_m, step_k, K
        tile.columns, tile.accumulate = columns, accumulate
        tile.emit(rows)
        return context.get_dummy_value()

    return sig, codegen


class _Tile:
    """Writes the IR of a tile: a switch over the row count, full panels and panel tails apart."""

    def __init__(self, builder: ir.IRBuilder, scalar: ir.Type, lanes: int) -> None:
        self.builder, self.scalar, self.lanes = builder, scalar, lanes
        self.vector = ir.VectorType(scalar, lanes)
        self.index = ir.IntType(64)
        self.c = self.a = self.p = self.ldc = self.step_m = self.step_k = self.K = None
        self.columns = self.accumulate = None

    def emit(self, rows: ir.Value) -> None:
        b = self.builder
        done = b.append_basic_block("tile.done")
        full = b.icmp_signed(">=", self.columns, self.at(VECTORS * self.lanes))
        for whole in (True, False):
            entry = b.append_basic_block("tile.full" if whole else "tile.tail")
            if whole:
                tail = b.append_basic_block("tile.choose")
                b.cbranch(full, entry, tail)
            else:
                b.position_at_end(tail)
                b.branch(entry)
            b.position_at_end(entry)
            blocks = [b.append_basic_block(f"tile.{m + 1}") for m in range(ROWS)]
            switch = b.switch(rows, blocks[-1])
            for m, block in enumerate(blocks):
                if m < ROWS - 1:
                    switch.add_case(self.at(m + 1), block)
                b.position_at_end(block)
                if whole:
                    self.product(m + 1, VECTORS, 0, None)
                else:
                    self.tail(m + 1)
                b.branch(done)
        b.position_at_end(done)

    def tail(self, rows: int) -> None:
        """The last columns, one masked vector at a time."""
        b = self.builder
        loop, end = b.append_basic_block("tail.loop"), b.append_basic_block("tail.end")
        before = b.block
        b.branch(loop)
        b.position_at_end(loop)
        column = b.phi(self.index)
        column.add_incoming(self.at(0), before)
        left = b.sub(self.columns, column)
        self.product(rows, 1, column, left)
        after = b.add(column, self.at(self.lanes))
        column.add_incoming(after, b.block)
        b.cbranch(b.icmp_signed("<", after, self.columns), loop, end)
        b.position_at_end(end)

    def product(self, rows: int, vectors: int, column: Any, left: ir.Value | None) -> None:
        """``rows`` x ``vectors`` accumulators; ``left`` columns are real if it is given."""
        b = self.builder
        mask = self.mask(left) if left is not None else None
        offset = column if left is not None else self.at(0)
        c = [
            [self.step(self.c, self.sum(self.times(m, self.ldc), offset, v * self.lanes))
             for v in range(vectors)]
            for m in range(rows)
        ]  # fmt: skip
        p = b.gep(self.p, [offset])
        a = [b.gep(self.a, [self.times(m, self.step_m)]) for m in range(rows)]
        with_c, zero = b.append_basic_block("from.c"), b.append_basic_block("from.zero")
        head, loop, end = (b.append_basic_block(n) for n in ("k.head", "k.loop", "k.end"))
        b.cbranch(self.accumulate, with_c, zero)
        b.position_at_end(with_c)
        old = [[self.load(q, mask) for q in row] for row in c]
        b.branch(head)
        b.position_at_end(zero)
        b.branch(head)
        b.position_at_end(head)
        zeros = ir.Constant(self.vector, [0.0] * self.lanes)
        first = [[self.phi(self.vector, (v, with_c), (zeros, zero)) for v in row] for row in old]
        b.cbranch(b.icmp_signed(">", self.K, self.at(0)), loop, end)

        b.position_at_end(loop)
        k = self.phi(self.index, (self.at(0), head))
        acc = [[self.phi(self.vector, (v, head)) for v in row] for row in first]
        row_of_p = b.mul(k, self.at(VECTORS * self.lanes))
        shift = b.mul(k, self.step_k)
        ps = [
            self.load(self.step(p, self.sum(row_of_p, self.at(v * self.lanes))), None)
            for v in range(vectors)
        ]
        new = []
        for m in range(rows):
            x = self.splat(b.load(b.gep(a[m], [shift])))
            new.append([self.multiply_add(x, ps[v], acc[m][v]) for v in range(vectors)])
        k.add_incoming(b.add(k, self.at(1)), loop)
        for row, values in zip(acc, new, strict=True):
            for phi, value in zip(row, values, strict=True):
                phi.add_incoming(value, loop)
        b.cbranch(b.icmp_signed("<", k.incomings[1][0], self.K), loop, end)

        b.position_at_end(end)
        result = [
            [self.phi(self.vector, (first[m][v], head), (new[m][v], loop)) for v in range(vectors)]
            for m in range(rows)
        ]
        for row, pointers in zip(result, c, strict=True):
            for value, pointer in zip(row, pointers, strict=True):
                self.store(value, pointer, mask)

    def multiply_add(self, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        # Fused where the processor can, on every path of one target alike.
        b = self.builder
        return b.fadd(b.fmul(x, y, flags=("contract",)), z, flags=("contract",))

    def at(self, value: int) -> ir.Constant:
        return ir.Constant(self.index, value)

    def times(self, m: int, stride: ir.Value) -> ir.Value:
        return self.builder.mul(self.at(m), stride)

    def sum(self, *terms: Any) -> ir.Value:
        total = self.at(0)
        for term in terms:
            total = self.builder.add(total, self.at(term) if isinstance(term, int) else term)
        return total

    def step(self, pointer: ir.Value, offset: ir.Value) -> ir.Value:
        return self.builder.gep(pointer, [offset])

    def phi(self, kind: ir.Type, *incoming: tuple[ir.Value, ir.Block]) -> ir.Value:
        phi = self.builder.phi(kind)
        for value, block in incoming:
            phi.add_incoming(value, block)
        return phi

    def splat(self, x: ir.Value) -> ir.Value:
        b, undefined = self.builder, ir.Constant(self.vector, ir.Undefined)
        one = b.insert_element(undefined, x, ir.Constant(ir.IntType(32), 0))
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return b.shuffle_vector(one, undefined, lanes)

    def mask(self, left: ir.Value) -> ir.Value:
        b, kind = self.builder, ir.VectorType(self.index, self.lanes)
        undefined = ir.Constant(kind, ir.Undefined)
        one = b.insert_element(undefined, left, ir.Constant(ir.IntType(32), 0))
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return b.icmp_signed(
            "<", ir.Constant(kind, list(range(self.lanes))), b.shuffle_vector(one, undefined, lanes)
        )

    def load(self, pointer: ir.Value, mask: ir.Value | None) -> ir.Value:
        b = self.builder
        pointer = b.bitcast(pointer, ir.PointerType(self.vector))
        align = self.vector.element.intrinsic_name == "f64" and 8 or 4
        if mask is None:
            return b.load(pointer, align=align)
        bits = ir.VectorType(ir.IntType(1), self.lanes)
        kinds = [pointer.type, ir.IntType(32), bits, self.vector]
        load = self.intrinsic("load", ir.FunctionType(self.vector, kinds))
        zeros = ir.Constant(self.vector, [0.0] * self.lanes)
        return b.call(load, [pointer, ir.Constant(ir.IntType(32), align), mask, zeros])

    def store(self, value: ir.Value, pointer: ir.Value, mask: ir.Value | None) -> None:
        b = self.builder
        pointer = b.bitcast(pointer, ir.PointerType(self.vector))
        align = self.vector.element.intrinsic_name == "f64" and 8 or 4
        if mask is None:
            b.store(value, pointer, align=align)
            return
        bits = ir.VectorType(ir.IntType(1), self.lanes)
        kinds = [self.vector, pointer.type, ir.IntType(32), bits]
        store = self.intrinsic("store", ir.FunctionType(ir.VoidType(), kinds))
        b.call(store, [value, pointer, ir.Constant(ir.IntType(32), align), mask])

    def intrinsic(self, name: str, kind: ir.FunctionType) -> ir.Function:
        lanes = f"v{self.lanes}{self.vector.element.intrinsic_name}"
        full = f"llvm.masked.{name}.{lanes}.p0"
        return cgutils.get_or_insert_function(self.builder.module, kind, full)
