"""What the folders around pictures say: categories, splits, defects and masks."""

from pathlib import Path

import pytest

from diffad.pictures.labels import folders_in_words, resembles_good, stray_masks
from diffad.pictures.reading import DataError
from diffad.pictures.samples import Sample, find_all, find_samples, is_good_name


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


@pytest.mark.parametrize("name", ["OK", "ok", "Okay", "normal", "PASS", "passed", "good_parts", "Good Parts",
                                  "good-parts", "gut", "i.O.", "defect-free"])  # fmt: skip
def test_folders_of_good_parts_have_many_names(tmp_path, name):
    root = tmp_path / "nut"
    for place in (f"train/{name}/0.png", f"test/{name}/0.png", "test/cut/0.png"):
        touch(root / place)
    samples = find_samples(root)
    assert [(sample.split, sample.defect) for sample in samples if not sample.is_anomalous] == [
        ("train", "good"), ("test", "good")]  # fmt: skip
    assert [sample.image.parent.name for sample in samples if sample.is_anomalous] == ["cut"]
    assert find_samples(root / "train" / name)[0].category == "nut"
    assert is_good_name(name) and not resembles_good(name)


@pytest.mark.parametrize("name", ["NOK", "not_ok", "n.i.O.", "nicht gut", "abnormal", "scratch", "no-good"])
def test_folders_of_other_parts_are_neither_good_nor_nearly(name):
    assert not is_good_name(name) and not resembles_good(name)


@pytest.mark.parametrize("name", ["goood", "good_new", "OK-2024", "normals", "ok2"])
def test_folders_that_may_be_meant_good_are_pointed_out(tmp_path, name):
    for place in (f"test/{name}/0.png", "test/OK/0.png", "test/cut/0.png"):
        touch(tmp_path / "nut" / place)
    said = folders_in_words(find_samples(tmp_path / "nut"))
    bad = ", ".join(sorted((f"test/{name}", "test/cut"), key=str.casefold))
    assert said == (f"good: test/OK · defective: {bad} · named like good, but counted as defective: "
                    f"test/{name} (rename it if it is good)")  # fmt: skip


def test_pictures_may_lie_in_train_itself_and_folders_be_written_in_any_case(tmp_path, caplog):
    for place in ("Train/0.png", "TEST/Broken Large/0.PNG", "Ground_Truth/broken_large/0_MASK.Png"):
        touch(tmp_path / "nut" / place)
    train, test = find_samples(tmp_path / "nut")
    assert (train.split, train.defect, train.category) == ("train", "good", "nut")
    assert (test.defect, test.mask.name) == ("Broken Large", "0_MASK.Png")
    touch(tmp_path / "nut" / "Train" / "OK" / "1.png")
    touch(tmp_path / "nut" / "Train" / "bad" / "2.png")
    assert [sample.image.name for sample in find_samples(tmp_path / "nut", "train")] == ["1.png"]
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "the folder 'bad' is ignored" in said and "are ignored (1)" in said


@pytest.mark.parametrize(("place", "split", "said"), [
    ("train/Teile/0.png", "train", r"nut/train holds the folder 'Teile': .*train/good"),
    ("test/0.png", "test", r"nut/test holds pictures without a label.*test/good and test/<defect>"),
    ("test/bad/cut/0.png", "test", r"nut/test/bad holds the folder 'cut' and no pictures"),
])  # fmt: skip
def test_a_layout_that_is_not_understood_is_named(tmp_path, place, split, said):
    other = "test" if split == "train" else "train"
    touch(tmp_path / "nut" / place)
    touch(tmp_path / "nut" / other / "good" / "0.png")
    for asked in (split, None):
        with pytest.raises(DataError, match=said):
            find_samples(tmp_path / "nut", asked)
    assert len(find_samples(tmp_path / "nut", other)) == 1  # what is understood is of use


def test_folders_that_are_there_instead_are_named(tmp_path):
    touch(tmp_path / "nut" / "OK" / "0.png")
    with pytest.raises(DataError, match=r"it holds the folder 'OK'.*train/good"):
        find_samples(tmp_path / "nut")


def test_masks_beside_their_pictures_are_no_pictures(tmp_path):
    for place in ("test/cut/a.png", "test/cut/a_mask.png", "test/cut/B.jpg", "test/cut/b-MASK.PNG",
                  "test/cut/c_mask.png", "train/good/a.png", "train/good/a_mask.png"):  # fmt: skip
        touch(tmp_path / "nut" / place)
    train, *test = find_samples(tmp_path / "nut")
    assert train.image.name == "a.png"
    assert [(sample.image.name, sample.mask and sample.mask.name) for sample in test] == [
        ("a.png", "a_mask.png"), ("B.jpg", "b-MASK.PNG"), ("c_mask.png", None)]  # fmt: skip
    assert [sample.image.name for sample in find_samples(tmp_path / "nut" / "test" / "cut")] == [
        "a.png", "B.jpg", "c_mask.png"]  # fmt: skip


def test_an_exact_name_goes_before_one_in_another_case(tmp_path):
    for place in ("test/cut/a.png", "test/cut/A.png", "ground_truth/cut/A_mask.png"):
        touch(tmp_path / "nut" / place)
    masks = {sample.image.name: sample.mask for sample in find_samples(tmp_path / "nut")}
    assert masks["A.png"].name == "A_mask.png" and masks["a.png"] is None


def test_files_that_may_be_masks_are_named_where_one_is_missing(tmp_path):
    for place in ("test/cut/1.png", "test/cut/2.png", "test/cut/2_gt.png", "ground_truth/cut/1_mask2.png",
                  "ground_truth/cuts/2_mask.png", "ground_truth/good/3.png", "test/good/3.png"):  # fmt: skip
        touch(tmp_path / "nut" / place)
    named, beside = stray_masks(find_samples(tmp_path / "nut"))
    assert named.endswith(": ground_truth/cut/1_mask2.png, ground_truth/cuts/2_mask.png.")
    assert beside.endswith(": test/cut/2_gt.png.")
    for place in ("1_mask.png", "2_mask.png", "2_gt_mask.png"):
        touch(tmp_path / "nut" / "ground_truth" / "cut" / place)
    assert stray_masks(find_samples(tmp_path / "nut")) == []


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
