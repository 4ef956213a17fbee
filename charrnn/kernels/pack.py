"""Operands of products in panels: the layout that the register tile streams.

A packed (K, N) matrix consists of panels of some `panel` columns, each contiguous, so that a tile
reads it from its first to its last byte. The last panel is padded with zeros.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, overload

from charrnn.kernels.jit import VECTOR_BITS, kernel
from charrnn.kernels.tile import ROWS, VECTORS

LINE_BYTES = 64


def lanes(dtype: Any) -> int:
    """Elements of ``dtype`` in a vector."""
    return VECTOR_BITS // 8 // np.dtype(dtype).itemsize


def panel(dtype: Any) -> int:
    """Columns of a packed panel of ``dtype``."""
    return VECTORS * lanes(dtype)


def panels(columns: int, dtype: Any) -> int:
    """Panels that ``columns`` columns need."""
    return -(-columns // panel(dtype))


def packed(k: int, n: int, dtype: Any) -> np.ndarray:
    """Room for a packed (K, N) matrix: zeros of shape (panels, K, panel)."""
    return aligned_zeros((panels(n, dtype), k, panel(dtype)), dtype)


def aligned_zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros that begin with a cache line, so that no load of a vector crosses two."""
    size, itemsize = int(np.prod(shape)), np.dtype(dtype).itemsize
    buffer = np.zeros(size + LINE_BYTES // itemsize, dtype)
    start = -buffer.ctypes.data % LINE_BYTES // itemsize
    return buffer[start : start + size].reshape(shape)


def transpose(P, p, k, j, W, r, c):
    """``P[p, k : k + n, j : j + n] = W[r : r + n, c : c + n].T`` for the n lanes of a vector."""
    n = lanes(W.dtype)
    P[p, k : k + n, j : j + n] = W[r : r + n, c : c + n].T


@overload(transpose)
def _transpose(P, p, k, j, W, r, c):
    def impl(P, p, k, j, W, r, c):
        to = p * P.strides[0] + k * P.strides[1] + j * P.strides[2]
        source = r * W.strides[0] + c * W.strides[1]
        _vector_transpose(P, to, P.strides[1], W, source, W.strides[0])

    return impl


def _copier(count):
    """A function that copies ``count(dtype)`` elements of row r of W into row k of panel p."""

    def copy(P, p, k, W, r, c):
        P[p, k] = W[r, c : c + P.shape[2]]

    @intrinsic
    def vector_copy(typingctx, P, to, W, source):
        def codegen(context, builder, signature, args):
            n = count(str(signature.args[0].dtype))
            to, source = (
                _vector_pointer(context, builder, signature.args[i], args[i], args[i + 1], n)
                for i in (0, 2)
            )
            align = signature.args[0].dtype.bitwidth // 8
            builder.store(builder.load(source, align=align), to, align=align)
            return context.get_dummy_value()

        return types.void(P, types.intp, W, types.intp), codegen

    @overload(copy)
    def _copy(P, p, k, W, r, c):
        def impl(P, p, k, W, r, c):
            to = p * P.strides[0] + k * P.strides[1]
            vector_copy(P, to, W, r * W.strides[0] + c * W.strides[1])

        return impl

    return copy


copy_panel = _copier(panel)
copy_rows = _copier(lambda dtype: ROWS)


@kernel
def pack(P, W, n0, n1):
    """Pack the columns n0 <= n < n1 of W (K, N): ``P[p, k, j] = W[k, n0 + p * panel + j]``.

    The panels may have room for more than K rows.
    """
    width = P.shape[2]
    for p in range(P.shape[0]):
        c0 = n0 + p * width
        columns = min(width, n1 - c0)
        if columns == width:
            for k in range(W.shape[0]):
                copy_panel(P, p, k, W, k, c0)
        else:
            for k in range(W.shape[0]):
                for j in range(columns):
                    P[p, k, j] = W[k, c0 + j]


@kernel
def pack_rows(P, A, m0, m1):
    """Pack the columns m0 <= m < m1 of A for tiles: ``P[p, k, j] = A[k, m0 + p * ROWS + j]``.

    Some tiles side by side, so that a cache line of A is read once.
    """
    whole = (m1 - m0) // ROWS
    for p0 in range(0, whole, 8):
        for k in range(A.shape[0]):
            for p in range(p0, min(p0 + 8, whole)):
                copy_rows(P, p, k, A, k, m0 + p * ROWS)
    first = m0 + whole * ROWS
    for k in range(A.shape[0] if first < m1 else 0):
        for j in range(m1 - first):
            P[whole, k, j] = A[k, first + j]


@kernel
def pack_t(P, W, n0, n1):
    """Pack the transpose of the same columns: ``P[p, k, j] = W[p * panel + j, n0 + k]``."""
    width, n = P.shape[2], lanes_of(W)
    whole_k = (n1 - n0) // n * n
    for p in range(P.shape[0]):
        c0 = p * width
        columns = min(width, W.shape[0] - c0)
        whole = columns // n * n
        for k in range(0, whole_k, n):
            for j in range(0, whole, n):
                transpose(P, p, k, j, W, c0 + j, n0 + k)
        for j in range(columns):
            for k in range(whole_k if j < whole else 0, n1 - n0):
                P[p, k, j] = W[c0 + j, n0 + k]


def lanes_of(W):
    """Elements of W in a vector."""
    return lanes(W.dtype)


@overload(lanes_of)
def _lanes_of(W):
    n = lanes(str(W.dtype))
    return lambda W: n


def _vector_pointer(context, builder, array, value, offset, count):
    """Where the vector at a place ``offset`` bytes from the start of an array is."""
    dtype = str(array.dtype)
    scalar = {"float32": ir.FloatType(), "float64": ir.DoubleType()}[dtype]
    data = context.make_array(array)(context, builder, value=value).data
    byte = builder.gep(builder.bitcast(data, ir.PointerType(ir.IntType(8))), [offset])
    return builder.bitcast(byte, ir.PointerType(ir.VectorType(scalar, count)))


@intrinsic
def _vector_transpose(typingctx, P, to, p_row, W, source, w_row):
    """Copy a transposed square; places and rows in bytes."""

    def codegen(context, builder, signature, args):
        P, to, p_row, W, source, w_row = args

        def row(ty, array, start, i, size):
            offset = builder.add(start, builder.mul(size, ir.Constant(size.type, i)))
            return _vector_pointer(context, builder, ty, array, offset, n)

        kind_P, kind_W = signature.args[0], signature.args[3]
        n, align = lanes(str(kind_W.dtype)), kind_W.dtype.bitwidth // 8
        rows = [builder.load(row(kind_W, W, source, i, w_row), align=align) for i in range(n)]
        for i, value in enumerate(_transposed(builder, rows)):
            builder.store(value, row(kind_P, P, to, i, p_row), align=align)
        return context.get_dummy_value()

    return types.void(P, types.intp, types.intp, W, types.intp, types.intp), codegen


def _transposed(builder, rows):
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


def prefetch(D, r, c):
    """Ask for a panel's width of D's row r from column c on."""


@overload(prefetch)
def _prefetch(D, r, c):
    return lambda D, r, c: _prefetch_line(D, r * D.strides[0] + c * D.strides[1])


@intrinsic
def _prefetch_line(typingctx, D, offset):
    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, value=args[0]).data
        number, byte = ir.IntType(32), ir.PointerType(ir.IntType(8))
        kind = ir.FunctionType(ir.VoidType(), [byte] + [number] * 3)
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        pointer = builder.gep(builder.bitcast(data, byte), [args[1]])
        for line in range(0, VECTORS * VECTOR_BITS // 8, LINE_BYTES):
            at = builder.gep(pointer, [ir.Constant(ir.IntType(64), line)])
            builder.call(call, [at, *(ir.Constant(number, n) for n in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(D, types.intp), codegen
