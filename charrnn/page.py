"""A shaded text as one HTML file that needs nothing else: no script, no font, no network.

What a character's shade stands for appears at the foot of the window while it is pointed at. Light
or dark is as the reader's system is set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

from charrnn import atomic
from charrnn.errors import InputError
from charrnn.heatmap import number

SUFFIXES = (".html", ".htm")
MOST = 1_000_000
"""Characters of a page: it takes some 150 bytes for each."""
STEPS = 10
"""Shades that differ."""
ONE_WAY, BELOW, ABOVE = (255, 110, 0), (50, 115, 255), (255, 70, 50)
"""Of values from 0 on; of values below and above 0."""
STRONG = 0.75
"""Share of a colour from which on, on a dark page, text is black."""


class Cell(NamedTuple):
    """A letter, a newline behind it if it ends the line; its level; what is said of it.

    The level is from 0, or from -1 in a signed section, to 1; NaN is no shade.
    """

    text: str
    level: float
    tip: str


class Section(NamedTuple):
    """A shaded text, and what its least and its largest level mean."""

    heading: str
    low: str
    high: str
    cells: Sequence[Cell]
    signed: bool = False


Context = tuple[str, str, str]
"""A letter in the middle, and what stands before and after it."""
Row = Sequence["str | Context"]

STYLE = """
:root { color-scheme: light dark; --ground: #fdfdfc; --ink: #1b1b1a; --faint: #6b6b68;
  --line: #d9d9d5; --black: var(--ink); }
@media (prefers-color-scheme: dark) { :root { --ground: #16171a; --ink: #e6e6e3; --faint: #9a9a96;
  --line: #3a3b3f; --black: #101010; } }
body { background: var(--ground); color: var(--ink); margin: 2rem auto 6rem; padding: 0 1rem;
  max-width: 62rem; font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
p { margin: .2rem 0; } .scale, th { color: var(--faint); }
pre, td, .scale i { font-family: ui-monospace, "DejaVu Sans Mono", monospace; }
pre { white-space: pre-wrap; unicode-bidi: plaintext; font-size: .95rem; line-height: 1.7;
  border: 1px solid var(--line); border-radius: 4px; padding: .8rem; }
i { font-style: normal; border-radius: 2px; print-color-adjust: exact;
  -webkit-print-color-adjust: exact; }
.e { color: var(--faint); }
pre i:hover { outline: 1px solid var(--ink); }
pre i:hover::after { content: attr(data-t); position: fixed; left: 0; right: 0; bottom: 0;
  padding: .6rem 1rem; background: var(--ground); color: var(--ink); font-size: 1rem;
  border-top: 1px solid var(--line); white-space: pre-wrap; direction: ltr; unicode-bidi: isolate;
  text-align: center; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .15rem .9rem .15rem 0; vertical-align: top; }
td { font-size: .9rem; white-space: pre-wrap; unicode-bidi: plaintext; }
mark { background: rgb(255 110 0 / .85); color: #101010; border-radius: 2px; }
"""


def check(path: str | Path, length: int) -> None:
    """Refuse what could not be written, before anything is measured for it.

    ``path`` is --html, ``length`` the characters that are shaded.
    """
    if Path(path).suffix.lower() not in SUFFIXES:
        raise InputError(f"--html is {str(path)!r}: it must end in {' or '.join(SUFFIXES)}")
    if length > MOST:
        raise InputError(f"--length is {length:,}: a page has {MOST:,} characters at the most")
    atomic.check(path, "--html")


def percent(share: float) -> str:
    """A share in few characters: ``45 %``."""
    return f"{number(100 * share, 2)} %" if share >= 1e-4 or share == 0 else "< 0.01 %"


def page(
    title: str, facts: Sequence[str], rows: Sequence[Row], sections: Sequence[Section]
) -> bytes:
    """The file's content: a heading, lines, a table whose first row is its head, shaded texts."""
    parts = [
        "<!DOCTYPE html>\n<html>\n<head>\n<meta charset=utf-8>",
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; "
        "style-src 'unsafe-inline'\">",
        '<meta name=viewport content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>\n<style>{STYLE}{_shades()}</style>\n</head>\n<body>",
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{escape(fact)}</p>" for fact in facts),
        *_table(rows),
        *(part for section in sections for part in _section(section)),
        "</body>\n</html>\n",
    ]
    return "\n".join(parts).encode("utf-8", "replace")


def _shades() -> str:
    """Classes a1 to a10 and, for values below and above 0, b1 ... and c1 ..."""
    rules = []
    for name, (red, green, blue) in zip("abc", (ONE_WAY, BELOW, ABOVE), strict=True):
        for step in range(1, STEPS + 1):
            share = 0.9 * step / STEPS
            ink = "; color: var(--black)" if share >= STRONG and name != "b" else ""
            rules.append(
                f".{name}{step} {{ background: rgb({red} {green} {blue} / {share:.2f}){ink} }}"
            )
    return "\n".join(rules) + "\n"


def _class(level: float, signed: bool) -> str:
    if np.isnan(level):
        return ""
    step = round(min(abs(level), 1.0) * STEPS)
    return f"{('b' if level < 0 else 'c') if signed else 'a'}{step}" if step else ""


def _section(section: Section) -> Iterator[str]:
    yield f"<h2>{escape(section.heading)}</h2>"
    levels = np.linspace(-1 if section.signed else 0, 1, 2 * STEPS + 1)
    ramp = "".join(f'<i class="{_class(x, section.signed)}">&nbsp;</i>' for x in levels)
    yield f"<p class=scale>{escape(section.low)} {ramp} {escape(section.high)}</p>"
    # A newline that follows the tag itself would be no part of the text: here stands none.
    yield "<pre dir=auto>" + "".join(_cell(c, section.signed) for c in section.cells) + "</pre>"


def _cell(cell: Cell, signed: bool) -> str:
    classes = _class(cell.level, signed)
    text = cell.text.removesuffix("\n")
    if len(text) < len(cell.text):
        classes = f"{classes} e".strip()
    shade = f' class="{classes}"' if classes else ""
    end = "\n" if len(text) < len(cell.text) else ""
    return f'<i{shade} data-t="{escape(cell.tip)}">{escape(text)}</i>{end}'


def _table(rows: Sequence[Row]) -> Iterator[str]:
    if not rows:
        return
    yield "<table>"
    for i, row in enumerate(rows):
        tag = "td" if i else "th"
        yield "<tr>" + "".join(f"<{tag}>{_content(c)}</{tag}>" for c in row) + "</tr>"
    yield "</table>"


def _content(content: str | Context) -> str:
    if isinstance(content, str):
        return escape(content)
    before, letter, after = map(escape, content)
    return f"{before}<mark>{letter}</mark>{after}"
