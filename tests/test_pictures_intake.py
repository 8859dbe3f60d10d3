"""Folders and archives that people give: what is taken of them, and what never is."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest
from red_pictures import category, judged, picture, zipped

from diffad.pictures import intake
from diffad.pictures.reading import DataError
from diffad.pictures.samples import find_samples


# Where pictures come from
def test_each_picture_has_a_name_of_its_own(tmp_path):
    files = [picture(tmp_path / place) for place in ("a/1.png", "b/1.png", "c/2.png")]
    (tmp_path / "notes.txt").write_text("no picture")
    found = intake.sources([*files, tmp_path / "notes.txt"], tmp_path / "unpacked")
    assert list(found) == ["1.png", "1 (2).png", "2.png", "notes.txt"]  # taken, whatever it is
    assert [sample.image for sample in found.values()][:3] == files


def test_folders_are_searched_through_in_natural_order(tmp_path):
    for place in ("10.png", "2.png", "deep/er/1.png", ".hidden/1.png", "__MACOSX/2.png", "test/5.png"):
        picture(tmp_path / "day" / place)
    (tmp_path / "day/readme.txt").touch()
    found = intake.sources([tmp_path / "day"], tmp_path / "unpacked")
    assert list(found) == ["2.png", "10.png", "deep/er/1.png", "test/5.png"]
    assert all(sample.is_anomalous is None for sample in found.values())


@pytest.mark.parametrize("as_zip", [False, True])
def test_an_mvtec_tree_gives_its_test_pictures_with_labels_and_masks(tmp_path, as_zip):
    root = category(tmp_path / "line" / "nut")
    source = tmp_path / "line"
    if as_zip:
        files = sorted(path for path in root.rglob("*.png"))
        source = zipped(tmp_path / "line.zip", {str(f.relative_to(tmp_path)): f.read_bytes() for f in files})
    found = intake.sources([source], tmp_path / "unpacked")
    prefix = "line/nut" if as_zip else "nut"
    dent, good = (f"{prefix}/test/{defect}" for defect in ("dent", "good"))
    assert list(found) == [f"{dent}/{i}.png" for i in range(3)] + [f"{good}/{i}.png" for i in range(2)]
    assert [sample.is_anomalous for sample in found.values()] == [True] * 3 + [False] * 2
    assert [sample.mask is not None for sample in found.values()] == [True, True, False, False, False]
    assert {sample.category for sample in found.values()} == {"nut"}


def test_a_folder_that_may_not_be_read_is_a_row_that_says_so(tmp_path, locked):
    root = tmp_path / "day"
    for place in ("1.png", "am/2.png", "am/locked/3.png", "pm/4.png"):
        picture(root / place)
    rows, _ = judged(intake.sources([root], tmp_path / "u"))
    assert [row.name for row in rows] == ["1.png", "am/2.png", "am/locked", "pm/4.png"]
    assert [row.error for row in rows if row.error] == ["am/locked may not be read: check its permissions"]
    category(root / "nut")
    picture(root / "nut" / "test" / "locked" / "5.png")
    rows, _ = judged(intake.sources([root], tmp_path / "u"))  # not as if it were no test set
    assert [row.name for row in rows if row.error] == ["am/locked", "nut"]
    assert not any("train" in row.name or "ground_truth" in row.name for row in rows)
    with pytest.raises(DataError, match="locked may not be read"):
        intake.sources([root / "am" / "locked"], tmp_path / "u")


def test_categories_are_found_beside_a_folder_that_may_not_be_read(tmp_path, locked, caplog):
    category(tmp_path / "nut")
    picture(tmp_path / "locked" / "1.png")
    assert {sample.category for sample in find_samples(tmp_path)} == {"nut"}
    assert "locked may not be read and is left out" in caplog.text
    picture(tmp_path / "nut" / "test" / "locked" / "5.png")
    with pytest.raises(DataError, match=r"test.locked may not be read"):  # of a category nothing is left out
        find_samples(tmp_path)


def test_no_picture_at_all_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures in empty"):
        intake.sources([tmp_path / "empty"], tmp_path / "unpacked")


def test_an_archive_gives_pictures_and_nothing_else(tmp_path):
    data = picture(tmp_path / "1.png").read_bytes()
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    source = zipped(tmp_path / "day.zip", {
        "day/1.png": data, "day/sub/2.png": data, "__MACOSX/day/._1.png": data, "day/.3.png": data,
        "day/run.sh": b"#!/bin/sh", "day/Thumbs.db": b"",
    })  # fmt: skip
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    found = intake.sources([source], tmp_path / "unpacked")
    assert list(found) == ["day/1.png", "day/sub/2.png"]
    assert sorted(p.name for p in (tmp_path / "unpacked").rglob("*") if p.is_file()) == ["1.png", "2.png"]


@pytest.mark.parametrize(
    "name", ["../out.png", "/tmp/out.png", "a/../../out.png", "..\\out.png", "C:\\out.png"]
)
def test_an_archive_does_not_lead_out_of_itself(tmp_path, name):
    data = picture(tmp_path / "in" / "1.png").read_bytes()
    source = zipped(tmp_path / "in" / "trap.zip", {"1.png": data, name: data})
    with pytest.raises(DataError, match=r"trap\.zip holds paths outside of the archive"):
        intake.sources([source], tmp_path / "in" / "unpacked")
    assert not list(tmp_path.rglob("out.png"))


def test_an_archive_is_bounded_by_what_comes_out_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(intake, "MAX_UNPACKED", 2**20)
    source = zipped(tmp_path / "bomb.zip", {"1.png": bytes(2**22)})
    assert source.stat().st_size < 10_000
    with pytest.raises(DataError, match=r"bomb\.zip unpacks to more than"):
        intake.sources([source], tmp_path / "unpacked")
    assert sum(path.stat().st_size for path in (tmp_path / "unpacked").rglob("*.png")) <= 2**20
    monkeypatch.setattr(intake, "MAX_PICTURES", 1)
    many = zipped(tmp_path / "many.zip", {f"{i}.png": b"" for i in range(3)})
    with pytest.raises(DataError, match=r"many\.zip holds more than 1 pictures"):
        intake.sources([many], tmp_path / "unpacked")


def test_damaged_and_locked_archives_are_told_in_words(tmp_path):
    whole = zipped(tmp_path / "whole.zip", {"1.png": picture(tmp_path / "1.png").read_bytes()}).read_bytes()
    broken, locked = tmp_path / "broken.zip", tmp_path / "locked.zip"
    broken.write_bytes(whole[: len(whole) // 2])
    directory = whole.index(b"PK\x01\x02")
    locked.write_bytes(  # the flag that says so, in both headers
        whole[:6] + b"\x01" + whole[7 : directory + 8] + b"\x01" + whole[directory + 9 :]
    )
    with pytest.raises(DataError, match=r"broken\.zip is damaged"):
        intake.sources([broken], tmp_path / "unpacked")
    with pytest.raises(DataError, match=r"locked\.zip is encrypted"):
        intake.sources([locked], tmp_path / "unpacked")


def test_nothing_outside_the_given_root_is_taken(tmp_path):
    root, secret = tmp_path / "root", picture(tmp_path / "secret" / "1.png")
    picture(root / "day" / "2.png")
    (root / "door").symlink_to(secret.parent)
    (root / "day" / "3.png").symlink_to(secret)
    (root / "day" / "loop").symlink_to(root / "day")
    assert list(intake.sources([root / "day"], tmp_path / "unpacked", root)) == ["2.png"]
    for way in (root / "..", root / "door", root / "day/../../secret", secret, root / "day/3.png", Path("/")):
        with pytest.raises(DataError, match="outside the folder"):
            intake.sources([way], tmp_path / "unpacked", root)
    for way in (root / "nowhere", root / "day\0"):
        with pytest.raises(DataError, match="choose"):
            intake.sources([way], tmp_path / "unpacked", root)


def test_an_archive_that_does_not_fit_on_the_disk_is_not_called_damaged(tmp_path, monkeypatch):
    source = zipped(tmp_path / "day.zip", {"1.png": picture(tmp_path / "1.png").read_bytes()})

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(DataError, match=r"no room to unpack day\.zip"):
        intake.sources([source], tmp_path / "unpacked")
