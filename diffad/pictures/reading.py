"""Decoding picture files, Pillow images and arrays to uint8 RGB."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from diffad.pictures.arrays import U8, Array
from diffad.pictures.depth import bits_for, deep_colours, to_8_bits, turned, white

Picture = str | Path | Image.Image | Array

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .gif .jfif .jp2 .jpeg .jpg .pgm .png .pnm .ppm .tga .tif .tiff .webp".split()
)
MIN_SIDE = 16  # pixels; below this there is nothing to inspect
MAX_PIXELS = 178_956_970  # also Pillow's own limit (decompression bombs)
_FLAT = frozenset(
    ".avif .bmp .gif .jfif .jpeg .jpg .tga .webp".split()
)  # formats that Pillow decodes to 8 bits
_HEADER = 26  # bytes of a PNG header up to and including the colour type
_LOOKED_AT = 256  # at most this many pictures of a batch are decoded to find the camera's bit depth

# Large and damaged files are reported as DataError; Pillow's own warnings would only repeat that.
warnings.filterwarnings("ignore", module=r"PIL\.")


class DataError(ValueError):
    """A picture, mask or folder cannot be used. The message is one sentence that says what to do."""


# ---------------------------------------------------------------------------------------------------------
# Decoding


@dataclass(frozen=True, eq=False)
class Decoded:
    """A decoded picture, upright, before it is scaled to 8 bits.

    Attributes:
        values: uint8 RGB [H, W, 3] if the white level is known. Otherwise values from 0 to 65535, grey
            [H, W], RGB [H, W, 3] or RGBA [H, W, 4], whose white level depends on the camera's bit depth.
    """

    values: Array

    @property
    def is_plain(self) -> bool:
        """Whether the white level is known, as for 8-bit files."""
        return self.values.dtype == np.uint8

    @cached_property
    def highest(self) -> float:
        """The highest value, ignoring alpha."""
        return float((self.values[..., :3] if self.values.ndim == 3 else self.values).max())

    def bits(self, wanted: int | None = None) -> int:
        """Bit depth by which to scale the values; always 8 for a plain picture.

        Args:
            wanted: the camera's bit depth, if known. A larger depth is used if the highest value needs it
                (the smallest of `depth.DEPTHS` that fits).
        """
        return 8 if self.is_plain else max(wanted or 0, bits_for(self.highest))

    @property
    def own_bits(self) -> int | None:
        """The smallest bit depth that holds the highest value; None for a plain picture."""
        return None if self.is_plain else self.bits()

    def image(self, bits: int | None = None) -> U8:
        """The picture as uint8 RGB [H, W, 3], transparent pixels over white. bits: as `wanted` in `bits`."""
        if self.is_plain:
            return self.values
        top = white(self.bits(bits))
        if self.values.ndim == 2:
            return _grey_to_rgb(to_8_bits(self.values, top))
        colours = to_8_bits(self.values[..., :3], top)
        if self.values.shape[2] == 3:
            return colours
        alpha = self.values[..., 3]
        opaque = top if alpha.max() <= top else white(16)  # alpha may use the camera's range or the file's
        if self.values.dtype.kind == "f" and alpha.max() <= 1:
            opaque = 1
        return _over_white(np.dstack([colours, to_8_bits(alpha, opaque)]))


def read_image(source: Picture, bits: int | None = None) -> U8:
    """`decode` a picture and convert it to uint8 RGB [H, W, 3] (`Decoded.image`)."""
    return decode(source).image(bits)


def decode(source: Picture) -> Decoded:
    """Decode a picture. The source is not modified and shares no memory with the result.

    Args:
        source: one of
            - a file that Pillow can read (except EPS), turned upright by EXIF; the first frame of animations;
              16-bit colours keep all their bits;
            - a Pillow image, turned upright likewise; the current frame;
            - an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] of bool, uint8, 16- or 32-bit integers
              (0 to 65535) or float (0 to 1 if no value is above 1, otherwise 0 to 65535).

    Raises:
        DataError: a missing, unreadable, damaged or empty file, a side under 16 pixels, more than about 179
            million pixels, values out of range or not finite, or another array shape or type.
    """
    if isinstance(source, np.ndarray):
        return _decoded_array(source)
    if isinstance(source, Image.Image):
        return _decoded_picture(source, "this picture")
    if isinstance(source, (str, Path)):
        with _open(Path(source)) as picture:
            return _decoded_picture(picture, str(source))
    given = "nothing" if source is None else f"a {type(source).__name__}"
    raise DataError(f"no picture to read: got {given}; give a file path, a Pillow picture or a numpy array")


def common_bits(paths: Sequence[Path]) -> int | None:
    """The camera's bit depth, estimated from the highest values of a batch of pictures.

    At most 256 pictures, evenly chosen, are decoded. Returns None if fewer than two of them have more than
    8 bits: a single picture's own highest value is used anyway when it is read.
    """
    some = paths[:: -(-len(paths) // _LOOKED_AT)] if paths else paths
    with ThreadPoolExecutor(4) as pool:
        found = [bits for bits in pool.map(_bits_of, some) if bits is not None]
    return max(found) if len(found) > 1 else None


def _bits_of(path: Path) -> int | None:
    """Bit depth by the highest value; None for a plain or unreadable picture."""
    try:
        return decode(path).own_bits
    except (DataError, MemoryError):
        return None


def may_be_deep(path: Path) -> bool:
    """Whether a file has more than 8 bits per channel, from its header only."""
    suffix = path.suffix.lower()
    if suffix in _FLAT:
        return False
    try:
        if suffix == ".png":
            with path.open("rb") as file:
                return file.read(_HEADER)[24:25] == b"\x10"
        with _open(path) as picture:
            return picture.mode == "F" or picture.mode.startswith("I") or _has_deep_colours(picture)
    except (DataError, OSError):
        return False


def read_upright(path: Path) -> tuple[Image.Image, str]:
    """Decode a file's first frame and turn it upright by EXIF.

    Returns:
        The picture, and the name of its file format ("" if unknown).

    Raises:
        DataError: the file cannot be read.
    """
    with _open(path) as picture:
        _load(picture, str(path))
        return _upright(picture), picture.format or ""


def orientation(path: Path) -> int:
    """A file's EXIF orientation, 1 (upright) to 8. Raises DataError if the file cannot be read."""
    with _open(path) as picture:
        return _orientation(picture)


def _open(path: Path) -> Image.Image:
    try:
        if path.is_dir():
            raise DataError(f"{path} is a folder: give a picture file")
        if not path.is_file():
            raise DataError(f"{path} does not exist: check the path")
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty: save or upload it again")
        Image.init()
        # Pillow runs Ghostscript to read EPS, which is unsafe for uploaded files.
        return Image.open(path, formats=[name for name in Image.ID if name != "EPS"])
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(_too_large(path)) from error
    except UnidentifiedImageError as error:
        hint = "give PNG, JPEG, TIFF or WebP"
        raise DataError(f"{path} is not a picture that can be read, or is damaged: {hint}") from error
    except PermissionError as error:
        raise DataError(f"{path} may not be read: check its permissions") from error
    except Exception as error:  # decoders raise all kinds of errors on a malformed header
        raise DataError(f"{path} cannot be opened as a picture: save or upload it again") from error


def _load(picture: Image.Image, name: str) -> None:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise DataError(_too_large(name))
    try:
        picture.load()
    except (Image.DecompressionBombError, MemoryError) as error:
        raise DataError(_too_large(name)) from error
    except Exception as error:  # decoders raise all kinds of errors on malformed data
        raise DataError(f"{name} is damaged or cut off: save or upload it again") from error


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken metadata; the pixels are still usable
        return 1


def _upright(picture: Image.Image) -> Image.Image:
    try:
        if _orientation(picture) == 1:
            return picture  # saves a copy
        return ImageOps.exif_transpose(picture, in_place=False)
    except Exception:  # broken metadata, as above
        return picture.copy()


def _has_deep_colours(picture: Image.Image) -> bool:
    """Whether Pillow would reduce 16-bit colours to 8 bits. The picture must not be loaded yet."""
    if picture.mode.startswith(("I", "F")) or not (tiles := getattr(picture, "tile", None)):
        return False
    arguments = tiles[0][3]
    if tiles[0][0] in ("ppm", "ppm_plain"):
        return bool(arguments[1] == white(16))  # Pillow scales other ranges to 8 bits correctly
    return ";16" in (arguments if isinstance(arguments, str) else str(arguments[0]))


def _file_of(picture: Image.Image) -> bytes:
    """The bytes of the picture's file, whose read position is kept; empty if the file is closed."""
    source: IO[bytes] | None = getattr(picture, "fp", None)
    if source is None or source.closed:
        return b""
    place = source.tell()
    source.seek(0)
    file = source.read()
    source.seek(place)
    return file


def _check_planes(picture: Image.Image, name: str) -> None:
    """Raise DataError for TIFFs with 16-bit colours in separate planes, which Pillow and OpenCV misread."""
    tags = getattr(picture, "tag_v2", {})
    depth = tags.get(ExifTags.Base.BitsPerSample, 8)
    if tags.get(ExifTags.Base.PlanarConfiguration) == 2 and isinstance(depth, tuple) and max(depth) > 8:
        raise DataError(f"{name} has {max(depth)}-bit colours in separate planes: save it as PNG")


def _white_of(picture: Image.Image) -> int | None:
    """The white level of a 16-bit grey picture if its file states it. The picture must not be loaded yet."""
    tiles = getattr(picture, "tile", None)
    if not tiles:
        return None
    name, arguments = tiles[0][0], tiles[0][3]
    if name in ("ppm", "ppm_plain") and arguments[1] < white(16):
        return white(16)  # Pillow scales the values to this range
    packed = isinstance(arguments, tuple) and "I;12" in map(str, arguments)
    return white(12) if packed else None


def _decoded_picture(picture: Image.Image, name: str) -> Decoded:
    _check_size(picture.height, picture.width, name)
    _check_planes(picture, name)
    top, file = _white_of(picture), _file_of(picture) if _has_deep_colours(picture) else b""
    _load(picture, name)
    if file and (colours := deep_colours(file)) is not None:
        if picture.format != "TIFF":
            colours = turned(colours, _orientation(picture))
        return Decoded(np.ascontiguousarray(colours))
    if file and np.asarray(picture).max() < 64:  # only high bytes are left: at most 14 bits
        raise DataError(f"{name} has 16-bit colours of a kind that cannot be read in full: save it as PNG")
    upright = _upright(picture)
    mode = upright.mode
    if mode == "F" or mode == "I" or mode.startswith("I;16"):
        return _decoded_numbers(np.array(upright), name, top)
    try:
        if upright.has_transparency_data:
            if mode == "La":
                upright = upright.convert("LA")
            return Decoded(_over_white(np.asarray(upright.convert("RGBA"))))
        if mode == "LAB":
            upright = _lab_to_rgb(upright)
        return Decoded(np.array(upright if upright.mode == "RGB" else upright.convert("RGB")))
    except Exception as error:  # colour management raises its own errors
        raise DataError(
            f"{name} has colours of kind {mode} that cannot be converted: save it as RGB"
        ) from error


def _decoded_array(array: Array) -> Decoded:
    name = "this array"
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4):
        shape = " × ".join(str(n) for n in array.shape)
        raise DataError(f"an array of shape {shape or '()'} is no picture: give H × W or H × W × 3")
    _check_size(array.shape[0], array.shape[1], name)
    values = array.reshape(array.shape[:2]) if channels == 1 else array
    if array.dtype == bool:
        values = values.astype(np.uint8) * 255
    elif array.dtype.kind == "f" or (array.dtype.kind in "iu" and array.dtype.itemsize in (2, 4)):
        return _decoded_numbers(np.array(values), name)
    elif array.dtype != np.uint8:
        raise DataError(f"an array of {array.dtype} is no picture: give uint8, uint16, int32, bool or float")
    return Decoded(_plain_rgb(values))


def _decoded_numbers(values: Array, name: str, top: int | None = None) -> Decoded:
    """Check integer or float values and scale them to 8 bits if the white level `top` is known."""
    low, high = float(values.min()), float(values.max())  # both are NaN if any value is
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(f"{name} holds values that are not finite (NaN or infinity): replace them first")
    is_float = values.dtype.kind == "f"
    if low < (-1e-4 if is_float else 0) or high > white(16):  # tolerate rounding
        kinds = "0..1 or 0..65535" if is_float else "0..65535"
        raise DataError(f"{name} holds values from {low:.6g} to {high:.6g}: scale them to {kinds}")
    if top is None and is_float and high <= 1 + 1e-4:
        top = 1
    return Decoded(values) if top is None else Decoded(_plain_rgb(to_8_bits(values, top)))


def _plain_rgb(values: Array) -> U8:
    """Convert uint8 [H, W], [H, W, 3] or [H, W, 4] to RGB [H, W, 3], always a copy."""
    if values.ndim == 2:
        return _grey_to_rgb(values)
    return np.array(values) if values.shape[2] == 3 else _over_white(values)


def _check_size(height: int, width: int, name: str) -> None:
    if min(height, width) < MIN_SIDE:
        size, least = size_text((height, width)), size_text((MIN_SIDE, MIN_SIDE))
        raise DataError(f"{name} is {size}: give a picture of at least {least}")
    if height * width > MAX_PIXELS:
        raise DataError(_too_large(name))


def _too_large(name: str | Path) -> str:
    return f"{name} has more than {MAX_PIXELS // 1_000_000} million pixels: scale it down or cut it up first"


def size_text(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} × {shape[0]} pixels"


def _grey_to_rgb(grey: U8) -> U8:
    return np.repeat(grey[..., None], 3, axis=-1)


def _over_white(rgba: U8) -> U8:
    white = Image.new("RGBA", (rgba.shape[1], rgba.shape[0]), "white")
    return np.array(Image.alpha_composite(white, Image.fromarray(np.ascontiguousarray(rgba))).convert("RGB"))


def _lab_to_rgb(picture: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(picture, lab, srgb, outputMode="RGB")
    assert converted is not None  # None is for conversions in place
    return converted
