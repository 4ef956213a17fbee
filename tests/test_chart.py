"""Charts as text."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn import chart
from charrnn.chart import Axis, Canvas, Rule, Series, Style

PLAIN = Style(unicode=False, colour=False)
BRAILLE = Style(colour=False)
COLOUR = re.compile(r"\x1b\[[\d;]*m")
NUMBERS = st.floats(allow_nan=True, allow_infinity=True)


def line(*y, **options):
    return Series("loss", range(len(y)), y, **options)


def drawn(*args, **options):
    """A chart without the spaces at the right, which are many."""
    return [text.rstrip() for text in chart.chart(*args, **options)]


def test_a_line_in_ascii():
    got = drawn([line(4, 3, 2, 1, 0)], 23, 8, y_label="nats", x_label="steps", style=PLAIN)
    assert got == [
        "nats   ** loss",
        " 4+***",
        "  |   *****",
        " 2+        *****",
        "  |             ****",
        " 0+                 ***",
        "  ++---------+---------",
        "   0         2    steps",
    ]


def test_a_line_in_dots():
    assert drawn([line(0, 1, 0)], 14, 6, style=BRAILLE) == [
        "   ⠤⠤ loss",
        " 1.0┤   ⡰⠑⡄",
        " 0.5┤ ⢀⠎  ⠈⠢⡀",
        " 0.0┤⡰⠁     ⠘⢄",
        "    └┬───┬────",
        "     0   1",
    ]


def test_a_gap_breaks_the_line():
    rows = drawn([line(1, 1, math.nan, 1, 1)], 43, 6, style=PLAIN)
    assert rows[1:4] == [" 1.1+", " 1.0+**********                  **********", " 0.9+"]


def test_points_of_one_column_are_drawn_at_their_mean():
    many = Series("", [0, *[1] * 4, 2], [0, 0, 10, 0, 10, 10])
    few = Series("", [0, 1, 2], [0, 5, 10])
    assert drawn([many], 40, 12) == drawn([few], 40, 12)


def test_marks_stand_apart_and_above_lines():
    dense = Series("best", range(100), [1.0] * 50 + [2.0] * 50, mark="o", joined=False)
    rows = drawn([dense, line(*[1.0] * 100)], 50, 6, style=BRAILLE)
    assert rows[0] == "   o best   ⠤⠤ loss"
    places = [i for i, c in enumerate(rows[3]) if c == "o"]
    assert len(places) == 6 and {b - a for a, b in zip(places, places[1:], strict=False)} == {4}
    assert "⣀⣀" in rows[3]


def test_a_rule_is_named_and_in_range():
    rows = drawn([line(0.1, 0.2)], 30, 6, rules=[Rule(1.0, "clip 1")], style=PLAIN)
    assert rows[1].startswith(" 1.0+") and rows[1].endswith("---- clip 1")


@pytest.mark.parametrize(
    "low, high, count, labels",
    [
        (0, 10, 5, ["0", "2", "4", "6", "8", "10"]),
        (1.31, 4.2, 4, ["2", "3", "4"]),
        (0.0011, 0.0031, 3, ["0.002", "0.003"]),
        (0, 65_000, 4, ["0", "20,000", "40,000", "60,000"]),
        (0, 2_500_000, 3, ["0", "1M", "2M"]),
        (2.1e6, 2.5e6, 4, ["2.1M", "2.2M", "2.3M", "2.4M", "2.5M"]),
        (-1, 1, 2, ["-1", "0", "1"]),
        (1e-6, 3e-6, 3, ["1e-6", "2e-6", "3e-6"]),
        (5, 5, 3, ["4.5", "5.0", "5.5"]),
    ],
)
def test_round_numbers(low, high, count, labels):
    assert list(Axis([low, high]).labels(count).values()) == labels


@pytest.mark.parametrize(
    "low, high, count, labels",
    [
        (1e-5, 1e-2, 5, ["1e-5", "0.0001", "0.001", "0.01"]),
        (1, 100, 8, ["1", "2", "5", "10", "20", "50", "100"]),
        (1.3, 4.2, 4, ["2", "3", "4"]),
        (1.31, 1.48, 3, ["1.35", "1.40", "1.45"]),
        (1e-12, 1e12, 3, ["1e-12", "0.001", "1e6"]),
    ],
)
def test_round_numbers_of_a_logarithmic_axis(low, high, count, labels):
    assert list(Axis([low, high], log=True).labels(count).values()) == labels


def test_axes_without_data_have_no_numbers():
    lines = chart.chart([Series("a", [], [])], 40, 10, x_label="steps", style=PLAIN)
    assert not re.search(r"\d", "".join(lines)) and lines[-1].endswith(" steps")
    lines = chart.chart([Series("a", [], [])], 40, 10, rules=[Rule(2.0, "clip 2")], style=PLAIN)
    assert "clip 2" in "".join(lines) and not re.search(r"\d", lines[-1])


def test_a_logarithmic_axis_has_its_middle_at_the_geometric_mean():
    axis = Axis([0.0, 1.0, 100.0], log=True)
    assert axis.place(10.0) == pytest.approx(0.5)
    assert math.isnan(axis.place(0.0)) and math.isnan(axis.place(-1.0))


@given(
    st.lists(st.tuples(NUMBERS, NUMBERS), max_size=30),
    st.integers(0, 60),
    st.integers(0, 20),
    st.booleans(),
    st.booleans(),
)
def test_any_numbers_fill_any_size(points, width, height, log, unicode):
    x, y = [p[0] for p in points], [p[1] for p in points]
    series = [Series("é", x, y, "36", mark="o"), Series("", x, x, joined=False)]
    style, rules = Style(unicode), [Rule(1.0, "one")]
    lines = chart.chart(series, width, height, x_label="steps", log=log, rules=rules, style=style)
    assert [len(COLOUR.sub("", text)) for text in lines] == [width] * height
    assert unicode or "".join(lines).isascii()


def test_colours_are_only_where_wanted():
    series = [line(1, 2, colour="36")]
    coloured = chart.chart(series, 30, 6)
    assert "\x1b[36m⠤⠤ loss\x1b[0m" in coloured[0]
    assert [COLOUR.sub("", text) for text in coloured] == chart.chart(series, 30, 6, style=BRAILLE)


def test_sparklines():
    assert chart.sparkline([0, 1, 2, 3, 4, 5, 6, 7], 10) == "▁▂▃▄▅▆▇█  "
    assert chart.sparkline([0, 0, 14, 14, 0, 14], 3) == "▁█▅"
    assert chart.sparkline([0, 0, 6, 6], 2, PLAIN) == ".#"
    assert chart.sparkline([1, math.nan, 3], 3) == "▁ █"
    assert chart.sparkline([], 4) == "    "


def test_dots_of_a_canvas():
    canvas = Canvas(2, 1)
    canvas.dot(0, 0)
    canvas.dot(1, 3)
    canvas.dot(2, 1, "36")
    assert canvas.cells == [[("⢁", ""), ("⠂", "36")]]


def test_width_of_text():
    assert chart.columns_of("ab") == 2
    assert chart.columns_of("日本") == 4
    assert chart.columns_of("e\u0301") == 1
    assert chart.cut("日本", 3) == "日"
    assert chart.cut("e\u0301e", 1) == "e\u0301"


def test_no_text_can_move_the_cursor():
    assert chart.printable("a\x1b[2Jb\tc\u202e\ud800") == "a?[2Jb?c??"
    assert chart.printable("é", PLAIN) == "?"
    assert chart.paint([("a\nb", "1")], 5) == "\x1b[1ma?b\x1b[0m  "
