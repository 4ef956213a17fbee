"""Long windows in little memory: some states are kept, the rest is computed again on the way back.

A window of T steps is cut into segments of S. The way there keeps the state before each segment;
on the way back a segment is run once more, from its state, for the arrays that its gradients need
(Chen et al. 2016; Gruslys et al. 2016 for BPTT). With S about the square root of T

    memory = B (S work + T / S state)    instead of    B T work

numbers, where ``work`` is what a step of one row needs and ``state`` what it hands on. (S is more
where B is small.) The work of the way there is done twice. The bits are those of one pass over the
window: segments begin where a `charrnn.sums.SPAN` of rows does, and all sums go from the last step
to the first.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from charrnn.cells.base import Arrays
from charrnn.kernels.softmax import loss_sum
from charrnn.passes import Inputs, Pass
from charrnn.sums import SPAN
from charrnn.threads import Phase

if TYPE_CHECKING:
    from charrnn.model import Model


ROWS = 6144
"""Rows of a segment (S B) at the least. The fewer, the more its time: see docs/decisions.md."""

LARGE = 1 << 28
"""Bytes of a window's work arrays from which on some are computed again instead."""


def segment_length(T: int, B: int) -> int:
    """Steps of a segment: the root of T, or `ROWS` rows, rounded up to whole blocks of rows."""
    unit = SPAN // math.gcd(SPAN, B)
    steps = max(math.isqrt(T - 1) + 1, -(-ROWS // B))
    return min(T, -(-steps // unit) * unit)


def train_pass(
    model: Model, T: int, B: int, dropout: float = 0.0, recompute: str = "auto"
) -> Pass | Recomputed:
    """A pass for training windows of at most T steps.

    ``recompute`` "always" and "never" say whether it saves memory for more time, "auto" does so if
    it would need more than `LARGE`.
    """
    size = T * B * model.train_work_per_char * np.dtype(model.config.dtype).itemsize
    if recompute == "always" or (recompute == "auto" and size > LARGE):
        return Recomputed(model, T, B, dropout)
    return model.train_pass(T, B, dropout)


class Recomputed(Inputs):
    """A pass over T steps and B rows that computes its segments twice.

    Attributes
    ----------
    segment : the pass that all segments run through
    """

    def __init__(
        self, model: Model, T: int, B: int, dropout: float = 0.0, like: Recomputed | None = None
    ) -> None:
        super().__init__(model, T, B, dropout)
        self.ways = np.ones((T, B), model.config.dtype)
        S = like.segment.ids.shape[0] if like else segment_length(T, B)
        self.segment: Pass = like.segment if like else Pass(model, S, B, "segment", dropout)
        self.bounds = [(t0, min(t0 + S, T)) for t0 in range(0, T, S)]
        self.kept: list[Arrays] = (
            like.kept if like else [self._room(S, T) for _ in self.segment.window.w]
        )
        """Each layer's states before every segment and at the end, (segments + 1, B, H)."""

    def _room(self, S: int, T: int) -> Arrays:
        shape = (-(-T // S) + 1, self.ids.shape[1], self.model.config.hidden_size)
        return {s: np.zeros(shape, self.model.config.dtype) for s in self.model.cell.states}

    def _shortened(self, T: int, first: int, summed: int) -> Recomputed:
        return Recomputed(self.model, T, self.ids.shape[1], self.dropout, like=self)

    def phases(self) -> list[Phase]:
        return self.segment.phases()

    def states_at(self, slot: int) -> list[Arrays]:
        """Every layer's state (B, H) at step 0 or T."""
        index = {0: 0, len(self.ids): len(self.bounds)}[slot]
        return [{s: array[index] for s, array in layer.items()} for layer in self.kept]

    def set_dropout_key(self, seed: int, step: int) -> None:
        self.segment.set_dropout_key(seed, step)

    def make_ready(self) -> None:
        for t0, t1 in self.bounds:
            self.segment.of_length(t1 - t0, rows=self.ids.size).make_ready()

    def _load(self, i: int) -> Pass:
        """The pass of segment ``i``, with all that goes into it."""
        t0, t1 = self.bounds[i]
        B = self.ids.shape[1]
        run = self.segment.of_length(t1 - t0, rows=self.ids.size)
        run.load(self.ids[t0:t1], self.targets[t0:t1])
        run.scale[:] = self.scale
        run.window.ways[:] = self.ways[t0:t1]
        run.window.places[:] = np.arange(t0 * B, t1 * B).reshape(-1, B)
        for state, kept in zip(run.states_at(0), self.kept, strict=True):
            for s, array in state.items():
                array[:] = kept[s][i]
        return run

    def _keep(self, i: int, run: Pass) -> None:
        """Keep the final state of segment ``i``."""
        for state, kept in zip(run.states_at(len(run.ids)), self.kept, strict=True):
            for s, array in state.items():
                kept[s][i + 1] = array

    def run_gradients(self) -> float:
        """Forward, and back in segments: fills the model's ``grads``; returns the mean loss."""
        last = len(self.bounds) - 1
        for i in range(last):
            run = self._load(i)
            run.run_forward()
            self._keep(i, run)
        for sums in self.segment.sums:
            sums.flat[:] = 0
        for w in self.segment.window.w:
            for s in self.model.cell.states:
                w[f"d{s}0"][:] = 0
        for i in range(last, -1, -1):
            run = self._load(i)
            run.run_gradients()
            if i == last:
                self._keep(i, run)
            t0, t1 = self.bounds[i]
            self.losses[t0:t1] = run.losses
        loss_sum(self.total, self.losses)
        run.add_up()
        return float(self.total[0]) / self.count
