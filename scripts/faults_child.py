"""`charrnn` in a process that dies or fails at one of its calls to the operating system.

The product has no switches for this: the calls with which it changes files below one folder are
wrapped from outside, counted, and at the n-th of them something happens. scripts/faults.py and
tests/test_faults.py use it.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import io
import mmap
import os
import pathlib
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

WRITING = ("open", "write", "fsync", "replace", "mkdir", "truncate")
"""Calls that need room on the disk or the right to write."""

PHASE_SIZE = 64
"""Bytes of the file that says what the process is doing."""

Act = Callable[[str, int, str], None]
"""Is told of a call: its name, its number from 1, and "before", "half" (of a write) or "after"."""


class Calls:
    """Calls to the operating system that change files below ``folder``, in the order they come."""

    def __init__(self, folder: Path, act: Act) -> None:
        self.folder, self.act = Path(os.path.abspath(folder)), act
        self.names: list[str] = []
        self.descriptor = -1  # that is being synced
        self._ours: set[int] = set()  # open descriptors

    def below(self, path: Any) -> bool:
        path = Path(os.path.abspath(os.fspath(path)))
        return path == self.folder or self.folder in path.parents

    def make(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """The call, between what is to happen before and after it."""
        self.names.append(name)
        number = len(self.names)
        self.act(name, number, "before")
        if name == "write":
            data = memoryview(arguments[0])
            done = call(data[: len(data) // 2])
            self.act(name, number, "half")
            done += call(data[done:])
        else:
            done = call(*arguments)
        self.act(name, number, "after")
        return done

    def open(self, path: Any, mode: str = "r", buffering: int = -1, **more: Any) -> Any:
        """`open`; the files of ours that are written report their calls."""
        if isinstance(path, int) or mode.strip("bt") == "r" or not self.below(path):
            return open(path, mode, buffering, **more)
        raw = self.make("open", functools.partial(_Raw, self), path, mode.replace("b", ""))
        if not buffering:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, **more)

    @contextlib.contextmanager
    def watched(self) -> Iterator[Calls]:
        """While this is open, the calls of this process are counted."""
        from charrnn import atomic, runlog

        originals = {n: getattr(os, n) for n in ("replace", "unlink", "mkdir", "open", "close")}
        originals["fsync"] = os.fsync
        accessor = getattr(pathlib, "_NormalAccessor", None)  # Python 3.10 has its own references

        def of_path(name: str) -> Callable[..., Any]:
            call = originals[name]

            def wrapped(path: Any, *more: Any, **named: Any) -> Any:
                if not named.get("dir_fd") and self.below(path):
                    return self.make(name, functools.partial(call, **named), path, *more)
                return call(path, *more, **named)

            return wrapped

        def of_descriptor(name: str) -> Callable[..., Any]:
            call = originals[name]

            def wrapped(descriptor: int) -> Any:
                if name == "close" and descriptor in self._ours:
                    self._ours.discard(descriptor)
                    return call(descriptor)  # its failure after a sync means nothing
                if descriptor in self._ours:
                    self.descriptor = descriptor
                    return self.make(name, call, descriptor)
                return call(descriptor)

            return wrapped

        def opened(path: Any, *more: Any, **named: Any) -> int:
            ours = isinstance(path, (str, os.PathLike)) and self.below(path)
            if not ours or not os.path.isdir(path):  # files that are written come by `open`
                return originals["open"](path, *more, **named)
            found: int = self.make(
                "open folder", functools.partial(originals["open"], **named), path, *more
            )
            self._ours.add(found)
            return found

        try:
            for name in ("replace", "unlink", "mkdir"):
                setattr(os, name, of_path(name))
                if accessor is not None:
                    setattr(accessor, name, staticmethod(getattr(os, name)))
            for name in ("fsync", "close"):
                setattr(os, name, of_descriptor(name))
            os.open = opened  # type: ignore[assignment]
            atomic.open = runlog.open = self.open  # type: ignore[attr-defined]
            yield self
        finally:
            for name, call in originals.items():
                setattr(os, name, call)
                if accessor is not None and name in ("replace", "unlink", "mkdir"):
                    setattr(accessor, name, staticmethod(call))
            del atomic.open, runlog.open  # type: ignore[attr-defined]


class _Raw(io.FileIO):
    def __init__(self, calls: Calls, path: Any, mode: str) -> None:
        super().__init__(path, mode)
        self._calls = calls
        calls._ours.add(self.fileno())

    def write(self, data: Any) -> int:
        return self._calls.make("write", super().write, data)

    def truncate(self, size: int | None = None) -> int:
        return self._calls.make("truncate", super().truncate, size)

    def close(self) -> None:
        if not self.closed:
            self._calls._ours.discard(self.fileno())
        super().close()


def kill_at(number: int, place: str) -> Act:
    """SIGKILL to this process at a call."""

    def act(name: str, n: int, at: str) -> None:
        if n == number and at == (place if name == "write" or place != "half" else "after"):
            os.kill(os.getpid(), signal.SIGKILL)

    return act


def fail_at(number: int, code: int, last: int | None = None) -> Act:
    """An OSError at a call and, up to call ``last``, at all after it that write.

    Of a failing write, half gets through.
    """

    def act(name: str, n: int, at: str) -> None:
        hit = n == number or (last is not None and number < n <= last and name in WRITING)
        if hit and at == ("half" if name == "write" else "before"):
            raise OSError(code, os.strerror(code))

    return act


def losing(calls: Calls, act: Act) -> Act:
    """A disk on which a sync that fails loses what it was for: zeros are in its place.

    The next sync of the file says that all is well, as Linux does.
    """
    synced: dict[tuple[int, int], int] = {}  # bytes, of each file

    def both(name: str, n: int, at: str) -> None:
        try:
            act(name, n, at)
        except OSError:
            if name == "fsync" and at == "before":
                where, size, is_file = _file(calls.descriptor)
                if is_file:
                    os.ftruncate(calls.descriptor, min(synced.get(where, 0), size))
                    os.ftruncate(calls.descriptor, size)
            raise
        if name == "fsync" and at == "after":
            where, size, _ = _file(calls.descriptor)
            synced[where] = size

    return both


def _file(descriptor: int) -> tuple[tuple[int, int], int, bool]:
    facts = os.fstat(descriptor)
    return (facts.st_dev, facts.st_ino), facts.st_size, stat.S_ISREG(facts.st_mode)


# -- what the process is doing --------------------------------------------------------------------


class Phases:
    """Says in a file, from where it survives the process, what this process is doing."""

    def __init__(self, path: Path) -> None:
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), PHASE_SIZE)
        self.say("starting")

    def say(self, phase: str) -> str:
        before = self.read()
        self._map[:] = phase.encode().ljust(PHASE_SIZE)
        return before

    def read(self) -> str:
        return self._map[:].decode().strip()

    def during(self, owner: Any, name: str, phase: str) -> None:
        """Replace a method by one during which this is the phase."""
        method = getattr(owner, name)

        @functools.wraps(method)
        def wrapped(*arguments: Any, **named: Any) -> Any:
            before = self.say(phase)
            try:
                return method(*arguments, **named)
            finally:
                self.say(before)

        setattr(owner, name, wrapped)

    def watch(self) -> None:
        from charrnn.kernels import jit
        from charrnn.learner import Learner
        from charrnn.saving import Saver
        from charrnn.trainer import Run

        load, save = jit._Cache.load_overload, jit._Cache.save_overload
        depth: list[str] = []

        def load_overload(cache: Any, *arguments: Any) -> Any:
            result = load(cache, *arguments)
            if result is None:
                depth.append(self.say("compiling"))
            return result

        def save_overload(cache: Any, *arguments: Any) -> None:
            self.say("saving a kernel")
            save(cache, *arguments)
            self.say(depth.pop() if depth else "compiling")

        jit._Cache.load_overload, jit._Cache.save_overload = load_overload, save_overload
        for owner, name, phase in (
            (Learner, "gradients", "training"), (Run, "_validate", "validating"),
            (Run, "_sample", "sampling"), (Run, "_test_loss", "testing"),
            (Saver, "append", "within a line"), (Saver, "save", "within a save"),
        ):  # fmt: skip
            self.during(owner, name, phase)


def main(words: list[str]) -> None:
    own = words.index("--")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="of the run")
    parser.add_argument("--phase", type=Path, help=f"file of {PHASE_SIZE} bytes to say phases in")
    parser.add_argument("--kill-at", type=int, default=0, help="call to die at")
    parser.add_argument("--place", default="before", choices=("before", "half", "after"))
    parser.add_argument("--fail-at", type=int, default=0, help="call to fail at")
    parser.add_argument("--errno", default="ENOSPC", help="with what error")
    parser.add_argument("--clock", action="store_true", help="time.time() jumps about")
    args = parser.parse_args(words[:own])
    phases = Phases(args.phase) if args.phase else None

    from charrnn.cli import cli

    if args.clock:
        _jumping_clock()
    act = fail_at(args.fail_at, getattr(errno, args.errno))
    if args.kill_at:
        act = kill_at(args.kill_at, args.place)
    if phases is not None:
        phases.watch()
        act = _said(phases, act)
    with Calls(args.folder, act).watched():
        cli(words[own + 1 :], prog_name="charrnn")


def _said(phases: Phases, act: Act) -> Act:
    def both(name: str, n: int, at: str) -> None:
        act(name, n, at)
        phases.say(f"{phases.read().partition(': ')[0]}: {at} {name}")

    return both


def _jumping_clock() -> None:
    import itertools
    import time

    hours = itertools.cycle((0, 5, -3, 1000, -1000))
    real = time.time
    time.time = lambda: real() + 3600 * next(hours)  # type: ignore[assignment]


if __name__ == "__main__":
    main(sys.argv[1:])
