"""Line charts as text: from series of numbers to lines for a terminal.

Nothing here writes. Every line that a function returns is exactly as wide as was asked for, colours
not counted. Curves are drawn in dots, 2 x 4 to a character (braille patterns), or, where the
terminal has plain ASCII only, in one character to a place.
"""

from __future__ import annotations

import itertools
import math
import statistics
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

Piece = tuple[str, str]
"""A text, and the parameters of the escape sequence that colours it: ``("loss", "1;36")``."""

TINY, HUGE = 1e-300, 1e300  # beyond them, arithmetic overflows or loses its digits
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille pattern, by row
BLOCKS, DENSITIES = "▁▂▃▄▅▆▇█", ".:-=+*#"
APART = 4  # columns from one mark to the next of a series, so that the curve below is seen
FAINT = "2"


@dataclass(frozen=True)
class Style:
    """What the terminal can show: more than ASCII, colours."""

    unicode: bool = True
    colour: bool = True


@dataclass(frozen=True)
class Series:
    """A curve: ``y`` over ``x``, in the order of drawing. A number that is not finite is a gap.

    ``mark`` is put on the points, above all lines and not closer than `APART`; ``joined`` points
    have a line between them.
    Lines in ASCII are made of ``letter``. One without a name is not in the legend.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = ""
    mark: str = ""
    letter: str = "*"
    joined: bool = True


@dataclass(frozen=True)
class Rule:
    """A horizontal line at ``y`` with its name, such as a threshold."""

    y: float
    name: str


def chart(
    series: Sequence[Series],
    width: int,
    height: int,
    *,
    x_label: str = "",
    y_label: str = "",
    log: bool = False,
    rules: Sequence[Rule] = (),
    style: Style = Style(),
) -> list[str]:
    """``height`` lines: the units and a legend, the curves with both axes, the unit of x.

    With ``log`` the y axis is logarithmic and what is not positive a gap. The axes span the data;
    several points in one column of dots are drawn at their mean. Where there is no room for
    curves, only the first line is written.
    """
    x_axis = Axis(itertools.chain.from_iterable(s.x for s in series))
    heights = itertools.chain.from_iterable(s.y for s in series)
    y_axis = Axis(itertools.chain(heights, (rule.y for rule in rules)), log)
    rows = height - 3
    labels = y_axis.labels(min(max(rows * 2 // 3, 2), 8))
    margin = max(len(label) for label in labels.values()) + 1 if labels else 1
    columns = width - margin - 1
    lines = [paint(_legend(series, y_label, style), width, style)]
    if rows < 2 or columns < 8:
        return [*lines, *[" " * width] * height][:height]
    canvas = Canvas(columns, rows, style.unicode)
    _draw(canvas, series, rules, x_axis, y_axis)
    bar, tick = ("│", "┤") if style.unicode else ("|", "+")
    at_row = {canvas.y(y_axis.place(y)) // canvas.down: text for y, text in labels.items()}
    for row, cells in enumerate(canvas.cells):
        label = at_row.get(row, "")
        edge = (f"{label:>{margin}}{tick if label else bar}", FAINT)
        lines.append(paint([edge, *cells], width, style))
    lines += [paint(p, width, style) for p in _foot(x_axis, canvas, margin, x_label, style)]
    return lines


def sparkline(values: Sequence[float], width: int, style: Style = Style()) -> str:
    """``values`` in one line, each column the mean of its share; from low to high by their range.

    Fewer values than columns stand at the left.
    """
    axis = Axis(values)
    levels = BLOCKS if style.unicode else DENSITIES
    count = min(width, len(values))
    text = ""
    for i in range(count):
        share = values[i * len(values) // count : (i + 1) * len(values) // count]
        known = [place for v in share if not math.isnan(place := axis.place(v))]
        text += levels[round(statistics.fmean(known) * (len(levels) - 1))] if known else " "
    return text.ljust(width)


class Axis:
    """Where numbers stand between the least and the greatest of ``values``."""

    def __init__(self, values: Iterable[float], log: bool = False) -> None:
        self.log = log
        known = [v for v in values if self.has(v)]
        self.empty = not known
        low, high = min(known, default=1.0), max(known, default=1.0)
        if high - low <= max(1e-9 * max(abs(low), abs(high)), TINY):  # one stands in the middle
            slack = abs(low) / 10 if log or abs(low) > TINY else 1.0
            low, high = low - slack, high + slack
        self.low, self.high = low, high

    def has(self, value: float) -> bool:
        """Whether a number has a place; else it is a gap."""
        return (TINY if self.log else -HUGE) < value < HUGE

    def place(self, value: float) -> float:
        """From 0, at the least, to 1; NaN for a gap."""
        if not self.has(value):
            return math.nan
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            return (math.log(value) - low) / (high - low)
        return (value - self.low) / (self.high - self.low)

    def labels(self, count: int) -> dict[float, str]:
        """Some ``count`` round numbers on the axis -> how they are written; none without data."""
        if self.empty:
            return {}
        ticks = _log_ticks(self.low, self.high, count) if self.log else []
        if ticks:
            return {tick: _scientific(tick) for tick in ticks}
        for enough in (count, 2 * count, 4 * count):  # one alone says nothing of the scale
            step = _round_step((self.high - self.low) / enough)
            first, last = math.ceil(self.low / step - 1e-6), math.floor(self.high / step + 1e-6)
            if first < last:
                break
        return {i * step: number(i * step, step) for i in range(first, last + 1)}


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, ... and their tenths that is at least ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(m * power for m in (1, 2, 5, 10, 20) if m * power >= least * (1 - 1e-9))


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    """Powers of ten with as many digits between as fit; none if the axis has fewer than two."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in (range(1, 10), (1, 2, 5), (1, 3), (1,)):
        ticks = [d * 10.0**p for p in powers for d in digits if low <= d * 10.0**p <= high]
        if len(ticks) <= count:
            return ticks if len(ticks) > 1 else []
    return ticks[:: math.ceil(len(ticks) / count)]


def number(value: float, step: float) -> str:
    """``value`` with the digits that tell it from its neighbours, ``step`` away."""
    for unit, name in ((1e9, "G"), (1e6, "M")) if value else ():
        if unit <= step < 1e12 or (unit <= abs(value) < 1e12 and step >= unit / 1000):
            return number(value / unit, step / unit) + name
    if not 1e-4 <= step < 1e12:
        return _scientific(value)
    digits = max(-math.floor(math.log10(step) + 1e-9), 0)
    return f"{value + 0.0:,.{digits}f}"  # + 0.0: no -0


def _scientific(value: float) -> str:
    """``0.02``, ``1,000``, ``2e-5``."""
    text = f"{value:.3g}" if abs(value) < 1000 or abs(value) >= 1e6 else f"{value:,.0f}"
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if e else text


class Canvas:
    """A field of dots. ``cells`` has a `Piece` of one character for each place, by row."""

    def __init__(self, columns: int, rows: int, unicode: bool = True) -> None:
        self.unicode = unicode
        self.across, self.down = (2, 4) if unicode else (1, 1)
        self.width, self.height = columns * self.across, rows * self.down  # in dots
        self.cells: list[list[Piece]] = [[(" ", "")] * columns for _ in range(rows)]

    def x(self, place: float) -> int:
        """The column of dots at a place from 0, at the left, to 1."""
        return round(place * (self.width - 1))

    def y(self, place: float) -> int:
        """The row of dots at a place from 0, at the bottom, to 1."""
        return round((1 - place) * (self.height - 1))

    def dot(self, x: int, y: int, colour: str = "", letter: str = "*") -> None:
        """Set the dot ``x`` from the left and ``y`` from the top; in ASCII write ``letter``."""
        row, column = y // self.down, x // self.across
        if self.unicode:
            old = ord(self.cells[row][column][0]) - 0x2800
            bits = old if 0 <= old < 256 else 0
            letter = chr(0x2800 + (bits | DOTS[y % self.down][x % self.across]))
        self.cells[row][column] = (letter, colour)

    def line(self, x0: int, y0: int, x1: int, y1: int, colour: str = "", letter: str = "*") -> None:
        """Set the dots from one place to another."""
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        for i in range(steps + 1):
            x, y = x0 + round((x1 - x0) * i / steps), y0 + round((y1 - y0) * i / steps)
            self.dot(x, y, colour, letter)

    def mark(self, x: int, y: int, letter: str, colour: str = "") -> None:
        """Write a character over the dot."""
        self.cells[y // self.down][x // self.across] = (letter, colour)

    def rule(self, y: int, name: str) -> None:
        """A broken line across, its name at the right end."""
        columns = self.width // self.across
        dash = "╌" if self.unicode else "-"
        text = f" {name} ".rjust(columns, dash)[:columns]
        self.cells[y // self.down] = [(letter, FAINT) for letter in text]


def _draw(
    canvas: Canvas, series: Sequence[Series], rules: Sequence[Rule], x_axis: Axis, y_axis: Axis
) -> None:
    for rule in rules:
        place = y_axis.place(rule.y)
        if not math.isnan(place):
            canvas.rule(canvas.y(place), rule.name)
    paths = [list(_path(s, canvas, x_axis, y_axis)) for s in series]
    for s, path in zip(series, paths, strict=True):
        if s.joined:
            before = None
            for point in path:
                if point is not None:
                    canvas.line(*(before or point), *point, s.colour, s.letter)
                before = point
    for s, path in zip(series, paths, strict=True):
        if s.mark:
            free = 0
            for x, y in filter(None, path):
                if x >= free:
                    canvas.mark(x, y, s.mark, s.colour)
                    free = x + APART * canvas.across


def _path(
    series: Series, canvas: Canvas, x_axis: Axis, y_axis: Axis
) -> Iterator[tuple[int, int] | None]:
    """One dot for each column that has points, at their mean; None where the line is broken."""
    points = ((x_axis.place(x), y) for x, y in zip(series.x, series.y, strict=True))
    known = ((canvas.x(x), y) for x, y in points if not math.isnan(x))
    for column, group in itertools.groupby(known, key=lambda point: point[0]):
        heights = [h for _, y in group if not math.isnan(h := y_axis.place(y))]
        if heights:
            yield column, canvas.y(statistics.fmean(heights))
        else:
            yield None


def _legend(series: Sequence[Series], y_label: str, style: Style) -> list[Piece]:
    pieces: list[Piece] = [(y_label, "1")]
    for s in series:
        if not s.name:
            continue
        line = "⠤⠤" if style.unicode else s.letter * 2
        pieces += [("   ", ""), (f"{s.mark or line} {s.name}", s.colour)]
    return pieces


def _foot(
    axis: Axis, canvas: Canvas, margin: int, x_label: str, style: Style
) -> tuple[list[Piece], list[Piece]]:
    """The line of the x axis, and its labels with the unit behind the last."""
    columns = canvas.width // canvas.across
    corner, bar, tick = "└─┬" if style.unicode else "+-+"
    ruler = [bar] * columns
    numbers = ""
    room = columns - len(x_label) - 2
    for value, text in axis.labels(max(columns // 12, 2)).items():
        column = canvas.x(axis.place(value)) // canvas.across
        start = max(column - len(text) // 2, 0)
        if start + len(text) <= room and (start > len(numbers) or not numbers):
            numbers = numbers.ljust(start) + text
            ruler[column] = tick
    numbers = numbers.ljust(columns - len(x_label)) + x_label
    return (
        [(" " * margin + corner + "".join(ruler), FAINT)],
        [(" " * (margin + 1) + numbers[:columns], FAINT)],
    )


def columns_of(text: str) -> int:
    """How many columns of a terminal ``text`` takes."""
    return len(text) if text.isascii() else sum(map(_columns, text))


def _columns(letter: str) -> int:
    if unicodedata.category(letter) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in ("W", "F") else 1


def printable(text: str, style: Style = Style()) -> str:
    """``text`` with ``?`` for all that would move the cursor or cannot be shown."""
    if text.isprintable() and (style.unicode or text.isascii()):
        return text
    return "".join(c if c.isprintable() and (style.unicode or c.isascii()) else "?" for c in text)


def cut(text: str, width: int) -> str:
    """As much of ``text`` as ``width`` columns hold."""
    if len(text) <= width and text.isascii():
        return text
    used = itertools.accumulate(map(_columns, text))
    return "".join(letter for letter, end in zip(text, used, strict=True) if end <= width)


def paint(pieces: Sequence[Piece], width: int, style: Style = Style()) -> str:
    """The `printable` pieces one after another, cut or filled up to ``width`` columns."""
    line, left = "", width
    for colour, group in itertools.groupby(pieces, key=lambda piece: piece[1]):
        text = cut(printable("".join(text for text, _ in group), style), left)
        left -= columns_of(text)
        line += f"\x1b[{colour}m{text}\x1b[0m" if colour and style.colour and text else text
    return line + " " * left
