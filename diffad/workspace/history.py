"""Every inspection: kept with its picture, found again, corrected, and dropped when room is short."""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffad.workspace import events, files
from diffad.workspace.events import Event
from diffad.workspace.queries import COLUMNS, FROM, Filter, Sort, folded, order
from diffad.workspace.record import CORRECTIONS, Entry, Record, row_of, suffix_of
from diffad.workspace.store import Workspace, WorkspaceError

_EVERYTHING = Filter()
_CHUNK = 500  # values in one query
_CORRECTED = ("correction", "corrected_at", "corrected_by", "mask")
_CORRECTING = ("correct", "undo")
_JUDGED = ("score", "threshold", "look_threshold", "verdict", "rate", "settings", "regions")


@dataclass(frozen=True)
class Counts:
    """How many inspections there are, by verdict and by correction ("" without), and the room they take.

    bytes: of the pictures, thumbnails and maps.
    """

    total: int
    verdicts: Mapping[str, int]
    corrections: Mapping[str, int]
    bytes: int


@dataclass(frozen=True)
class CategoryCount:
    """How many inspections of a category there are. latest: UTC, s since 1970."""

    category: str
    inspections: int
    latest: float


class History:
    """The inspections of a workspace. A row is there only while its files are: they are written before it and
    removed after it. All methods raise WorkspaceError, those that write also OutputError.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._folder = workspace.folder

    # -----------------------------------------------------------------------------------------------------
    # Keeping and finding

    def keep(
        self, record: Record, picture: bytes | str | Path, thumbnail: np.ndarray, anomaly_map: np.ndarray
    ) -> int:
        """Keeps an inspection; when this returns it survives a power cut.

        Args:
            picture: the original file's bytes, or where it lies. Equal ones are stored once.
            thumbnail: uint8 [h, w, 3].
            anomaly_map: float [h, w] in σ, small; kept in float16.

        Returns:
            Its id.

        Raises:
            OSError: There is no picture where it should lie.
        """
        data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
        small, heat = files.webp(thumbnail), files.half_precision(anomaly_map)
        sha256, token = hashlib.sha256(data).hexdigest(), secrets.token_hex(16)
        more = {
            "folded": folded(record.picture), "sha256": sha256, "token": token,
            "bytes": len(small) + len(heat),
            "time": time.time() if record.time is None else float(record.time),
        }  # fmt: skip
        row = row_of(record) | more
        names, places = ", ".join(row), ", ".join("?" * len(row))
        try:
            files.put(files.thumbnail_path(self._folder, token), small)
            files.put(files.map_path(self._folder, token), heat)
            with self.workspace.writing() as db:
                self._keep_picture(db, sha256, suffix_of(record.picture), data)
                insert = f"INSERT INTO inspections ({names}) VALUES ({places})"
                added = db.execute(insert, tuple(row.values())).lastrowid
        except BaseException:
            files.remove(self._folder, token)
            raise
        assert added is not None
        return added

    def _keep_picture(self, db: sqlite3.Connection, sha256: str, suffix: str, data: bytes) -> None:
        known = db.execute("SELECT suffix FROM pictures WHERE sha256 = ?", [sha256]).fetchone()
        if known is None:
            db.execute("INSERT INTO pictures VALUES (?, ?, ?)", (sha256, suffix, len(data)))
        path = files.picture_path(self._folder, sha256, known[0] if known else suffix)
        if not files.is_there(path, len(data)):
            files.put(path, data)

    def get(self, id: int) -> Entry | None:
        """The inspection; None if there is none, or no longer."""
        with self.workspace.reading() as db:
            row = db.execute(f"SELECT {COLUMNS} {FROM} WHERE id = ?", [id]).fetchone()
        return None if row is None else Entry.of_row(row)

    def find(
        self,
        chosen: Filter = _EVERYTHING,
        sort: Sort = "time",
        descending: bool = True,
        limit: int | None = 50,
        offset: int = 0,
    ) -> tuple[list[Entry], int]:
        """A page of the inspections chosen, and how many are chosen in all. limit: None for all."""
        where, values = chosen.sql()
        by = order(sort, descending)
        page = f"SELECT id FROM inspections WHERE {where} ORDER BY {by} LIMIT ? OFFSET ?"
        rows = f"SELECT {COLUMNS} {FROM} WHERE id IN ({page}) ORDER BY {by}"
        with self.workspace.reading() as db:
            total = db.execute(f"SELECT count(*) FROM inspections WHERE {where}", values).fetchone()[0]
            found = db.execute(rows, [*values, -1 if limit is None else limit, offset]).fetchall()
        return [Entry.of_row(row) for row in found], total

    def columns(self, chosen: Filter, *names: str) -> list[tuple[Any, ...]]:
        """Some columns of all inspections chosen, the oldest first; JSON as text."""
        where, values = chosen.sql()
        with self.workspace.reading() as db:
            query = f"SELECT {', '.join(names)} FROM inspections WHERE {where} ORDER BY time, id"
            return db.execute(query, values).fetchall()

    def categories(self) -> list[CategoryCount]:
        """All that were ever inspected and are still kept, by name."""
        query = "SELECT category, count(*), max(time) FROM inspections GROUP BY category ORDER BY category"
        with self.workspace.reading() as db:
            return [CategoryCount(*row) for row in db.execute(query)]

    def people(self) -> list[str]:
        """Everybody whose inspections are kept, by name; empty names left out."""
        with self.workspace.reading() as db:
            rows = db.execute("SELECT DISTINCT who FROM inspections WHERE who != '' ORDER BY who")
            return [who for (who,) in rows]

    def counts(self) -> Counts:
        """What the workspace holds."""
        with self.workspace.reading() as db:
            verdicts, corrections = (
                dict(db.execute(f"SELECT {name}, count(*) FROM inspections GROUP BY {name}").fetchall())
                for name in ("verdict", "correction")
            )
            return Counts(sum(verdicts.values()), verdicts, corrections, _bytes(db))

    def picture_path(self, entry: Entry) -> Path:
        """The original's file."""
        return files.picture_path(self._folder, entry.sha256, entry.suffix)

    def thumbnail_path(self, entry: Entry) -> Path:
        """A WebP file."""
        return files.thumbnail_path(self._folder, entry.token)

    def map_path(self, entry: Entry) -> Path:
        """A .npy file."""
        return files.map_path(self._folder, entry.token)

    def mask_path(self, entry: Entry) -> Path | None:
        """The PNG that a person drew the defect in, 255 where it is; None if nobody did."""
        return files.mask_path(self._folder, entry.mask) if entry.mask else None

    def anomaly_map(self, entry: Entry) -> np.ndarray:
        """Float32 [h, w], in σ."""
        values: np.ndarray = np.load(self.map_path(entry))
        return values.astype(np.float32)

    # -----------------------------------------------------------------------------------------------------
    # What people say

    def correct(self, id: int, correction: str, who: str, mask: np.ndarray | None = None) -> Entry:
        """Notes what a person says of an inspection; what was said before stays among the events.

        Args:
            correction: "right", "good" or "defective"; "" takes it back.
            mask: the defect as drawn, [H, W], not 0 where it is; None leaves what was drawn before, unless
                the part is good.

        Returns:
            The inspection as it is now.

        Raises:
            ValueError: There is no such correction, or it contradicts the mask.
        """
        if correction not in CORRECTIONS:
            raise ValueError(f'"{correction}" is no correction: say right, good or defective')
        if mask is not None and correction in ("", "good"):
            raise ValueError("a defect was drawn in a part that is said to have none: say defective")
        with self.workspace.lock:
            entry = self._existing(id)
            name = entry.mask if correction in ("right", "defective") else ""
            if mask is not None:
                name = f"{entry.token}-{secrets.token_hex(4)}.png"
                files.put(files.mask_path(self._folder, name), files.mask_png(mask))
            said = (correction, time.time(), who, name) if correction else ("", None, "", "")
            self._set_correction(entry, dict(zip(_CORRECTED, said)), "correct", who)
            return self._existing(id)

    def rejudge(self, id: int, record: Record, anomaly_map: np.ndarray, who: str) -> None:
        """Judges an inspection as a record of the same picture does, such as by other limits.

        Args:
            anomaly_map: as for `keep`.
        """
        with self.workspace.lock:
            entry = self._existing(id)
            before, after = ({name: row_of(each)[name] for name in _JUDGED} for each in (entry, record))
            if before == after:
                return
            files.put(files.map_path(self._folder, entry.token), files.half_precision(anomaly_map))
            with self.workspace.writing() as db:
                settings = ", ".join(f"{name} = ?" for name in _JUDGED)
                db.execute(f"UPDATE inspections SET {settings} WHERE id = ?", [*after.values(), id])
                told = [{name: each[name] for name in _JUDGED[:4]} for each in (before, after)]
                events.add(db, who, "rejudge", id, dict(zip(("before", "after"), told)))

    def undo(self, id: int, who: str) -> Entry:
        """Takes back the latest correction; or, if that was taken back already, makes it again.

        Returns:
            The inspection as it is now.

        Raises:
            WorkspaceError: Nobody ever corrected it.
        """
        with self.workspace.lock:
            entry = self._existing(id)
            latest = self.events(id, _CORRECTING, limit=1)
            if not latest:
                raise WorkspaceError(f"nobody corrected inspection {id}: there is nothing to undo")
            self._set_correction(entry, latest[0].detail["before"], "undo", who)
            return self._existing(id)

    def _existing(self, id: int) -> Entry:
        entry = self.get(id)
        if entry is None:
            raise WorkspaceError(f"inspection {id} is not there, or no longer: load the list again")
        return entry

    def _set_correction(self, entry: Entry, after: Mapping[str, Any], action: str, who: str) -> None:
        before = {name: getattr(entry, name) for name in _CORRECTED}
        with self.workspace.writing() as db:
            settings = ", ".join(f"{name} = ?" for name in _CORRECTED)
            values = [after[name] for name in _CORRECTED]
            db.execute(f"UPDATE inspections SET {settings} WHERE id = ?", [*values, entry.id])
            events.add(db, who, action, entry.id, {"before": before, "after": dict(after)})

    def note(self, who: str, action: str, subject: str | int, **detail: Any) -> None:
        """Adds something that was done elsewhere (teaching, a role given) to the events."""
        with self.workspace.writing() as db:
            events.add(db, who, action, subject, detail)

    def events(
        self, subject: str | int | None = None, actions: tuple[str, ...] = (), limit: int | None = 100
    ) -> list[Event]:
        """What was done, the latest first. subject, actions: None or empty for any. limit: None for all."""
        with self.workspace.reading() as db:
            return events.find(db, subject, actions, -1 if limit is None else limit)

    # -----------------------------------------------------------------------------------------------------
    # Removing

    def delete(self, ids: Iterable[int], who: str) -> int:
        """Removes inspections, and pictures that belong to no other one; ids that are gone count as removed
        before.

        Returns:
            How many there were.
        """
        return self._remove(sorted(set(ids)), who, "delete")

    def limit(self, max_bytes: float | None = None, max_age: float | None = None) -> int:
        """Drops the oldest inspections until the rest fit; corrected ones only when no others are left.

        Args:
            max_bytes: of pictures, thumbnails and maps together.
            max_age: s, which corrected inspections may exceed.

        Returns:
            How many were dropped.
        """
        dropped = 0
        with self.workspace.lock:
            if max_age is not None:
                old = self.columns(Filter(correction="", until=time.time() - max_age), "id")
                dropped += self._remove([row[0] for row in old], "", "limit")
            if max_bytes is not None:
                with self.workspace.reading() as db:
                    excess = _excess(db, max_bytes)
                dropped += self._remove(excess, "", "limit")
        return dropped

    def sweep(self, age: float = files.ORPHANED) -> int:
        """Removes files that no inspection names, which a crash left behind.

        Args:
            age: s since they were written, at least; 0 only while nothing is being kept, as after a start.

        Returns:
            How many there were.
        """
        with self.workspace.lock:
            found = list(files.orphans(self._folder, self._names(), age))
            for path in found:
                with suppress(OSError):
                    path.unlink()
        return len(found)

    def _names(self) -> set[str]:
        """Of all files in use."""
        with self.workspace.reading() as db:
            names = {sha256 + suffix for sha256, suffix in db.execute("SELECT sha256, suffix FROM pictures")}
            tokens = {token for (token,) in db.execute("SELECT token FROM inspections")}
            said = events.find(db, None, _CORRECTING, -1)
        drawn = {event.detail[when]["mask"] for event in said for when in ("before", "after")}
        masks = {name for name in drawn if name.partition("-")[0] in tokens}
        return names | masks | {token + end for token in tokens for end in (".webp", ".npy")}

    def _remove(self, ids: Sequence[int], who: str, action: str) -> int:
        removed = 0
        for start in range(0, len(ids), _CHUNK):
            with self.workspace.lock:  # until the files are gone: nobody may keep the same picture meanwhile
                with self.workspace.writing() as db:
                    entries = list(_entries(db, ids[start : start + _CHUNK]))
                    for entry in entries:
                        events.add(db, who, action, entry.id, _remembered(entry))
                        db.execute("DELETE FROM inspections WHERE id = ?", [entry.id])
                    unused = _forget_pictures(db, {entry.sha256 for entry in entries})
                for entry in entries:
                    files.remove(self._folder, entry.token)
                    if entry.sha256 in unused:
                        with suppress(OSError):
                            self.picture_path(entry).unlink()
                removed += len(entries)
        return removed


def _entries(db: sqlite3.Connection, ids: Sequence[int]) -> Iterator[Entry]:
    query = f"SELECT {COLUMNS} {FROM} WHERE id IN ({', '.join('?' * len(ids))})"
    return map(Entry.of_row, db.execute(query, ids).fetchall())


def _remembered(entry: Entry) -> dict[str, Any]:
    """What the events keep of an inspection that is removed."""
    names = ("time", "picture", "sha256", "category", "verdict", "score", "correction")
    return {name: getattr(entry, name) for name in names}


def _forget_pictures(db: sqlite3.Connection, among: Collection[str]) -> set[str]:
    """Those that no inspection names any more."""
    used = "SELECT EXISTS (SELECT 1 FROM inspections WHERE sha256 = ?)"
    unused = {sha256 for sha256 in among if not db.execute(used, [sha256]).fetchone()[0]}
    db.executemany("DELETE FROM pictures WHERE sha256 = ?", [[sha256] for sha256 in unused])
    return unused


def _bytes(db: sqlite3.Connection) -> int:
    """Of all files but the masks."""
    query = "SELECT (SELECT total(bytes) FROM pictures) + (SELECT total(bytes) FROM inspections)"
    return int(db.execute(query).fetchone()[0])


def _excess(db: sqlite3.Connection, max_bytes: float) -> list[int]:
    """Which inspections to drop, in this order, until no more than so many bytes are left."""
    left, chosen = _bytes(db), []
    if left <= max_bytes:
        return []
    uses = dict(db.execute("SELECT sha256, count(*) FROM inspections GROUP BY sha256").fetchall())
    rows = db.execute(
        f"SELECT id, sha256, inspections.bytes, pictures.bytes {FROM} ORDER BY correction != '', time, id"
    )
    for id, sha256, own, shared in rows:
        if left <= max_bytes:
            break
        uses[sha256] -= 1
        left -= own + (shared if not uses[sha256] else 0)
        chosen.append(id)
    return chosen
