"""How long uploads, results and batches are kept, how much room they get, and what killed servers leave.
The tests set the clock.
"""

from __future__ import annotations

import os
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

from diffad.inspector import Inspector
from diffad.pictures import intake
from diffad.pictures.reading import DataError
from diffad.ui import files
from diffad.ui.batch import Run
from diffad.ui.files import HOUR, PREFIX, Storage
from diffad.ui.turns import Turns

SAMPLES = Path(__file__).parents[1] / "assets" / "samples"
MB = 2**20


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`clock.ahead` seconds are added to the time."""
    clock = SimpleNamespace(ahead=0.0)
    monkeypatch.setattr(files, "clock", lambda: time.time() + clock.ahead)
    return clock


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "parent", 10 * MB)


def a_run(storage: Storage, inspector: Inspector, pictures: list[Path], **settings) -> Run:
    folder = storage.batch_folder()
    found = intake.sources(pictures, folder / "pictures", claim=storage.make_room)
    usual = {"alpha": 0.5, "timesteps": inspector.timesteps, "category": "gear"} | settings
    run = Run("parts", inspector, found, folder, usual, Turns(), storage)
    storage.runs[run.id] = run
    return run


def ended(run: Run) -> Run:
    for _ in range(6000):
        if run.finished:
            return run
        time.sleep(0.02)
    raise AssertionError(f"the run is still {run.state}")


def folders(storage: Storage) -> int:
    return len(list(storage.batches.iterdir()))


def test_files_go_six_hours_after_their_last_use(storage: Storage, clock):
    old, used = (Path(storage.keep(name.encode(), f"{name}.png")) for name in ("old", "used"))
    clock.ahead = 5 * HOUR
    storage.sweep()
    assert old.exists()
    assert storage.find(str(used), None) == used
    os.utime(used, (time.time() + clock.ahead,) * 2)  # the file system's clock has not moved
    clock.ahead = 6 * HOUR + 60
    storage.sweep()
    assert not old.exists() and not old.parent.exists() and used.exists()


def test_a_finished_batch_goes_six_hours_after_its_last_use(storage: Storage, inspector: Inspector, clock):
    uploaded = Path(storage.keep((SAMPLES / "gear_good.png").read_bytes(), "gear.png"))
    run = ended(a_run(storage, inspector, [uploaded]))
    assert run.state == "done" and run.rows[0].result
    clock.ahead = 5 * HOUR
    run.used = files.clock()  # somebody asks about it
    clock.ahead = 7 * HOUR
    storage.sweep()
    assert run.id in storage.runs and folders(storage) == 1
    assert uploaded.exists(), "a click on its row would show nothing"
    clock.ahead = 12 * HOUR
    storage.sweep()
    assert run.id not in storage.runs and folders(storage) == 0
    storage.sweep()
    assert not uploaded.exists()


def test_a_running_batch_never_goes(storage: Storage, inspector: Inspector, clock):
    uploaded = Path(storage.keep((SAMPLES / "gear_good.png").read_bytes(), "gear.png"))
    turns = Turns()
    folder = storage.batch_folder()
    settings = {"alpha": 0.5, "timesteps": inspector.timesteps}
    with turns.of("somebody else")():
        run = Run("parts", inspector, intake.sources([uploaded], folder), folder, settings, turns, storage)
        storage.runs[run.id] = run
        clock.ahead = 100 * HOUR
        storage.sweep()
        with pytest.raises(DataError):
            storage.make_room(11 * MB)
        assert run.id in storage.runs and folder.exists() and uploaded.exists()
    assert ended(run).state == "done"
    assert run.used > time.time() + 99 * HOUR  # it counts from its end


def test_the_oldest_that_is_finished_makes_room_and_then_there_is_a_sentence(
    storage: Storage, inspector: Inspector, clock, tmp_path: Path
):
    archive = tmp_path / "day.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("noise.png", os.urandom(3 * MB))  # no picture, so that its row comes at once
    first, second = (ended(a_run(storage, inspector, [archive])) for _ in range(2))
    first.used += 60  # looked at since
    third = ended(a_run(storage, inspector, [archive]))
    assert set(storage.runs) == {first.id, second.id, third.id}
    clock.ahead = 20  # measured anew
    fourth = ended(a_run(storage, inspector, [archive]))
    assert set(storage.runs) == {first.id, third.id, fourth.id} and folders(storage) == 3
    assert fourth.rows[0].error
    with pytest.raises(DataError, match=r"the 0.00977 GB .* are taken: wait until .* --max-storage"):
        storage.make_room(11 * MB)


def test_what_others_have_just_sent_does_not_make_room(storage: Storage, clock):
    sent = Path(storage.keep(b"0" * 6 * MB, "sent.png"))
    with pytest.raises(gr.Error, match="are taken"):
        storage.keep(b"1" * 6 * MB, "more.png")
    assert sent.exists()
    clock.ahead = 2 * HOUR
    with storage.using([str(sent)]), pytest.raises(gr.Error, match="are taken"):
        storage.keep(b"1" * 6 * MB, "more.png")
    assert Path(storage.keep(b"1" * 6 * MB, "more.png")).exists() and not sent.exists()


def test_a_batch_without_room_for_its_maps_says_so_in_its_rows(storage: Storage, inspector: Inspector):
    storage.keep(b"0" * (10 * MB - 1000), "full.png")
    run = ended(a_run(storage, inspector, [SAMPLES / "gear_good.png"]))
    assert "could not be stored: the 0.00977 GB" in run.rows[0].error and run.state == "done"


def test_a_zip_is_refused_while_it_is_unpacked(storage: Storage, inspector: Inspector, tmp_path: Path):
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("noise.png", b"0" * 40 * MB)
    with pytest.raises(DataError, match="are taken"):
        a_run(storage, inspector, [archive])
    written = sum(path.stat().st_size for path in storage.root.rglob("*") if path.is_file())
    assert written <= 10 * MB


def test_what_killed_servers_left_goes_after_a_day_and_nothing_else(tmp_path: Path, monkeypatch):
    dead, living, other = (tmp_path / name for name in (f"{PREFIX}dead", f"{PREFIX}living", "somebodys"))
    for folder in (dead, living, other):
        (folder / "files").mkdir(parents=True)
        (folder / "files" / "a.png").write_bytes(b"0")
        os.utime(folder, (time.time() - 25 * HOUR,) * 2)
    (tmp_path / f"{PREFIX}link").symlink_to(other)
    os.utime(living)
    Storage(tmp_path, MB)
    assert not dead.exists()
    assert all((folder / "files" / "a.png").exists() for folder in (living, other))

    if hasattr(os, "getuid"):
        (dead / "files").mkdir(parents=True)
        os.utime(dead, (time.time() - 25 * HOUR,) * 2)
        monkeypatch.setattr(os, "getuid", lambda: -1)
        Storage(tmp_path, MB)
        assert dead.exists(), "it is somebody else's"


def test_a_living_server_says_so_and_leaves_nothing_at_its_end(storage: Storage, inspector: Inspector):
    os.utime(storage.root, (time.time() - 25 * HOUR,) * 2)
    storage.sweep()
    other = Storage(storage.root.parent, MB)
    assert storage.root.exists()
    run = ended(a_run(storage, inspector, [SAMPLES / "gear_good.png"]))
    storage.close()
    other.close()
    assert not list(storage.root.parent.iterdir()) and run.finished
