"""What a person sees of a run, on a terminal and elsewhere."""

from __future__ import annotations

import io
import math
import os
import re
import time
from pathlib import Path

import pytest

from charrnn import monitor, words

LN2 = math.log(2)
START = {
    "event": "start",
    "step": 0,
    "schema": 1,
    "total_steps": 400,
    "steps_per_epoch": 100,
    "parameters": 12345,
    "train_chars": 90000,
    "val_chars": 10000,
    "vocab_size": 70,
    "batch_size": 10,
    "seq_length": 20,
}
END = {
    "event": "end",
    "step": 400,
    "epoch": 4.0,
    "reason": "finished",
    "nats_per_char": LN2,
    "val_nats_per_char": 2 * LN2,
    "best_val_nats_per_char": 1.5 * LN2,
    "best_step": 300,
    "test_nats_per_char": None,
    "message": None,
    "time": {"seconds": 83.2},
}
CHECKPOINT = {"event": "checkpoint", "step": 400, "path": str(Path("runs/a b/last.safetensors"))}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def read_through(monkeypatch, stream, quiet=False, seconds=10):
    """Tells of a pipe and of two passes, a tenth of a second after another."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with monitor.reading(quiet, stream) as told:
        told(3_000_000, None)
        now[0] += 1.5
        told(5_000_000, None)
        for done in range(1, 11):
            now[0] += (seconds - 1.5) / 10
            told(done * 1000, 10_000)
    return stream.getvalue()


def test_reading_is_shown_after_a_second(monkeypatch):
    assert read_through(monkeypatch, io.StringIO(), seconds=12.5) == (
        "reading the text: 5 MB\n"
        "reading the text: 50%, 7 s left\n"
        "reading the text: 100%, 0 s left\n"
    )
    shown = read_through(monkeypatch, Terminal())
    assert "reading the text 5 MB" in shown
    assert re.search(r"reading the text \|[^|]+\| 50%, 6 s left", shown)
    assert shown.endswith("\r") and not shown.rpartition("\r")[0].rpartition("\r")[2].strip()


def test_reading_that_is_quick_or_quiet_shows_nothing(monkeypatch):
    assert read_through(monkeypatch, io.StringIO(), quiet=True) == ""
    stream = io.StringIO()
    with monitor.reading(stream=stream) as told:
        told(1, 2)
        told(2, 2)
    assert stream.getvalue() == ""


def test_reading_goes_on_without_a_terminal(monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError(5, "Input/output error")

    read_through(monkeypatch, Gone())


def step(number, nats=2.0):
    return {
        "event": "step",
        "step": number,
        "steps": 1,
        "epoch": number / 100,
        "chars": number * 200,
        "nats_per_char": nats,
        "grad_norm": 0.5,
        "clipped": 0.0,
        "learning_rate": 1e-3,
        "time": {"seconds": number / 10, "chars_per_second": 1000.0},
    }


def validation(number, nats, best=True):
    return {
        "event": "validation",
        "step": number,
        "epoch": number / 100,
        "val_nats_per_char": nats,
        "best": best,
        "best_val_nats_per_char": nats,
        "best_step": number,
        "time": {"seconds": 1.0},
    }


def lines_of(*events):
    stream = io.StringIO()
    monitor.show(events, stream=stream)
    return stream.getvalue().splitlines()


def screen_of(text):
    """What a terminal shows in the end, line by line."""
    lines = []
    for row in text.split("\n"):
        line = ""
        for part in row.split("\r"):
            line = part + line[len(part) :]
        lines.append(line.rstrip())
    return lines


def test_plain_lines():
    assert lines_of(START, step(100), validation(100, LN2)) == [
        "model  12,345 parameters, 70 symbols",
        "text   90,000 characters to train on, 10,000 to validate on",
        "run    400 steps of 10 x 20 characters, 100 to an epoch",
        "epoch 1.0/4 step 100/400: 2.000 nats 2.885 bits/char, 1 min 00 s left, 1,000 chars/s, "
        "grad norm 0.5",
        "step 100  val 0.693 nats/char  1.000 bits/char  perplexity 2  (best)",
    ]


def test_the_validation_loss_stays_in_view():
    assert ", val 1.500 nats, " in lines_of(START, validation(1, 1.5), step(2))[-1]


def test_a_resumed_run_says_so():
    assert lines_of(START | {"step": 1200})[3:] == ["       going on after step 1,200"]


def test_the_training_loss_is_smoothed(monkeypatch):
    clock = iter(range(0, 10**6, 10))  # every step is due
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    lines = lines_of(START, *(step(i, nats=1.0 + i % 2) for i in range(1, 201)))
    losses = [float(re.search(r": ([\d.]+) nats", line)[1]) for line in lines[3:]]
    assert losses[0] == 2.0  # from the first step on there is no bias to zero
    assert losses[-1] == pytest.approx(1.5, abs=0.02)


def test_steps_are_drawn_by_the_clock(monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    assert len(lines_of(START, *map(step, range(1, 101)))) == 4


def test_notes_and_samples_are_shown_when_they_come():
    lines = lines_of(
        {"event": "note", "step": 0, "text": "compiling kernels, once per installation"},
        START,
        {"event": "sample", "step": 5, "text": "the time\nmachine"},
    )
    assert lines[0] == "compiling kernels, once per installation"
    assert lines[-4:] == ["--- sample at step 5 ---", "the time", "machine", "---"]


def test_events_that_are_unknown_or_only_logged_are_passed_over():
    assert lines_of(START, step(1) | {"event": "train"}, {"event": "new", "step": 1}) == lines_of(
        START
    )


def test_summary():
    lines = lines_of(START, CHECKPOINT, END | {"test_nats_per_char": 3 * LN2})
    folder = str(Path("runs/a b"))
    assert lines[3:] == [
        "",
        "finished at step 400, epoch 4.0, after 1 min 23 s",
        "  training    0.693 nats/char  1.000 bits/char  perplexity 2",
        "  validation  1.386 nats/char  2.000 bits/char  perplexity 4",
        "  best        1.040 nats/char  1.500 bits/char  perplexity 2.83  step 300",
        "  test        2.079 nats/char  3.000 bits/char  perplexity 8",
        f"  model in    {folder}",
        f"  next        {monitor.command('charrnn', 'sample', folder)}",
    ]


@pytest.mark.parametrize(
    "reason, line",
    [
        ("patience", "stopped by --patience at step 400"),
        ("interrupted", "interrupted at step 400"),
        ("diverged", "stopped: diverged at step 400"),
    ],
)
def test_summary_of_a_run_that_ended_early(reason, line):
    lines = lines_of(START, CHECKPOINT, END | {"reason": reason, "nats_per_char": math.nan})
    assert lines[4].startswith(line)
    assert "  training    nan nats/char  nan bits/char  perplexity nan" in lines
    assert any(line.startswith("  next") for line in lines) == (reason == "patience")


ADVICE = [
    "overfitting since step 250: validation rose from 2.106 to 2.852 nats/char",
    "the gradient vanishes: see charrnn gradients",
]


@pytest.fixture
def advised(monkeypatch):
    asked = []

    def of(folder):
        asked.append(folder)
        return ADVICE

    monkeypatch.setattr(monitor.advice, "of", of)
    return asked


@pytest.mark.parametrize("reason", ["finished", "patience", "interrupted"])
def test_the_summary_ends_with_advice(advised, reason):
    lines = lines_of(START, CHECKPOINT, END | {"reason": reason})
    assert lines[-2:] == [f"  advice      {sentence}" for sentence in ADVICE]
    assert advised == [Path("runs/a b")]


def test_advice_is_wrapped_on_a_terminal(advised):
    terminal = Terminal()
    monitor.show([START, CHECKPOINT, END], stream=terminal)
    assert screen_of(terminal.getvalue())[-4:] == [
        "  advice      overfitting since step 250: validation rose from 2.106 to 2.852",
        "              nats/char",
        "  advice      the gradient vanishes: see charrnn gradients",
        "",
    ]


def test_no_advice_is_asked_for_in_quiet(advised):
    monitor.show([START, CHECKPOINT, END], quiet=True)
    assert advised == []


def test_a_run_of_no_steps_has_a_summary():
    nothing = dict.fromkeys(key for key in END if key.endswith("per_char") or key == "best_step")
    assert lines_of(START, END | nothing)[3:] == [
        "",
        "finished at step 400, epoch 4.0, after 1 min 23 s",
    ]


def test_a_bar_on_a_terminal_that_leaves_it_clean():
    stream = Terminal()
    sample = {"event": "sample", "step": 2, "text": "hello"}
    monitor.show([START, step(1), validation(1, 1.5), sample, END], stream=stream)
    text = stream.getvalue()
    assert re.search(
        r"\rep 0.0/4 1/400\|[^|\r]*\|2.00 nats 2.89 bits 1k/s 1m20s grad 0.5\r",
        text,
    )
    screen = screen_of(text)
    assert "hello" in screen
    assert not [line for line in screen if "|" in line]


LONG_START = START | {
    "step": 12000,
    "total_steps": 150000,
    "steps_per_epoch": 12500,
    "parameters": 12_345_678,
    "train_chars": 1_234_567_890,
    "val_chars": 123_456_789,
    "vocab_size": 12345,
    "batch_size": 128,
    "seq_length": 100,
}
LONG_STEP = step(12345, 1.234) | {
    "epoch": 10.6,
    "grad_norm": 0.5234,
    "time": {"seconds": 1.0, "chars_per_second": 137655 * 12800 / (3 * 3600 + 57 * 60)},
}
SHORT = "ep 10.6/12 12345/150000|"
LONG_END = END | {
    "step": 1_500_000,
    "epoch": 10.6,
    "nats_per_char": 1.234,
    "val_nats_per_char": math.log(123.4),
    "best_val_nats_per_char": math.log(123.4),
    "best_step": 1_234_567,
    "test_nats_per_char": math.log(12345),
    "time": {"seconds": 123 * 3600},
}


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(
    "columns, left, right",
    [
        ((200, 80), SHORT, "|1.23 nats 1.78 bits val 1.30 124k/s 3h57m grad 0.52"),
        ((80, 200), SHORT, "|1.23 nats 1.78 bits val 1.30 124k/s 3h57m grad 0.52"),
        (80, SHORT, "|1.23 nats 1.78 bits val 1.30 124k/s 3h57m grad 0.52"),
        (90, SHORT, "|1.234 nats 1.78 bits val 1.300 124k/s 3h57m grad 0.52"),
        (139, SHORT, "|1.234 nats 1.78 bits val 1.300 124k/s 3h57m grad 0.52"),
        (
            140,
            "epoch 10.6/12 step 12345/150000 |",
            "| 1.234 nats 1.780 bits/char, val 1.300 nats, 3 h 57 min left, "
            "123,909 chars/s, grad norm 0.523",
        ),
    ],
)
def test_the_bar_of_a_long_run_fits_with_everything_in_it(columns, left, right, monkeypatch):
    """``columns`` of the terminal, or of it and COLUMNS."""
    import fcntl
    import pty
    import struct
    import termios

    class Sized(Terminal):
        def fileno(self):
            return theirs

    monkeypatch.delenv("COLUMNS", raising=False)
    size = columns
    if isinstance(columns, tuple):
        size, columns = columns[0], min(columns)
        monkeypatch.setenv("COLUMNS", str(280 - size))
    ours, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, size, 0, 0))
        stream = Sized()
        monitor.show([LONG_START, validation(12000, 1.3), LONG_STEP], stream=stream)
    finally:
        os.close(ours)
        os.close(theirs)
    lines = re.split("[\r\n]", stream.getvalue())
    assert max(map(len, lines)) <= columns
    bar = re.escape(left) + "[^|]{3,}" + re.escape(right)
    assert [line for line in lines if re.fullmatch(bar, line)], lines


@pytest.mark.parametrize(
    "seconds, text", [(5, "5s"), (80, "1m20s"), (725, "12m"), (11222, "3h07m"), (43620, "12h")]
)
def test_the_time_left_is_brief_in_the_short_bar(seconds, text):
    stream = Terminal()
    slow = step(1) | {"time": {"seconds": 1.0, "chars_per_second": 399 * 200 / seconds}}
    monitor.show([START, slow], stream=stream)
    assert re.search(rf"k/s {text} grad 0\.5\r", stream.getvalue())


@pytest.mark.parametrize("reason", words.REASONS)
def test_no_line_of_a_long_run_is_longer_than_80_columns(reason):
    best = validation(1_500_000, math.log(123.4))
    worse = validation(1_500_000, math.log(1e300), best=False)
    lines = lines_of(LONG_START, best, worse, CHECKPOINT, LONG_END | {"reason": reason})
    assert len(lines) >= 4 + 2 + 2 + 4 + 1
    assert max(map(len, lines)) <= 80, lines


def test_the_terminal_is_clean_when_the_run_fails():
    stream = Terminal()

    def events():
        yield START
        yield step(1)
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        monitor.show(events(), stream=stream)
    assert "ep 0.0/4 1/400|" in stream.getvalue()
    assert screen_of(stream.getvalue())[-1] == ""


def test_a_lost_terminal_does_not_end_the_run():
    class Broken(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    assert monitor.show([START, step(1), END], stream=Broken()) == END


def test_quiet_shows_nothing_and_returns_the_end(capsys):
    assert monitor.show([START, step(1), END], quiet=True) == END
    assert monitor.show([START], quiet=True) is None
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "nats, text",
    [
        (LN2, "0.693 nats/char  1.000 bits/char  perplexity 2"),
        (1e6, "1e+06 nats/char  1.44e+06 bits/char  perplexity inf"),
        (math.inf, "inf nats/char  inf bits/char  perplexity inf"),
    ],
)
def test_units(nats, text):
    assert words.units(nats) == text


@pytest.mark.parametrize(
    "seconds, text",
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (11222, "3 h 07 min")],
)
def test_duration(seconds, text):
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    "value, text",
    [(0.0, "0"), (0.0523, "0.05"), (0.5234, "0.52"), (1.76, "1.8"), (123.4, "123"), (1234, "1234"),
     (1e7, "1e+07"), (math.nan, "nan"), (math.inf, "inf")],
)  # fmt: skip
def test_short_numbers(value, text):
    assert monitor._short(value) == text
