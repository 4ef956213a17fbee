"""Features: exact values on small texts."""

from __future__ import annotations

import numpy as np
import pytest

from charrnn.features import FEATURES

BY_NAME = {feature.name: feature for feature in FEATURES}


def digits(name: str, text: str) -> str:
    values = BY_NAME[name].values(text)
    assert len(values) == len(text)
    return "".join(str(int(x)) for x in values)


@pytest.mark.parametrize(
    "name, text, want",
    [
        ("position in the line", "abc\nde\n\nf", "123012001"),
        ("position in the word", "ab isn't 7", "1201234501"),
        ("position in the word", "'ab' -c", "0120001"),
        ("position in the sentence", "Ab. Cd", "120123"),
        ("position in the sentence", "a\n\nb", "1201"),
        ("depth of brackets", "a(b[c])d)(\n\ne", "0112210001100"),
        ("inside brackets", "a(b)c", "01100"),
        ("inside a word", "ab c", "1101"),
        ("in a capitalised word", "Ab cD O'Neil", "110000111111"),
        ("at a sentence's start", "Ab cd. Ef g", "11000111100"),
        ("after a newline", "a\nb", "010"),
        ("after a space", "a b", "010"),
        ("after a capital", "aBc", "010"),
        ("after a digit", "a1b", "010"),
        ("after punctuation", "a, b.", "01001"),
    ],
)
def test_values(name: str, text: str, want: str) -> None:
    assert digits(name, text) == want


@pytest.mark.parametrize(
    "text, inside",
    [
        ('a "b c" d', '"b c'),
        ("He said, 'It isn't so.' And", "'It isn't so."),
        ("the boys' hats and dogs", ""),
        ("but 'tis true", ""),
        ("\u201eGut\u201c und \u00absi\u00bb", "\u201eGut\u00absi"),
        ("\u2018don\u2019t go,\u2019 he", "\u2018don\u2019t go,"),
        ("'never closed\n\nnext", "'never closed\n"),
        ("\u300c日本\u300d語", "\u300c日本"),
    ],
)
def test_inside_quotes(text: str, inside: str) -> None:
    values = BY_NAME["inside quotes"].values(text)
    assert "".join(c for c, x in zip(text, values, strict=True) if x) == inside


def test_no_feature_needs_what_comes_later_but_for_one_letter() -> None:
    text = "It's \"(so)\", he said 'No.'\n\nThen 12 O'Neils\u2014\u201cdon\u2019t\u201d."
    for feature in FEATURES:
        whole = feature.values(text)
        for n in range(len(text)):
            early = feature.values(text[: n + 1])
            until = n if text[n] in "'\u2019" else n + 1
            assert np.array_equal(early[:until], whole[:until]), (feature.name, n)


@pytest.mark.parametrize("text", ["", "'", "\n", "\n\n", "é", "(", "\ud800"])
def test_short_texts(text: str) -> None:
    for feature in FEATURES:
        assert len(feature.values(text)) == len(text)
