"""The files of a taught category that somebody hands on: unpacked, and checked before they are trusted."""

from __future__ import annotations

import hashlib
import math
import re
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from diffad.checkpoint import CheckpointError
from diffad.workspace.store import WorkspaceError

_MOST_EXPORTED = 4 * 2**30  # bytes of an export that is imported
_LATEST = 2**35  # s since 1970, the latest time that is believed
_NAMES = re.compile(r"category\.safetensors|sums-[0-9]{1,9}\.safetensors|good/[0-9a-f]{64}(\.[^/\\:]{0,40})?")
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def unpack(file: Path, folder: Path) -> None:
    """An export's files; raises WorkspaceError for anything else in it."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > _MOST_EXPORTED:
                raise WorkspaceError(f"{file} unpacks to more than {_MOST_EXPORTED >> 30} GB")
            (folder / "good").mkdir(parents=True)
            for entry in entries:
                if not _NAMES.fullmatch(entry.filename) or entry.compress_type not in _PACKED:
                    raise WorkspaceError(f"{file} is no exported category: it holds {entry.filename!r}")
                target = folder / PurePosixPath(entry.filename)
                with archive.open(entry) as source, target.open("wb") as unpacked:
                    shutil.copyfileobj(source, unpacked)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise WorkspaceError(f"{file} is no exported category ({error})") from None
    except FileNotFoundError:
        raise WorkspaceError(f"there is no file {file}") from None


def check_about(about: Mapping[str, Any], folder: Path) -> None:
    """Raises CheckpointError unless what a category says of itself has the form that `Taught.add` gives it,
    and the pictures that it names lie in its folder.
    """
    pictures, time = about.get("pictures"), about.get("time")
    numbers = (about.get("version"), about.get("sums"))
    if (
        not isinstance(pictures, dict)
        or not all(type(each) is int and 0 < each < 10**9 for each in numbers)
        or not isinstance(time, int | float)
        or not (math.isfinite(time) and 0 <= time < _LATEST)
        or not all(isinstance(about.get(name), str) for name in ("who", "model"))
    ):
        raise CheckpointError("what it says of itself is damaged")
    for sha256, name in pictures.items():
        suffix = Path(name).suffix.lower() if isinstance(name, str) else "/"
        hashed = re.fullmatch("[0-9a-f]{64}", sha256) is not None
        if not hashed or _hash_of(folder / "good" / f"{sha256}{suffix}") != sha256:
            raise CheckpointError("one of its good pictures is missing or damaged")


def _hash_of(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
