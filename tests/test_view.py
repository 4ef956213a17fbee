"""What a screen shows of runs, of any size."""

from __future__ import annotations

import math
import time

import pytest
from watching import (
    HISTORY,
    PLAIN,
    SAID,
    START,
    overfitting,
    run_folder,
    screen,
    text_of,
    train,
    validation,
    watched,
)

from charrnn.chart import Style, columns_of
from charrnn.view import View, frame


@pytest.fixture
def folder(tmp_path):
    return run_folder(tmp_path)


def test_a_screen_of_80_columns(folder):
    assert screen(folder) == [
        " book  gru 2x8, 12,345 parameters                            running, 40 s left",
        " nats per character   .. training   o validation",
        "    |.......",
        " 3.8+       ........",
        "    |               .......             o",
        " 3.6+                      ............",
        "    |                                  ........                                o",
        " 3.4+                                          ............",
        " 3.2+                                                      .......",
        "    |                                                             ........",
        " 3.0+                                                                     ......",
        "    +----------------+------------------+-------------------+-------------------",
        "                    50                 100                 150             steps",
        " step          200 of 400, epoch 2.0 of 4.0",
        " training      3.000 nats/char  4.328 bits/char  perplexity 20.1",
        " validation    3.500 nats/char  5.049 bits/char  perplexity 33.1  step 200",
        " best          3.500 nats/char  5.049 bits/char  perplexity 33.1  step 200",
        " learning rate 0.001                                   ====================",
        " gradient norm 0.25, clip 0.5, 50% of steps clipped    ====================",
        " speed         1,000 characters/s                      ====================",
        " sample at step 200",
        " It was ?[2Jred",
        " and then",
        " q quit   x axis: steps   l linear   u nats   ? hide this line",
    ]


def test_keys_change_the_axes(folder):
    view = View()
    assert view.pressed("z") == view
    assert [(view := view.pressed("x")).x for _ in range(3)] == ["characters", "time", "steps"]
    assert screen(folder, view)[12].endswith(" steps")
    assert screen(folder, view.pressed("x"))[12].endswith(" characters")
    assert screen(folder, view.pressed("x").pressed("x"))[12].endswith(" seconds")
    bits = screen(folder, view.pressed("u"))
    assert bits[1].startswith(" bits per character") and bits[3].startswith(" 5.5+")
    assert "l logarithmic" in screen(folder, view.pressed("l"))[-1]
    assert " q quit " in screen(folder)[-1]
    assert "and then" in screen(folder, view.pressed("?"))[-1]


def test_long_times_are_in_longer_units(folder):
    events = [START, *(train(i, seconds=i * 600.0) for i in (10, 20, 30))]
    (folder / "metrics.jsonl").write_bytes(text_of(events))
    assert any(line.endswith(" hours") for line in screen(folder, View(x="time")))


def test_the_clip_threshold_is_drawn_where_there_is_room(folder):
    assert any("- clip 0.5" in line for line in screen(folder, width=200, height=50))
    assert any("clip 0.5, 50% of steps clipped" in line for line in screen(folder))


def test_text_cannot_move_the_cursor(folder):
    lines = screen(folder)
    assert " It was ?[2Jred" in lines and not any("\x1b" in line for line in lines)


@pytest.mark.parametrize("events", [[], [START], [validation(1, 2.0)], HISTORY], ids=len)
@pytest.mark.parametrize("view", [View(), View("time", log=True, bits=True, help=False)])
def test_any_size_is_filled(folder, events, view):
    (folder / "metrics.jsonl").write_bytes(text_of(events))
    one, two = watched(folder), watched(folder, "日本" * 30)
    for width in (1, 2, 10, 33, 79, 80, 121, 200):
        for height in (1, 2, 5, 8, 13, 24, 50):
            for runs in ([one], [two], [one, two]):
                lines = frame(runs, view, width, height, Style(colour=False), time.time())
                assert [columns_of(line) for line in lines] == [width] * height


def test_several_runs_are_overlaid(folder):
    runs = [watched(folder, "tall"), watched(folder, "small")]
    now = runs[0].follower.written
    lines = [line.rstrip() for line in frame(runs, View(), 80, 24, PLAIN, now)]
    assert lines[0] == " 2 runs, 2 running"
    assert lines[1] == " nats per character (capitals: validation)   a tall   b small"
    assert lines[-7:-4] == [
        "          step  training  validation   best  at step  nats/char",
        " a tall    200     3.000       3.500  3.500      200  running, 40 s left",
        " b small   200     3.000       3.500  3.500      200  running, 40 s left",
    ]
    coloured = "\n".join(frame(runs, View(), 80, 24, Style(), now))
    assert "\x1b[36m⠤⠤ tall\x1b[0m" in coloured and "\x1b[33m⠤⠤ small\x1b[0m" in coloured


def test_numbers_that_are_not_finite(folder):
    events = [START, train(10), train(20, None, grad_norm=None), validation(20, None, 2.0, 10)]
    (folder / "metrics.jsonl").write_bytes(text_of(events))
    lines = screen(folder)
    assert any("validation    nan nats/char" in line for line in lines)
    assert math.isnan(watched(folder).training["nats"][-1])


# --- advice ---------------------------------------------------------------------------------------


@pytest.fixture
def overfit(folder):
    return overfitting(folder)


def test_advice_while_a_run_goes_on(overfit):
    lines = screen(overfit)
    first = next(i for i, line in enumerate(lines) if line.startswith(" advice"))
    assert lines[first : first + 4] == [
        " advice        overfitting since step 300: validation rose from 1.700 to 2.200",
        "               nats/char while training fell to 2.560; try more --dropout (now",
        "               0.4) or a smaller --hidden-size (now 8), or stop earlier",
        "               (--patience 3)",
    ]
    assert lines[first - 1].startswith(" speed")
    assert any(" " + SAID in line for line in screen(overfit, width=240, height=50))


def test_advice_leaves_room_for_the_curves(overfit, monkeypatch):
    monkeypatch.setattr("charrnn.advice.advice", lambda *_: ["so " * 200, "long " * 200])
    for width, height in ((80, 24), (40, 12), (200, 50), (10, 5), (80, 2)):
        lines = screen(overfit, width=width, height=height)
        assert sum("so so" in line for line in lines) <= height // 6
    assert sum("⠤" in line or "." in line for line in screen(overfit)[:12]) > 5


def test_no_advice_without_a_config(overfit):
    (overfit / "config.json").unlink()
    assert not any("advice" in line for line in screen(overfit))
