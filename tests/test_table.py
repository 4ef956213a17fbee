"""Columns of a bounded length, whatever is appended."""

from __future__ import annotations

import pytest

from charrnn.table import Table


def test_a_million_rows_stay_few():
    table = Table("x", "y")
    for i in range(1_000_000):
        table.append((float(i), i % 2))
    assert Table.LIMIT / 2 <= len(table["x"]) <= Table.LIMIT + 1
    assert sum(table["x"]) / len(table["x"]) == pytest.approx(499_999.5, rel=1e-3)
    assert set(table["y"]) == {0.5}
    assert table.last == {"x": 999_999.0, "y": 1}
    assert table["x"] == sorted(table["x"])


def test_the_newest_rows_of_a_long_table_are_seen():
    table = Table("x")
    for i in range(Table.LIMIT + 1):
        table.append((float(i),))
    assert table["x"][-1] == Table.LIMIT  # not yet a full mean
