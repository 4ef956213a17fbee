"""Heat maps, bars and tables: exact lines."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from charrnn.heatmap import (
    SIGNED,
    Style,
    bar,
    emphasis,
    heat_map,
    heat_text,
    levels,
    number,
    scale,
    shaded_text,
    shrunk,
    style_of,
    table,
)

PLAIN = Style()
NORMS = np.array([[1.0, 0.0, 0.0], [0.1, 10.0, 0.0], [1e-9, 1e-5, 10.0]])


def test_plain_characters() -> None:
    assert heat_map(NORMS, PLAIN, decades=9) == [
        "%",
        "#@",
        " -@",
        "1.0e-8 or less [ .:-=+*#%@] 10",
    ]


def test_256_colours_without_unicode() -> None:
    assert heat_map(np.array([[1.0, 0.01, 0]]), Style(256), decades=1) == [
        "\x1b[48;5;227m \x1b[48;5;53m \x1b[49m \x1b[0m",
        "0.1 or less [\x1b[48;5;53m \x1b[48;5;54m \x1b[48;5;60m \x1b[48;5;31m \x1b[48;5;37m "
        "\x1b[48;5;42m \x1b[48;5;77m \x1b[48;5;149m \x1b[48;5;185m \x1b[48;5;227m \x1b[0m] 1",
    ]


def test_true_colour_puts_two_rows_into_a_line() -> None:
    bright, dark = "8;2;253;231;37m", "8;2;68;1;84m"
    values = np.array([[1.0, 0, 0], [0.1, 1, 0], [1, 0, 0]])
    first, second, _ = heat_map(values, Style(1 << 24, True), decades=1)
    nothing = "\x1b[49m "
    assert first == f"\x1b[3{bright}\x1b[4{dark}▀\x1b[49m\x1b[3{bright}▄{nothing}\x1b[0m"
    assert second == f"\x1b[3{bright}\x1b[49m▀{nothing}{nothing}\x1b[0m"


def test_a_large_map_keeps_the_largest_of_what_it_hides() -> None:
    values = np.zeros((100, 50))
    values[99, 49] = values[34, 0] = 1
    small = shrunk(values, 3, 2)
    assert np.array_equal(small, [[0, 0], [1, 0], [0, 1]])
    lines = heat_map(np.tri(1000), PLAIN, width=30, height=10)
    assert len(lines) == 11 and max(map(len, lines[:-1])) == 30


def test_shaded_text() -> None:
    values = np.array([1.0, 0.0, 0.1, 1.0])
    assert heat_text(list("to b"), values, PLAIN, width=3, decades=1) == [
        "to",
        "@",
        "b",
        "@",
        "0.1 or less [ .:-=+*#%@] 1",
    ]
    first, second, _ = heat_text(list("to b"), values, Style(256), width=3, decades=1)
    assert first == ("\x1b[48;5;227m\x1b[30mt\x1b[49m\x1b[39mo\x1b[48;5;53m\x1b[97m \x1b[0m")
    assert second == "\x1b[48;5;227m\x1b[30mb\x1b[0m"


def test_odd_numbers_do_no_harm() -> None:
    values = np.array([[np.inf, np.nan, 0.0, 1.0, 0.01]])
    want = [[1, np.nan, np.nan, 1, 0]]
    assert np.array_equal(levels(values, 2), want, equal_nan=True)
    assert heat_map(np.zeros((2, 2)), PLAIN) == ["", "", "0 or less [ .:-=+*#%@] 0"]


@pytest.mark.parametrize(
    "x, text",
    [
        (0, "0"),
        (0.0309, "0.0309"),
        (1.4225, "1.42"),
        (9876.5, "9876"),
        (12345, "1.2e4"),
        (1.23e-7, "1.2e-7"),
        (-0.5, "-0.5"),
        (5e-310, "5.0e-310"),
        (np.inf, "inf"),
        (np.nan, "nan"),
    ],
)
def test_numbers_are_short(x: float, text: str) -> None:
    assert number(x) == text


def test_numbers_of_two_digits() -> None:
    values = (1.118, 27.53, 642.2, 0.0532, 99.7)
    assert [number(x, 2) for x in values] == ["1.1", "28", "642", "0.053", "100"]


def test_table() -> None:
    assert table([["e", "Wh"], ["10", "0.031"], ["3", ""]]) == ["e      Wh", "10  0.031", "3"]


def test_bar() -> None:
    assert [bar(x, 4, PLAIN) for x in (-1, 0.1, 0.5, 2)] == ["", "", "##", "####"]
    assert bar(0.5, 4, Style(unicode=True)) == "██"


class Stream(io.StringIO):
    def __init__(self, encoding: str, terminal: bool) -> None:
        super().__init__()
        self._encoding, self.terminal = encoding, terminal

    @property
    def encoding(self) -> Any:
        return self._encoding

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize(
    "encoding, terminal, environment, style",
    [
        ("utf-8", True, {"TERM": "xterm-256color"}, Style(256, True)),
        ("utf-8", True, {"TERM": "xterm", "COLORTERM": "truecolor"}, Style(1 << 24, True)),
        ("ascii", True, {"TERM": "xterm"}, Style(256, False)),
        ("utf-8", True, {"TERM": "xterm", "NO_COLOR": "1"}, Style(0, True)),
        ("utf-8", True, {"TERM": "xterm", "NO_COLOR": ""}, Style(256, True)),
        ("utf-8", True, {"TERM": "dumb"}, Style(0, True)),
        ("utf-8", True, {}, Style(0, True)),
        ("utf-8", False, {"TERM": "xterm"}, Style(0, True)),
        ("latin-1", False, {}, Style(0, False)),
        (None, False, {}, Style(0, False)),
    ],
)
def test_what_a_stream_can_show(
    encoding: Any, terminal: bool, environment: dict[str, str], style: Style
) -> None:
    assert style_of(Stream(encoding, terminal), environment) == style


def test_wide_letters_and_lines_wrap() -> None:
    cells = ["日", "b", "本", "e\u0301", "$\n", "x", "<202e>"]
    shades = np.array([1.0, 0.5, 0.0, 1.0, np.nan, 0.0, 1.0])
    assert shaded_text(cells, shades, PLAIN, width=4) == [
        "日b",
        "@@=",
        "本e\u0301$",
        "  @",
        "x",
        "",
        "<202e>",  # wider than a line, and not broken
        "@@@@@@",
    ]
    assert shaded_text(["a\n", "\n"], np.zeros(2), PLAIN) == ["a", "", "", ""]
    assert shaded_text([], np.zeros(0), PLAIN) == []


def test_colours_change_only_where_the_shade_does() -> None:
    (line,) = shaded_text(list("aabb"), np.array([1, 1, 0, np.nan]), Style(256))
    assert line == ("\x1b[48;5;227m\x1b[30maa\x1b[48;5;53m\x1b[97mb\x1b[49m\x1b[39mb\x1b[0m")


def test_signed_shades() -> None:
    levels = np.array([0, 0.5, 1])
    assert shaded_text(list("abc"), levels, PLAIN, palette=SIGNED) == ["abc", "= #"]
    assert scale("-1", "1", PLAIN, SIGNED) == "-1 [=- +#] 1"
    (line,) = shaded_text(list("ac"), levels[[0, 2]], Style(256), palette=SIGNED)
    assert line == "\x1b[48;5;20m\x1b[97ma\x1b[48;5;160m\x1b[97mc\x1b[0m"
    full = shaded_text(["a"], np.array([0.5]), Style(1 << 24), palette=SIGNED)
    assert full == ["\x1b[48;2;105;95;110m\x1b[97ma\x1b[0m"]


def test_emphasis() -> None:
    assert (emphasis("x", PLAIN), emphasis("x", Style(256))) == ("[x]", "\x1b[7mx\x1b[27m")
