"""Files -> text in pieces: opened, unpacked, decoded, every line end a newline.

A source is read twice, first to count its characters, then to encode them. It gives the same text
each time, or an error: what can be read only once, a pipe, is copied first, and a file that changes
meanwhile is refused.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import os
import stat
import sys
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterator
from typing import IO, Any

from charrnn import cache, opening, store
from charrnn.errors import InputError

STDIN = "-"
READABLE = "text files, .gz files, folders of .txt files, or - for standard input"
PIECE = 1 << 18
"""Bytes that are read at a time."""

Progress = Callable[[int, "int | None"], None]
"""Is told how many bytes are done, and of how many if that is known."""

GZIP = b"\x1f\x8b"
"""How its files begin."""

MARKS = {
    "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
    "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
}


def files(path: str) -> list[str]:
    """The files that a path stands for: itself, or the .txt files of a folder."""
    if not os.path.isdir(path):
        return [path]
    try:
        names = sorted(name for name in os.listdir(path) if name.lower().endswith(".txt"))
    except OSError as error:
        raise _unreadable(path, error) from None
    found = [file for name in names if os.path.isfile(file := os.path.join(path, name))]
    if not found:
        raise InputError(f"the folder {path} has no .txt file: name the files to be read")
    return found


class Source:
    """A file, or standard input.

    Parameters
    ----------
    path : str
    level : "char" or "byte"
    encoding : str
        Name of a Python text encoding; of no meaning at level "byte".
    on_progress : callable
        Called while a pipe is copied.
    kept : bool
        Whether it is a text that was kept as it is: UTF-8 of anything, without a mark to remove.
    options : collection of str
        Which of ``encoding`` and ``level`` the user may choose.

    Attributes
    ----------
    title : what to call it in messages
    size : its bytes on the disk, still packed if it is a .gz
    stamp : size, times of change in ns, and what else tells this state of the file from others;
        empty of a pipe
    place : bytes that are read of it in the present pass, out of ``size``

    Raises
    ------
    InputError
        Here or in `pieces`, if it cannot be read or decoded or changes meanwhile.
    """

    def __init__(
        self,
        path: str,
        level: str,
        encoding: str,
        on_progress: Progress,
        *,
        kept: bool = False,
        options: Collection[str] = ("encoding", "level"),
    ) -> None:
        self.path, self.level, self.kept, self.options = path, level, kept, options
        self.encoding = "utf-8" if kept else encoding
        self.title = "standard input" if path == STDIN else path
        self.stamp: tuple[int, ...] = ()
        self.place = 0
        self._copy: IO[bytes] | None = None
        if level == "char":
            _check_encoding(self.encoding)
        with self._errors(), self._first_opened() as file:
            if path != STDIN and stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                self.stamp = _stamp(file)
                self.size = self.stamp[0]
            else:
                self._copy = _copied(file, on_progress)
                self.size = self._copy.tell()

    def close(self) -> None:
        if self._copy is not None:
            self._copy.close()

    def pieces(self) -> Iterator[Any]:
        """Its text, str or bytes by its level, in pieces that are not empty."""
        if self.level == "byte":
            yield from self._data()
            return
        decoder = None
        for data in self._data():
            decoder = decoder or _Decoder(self, data)
            text = decoder.decode(data)
            if text:
                yield text
        text = decoder.decode(b"", final=True) if decoder else ""
        if text:
            yield text

    def _data(self) -> Iterator[bytes]:
        """Its bytes, unpacked."""
        with self._errors(), self._opened() as file:
            unpacked = gzip.GzipFile(fileobj=file) if self._packed else file
            while data := unpacked.read(PIECE):
                self.place = file.tell()
                yield data
            if self.stamp and _stamp(file) != self.stamp:
                raise self.changed()

    def changed(self) -> InputError:
        return InputError(
            f"{self.title} changed while it was read: wait until nothing writes to it, or copy it"
        )

    def is_utf8(self) -> bool:
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            for data in self._data():
                decoder.decode(data)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
        return True

    @property
    def _packed(self) -> bool:
        return self.path.lower().endswith(".gz")

    @contextlib.contextmanager
    def _first_opened(self) -> Iterator[IO[bytes]]:
        if self.path == STDIN:
            if sys.stdin is None:
                raise InputError("standard input is closed: name a file instead of -")
            yield sys.stdin.buffer
            return
        regular = self.kept or os.path.isfile(self.path)
        if not regular and os.path.exists(self.path):
            mode = os.stat(self.path).st_mode
            if stat.S_ISBLK(mode) or stat.S_ISCHR(mode):  # it may have no end
                raise InputError(f"{self.path} is a device: name {READABLE}")
        with open(self.path, "rb", opener=opening.regular if regular else None) as file:
            yield file

    @contextlib.contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        if self._copy is not None:
            self._copy.seek(0)
            yield self._copy
            return
        with open(self.path, "rb", opener=opening.regular) as file:
            if _stamp(file) != self.stamp:
                raise self.changed()
            yield file

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what Python raises of a file into one clear error."""
        try:
            yield
        except (gzip.BadGzipFile, EOFError, zlib.error):
            raise InputError(
                f"{self.path} is not a gzip file, or a damaged one: only gzip files may end in .gz"
            ) from None
        except FileNotFoundError:
            raise InputError(f"{self.path!r} does not exist: name {READABLE}") from None
        except OSError as error:
            raise _unreadable(self.title, error) from None


def _stamp(file: IO[bytes]) -> tuple[int, ...]:
    info = os.fstat(file.fileno())
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino, info.st_dev


def _copied(file: IO[bytes], on_progress: Progress) -> IO[bytes]:
    """What comes from a pipe, in a file that no name leads to; in memory while it is small."""
    folder = cache.texts()
    with contextlib.ExitStack() as on_failure:
        copy = on_failure.enter_context(
            tempfile.SpooledTemporaryFile(store.SMALL, dir=str(folder) if folder else None)
        )
        size = 0
        while data := file.read(PIECE):
            size += len(data)
            try:
                store.check_room(len(data))
                copy.write(data)
            except OSError as error:
                raise store.no_room(f"{error.strerror or error}") from error
            on_progress(size, None)
        on_failure.pop_all()
    return copy  # type: ignore[return-value]


def _unreadable(path: str, error: OSError) -> InputError:
    return InputError(f"cannot read {path}: {error.strerror or error}")


class _Decoder:
    """Decodes a file that comes in pieces: no byte order mark, every line end a newline."""

    def __init__(self, source: Source, head: bytes) -> None:
        """``head`` is the first piece."""
        self._source, self._head = source, head
        name = codecs.lookup(source.encoding).name
        if name in MARKS and not head.startswith(MARKS[name]):
            # Whole texts without a mark are taken for this machine's order; pieces are refused.
            name += "-le" if sys.byteorder == "little" else "-be"
        errors = "surrogatepass" if source.kept else "strict"
        self._codec = codecs.getincrementaldecoder(name)(errors)
        self._newlines = io.IncrementalNewlineDecoder(None, translate=True)
        self._seen = 0
        self._at_start = not source.kept

    def decode(self, data: bytes, final: bool = False) -> str:
        self._seen += len(data)
        try:
            text = self._codec.decode(data, final)
        except UnicodeDecodeError as error:
            raise self._undecodable(error) from None
        except (LookupError, ValueError):
            raise _no_encoding(self._source.encoding) from None
        if text and self._at_start:
            # The codecs of some encodings remove the mark, that of UTF-8 does not.
            text, self._at_start = text.removeprefix("\ufeff"), False
        return self._newlines.decode(text, final)

    def _undecodable(self, error: UnicodeDecodeError) -> InputError:
        # What the codec complains of ends where the last piece ended.
        offset = self._seen - len(error.object) + error.start
        marks = ("utf-32", "utf-16") if offset < 2 else ()
        other = next((name for name in marks if self._head.startswith(MARKS[name])), None)
        other = other or ("utf-8" if self._source.is_utf8() else "latin-1")
        return InputError(
            f"{self._source.title} is not {self._source.encoding}: "
            f"byte 0x{error.object[error.start]:02x} at offset {offset} "
            f"({error.reason}); {self._advice(other)}"
        )

    def _advice(self, other: str) -> str:
        """What to do about a text that is perhaps of an ``other`` encoding."""
        if self._head.startswith(GZIP):
            piped = "pipe it through gunzip"
            return (
                f"it is gzip: {piped if self._source.path == STDIN else f'name it .gz, or {piped}'}"
            )
        flags = {"encoding": f"--encoding {other}", "level": "--level byte"}
        ways = [flags[name] for name in flags if name in self._source.options]
        if ways:
            return f"try {' or '.join(ways)}"
        return f"convert it to {self._source.encoding}, perhaps from {other}"


def _check_encoding(encoding: str) -> None:
    try:
        b"a".decode(encoding)
    except UnicodeDecodeError:
        pass
    except (LookupError, ValueError):
        raise _no_encoding(encoding) from None


def _no_encoding(encoding: str) -> InputError:
    return InputError(
        f"--encoding is {encoding!r}: it must be a text encoding that Python knows, "
        "such as utf-8, utf-16, latin-1, cp1252 or gb18030"
    )
