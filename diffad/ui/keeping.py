"""Inspections on their way into the history: kept by one thread, so that no verdict waits for the disk.

The thread works off a short queue. A batch waits while that is full; a person on the page does not wait for
long, and reads a note if an inspection could not be kept.
"""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffad.batch import grid_map
from diffad.output import OutputError
from diffad.pictures import drawing
from diffad.ui.access import Access
from diffad.workspace.history import History
from diffad.workspace.record import Record, Source
from diffad.workspace.store import WorkspaceError

if TYPE_CHECKING:
    from diffad.inspection import Inspection

THUMBNAIL_PIXELS, MAP_CELLS = 160, 128  # longest sides
QUEUED = 8  # inspections that may wait
PATIENCE = 3.0  # s that a person waits for a place in the queue
FLUSHED_WITHIN = 60.0  # s, at the server's end
GB, DAY = 2**30, 86_400.0
SLOW = "the server's disk is too slow"
ENDED = "the server is ending"


class NotKept(Exception):
    """An inspection is not in the history; the message says why, as part of a sentence."""


@dataclass(frozen=True)
class About:
    """What is kept with a result.

    Attributes:
        path: of the picture.
        name: of the picture, as people know it.
        model: as the page calls it.
        asked: see `asked_of`.
        limits: what chose threshold and look limit: shares of good parts `rate` and `look_rate`, or the
            scores `threshold` and `look` that a person set.
        who: the login's name.
        version: of the diffad that made the model.
        time: of the inspection, UTC, s since 1970.
    """

    path: Path
    name: str
    model: str
    asked: Mapping[str, Any]
    limits: Mapping[str, Any]
    source: Source
    who: str
    version: str = ""
    time: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Limits:
    """Of the history. max_bytes: of its files; None for no limit. max_age: s; likewise."""

    max_bytes: float | None = None
    max_age: float | None = None

    @classmethod
    def of(cls, gigabytes: float, days: float) -> Limits:
        """0 for no limit."""
        return cls(gigabytes * GB or None, days * DAY or None)


_Job = tuple["Inspection", About, "Future[int]"]


class Keeping:
    """The history as the page uses it: `add` keeps an inspection soon, `access` says who may change it."""

    def __init__(self, history: History, access: Access, limits: Limits) -> None:
        """Removes what a crash left behind and what exceeds the limits, then starts the thread."""
        self.history, self.access, self._limits = history, access, limits
        self._jobs: queue.Queue[_Job | None] = queue.Queue(QUEUED)
        self._closed = False
        history.sweep(age=0)
        self.tidy()
        self._thread = threading.Thread(target=self._work, name="history", daemon=True)
        self._thread.start()

    def add(self, inspection: Inspection, about: About, patience: float = PATIENCE) -> Future[int]:
        """Has an inspection kept.

        Args:
            patience: s to wait for a place in the queue.

        Returns:
            Its id in the history, soon; or NotKept.
        """
        kept: Future[int] = Future()
        end = time.monotonic() + patience
        while not self._closed:
            try:
                self._jobs.put((inspection, about, kept), timeout=min(1.0, patience))
                return kept
            except queue.Full:
                if time.monotonic() >= end:
                    kept.set_exception(NotKept(SLOW))
                    return kept
        kept.set_exception(NotKept(ENDED))
        return kept

    def tidy(self) -> None:
        """Drops what exceeds the limits."""
        self.history.limit(self._limits.max_bytes, self._limits.max_age)

    def close(self) -> None:
        """Keeps what is still in the queue, then nothing more."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
        self._thread.join(FLUSHED_WITHIN)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            inspection, about, kept = job
            try:
                kept.set_result(self._keep(inspection, about))
            except Exception as error:  # nothing above a thread would report it
                kept.set_exception(NotKept(_reason(error)))
            del inspection, about, kept, job  # a large picture must not wait here for the next one

    def _keep(self, inspection: Inspection, about: About) -> int:
        thumbnail = drawing.shrunk(inspection.hatched, THUMBNAIL_PIXELS)
        height, width = inspection.image.shape[:2]
        record = record_of(inspection.to_dict(), (width, height), about, inspection.quality)
        return self.history.keep(record, about.path, thumbnail, small_map(grid_map(inspection)))


def record_of(
    result: Mapping[str, Any], size: tuple[int, int], about: About, quality: Mapping[str, float] | None = None
) -> Record:
    """What is kept of an inspection.

    Args:
        result: `Inspection.to_dict`.
        size: width and height of the picture, px.
        quality: `Inspection.quality`.
    """
    return Record.of(
        result, size, about.name, about.model, model_version=about.version, quality=quality,
        settings={"asked": about.asked, "limits": about.limits}, source=about.source, who=about.who,
        time=about.time,
    )  # fmt: skip


def small_map(on_grid: np.ndarray) -> np.ndarray:
    """`batch.grid_map` for the history: float32 [h, w], at most 128 cells a side."""
    return drawing.shrunk(on_grid.astype(np.float32), MAP_CELLS)


def asked_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What the network was asked for, ready for JSON: arguments of `Inspector.inspect` but α, which only
    weighs its answer.
    """
    asked = {name: value for name, value in arguments.items() if name in ("category", "draws", "tile")}
    timesteps: Sequence[int] = arguments["timesteps"]
    return asked | {"timesteps": [int(t) for t in timesteps]}


def _reason(error: Exception) -> str:
    """Why an inspection could not be kept, as part of a sentence that strangers may read."""
    if isinstance(error, OutputError):
        cause = error.__cause__
        return f"the server's disk takes no more ({getattr(cause, 'strerror', None) or 'writing failed'})"
    if isinstance(error, WorkspaceError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "its picture is no longer on the server"
    traceback.print_exception(error)
    return "an internal error; see the server's log"
