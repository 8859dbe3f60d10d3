"""Atomic file writing: a file is replaced completely or left as it was.

All user-facing output goes through this module, so that errors such as a full disk get a clear message.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file may not be that large here",
}


def is_full(error: OSError) -> bool:
    """Whether the error means that the disk, the quota or the file size limit is exhausted."""
    return error.errno in _FULL


class OutputError(OSError):
    """A file could not be written. The message names the file (`path`) and says what to do."""

    def __init__(self, path: Path, reason: OSError) -> None:
        self.path = path
        why, advice = reason.strerror or str(reason), "check the folder, or write to another place"
        if reason.errno in _FULL:
            why, advice = _FULL[reason.errno], "free some space and run it again, or write to another place"
        super().__init__(f"{path} could not be written: {why}; {advice}")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn any OSError raised while this file is written into an OutputError."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(path, error) from error


@contextmanager
def whole(path: str | Path, sync: bool = True) -> Iterator[Path]:
    """Context manager for writing a file atomically.

    Args:
        path: the final path.
        sync: flush the file to disk before renaming it, so that it survives a power cut.

    Yields:
        A temporary path in the same folder with the same suffix. It is renamed to `path` if the context exits
        normally and deleted otherwise.

    Raises:
        OutputError: the file could not be written.
    """
    path = Path(path)
    partial = path.with_name(f".{secrets.token_hex(8)}.partial{path.suffix}")
    with explained(path):
        try:
            yield partial
            if sync:
                with partial.open("rb+") as file:
                    os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def write(path: str | Path, data: bytes, sync: bool = True) -> None:
    """Write bytes to a file atomically; arguments and errors as in `whole`."""
    with whole(path, sync) as partial:
        partial.write_bytes(data)


def append(path: str | Path, line: str, fresh: bool = False) -> None:
    """Append a line to a file without buffering, so that it survives a crash of the process.

    Args:
        path: the file; created if missing.
        line: text without the line break.
        fresh: truncate the file first.

    Raises:
        OutputError: the line could not be written; the file then contains no part of it.
    """
    path = Path(path)
    with explained(path), path.open("wb" if fresh else "ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        left = memoryview(line.encode() + b"\n")
        try:
            while left:  # an unbuffered write may be partial
                left = left[file.write(left) :]
        except OSError:
            file.truncate(before)
            raise
