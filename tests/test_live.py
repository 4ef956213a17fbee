"""Watching runs from outside: files that grow, are cut and vanish; the screen; the terminal."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import math
import os
import re
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from charrnn import live, runlog
from charrnn.chart import Style
from charrnn.cli import cli
from charrnn.errors import InputError
from charrnn.live import Follower, Table, View, Watched

ROOT = Path(__file__).parent.parent
PATIENCE = 60  # seconds
PLAIN = Style(unicode=False, colour=False)
CONFIG = {"model": {"model": "gru", "num_layers": 2, "hidden_size": 8}, "train": {"grad_clip": 0.5}}
START = {
    "event": "start",
    "step": 0,
    "schema": 1,
    "total_steps": 400,
    "steps_per_epoch": 100,
    "parameters": 12345,
    "batch_size": 10,
    "seq_length": 20,
}


def train(step, nats=2.0, seconds=None, **more):
    return {
        "event": "train",
        "step": step,
        "epoch": step / 100,
        "chars": step * 200,
        "nats_per_char": nats,
        "grad_norm": 0.25,
        "clipped": 0.5,
        "learning_rate": 1e-3,
        "time": {"seconds": step / 10 if seconds is None else seconds, "chars_per_second": 1000.0},
    } | more


def validation(step, nats, best=None, best_step=None):
    return {
        "event": "validation",
        "step": step,
        "epoch": step / 100,
        "val_nats_per_char": nats,
        "best": best is None,
        "best_val_nats_per_char": nats if best is None else best,
        "best_step": best_step or step,
        "time": {"seconds": step / 10},
    }


SAMPLE = {"event": "sample", "step": 200, "text": "It was \x1b[2Jred\nand then"}
END = {
    "event": "end",
    "step": 400,
    "reason": "finished",
    "test_nats_per_char": None,
    "time": {"seconds": 40.0},
}
HISTORY = [
    START,
    *(train(i, 4 - i / 200) for i in range(10, 101, 10)),
    validation(100, 3.75),
    *(train(i, 4 - i / 200) for i in range(110, 201, 10)),
    validation(200, 3.5),
    SAMPLE,
]


def text_of(events):
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "runs" / "book"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"config": CONFIG}), encoding="utf-8")
    (folder / "metrics.jsonl").write_bytes(text_of(HISTORY))
    return folder


def watched(folder, name="book"):
    run = Watched(folder, name)
    for _ in run.news():
        pass
    return run


FIRST = View()


def screen(folder, view=FIRST, width=80, height=24, style=PLAIN):
    run = watched(folder)
    lines = live.frame([run], view, width, height, style, run.follower.written)
    assert [len(line) for line in lines] == [width] * height
    return [line.rstrip() for line in lines]


# --- files ---------------------------------------------------------------------------------------


def test_a_file_that_grows(tmp_path):
    path = tmp_path / "m"
    path.write_bytes(b"one\ntwo\nthr")
    follower = Follower(path)
    assert follower.read() == [b"one", b"two"]
    assert follower.read() == []
    with open(path, "ab") as file:
        file.write(b"ee\n\nfour\n")
    assert follower.read() == [b"three", b"", b"four"]
    assert follower.size == follower.place == path.stat().st_size


def test_a_file_that_is_cut_begins_anew(tmp_path):
    path = tmp_path / "m"
    path.write_bytes(b"one\ntwo\nthree\n")
    follower = Follower(path)
    follower.read()
    with open(path, "r+b") as file:
        file.truncate(4)
    assert follower.read() is None
    assert follower.read() == [b"one"]


def test_a_file_that_was_cut_and_has_grown_beyond_begins_anew(tmp_path):
    path = tmp_path / "m"
    path.write_bytes(b"one\ntwo\nthree\n")
    follower = Follower(path)
    follower.read()
    path.write_bytes(b"one\nTWO\nTHREE\nfour\nfive\n")
    assert follower.read() is None
    assert follower.read() == [b"one", b"TWO", b"THREE", b"four", b"five"]


def test_a_line_without_end_takes_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "BLOCK", 10)
    path = tmp_path / "m"
    path.write_bytes(b"x" * 25 + b"\none\n")
    follower = Follower(path)
    assert [follower.read() for _ in range(4)] == [[b"x" * 10], [b"x" * 10], [b"xxxxx", b"one"], []]


@pytest.mark.parametrize(
    "bad",
    [
        b"{",
        b"",
        b"[1",
        b"2]",
        b"7",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"event": "train"}',
        b'{"event": ["train"], "step": 1}',
        b'{"event": "train", "step": Infinity}',
        json.dumps(train(5) | {"chars": "many"}).encode(),
        json.dumps(train(5) | {"time": {"seconds": None, "chars_per_second": 1}}).encode(),
        json.dumps(train(5) | {"chars": 10**400}).encode(),
    ],
)
def test_bad_lines_are_counted_and_left_out(folder, bad):
    good = text_of([START, train(10)]), text_of([train(20)])
    (folder / "metrics.jsonl").write_bytes(good[0] + bad + b"\n" + good[1])
    run = watched(folder)
    assert (run.bad, run.training["steps"]) == (1, [10, 20])
    assert screen(folder)[0].endswith("bad lines: 1")


def test_events_of_a_newer_version_are_left_out(folder):
    (folder / "metrics.jsonl").write_bytes(text_of([START, {"event": "moon", "step": 1}]))
    assert watched(folder).bad == 0


def test_another_schema_is_refused(folder):
    (folder / "metrics.jsonl").write_bytes(text_of([START | {"schema": 2}]))
    with pytest.raises(InputError, match=r"has schema 2; this charrnn reads 1: upgrade charrnn"):
        watched(folder)


def test_a_million_rows_stay_few():
    table = Table("x", "y")
    for i in range(1_000_000):
        table.append((float(i), i % 2))
    assert Table.LIMIT / 2 <= len(table["x"]) <= Table.LIMIT + 1
    assert sum(table["x"]) / len(table["x"]) == pytest.approx(499_999.5, rel=1e-3)
    assert set(table["y"]) == {0.5}
    assert table.last == {"x": 999_999.0, "y": 1}
    assert table["x"] == sorted(table["x"])


def test_the_newest_rows_of_a_long_table_are_seen():
    table = Table("x")
    for i in range(Table.LIMIT + 1):
        table.append((float(i),))
    assert table["x"][-1] == Table.LIMIT  # not yet a full mean


# --- one run -------------------------------------------------------------------------------------


def test_a_run_is_followed_through_its_life(folder):
    path, run = folder / "metrics.jsonl", watched(folder)
    assert run.step == 200 and run.best == {"nats": 3.5, "step": 200}
    assert (run.clip, run.about) == (0.5, "gru 2x8")

    with open(path, "ab") as file:
        file.write(text_of([train(210)])[:-20])  # torn
    assert list(run.news()) == []

    path.write_bytes(text_of([*HISTORY[:11], train(110, 1.0, seconds=0.5)]))  # resumed
    assert next(run.news()) is None
    list(run.news())
    assert run.step == 110 and run.best == {} and run.sample == {}
    assert run.training["time"][-2:] == [10.0, 10.5]  # over both sessions

    path.unlink()
    assert list(run.news()) == [] and run.state(time.time()) == "deleted"
    assert run.step == 110

    path.write_bytes(text_of([START]))
    assert next(run.news()) is None
    list(run.news())
    assert run.step == 0 and run.trouble == ""


def test_states(folder):
    path = folder / "metrics.jsonl"
    run = watched(folder)
    written = run.follower.written
    assert run.state(written + 3) == "running, 40 s left"
    assert run.state(written + 300) == "no news for 5 min 00 s"
    assert run.interval == pytest.approx(1.0, rel=0.05)
    path.write_bytes(text_of([*HISTORY, END]))
    assert watched(folder).state(written + 300) == "finished after 40 s"
    path.write_bytes(text_of([*HISTORY, END, START | {"total_steps": 800}, train(410)]))
    assert watched(folder).state(time.time()).startswith("running")
    path.write_bytes(text_of([*HISTORY, END, train(410)]))  # more --patience: no start is written
    assert watched(folder).state(time.time()).startswith("running")
    path.unlink()
    assert watched(folder).state(time.time()) == "waiting for its first line"


def test_reading_a_long_file_does_not_block(folder, monkeypatch):
    monkeypatch.setattr(live, "BLOCK", 500)
    run = Watched(folder, "book")
    assert len(list(run.news(deadline=0.0))) == 2  # a block
    assert run.unread and run.state(time.time()).startswith("reading ")
    assert len(list(run.news())) == len(HISTORY) - 2 and not run.unread


def test_which_run(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "runs" / "deep" / "other"
    other.mkdir(parents=True)
    (other / "metrics.jsonl").write_bytes(b"")  # no checkpoint yet
    os.utime(folder / "metrics.jsonl", (1, 1))
    assert live.find([]) == [Path("runs/deep/other")]
    os.utime(other / "metrics.jsonl", (0, 0))
    assert live.find([]) == [Path("runs/book")]
    names = ["runs/book", "runs/book/metrics.jsonl", "runs/deep/other"]
    assert live.find(names) == [Path("runs/book"), Path("runs/deep/other")]


def test_what_cannot_be_watched_is_one_line(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken" / "metrics.jsonl").mkdir(parents=True)
    for arguments, message in (
        (["nothing"], "nothing does not exist: name the folder of a run"),
        (["runs"], "runs holds no run: name the folder that charrnn train made"),
        (["broken"], "cannot read the metrics broken.metrics.jsonl: .*; allow reading it"),
    ):
        result = CliRunner().invoke(cli, ["monitor", *arguments])
        assert result.exit_code == 2 and result.stdout == ""
        assert re.fullmatch(f"Error: {message}\n", result.stderr)
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(cli, ["monitor"])
    assert result.stderr.startswith("Error: there are no runs below runs: make one with ")


# --- the screen ----------------------------------------------------------------------------------


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
                lines = live.frame(runs, view, width, height, Style(colour=False), time.time())
                assert [live.columns_of(line) for line in lines] == [width] * height


def test_several_runs_are_overlaid(folder):
    runs = [watched(folder, "tall"), watched(folder, "small")]
    now = runs[0].follower.written
    lines = [line.rstrip() for line in live.frame(runs, View(), 80, 24, PLAIN, now)]
    assert lines[0] == " 2 runs, 2 running"
    assert lines[1] == " nats per character (capitals: validation)   a tall   b small"
    assert lines[-7:-4] == [
        "          step  training  validation   best  at step  nats/char",
        " a tall    200     3.000       3.500  3.500      200  running, 40 s left",
        " b small   200     3.000       3.500  3.500      200  running, 40 s left",
    ]
    coloured = "\n".join(live.frame(runs, View(), 80, 24, Style(), now))
    assert "\x1b[36m⠤⠤ tall\x1b[0m" in coloured and "\x1b[33m⠤⠤ small\x1b[0m" in coloured


def test_numbers_that_are_not_finite(folder):
    events = [START, train(10), train(20, None, grad_norm=None), validation(20, None, 2.0, 10)]
    (folder / "metrics.jsonl").write_bytes(text_of(events))
    lines = screen(folder)
    assert any("validation    nan nats/char" in line for line in lines)
    assert math.isnan(watched(folder).training["nats"][-1])


# --- advice --------------------------------------------------------------------------------------

OVERFIT = [2.5, 2.2, 2.0, 1.9, 1.8, 1.7, 1.9, 2.0, 2.1, 2.2]
SAID = (
    "overfitting since step 300: validation rose from 1.700 to 2.200 nats/char while training "
    "fell to 2.560; try more --dropout (now 0.4) or a smaller --hidden-size (now 8), or stop "
    "earlier (--patience 3)"
)


@pytest.fixture
def overfit(folder):
    events = [START | {"steps_per_epoch": 50}]
    for i, nats in enumerate(OVERFIT, 1):
        events += [train(step, 4 - 0.003 * step) for step in range(50 * i - 40, 50 * i + 1, 10)]
        events.append(validation(50 * i, nats, 1.7, 300))
    (folder / "metrics.jsonl").write_bytes(text_of(events))
    return folder


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
    monkeypatch.setattr(live.advice, "advice", lambda *_: ["so " * 200, "long " * 200])
    for width, height in ((80, 24), (40, 12), (200, 50), (10, 5), (80, 2)):
        lines = screen(overfit, width=width, height=height)
        assert sum("so so" in line for line in lines) <= height // 6
    assert sum("⠤" in line or "." in line for line in screen(overfit)[:12]) > 5


def test_no_advice_without_a_config(overfit):
    (overfit / "config.json").unlink()
    assert not any("advice" in line for line in screen(overfit))


def test_advice_is_that_of_the_newest_numbers(overfit):
    run = watched(overfit)
    assert run.advice == [SAID] and run.advice is run.advice
    with open(overfit / "metrics.jsonl", "ab") as file:
        file.write(text_of([train(510, 2.4), validation(550, 1.6)]))
    for _ in run.news():
        pass
    assert run.advice == []


def test_advice_in_lines(overfit):
    with open(overfit / "metrics.jsonl", "ab") as file:
        file.write(text_of([END | {"step": 500, "time": {"seconds": 60.0}}]))
    result = CliRunner().invoke(cli, ["monitor", str(overfit)])
    assert result.stdout.splitlines()[-2:] == ["finished after 1 min 00 s", f"advice: {SAID}"]


# --- lines ---------------------------------------------------------------------------------------


def test_lines_without_a_terminal(folder):
    (folder / "metrics.jsonl").write_bytes(text_of([START, train(200), *HISTORY[-2:], END]))
    result = CliRunner().invoke(cli, ["monitor", str(folder)])
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "400 steps of 10 x 20 characters, 12,345 parameters",
        "step 200  training 2.000 nats/char  2.885 bits/char  perplexity 7.39  "
        "learning rate 0.001  gradient norm 0.25  1,000 chars/s",
        "step 200  validation 3.500 nats/char  5.049 bits/char  perplexity 33.1  (best)",
        r'step 200  sample "It was \u001b[2Jred\nand then"',
        "finished after 40 s",
    ]


def test_lines_without_standard_input(folder, monkeypatch):
    with open(folder / "metrics.jsonl", "ab") as file:
        file.write(text_of([END]))
    stream = io.StringIO()
    live.watch([str(folder)], None, stream)
    assert stream.getvalue().endswith("finished after 40 s\n")


def test_lines_end_when_nobody_trains(folder):
    """An interrupted run has no end event; one that trains has its lock."""
    stream = io.StringIO()
    with runlog.lock(folder):
        watcher = threading.Thread(target=live.watch, args=([str(folder)], None, stream))
        watcher.start()
        watcher.join(2 * live.READ_EVERY)
        assert watcher.is_alive()
        with open(folder / "metrics.jsonl", "ab") as file:
            file.write(text_of([train(210)]))
    watcher.join(60)
    assert not watcher.is_alive()
    assert stream.getvalue().splitlines()[-1].startswith("step 210  training")


def test_lines_that_a_resumed_run_repeats_come_once(folder):
    path = folder / "metrics.jsonl"
    log = live._Lines(Watched(folder, "book"), "book: ")
    path.write_bytes(text_of([START, train(10), train(20)]))
    assert len(list(log.new())) == 3
    path.write_bytes(text_of([START, train(10), train(20, seconds=0.1), validation(20, 3.0)]))
    assert [line[:25] for line in log.new()] == ["book: step 20  validation"]
    path.unlink()
    assert list(log.new()) == [f"book: {path}: deleted"] and list(log.new()) == []
    path.write_bytes(text_of([START, train(10)]))
    assert len(list(log.new())) == 2


# --- the terminal --------------------------------------------------------------------------------


class Terminal:
    """A command of charrnn on a pseudo-terminal."""

    def __init__(
        self, *arguments, command="monitor", program=("-m", "charrnn"), columns=80, lines=24,
        **environment,
    ):  # fmt: skip
        import pty

        self.master, self.slave = pty.openpty()
        self.resize(columns, lines)
        self.modes = self.now()
        self.text = ""
        self.decode = codecs.getincrementaldecoder("utf-8")().decode  # a read may end in a letter
        self.process = subprocess.Popen(
            [sys.executable, *program, command, *map(str, arguments)],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env=self.environment() | environment,
            preexec_fn=os.setpgrp,  # as a shell does; a group without a shell cannot be stopped
        )

    @staticmethod
    def environment():
        kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        more = {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", "PYTHONUTF8": "1"}
        return kept | more | {"TERM": "xterm-256color"}

    def now(self):
        import termios

        return termios.tcgetattr(self.slave)

    def resize(self, columns, lines):
        import fcntl
        import termios

        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, keys):
        os.write(self.master, keys.encode())

    def frame(self):
        """The lines of the newest whole frame, without colours."""
        frames = re.findall(r"\x1b\[\?2026h\x1b\[H(.*?)\x1b\[\?2026l", self.text, re.DOTALL)
        return (
            re.sub(r"\x1b\[[\d;]*m", "", frames[-1] if frames else "").replace("\r", "").split("\n")
        )

    def until(self, condition):
        """Read until ``condition`` holds."""
        start = time.monotonic()
        while not condition():
            assert time.monotonic() - start < PATIENCE, self.frame()
            if select.select([self.master], [], [], 0.05)[0]:
                self.text += self.decode(os.read(self.master, 65536))

    def shows(self, part):
        self.until(lambda: any(part in line for line in self.frame()))

    def ended(self):
        """The exit status; all has been given back by then."""
        self.until(lambda: self.process.poll() is not None)
        while select.select([self.master], [], [], 0)[0]:
            self.text += self.decode(os.read(self.master, 65536))
        assert self.now() == self.modes
        assert self.text.rindex("\x1b[?1049l") > self.text.rindex("\x1b[?1049h")
        assert self.text.rindex("\x1b[?25h") > self.text.rindex("\x1b[?25l")
        return self.process.returncode

    def close(self):
        self.process.kill()
        self.process.wait()
        for end in (self.master, self.slave):
            os.close(end)


@pytest.fixture
def terminal():
    if os.name == "nt":
        pytest.skip("Windows has no pseudo-terminals of this kind")
    with contextlib.ExitStack() as stack:

        def start(*arguments, **options):
            terminal = Terminal(*arguments, **options)
            stack.callback(terminal.close)
            return terminal

        yield start


def test_a_view_from_the_first_key_to_the_last(terminal, folder):
    tty = terminal(folder, COLUMNS="300", LINES="7")  # of another terminal
    tty.shows("running, 40 s left")
    assert [len(line) for line in tty.frame()] == [80] * 24
    assert tty.now() != tty.modes  # no echo, no lines
    tty.type("\x1b[A\x1bOq")  # arrows and the like are no keys of ours
    tty.type("u")
    tty.shows(" bits per character")
    tty.type("x")
    tty.shows("x axis: characters")
    tty.resize(133, 40)
    tty.until(lambda: [len(line) for line in tty.frame()] == [133] * 40)
    assert any("clip 0.5" in line for line in tty.frame())
    assert tty.text.count("\x1b[H\x1b[J") == 2  # at first, and for the new size
    with open(folder / "metrics.jsonl", "ab") as file:
        file.write(text_of([train(300), END]))
    tty.shows("finished after 40 s")
    (folder / "metrics.jsonl").unlink()
    tty.shows("deleted")
    assert tty.process.poll() is None
    tty.type("q")
    assert tty.ended() == 0


def test_a_terminal_that_does_not_know_its_size(terminal, folder):
    tty = terminal(folder, columns=0, lines=0)
    tty.until(lambda: [len(line) for line in tty.frame()] == [80] * 24)


@pytest.mark.parametrize("number, status", [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_leaves_the_terminal_as_it_was(terminal, folder, number, status):
    tty = terminal(folder)
    tty.shows("running")
    tty.process.send_signal(getattr(signal, number))
    assert tty.ended() == status


def test_an_error_leaves_the_terminal_as_it_was(terminal, folder):
    tty = terminal(folder)
    tty.shows("running")
    (folder / "metrics.jsonl").write_bytes(text_of([START | {"schema": 2}]))
    assert tty.ended() == 2
    message = tty.text[tty.text.rindex("\x1b[?1049l") :]
    assert message.count("Error: ") == 1 and message.strip().endswith("upgrade charrnn")


def test_a_stopped_view_gives_the_terminal_back(terminal, folder):
    tty = terminal(folder)
    tty.shows("running")
    tty.process.send_signal(signal.SIGTSTP)
    tty.until(lambda: "\x1b[?1049l" in tty.text and tty.now() == tty.modes)

    def goes_on():
        tty.process.send_signal(signal.SIGCONT)  # again and again: it may not have stopped yet
        return tty.text.count("\x1b[?1049h") > 1

    tty.until(goes_on)
    tty.text = tty.text[-200:]
    tty.shows("running")
    assert tty.now() != tty.modes
    tty.type("q")
    assert tty.ended() == 0


def test_a_terminal_of_plain_ascii_without_colours(terminal, folder):
    tty = terminal(folder, PYTHONUTF8="0", PYTHONIOENCODING="ascii", NO_COLOR="1")
    tty.shows(" nats per character   .. training   o validation")
    tty.type("q")
    assert tty.ended() == 0
    assert tty.text.isascii() and "\x1b[36m" not in tty.text


def test_a_dumb_terminal_gets_lines(terminal, folder):
    with open(folder / "metrics.jsonl", "ab") as file:
        file.write(text_of([END]))
    tty = terminal(folder, TERM="dumb")
    tty.until(lambda: "finished after 40 s" in tty.text)
    assert "\x1b[?" not in tty.text


def test_style_of_a_terminal(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    utf8 = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    assert live.style_of(utf8) == Style()
    assert live.style_of(io.TextIOWrapper(io.BytesIO(), encoding="latin-1")) == Style(False)
    monkeypatch.setenv("TERM", "linux")
    assert live.style_of(utf8) == Style(False)
    monkeypatch.setenv("NO_COLOR", "1")
    assert live.style_of(utf8) == PLAIN


# --- beside a trainer ----------------------------------------------------------------------------

SAVED = {"event": "checkpoint", "step": 2, "path": "last.safetensors"}


def step(number):
    return {"event": "step", "step": number}


class FakeScreen:
    """Shows nothing; ``typed`` are the keys of each look."""

    typed: list[str] = []
    fault = None

    def __init__(self, keys, stream):
        self.stream, self.left, self.keys_left = stream, False, list(self.typed)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.left = True

    def size(self):
        return 80, 24

    def show(self, lines):
        if self.fault is not None:
            raise self.fault

    def keys(self, seconds):
        assert seconds == 0  # a trainer does not wait
        return self.keys_left.pop(0) if self.keys_left else ""


@pytest.fixture
def screens(monkeypatch):
    """The class of the screens; the clock goes on by a second whenever it is looked at."""
    clock = iter(range(10**6))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(live, "usable", lambda keys, stream: True)
    monkeypatch.setattr(live, "Screen", FakeScreen)
    monkeypatch.setattr(FakeScreen, "typed", [])
    return FakeScreen


NOTED = {"event": "note", "step": 0, "text": "compiling"}
TRAINED = [
    NOTED, START, step(1), step(2), train(2), validation(2, 3.0), SAVED, step(3), SAMPLE,
    step(4), END,
]  # fmt: skip


def beside(events, folder):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    return live.beside(iter(events), folder, io.StringIO(), stream)


def passed_on(events, folder):
    return list(beside(events, folder))


def test_beside_a_trainer_what_a_bar_shows_is_passed_on_later(screens, folder):
    want = [NOTED, START, step(1), validation(2, 3.0), SAVED, SAMPLE, END]
    assert passed_on(TRAINED, folder) == want


def test_beside_a_trainer_it_opens_with_the_first_step(screens, folder):
    events = beside(TRAINED, folder)
    assert [next(events), next(events), next(events)] == TRAINED[:3]
    assert passed_on([NOTED, START, END], folder) == [NOTED, START, END]  # without one never


def test_beside_a_trainer_the_bar_goes_on_after_q(screens, folder):
    screens.typed = ["", "uxq"]  # at step 2 and at its train line
    assert passed_on(TRAINED, folder) == [*TRAINED[:3], *TRAINED[5:]]


def test_beside_a_trainer_the_bar_goes_on_when_the_terminal_is_given_back(
    screens, folder, monkeypatch
):
    monkeypatch.setattr(
        screens, "keys", lambda screen, seconds: setattr(screen, "left", True) or ""
    )
    assert passed_on(TRAINED, folder) == [*TRAINED[:3], *TRAINED[5:]]


def test_beside_a_trainer_a_lost_terminal_ends_the_view_alone(screens, folder, monkeypatch):
    monkeypatch.setattr(screens, "fault", OSError(5, "Input/output error"))
    assert passed_on(TRAINED, folder) == [*TRAINED[:3], *TRAINED[4:]]


def test_beside_a_trainer_errors_of_the_run_pass_through(screens, folder):
    def events():
        yield from TRAINED[:6]
        raise InputError("the run's own")

    seen = []
    with pytest.raises(InputError, match="the run's own"):
        for event in beside(events(), folder):
            seen.append(event)
    assert seen == [*TRAINED[:3], validation(2, 3.0)]


def test_beside_a_trainer_nothing_changes_without_a_terminal(folder):
    assert list(live.beside(iter(TRAINED), folder, None, io.StringIO())) == TRAINED
    assert list(live.beside(iter(TRAINED), folder, io.StringIO(), io.StringIO())) == TRAINED


@pytest.mark.parametrize("taken", (0.02, 0.06))  # seconds for a drawing, alone or beside others
def test_a_view_rests_after_its_work(monkeypatch, folder, taken):
    """Of 1,000 seconds it works 2.5, however much there is to show; keys are answered at once."""
    clock, worked, drawn = [0.0], [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "time", lambda: clock[0])
    monkeypatch.setattr(time, "thread_time", lambda: worked[0])

    def frame(runs, view, *rest):
        worked[0] += 0.02
        clock[0] += taken
        drawn.append(view)
        return []

    monkeypatch.setattr(live, "frame", frame)
    screen = FakeScreen(None, io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    display = live._Display([Watched(folder, "book")], screen, View(), live.PACE)
    while clock[0] < 1000:
        assert display.turn(0.0)
        clock[0] += 0.1
    assert 0.85 * 2.5 < 0.02 * len(drawn) <= 2.52
    screen.keys_left = ["u", "x"]
    before = len(drawn)
    display.turn(0.0)
    display.turn(0.0)
    display.turn(0.0)
    assert [(view.bits, view.x) for view in drawn[-2:]] == [(True, "steps"), (True, "characters")]
    assert len(drawn) <= before + 3


@pytest.fixture
def training(terminal, tmp_path):
    """`charrnn train --live` of a small run that goes on for long, unless told otherwise."""
    (tmp_path / "book.txt").write_text("It was the best of times. " * 200, encoding="utf-8")

    def start(*options, **more):
        sizes = ["--hidden-size=16", "--batch-size=4", "--seq-length=16", "--eval-every=50"]
        folder = ["--out-dir", tmp_path / "run"]
        text = tmp_path / "book.txt"
        return terminal(text, *sizes, *folder, "--live", *options, command="train", **more)

    return start


def after_the_view(tty):
    """What stands on the ordinary screen since the view was closed."""
    return tty.text[tty.text.rindex("\x1b[?1049l") :]


def test_train_live_from_the_view_to_the_bar_to_the_end(training, tmp_path):
    tty = training("--max-steps=1000000", "--checkpoint-every=0")
    tty.shows("validation")
    tty.shows("q to the bar")
    tty.type("u")
    tty.shows(" bits per character")
    tty.type("q")
    tty.until(lambda: "\x1b[?1049l" in tty.text and re.search(r"ep \d.*\|", after_the_view(tty)))
    assert tty.now() == tty.modes
    # As if there had been a bar from the start.
    tty.until(lambda: after_the_view(tty).count("step 50  val ") == 1)
    tty.process.send_signal(signal.SIGINT)
    assert tty.ended() == 130
    assert "go on with: charrnn train --resume" in after_the_view(tty)
    assert (tmp_path / "run" / "last.safetensors").exists()


def test_train_live_ends_with_the_summary(training):
    tty = training("--max-steps=300")
    assert tty.ended() == 0
    shown = after_the_view(tty)
    assert shown.count("step 50  val ") == shown.count("finished at step 300,") == 1
    assert shown.index("step 300  val ") < shown.index("model in")


@pytest.mark.parametrize("number, status", [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_closes_the_view_before_the_run_saves(training, tmp_path, number, status):
    tty = training("--max-steps=1000000", "--checkpoint-every=0")
    tty.shows("running")
    time.sleep(0.3)  # it is not being written
    tty.process.send_signal(getattr(signal, number))
    assert tty.ended() == status
    assert "saving at the end of this step" in after_the_view(tty)
    assert "interrupted at step" in after_the_view(tty)
    assert (tmp_path / "run" / "last.safetensors").exists()


def test_a_second_signal_kills_with_the_terminal_given_back(training):
    tty = training("--hidden-size=512", "--batch-size=16", "--seq-length=128",
                   "--max-steps=1000000", "--checkpoint-every=0", "--val-frac=0")  # fmt: skip
    tty.shows("running")
    time.sleep(0.3)
    tty.process.send_signal(signal.SIGINT)
    tty.until(lambda: "saving at the end" in tty.text)
    tty.process.send_signal(signal.SIGINT)
    assert tty.ended() in (-signal.SIGINT, 130)


BUSY = """
import hashlib, os, sys
from charrnn import terminal
from charrnn.cli import cli
from charrnn.trainer import Run

fast = Run._gradients

def busy(run, *arguments):  # as a long kernel is: C code in which no handler of Python's is run
    if terminal._screen is not None and run.progress.step == 5:
        os.write(2, b"busy")
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
    return fast(run, *arguments)

Run._gradients = busy
cli(sys.argv[1:], prog_name="charrnn")
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_second_signal_within_a_kernel_ends_at_once_with_the_terminal_given_back(training, name):
    tty, number = training(program=("-c", BUSY)), getattr(signal, name)
    tty.until(lambda: "busy" in tty.text)
    assert tty.now() != tty.modes
    time.sleep(0.3)  # it is in there now
    tty.process.send_signal(number)
    time.sleep(0.5)
    assert tty.process.poll() is None and tty.now() != tty.modes
    begin = time.monotonic()
    tty.process.send_signal(number)
    assert tty.ended() == 128 + number
    assert time.monotonic() - begin < 5


STOPPED = """
import os, sys, time
from charrnn import terminal
from charrnn.cli import cli

put = terminal.Screen._put

def half(screen, text):
    if "running" not in text:
        return put(screen, text)
    put(screen, text[: len(text) // 2])
    os.write(1, b"half")
    time.sleep(2)
    put(screen, "the rest")

terminal.Screen._put = half
cli(sys.argv[1:], prog_name="charrnn")
"""


@pytest.mark.parametrize("command", ["monitor", "train"])
def test_a_signal_in_the_middle_of_a_frame(terminal, training, folder, command):
    """What is left of it is not written to the ordinary screen."""
    more = {"program": ("-c", STOPPED)}
    if command == "monitor":
        tty = terminal(folder, **more)
    else:
        tty = training("--max-steps=1000000", "--eval-every=0", **more)
    tty.until(lambda: "half" in tty.text)
    tty.process.send_signal(signal.SIGTERM)
    if command == "train":
        tty.until(lambda: "once more" in tty.text)
        assert tty.now() == tty.modes
    assert tty.ended() == 143
    assert "the rest" not in after_the_view(tty)
    if command == "train":
        assert "once more to end at once" in after_the_view(tty)


def test_a_stopped_terminal_is_not_waited_for(terminal, folder):
    """As after Ctrl-S: the write of a frame hangs."""
    import termios

    tty = terminal(folder)
    tty.shows("running")
    termios.tcflow(tty.slave, termios.TCOOFF)
    tty.resize(100, 30)
    time.sleep(1)
    tty.process.send_signal(signal.SIGTERM)
    assert tty.process.wait(PATIENCE) == 143
    assert tty.now() == tty.modes


def test_the_own_trainer_is_not_silent(folder):
    run = Watched(folder, "book", alive=True)
    list(run.news())
    assert run.state(run.follower.written + 1000) == "running, 40 s left"
    run.reached = 300
    assert run.state(run.follower.written) == "running, 20 s left"


def test_beside_a_trainer_every_step_counts(screens, folder, monkeypatch):
    """Also where lines of the metrics are far apart."""
    steps, clock = [], iter(range(10**6))
    monkeypatch.setattr(live, "PACE", 0.0)
    monkeypatch.setattr(time, "time", lambda: next(clock))
    monkeypatch.setattr(live, "frame", lambda runs, *rest: steps.append(runs[0].step) or [])
    passed_on([START, *map(step, range(301, 305)), END], folder)
    assert steps[-1] == 304
