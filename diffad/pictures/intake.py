"""Collecting pictures from files, folders and zip archives."""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from diffad.output import is_full
from diffad.pictures.reading import IMAGE_SUFFIXES, DataError
from diffad.pictures.samples import (
    Sample,
    find_samples,
    named,
    pictures_and_masks,
    subfolders,
)

MAX_PICTURES = 20_000
MAX_UNPACKED = 8 * 2**30  # bytes of pictures in one archive
_JUNK = {"__MACOSX"}  # folders that macOS adds to archives
Claim = Callable[[int], None]  # called with a number of bytes before they are written; may raise DataError


def sources(
    paths: Iterable[Path], folder: Path, within: Path | None = None, claim: Claim | None = None
) -> dict[str, Sample]:
    """Collect the pictures of files, folders and `.zip` archives.

    Folders and archives are searched recursively: an MVTec category gives its test pictures with labels and
    masks, any other folder every picture. Given files and unreadable subfolders are always included;
    `batch.run` reports what is wrong with them.

    Args:
        paths: files, folders and archives.
        folder: where archives are unpacked (pictures only).
        within: take nothing outside this folder, with links and `..` resolved.
        claim: called before unpacked bytes are written.

    Returns:
        Samples by unique name, in natural order.

    Raises:
        DataError: a path outside `within`; an archive that is damaged, encrypted, too large or holds paths
            outside itself; no picture, or more than MAX_PICTURES.
    """
    found: dict[str, Sample] = {}
    paths = list(paths)
    for number, path in enumerate(paths):
        if within is not None:
            path = below(path, within)
        if path.suffix.lower() == ".zip" and path.is_file():
            root = folder / str(number) / path.stem
            unpack(path, root, claim)
            samples: Iterable[Sample] = _tree(root)
        elif path.is_dir():
            root, samples = path, _tree(path)
        else:
            root, samples = path.parent, [Sample(path, path.parent.name)]
        for sample in samples:
            if within is not None:
                if not _is_below(sample.image, within):
                    continue
                if sample.mask is not None and not _is_below(sample.mask, within):
                    sample = replace(sample, mask=None)
            found[unused(sample.image.relative_to(root), found)] = sample
            if len(found) > MAX_PICTURES:
                raise DataError(f"these are more than {MAX_PICTURES} pictures: give them in several batches")
    if not found:
        names = ", ".join(path.name for path in paths[:3])
        raise DataError(f"there are no pictures in {names}: give PNG, JPEG, TIFF or WebP files, also zipped")
    return found


def below(path: Path, root: Path) -> Path:
    """Resolve a path (links, `..`). Raises DataError if it is not `root` or below it."""
    try:
        if not path.exists():
            raise DataError("there is no such folder here: choose one from the list")
        if not _is_below(path, root):
            raise DataError("this is outside the folder that may be read here: choose one from the list")
        return path.resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a null byte, a symlink loop, no permission
        if isinstance(error, DataError):
            raise
        raise DataError("this path cannot be read: choose a folder from the list") from error


def _is_below(path: Path, root: Path) -> bool:
    return path.resolve().is_relative_to(root.resolve())


def unused(name: Path, taken: Container[str]) -> str:
    """The name as a string, numbered like "name (2).png" if it is taken."""
    free, number = name.as_posix(), 1
    while free in taken:
        number += 1
        free = name.with_name(f"{name.stem} ({number}){name.suffix}").as_posix()
    return free


def _tree(folder: Path) -> Iterator[Sample]:
    """All samples below a folder; an unreadable subfolder becomes a sample, which `batch.run` reports."""
    try:
        labelled = _labelled(folder)
        pictures = [] if labelled else pictures_and_masks(folder)
        deeper = [] if labelled else subfolders(folder)
    except OSError as error:
        raise DataError(f"{folder.name} may not be read: check its permissions") from error
    yield from labelled
    yield from (Sample(path, folder.name) for path in pictures)
    for each in deeper:
        if each.name not in _JUNK and not each.is_symlink():
            try:
                yield from _tree(each)
            except DataError:
                yield Sample(each, folder.name)


def _labelled(folder: Path) -> list[Sample]:
    """The test pictures if the folder is an MVTec category. Raises OSError."""
    try:
        return find_samples(folder, split="test") if named(folder, "test") else []
    except DataError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        return []  # a folder that happens to be called "test"


def unpack(archive: Path, folder: Path, claim: Claim | None = None) -> None:
    """Unpack the pictures of a zip archive below `folder`; claim and errors as in `sources`.

    Unpacked bytes are counted while decompressing, since the sizes that an archive declares may be wrong.
    """
    name, left, count = archive.name, MAX_UNPACKED, 0
    try:
        with zipfile.ZipFile(archive) as opened:
            for entry in opened.infolist():
                path = PurePosixPath(entry.filename.replace("\\", "/"))
                if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
                    raise DataError(f"{name} holds paths outside of the archive: create it again")
                if entry.is_dir() or path.suffix.lower() not in IMAGE_SUFFIXES or _is_junk(path, entry):
                    continue
                count += 1
                if count > 2 * MAX_PICTURES:  # each picture may have a mask
                    raise DataError(f"{name} holds more than {MAX_PICTURES} pictures: give it in parts")
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(entry) as packed, target.open("wb") as file:
                    while chunk := packed.read(1 << 20):
                        left -= len(chunk)
                        if left < 0:
                            limit = MAX_UNPACKED >> 30
                            raise DataError(f"{name} unpacks to more than {limit} GB: give it in parts")
                        if claim is not None:
                            claim(len(chunk))
                        file.write(chunk)
    except DataError:
        raise
    except RuntimeError as error:  # raised by zipfile for passwords and unknown compression
        raise DataError(
            f"{name} is encrypted or uses an unknown compression: save it as a plain zip file"
        ) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, IndexError, OSError) as error:
        if isinstance(error, OSError) and is_full(error):
            raise DataError(f"there is no room to unpack {name}: free some space, or give less") from error
        raise DataError(f"{name} is damaged or cannot be unpacked: create it again") from error


def _is_junk(path: PurePosixPath, entry: zipfile.ZipInfo) -> bool:
    hidden = any(part.startswith(".") or part in _JUNK for part in path.parts)
    return hidden or stat.S_ISLNK(entry.external_attr >> 16)
