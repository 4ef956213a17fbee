"""What products are made of: float32 numbers, or their parts where the matrix unit is faster.

Products of parts are as accurate (see `charrnn.kernels.amx`), but their last bits are others. So
what is chosen depends on shapes and on the machine, never on the number of threads.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from charrnn.kernels import amx, jit

FULL = 0.78
"""Share of the registers' rows that a batch is to fill."""
FEW = 1 << 18
"""Elements of a matrix that the second cache holds as parts: 1.5 MB of 2."""
NARROW = 96
"""Rows or columns of a matrix with less of which parts are not worth making."""
SUMMED = 64
"""Rows from which on they are, for weights' gradients."""


class Operands(NamedTuple):
    """What products with a narrow matrix are made of, with one of few elements, and with others."""

    narrow: str
    few: str
    many: str

    def of(self, rows: int, columns: int) -> str:
        """What those with such a matrix are made of."""
        if min(rows, columns) < NARROW:
            return self.narrow
        return self.few if rows * columns <= FEW else self.many


def of_batch(usual: str, rows: int) -> Operands:
    """Those of products of a batch and the weights.

    Parts are faster if rows fill the registers of all processors, or nearly, and the second cache
    holds the matrix, or if there are twice as many.
    """
    if usual != "float32" or not jit.HAS_AMX:
        return Operands(usual, usual, usual)
    filled = amx.SIDE * (os.cpu_count() or 1)
    few = rows >= FULL * filled * -(-rows // filled)
    many = few and rows >= 2 * filled
    return Operands(usual, *("parts" if faster else usual for faster in (few, many)))


def of_sums(usual: str, rows: int, height: int) -> str:
    """That of products which sum ``rows`` rows up to a gradient of ``height`` rows."""
    parts = jit.HAS_AMX and rows >= SUMMED and height >= NARROW
    return "parts" if parts and usual == "float32" else usual
