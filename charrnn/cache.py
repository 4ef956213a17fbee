"""Where the caches are. What is in them can be made again: they may be removed at any time."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

STALE_DAYS = 30
"""What nobody has used for so long is removed."""


def _say_nothing(text: str) -> None:
    pass


announce: Callable[[str], None] = _say_nothing
"""Is told, once, that something slow has to be done for a cache. The command line shows it."""


def root(kind: str) -> Path:
    """The folder of the kernels' or the texts' cache.

    ``$CHARRNN_CACHE_DIR``, with the texts in a folder of their own, or the system's usual place.
    """
    named = os.environ.get("CHARRNN_CACHE_DIR")
    if named:
        return Path(named) if kind == "kernels" else Path(named) / kind
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "charrnn" / kind


def make_private(folder: Path) -> None:
    """Create a folder and what is missing above it, for this user alone whatever the umask."""
    for path in (*reversed(folder.parents), folder):
        path.mkdir(exist_ok=True, mode=0o700)


def texts() -> Path | None:
    """The folder of the texts' cache, which the user alone may enter; None if there is none."""
    try:
        folder = root("texts")
        make_private(folder)
        info = folder.stat()
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        return None
    if hasattr(os, "getuid") and (info.st_uid != os.getuid() or stat.S_IMODE(info.st_mode) & 0o077):
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None
