"""What single units of a network do over a text, and which of them follow a property of it.

As in Karpathy, Johnson and Fei-Fei (2015), "Visualizing and understanding recurrent networks", but
with a score: for every feature of `charrnn.features` the unit whose values correlate with it most
(Pearson's r) in the first half of the text is looked for, and what is reported is its score in the
second half. The best of hundreds of units in the half that chose it would look better than it is.
Beside it stands the same for the model as it was before training: what comes for free.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from charrnn import page
from charrnn.api import LanguageModel
from charrnn.cells.base import Cell
from charrnn.characters import Characters, cells, characters, letters, quoted
from charrnn.errors import InputError
from charrnn.features import FEATURES, Feature
from charrnn.heatmap import SIGNED, Style, number, scale, shaded_text, table
from charrnn.model import Model
from charrnn.passes import Pass

SEARCHED = 200_000
"""Characters from the text's beginning that are searched, at the most."""
LEAST = 1_000
"""Characters without which there is no search."""
TIMES = 5
"""How often a yes has to begin in each half of the text: less says nothing."""
WARMUP = 1_000
"""Symbols before a part of the text that bring the state about."""
WINDOW = 256
NO_SHADE = 0.1
"""Share of the largest value below which a terminal keeps its own colour."""


class Column(NamedTuple):
    """One value of one unit: layer from 1, name of the value, unit from 0."""

    layer: int
    value: str
    unit: int

    def __str__(self) -> str:
        return f"layer {self.layer}, {self.value} {self.unit}"


class Score(NamedTuple):
    """How well a unit follows a feature, ``r`` in the half of the text that has not chosen it.

    ``first_r`` is that of the half which has: where the signs of both differ, nothing was found.
    ``auc`` is the probability that the unit tells a yes from a no, each drawn at random, in the
    direction of the first half; None for numbers.
    """

    column: Column
    first_r: float
    r: float
    auc: float | None

    @property
    def held(self) -> float:
        """|r|, negative if its sign is not that of the first half."""
        return math.copysign(self.r, self.r * self.first_r)


class Finding(NamedTuple):
    """A feature, how often a yes begins in the second half, and the best units; None if too few.

    ``untrained`` is of the same network before its training.
    """

    feature: str
    times: int | None
    score: Score | None
    untrained: Score | None

    @property
    def gain(self) -> float:
        """|r| beyond the untrained model's, if that one has found anything."""
        if self.score is None or self.untrained is None:
            return -math.inf
        return self.score.held - max(0.0, self.untrained.held)


def value_names(cell: Cell) -> tuple[str, ...]:
    """What a unit has: states, then gates."""
    return tuple(dict.fromkeys((*cell.states, *cell.squashes)))


@dataclass(frozen=True)
class Units:
    """The units of a model and what can be read of them.

    Attributes
    ----------
    values : names of the values that are read of every unit
    layers : numbers of the layers, from 1
    """

    model: Model
    values: Sequence[str]
    layers: Sequence[int]

    @property
    def columns(self) -> list[Column]:
        """All of them, in the order in which `read` gives them."""
        units = range(self.model.config.hidden_size)
        return [Column(i, v, u) for i in self.layers for v in self.values for u in units]

    def read(self, ids: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """Values after every symbol of ids (N,), from a zero state: pieces (n, columns)."""
        run = Pass(self.model, min(WINDOW, len(ids)), 1, "forward")
        state = None
        for t in range(0, len(ids), WINDOW):
            piece = ids[t : t + WINDOW, None]
            part = run.of_length(len(piece))
            part.load(piece)
            part.set_state(state)
            part.run_forward()
            state = part.state()
            work = [part.window.w[i - 1] for i in self.layers]
            yield np.hstack([self._value(w, name) for w in work for name in self.values])

    def _value(self, w: dict[str, NDArray[Any]], name: str) -> NDArray[Any]:
        cell, H = self.model.cell, self.model.config.hidden_size
        if name in cell.states:
            return w[name][1:, 0]
        first = list(cell.squashes).index(name) * H
        return w["gates"][:, 0, first : first + H]

    def over(
        self, ids: NDArray[Any], chars: Characters, first: int, last: int, columns: Sequence[Column]
    ) -> NDArray[np.float64]:
        """Values of ``columns`` after the characters ``first`` to ``last`` - 1, (n, columns).

        The up to `WARMUP` symbols before them bring the state about.
        """
        all_columns = {column: i for i, column in enumerate(self.columns)}
        chosen = [all_columns[column] for column in columns]
        begin = max(0, int(chars.starts[first]) - WARMUP)
        pieces = self.read(ids[begin : chars.starts[last]])
        values = np.concatenate([piece[:, chosen] for piece in pieces])
        return values[chars.starts[first + 1 : last + 1] - 1 - begin].astype(np.float64)


# -- the search -----------------------------------------------------------------------------------


class _Moments:
    """Sums over characters from which the correlations of units with features follow."""

    def __init__(self, features: int, units: int) -> None:
        self.count = 0
        self.u, self.uu = np.zeros((2, units))
        self.f, self.ff = np.zeros((2, features))
        self.fu = np.zeros((features, units))

    def add(self, f: NDArray[np.float64], u: NDArray[np.float64]) -> None:
        self.count += len(u)
        self.u += u.sum(axis=0)
        self.uu += (u * u).sum(axis=0)
        self.f += f.sum(axis=0)
        self.ff += (f * f).sum(axis=0)
        self.fu += np.einsum("cf,cu->fu", f, u)  # too small for the threads of a library

    def correlations(self) -> NDArray[np.float64]:
        """Pearson's r, (features, units); 0 where one of both does not vary."""
        n = self.count
        of_u = np.maximum(self.uu - self.u**2 / n, 0)
        of_f = np.maximum(self.ff - self.f**2 / n, 0)
        products = self.fu - np.outer(self.f, self.u) / n
        # What rounding leaves of a constant's variance is none.
        varies = np.outer(of_f > 1e-10 * self.ff, of_u > 1e-10 * self.uu)
        scale = np.sqrt(np.outer(of_f, of_u))
        return np.divide(products, scale, out=np.zeros_like(products), where=varies)


def correlations(
    units: Units, ids: NDArray[Any], chars: Characters, features: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Pearson's r of features (C, F) and units, for both halves of the text: (2, F, columns)."""
    half = len(chars.text) // 2
    ends = chars.starts[1:] - 1  # a character's value is that after its last byte
    moments = [_Moments(features.shape[1], len(units.columns)) for _ in range(2)]
    t = 0
    for piece in units.read(ids):
        first, last = np.searchsorted(ends, [t, t + len(piece)])
        for moment, (a, b) in zip(
            moments, ((first, min(half, last)), (max(first, half), last)), strict=True
        ):
            if a < b:
                moment.add(features[a:b], piece[ends[a:b] - t].astype(np.float64))
        t += len(piece)
    return np.stack([moment.correlations() for moment in moments])


def area(values: NDArray[np.float64], yes: NDArray[np.bool_]) -> float:
    """The area under the ROC curve: P(a yes's value > a no's) + P(equal) / 2."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    n, m = np.count_nonzero(yes), np.count_nonzero(~yes)
    return float((ranks[yes].sum() - n * (n + 1) / 2) / (n * m))


def search(units: Units, untrained: Model, ids: NDArray[Any], chars: Characters) -> list[Finding]:
    """For every feature the unit that follows it best; what training has gained most comes first.

    ids (N,) are those of the characters.

    Raises
    ------
    InputError : the text is too short
    """
    if len(chars.text) < LEAST:
        raise InputError(
            f"the text has {len(chars.text):,} characters: a search for units needs {LEAST:,}; "
            "name a longer one with --text, or name units with --unit"
        )
    half = len(chars.text) // 2
    values = np.stack([feature.values(chars.text) for feature in FEATURES], axis=1)
    asked = [
        i for i, feature in enumerate(FEATURES)
        if all(_enough(feature, v) for v in (values[:half, i], values[half:, i]))
    ]  # fmt: skip
    plain = Units(untrained, units.values, units.layers)
    scores, baseline = (
        dict(zip(asked, _best(each, ids, chars, values[:, asked], asked), strict=True))
        for each in (units, plain)
    )
    found = [
        Finding(
            feature.name, _begins(values[half:, i]) if feature.yes_or_no else None,
            scores.get(i), baseline.get(i),
        )
        for i, feature in enumerate(FEATURES)
    ]  # fmt: skip
    return sorted(found, key=lambda each: -each.gain)


def _begins(yes: NDArray[np.float64]) -> int:
    """How often a yes begins."""
    return int(np.count_nonzero(np.diff(yes, prepend=0) > 0))


def _enough(feature: Feature, values: NDArray[np.float64]) -> bool:
    """Whether a half of the text says anything of a feature."""
    if feature.yes_or_no:
        return min(_begins(values), _begins(1 - values)) >= TIMES
    return len(np.unique(values)) > 2  # with two it is a yes or no, which is a feature of its own


def _best(
    units: Units, ids: NDArray[Any], chars: Characters, features: NDArray[np.float64],
    asked: Sequence[int],
) -> list[Score]:  # fmt: skip
    """The unit that the first half of the text chooses for each feature, scored in the second."""
    if not asked:
        return []
    chosen_by, scored = correlations(units, ids, chars, features)
    best = np.argmax(np.abs(chosen_by), axis=1)
    columns = units.columns
    half, end = len(chars.text) // 2, len(chars.text)
    values = units.over(ids, chars, half, end, [columns[j] for j in best])
    found = []
    for k, (i, j) in enumerate(zip(asked, best, strict=True)):
        sign = np.sign(chosen_by[k, j]) or 1.0
        auc = area(sign * values[:, k], features[half:, k] > 0) if FEATURES[i].yes_or_no else None
        found.append(Score(columns[j], float(chosen_by[k, j]), float(scored[k, j]), auc))
    return found


# -- what is shown --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """What is wanted of a model.

    Attributes
    ----------
    units : numbers from 0; none are those that the search finds
    layer : from 1; None is all for a search, the top one for ``units``
    values : names; none are all states for a search, the first one for ``units``
    best : how many of the units that were found are shown
    offset, length : characters that are shown; without an offset those from the middle of the text
        on, where units are scored, or of ``units`` from 0 on
    """

    units: Sequence[int] = ()
    layer: int | None = None
    values: Sequence[str] = ()
    best: int = 2
    offset: int | None = None
    length: int = 400


@dataclass(frozen=True)
class View:
    """Units over a part of a text.

    Attributes
    ----------
    searched : characters that were searched, 0 if the text is too short
    among : values of units among which the best were looked for
    findings : see `search`
    columns : what is shown: the values (n, columns) of the characters of ``text``
    offset, of : where the part begins, and the characters of all of the text
    """

    searched: int
    among: int
    findings: Sequence[Finding]
    columns: Sequence[Column]
    values: NDArray[np.float64]
    text: str
    offset: int
    of: int

    def lines(self, style: Style, width: int) -> list[str]:
        """The table of findings, and the text by every unit."""
        lines = self.table()
        firsts = letters(self.text)
        shown = cells(self.text, firsts, style.unicode)
        for i, column in enumerate(self.columns):
            values, top = self._scaled(i, firsts)
            lines += ["", self._title(column), ""]
            shades = np.where(np.abs(values) < NO_SHADE * top, np.nan, (values / top + 1) / 2)
            lines += shaded_text(shown, shades, style, width=width, palette=SIGNED)
            lines += ["", scale(number(-top), f"{number(top)}; {self.extent()}", style, SIGNED)]
        return lines

    def table(self) -> list[str]:
        """The table of findings and what it is about."""
        return [*self._summary(), "", *table(self._rows())] if self.findings else []

    def _summary(self) -> list[str]:
        half, all_ = f"{self.searched // 2:,}", f"{self.searched:,}"
        return [
            f"Of {self.among:,} values of units, the one that follows each feature best: chosen",
            f"by characters 0 to {half} (first r), scored up to {all_} (r, AUC); untrained:",
            "|r| of the network before its training, found in the same way.",
        ]

    def _rows(self) -> list[list[str]]:
        """The table of findings."""
        rows = [["feature", "layer", "unit", "first r", "r", "AUC", "times", "untrained"]]
        for each in self.findings:
            times = "" if each.times is None else f"{each.times:,}"
            if each.score is None or each.untrained is None:
                rows.append([each.feature, "", "", "", "-", "", times, ""])
                continue
            score, column = each.score, each.score.column
            area = "" if score.auc is None else f"{score.auc:.2f}"
            shown = [str(column.layer), f"{column.value} {column.unit}"]
            shown += [f"{score.first_r:.2f}", f"{score.r:.2f}", area, times]
            rows.append([each.feature, *shown, f"{each.untrained.held:.2f}"])
        return rows

    def page(self, title: str, facts: Sequence[str]) -> bytes:
        """The same as an HTML file."""
        firsts = letters(self.text)
        shown = cells(self.text, firsts)
        names = [quoted(character) for character in self.text]
        sections = []
        for i, column in enumerate(self.columns):
            values, top = self._scaled(i, firsts)
            tips = [
                "\n".join(f"{names[k]}  {self.values[k, i]:.3f}" for k in range(a, b))
                for a, b in pairwise([*firsts, len(self.text)])
            ]
            content = [page.Cell(*each) for each in zip(shown, values / top, tips, strict=True)]
            ends = number(-top), f"{number(top)}; {self.extent()}"
            sections.append(page.Section(self._title(column), *ends, content, signed=True))
        facts = [*facts, *self._summary()] if self.findings else facts
        return page.page(title, facts, self._rows() if self.findings else [], sections)

    def to_json(self) -> dict[str, Any]:
        """All numbers."""
        return {
            "searched_chars": self.searched,
            "searched_values": self.among,
            "features": [
                each._asdict() | {"score": _score(each.score), "untrained": _score(each.untrained)}
                for each in self.findings
            ],
            "offset": self.offset,
            "text": self.text,
            "units": [
                column._asdict() | {"values": self.values[:, i].tolist()}
                for i, column in enumerate(self.columns)
            ],
        }

    def _scaled(self, i: int, firsts: Sequence[int]) -> tuple[NDArray[np.float64], float]:
        """A column's values after every letter's last character, and the largest one."""
        values = self.values[[*(j - 1 for j in firsts[1:]), len(self.text) - 1], i]
        return values, float(np.abs(values).max()) or 1.0

    def _title(self, column: Column) -> str:
        """The unit, and what training has made it follow."""
        for each in self.findings:
            if each.score is not None and each.score.column == column:
                return f"{column}: {each.feature} (r {each.score.r:.2f})"
        return str(column)

    def extent(self) -> str:
        """Which part of the text is shown."""
        return f"{len(self.text):,} of {self.of:,} characters, from {self.offset:,}"


def _score(score: Score | None) -> dict[str, Any] | None:
    if score is None:
        return None
    return score.column._asdict() | {k: v for k, v in score._asdict().items() if k != "column"}


def inspect(lm: LanguageModel, text: str | bytes, request: Request, on_unknown: str) -> View:
    """The units that follow features of the text best, or those that are named, over a part of it.

    Raises
    ------
    InputError : the model has no such unit, layer or value; the text has no such part
    """
    ids = lm.vocabulary.encode(text, on_unknown)
    if not len(ids):
        raise InputError("the text has no character that the model knows: give another one")
    chars = characters(lm.vocabulary.decode(ids))
    units = _units(lm.model, request)
    searched = min(SEARCHED, len(chars.text))
    findings: list[Finding] = []
    if searched >= LEAST or not request.units:
        untrained = Model(lm.config.model, lm.vocabulary.size)
        untrained.initialize(lm.config.train.seed)
        part = Characters(chars.text[:searched], chars.starts[: searched + 1])
        findings = search(units, untrained, ids[: part.starts[-1]], part)
    if request.units:
        columns = [c for c in units.columns if c.unit in request.units]
        columns.sort(key=lambda c: request.units.index(c.unit))
    else:
        found = dict.fromkeys(each.score.column for each in findings if each.score is not None)
        columns = list(found)[: request.best]
    offset = request.offset
    if offset is None:
        offset = 0 if request.units else searched // 2
    if offset >= len(chars.text):
        raise InputError(
            f"--offset is {offset:,}: the text has {len(chars.text):,} characters, from 0 on"
        )
    last = min(offset + request.length, len(chars.text))
    values = units.over(ids, chars, offset, last, columns)
    return View(
        searched if findings else 0, len(units.columns), findings, columns, values,
        chars.text[offset:last], offset, len(chars.text),
    )  # fmt: skip


def _units(model: Model, request: Request) -> Units:
    """The units that are searched, or are named."""
    layers, H, known = model.config.num_layers, model.config.hidden_size, value_names(model.cell)
    if request.layer is not None and request.layer > layers:
        raise InputError(f"--layer is {request.layer}: this model's are 1 to {layers}")
    for unit in request.units:
        if unit >= H:
            raise InputError(f"--unit is {unit}: this model's are 0 to {H - 1}")
    for value in request.values:
        if value not in known:
            raise InputError(f"--value is {value!r}: units of this model have {', '.join(known)}")
    states = model.cell.states
    values = request.values or (states[:1] if request.units else states)
    chosen = range(1, layers + 1)
    if request.layer is not None or request.units:
        chosen = range(request.layer or layers, (request.layer or layers) + 1)
    return Units(model, tuple(dict.fromkeys(values)), chosen)
