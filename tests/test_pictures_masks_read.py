"""Mask files of every mode."""

import numpy as np
import pytest
from PIL import Image

from diffad.pictures.masks import mask_inside, mask_of, mask_on_grid, read_mask
from diffad.pictures.reading import DataError
from diffad.pictures.samples import Sample, find_samples

HEIGHT, WIDTH = 20, 30


def ramp() -> np.ndarray:
    """uint8 [20, 30], every value different from its mirror image and its transpose."""
    return (np.arange(HEIGHT)[:, None] * 8 + np.arange(WIDTH)[None] * 3).astype(np.uint8)


# -- masks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("high", [1, 255])
@pytest.mark.parametrize("mode", ["L", "P", "1", "RGB", "RGBA", "I;16"])
def test_masks_of_every_mode(tmp_path, mode, high):
    expected = ramp() > 120
    values = expected.astype(np.uint8) * high
    alpha = np.full_like(values, 255)
    picture = {
        "L": lambda: Image.fromarray(values),
        "P": lambda: Image.fromarray(values).convert("P"),
        "1": lambda: Image.fromarray(expected),
        "RGB": lambda: Image.fromarray(np.dstack([values, 0 * values, 0 * values])),
        "RGBA": lambda: Image.fromarray(np.dstack([values, values, values, alpha])),
        "I;16": lambda: Image.fromarray(values.astype(np.uint16)),
    }[mode]()
    picture.save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png")[0]
    assert mask.dtype == bool
    assert np.array_equal(mask, expected)


@pytest.mark.parametrize("kind", ["mask.jpg", "mask.webp"])
def test_a_mask_does_not_grow_by_what_a_lossy_format_rings(tmp_path, kind):
    expected = np.zeros((64, 80), bool)
    expected[20:40, 30:60] = True
    Image.fromarray(expected.astype(np.uint8) * 255).save(tmp_path / kind, quality=60)
    assert (np.asarray(Image.open(tmp_path / kind).convert("L")) > 0).sum() > expected.sum()  # it has rung
    assert np.array_equal(read_mask(tmp_path / kind)[0], expected)
    Image.fromarray(np.zeros((64, 80), np.uint8)).save(tmp_path / kind)
    assert not read_mask(tmp_path / kind)[0].any()


def test_pictures_beside_category_folders_are_told(tmp_path, caplog):
    for place in ("a.png", "nut/b.png", "nut/test/dent/c.png", "nut/train/good/d.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ramp()).save(tmp_path / place)
    assert [sample.image.name for sample in find_samples(tmp_path)] == ["d.png", "c.png"]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and all("are ignored (1)" in each for each in said)
    assert f"in {tmp_path} " in said[0] and f"in {tmp_path / 'nut'} " in said[1]
    caplog.clear()
    assert len(find_samples(tmp_path / "nut" / "test" / "dent")) == 1 and not caplog.records


def test_mask_of_another_size_is_refused(tmp_path):
    file = tmp_path / "mask.png"
    Image.fromarray(ramp()).save(file)
    assert read_mask(tmp_path / "mask.png")[0].shape == (HEIGHT, WIDTH)
    with pytest.raises(DataError, match=r"mask\.png is 30 × 20 pixels, but its picture is 20 × 30"):
        mask_of(Sample(file, "nut", "test", "dent", file), (WIDTH, HEIGHT))
    with pytest.raises(DataError, match="does not exist"):
        read_mask(tmp_path / "none.png")


def test_a_mask_fits_whatever_grid_a_map_has(tmp_path):
    mask = np.zeros((60, 90), bool)
    mask[10:40, 30:60] = True
    Image.fromarray(mask).save(tmp_path / "mask.png")
    sample = Sample(tmp_path / "a.png", "nut", "test", "dent", tmp_path / "mask.png")
    for shape in ((60, 90), (59, 90), (7, 5), (1, 1), (120, 33)):
        grid = mask_on_grid(sample, (60, 90), shape)
        assert grid.shape == shape
        assert grid.mean() == pytest.approx(1 / 6, abs=0.02) or min(shape) < 30
    assert np.array_equal(mask_on_grid(sample, (60, 90), (60, 90)), mask)
    assert np.array_equal(mask_inside(sample, (60, 90), 45), mask[1::2, 1::2])
    assert mask_on_grid(Sample(tmp_path / "a.png", "nut", "test", "dent"), (60, 90), (6, 9)) is None
