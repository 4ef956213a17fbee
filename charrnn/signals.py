"""The second signal ends the process, whatever the main thread is in.

Python notes a signal, and runs its handler only when the main thread is back from what it is in: a
compiled kernel may be seconds long. A thread learns of it at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Collection, Iterator

from charrnn import terminal

TOGETHER = 0.1
"""Seconds in which signals are one: `timeout` sends its own twice, to a process and its group."""


@contextlib.contextmanager
def ending_at_second(numbers: Collection[int]) -> Iterator[None]:
    """While this is open, the second of these signals gives the terminal back and ends the process.

    It does so if the first one's handler has not restored the default action by then. For the main
    thread.
    """
    receiver, sender = os.pipe()
    if os.name != "nt":  # where it need not be
        os.set_blocking(sender, False)
    before = signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(receiver, numbers), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(sender)
        watcher.join()
        os.close(receiver)


def _watch(receiver: int, numbers: Collection[int]) -> None:
    first = None
    while byte := os.read(receiver, 1):  # the number of a signal
        if byte[0] in numbers:
            now = time.monotonic()
            if first is None:
                first = now
            elif now - first > TOGETHER:
                terminal.give_back()
                os._exit(128 + byte[0])
