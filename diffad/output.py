"""Files are written whole or not at all; a file that cannot be written leaves the old one in place.

Everything that a person keeps is written through this module, so that a full disk is reported in a sentence.
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
    """Whether there was no room to write."""
    return error.errno in _FULL


class OutputError(OSError):
    """A file that could not be written; the message names it (`path`) and says what to do."""

    def __init__(self, path: Path, reason: OSError) -> None:
        self.path = path
        why, advice = reason.strerror or str(reason), "check the folder, or write to another place"
        if reason.errno in _FULL:
            why, advice = _FULL[reason.errno], "free some space and run it again, or write to another place"
        super().__init__(f"{path} could not be written: {why}; {advice}")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Any OSError while this file is written becomes an OutputError."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(path, error) from error


@contextmanager
def whole(path: str | Path, sync: bool = True) -> Iterator[Path]:
    """Yields where to write, beside `path` and with its suffix; the file gets its name when the context ends
    well, and else is removed. sync: it is on the disk then, and survives a power cut. Raises OutputError.
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
    """The file holds these bytes, or what it held before. sync: see `whole`. Raises OutputError."""
    with whole(path, sync) as partial:
        partial.write_bytes(data)


def append(path: str | Path, line: str, fresh: bool = False) -> None:
    """Adds a line, which outlives the process from then on; fresh: in place of all that was there. Raises
    OutputError, and then no part of the line is in the file.
    """
    path = Path(path)
    with explained(path), path.open("wb" if fresh else "ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        left = memoryview(line.encode() + b"\n")
        try:
            while left:  # an unbuffered file takes what fits
                left = left[file.write(left) :]
        except OSError:
            file.truncate(before)
            raise
