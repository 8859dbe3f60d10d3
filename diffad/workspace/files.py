"""The files that rows name: originals, thumbnails, maps and masks."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Container, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from diffad.output import explained, write

_QUALITY = 82  # of the thumbnails, per cent
_MOST = float(np.finfo(np.float16).max)
ORPHANED = 3600.0  # s; a file without a row may be younger while its inspection is being kept


def picture_path(folder: Path, sha256: str, suffix: str) -> Path:
    """Of an original in a workspace."""
    return folder / "pictures" / sha256[:2] / f"{sha256}{suffix}"


def thumbnail_path(folder: Path, token: str) -> Path:
    return folder / "thumbnails" / token[:2] / f"{token}.webp"


def map_path(folder: Path, token: str) -> Path:
    return folder / "maps" / token[:2] / f"{token}.npy"


def mask_path(folder: Path, mask: str) -> Path:
    """mask: the file's name, which begins with the token."""
    return folder / "maps" / mask[:2] / mask


def put(path: Path, data: bytes) -> None:
    """Writes a file whole, so that it and its name survive a power cut. Raises OutputError."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write(path, data)
    for folder in (path.parent, path.parent.parent):
        _settle(folder)


def _settle(folder: Path) -> None:
    """The names in a folder are on the disk, where a system can be asked for it."""
    if os.name != "posix":
        return
    with suppress(OSError):  # some network disks cannot
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_there(path: Path, size: int) -> bool:
    """Whether there is a file of so many bytes."""
    with suppress(OSError):
        return path.stat().st_size == size
    return False


def webp(picture: np.ndarray) -> bytes:
    """A thumbnail uint8 [h, w, 3] in a few KB."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "WEBP", quality=_QUALITY)
    return buffer.getvalue()


def half_precision(values: np.ndarray) -> bytes:
    """A map float [h, w] as .npy in float16, clipped to what that holds."""
    buffer = io.BytesIO()
    np.save(buffer, np.clip(values, -_MOST, _MOST).astype(np.float16))
    return buffer.getvalue()


def mask_png(mask: np.ndarray) -> bytes:
    """A mask [h, w] as PNG, 255 where it is not 0. Raises ValueError for another shape."""
    if mask.ndim != 2:
        raise ValueError(f"a mask of shape {mask.shape} is none: give [height, width]")
    buffer = io.BytesIO()
    Image.fromarray(np.where(mask > 0, 255, 0).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def remove(folder: Path, token: str) -> None:
    """Removes an inspection's thumbnail, map and masks; what cannot be removed now is swept later."""
    masks = (folder / "maps" / token[:2]).glob(f"{token}-*.png")
    for path in (thumbnail_path(folder, token), map_path(folder, token), *masks):
        with suppress(OSError):
            path.unlink()


def orphans(folder: Path, named: Container[str], age: float) -> Iterator[Path]:
    """Files of inspections that no row names. named: the names in use. age: s that they are old at least."""
    before = time.time() - age
    for kind in ("pictures", "thumbnails", "maps"):
        for inner in sorted((folder / kind).iterdir()):
            for path in inner.iterdir() if inner.is_dir() else ():
                with suppress(OSError):
                    if path.name not in named and path.stat().st_mtime <= before:
                        yield path
