"""What products are made of: float32 numbers, or their parts where the matrix unit is faster.

Weights of which the second cache holds the parts are packed as such; of larger ones the unit's tile
makes the parts itself, from whole numbers. Products of parts are as accurate (see
`charrnn.kernels.amx`), but their last bits are others. So what is chosen depends on shapes and on
the machine, never on the number of threads.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from charrnn.kernels import amx, jit

FULL = 0.6
"""Share of the registers' rows that a batch is to fill for parts."""
LEAST = 12
"""Rows that a tile is to have for whole numbers, of which each makes the parts anew."""
FEW = 1 << 18
"""Elements of a matrix that the second cache holds as parts: 1.5 MB of 2."""
SHARED = 1 << 19
"""Elements of a layer's matrix beyond which threads share its units, and so have all rows."""
MANY = 1 << 22
"""Most elements of a matrix that is not multiplied as ever."""
NARROW = 96
"""Rows or columns of a matrix with less of which parts are not worth making."""
SUMMED = 64
"""Rows from which on they are, for weights' gradients."""


class Operands(NamedTuple):
    """What products with a matrix of few or many elements are made of; ``usual``: with others.

    ``shared`` are those with a matrix of many elements of a layer whose units threads share.
    """

    usual: str
    few: str
    many: str
    shared: str

    def of(self, rows: int, columns: int) -> str:
        """What those with such a matrix are made of."""
        return self._of(rows, columns, self.many)

    def of_layer(self, rows: int, columns: int) -> str:
        """`of`, for one of a layer."""
        return self._of(rows, columns, self.shared if rows * columns > SHARED else self.many)

    def _of(self, rows: int, columns: int, many: str) -> str:
        if min(rows, columns) < NARROW or rows * columns > MANY:
            return self.usual
        return self.few if rows * columns <= FEW else many


def of_batch(usual: str, rows: int) -> Operands:
    """Those of products of a batch and the weights.

    Parts are faster if rows fill the registers of all processors, or nearly, and the second cache
    holds the matrix; of a larger one if each has some rows.
    """
    if usual != "float32" or not jit.HAS_AMX:
        return Operands(usual, usual, usual, usual)
    processors = os.cpu_count() or 1
    registers = amx.SIDE * processors
    few = rows >= FULL * registers * -(-rows // registers)
    many, shared = rows >= LEAST * processors, rows >= LEAST
    return Operands(
        usual, "parts" if few else usual, *("whole" if x else usual for x in (many, shared))
    )


def of_sums(usual: str, rows: int, height: int) -> str:
    """That of products which sum ``rows`` rows up to a gradient of ``height`` rows."""
    parts = jit.HAS_AMX and rows >= SUMMED and height >= NARROW
    return "parts" if parts and usual == "float32" else usual
