"""Which products are made of parts: by shapes and machine."""

from __future__ import annotations

import os

import pytest

from charrnn.kernels import jit
from charrnn.operands import FEW, MANY, NARROW, SUMMED, Operands, of_batch, of_sums

PLAIN = ("float32", "float32", "float32", "float32")
LAYER = ("float32", "float32", "float32", "parts")
SMALL = ("float32", "parts", "float32", "float32")
MOST = ("float32", "parts", "float32", "parts")
ALL = ("float32", "parts", "parts", "parts")


@pytest.mark.parametrize(
    ("processors", "rows", "wanted"),
    (
        *((1, rows, PLAIN) for rows in (1, 9, 17)),
        *((1, rows, SMALL) for rows in (10, 16, 20)),
        *((1, rows, ALL) for rows in (32, 1000)),
        *((2, rows, PLAIN) for rows in (1, 16, 19, 33, 38)),
        *((2, rows, SMALL) for rows in (20, 27, 39, 55, 100)),
        *((2, rows, MOST) for rows in (28, 32, 96)),
        *((2, rows, ALL) for rows in (56, 64, 2500)),
        *((8, rows, PLAIN) for rows in (24, 33, 49, 65)),
        *((8, rows, LAYER) for rows in (28, 63, 64)),
        *((8, rows, SMALL) for rows in (97, 100)),
        *((8, rows, MOST) for rows in (96, 128)),
        *((8, rows, ALL) for rows in (224, 256)),
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
    found = Operands("usual", "few", "many", "many of a layer")
    for of, many in ((found.of, "many"), (found.of_layer, "many of a layer")):
        assert of(NARROW - 1, FEW) == of(FEW, NARROW - 1) == "usual"
        assert of(NARROW, FEW // NARROW) == "few"
        assert of(NARROW, FEW // NARROW + 1) == of(NARROW, MANY // NARROW) == many
        assert of(NARROW, MANY // NARROW + 1) == "usual"
