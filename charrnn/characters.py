"""A text as a person sees it: its characters, where they stand, and something to see for each.

A *symbol* is what a model reads: a character or, at level "byte", a byte (see `charrnn.vocab`). A
*letter* is what is shown as one: a character and the marks that are put on it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.chart import columns_of

JOINERS = "\u200c\u200d"
"""Say how their neighbours are joined: a part of the character before them, as marks are."""


@dataclass(frozen=True)
class Characters:
    """The characters of a text of symbols.

    Attributes
    ----------
    text : (C,) characters; a byte that is no UTF-8 is a lone surrogate, U+DC80 to U+DCFF
    starts : (C + 1,) where each begins among the symbols; the last one is their number
    """

    text: str
    starts: NDArray[np.intp]

    def sums(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values of symbols (N,) summed over each character, (C,); NaN counts for nothing.

        NaN where there is nothing else.
        """
        if len(self.text) == len(values):
            return values
        found = np.add.reduceat(np.nan_to_num(values), self.starts[:-1])
        counted = np.add.reduceat(~np.isnan(values), self.starts[:-1], dtype=np.intp)
        return np.where(counted > 0, found, np.nan)


def characters(text: str | bytes) -> Characters:
    """The characters of a text; bytes are taken as UTF-8."""
    if isinstance(text, str):
        return Characters(text, np.arange(len(text) + 1))
    decoded = text.decode("utf-8", "surrogateescape")
    codes = np.frombuffer(decoded.encode("utf-32-le", "surrogatepass"), "<u4")
    stray = (codes >= 0xDC80) & (codes <= 0xDCFF)
    sizes = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
    ends = np.cumsum(np.where(stray, 1, sizes))
    return Characters(decoded, np.concatenate([[0], ends]))


def letters(text: str) -> list[int]:
    """Where every letter of a text begins."""
    return [i for i, c in enumerate(text) if i == 0 or text[i - 1] == "\n" or not _joins(c)]


def _joins(character: str) -> bool:
    return not character.isascii() and (
        character in JOINERS or unicodedata.category(character) in ("Mn", "Me")
    )


def place(text: str, position: int, begin: int = 0) -> tuple[int, int]:
    """Line and column of a character, both from 1, in a file that begins at ``begin``."""
    before = max(text.rfind("\n", begin, position), begin - 1)
    return text.count("\n", begin, position) + 1, position - before


def visible(letter: str, unicode: bool = True) -> str:
    """A letter with something to see for what is invisible, and nothing that does anything.

    Without ``unicode`` as `cat -A` shows it: ``$`` is a line's end, ``^I`` a tab; what is not ASCII
    becomes ``?``.
    """
    base, marks = letter[0], letter[1:]
    if not base.isprintable():
        return _sign(base, unicode) + (visible(marks, unicode) if marks else "")
    if not unicode:
        return base if base.isascii() else "?" * columns_of(base) or "?"
    marks = "".join(m for m in marks if m not in JOINERS)
    return ("\u25cc" if columns_of(base) == 0 else "") + base + marks


def _sign(character: str, unicode: bool) -> str:
    """What stands for a character that cannot be printed."""
    code = ord(character)
    if character == "\n":
        return "\u21b5" if unicode else "$"
    if code < 0x20 or code == 0x7F:
        if unicode:
            return (
                "\u2421" if code == 0x7F else "\u21e5" if character == "\t" else chr(0x2400 + code)
            )
        return "^" + chr(code ^ 0x40)
    if unicodedata.category(character) == "Zs":  # a space of another width, or that breaks no line
        return " " * columns_of(character)
    return f"<{code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code:02x}>"


def cells(text: str, firsts: Sequence[int], unicode: bool = True) -> list[str]:
    """What to show for the letters that begin at ``firsts``; a newline keeps its own behind it."""
    ends = [*firsts[1:], len(text)]
    shown = [text[i:j] for i, j in zip(firsts, ends, strict=True)]
    return [visible(s, unicode) + ("\n" if s[0] == "\n" else "") for s in shown]


def quoted(character: str) -> str:
    """A character in a sentence: ``'e'``, ``'\\n'``; a byte that is no UTF-8 as ``byte ff``."""
    if 0xDC80 <= ord(character) <= 0xDCFF:
        return f"byte {ord(character) - 0xDC00:02x}"
    return repr(character)
