"""A full-screen view's hold on the terminal: a screen of its own, keys, signals.

Plain escape sequences, which every terminal of the last decades and Windows 10 and later know, so
that curses, which Windows lacks, is not needed. Whatever ends the program, the terminal is left as
it was found.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any, TextIO

from charrnn.chart import Style

CLEAR = "\x1b[H\x1b[J"
ENTER = "\x1b[?1049h\x1b[?25l" + CLEAR  # the other screen, no cursor
LEAVE = CLEAR + "\x1b[?25h\x1b[?1049l"  # cleared: tmux leaves some of it after a resize
FRAME = "\x1b[?2026h{}\x1b[?2026l"  # shown at once by terminals that can; ignored by others
SEQUENCE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|O.|.)?", re.DOTALL)  # arrows and the like
PATIENCE = 0.2  # seconds that a terminal has to take what gives it back
SHAPES = "─│┤┬└╌⣿▁█●"


def usable(keys: TextIO, stream: TextIO) -> bool:
    """Whether a full-screen view can be shown on ``stream`` and steered from ``keys``."""
    both = keys.isatty() and stream.isatty()
    return both and os.environ.get("TERM") != "dumb" and _understands_sequences(stream)


def style_of(stream: TextIO) -> Style:
    """What a terminal can show, by its encoding, its name and the user's NO_COLOR."""
    try:
        SHAPES.encode(stream.encoding)
        unicode = os.environ.get("TERM") != "linux"  # the console's font has no braille
    except (UnicodeEncodeError, LookupError):
        unicode = False
    return Style(unicode, colour=not os.environ.get("NO_COLOR"))


def _understands_sequences(stream: TextIO) -> bool:
    """Windows has to be asked for what others do by themselves."""
    if sys.platform != "win32":
        return True
    import ctypes
    import msvcrt

    console, mode = msvcrt.get_osfhandle(stream.fileno()), ctypes.c_uint32()
    kernel = ctypes.windll.kernel32
    processing = 4  # ENABLE_VIRTUAL_TERMINAL_PROCESSING
    return bool(
        kernel.GetConsoleMode(console, ctypes.byref(mode))
        and kernel.SetConsoleMode(console, mode.value | processing)
    )


def give_back() -> None:
    """Leave the terminal as it was found; from any thread, before the process is ended."""
    if _screen is not None:
        _screen._leave()


_screen: Screen | None = None
"""The one that has the terminal."""


class _Left(Exception):
    """The terminal was given back in the middle of a write."""


class Screen:
    """The terminal as a full screen; a context manager, for the main thread.

    SIGINT, SIGTERM and SIGHUP give the terminal back at once and do what they did before; where
    that was to kill, the program ends by SystemExit. Ctrl-Z gives it back until it goes on.

    Attributes
    ----------
    left : whether the terminal has been given back for good; nothing is shown any more
    """

    def __init__(self, keys: TextIO, stream: TextIO) -> None:
        self.input, self.stream = keys.fileno(), stream
        self._shown: Sequence[str] = ()
        self._stop = self._resumed = False
        self.left = self._writing = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Screen:
        global _screen
        self.stream.flush()
        self._remember()
        wanted = {
            "SIGINT": self._on_end,
            "SIGTERM": self._on_end,
            "SIGHUP": self._on_end,
            "SIGTSTP": self._on_stop,
            "SIGCONT": self._on_continue,
        }
        for name, handler in wanted.items():
            if hasattr(signal, name):  # Windows has the first two alone
                number = getattr(signal, name)
                self._handlers[number] = signal.signal(number, handler)
        _screen = self
        self._take()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._leave()
        for number, handler in self._handlers.items():
            if getattr(signal.getsignal(number), "__self__", None) is self:  # else it was changed
                signal.signal(number, handler)

    def size(self) -> tuple[int, int]:
        """Columns and lines, as they are now: not as COLUMNS says, or lines would be broken."""
        columns, lines = os.get_terminal_size(self.stream.fileno())
        return columns or 80, lines or 24  # a serial line does not know

    def show(self, lines: Sequence[str]) -> None:
        """Write a frame: as many lines as the screen has, each as wide as it is."""
        if lines != self._shown:
            self._write(FRAME.format("\x1b[H" + "\r\n".join(lines)))
            self._shown = lines

    def clear(self) -> None:
        """Empty the screen, as after a change of its size."""
        self._write(CLEAR)
        self._shown = ()

    def keys(self, seconds: float) -> str:
        """What was typed, waiting so long for it; empty if nothing was; ``q`` if input ended."""
        if self.left:
            return ""
        if self._stop:
            self._pause()
        if self._resumed:  # also from a SIGSTOP, which nobody could prepare for
            self._resumed = False
            self._take()
        return SEQUENCE.sub("", self._read(seconds))

    def _read(self, seconds: float) -> str:
        if sys.platform == "win32":
            import msvcrt

            end = time.monotonic() + seconds
            while not msvcrt.kbhit():
                if time.monotonic() >= end:
                    return ""
                time.sleep(0.02)
            return msvcrt.getwch()
        if not select.select([self.input], [], [], seconds)[0]:
            return ""
        return os.read(self.input, 1024).decode(errors="replace") or "q"

    def _remember(self) -> None:
        if sys.platform != "win32":
            import termios

            self._modes = termios.tcgetattr(self.input)

    def _take(self) -> None:
        """Keys come at once and unseen; the other screen is shown."""
        if sys.platform != "win32":
            import termios
            import tty

            tty.setcbreak(self.input, termios.TCSADRAIN)  # what was typed is kept
        self._write(ENTER)
        self._shown = ()
        if self.left:  # a signal came just before this
            self._restore()

    def _restore(self) -> None:
        if sys.platform != "win32":
            import termios

            with contextlib.suppress(termios.error):  # the terminal is gone
                termios.tcsetattr(self.input, termios.TCSANOW, self._modes)

    def _give_back(self) -> None:
        self._restore()
        # One that is stopped, as by Ctrl-S, takes nothing and is not waited for.
        if sys.platform == "win32" or select.select([], [self.stream.fileno()], [], PATIENCE)[1]:
            self._put(LEAVE)

    def _leave(self) -> None:
        global _screen
        if not self.left:
            self.left = True  # before the rest: from here on nobody else writes
            _screen = None
            with contextlib.suppress(OSError):
                self._give_back()

    def _write(self, text: str) -> None:
        """Write it, or as much of it as comes before the terminal is given back."""
        try:
            self._writing = True
            if not self.left:
                self._put(text)
        except _Left:
            pass
        finally:
            self._writing = False

    def _put(self, text: str) -> None:
        """Past the stream's buffer, which would show later what a signal has cut off."""
        if sys.platform == "win32":  # its console takes bytes in another encoding
            self.stream.write(text)
            self.stream.flush()
            return
        content = memoryview(text.encode(self.stream.encoding, "replace"))
        while content:
            content = content[os.write(self.stream.fileno(), content) :]

    def _on_end(self, number: int, frame: FrameType | None) -> None:
        """What follows may take long, or be killed by the next signal."""
        writing, self._writing = self._writing, False
        self._leave()
        before = self._handlers[number]
        if not callable(before):
            sys.exit(128 + number)
        before(number, frame)
        if writing:
            raise _Left

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self._stop = True

    def _on_continue(self, number: int, frame: FrameType | None) -> None:
        self._resumed = True

    def _pause(self) -> None:
        """Stop as Ctrl-Z asks, with the terminal as it was found; returns when told to go on."""
        self._stop = False
        self._give_back()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._on_stop)
        self._remember()
        self._take()
        self._resumed = False
