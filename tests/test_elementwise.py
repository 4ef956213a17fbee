"""Accuracy of the non-linearities and reductions; a loop's vector body and scalar tail agree.

Measured over every seventh of float32's numbers on x86-64: tanh 2.8e-7 absolute, sigmoid 1.7e-7
absolute, exp 0.9e-7 relative. The bounds leave room for processors without fused multiply-adds,
and for NumPy's functions, which take their place when the compiler is off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
from support import Guards, same_bits

from charrnn.kernels import elementwise, reduce
from charrnn.kernels.jit import FAST_MATH, kernel

NAMES = ("tanh", "sigmoid", "exp")
each_function = pytest.mark.parametrize("name", NAMES)
each_dtype = pytest.mark.parametrize(
    "dtype", (pytest.param("float32", marks=pytest.mark.portable), "float64")
)


def over_arrays(function: Any) -> Callable[[np.ndarray, np.ndarray], None]:
    """The function in a loop such as those of the cells."""

    @elementwise.elementwise("out")
    def formula(out, x):
        return (function(x),)

    @kernel
    def loop(out, x):
        formula(out, x)

    return loop


LOOPS = {name: over_arrays(getattr(elementwise, name)) for name in NAMES}


def value(name: str, x: np.ndarray) -> np.ndarray:
    out = np.full_like(x, np.nan)
    with np.errstate(all="ignore"):  # without the compiler, NumPy reports an exp that underflows
        LOOPS[name](out, x)
    return out


def exact(name: str, x: np.ndarray) -> np.ndarray:
    x = x.astype(np.longdouble)
    with np.errstate(all="ignore"):
        return {"tanh": np.tanh, "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "exp": np.exp}[name](x)


def inputs(name: str, dtype: str) -> np.ndarray:
    """A dense grid, all magnitudes down to denormals, and far out."""
    tiny = np.finfo(dtype).smallest_subnormal
    dense = np.linspace(-30, 30, 20_001)
    small = np.geomspace(1e-40, 1, 2_001)
    special = [0.0, 7.905, 7.906, 86.9, 87.1, 88.8, 104.0, 750.0, 1e4, 1e30]
    x = np.concatenate([dense, small, special, [tiny, 3 * tiny]])
    x = np.concatenate([x, -x]).astype(dtype)
    return -abs(x) if name == "exp" else x


BOUNDS = {"tanh": 4e-7, "sigmoid": 2.5e-7, "exp": 2.5e-7}  # float32
LEAST = np.exp(-87)
"""Where float32's exp ends; float32 itself ends at exp(-103)."""


@each_function
@each_dtype
def test_accuracy(name: str, dtype: str) -> None:
    x = inputs(name, dtype)
    y, want = value(name, x), exact(name, x)
    error = abs(y - want)
    if name == "exp":
        inside = x >= -87
        assert (y[~inside] >= 0).all() and (y[~inside] <= 1.0001 * LEAST).all()
        error = error[inside] / want[inside]
    bound = BOUNDS[name] if dtype == "float32" else 4e-16
    assert error.max() < bound, x[error.argmax()]


@each_dtype
def test_near_zero_tanh_is_relatively_accurate(dtype: str) -> None:
    """A small gradient must not vanish in a tanh that rounds to zero."""
    x = np.geomspace(1e-30, 0.5, 2_001).astype(dtype)
    error = abs(value("tanh", x) / exact("tanh", x) - 1)
    assert error.max() < 3 * np.finfo(dtype).eps


@each_dtype
def test_far_out(dtype: str) -> None:
    x = np.array([1e30, -1e30, 0.0], dtype)
    np.testing.assert_allclose(value("tanh", x), [1, -1, 0], rtol=0, atol=3e-7)
    np.testing.assert_allclose(value("sigmoid", x), [1, 0, 0.5], rtol=0, atol=2e-7)
    far = value("exp", np.array([-1e30, -1e4, 0.0], dtype))
    assert far[2] == 1 and (far[:2] >= 0).all() and (far[:2] <= 1.0001 * LEAST).all()


@pytest.mark.portable
@each_function
def test_range(name: str) -> None:
    """No value leaves the function's range, however little: 1 - tanh**2 is never negative."""
    y = value(name, inputs(name, "float32"))
    assert y.max() <= 1 and y.min() >= (-1 if name == "tanh" else 0)


@each_function
@each_dtype
def test_not_a_number_stays_so(name: str, dtype: str) -> None:
    """A network that diverged must not look well."""
    assert np.isnan(value(name, np.full(37, np.nan, dtype))).all()


@each_function
@each_dtype
def test_body_and_tail_have_the_same_bits(name: str, dtype: str, guarded: Guards) -> None:
    x = np.random.default_rng(0).normal(scale=4, size=37).astype(dtype)
    x = -abs(x) if name == "exp" else x
    whole = value(name, x)
    for start in range(37):
        for stop in (start + 1, start + 3, 31, 37):
            part, out = guarded(x[start:stop]), guarded(np.zeros_like(x[start:stop]))
            LOOPS[name](out, part)
            assert same_bits(out, whole[start:stop]), (start, stop)


# --- Reductions of a row -----------------------------------------------------------------------


@numba.njit(fastmath=FAST_MATH, error_model="numpy")
def reduced(rows, out):
    for r in range(rows.shape[0]):
        out[r, 0], out[r, 1] = reduce.maximum(rows[r]), reduce.total(rows[r])


@each_dtype
def test_reductions(dtype: str, guarded: Guards) -> None:
    rng = np.random.default_rng(4)
    for size in (*range(1, 70), 1000):
        x = guarded(rng.integers(-50, 50, (5, size)).astype(dtype))  # whole numbers: exact sums
        x[1] = -np.abs(x[1]) - 1  # what stands for missing lanes must not win
        out = guarded(np.zeros((5, 2), dtype))
        reduced(x, out)
        assert (out[:, 0] == x.max(1)).all() and (out[:, 1] == x.sum(1)).all(), size


@each_dtype
def test_the_sum_shows_what_is_not_finite(dtype: str) -> None:
    out = np.zeros((1, 2), dtype)
    for bad in (np.nan, np.inf, -np.inf):
        for at in (0, 16, 36):
            x = np.ones((1, 37), dtype)
            x[0, at] = bad
            reduced(x, out)
            assert not np.isfinite(out[0, 1])
            assert out[0, 0] == (np.inf if bad == np.inf else 1) or np.isnan(out[0, 0])


@numba.njit(fastmath=FAST_MATH, error_model="numpy")
def sums_of_squares(x, y, limit, out):
    out[0] = reduce.squares(x)
    out[1] = reduce.clipped_squares(x, limit)
    out[2] = reduce.squared_distance(x, y)


@each_dtype
def test_sums_of_squares(dtype: str, guarded: Guards) -> None:
    rng = np.random.default_rng(5)
    for size in (*range(0, 70), 1000):
        x, y = (rng.integers(-50, 50, size).astype(dtype) for _ in range(2))  # exact sums
        out = np.full(3, np.nan)
        sums_of_squares(guarded(x), guarded(y), x.dtype.type(7), out)
        kinds = x, np.clip(x, -7, 7), x - y
        assert out.tolist() == [(k.astype(float) ** 2).sum() for k in kinds], size


@each_dtype
def test_sums_of_squares_show_what_is_not_finite(dtype: str) -> None:
    for bad in (np.nan, np.inf, -np.inf):
        for at in (0, 16, 36):
            x, out = np.ones(37, dtype), np.zeros(3)
            x[at] = bad
            sums_of_squares(x, np.ones(37, dtype), x.dtype.type(np.inf), out)
            assert not np.isfinite(out).any()
            sums_of_squares(x, np.zeros_like(x), x.dtype.type(2), out)
            assert np.isnan(out[1]) if np.isnan(bad) else out[1] == 40
