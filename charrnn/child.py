"""Work in a process of its own, such as an object that sleeps until it is asked something."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any


def started(work: Callable[..., None], *arguments: Any) -> SpawnProcess:
    """A process that does ``work``; Ctrl-C does not reach it, and it ends with this one.

    All has to be picklable. The main module is imported once more, under another name.
    """
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments, daemon=True)
    main = threading.current_thread() is threading.main_thread()
    with _deaf() if main else contextlib.nullcontext():
        process.start()
    return process


def orphaned() -> bool:
    """Whether the process that has started this one has ended."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


class ChildError(RuntimeError):
    """The object could not be made, raised something, or its process has ended."""


class Child:
    """``make(*arguments)`` in a process of its own, which Ctrl-C does not reach.

    ``make`` and all that goes to and fro has to be picklable. The object is made when it is first
    asked, and closed at the end if it has a ``close``; the end comes with that of this process at
    the latest.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        self._process = started(_serve, theirs, make, arguments)
        self._name = make.__name__
        theirs.close()

    def ask(self, method: str, *arguments: Any) -> Any:
        """What the object's method returns.

        Raises
        ------
        ChildError
        """
        try:
            self._connection.send((method, arguments))
            failed, answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(1)
            what = f"{self._name}: the process ended, status {self._process.exitcode}"
            raise ChildError(what) from None
        if failed:
            raise ChildError(answer)
        return answer

    def close(self) -> None:
        """Let it end when it has done what it was asked last."""
        self._connection.close()
        self._process.join(1)
        self._process.terminate()


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Children that start meanwhile ignore Ctrl-C, from their first instruction on."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(connection: Connection, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    served: Any = None
    try:
        with contextlib.suppress(EOFError, OSError):  # whoever asked is gone
            while True:
                method, more = connection.recv()
                try:
                    served = served or make(*arguments)
                    answer = False, getattr(served, method)(*more)
                except Exception as error:
                    answer = True, f"{type(error).__name__}: {error}"
                connection.send(answer)
    finally:
        if hasattr(served, "close"):
            served.close()
