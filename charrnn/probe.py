"""What ``--log-gradients`` looks at while a model trains; it changes nothing.

`charrnn.gradients` is the laboratory; this is the little of it that a run can afford.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from charrnn.kernels.update import LANES, square_sum
from charrnn.model import Model
from charrnn.params import Params
from charrnn.passes import State

STEPS = 256
"""Characters over which the reach is measured, at the most."""

FAR = 0.01
"""Share of a gradient's norm below which it is out of reach."""


def norms(params: Params) -> dict[str, float]:
    """The Euclidean norm of every tensor."""
    lanes, unlimited = np.empty(LANES), params.flat.dtype.type(np.inf)
    found = {}
    for name, view in params.views.items():
        square_sum(lanes, view.reshape(-1), unlimited, 0, view.size)
        found[name] = math.sqrt(lanes.sum())
    return found


def reach(
    model: Model, ids: np.ndarray, targets: np.ndarray, state: State, dropout: float,
    seed: int, step: int,
) -> dict[str, Any]:  # fmt: skip
    """How far back the loss of a window's last character is felt.

    One pass over ids, targets (T, B), with no other loss than the last step's. The gradient of that
    loss by the first layer's gates before their non-linearity, k characters before, has a norm for
    every row; taken is the median over the rows, as a share of that at k = 0. (By the gates, and
    not by h, because in an LSTM most of it comes back through c.)

    Returns
    -------
    dict
        ``chars``, the first k at which it is below `FAR`, None if it is nowhere in the window;
        ``window``, T; ``lags`` 1, 2, 4, ... below T and the ``shares`` there, None if there is no
        gradient at all.
    """
    T, B = ids.shape
    run = model.train_pass(T, B, dropout)
    masked = np.full_like(targets, -1)
    masked[-1] = targets[-1]
    run.load(ids, masked, count=B)
    run.set_state(state)
    run.set_dropout_key(seed, step)
    run.ways[:] = 1
    run.run_back()
    gates = run.window.w[0]["gates"]
    squares = np.sort(np.einsum("tbg,tbg->tb", gates, gates)[::-1], axis=1).astype(float)
    roots = np.sqrt(squares)
    median = (roots[:, (B - 1) // 2] + roots[:, B // 2]) / 2  # np.median takes a tenth of a ms
    lags = [1 << i for i in range(T.bit_length()) if 1 << i < T]
    if not median[0] > 0:
        return {"chars": None, "window": T, "lags": lags, "shares": None}
    shares = median / median[0]
    far = np.flatnonzero(shares < FAR)
    return {
        "chars": int(far[0]) if len(far) else None,
        "window": T,
        "lags": lags,
        "shares": [float(shares[lag]) for lag in lags],
    }
