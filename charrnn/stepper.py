"""One character at a time: the network and the draw as one program that compiled code repeats."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from charrnn.config import SampleConfig
from charrnn.errors import InputError
from charrnn.kernels.draw import carry, draw
from charrnn.kernels.seat import ALONE
from charrnn.kernels.softmax import project
from charrnn.passes import Pass
from charrnn.threads import Item

if TYPE_CHECKING:
    from charrnn.model import Model

PENALTY_REACH = 64
"""Symbols back to which the repetition penalty applies."""

PROMPT_WINDOW = 256
"""Symbols of a prompt that are read at a time."""

MOST = 64
"""Steps of one call of `Stepper.draw`, at the most."""


def rule_of(config: SampleConfig, unknown: int | None) -> NDArray[np.float64]:
    """The numbers that `charrnn.kernels.draw` goes by."""
    penalty = math.log(config.repetition_penalty)
    symbol = -1 if unknown is None else unknown
    numbers = (config.temperature, penalty, config.top_k, config.top_p, config.min_p, symbol)
    return np.array(numbers, np.float64)


class Stepper:
    """Samples that go on side by side from where `feed` left them.

    Parameters
    ----------
    model : whose weights draw; it must not change meanwhile
    batch : samples B
    config : how symbols are drawn
    unknown : id of the symbol that is never drawn
    """

    def __init__(
        self, model: Model, batch: int, config: SampleConfig, unknown: int | None = None
    ) -> None:
        self.model, self.batch = model, batch
        self.run = Pass(model, 1, batch, "step", 0.0, rounds=MOST // 4)
        self._rule = rule_of(config, unknown)
        self._out = np.zeros((MOST, batch), np.int32)
        self._random = np.zeros((MOST, batch))
        self._history = np.full((batch, PENALTY_REACH), -1, np.int32)
        self._steps = np.zeros((len(self.run.shares), 2), np.int64)
        self._program = model.team.program([self._item(i) for i in range(len(self.run.shares))])
        model.pack(self.run.stack)

    def _item(self, i: int) -> Item:
        """One thread's part of a step."""
        run, model = self.run, self.model
        part, logits, V = run.shares[i], run.logits, model.vocab_size
        by, Wy = model.params.views["head.by"], run.stack.head["Wy"]
        scratch = (np.zeros(V), np.zeros(V, np.int64))
        choice = (self._out, logits, self._random, self._history, self._steps[i], self._rule)
        return [
            *run.forward[i],
            (project, (logits, run.window.x[-1], Wy, by, *part.rows, ALONE, part.code)),
            (draw, (run.ids, *choice, *scratch, *part.rows)),
            *((carry, (w[s], *part.rows)) for w in run.window.w for s in model.cell.states),
        ]

    def feed(self, ids: NDArray[np.integer], remember: bool = True) -> None:
        """Read what comes before the first symbol that is drawn, from a zero state.

        ids (N, B), or (N, 1) if it is the same for all samples, N at least 1. ``remember``: the
        repetition penalty counts them.
        """
        state = None
        for start in range(0, len(ids) - 1, PROMPT_WINDOW):
            window = ids[start : min(start + PROMPT_WINDOW, len(ids) - 1)]
            state = self.model.advance(window, state)
        self.run.set_state(state and {s: self._for_all(a) for s, a in state.items()})
        self.run.ids[:] = ids[-1]
        if remember:
            recent = ids[-PENALTY_REACH:]
            self._history[:, : len(recent)] = recent.T
            self._steps[:, 1] = len(recent) % PENALTY_REACH

    def _for_all(self, state: NDArray[np.floating]) -> NDArray[np.floating]:
        """(L, 1 or B, H) as (L, B, H)."""
        return np.broadcast_to(state, (len(state), self.batch, state.shape[2]))

    def draw(self, u: NDArray[np.float64]) -> NDArray[np.int32]:
        """The next n symbols (n, B) of every sample, for random numbers (n, B), n <= `MOST`.

        Raises
        ------
        InputError : no logit of a sample is finite
        """
        self._random[: len(u)] = u
        self._steps[:, 0] = 0
        self._program.run(len(u))
        out = self._out[: len(u)].copy()
        if out.min(initial=0) < 0:
            raise InputError(
                "the model gives no character a finite logit: it diverged, is damaged, or knows "
                "none but the unknown symbol; take another checkpoint"
            )
        return out
