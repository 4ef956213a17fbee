"""What ``--log-gradients`` looks at while a model trains; it changes nothing.

`charrnn.gradients` is the laboratory; this is the little of it that a run can afford.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from charrnn.kernels.update import median_norms, step_norms
from charrnn.params import Params
from charrnn.passes import Pass

STEPS = 256
"""Characters over which the reach is measured, at the most."""

LANES = 128
"""Partial sums of a norm: the compiler makes vectors of them."""

FAR = 0.01
"""Share of a gradient's norm below which it is out of reach."""


def norms(params: Params, grads: Params, before: np.ndarray) -> dict[str, dict[str, float]]:
    """The Euclidean norms of a step, for every tensor.

    Those of its gradient, of the update and of the weights that it led to from ``before``, an array
    laid out as ``params.flat``.
    """
    found = np.empty((3, len(params.bounds)))
    step_norms(found, np.empty((3, LANES)), grads.flat, before, params.flat, params.bounds)
    names = ("gradient_norms", "update_norms", "weight_norms")
    return {
        name: dict(zip(params.views, row, strict=True))
        for name, row in zip(names, found.tolist(), strict=True)
    }


def reach(run: Pass, ids: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """How far back the loss of a window's last character is felt.

    One pass over ids, targets (T, B), with no other loss than the last step's; ``run`` holds the
    state before them, and the key of the dropout. The gradient of that loss by the first layer's
    gates before their non-linearity, k characters before, has a norm for every row; taken is the
    median over the rows, as a share of that at k = 0. (By the gates, and not by h, because in an
    LSTM most of it comes back through c.)

    Returns
    -------
    dict
        ``chars``, the first k at which it is below `FAR`, None if it is nowhere in the window;
        ``window``, T; ``lags`` 1, 2, 4, ... below T and the ``shares`` there, None if there is no
        gradient at all.
    """
    T = len(ids)
    run = run.of_length(T, 1)
    run.load(ids, targets[-1:])
    run.window.dx[-1][:-1] = 0
    run.ways[:] = 1
    run.run_back()
    medians = np.empty(T)
    median_norms(medians, np.empty(ids.shape[1]), run.window.w[0]["gates"])
    norms = medians[::-1].tolist()
    far = FAR * norms[0]
    lags = [1 << i for i in range(T.bit_length()) if 1 << i < T]
    if not norms[0] > 0:
        return {"chars": None, "window": T, "lags": lags, "shares": None}
    return {
        "chars": next((k for k, norm in enumerate(norms) if norm < far), None),
        "window": T,
        "lags": lags,
        "shares": [norms[lag] / norms[0] for lag in lags],
    }
