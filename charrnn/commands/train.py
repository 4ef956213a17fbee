"""``charrnn train``."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from charrnn import monitor, signals
from charrnn.commands import VERBOSE, note, tell_details, verbose
from charrnn.config import Config, flag
from charrnn.errors import Diverged, Ended
from charrnn.options import SectionedCommand, given_of, on_unknown, options_of

if TYPE_CHECKING:
    from charrnn.trainer import Event, Run


@click.command(cls=SectionedCommand)
@click.argument("files", nargs=-1, metavar="FILE...")
@click.option("--out-dir", help="Folder of the run.  [default: runs/<name of the text>]")
@click.option("--resume", metavar="RUN|latest", help="Go on with a run: a folder, or the latest.")
@click.option("--init-from", metavar="CKPT", help="Start from the weights of another model.")
@on_unknown("add", "map", "error")
@click.option(
    "--live", is_flag=True, help="Show curves on the full screen; q goes back to the bar."
)
@click.option(
    "--tensorboard", is_flag=True, help="Also write event files for TensorBoard into the run."
)
@click.option("--quiet", "-q", is_flag=True, help="Show nothing but errors.")
@verbose
@options_of(*Config.sections().values())
def train(
    files: tuple[str, ...],
    out_dir: str | None,
    resume: str | None,
    init_from: str | None,
    on_unknown: str,
    live: bool,
    tensorboard: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Train a model on text files.

    FILE may be several files, folders (their .txt files), .gz files, or - for standard input.

    \b
    charrnn train book.txt
    charrnn train book.txt --model gru --hidden-size 512 --epochs 20 --live
    charrnn train --resume latest
    """
    changes = given_of(options)
    config = Config.from_options(changes)
    _check_start(files, given_of(click.get_current_context().params))

    with signals.fatal():
        from charrnn import runs
        from charrnn import tensorboard as board
        from charrnn.compiling import helped
        from charrnn.live import beside
        from charrnn.trainer import PACE

    if tensorboard:
        board.check()
    try:
        with monitor.reading(quiet) as told:
            if resume is not None:
                run = runs.resume(resume, files, changes, told)
            else:
                run = runs.start(
                    files, config, out_dir, init_from, on_unknown, tuple(changes), told
                )
    except Ended as ended:
        if not quiet:
            note(str(ended))
        return
    tell_details(run, run.config.options())
    with _stopping(run) as received, helped(run.uncompiled()):
        events = _collected(run.events(PACE))
        if tensorboard:
            events = board.written(events, run.folder)
        if live:
            events = beside(events, run.folder, sys.stdin, sys.stderr)
        end = monitor.show(events, quiet=quiet)
    if end is not None and end["reason"] == "diverged":
        raise Diverged(end["message"])
    if received:
        if end is None or end["reason"] == "interrupted":
            note(f"go on with: {monitor.command('charrnn', 'train', '--resume', run.folder)}")
        sys.exit(128 + received[0])


def _collected(events: Iterator[Event]) -> Iterator[Event]:
    """The same events; nothing is left to Python's collector to do when it likes.

    Else its lists of free tuples grow for hours, because only a full collection empties them, and
    that goes through all modules (60 ms). Without these it takes 0.03 ms.
    """
    for event in events:
        if event["event"] == "start":
            gc.freeze()
        elif event["event"] == "checkpoint":
            gc.collect()
        yield event


def _check_start(files: tuple[str, ...], given: Mapping[str, Any]) -> None:
    """Refuse options that have no meaning together."""
    fail = click.get_current_context().fail
    if {"live", "quiet"} <= set(given):
        fail("--live and --quiet are both given: use one")
    if "quiet" in given and VERBOSE in click.get_current_context().meta:
        fail("--quiet and --verbose are both given: use one")
    if "resume" in given:
        for name in ("out_dir", "init_from", "on_unknown"):
            if name in given:
                fail(
                    f"{flag(name)} cannot be used with --resume, which goes on with a run as it is"
                )
        return
    if not files:
        fail("no text to train on: name one or more files, folders or -, or use --resume RUN")
    if "val_file" in given and given.get("val_frac", 0):
        fail("--val-frac and --val-file are both given: use one")
    if "on_unknown" in given and "init_from" not in given:
        fail("--on-unknown needs --init-from: a new model knows every character of its text")


@contextlib.contextmanager
def _stopping(run: Run) -> Iterator[list[int]]:
    """The first SIGINT, SIGTERM or SIGHUP lets ``run`` save and stop, a second one ends at once.

    What comes within `signals.TOGETHER` of the first is no second one.

    Below nohup, SIGHUP stays ignored; SIGINT does not, which a shell's script ignores for what it
    starts with ``&``: whoever sends it there means it. Yields the list of signals received.
    """
    numbers = [int(signal.SIGINT), int(signal.SIGTERM)]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(int(signal.SIGHUP))
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        first = not received  # asked now: the next signal's handler may run between any two lines
        received.append(number)
        if not first:
            return
        run.interrupt()
        time.sleep(signals.TOGETHER)
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)
        with contextlib.suppress(OSError):  # the terminal may be what is gone
            # Not print: the signal may have come in the middle of one.
            os.write(2, b"\nsaving at the end of this step; once more to end at once\n")

    before = [signal.signal(each, stop) for each in numbers]
    try:
        with signals.ending_at_second(numbers):
            yield received
    finally:
        for each, handler in zip(numbers, before, strict=True):
            signal.signal(each, handler)
