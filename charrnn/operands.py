"""What products are made of: float32 numbers, or their parts where the matrix unit is faster.

Products of parts are as accurate (see `charrnn.kernels.amx`), but their last bits are others. So
what is chosen depends on shapes and on the machine, never on the number of threads.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from charrnn.kernels import amx, jit

FULL = 0.6
"""Share of the registers' rows that a batch is to fill."""
FULL_OF_MANY = 0.875
"""That where all wait for the third cache."""
FEW = 1 << 18
"""Elements of a matrix that the second cache holds as parts: 1.5 MB of 2."""
MANY = 1 << 22
"""Most elements of one of which parts, 1.5 times the bytes, are no slower from the third cache."""
NARROW = 96
"""Rows or columns of a matrix with less of which parts are not worth making."""
SUMMED = 64
"""Rows from which on they are, for weights' gradients."""


class Operands(NamedTuple):
    """What products with a matrix of few or many elements are made of; ``usual``: with others.

    Threads that share the units of a ``layer`` have all rows of the batch, and each a part of such
    a matrix.
    """

    usual: str
    few: str
    many: str
    many_of_layer: str

    def of(self, rows: int, columns: int) -> str:
        """What those with such a matrix are made of."""
        return self._of(rows, columns, self.many)

    def of_layer(self, rows: int, columns: int) -> str:
        """`of`, for one of a layer."""
        return self._of(rows, columns, self.many_of_layer)

    def _of(self, rows: int, columns: int, many: str) -> str:
        if min(rows, columns) < NARROW or rows * columns > MANY:
            return self.usual
        return self.few if rows * columns <= FEW else many


def of_batch(usual: str, rows: int) -> Operands:
    """Those of products of a batch and the weights.

    Parts are faster if rows fill the registers of all processors, or nearly, and the second cache
    holds the matrix; of a larger one if they fill twice as many, or a tile in a layer, because
    threads can share its units.
    """
    if usual != "float32" or not jit.HAS_AMX:
        return Operands(usual, usual, usual, usual)

    def filled(size: int) -> float:
        return rows / (size * -(-rows // size))

    registers = amx.SIDE * (os.cpu_count() or 1)
    many, of_layer = (filled(size) >= FULL_OF_MANY for size in (2 * registers, amx.ROWS))
    faster = filled(registers) >= FULL, many, of_layer
    return Operands(usual, *("parts" if x else usual for x in faster))


def of_sums(usual: str, rows: int, height: int) -> str:
    """That of products which sum ``rows`` rows up to a gradient of ``height`` rows."""
    parts = jit.HAS_AMX and rows >= SUMMED and height >= NARROW
    return "parts" if parts and usual == "float32" else usual
