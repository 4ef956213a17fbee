"""Which products are made of parts: by shapes and machine."""

from __future__ import annotations

import os

import pytest

from charrnn.kernels import jit
from charrnn.operands import FEW, MANY, NARROW, SHARED, SUMMED, Operands, of_batch, of_sums

PLAIN = ("float32", "float32", "float32", "float32")
LAYER = ("float32", "float32", "float32", "whole")
LARGE = ("float32", "float32", "whole", "whole")
SMALL = ("float32", "parts", "float32", "float32")
ALL = ("float32", "parts", "whole", "whole")


@pytest.mark.parametrize(
    ("processors", "rows", "wanted"),
    (
        *((1, rows, PLAIN) for rows in (1, 9)),
        *((1, rows, SMALL) for rows in (10, 11)),
        *((1, rows, LARGE) for rows in (17, 19)),
        *((1, rows, ALL) for rows in (12, 16, 20, 33, 1000)),
        *((2, rows, PLAIN) for rows in (1, 11)),
        *((2, rows, LAYER) for rows in (12, 16, 19)),
        *((2, rows, LARGE) for rows in (33, 38)),
        *((2, rows, ALL) for rows in (24, 32, 39, 64, 2500)),
        *((8, rows, LAYER) for rows in (24, 64, 76)),
        *((8, rows, LARGE) for rows in (129, 150)),
        *((8, rows, ALL) for rows in (97, 128, 256)),
    ),
)
def test_of_batch(
    processors: int, rows: int, wanted: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jit, "HAS_AMX", True)
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    assert of_batch("float32", rows) == wanted
    for usual in ("float64", "bfloat16"):
        assert of_batch(usual, rows) == (usual,) * 4
    monkeypatch.setattr(jit, "HAS_AMX", False)
    assert of_batch("float32", rows) == PLAIN


def test_of_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "HAS_AMX", True)
    assert of_sums("float32", SUMMED, NARROW) == "parts"
    assert of_sums("float32", SUMMED - 1, NARROW) == "float32"
    assert of_sums("float32", SUMMED, NARROW - 1) == "float32"
    assert of_sums("bfloat16", SUMMED, NARROW) == "bfloat16"
    monkeypatch.setattr(jit, "HAS_AMX", False)
    assert of_sums("float32", SUMMED, NARROW) == "float32"


def test_of_a_matrix() -> None:
    found = Operands("usual", "few", "many", "shared")
    for of, most in ((found.of, "many"), (found.of_layer, "shared")):
        assert of(NARROW - 1, FEW) == of(FEW, NARROW - 1) == "usual"
        assert of(NARROW, FEW // NARROW) == "few"
        assert of(NARROW, FEW // NARROW + 1) == of(NARROW, SHARED // NARROW) == "many"
        assert of(NARROW, SHARED // NARROW + 1) == of(NARROW, MANY // NARROW) == most
        assert of(NARROW, MANY // NARROW + 1) == "usual"
