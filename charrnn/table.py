"""Rows of numbers that come without end, kept in bounded memory."""

from __future__ import annotations

from operator import add


class Table:
    """Rows of numbers, at most ``LIMIT``: when it is full, each two neighbours become their mean.

    So a run of any length costs the same to keep and to draw.
    """

    LIMIT = 1024

    def __init__(self, *names: str) -> None:
        self.names = names
        self.rows: list[tuple[float, ...]] = []
        self._stride, self._count = 1, 0
        self._sums: tuple[float, ...] = ()
        self._last: tuple[float, ...] = ()

    def append(self, row: tuple[float, ...]) -> None:
        self._last = row
        self._sums = tuple(map(add, self._sums, row)) if self._count else row
        self._count += 1
        if self._count == self._stride:
            self.rows.append(self._mean())
            self._count = 0
            if len(self.rows) == self.LIMIT:
                pairs = zip(self.rows[::2], self.rows[1::2], strict=True)
                self.rows = [
                    tuple((a + b) / 2 for a, b in zip(*pair, strict=True)) for pair in pairs
                ]
                self._stride *= 2

    @property
    def last(self) -> dict[str, float]:
        """The newest row as it came; empty if there is none."""
        return dict(zip(self.names, self._last, strict=False))

    def __getitem__(self, name: str) -> list[float]:
        index = self.names.index(name)
        rows = [*self.rows, self._mean()] if self._count else self.rows
        return [row[index] for row in rows]

    def _mean(self) -> tuple[float, ...]:
        return tuple(value / self._count for value in self._sums)
