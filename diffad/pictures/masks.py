"""Masks of defects: read in any format and convention, brought onto the grid that a map has, and what is
doubtful about a set of them in sentences.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from diffad.pictures.arrays import U8, Array, Bools, Floats
from diffad.pictures.depth import turned
from diffad.pictures.geometry import Geometry, check_mask_fits, nearest
from diffad.pictures.reading import DataError, decode, orientation, read_image, read_upright
from diffad.pictures.samples import Sample, all_unusable, listed, short

_LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")  # formats that ring around edges
_KINDS = 32  # kinds of defects with a number or a colour of their own in one mask, at most
_CORNER = 0.01  # share of the border that must be black for black to be the background there
_CLEARLY = 2  # times the edges under every mask's outline: so it was meant to be turned
_OFTEN = 2  # standard deviations that many masks together must be from telling nothing: likewise
_SAID = {
    "inverted": "Masks have a bright border, which was taken as the background",
    "turned": "Masks were turned like their pictures (EXIF orientation), which they fit better so",
    "unclear": "Pictures are turned by their EXIF orientation, and it is not clear whether their masks are "
    "turned already; these were left as they are",
    "empty": "Empty masks of defective pictures count as missing",
    "large": "Masks that cover more than half of their picture (invert them if their background is white)",
}


def read_mask(path: str | Path, shape: tuple[int, int] | None = None, invert: bool = False) -> Bools:
    """Decode a defect mask to bool [H, W]; the file's own EXIF orientation is applied.

    The background is black if the border is black at least in places, else the border's most common colour
    (a mask that is white along its whole border is an inverted one). The defect is what differs from it by
    more than half of the greatest difference, and any other flat colour. Greys up to 32 are numbers of kinds
    of defects. Of a transparent picture the alpha is the mask, unless a few colours tell the defect.
    invert: take the opposite. Raises DataError if the file cannot be read, or if `shape` (height, width) is
    given and differs.
    """
    mask, _ = _read(Path(path))
    if shape is not None:
        check_mask_fits(mask, shape, path)
    return ~mask if invert else mask


def mask_of(sample: Sample, shape: tuple[int, int]) -> Bools:
    """The defect's mask bool [H, W] of a picture of that shape, empty without a file. Raises DataError."""
    if sample.mask is None:
        return np.zeros(shape[:2], bool)
    mask, _ = _read(sample.mask)
    mask = _as_its_picture(mask, sample, shape)
    check_mask_fits(mask, shape, sample.mask)
    return ~mask if "invert" in sample.mask_needs else mask


def mask_inside(sample: Sample, shape: tuple[int, int], size: int) -> Array | None:
    """`mask_of` in the rectangle that the picture fills in a square of `size`, bool [h, w]; None for a defect
    without a mask. Raises DataError.
    """
    geometry = Geometry.letterbox(*shape[:2], size)
    return mask_on_grid(sample, shape, (geometry.inner_height, geometry.inner_width))


def mask_on_grid(sample: Sample, shape: tuple[int, int], grid: tuple[int, int]) -> Array | None:
    """`mask_of` on a grid of `grid` over the picture, by nearest neighbour, bool; None for a defect that
    without a mask. Raises DataError.
    """
    if sample.is_anomalous and sample.mask is None:
        return None
    mask = mask_of(sample, shape)
    if sample.is_anomalous and not mask.any():
        return None
    rows, columns = (nearest(few, many) for few, many in zip(grid, shape))
    return mask[np.ix_(rows, columns)]


def survey(groups: Mapping[str, Sequence[Sample]]) -> tuple[dict[str, int | None], dict[Path, str]]:
    """Decode every picture and mask of samples by category once: (how many bits each category's pictures
    have by their highest value, None if all are 8-bit files; by picture why it or its mask cannot be used).
    """
    samples = list(chain(*groups.values()))
    with ThreadPoolExecutor(4) as pool:  # decoders release the interpreter's lock
        found = dict(zip((sample.image for sample in samples), pool.map(_surveyed, samples)))
    bits = {
        name: max((found[sample.image][0] or 0 for sample in group), default=0) or None
        for name, group in groups.items()
    }
    return bits, {path: wrong for path, (_, wrong) in found.items() if wrong}


def _surveyed(sample: Sample) -> tuple[int | None, str]:
    try:
        decoded = decode(sample.image)
        mask_of(sample, decoded.values.shape)
    except DataError as error:
        return None, str(error)
    return decoded.own_bits, ""


def check_readable(groups: Mapping[str, Sequence[Sample]]) -> dict[str, int | None]:
    """`survey`'s bits by category. A picture or mask that cannot be used is known before the work and not in
    its midst: raises DataError that names them all.
    """
    bits, unusable = survey(groups)
    if unusable:
        raise DataError(all_unusable(unusable.values(), "replace or remove them"))
    return bits


# ---------------------------------------------------------------------------------------------------------
# One file


def _read(path: Path) -> tuple[Array, bool]:
    """The mask bool [H, W], and whether it was taken as inverted."""
    picture, kind = read_upright(path)
    colours = _colours(picture)  # [H, W, C]
    top = float(colours.max())
    if top <= 0 or (colours == colours[:1, :1]).all():  # of one colour: nothing, or the whole picture
        return np.full(colours.shape[:2], top > 0), False
    background = _background(colours, top)
    distance = np.abs(colours - background).max(axis=2)
    return _defect(distance, top, kind in _LOSSY), bool(background.max() > top / 2)


def _colours(picture: Image.Image) -> U8:
    """What tells the defect from the background: greys, colours or alpha, [H, W, C]."""
    if picture.mode in ("1", "L", "F") or picture.mode.startswith("I"):
        return _wide(np.asarray(picture))[..., None]
    rgba = np.asarray(picture.convert("RGBA"))
    colours, alpha = rgba[..., :3], rgba[..., 3]
    if (alpha == alpha[0, 0]).all():
        return _wide(colours)
    if 2 <= len(np.unique(colours[alpha > alpha.max() / 2], axis=0)) <= _KINDS:
        return _wide(np.where(alpha[..., None] > alpha.max() / 2, colours, 0))
    return _wide(alpha)[..., None]


def _wide(values: Array) -> Array:
    """Of a type in which differences fit."""
    return values.astype(np.int16 if values.dtype.itemsize == 1 else np.float32)


def _background(colours: Array, top: float) -> Array:
    border = np.concatenate([colours[0], colours[-1], colours[:, 0], colours[:, -1]])  # [n, C]
    if (border.max(axis=1) <= top / 8).mean() >= _CORNER:
        return np.zeros_like(border[0])
    coarse = np.rint(border * (15 / top))  # in a lossy format hardly two pixels are equal
    _, which, counts = np.unique(coarse, axis=0, return_inverse=True, return_counts=True)
    return np.asarray(np.median(border[which.reshape(-1) == counts.argmax()], axis=0))


def _defect(distance: Floats, top: float, lossy: bool) -> Bools:
    """Where the distance from the background [H, W] is the defect's; top: the file's highest value."""
    if top <= _KINDS and not lossy and (distance == np.rint(distance)).all():
        return distance > 0
    half = distance.max() / 2
    mask: Bools = distance > half
    levels = np.unique(distance)
    if not lossy and len(levels) <= _KINDS + 1:  # a soft edge has more, or is nowhere flat
        for level in levels[(levels > half / 8) & (levels <= half)]:
            kind = distance == level
            if cv2.erode(kind.astype(np.uint8), np.ones((3, 3), np.uint8)).any():
                mask |= kind
    return mask


def _as_its_picture(mask: Bools, sample: Sample, shape: tuple[int, int]) -> Bools:
    """The mask turned like its picture where only so it can fit, or where `settled` found so."""
    fits = mask.shape == tuple(shape[:2])
    if sample.mask is None or (fits and "turn" not in sample.mask_needs) or orientation(sample.mask) != 1:
        return mask
    other = turned(mask, orientation(sample.image))
    return other if other.shape == tuple(shape[:2]) else mask


# ---------------------------------------------------------------------------------------------------------
# A set of them


@dataclass(frozen=True)
class _Look:
    """What one mask says of itself. inverted: taken so. share: of the picture that it covers. better_turned:
    the logarithm of how much better it fits turned like its picture, None if that is no question.
    """

    inverted: bool
    share: float
    better_turned: float | None


def settled(samples: Sequence[Sample]) -> tuple[list[Sample], list[str]]:
    """One category's samples with what their masks need to be read rightly (`Sample.mask_needs`), empty
    masks of defects taken away, and sentences about all that was decided or is doubtful.

    Inverted masks and masks that were not turned like their pictures are a habit of whoever drew them: what
    most of them show holds for those that do not show it clearly. A mask that cannot be read or has another
    size says nothing here.
    """
    drawn = [sample for sample in samples if sample.is_anomalous and sample.mask is not None]
    with ThreadPoolExecutor(4) as pool:
        looks = {sample: look for sample, look in zip(drawn, pool.map(_look, drawn)) if look is not None}
    found: dict[str, list[Path]] = {key: [] for key in _SAID}
    inverted = 2 * sum(look.inverted for look in looks.values()) > len(looks)
    turn = _habit([look.better_turned for look in looks.values() if look.better_turned is not None])
    result = []
    for sample in samples:
        look, needs = looks.get(sample), set()
        if look is None or sample.mask is None:
            result.append(sample)
            continue
        share = look.share
        if inverted and not look.inverted and share > 0.5:
            needs.add("invert")
            share = 1 - share
        if look.better_turned is not None and turn:
            needs.add("turn")
        said = {
            "inverted": look.inverted or "invert" in needs, "empty": share == 0, "large": share > 0.5,
            "turned": "turn" in needs, "unclear": look.better_turned is not None and turn is None,
        }  # fmt: skip
        for key in (key for key, holds in said.items() if holds):
            found[key].append(sample.mask)
        result.append(replace(sample, mask=None if share == 0 else sample.mask, mask_needs=frozenset(needs)))
    return result, [f"{_SAID[key]}: {listed(map(short, paths))}." for key, paths in found.items() if paths]


def _look(sample: Sample) -> _Look | None:
    if sample.mask is None:
        return None
    try:
        mask, inverted = _read(sample.mask)
        share = float(mask.mean())
        turn = orientation(sample.image)
        if turn == 1 or orientation(sample.mask) != 1 or not mask.any():
            return _Look(inverted, share, None)
        image, other = read_image(sample.image), turned(mask, turn)
    except DataError:
        return None
    if not image.shape[:2] == mask.shape == other.shape or (other == mask).all():
        return _Look(inverted, share, None)
    return _Look(inverted, share, math.log(_edges(image, other) / _edges(image, mask)))


def _edges(image: U8, mask: Bools) -> float:
    """How much the picture changes along the mask's outline: a defect has edges where it ends."""
    smooth = cv2.GaussianBlur(image, (0, 0), max(image.shape[:2]) / 256).astype(np.float32)
    slopes = (cv2.Sobel(smooth, cv2.CV_32F, *way) for way in ((1, 0), (0, 1)))
    steep = sum(np.abs(slope).max(axis=2) for slope in slopes)
    outline = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    return float(steep[outline].mean()) + 1e-6


def _habit(better: Iterable[float]) -> bool | None:
    """Whether masks are to be turned; None if they do not tell. better: see `_Look.better_turned`."""
    better = list(better)
    if not better:
        return False
    total, size = sum(better), math.hypot(*better)
    each = all(value * total > 0 and abs(value) > math.log(_CLEARLY) for value in better)
    return total > 0 if each or abs(total) > _OFTEN * size else None
