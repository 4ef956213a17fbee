"""Files -> text, and ids -> splits, streams and windows."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import os
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.errors import InputError

STDIN = "-"


@dataclass(frozen=True)
class Corpus:
    """A text and where it comes from.

    Attributes
    ----------
    text : str, or bytes at level "byte"
    documents : tuple of int
        Where each source begins in ``text``.
    sources : tuple of str
        The files in the order in which they were joined; "-" is standard input.
    name : str
        What to call it: the first file without its suffixes, the first folder, or "stdin".
    fingerprint : str
        See `fingerprint`.
    """

    text: str | bytes = field(repr=False)
    documents: tuple[int, ...]
    sources: tuple[str, ...]
    name: str
    fingerprint: str


def read_corpus(
    paths: Sequence[str | os.PathLike[str]], *, level: str = "char", encoding: str = "utf-8"
) -> Corpus:
    """Read files and join them as they come.

    Parameters
    ----------
    paths : sequence of str or path
        Text files, ``.gz`` files, folders (their ``.txt`` files, sorted by name), "-" for
        standard input.
    level : "char" or "byte"
        "char" decodes, removes a byte order mark at the start of each file and makes every line
        end a ``\\n``; "byte" leaves the bytes as they are.
    encoding : str
        Name of a Python text encoding; of no meaning at level "byte".

    Raises
    ------
    InputError
        If something cannot be read or decoded, or the text is empty.
    """
    given = [os.fspath(path) for path in paths]
    if not given:
        raise InputError(f"no text is given: name {_READABLE}")
    if given.count(STDIN) > 1:
        raise InputError(f"{STDIN} is given twice: standard input can be read only once")
    sources = [source for path in given for source in _files(path)]
    parts: list[Any] = []
    for source in sources:
        data = _read(source)
        parts.append(data if level == "byte" else _decoded(data, _title(source), encoding))
    text: str | bytes = b"".join(parts) if level == "byte" else "".join(parts)
    if not text:
        raise InputError(f"the text is empty: nothing is in {', '.join(map(_title, sources))}")
    documents = tuple(accumulate(map(len, parts[:-1]), initial=0))
    return Corpus(text, documents, tuple(sources), _name(given[0]), fingerprint(text))


_READABLE = "text files, .gz files, folders of .txt files, or - for standard input"


def fingerprint(text: str | bytes) -> str:
    """SHA-256 (hex) of a text's level, length and content, whatever encoding its files had."""
    level = "char" if isinstance(text, str) else "byte"
    digest = hashlib.sha256(f"{level} {len(text)}\n".encode())
    piece = 1 << 20  # so that no second copy of the text is made
    for start in range(0, len(text), piece):
        part = text[start : start + piece]
        digest.update(part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part)
    return digest.hexdigest()


def _title(source: str) -> str:
    return "standard input" if source == STDIN else source


def _name(path: str) -> str:
    """What to call a corpus whose first path is this."""
    if path == STDIN:
        return "stdin"
    absolute = Path(os.path.abspath(path))
    if absolute.is_dir():
        return absolute.name or "text"  # a root has no name
    return Path(absolute.stem).stem if absolute.suffix.lower() == ".gz" else absolute.stem


def _files(path: str) -> list[str]:
    """The files that a path stands for: itself, or the .txt files of a folder."""
    if not os.path.isdir(path):
        return [path]
    try:
        names = sorted(name for name in os.listdir(path) if name.lower().endswith(".txt"))
    except OSError as error:
        raise _unreadable(path, error) from None
    files = [file for name in names if os.path.isfile(file := os.path.join(path, name))]
    if not files:
        raise InputError(f"the folder {path} has no .txt file: name the files to be read")
    return files


def _read(source: str) -> bytes:
    """The bytes of a file, unpacked if it is a .gz."""
    try:
        if source == STDIN:
            if sys.stdin is None:
                raise InputError("standard input is closed: name a file instead of -")
            return sys.stdin.buffer.read()
        with gzip.open(source) if source.lower().endswith(".gz") else open(source, "rb") as file:
            return file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise InputError(
            f"{source} is not a gzip file, or a damaged one: only gzip files may end in .gz"
        ) from None
    except FileNotFoundError:
        raise InputError(f"{source!r} does not exist: name {_READABLE}") from None
    except OSError as error:
        raise _unreadable(_title(source), error) from None


def _unreadable(path: str, error: OSError) -> InputError:
    return InputError(f"cannot read {path}: {error.strerror or error}")


def _decoded(data: bytes, title: str, encoding: str) -> str:
    """The text of a file: no byte order mark, every line end a newline."""
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        # Some codecs decode only what follows the byte order mark and count from there.
        offset = len(data) - len(error.object) + error.start
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and offset < 2
        other = "utf-16" if wide else "utf-8" if _is_utf8(data) else "latin-1"
        raise InputError(
            f"{title} is not {encoding}: byte 0x{data[offset]:02x} at offset {offset} "
            f"({error.reason}); try --encoding {other} or --level byte"
        ) from None
    except (LookupError, ValueError):
        raise InputError(
            f"--encoding is {encoding!r}: it must be a text encoding that Python knows, "
            "such as utf-8, utf-16, latin-1, cp1252 or gb18030"
        ) from None
    # The codecs of some encodings remove the mark, that of UTF-8 does not.
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def split(
    ids: NDArray[Any], val_frac: float, test_frac: float
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Cut a text's ids (N,) into training, validation and test part, in this order.

    The parts are views. Validation and test get their share of N, rounded, but leave two
    characters for training; a part of one character has no target and is left empty.

    Raises
    ------
    InputError
        If the fractions leave nothing for training.
    """
    if not (val_frac >= 0 and test_frac >= 0 and val_frac + test_frac < 1):
        raise InputError(
            f"--val-frac {val_frac:g} and --test-frac {test_frac:g} leave nothing to train on: "
            "together they must be below 1"
        )
    n = len(ids)

    def share(fraction: float, available: int) -> int:
        size = min(round(fraction * n), available)
        return size if size >= 2 else 0

    val = share(val_frac, n - 2)
    test = share(test_frac, n - 2 - val)
    train = n - val - test
    return ids[:train], ids[train : train + val], ids[train + val :]


def fit(n_ids: int, batch_size: int, seq_length: int | None) -> tuple[int, int, str | None]:
    """The batch size and window length that a text of ``n_ids`` characters allows.

    The batch shrinks first, until each stream fills a window; then the window. Without a
    ``seq_length`` it is as long as a stream.

    Returns
    -------
    batch_size, seq_length : int
        As given, or smaller.
    message : str or None
        What was changed and why; None if nothing was.

    Raises
    ------
    InputError
        If there are fewer than 2 characters, so nothing to predict.
    """
    has = f"the text has {n_ids:,} training character{'' if n_ids == 1 else 's'}"
    if n_ids < 2:
        raise InputError(f"{has}: at least 2 are needed, give a longer text")
    batch = min(batch_size, max(1, (n_ids - 1) // (seq_length or 1)))
    length = (n_ids - 1) // batch
    seq_length = seq_length or length
    length = min(seq_length, length)
    changes = [
        f"{what} {old} -> {new}"
        for what, old, new in (("batch size", batch_size, batch), ("window", seq_length, length))
        if new != old
    ]
    return batch, length, f"{has}: {', '.join(changes)}" if changes else None


class Streams:
    """B contiguous streams of a text, read side by side.

    Of N ids, stream b reads ``ids[b*n : (b+1)*n]`` with n = (N - 1) // B; its targets are the same,
    one further.

    Parameters
    ----------
    ids : array (N,) of integers
    batch_size : int
        Streams (B), at most N - 1; see `fit`.

    Attributes
    ----------
    length : int
        Characters of a stream (n).
    """

    def __init__(self, ids: NDArray[Any], batch_size: int) -> None:
        self.batch_size = batch_size
        self.length = (len(ids) - 1) // batch_size
        if self.length < 1:
            raise InputError(
                f"a text of {len(ids):,} characters cannot be cut into {batch_size} streams: "
                f"at least {batch_size + 1:,} are needed"
            )
        used = self.length * batch_size
        self._ids = ids[:used].reshape(batch_size, self.length)
        self._targets = ids[1 : used + 1].reshape(batch_size, self.length)

    def part(self, t0: int, t1: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Ids and targets (t1 - t0, B) of the characters t0 <= t < t1, int32 and C-contiguous."""
        if not 0 <= t0 < t1 <= self.length:
            raise IndexError(f"characters {t0} to {t1}: a stream has {self.length}")
        return (
            np.array(self._ids[:, t0:t1].T, np.int32, order="C"),
            np.array(self._targets[:, t0:t1].T, np.int32, order="C"),
        )
