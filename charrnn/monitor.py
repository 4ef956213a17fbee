"""Shows a run to a person, from the trainer's events alone: a bar, or plain lines.

On a terminal a tqdm bar is redrawn ten times a second; elsewhere a line is written every five
seconds. Validations, samples and notes are shown when they come, a summary at the end.
"""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from charrnn import advice
from charrnn.words import REASONS, duration, number, units

if TYPE_CHECKING:
    from tqdm import tqdm

Event = dict[str, Any]


def show(
    events: Iterable[Event], *, quiet: bool = False, stream: TextIO | None = None
) -> Event | None:
    """Consume ``events`` and show them on ``stream`` (default: standard error).

    Returns the ``end`` event, None if there was none. With ``quiet`` nothing is written. What the
    events raise passes through, after the terminal has been left clean. A stream that can no longer
    be written (a closed pipe, a lost terminal) ends the showing, not the run.
    """
    end = None
    view = None if quiet else _View(sys.stderr if stream is None else stream)
    try:
        for event in events:
            if event["event"] == "end":
                end = event
            if view is not None:
                try:
                    view.take(event)
                except OSError:
                    view = None
    finally:
        if view is not None:
            with contextlib.suppress(OSError):
                view.close()
    return end


@contextlib.contextmanager
def reading(
    quiet: bool = False, stream: TextIO | None = None
) -> Iterator[Callable[[int, int | None], None]]:
    """Gives what is to be told how far the reading of a text is; shows it after a second."""
    view = _Reading(sys.stderr if stream is None else stream)
    try:
        yield _ignore if quiet else view.take
    finally:
        with contextlib.suppress(OSError):
            view.close()


def _ignore(done: int, total: int | None) -> None:
    pass


def command(*words: object) -> str:
    """``words`` as a person types them into the shell."""
    texts = [str(word) for word in words]
    return subprocess.list2cmdline(texts) if os.name == "nt" else shlex.join(texts)


def _short(value: float) -> str:
    """Two digits, or a whole number: ``0.52``, ``1.8``, ``123``; one digit below a tenth."""
    if 10 <= value < 1e5:
        return f"{value:.0f}"
    return f"{value:.2g}" if value >= 0.1 else f"{value:.1g}"


class _Reading:
    """A bar, or lines, of how far the reading of a text is."""

    PATIENCE = 1.0
    """Seconds before anything is shown."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.period = 0.1 if stream.isatty() else 5.0
        self.started = time.monotonic()
        self.due = self.started + self.PATIENCE
        self.bar: tqdm[Any] | None = None

    def take(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now < self.due:
            return
        self.due = now + self.period
        seconds = now - self.started
        if total:
            left = duration(seconds / done * (total - done)) if done else "?"
            shown = f"{done / total:.0%}, {left} left"
        else:
            shown = f"{done / 1e6:,.0f} MB"
        with contextlib.suppress(OSError):
            self.show(shown, done, total)

    def show(self, text: str, done: int, total: int | None) -> None:
        if not self.stream.isatty():
            self.stream.write(f"reading the text: {text}\n")
            self.stream.flush()
            return
        line = f"reading the text {'|{bar}| ' if total else ''}{text}"
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(file=self.stream, dynamic_ncols=True, leave=False, bar_format=line)
        self.bar.total, self.bar.n, self.bar.bar_format = total, done, line
        self.bar.refresh()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class _View:
    """What is shown of one run; `take` is handed every event, `close` is called once."""

    MEMORY = 20  # steps over which the shown training loss is smoothed

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.terminal = stream.isatty()
        self.period = 0.1 if self.terminal else 5.0
        self.due = 0.0  # when the next progress is to be drawn
        self.start: Event = {}
        self.steps = 0
        self.nats = 0.0  # smoothed training loss
        self.val_nats: float | None = None
        self.folder: Path | None = None
        self.bar: Any = None  # a tqdm, whose types take dynamic_ncols for a flag alone

    def take(self, event: Event) -> None:
        handler = getattr(self, "on_" + event["event"], None)  # "train" is for metrics.jsonl
        if handler is not None:
            handler(event)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def say(self, text: str) -> None:
        """Write ``text``, above the bar if there is one."""
        if self.bar is not None:
            self.bar.clear()
        self.stream.write(text + "\n")
        self.stream.flush()
        if self.bar is not None:
            self.bar.refresh()

    def on_note(self, event: Event) -> None:
        self.say(event["text"])

    def on_start(self, e: Event) -> None:
        self.start, self.val_nats = e, e.get("val_nats_per_char")
        self.say(f"model  {e['parameters']:,} parameters, {e['vocab_size']:,} symbols")
        self.say(
            f"text   {e['train_chars']:,} characters to train on, {e['val_chars']:,} to validate on"
        )
        self.say(
            f"run    {e['total_steps']:,} steps of {e['batch_size']} x {e['seq_length']} "
            f"characters, {e['steps_per_epoch']:,} to an epoch"
        )
        if e["step"]:
            self.say(f"       going on after step {e['step']:,}")
        if self.terminal:
            from tqdm import tqdm

            self.bar = tqdm(
                total=e["total_steps"],
                initial=e["step"],
                file=self.stream,
                ncols=self.columns(),
                leave=False,
                bar_format=f"step {e['step']}/{e['total_steps']} |{{bar}}|",
            )
            self.bar.dynamic_ncols = lambda stream: (self.columns(), None)

    def on_step(self, event: Event) -> None:
        # Runs thousands of times a second: nothing is formatted before it is due.
        self.steps += event["steps"]
        share = event["steps"] / min(self.steps, self.MEMORY)
        self.nats += (event["nats_per_char"] - self.nats) * min(share, 1)
        now = time.monotonic()
        if now >= self.due:
            self.due = now + self.period
            self.progress(event)

    def progress(self, event: Event) -> None:
        step, total = event["step"], self.start["total_steps"]
        epochs = total / self.start["steps_per_epoch"]
        speed, norm = event["time"]["chars_per_second"], event["grad_norm"]
        left = ""
        if speed > 0:
            chars = (total - step) * self.start["batch_size"] * self.start["seq_length"]
            left = duration(chars / speed)
        bits = self.nats / math.log(2)
        columns = self.columns()
        if columns >= 140:
            where = f"epoch {event['epoch']:.1f}/{epochs:.4g} step {step}/{total}"
            facts = [f"{number(self.nats)} nats {number(bits)} bits/char"]
            facts += [f"val {number(self.val_nats)} nats"] if self.val_nats is not None else []
            facts += [f"{left} left", f"{speed:,.0f} chars/s"] if left else []
            shown = ", ".join([*facts, f"grad norm {norm:.3g}"])
            line = f"{where} |{{bar}}| {shown}"
        else:  # everything, in 80 columns
            digits = 3 if columns >= 90 else 2
            where = f"ep {event['epoch']:.1f}/{_short(epochs)} {step}/{total}"
            facts = [f"{number(self.nats, digits)} nats {number(bits, 2)} bits"]
            facts += [f"val {number(self.val_nats, digits)}"] if self.val_nats is not None else []
            brief = left.replace(" ", "").replace("min", "m")
            brief = brief if len(brief) < 6 else brief[:-3]  # 3h07m, but 12h
            facts += [f"{_short(speed / 1000)}k/s {brief}"] if left else []
            shown = " ".join([*facts, f"grad {_short(norm)}"])
            line = f"{where}|{{bar}}|{shown}"
        if self.bar is None:
            self.say(f"{where}: {shown}")
        else:
            self.bar.n = step
            self.bar.bar_format = line
            self.bar.refresh()

    def columns(self) -> int:
        """Width of the terminal, or COLUMNS if that is less; lines elsewhere may be long."""
        if not self.terminal:
            return 200
        try:
            found = os.get_terminal_size(self.stream.fileno()).columns
        except (OSError, ValueError, AttributeError):
            found = 80
        asked = os.environ.get("COLUMNS", "")
        return min(found, int(asked)) if asked.isdecimal() and int(asked) else found

    def on_validation(self, event: Event) -> None:
        self.val_nats = event["val_nats_per_char"]
        best = "  (best)" if event["best"] else ""
        self.say(f"step {event['step']:,}  val {units(event['val_nats_per_char'])}{best}")

    def on_sample(self, event: Event) -> None:
        self.say(f"--- sample at step {event['step']:,} ---\n{event['text']}\n---")

    def on_checkpoint(self, event: Event) -> None:
        self.folder = Path(event["path"]).parent

    def on_end(self, event: Event) -> None:
        self.close()
        taken = duration(event["time"]["seconds"])
        self.say(
            f"\n{REASONS[event['reason']]} at step {event['step']:,}, "
            f"epoch {event['epoch']:.1f}, after {taken}"
        )
        rows = {
            "training": event["nats_per_char"],
            "validation": event["val_nats_per_char"],
            "best": event["best_val_nats_per_char"],
            "test": event["test_nats_per_char"],
        }
        for name, nats in rows.items():
            if nats is not None:
                note = f"  step {event['best_step']:,}" if name == "best" else ""
                self.say(f"  {name:<10}  {units(nats)}{note}")
        if self.folder is not None:
            self.say(f"  {'model in':<10}  {self.folder}")
            if event["reason"] in ("finished", "patience"):
                self.say(f"  {'next':<10}  {command('charrnn', 'sample', self.folder)}")
            self.advise(self.folder)

    def advise(self, folder: Path) -> None:
        """What the run's numbers say about it."""
        for sentence in advice.of(folder):
            width = max(self.columns() - 15, 20)
            lines = textwrap.wrap(sentence, width) if self.terminal else [sentence]
            for name, line in zip(["advice"] + [""] * len(lines), lines, strict=False):
                self.say(f"  {name:<10}  {line}")
