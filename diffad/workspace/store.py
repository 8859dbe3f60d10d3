"""The workspace: one folder with a database and the files that its rows name, of one server at a time."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from diffad.output import OutputError, whole
from diffad.workspace.locking import lock as lock_file
from diffad.workspace.schema import APPLICATION, MIGRATIONS

DATABASE, LOCK = "workspace.sqlite", "workspace.lock"
FOLDERS = ("pictures", "thumbnails", "maps", "categories", "models", "jobs")
_PATIENCE = 10.0  # s that a connection waits for another one
_READERS = 16  # at once
_ELSEWHERE = "give another folder with --workspace"
# What SQLite says when a file cannot be written, and the reason in the system's words.
_UNWRITTEN = {
    "database or disk is full": (errno.ENOSPC, "no space left"),
    "attempt to write a readonly database": (errno.EACCES, "it is read-only"),
    "disk I/O error": (errno.EIO, "the disk reports an error"),
}


class WorkspaceError(ValueError):
    """A workspace, or something in it, cannot be used; the message is one sentence that says what to do."""


def default_folder() -> Path:
    """Where a user's workspace lies if no folder is given: DIFFAD_WORKSPACE, else the user's data folder."""
    if given := os.environ.get("DIFFAD_WORKSPACE"):
        return Path(given)
    from platformdirs import user_data_dir

    return Path(user_data_dir("diffad", appauthor=False))


class Workspace:
    """An open workspace; any number of threads may use it.

    Attributes:
        folder: absolute.
        lock: held by whoever changes files and rows together; a thread may take it again.
    """

    def __init__(self, folder: Path, held: BinaryIO | None) -> None:
        """For `open`. held: the locked file; None to read only."""
        self.folder = folder
        self.lock = threading.RLock()
        self._held = held
        self._closed = False
        self._idle: list[sqlite3.Connection] = []
        self._seats = threading.BoundedSemaphore(_READERS)
        self._writer = None if held is None else self._connection()

    @classmethod
    def open(cls, folder: str | Path, lock: bool = True) -> Workspace:
        """Opens the workspace in a folder, and locks it until it is closed, or nobody holds it any more.

        Args:
            folder: made if it is not there, as is all that a workspace consists of.
            lock: False only to read, also while a server uses the workspace; then nothing is made.

        Raises:
            WorkspaceError: Another server uses it, a newer diffad wrote it, the folder cannot be written, or
                its database is none. Without the lock also if there is none, or an older diffad wrote it.
            OutputError: There is no room.
        """
        folder = Path(folder).expanduser().absolute()
        if not lock:
            if not (folder / DATABASE).is_file():
                raise WorkspaceError(f"there is no workspace in {folder}: {_ELSEWHERE}")
            workspace = cls(folder, None)
            try:
                workspace._check_readable()
            except BaseException:
                workspace.close()
                raise
            return workspace
        held = _taken(folder)
        try:
            return cls(folder, held)
        except BaseException:
            held.close()
            raise

    def close(self) -> None:
        """Lets others use it; whoever reads at the moment may finish."""
        with self.lock:
            self._closed = True
            if self._writer is not None:
                self._writer.close()
            self._close_idle()
            if self._held is not None:
                self._held.close()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def writable(self) -> bool:
        return self._writer is not None

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction, one at a time: kept, and safe from a power cut, when the context ends well, else
        undone. Holds the lock. Raises WorkspaceError and OutputError.
        """
        with self.lock, _in_words(self.folder / DATABASE):
            self._check_open()
            if self._writer is None:
                raise WorkspaceError(f"the workspace {self.folder} is open for reading only")
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite may have rolled back by itself
                    self._writer.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The database at one moment, beside all writing. Not to be nested. Raises WorkspaceError."""
        with self._seats, _in_words(self.folder / DATABASE):
            self._check_open()
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = self._reader()
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.execute("ROLLBACK")
                self._idle.append(connection)
                if self._closed:
                    self._close_idle()

    def _check_open(self) -> None:
        if self._closed:
            raise WorkspaceError(f"the workspace {self.folder} is closed: start diffad again")

    def _close_idle(self) -> None:
        with suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _reader(self) -> sqlite3.Connection:
        if self._held is None:
            return _connect(f"{(self.folder / DATABASE).as_uri()}?mode=ro")
        connection = _connect(f"{(self.folder / DATABASE).as_uri()}?mode=rw")
        connection.execute("PRAGMA query_only = ON")
        return connection

    def _check_readable(self) -> None:
        with self.reading() as db:
            version = _version(db, self.folder)
        if version < len(MIGRATIONS):
            raise WorkspaceError(
                f"the workspace {self.folder} was written by an older diffad: start its server once"
            )

    def _connection(self) -> sqlite3.Connection:
        """For writing, with the tables of this version."""
        path = self.folder / DATABASE
        with _in_words(path):
            connection = _connect(f"{path.as_uri()}?mode=rwc")
            try:
                version = _version(connection, self.folder)
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA foreign_keys = ON")
                if 0 < version < len(MIGRATIONS):
                    _copy(connection, self.folder / f"workspace.before-{len(MIGRATIONS)}.sqlite")
                _migrate(connection, version)
            except BaseException:
                connection.close()
                raise
        return connection


def _taken(folder: Path) -> BinaryIO:
    """Makes the folders, and takes the lock."""
    try:
        for name in FOLDERS:
            (folder / name).mkdir(parents=True, exist_ok=True)
        return lock_file(folder / LOCK)
    except BlockingIOError as error:
        raise WorkspaceError(
            f"another diffad server uses the workspace {folder}: stop it, or {_ELSEWHERE}"
        ) from error
    except OSError as error:
        why = error.strerror or error
        raise WorkspaceError(
            f"the workspace {folder} cannot be written ({why}): check the folder, or {_ELSEWHERE}"
        ) from error


def _connect(uri: str) -> sqlite3.Connection:
    """In autocommit, for any thread. uri: of the database, with its mode."""
    return sqlite3.connect(uri, _PATIENCE, isolation_level=None, check_same_thread=False, uri=True)


def _version(connection: sqlite3.Connection, folder: Path) -> int:
    """Of the tables, 0 of an empty database. Raises WorkspaceError if they are newer, or not diffad's."""
    version, application, tables = (
        connection.execute(query).fetchone()[0]
        for query in ("PRAGMA user_version", "PRAGMA application_id", "SELECT count(*) FROM sqlite_master")
    )
    if (version or tables) and application != APPLICATION:
        raise WorkspaceError(_foreign(folder / DATABASE))
    if version > len(MIGRATIONS):
        raise WorkspaceError(
            f"the workspace {folder} was written by a newer diffad: update diffad, or {_ELSEWHERE}"
        )
    return int(version)


def _foreign(path: Path) -> str:
    return f"{path} is no database of diffad: move it away, or {_ELSEWHERE}"


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    """Brings the tables from a version to this one, each step whole or not at all."""
    for number, script in enumerate(MIGRATIONS[version:], version + 1):
        try:
            connection.executescript(f"BEGIN IMMEDIATE;\n{script};\nPRAGMA user_version = {number};\nCOMMIT;")
        except BaseException:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise


def _copy(connection: sqlite3.Connection, path: Path) -> None:
    """Copies the database into a file, which is whole or not there."""
    with whole(path) as partial, closing(sqlite3.connect(partial)) as copy:
        connection.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")  # all in the one file


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    """What SQLite reports about the database becomes a sentence."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        said = str(error)
        for words, (number, reason) in _UNWRITTEN.items():
            if words in said:
                raise OutputError(path, OSError(number, reason)) from error
        if "is not a database" in said:
            raise WorkspaceError(_foreign(path)) from error
        if "malformed" in said:
            raise WorkspaceError(f"{path} is damaged: put a backup in its place, or {_ELSEWHERE}") from error
        if "unable to open" in said:
            raise WorkspaceError(f"{path} cannot be opened: check the folder, or {_ELSEWHERE}") from error
        if "is locked" in said:
            raise WorkspaceError(f"another program keeps {path} busy: close it and try again") from error
        raise
