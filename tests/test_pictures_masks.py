"""Masks of one defect in every format and convention that people have, and what is said of doubtful ones."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from diffad.pictures.masks import mask_inside, mask_of, mask_on_grid, read_mask, settled
from diffad.pictures.reading import DataError, read_image
from diffad.pictures.samples import Sample, find_samples
from diffad.synthetic.parts import make_part

SHAPE = (64, 80)
DEFECT = np.zeros(SHAPE, bool)
DEFECT[20:40, 30:60] = True
DEFECT[44:52, 8:20] = True
HIGH = DEFECT.astype(np.uint8) * 255
OPAQUE = np.full(SHAPE, 255, np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)


def coloured(defect: tuple[int, int, int], background: tuple[int, int, int]) -> np.ndarray:
    return np.where(DEFECT[..., None], defect, background).astype(np.uint8)


def palette(colours: list[tuple[int, int, int]], indices: np.ndarray) -> Image.Image:
    picture = Image.fromarray(indices.astype(np.uint8)).convert("L")
    picture = Image.frombytes("P", picture.size, picture.tobytes())
    picture.putpalette([value for colour in colours for value in colour])
    return picture


def soft() -> np.ndarray:
    """Edges over four pixels, the middle where the defect ends."""
    cross = np.ones((3, 3), np.uint8)
    wider, narrower = cv2.dilate(HIGH, cross), cv2.erode(HIGH, cross)
    grey = np.where(HIGH > narrower, 150, HIGH)
    grey = np.where(wider > HIGH, 100, grey)
    return np.where(cv2.dilate(wider, cross) > wider, 40, grey).astype(np.uint8)


def kinds() -> np.ndarray:
    """The number of its kind for each of the two defects."""
    return np.where(np.arange(SHAPE[1]) < 25, 1, 3) * DEFECT


VARIANTS = {
    "grey.png": HIGH,
    "inverted.png": 255 - HIGH,
    "inverted.jpg": 255 - HIGH,
    "bits.png": DEFECT,
    "inverted bits.png": ~DEFECT,
    "soft.png": soft(),
    "soft 16 bit.png": soft().astype(np.uint16) * 257,
    "soft float.tiff": soft().astype(np.float32) / 255,
    "soft.bmp": soft(),
    "soft red.png": np.dstack([soft(), 0 * HIGH, 0 * HIGH]),
    "soft alpha.png": np.dstack([0 * HIGH, 0 * HIGH, 0 * HIGH, soft()]),
    "soft.webp": soft(),
    "numbers of kinds.png": kinds().astype(np.uint8),
    "16 bit numbers of kinds.png": kinds().astype(np.uint16),
    "greys of kinds.png": (kinds() * 85).astype(np.uint8),
    "red on black.png": coloured((255, 0, 0), (0, 0, 0)),
    "red on white.png": coloured((255, 0, 0), (255, 255, 255)),
    "black on white.png": coloured((0, 0, 0), (255, 255, 255)),
    "dark blue on violet.png": coloured((0, 0, 90), (68, 1, 84)),
    "red on white.jpg": coloured((255, 0, 0), (255, 255, 255)),
    "palette, white background.png": palette([(255, 255, 255), (200, 0, 0)], DEFECT),
    "palette, black is 1.png": palette([(0, 255, 0), (0, 0, 0)], ~DEFECT),
    "palette, three colours.png": palette([(255, 255, 255), (192, 0, 0), (9, 9, 9), (0, 64, 0)], kinds()),
    "palette.gif": palette([(0, 0, 0), (64, 0, 0), (9, 9, 9), (0, 192, 0)], kinds()),
    "alpha, white.png": np.dstack([OPAQUE, OPAQUE, OPAQUE, HIGH]),
    "alpha, black.png": np.dstack([0 * HIGH, 0 * HIGH, 0 * HIGH, HIGH]),
    "alpha, the picture itself.png": np.dstack([NOISE, HIGH]),
    "alpha, cut out.png": np.dstack([NOISE, 255 - HIGH]),
    "alpha, two colours.png": np.dstack([coloured((255, 0, 0), (0, 0, 0)), np.where(DEFECT, 200, 90)]),
    "grey and alpha.png": np.dstack([OPAQUE, HIGH]),
    "colours, all opaque.png": np.dstack([HIGH, HIGH, HIGH, OPAQUE]),
    "colours, all transparent.png": np.dstack([HIGH, HIGH, HIGH, 0 * OPAQUE]),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_one_defect_in_every_convention(tmp_path, name):
    picture = VARIANTS[name]
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture if picture.dtype != np.int64 else picture.astype(np.uint8))
    picture.save(tmp_path / name, **({"quality": 85} if name.endswith(("jpg", "webp")) else {}))
    mask = read_mask(tmp_path / name)[0]
    assert mask.dtype == bool
    # chroma is stored at half the resolution
    assert (mask != DEFECT).sum() <= (40 if name == "red on white.jpg" else 0)


def test_a_large_defect_that_reaches_the_border_is_not_inverted(tmp_path):
    wide = np.zeros(SHAPE, bool)
    wide[:, 5:] = True
    for name, picture in (("grey.png", wide), ("red.png", np.dstack([wide, wide & False, wide & False]))):
        Image.fromarray(picture.astype(np.uint8) * 255).save(tmp_path / name)
        assert np.array_equal(read_mask(tmp_path / name)[0], wide)
    for value in (0, 255):
        Image.new("L", SHAPE[::-1], value).save(tmp_path / "one.png")
        assert (read_mask(tmp_path / "one.png")[0] == (value > 0)).all()


# -- a set of them -----------------------------------------------------------------------------------------


def sample(folder: Path, stem: str, mask: np.ndarray, defect: str = "dent", turn: int = 1) -> Sample:
    """A picture with a defect where the mask is meant to be, stored as a camera held at `turn` does."""
    image = np.random.default_rng(len(stem)).integers(90, 110, (*mask.shape, 3)).astype(np.uint8)
    path = folder / "test" / defect / f"{stem}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    file = folder / "ground_truth" / defect / f"{stem}_mask.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(file)
    return Sample(path, folder.name, "test", defect, file)


def test_what_was_decided_or_is_doubtful_is_said(tmp_path):
    large = np.zeros(SHAPE, bool)
    large[:, 10:] = True
    samples = [
        sample(tmp_path, "a", HIGH),
        sample(tmp_path, "b", large),
        sample(tmp_path, "c", HIGH & 0),
        sample(tmp_path, "d", 255 - HIGH),
        sample(tmp_path, "e", HIGH),
    ]
    result, said = settled(samples)
    assert result == [*samples[:2], replace(samples[2], mask=None), *samples[3:]]
    text = "\n".join(said)
    assert "bright border" in said[0] and said[0].endswith("ground_truth/dent/d_mask.png.")
    assert "Empty masks" in said[1] and said[1].endswith("ground_truth/dent/c_mask.png.")
    assert "more than half" in said[2] and said[2].endswith("ground_truth/dent/b_mask.png.")
    assert len(said) == 3 and "a_mask" not in text
    assert mask_on_grid(samples[2], SHAPE, SHAPE) is None  # nobody has drawn it
    assert settled([samples[0], samples[4]]) == ([samples[0], samples[4]], [])


def test_who_inverts_masks_inverts_those_at_the_border_too(tmp_path):
    edge = np.zeros(SHAPE, bool)
    edge[:, :12] = True
    samples = [sample(tmp_path, stem, 255 - HIGH) for stem in "ab"]
    samples.append(sample(tmp_path, "c", ~edge))
    result, said = settled(samples)
    assert np.array_equal(mask_of(result[2], SHAPE), edge)
    assert np.array_equal(mask_of(result[0], SHAPE), DEFECT)
    assert len(said) == 1 and "c_mask" in said[0]


@pytest.fixture(scope="module")
def stored_turned(tmp_path_factory) -> list[tuple[Sample, np.ndarray]]:
    """Square pictures as a camera on its side stores them, the mask drawn on what it stored, without a tag;
    with the mask that is right for the picture turned upright.
    """
    folder = tmp_path_factory.mktemp("nut")
    made = []
    for seed in range(3):
        part = make_part("carbon_fibre", seed, "stain")
        path = folder / "test" / "stain" / f"{seed}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(np.ascontiguousarray(np.rot90(part.image))).save(path, exif=exif, quality=95)
        mask = folder / "ground_truth" / "stain" / f"{seed}_mask.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(np.rot90(part.mask))).save(mask)
        assert np.abs(read_image(path).astype(int) - part.image).mean() < 3
        made.append((Sample(path, "nut", "test", "stain", mask), part.mask))
    return made


def test_masks_of_square_pictures_are_turned_like_them_where_that_fits_better(stored_turned):
    result, said = settled([one for one, _ in stored_turned])
    for one, (_, right) in zip(result, stored_turned, strict=True):
        assert np.array_equal(mask_of(one, right.shape), right)
    assert len(said) == 1 and "turned like their pictures" in said[0]


def test_masks_that_are_upright_already_stay(stored_turned, tmp_path):
    samples = []
    for number, (one, right) in enumerate(stored_turned):
        Image.fromarray(right).save(tmp_path / f"{number}.png")
        samples.append(replace(one, mask=tmp_path / f"{number}.png"))
    assert settled(samples) == (samples, [])


def test_masks_that_contradict_each_other_decide_nothing(stored_turned, tmp_path):
    (first, right), (second, _), _ = stored_turned
    Image.fromarray(right).save(tmp_path / "upright.png")
    some = [replace(first, mask=tmp_path / "upright.png"), second]
    result, said = settled(some)
    assert result == some and "not clear" in said[0] and "upright.png" in said[0]


def test_what_no_edge_decides_is_said_and_left(stored_turned, tmp_path):
    one, right = stored_turned[0]
    exif = Image.open(one.image).getexif()
    Image.new("RGB", right.shape[::-1], "grey").save(tmp_path / "flat.jpg", exif=exif)
    flat = replace(one, image=tmp_path / "flat.jpg")
    result, said = settled([flat])
    assert result == [flat] and len(said) == 1 and "not clear" in said[0]


def test_the_size_decides_where_it_can(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(NOISE).save(tmp_path / "a.jpg", exif=exif)
    Image.fromarray(HIGH).save(tmp_path / "stored.png")
    Image.fromarray(np.ascontiguousarray(np.rot90(HIGH))).save(tmp_path / "upright.png")
    for name in ("stored.png", "upright.png"):
        one = Sample(tmp_path / "a.jpg", "nut", "test", "dent", tmp_path / name)
        assert np.array_equal(mask_of(one, read_image(one.image).shape), np.rot90(DEFECT))


HEIGHT, WIDTH = 20, 30


def ramp() -> np.ndarray:
    """uint8 [20, 30], every value different from its mirror image and its transpose."""
    return (np.arange(HEIGHT)[:, None] * 8 + np.arange(WIDTH)[None] * 3).astype(np.uint8)


# -- files of every mode ------------------------------------------------------------------------------------


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
