"""Sections of the lesson that need no training. A test compares them with the document."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from lesson_base import COLOURS, Lesson, below, fenced, fresh, probe_of, rounded, section, text
from rows import markdown

from charrnn import gradients
from charrnn.cells import get
from charrnn.config import CELLS, DataConfig
from charrnn.truncation import plan
from charrnn.unrolled import Probe
from charrnn.vocab import Vocabulary

START = 0
"""Where the excerpts from the text begin."""


def bptt(p, ids, targets):
    """Mean loss of a window of T characters, and its gradient. One row, from a zero state."""
    Wx, Wh, b, Wy, by = p["Wx"], p["Wh"], p["b"], p["Wy"], p["by"]
    T = len(ids)
    loss, h, dy = 0.0, np.zeros((T + 1, len(Wh))), np.zeros((T, len(by)))
    for t in range(T):
        h[t + 1] = np.tanh(Wx[ids[t]] + h[t] @ Wh + b)  # slot 0 is the initial state
        y = h[t + 1] @ Wy + by
        q = np.exp(y - y.max()) / np.exp(y - y.max()).sum()
        loss -= np.log(q[targets[t]]) / T
        q[targets[t]] -= 1
        dy[t] = q / T

    g = {name: np.zeros_like(array) for name, array in p.items()}
    dh = np.zeros(len(Wh))  # what comes back from the steps after t
    for t in reversed(range(T)):
        dh += dy[t] @ Wy.T  # here the loss of step t joins
        da = dh * (1 - h[t + 1] ** 2)  # factor 1: tanh'
        g["Wx"][ids[t]] += da
        g["Wh"] += np.outer(h[t], da)
        g["b"] += da
        g["Wy"] += np.outer(h[t + 1], dy[t])
        g["by"] += dy[t]
        dh = da @ Wh.T  # factor 2: Wh; on to step t - 1
    return loss, g


@section(quick=True)
def loop(lesson: Lesson) -> str:
    model, vocabulary = fresh(model="rnn", hidden_size=32)
    ids = vocabulary.encode(text()[START : START + 41])
    p = {name.rpartition(".")[2]: array for name, array in model.params.views.items()}
    loss, g = bptt(p, ids[:-1], ids[1:])
    ours = model.gradients(ids[:-1, None], ids[1:, None])
    want = {name.rpartition(".")[2]: array for name, array in model.grads.views.items()}
    worst = max(np.abs(g[n] - want[n]).max() / np.abs(want[n]).max() for n in g)
    lines = [
        f"loss of the first 40 characters   loop {loss:.6f}   charrnn {ours.loss:.6f}",
        f"largest relative difference of the five gradients: {below(worst, 1e-12)}",
    ]
    return fenced(inspect.getsource(bptt).splitlines(), "python") + "\n" + fenced(lines)


@section(quick=True)
def recursion(lesson: Lesson) -> str:
    generator = np.random.RandomState(1)
    T, tau, p = 12, 4, 0.8
    b, c = generator.uniform(0.5, 1.5, T), generator.uniform(0.4, 1.1, T)

    def looped(b: np.ndarray, c: np.ndarray) -> float:
        a = 0.0
        for t in range(T):
            a = b[t] + c[t] * a
        return a

    ways = [np.prod(c[i + 1 :]) for i in range(T)]
    terms = ways * b
    shown = [T - 1, T - 2, T - 4, T - 8, 0]
    rows = [[f"{T - 1 - i}", rounded(b[i]), rounded(ways[i]), rounded(terms[i])] for i in shown]
    exact = looped(b, c)
    assert abs(exact - terms.sum()) < 1e-12
    draws = 200_000
    xi = np.where(generator.uniform(size=(draws, T)) < p, 1 / p, 0.0)
    random = np.zeros(draws)
    for t in range(T):
        random = b[t] + xi[:, t] * c[t] * random
    lines = [
        f"loop                              {exact:.6f}",
        f"closed form                       {terms.sum():.6f}",
        f"the last {tau} terms only            {terms[-tau:].sum():.6f}",
        f"random, {draws:,} draws: mean    {random.mean():.3f}, standard error "
        f"{random.std() / draws**0.5:.3f}",
        f"                   one draw: standard deviation {random.std():.3f}",
    ]
    head = ["steps back, t - i", "b_i", "product of the c between", "term"]
    return markdown(head, rows) + "\n\n" + fenced(lines)


@section(quick=True)
def components(lesson: Lesson) -> str:
    model, vocabulary = fresh(model="rnn", hidden_size=16)
    part = text()[START : START + 4]
    probe = probe_of(model, vocabulary, part)
    found = gradients.components(probe)
    names = {n: n.rpartition(".")[2] for n in found.norms}
    rows = [
        [f"{e + 1}, {part[e]!r}", *(f"{found.norms[n][2, e]:.4f}" for n in names)] for e in range(3)
    ]
    terms = probe.terms(2)
    whole = [
        np.linalg.norm(sum(term[n] for term in terms)) if n != "input" else None for n in names
    ]
    rows.append(["sum of all three", *("" if x is None else f"{x:.4f}" for x in whole)])
    table = markdown(["step", *names.values()], rows)
    check = [
        "sums over e against the gradient of each loss alone: " + below(found.own_residual, 1e-12),
        "sum over l and e against the gradient of them all:   "
        + below(found.total_residual, 1e-12),
    ]
    return table + "\n\n" + fenced(check)


@section
def components_command(lesson: Lesson) -> str:
    return lesson.command(
        "charrnn gradients --model rnn --hidden-size 16 --text data/timemachine.txt --length 12 "
        "--show components"
    )


@section(quick=True)
def longer(lesson: Lesson) -> str:
    model, vocabulary = fresh(model="rnn", hidden_size=16)
    part = text()[START : START + 33]
    found = gradients.components(probe_of(model, vocabulary, part))
    last, norms = 31, found.norms["layers.0.Wh"][31]
    rows = [
        [f"{last - e}", repr(part[e]), rounded(norms[e])] for e in (1, 4, 8, 16, 24, 28, 29, 30, 31)
    ]
    table = markdown(["steps back, l - e", "character at e", "norm by Wh"], rows)
    size = norms[norms > 0]
    near = size[-4:].sum() / size.sum()
    total = found.totals["layers.0.Wh"]
    lines = [
        f"share of the last 4 steps in the sum of the norms: {near:.1%}",
        f"norm of the total gradient by Wh, all 32 losses:   {rounded(total)}",
    ]

    def draw(figure: Any) -> None:
        from matplotlib.colors import LogNorm

        axes = figure.subplots()
        image = np.where(found.norms["layers.0.Wh"] > 0, found.norms["layers.0.Wh"], np.nan)
        shown = axes.imshow(image, norm=LogNorm(1e-8, 1), cmap="cividis", origin="upper")
        ticks = range(32)
        letters = [c if c.strip() else "␣" for c in part]
        axes.set_xticks(ticks, letters[:32], fontsize=8, family="DejaVu Sans Mono")
        axes.set_yticks(ticks, letters[1:33], fontsize=8, family="DejaVu Sans Mono")
        axes.set(xlabel="step e (character read)", ylabel="loss l (character predicted)")
        axes.grid(False)
        figure.colorbar(shown, label="norm of the component by Wh", shrink=0.8)

    alt = "Norms of all components of an untrained network: bright at the diagonal only"
    return table + "\n\n" + fenced(lines) + lesson.picture("components", alt, draw, (6.4, 5.2))


GAINS = {0.5: "sky", 1.0: "lstm", 2.0: "relu", 4.0: "rnn"}


@section(quick=True)
def butterfly(lesson: Lesson) -> str:
    T, tiny, there, back = 61, 1e-5, {}, {}
    for gain in GAINS:
        model, vocabulary = fresh(model="rnn", hidden_size=64, init="orthogonal")
        model.params.views["layers.0.Wh"][:] *= gain
        model.changed()
        ids = vocabulary.encode(text()[START : START + T + 1])
        start = model.zero_state(1)
        moved = {"h": start["h"] + np.random.RandomState(2).normal(0, tiny / 8, (1, 1, 64))}
        outputs = [model.forward(ids[:-1, None], s)[0]["output"][:, 0] for s in (start, moved)]
        there[gain] = np.linalg.norm(outputs[1] - outputs[0], axis=1)
        probe = Probe(model, ids[:-1], ids[1:])
        sizes = [np.linalg.norm(step.layers[0]["h"]) for step in probe.walk([T - 1])]
        back[gain] = np.array(sizes)

    def rate(sizes: np.ndarray, n: int) -> str:
        return rounded((sizes[n] / sizes[0]) ** (1 / n))

    def end(size: float) -> str:
        return rounded(size, 2) if size > 1e-14 else "rounding errors"

    rows = [
        [f"{gain:g}", rate(there[gain], 10), rate(back[gain], 10), end(there[gain][-1]),
         rounded(back[gain][-1] / back[gain][0], 2)]
        for gain in GAINS
    ]  # fmt: skip

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        for gain, colour in GAINS.items():
            left.semilogy(there[gain], color=COLOURS[colour], label=f"{gain:g}")
            right.semilogy(back[gain], color=COLOURS[colour], label=f"{gain:g}")
        left.set(title="forward: a change of 1e-5 at the start", xlabel="step t (characters)")
        left.set(ylabel="difference of the two states", ylim=(1e-18, 1e2))
        right.set(title="backward: the gradient of the last loss", ylim=(1e-18, None))
        right.set(xlabel="steps back k (characters)", ylabel="norm of dL/dh")
        right.legend(title="Wh =\nrotation x", loc="center left", bbox_to_anchor=(1, 0.5))

    head = [
        "Wh = rotation x", "difference, factor a step", "gradient, factor a step",
        "difference at the end", "gradient at the start / end",
    ]  # fmt: skip
    alt = "Forward a small change, backward a gradient: both shrink or grow with the same products"
    return markdown(head, rows) + "\n" + lesson.picture("butterfly", alt, draw, (9, 3.6))


PLANS = {
    "full": DataConfig(bptt="full", batch_size=1),
    "truncated": DataConfig(seq_length=16, batch_size=1),
    "sliding": DataConfig(bptt="sliding", seq_length=16, k1=4, k2=12, batch_size=1),
    "randomized": DataConfig(bptt="randomized", truncation_prob="8:0.1", batch_size=1),
}
SHOWN = 60
"""Characters in the picture of the plans."""


def cuts(name: str) -> list[tuple[int, int, int]]:
    """Groups of losses of the first characters: first loss, end, and how far back they are sent."""
    data, part = PLANS[name], text()
    ids = Vocabulary.build(part).encode(part)
    steps, _ = plan(data, ids, seed=3)
    found, begin, step = [], 0, 0
    while begin < SHOWN:
        piece = steps.piece(step)
        end = begin + len(piece.ids)
        first = end - len(piece.targets)
        k1, k2 = data.look_back if name == "sliding" else (end - first, end - first)
        found += [(t, min(t + k1, end), max(begin, t + k1 - k2)) for t in range(first, end, k1)]
        begin, step = begin + piece.shift, step + 1
    return [group for group in found if group[0] < SHOWN]


@section(quick=True)
def segments(lesson: Lesson) -> str:
    part, lines = text(), []
    for name in PLANS:
        pieces = [part[first : min(end, SHOWN)] for first, end, _ in cuts(name)]
        lines.append(f"{name:<11}" + "|".join(pieces).replace("\n", "\\n").replace(" ", "·"))

    def draw(figure: Any) -> None:
        axes = figure.subplots(4, 1)
        for one, name in zip(axes, PLANS, strict=True):
            for i, (first, end, begin) in enumerate(cuts(name)):
                colour = list(COLOURS.values())[(0, 3, 2)[i % 3]]
                one.barh(0, min(end, SHOWN) - first, left=first, color=colour, alpha=0.35,
                         height=1, align="edge", edgecolor="white", linewidth=1.5)  # fmt: skip
                y = -0.25 - 0.3 * (i % 4) if name == "sliding" else -0.3
                one.plot([begin + 0.1, min(end, SHOWN) - 0.1], [y, y], color=colour, linewidth=2.5)
            for i in range(SHOWN):
                one.text(i + 0.5, 0.5, part[i].replace("\n", "¶").replace(" ", "␣"), ha="center",
                         va="center", fontsize=9, family="DejaVu Sans Mono")  # fmt: skip
            one.set(xlim=(0, SHOWN), ylim=(-1.4 if name == "sliding" else -0.5, 1))
            one.set_title(f"--bptt {name}", loc="left")
            one.axis("off")

    alt = "The first characters cut into groups of losses; bars show how far each goes back"
    return fenced(lines) + lesson.picture("segments", alt, draw, (9, 4.4))


@section(quick=True)
def parameters(lesson: Lesson) -> str:
    D, H = 70, 128
    counts = {
        name: sum(int(np.prod(shape)) for shape in get(name, "tanh").shapes(D, H).values())
        for name in CELLS
    }
    rows = [
        [name, f"{counts[name]:,}", f"{counts[name] / counts['lstm']:.4f}"]
        for name in sorted(CELLS, key=lambda name: counts[name])
    ]
    return markdown(["cell", f"parameters, D {D}, H {H}", "share of lstm"], rows) + "\n"


TANH, SIGMOID, RELU = ({"model": "rnn", "activation": a} for a in ("tanh", "sigmoid", "relu"))
INITS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "tanh, uniform": ("rnn", "-", TANH),
    "tanh, orthogonal": ("rnn", "--", TANH | {"init": "orthogonal"}),
    "sigmoid, uniform": ("grey", "-", SIGMOID),
    "relu, uniform": ("relu", "-", RELU),
    "relu, orthogonal": ("relu", "--", RELU | {"init": "orthogonal"}),
    "relu, identity": ("relu", ":", RELU | {"init": "identity"}),
    "fastrnn": ("fastrnn", "-", {"model": "fastrnn"}),
    "lstm, by c": ("lstm", "-", {"model": "lstm"}),
    "gru": ("gru", "-", {"model": "gru"}),
}
"""Colour, line and options of untrained networks."""


@section(quick=True)
def initial(lesson: Lesson) -> str:
    rows, curves = [], {}
    for title, (_, _, options) in INITS.items():
        model, vocabulary = fresh(hidden_size=64, **options)
        probe = probe_of(model, vocabulary, text()[START : START + 201])
        curve = gradients.reach(probe, 50, 64).curve(0, model.cell.states[-1])
        curves[title] = curve.median
        facts = [""] * 3
        if options["model"] == "rnn":
            gate = gradients.why(probe, steps=1).gates[0]
            facts = [
                rounded(x) for x in (gate.singular_values[0], gate.spectral_radius, gate.slope)
            ]
        rows.append([title, *facts, *(rounded(curve.median[k], 2) for k in (1, 4, 16, 64))])

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for title, (colour, line, _) in INITS.items():
            axes.semilogy(curves[title], line, color=COLOURS[colour], label=title)
        axes.set(xlabel="steps back k (characters)", ylim=(1e-16, None))
        axes.set(ylabel="norm of dL/dh, share of that at k = 0")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))

    head = [
        "network", "largest singular value", "spectral radius", "mean slope",
        *(f"k = {k}" for k in (1, 4, 16, 64)),
    ]  # fmt: skip
    alt = "Gradient norm against lag for initial values and activations of untrained networks"
    return markdown(head, rows) + "\n" + lesson.picture("initial", alt, draw, (7.6, 3.8))
