"""Synthetic parts: same seed, same part; masks mark what the defect changed; the tree is MVTec's."""

import cv2
import numpy as np
import pytest

from diffad.pictures.reading import DataError
from diffad.pictures.samples import find_samples
from diffad.synthetic.parts import CATEGORIES, DEFECTS, Part, make_part, write_set

SIZE = 128
KINDS = [(category, defect) for category in CATEGORIES for defect in DEFECTS[category]]


@pytest.fixture(scope="module")
def good() -> dict[str, Part]:
    return {category: make_part(category, 5, size=SIZE) for category in CATEGORIES}


def test_there_are_enough_categories_and_defects():
    assert len(CATEGORIES) >= 4
    assert len({defect for _, defect in KINDS}) >= 5
    assert all(len(DEFECTS[category]) >= 4 for category in CATEGORIES)


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_good_part_is_a_picture_with_an_empty_mask(good, category):
    part = good[category]
    assert (part.category, part.defect) == (category, "good")
    assert part.image.dtype == np.uint8 and part.image.shape == (SIZE, SIZE, 3)
    assert part.mask.dtype == bool and part.mask.shape == (SIZE, SIZE) and not part.mask.any()
    assert part.image.std() > 15  # neither flat
    assert np.mean((part.image == 0) | (part.image == 255)) < 0.02  # nor clipped


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_seed_decides_the_bytes(good, category):
    again, other = make_part(category, 5, size=SIZE), make_part(category, 6, size=SIZE)
    assert np.array_equal(good[category].image, again.image)
    assert not np.array_equal(good[category].image, other.image)


@pytest.mark.parametrize(("category", "defect"), KINDS)
def test_the_mask_marks_what_the_defect_changed(good, category, defect):
    part = make_part(category, 5, defect, SIZE)
    change = np.abs(part.image.astype(int) - good[category].image).max(axis=2)
    assert part.defect == defect
    assert part.mask.sum() >= 40 * (SIZE / 256) ** 2
    assert part.mask.mean() < 0.35
    # Same part, same grain: beyond the mask's soft edge not one byte differs.
    beyond = cv2.dilate(part.mask.astype(np.uint8), np.ones((9, 9))) == 0
    assert change[beyond].max() == 0
    # Visible: well above the grain, nearly everywhere inside the mask.
    assert np.percentile(change[part.mask], 80) >= 20
    assert np.mean(change[part.mask] >= 5) > 0.7
    # Exact: nearly all that changed visibly is inside.
    assert part.mask[change > 14].mean() > 0.97


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_defective_part_is_reproducible(category):
    defect = DEFECTS[category][0]
    first, second = make_part(category, 9, defect, SIZE), make_part(category, 9, defect, SIZE)
    assert np.array_equal(first.image, second.image) and np.array_equal(first.mask, second.mask)


@pytest.mark.parametrize("size", [64, 100, 256])
def test_geometry_scales_with_the_size(size):
    reference = make_part("chip", 2, size=SIZE).image
    part = make_part("chip", 2, size=size)
    assert part.image.shape == (size, size, 3)
    pair = (part.image, reference)
    one, two = (cv2.resize(image, (16, 16), interpolation=cv2.INTER_AREA) for image in pair)
    # Not 1: the board's thin lines are at least a pixel wide, so they weigh more in a small picture.
    assert np.corrcoef(one.ravel(), two.ravel())[0, 1] > 0.95


def test_the_global_numpy_state_is_neither_read_nor_moved(good):
    before = np.random.get_state()[1].copy()
    assert np.array_equal(make_part("leather", 5, size=SIZE).image, good["leather"].image)
    assert np.array_equal(before, np.random.get_state()[1])


def test_the_set_is_an_mvtec_tree(tmp_path):
    kinds = DEFECTS["gear"]
    count = len(kinds) + 1
    root = write_set(tmp_path / "set", ("gear", "leather"), train=3, good=2, defective=count, size=64)
    assert root == tmp_path / "set"
    names = {path.relative_to(root).as_posix() for path in root.rglob("*.png")}
    assert {"gear/train/good/002.png", "leather/test/good/001.png"} <= names
    assert {f"gear/test/{kind}/000.png" for kind in kinds} <= names
    assert {f"gear/ground_truth/{kind}/000_mask.png" for kind in kinds} <= names
    # One more defective picture than kinds: the first kind has two, the others one.
    counts = [len(list((root / "gear/test" / kind).iterdir())) for kind in kinds]
    assert counts == [2] + [1] * (len(kinds) - 1)

    written = cv2.imread(str(root / "gear/test" / kinds[1] / "000.png"))[..., ::-1]
    mask = cv2.imread(str(root / "gear/ground_truth" / kinds[1] / "000_mask.png"), cv2.IMREAD_UNCHANGED)
    part = make_part("gear", 600_001, kinds[1], 64)
    assert np.array_equal(written, part.image)
    assert np.array_equal(mask, part.mask.astype(np.uint8) * 255)

    samples = find_samples(root)
    assert {sample.category for sample in samples} == {"gear", "leather"}
    assert all((sample.mask is not None) == bool(sample.is_anomalous) for sample in samples)


def test_train_and_test_parts_and_sets_of_another_seed_are_disjoint(tmp_path):
    pictures = []
    for seed in (0, 1):
        root = write_set(tmp_path / str(seed), "carbon_fibre", 3, 3, 5, size=64, seed=seed)
        pictures += [path.read_bytes() for path in root.rglob("*.png") if "ground_truth" not in path.parts]
    assert len(pictures) == len(set(pictures)) == 2 * 11


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("spoon", 0), "Unknown category 'spoon'"),
        (("gear", 0, "loose_fibre"), "gear has no defect 'loose_fibre'"),
        (("gear", 0, "good", 63), "Size 63 is out of range"),
        (("gear", 0, "good", 1025), "Size 1025 is out of range"),
        (("gear", -1), "Seed -1 is negative"),
    ],
)
def test_bad_parts_are_refused(arguments, words):
    with pytest.raises(DataError, match=words):
        make_part(*arguments)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"categories": ("gear", "spoon")}, "Unknown category"),
        ({"categories": ()}, "No category"),
        ({"size": 32}, "out of range"),
        ({"train": -1}, "between 0 and"),
    ],
)
def test_bad_sets_are_refused_before_anything_is_written(tmp_path, options, words):
    with pytest.raises(DataError, match=words):
        write_set(tmp_path / "set", **options)
    assert not (tmp_path / "set").exists()


def test_a_root_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(DataError, match="is a file"):
        write_set(tmp_path / "file", train=1, good=0, defective=0)
    assert (tmp_path / "file").read_text() == "kept"
