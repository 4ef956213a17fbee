"""Weights as views of one flat array."""

from __future__ import annotations

import numpy as np
import pytest

from charrnn.kernels.pack import LINE_BYTES
from charrnn.params import BY_COLUMNS, Params

SHAPES = {"b": (5,), "W": (3, 7), "alpha": (1,), "U": (2, 2)}
each_dtype = pytest.mark.parametrize("dtype", ("float32", "float64"))


@each_dtype
def test_views_share_the_flat_array(dtype: str) -> None:
    params = Params(SHAPES, dtype)
    assert list(params.views) == list(SHAPES) and params.shapes == SHAPES
    assert params.flat.dtype == dtype and params.flat.ndim == 1 and not params.flat.any()
    for i, (name, view) in enumerate(params.views.items(), start=1):
        assert view.shape == SHAPES[name] and view.flags.c_contiguous
        assert np.shares_memory(view, params.flat)
        view[...] = i
    for i, name in enumerate(SHAPES, start=1):
        assert (params.flat == i).sum() == params.views[name].size  # none overlaps another
    assert np.count_nonzero(params.flat) == params.count == 5 + 21 + 1 + 4


def test_some_matrices_lie_by_columns() -> None:
    assert {"head.Wy"} == BY_COLUMNS
    params = Params({"b": (5,), "head.Wy": (3, 7)}, "float32")
    view = params.views["head.Wy"]
    assert view.shape == (3, 7) and view.T.flags.c_contiguous
    assert np.shares_memory(view, params.flat) and params.count == 26
    (begin, end), n = params.bounds[1], np.count_nonzero
    view[1, 2] = 1
    assert n(params.flat) == n(params.flat[begin:end]) == 1 and end - begin == 21


@each_dtype
def test_every_tensor_starts_at_a_cache_line(dtype: str) -> None:
    params = Params(SHAPES, dtype)
    for view in params.views.values():
        assert view.ctypes.data % LINE_BYTES == 0


@each_dtype
def test_only_matrices_decay(dtype: str) -> None:
    params = Params(SHAPES, dtype)
    params.flat[: params.decayed] = 1
    assert {name for name, view in params.views.items() if view.all()} == {"W", "U"}
    assert {name for name, view in params.views.items() if view.any()} == {"W", "U"}


def test_part() -> None:
    params = Params({"layers.1.W": (2, 3), "layers.10.W": (4, 5), "head.W": (6, 7)}, "float32")
    part = params.part("layers.1.")
    assert list(part) == ["W"]
    assert np.shares_memory(part["W"], params.views["layers.1.W"])
