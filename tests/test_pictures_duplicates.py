"""The same picture twice: whatever was done to the file, and never two parts that only look alike."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffad.pictures.duplicates import Different, first_alike, pairs_in_words, thumbnail, thumbnails_of
from diffad.synthetic.parts import CATEGORIES, make_part

SAMPLES = sorted((Path(__file__).parents[1] / "assets" / "samples").glob("*_good.png"))


@pytest.fixture(scope="module")
def parts() -> dict[str, list[np.ndarray]]:
    return {category: [make_part(category, seed).image for seed in range(24)] for category in CATEGORIES}


@pytest.fixture(scope="module")
def looks(parts) -> dict[str, np.ndarray]:
    return {name: np.array([thumbnail(image) for image in images]) for name, images in parts.items()}


def saved_again(image: np.ndarray, kind: str, **options) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return np.asarray(Image.open(file).convert("RGB"))


def scaled(image: np.ndarray, factor: float, way: str) -> np.ndarray:
    size = [round(factor * side) for side in image.shape[1::-1]]
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling[way]))


@pytest.mark.parametrize("change", [
    lambda image: saved_again(image, "PNG"),
    lambda image: saved_again(image, "JPEG", quality=95),
    lambda image: saved_again(image, "JPEG", quality=75),
    lambda image: saved_again(image, "WEBP", quality=80),
    lambda image: scaled(image, 0.5, "BILINEAR"),
    lambda image: scaled(image, 0.7, "LANCZOS"),
    lambda image: scaled(image, 2.0, "BICUBIC"),
    lambda image: scaled(image, 2.0, "NEAREST"),
    lambda image: saved_again(scaled(image, 1.5, "LANCZOS"), "JPEG", quality=80),
])  # fmt: skip
def test_a_picture_saved_again_or_scaled_is_found(parts, looks, change):
    for name, images in parts.items():
        again = np.array([thumbnail(change(image)) for image in images[5:9]])
        assert first_alike(again, looks[name]).tolist() == [5, 6, 7, 8], name


def test_parts_that_look_alike_are_different(looks):
    for name, some in looks.items():
        assert first_alike(some).tolist() == list(range(len(some))), name
    assert (first_alike(looks["gear"][:12], looks["gear"][12:]) == -1).all()


def test_a_defect_makes_a_picture_another_one(parts, looks):
    """Also a small one, put on the very picture of a good part."""
    image = parts["chip"][3].copy()
    image[100:108, 60:74] = (200, 30, 30)
    assert first_alike(thumbnail(image)[None], looks["chip"]).tolist() == [-1]


def test_plain_surfaces_differ_by_their_grain():
    rng = np.random.default_rng(0)
    plates = [rng.normal(180, 6, (256, 256, 1)).clip(0, 255).astype(np.uint8).repeat(3, 2) for _ in range(6)]
    some = np.array([thumbnail(plate) for plate in plates])
    assert first_alike(some).tolist() == list(range(6))
    again = np.array([thumbnail(saved_again(plate, "JPEG", quality=85)) for plate in plates])
    assert first_alike(again, some).tolist() == list(range(6))


def test_the_first_of_many_copies_stays(looks):
    some = np.concatenate([looks["gear"][:1].repeat(30, axis=0), looks["gear"][1:11]])
    names = [Path(f"photos/gear/{i}.png") for i in range(40)]
    different = Different.among(names, some)
    assert different.numbers == [0, *range(30, 40)] and different.paths[:2] == [names[0], names[30]]
    assert different.copies == [(names[i], names[0]) for i in range(1, 30)]
    said = pairs_in_words(different.copies)
    assert said.startswith("photos/gear/1.png = photos/gear/0.png, ") and said.endswith("and 19 more")


def test_two_thousand_take_seconds(looks):
    import time

    rng = np.random.default_rng(1)
    many = rng.normal(128, 30, (2000, 64, 64)).astype(np.float32)
    many[1000:] = many[:1000]
    started = time.process_time()
    assert first_alike(many).tolist() == [*range(1000), *range(1000)]
    assert time.process_time() - started < 30  # far more than it takes, on any machine


def test_files_that_cannot_be_read_are_passed_over(tmp_path):
    (tmp_path / "torn.png").write_bytes(b"torn")
    paths, some = thumbnails_of([tmp_path / "torn.png", *SAMPLES])
    assert paths == SAMPLES and len(some) == len(SAMPLES) >= 3
    assert thumbnails_of([])[1].shape == (0, 64, 64) and not len(first_alike(thumbnails_of([])[1]))
