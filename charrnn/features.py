"""Properties of a text that a unit of a network might follow: numbers and yes or no, by character.

A feature's value at a character is what is known after reading it, so no feature needs what comes
later, but for the apostrophe: only the next character tells it from a closing quotation mark. The
rules are simple and meant for prose; quotation marks are told by English, French and German use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ENDS = ".!?\u2026\u3002\uff01\uff1f"
"""Of sentences."""
BRACKETS = {"(": ")", "[": "]", "{": "}", "\uff08": "\uff09"}
QUOTES = {
    '"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019", "\u201e": "\u201c\u201d",
    "\u201a": "\u2018\u2019", "\u00ab": "\u00bb", "\u2039": "\u203a", "\u300c": "\u300d",
}  # fmt: skip
"""Opening mark -> what closes it."""
APOSTROPHES = "'\u2018\u2019"
ELIDED = ("tis", "twas", "twere", "twill", "twould", "em", "til", "till", "cause", "gainst")
"""Words that an apostrophe begins."""


@dataclass(frozen=True)
class Feature:
    """A property, one value a character."""

    name: str
    yes_or_no: bool
    of: Callable[[str], Iterable[float]]

    def values(self, text: str) -> NDArray[np.float64]:
        return np.fromiter(self.of(text), np.float64, len(text))


def _since(text: str, starts: Callable[[str], bool]) -> Iterator[int]:
    """Characters since the last one that ``starts``, which itself is 0."""
    count = 0
    for character in text:
        count = 0 if starts(character) else count + 1
        yield count


def line_position(text: str) -> Iterator[int]:
    return _since(text, lambda c: c == "\n")


def word_position(text: str) -> Iterator[int]:
    """Letters of the word so far; 0 between words."""
    count = 0
    for i, c in enumerate(text):
        inside = c.isalnum() or (count > 0 and _inner_apostrophe(text, i))
        count = count + 1 if inside else 0
        yield count


def sentence_position(text: str) -> Iterator[int]:
    """Characters since a sentence's end, or a blank line."""
    count = 0
    for i, c in enumerate(text):
        count = 0 if c in ENDS or text[i - 1 : i + 1] == "\n\n" else count + 1
        yield count


def bracket_depth(text: str) -> Iterator[int]:
    """Brackets that are open; a blank line closes all."""
    closers: list[str] = []
    for i, c in enumerate(text):
        if c in BRACKETS:
            closers.append(BRACKETS[c])
        elif closers and c == closers[-1]:
            closers.pop()
        elif text[i - 1 : i + 1] == "\n\n":
            closers.clear()
        yield len(closers)


def quote(text: str) -> Iterator[bool]:
    """Between quotation marks, the opening one included; a blank line ends it."""
    closers = ""
    for i, c in enumerate(text):
        if closers:
            if (c in closers and not _inner_apostrophe(text, i)) or text[i - 1 : i + 1] == "\n\n":
                closers = ""
        elif c in QUOTES and not (c in APOSTROPHES and _apostrophe(text, i)):
            closers = QUOTES[c]
        yield bool(closers)


def _inner_apostrophe(text: str, i: int) -> bool:
    """Whether it is an apostrophe inside a word."""
    return text[i] in APOSTROPHES and text[i - 1 : i].isalnum() and text[i + 1 : i + 2].isalnum()


def _apostrophe(text: str, i: int) -> bool:
    """Whether a mark does not open a quotation."""
    if i and text[i - 1].isalnum():
        return True
    if not text[i + 1 : i + 2].strip():
        return True
    word = "".join(_letters(text[i + 1 : i + 10])).lower()
    return word in ELIDED


def _letters(text: str) -> Iterator[str]:
    for c in text:
        if not c.isalpha():
            return
        yield c


def capitalised(text: str) -> Iterator[bool]:
    """In a word that began with a capital."""
    inside = False
    for i, c in enumerate(text):
        if i == 0 or not (text[i - 1].isalnum() or _inner_apostrophe(text, i - 1)):
            inside = c.isupper()
        inside = inside and (c.isalnum() or _inner_apostrophe(text, i))
        yield inside


def sentence_start(text: str) -> Iterator[bool]:
    """From the end of a sentence, or a blank line, to the end of the next one's first word."""
    inside, word = True, False
    for i, c in enumerate(text):
        if c in ENDS or text[i - 1 : i + 1] == "\n\n":
            inside, word = True, False
        elif c.isalnum():
            word = True
        elif word:
            inside = False
        yield inside


def _each(holds: Callable[[str], bool]) -> Callable[[str], Iterator[bool]]:
    return lambda text: (holds(c) for c in text)


FEATURES = (
    Feature("position in the line", False, line_position),
    Feature("position in the word", False, word_position),
    Feature("position in the sentence", False, sentence_position),
    Feature("depth of brackets", False, bracket_depth),
    Feature("inside quotes", True, quote),
    Feature("inside brackets", True, lambda text: (depth > 0 for depth in bracket_depth(text))),
    Feature("inside a word", True, lambda text: (n > 0 for n in word_position(text))),
    Feature("in a capitalised word", True, capitalised),
    Feature("at a sentence's start", True, sentence_start),
    Feature("after a newline", True, _each(lambda c: c == "\n")),
    Feature("after a space", True, _each(lambda c: c in " \t")),
    Feature("after a capital", True, _each(str.isupper)),
    Feature("after a digit", True, _each(str.isdigit)),
    Feature("after punctuation", True, _each(lambda c: c in ",;:" + ENDS)),
)
