"""The first start of an installation compiles in two processes: the compiler knows only one thread.

Both walk through the same list from opposite ends, and what one has compiled the other finds in the
kernel cache. So neither waits for the other, and without the second one everything takes longer and
nothing else. Kernels that many of the list call are compiled by both: it takes 0.6 of the time.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from typing import Any

from charrnn.child import orphaned, started
from charrnn.kernels import jit
from charrnn.threads import available

WORTH = 8
"""Kernels to compile for which a second process, which takes a second to start, is worth it."""


@contextlib.contextmanager
def helped(missing: Sequence[jit.Code]) -> Iterator[None]:
    """Compile kernels that are ``missing`` in a process beside this one, if they are many.

    It starts the main module once more, which therefore has to do nothing when it is imported.
    """
    if len(missing) < WORTH or available() < 2 or jit.unkept():
        yield
        return
    names = [(k.kernel.__module__, k.kernel.__name__, k.signature) for k in reversed(missing)]
    process = None
    with contextlib.suppress(OSError):  # no more processes, no more memory
        process = started(compile_named, names)
    try:
        yield
    finally:
        if process is not None:
            process.terminate()
            process.join()


def compile_named(names: list[tuple[str, str, Any]]) -> None:
    """Compile kernels, known by module, name and signature, that are not in the cache."""
    with contextlib.suppress(Exception):
        for module, name, signature in names:
            code = jit.Code(getattr(importlib.import_module(module), name), signature)
            if orphaned():
                break
            if jit.uncompiled([code]):
                code.address()
