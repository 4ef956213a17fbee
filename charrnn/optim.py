"""Clipping and the update rules, over the one flat array of weights.

The links stand in this order: gradient -> clip by value -> clip by global norm -> weight decay ->
update rule. The kernels do all of them in one pass over the array, in blocks whose bounds depend on
its size alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from charrnn.config import TrainConfig
from charrnn.kernels import update
from charrnn.params import Params
from charrnn.threads import Phase, Program, Team, dealt

MOMENTS = {
    "sgd": (),
    "momentum": ("v",),
    "adagrad": ("s",),
    "rmsprop": ("s",),
    "adam": ("m", "v"),
    "adamw": ("m", "v"),
}
"""Arrays that a rule keeps, each as large as the weights."""


SQUARES = {"adagrad": "s", "rmsprop": "s", "adam": "v", "adamw": "v"}
"""Which of them is a sum or mean of squares."""


class Clipping(NamedTuple):
    """What happened to a gradient before the update."""

    norm: float
    """Global norm before any clipping; not finite if an element is not."""
    scale: float
    """Factor of clipping by norm; 1 if the norm was within bounds."""


class Optimizer:
    """Updates ``params`` from ``grads`` as ``config`` says.

    Attributes
    ----------
    moments : name -> Params, what the rule remembers; zero at first
    squares : the one of `SQUARES`, never negative; None if the rule has none
    numbers : (groups, n) that the update rule goes by, a row for the weights that decay and one for
        the others: limit and factor of clipping, then the rule's own
    found : what the last `clip` has measured, see `charrnn.kernels.update.clip_factor`
    """

    def __init__(self, config: TrainConfig, params: Params, grads: Params, team: Team) -> None:
        self.config, self.params, self.grads, self.team = config, params, grads, team
        self.moments = {
            name: Params(params.shapes, params.flat.dtype) for name in MOMENTS[config.optimizer]
        }
        self.squares = self.moments.get(SQUARES.get(config.optimizer, ""))
        self._decays, self._blocks = (config.decay, 0.0), params.blocks()
        real, (_, arguments) = params.flat.dtype, RULES[config.optimizer]
        own = len(arguments(config, 0, 1, 0))
        self.numbers = np.zeros((len(self._decays), 2 + own), real)
        self._programs: dict[tuple[int, str, int], Program] = {}
        self._sums = np.zeros(sum(map(len, self._blocks)))
        self.found = np.ones(3)

    def clip(self, parts: int) -> Clipping:
        """Measure the gradient, by so many threads; `step` applies the factor."""
        self._program("clip", self.clip_phases, parts).run()
        return Clipping(float(self.found[update.NORM]), float(self.found[update.SCALE]))

    def step(self, rate: float, number: int, clipping: Clipping, parts: int) -> None:
        """Training step ``number`` (from 1) at this learning rate, by so many threads."""
        self.numbers[:] = self.numbers_of(rate, number, clipping.scale)
        self._program("step", self.step_phases, parts).run()

    def numbers_of(self, rate: float, number: int, scale: float) -> list[tuple[float, ...]]:
        """What `numbers` are in training step ``number``."""
        c, limit = self.config, self.config.grad_clip_value or math.inf
        _, arguments = RULES[c.optimizer]
        return [(limit, scale, *arguments(c, rate, number, decay)) for decay in self._decays]

    def _program(self, name: str, phases: Callable[[int], list[Phase]], parts: int) -> Program:
        """The program of these phases for the threads that there are."""
        key = self.team.size, name, parts
        if key not in self._programs:
            self._programs[key] = self.team.program(*phases(parts))
        return self._programs[key]

    def clip_phases(self, parts: int) -> list[Phase]:
        """The kernel calls of `clip`."""
        limit = self.config.grad_clip_value
        phases = self._norm_phases(math.inf, update.NORM, parts)
        return phases + (self._norm_phases(limit, update.CLIPPED, parts) if limit else [])

    def _norm_phases(self, limit: float, which: int, parts: int) -> list[Phase]:
        g = self.grads.flat
        calls = [
            (update.square_sum, (self._sums, block, g, g.dtype.type(limit), i0, i1))
            for block, (i0, i1) in enumerate(chain(*self._blocks))
        ]
        bound = self.config.grad_clip or math.inf
        factor = (update.clip_factor, (self.found, self._sums, bound, which))
        return [dealt(calls, parts), [[factor]]]

    def step_phases(self, parts: int) -> list[Phase]:
        """The kernel calls of `step`."""
        kernel, _ = RULES[self.config.optimizer]
        arrays = (self.params.flat, *(m.flat for m in self.moments.values()), self.grads.flat)
        calls = [
            (kernel, (*arrays, numbers, i0, i1))
            for numbers, blocks in zip(self.numbers, self._blocks, strict=True)
            for i0, i1 in blocks
        ]
        return [dealt(calls, parts)]


def _sgd(c: TrainConfig, rate: float, number: int, decay: float) -> tuple[float, ...]:
    return rate, decay


def _momentum(c: TrainConfig, rate: float, number: int, decay: float) -> tuple[float, ...]:
    return rate, c.momentum, decay


def _adagrad(c: TrainConfig, rate: float, number: int, decay: float) -> tuple[float, ...]:
    return rate, c.epsilon, decay


def _rmsprop(c: TrainConfig, rate: float, number: int, decay: float) -> tuple[float, ...]:
    return rate, c.beta2, 1 - c.beta2, c.epsilon, decay


def _adam(c: TrainConfig, rate: float, number: int, decay: float) -> tuple[float, ...]:
    shrink = 1.0
    if c.optimizer == "adamw":
        shrink, decay = 1 - rate * decay, 0.0
    unbiased_rate = rate / (1 - c.beta1**number)
    unbias2 = 1 / math.sqrt(1 - c.beta2**number)
    betas = (c.beta1, 1 - c.beta1, c.beta2, 1 - c.beta2)
    return unbiased_rate, *betas, unbias2, c.epsilon, decay, shrink


Arguments = Callable[[TrainConfig, float, int, float], tuple[float, ...]]

RULES: dict[str, tuple[Any, Arguments]] = {
    "sgd": (update.sgd, _sgd),
    "momentum": (update.momentum, _momentum),
    "adagrad": (update.adagrad, _adagrad),
    "rmsprop": (update.rmsprop, _rmsprop),
    "adam": (update.adam, _adam),
    "adamw": (update.adam, _adam),
}
"""Optimizer name -> its kernel and the numbers that it takes: (config, rate, number, decay)."""
