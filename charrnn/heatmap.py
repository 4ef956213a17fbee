"""Heat maps, bars and tables as lines of text, for terminals and files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TextIO

import numpy as np

from charrnn.chart import columns_of

UPPER, LOWER = "▀▄"  # one half has the text's colour, the other one the background's
BLOCK = "█"
RESET = "\x1b[0m"


class Palette(NamedTuple):
    """Shades for levels from 0 to 1."""

    anchors: np.ndarray
    """Colours at even steps, (n, 3)."""
    of_256: tuple[int, ...]
    """Much the same among the 256 colours."""
    ramp: str
    """Characters, where there are no colours."""
    bright: float
    """Level from which on text is black, not white."""


VIRIDIS = Palette(  # matplotlib's: dark to bright, even steps of lightness
    np.array([(68, 1, 84), (70, 50, 127), (54, 92, 141), (39, 127, 142), (31, 161, 135),
              (74, 194, 109), (253, 231, 37)]),
    (53, 54, 60, 61, 31, 37, 42, 77, 113, 149, 185, 227), " .:-=+*#%@", 0.45,
)  # fmt: skip
SIGNED = Palette(  # blue below the middle, red above: ever purer, no lighter, for any background
    np.array([(0, 0, 215), (95, 95, 215), (105, 95, 110), (215, 95, 95), (215, 0, 0)]),
    (20, 62, 61, 60, 95, 131, 167, 160), "=- +#", 2.0,
)  # fmt: skip


class Style(NamedTuple):
    """What a stream can show."""

    colours: int = 0
    """0, 256, or 1 << 24."""
    unicode: bool = False


def style_of(stream: TextIO, environment: Mapping[str, str] = os.environ) -> Style:
    """What ``stream`` can show, by its encoding, its terminal and the user's NO_COLOR."""
    try:
        (UPPER + LOWER + BLOCK).encode(stream.encoding or "ascii")
        unicode = True
    except (UnicodeEncodeError, LookupError):
        unicode = False
    term = environment.get("TERM", "")
    if not stream.isatty() or environment.get("NO_COLOR") or term in ("", "dumb"):
        return Style(0, unicode)
    full = environment.get("COLORTERM", "") in ("truecolor", "24bit")
    return Style(1 << 24 if full else 256, unicode)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, two spaces between columns: the first one to the left, others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def number(x: float, digits: int = 3) -> str:
    """A number in few characters, as a person reads it."""
    if x == 0 or not np.isfinite(x):
        return f"{x:g}"
    if 1e-3 <= abs(x) < 1e4:
        text = f"{x:.{digits}g}"
        return f"{x:.0f}" if "e" in text else text
    mantissa, exponent = f"{x:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def bar(share: float, width: int, style: Style) -> str:
    """A bar of ``share`` of the width, 0 to 1."""
    return (BLOCK if style.unicode else "#") * round(min(max(share, 0.0), 1.0) * width)


def levels(values: np.ndarray, decades: float) -> np.ndarray:
    """0 to 1 on a logarithmic scale: 1 is the largest value, 0 what is ``decades`` below or less.

    NaN where there is nothing: 0, or no number.
    """
    top = np.max(values, initial=0.0, where=np.isfinite(values))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = 1 + np.log10(values / top) / decades
    return np.where(values > 0, np.clip(found, 0, 1), np.nan)


def shrunk(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """A matrix of at most this size: each element the largest of those that it stands for."""
    for axis, size in enumerate((rows, columns)):
        n = values.shape[axis]
        if n > size:
            values = np.maximum.reduceat(values, np.arange(size) * n // size, axis=axis)
    return values


def heat_map(
    values: np.ndarray, style: Style, *, width: int = 72, height: int = 24, decades: float = 6
) -> list[str]:
    """Lines of a heat map of a matrix of norms, and one with its scale.

    At most ``width`` columns and ``height`` lines; with colours a line holds two rows.
    """
    halves = style.colours > 0 and style.unicode
    shades = levels(shrunk(values, height * (2 if halves else 1), width), decades)
    if not halves:
        lines = ["".join(_cell(x, style) for x in row) for row in shades]
    else:
        shades = np.vstack([shades, np.full((len(shades) % 2, shades.shape[1]), np.nan)])
        lines = [
            "".join(_two_cells(*pair, style) for pair in zip(upper, lower, strict=True))
            for upper, lower in zip(shades[::2], shades[1::2], strict=True)
        ]
    lines = [line + RESET if style.colours else line.rstrip() for line in lines]
    return [*lines, _scale(values, style, decades)]


def heat_text(
    text: Sequence[str], values: np.ndarray, style: Style, *, width: int = 72, decades: float = 6
) -> list[str]:
    """Lines of a text whose every symbol is shaded by its value; with the scale."""
    lines = shaded_text(text, levels(values, decades), style, width=width)
    return [*lines, _scale(values, style, decades)]


def shaded_text(
    cells: Sequence[str], shades: np.ndarray, style: Style, *, width: int = 72,
    palette: Palette = VIRIDIS,
) -> list[str]:  # fmt: skip
    """Lines of printable pieces of text, each shaded by its level; NaN is no shade.

    A piece may be several columns wide, and is never broken; one that ends in a newline ends the
    line. Without colours a line of shades stands below each line of text.
    """
    lines: list[str] = []
    row: list[tuple[str, float]] = []
    used = 0
    for cell, shade in zip(cells, shades, strict=True):
        columns = columns_of(cell.removesuffix("\n"))
        if row and used + columns > width:
            lines += _shaded(row, style, palette)
            row, used = [], 0
        row.append((cell.removesuffix("\n"), float(shade)))
        used += columns
        if cell.endswith("\n"):
            lines += _shaded(row, style, palette)
            row, used = [], 0
    return lines + _shaded(row, style, palette) if row else lines


def _shaded(row: Sequence[tuple[str, float]], style: Style, palette: Palette) -> list[str]:
    """One line of text, and without colours one of shades."""
    if not style.colours:
        shades = "".join(_cell(shade, style, palette) * columns_of(cell) for cell, shade in row)
        return ["".join(cell for cell, _ in row).rstrip(), shades.rstrip()]
    line, last = "", ""
    for cell, shade in row:
        colour = _ground(shade, style, palette)
        line += (colour if colour != last else "") + cell
        last = colour
    return [line + RESET]


def _ground(shade: float, style: Style, palette: Palette) -> str:
    """The colour behind a character, and one to read it by."""
    ink = 39 if np.isnan(shade) else 97 if shade < palette.bright else 30
    return _colour(shade, style, 48, palette) + f"\x1b[{ink}m"


def shaded_stream(text: str, shades: Sequence[float], style: Style) -> str:
    """A text on its way out to a terminal with colours, each character shaded by its level."""
    out, last = [], ""
    for char, shade in zip(text, shades, strict=True):
        # A line break on a ground of its own would colour the rest of the line.
        colour = RESET if char in "\r\n" else _ground(shade, style, VIRIDIS)
        out.append(char if colour == last else colour + char)
        last = colour
    return "".join([*out, RESET])


def emphasis(letter: str, style: Style) -> str:
    """A letter that stands out from those beside it."""
    return f"\x1b[7m{letter}\x1b[27m" if style.colours else f"[{letter}]"


def _scale(values: np.ndarray, style: Style, decades: float) -> str:
    """The line that says what the shades of `levels` mean."""
    top = np.max(values, initial=0.0, where=np.isfinite(values))
    return scale(f"{number(top * 10**-decades)} or less", number(top), style)


def scale(low: str, high: str, style: Style, palette: Palette = VIRIDIS) -> str:
    """The line that says what the shades mean."""
    count = len(palette.ramp) if not style.colours else 10
    ramp = "".join(_cell(x, style, palette) for x in np.linspace(0, 1, count))
    return f"{low} [{ramp}{RESET if style.colours else ''}] {high}"


def _cell(level: float, style: Style, palette: Palette = VIRIDIS) -> str:
    if style.colours:
        return _colour(level, style, 48, palette) + " "
    return " " if np.isnan(level) else palette.ramp[round(level * (len(palette.ramp) - 1))]


def _two_cells(upper: float, lower: float, style: Style) -> str:
    """Two rows in one character; where a row has nothing, the terminal's own background shows."""
    if np.isnan(upper):
        return _colour(upper, style, 48) + (
            " " if np.isnan(lower) else _colour(lower, style, 38) + LOWER
        )
    return _colour(upper, style, 38) + _colour(lower, style, 48) + UPPER


def _colour(level: float, style: Style, ground: int, palette: Palette = VIRIDIS) -> str:
    """The sequence that sets the colour of the text (38) or of the background (48)."""
    if np.isnan(level):
        return f"\x1b[{ground + 1}m"  # the terminal's own
    if style.colours == 256:
        return f"\x1b[{ground};5;{palette.of_256[round(level * (len(palette.of_256) - 1))]}m"
    place = level * (len(palette.anchors) - 1)
    i = min(int(place), len(palette.anchors) - 2)
    colour = palette.anchors[i] + (place - i) * (palette.anchors[i + 1] - palette.anchors[i])
    red, green, blue = np.rint(colour).astype(int)
    return f"\x1b[{ground};2;{red};{green};{blue}m"
