"""Watching runs from outside: lines, the terminal, the view beside a trainer."""

from __future__ import annotations

import codecs
import contextlib
import io
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
from watching import (
    END,
    HISTORY,
    PLAIN,
    SAID,
    SAMPLE,
    START,
    overfitting,
    run_folder,
    text_of,
    train,
    validation,
)

from charrnn import live, runlog
from charrnn.chart import Style
from charrnn.cli import cli
from charrnn.errors import InputError
from charrnn.view import View
from charrnn.watched import Watched

ROOT = Path(__file__).parent.parent
PATIENCE = 60  # seconds


@pytest.fixture
def folder(tmp_path):
    return run_folder(tmp_path)


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


def test_a_run_that_ended_before_its_first_line(folder):
    (folder / "metrics.jsonl").unlink()
    result = CliRunner().invoke(cli, ["monitor", str(folder)])
    assert (result.exit_code, result.stdout) == (
        0,
        f"{folder} has no metrics: it ended before its first line, go on with charrnn train "
        f"--resume {folder}\n",
    )


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
from charrnn.learner import Learner

fast = Learner.gradients

def busy(learner, piece, window, step):
    # As a long kernel is: C code in which no handler of Python's is run.
    if terminal._screen is not None and step == 5:
        os.write(2, b"busy")
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
    return fast(learner, piece, window, step)

Learner.gradients = busy
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


def test_advice_in_lines(folder):
    with open(overfitting(folder) / "metrics.jsonl", "ab") as file:
        file.write(text_of([END | {"step": 500, "time": {"seconds": 60.0}}]))
    result = CliRunner().invoke(cli, ["monitor", str(folder)])
    assert result.stdout.splitlines()[-2:] == ["finished after 1 min 00 s", f"advice: {SAID}"]
