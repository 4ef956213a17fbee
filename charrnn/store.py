"""Arrays of ids: in memory while they are small, else mapped from a file, which the next run finds.

An entry of the cache is two files, ``<sources>-<their state>.ids`` and the same ``.json`` with what
there is to know of it, written last. Both have a checksum: a damaged entry, like a missing one,
only costs the time to read the text again. Entries that nobody has used for a month are removed,
and so are those of earlier states of the same files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from charrnn import atomic, cache
from charrnn.errors import SaveError

SMALL = 1 << 24
"""Bytes of an array that is kept in memory."""
CHECKED = 1 << 22
"""Bytes of a file whose checksum is taken at a time."""
DAY = 86400


def gathered(
    pieces: Iterable[NDArray[Any]], count: int, dtype: DTypeLike, path: Path | None = None
) -> NDArray[Any]:
    """One array of ``count`` numbers that come in pieces.

    Up to `SMALL` bytes it is in memory, else mapped from a file, read-only: ``path``, or one that
    is gone with the array.

    Raises
    ------
    SaveError
        If there is no room.
    """
    dtype = np.dtype(dtype)
    if is_small(count * dtype.itemsize):
        array, end = np.empty(count, dtype), 0
        for piece in pieces:
            array[end : end + len(piece)] = piece
            end += len(piece)
        return array
    check_room(count * dtype.itemsize)
    try:
        if path is None:
            with tempfile.TemporaryFile(dir=cache.texts()) as file:
                _write(file, pieces, dtype)
                return _mapped(file, dtype)
        with atomic.replacing(path) as named:
            _write(named, pieces, dtype)
        return _mapped(path, dtype)
    except (OSError, SaveError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        raise no_room(str(getattr(cause, "strerror", None) or error)) from error


def is_small(size: int) -> bool:
    return size <= SMALL


def check_room(size: int) -> None:
    """SaveError if ``size`` bytes are neither small nor left on the disk."""
    if not is_small(size):
        free = shutil.disk_usage(_folder()).free
        if size > free:
            raise no_room(f"it takes {size:,} bytes or more, {free:,} are free")


def _folder() -> str | Path:
    return cache.texts() or tempfile.gettempdir()


def no_room(why: str) -> SaveError:
    return SaveError(
        f"could not keep the encoded text in {_folder()}: {why}; "
        "make room or let CHARRNN_CACHE_DIR name a folder elsewhere"
    )


def _write(file: Any, pieces: Iterable[NDArray[Any]], dtype: np.dtype[Any]) -> None:
    for piece in pieces:
        file.write(piece.astype(dtype, copy=False).data)
    file.flush()


def _mapped(file: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.asarray(np.memmap(file, dtype, "r"))


class Entry:
    """An encoded text in the cache.

    Parameters
    ----------
    sources, state : what tells the same files, and that they are as they were; JSON-able

    Attributes
    ----------
    path : where its ids are
    """

    def __init__(self, folder: Path, sources: Any, state: Any) -> None:
        self._family = _hash(sources)
        self.path = folder / f"{self._family}-{_hash(state)}.ids"
        self._facts = self.path.with_suffix(".json")

    def find(self, on_progress: Callable[[int, int], None]) -> tuple[NDArray[Any], Any] | None:
        """The array and its facts, if they are there and whole.

        ``on_progress`` is told how many of the array's bytes have been checked.
        """
        try:
            checksum, _, text = self._facts.read_bytes().partition(b"\n")
            if int(checksum, 16) != zlib.crc32(text):
                return None
            dtype, checksum_of_ids, facts = json.loads(text)
            ids = _mapped(self.path, np.dtype(dtype))
            if _checksum(ids, on_progress) != checksum_of_ids:
                return None
            for path in (self.path, self._facts):
                os.utime(path)
            return ids, facts
        except (OSError, ValueError):
            return None

    def keep(self, ids: NDArray[Any], facts: Any) -> None:
        """Keep the facts that belong to ``ids``, which are in `path`."""
        text = json.dumps([ids.dtype.name, _checksum(ids), facts]).encode()
        with contextlib.suppress(SaveError):  # without them it is no entry
            atomic.write(self._facts, f"{zlib.crc32(text):08x}\n".encode() + text)
        self._prune()

    def _prune(self) -> None:
        """Remove earlier states of these sources, what is stale, and what killed processes left."""
        for other in self.path.parent.iterdir():
            if other.stem == self.path.stem or other.suffix not in LIFETIMES:
                continue
            with contextlib.suppress(OSError):  # one in use (Windows) goes next time
                unused = time.time() - other.stat().st_mtime
                earlier = other.name.startswith(f"{self._family}-")
                if earlier or unused > LIFETIMES[other.suffix]:
                    other.unlink()


LIFETIMES = {
    ".ids": cache.STALE_DAYS * DAY,
    ".json": cache.STALE_DAYS * DAY,
    atomic.SUFFIX: 1 * DAY,
}
"""Endings of what is in the folder -> how long it is kept unused."""


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:20]


def _checksum(
    ids: NDArray[Any], on_progress: Callable[[int, int], None] = lambda done, total: None
) -> int:
    data, checksum = ids.data.cast("B"), 0
    for start in range(0, len(data), CHECKED):
        checksum = zlib.crc32(data[start : start + CHECKED], checksum)
        on_progress(min(start + CHECKED, len(data)), len(data))
    return checksum
