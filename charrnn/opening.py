"""Opening files that may be a stranger's: only what is a regular file and has an end."""

from __future__ import annotations

import errno
import os
import stat


def regular(path: str, flags: int) -> int:
    """An ``opener`` for files of a run folder, and for texts that it names.

    A pipe would be waited for, a device has no end, and what a link is put in the place of must not
    be written to, nor what has a second name elsewhere. The system's own files (such as those below
    /proc) call themselves regular, but have no size, and some never end. Each is an OSError.
    """
    writes = flags & (os.O_WRONLY | os.O_RDWR)
    if writes:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
    try:
        info = os.fstat(descriptor)
        problem = None
        if not stat.S_ISREG(info.st_mode):
            problem = "it is no regular file"
        elif writes and info.st_nlink > 1:
            problem = "it is a hard link, put a copy in its place"
        elif not writes and not info.st_size and _says_more(descriptor):
            problem = "it is a file of the system's, which has no size: copy what it says"
        if problem is not None:
            raise OSError(errno.EINVAL, problem, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _says_more(descriptor: int) -> bool:
    """Whether a file that had no size says something and has none still."""
    said = os.read(descriptor, 1)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return bool(said) and not os.fstat(descriptor).st_size
