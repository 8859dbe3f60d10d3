"""Cameras of 10, 12, 14 and 16 bits: a picture is read alike, however deep it is stored."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from deep_pictures import FACTORS, SAMPLES, assert_alike, deep, opencv, saved
from PIL import Image

from diffad.pictures.depth import bits_for
from diffad.pictures.masks import check_readable
from diffad.pictures.reading import DataError, common_bits, decode, may_be_deep, read_image
from diffad.pictures.samples import Sample, find_samples

HEIGHT, WIDTH = 20, 30


def grey() -> np.ndarray:
    """uint8 [20, 30], no two of its mirror images and transposes alike."""
    return (np.arange(HEIGHT)[:, None] * 8 + np.arange(WIDTH)[None] * 3 + 1).astype(np.uint8)


def colours() -> np.ndarray:
    return np.stack([grey(), 255 - grey(), grey() // 2], axis=-1)


def tiff(values: np.ndarray, order: str, orientation: int = 1) -> bytes:
    """An uncompressed TIFF of uint16 [H, W] or [H, W, 3]; order: "<" (II) or ">" (MM)."""
    height, width, *channels = values.shape
    count, data = (channels or [1])[0], values.astype(f"{order}u2").tobytes()
    start = 8 + 2 + 12 * 10 + 4
    where = start + 2 * count if count > 1 else start
    tags = [
        (256, 4, width), (257, 4, height), (258, 3, 16), (259, 3, 1), (262, 3, 2 if count > 1 else 1),
        (273, 4, where), (274, 3, orientation), (277, 3, count), (278, 4, height), (279, 4, len(data)),
    ]  # fmt: skip
    entries = b""
    for tag, kind, value in tags:
        if tag == 258 and count > 1:
            entries += struct.pack(f"{order}HHII", tag, kind, count, start)
        else:
            entries += struct.pack(f"{order}HHI{'HH' if kind == 3 else 'I'}", tag, kind, 1, value,
                                   *([0] if kind == 3 else []))  # fmt: skip
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    sizes = struct.pack(f"{order}{count}H", *[16] * count) if count > 1 else b""
    return head + entries + bytes(4) + sizes + data


def pnm(magic: str, values: np.ndarray, top: int = 65535) -> bytes:
    return f"{magic} {WIDTH} {HEIGHT} {top}\n".encode() + values.astype(">u2").tobytes()


def of_pillow(kind: type) -> Callable[[np.ndarray], Image.Image]:
    return lambda values: Image.fromarray(values.astype(kind))


FILES: dict[str, tuple[Callable[[], np.ndarray], Callable[[np.ndarray], bytes | Image.Image]]] = {
    "grey.png": (grey, of_pillow(np.uint16)),
    "grey.tiff": (grey, of_pillow(np.uint16)),
    "little.tif": (grey, lambda values: tiff(values, "<")),
    "big.tif": (grey, lambda values: tiff(values, ">")),
    "int32.tif": (grey, of_pillow(np.int32)),
    "float.tif": (grey, of_pillow(np.float32)),
    "grey.pgm": (grey, lambda values: pnm("P5", values)),
    "grey.jp2": (grey, of_pillow(np.uint16)),
    "colour.png": (colours, lambda values: opencv(".png", values)),
    "colour.tiff": (colours, lambda values: opencv(".tiff", values)),
    "little_colour.tif": (colours, lambda values: tiff(values, "<")),
    "big_colour.tif": (colours, lambda values: tiff(values, ">")),
    "colour.ppm": (colours, lambda values: pnm("P6", values)),
}


# -- files and arrays -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", FACTORS)
@pytest.mark.parametrize("name", FILES)
def test_a_picture_is_the_same_at_any_depth(tmp_path, name, bits):
    make, content = FILES[name]
    path = saved(tmp_path / name, content(deep(make(), bits)))
    assert decode(path).bits() == bits
    assert may_be_deep(path) or name.endswith("jp2")
    assert_alike(read_image(path), make())
    with Image.open(path) as opened:
        assert_alike(read_image(opened), make())


@pytest.mark.parametrize("bits", FACTORS)
def test_an_array_is_the_same_at_any_depth(bits):
    for picture in (grey(), colours(), np.dstack([colours(), np.full_like(grey(), 255)])):
        values = deep(picture, bits)
        for kind in (np.uint16, ">u2", np.int32, np.uint32, np.float32, np.float64):
            array = values.astype(kind)
            before = array.copy()
            assert_alike(read_image(array), picture[..., :3] if picture.ndim == 3 else picture)
            assert np.array_equal(array, before)


def test_floats_up_to_one_are_shares_of_white(tmp_path):
    path = saved(tmp_path / "unit.tif", Image.fromarray(grey().astype(np.float32) / 255))
    assert_alike(read_image(path), grey(), 0)
    assert_alike(read_image(path, bits=12), grey(), 0)
    assert decode(path).own_bits is None


def test_a_file_that_says_its_range_is_not_guessed_at(tmp_path):
    dark = grey() // 8
    for top, factor in ((4095, 16), (1023, 4), (16383, 64)):
        path = saved(tmp_path / "grey.pgm", pnm("P5", dark.astype(np.uint16) * factor, top))
        assert_alike(read_image(path), dark)
        path = saved(tmp_path / "colour.ppm", pnm("P6", (colours() // 8).astype(np.uint16) * factor, top))
        assert_alike(read_image(path), colours() // 8)


def test_8_bit_files_are_left_as_they_are(tmp_path):
    dark = colours() // 20
    for suffix in ("png", "bmp", "tiff", "ppm"):
        path = saved(tmp_path / f"dark.{suffix}", Image.fromarray(dark))
        assert not may_be_deep(path) and decode(path).is_plain
        assert_alike(read_image(path, bits=16), dark, 0)


def test_a_known_depth_keeps_a_dark_picture_dark(tmp_path):
    dark = colours() // 5
    path = saved(tmp_path / "dark.png", opencv(".png", deep(dark, 12)))
    assert decode(path).bits() == 10
    assert_alike(read_image(path, bits=12), dark)
    assert read_image(path).max() > 2 * dark.max()
    assert decode(path).bits(8) == 10  # a value beyond what is known counts


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_deep_colours_are_turned_upright_like_all_others(tmp_path, suffix, orientation):
    if suffix == "tif":
        content = tiff(deep(colours(), 12), "<", orientation)
    else:
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = exif.tobytes()[6:]
        png = opencv(".png", deep(colours(), 12))
        content = png[:33] + struct.pack(">I", len(data)) + b"eXIf" + data
        content += struct.pack(">I", zlib.crc32(b"eXIf" + data)) + png[33:]
    path = saved(tmp_path / f"deep.{suffix}", content)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(colours()).save(tmp_path / "plain.png", exif=exif)
    assert_alike(read_image(path), read_image(tmp_path / "plain.png"))


def test_deep_transparent_pixels_lie_over_white(tmp_path):
    alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[:5] = 0
    expected = colours()
    expected[:5] = 255
    for bits, opaque in ((12, 4095), (12, 65535), (16, 65535)):
        values = np.dstack([deep(colours(), bits), (alpha // 255).astype(np.uint16) * opaque])
        for suffix in ("png", "tiff"):
            path = saved(tmp_path / f"part.{suffix}", opencv(f".{suffix}", values.astype(np.uint16)))
            assert_alike(read_image(path), expected)


def test_plain_text_and_grey_with_alpha_are_read_in_full(tmp_path):
    text = f"P3 {WIDTH} {HEIGHT} 65535\n" + " ".join(map(str, deep(colours(), 12).ravel()))
    assert_alike(read_image(saved(tmp_path / "text.ppm", text.encode())), colours())
    with_alpha = np.dstack([deep(grey(), 12), np.full((HEIGHT, WIDTH), 65535, np.uint16)])
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in with_alpha)
    png = opencv(".png", deep(colours(), 12))[:8]
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 4, 0, 0, 0)
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        png += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    assert_alike(read_image(saved(tmp_path / "alpha.png", png)), grey())


def test_what_cannot_be_read_in_full_is_refused_and_not_read_black(tmp_path, monkeypatch):
    planes = bytearray(tiff(deep(colours(), 12), "<"))
    at = planes.index(struct.pack("<HHI", 278, 4, 1))  # the tag of rows becomes that of planes, one strip
    planes[at : at + 12] = struct.pack("<HHIHH", 284, 3, 1, 2, 0)
    with pytest.raises(DataError, match="16-bit colours in separate planes: save it as PNG"):
        read_image(saved(tmp_path / "planes.tif", bytes(planes)))
    monkeypatch.setattr("diffad.pictures.reading.deep_colours", lambda file: None)
    path = saved(tmp_path / "colour.png", opencv(".png", deep(colours(), 12)))
    with pytest.raises(DataError, match="cannot be read in full"):
        read_image(path)
    saved(path, opencv(".png", deep(colours(), 16)))
    assert_alike(read_image(path), colours())


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow on cut metadata
def test_cut_deep_files_are_named_and_print_nothing(tmp_path, capfd):
    for suffix in ("png", "tiff", "ppm"):
        name = f"colour.{suffix}"
        content = FILES[name][1](deep(colours(), 12))
        for length in range(0, len(content), 97):
            path = saved(tmp_path / name, content[:length])
            try:
                assert read_image(path).shape == (HEIGHT, WIDTH, 3)
            except DataError as error:
                assert str(path) in str(error)
            assert may_be_deep(path) in (True, False)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("highest", "bits"), [
    (0, 8), (255, 8), (255.5, 10), (256, 10), (1023, 10), (1024, 12), (4096, 14), (16384, 16), (65535, 16),
])  # fmt: skip
def test_the_fewest_bits_that_hold_a_value(highest, bits):
    assert bits_for(highest) == bits


# -- sets -----------------------------------------------------------------------------------------------


def test_the_brightest_of_a_set_tells_the_depth_of_all(tmp_path):
    dark = saved(tmp_path / "a.png", opencv(".png", deep(colours() // 5, 12)))
    bright = saved(tmp_path / "b.tif", tiff(deep(grey(), 12), ">"))
    plain = saved(tmp_path / "c.png", Image.fromarray(colours()))
    broken = saved(tmp_path / "d.png", b"")
    assert common_bits([dark, bright, plain, broken]) == 12
    assert common_bits([dark]) is common_bits([dark, plain]) is common_bits([]) is None


def test_a_check_of_all_pictures_tells_the_depth_of_each_category(tmp_path):
    for category, bits in (("deep", 12), ("flat", None)):
        for number in range(2):
            picture = colours() // (5 - 4 * number)
            content = Image.fromarray(picture) if bits is None else opencv(".png", deep(picture, bits))
            saved(tmp_path / category / "test" / "good" / f"{number}.png", content)
    groups: dict[str, list[Sample]] = {}
    for sample in find_samples(tmp_path):
        groups.setdefault(sample.category, []).append(sample)
    assert check_readable(groups) == {"deep": 12, "flat": None}


def test_all_files_that_cannot_be_used_are_named_at_once(tmp_path):
    folder = tmp_path / "nut"
    saved(folder / "test" / "cut" / "0.png", Image.fromarray(colours()))
    saved(folder / "ground_truth" / "cut" / "0_mask.png", Image.fromarray(grey()[:, :20]))
    for number in range(30):
        saved(folder / "test" / "good" / f"{number}.png", b"no picture")
    with pytest.raises(DataError) as caught:
        check_readable({"nut": find_samples(folder)})
    said = str(caught.value)
    assert said.startswith("31 files cannot be used: ") and "and 11 more" in said and "\n" not in said
    assert "0_mask.png is 20 × 20 pixels, but its picture is 30 × 20 pixels" in said
    assert said.count("is not a picture") == 19


# -- what libraries print -------------------------------------------------------------------------------


NOISY = """
import sys
from diffad.pictures.reading import read_image, DataError
for path in sys.argv[1:]:
    try:
        print(read_image(path).shape)
    except DataError as error:
        print(error)
"""


def test_no_warning_of_a_library_is_printed(tmp_path):
    """Of 108 million pixels, broken EXIF, a cut TIFF, a palette with transparency, a damaged profile."""
    large = saved(tmp_path / "large.png", Image.new("1", (10_400, 10_400)))  # 108 million pixels
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0" + b"\x12\x01\x03\0\x01" * 3
    Image.fromarray(colours()).save(tmp_path / "exif.jpg", exif=exif)
    cut = saved(tmp_path / "cut.tiff", tiff(deep(colours(), 12), "<")[:150])
    palette = Image.fromarray(colours()).convert("P")
    palette.save(tmp_path / "palette.png", transparency=bytes(range(100)))
    png, profile = opencv(".png", deep(colours(), 12)), b"x\0\0" + zlib.compress(b"no profile" * 20)
    chunk = struct.pack(">I", len(profile)) + b"iCCP" + profile
    chunk += struct.pack(">I", zlib.crc32(b"iCCP" + profile))
    icc = saved(tmp_path / "icc.png", png[:33] + chunk + png[33:])
    files = [large, tmp_path / "exif.jpg", cut, tmp_path / "palette.png", icc]
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", NOISY, *map(str, files)], capture_output=True, text=True,
        cwd=SAMPLES.parents[1], env=os.environ, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == "(10400, 10400, 3)"
    assert len(done.stdout.splitlines()) == len(files)
