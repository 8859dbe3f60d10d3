"""A workspace belongs to one server, is refused in a sentence, and is brought to this version whole."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from workspace_cases import keep

from diffad.output import OutputError
from diffad.workspace import store
from diffad.workspace.history import History
from diffad.workspace.queries import Filter
from diffad.workspace.schema import MIGRATIONS
from diffad.workspace.store import Workspace, WorkspaceError, default_folder

TESTS = Path(__file__).parent
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS)))}
posix = pytest.mark.skipif(os.name != "posix", reason="limits and users of a process are POSIX's")
VERSION = len(MIGRATIONS)
HOLDING = """
import sys
from workspace_cases import keep
from diffad.workspace.history import History
from diffad.workspace.store import Workspace
history = History(Workspace.open(sys.argv[1]))
keep(history)
print("open", flush=True)
sys.stdin.read()
"""


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(argv, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)


def pragma(folder: Path, name: str) -> object:
    with closing(sqlite3.connect(folder / "workspace.sqlite")) as db:
        return db.execute(f"PRAGMA {name}").fetchone()[0]


def test_a_folder_becomes_a_workspace(tmp_path):
    folder = tmp_path / "new" / "one"
    with Workspace.open(folder) as workspace, workspace.writing() as db:
        assert workspace.folder == folder and workspace.writable
        settings = {
            name: db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys", "user_version", "busy_timeout")
        }
    assert settings == {
        "journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "user_version": VERSION,
        "busy_timeout": 10_000,
    }  # fmt: skip
    names = ["categories", "jobs", "maps", "models", "pictures", "thumbnails"]
    assert sorted(os.listdir(folder)) == [*names, "workspace.lock", "workspace.sqlite"]


def test_the_default_folder_is_the_users(monkeypatch, tmp_path):
    monkeypatch.delenv("DIFFAD_WORKSPACE", raising=False)
    monkeypatch.setattr("platformdirs.user_data_dir", lambda name, **_: str(tmp_path / name))
    assert default_folder() == tmp_path / "diffad"


def test_a_second_server_is_refused_until_the_first_ends(tmp_path):
    argv = [sys.executable, "-c", HOLDING, str(tmp_path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT) as first:
        assert first.stdout.readline() == b"open\n"
        with pytest.raises(WorkspaceError) as refused:
            Workspace.open(tmp_path)
        assert str(refused.value) == (
            f"another diffad server uses the workspace {tmp_path}: stop it, or give another folder with "
            "--workspace"
        )
        first.kill()
        first.wait()
    with Workspace.open(tmp_path, lock=False) as other:  # what the first one left behind
        assert History(other).counts().total == 1
    Workspace.open(tmp_path).close()


def test_a_workspace_is_read_beside_its_server(tmp_path):
    with Workspace.open(tmp_path) as server:
        first = keep(History(server))
        with Workspace.open(tmp_path, lock=False) as other:
            history = History(other)
            assert [entry.id for entry in history.find()[0]] == [first]
            second = keep(History(server), grey=1)
            assert history.find()[1] == 2 and not other.writable
            for write in (lambda: history.delete([second], ""), lambda: keep(history, grey=2)):
                with pytest.raises(WorkspaceError, match="is open for reading only"):
                    write()
            assert history.find()[1] == 2
    with Workspace.open(tmp_path, lock=False) as other:  # and without one
        assert History(other).find()[1] == 2


def test_only_a_workspace_is_read(tmp_path):
    with pytest.raises(WorkspaceError, match=r"there is no workspace in .*absent: give another folder with"):
        Workspace.open(tmp_path / "absent", lock=False)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("lock", [True, False])
def test_a_newer_workspace_is_refused_and_left_as_it_is(tmp_path, lock):
    with Workspace.open(tmp_path) as workspace, workspace.writing() as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
    before = (tmp_path / "workspace.sqlite").read_bytes()
    for _ in range(2):  # a refused one is not locked
        with pytest.raises(WorkspaceError, match="was written by a newer diffad: update diffad, or give"):
            Workspace.open(tmp_path, lock)
    assert (tmp_path / "workspace.sqlite").read_bytes() == before


@pytest.mark.parametrize("content", [b"no database at all" * 100, None], ids=["text", "another program's"])
@pytest.mark.parametrize("lock", [True, False])
def test_what_is_no_database_of_diffad_is_refused_and_left_as_it_is(tmp_path, content, lock):
    path = tmp_path / "workspace.sqlite"
    if content is None:
        with closing(sqlite3.connect(path)) as db:
            db.executescript("CREATE TABLE guests (name TEXT); PRAGMA user_version = 1;")
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(WorkspaceError, match=r"workspace\.sqlite is no database of diffad: move it away, or"):
        Workspace.open(tmp_path, lock)
    assert path.read_bytes() == before


def test_a_damaged_database_is_told_in_a_sentence(tmp_path):
    with Workspace.open(tmp_path) as workspace:
        for grey in range(40):
            keep(History(workspace), grey)
    path = tmp_path / "workspace.sqlite"
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xa5" * (len(data) - 4096))
    with pytest.raises(WorkspaceError, match=r"workspace\.sqlite is damaged: put a backup in its place, or"):
        with Workspace.open(tmp_path) as workspace:
            History(workspace).find(Filter(text="part"))


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        WorkspaceError, match=r"the workspace .*file cannot be written \(.*\): check the folder"
    ):
        Workspace.open(tmp_path / "file")


@posix
def test_a_folder_that_is_not_the_users_is_refused(tmp_path):
    """By a process that may not write there, whoever runs the tests."""
    Workspace.open(tmp_path / "theirs").close()
    code = """
import os, sys
from diffad.workspace.store import Workspace
os.chdir(sys.argv[1])
if os.geteuid() == 0: os.seteuid(65534)
else: os.chmod("theirs", 0o500)
Workspace.open("theirs")
"""
    done = run(code, tmp_path)
    (tmp_path / "theirs").chmod(0o700)
    last = done.stderr.splitlines()[-1]
    assert "WorkspaceError: the workspace " in last and "cannot be written (Permission denied): check" in last


@posix
def test_a_full_disk_is_told_and_what_was_kept_stays(tmp_path):
    """No file may grow beyond 300 KB, which the database reaches first."""
    code = """
import resource, signal, sys
from workspace_cases import keep
from diffad.output import OutputError
from diffad.workspace.history import History
from diffad.workspace.store import Workspace
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
history = History(Workspace.open(sys.argv[1]))
try:
    while True: print(keep(history, notes=["n" * 20_000]), flush=True)
except OutputError as error: print(error)
try: keep(history, notes=["n" * 20_000])
except OutputError as error: print(error)
print(history.find()[1])
"""
    done = run(code, tmp_path)
    *ids, first, second, total = done.stdout.splitlines()
    assert done.returncode == 0 and len(ids) >= 5, done.stderr
    assert int(total) == len(ids)
    for sentence in (first, second):
        assert sentence.startswith(f"{tmp_path / 'workspace.sqlite'} could not be written: ")
    with Workspace.open(tmp_path) as workspace:
        history = History(workspace)
        assert [str(entry.id) for entry in history.find(descending=False)[0]] == ids
        assert history.sweep(0) == 0  # nothing was left behind
        keep(history)


@pytest.mark.parametrize("said, told", [
    ("database or disk is full", "could not be written: the disk is full; free some space"),
    ("attempt to write a readonly database", "could not be written: it is read-only; check the folder"),
    ("disk I/O error", "could not be written: the disk reports an error; check"),
])  # fmt: skip
def test_sqlites_words_become_sentences(tmp_path, said, told):
    with Workspace.open(tmp_path) as workspace:
        with pytest.raises(OutputError, match=told), workspace.writing():
            raise sqlite3.OperationalError(said)
        keep(History(workspace))  # and it goes on


def test_a_transaction_is_whole_or_not_at_all(tmp_path):
    with Workspace.open(tmp_path) as workspace:
        history = History(workspace)
        with pytest.raises(KeyboardInterrupt), workspace.writing() as db:
            db.execute("INSERT INTO pictures VALUES ('0', '', 1)")
            raise KeyboardInterrupt
        assert history.counts().bytes == 0
        with workspace.writing() as db:
            db.execute("INSERT INTO pictures VALUES ('0', '', 1)")
        assert history.counts().bytes == 1


def test_an_older_workspace_is_copied_and_brought_to_this_version(tmp_path, monkeypatch):
    with Workspace.open(tmp_path) as workspace:
        first = keep(History(workspace))
    more = ("ALTER TABLE pictures ADD COLUMN seen REAL", "UPDATE pictures SET seen = 7")
    monkeypatch.setattr(store, "MIGRATIONS", (*MIGRATIONS, *more))
    with pytest.raises(WorkspaceError, match="was written by an older diffad: start its server once"):
        Workspace.open(tmp_path, lock=False)
    with Workspace.open(tmp_path) as workspace:
        assert History(workspace).get(first).picture == "part.png"
        with workspace.reading() as db:
            assert db.execute("SELECT seen FROM pictures").fetchall() == [(7.0,)]
    assert pragma(tmp_path, "user_version") == VERSION + 2
    copy = tmp_path / f"workspace.before-{VERSION + 2}.sqlite"
    with closing(sqlite3.connect(copy)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (VERSION,)
        assert db.execute("SELECT id, picture FROM inspections").fetchall() == [(first, "part.png")]
    beside = {copy.name, "workspace.lock", "workspace.sqlite", *store.FOLDERS}
    assert set(os.listdir(tmp_path)) == beside


def test_a_step_that_fails_leaves_the_version_before_it(tmp_path, monkeypatch):
    Workspace.open(tmp_path).close()
    more = ("CREATE TABLE one (a)", "CREATE TABLE two (a); INSERT INTO nowhere VALUES (1)")
    monkeypatch.setattr(store, "MIGRATIONS", (*MIGRATIONS, *more))
    with pytest.raises(sqlite3.OperationalError, match="nowhere"):
        Workspace.open(tmp_path)
    with closing(sqlite3.connect(tmp_path / "workspace.sqlite")) as db:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert "one" in tables and "two" not in tables
    assert pragma(tmp_path, "user_version") == VERSION + 1
    monkeypatch.setattr(store, "MIGRATIONS", (*MIGRATIONS, more[0], "CREATE TABLE two (a)"))
    Workspace.open(tmp_path).close()
    assert pragma(tmp_path, "user_version") == VERSION + 2


def test_a_closed_workspace_says_so(tmp_path):
    workspace = Workspace.open(tmp_path)
    history = History(workspace)
    keep(history)
    workspace.close()
    workspace.close()
    for use in (history.counts, lambda: keep(history)):
        with pytest.raises(WorkspaceError, match="is closed"):
            use()
    assert not (tmp_path / "workspace.sqlite-wal").exists()


def test_more_readers_than_seats_wait_for_one_another(tmp_path):
    with Workspace.open(tmp_path) as workspace:
        history, found = History(workspace), []
        keep(history)
        threads = [threading.Thread(target=lambda: found.append(history.find()[1])) for _ in range(120)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [1] * 120
