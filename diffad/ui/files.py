"""Uploads and results on the server's disk: their lifetime, their total size and their owners."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from diffad.pictures.reading import DataError
from diffad.pictures.samples import Sample
from diffad.ui.turns import caller

PREFIX = "diffad-server-"
HOUR = 3600.0  # s
KEPT = 6 * HOUR  # after the last use
RECENT = HOUR  # files used within it are not removed to make room
DEAD = 24 * HOUR  # a running server touches its folder more often than this
MEASURED_EVERY = 10.0  # s; in between, only additions are counted
GB = 2**30
# Shown in the endpoints' documentation; Gradio's own example is a file on another server.
EXAMPLE = {"path": "part.png", "url": "part.png", "meta": {"_type": "gradio.FileData"}}
clock = time.time


class File(NamedTuple):
    used: float
    size: int
    path: Path


class Run(Protocol):
    """What the storage needs of a batch. used: time of last use, s. pictures: their files are not deleted."""

    id: str
    used: float
    pictures: Mapping[str, Sample]

    @property
    def finished(self) -> bool: ...

    def cancel(self) -> None: ...

    def forget(self) -> None: ...


class Storage:
    """One server's folder for uploads, results and batches. Thread-safe.

    Files and finished batches are deleted KEPT seconds after their last use, or earlier if space is needed,
    the oldest first. Pictures of a batch that still exists are never deleted.

    Attributes:
        files: the folder of uploads and results, from which Gradio serves them.
        batches: the folder with a folder for each run.
        runs: by id.
    """

    def __init__(self, parent: Path, limit: int) -> None:
        """Creates the folder, and deletes the folders that killed servers have left behind.

        Args:
            parent: where the folder is created.
            limit: bytes that files and batches may take together.
        """
        parent.mkdir(parents=True, exist_ok=True)
        remove_left_overs(parent)
        self.limit = limit
        self.root = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent)).resolve()
        self.files, self.batches = self.root / "files", self.root / "batches"
        self.files.mkdir()
        self.batches.mkdir()
        self.runs: dict[str, Run] = {}
        self._in_use: dict[object, frozenset[Path]] = {}
        self._owners: dict[Path, set[str]] = {}
        self._lock = threading.RLock()
        self._used, self._measured_at = 0, 0.0

    # Owners

    def own(self, path: str | Path, person: str) -> None:
        """Allows a person to use a file."""
        with self._lock:
            self._owners.setdefault(Path(path).resolve(), set()).add(person)

    def find(self, path: str, person: str | None) -> Path | None:
        """The file at this path, if it exists and the person may use it; None may use every file."""
        try:
            found = Path(path).resolve()
            if not found.is_relative_to(self.files) or not found.is_file():
                return None
        except (OSError, ValueError, RuntimeError):  # too long, a zero byte, a loop of links
            return None
        if person is not None and person not in self._owners.get(found, ()):
            return None
        with suppress(OSError):
            os.utime(found)  # counts as a use
        return found

    # Adding

    def keep(self, data: bytes, name: str) -> str:
        """Stores a file for the caller of the current event; returns its path."""
        with room():
            self.make_room(len(data))
            path: str = save_bytes_to_cache(data, name, str(self.files))
        self.own(path, caller())
        return path

    def take_over(self, path: Path) -> str:
        """Moves a file from a batch's folder to the files of the current event's caller; returns its path."""
        with room():
            self.make_room(0)
            folder = self.files / secrets.token_hex(16)
            folder.mkdir()
            taken = path.replace(folder / path.name)
        self.own(taken, caller())
        return str(taken)

    def batch_folder(self) -> Path:
        """A new folder for a batch."""
        with room():
            return Path(tempfile.mkdtemp(dir=self.batches))

    @contextmanager
    def using(self, paths: Iterable[str]) -> Iterator[None]:
        """Protects these files from deletion while the context is open."""
        work = object()
        self._in_use[work] = frozenset(map(Path, paths))
        try:
            yield
        finally:
            del self._in_use[work]

    # Deleting

    def make_room(self, size: int) -> None:
        """Deletes old files and finished batches until `size` more bytes fit.

        Raises:
            DataError: There is still not enough room.
        """
        with self._lock:
            if clock() - self._measured_at > MEASURED_EVERY or self._used + size > self.limit:
                self._measure()
            if self._used + size > self.limit:
                self._remove_oldest(self._used + size - self.limit)
            if self._used + size > self.limit:
                raise DataError(
                    f"the {self.limit / GB:.3g} GB that this server has for pictures are taken: wait until "
                    "other work is finished, or restart the server with a larger --max-storage"
                )
            self._used += size

    def sweep(self) -> None:
        """Deletes everything that has not been used for KEPT seconds."""
        with self._lock:
            oldest = clock() - KEPT
            for run in self._finished():
                if run.used < oldest:
                    self._forget(run)
            for file in self._idle_files():
                if file.used < oldest:
                    self._remove(file)
            self._measure()
        with suppress(OSError):
            os.utime(self.root)  # shows other servers that this one is alive

    def close(self) -> None:
        """Deletes everything."""
        for run in list(self.runs.values()):
            run.cancel()
        shutil.rmtree(self.root, ignore_errors=True)

    def _remove_oldest(self, size: int) -> None:
        recent = clock() - RECENT
        things: list[tuple[float, File | Run]] = [(run.used, run) for run in self._finished()]
        things += [(file.used, file) for file in self._idle_files() if file.used < recent]
        before = self._used
        for _, thing in sorted(things, key=lambda each: each[0]):
            if before - self._used >= size:
                return
            if isinstance(thing, File):
                self._remove(thing)
                self._used -= thing.size
            else:
                self._forget(thing)
                self._measure()

    def _finished(self) -> list[Run]:
        return [run for run in list(self.runs.values()) if run.finished]

    def _forget(self, run: Run) -> None:
        self.runs.pop(run.id, None)
        run.forget()

    def _idle_files(self) -> list[File]:
        """Files that no batch and no running work uses."""
        needed = {sample.image for run in list(self.runs.values()) for sample in run.pictures.values()}
        needed = needed.union(*list(self._in_use.values()))
        return [file for file in _files(self.files) if file.path not in needed]

    def _remove(self, file: File) -> None:
        with suppress(OSError):
            file.path.unlink()
        with suppress(OSError):
            file.path.parent.rmdir()  # if it is empty now
        self._owners.pop(file.path, None)

    def _measure(self) -> None:
        self._used, self._measured_at = sum(file.size for file in _files(self.root)), clock()


def _files(folder: Path) -> Iterator[File]:
    for path in folder.rglob("*"):
        with suppress(OSError):  # deleted in the meantime
            status = path.lstat()
            if not path.is_dir():
                yield File(max(status.st_mtime, status.st_ctime), status.st_size, path)


def remove_left_overs(parent: Path) -> None:
    """Deletes the folders of this user's servers that have been dead for at least a day."""
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):
            status = folder.lstat()
            mine = not hasattr(os, "getuid") or status.st_uid == os.getuid()
            if mine and folder.is_dir() and not folder.is_symlink() and clock() - status.st_mtime > DEAD:
                shutil.rmtree(folder, ignore_errors=True)


def picture_upload(**settings: Any) -> gr.Image:
    """An image component whose value is the path of the uploaded file.

    `gr.Image` itself converts uploads: 16 bits become 8, and a file that is not a picture causes a stack
    trace. Here `read_image` reads the file instead. The methods are replaced on the instance, because Gradio
    writes a .pyi file into the package for every subclass. Therefore events with this component as an output
    must return a value: an update, even `gr.skip()`, would create another instance.
    """
    picture = gr.Image(type="filepath", format="png", image_mode=None, **settings)
    usual = picture.preprocess
    picture.preprocess = lambda payload: (  # type: ignore[method-assign]  # see above
        payload.path if payload is not None and payload.path else usual(payload)
    )
    picture.example_payload = lambda: EXAMPLE  # type: ignore[method-assign]
    return picture


@contextmanager
def room() -> Iterator[None]:
    """Turns errors in storing a file into sentences for the caller."""
    try:
        yield
    except DataError as error:
        raise gr.Error(str(error), print_exception=False) from error
    except OSError as error:
        raise gr.Error(
            "The server could not store this file: its disk may be full, free some space and try again.",
            print_exception=False,
        ) from error


def several_files(**settings: Any) -> gr.File:
    """A file component for endpoints, which accepts a single file as well as a list."""
    component = gr.File(file_count="multiple", **settings)
    described = component.api_info()

    def paths(payload: Any) -> list[str] | None:
        files = payload if isinstance(payload, list) or not payload else [payload]
        return files and [file["path"] for file in files]

    # Replaced on the instance, as in `picture_upload`.
    component.api_info = lambda: described  # type: ignore[method-assign]
    component.data_model = None  # it would accept only a list
    component.preprocess = paths  # type: ignore[method-assign]
    component.example_payload = lambda: [EXAMPLE]  # type: ignore[method-assign]
    return component


def sentence(message: str, path: str | Path) -> str:
    """A message about a picture, with the path on the server replaced by the file's name."""
    return message.replace(str(path), Path(path).name)
