"""Watches runs from outside, by the metrics files they write: a full-screen view, or plain lines.

`charrnn.watched` reads the files, `charrnn.view` makes screens of them, and `watch` goes round;
`beside` does so between the steps of a run of this process.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from charrnn import runlog
from charrnn.chart import printable
from charrnn.terminal import Screen, style_of, usable
from charrnn.view import View, frame
from charrnn.watched import ORDER, Event, Watched, find
from charrnn.words import REASONS, duration, units

READ_EVERY, LOOK_EVERY = 0.5, 0.1  # seconds between looks at the files, and at the keys
PACE = 400.0  # so that beside a trainer drawing takes at most 0.25 % of the processor's time
SLOW = 0.05  # of that for what a drawing takes by the clock: a slow terminal costs some %, too


def watch(names: Sequence[str], keys: TextIO | None, stream: TextIO) -> None:
    """Show runs until the user quits; without a terminal, until nobody trains them.

    Parameters
    ----------
    names : run folders; none is the newest run below ``runs/``
    keys, stream : where keys come from, and where the view goes

    Raises
    ------
    InputError
        If there is no such run, or one was written by a newer charrnn.
    """
    folders = find(names)
    short = [folder.resolve().name for folder in folders]
    alone = len(folders) == 1 or len(set(short)) < len(short)
    runs = [Watched(f, str(f) if alone else n) for f, n in zip(folders, short, strict=True)]
    if keys is not None and usable(keys, stream):
        _show(runs, keys, stream)
    else:
        _write_lines(runs, stream)


def _show(runs: Sequence[Watched], keys: TextIO, stream: TextIO) -> None:
    with Screen(keys, stream) as screen:
        display = _Display(runs, screen, View())
        while display.turn(LOOK_EVERY):
            pass


def beside(
    events: Iterable[Event], folder: Path, keys: TextIO | None, stream: TextIO
) -> Iterator[Event]:
    """Show a run of this process while its events come; they are passed on when the view closes.

    It opens with the first step and closes at the end of the run, by ``q`` or by a signal. What was
    passed by meanwhile is passed on then, the steps and what else is in the metrics left out: a bar
    behind it writes what it would have written, and goes on. Without a terminal it never opens.
    """
    source = iter(events)
    held: list[Event] = []
    if keys is not None and usable(keys, stream):
        for event in source:
            yield event
            if event["event"] == "step":
                break
        else:
            return
        try:
            _accompany(source, held, Watched(folder, str(folder), True), keys, stream)
        except Exception:
            yield from held
            raise
    yield from held
    yield from source


def _accompany(
    events: Iterator[Event], held: list[Event], run: Watched, keys: TextIO, stream: TextIO
) -> None:
    """Show ``run`` while events come; those that a bar would show are added to ``held``."""
    for _ in run.news(time.monotonic() + READ_EVERY):  # what a resumed run did before
        pass
    with Screen(keys, stream) as screen:
        display, due = _Display([run], screen, View(leave="to the bar"), PACE), 0.0
        for event in events:
            run.reached = event["step"]
            if event["event"] in ("note", "validation", "sample", "checkpoint", "end"):
                held.append(event)
            if event["event"] == "end" or screen.left:
                return
            now = time.monotonic()
            if now >= due:
                due = now + LOOK_EVERY
                try:
                    if not display.turn(0.0):
                        return
                except OSError:  # the terminal is gone; the run goes on
                    return


class _Display:
    """Runs on a screen. After a second's work it rests ``pace`` seconds, unless a key comes.

    Work is the processor's: on a busy machine the clock would make the rests many seconds long.
    """

    def __init__(
        self, runs: Sequence[Watched], screen: Screen, view: View, pace: float = 0.0
    ) -> None:
        self.runs, self.screen, self.view, self.pace = runs, screen, view, pace
        self.style = style_of(screen.stream)
        self.due = self.rested = 0.0  # when to read, and when to work at all
        self.version = 0  # of what has been read
        self.shown: tuple[Any, ...] = ()  # what the lines were made of
        self.lines: list[str] = []

    def turn(self, seconds: float) -> bool:
        """Read, draw, and wait so long for keys; False if the user quits."""
        begin, size, worked = time.monotonic(), self.screen.size(), time.thread_time()
        if begin >= max(self.due, self.rested):
            self.version += sum(1 for run in self.runs for _ in run.news(begin))
            unread = any(run.unread for run in self.runs)
            self.due = begin if unread else time.monotonic() + READ_EVERY
        if self.shown and size != self.shown[0]:
            self.screen.clear()
        wanted = size, self.view, self.version, int(time.time())
        asked = wanted[:2] != self.shown[:2]
        if asked or (wanted != self.shown and begin >= self.rested):
            self.lines = frame(self.runs, self.view, *size, self.style, time.time())
            self.shown = wanted
        self.screen.show(self.lines)
        now, worked = time.monotonic(), time.thread_time() - worked
        self.rested = max(self.rested, now + self.pace * (worked + SLOW * (now - begin)))
        for key in self.screen.keys(max(min(seconds, self.due - now), 0.0)):
            if key in "qQ":
                return False
            self.view = self.view.pressed(key)
        return True


def _write_lines(runs: Sequence[Watched], stream: TextIO) -> None:
    logs = [_Lines(run, f"{run.name}: " if len(runs) > 1 else "") for run in runs]
    while True:
        going_on = any([runlog.held(run.folder) for run in runs])  # before the last lines are read
        for log in logs:
            for line in log.new():
                stream.write(printable(line) + "\n")  # a name or word may be a stranger's
        if not going_on:
            for log in logs:
                if not (log.run.follower.place or log.run.trouble):
                    line = f"{log.run.folder} has no metrics: {log.run.fate()}"
                    stream.write(printable(line) + "\n")
        stream.flush()
        if not going_on:
            return
        time.sleep(READ_EVERY)


class _Lines:
    """The events of a run as lines, each once also where a resumed run repeats them."""

    def __init__(self, run: Watched, prefix: str) -> None:
        self.run, self.prefix = run, prefix
        self.last = (-1, 0)  # step and kind of the last line
        self.repeating = False
        self.trouble = ""

    def new(self) -> Iterator[str]:
        for event in self.run.news():
            if event is None:
                self.repeating = True
            elif event["event"] in ORDER:
                at = event["step"], ORDER.index(event["event"])
                if not self.repeating or at > self.last:
                    self.repeating, self.last = False, at
                    yield self.prefix + _line(self.run, event["event"])
                    if event["event"] == "end":
                        yield from (f"{self.prefix}advice: {line}" for line in self.run.advice)
        if self.run.trouble:
            if self.run.trouble != self.trouble:
                yield f"{self.prefix}{self.run.follower.path}: {self.run.trouble}"
            self.last = (-1, 0)  # what comes in its place is another run
        self.trouble = self.run.trouble


def _line(run: Watched, kind: str) -> str:
    """The event that a run has just taken, in one line."""
    start, train, val, end = run.start, run.training.last, run.validating.last, run.end
    match kind:
        case "start":
            size = f"{start['batch_size']} x {start['seq_length']} characters"
            return f"{start['total_steps']:,} steps of {size}, {start['parameters']:,} parameters"
        case "train":
            return (
                f"step {train['steps']:,}  training {units(train['nats'])}  "
                f"learning rate {train['rate']:.3g}  gradient norm {train['norm']:.3g}  "
                f"{train['speed']:,.0f} chars/s"
            )
        case "validation":
            best = "  (best)" if run.best["step"] == val["steps"] else ""
            return f"step {val['steps']:,}  validation {units(val['nats'])}{best}"
        case "sample":
            text = json.dumps(run.sample["text"], ensure_ascii=False)
            return f"step {run.sample['step']:,}  sample {text}"
    return f"{REASONS.get(end['reason'], end['reason'])} after {duration(end['seconds'])}"
