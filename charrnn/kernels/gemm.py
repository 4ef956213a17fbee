"""Matrix products at the speed of the arithmetic units: a register tile and packed operands.

Weights are packed once per training step and used at every time step; `gemm_tn` packs both of its
operands. C is never padded: its last columns go through masked loads and stores. The result does
not depend on how rows and columns fall into tiles, and so not on how they are divided over threads.

All functions have a Python body that says in NumPy what they do; it runs when the compiler is off.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.core import types
from numba.extending import intrinsic, overload, register_jitable

from charrnn.kernels import amx
from charrnn.kernels.bfloat16 import PARTS, pairs, unpaired
from charrnn.kernels.jit import LINE_BYTES, kernel
from charrnn.kernels.pack import (
    pack,
    pack_rows,
    panel,
    plain,
    round_rows,
    steps,
    steps_of,
)
from charrnn.kernels.tile import (
    ASKED,
    ROWS,
    UNROLLED,
    VECTORS,
    by_matrix,
    operands_of,
    tile,
    together,
)
from charrnn.kernels.vector import ID

TOGETHER = tuple(together(max(rows, 1)) for rows in range(ROWS + 1))
DEPTH = 256
"""Rows of the inner dimension that `gemm_tn` packs at a time."""
WIDEST = 512
"""Columns of A that `gemm_tn` should get at the most: the second cache is to hold such a block."""
ID_BYTES = ID.width // 8
NEAR = 1 << 18
"""Bytes of A, and of panels, that `gemm` reads again and again: the second cache keeps both."""


class Layout(NamedTuple):
    """How products of some operands are made.

    Attributes
    ----------
    rows : most of a tile
    grain : rows that take a tile as long as one does
    deep : most rows of a panel that `gemm` takes at a time: more would outgrow the second cache
    apart : elements between steps of a row of packed A, which may lie in `squares`
    near : bytes of A that `gemm` reads again and again, beside panels
    both_ways : whether a tile goes through panels in either direction
    panels : of D that `gemm_tn` packs at a time
    """

    rows: int
    grain: int
    deep: int
    apart: int
    near: int
    both_ways: bool
    panels: int


class Rows(NamedTuple):
    """Matrices: the address of the first, and elements between them and between their rows."""

    first: int
    step: int
    row: int


class Added(NamedTuple):
    """`Rows` that a product is added to; all 0: none.

    ``ids`` and ``bias`` are addresses, or 0, of the rows' numbers (int32), and of what is added to
    each row.
    """

    first: int
    step: int
    row: int
    ids: int
    bias: int


BY_VECTOR = Layout(ROWS, 1, 1024, 1, NEAR, False, 2)
BY_MATRIX = Layout(amx.ROWS, amx.SIDE, 1536, amx.SIDE, 2 * NEAR, True, 8)
WHOLE = BY_MATRIX._replace(deep=2048, apart=amx.SIDE * PARTS // 2)


def layout(operands: Any) -> Layout:
    """That of ``operands``, or of what they are packed as."""
    if str(operands) == "whole":
        return WHOLE
    return BY_MATRIX if by_matrix(operands) else BY_VECTOR


def layout_of(P):
    """That of packed P."""
    return layout(operands_of(P))


@overload(layout_of)
def _layout_of(P):
    found = layout(operands_of(P))
    return lambda P: found


def scratch_size(k: int, dtype: Any) -> int:
    """Elements of scratch, of type `operand`, that `gemm_tn` needs for an A of ``k`` columns."""
    how = layout(dtype)
    rows = -(-k // how.rows) * how.rows
    return steps(DEPTH, dtype) * ((how.panels + 1) * panel(dtype) + rows)


def gemm(C, A, P, D, turn, half, code):
    """``C = D + A @ W`` for W packed as P; D may be C itself, one row (N,), or None, which is zero.

    C and D (M, N) and A (M, K), or (T, M, N) and (T, M, K), have contiguous rows; P is
    (panels, K, panel). If P holds pairs of bfloat16, A is rounded to such, too, some rows at a time
    in ``half``, and sums are float32; see `halves`. Who multiplies by P again and again counts the
    ``turn``: every other one goes through the panels backwards, and begins with those that the
    last one has left in the cache.
    """
    P = plain(P)
    if P.dtype == np.uint32:
        A, P = np.swapaxes(unpaired(pairs(np.swapaxes(A, -1, -2))), -1, -2), unpaired(P)
    W = np.ascontiguousarray(P.transpose(1, 0, 2)).reshape(P.shape[1], -1)[:, : C.shape[-1]]
    C[...] = A @ W if D is None else D + A @ W


def gemm_gathered(C, A, P, W, ids, b, turn, half, code):
    """`gemm` with ``D = W[ids] + b``, which is nowhere written; W (V, N), ids (M,) int32, b (N,).

    ``C = onehot @ W + b + A @ W'``: what `charrnn.kernels.gather` makes, and the product.
    """
    gemm(C, A, P, W[ids] + b, turn, half, code)


def gemm_tn(C, A, D, r0, r1, m0, m1, c0, c1, shift, scratch, kept, accumulate, code):
    """A weight gradient, or what the rows r0 <= r < r1 add to the part ``C[m0:m1, c0:c1]`` of it.

    ``C = A.T @ D[:, shift : shift + N]``, or ``+=``, for C (K, N), A (R, K) and D (R, at least
    shift + N) with contiguous rows. ``scratch`` has `scratch_size` elements; if it holds pairs of
    bfloat16, A and D are rounded to such, or are their parts. Rows are added in blocks of `DEPTH`
    from row r0, the last block first: the way back may come in several pieces. The end of a block
    asks for the D of the one before. ``kept`` says that the call before has left this D packed in
    the scratch: see `keeps`.
    """
    A, D = A[r0:r1, m0:m1], D[r0:r1, c0 + shift : c1 + shift]
    if scratch.dtype == np.uint32:
        A, D = unpaired(pairs(A)), unpaired(pairs(D))
    product = A.T @ D
    C[m0:m1, c0:c1] = C[m0:m1, c0:c1] + product if accumulate else product


def halves(P, rows, k):
    """Room in which `gemm` rounds ``rows`` rows of ``k`` elements for P; empty if it need not.

    Rows of one time step are the least. A kernel makes it once, before its time loop.
    """
    return np.empty(0 if P.dtype.kind == "f" else rows * steps_of(P, k), P.dtype)


def _rounded(P) -> types.Type | None:
    """Elements of what A is rounded to for products by P; None: it is multiplied as it is."""
    if operands_of(P) == "whole":
        return types.int32  # parts
    return None if isinstance(P.dtype, types.Float) else P.dtype


@intrinsic
def address(typingctx, array):
    """Where an array begins; its attribute `ctypes` would take seconds to compile."""

    def codegen(context, builder, signature, args):
        data = context.make_array(array)(context, builder, value=args[0]).data
        return builder.ptrtoint(data, context.get_value_type(types.intp))

    return types.intp(array), codegen


@overload(halves)
def _halves(P, rows, k):
    kind = _rounded(P)
    if kind is None:
        return lambda P, rows, k: np.empty(0, P.dtype)

    def impl(P, rows, k):
        size = padded(P, rows) * steps_of(np.empty(0, kind), k)
        room = np.empty(size + 16, kind)
        start = -address(room) % 64 // 4
        return room[start : start + size]

    return impl


def rows_of(x):
    """`Rows` of an array (M, N) or (T, M, N), in compiled code."""


@overload(rows_of)
def _rows_of(x):
    size = x.dtype.bitwidth // 8  # a constant, as ``itemsize`` is not
    if x.ndim == 2:
        return lambda x: Rows(address(x), 0, x.strides[0] // size)
    return lambda x: Rows(address(x), x.strides[0] // size, x.strides[1] // size)


def factor(A, P, half):
    """A (M, K) as `gemm` multiplies it by P: rounded in ``half`` if P is, for several products."""
    return A


@overload(factor)
def _factor(A, P, half):
    if _rounded(P) is None:
        return lambda A, P, half: A
    return lambda A, P, half: round_rows(half, np.expand_dims(A, 0))[0]


@overload(gemm)
def _gemm(C, A, P, D, turn, half, code):
    def nothing(C, A, P, D, turn, half, code):
        _into(C, A, P, Added(0, 0, 0, 0, 0), turn, half, code)

    def row(C, A, P, D, turn, half, code):
        _into(C, A, P, Added(address(D), 0, 0, 0, 0), turn, half, code)

    def matrix(C, A, P, D, turn, half, code):
        first, step, row = rows_of(D)
        _into(C, A, P, Added(first, step, row, 0, 0), turn, half, code)

    if isinstance(D, types.Array):
        return row if D.ndim == 1 else matrix
    return nothing


@overload(gemm_gathered)
def _gemm_gathered(C, A, P, W, ids, b, turn, half, code):
    def impl(C, A, P, W, ids, b, turn, half, code):
        first, step, row = rows_of(W)
        _into(C, A, P, Added(first, step, row, address(ids), address(b)), turn, half, code)

    return impl


def _into(C, A, P, added, turn, half, code):
    """`gemm` and `gemm_gathered`."""


@overload(_into)
def _into_overload(C, A, P, added, turn, half, code):
    def one(C, A, P, added, turn, half, code):
        M, N = C.shape
        _product(rows_of(C), rows_of(A), P, N, 1, M, added, turn, code)

    def some(C, A, P, added, turn, half, code):
        (T, M, N), c, a = C.shape, rows_of(C), rows_of(A)
        if M == 1:  # steps as rows: tiles of one row are slow
            c, a = Rows(c.first, 0, c.step), Rows(a.first, 0, a.step)
            added = Added(added.first, 0, added.step, 0, 0)
            T, M = 1, T
        _product(c, a, P, N, T, M, added, turn, code)

    def one_rounded(C, A, P, added, turn, half, code):
        _into(C, factor(A, P, half), P, added, turn, half, code)

    def some_rounded(C, A, P, added, turn, half, code):
        rows = 1 if A.shape[1] == 1 else padded(P, A.shape[1])
        steps = max(1, half.size // max(1, rows * steps_of(half, A.shape[2])))
        first, step, row, ids, bias = added
        for t0 in range(0, A.shape[0], steps):
            t1 = min(t0 + steps, A.shape[0])
            some = Added(first + t0 * step * C.itemsize, step, row, ids, bias)
            _into(C[t0:t1], round_rows(half, A[t0:t1]), P, some, turn, half, code)

    if _rounded(P) in (None, A.dtype):
        return one if A.ndim == 2 else some
    return one_rounded if A.ndim == 2 else some_rounded


@kernel
def _product(C, A, P, N, T, M, added, turn, code):
    """`gemm` for T matrices of M rows and N columns that share P; C and A are `Rows`.

    Some steps, whose A the second cache holds, go through all panels before the next ones do, the
    other way; some panels stay in it for all their rows, and each call of `tile` goes through
    these, while it asks for a share of those that come next. Rows are shared out evenly over the
    tiles, because one of few rows is slower.
    """
    K, p_step, size = P.shape[1], P.shape[1] * P.shape[2], P.itemsize
    how = layout_of(P)
    tiles = -(-M // how.rows)
    deep = max(1, min(K, how.deep))
    group = P.shape[2] * max(
        NEAR // (deep * P.shape[2] * size), TOGETHER[min(-(-M // max(tiles, 1)), ROWS)]
    )
    if how.both_ways and T == 1 and tiles == 1 and how.deep >= K:
        group = max(N, 1)
    groups = max(min(N, 1), -(-(N - P.shape[2] // VECTORS) // group))
    together = max(1, how.near // max(1, M * deep * size))
    pieces = groups * -(-K // how.deep)
    for t0 in range(0, T, together):
        back = turn % 2 == 1
        t1 = min(t0 + together, T)
        for n in range(pieces):
            j0, k0, columns, k, p0 = _piece(P, N, group, groups, n, turn)
            next, share, pace = address(P), 0, 0
            if n + 1 < pieces:
                calls, turns = (t1 - t0) * tiles, -(-columns // P.shape[2]) * (k // UNROLLED)
                next, share, pace = _coming(P, N, group, groups, n + 1, turn, calls, turns)
            for t in range(t0, t1):
                m = 0
                for left in range(tiles, 0, -1):
                    rows = min(-(-(M - m) // (left * how.grain)) * how.grain, M - m)
                    c = C.first + (t * C.step + m * C.row + j0) * size
                    a = A.first + (t * A.step + m * A.row + k0 * how.apart) * size
                    d, d_row, ids, bias = c, C.row, 0, 0
                    if k0 == 0:
                        d, d_row, ids, bias = _beside(added, t, m, j0, size)
                    tile(
                        code, P, c, C.row, d, d_row, a, A.row, p0, p_step, k, rows, columns,
                        ids, bias, back, next, pace,
                    )  # fmt: skip
                    m += rows
                    next += share
        turn += 1


@register_jitable
def _beside(added, t, m, j, size):
    """What `tile` adds to the rows from m on and the columns from j on of matrix t."""
    first, step, row, ids, bias = added
    if first:
        first += (t * step + (0 if ids else m * row) + j) * size
    return first, row, ids + m * ID_BYTES if ids else 0, bias + j * size if bias else 0


@kernel
def _piece(P, N, group, groups, n, turn):
    """What `_product` takes of P at a time: first column and row, how many, and where it begins."""
    K, width, deep = P.shape[1], P.shape[2], layout_of(P).deep
    depths = -(-K // deep)
    i, k0 = n // depths, n % depths * deep
    j0 = (groups - 1 - i if turn % 2 else i) * group
    return j0, k0, _columns(N - j0, group, width), min(deep, K - k0), (j0 // width * K + k0) * width


@kernel
def _coming(P, N, group, groups, n, turn, calls, turns):
    """Where piece n begins, and how many bytes of it a call asks for, and a turn of its loop.

    There are so many calls, of so many turns each, until it is needed. Bytes are those from its
    beginning on: of panels cut in depth, which lie apart, it is right for the first one.
    """
    _, _, columns, k, p0 = _piece(P, N, group, groups, n, turn)
    size = -(-columns // P.shape[2]) * k * P.shape[2] * P.itemsize
    share = -(-size // max(1, calls))
    pace = min(-(-share // max(1, turns)), ASKED * LINE_BYTES)
    return address(P) + p0 * P.itemsize, share, pace


@register_jitable
def padded(P, m):
    """``m`` rows with those that the last tile for P reads, too."""
    rows = layout_of(P).rows
    return -(-m // rows) * rows


@kernel
def _columns(left, group, width):
    """How many of the columns left to give a tile: a group, and a last vector with the last."""
    return left if left <= group + width // VECTORS else group


def keeps(operands: Any, rows: int, columns: int) -> bool:
    """Whether `gemm_tn` leaves all of its D packed in the scratch."""
    return rows <= DEPTH and columns <= layout(operands).panels * panel(operands)


@overload(gemm_tn)
def _gemm_tn(C, A, D, r0, r1, m0, m1, c0, c1, shift, scratch, kept, accumulate, code):
    how, width = layout(str(scratch.dtype)), panel(str(D.dtype))
    most, group = how.rows, how.panels * width

    def impl(C, A, D, r0, r1, m0, m1, c0, c1, shift, scratch, kept, accumulate, code):
        out, K = rows_of(C), steps_of(scratch, DEPTH)
        room = K * (group + width)
        A_rows = scratch[room : room + padded(scratch, m1 - m0) * K].reshape(-1, K)
        newest = r0 + (r1 - r0 - 1) // DEPTH * DEPTH
        for r in range(newest, r0 - 1, -DEPTH):
            depth = min(DEPTH, r1 - r)
            k = steps_of(scratch, depth)
            D_panels = scratch[: room // K * k].reshape(-1, k, width)
            pack_rows(A_rows, A[r : r + depth], m0, m1)
            before = D[max(0, r - DEPTH) : r, c0 + shift : c1 + shift]
            left = -(-(m1 - m0) // most) * max(1, -(-(c1 - c0 - width // VECTORS) // group))
            j0 = c0
            while j0 < c1:
                columns = _columns(c1 - j0, group, width)
                P, n = D_panels[: -(-columns // width)], j0 + shift
                if not kept:
                    pack(P, D[r : r + depth], n, n + columns)
                for m in range(m0, m1, most):
                    next, pace = address(P), 0
                    if how.apart == 1:  # the matrix unit loads no faster than it can
                        left -= 1
                        next, pace = _ahead(before, left, k // UNROLLED, P)
                    c = out.first + (m * out.row + j0) * C.itemsize
                    d = c if accumulate or r < newest else 0
                    a = address(A_rows) + (m - m0) * K * A_rows.itemsize
                    tile(
                        code, P, c, out.row, d, out.row, a, K, 0, k * width, k, min(most, m1 - m),
                        columns, 0, 0, False, next, pace,
                    )  # fmt: skip
                j0 += columns

    return impl


@kernel
def _ahead(x, left, turns, other):
    """What a tile asks for of x (R, N), an `ASKED` lines' width of some rows, and their distance.

    It has so many turns of its loop, and so many tiles are ``left``: the last ones ask, because
    what comes too early has left the cache again. The others ask for ``other``, which is near.
    """
    width = ASKED * LINE_BYTES
    down, across = -(-x.shape[0] // max(1, turns)), -(-x.shape[1] * x.itemsize // width)
    if left >= down * across:
        return address(other), 0
    first = left % down * turns * x.strides[0] + left // down * width
    return address(x) + first, x.strides[0]


@kernel
def weight_product(C, A, D, r0, r1, m0, m1, c0, c1, shift, scratch, kept, accumulate, code):
    """`gemm_tn` as a kernel of its own."""
    gemm_tn(C, A, D, r0, r1, m0, m1, c0, c1, shift, scratch, kept, accumulate, code)
