"""What is kept is found again whole, corrected without forgetting, and dropped in the right order."""

from __future__ import annotations

import csv
import io
import json
import os
import time
import zipfile

import numpy as np
import pytest
from PIL import Image
from workspace_cases import DAY, MAP, START, THUMBNAIL, keep, png, record

from diffad import verdicts
from diffad.output import OutputError
from diffad.workspace import export
from diffad.workspace.history import History
from diffad.workspace.queries import Filter
from diffad.workspace.record import VERDICTS, Record, is_defective, suffix_of
from diffad.workspace.store import Workspace, WorkspaceError


@pytest.fixture(autouse=True, scope="module")
def no_power_cuts():
    """Here nobody waits for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture
def history(tmp_path):
    with Workspace.open(tmp_path) as workspace:
        yield History(workspace)


def stored(history: History) -> list[str]:
    """The files of inspections, by folder and suffix."""
    folders = (history.workspace.folder / name for name in ("pictures", "thumbnails", "maps"))
    paths = [path for folder in folders for path in folder.glob("*/*")]
    return sorted(f"{path.parents[1].name}{path.suffix}" for path in paths)


# ---------------------------------------------------------------------------------------------------------
# Keeping


def test_an_inspection_is_found_again_as_it_was_kept(history):
    given = record(
        picture="Ä bolt.PNG", verdict="anomalous", score=7.25, rate=0.02, model_version="3", time=START + 0.5,
        settings={"alpha": 0.5, "timesteps": [50, 150], "tile": None},
        regions=[{"box": [1, 2, 3, 4], "peak": 9.5}], notes=["Dark.", "Blurred."],
        quality={"brightness": 120.5}, seconds=0.75, source="watch", who="anna",
    )  # fmt: skip
    id = history.keep(given, png(7), THUMBNAIL, MAP)
    entry = history.get(id)
    assert {name: getattr(entry, name) for name in vars(given)} == vars(given)
    assert (entry.id, entry.correction, entry.corrected_at, entry.suffix) == (id, "", None, ".png")
    assert history.picture_path(entry).read_bytes() == png(7)
    assert history.picture_path(entry).parent.name == entry.sha256[:2]
    assert np.allclose(history.anomaly_map(entry), MAP, atol=0.005) and history.mask_path(entry) is None
    with Image.open(history.thumbnail_path(entry)) as thumbnail:
        assert np.abs(np.array(thumbnail, float) - THUMBNAIL).max() <= 3
    assert json.loads(json.dumps(entry.to_dict()))["regions"] == given.regions
    assert history.get(id + 1) is None


def test_an_inspections_own_words_are_kept():
    result = {
        "category": "gear", "verdict": "look", "score": np.float32(4), "threshold": 5.0, "rate": 0.01,
        "look_threshold": 3.5, "seconds": 0.5, "notes": ["Dark."], "alpha": 0.25, "timesteps": [50],
        "seed": 3, "tile": None,
        "regions": [{"box": [100, 50, 40, 100], "area": 9, "peak": 6.0, "mean": 5.0}],
    }  # fmt: skip
    kept = Record.of(result, (400, 200), "a.png", "parts", source="api", settings={"draws": 4})
    assert kept.settings == {"alpha": 0.25, "timesteps": [50], "seed": 3, "tile": None, "draws": 4}
    assert kept.regions[0]["where"] == [0.3, 0.5] and kept.regions[0]["extent"] == [0.1, 0.5]
    assert (kept.verdict, kept.score, kept.notes, kept.source) == ("look", 4, ["Dark."], "api")
    assert set(VERDICTS) == set(verdicts.VERDICTS)


@pytest.mark.parametrize("wrong, told", [
    ({"verdict": "bad"}, '"bad" is no verdict: give one of good, look, anomalous'),
    ({"source": "mail"}, '"mail" is no source'),
    ({"score": float("nan")}, "the score of part.png is no number"),
])  # fmt: skip
def test_what_no_inspection_says_is_refused(wrong, told):
    with pytest.raises(ValueError, match=told):
        record(**wrong)


def test_an_infinite_limit_is_kept(history):
    entry = history.get(keep(history, threshold=float("inf")))
    assert entry.threshold == float("inf")
    assert json.loads(export.json_text([entry]))["inspections"][0]["threshold"] is None


def test_equal_pictures_are_stored_once_until_the_last_is_gone(history):
    first, second, other = (
        keep(history, grey=grey, picture=name) for grey, name in ((1, "a.png"), (1, "b.PNG"), (2, "c.png"))
    )
    assert stored(history).count("pictures.png") == 2 and stored(history).count("maps.npy") == 3
    assert history.counts().bytes == sum(
        path.stat().st_size for path in history.workspace.folder.glob("*/*/*")
    )
    history.delete([first], "anna")
    assert history.picture_path(history.get(second)).read_bytes() == png(1)
    assert history.delete([second, other, 999], "anna") == 2
    assert stored(history) == [] and history.find() == ([], 0) and history.counts().bytes == 0
    assert keep(history, grey=1) == other + 1  # an id is never given twice


@pytest.mark.parametrize("name, suffix", [
    ("a.PNG", ".png"), ("a.tar.gz", ".gz"), ("a", ""), ("a.ü", ""), ("a.b/../c", ""), (".png", ""),
    ("a.png\0", ""), ("a." + "x" * 99, ""), ("a.x y", ""),
])  # fmt: skip
def test_only_a_harmless_suffix_reaches_the_disk(name, suffix):
    assert suffix_of(name) == suffix


def test_names_that_are_no_unicode_are_kept(history, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    path = tmp_path / "x.png"
    path.write_bytes(png(3))
    id = history.keep(record(picture=name), path, THUMBNAIL, MAP)
    assert history.get(id).picture == "caf\\udce9.png"
    assert history.find(Filter(text=name))[1] == 1
    assert history.picture_path(history.get(id)).read_bytes() == png(3)


def test_a_disk_that_takes_no_picture_keeps_no_row_and_no_file(history, monkeypatch):
    keep(history, grey=1)
    before = stored(history)

    def full(path, data):
        raise OSError(28, "No space left on device")

    for number in range(3):  # at the thumbnail, the map, the picture
        calls, whole = iter(range(9)), history.keep.__globals__["files"].write
        monkeypatch.setattr(
            "diffad.workspace.files.write",
            lambda path, data, n=number, calls=calls, whole=whole: (
                full(path, data) if next(calls) == n else whole(path, data)
            ),
        )
        with pytest.raises(OSError):
            keep(history, grey=2)
        monkeypatch.undo()
        assert history.find()[1] == 1 and stored(history) == before
    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OutputError, match=r"\.webp could not be written: the disk is full; free some space"):
        keep(history, grey=2)


def test_what_a_crash_left_behind_is_swept(history):
    id = keep(history)
    history.correct(id, "defective", "", np.ones((4, 4)))
    history.correct(id, "good", "")  # the mask may come back
    entry, whole = history.get(id), stored(history)
    for kind, name in (
        ("pictures", "0" * 64 + ".png"),
        ("maps", f"{entry.token}-0.png"),
        ("maps", ".x.partial"),
    ):
        folder = history.workspace.folder / kind / entry.token[:2]
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"half")
    assert history.sweep() == 0  # they might be being kept at the moment
    assert history.sweep(age=0) == 3
    assert stored(history) == whole
    assert history.mask_path(history.undo(id, "")).is_file()


# ---------------------------------------------------------------------------------------------------------
# Correcting


def test_a_correction_is_kept_with_what_was_said_before(history):
    id = keep(history, verdict="anomalous")
    before = time.time()
    history.correct(id, "right", "anna")
    entry = history.correct(id, "good", "ben")
    assert (entry.correction, entry.corrected_by) == ("good", "ben") and entry.corrected_at >= before
    latest, first = history.events(id)
    assert (latest.who, latest.action, latest.subject) == ("ben", "correct", str(id))
    assert latest.detail["before"]["correction"] == "right" and latest.detail["after"]["correction"] == "good"
    assert first.detail["before"] == {
        "correction": "", "corrected_at": None, "corrected_by": "", "mask": ""
    }  # fmt: skip


def test_undoing_takes_one_correction_back_and_undoing_again_makes_it_again(history):
    id = keep(history)
    history.correct(id, "right", "anna")
    said = history.correct(id, "defective", "ben", np.eye(5))
    undone = history.undo(id, "carl")
    assert (undone.correction, undone.corrected_by, undone.mask) == ("right", "anna", "")
    assert history.undo(id, "carl") == said
    actions = [event.action for event in history.events(id)]
    assert actions == ["undo", "undo", "correct", "correct"]
    with pytest.raises(WorkspaceError, match="nobody corrected inspection 2: there is nothing to undo"):
        history.undo(keep(history), "carl")


def test_a_drawn_defect_is_kept_as_long_as_the_part_is_defective(history):
    id, drawn = keep(history), np.zeros((20, 30), bool)
    drawn[3:5, 7] = True
    history.correct(id, "defective", "anna", drawn)
    again = history.correct(id, "defective", "ben")  # without drawing anew
    with Image.open(history.mask_path(again)) as mask:
        assert np.array_equal(np.array(mask), drawn * 255) and mask.mode == "L"
    assert history.correct(id, "good", "ben").mask == ""
    history.delete([id], "ben")
    assert stored(history) == []


@pytest.mark.parametrize("correction, mask, told", [
    ("bad", None, '"bad" is no correction: say right, good or defective'),
    ("good", np.ones((2, 2)), "a defect was drawn in a part that is said to have none"),
    ("defective", np.ones(4), r"a mask of shape \(4,\) is none"),
])  # fmt: skip
def test_a_correction_that_makes_no_sense_changes_nothing(history, correction, mask, told):
    id = keep(history)
    with pytest.raises(ValueError, match=told):
        history.correct(id, correction, "anna", mask)
    assert history.get(id).correction == "" and history.events() == [] and len(stored(history)) == 3
    with pytest.raises(WorkspaceError, match="inspection 77 is not there, or no longer: load the list again"):
        history.correct(77, "good", "anna")


@pytest.mark.parametrize("verdict, correction, is_bad", [
    ("good", "", None), ("good", "right", False), ("anomalous", "right", True), ("look", "right", None),
    ("anomalous", "good", False), ("good", "defective", True), ("look", "defective", True),
])  # fmt: skip
def test_what_a_correction_says_of_the_part(verdict, correction, is_bad):
    assert is_defective(verdict, correction) is is_bad


def test_everything_done_is_told(history):
    id = keep(history, score=3.0)
    history.delete([id], "anna")
    history.note("ben", "teach", "gear", pictures=20)
    taught, deleted = history.events()
    assert (taught.who, taught.action, taught.subject, taught.detail) == (
        "ben",
        "teach",
        "gear",
        {"pictures": 20},
    )
    assert (deleted.who, deleted.subject, deleted.detail["score"]) == ("anna", str(id), 3.0)
    assert history.events(actions=("delete",)) == [deleted] and history.events(limit=1) == [taught]


# ---------------------------------------------------------------------------------------------------------
# Limits


@pytest.fixture
def aged(history):
    """Six inspections, one a day until an hour ago; the first and the fourth are corrected. Pictures 2 and 6
    are the same.
    """
    now = time.time() - 3600
    for number, grey in enumerate((1, 2, 3, 4, 5, 2)):
        keep(history, grey=grey, time=now - DAY * (5 - number))
    history.correct(1, "right", "anna")
    history.correct(4, "good", "anna")
    return history


def left(history: History) -> list[int]:
    return [entry.id for entry in history.find(descending=False)[0]]


def test_old_inspections_are_dropped_unless_corrected(aged):
    assert aged.limit(max_age=9 * DAY) == 0
    assert aged.limit(max_age=2.5 * DAY) == 2 and left(aged) == [1, 4, 5, 6]
    assert [event.action for event in aged.events(2)] == ["limit"]
    assert aged.limit(max_age=0) == 2 and left(aged) == [1, 4]


def test_the_oldest_make_room_and_corrected_ones_last(aged):
    full = aged.counts().bytes
    assert aged.limit(max_bytes=full) == 0
    assert aged.limit(max_bytes=full - 1) == 1 and left(aged) == [1, 3, 4, 5, 6]
    own = aged.columns(Filter(), "bytes")[0][0]
    assert aged.counts().bytes == full - own  # the picture is still the sixth's
    for expected in ([1, 4, 5, 6], [1, 4, 6], [1, 4], [4], []):
        assert aged.limit(max_bytes=aged.counts().bytes - 1) == 1 and left(aged) == expected
    assert stored(aged) == []


# ---------------------------------------------------------------------------------------------------------
# Taking away


def test_a_spreadsheet_finds_no_formula(history):
    for name in ("=1+1.png", "+a", "-b", "@c", "  =d", "\te", "plain.png"):
        keep(history, picture=name, verdict="look", regions=[{}, {}], notes=["One.", "Two."])
    entries = history.find(descending=False)[0]
    text = export.csv_file(entries).decode("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text)))
    shown = ["'=1+1.png", "'+a", "'-b", "'@c", "'  =d", "'\te", "plain.png"]
    assert [row["picture"] for row in rows] == shown
    assert {(row["regions"], row["notes"], row["score"]) for row in rows} == {("2", "One. Two.", "1.5")}
    assert rows[0]["time"] == "2026-09-21 14:13:20+00:00"


def test_a_zip_file_holds_everything(history):
    first = keep(history, grey=1, picture="../../evil.png")
    second = keep(history, grey=2)
    history.correct(first, "defective", "anna", np.ones((3, 3)))
    entries = history.find(descending=False)[0]
    history.thumbnail_path(entries[1]).unlink()
    buffer = io.BytesIO()
    assert export.write_zip(buffer, history, entries, diffad="1") == [f"thumbnails/{second}.webp"]
    with zipfile.ZipFile(buffer) as archive:
        assert sorted(archive.namelist()) == [
            "history.csv", "history.json", "maps/1.npy", "maps/2.npy", "masks/1.png", "pictures/1.png",
            "pictures/2.png", "thumbnails/1.webp",
        ]  # fmt: skip
        assert archive.read("pictures/2.png") == png(2)
        told = json.loads(archive.read("history.json"))
    assert told["diffad"] == "1" and [each["correction"] for each in told["inspections"]] == ["defective", ""]
