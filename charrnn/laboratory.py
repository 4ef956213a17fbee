"""`charrnn gradients`: what is wanted of a model and its text, and how that is shown.

A `Request` says what is wanted of a `charrnn.subjects.Subject`; every function ``show_...``
measures and returns a `View`: lines of text, JSON, and a picture to be drawn by `charrnn.plots`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from charrnn import api, gradients, plots, runlog
from charrnn.data import Streams
from charrnn.errors import InputError
from charrnn.gradients import Clipping, Components, Reach, Why
from charrnn.heatmap import Style, bar, heat_map, heat_text, number, table
from charrnn.model import Model, State
from charrnn.subjects import Subject, kind
from charrnn.truncation import plan
from charrnn.unrolled import Probe, in_float64
from charrnn.vocab import Vocabulary

LENGTH = 200
"""Characters of a window, unless something else is asked for."""
WARMUP = 1000
"""Characters before the window that bring the state about, as in training."""
POSITIONS = 50
MOST_LOSSES = 500
"""Losses whose components are measured unless a number is given."""
WINDOWS = 4
"""Windows of the text whose gradients are clipped on trial."""
LONGEST = 1000
"""Characters of such a window, at the most."""
LAGS = tuple(first * 10**zeros for zeros in range(5) for first in (1, 2, 3, 5, 7))
POWERS = (1, 2, 4, 8, 16, 32)
FEW_STEPS = 24
"""Of a shorter way back every step is printed."""
SHARES = (0.01, 0.001)
BAR_DECADES, BAR = 6, 18


@dataclass(frozen=True)
class Request:
    """What is wanted.

    Attributes
    ----------
    offset, length : the window of the text; None is `LENGTH`, or what the text has if it is whole
    positions : losses that are looked at; None is a default of each measurement
    loss : time of the loss whose components are listed; negative from the end
    layer : from 1; None is the top one
    parameter : what the map of components shows: ``Wh``, ``head.Wy``, ``input``, ...
    """

    offset: int = 0
    length: int | None = None
    positions: int | None = None
    loss: int = -1
    layer: int | None = None
    parameter: str = "Wh"
    on_unknown: str = "skip"
    whole: bool = False
    style: Style = Style()
    width: int = 80


class View(NamedTuple):
    """What came out, in three forms."""

    lines: list[str]
    json: dict[str, Any]
    draw: Callable[[Any], None]


def window(subject: Subject, request: Request) -> Probe:
    """A probe of the window that is asked for; the text before it brings the state about."""
    ids = subject.vocabulary.encode(subject.text, request.on_unknown).astype(np.int32)
    start, has = request.offset, len(ids)
    length = request.length
    if length is None:
        length = max(1, has - 1 - start) if request.whole else LENGTH
    if start + length + 1 > has:
        raise _too_short(subject, request, has, length)
    state: State | None = None
    if start:
        before = ids[max(0, start - WARMUP) : start, None]
        state = in_float64(subject.model).advance(before)
    return Probe(subject.model, ids[start : start + length], ids[start + 1 :][:length], state)


def _too_short(subject: Subject, request: Request, has: int, length: int) -> InputError:
    """The error for a text of ``has`` characters, too few for a window."""
    start = request.offset
    missing = subject.vocabulary.missing(subject.text) if request.on_unknown == "skip" else {}
    known = ""
    if missing:
        known = f" that the model knows ({sum(missing.values()):,} others are skipped)"
    advice = "give a longer text"
    if has >= 2:
        option = "--length" if start + 2 <= has else "--offset"
        advice = f"give a smaller {option}, or a longer text"
    return InputError(
        f"the text has {has:,} character{'' if has == 1 else 's'}{known}: a window of "
        f"--length {length:,} from --offset {start:,} and its last target need "
        f"{start + length + 1:,}; {advice}"
    )


def _layer(probe: Probe, request: Request) -> int:
    """The index of the layer that is asked for."""
    layers = len(probe.layers)
    number = layers if request.layer is None else request.layer
    if not 1 <= number <= layers:
        raise InputError(f"--layer is {number}: this model's are 1 to {layers}")
    return number - 1


def _heading(subject: Subject, probe: Probe, request: Request) -> list[str]:
    nats = float(probe.losses.mean())
    what = kind(subject.model.config)
    return [
        subject.name if what in subject.name else f"{subject.name}, {what}",
        f"{probe.length:,} characters from {request.offset:,}: {nats:.3f} nats/char  "
        f"{nats / math.log(2):.3f} bits/char  perplexity {np.exp(nats):.2f}",
    ]


def _json(subject: Subject, probe: Probe, request: Request) -> dict[str, Any]:
    return {
        "model": subject.name,
        "config": dataclasses.asdict(subject.model.config),
        "offset": request.offset,
        "length": probe.length,
        "nats_per_char": float(probe.losses.mean()),
    }


# -- what is shown ------------------------------------------------------------------------------


def show_overview(subject: Subject, request: Request) -> View:
    """Reach and its reasons, in short."""
    probe = window(subject, request)
    reach, why = _reach(probe, request), _why(probe, request)
    lines = [
        *_heading(subject, probe, request),
        *("", "The gradient of a loss by the state k characters before it:"),
        *_falls(reach),
        "",
        *_gate_table(why),
        *_memory(why),
        *("", *_jacobian_table(why)),
    ]
    json = _json(subject, probe, request) | {"reach": reach.to_json(), "why": why.to_json()}
    return View(lines, json, lambda figure: plots.overview(figure, reach, why))


def show_reach(subject: Subject, request: Request) -> View:
    """How far back the losses are heard."""
    probe = window(subject, request)
    reach, layer = _reach(probe, request), _layer(probe, request)
    lines = [
        *_heading(subject, probe, request),
        "",
        f"|dL_l/dh_(l-k)| of layer {layer + 1} as a share of its value at k = 0: median and",
        f"quantiles of {len(reach.positions)} positions l; bar: of h, from 1e-{BAR_DECADES} to 1",
        *_reach_table(reach, layer, request.style),
        "",
        *_falls(reach),
    ]
    json = _json(subject, probe, request) | {"reach": reach.to_json()}
    return View(lines, json, lambda figure: plots.reach(figure, {subject.name: reach}))


def _reach(probe: Probe, request: Request) -> Reach:
    return gradients.reach(probe, request.positions or POSITIONS)


def _reach_table(reach: Reach, layer: int, style: Style) -> list[str]:
    h = reach.curve(layer)
    others = [c for c in reach.curves if c.layer == layer and c.path != "h"]
    low, _, middle, _, high = h.quantiles
    rows = [["k", "10 %", "median", "90 %", *(c.path for c in others), ""]]
    for k in _lags(len(middle) - 1):
        share = 1 + math.log10(middle[k]) / BAR_DECADES if middle[k] > 0 else 0.0
        shown = [low[k], middle[k], high[k], *(c.median[k] for c in others)]
        rows.append([str(k), *map(number, shown), bar(share, BAR, style).ljust(BAR)])
    return table(rows)


def _lags(last: int) -> list[int]:
    """Lags worth a line, the last one included."""
    return sorted({*(k for k in LAGS if k <= last), last} - {0})


def _falls(reach: Reach) -> list[str]:
    heads = [f"below {100 * share:g} %" for share in SHARES]
    rows = [["median over positions, k in characters", *heads]]
    for curve in reach.curves:
        ends = [curve.falls_below(share) for share in SHARES]
        most = f"> {len(curve.median) - 1}"
        words = [most if k is None else str(k) for k in ends]
        rows.append([f"layer {curve.layer + 1}, {curve.path}", *words])
    return table(rows)


def show_why(subject: Subject, request: Request) -> View:
    """What makes the gradient vanish or explode."""
    probe = window(subject, request)
    why = _why(probe, request)
    lines = [
        *_heading(subject, probe, request),
        "",
        *_gate_table(why),
        *_memory(why),
        *("", *_jacobian_table(why)),
    ]
    json = _json(subject, probe, request) | {"why": why.to_json()}
    return View(lines, json, lambda figure: plots.why(figure, why))


def _why(probe: Probe, request: Request) -> Why:
    return gradients.why(probe, _layer(probe, request), min(request.positions or 2, 8))


def _gate_table(why: Why) -> list[str]:
    rows = [["gate", "", "low", "high", "slope", "sigma max", "median", "min", "radius"]]
    for gate in why.gates:
        sigma = gate.singular_values
        shown = [gate.slope, sigma[0], float(np.median(sigma)), sigma[-1], gate.spectral_radius]
        shares = [f"{100 * x:.0f} %" for x in (gate.low, gate.high)]
        rows.append([gate.name, gate.activation, *shares, *map(number, shown)])
    return [
        f"Layer {why.layer + 1}. Gates in this window: shares saturated low and high (sigmoid",
        "below 0.1, above 0.9; tanh beyond 0.9; relu 0), mean slope of the activation;",
        "singular values and spectral radius of their blocks of Wh:",
        *table(rows),
    ]


def _memory(why: Why) -> list[str]:
    if why.memory_chars is None:
        return []
    shown = np.quantile(why.memory_chars, [0.1, 0.5, 0.9, 1.0], method="nearest")
    low, middle, high, most = map(number, shown)
    return [
        f"memory of a unit, characters: 10 % {low}, median {middle}, 90 % {high}, longest {most}"
    ]


def _jacobian_table(why: Why) -> list[str]:
    """Norms of products of Jacobians, the median over where they end."""
    rows = [["product of the last k Jacobians"], ["norm"], ["at most: the k norms multiplied"]]
    bounds = [why.products, why.step_bounds]
    if why.sigma_bounds is not None:
        rows.append(["at most: slope, sigma max of Wh"])
        bounds.append(why.sigma_bounds)
    K = why.products.shape[1]
    for k in (k for k in POWERS if k <= K):
        rows[0].append(f"k {k}")
        for row, bound in zip(rows[1:], bounds, strict=True):
            row.append(number(float(np.median(bound[:, k - 1]))))
    return table(rows)


def show_components(subject: Subject, request: Request) -> View:
    """The parts of earlier steps in the gradients of the losses."""
    probe = window(subject, request)
    loss = request.loss + probe.length if request.loss < 0 else request.loss
    if not 0 <= loss < probe.length:
        raise InputError(
            f"--loss is {request.loss}: the window has 0 to {probe.length - 1}, and -1 for the last"
        )
    count = min(request.positions or MOST_LOSSES, probe.length)
    losses = np.union1d(np.linspace(0, probe.length - 1, count).astype(int), [loss])
    few = np.linspace(0, len(losses) - 1, gradients.CHECKED).astype(int)
    found = gradients.components(probe, losses, np.union1d(losses[few], [loss]))
    name = _parameter(probe, request, found)
    lines = [
        *_heading(subject, probe, request),
        "",
        *_components_table(probe, request, subject.vocabulary, found, loss),
        "",
        f"The text up to loss {loss}, shaded by the input's components:",
        *_shaded_text(probe, request, subject.vocabulary, found, loss),
        "",
        f"{name}: loss l from above to below, step e from left to right",
        *heat_map(found.norms[name], request.style, width=request.width - 2, height=20),
        "",
        f"sum over e = the gradient of L_l, within {found.own_residual:.1e}",
        f"sum over l and e = the total gradient, within {found.total_residual:.1e}",
    ]
    json = _json(subject, probe, request) | {"components": found.to_json()}
    return View(lines, json, lambda figure: plots.components(figure, found, name))


def _parameter(probe: Probe, request: Request, found: Components) -> str:
    own = f"layers.{_layer(probe, request)}.{request.parameter}"
    for name in (own, request.parameter):
        if name in found.norms:
            return name
    names = ", ".join(found.norms)
    raise InputError(f"--parameter is {request.parameter!r}: this model has {names}")


def _components_table(
    probe: Probe, request: Request, vocabulary: Vocabulary, found: Components, loss: int
) -> list[str]:
    """One loss's components from far to near."""
    prefix = f"layers.{_layer(probe, request)}."
    columns = [n for n in found.norms if n.startswith(prefix) or n in ("embedding", "input")]
    of_loss = {n: found.norms[n][list(found.losses).index(loss)] for n in found.norms}
    far = range(loss + 1) if loss < FEW_STEPS else [loss - k for k in _lags(loss)[::-1]] + [loss]

    def symbol(id_: int) -> str:
        return "<unknown>" if id_ == vocabulary.unknown else api.shown(vocabulary.symbols[id_])

    rows = [["e", "read", *(n.removeprefix(prefix) for n in columns)]]
    for e in far:
        rows.append([str(e), symbol(probe.ids[e]), *(number(of_loss[n][e]) for n in columns)])
    own = probe.gradient([loss]).views
    sums = [number(float(np.linalg.norm(own[n]))) if n in own else "" for n in columns]
    rows.append(["all e", "", *sums])
    totals = [number(found.totals[n]) if n in found.totals else "" for n in columns]
    rows.append(["all l", "", *totals])
    head = "  ".join(f"{n} {number(of_loss[n][loss])}" for n in ("head.Wy", "head.by"))
    return [
        f"Loss {loss}, {symbol(probe.targets[loss])} after {symbol(probe.ids[loss])}, "
        f"{probe.losses[loss]:.3f} nats. Layer {_layer(probe, request) + 1}: norms of what step e "
        "adds",
        "to its gradient; all e: of its whole gradient; all l: of the sum over the losses",
        *table(rows),
        f"e = {loss} only: {head}",
    ]


def _shaded_text(
    probe: Probe, request: Request, vocabulary: Vocabulary, found: Components, loss: int
) -> list[str]:
    """What the loss hears of every character that was read."""
    norms = found.norms["input"][list(found.losses).index(loss), : loss + 1]
    symbols = [vocabulary.symbols[i] for i in probe.ids[: loss + 1]]
    text = [chr(s) if isinstance(s, int) else s for s in symbols]
    text = [s if s.isprintable() else "·" if request.style.unicode else " " for s in text]
    return heat_text(text, norms, request.style, width=request.width - 2)


def show_clipping(subject: Subject, request: Request) -> View:
    """What clipping did in a run, and does to its gradients."""
    lm = subject.lm
    if lm is None:
        raise InputError("--show clipping needs a RUN: it reads what its training has logged")
    train, path = lm.config.train, Path(lm.path).parent / "metrics.jsonl"
    found = gradients.clipping(
        runlog.read(path, gradients.CLIPPING), _window_gradients(lm, subject, request),
        train.grad_clip, train.grad_clip_value,
    )  # fmt: skip
    norms = [number(x) for x in _quantiles(found.logged)]
    above = found.logged[found.logged > found.limit] if found.limit else found.logged[:0]
    shortened = ""
    if len(above) and not found.value_limit:  # which comes first, and is not in the logged norm
        shortened = f", logged ones x {number(float(np.median(found.limit / above)))} (median)"
    lines = [
        f"{subject.name}, {found.steps:,} steps",
        f"--grad-clip {found.limit:g}, --grad-clip-value {found.value_limit:g} (0 is off)",
        f"{found.clipped:.1%} of the steps had their gradient shortened by norm{shortened}",
        *_logged_clips(found),
        "logged norms: 10 % {}  median {}  90 % {}  largest {}".format(*norms),
        *("", "Gradients of windows of the text, with the first weights and with those of now:"),
    ]
    rows = [["window", "norm", "by norm", "cut by value", "turned by", "same by value"]]
    for i in range(len(found.norms)):
        turned, same = (f"{x[i]:.3g} deg" for x in (found.angles, found.same_angles))
        cut = f"{100 * found.beyond[i]:.2g} %"
        numbers = number(found.norms[i]), f"x {found.factors[i]:.3f}"
        rows.append([found.names[i], *numbers, cut, turned, same])
    lines += [
        *table(rows),
        "Clipping by norm keeps the direction. The last column: how far the gradient",
        "would turn if clipping by value alone brought its norm down to --grad-clip.",
    ]
    json = {"model": subject.name, "clipping": found.to_json()}
    return View(lines, json, lambda figure: plots.clipping(figure, found))


def _logged_clips(found: Clipping) -> list[str]:
    """What ``--log-gradients`` has kept of them."""
    if not len(found.scales):
        return []
    return [
        f"--log-gradients: by norm x {found.scales.mean():.3f} (mean), "
        f"{100 * found.elements.mean():.2g} % of the elements cut by value"
    ]


def _quantiles(values: np.ndarray) -> np.ndarray:
    values = values[np.isfinite(values)]
    return np.quantile(values, [0.1, 0.5, 0.9, 1.0]) if len(values) else np.full(4, np.nan)


def _window_gradients(
    lm: api.LanguageModel, subject: Subject, request: Request
) -> dict[str, np.ndarray]:
    """Flat gradients of windows as in training, evenly spread over the text; no dropout."""
    ids = subject.vocabulary.encode(subject.text, request.on_unknown)
    as_trained, _ = plan(lm.config.data, ids)
    streams = Streams(ids, as_trained.batch_size)
    T = min(as_trained.seq_length, LONGEST, streams.length)
    last = streams.length // T - 1
    start = Model(lm.config.model, lm.vocabulary.size)
    start.initialize(lm.config.train.seed)
    found = {}
    for when, model in (("start", start), ("now", lm.model)):
        for index in np.unique(np.linspace(0, last, min(WINDOWS, last + 1)).astype(int)):
            t = int(index) * T
            state = model.advance(streams.part(max(0, t - T), t)[0]) if t else None
            model.gradients(*streams.part(t, t + T), state)
            found[f"{when}, from {t:,}"] = model.grads.flat.copy()
    return found


def show_compare(subjects: Sequence[Subject], request: Request) -> View:
    """Several models side by side, each by its chosen layer."""
    heads = ["model", "nats", "k: 1 %", "0.1 %", "sigma", "radius", "slope", "|J|", "|J 16|"]
    rows, json = [heads], []
    reaches: dict[str, Reach] = {}
    for subject in subjects:
        probe = window(subject, request)
        reach, why = _reach(probe, request), _why(probe, request)
        curve = reach.curve(why.layer)
        ends = [curve.falls_below(share) for share in SHARES]
        most = f"> {len(curve.median) - 1}"
        k = min(16, why.products.shape[1])
        numbers = [
            max(g.singular_values[0] for g in why.gates),
            max(g.spectral_radius for g in why.gates),
            float(np.mean([g.slope for g in why.gates])),
            float(np.median(why.steps)),
            float(np.median(why.products[:, k - 1])),
        ]
        shown = [most if end is None else str(end) for end in ends]
        nats = f"{probe.losses.mean():.3f}"
        rows.append([_short(subject.name), nats, *shown, *(number(x, 2) for x in numbers)])
        reaches[_unique(subject.name, reaches)] = reach
        measured = {"reach": reach.to_json(), "why": why.to_json()}
        json.append(_json(subject, probe, request) | measured)
    lines = [
        *table(rows),
        "",
        "nats: per character of the window; k: characters from which on the median of",
        "|dL_l/dh_(l-k)| stays below that share of its value at k = 0; sigma, radius:",
        "largest singular value and absolute eigenvalue of a gate's block of Wh; slope:",
        "mean derivative of the activations; |J|, |J 16|: norm of a step's Jacobian and",
        "of the product of the last 16.",
    ]
    return View(lines, {"models": json}, lambda figure: plots.reach(figure, reaches))


def _short(name: str, most: int = 20) -> str:
    """The end of a long name, which tells paths apart."""
    name = name.removesuffix(".safetensors")
    return name if len(name) <= most else "…" + name[1 - most :]


def _unique(name: str, taken: Any) -> str:
    return name if name not in taken else _unique(name + " again", taken)


SHOWS: dict[str, Callable[[Subject, Request], View]] = {
    "overview": show_overview,
    "components": show_components,
    "reach": show_reach,
    "why": show_why,
    "clipping": show_clipping,
}


def view(show: str | None, subjects: Sequence[Subject], request: Request) -> View:
    """What ``show`` names; None is an overview of one model, and compares several."""
    if show == "compare" or (show is None and len(subjects) > 1):
        return show_compare(subjects, request)
    return SHOWS[show or "overview"](subjects[0], request)
