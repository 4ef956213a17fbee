"""An object in a process of its own, which sleeps until it is asked something."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any


class ChildError(RuntimeError):
    """The object could not be made, raised something, or its process has ended."""


class Child:
    """``make(*arguments)`` in a process of its own, which Ctrl-C does not reach.

    ``make`` and all that goes to and fro has to be picklable. The object is made when it is first
    asked, and closed at the end if it has a ``close``; the end comes with that of this process at
    the latest.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, make, arguments), name=make.__name__, daemon=True
        )
        main = threading.current_thread() is threading.main_thread()
        with _deaf() if main else contextlib.nullcontext():
            self._process.start()
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
            what = f"{self._process.name}: the process ended, status {self._process.exitcode}"
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
