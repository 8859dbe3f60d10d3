"""A lock on a file, which the system releases when the process dies, however it dies."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import BinaryIO

_TAKEN = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK}


def lock(path: Path) -> BinaryIO:
    """Locks a file, which is made if it is not there, for as long as the file returned stays open.

    Raises:
        BlockingIOError: Somebody else holds the lock.
        OSError: The file cannot be opened, or its file system knows no locks.
    """
    file = path.open("ab")
    try:
        _lock(file.fileno())
    except OSError as error:
        file.close()
        if error.errno in _TAKEN:
            raise BlockingIOError(error.errno, "locked by another process", str(path)) from error
        raise
    return file


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
