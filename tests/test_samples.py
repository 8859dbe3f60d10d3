"""What the folders around pictures say: categories, splits, defects and masks."""

from pathlib import Path

import pytest

from diffad.data import DataError, Sample, find_all, find_samples


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def mvtec(root: Path) -> Path:
    """A category in which every stem occurs in several folders, and stems contain one another."""
    for stem in ("000", "10", "2"):
        touch(root / "train" / "good" / f"{stem}.png")
        touch(root / "test" / "good" / f"{stem}.png")
    for stem in ("000", "00", "0", "1"):
        touch(root / "test" / "crack" / f"{stem}.jpg")
        touch(root / "test" / "hole" / f"{stem}.jpg")
    touch(root / "ground_truth" / "crack" / "000_mask.png")
    touch(root / "ground_truth" / "crack" / "1.png")
    touch(root / "ground_truth" / "hole" / "00_mask.png")
    touch(root / "ground_truth" / "good" / "000_mask.png")
    for junk in ("train/good/.hidden.png", "train/good/notes.txt", "test/crack/Thumbs.db", "readme.txt"):
        touch(root / junk)
    touch(root / "test" / ".cache" / "000.png")
    return root


def test_mvtec_category(tmp_path):
    root = mvtec(tmp_path / "nut")
    samples = find_samples(root)
    assert {sample.category for sample in samples} == {"nut"}
    train = [sample for sample in samples if sample.split == "train"]
    assert [sample.image.name for sample in train] == ["000.png", "2.png", "10.png"]  # natural order
    assert {sample.defect for sample in train} == {"good"}
    assert [s.defect for s in samples if s.split == "test"] == ["crack"] * 4 + ["good"] * 3 + ["hole"] * 4
    masks = {
        (sample.defect, sample.image.stem): str(sample.mask.relative_to(root))
        for sample in samples
        if sample.mask
    }
    assert masks == {
        ("crack", "000"): "ground_truth/crack/000_mask.png",
        ("crack", "1"): "ground_truth/crack/1.png",
        ("hole", "00"): "ground_truth/hole/00_mask.png",
    }
    assert {sample.is_anomalous for sample in samples if sample.defect == "good"} == {False}
    assert {sample.is_anomalous for sample in samples if sample.defect != "good"} == {True}
    assert find_samples(str(root), "train") == train
    assert find_samples(root, "test") == samples[3:]


def test_folder_of_categories(tmp_path):
    for name in ("part10", "part2", ".trash"):
        mvtec(tmp_path / name)
    touch(tmp_path / "cover.png")
    touch(tmp_path / "other" / "000.png")
    samples = find_samples(tmp_path)
    assert list(dict.fromkeys(sample.category for sample in samples)) == ["part2", "part10"]
    assert len(samples) == 2 * len(find_samples(tmp_path / "part2"))


def test_plain_folder_and_single_file(tmp_path, monkeypatch):
    for name in ("b.JPG", "a10.png", "a9.webp", ".c.png", "notes.txt"):
        touch(tmp_path / "photos" / name)
    expected = [Sample(tmp_path / "photos" / name, "photos") for name in ("a9.webp", "a10.png", "b.JPG")]
    assert find_samples(tmp_path / "photos") == expected
    assert find_samples(tmp_path / "photos", "train") == expected
    assert {sample.is_anomalous for sample in expected} == {None}
    assert find_samples(tmp_path / "photos" / "b.JPG") == expected[-1:]
    monkeypatch.chdir(tmp_path / "photos")
    assert [sample.category for sample in find_samples(".")] == ["photos"] * 3


def test_a_picture_that_is_reached_twice_is_taken_once(tmp_path):
    root = mvtec(tmp_path / "nut")
    once = find_samples(root)
    assert find_all([root, tmp_path, root / "test" / "..", f"{root}/", root / "train" / "good"]) == once
    assert find_all([root, root], "test") == find_samples(root, "test")


def test_a_folder_called_good_is_named_by_the_part_around_it(tmp_path):
    for place in ("nut/good", "bolt/train/good"):
        touch(tmp_path / place / "000.png")
        assert [sample.category for sample in find_samples(tmp_path / place)] == [place.split("/")[0]]


def test_good_is_good_however_it_is_written_and_masks_may_be_of_any_kind(tmp_path):
    for place in ("test/Good/0.png", "test/cut/0.png", "test/cut/1.png", "ground_truth/cut/0_mask.bmp",
                  "ground_truth/cut/1.tif", "ground_truth/Good/0.png"):  # fmt: skip
        touch(tmp_path / "nut" / place)
    samples = find_samples(tmp_path / "nut")
    assert [(s.is_anomalous, s.mask and s.mask.name) for s in samples] == [
        (True, "0_mask.bmp"), (True, "1.tif"), (False, None),
    ]  # fmt: skip


def test_nothing_found_says_where_and_what_is_expected(tmp_path):
    touch(tmp_path / "deep" / "er" / "000.png")
    for missing in (tmp_path, tmp_path / "deep"):
        with pytest.raises(DataError, match=r"train/good.*folder of pictures") as caught:
            find_samples(missing)
        assert str(missing) in str(caught.value)
    with pytest.raises(DataError, match="no file or folder"):
        find_samples(tmp_path / "nowhere")
    touch(tmp_path / "nut" / "train" / "good" / "000.png")
    with pytest.raises(DataError, match="no test pictures"):
        find_samples(tmp_path / "nut", "test")
    with pytest.raises(DataError, match="unknown split"):
        find_samples(tmp_path / "nut", "validation")
