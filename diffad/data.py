"""Pictures in: decoding of anything people upload, the model's square and the way back, sample trees."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from diffad.depth import bits_for, deep_colours, to_8_bits, turned, white

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .gif .jfif .jp2 .jpeg .jpg .pgm .png .pnm .ppm .tga .tif .tiff .webp".split()
)
MIN_SIDE = 16  # pixels; below this there is nothing to inspect
MAX_PIXELS = 178_956_970  # where Pillow, too, calls a file a decompression bomb
_FLAT = frozenset(".avif .bmp .gif .jfif .jpeg .jpg .tga .webp".split())  # never more than 8 bits in memory
_HEADER = 26  # bytes of a PNG's, up to its colour type
_NAMED = 20  # unusable files in one message, at most
_LOOKED_AT = 256  # pictures of a batch that tell how many bits its camera has, at most

# Pillow's remarks about large or damaged files are no news beside a DataError, or its absence.
warnings.filterwarnings("ignore", module=r"PIL\.")

LAYOUT = (
    "expected an MVTec category (train/good, test/<defect>, ground_truth/<defect>), "
    "a folder of such categories, or a folder of pictures"
)
GOOD_NAMES = frozenset(  # of folders of good parts, in small letters without what stands between them
    "defectfree good goodparts gut gutteile io nodefect normal ok okay okparts pass passed".split()
)


class DataError(ValueError):
    """A picture, mask or folder cannot be used; the message is one sentence that says what to do."""


# ---------------------------------------------------------------------------------------------------------
# Decoding


@dataclass(frozen=True, eq=False)
class Decoded:
    """A picture as its file or array holds it, upright.

    values: uint8 [H, W, 3] if it is known what is white in it. Else numbers from 0 to 65535, [H, W] or, with
    alpha last, [H, W, 3 or 4], of which only a guess can be made, or what is known of the camera.
    """

    values: np.ndarray

    @property
    def is_plain(self) -> bool:
        """Whether it is known what is white."""
        return self.values.dtype == np.uint8

    @cached_property
    def highest(self) -> float:
        """The highest value, alpha aside."""
        return float((self.values[..., :3] if self.values.ndim == 3 else self.values).max())

    def bits(self, wanted: int | None = None) -> int:
        """How many the values have: as many as wanted, or the fewest of a camera (`depth.DEPTHS`) that hold
        the highest if that are more or none are wanted. 8 of a plain picture.
        """
        return 8 if self.is_plain else max(wanted or 0, bits_for(self.highest))

    @property
    def own_bits(self) -> int | None:
        """The fewest that hold the highest value; None of a plain picture."""
        return None if self.is_plain else self.bits()

    def image(self, bits: int | None = None) -> np.ndarray:
        """uint8 RGB [H, W, 3], transparent pixels over white. bits: see `bits`."""
        if self.is_plain:
            return self.values
        top = white(self.bits(bits))
        if self.values.ndim == 2:
            return _grey_to_rgb(to_8_bits(self.values, top))
        colours = to_8_bits(self.values[..., :3], top)
        if self.values.shape[2] == 3:
            return colours
        alpha = self.values[..., 3]
        opaque = top if alpha.max() <= top else white(16)  # the camera's range, or the file's
        if self.values.dtype.kind == "f" and alpha.max() <= 1:
            opaque = 1
        return _over_white(np.dstack([colours, to_8_bits(alpha, opaque)]))


def read_image(source: str | Path | Image.Image | np.ndarray, bits: int | None = None) -> np.ndarray:
    """`decode` a picture to uint8 RGB [H, W, 3] (`Decoded.image`)."""
    return decode(source).image(bits)


def decode(source: str | Path | Image.Image | np.ndarray) -> Decoded:
    """Decode a picture; the source is never modified and shares no memory.

    Files: whatever Pillow reads (not EPS), turned upright by EXIF, first frame of animations; 48-bit colours
    with all their bits. Pillow pictures: turned upright likewise, the current frame.
    Arrays: [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] of bool, uint8, other integers of up to 32 bits
    (0..65535) or float: up to 1 they are 0..1, above like integers.

    Raises DataError for a missing, foreign, damaged or empty file, a side under 16 pixels, more than about
    179 million pixels, values out of range or not finite, and other array shapes or types.
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
    """How many bits the camera of these pictures has, by the highest value of those whose files do not say it
    (of more than 256 evenly chosen ones). None unless there are two: one alone says no more than itself.
    """
    some = paths[:: -(-len(paths) // _LOOKED_AT)] if paths else paths
    with ThreadPoolExecutor(4) as pool:
        found = [bits for bits in pool.map(_bits_of, some) if bits is not None]
    return max(found) if len(found) > 1 else None


def _bits_of(path: Path) -> int | None:
    """None for a picture that is plain, or cannot be read: whoever judges it says so."""
    try:
        return decode(path).own_bits
    except (DataError, MemoryError):
        return None


def may_be_deep(path: Path) -> bool:
    """Whether a file holds more than 8 bits, by its header alone."""
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
    """A file's first frame, decoded and turned upright by EXIF, and the name of its format. Raises DataError
    if it cannot be read.
    """
    with _open(path) as picture:
        _load(picture, str(path))
        return _upright(picture), picture.format or ""


def orientation(path: Path) -> int:
    """How a file's picture is stored, 1 (upright) to 8 as EXIF counts. Raises DataError as `read_upright`."""
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
        # EPS would be handed to an outside program (Ghostscript): never for files that strangers upload.
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
    except Exception as error:  # decoders raise anything at all on a malformed header
        raise DataError(f"{path} cannot be opened as a picture: save or upload it again") from error


def _load(picture: Image.Image, name: str) -> None:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise DataError(_too_large(name))
    try:
        picture.load()
    except (Image.DecompressionBombError, MemoryError) as error:
        raise DataError(_too_large(name)) from error
    except Exception as error:  # decoders raise anything at all on malformed data
        raise DataError(f"{name} is damaged or cut off: save or upload it again") from error


def _orientation(picture: Image.Image) -> int:
    try:
        return picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken metadata does not spoil the pixels
        return 1


def _upright(picture: Image.Image) -> Image.Image:
    try:
        if _orientation(picture) == 1:
            return picture  # transposing copies in any case
        return ImageOps.exif_transpose(picture)
    except Exception:  # broken metadata, again
        return picture.copy()


def _has_deep_colours(picture: Image.Image) -> bool:
    """Whether Pillow would drop the low bytes of its colours. Of a picture that is not loaded yet."""
    if picture.mode.startswith(("I", "F")) or not (tiles := getattr(picture, "tile", None)):
        return False
    arguments = tiles[0][3]
    if tiles[0][0] in ("ppm", "ppm_plain"):
        return arguments[1] == white(16)  # of other ranges Pillow makes 8 bits as it should
    return ";16" in (arguments if isinstance(arguments, str) else str(arguments[0]))


def _file_of(picture: Image.Image) -> bytes:
    """What it is read from, whose place is kept; nothing if that is closed by now, as loading will say."""
    if picture.fp is None or picture.fp.closed:
        return b""
    place = picture.fp.tell()
    picture.fp.seek(0)
    file = picture.fp.read()
    picture.fp.seek(place)
    return file


def _check_planes(picture: Image.Image, name: str) -> None:
    """Pillow and OpenCV both mistake deep colours for others where a TIFF stores one after the other."""
    tags = getattr(picture, "tag_v2", {})
    depth = tags.get(ExifTags.Base.BitsPerSample, 8)
    if tags.get(ExifTags.Base.PlanarConfiguration) == 2 and isinstance(depth, tuple) and max(depth) > 8:
        raise DataError(f"{name} has {max(depth)}-bit colours in separate planes: save it as PNG")


def _white_of(picture: Image.Image) -> int | None:
    """The highest value of a 16-bit grey, where the file says it. Of a picture that is not loaded yet."""
    tiles = getattr(picture, "tile", None)
    if not tiles:
        return None
    name, arguments = tiles[0][0], tiles[0][3]
    if name in ("ppm", "ppm_plain") and arguments[1] < white(16):
        return white(16)  # Pillow has scaled them
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
    if file and max(high for _, high in picture.getextrema()) < 64:  # in the high bytes: 14 bits at most
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
    except Exception as error:  # colour management has errors of its own
        raise DataError(
            f"{name} has colours of kind {mode} that cannot be converted: save it as RGB"
        ) from error


def _decoded_array(array: np.ndarray) -> Decoded:
    name = "this array"
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4):
        shape = " × ".join(str(n) for n in array.shape)
        raise DataError(f"an array of shape {shape or '()'} is no picture: give H × W or H × W × 3")
    _check_size(*array.shape[:2], name)
    values = array.reshape(array.shape[:2]) if channels == 1 else array
    if array.dtype == bool:
        values = values.astype(np.uint8) * 255
    elif array.dtype.kind == "f" or (array.dtype.kind in "iu" and array.dtype.itemsize in (2, 4)):
        return _decoded_numbers(np.array(values), name)
    elif array.dtype != np.uint8:
        raise DataError(
            f"an array of {array.dtype} is no picture: give uint8, uint16, int32, bool or float"
        )
    return Decoded(_plain_rgb(values))


def _decoded_numbers(values: np.ndarray, name: str, top: int | None = None) -> Decoded:
    """Of integers or floats, with what is white in them if the file says it."""
    low, high = float(values.min()), float(values.max())  # NaN spreads to both
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(f"{name} holds values that are not finite (NaN or infinity): replace them first")
    is_float = values.dtype.kind == "f"
    if low < (-1e-4 if is_float else 0) or high > white(16):  # room for rounding
        kinds = "0..1 or 0..65535" if is_float else "0..65535"
        raise DataError(f"{name} holds values from {low:.6g} to {high:.6g}: scale them to {kinds}")
    if top is None and is_float and high <= 1 + 1e-4:
        top = 1
    return Decoded(values) if top is None else Decoded(_plain_rgb(to_8_bits(values, top)))


def _plain_rgb(values: np.ndarray) -> np.ndarray:
    """uint8 [H, W] or [H, W, 3 or 4] → [H, W, 3] of its own memory."""
    if values.ndim == 2:
        return _grey_to_rgb(values)
    return np.array(values) if values.shape[2] == 3 else _over_white(values)


def _check_size(height: int, width: int, name: str) -> None:
    if min(height, width) < MIN_SIDE:
        size, least = _size_text((height, width)), _size_text((MIN_SIDE, MIN_SIDE))
        raise DataError(f"{name} is {size}: give a picture of at least {least}")
    if height * width > MAX_PIXELS:
        raise DataError(_too_large(name))


def _too_large(name: str | Path) -> str:
    return f"{name} has more than {MAX_PIXELS // 1_000_000} million pixels: scale it down or cut it up first"


def _size_text(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} × {shape[0]} pixels"


def _grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


def _over_white(rgba: np.ndarray) -> np.ndarray:
    white = Image.new("RGBA", (rgba.shape[1], rgba.shape[0]), "white")
    return np.array(Image.alpha_composite(white, Image.fromarray(np.ascontiguousarray(rgba))).convert("RGB"))


def _lab_to_rgb(picture: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.profileToProfile(picture, lab, srgb, outputMode="RGB")


# ---------------------------------------------------------------------------------------------------------
# The model's square and the way back


@dataclass(frozen=True)
class Geometry:
    """Where a picture of height × width lies in the model's square of size × size.

    The picture, scaled to inner_height × inner_width, starts at (top, left); edge padding fills the rest.
    Pixels are areas (half-pixel centres, `align_corners=False`): the point y in the picture, with the centre
    of row i at i + ½, lies at top + y · inner_height / height in the square; the same holds for columns.
    """

    height: int
    width: int
    size: int
    top: int
    left: int
    inner_height: int
    inner_width: int

    @classmethod
    def letterbox(cls, height: int, width: int, size: int) -> Geometry:
        """The largest centred place that keeps the aspect, up to rounding to whole pixels."""
        longest = max(height, width)
        inner_height = max(1, (2 * height * size + longest) // (2 * longest))  # rounded half up
        inner_width = max(1, (2 * width * size + longest) // (2 * longest))
        top, left = (size - inner_height) // 2, (size - inner_width) // 2
        return cls(height, width, size, top, left, inner_height, inner_width)

    @property
    def inner(self) -> tuple[slice, slice]:
        """Rows and columns of the square that the picture covers."""
        rows = slice(self.top, self.top + self.inner_height)
        return rows, slice(self.left, self.left + self.inner_width)

    def to_picture(self, maps: torch.Tensor | np.ndarray) -> torch.Tensor | np.ndarray:
        """Maps [..., size, size] → float32 [..., height, width], of the same kind (tensor or array) as given.

        The padding is cut off and the rest resampled bilinearly, with antialiasing where it shrinks.
        Raises DataError if the maps do not have this geometry's size.
        """
        if tuple(maps.shape[-2:]) != (self.size, self.size):
            shape = tuple(maps.shape)
            raise DataError(f"maps of shape {shape} do not fit: give [..., {self.size}, {self.size}]")
        return resize_maps(maps[(..., *self.inner)], (self.height, self.width))


def resize_maps(maps: torch.Tensor | np.ndarray, shape: tuple[int, int]) -> torch.Tensor | np.ndarray:
    """Maps [..., h, w] → float32 [..., *shape], of the same kind (tensor or array) as given.

    Bilinear with half-pixel centres, antialiased where it shrinks.
    """
    is_array = isinstance(maps, np.ndarray)
    resized = torch.from_numpy(np.array(maps, dtype=np.float32)) if is_array else maps.float()
    if tuple(maps.shape[-2:]) != tuple(shape):
        flat = resized.reshape(-1, 1, *maps.shape[-2:])
        flat = F.interpolate(flat, tuple(shape), mode="bilinear", antialias=True)
        resized = flat.reshape(*maps.shape[:-2], *shape)
    return resized.contiguous().numpy() if is_array else resized.contiguous()


def to_square(image: np.ndarray, size: int) -> tuple[torch.Tensor, Geometry]:
    """Letterbox uint8 [H, W, 3] into the model's square: float32 [3, size, size] in [-1, 1], its geometry.

    Resampling is Lanczos's with antialiasing and half-pixel centres, which keeps most of the sharpness
    whatever the size: a part photographed larger must not look blurred beside the ones that the model knows.
    The padding repeats the picture's edge. A picture of exactly size × size comes out as value / 127.5 − 1,
    untouched.
    Raises DataError for anything but uint8 [H, W, 3].
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"this is {image.dtype} {image.shape}, not uint8 [H, W, 3]: use read_image first")
    geometry = Geometry.letterbox(image.shape[0], image.shape[1], size)
    inner = Image.fromarray(np.ascontiguousarray(image))
    inner = inner.resize((geometry.inner_width, geometry.inner_height), Image.Resampling.LANCZOS)
    bottom = size - geometry.top - geometry.inner_height
    right = size - geometry.left - geometry.inner_width
    padded = np.pad(np.asarray(inner), ((geometry.top, bottom), (geometry.left, right), (0, 0)), mode="edge")
    square = torch.from_numpy(padded.astype(np.float32) / 127.5 - 1)  # [size, size, 3]
    return square.permute(2, 0, 1).contiguous(), geometry


def to_uint8(square: torch.Tensor) -> torch.Tensor:
    """float [-1, 1] → uint8."""
    return ((square + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_float(pictures: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 [b, 3, s, s] → float32 in [−1, 1] on the device."""
    return pictures.to(device).float() / 127.5 - 1


def mask_to_square(mask: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Bring a mask bool [H, W] into `to_square`'s square: bool [size, size], nearest, False in the padding.

    Raises DataError if the mask does not have the picture's size.
    """
    check_mask_fits(mask, (geometry.height, geometry.width))
    rows = nearest(geometry.inner_height, geometry.height)
    columns = nearest(geometry.inner_width, geometry.width)
    square = np.zeros((geometry.size, geometry.size), dtype=bool)
    square[geometry.inner] = mask[np.ix_(rows, columns)]
    return square


def check_mask_fits(mask: np.ndarray, shape: tuple[int, ...], name: str | Path = "the mask") -> None:
    """Raises DataError if the mask [H, W] does not have its picture's height and width."""
    if mask.shape != tuple(shape[:2]):
        raise DataError(
            f"{name} is {_size_text(mask.shape)}, but its picture is {_size_text(shape)}: "
            "give a mask of the picture's own size"
        )


def nearest(inner: int, outer: int) -> np.ndarray:
    """For each of `inner` pixels the one of `outer` pixels under its centre, in exact integers."""
    return (2 * np.arange(inner) + 1) * outer // (2 * inner)


# ---------------------------------------------------------------------------------------------------------
# Samples


@dataclass(frozen=True)
class Sample:
    """A picture file and what the folders around it say.

    `split` is "train", "test" or "" (a plain folder), `defect` is "good", the defect's name or "" (unknown).
    `mask_needs`: what the mask must undergo to be read rightly, "invert" or "turn" (like the picture, by its
    EXIF orientation); see `masks.settled`.
    """

    image: Path
    category: str
    split: str = ""
    defect: str = ""
    mask: Path | None = None
    mask_needs: frozenset[str] = frozenset()

    @property
    def is_anomalous(self) -> bool | None:
        """None if unknown."""
        return None if self.defect == "" else self.defect != "good"


def find_samples(root: str | Path, split: str | None = None) -> list[Sample]:
    """List the pictures under an MVTec category, a folder of categories, a plain folder, or one file.

    In plain folders (not searched deeper) and for single files the category is the folder's name (of `good`
    and `train` that of the folder around it), split and defect are "". Good parts lie in train/<GOOD_NAMES>,
    or in train itself if it holds no folders, and in test/<GOOD_NAMES>. Masks are
    ground_truth/<defect>/<stem>_mask.png or <stem>.png, else <stem>_mask.png beside the picture, also of
    other kinds, else None; no mask is listed as a picture. Folders and suffixes may be written in any case,
    with -, _ or space. The order is natural ("2" before "10") by category, split, defect and name. `split`
    keeps only "train" or "test", and the other need not be understood; pictures without a split are always
    kept. Raises DataError if there is nothing, or for a folder whose pictures have no certain label.
    """
    root = Path(root)
    if split not in (None, "train", "test"):
        raise DataError(f'unknown split "{split}": choose "train" or "test"')
    try:
        samples = list(_samples(root, split))
    except DataError:
        raise
    except (PermissionError, ValueError) as error:  # ValueError: a zero byte in the path
        path = getattr(error, "filename", None) or root
        raise DataError(f"{path} may not be read: check the path and its permissions") from error
    if not samples and not root.is_dir():
        raise DataError(f"there is no file or folder {root}: check the path")
    if not samples:
        kind = f"no {split} pictures" if split and any(_samples(root, None)) else "no pictures"
        held = f" (it holds the {_folders(subfolders(root))})" if subfolders(root) else ""
        raise DataError(f"{kind} in {root}{held}: {LAYOUT}")
    return samples


def find_all(roots: Iterable[str | Path], split: str | None = None) -> list[Sample]:
    """`find_samples` of several folders; a picture that is reached twice is taken once: else one that is held
    out of training by one name could be trained on by the other.
    """
    found: dict[Path, Sample] = {}
    for root in roots:
        for sample in find_samples(root, split):
            found.setdefault(sample.image.resolve(), sample)
    return list(found.values())


def labelled(samples: Iterable[Sample], limit: int | None = None) -> dict[str, list[Sample]]:
    """Labelled pictures that are not for training by category, good ones first, each label in its order and
    thinned evenly to at most `limit`. Raises DataError if there is none.
    """
    labels: dict[str, tuple[list[Sample], list[Sample]]] = {}
    for sample in samples:
        if sample.split != "train" and sample.is_anomalous is not None:
            labels.setdefault(sample.category, ([], []))[sample.is_anomalous].append(sample)
    if not labels:
        raise DataError("no picture has a label: measuring needs test/good and test/<defect> folders (MVTec)")
    return {name: [*chain(*(_thinned(some, limit) for some in both))] for name, both in labels.items()}


def _thinned(some: list[Sample], limit: int | None) -> list[Sample]:
    if limit is None or len(some) <= limit:
        return some
    return [some[int((i + 0.5) * len(some) / limit)] for i in range(limit)]


def all_unusable(reasons: Iterable[str], advice: str) -> str:
    """One sentence of those about single files; of several without each one's own advice."""
    every = list(reasons)
    if len(every) == 1:
        return every[0]
    # what to do stands behind the last colon
    named = [reason.rpartition(": ")[0] for reason in every[:_NAMED]]
    more = len(every) - len(named)
    rest = f"; and {more} more" if more else ""
    return f"{len(every)} files cannot be used: {'; '.join(named)}{rest}: {advice}"


def is_good_name(name: str) -> bool:
    """Whether a folder of this name holds good parts: one of GOOD_NAMES, as `plain` writes it."""
    return plain(name) in GOOD_NAMES


def plain(name: str) -> str:
    """In small letters, without spaces and punctuation: how names of folders are compared."""
    return re.sub(r"[\W_]+", "", name.casefold())


def named(parent: Path, name: str) -> list[Path]:
    """Folders in `parent` of that name, however it is written."""
    return [folder for folder in subfolders(parent) if plain(folder.name) == plain(name)]


def _samples(root: Path, split: str | None) -> Iterator[Sample]:
    if root.is_file():
        yield Sample(root, _folder_name(root.parent))
    elif _is_category(root):
        yield from _category_samples(root, split)
    elif root.is_dir():
        categories = [folder for folder in subfolders(root) if _is_readable_category(folder)]
        if categories and (beside := picture_files(root)) and split != "test":
            log.warning(
                "what lies beside the category folders in %s is left out (pictures: %d): move it into a "
                "folder of its own", root, len(beside),
            )  # fmt: skip
        for folder in categories:
            yield from _category_samples(folder, split)
        if not categories:
            yield from (Sample(path, _folder_name(root)) for path in pictures_and_masks(root))


def _category_samples(folder: Path, split: str | None) -> Iterator[Sample]:
    category = _folder_name(folder)
    if (beside := picture_files(folder)) and split != "test":
        log.warning(
            "what lies beside train and test in %s is left out (pictures: %d): move it there, or into a "
            "folder of its own", folder, len(beside),
        )  # fmt: skip
    if split != "test":
        for train in named(folder, "train"):
            for good in _good_folders(train):
                yield from (Sample(path, category, "train", "good") for path in pictures_and_masks(good))
    if split != "train":
        for test in named(folder, "test"):
            for defect in _labelled_folders(test):
                yield from _test_samples(defect, folder, category)


def _good_folders(train: Path) -> list[Path]:
    """Where in a folder `train` good parts lie. Raises DataError if that is not certain."""
    folders, beside = subfolders(train), picture_files(train)
    if not folders:
        return [train]
    good = [folder for folder in folders if is_good_name(folder.name)]
    if not good:
        raise DataError(
            f"{train} holds the {_folders(folders)}: call the one with good parts {train.name}/good (or ok, "
            "normal, pass), and take the others out"
        )
    if left := [each for each in folders if each not in good]:
        log.warning("only good parts are for training: in %s the %s left out", train,
                    _folders(left, "is", "are"))
    if beside:
        log.warning("what lies beside the folders in %s is left out (pictures: %d)", train, len(beside))
    return good


def _labelled_folders(test: Path) -> list[Path]:
    """The folders in a folder `test`, one a label. Raises DataError if the pictures lie elsewhere."""
    folders, beside = subfolders(test), picture_files(test)
    if beside and not folders:
        raise DataError(
            f"{test} holds pictures in no folder, so that nothing tells good from defective: move them into "
            f"{test.name}/good and {test.name}/<defect>"
        )
    if beside:
        log.warning("what lies beside the folders in %s is left out (pictures: %d)", test, len(beside))
    for folder in folders:
        if (deeper := subfolders(folder)) and not picture_files(folder):
            raise DataError(
                f"{folder} holds the {_folders(deeper)} and no pictures: move the pictures into "
                f"{test.name}/good and {test.name}/<defect>"
            )
    return folders


def _test_samples(defect: Path, folder: Path, category: str) -> Iterator[Sample]:
    pictures = pictures_and_masks(defect)
    if is_good_name(defect.name):
        yield from (Sample(path, category, "test", "good") for path in pictures)
        return
    drawn = _drawn(list(pictures), [file for truth in named(folder, "ground_truth")
                                    for each in named(truth, defect.name) for file in picture_files(each)])
    for path, beside in pictures.items():
        yield Sample(path, category, "test", defect.name, drawn.get(path, beside))


def _drawn(pictures: Sequence[Path], files: Sequence[Path]) -> dict[Path, Path]:
    """Of each picture the mask among the files, if there is one; exact names go before others."""
    files = sorted(files, key=lambda file: file.suffix.lower() != ".png")[::-1]  # the last one stays
    exact = {file.stem: file for file in files}
    found = {}
    for path in pictures:
        if mask := exact.get(f"{path.stem}_mask") or exact.get(path.stem):
            found[path] = mask
    taken = set(found.values())
    free = {masked(file.stem) or file.stem.casefold(): file for file in files if file not in taken}
    return {path: found.get(path) or free[path.stem.casefold()] for path in pictures
            if path in found or path.stem.casefold() in free}


def pictures_and_masks(folder: Path) -> dict[Path, Path | None]:
    """A folder's pictures, each with the file <stem>_mask beside it, if there is one (in any case)."""
    files = picture_files(folder)
    stems = {file.stem.casefold() for file in files}
    masks = {masked(file.stem): file for file in files if masked(file.stem) in stems}
    taken = set(masks.values())
    return {file: masks.get(file.stem.casefold()) for file in files if file not in taken}


def masked(stem: str) -> str | None:
    """Of which picture's stem, in small letters, this is the mask by its name; None if it is none."""
    match = re.fullmatch(r"(.+)[-_. ]masks?", stem.casefold())
    return match and match[1]


def _folders(folders: Sequence[Path], *verbs: str) -> str:
    names = listed([f"'{folder.name}'" for folder in folders])
    return " ".join([f"folder{'s' * (len(folders) > 1)} {names}", *verbs[len(folders) > 1 :][:1]])


def short(path: Path, parts: int = 3) -> str:
    """The last parts of a path: a picture's name after its label and split."""
    return "/".join(path.parts[-parts:])


def listed(words: Iterable[str], limit: int = 10) -> str:
    """The first ones, and how many more there are."""
    words = list(words)
    more = [f"and {len(words) - limit} more"] if len(words) > limit else []
    return ", ".join([*words[:limit], *more])


def _is_category(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    return bool(named(folder, "test")) or any(not _is_category(train) for train in named(folder, "train"))


def _is_readable_category(folder: Path) -> bool:
    try:
        return _is_category(folder)
    except PermissionError:  # such as lost+found
        log.warning("%s may not be read and is left out: check its permissions if it is wanted", folder)
        return False


def _folder_name(folder: Path) -> str:
    """Of a part: the folder's name, or of the one around it where that only says that it is good."""
    parts = folder.parts if _tells(folder.name) and folder.name != ".." else folder.resolve().parts
    return next((part for part in reversed(parts) if _tells(part)), folder.name)


def _tells(name: str) -> bool:
    return plain(name) not in {"", "train", *GOOD_NAMES}


def subfolders(parent: Path) -> list[Path]:
    return [path for path in _children(parent) if path.is_dir()]


def picture_files(parent: Path) -> list[Path]:
    return [path for path in _children(parent) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]


def _children(parent: Path) -> list[Path]:
    """Visible entries in natural order; none if the folder does not exist."""
    if not parent.is_dir():
        return []
    return sorted((path for path in parent.iterdir() if not path.name.startswith(".")), key=_natural)


def _natural(path: Path) -> tuple:
    parts = re.split(r"(\d+)", path.name.casefold())  # text and digits take turns, text first
    return [(part, 0) if i % 2 == 0 else ("", int(part)) for i, part in enumerate(parts)], path.name
