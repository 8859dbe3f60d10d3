"""Many pictures: rows that come one by one, their limits, what is measured, and the tables."""

from __future__ import annotations

import csv
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from red_pictures import SIDE, Toy, category, judged, picture, zipped

from diffad import batch
from diffad.measuring.measures import Scored, measure
from diffad.pictures import intake
from diffad.pictures.reading import read_image


# Verdicts
def test_a_broken_file_is_a_row_with_its_reason_and_not_the_end(tmp_path):
    files = [picture(tmp_path / f"{i}.png", red) for i, red in enumerate((90, 90, 0), 1)]
    files[1].write_bytes(b"torn")
    rows, maps = judged(intake.sources(files, tmp_path / "unpacked"))
    assert [row.name for row in rows] == ["1.png", "2.png", "3.png"]
    assert [row.result.get("is_anomalous") for row in rows] == [True, None, False]
    assert rows[1].error.startswith("2.png is not a picture") and str(tmp_path) not in rows[1].error
    assert rows[1].to_dict() == {"path": "2.png", "error": rows[1].error}
    assert maps["1.png"].dtype == np.float16 and maps["1.png"].max() == 9


def test_rows_come_one_by_one(tmp_path):
    toy = Toy()
    files = [picture(tmp_path / f"{i}.png") for i in range(3)]
    results = batch.run(toy, intake.sources(files, tmp_path / "u"))
    next(results)
    assert len(toy.asked) == 1


def test_the_folder_names_the_category_only_where_labels_do(tmp_path):
    toy = Toy()
    category(tmp_path / "ring")
    category(tmp_path / "unknown")
    picture(tmp_path / "nut" / "0.png")
    for name in ("ring", "unknown", "nut"):
        list(batch.run(toy, intake.sources([tmp_path / name], tmp_path / "u")))
    assert [said for _, said in toy.asked] == ["ring"] * 5 + [None] * 6
    list(batch.run(toy, intake.sources([tmp_path / "ring"], tmp_path / "u"), "nut"))
    assert {said for _, said in toy.asked[11:]} == {"nut"}


@pytest.mark.parametrize(("threshold", "look"), [
    (1.0, 1.0), (4.0, 3.0), (6.5, 3.0), (8.99, 8.0), (9.0, 9.0), (9.0, 3.0), (30.0, 6.5), (30.0, 10.0),
])  # fmt: skip
def test_rejudged_is_what_an_inspection_at_these_limits_says(tmp_path, threshold, look):
    path = picture(tmp_path / "1.png", 90)
    with Image.open(path) as image:
        image.paste((65, 0, 0), (40, 40, 50, 60))
        image.save(path)
    pictures = intake.sources([path], tmp_path / "u")
    rows, maps = judged(pictures)
    (wanted,), _ = judged(pictures, threshold=threshold, look_threshold=look)
    row = batch.rejudged(rows[0], threshold, look, lambda row: maps[row.name])
    assert row.to_dict() == wanted.to_dict()
    assert bool(row.result["regions"]) == (row.result["verdict"] != "good") == (row.result["score"] > look)
    assert batch.rejudged(row, 5.0, 3.0, lambda row: maps[row.name]).to_dict() == rows[0].to_dict()


def test_a_threshold_below_the_look_limit_leaves_nothing_between(tmp_path):
    rows, maps = judged(intake.sources([picture(tmp_path / "1.png", 40)], tmp_path / "u"))
    assert rows[0].result["verdict"] == "look"
    row = batch.rejudged(rows[0], 2.0, 3.0, lambda row: maps[row.name])
    assert (row.result["look_threshold"], row.result["verdict"]) == (2.0, "anomalous")


def test_measured_is_the_evaluation_of_the_same_pictures(tmp_path):
    rows, maps = judged(intake.sources([category(tmp_path / "nut")], tmp_path / "u"))
    result = batch.measured(rows, lambda row: maps[row.name])
    mask = np.zeros((SIDE, SIDE), bool)
    mask[8:20, 8:24] = True
    scored = []
    for row, own in zip(rows, (mask, mask, None, mask & False, mask & False), strict=True):
        heat = None if own is None else maps[row.name].astype(np.float32)
        said = row.result
        scored.append(Scored(
            row.sample.image, row.sample.is_anomalous, said["score"], heat, own, said["is_anomalous"], 5.0,
            None, row.sample.defect, 0.1,
        ))  # fmt: skip
    said = {"folders": "good: test/good · defective: test/dent", "notes": []}
    assert result == {"nut": measure(scored) | said}
    # 0.6 of the good one lies between 0.4 and 0.9 of the defects: five of six pairs are in order
    assert result["nut"]["image_auroc"] == pytest.approx(5 / 6)
    assert result["nut"]["miss_rate"] == pytest.approx(1 / 3)
    assert result["nut"]["false_alarm_rate"] == pytest.approx(1 / 2)


def test_a_map_of_any_rounding_is_measured(tmp_path):
    """Of a picture in tiles the reduced map is rounded twice, and has not the letterbox's shape."""
    pictures = intake.sources([category(tmp_path / "nut")], tmp_path / "unpacked")
    rows, maps = judged(pictures)
    measured = batch.measured(rows, lambda row: maps[row.name][:-1])
    assert measured["nut"]["pixel_auroc"] > 0.9


def test_a_mask_of_another_size_counts_as_missing(tmp_path):
    root = category(tmp_path / "nut")
    Image.new("L", (SIDE, SIDE // 2), 255).save(root / "ground_truth/dent/0_mask.png")
    rows, maps = judged(intake.sources([root], tmp_path / "u"))
    with_it = batch.measured(rows, lambda row: maps[row.name])["nut"]
    assert "count as missing: ground_truth/dent/0_mask.png." in with_it.pop("notes")[-1]
    (root / "ground_truth/dent/0_mask.png").unlink()
    rows, maps = judged(intake.sources([root], tmp_path / "u"))
    assert batch.measured(rows, lambda row: maps[row.name])["nut"] == with_it | {"notes": []}


@pytest.mark.parametrize("as_zip", [False, True])
def test_folders_are_named_as_people_name_them_and_what_is_doubtful_is_said(tmp_path, as_zip):
    root = category(tmp_path / "line" / "nut")
    (root / "test/good").rename(root / "test/i.O.")
    (root / "test").rename(root / "TEST")
    (root / "ground_truth/dent").rename(root / "ground_truth/Dent")
    (root / "ground_truth").rename(root / "Ground Truth")
    masks = root / "Ground Truth/Dent"
    Image.new("L", (SIDE, SIDE), 0).save(masks / "0_mask.png")
    (masks / "1_mask.png").rename(root / "TEST/dent/1_MASK.PNG")
    source = root
    if as_zip:
        files = [file for file in root.rglob("*") if file.is_file()]
        names = {str(file.relative_to(tmp_path)): file.read_bytes() for file in files}
        source = zipped(tmp_path / "line.zip", names)
    found = intake.sources([source], tmp_path / "unpacked")
    assert [sample.is_anomalous for sample in found.values()] == [True] * 3 + [False] * 2
    rows, maps = judged(found)
    said = batch.measured(rows, lambda row: maps[row.name])["nut"]
    assert said["folders"] == "good: TEST/i.O. · defective: TEST/dent"
    assert said["pixel_auroc"] > 0.9  # one mask is left, beside its picture
    empty = "Empty masks of defective pictures count as missing: Ground Truth/Dent/0_mask.png."
    assert said["notes"] == [empty]


def test_without_both_kinds_nothing_is_measured(tmp_path):
    rows, maps = judged(intake.sources([picture(tmp_path / "1.png", 90)], tmp_path / "u"))
    assert batch.measured(rows, lambda row: maps[row.name]) == {}


# To take away
def test_csv_json_and_zip_say_what_the_rows_say(tmp_path):
    root = category(tmp_path / "nut")
    (root / "test/dent/9.png").write_bytes(b"torn")
    rows, maps = judged(intake.sources([root], tmp_path / "u"))
    file = tmp_path / "all.zip"
    batch.write_zip(file, Toy(), rows, lambda row: maps[row.name], state="done")
    with zipfile.ZipFile(file) as archive:
        lines = list(csv.DictReader(io.StringIO(archive.read("results.csv").decode("utf-8-sig"))))
        document = json.loads(archive.read("results.json"))
        assert document["model"] == "toy" and document["state"] == "done"
        files = [said.pop("files", []) for said in document["pictures"]]
        assert document["pictures"] == [row.to_dict() for row in rows]
        assert [line["files"] for line in lines] == ["; ".join(names) for names in files]
        assert sorted(sum(files, ["results.csv", "results.json"])) == sorted(archive.namelist())
        for row, line in zip(rows, lines, strict=True):
            assert line["path"] == row.name and line["label"] == row.sample.defect
            if row.error:
                assert line["error"] == row.error and line["score"] == line["regions"] == ""
                continue
            assert float(line["score"]) == row.result["score"]
            assert line["is_anomalous"] == str(row.result["is_anomalous"])
            assert line["verdict"] == row.result["verdict"]
            assert float(line["look_threshold"]) == row.result["look_threshold"] == 3.0
            assert int(line["regions"]) == len(row.result["regions"])
            kept = np.load(io.BytesIO(archive.read(f"maps/{row.name}.npy")))
            assert (kept == maps[row.name]).all()
            overlay = np.asarray(Image.open(io.BytesIO(archive.read(f"overlays/{row.name}"))))
            # the heat begins at half the limit: 3 of the part to look at, which scores 4, else 5
            assert (overlay != read_image(row.sample.image)).any() == (row.result["score"] > 2.5)
        assert {line["verdict"] for line in lines if not line["error"]} == {"good", "look", "anomalous"}
        assert len(archive.namelist()) == 2 + 2 * 5


@pytest.mark.parametrize("text", [
    "=cmd|' /C calc'!A0.png", "+1.png", "-1.png", "@SUM(A1).png", "\t=1.png", "\r=1.png", " =1.png",
    "＝1.png",
])  # fmt: skip
def test_no_cell_is_a_formula(text):
    """Nor is what follows a semicolon, at which some spreadsheets cut: text is quoted."""
    record = {"path": text, "score": -1.5, "label": f"a;{text}", "files": [text, "b.png"], "error": text}
    lines = batch.csv_file([record]).decode("utf-8-sig")
    (row,) = csv.DictReader(io.StringIO(lines, newline=""))
    assert row["path"] == row["error"] == f"'{text}" and row["files"] == f"'{text}; b.png"
    assert row["label"] == f"a;{text}" and f'"a;{text}"' in lines
    assert ",-1.5," in lines  # a number stays one


def test_names_of_all_languages_open_in_a_spreadsheet():
    data = batch.csv_file([{"path": "é 漢字.png", "error": "not\udcffUnicode"}])
    assert data.startswith(b"\xef\xbb\xbf")
    (row,) = csv.DictReader(io.StringIO(data.decode("utf-8-sig")))
    assert row["path"] == "é 漢字.png" and row["error"] == r"not\udcffUnicode"


def test_no_overlay_takes_anothers_place_in_the_zip(tmp_path):
    for name in ("a.png", "a.webp", "a.webp.png"):
        picture(tmp_path / "in" / name, 90)
    rows, maps = judged(intake.sources([tmp_path / "in"], tmp_path / "u"))
    batch.write_zip(tmp_path / "all.zip", Toy(), rows, lambda row: maps[row.name])
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        names = archive.namelist()
    assert len(set(names)) == len(names) == 2 + 2 * 3


def test_json_has_no_nan():
    assert json.loads(batch.json_text({"a": float("nan"), "b": [np.float32(1), np.bool_(True)]})) == {
        "a": None, "b": [1.0, True]
    }  # fmt: skip
