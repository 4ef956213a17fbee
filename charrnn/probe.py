"""What ``--log-gradients`` looks at while a model trains; it changes nothing.

`charrnn.gradients` is the laboratory; this is the little of it that a run can afford.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from charrnn.kernels.update import median_norms, step_norms
from charrnn.model import Model
from charrnn.passes import Pass

STEPS = 256
"""Characters over which the reach is measured, at the most."""

FAR = 0.01
"""Share of a gradient's norm below which it is out of reach."""


class Norms:
    """The Euclidean norms of a step, for every tensor: of gradient, update and weights."""

    def __init__(self, model: Model) -> None:
        params, grads = model.params, model.grads
        self._names = list(params.views)
        self._before, self._after = np.empty_like(params.flat), params.flat
        self._found = np.empty((3, len(self._names)))
        arrays = (self._found, grads.flat, self._before, self._after, params.bounds)
        self._program = model.team.program([[(step_norms, arrays)]])

    def begin(self) -> None:
        """The weights are about to be updated."""
        self._before[:] = self._after

    def measure(self) -> dict[str, dict[str, float]]:
        """``gradient_norms``, ``update_norms`` and ``weight_norms``, which the update led to."""
        self._program.run()
        kinds = ("gradient_norms", "update_norms", "weight_norms")
        rows = zip(kinds, self._found.tolist(), strict=True)
        return {kind: dict(zip(self._names, row, strict=True)) for kind, row in rows}


class Reach:
    """How far back the loss of a window's last character is felt.

    One pass with no other loss than the last step's. The gradient of that loss by the first layer's
    gates before their non-linearity, k characters before, has a norm for every row; taken is the
    median over the rows, as a share of that at k = 0. (By the gates, and not by h, because in an
    LSTM most of it comes back through c.)

    Parameters
    ----------
    run : a pass with gradients, whose arrays are used, for windows of its length
    """

    def __init__(self, run: Pass) -> None:
        T, B = run.ids.shape
        self.run = run.of_length(T, 1)
        self._medians = np.empty(T)
        self._lags = [1 << i for i in range(T.bit_length()) if 1 << i < T]
        gates = self.run.window.w[0]["gates"]
        medians = (median_norms, (self._medians, np.empty(B), gates))
        self._program = run.team.program(*self.run.there_and_back(), [[medians]])

    def measure(self, ids: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """The reach in a window of ids, targets (T, B).

        The run holds the state before them, and the key of the dropout.

        Returns
        -------
        dict
            ``chars``, the first k at which the share is below `FAR`, None if it is nowhere in the
            window; ``window``, T; ``lags`` 1, 2, 4, ... below T and the ``shares`` there, None if
            there is no gradient at all.
        """
        run = self.run
        run.load(ids, targets[-1:])
        run.window.dx[-1][:-1] = 0
        run.ways[:] = 1
        run.run_packing(self._program)
        norms = self._medians[::-1].tolist()
        far, chars, shares = FAR * norms[0], None, None
        if norms[0] > 0:
            chars = next((k for k, norm in enumerate(norms) if norm < far), None)
            shares = [norms[lag] / norms[0] for lag in self._lags]
        return {"chars": chars, "window": len(norms), "lags": self._lags, "shares": shares}
