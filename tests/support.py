"""What several test files share: comparisons, and arrays between guard bands."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
BAND = 35
"""Elements on either side of a guarded array: more than two vectors, and an odd number, so that
the array itself starts at no vector's boundary."""


def relative_error(a: Any, b: Any) -> float:
    """max|a - b| / max|b|; the plain difference where b is zero."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / (np.abs(b).max() or 1.0))


def assert_close(got: Mapping[str, Any], want: Mapping[str, Any], tolerance: float) -> None:
    """Every array of ``got`` is within ``tolerance`` (`relative_error`) of ``want``'s."""
    assert set(got) == set(want)
    errors = {name: relative_error(got[name], want[name]) for name in want}
    assert all(error < tolerance for error in errors.values()), errors  # NaN fails, too


def equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays hold the same numbers in the same type; NaN equals NaN, -0 equals 0."""
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays are the same to the last bit."""
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


class Guards:
    """Copies of arrays between bands of NaN that nobody may write to.

    Whoever reads from a band gets NaN into his result. ``gap`` puts a band behind every row, too.
    """

    def __init__(self) -> None:
        self._guarded: list[tuple[np.ndarray, np.ndarray]] = []

    def __call__(self, array: Any, gap: int = 0) -> np.ndarray:
        array = np.asarray(array)
        wide = np.empty((*array.shape[:-1], array.shape[-1] + gap), array.dtype)
        size = max(wide.size - gap, 0)
        buffer = np.full(BAND + size + BAND, np.nan, array.dtype)
        outside = np.ones(buffer.size, bool)
        view, inner = (
            np.lib.stride_tricks.as_strided(
                whole[BAND:],
                array.shape,
                [whole.itemsize * (s // array.itemsize) for s in wide.strides],
            )
            for whole in (buffer, outside)
        )
        inner[...] = False
        view[...] = array
        self._guarded.append((buffer, outside))
        return view

    def check(self) -> None:
        """No band has been written to."""
        for buffer, outside in self._guarded:
            assert np.isnan(buffer[outside]).all(), "written outside of an array"


def run_python(code: str, **environment: str) -> str:
    """What ``code`` prints in a process of its own; warnings are errors there, too."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"} | environment,
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def permissions() -> Iterator[None]:
    """Permissions of files hold for root, too: without the two capabilities that pass over them."""
    if os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("root may do anything here")
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    before = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then those from 32 on
    assert libc.capget(header, before) == 0
    without = (ctypes.c_uint32 * 6)(*before)
    without[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, without) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0
