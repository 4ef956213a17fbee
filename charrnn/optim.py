"""Clipping and the update rules, over the one flat array of weights.

The links stand in this order: gradient -> clip by value -> clip by global norm -> weight decay ->
update rule. The kernels do all of them in one pass over the array, in blocks whose bounds depend on
its size alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from charrnn.config import TrainConfig
from charrnn.kernels import update
from charrnn.params import Params
from charrnn.threads import Call, Item, Team

BLOCK = 1 << 15
"""Elements that one call works on."""

SMALL = 4 * BLOCK
"""Elements of an array for which other threads are not worth waking."""

MOMENTS = {
    "sgd": (),
    "momentum": ("v",),
    "adagrad": ("s",),
    "rmsprop": ("s",),
    "adam": ("m", "v"),
    "adamw": ("m", "v"),
}
"""Arrays that a rule keeps, each as large as the weights."""


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
    """

    def __init__(self, config: TrainConfig, params: Params, grads: Params, team: Team) -> None:
        self.config, self.params, self.grads, self.team = config, params, grads, team
        self.moments = {
            name: Params(params.shapes, params.flat.dtype) for name in MOMENTS[config.optimizer]
        }
        self._blocks = _blocks(0, params.decayed) + _blocks(params.decayed, params.flat.size)
        self._lanes = np.zeros((len(self._blocks), update.LANES))

    def clip(self) -> Clipping:
        """Measure the gradient. Nothing is written: `step` applies the factor."""
        limit = self.config.grad_clip_value
        norm = self._norm(math.inf)
        clipped = self._norm(limit) if limit and math.isfinite(norm) else norm
        bound = self.config.grad_clip
        scale = bound / clipped if bound and clipped > bound else 1.0
        return Clipping(norm, scale)

    def _norm(self, limit: float) -> float:
        self.team.run(self.norm_items(limit))
        return math.sqrt(self._lanes.sum())

    def norm_items(self, limit: float) -> list[Item]:
        """The kernel calls of `clip`."""
        g = self.grads.flat
        limit = g.dtype.type(limit)
        return self._shared(
            [
                (update.square_sum, (lanes, g, limit, i0, i1))
                for lanes, (i0, i1) in zip(self._lanes, self._blocks, strict=True)
            ]
        )

    def step(self, rate: float, number: int, clipping: Clipping) -> None:
        """Training step ``number`` (from 1) at this learning rate."""
        self.team.run(self.items(rate, number, clipping))

    def items(self, rate: float, number: int, clipping: Clipping) -> list[Item]:
        """The kernel calls of `step`."""
        real = self.params.flat.dtype.type
        limit = real(self.config.grad_clip_value or math.inf)
        arrays = (self.params.flat, *(m.flat for m in self.moments.values()), self.grads.flat)
        kernel, arguments = RULES[self.config.optimizer]
        by_decay = {}
        for decay in (self.config.decay, 0.0):  # vectors do not decay
            numbers = arguments(self.config, rate, number, decay)
            by_decay[decay] = tuple(real(x) for x in numbers)
        calls: list[Call] = []
        for i0, i1 in self._blocks:
            numbers = by_decay[self.config.decay if i0 < self.params.decayed else 0.0]
            calls.append((kernel, (*arrays, *numbers, limit, real(clipping.scale), i0, i1)))
        return self._shared(calls)

    def _shared(self, calls: list[Call]) -> list[Item]:
        """The calls one by one, or all in one where other threads are not worth waking."""
        return [calls] if self.params.flat.size < SMALL else [[call] for call in calls]


def _blocks(first: int, last: int) -> list[tuple[int, int]]:
    return [(i, min(i + BLOCK, last)) for i in range(first, last, BLOCK)]


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
