"""Pictures of every kind that people upload, and files and arrays that are none."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffad.pictures.reading import DataError, read_image

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
