"""How surprised a model is by every character of a text, where most, and what it expected.

The surprise of a character is its loss in bits, -log2 of the probability that the model gave it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from charrnn import page
from charrnn.characters import Characters, cells, characters, letters, place, quoted
from charrnn.chart import columns_of
from charrnn.data import Corpus
from charrnn.errors import InputError
from charrnn.heatmap import Style, emphasis, scale, shaded_stream, shaded_text
from charrnn.model import Model
from charrnn.vocab import Vocabulary

BITS = 8.0
"""From here on a surprise has the brightest shade."""
APART = 10
"""Characters between two places of the list, at least: else one odd word would fill it."""
BEFORE, AFTER = 20, 6
"""Columns of text that are listed around a place."""
EXPECTED = 3
"""Likeliest symbols that are named."""
WARMUP = 1000
"""Symbols that bring the state about where the likeliest symbols are looked up."""
WINDOW = 256
ANY = Style(unicode=True)
"""A page can show all."""


class Guess(NamedTuple):
    """A symbol that the model expected, and its probability."""

    symbol: str
    probability: float


class Place(NamedTuple):
    """A character that surprised the model; its position counts from 0, line and column from 1."""

    position: int
    source: str
    line: int
    column: int
    bits: float
    expected: list[Guess]


@dataclass(frozen=True)
class Surprise:
    """A text and the surprise of its characters.

    Attributes
    ----------
    model, vocabulary : whose surprise it is
    ids : (N,) what was read
    chars : the C characters of the text, those that were left out included
    numbers : (S,) of every symbol of the text its number among ``ids``; -1 if it was left out
    symbol_bits : (S,) NaN of what was not predicted: the first symbol, and what was left out
    bits : (C,) the same of every character, summed over its bytes
    sources, documents : the files that were joined, and the symbols with which they begin
    """

    model: Model
    vocabulary: Vocabulary
    ids: NDArray[Any]
    chars: Characters
    numbers: NDArray[np.intp]
    symbol_bits: NDArray[np.float64]
    bits: NDArray[np.float64]
    sources: Sequence[str]
    documents: Sequence[int]

    def places(self, count: int) -> list[Place]:
        """The most surprising characters, at least `APART` from each other, the worst one first."""
        return [self._place(position) for position in _peaks(self.bits, count)]

    def _place(self, position: int) -> Place:
        starts = self.chars.starts
        source = max(0, bisect_right(self.documents, starts[position]) - 1)
        begin = int(np.searchsorted(starts, self.documents[source]))
        line, column = place(self.chars.text, position, begin)
        (expected,) = self.expected(position, position + 1)
        name, bits = self.sources[source], float(self.bits[position])
        return Place(position, name, line, column, bits, expected)

    def expected(self, first: int, last: int) -> list[list[Guess]]:
        """The likeliest symbols at every character from ``first`` on and before ``last``.

        Empty if it was not predicted. At a character of several bytes, its most surprising byte's.
        """
        asked = self.numbers[self._symbols(first, last)]
        read = asked[asked > 0]
        if not len(read):
            return [[] for _ in asked]
        start = int(read[0])
        found = likeliest(self.model, self.ids, start, int(read[-1]) + 1, EXPECTED)
        return [self._guesses(*(a[i - start] for a in found)) if i > 0 else [] for i in asked]

    def _symbols(self, first: int, last: int) -> NDArray[np.intp]:
        """The most surprising symbol of every character."""
        starts = self.chars.starts[first : last + 1]
        bits = np.nan_to_num(self.symbol_bits[starts[0] : starts[-1]], nan=-1.0)
        return np.array(
            [
                a + int(np.argmax(bits[a - starts[0] : b - starts[0]]))
                for a, b in zip(starts[:-1], starts[1:], strict=True)
            ]
        )

    def _guesses(self, symbols: NDArray[Any], probabilities: NDArray[Any]) -> list[Guess]:
        pairs = zip(symbols.tolist(), probabilities.tolist(), strict=True)
        return [Guess(self._name(symbol), p) for symbol, p in pairs]

    def _name(self, id_: int) -> str:
        if id_ == self.vocabulary.unknown:
            return "unknown"
        symbol = self.vocabulary.symbols[id_]
        if isinstance(symbol, int):
            return quoted(chr(symbol) if symbol < 0x80 else chr(0xDC00 + symbol))
        return quoted(symbol)


def surprise(
    model: Model, vocabulary: Vocabulary, corpus: Corpus, losses: NDArray[Any], on_unknown: str
) -> Surprise:
    """The surprise of a text's characters, by the ``losses`` (nats) of all targets that it has.

    ``on_unknown`` is what they were measured with, see `Vocabulary.encode`.
    """
    ids = vocabulary.encode(corpus.text, on_unknown)
    known = vocabulary.known(corpus.text)
    read = np.flatnonzero(known) if on_unknown == "skip" else np.arange(len(known))
    numbers, bits = np.full(len(known), -1), np.full(len(known), np.nan)
    numbers[read] = np.arange(len(read))
    bits[read[1:]] = losses / math.log(2)
    chars = characters(corpus.text)
    return Surprise(
        model, vocabulary, ids, chars, numbers, bits, chars.sums(bits),
        corpus.sources, corpus.documents,
    )  # fmt: skip


def _peaks(values: NDArray[Any], count: int) -> list[int]:
    """Where the largest values are, at least `APART` from each other, the largest first."""
    left = np.nan_to_num(values) > 0
    found: list[int] = []
    for best in np.argsort(-np.nan_to_num(values), kind="stable"):
        if len(found) == count or not values[best] > 0:
            break
        if left[best]:
            found.append(int(best))
            left[max(0, best - APART + 1) : best + APART] = False
    return found


def likeliest(
    model: Model, ids: NDArray[Any], first: int, last: int, count: int
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Likeliest symbols and their probabilities, (n, count), at ids ``first`` to ``last`` - 1.

    ``first`` is at least 1. They are those after the up to `WARMUP` symbols before ``first`` - 1.
    """
    start = first - 1
    before = ids[max(0, start - WARMUP) : start, None]
    state = model.advance(before) if len(before) else None
    symbols, probabilities = [], []
    for t in range(start, last - 1, WINDOW):
        arrays, state = model.forward(ids[t : min(t + WINDOW, last - 1), None], state)
        z = arrays["logits"][:, 0].astype(np.float64)
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        top = np.argsort(-p, axis=1, kind="stable")[:, :count]
        symbols.append(top)
        probabilities.append(np.take_along_axis(p, top, axis=1))
    return np.concatenate(symbols), np.concatenate(probabilities)


# -- what is shown --------------------------------------------------------------------------------


class Part(NamedTuple):
    """The characters of a text that are shown."""

    first: int
    last: int
    of: int

    def __str__(self) -> str:
        whole = self.last - self.first == self.of
        return (
            f"all {self.of:,} characters"
            if whole
            else f"{self.last - self.first:,} of {self.of:,} characters, from {self.first:,}"
        )


def part(chars: Characters, offset: int, length: int) -> Part:
    """The part from ``offset`` on, ``length`` characters or as many as there are."""
    has = len(chars.text)
    check_offset(offset, has)
    return Part(offset, min(offset + length, has), has)


def check_offset(offset: int, has: int) -> None:
    """InputError if a text that has so many characters has none at ``offset``."""
    if offset >= has:
        raise InputError(f"--offset is {offset:,}: the text has {has:,} characters, from 0 on")


def lines(found: Surprise, shown: Part, style: Style, width: int) -> list[str]:
    """The part of the text, shaded by surprise, and what the shades mean."""
    text, firsts = _letters(found.chars, shown)
    bits = _summed(found.bits[shown.first : shown.last], firsts)
    shades = np.clip(bits / BITS, 0, 1)
    return [
        *shaded_text(cells(text, firsts, style.unicode), shades, style, width=width),
        "",
        scale("0", f"{BITS:g} bits or more; {shown}", style),
    ]


def stream(text: str, bits: Sequence[float], style: Style) -> str:
    """A text on its way out to a terminal with colours, and the bits of each character."""
    return shaded_stream(text, [min(cost / BITS, 1.0) for cost in bits], style)


def stream_scale(style: Style) -> str:
    """The line that says what the colours of `stream` mean."""
    return scale("surprise: 0", f"{BITS:g} bits or more", style)


def place_lines(found: Surprise, places: Sequence[Place], style: Style) -> list[str]:
    """A table of places; files are named if there are several."""
    if not places:
        return []
    rows = _rows(found, places, style)
    wide = max([len(HEAD[1]), *(columns_of(row[1]) for row in rows)])
    around = BEFORE + AFTER + 3
    table = [f"{HEAD[0]:>5}  {HEAD[1]:<{wide}}  {HEAD[2]:<{around}}  {HEAD[3]}"]
    for bits, where, (before, letter, after), expected in rows:
        text = " " * (BEFORE - columns_of(before)) + before + emphasis(letter, style) + after
        used = BEFORE + columns_of(letter + after) + (0 if style.colours else 2)
        text += " " * (around - used)
        table.append(f"{bits:>5}  {where}{' ' * (wide - columns_of(where))}  {text}  {expected}")
    return [line.rstrip() for line in table]


HEAD = ("bits", "line", "text", "expected")


def _rows(
    found: Surprise, places: Sequence[Place], style: Style
) -> list[tuple[str, str, page.Context, str]]:
    rows = []
    for each in places:
        where = f"{each.line}:{each.column}"
        if len(found.sources) > 1:
            where = f"{each.source}:{where}"
        context = _context(found.chars.text, each.position, style)
        rows.append((f"{each.bits:.1f}", where, context, _words(each.expected, style)))
    return rows


def _context(text: str, position: int, style: Style) -> page.Context:
    """A character's letter, and what stands before and after it, as they are shown."""
    start = max(0, position - BEFORE)
    piece = text[start : position + AFTER + 1]
    firsts = letters(piece)
    shown = [cell.removesuffix("\n") for cell in cells(piece, firsts, style.unicode)]
    at = bisect_right(firsts, position - start) - 1
    before, after = shown[:at], shown[at + 1 :]
    while columns_of("".join(before)) > BEFORE:
        del before[0]
    while columns_of("".join(after)) > AFTER:
        del after[-1]
    return "".join(before), shown[at], "".join(after)


def _words(expected: Sequence[Guess], style: Style) -> str:
    """``'e' 45 %  'a' 5 %``."""
    words = "  ".join(f"{g.symbol} {page.percent(g.probability)}" for g in expected)
    return words if style.unicode else words.encode("ascii", "backslashreplace").decode()


def _letters(chars: Characters, shown: Part) -> tuple[str, list[int]]:
    text = chars.text[shown.first : shown.last]
    return text, letters(text)


def _summed(bits: NDArray[Any], firsts: Sequence[int]) -> NDArray[Any]:
    """Bits of letters: those of the character and of its marks."""
    return Characters("", np.array([*firsts, len(bits)])).sums(bits)


def html(
    found: Surprise, shown: Part, places: Sequence[Place], title: str, facts: Sequence[str]
) -> bytes:  # fmt: skip
    """The part of the text as a page, with bits and likeliest symbols of every character."""
    text, firsts = _letters(found.chars, shown)
    tips = _tips(found, shown)
    together = ["\n".join(tips[i:j]) for i, j in pairwise([*firsts, len(text)])]
    shades = np.clip(_summed(found.bits[shown.first : shown.last], firsts) / BITS, 0, 1)
    content = [page.Cell(*each) for each in zip(cells(text, firsts), shades, together, strict=True)]
    section = page.Section(f"Surprise: {shown}", "0", f"{BITS:g} bits or more", content)
    rows: list[page.Row] = [HEAD, *_rows(found, places, ANY)] if places else []
    return page.page(title, facts, rows, [section])


def _tips(found: Surprise, shown: Part) -> list[str]:
    """What is said of every character."""
    tips = []
    for i, expected in enumerate(found.expected(shown.first, shown.last), shown.first):
        character, bits = found.chars.text[i], found.bits[i]
        name = quoted(character)
        if not character.isascii() and character.isprintable():
            name += f" U+{ord(character):04X}"
        if not np.isnan(bits):
            chance = page.percent(0.5**bits)
            tips.append(f"{name}  {bits:.2f} bits ({chance})  expected {_words(expected, ANY)}")
        elif found.numbers[found.chars.starts[i]] < 0:
            tips.append(f"{name}  left out: the model does not know it")
        else:
            tips.append(f"{name}  not predicted: nothing stands before it")
    return tips


def to_json(found: Surprise, shown: Part, places: Sequence[Place]) -> dict[str, Any]:
    """Bits of every character of the part, NaN if it was not predicted, and the places."""
    bits = found.bits[shown.first : shown.last]
    return {
        "offset": shown.first,
        "length": shown.last - shown.first,
        "text": found.chars.text[shown.first : shown.last],
        "bits": bits.tolist(),
        "places": [
            each._asdict()
            | {"character": found.chars.text[each.position]}
            | {"expected": [guess._asdict() for guess in each.expected]}
            for each in places
        ],
    }
