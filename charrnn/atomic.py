"""Files that are at any instant either the old one or the new one, whole.

The new content goes into a temporary file of the same folder, reaches the disk, and then takes
the old one's place in one step of the file system.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from charrnn.errors import InputError, SaveError

SUFFIX = ".charrnn-tmp"  # of temporary files, whose names also tell the process

UNSYNCED = {"EACCES", "EPERM", "EISDIR", "EINVAL", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EBADF"}
"""What systems say that cannot sync a folder at all; the file is then as safe as they make it."""


def check(path: str | Path, option: str) -> None:
    """Refuse a file that `write` could not write, before anything is made for it.

    It is tried: what a user may do in a folder is not told by its permissions alone. ``option``
    named the file.

    Raises
    ------
    InputError
        If it is a folder, or in one that does not exist or cannot be written.
    """
    path = Path(path)
    if os.path.isdir(path):  # which takes names that are too long
        raise InputError(f"{option} {path} is a folder: name a file in it")
    if not os.path.isdir(path.absolute().parent):
        raise InputError(f"{option} {path}: there is no such folder, make it first")
    try:
        _try(_temporary(path))
    except OSError as error:
        raise InputError(
            f"{option} {path} cannot be written: {error.strerror}; name a file in a folder of yours"
        ) from error


def try_folder(folder: Path) -> None:
    """OSError if no file can be made in a folder."""
    _try(_temporary(folder / "trial"))


def _try(temporary: Path) -> None:
    open(temporary, "wb").close()
    temporary.unlink(missing_ok=True)  # somebody may have swept


def write(path: str | Path, content: bytes) -> None:
    """Replace the content of ``path``, whose folder exists.

    Raises
    ------
    SaveError
        If that fails; then the old file is untouched and the temporary one is gone. Only if the
        folder cannot be synced in the end is the new file in place already.
    """
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write the new content of ``path`` to: it takes the old one's place at the end.

    Raises
    ------
    SaveError
        As `write` does.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _replace(temporary, path)
    except BaseException as error:  # also of an interrupt nothing is left behind
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            fate = "what was there before is whole: make room or allow writing, then go on from it"
            if not os.path.isdir(path.parent):
                fate = "its folder is gone"
            raise SaveError(f"could not save {path}: {error.strerror or error}; {fate}") from error
        raise
    sync_folder(path.parent)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}{SUFFIX}")


def sweep(folder: str | Path) -> None:
    """Remove temporary files that killed processes left in ``folder``, which is ours to write."""
    for path in Path(folder).glob(f".*{SUFFIX}"):
        with contextlib.suppress(OSError):
            path.unlink()


def _replace(temporary: Path, path: Path) -> None:
    """`os.replace`, patient on Windows, which refuses it while another process reads ``path``."""
    for pause in (0.05, 0.2, 1.0) if os.name == "nt" else ():
        try:
            return os.replace(temporary, path)
        except PermissionError:
            time.sleep(pause)
    os.replace(temporary, path)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last through a power cut, where the system can sync a folder.

    Raises
    ------
    SaveError
        If the system can, and it fails.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if errno.errorcode.get(error.errno or 0) in UNSYNCED:
            return
        raise SaveError(
            f"could not sync the folder {folder}: {error.strerror or error}; its files are whole, "
            "but a power cut may take the newest: mend the disk, then go on from it"
        ) from error
