"""The recurrent cells, one file each; `get` is the only door to them."""

from __future__ import annotations

import importlib

from charrnn.cells.base import Cell


def get(name: str, activation: str = "tanh") -> Cell:
    """The cell of the file ``name``; other cells are neither imported nor compiled."""
    return importlib.import_module(f"charrnn.cells.{name}").CELL(activation)
