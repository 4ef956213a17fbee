"""Training steps one after the other, as a program that compiled code repeats.

Where a step takes a tenth of a millisecond, Python between its kernels takes nearly as long: what
differs from step to step is little, and the caches have lost the interpreter meanwhile. So all of
it, for some steps, is put into arrays beforehand, a row each: characters, the numbers of the update
rule, the keys of the dropout. A round of the program is a step:

    take the next row; forward, back; norm; keep what was found; update; carry the state

Nobody looks at a number before the last round has ended. If a loss or a gradient is not finite, the
weights have become useless, and whoever reads the results has to take others.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from charrnn.kernels.rounds import carry, keep, take
from charrnn.optim import Clipping, Optimizer
from charrnn.passes import Pass, merged
from charrnn.threads import Call, Phase, Program, share

CHARS = 1 << 16
"""Characters of a burst, about: 0.15 s of the fastest steps there are."""


class Burst:
    """Steps through windows of the shape of ``window``, each carried from the one before.

    Attributes
    ----------
    most : steps of a burst
    """

    def __init__(self, window: Pass, optimizer: Optimizer) -> None:
        self.window, self.optimizer = window, optimizer
        self.most = max(1, CHARS // window.ids.size)
        keys = window.window.keys if window.dropout else []
        inputs = [window.ids, window.targets, *keys, optimizer.numbers]
        self._inputs = [_words(a) for a in inputs]
        self._rows = [np.zeros((self.most, a.size), a.dtype) for a in self._inputs]
        self._results = np.zeros((self.most, 3))
        self._round = np.zeros(1, np.int64)

    @cached_property
    def program(self) -> Program:
        """A round for each thread."""
        return self.window.team.program(*self.phases())

    def phases(self) -> list[Phase]:
        """The kernel calls of a round."""
        window, optimizer = self.window, self.optimizer
        B = window.ids.shape[1]
        takes: list[Call] = [
            (take, (out, rows, self._round))
            for out, rows in zip(self._inputs, self._rows, strict=True)
        ]
        states = [w[s] for w in window.window.w for s in window.model.cell.states]
        carries = [
            [(carry, (state, *share(B, i, window.parts))) for state in states]
            for i in range(window.parts)
        ]
        results = (self._results, window.total, optimizer.found, optimizer.numbers, self._round)
        pack, *passes = window.phases()
        *norms, factor = optimizer.clip_phases(window.parts)
        *updates, update = optimizer.step_phases(window.parts)
        return [
            merged([takes], pack), *passes, *norms, merged(factor, [[(keep, results)]]), *updates,
            merged(update, carries),
        ]  # fmt: skip

    def run(
        self, ids: NDArray[np.int32], targets: NDArray[np.int32],
        keys: Sequence[Sequence[int]], numbers: Sequence[Sequence[tuple[float, ...]]],
    ) -> list[tuple[float, Clipping]]:  # fmt: skip
        """Make n steps, n up to `most`, from the state that the window has.

        Parameters
        ----------
        ids, targets : (n, T, B)
        keys : `Pass.dropout_keys` of every step
        numbers : `Optimizer.numbers` of every step, but for the factor of clipping

        Returns
        -------
        list
            What `Learner.gradients` returns, of every step.
        """
        n = len(ids)
        self.window.load(ids[0], targets[0])
        layers = np.array(keys, np.uint32).T.copy()
        given = [ids, targets, *layers, np.array(numbers, self.optimizer.numbers.dtype)]
        for rows, values in zip(self._rows, given, strict=True):
            rows[:n] = _words(values).reshape(n, -1)
        self._round[0] = 0
        self.window.run_packing(self.program, n)
        count = self.window.count
        return [
            (loss / count, Clipping(norm, scale))
            for loss, norm, scale in self._results[:n].tolist()
        ]


def _words(array: NDArray[np.generic]) -> NDArray[np.int32]:
    """An array's elements as int32, one after the other: one kernel copies numbers of any type."""
    return array.reshape(-1).view(np.int32)
