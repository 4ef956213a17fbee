"""Named weights as views of one flat array: what the optimizer, clipping and MPI want to see."""

from __future__ import annotations

from typing import Any

import numpy as np

from charrnn.kernels.jit import LINE_BYTES
from charrnn.kernels.pack import aligned_zeros

BY_COLUMNS = {"head.Wy"}
"""Matrices whose columns are contiguous: what makes their gradients' products cheap."""


BLOCK = 1 << 14
"""Elements that one call works on."""


class Params:
    """Arrays by name in one flat array, the matrices before the vectors.

    Attributes
    ----------
    flat : (n,) array; the few elements between tensors are zero and stay so
    views : name -> array, in the order of ``shapes``
    bounds : (number of views, 2), where each view's elements begin and end in ``flat``
    decayed : elements ``flat[:decayed]`` belong to matrices, to which alone weight decay applies
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], dtype: Any) -> None:
        self.shapes = shapes
        step = LINE_BYTES // np.dtype(dtype).itemsize  # every tensor begins with a cache line
        offset, where = 0, {}
        self.decayed = 0
        for matrix in (True, False):
            for name, shape in shapes.items():
                if (len(shape) > 1) == matrix:
                    where[name] = offset
                    offset += -(-int(np.prod(shape)) // step) * step
            if matrix:
                self.decayed = offset
        self.flat = aligned_zeros((offset,), dtype)
        self.views: dict[str, np.ndarray] = {
            name: self._view(where[name], shape, name in BY_COLUMNS)
            for name, shape in shapes.items()
        }
        ends = [(where[name], where[name] + view.size) for name, view in self.views.items()]
        self.bounds = np.array(ends)

    def _view(self, begin: int, shape: tuple[int, ...], by_columns: bool) -> np.ndarray:
        array = self.flat[begin:][: int(np.prod(shape))]
        return array.reshape(shape[::-1]).T if by_columns else array.reshape(shape)

    def blocks(self) -> list[list[tuple[int, int]]]:
        """Bounds of `BLOCK` elements of ``flat`` at a time, first of matrices, then of vectors."""
        ranges = (0, self.decayed), (self.decayed, self.flat.size)
        return [
            [(i, min(i + BLOCK, last)) for i in range(first, last, BLOCK)] for first, last in ranges
        ]

    @property
    def count(self) -> int:
        """Trained numbers."""
        return sum(view.size for view in self.views.values())

    def part(self, prefix: str) -> dict[str, np.ndarray]:
        """The views whose names begin with ``prefix``, under the rest of their names."""
        return {n[len(prefix) :]: v for n, v in self.views.items() if n.startswith(prefix)}
