"""Characters, letters, places, and what stands for the invisible."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn.characters import cells, characters, letters, place, quoted, visible
from charrnn.chart import columns_of


def test_characters_of_bytes_and_their_sums() -> None:
    found = characters("aé日😀".encode() + b"\xff\xe6\x97")
    assert found.text == "aé日😀\udcff\udce6\udc97"
    assert found.starts.tolist() == [0, 1, 3, 6, 10, 11, 12, 13]
    values = np.array([np.nan, 1, 2, np.nan, 3, 4, *range(5, 9), 1, 1, np.nan])
    want = [np.nan, 3, 7, 26, 1, 1, np.nan]
    assert np.array_equal(found.sums(values), want, equal_nan=True)


def test_characters_of_text_are_themselves() -> None:
    found = characters("é\ud800b")
    assert (found.text, found.starts.tolist()) == ("é\ud800b", [0, 1, 2, 3])
    values = np.array([np.nan, 2, 3])
    assert np.array_equal(found.sums(values), values, equal_nan=True)


@given(st.binary(max_size=60) | st.text(max_size=20).map(str.encode))
def test_every_byte_is_in_one_character(data: bytes) -> None:
    found = characters(data)
    assert found.starts[-1] == len(data) and found.starts[0] == 0
    assert found.text.encode("utf-8", "surrogateescape") == data
    for i, character in enumerate(found.text):
        part = data[found.starts[i] : found.starts[i + 1]]
        assert part == character.encode("utf-8", "surrogateescape")


def test_marks_belong_to_the_letter_before_them() -> None:
    text = "e\u0301\u0323x\u0301\n\u0301y\u200dz"
    firsts = letters(text)
    assert firsts == [0, 3, 5, 6, 7, 9]  # a mark after a newline stands alone
    assert cells(text, firsts) == ["e\u0301\u0323", "x\u0301", "\u21b5\n", "\u25cc\u0301", "y", "z"]


@pytest.mark.parametrize(
    "letter, sign, plain",
    [
        ("a", "a", "a"),
        ("é", "é", "?"),
        ("日", "日", "??"),
        ("\n", "↵", "$"),
        ("\t", "⇥", "^I"),
        ("\x00", "␀", "^@"),
        ("\x1b", "␛", "^["),
        ("\x7f", "␡", "^?"),
        ("\x85", "<85>", "<85>"),
        ("\u202e", "<202e>", "<202e>"),  # would turn the text around
        ("\xa0", " ", " "),
        ("\u3000", "  ", "  "),
        ("\ud800", "<d800>", "<d800>"),
        ("\udcff", "<ff>", "<ff>"),
        ("\u0301", "\u25cc\u0301", "?"),
    ],
)
def test_what_is_shown_moves_no_cursor(letter: str, sign: str, plain: str) -> None:
    assert (visible(letter), visible(letter, unicode=False)) == (sign, plain)
    assert visible(letter).isprintable() and plain.isascii()


@given(st.characters())
def test_something_is_seen_of_every_character(character: str) -> None:
    for unicode in (True, False):
        shown = visible(character, unicode)
        assert shown.isprintable() and columns_of(shown) > 0
    assert quoted(character).isprintable()


def test_places_count_from_one_and_in_their_file() -> None:
    text = "ab\n\nc" + "d\ne"
    assert [place(text, i) for i in (0, 2, 3, 4)] == [(1, 1), (1, 3), (2, 1), (3, 1)]
    assert [place(text, i, begin=5) for i in (5, 6, 7)] == [(1, 1), (1, 2), (2, 1)]
    assert place("a\n" + "b", 2, begin=2) == (1, 1)


def test_a_byte_that_is_no_utf8_has_a_name() -> None:
    assert [quoted(c) for c in "e\n'\udcff"] == ["'e'", "'\\n'", '"\'"', "byte ff"]
