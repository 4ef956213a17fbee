"""Matrix products at the speed of the arithmetic units: a register tile and packed operands.

Weights are packed once per training step and used at every time step; `gemm_tn` packs both of its
operands. C is never padded: its last columns go through masked loads and stores. The result does
not depend on how rows and columns fall into tiles, and so not on how they are divided over threads.

All functions have a Python body that says in NumPy what they do; it runs when the compiler is off.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import types
from numba.extending import overload

from charrnn.kernels.bfloat16 import pairs, unpaired
from charrnn.kernels.jit import kernel
from charrnn.kernels.pack import pack, pack_rows, panel, prefetch, round_rows, steps, steps_of
from charrnn.kernels.tile import ROWS, VECTORS, tile, together

TOGETHER = tuple(together(max(rows, 1)) for rows in range(ROWS + 1))
DEPTH = 256
"""Rows of the inner dimension that `gemm_tn` packs at a time."""


def scratch_size(k: int, dtype: Any) -> int:
    """Elements of scratch, of type `operand`, that `gemm_tn` needs for an A of ``k`` columns."""
    return steps(DEPTH, dtype) * (2 * panel(dtype) + -(-k // ROWS) * ROWS)


def gemm(C, A, P, accumulate, half, code):
    """``C = A @ W``, or ``C += A @ W``, for W packed as P.

    C (M, N) and A (M, K), or (T, M, N) and (T, M, K), have contiguous rows; P is
    (panels, K, panel). If P holds pairs of bfloat16, A is rounded to such, too, some rows at a time
    in ``half``, and sums are float32; see `halves`.
    """
    if P.dtype == np.uint32:
        A, P = np.swapaxes(unpaired(pairs(np.swapaxes(A, -1, -2))), -1, -2), unpaired(P)
    W = np.ascontiguousarray(P.transpose(1, 0, 2)).reshape(P.shape[1], -1)[:, : C.shape[-1]]
    product = A @ W
    C[...] = C + product if accumulate else product


def gemm_tn(C, A, D, m0, m1, c0, c1, shift, scratch, accumulate, code):
    """A weight gradient, or the part ``C[m0:m1, c0:c1]`` of it.

    ``C = A.T @ D[:, shift : shift + N]``, or ``+=``, for C (K, N), A (R, K) and D (R, at least
    shift + N) with contiguous rows; R is all rows of a window. ``scratch`` has `scratch_size`
    elements; if it holds pairs of bfloat16, A and D are rounded to such. Rows are added in blocks
    of `DEPTH` from row 0, the last block first: the way back may come in several pieces.
    """
    A, D = A[:, m0:m1], D[:, c0 + shift : c1 + shift]
    if scratch.dtype == np.uint32:
        A, D = unpaired(pairs(A)), unpaired(pairs(D))
    product = A.T @ D
    C[m0:m1, c0:c1] = C[m0:m1, c0:c1] + product if accumulate else product


def halves(P, rows, k):
    """Room in which `gemm` rounds ``rows`` rows of ``k`` elements for P; empty if it need not.

    Rows of one time step are the least. A kernel makes it once, before its time loop.
    """
    return np.empty(rows * -(-k // 2) if P.dtype == np.uint32 else 0, np.uint32)


@overload(halves)
def _halves(P, rows, k):
    if P.dtype == types.uint32:
        return lambda P, rows, k: np.empty(rows * ((k + 1) // 2), np.uint32)
    return lambda P, rows, k: np.empty(0, np.uint32)


@overload(gemm)
def _gemm(C, A, P, accumulate, half, code):
    def impl_2d(C, A, P, accumulate, half, code):
        C, A = np.expand_dims(C, 0), np.expand_dims(A, 0)
        _product(C, A, P, 1, C.shape[1], 0, C.strides[1], 0, A.strides[1], accumulate, code)

    def impl_2d_pairs(C, A, P, accumulate, half, code):
        gemm(np.expand_dims(C, 0), np.expand_dims(A, 0), P, accumulate, half, code)

    def impl_pairs(C, A, P, accumulate, half, code):
        steps = max(1, half.size // max(1, A.shape[1] * P.shape[1]))
        for t0 in range(0, A.shape[0], steps):
            t1 = min(t0 + steps, A.shape[0])
            gemm(C[t0:t1], round_rows(half, A[t0:t1]), P, accumulate, half, code)

    def impl(C, A, P, accumulate, half, code):
        T, M, _ = C.shape
        row = 1
        if M == 1:  # steps as rows: tiles of one row are slow
            T, M, row = 1, T, 0
        _product(
            C, A, P, T, M, C.strides[0], C.strides[row], A.strides[0], A.strides[row], accumulate,
            code,
        )  # fmt: skip

    if P.dtype == A.dtype:
        return impl_2d if A.ndim == 2 else impl
    return impl_2d_pairs if A.ndim == 2 else impl_pairs


@kernel
def _product(C, A, P, T, M, c_step, c_row, a_step, a_row, accumulate, code):
    """`gemm` for T matrices that share P; steps between matrices and rows in bytes.

    Panels are the outer loop: one stays in the cache for all rows. Rows are shared out evenly over
    the tiles, because one of few rows is slower.
    """
    c_step, c_row = c_step // C.itemsize, c_row // C.itemsize
    a_step, a_row = a_step // A.itemsize, a_row // A.itemsize
    N, K, p_step = C.shape[2], P.shape[1], P.shape[1] * P.shape[2]
    tiles = -(-M // ROWS)
    group = P.shape[2] * TOGETHER[-(-M // max(tiles, 1))]
    j0 = 0
    while j0 < N:
        columns = _columns(N - j0, group, P.shape[2])
        p0 = j0 // P.shape[2] * p_step
        for t in range(T):
            m = 0
            for left in range(tiles, 0, -1):
                rows = -(-(M - m) // left)
                tile(
                    code, C, t * c_step + m * c_row + j0, c_row, A, t * a_step + m * a_row, a_row,
                    1, P, p0, p_step, K, rows, columns, accumulate,
                )  # fmt: skip
                m += rows
        j0 += columns


@kernel
def _columns(left, group, width):
    """How many of the columns left to give a tile: a group, and a last vector with the last."""
    return left if left <= group + width // VECTORS else group


@overload(gemm_tn)
def _gemm_tn(C, A, D, m0, m1, c0, c1, shift, scratch, accumulate, code):
    width = panel(str(D.dtype))

    def impl(C, A, D, m0, m1, c0, c1, shift, scratch, accumulate, code):
        ldc = C.strides[0] // C.itemsize
        R, tiles, K = A.shape[0], -(-(m1 - m0) // ROWS), steps_of(scratch, DEPTH)
        room = 2 * K * width
        D_panels = scratch[:room].reshape(2, K, width)
        A_tiles = scratch[room : room + tiles * K * ROWS].reshape(tiles, K, ROWS)
        ahead = -(-DEPTH // max(1, tiles))
        newest = (R - 1) // DEPTH * DEPTH
        for r0 in range(newest, -1, -DEPTH):
            depth = min(DEPTH, R - r0)
            pack_rows(A_tiles, A[r0 : r0 + depth], m0, m1)
            j0 = c0
            while j0 < c1:
                columns = _columns(c1 - j0, width, width)
                P, n = D_panels[: -(-columns // width)], j0 + shift
                pack(P, D[r0 : r0 + depth], n, n + columns)
                next_r, next_j = (r0, j0 + columns) if j0 + columns < c1 else (r0 - DEPTH, c0)
                last, next_j = min(next_r + DEPTH, R) if next_r >= 0 else next_r, next_j + shift
                for i in range(tiles):
                    m = m0 + i * ROWS
                    for r in range(next_r + i * ahead, min(next_r + (i + 1) * ahead, last)):
                        prefetch(D, r, next_j)
                    tile(
                        code, C, m * ldc + j0, ldc, A_tiles, i * K * ROWS, 1, ROWS,
                        P, 0, K * width, steps_of(scratch, depth), min(ROWS, m1 - m), columns,
                        accumulate or r0 < newest,
                    )  # fmt: skip
                j0 += columns

    return impl


@kernel
def weight_product(C, A, D, m0, m1, c0, c1, shift, scratch, accumulate, code):
    """`gemm_tn` as a kernel of its own."""
    gemm_tn(C, A, D, m0, m1, c0, c1, shift, scratch, accumulate, code)
