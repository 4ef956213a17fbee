"""Operands of products in panels: the layout that the register tile streams.

A packed (K, N) matrix consists of panels of some `panel` columns, each contiguous, so that a tile
reads it from its first to its last byte. What lies in the last panel beyond N may be anything.

For a dtype of "bfloat16" the elements are pairs of rows (see `bfloat16.py`): K is half as much.
Where the matrix unit multiplies them, or "parts" of float32 numbers, they lie in `squares` instead.
"whole" numbers are float32 in panels of which that unit's tile makes the parts: they are packed
like others, and a fourth axis of one element tells the products.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload

from charrnn.kernels import amx, squares
from charrnn.kernels.bfloat16 import PARTS, emit_neighbours, emit_pair, pair, pairs
from charrnn.kernels.jit import HAS_AMX, LINE_BYTES, VECTOR_BITS, kernel
from charrnn.kernels.tile import VECTORS, by_matrix
from charrnn.kernels.vector import Emitter, transposed

GRAIN = amx.SIDE if HAS_AMX else 1
"""Pairs that an inner dimension is a multiple of; those beyond the last are zero."""


def operand(dtype: Any) -> np.dtype[Any]:
    """What packed operands of products in ``dtype`` consist of: pairs for "bfloat16"."""
    packed = {"bfloat16": np.uint32, "parts": np.int32, "whole": np.float32}
    return np.dtype(packed.get(str(dtype), dtype))


def lanes(dtype: Any) -> int:
    """Elements in a vector."""
    return VECTOR_BITS // 8 // operand(dtype).itemsize


def steps(k: int, dtype: Any) -> int:
    """Packed rows of an inner dimension of ``k``; the matrix unit takes `amx.SIDE` at a time."""
    if str(dtype) == "whole":
        return -(-k // (2 * GRAIN)) * 2 * GRAIN
    if operand(dtype).kind == "f":
        return k
    parts = PARTS if operand(dtype) == np.int32 else 1
    return -(-k // (2 * GRAIN)) * GRAIN * parts


def panel(dtype: Any) -> int:
    """Columns of a packed panel of ``dtype``."""
    return VECTORS * lanes(dtype)


def panels(columns: int, dtype: Any) -> int:
    """Panels that ``columns`` columns need."""
    return -(-columns // panel(dtype))


def plain(P: np.ndarray) -> np.ndarray:
    """Packed operands as they are packed: whole numbers like others."""
    return P.reshape(P.shape[:3])


def packed(k: int, n: int, dtype: Any) -> np.ndarray:
    """Room for a packed (K, N) matrix: zeros of shape (panels, K, panel)."""
    (array,) = in_one_place(dtype, (k, n))
    return array


def in_one_place(
    dtype: Any, *shapes: tuple[int, int], memory: np.ndarray | None = None
) -> list[np.ndarray]:
    """Room for packed matrices (K, N), one after the other: all begin where the memory does.

    ``memory`` consists of bytes; if it is None or too small there is new one, of zeros.
    """
    more = (1,) if str(dtype) == "whole" else ()
    found = [(panels(n, dtype), steps(k, dtype), panel(dtype), *more) for k, n in shapes]
    size = max(int(np.prod(shape)) for shape in found)
    kind = operand(dtype)
    if memory is None or memory.nbytes < size * kind.itemsize:
        memory = aligned_zeros((size,), kind)
    flat = memory.view(kind)
    return [flat[: int(np.prod(shape))].reshape(shape) for shape in found]


def aligned_zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros that begin with a cache line, so that no load of a vector crosses two.

    NumPy's own large arrays begin 16 bytes behind one.
    """
    size, itemsize = int(np.prod(shape)), np.dtype(dtype).itemsize
    buffer = np.zeros(size + LINE_BYTES // itemsize, dtype)
    start = -buffer.ctypes.data % LINE_BYTES // itemsize
    return buffer[start : start + size].reshape(shape)


def put_panel(P, p, i, W, c):
    """Fill row i of a whole panel; see `put_part`."""
    put_part(P, p, i, W, c, P.shape[2])


@overload(put_panel)
def _put_panel(P, p, i, W, c):
    copy, copy_pair = (make(panel(str(W.dtype))) for make in (_vector_copy, _vector_pair))

    def impl(P, p, i, W, c):
        to = p * P.strides[0] + i * P.strides[1]
        copy(P, to, W, i * W.strides[0] + c * W.strides[1])

    def impl_pairs(P, p, i, W, c):
        to = p * P.strides[0] + i * P.strides[1]
        copy_pair(P, to, W, 2 * i * W.strides[0] + c * W.strides[1], W.strides[0])

    return impl if P.dtype == W.dtype else impl_pairs


def _vector_copy(n):
    @intrinsic
    def copy(typingctx, P, to, W, source):
        """Copy a vector; places in bytes from the arrays' starts."""

        def codegen(context, builder, signature, args):
            place = [_vector_pointer(context, builder, signature, args, i, n) for i in (0, 2)]
            align = signature.args[0].dtype.bitwidth // 8
            builder.store(builder.load(place[1], align=align), place[0], align=align)
            return context.get_dummy_value()

        return types.void(P, types.intp, W, types.intp), codegen

    return copy


def _vector_pair(n):
    @intrinsic
    def copy_pair(typingctx, P, to, W, source, row):
        """Round two vectors, one a row behind the other, to pairs."""

        def codegen(context, builder, signature, args):
            b = builder
            to = _vector_pointer(context, b, signature, args, 0, n)
            first = _vector_pointer(context, b, signature, args, 2, n)
            args = [*args[:3], b.add(args[3], args[4])]
            second = _vector_pointer(context, b, signature, args, 2, n)
            low, high = b.load(first, align=4), b.load(second, align=4)
            b.store(emit_pair(b, low, high), to, align=4)
            return context.get_dummy_value()

        return types.void(P, types.intp, W, types.intp, types.intp), codegen

    return copy_pair


def steps_of(P, k):
    """Rows of P that ``k`` rows are packed in."""
    return steps(k, P.dtype)


@overload(steps_of)
def _steps_of(P, k):
    if isinstance(P.dtype, types.Float):
        return lambda P, k: k
    unit = steps(1, str(P.dtype))
    return lambda P, k: (k + 2 * GRAIN - 1) // (2 * GRAIN) * unit


def whole_steps(P, k):
    """Rows of P that ``k`` rows fill."""
    return k // 2 if P.dtype == np.uint32 else k


@overload(whole_steps)
def _whole_steps(P, k):
    if P.dtype == types.uint32:
        return lambda P, k: k // 2
    return lambda P, k: k


@kernel
def put_part(P, p, i, W, c, columns):
    """Fill row i of a panel from W's columns c <= n < c + columns."""
    for j in range(columns):
        P[p, i, j] = element(P, W[:, c + j], i)


@kernel
def pack(P, W, n0, n1):
    """Pack the columns n0 <= n < n1 of W (K, N): ``P[p, k, j] = W[k, n0 + p * panel + j]``.

    The panels may have room for more than K rows: these become zero.
    """
    return _pack(P, W, n0, n1)


def _pack(P, W, n0, n1):
    width, K = P.shape[2], W.shape[0]
    for p in range(P.shape[0]):
        c0 = n0 + p * width
        columns = min(width, n1 - c0)
        whole = whole_steps(P, K) if columns == width else 0  # the last may lack its partner
        for i in range(whole):
            put_panel(P, p, i, W, c0)
        for i in range(whole, steps_of(P, K)):
            put_part(P, p, i, W, c0, columns)
        P[p, steps_of(P, K) :] = 0


@overload(_pack)
def _pack_overload(P, W, n0, n1):
    return squares.pack if by_matrix(P.dtype) else _pack


@kernel
def pack_rows(P, A, m0, m1):
    """Pack the columns m0 <= m < m1 of A (K, at least m1) as rows: ``P[m - m0, k] = A[k, m]``.

    The last squares overlap those before them, so that all rows and steps lie in some.
    """
    return _pack_rows(P, A, m0, m1)


def _pack_rows(P, A, m0, m1):
    n, M, whole = lanes_of(A), m1 - m0, whole_steps(P, A.shape[0])
    if n > M or whole < n:
        whole = 0
    for i in range(0, whole, n):
        for m in range(0, M, n):
            put_square(P, min(m, M - n), min(i, whole - n), A, m0 + min(m, M - n))
    for m in range(M):
        for i in range(whole, steps_of(P, A.shape[0])):
            P[m, i] = element(P, A[:, m0 + m], i)


@overload(_pack_rows)
def _pack_rows_overload(P, A, m0, m1):
    return squares.pack_rows if by_matrix(P.dtype) else _pack_rows


@kernel
def pack_t(P, W, n0, n1):
    """Pack the transpose of the same columns: ``P[p, k, j] = W[p * panel + j, n0 + k]``."""
    return _pack_t(P, W, n0, n1)


def _pack_t(P, W, n0, n1):
    width, n, K = P.shape[2], lanes_of(W), steps_of(P, n1 - n0)
    whole_k = (n1 - n0) // n * n
    for p in range(P.shape[0]):
        c0 = p * width
        columns = min(width, W.shape[0] - c0)
        whole = columns // n * n
        for k in range(0, whole_k, n):
            for j in range(0, whole, n):
                transpose(P, p, k, j, W, c0 + j, n0 + k)
        for j in range(columns):
            for i in range(whole_steps(P, whole_k) if j < whole else 0, K):
                P[p, i, j] = element(P, W[c0 + j, n0:n1], i)
        P[p, K:] = 0


@overload(_pack_t)
def _pack_t_overload(P, W, n0, n1):
    return squares.pack_t if by_matrix(P.dtype) else _pack_t


@kernel
def round_rows(half, A):
    """The rows of A (T, M, K) as pairs: a part of ``half`` of shape (T, M, `steps` of K)."""
    return _round_rows(half, A)


def _round_rows(half, A):
    T, M, K = A.shape
    n, size = lanes_of(half), steps_of(half, K)
    rounded = half[: T * M * size].reshape(T, M, size)
    for t in range(T):
        for m in range(M):
            for i in range(0, size, n):
                put_pairs(rounded, t, m, i, A)
    return rounded


@overload(_round_rows)
def _round_rows_overload(half, A):
    return squares.round_rows if by_matrix(half.dtype) else _round_rows


def put_pairs(rounded, t, m, i, A):
    """Round the pairs i to i + n of a row, n the lanes of a vector, or those up to its end."""
    n = lanes_of(rounded)
    row = pairs(A[t, m, 2 * i : 2 * (i + n)].reshape(-1, 1))[:, 0]
    rounded[t, m, i : i + len(row)] = row


@overload(put_pairs)
def _put_pairs(rounded, t, m, i, A):
    def impl(rounded, t, m, i, A):
        to = t * rounded.strides[0] + m * rounded.strides[1] + i * rounded.strides[2]
        source = t * A.strides[0] + m * A.strides[1] + 2 * i * A.strides[2]
        _vector_pairs(rounded, to, A, source, rounded.shape[2] - i, A.shape[2] - 2 * i)

    return impl


@intrinsic
def _vector_pairs(typingctx, rounded, to, A, source, room, left):
    """Round neighbours, of which so many are left, to pairs, for which there is so much room."""

    def codegen(context, builder, signature, args):
        b, n = builder, lanes("float32")
        e = Emitter(b, ir.FloatType(), n)
        to, source = (_vector_pointer(context, b, signature, args, i, n) for i in (0, 2))
        room, left = args[4:]
        second = b.gep(source, [ir.Constant(ir.IntType(32), 1)])
        whole = b.icmp_signed(">=", left, e.at(2 * n))
        with b.if_else(whole) as (all_of_them, some):
            with all_of_them:
                loaded = [e.load(x, e.vector) for x in (source, second)]
                b.store(emit_neighbours(b, *loaded), to, align=4)
            with some:
                masks = e.mask(left), e.mask(b.sub(left, e.at(n)))
                loaded = [
                    e.load(x, e.vector, mask)
                    for x, mask in zip((source, second), masks, strict=True)
                ]
                pairs = b.bitcast(emit_neighbours(b, *loaded), e.vector)
                e.store(pairs, to, e.mask(room))
        return context.get_dummy_value()

    return types.void(rounded, types.intp, A, *[types.intp] * 3), codegen


def _packed_rows(P, W):
    """The rows of W as P holds them."""
    return pairs(W) if P.dtype == np.uint32 else W


def element(P, row, i):
    """Element i of a row as P holds it; zero beyond the last."""
    elements = _packed_rows(P, row[:, np.newaxis])
    return elements[i, 0] if i < len(elements) else P.dtype.type(0)


@overload(element)
def _element(P, row, i):
    if P.dtype == row.dtype:
        return lambda P, row, i: row[i]

    def impl(P, row, i):
        zero = row.dtype.type(0)
        low = row[2 * i] if 2 * i < row.size else zero
        return pair(low, row[2 * i + 1] if 2 * i + 1 < row.size else zero)

    return impl


def transpose(P, p, k, j, W, r, c):
    """Pack the square ``W[r : r + n, c : c + n].T``, n the lanes of a vector, from step k on."""
    n = lanes(W.dtype)
    square = _packed_rows(P, W[r : r + n, c : c + n].T)
    first = whole_steps(P, k)
    P[p, first : first + len(square), j : j + n] = square


@overload(transpose)
def _transpose(P, p, k, j, W, r, c):
    def impl(P, p, k, j, W, r, c):
        to = p * P.strides[0] + whole_steps(P, k) * P.strides[1] + j * P.strides[2]
        source = r * W.strides[0] + c * W.strides[1]
        _turned_then_paired(P, to, P.strides[1], W, source, W.strides[0])

    return impl


def put_square(P, m, i, A, c):
    """Pack n columns of A, n the lanes of a vector, from c on as rows of P: n steps from i on."""
    n, size = lanes_of(A), 2 if P.dtype == np.uint32 else 1
    P[m : m + n, i : i + n] = _packed_rows(P, A[size * i : size * (i + n), c : c + n]).T


@overload(put_square)
def _put_square(P, m, i, A, c):
    size = 1 if P.dtype == A.dtype else 2

    def impl(P, m, i, A, c):
        to = m * P.strides[0] + i * P.strides[1]
        source = size * i * A.strides[0] + c * A.strides[1]
        _paired_then_turned(P, to, P.strides[0], A, source, A.strides[0])

    return impl


def lanes_of(W):
    """Elements of W in a vector."""
    return lanes(W.dtype)


@overload(lanes_of)
def _lanes_of(W):
    n = lanes(str(W.dtype))
    return lambda W: n


def _vector_pointer(context, builder, signature, args, i, count):
    """The vector of ``count`` elements that begins args[i + 1] bytes behind array args[i]."""
    data = context.make_array(signature.args[i])(context, builder, value=args[i]).data
    byte = builder.gep(builder.bitcast(data, ir.PointerType(ir.IntType(8))), [args[i + 1]])
    return builder.bitcast(byte, ir.PointerType(ir.VectorType(data.type.pointee, count)))


def _turner(pairs_first):
    """What packs a transposed square; pairs are made of rows before it is turned, or after."""

    @intrinsic
    def turn(typingctx, P, to, p_row, W, source, w_row):
        """Places and rows in bytes."""

        def codegen(context, builder, signature, args):
            b, W = builder, signature.args[3]
            n, align = lanes(str(W.dtype)), W.dtype.bitwidth // 8
            mixed = signature.args[0].dtype != W.dtype

            def row(first, i):  # of the array that is argument ``first``
                start, size = args[first + 1 : first + 3]
                offset = b.add(start, b.mul(size, ir.Constant(size.type, i)))
                values = [*args[: first + 1], offset]
                return _vector_pointer(context, b, signature, values, first, n)

            def paired(rows):
                return [emit_pair(b, *rows[i : i + 2]) for i in range(0, len(rows), 2)]

            count = 2 * n if mixed and pairs_first else n
            rows = [b.load(row(3, i), align=align) for i in range(count)]
            if mixed and pairs_first:
                rows = transposed(b, paired(rows))
            else:
                rows = paired(transposed(b, rows)) if mixed else transposed(b, rows)
            for i, value in enumerate(rows):
                b.store(value, row(0, i), align=align)
            return context.get_dummy_value()

        return types.void(P, types.intp, types.intp, W, types.intp, types.intp), codegen

    return turn


_paired_then_turned, _turned_then_paired = _turner(True), _turner(False)
