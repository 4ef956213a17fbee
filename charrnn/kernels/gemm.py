"""Matrix products at the speed of the arithmetic units: a register tile and packed operands.

Weights are packed once per training step and used at every time step; `gemm_tn` packs both of its
operands. C is never padded: its last columns go through masked loads and stores. The result does
not depend on how rows and columns fall into tiles, and so not on how they are divided over threads.

All functions have a Python body that says in NumPy what they do; it runs when the compiler is off.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import overload

from charrnn.kernels.jit import kernel
from charrnn.kernels.pack import pack, pack_rows, panel, prefetch
from charrnn.kernels.tile import ROWS, tile, together

TOGETHER = tuple(together(max(rows, 1)) for rows in range(ROWS + 1))
DEPTH = 256
"""Rows of the inner dimension that `gemm_tn` packs at a time."""


def scratch_size(k: int, dtype: Any) -> int:
    """Elements of scratch that `gemm_tn` needs for an A of ``k`` columns."""
    return DEPTH * (panel(dtype) + -(-k // ROWS) * ROWS)


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
            T, M, N = C.shape
            if M == 1:  # steps as rows: tiles of one row are slow
                _product(C, A, P, 1, T, N, A.shape[2], 0, C.strides[0], 0, A.strides[0], accumulate)
            else:
                _product(C, A, P, T, M, N, A.shape[2], C.strides[0], C.strides[1], A.strides[0],
                         A.strides[1], accumulate)  # fmt: skip

    return impl


@kernel
def _product(C, A, P, T, M, N, K, c_step, c_row, a_step, a_row, accumulate):
    """`gemm` for T matrices that share P; steps between matrices and rows in bytes.

    Panels are the outer loop: one stays in the cache for all rows. Rows are shared out evenly over
    the tiles, because one of few rows is slower.
    """
    c_step, c_row = c_step // C.itemsize, c_row // C.itemsize
    a_step, a_row = a_step // A.itemsize, a_row // A.itemsize
    p_step = P.strides[0] // P.itemsize
    tiles = -(-M // ROWS)
    group = P.shape[2] * TOGETHER[-(-M // max(tiles, 1))]
    for j0 in range(0, N, group):
        columns = min(group, N - j0)
        p0 = j0 // P.shape[2] * p_step
        for t in range(T):
            m = 0
            for left in range(tiles, 0, -1):
                rows = -(-(M - m) // left)
                tile(
                    C, t * c_step + m * c_row + j0, c_row, A, t * a_step + m * a_row, a_row, 1,
                    P, p0, p_step, K, rows, columns, accumulate,
                )  # fmt: skip
                m += rows


@overload(gemm_tn)
def _gemm_tn(C, A, D, m0, m1, c0, c1, shift, scratch, accumulate):
    width = panel(str(D.dtype))

    def impl(C, A, D, m0, m1, c0, c1, shift, scratch, accumulate):
        ldc = C.strides[0] // C.itemsize
        R, room = A.shape[0], DEPTH * width
        tiles = -(-(m1 - m0) // ROWS)
        D_panel = scratch[:room].reshape(1, DEPTH, width)
        A_tiles = scratch[room : room + tiles * DEPTH * ROWS].reshape(tiles, DEPTH, ROWS)
        ahead = -(-DEPTH // max(1, tiles))
        for r0 in range(0, R, DEPTH):
            depth = min(DEPTH, R - r0)
            pack_rows(A_tiles, A[r0 : r0 + depth], m0, m1)
            for j0 in range(c0, c1, width):
                columns = min(width, c1 - j0)
                pack(D_panel, D[r0 : r0 + depth], j0 + shift, j0 + shift + columns)
                next_r, next_j = (r0, j0 + width) if j0 + width < c1 else (r0 + DEPTH, c0)
                last, next_j = min(next_r + DEPTH, R), next_j + shift
                for i in range(tiles):
                    m = m0 + i * ROWS
                    for r in range(next_r + i * ahead, min(next_r + (i + 1) * ahead, last)):
                        prefetch(D, r, next_j)
                    tile(
                        C, m * ldc + j0, ldc, A_tiles, i * DEPTH * ROWS, 1, ROWS,
                        D_panel, 0, 0, depth, min(ROWS, m1 - m), columns, accumulate or r0 > 0,
                    )  # fmt: skip

    return impl


@kernel
def weight_product(C, A, D, m0, m1, c0, c1, shift, scratch, accumulate):
    """`gemm_tn` as a kernel of its own."""
    gemm_tn(C, A, D, m0, m1, c0, c1, shift, scratch, accumulate)
