"""One character at a time: the network and the draw as one program that compiled code repeats."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from charrnn.config import SampleConfig
from charrnn.errors import InputError
from charrnn.kernels.draw import draw, note
from charrnn.kernels.rounds import carry
from charrnn.kernels.seat import ALONE
from charrnn.kernels.softmax import cross_entropy, project
from charrnn.kernels.tile import tile_of
from charrnn.passes import Pass, State
from charrnn.threads import Call, Item

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


class Place(NamedTuple):
    """Where samples are: what they go on from."""

    state: State
    """Before `last` was read, (L, B, H)."""
    last: NDArray[np.int32]
    """The last symbol, which the model reads next, (B,)."""
    recent: NDArray[np.int32]
    """Symbols that the repetition penalty counts, the newest last, -1 for none: (B, reach)."""


class Stepper:
    """Samples that go on side by side from where `feed` left them.

    Parameters
    ----------
    model : whose weights draw; it must not change meanwhile
    batch : samples B
    config : how symbols are drawn
    unknown : id of the symbol that is never drawn
    surprise : whether `nats` is filled

    Attributes
    ----------
    nats : (n, B) of the symbols drawn last: minus the logarithm of the probability that the model
        gave them, at temperature 1 and without filters
    """

    def __init__(
        self,
        model: Model,
        batch: int,
        config: SampleConfig,
        unknown: int | None = None,
        surprise: bool = False,
    ) -> None:
        self.model, self.batch, self._surprise = model, batch, surprise
        self.run = Pass(model, 1, batch, "step", 0.0, rounds=MOST // 4)
        self._unknown, self._rule = unknown, rule_of(config, unknown)
        self.nats = np.zeros((MOST, batch), self.run.losses.dtype)
        self._begun = False
        self._out = np.zeros((MOST, batch), np.int32)
        self._random = np.zeros((MOST, batch))
        self._history = np.full((batch, PENALTY_REACH), -1, np.int32)
        self._steps = np.zeros((len(self.run.shares), 2), np.int64)
        self._program = model.team.program([self._item(i) for i in range(len(self.run.shares))])

    def _item(self, i: int) -> Item:
        """One thread's part of a step."""
        run, model = self.run, self.model
        part, logits, V = run.shares[i], run.logits, model.vocab_size
        by, Wy = model.params.views["head.by"], run.stack.head["Wy"]
        scratch = (np.zeros(V), np.zeros(V, np.int64))
        choice = (self._out, logits, self._random, self._history, self._steps[i], self._rule)
        return [
            *run.forward[i],
            (project, (logits, run.window.x[-1], Wy, by, *part.rows, ALONE, tile_of(Wy))),
            (draw, (run.ids, *choice, *scratch, *part.rows)),
            *(self._surprise_calls(i) if self._surprise else ()),
            *((carry, (w[s], *part.rows)) for w in run.window.w for s in model.cell.states),
        ]

    def _surprise_calls(self, i: int) -> list[Call]:
        """What one thread does to keep the surprise of the symbols that it drew."""
        run, part = self.run, self.run.shares[i]
        loss = (run.losses, run.logits, run.ids, run.scale, False, *part.rows)
        return [(cross_entropy, loss), (note, (self.nats, run.losses, self._steps[i], *part.rows))]

    def set_rule(self, config: SampleConfig) -> None:
        """Draw in another way from now on."""
        self._rule[:] = rule_of(config, self._unknown)

    def feed(self, ids: NDArray[np.integer], remember: bool = True) -> None:
        """Read symbols, after all that was fed and drawn before; at first from a zero state.

        ids (N, B), or (N, 1) if it is the same for all samples, N at least 1. ``remember``: the
        repetition penalty counts them.
        """
        ids = self.model.checked(ids)
        recent, state = ids[-PENALTY_REACH:], None
        if self._begun:
            state = self.run.state(0)
            ids = np.concatenate([self.run.ids, np.broadcast_to(ids, (len(ids), self.batch))])
        for start in range(0, len(ids) - 1, PROMPT_WINDOW):
            window = ids[start : min(start + PROMPT_WINDOW, len(ids) - 1)]
            state = self.model.advance(window, state)
        self.run.set_state(state and {s: self._for_all(a) for s, a in state.items()})
        self.run.ids[:] = ids[-1]
        self._begun = True
        if remember:
            places = (self._steps[0, 1] + np.arange(len(recent))) % PENALTY_REACH
            self._history[:, places] = recent.T
            self._steps[:, 1] = (places[-1] + 1) % PENALTY_REACH

    def _for_all(self, state: NDArray[np.floating]) -> NDArray[np.floating]:
        """(L, 1 or B, H) as (L, B, H)."""
        return np.broadcast_to(state, (len(state), self.batch, state.shape[2]))

    def place(self) -> Place | None:
        """Where the samples are now, to `return_to`; None before anything was fed."""
        if not self._begun:
            return None
        recent = np.roll(self._history, -self._steps[0, 1], axis=1)
        return Place(self.run.state(0), self.run.ids[0].copy(), recent)

    def return_to(self, place: Place | None) -> None:
        """Go on from a `place`, of any stepper of this model and batch; None is the beginning.

        Raises
        ------
        InputError : it is none of such a model
        """
        if place is None:
            self._begun = False  # so that `feed` begins with a zero state
            self._history[:] = -1
            self._steps[:, 1] = 0
            return
        shapes = place.last.shape, place.recent.shape
        if shapes != ((self.batch,), self._history.shape):
            raise InputError(f"its symbols have the shapes {shapes[0]} and {shapes[1]}")
        for ids, least in ((place.last, 0), (place.recent, -1)):  # else foreign memory is read
            if ids.dtype.kind != "i" or ids.min() < least or ids.max() >= self.model.vocab_size:
                raise InputError("its symbols are none of this model's")
        self.run.set_state(place.state)
        self.run.ids[0] = place.last
        self._history[:] = place.recent
        self._steps[:, 1] = 0
        self._begun = True

    def draw(self, u: NDArray[np.float64]) -> NDArray[np.int32]:
        """The next n symbols (n, B) of every sample, for random numbers (n, B), n <= `MOST`.

        Raises
        ------
        InputError : no logit of a sample is finite
        """
        self._random[: len(u)] = u
        self._steps[:, 0] = 0
        self.model.pack(self.run.stack)
        self._program.run(len(u))
        out = self._out[: len(u)].copy()
        if out.min(initial=0) < 0:
            raise InputError(
                "the model gives no character a finite logit: it diverged, is damaged, or knows "
                "none but the unknown symbol; take another checkpoint"
            )
        return out
