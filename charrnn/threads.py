"""A team of threads that share lists of kernel calls.

Kernels release the interpreter's lock, so plain Python threads run them side by side. Which thread
takes which item is left to chance; items never write to the same place, so it cannot show.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from typing import Any

Call = tuple[Any, tuple[Any, ...]]
"""A kernel and its arguments."""

Item = Sequence[Call]
"""Calls that are made one after the other."""


def available() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Team:
    """``size`` threads, the caller's included. The others start with the first shared work."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._work: SimpleQueue[Iterator[Item] | None] = SimpleQueue()
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()
        self._helpers: list[threading.Thread] = []

    def run(self, items: Sequence[Item]) -> None:
        """Work through all items and return when the last one is finished."""
        if self.size == 1 or len(items) == 1:
            _drain(iter(items))
            return
        self._start()
        shared = iter(items)  # taking the next of a list's iterator is one step under the lock
        helpers = min(self.size, len(items)) - 1
        for _ in range(helpers):
            self._work.put(shared)
        try:
            _drain(shared)
        finally:
            errors = [self._done.get() for _ in range(helpers)]
        for error in filter(None, errors):
            raise error

    def _start(self) -> None:
        while len(self._helpers) < self.size - 1:
            thread = threading.Thread(target=self._help, name="charrnn", daemon=True)
            self._helpers.append(thread)
            thread.start()

    def _help(self) -> None:
        while (shared := self._work.get()) is not None:
            error = None
            try:
                _drain(shared)
            except BaseException as e:  # handed to the caller
                error = e
            self._done.put(error)

    def close(self) -> None:
        """Let the helpers end."""
        for _ in self._helpers:
            self._work.put(None)
        self._helpers.clear()


def _drain(items: Iterator[Item]) -> None:
    for item in items:
        for kernel, arguments in item:
            kernel(*arguments)


def share(total: int, part: int, parts: int, multiple: int = 1) -> tuple[int, int]:
    """Bounds of one of ``parts`` nearly equal parts of ``range(total)``; it may be empty.

    Bounds are multiples of ``multiple``, but for the last one.
    """
    units = -(-total // multiple)
    return (
        min(total, units * part // parts * multiple),
        min(total, units * (part + 1) // parts * multiple),
    )
