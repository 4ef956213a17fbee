"""Products, packing and the sharing of rows, on arrays between guard bands.

Matrices of small whole numbers have exact products: any wrong, missing or doubled term shows.
"""

from __future__ import annotations

import itertools
from typing import Any

import numba
import numpy as np
import pytest
from support import Guards, equal, relative_error, same_bits

from charrnn.kernels import pack as packing
from charrnn.kernels.amx import SIDE
from charrnn.kernels.bfloat16 import PARTS, unpaired
from charrnn.kernels.gemm import (
    DEPTH,
    NEAR,
    ROWS,
    _ahead,
    _coming,
    _piece,
    factor,
    gemm,
    gemm_gathered,
    halves,
    keeps,
    layout,
    scratch_size,
    weight_product,
)
from charrnn.kernels.jit import FAST_MATH, HAS_AMX, LINE_BYTES
from charrnn.kernels.pack import (
    aligned_zeros,
    operand,
    packed,
    panel,
    panels,
    round_rows,
    steps,
)
from charrnn.kernels.seat import ALONE
from charrnn.kernels.softmax import back_project, column_sums, project
from charrnn.kernels.tile import ASKED, UNROLLED, VECTORS, by_matrix, tile_for

matrix_unit = pytest.mark.skipif(not HAS_AMX, reason="has no unit for matrices")
SUMMED = (
    pytest.param("float32", marks=pytest.mark.portable),
    "float64",
    pytest.param("bfloat16", marks=pytest.mark.portable),
    pytest.param("parts", marks=matrix_unit),
)
each_dtype = pytest.mark.parametrize("dtype", (*SUMMED, pytest.param("whole", marks=matrix_unit)))
each_summed = pytest.mark.parametrize("dtype", SUMMED)
compiled_only = pytest.mark.skipif(
    bool(numba.config.DISABLE_JIT), reason="NumPy's product makes no promise about bits"
)
accumulating = pytest.mark.parametrize("accumulate", (False, True))
T, B, K = 3, 5, 13


def pack(P: np.ndarray, W: np.ndarray, n0: int, n1: int) -> None:
    packing.pack(packing.plain(P), W, n0, n1)


def pack_t(P: np.ndarray, W: np.ndarray, n0: int, n1: int) -> None:
    packing.pack_t(packing.plain(P), W, n0, n1)


@numba.njit(fastmath=FAST_MATH, error_model="numpy")
def product(C, A, P, r0, r1, columns, accumulate, code, turn=0):
    """`gemm` on a part of C's columns and of the rows, as the cells use it."""
    half = halves(P, r1 - r0, A.shape[1])
    part = C[r0:r1, :columns]
    if accumulate:
        gemm(part, A[r0:r1], P, part, turn, half, code)
    else:
        gemm(part, A[r0:r1], P, None, turn, half, code)


def unrounded(dtype: str) -> str:
    """The type of the arrays whose products are in ``dtype``."""
    return "float32" if dtype in ("bfloat16", "parts", "whole") else dtype


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Numbers that ``dtype`` can hold."""
    x = rng.normal(size=shape).astype(unrounded(dtype))
    return nearest(x) if dtype == "bfloat16" else x


def nearest(x: np.ndarray) -> np.ndarray:
    """Float32 numbers rounded to the 8 significant bits of a bfloat16, ties to even.

    Those below the least normal number become zero.
    """
    x = np.where(abs(x) < np.finfo(np.float32).tiny, 0, x)
    mantissa, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(np.rint(mantissa * 256), exponent - 8).astype(np.float32)


def unpacked(P: np.ndarray) -> np.ndarray:
    """(K, N) with the padding."""
    P = packing.plain(P)
    if by_matrix(P.dtype):
        width = P.shape[2]
        P = np.stack([plain(panel.reshape(-1, SIDE * width), width) for panel in P])
    return joined(P).transpose(1, 0, 2).reshape(-1, P.shape[0] * P.shape[2])


def unpacked_rows(rounded: np.ndarray) -> np.ndarray:
    """(M, K) with the padding."""
    if by_matrix(rounded.dtype):
        rounded = plain(rounded.reshape(-1, SIDE * rounded.shape[1]), rounded.shape[1])
    return joined(rounded.T).T


def plain(squares: np.ndarray, width: int) -> np.ndarray:
    """What lies in rows of squares: (16 rows, ``width``)."""
    shape = (-1, width // SIDE, SIDE, SIDE)
    return squares.reshape(shape).transpose(0, 2, 1, 3).reshape(-1, width)


def joined(P: np.ndarray) -> np.ndarray:
    """(..., K, N) numbers of pairs, which may be of three parts."""
    if P.dtype == np.int32:
        blocks = P.view(np.uint32).reshape(*P.shape[:-2], -1, PARTS, SIDE, P.shape[-1])
        high, middle, low = (
            unpaired(blocks[..., i, :, :].reshape(*P.shape[:-2], -1, P.shape[-1]))
            for i in range(PARTS)
        )
        numbers = high + (middle + low)  # exact: they are parts of one number
        halves = numbers.reshape(*P.shape[:-2], -1, SIDE, 2, P.shape[-1])  # partners are 16 apart
        return halves.swapaxes(-3, -2).reshape(numbers.shape)
    return unpaired(P) if P.dtype == np.uint32 else P


def protected(guarded: Guards, P: np.ndarray) -> np.ndarray:
    """A guarded copy, also of pairs."""
    return (
        guarded(P.view(np.float32)).view(P.dtype)
        if P.dtype in (np.uint32, np.int32)
        else guarded(P)
    )


def whole_numbers(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return rng.integers(-8, 9, shape).astype(unrounded(dtype))


def edges(dtype: str) -> tuple[int, ...]:
    """Column counts around the edges of a vector and of a panel."""
    width = panel(dtype)
    half = width // 2
    vector = width // VECTORS
    shared = (width + vector, width + vector + 1)  # the last that `tail` takes, the first it leaves
    return (1, 2, half - 1, half, half + 1, width - 1, width, width + 1, *shared, 2 * width + half)


def old(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, keep: bool) -> np.ndarray:
    """What is in C before: numbers to add to, or NaN, which would show if it were read."""
    return whole_numbers(rng, shape, dtype) if keep else np.full(shape, np.nan, unrounded(dtype))


# --- Packing -----------------------------------------------------------------------------------


@each_dtype
def test_pack(dtype: str, guarded: Guards) -> None:
    rng, width = np.random.default_rng(0), panel(dtype)
    for n in edges(dtype):
        W = guarded(normal(rng, (K, n + 9), dtype))
        for n0 in (0, 4, 9):
            P = protected(guarded, packed(K, n, dtype))
            assert P.shape[:3] == (panels(n, dtype), steps(K, dtype), width)
            if dtype == "whole":
                P[:, K:] = np.nan  # of other weights: those had the same memory
            pack(P, W, n0, n0 + n)
            assert equal(unpacked(P)[:K, :n], W[:, n0 : n0 + n])
            assert not unpacked(P)[K:].any()
            assert not unpacked(P)[:, n:].any()


@each_dtype
def test_pack_t(dtype: str, guarded: Guards) -> None:
    rng = np.random.default_rng(0)
    for k in edges(dtype):
        W = guarded(normal(rng, (k, 40), dtype))
        for n0, n1 in ((0, 40), (3, 40), (7, 23), (20, 37)):
            P = protected(guarded, packed(n1 - n0, k, dtype))
            if dtype == "whole":
                P[:, n1 - n0 :] = np.nan
            pack_t(P, W, n0, n1)
            assert equal(unpacked(P)[: n1 - n0, :k], W[:, n0:n1].T)
            assert not unpacked(P)[n1 - n0 :].any()
            assert not unpacked(P)[:, k:].any()


@pytest.mark.portable
def test_packing_rounds_to_the_nearest_bfloat16() -> None:
    rng, n = np.random.default_rng(1), 2 * panel("bfloat16")
    W = rng.normal(size=(n, n)).astype(np.float32) * 10.0 ** rng.integers(-30, 30, (n, n))
    W = W.astype(np.float32)
    ties = W.view(np.uint32)[1::2]
    ties[...] = ties & 0xFFFF0000 | 0x8000
    W[0, :8] = np.inf, -np.inf, np.nan, -np.nan, 3.4e38, -3.4e38, 0, -0.0
    W.view(np.uint32)[0, 8:10] = 0x7F800001, 0xFFFFFFFF  # the first and the last NaN
    W.view(np.uint32)[0, 10:14] = 1, 0x80400000, 0x7FFFFF, 0x800000  # the last one is normal
    with np.errstate(over="ignore", invalid="ignore"):
        want = nearest(W)
    for columns in (n, n - 3):
        for by, expected in ((pack, want[:, :columns]), (pack_t, want[:columns].T)):
            P = packed(*expected.shape, "bfloat16")
            by(P, W if by is pack else W[:columns], 0, expected.shape[by is pack])
            assert equal(unpacked(P)[:, : expected.shape[1]], expected)
    rounded = round_rows(np.empty(n * n, np.uint32), W[np.newaxis, :, :-1])
    last = np.zeros((n, 1), np.float32)  # of the last pair the second
    assert equal(unpacked_rows(rounded[0]), np.hstack([want[:, :-1], last]))


@matrix_unit
def test_parts_are_the_number() -> None:
    rng, n = np.random.default_rng(1), 2 * panel("parts")
    W = rng.normal(size=(n, n)) * 10.0 ** rng.integers(-30, 38, (n, n))
    W = np.clip(W, -3.39e38, 3.39e38).astype(np.float32)
    bits = W.view(np.uint32)
    bits[1::4] = bits[1::4] & 0xFFFF0000 | 0x8000  # ties
    bits[2::4] |= 0xFFFF
    W[0, :5] = np.inf, -np.inf, np.nan, 0, -0.0
    bits[0, 5:7] = 0x7F800001, 0xFFFFFFFF  # the first and the last NaN
    want = np.where(np.isinf(W), np.nan, W)
    for columns in (n, n - 3):
        for by, expected in ((pack, want[:, :columns]), (pack_t, want[:columns].T)):
            P = packed(*expected.shape, "parts")
            with np.errstate(invalid="ignore"):
                by(P, W if by is pack else W[:columns], 0, expected.shape[by is pack])
                assert equal(unpacked(P)[: len(expected), : expected.shape[1]], expected)
    rounded = round_rows(np.empty(3 * n * n // 2, np.int32), W[np.newaxis, :, :-1])
    assert equal(unpacked_rows(rounded[0])[:, : n - 1], want[:, :-1])


@matrix_unit
@pytest.mark.parametrize("positive", (False, True))
@pytest.mark.parametrize("dtype", ("parts", "whole"))
def test_a_product_of_parts_is_as_accurate_as_one_of_float32(dtype: str, positive: bool) -> None:
    rng, k, n = np.random.default_rng(2), 1000, 150
    A, W = (rng.normal(size=s).astype(np.float32) for s in ((40, k), (k, n)))
    if positive:  # no error is lifted by another
        A, W = abs(A), abs(W)
    exact, errors = A.astype(np.float64) @ W.astype(np.float64), []
    for operands in (dtype, "float32"):
        C, P = np.empty((40, n), np.float32), packed(k, n, operands)
        pack(P, W, 0, n)
        product(C, A, P, 0, 40, n, False, tile_for(operands).address())
        errors.append(np.sqrt(np.mean((C - exact) ** 2)))
    assert 0 < errors[0] < errors[1]


# --- gemm --------------------------------------------------------------------------------------


@pytest.mark.portable  # float64's panels are the narrowest
@each_dtype
@accumulating
def test_gemm(dtype: str, accumulate: bool, guarded: Guards) -> None:
    rng = np.random.default_rng(1)
    for rows in range(1, 21):
        for n in edges(dtype) if rows in (1, ROWS, ROWS + 3) else (panel(dtype) + 3,):
            for k in (1, 2, 17) if rows in (2, ROWS) else (13,):
                W = whole_numbers(rng, (k, n), dtype)
                A = guarded(whole_numbers(rng, (rows + 3, k), dtype))
                # Behind C's columns stand others, of another gate: they are no room to spill.
                C = guarded(old(rng, (rows + 3, n + 5), dtype, accumulate))
                before, P = C.copy(), protected(guarded, packed(k, n, dtype))
                pack(P, W, 0, n)
                product(C, A, P, 2, 2 + rows, n, accumulate, tile_for(dtype).address())
                want = before.copy()
                want[2 : 2 + rows, :n] = A[2 : 2 + rows] @ W
                if accumulate:
                    want[2 : 2 + rows, :n] += before[2 : 2 + rows, :n]
                assert equal(C, want), (rows, n, k)


@each_dtype
def test_gemm_is_as_accurate_as_its_terms_allow(dtype: str) -> None:
    rng, k = np.random.default_rng(2), 1000
    A, W, C = (normal(rng, s, dtype) for s in ((11, k), (k, 50), (11, 50)))
    exact = C.astype(np.longdouble) + A.astype(np.longdouble) @ W.astype(np.longdouble)
    bound = (
        (k + 1) * np.finfo(unrounded(dtype)).eps * (abs(C) + abs(A) @ abs(W))
    )  # any order of summing
    P = packed(k, 50, dtype)
    pack(P, W, 0, 50)
    product(C, A, P, 0, 11, 50, True, tile_for(dtype).address())
    assert (abs(C - exact) <= bound).all()


@compiled_only
@each_dtype
@accumulating
def test_rows_do_not_depend_on_their_neighbours(dtype: str, accumulate: bool) -> None:
    rng, rows, n = np.random.default_rng(3), 19, 2 * panel(dtype) + 5
    A, W, start = (normal(rng, s, dtype) for s in ((rows, K), (K, n), (rows, n)))
    P = packed(K, n, dtype)
    pack(P, W, 0, n)
    results = []
    for cuts in ([0, rows], range(rows + 1), [0, 1, ROWS, ROWS + 2, rows], [0, 7, 14, rows]):
        C = start.copy()
        for r0, r1 in zip(cuts, list(cuts)[1:], strict=False):
            product(C, A, P, r0, r1, n, accumulate, tile_for(dtype).address())
        results.append(C)
    assert all(same_bits(C, results[0]) for C in results)


@compiled_only
@each_dtype
def test_columns_do_not_depend_on_their_place(dtype: str) -> None:
    """A column has the same bits in a full panel and in a tail: logits may be cut anywhere."""
    rng, n = np.random.default_rng(4), 3 * panel(dtype)
    A, W = normal(rng, (6, K), dtype), normal(rng, (K, n), dtype)

    def columns(n0: int, n1: int) -> np.ndarray:
        P, C = packed(K, n1 - n0, dtype), np.empty((6, n1 - n0), unrounded(dtype))
        pack(P, W, n0, n1)
        product(C, A, P, 0, 6, n1 - n0, False, tile_for(dtype).address())
        return C

    whole = columns(0, n)
    for n0, n1 in ((0, 1), (1, n), (3, n - 2), (n - 1, n), (5, panel(dtype) + 5)):
        assert same_bits(columns(n0, n1), whole[:, n0:n1])


@each_dtype
def test_project_and_back(dtype: str, guarded: Guards) -> None:
    """The three-dimensional `gemm`, on shares of the batch."""
    rng = np.random.default_rng(5)
    for n in edges(dtype):
        W, bias = whole_numbers(rng, (K, n), dtype), guarded(whole_numbers(rng, (n,), dtype))
        x = guarded(whole_numbers(rng, (T, B, K), dtype))
        out = guarded(np.full((T, B, n + 5), np.nan, unrounded(dtype)))  # rows are longer: GRU's q
        dx = guarded(np.full((T, B, K), np.nan, unrounded(dtype)))
        P, PT = (protected(guarded, packed(*shape, dtype)) for shape in ((K, n), (n, K)))
        pack(P, W, 0, n)
        pack_t(PT, W, 0, n)
        for r0, r1 in ((0, 1), (1, 4), (4, 5), (5, 5)):
            project(out, x, P, bias, r0, r1, ALONE, tile_for(dtype).address())
            assert np.isnan(out[:, r1:]).all()
        assert equal(out[..., :n], x @ W + bias)
        assert np.isnan(out[..., n:]).all()
        for r0, r1 in ((0, 3), (3, 5)):
            back_project(dx, out, PT, n, r0, r1, ALONE, tile_for(dtype).address())
            assert np.isnan(dx[:, r1:]).all()
        out = out[..., :n] if dtype != "bfloat16" else nearest(out[..., :n])
        assert equal(dx, out @ W.T)


@each_dtype
@pytest.mark.parametrize("rows", (1, 5))
def test_a_product_of_many_steps(dtype: str, rows: int) -> None:
    """Of more than the second cache holds: several runs of steps, the last one shorter."""
    rng, n, k = np.random.default_rng(6), panel(dtype) + 3, 301
    steps = 5 * NEAR // (2 * rows * k * np.dtype(unrounded(dtype)).itemsize)
    W, bias = whole_numbers(rng, (k, n), dtype), whole_numbers(rng, (n,), dtype)
    x, out = whole_numbers(rng, (steps, rows, k), dtype), np.empty((steps, rows, n), W.dtype)
    P = packed(k, n, dtype)
    pack(P, W, 0, n)
    project(out, x, P, bias, 0, rows, ALONE, tile_for(dtype).address())
    assert equal(out, x @ W + bias)


@numba.njit
def gathered(C, A, P, W, ids, b, code, turn):
    half = halves(P, *A.shape)
    gemm_gathered(C, factor(A, P, half), P, W, ids, b, turn, half, code)


@each_dtype
def test_a_product_and_rows_by_id(dtype: str, guarded: Guards) -> None:
    rng, k = np.random.default_rng(9), 40
    for n, rows in itertools.product(edges(dtype), (1, 2, 8, 29, 70)):
        A, W = whole_numbers(rng, (rows, k), dtype), whole_numbers(rng, (k, n), dtype)
        table, b = (whole_numbers(rng, shape, dtype) for shape in ((5, n + 3), (n + 3,)))
        ids = rng.integers(0, 5, rows).astype(np.int32)
        P = packed(k, n, dtype)
        pack(P, W, 0, n)
        C = guarded(old(rng, (rows, n), dtype, False))
        given = guarded(A), P, guarded(table)[:, 3:], ids, guarded(b)[3:]
        gathered(C, *given, tile_for(dtype).address(), n % 2)
        assert equal(C, A @ W + table[ids, 3:] + b[3:]), (n, rows)


@each_dtype
def test_backwards_through_the_panels(dtype: str, guarded: Guards) -> None:
    """The second cache is to hold one of them; with and without a vector behind the last."""
    rng, width = np.random.default_rng(8), panel(dtype)
    k = depth_of(NEAR // (width * operand(dtype).itemsize), dtype)
    edges = (width - 1, *(3 * width + more for more in (0, 1, width // VECTORS, width - 1)))
    for n, rows in itertools.product(edges, (8, 29)):
        W, A = whole_numbers(rng, (k, n), dtype), whole_numbers(rng, (rows, k), dtype)
        P = packed(k, n, dtype)
        pack(P, W, 0, n)
        for turn in (1, 2, 3):
            C = guarded(old(rng, (rows, n), dtype, True))
            want = A @ W + C
            product(C, A, P, 0, rows, n, True, tile_for(dtype).address(), turn)
            assert equal(C, want), (n, rows, turn)


@each_dtype
def test_a_deep_product(dtype: str, guarded: Guards) -> None:
    """Of more rows of W than go through a tile at a time, added to nothing and to what is there."""
    rng, n, k = (
        np.random.default_rng(7),
        panel(dtype) + 3,
        depth_of(2 * layout(dtype).deep, dtype) + 7,
    )
    W, A = whole_numbers(rng, (k, n), dtype), whole_numbers(rng, (8, k), dtype)
    P = packed(k, n, dtype)
    pack(P, W, 0, n)
    for keep in (False, True):
        C = guarded(old(rng, (8, n), dtype, keep))
        want = A @ W + (C if keep else 0)
        product(C, A, P, 0, 8, n, keep, tile_for(dtype).address())
        assert equal(C, want)


def depth_of(rows: int, dtype: str) -> int:
    """The inner dimension that is packed in so many rows."""
    return {"bfloat16": 2 * rows, "parts": 2 * rows // PARTS}.get(dtype, rows)


# --- Weight gradients --------------------------------------------------------------------------


def room(guarded: Guards, k: int, dtype: str) -> np.ndarray:
    """Guarded scratch full of NaN."""
    return guarded(np.full(scratch_size(k, dtype), np.nan, unrounded(dtype))).view(operand(dtype))


def weight_case(
    rng: np.random.Generator, guarded: Guards, rows: int, k: int, n: int, shift: int, dtype: str
) -> tuple[Any, ...]:
    A = guarded(whole_numbers(rng, (rows, k), dtype))
    D = guarded(whole_numbers(rng, (rows, n + shift), dtype))
    return A, D, room(guarded, k, dtype)


@each_summed
@accumulating
def test_weight_product(dtype: str, accumulate: bool, guarded: Guards) -> None:
    rng, width = np.random.default_rng(6), panel(dtype)
    shapes = [(9, k, width + 3) for k in range(1, 21)]
    shapes += [(rows, ROWS + 1, width) for rows in (1, 2, DEPTH - 1, DEPTH, DEPTH + 1)]
    shapes += [(7, 2 * ROWS, n) for n in edges(dtype)]
    for rows, k, n in shapes:
        for shift in (0, 7):
            A, D, scratch = weight_case(rng, guarded, rows, k, n, shift, dtype)
            want = (A.T @ D)[:, shift:]
            C = guarded(old(rng, (k, n), dtype, accumulate))
            want = want + C if accumulate else want
            top, middle = k // 2, n // 3
            for m0, m1 in ((0, top), (top, k)):
                for c0, c1 in ((0, middle), (middle, middle), (middle, n)):
                    before = C.copy()
                    weight_product(
                        C, A, D, 0, rows, m0, m1, c0, c1, shift, scratch, False, accumulate,
                        tile_for(dtype).address(),
                    )  # fmt: skip
                    before[m0:m1, c0:c1] = C[m0:m1, c0:c1]
                    assert same_bits(C, before)  # nothing else has changed
            assert equal(C, want), (rows, k, n, shift)


def asked(first: int, pace: int, turns: int) -> set[int]:
    """The lines that a tile asks for."""
    starts = (first + turn * pace for turn in range(turns))
    return {start // LINE_BYTES + i for start in starts for i in range(ASKED)}


@compiled_only
@pytest.mark.parametrize("turn", (0, 1))
@pytest.mark.parametrize(("k", "across"), ((40, 3), (layout("float32").deep + 900, 1)))
def test_a_piece_of_the_weights_is_asked_for_while_the_one_before_is_used(
    k: int, across: int, turn: int
) -> None:
    width, groups, calls = panel("float32"), 3, 12
    group, depths = across * width, -(-k // layout("float32").deep)
    n = groups * group - 1
    P = packed(k, n, "float32")
    places: list[int] = []
    for number in range(groups * depths):
        j0, k0, columns, deep, p0 = _piece(P, n, group, groups, number, turn)
        places.append(j0 // width * k + k0)
        assert p0 == places[-1] * width and columns == min(group, n - j0)
        turns = across * deep // UNROLLED
        first, share, pace = _coming(P, n, group, groups, number, turn, calls, turns)
        assert first == P.ctypes.data + p0 * P.itemsize
        lines = set().union(*(asked(first + i * share, pace, turns) for i in range(calls)))
        size = across * deep * width * P.itemsize
        wanted = set(range(first // LINE_BYTES, (first + size) // LINE_BYTES))
        assert wanted <= lines and len(lines - wanted) <= calls * ASKED
    assert len(set(places)) == len(places)
    assert places[::depths] == sorted(places[::depths], reverse=turn == 1)


@compiled_only
@pytest.mark.parametrize("rows", (1, 100, DEPTH))
@pytest.mark.parametrize("columns", (16, 72))
def test_the_last_tiles_of_a_block_ask_for_the_one_before(rows: int, columns: int) -> None:
    turns, other = DEPTH // UNROLLED, aligned_zeros((16,), np.float32)
    x = aligned_zeros((DEPTH, 160), np.float32)[:rows, 32 : 32 + columns]
    lines: set[int] = set()
    for left in range(100):
        first, pace = _ahead(x, left, turns, other)
        if pace == 0:
            assert first == other.ctypes.data and len(lines) > 0
        else:
            lines |= asked(first, pace, turns)
    starts = x.ctypes.data + np.arange(rows) * x.strides[0]
    wanted = {start // LINE_BYTES + i for start in starts for i in range(-(-columns * 4 // 64))}
    assert wanted <= lines
    assert _ahead(x[:0], 0, turns, other) == (other.ctypes.data, 0)


@compiled_only
@each_summed
def test_weight_product_over_many_rows(dtype: str, guarded: Guards) -> None:
    """Several depths of scratch; bits depend neither on how C is shared out nor on calls."""
    rng, n, rows, k = np.random.default_rng(7), panel(dtype) + 9, 2 * DEPTH + 37, 21
    A, D = normal(rng, (rows, k), dtype), normal(rng, (rows, n), dtype)
    scratch, code = room(guarded, k, dtype), tile_for(dtype).address()
    results = []
    for cuts in ([0, n], [0, n - 5, n], [0, 1, 2, n - 3, n]):
        C = guarded(np.full((k, n), np.nan, unrounded(dtype)))
        for c0, c1 in zip(cuts, cuts[1:], strict=False):
            weight_product(C, A, D, 0, rows, 0, k, c0, c1, 0, scratch, False, False, code)
        results.append(C)
    C = guarded(np.full((k, n), np.nan, unrounded(dtype)))
    for m0, m1 in ((0, 3), (3, 16), (16, k)):
        weight_product(C, A, D, 0, rows, m0, m1, 0, n, 0, scratch, False, False, code)
    results.append(C)
    C = guarded(np.full((k, n), np.nan, unrounded(dtype)))
    for r0, r1 in ((2 * DEPTH, rows), (DEPTH, 2 * DEPTH), (0, DEPTH)):
        weight_product(C, A, D, r0, r1, 0, k, 0, n, 0, scratch, False, r1 < rows, code)
    results.append(C)
    assert all(same_bits(C, results[0]) for C in results)
    exact = A.astype(np.float64).T @ D.astype(np.float64)
    assert relative_error(results[0], exact) < 100 * np.finfo(unrounded(dtype)).eps


@compiled_only
@each_summed
def test_a_weight_product_with_the_columns_of_the_one_before(dtype: str, guarded: Guards) -> None:
    rng, rows, k, shift = np.random.default_rng(8), DEPTH - 3, 37, 5
    most, scratch = layout(dtype).panels * panel(dtype), room(guarded, 2 * k, dtype)
    code = tile_for(dtype).address()
    assert keeps(dtype, DEPTH, most) and not keeps(dtype, DEPTH, most + 1)
    assert not keeps(dtype, DEPTH + 1, most)
    for n in (most - 1, most):
        D = normal(rng, (rows, n + shift), dtype)
        for width in (2 * k, k):
            A = normal(rng, (rows, width), dtype)
            results = []
            for kept, given in ((width < 2 * k, D), (False, D)):
                C = guarded(np.full((width, n), np.nan, unrounded(dtype)))
                more = shift, scratch, kept, False, code
                weight_product(C, A, given, 0, rows, 0, width, 0, n, *more)
                results.append(C)
            assert same_bits(*results)


@each_summed
@accumulating
def test_column_sums(dtype: str, accumulate: bool, guarded: Guards) -> None:
    rng = np.random.default_rng(8)
    x = guarded(whole_numbers(rng, (11, 45), dtype))
    out = guarded(old(rng, (38,), dtype, accumulate))
    want = x.sum(axis=0)[7:] + (out if accumulate else 0)
    for c0, c1 in ((0, 5), (5, 5), (5, 37), (37, 38)):
        before = out.copy()
        column_sums(out, x, c0, c1, 7, accumulate)
        outside = np.r_[0:c0, c1:38]
        assert same_bits(out[outside], before[outside])
    assert equal(out, want)
