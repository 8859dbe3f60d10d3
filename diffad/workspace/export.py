"""Inspections to take away: for spreadsheets, for programs, or with all their files."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

from diffad.workspace.history import History
from diffad.workspace.record import Entry, plain_text, suffix_of

COLUMNS = (
    "id", "time", "picture", "category", "verdict", "score", "threshold", "look_threshold", "rate", "regions",
    "correction", "corrected_at", "corrected_by", "model", "model_version", "source", "who", "seconds",
    "notes", "sha256",
)  # fmt: skip


def csv_file(entries: Iterable[Entry]) -> bytes:
    """A CSV file for spreadsheets, a line for each inspection, with the columns `COLUMNS`.

    Times are UTC, regions are counted, notes take one cell. The file is UTF-8 with a byte-order mark, its
    text is in quotes, and no cell can be taken for a formula.
    """
    from diffad.batch import spreadsheet

    def shown(entry: Entry) -> dict[str, Any]:
        more = {"regions": len(entry.regions), "notes": " ".join(entry.notes)}
        return {name: _storable(value) for name, value in (_in_utc(entry) | more).items()}

    return spreadsheet(COLUMNS, map(shown, entries))


def json_text(entries: Iterable[Entry], **about: Any) -> str:
    """A JSON document with all that is known of each inspection, times in UTC. about: stands before them."""
    from diffad.batch import json_text as text

    return text(about | {"inspections": [_in_utc(entry) for entry in entries]})


def write_zip(file: Path | BinaryIO, history: History, entries: Sequence[Entry], **about: Any) -> list[str]:
    """Writes a zip file: history.csv, history.json, and of each inspection its original, thumbnail, map
    (.npy, float16, σ) and the mask that a person drew, with its id for a name.

    Returns:
        The names of files that are gone.
    """
    gone = []
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("history.csv", csv_file(entries), zipfile.ZIP_DEFLATED)
        archive.writestr("history.json", json_text(entries, **about), zipfile.ZIP_DEFLATED)
        for entry in entries:
            for name, path in _files(history, entry):
                try:
                    archive.write(path, name)
                except FileNotFoundError:  # deleted since it was found
                    gone.append(name)
    return gone


def _files(history: History, entry: Entry) -> list[tuple[str, Path]]:
    """What an inspection's files are called in the archive, and where they lie."""
    found = [
        (f"pictures/{entry.id}{suffix_of(entry.picture)}", history.picture_path(entry)),
        (f"thumbnails/{entry.id}.webp", history.thumbnail_path(entry)),
        (f"maps/{entry.id}.npy", history.map_path(entry)),
    ]
    mask = history.mask_path(entry)
    return found if mask is None else [*found, (f"masks/{entry.id}.png", mask)]


def _in_utc(entry: Entry) -> dict[str, Any]:
    """`Entry.to_dict` with times that people can read."""
    times = {name: _utc(getattr(entry, name)) for name in ("time", "corrected_at")}
    return entry.to_dict() | times


def _utc(time: float | None) -> str | None:
    if time is None:
        return None
    return datetime.fromtimestamp(time, timezone.utc).isoformat(" ", "seconds")


def _storable(value: Any) -> Any:
    return plain_text(value) if isinstance(value, str) else value
