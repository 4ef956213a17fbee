"""Truncated BPTT with a sliding look back (Williams and Peng 1990: BPTT(h; h')).

The losses of a window come in groups of k1. Each group's are sent back k2 steps from its end, which
is k2 - k1 steps before its first loss (also where the text ends within a group), and the gradients
of all groups are summed. So a step is passed k2 / k1 times on the way back, by other losses each
time, but once on the way there.

Groups do not wait for each other: some of them become rows of one larger batch, which goes back k2
steps through kernels that know nothing of it. What they leave at a step is summed over the groups,
so that the weights' gradients, products over all steps, are made once as for any other window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from charrnn.cells.base import Call, rows
from charrnn.kernels.dropout import clear
from charrnn.kernels.groups import give_back, take
from charrnn.passes import Pass
from charrnn.stack import Window
from charrnn.threads import LINE, Item, Phase, share

if TYPE_CHECKING:
    from charrnn.model import Model

ROWS = 128
"""Rows of a larger batch, about."""


class Sliding(Pass):
    """A pass whose losses, all from step ``first`` on, are sent back k2 steps in groups of k1.

    ``first`` is k2 - k1, or less if the text begins less far before the first loss.
    """

    def __init__(
        self, model: Model, T: int, B: int, dropout: float, k1: int, k2: int,
        like: Sliding | None = None, first: int = 0,
    ) -> None:  # fmt: skip
        self.k1, self.k2 = k1, k2
        self.batch: Window | None = like.batch if like else None
        super().__init__(model, T, B, "train", dropout, like, first=first)

    def _shortened(self, T: int, first: int, summed: int) -> Sliding:
        B = self.ids.shape[1]
        return Sliding(self.model, T, B, self.dropout, self.k1, self.k2, like=self, first=first)

    def _backward(self) -> list[Phase]:
        T, B = self.ids.shape
        window, cell = self.window, self.model.cell
        window.results = [
            w | {n: window.array(f"{i}.{n} of all groups", w[n].shape) for n in cell.leaves}
            for i, w in enumerate(window.w)
        ]
        sums = [w[n] for w in window.results for n in cell.leaves]
        if self.stack.embedding is not None:
            sums.append(window.dx[0])
        phases: list[Phase] = [[self._clear(sums, part) for part in range(self.parts)]]
        starts = range(self.first, T, self.k1)
        count = max(1, min(ROWS // B, len(starts)))
        for last in range(len(starts), 0, -count):
            phases += self._group_phases(np.array(starts[max(0, last - count) : last]))
        return phases

    def _clear(self, sums: list[np.ndarray], part: int) -> Item:
        return [(clear, (rows(a), *share(len(rows(a)), part, self.parts))) for a in sums]

    def _group_phases(self, groups: np.ndarray) -> list[Phase]:
        """The way back of the groups whose losses begin at these steps, side by side."""
        window, cell, B = self.window, self.model.cell, self.ids.shape[1]
        K, V = self.k2, len(groups) * B
        begins = groups + self.k1 - K
        no_ids = np.zeros((K, V), np.int32)
        batch = Window(self.stack, no_ids, training=True, dropout=self.dropout, like=self.batch)
        self.batch = self.batch or batch  # the first is the largest
        batch.keys = window.keys
        batch.places[:] = ((begins + np.arange(K)[:, None]) * B).repeat(B, 1) + np.tile(
            np.arange(B), len(groups)
        )
        shares = self.team.parts(V, self.parts, self._by_units(V), self.stack.grain)
        takes: list[Any] = [(batch.dx[-1], window.dx[-1], groups)]
        start = np.zeros_like(begins)
        for mine, whole in zip(batch.w, window.w, strict=True):
            takes += [(mine[n], whole[n], start) for n in cell.reads]
        take_phase = [
            [(take, (out, x, begins, firsts, *s.rows)) for out, x, firsts in takes] for s in shares
        ]
        backs = [
            (whole[n], mine[n])
            for mine, whole in zip(batch.w, window.results, strict=True)
            for n in cell.leaves
        ]
        if self.stack.embedding is not None:
            backs.append((window.dx[0], batch.dx[0]))
        back_phase: list[Item] = [[] for _ in range(self.parts)]
        for part in range(self.parts):
            calls: list[Call] = []
            for out, x in backs:
                columns = share(out.shape[2], part, self.parts, LINE)
                calls.append((give_back, (out, x, begins, *columns)))
            back_phase[part] = calls
        return [take_phase, [batch.backward_calls(s) for s in shares], back_phase]
