"""Where the gradient goes on its way back through time: measurements that change nothing.

They are made of the components that a `charrnn.unrolled.Probe` finds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from charrnn.cells.base import SLOPES, Arrays
from charrnn.unrolled import Layer, Probe, Step

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
CHECKED = 8
"""Losses whose own sum of components is compared with an ordinary gradient."""


@dataclass(frozen=True)
class Measurement:
    """Plain numbers and arrays by name."""

    def to_json(self) -> dict[str, Any]:
        """The fields, JSON-ready: arrays become nested lists."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, Measurement):
        return value.to_json()
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


# -- components ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Components(Measurement):
    """Norms of the components of some losses.

    Attributes
    ----------
    losses : (R,) times l, ascending
    nats : (R,) their losses
    norms : parameter or ``input`` -> (R, T): the norm of component (l, e), 0 where e > l
    totals : parameter -> norm of the sum over these l and all e
    own_residual : largest relative difference between the sum over e and the gradient of L_l by
        the ordinary way, over a few l and all tensors: max|a - b| / max|b| of a tensor
    total_residual : the same of the sum over all these l and e
    """

    losses: np.ndarray
    nats: np.ndarray
    norms: Arrays
    totals: dict[str, float]
    own_residual: float
    total_residual: float


def components(
    probe: Probe,
    losses: Sequence[int] | np.ndarray | None = None,
    checked: Sequence[int] | np.ndarray | None = None,
) -> Components:
    """Measure the components of these losses, by default all, and check their sums.

    ``checked`` are those whose own sum is compared, by default `CHECKED` of them, evenly spread.
    """
    times = np.arange(probe.length) if losses is None else np.unique(losses)
    R = len(times)
    if checked is None:
        checked = np.unique(times[np.linspace(0, R - 1, min(R, CHECKED)).astype(int)])
    norms = {name: np.zeros((R, probe.length)) for name in (*probe.model.shapes(), "input")}
    sums = [_Sum(probe, each) for each in (times, *np.reshape(checked, (-1, 1)))]
    for step in probe.walk(times):
        rows = np.searchsorted(times, step.losses)
        for name, values in probe.norms(step).items():
            norms[name][rows, step.time] = values
        for each in sums:
            each.add(step)
    at_head = np.linalg.norm(probe.dlogits[times], axis=1)
    norms["head.by"][np.arange(R), times] = at_head
    norms["head.Wy"][np.arange(R), times] = at_head * np.linalg.norm(probe.output[times], axis=1)
    total, *own = [each.residual() for each in sums]
    totals = {name: float(np.linalg.norm(a)) for name, a in sums[0].gradient().items()}
    return Components(times, probe.losses[times], norms, totals, max(own, default=0.0), total)


class _Sum:
    """The sum over all e of the components of some losses, gathered on their way back."""

    def __init__(self, probe: Probe, losses: np.ndarray) -> None:
        self.probe, self.losses = probe, losses
        config, T = probe.model.config, probe.length
        self.input = np.zeros((T, config.embedding_size or probe.model.vocab_size))
        self.leaves: list[Arrays] = [
            {n: np.zeros((T, layer.values_width(n))) for n in probe.model.cell.leaves}
            for layer in probe.layers
        ]

    def add(self, step: Step) -> None:
        rows = np.isin(step.losses, self.losses)
        self.input[step.time] = step.input[rows].sum(axis=0)
        for mine, found in zip(self.leaves, step.layers, strict=True):
            for name, array in mine.items():
                array[step.time] = found[name][rows].sum(axis=0)

    def gradient(self) -> Arrays:
        """Parameter -> the sum."""
        found = self.probe.gradients_of(0, self.leaves, self.input)
        dlogits = self.probe.dlogits[self.losses]
        found["head.Wy"] = self.probe.output[self.losses].T @ dlogits
        found["head.by"] = dlogits.sum(axis=0)
        return found

    def residual(self) -> float:
        """The largest relative difference of a tensor from the gradient by the ordinary way."""
        want = self.probe.gradient(self.losses).views
        return max(_difference(array, want[name]) for name, array in self.gradient().items())


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / (np.abs(b).max() or 1.0))


# -- reach ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve(Measurement):
    """How one layer's state hears the losses after it.

    Attributes
    ----------
    layer : from 0
    path : a state, ``h`` or ``c``; or ``c alone``: the part of ``c`` that went back through the
        memory's own factor (forget gate, update gate, beta) and through no matrix
    at_zero : (P,) the norm at lag 0, of each position
    quantiles : (5, K + 1) of the norm at lag k, as a share of that at lag 0, over the positions: at
        `QUANTILES`
    """

    layer: int
    path: str
    at_zero: np.ndarray
    quantiles: np.ndarray

    @property
    def median(self) -> np.ndarray:
        """(K + 1,)"""
        return self.quantiles[QUANTILES.index(0.5)]

    def falls_below(self, share: float) -> int | None:
        """The lag from which on the median stays below ``share``; None if it does not so far."""
        above = np.flatnonzero(~(self.median < share))
        lag = int(above[-1]) + 1 if len(above) else 0
        return lag if lag < len(self.median) else None

    def to_json(self) -> dict[str, Any]:
        lags = {f"falls_below_{s:g}": self.falls_below(s) for s in (0.01, 0.001)}
        return super().to_json() | lags


@dataclass(frozen=True)
class Reach(Measurement):
    """The norm of dL_l/dh_(l-k) against k, h after the step; many positions l.

    A state's gradient is total: c's includes what it does through the h of its own step, and that
    of a lower layer's h what it does through the layers above.
    """

    positions: np.ndarray
    curves: list[Curve]

    def curve(self, layer: int, path: str = "h") -> Curve:
        """One of the curves; a negative ``layer`` counts from the top."""
        layer %= 1 + max(c.layer for c in self.curves)
        return next(c for c in self.curves if (c.layer, c.path) == (layer, path))


def reach(probe: Probe, positions: int = 50, lags: int | None = None) -> Reach:
    """Measure how far back the losses are heard.

    ``positions`` losses, evenly spread over the times from ``lags`` on, are sent back ``lags``
    steps, by default half the window.
    """
    T, memory = probe.length, probe.model.cell.states[-1]
    K = T // 2 if lags is None else min(lags, T - 1)
    times = np.unique(np.linspace(K, T - 1, max(1, min(positions, T - K))).astype(int))
    kept = [layer.cell.kept(layer.p, layer.values) for layer in probe.layers]
    norms: dict[tuple[int, str], np.ndarray] = {}
    alone = [np.zeros((0, probe.model.config.hidden_size))] * len(kept)
    for step in probe.walk(times):
        lag = step.losses - step.time
        rows = np.flatnonzero(lag <= K)
        for i, found in enumerate(step.layers):
            paths = {s: found[s] for s in probe.model.cell.states}
            keeps = kept[i]
            if keeps is not None:
                here = found[memory].copy()
                here[: len(alone[i])] = alone[i] * keeps[min(step.time + 1, T - 1), 0]
                alone[i] = paths[f"{memory} alone"] = here
            for path, d in paths.items():
                table = norms.setdefault((i, path), np.zeros((len(times), K + 1)))
                table[rows, lag[rows]] = np.linalg.norm(d[rows], axis=1)
    curves = []
    for (layer, path), table in sorted(norms.items(), key=lambda item: item[0][0]):
        table = table[::-1]  # the walk has the latest first
        start = table[:, :1]
        shares = np.divide(table, start, out=np.zeros_like(table), where=start > 0)
        curves.append(Curve(layer, path, start[:, 0], np.quantile(shares, QUANTILES, axis=0)))
    return Reach(times, curves)


# -- why ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gate(Measurement):
    """What one gate of a layer does in the window; (H,) or (T, H) numbers summed up.

    Attributes
    ----------
    low, high : shares of its values that are saturated: sigmoid below 0.1 and above 0.9, tanh
        below -0.9 and above 0.9, relu 0 (dead) and none
    slope : mean derivative of its activation
    singular_values : (H,) of its block of the recurrent matrix, descending
    spectral_radius : the largest absolute eigenvalue of that block
    """

    name: str
    activation: str
    low: float
    high: float
    slope: float
    singular_values: np.ndarray
    spectral_radius: float


@dataclass(frozen=True)
class Why(Measurement):
    """What makes one layer's gradient vanish or explode.

    Attributes
    ----------
    layer : from 0
    gates : what they do, and their blocks of the recurrent matrix
    memory_chars : (H,) each unit's time constant in characters, -1 / (mean of ln f over the window)
        with f what takes its memory from step to step; inf if nothing is lost; None without such
    last : (P,) where the products below end
    steps : (P, K) norm (largest singular value) of each step's Jacobian, the last step first
    products : (P, K) norm of the product of the last k = 1 ... K Jacobians
    step_bounds : (P, K) product of the k steps' norms, which no product exceeds
    sigma_bounds : (P, K) product of (kept + largest slope * largest singular value of Wh), for
        cells of one gate; else None: no single singular value bounds a gated cell
    """

    layer: int
    gates: list[Gate]
    memory_chars: np.ndarray | None
    last: np.ndarray
    steps: np.ndarray
    products: np.ndarray
    step_bounds: np.ndarray
    sigma_bounds: np.ndarray | None


SATURATED = {"sigmoid": (0.1, 0.9), "tanh": (-0.9, 0.9), "relu": (0.0, np.inf)}


def why(probe: Probe, layer: int = -1, positions: int = 2, steps: int = 32) -> Why:
    """Measure a layer; products of ``steps`` Jacobians end at ``positions`` times."""
    index = layer % len(probe.layers)
    one, T = probe.layers[index], probe.length
    K = min(steps, T)
    lasts = np.unique(np.linspace(K - 1, T - 1, max(1, min(positions, T - K + 1))).astype(int))
    norms = np.array(
        [
            [[spectral_norm(a) for a in pair] for pair in probe.jacobians(index, int(last), K)]
            for last in lasts
        ]
    )
    kept = one.cell.kept(one.p, one.values)
    chars = None
    if kept is not None:
        with np.errstate(divide="ignore"):
            chars = -1 / np.log(np.abs(kept[:, 0])).mean(axis=0)
            chars[chars < 0] = np.inf
    return Why(
        index, _gates(one), chars, lasts, norms[:, :, 0], norms[:, :, 1],
        np.cumprod(norms[:, :, 0], axis=1), _sigma_bounds(one, lasts, K),
    )  # fmt: skip


def _gates(layer: Layer) -> list[Gate]:
    H, found = len(layer.p["Wh"]), []
    for i, (name, activation) in enumerate(layer.cell.squashes.items()):
        block = slice(i * H, (i + 1) * H)
        values, Wh = layer.values["gates"][:, 0, block], layer.p["Wh"][:, block]
        low, high = SATURATED.get(activation, (-np.inf, np.inf))
        below = values <= low if activation == "relu" else values < low
        found.append(
            Gate(
                name, activation, float(below.mean()), float((values > high).mean()),
                float(SLOPES[activation](values).mean()),
                np.linalg.svd(Wh, compute_uv=False),
                float(np.abs(np.linalg.eigvals(Wh)).max()),
            )
        )  # fmt: skip
    return found


def _sigma_bounds(layer: Layer, lasts: np.ndarray, K: int) -> np.ndarray | None:
    slope = layer.cell.slope(layer.p, layer.values["gates"])
    if slope is None:
        return None
    bound = slope[:, 0].max(axis=1) * spectral_norm(layer.p["Wh"])
    kept = layer.cell.kept(layer.p, layer.values)
    if kept is not None:
        bound = bound + np.abs(kept[:, 0]).max(axis=1)
    return np.array([np.cumprod(bound[last - np.arange(K)]) for last in lasts])


def spectral_norm(a: np.ndarray) -> float:
    """The largest singular value of a matrix, however small its elements are."""
    scale = np.abs(a).max()
    if not 0 < scale < np.inf:
        return float(scale)
    a = a / scale
    return float(scale * np.sqrt(np.linalg.eigvalsh(a.T @ a)[-1]))


# -- clipping -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clipping(Measurement):
    """What clipping did in a run, and what it does to W gradients of its model.

    Attributes
    ----------
    limit, value_limit : ``--grad-clip`` and ``--grad-clip-value``; 0 is off
    steps : how many are in the run's metrics
    clipped : share of them whose gradient was shortened by norm
    logged : (N,) gradient norms of the lines of the metrics, before clipping
    scales, elements : (M,) of the lines of ``--log-gradients``: mean factor of clipping by norm,
        and share of the elements that were cut off by value
    names : what the W gradients are called
    norms : (W,) of them, before clipping
    factors : (W,) by which the norm is then shortened; the direction stays
    beyond : (W,) share of the elements that clipping by value cuts off
    angles : (W,) degrees by which that turns the gradient
    same_angles : (W,) degrees by which clipping by value would turn it, if it alone shortened the
        gradient to the norm ``limit``
    """

    limit: float
    value_limit: float
    steps: int
    clipped: float
    logged: np.ndarray
    scales: np.ndarray
    elements: np.ndarray
    names: list[str]
    norms: np.ndarray
    factors: np.ndarray
    beyond: np.ndarray
    angles: np.ndarray
    same_angles: np.ndarray


CLIPPING: Mapping[str, Mapping[str, Any]] = {
    "train": {"clipped": float, "grad_norm": float | None},
    "gradients": {"clip_scale": float, "clipped_elements": float},
}
"""What `clipping` needs of events."""


def clipping(
    events: Iterable[Mapping[str, Any]],
    gradients: Mapping[str, np.ndarray],
    limit: float,
    value_limit: float,
) -> Clipping:
    """Measure clipping from a run's events and from flat gradients (n,) by their names.

    The events have at least what `CLIPPING` says.
    """
    by_kind: dict[str, list[Mapping[str, Any]]] = {"train": [], "gradients": []}
    for event in events:
        by_kind.setdefault(event["event"], []).append(event)

    def column(kind: str, key: str) -> np.ndarray:
        return np.array([event[key] for event in by_kind[kind]], float)  # None becomes NaN

    steps = np.diff(column("train", "step"), prepend=0)
    clipped = float(steps @ column("train", "clipped")) / max(steps.sum(), 1)
    windows = [_clipped(g.astype(np.float64), limit, value_limit) for g in gradients.values()]
    return Clipping(
        limit, value_limit, int(steps.sum()), clipped, column("train", "grad_norm"),
        column("gradients", "clip_scale"), column("gradients", "clipped_elements"),
        list(gradients),
        *np.reshape(windows, (-1, 5)).T,
    )  # fmt: skip


def _clipped(g: np.ndarray, limit: float, value_limit: float) -> tuple[float, ...]:
    """Norm, factor, share beyond, angle, angle of the same shortening by value."""
    norm = float(np.linalg.norm(g))
    cut = np.clip(g, -value_limit, value_limit) if value_limit else g
    after = float(np.linalg.norm(cut))
    factor = min(1.0, limit / after) if limit and after else 1.0
    beyond = float((np.abs(g) > value_limit).mean()) if value_limit else 0.0
    same = g
    if limit and norm > limit:
        low, high = 0.0, float(np.abs(g).max())
        for _ in range(50):  # the norm of the rest grows with the limit
            middle = (low + high) / 2
            same = np.clip(g, -middle, middle)
            low, high = (middle, high) if np.linalg.norm(same) < limit else (low, middle)
    return norm, factor, beyond, _angle(g, cut), _angle(g, same)


def _angle(a: np.ndarray, b: np.ndarray) -> float:
    """Degrees between two vectors; exact for small angles, too."""
    a, b = (x / (np.linalg.norm(x) or 1.0) for x in (a, b))
    return float(np.degrees(2 * np.arctan2(np.linalg.norm(a - b), np.linalg.norm(a + b))))
