"""Sections of the lesson that train models."""

from __future__ import annotations

import itertools
import shutil
from typing import Any

import numpy as np
from lesson_base import (
    COLOURS,
    HELD_OUT,
    Lesson,
    below,
    command_of,
    fenced,
    fresh,
    probe_of,
    prompt,
    rounded,
    section,
    text,
)  # fmt: skip
from rows import markdown

import charrnn
from charrnn import gradients
from charrnn.model import Model
from charrnn.unrolled import Probe

LanguageModel = charrnn.LanguageModel

SENTENCE = "Because there was no food left on the market, John had to skip dinner"
CELLS = {
    "rnn": {"model": "rnn"}, "gru": {"model": "gru"}, "lstm": {"model": "lstm"},
}  # fmt: skip
USUAL: dict[str, Any] = dict(hidden_size=128, dropout=0.1, epochs=8, seed=1)


def trained(lesson: Lesson, **options: Any) -> LanguageModel:
    """A model of The Time Machine with the usual options but for these."""
    lm = lesson.train(**(USUAL | options))
    assert not isinstance(lm, str), lm
    return lm


def held_out(n: int = 401) -> str:
    """Characters that no model was trained on, from the beginning of a sentence."""
    part = text()[-HELD_OUT:]
    begin = part.index(". ") + 2
    return part[begin : begin + n]


def loss_of(lm: LanguageModel) -> str:
    """Validation loss, nats per character, at the end of training."""
    return f"{lm.metadata['progress']['val_nats_per_char']:.3f}"


def lag(lm: LanguageModel, share: float = 0.01, path: str = "h") -> str:
    """The lag from which on the median gradient by a state of the lowest layer, ``h`` or
    ``c``, is below a share of that at lag 0."""
    probe = probe_of(lm.model, lm.vocabulary, held_out())
    found = gradients.reach(probe, 50, 200).curve(0, path).falls_below(share)
    return "over 200" if found is None else str(found)


def known(lesson: Lesson) -> None:
    """Train the three models and let commands know them as ``runs/rnn`` and so on."""
    for name, options in CELLS.items():
        lesson.name(trained(lesson, **options), name)


@section
def models(lesson: Lesson) -> str:
    lines, rows = [], []
    for name, options in CELLS.items():
        lm = trained(lesson, **options)
        lines += prompt(command_of("data/timemachine.txt", options | USUAL, f"runs/{name}"))
        rows.append(
            [name, f"{lm.model.params.count:,}", loss_of(lm), lag(lm), lag(lm, 0.001),
             lag(lm, path="c") if name == "lstm" else ""]
        )  # fmt: skip
    head = [
        "cell", "parameters", "validation, nats/char", "by h: below 1 % from lag",
        "below 0.1 % from lag", "by c: below 1 % from lag",
    ]  # fmt: skip
    return fenced(lines) + "\n" + markdown(head, rows) + "\n"


@section
def why_command(lesson: Lesson) -> str:
    known(lesson)
    place = "--text data/timemachine.txt --offset 162000"
    return lesson.command(f"charrnn gradients runs/rnn {place} --show why")


@section
def compare_command(lesson: Lesson) -> str:
    known(lesson)
    runs = " ".join(f"runs/{name}" for name in CELLS)
    return lesson.command(f"charrnn gradients {runs} --prompt '{SENTENCE}' --show compare")


POWERS = (1, 2, 4, 8, 16, 32, 64)


def products_norms(slopes: np.ndarray, W: np.ndarray) -> np.ndarray:
    """Norms of the products of 1 ... K Jacobians diag(slopes) W' (K, H), the last step first."""
    product, norms = np.eye(len(W)), []
    for slope in slopes:
        product = product @ (slope[:, None] * W.T)
        norms.append(gradients.spectral_norm(product))
    return np.array(norms)


@section
def factors(lesson: Lesson) -> str:
    lm = trained(lesson, model="rnn")
    probe = probe_of(lm.model, lm.vocabulary, held_out())
    K, W = max(POWERS), probe.layers[0].p["Wh"]
    why = gradients.why(probe, positions=6, steps=K)
    slopes = 1 - probe.layers[0].values["h"][1:, 0] ** 2
    shuffled = np.random.RandomState(1).permutation(len(W))
    alone = np.array([np.cumprod(slopes[i - np.arange(K)], axis=0).max(axis=1) for i in why.last])
    mixed = [products_norms(slopes[i - np.arange(K)][:, shuffled], W) for i in why.last]
    power = products_norms(np.ones((K, len(W))), W)
    ours = products_norms(slopes[why.last[0] - np.arange(K)], W)
    below(np.abs(ours / why.products[0] - 1).max(), 1e-10)
    columns = {
        "product of the Jacobians": np.median(why.products, axis=0),
        "tanh' of other units": np.median(mixed, axis=0),
        "tanh' alone": np.median(alone, axis=0),
        "Wh alone": power,
        "product of the Jacobians' norms": np.median(why.step_bounds, axis=0),
        "(largest singular value)^k": gradients.spectral_norm(W) ** np.arange(1, K + 1),
    }
    rows = [[str(k), *(rounded(c[k - 1], 2) for c in columns.values())] for k in POWERS]
    gate, half = why.gates[0], K // 2
    slope, stretch = (slopes**2).mean() ** 0.5, (gate.singular_values**2).mean() ** 0.5
    fall = (np.median(why.products[:, -1]) / np.median(why.products[:, half - 1])) ** (1 / half)
    facts = [
        f"Wh: largest singular value {gate.singular_values[0]:.2f}, "
        f"root mean square of all {stretch:.2f}, spectral radius {gate.spectral_radius:.2f}",
        f"tanh': root mean square {slope:.2f}, largest {slopes.max():.2f}",
        f"the two root mean squares multiplied: {slope * stretch:.2f}",
        f"measured factor a step, from k = {half} to {K}: {fall:.2f}",
    ]

    def draw(figure: Any) -> None:
        axes, names = figure.subplots(), ("rnn", "fastrnn", "sky", "relu", "grey", "black")
        for (title, column), colour in zip(columns.items(), names, strict=True):
            style = "--" if colour in ("grey", "black") else "-"
            axes.semilogy(np.arange(1, K + 1), column, style, label=title,
                          color=COLOURS[colour])  # fmt: skip
        axes.set(xlabel="steps k (characters)", ylabel="norm (largest singular value)")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))

    alt = "The norm of the product of k Jacobians, its two factors alone, and two bounds"
    table = markdown(["k", *columns], rows)
    return table + "\n\n" + fenced(facts) + lesson.picture("factors", alt, draw, (8, 3.6))


@section
def eigenvalues(lesson: Lesson) -> str:
    W = trained(lesson, model="rnn").model.params.views["layers.0.Wh"].astype(np.float64)
    S = (W + W.T) / 2
    values = np.linalg.eigvalsh(S)
    worst, rows = 0.0, []
    order = np.argsort(-np.abs(values))
    _, vectors = np.linalg.eigh(S)
    first = vectors[:, order[0]]
    complexes, basis = np.linalg.eig(W)
    leading = basis[:, np.abs(complexes).argmax()]
    plane = np.linalg.qr(np.stack([leading.real, leading.imag], axis=1))[0]
    if abs(leading.imag).max() < 1e-12:
        plane = plane[:, :1]
    x = y = np.random.RandomState(1).normal(size=(len(W), 200))
    for k in range(1, 65):
        x, y = S @ x, W @ y
        x, y = x / np.linalg.norm(x, axis=0), y / np.linalg.norm(y, axis=0)
        of_power = np.linalg.eigvalsh(np.linalg.matrix_power(S, k))
        worst = max(worst, np.abs(np.sort(values**k) - of_power).max() / np.abs(of_power).max())
        if k in POWERS:
            aligned = np.median(np.abs(first @ x))
            inside = np.median(np.linalg.norm(plane.T @ y, axis=0))
            largest = np.abs(of_power).max()
            rows.append([str(k), rounded(largest), f"{aligned:.3f}", f"{inside:.3f}"])
    lines = [
        f"S = (Wh + Wh') / 2: two largest |eigenvalues| {abs(values[order[0]]):.3f}, "
        f"{abs(values[order[1]]):.3f}",
        f"Wh: two largest |eigenvalues| {', '.join(_sizes(complexes))}, leading one "
        + ("real" if plane.shape[1] == 1 else "one of a complex pair"),
        f"eigenvalues of S^k against those of S to the k, k to 64: {below(worst, 1e-10)}",
    ]
    head = ["k", "largest eigenvalue of S^k", "cosine, S^k x and its first", "Wh^k x and its first"]
    return markdown(head, rows) + "\n\n" + fenced(lines)


def _sizes(values: np.ndarray) -> list[str]:
    return [f"{size:.3f}" for size in np.sort(np.abs(values))[:-3:-1]]


@section
def one_direction(lesson: Lesson) -> str:
    lags, rows = (1, 4, 16, 64), []
    for name, options in CELLS.items():
        lm = trained(lesson, **options)
        probe = probe_of(lm.model, lm.vocabulary, held_out())
        shares: dict[int, list[float]] = {k: [] for k in lags}
        for last in (150, 250, 350):
            for k, (_, product) in enumerate(probe.jacobians(0, last, max(lags)), 1):
                if k in lags:
                    squares = np.linalg.svd(product, compute_uv=False) ** 2
                    shares[k].append(squares[0] / squares.sum())
        rows.append([name, *(f"{np.median(shares[k]):.0%}" for k in lags)])
    return markdown(["cell", *(f"k = {k}" for k in lags)], rows) + "\n"


# -- the central point ----------------------------------------------------------------------------

DINNER = range(SENTENCE.index("dinner") - 1, len(SENTENCE) - 1)
"""Losses of the characters of "dinner"."""
PLACES = ("Because", "food", "market", "John", "skip")


def heard(model: Any, vocabulary: Any) -> tuple[Probe, np.ndarray]:
    """Norms (T,) of the gradient of the six losses' sum by the one-hot character at each step."""
    probe = probe_of(model, vocabulary, SENTENCE)
    total = np.zeros(probe.length)
    for step in probe.walk(list(DINNER)):
        total[step.time] = np.linalg.norm(step.input.sum(axis=0))
    return probe, total


@section
def food(lesson: Lesson) -> str:
    rows, curves = [], {}
    untrained, vocabulary = fresh(model="rnn", hidden_size=USUAL["hidden_size"])
    subjects = {"rnn, untrained": (untrained, vocabulary)}
    for name, options in CELLS.items():
        lm = trained(lesson, **options)
        subjects[name] = lm.model, lm.vocabulary
    for name, (model, vocabulary) in subjects.items():
        probe, sizes = heard(model, vocabulary)
        found = gradients.components(probe, list(DINNER))
        residual = max(found.own_residual, found.total_residual)
        below(residual, 1e-10)
        curves[name] = sizes
        places = [_mean(sizes, word) for word in PLACES]
        rows.append(
            [name, f"{probe.losses[DINNER].mean():.2f}", rounded(found.totals["layers.0.Wh"]),
             *(rounded(x, 2) for x in places), rounded(places[1] / places[-1], 2)]
        )  # fmt: skip

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for name, sizes in curves.items():
            style = ":" if "untrained" in name else "-"
            axes.semilogy(sizes, style, color=COLOURS[name.split(",")[0]], label=name)
        letters = SENTENCE[:-1].replace(" ", "␣")
        axes.set_xticks(range(len(letters)), letters, fontsize=7.5, family="DejaVu Sans Mono")
        for word, colour in (("food", "#dddddd"), ("dinner", "#eeeeee")):
            begin = SENTENCE.index(word)
            axes.axvspan(begin - 0.5, begin + len(word) - 0.5, color=colour, zorder=0)
        axes.grid(axis="x", visible=False)
        axes.set(ylabel="norm of the gradient by the character", ylim=(1e-14, 1e2))
        axes.set(xlabel="character read", xlim=(-1, len(letters)))
        axes.legend(loc="lower right", ncols=2)

    head = [
        "model", "loss at dinner, nats/char", "total gradient by Wh",
        *(f"by {word}" for word in PLACES), "food / skip",
    ]  # fmt: skip
    alt = "How much the losses at dinner feel each character of the sentence, for rnn, gru, lstm"
    return markdown(head, rows) + "\n" + lesson.picture("food", alt, draw, (9, 3.8))


def _mean(sizes: np.ndarray, word: str) -> float:
    begin = SENTENCE.index(word)
    return float(sizes[begin : begin + len(word)].mean())


OTHERS = {"food": ("time", "wind", "hope", "milk"), "skip": ("make", "take", "find", "lose")}


@section
def swapped(lesson: Lesson) -> str:
    rows = []
    for name, options in CELLS.items():
        lm = trained(lesson, **options)

        def nats(part: str, lm: LanguageModel = lm) -> float:
            probe = probe_of(lm.model, lm.vocabulary, part)
            return float(probe.losses[DINNER].sum())

        before = nats(SENTENCE)
        moved = [
            [abs(nats(SENTENCE.replace(word, other)) - before) for other in others]
            for word, others in OTHERS.items()
        ]
        rows.append([name, f"{before:.2f}", *(rounded(float(np.mean(m)), 2) for m in moved)])
    head = ["model", "loss of dinner, nats", "mean change, other food", "mean change, other skip"]
    return markdown(head, rows) + "\n"


BANDS = ((0, 0), (1, 4), (5, 16), (17, 64), (65, 399))


@section
def bands(lesson: Lesson) -> str:
    rows = []
    subjects = {"rnn, untrained": fresh(model="rnn", hidden_size=USUAL["hidden_size"])}
    for name, options in CELLS.items():
        lm = trained(lesson, **options)
        subjects[name] = lm.model, lm.vocabulary
    for name, (model, vocabulary) in subjects.items():
        probe = probe_of(model, vocabulary, held_out())
        width, T = probe.layers[0].width, probe.length
        sums = np.zeros((len(BANDS), probe.model.vocab_size, width))
        for step in probe.walk(range(T)):
            steps_back, gates = step.losses - step.time, step.layers[0]["gates"][:, :width]
            for i, (low, high) in enumerate(BANDS):
                rows_of = (steps_back >= low) & (steps_back <= high)
                sums[i, probe.ids[step.time]] += gates[rows_of].sum(axis=0)
        total = sums.sum(axis=0)
        want = probe.gradient(list(range(T))).views["layers.0.Wx"]
        below(np.abs(total - want).max() / np.abs(want).max(), 1e-10)
        size = np.linalg.norm(total) / T
        shares = [np.linalg.norm(part) / np.linalg.norm(total) for part in sums]
        rows.append([name, rounded(size), *(rounded(share, 2) for share in shares)])
    head = [
        "model",
        "total gradient by Wx",
        *(f"lags {a} to {b}" if b else "lag 0" for a, b in BANDS),
    ]
    return markdown(head, rows) + "\n"


# -- remedies -------------------------------------------------------------------------------------

WILD: dict[str, Any] = dict(
    model="rnn", activation="relu", init="identity", hidden_size=128, dropout=0.0,
    optimizer="sgd", max_steps=800, seed=1,
)  # fmt: skip
"""A run that explodes unless something is done about it."""


def outcome(lesson: Lesson, **options: Any) -> str:
    """The validation loss at the end, or the step at which it was over."""
    lm = lesson.train(**(WILD | options))
    if isinstance(lm, str):
        return lm.partition(";")[0].replace("the loss is no longer finite at", "diverged at")
    return loss_of(lm)


@section
def exploding(lesson: Lesson) -> str:
    line = (
        "charrnn train data/timemachine.txt --model rnn --hidden-size 128 --activation relu "
        "--init identity --optimizer sgd --learning-rate 1 --dropout 0 --max-steps 800"
    )
    for name in ("wild", "tame"):
        shutil.rmtree(lesson.cache / "runs" / name, ignore_errors=True)
    wild = lesson.command(f"{line} --grad-clip 0 --out-dir runs/wild", hide="chars/s")
    tame = lesson.command(f"{line} --grad-clip 1 --out-dir runs/tame", hide="chars/s")
    return wild + "\n" + tame


@section
def clipping_and_rate(lesson: Lesson) -> str:
    rates, clips = (0.001, 0.01, 0.1, 1.0, 8.0), (0.0, 1.0, 0.1)
    rows = [
        [f"{clip:g}" if clip else "off"]
        + [outcome(lesson, learning_rate=rate, grad_clip=clip) for rate in rates]
        for clip in clips
    ]
    return markdown(["--grad-clip", *(f"rate {rate:g}" for rate in rates)], rows) + "\n"


@section
def shorter_windows(lesson: Lesson) -> str:
    rows = []
    for T in (2, 4, 8, 16, 64, 256):
        options = dict(grad_clip=0.0, seq_length=T, batch_size=1024 // T)
        found = [outcome(lesson, learning_rate=rate, **options) for rate in (0.001, 0.01)]
        rows.append([str(T), *found])
    return markdown(["--seq-length", "rate 0.001", "rate 0.01"], rows) + "\n"


@section
def windows(lesson: Lesson) -> str:
    lengths, rows = (1, 4, 16, 64, 256), []
    for name, options in CELLS.items():
        found = [
            loss_of(trained(lesson, **options, seq_length=T, batch_size=1024 // T, epochs=4))
            for T in lengths
        ]
        rows.append([name, *found])
    return markdown(["cell", *(f"T = {T}" for T in lengths)], rows) + "\n"


@section
def activations(lesson: Lesson) -> str:
    kinds = {
        "tanh": {}, "sigmoid": {"activation": "sigmoid"}, "relu": {"activation": "relu"},
        "relu, identity": {"activation": "relu", "init": "identity"},
        "tanh, orthogonal": {"init": "orthogonal"},
    }  # fmt: skip
    rows = []
    for title, options in kinds.items():
        lm = trained(lesson, model="rnn", **options)
        probe = probe_of(lm.model, lm.vocabulary, held_out())
        gate = gradients.why(probe, steps=1).gates[0]
        h = probe.layers[0].values["h"][1:, 0]
        never = (h == 0).all(axis=0).mean()
        rows.append(
            [title, loss_of(lm), f"{(h == 0).mean():.0%}", f"{never:.0%}", rounded(gate.slope),
             rounded(gate.singular_values[0]), rounded(gate.spectral_radius), lag(lm)]
        )  # fmt: skip
    head = [
        "activation, --init", "validation, nats/char", "h is 0", "units always 0", "mean slope",
        "largest singular value", "spectral radius", "below 1 % from lag",
    ]  # fmt: skip
    return markdown(head, rows) + "\n"


@section
def decay(lesson: Lesson) -> str:
    rows = []
    for strength in (0.0, 0.01, 0.1, 1.0, 3.0):
        lm = trained(lesson, model="rnn", weight_decay=strength)
        W = lm.model.params.views["layers.0.Wh"].astype(np.float64)
        radius = np.abs(np.linalg.eigvals(W)).max()
        rows.append(
            [f"{strength:g}", loss_of(lm), rounded(gradients.spectral_norm(W)), rounded(radius),
             lag(lm)]
        )  # fmt: skip
    head = [
        "--weight-decay", "validation, nats/char", "largest singular value", "spectral radius",
        "below 1 % from lag",
    ]  # fmt: skip
    return markdown(head, rows) + "\n"


STACK: dict[str, Any] = {"hidden_size": 64, "num_layers": 4}


@section
def links(lesson: Lesson) -> str:
    kinds: dict[str, dict[str, Any]] = {
        "rnn": {"model": "rnn"}, "fastrnn": {"model": "fastrnn"}, "gru": {"model": "gru"},
        "lstm": {"model": "lstm"},
        "rnn, 4 layers of 64": {"model": "rnn"} | STACK,
        "rnn, 4 layers of 64, --residual": {"model": "rnn", "residual": True} | STACK,
        "lstm, 4 layers of 64": {"model": "lstm"} | STACK,
        "lstm, 4 layers of 64, --residual": {"model": "lstm", "residual": True} | STACK,
    }  # fmt: skip
    rows = []
    for title, options in kinds.items():
        lm = trained(lesson, **options)
        probe = probe_of(lm.model, lm.vocabulary, held_out())
        found = gradients.components(probe, list(range(300, probe.length)))
        lowest = np.diagonal(found.norms["layers.0.b"], 300).mean()
        top = np.diagonal(found.norms[f"layers.{len(probe.layers) - 1}.b"], 300).mean()
        ratio = rounded(lowest / top, 2) if len(probe.layers) > 1 else ""
        memory = gradients.why(probe, steps=1).memory_chars
        chars = "" if memory is None else f"{np.median(memory):.1f}, {memory.max():.0f}"
        rows.append([title, loss_of(lm), lag(lm), chars, ratio])
    head = [
        "model", "validation, nats/char", "below 1 % from lag", "memory, chars: median, largest",
        "gradient, lowest / top layer",
    ]  # fmt: skip
    return markdown(head, rows) + "\n"


# -- who learns to recall -------------------------------------------------------------------------

SYMBOLS, NOISE = "ABCD", "abcd"
RECALL: dict[str, Any] = dict(
    hidden_size=64, batch_size=32, bptt="full", val_frac=0.0, dropout=0.0, max_steps=2000,
    eval_every=0, checkpoint_every=0,
)  # fmt: skip
RECORDS = 100
"""In each stream of the training text."""
TESTED = 1000
RATES = (0.003, 0.01)


def records(lag: int, count: int, seed: int) -> str:
    """Texts such as "Bacdb?B": a symbol, ``lag`` steps later a ?, and after it the symbol."""
    generator = np.random.RandomState(seed)
    symbols = generator.randint(len(SYMBOLS), size=count)
    noise = generator.randint(len(NOISE), size=(count, lag - 1))
    return "".join(
        SYMBOLS[s] + "".join(NOISE[i] for i in row) + "?" + SYMBOLS[s]
        for s, row in zip(symbols, noise, strict=True)
    )


def recalled(
    lesson: Lesson, lag: int, seeds: int = 1, **options: Any
) -> tuple[float, LanguageModel]:
    """Share of new records whose symbol the best of some models recalls, and that model."""
    size = lag + 2
    path = lesson.cache / f"recall-{lag}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = records(lag, RECALL["batch_size"] * RECORDS, seed=1) + SYMBOLS[0]
    path.write_text(text, encoding="utf-8")
    best: list[tuple[float, LanguageModel]] = []
    for rate, seed in itertools.product(RATES, range(1, 1 + seeds)):
        own = {"seq_length": size} | RECALL | options | {"learning_rate": rate, "seed": seed}
        lm = lesson.train(path, **own)
        if isinstance(lm, str):
            continue
        ids = lm.vocabulary.encode(records(lag, TESTED, seed=2)).reshape(TESTED, size).T
        found, _ = lm.forward(np.ascontiguousarray(ids[:-1]))
        choices = lm.vocabulary.encode(SYMBOLS)
        said = choices[found["logits"][-1][:, choices].argmax(axis=1)]
        best.append((float((said == ids[-1]).mean()), lm))
    return max(best, key=lambda one: one[0])


LEARNERS: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn tanh": ("rnn", {"model": "rnn"}),
    "rnn tanh, orthogonal": ("sky", {"model": "rnn", "init": "orthogonal"}),
    "rnn relu": ("relu", {"model": "rnn", "activation": "relu"}),
    "rnn relu, identity": ("black", {"model": "rnn", "activation": "relu", "init": "identity"}),
    "fastrnn": ("fastrnn", {"model": "fastrnn"}),
    "lstm": ("lstm", {"model": "lstm"}),
    "gru": ("gru", {"model": "gru"}),
}
LAGS = (5, 10, 20, 40, 80)


@section
def recall(lesson: Lesson) -> str:
    found = {
        name: [recalled(lesson, lag, **options)[0] for lag in LAGS]
        for name, (_, options) in LEARNERS.items()
    }
    rows = [[name, *(f"{share:.0%}" for share in shares)] for name, shares in found.items()]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for marker, (name, (colour, _)) in zip("osD^v<>", LEARNERS.items(), strict=True):
            axes.plot(LAGS, found[name], color=COLOURS[colour], label=name, marker=marker)
        axes.axhline(0.25, color=COLOURS["grey"], linestyle=":", linewidth=1.2)
        axes.text(LAGS[-1], 0.2, "chance", color=COLOURS["grey"], ha="right", va="center")
        axes.set_xscale("log", base=2)
        axes.set_xticks(LAGS, [str(lag) for lag in LAGS])
        axes.set(xlabel="lag (characters)", ylabel="share of symbols recalled", ylim=(0, 1.05))
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))

    alt = "Share of symbols recalled against the lag, for seven networks"
    table = markdown(["network", *(f"lag {lag}" for lag in LAGS)], rows)
    return table + "\n" + lesson.picture("recall", alt, draw, (8, 3.6))


def arriving(model: Model, vocabulary: Any, lag: int) -> str:
    """The gradient by the state after the symbol, as a share of that where it is recalled."""
    shares = []
    for i in range(20):
        probe = probe_of(model, vocabulary, records(lag, 1, seed=100 + i))
        sizes = [np.linalg.norm(s.layers[0][model.cell.states[-1]]) for s in probe.walk([lag])]
        shares.append(sizes[-1] / sizes[0])
    return rounded(float(np.median(shares)), 2)


@section
def recall_reach(lesson: Lesson) -> str:
    lag, rows = 40, []
    for name, (_, options) in LEARNERS.items():
        share, lm = recalled(lesson, lag, **options)
        start = Model(lm.model.config, lm.vocabulary.size)
        start.initialize(lm.config.train.seed)
        found = [arriving(model, lm.vocabulary, lag) for model in (start, lm.model)]
        rows.append([name, f"{share:.0%}", *found])
    return markdown(["network", f"recalled at lag {lag}", "before", "after"], rows) + "\n"


@section
def recall_windows(lesson: Lesson) -> str:
    lag, lengths = 20, (5, 10, 20, 25, 40)
    rows = []
    for name in ("rnn relu, identity", "lstm", "gru"):
        options = LEARNERS[name][1] | {"bptt": "truncated"}
        found = [recalled(lesson, lag, 2, **options, seq_length=T)[0] for T in lengths]
        rows.append([name, *(f"{share:.0%}" for share in found)])
    return markdown(["network", *(f"T = {T}" for T in lengths)], rows) + "\n"
