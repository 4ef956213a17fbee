"""Small networks that several test files run: how they are made, and the oracle's word on them."""

from __future__ import annotations

from typing import Any, NamedTuple

import naive
import numpy as np

from charrnn.config import ModelConfig
from charrnn.kernels.dropout import link
from charrnn.model import Model
from charrnn.passes import Pass, State

T, B, V, H, E = 4, 5, 23, 9, 6  # all different; V is large enough for each character to occur once

# Every cell, the plain rnn with each of its activations.
KINDS = [("rnn", name) for name in naive.ACTIVATIONS]
KINDS += [(cell, "tanh") for cell in naive.CELLS if cell != "rnn"]

# A residual link of layer 0 needs E == H.
NETWORKS: dict[str, dict[str, Any]] = {
    "one layer": dict(num_layers=1),
    "two layers": dict(num_layers=2),
    "embedding": dict(num_layers=2, embedding_size=E, residual=True, dropout=0.3),
    "residual": dict(num_layers=3, embedding_size=H, residual=True),
    "dropout": dict(num_layers=2, dropout=0.4),
}


class Window(NamedTuple):
    """What goes into a network."""

    ids: np.ndarray
    targets: np.ndarray
    state: State


def make(
    cell: str, activation: str = "tanh", dtype: str = "float64", threads: int = 1, V: int = V,
    **options: Any,
) -> Model:  # fmt: skip
    """A model whose every weight is random: no bias is zero."""
    options = {"hidden_size": H, "dropout": 0.0, **options}
    config = ModelConfig(model=cell, activation=activation, dtype=dtype, **options)
    model = Model(config, V, threads)
    rng = np.random.default_rng(1)
    for view in model.params.views.values():
        view[...] = rng.normal(scale=0.6, size=view.shape)
    model.changed()
    return model


def window(model: Model, T: int = T, B: int = B, seed: int = 2) -> Window:
    """Random characters, targets and initial state."""
    rng = np.random.default_rng(seed)
    ids, targets = rng.integers(model.vocab_size, size=(2, T, B))
    state = {n: rng.normal(size=s.shape).astype(s.dtype) for n, s in model.zero_state(B).items()}
    return Window(ids, targets, state)


def train(model: Model, data: Window, step: int = 3) -> tuple[float, Pass]:
    """A training pass over a window: the mean loss, and the pass with its gradients."""
    run = model.train_pass(*data.ids.shape, model.config.dropout)
    return fill_and_run(run, data, step), run


def fill_and_run(run: Pass, data: Window, step: int = 3) -> float:
    run.load(data.ids, data.targets)
    run.set_state(data.state)
    run.set_dropout_key(1, step)
    return run.run_gradients()


def weight_gradients(run: Pass) -> dict[str, np.ndarray]:
    """Copies under our own names, which are the oracle's, too."""
    return {name: view.copy() for name, view in run.model.grads.views.items()}


def state_gradients(run: Pass) -> State:
    return {s: np.stack([w[f"d{s}0"] for w in run.window.w]) for s in run.model.cell.states}


def masks(run: Pass) -> list[np.ndarray]:
    """The dropout masks of a pass, read off by sending ones through the links."""
    window, found = run.window, []
    none = np.empty((0, 0, 0), run.model.config.dtype)
    for key, w in zip(window.keys, window.w, strict=True):
        mask, ones = np.zeros_like(w["dh"]), np.ones_like(w["dh"])
        link(mask, ones, none, window.places, key, window.threshold, window.scale, 0, mask.shape[1])
        found.append(mask)
    return found


def oracle(
    model: Model, data: Window, masks: list[np.ndarray] | None = None
) -> tuple[float, naive.Arrays, State, State]:
    """Loss, gradients by weights, final states and gradients by initial states, from the oracle."""
    config = model.config
    states = [{n: s[i] for n, s in data.state.items()} for i in range(config.num_layers)]
    loss, grads, finals, dinitials = naive.network_gradients(
        model.params.views, data.ids, data.targets, states,
        cell=config.model, activation=config.activation, residual=config.residual, masks=masks,
    )  # fmt: skip
    after, before = (
        {n: np.stack([s[n] for s in layers]) for n in data.state} for layers in (finals, dinitials)
    )
    return loss, grads, after, before
