"""Pictures of every kind that people upload, the way into the square and back, masks."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffad.pictures.geometry import Geometry, mask_to_square, to_square
from diffad.pictures.masks import mask_inside, mask_of, mask_on_grid, read_mask
from diffad.pictures.reading import DataError, read_image
from diffad.pictures.samples import Sample, find_samples

HEIGHT, WIDTH = 20, 30


def ramp() -> np.ndarray:
    """uint8 [20, 30], every value different from its mirror image and its transpose."""
    return (np.arange(HEIGHT)[:, None] * 8 + np.arange(WIDTH)[None] * 3).astype(np.uint8)


def colours() -> np.ndarray:
    return np.stack([ramp(), 255 - ramp(), ramp() // 2], axis=-1)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=-1)


def assert_rgb(image: np.ndarray, expected: np.ndarray, tolerance: int = 0) -> None:
    assert image.dtype == np.uint8
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected.astype(int)).max() <= tolerance


# -- files of every mode --------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "webp"])
def test_lossless_colour_file(tmp_path, suffix):
    path = tmp_path / f"part.{suffix}"
    Image.fromarray(colours()).save(path, lossless=True)
    assert_rgb(read_image(path), colours())
    assert_rgb(read_image(str(path)), colours())


def test_big_endian_16_bit_picture():
    picture = Image.frombytes("I;16B", (WIDTH, HEIGHT), (ramp().astype(">u2") * 257).astype(">u2").tobytes())
    assert_rgb(read_image(picture), grey(ramp()))


def test_transparent_pixels_lie_over_white(tmp_path):
    alpha = np.zeros((HEIGHT, WIDTH), np.uint8)
    alpha[:, 10:20], alpha[:, 20:] = 128, 255
    Image.fromarray(np.dstack([colours(), alpha])).save(tmp_path / "rgba.png")
    weight = alpha[..., None] / 255
    assert_rgb(read_image(tmp_path / "rgba.png"), np.rint(colours() * weight + 255 * (1 - weight)), 1)
    Image.fromarray(np.dstack([ramp(), alpha])).save(tmp_path / "la.png")
    assert_rgb(read_image(tmp_path / "la.png"), np.rint(grey(ramp()) * weight + 255 * (1 - weight)), 1)
    premultiplied = Image.fromarray(np.dstack([colours(), alpha])).convert("RGBa")
    assert_rgb(read_image(premultiplied), np.rint(colours() * weight + 255 * (1 - weight)), 2)
    premultiplied_grey = Image.fromarray(np.dstack([ramp(), alpha])).convert("La")
    assert_rgb(read_image(premultiplied_grey), np.rint(grey(ramp()) * weight + 255 * (1 - weight)), 2)


def test_palette_with_and_without_transparency(tmp_path):
    picture = Image.fromarray((np.arange(WIDTH) // 10 * np.ones((HEIGHT, 1))).astype(np.uint8), "L")
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    picture.save(tmp_path / "p.png")
    image = read_image(tmp_path / "p.png")
    assert [tuple(image[0, x]) for x in (0, 10, 20)] == [(10, 20, 30), (40, 50, 60), (70, 80, 90)]
    for suffix, transparency in (("png", 1), ("png", bytes([255, 0, 255])), ("gif", 1)):
        picture.save(tmp_path / f"transparent.{suffix}", transparency=transparency)
        image = read_image(tmp_path / f"transparent.{suffix}")
        assert [tuple(image[0, x]) for x in (0, 10, 20)] == [(10, 20, 30), (255, 255, 255), (70, 80, 90)]
    assert_rgb(read_image(picture.convert("PA")), read_image(tmp_path / "p.png"))


def test_one_colour_declared_transparent(tmp_path):
    path = tmp_path / "part.png"
    Image.fromarray(colours()).save(path, transparency=tuple(int(v) for v in colours()[5, 5]))
    expected = colours()
    expected[(expected == expected[5, 5]).all(axis=-1)] = 255
    assert_rgb(read_image(path), expected)


def test_one_bit_file(tmp_path):
    path = tmp_path / "part.png"
    Image.fromarray(ramp() > 100).save(path)
    assert_rgb(read_image(path), grey((ramp() > 100).astype(np.uint8) * 255))


def test_cmyk_jpeg(tmp_path):
    path = tmp_path / "part.jpg"
    Image.fromarray(grey(ramp())).convert("CMYK").save(path, quality=100)
    assert Image.open(path).mode == "CMYK"
    assert_rgb(read_image(path), grey(ramp()), 4)


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "LAB", "RGBX"])
def test_other_colour_spaces(mode):
    flat = Image.new("RGB", (WIDTH, HEIGHT), (200, 120, 40))
    if mode == "LAB":  # mid grey: L* = 53.6 of 100, a* = b* = 0, which Pillow stores as 128
        picture, expected = Image.new("LAB", flat.size, (137, 128, 128)), (128, 128, 128)
    else:
        picture, expected = flat.convert(mode), (200, 120, 40)
    assert_rgb(read_image(picture), np.full((HEIGHT, WIDTH, 3), expected), 3)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize(
    ("orientation", "stored"),
    [(3, np.flip(ramp(), (0, 1))), (6, np.rot90(ramp(), 1)), (8, np.rot90(ramp(), -1)), (5, ramp().T)],
)
def test_exif_orientation_is_applied(tmp_path, suffix, orientation, stored):
    path = tmp_path / f"part.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(grey(np.ascontiguousarray(stored)))
    picture.save(path, exif=exif, **({} if suffix in ("png", "tiff") else {"quality": 100}))
    assert_rgb(read_image(path), grey(ramp()), 8)
    with Image.open(path) as opened:
        assert_rgb(read_image(opened), grey(ramp()), 8)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff", "mpo"])
def test_animation_gives_its_first_frame(tmp_path, suffix):
    frames = [Image.fromarray(grey(np.roll(ramp(), shift, axis=1))) for shift in (0, 7, 11)]
    lossy = {"mpo": {"quality": 100}, "webp": {"lossless": True}}.get(suffix, {})
    frames[0].save(tmp_path / f"part.{suffix}", save_all=True, append_images=frames[1:], **lossy)
    assert_rgb(read_image(tmp_path / f"part.{suffix}"), grey(ramp()), 6)


def test_pillow_picture_is_left_as_it_was():
    picture = Image.fromarray(colours()).convert("P")
    before = picture.copy()
    image = read_image(picture)
    image[:] = 0
    assert picture == before
    assert picture.mode == "P"


# -- arrays ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array",
    [
        ramp(),
        ramp()[..., None],
        grey(ramp()),
        np.dstack([grey(ramp()), np.full_like(ramp(), 255)]),
        ramp().astype(np.uint16) * 257,
        (ramp().astype(np.uint16) * 257).astype(">u2"),
        grey(ramp()).astype(np.float32) / 255,
        ramp().astype(np.float64) / 255,
        np.flip(np.flip(ramp()).copy()),
        np.asfortranarray(grey(ramp())),
    ],
)
def test_arrays_of_every_kind(array):
    before = array.copy()
    image = read_image(array)
    assert_rgb(image, grey(ramp()))
    image[:] = 0
    assert np.array_equal(array, before)


def test_bool_and_half_transparent_float_arrays():
    assert_rgb(read_image(ramp() > 99), grey((ramp() > 99).astype(np.uint8) * 255))
    assert_rgb(read_image(np.full((16, 16, 4), [1.0, 0.0, 0.0, 0.0])), np.full((16, 16, 3), 255))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 20, 30), np.uint8), "shape 3 × 20 × 30"),
        (np.zeros((20, 30, 2), np.uint8), "shape"),
        (np.zeros((1, 20, 30, 3), np.uint8), "shape"),
        (np.zeros(30, np.uint8), "shape"),
        (np.array(3, np.uint8), "shape"),
        (np.zeros((0, 0, 3), np.uint8), "at least 16 × 16"),
        (np.zeros((15, 300, 3), np.uint8), "300 × 15 pixels"),
        (np.zeros((20, 30), np.int64), "int64"),
        (np.zeros((20, 30), object), "object"),
        (np.zeros((20, 30), complex), "complex"),
        (np.full((20, 30), 65536.0), r"0\.\.1 or 0\.\.65535"),
        (np.full((20, 30), -0.5), r"0\.\.1"),
        (np.full((20, 30), 65536, np.int32), r"0\.\.65535"),
        (np.full((20, 30), -1, np.int16), r"0\.\.65535"),
        (np.full((20, 30), np.nan), "not finite"),
        (np.where(ramp() == 0, np.inf, 0.5), "not finite"),
        (np.broadcast_to(np.uint8(0), (20_000, 20_000)), "million pixels"),
    ],
)
def test_unusable_arrays(array, message):
    with pytest.raises(DataError, match=message):
        read_image(array)


# -- files that cannot be used --------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        for body in (chunk, data)
    )


def unusable_files(folder: Path) -> dict[str, Path]:
    def write(name: str, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "whole.jpg")
    Image.fromarray(noise).save(folder / "whole.png")
    Image.fromarray(noise).save(folder / "whole.tiff", compression="tiff_lzw")
    Image.fromarray(noise[:15]).save(folder / "thin.png")
    Image.fromarray(noise).save(folder / "whole.eps")
    (folder / "folder.png").mkdir()
    whole = {suffix: (folder / f"whole.{suffix}").read_bytes() for suffix in ("jpg", "png", "tiff", "eps")}
    damaged = bytearray(whole["png"])
    damaged[5000:5100] = bytes(100)
    return {
        "does not exist": folder / "missing.png",
        "is a folder": folder / "folder.png",
        "is empty": write("empty.png", b""),
        "is not a picture": write("text.png", b"hello, I am no picture\n" * 10),
        "damaged or cut off 1": write("cut.jpg", whole["jpg"][: len(whole["jpg"]) // 2]),
        "damaged or cut off 2": write("cut.png", whole["png"][: len(whole["png"]) // 2]),
        "is not a picture that can be read, or is damaged 3": write(
            "cut.tiff", whole["tiff"][: len(whole["tiff"]) // 2]
        ),
        "damaged or cut off 4": write("damaged.png", bytes(damaged)),
        "million pixels": write("bomb.png", png_header(40_000, 40_000)),
        "at least 16 × 16": folder / "thin.png",
        "is not a picture 2": write("postscript.png", whole["eps"]),
    }


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow on cut metadata
def test_unusable_files_are_named_in_one_sentence(tmp_path):
    for message, path in unusable_files(tmp_path).items():
        with pytest.raises(DataError) as caught:
            read_image(path)
        text = str(caught.value)
        assert message.rstrip(" 1234") in text
        assert str(path) in text
        assert "\n" not in text
        assert len(text) < len(str(path)) + 120


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow on cut metadata
def test_every_cut_of_a_file_reads_or_is_a_data_error(tmp_path):
    Image.fromarray(colours()).save(tmp_path / "part.png")
    Image.fromarray(colours()).save(tmp_path / "part.jpg")
    Image.fromarray(colours()).save(tmp_path / "part.tiff")
    for suffix in ("png", "jpg", "tiff"):
        content = (tmp_path / f"part.{suffix}").read_bytes()
        cut = tmp_path / f"cut.{suffix}"
        for length in range(0, len(content), 7):
            cut.write_bytes(content[:length])
            try:
                assert read_image(cut).shape == (HEIGHT, WIDTH, 3)
            except DataError as error:
                assert str(cut) in str(error)


@pytest.mark.parametrize("source", [None, 7, b"bytes", [[0, 1]], "", "a\0b"])
def test_what_is_no_picture_at_all(source):
    with pytest.raises(DataError):
        read_image(source)


def test_the_pixel_limit_of_pillow_is_left_alone(tmp_path):
    limit = Image.MAX_IMAGE_PIXELS
    (tmp_path / "bomb.png").write_bytes(png_header(40_000, 40_000))
    with pytest.raises(DataError):
        read_image(tmp_path / "bomb.png")
    assert Image.MAX_IMAGE_PIXELS == limit


# -- geometry -------------------------------------------------------------------------------------------

SHAPES = [(64, 64), (512, 512), (300, 200), (90, 400), (400, 90), (40, 64), (30, 17), (101, 67), (20, 2000)]


def test_a_square_of_the_right_size_is_untouched():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    square, geometry = to_square(image, 64)
    assert square.dtype == torch.float32
    expected = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1) / 127.5 - 1
    assert torch.equal(square, expected)
    assert square.min() >= -1
    assert square.max() <= 1
    assert geometry == Geometry(64, 64, 64, 0, 0, 64, 64)
    maps = np.random.default_rng(1).normal(size=(2, 3, 64, 64)).astype(np.float32)
    assert np.array_equal(geometry.to_picture(maps), maps)


def test_letterbox_keeps_aspect_and_repeats_the_edge():
    image = np.full((100, 200, 3), 50, np.uint8)
    image[:50] = 200
    square, geometry = to_square(image, 64)
    assert geometry == Geometry(100, 200, 64, 16, 0, 32, 64)
    level = (square[0] + 1) * 127.5
    # beside the edge Lanczos's filter swings
    assert torch.allclose(level[:29], torch.tensor(200.0), atol=1) and level[:31].min() > 180
    assert torch.allclose(level[35:], torch.tensor(50.0), atol=1) and level[33:].max() < 70


@pytest.mark.parametrize("shape", SHAPES)
def test_geometry_stays_inside_the_square(shape):
    square, geometry = to_square(np.full((*shape, 3), 127, np.uint8), 64)
    assert square.shape == (3, 64, 64)
    assert max(geometry.inner_height, geometry.inner_width) == 64
    assert min(geometry.inner_height, geometry.inner_width) >= 1
    for start, inner in ((geometry.top, geometry.inner_height), (geometry.left, geometry.inner_width)):
        assert 0 <= start
        assert 0 <= 64 - start - inner - start <= 1  # centred; an odd pixel goes below or right
    assert abs(geometry.inner_height - shape[0] * 64 / max(shape)) <= 0.5
    assert abs(geometry.inner_width - shape[1] * 64 / max(shape)) <= 0.5


def centre_of_mass(values: np.ndarray) -> np.ndarray:
    rows, columns = np.indices(values.shape) + 0.5
    return np.array([(values * rows).sum(), (values * columns).sum()]) / values.sum()


@pytest.mark.parametrize(
    "shape", [(64, 64), (512, 512), (300, 200), (90, 400), (40, 64), (30, 17), (101, 67)]
)
@pytest.mark.parametrize("place", [(0.3, 0.4), (0.5, 0.5), (0.65, 0.7)])
def test_a_marker_comes_back_to_its_place(shape, place):
    """Blurred spot → square → picture: its centre moves by far less than half a pixel of the coarser grid."""
    rows, columns = np.indices(shape) + 0.5
    centre = np.array([place[0] * shape[0], place[1] * shape[1]])
    radius = max(shape) / 16
    reach = ((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2) / (2 * radius**2)
    spot = np.rint(255 * np.exp(-reach))
    spot[reach > 4.5] = 0
    true_centre = centre_of_mass(spot)
    square, geometry = to_square(grey(spot.astype(np.uint8)), 64)

    inner = (square[0].numpy()[geometry.inner] + 1) / 2
    inner[inner < 0.004] = 0
    scale = np.array([geometry.inner_height / shape[0], geometry.inner_width / shape[1]])
    assert np.abs(centre_of_mass(inner) - true_centre * scale).max() < 0.1

    back = geometry.to_picture((square[0] + 1) / 2).numpy()
    assert back.shape == shape
    assert np.abs(centre_of_mass(np.where(back < 0.004, 0, back)) - true_centre).max() < 0.1 / scale.min()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_ramp_over_the_square_is_a_ramp_over_the_picture(shape):
    """Known answer: column x of the square holds x + ½ − left; the picture must show (X + ½) · inner / W."""
    geometry = Geometry.letterbox(*shape, 64)
    rows, columns = np.indices((64, 64)).astype(np.float32) + 0.5
    ramps = np.stack([rows - geometry.top, columns - geometry.left])
    back = geometry.to_picture(ramps)
    assert back.dtype == np.float32
    expected = (np.indices(shape) + 0.5) * np.array(
        [[[geometry.inner_height / shape[0]]], [[geometry.inner_width / shape[1]]]]
    )
    for ramp_back, ramp_expected, inner, axis in zip(
        back, expected, (geometry.inner_height, geometry.inner_width), (0, 1), strict=True
    ):
        reach = max(1, inner / shape[axis])  # of the filter: nearer to the ends it is cut off
        inside = (ramp_expected > reach) & (ramp_expected < inner - reach)
        exact = 1e-3 if inner <= shape[axis] else 0.05  # a sampled triangle bends a ramp a little
        assert np.abs(ramp_back - ramp_expected)[inside].max(initial=0) < exact, axis


def test_tensors_stay_tensors_with_all_leading_dimensions():
    geometry = Geometry.letterbox(30, 50, 64)
    maps = torch.rand(2, 5, 64, 64, dtype=torch.float64)
    back = geometry.to_picture(maps)
    assert isinstance(back, torch.Tensor)
    assert back.dtype == torch.float32
    assert back.shape == (2, 5, 30, 50)
    assert torch.equal(geometry.to_picture(maps[1, 3]), back[1, 3])
    with pytest.raises(DataError):
        geometry.to_picture(maps[..., :32])


@pytest.mark.parametrize("shape", SHAPES)
def test_mask_and_picture_go_through_the_same_geometry(shape):
    """A filled rectangle as mask and as picture agree at every square pixel that is not on its edge."""
    mask = np.zeros(shape, bool)
    mask[shape[0] // 4 : shape[0] // 2, shape[1] // 3 : 3 * shape[1] // 4] = True
    square, geometry = to_square(grey(mask.astype(np.uint8) * 255), 64)
    small = mask_to_square(mask, geometry)
    assert small.shape == (64, 64)
    assert small.dtype == bool
    padding = np.ones((64, 64), bool)
    padding[geometry.inner] = False
    assert not small[padding].any()
    level = (square[0].numpy() + 1) / 2
    clear = ~padding & ((level < 0.001) | (level > 0.999))
    assert np.array_equal(small[clear], level[clear] > 0.5)
    if min(geometry.inner_height, geometry.inner_width) > 8:
        assert small[geometry.inner].mean() == pytest.approx(mask.mean(), rel=0.2)


def test_mask_to_square_identity_and_mismatch():
    mask = np.random.default_rng(0).random((64, 64)) > 0.5
    assert np.array_equal(mask_to_square(mask, Geometry.letterbox(64, 64, 64)), mask)
    with pytest.raises(DataError, match="64 × 64 pixels"):
        mask_to_square(mask, Geometry.letterbox(64, 65, 64))


def test_to_square_refuses_undecoded_arrays():
    for wrong in (ramp(), colours().astype(np.float32), np.dstack([colours(), ramp()])):
        with pytest.raises(DataError, match="read_image"):
            to_square(wrong, 64)


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
