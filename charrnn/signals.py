"""Signals that are heard whatever the main thread is in: the second one ends the process.

Python notes a signal, and runs its handler only when the main thread is back from what it is in: a
compiled kernel may be seconds long. A thread learns of it at once.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator

from charrnn import terminal

TOGETHER = 0.1
"""Seconds in which signals are one: `timeout` sends its own twice, to a process and its group."""

AGAIN = 0.02
"""Seconds after which a Ctrl-C that was lost in a callback comes again."""


@contextlib.contextmanager
def not_lost_in_callbacks() -> Iterator[None]:
    """While this is open, Ctrl-C in a callback from foreign code comes again behind it.

    There, as in the compiler's, Python reports what is raised and forgets it.
    """
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            before(unraisable)
            return
        again = threading.Timer(AGAIN, _interrupt_main)
        again.daemon = True
        again.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextlib.contextmanager
def fatal() -> Iterator[None]:
    """While this is open, Ctrl-C ends the process at once, without a word.

    For what reads modules of others: some, such as NumPy's of random numbers, forget what is raised
    in them, and the command would go on. Nothing has been begun by then.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt_main() -> None:
    """Ctrl-C for the main thread, which it wakes up, too."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        _thread.interrupt_main()


@contextlib.contextmanager
def heard(numbers: Collection[int], hear: Callable[[int], None]) -> Iterator[None]:
    """While this is open, a thread calls ``hear`` at once with each of these signals that comes.

    For the main thread, which has handlers for all of them.
    """
    receiver, sender = os.pipe()
    if os.name != "nt":  # where it need not be
        os.set_blocking(sender, False)
    before = signal.set_wakeup_fd(sender, warn_on_full_buffer=False)

    def listen() -> None:
        while byte := os.read(receiver, 1):  # the number of a signal
            if byte[0] in numbers:
                hear(byte[0])

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(sender)
        listener.join()
        os.close(receiver)


def ending_at_second(numbers: Collection[int]) -> contextlib.AbstractContextManager[None]:
    """While this is open, the second of these signals gives the terminal back and ends the process.

    It does so if the first one's handler has not restored the default action by then. For the main
    thread.
    """
    first: float | None = None

    def hear(number: int) -> None:
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = now
        elif now - first > TOGETHER:
            terminal.give_back()
            os._exit(128 + number)

    return heard(numbers, hear)
