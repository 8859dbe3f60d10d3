"""Defect masks: reading any format and convention, resampling, and warnings about doubtful ones."""

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

_LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")  # formats with ringing artefacts at edges
_KINDS = 32  # at most this many kinds of defects are numbered or coloured in one mask
_CORNER = 0.01  # share of the border that must be black for black to count as the background
# Masks are turned if that makes each fit its picture's edges this many times better, or if all together fit
# better by this many standard deviations.
_CLEARLY = 2
_OFTEN = 2
_WARNINGS = {
    "inverted": "Masks have a bright border, which was taken as the background",
    "turned": "Masks were turned like their pictures (EXIF orientation), which they fit better so",
    "unclear": "Pictures are turned by their EXIF orientation, and it is not clear whether their masks are "
    "turned already; these were left as they are",
    "empty": "Empty masks of defective pictures count as missing",
    "large": "Masks that cover more than half of their picture (invert them if their background is white)",
}


def mask_of(sample: Sample, shape: tuple[int, int]) -> Bools:
    """The defect mask of a sample.

    Args:
        sample: the sample; a mask that is all False is returned if it has no mask file.
        shape: its picture's shape, (height, width, ...).

    Returns:
        bool [height, width].

    Raises:
        DataError: the mask cannot be read or does not have the picture's size.
    """
    if sample.mask is None:
        return np.zeros(shape[:2], bool)
    mask, _ = read_mask(sample.mask)
    mask = _as_its_picture(mask, sample, shape)
    check_mask_fits(mask, shape, sample.mask)
    return ~mask if "invert" in sample.mask_needs else mask


def mask_inside(sample: Sample, shape: tuple[int, int], size: int) -> Bools | None:
    """`mask_on_grid` at the resolution that the picture has when letterboxed into a square of `size` px."""
    geometry = Geometry.letterbox(*shape[:2], size)
    return mask_on_grid(sample, shape, (geometry.inner_height, geometry.inner_width))


def mask_on_grid(sample: Sample, shape: tuple[int, int], grid: tuple[int, int]) -> Bools | None:
    """`mask_of` resampled to another resolution by nearest neighbour.

    Args:
        sample, shape: as in `mask_of`.
        grid: (rows, columns) of the result.

    Returns:
        bool [rows, columns], or None for a defective sample without a mask.

    Raises:
        DataError: as `mask_of`.
    """
    if sample.is_anomalous and sample.mask is None:
        return None
    mask = mask_of(sample, shape)
    if sample.is_anomalous and not mask.any():
        return None
    rows, columns = (nearest(few, many) for few, many in zip(grid, shape))
    return mask[np.ix_(rows, columns)]


def survey(groups: Mapping[str, Sequence[Sample]]) -> tuple[dict[str, int | None], dict[Path, str]]:
    """Decode every picture and mask once, to find bit depths and unusable files.

    Args:
        groups: samples by category.

    Returns:
        Each category's bit depth by the highest value (None if all are 8-bit files), and for each picture
        that cannot be used, or whose mask cannot, the reason.
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
    """Check that every picture and mask can be used, before long work begins.

    Returns:
        Each category's bit depth (see `survey`).

    Raises:
        DataError: naming all files that cannot be used.
    """
    bits, unusable = survey(groups)
    if unusable:
        raise DataError(all_unusable(unusable.values(), "replace or remove them"))
    return bits


def read_mask(path: Path) -> tuple[Bools, bool]:
    """Decode a defect mask.

    The background is black if at least some of the border is black, otherwise the border's most common colour
    (an inverted mask is white along its whole border). The defect is everything that differs from it by more
    than half of the greatest difference, and any other flat colour. Grey values up to 32 are numbers of
    defect kinds. In a picture with transparency the alpha channel is the mask, unless the picture has only a
    few colours.

    Returns:
        The mask, bool [H, W], upright by the file's EXIF orientation, and whether it was taken as inverted.

    Raises:
        DataError: the file cannot be read.
    """
    picture, kind = read_upright(path)
    colours = _colours(picture)  # [H, W, C]
    top = float(colours.max())
    if top <= 0 or (colours == colours[:1, :1]).all():  # one colour: nothing or everything is marked
        return np.full(colours.shape[:2], top > 0), False
    background = _background(colours, top)
    distance = np.abs(colours - background).max(axis=2)
    return _defect(distance, top, kind in _LOSSY), bool(background.max() > top / 2)


def _colours(picture: Image.Image) -> U8:
    """The channels that separate defect and background: grey, colours or alpha, [H, W, C]."""
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
    """Convert to a type in which differences do not overflow."""
    return values.astype(np.int16 if values.dtype.itemsize == 1 else np.float32)


def _background(colours: Array, top: float) -> Array:
    border = np.concatenate([colours[0], colours[-1], colours[:, 0], colours[:, -1]])  # [n, C]
    if (border.max(axis=1) <= top / 8).mean() >= _CORNER:
        return np.zeros_like(border[0])
    coarse = np.rint(border * (15 / top))  # lossy formats vary every pixel a little
    _, which, counts = np.unique(coarse, axis=0, return_inverse=True, return_counts=True)
    return np.asarray(np.median(border[which.reshape(-1) == counts.argmax()], axis=0))


def _defect(distance: Floats, top: float, lossy: bool) -> Bools:
    """The defect, bool [H, W], from the distance to the background. top: the file's highest value."""
    if top <= _KINDS and not lossy and (distance == np.rint(distance)).all():
        return distance > 0
    half = distance.max() / 2
    mask: Bools = distance > half
    levels = np.unique(distance)
    if not lossy and len(levels) <= _KINDS + 1:  # soft edges have more levels
        for level in levels[(levels > half / 8) & (levels <= half)]:
            kind = distance == level
            if cv2.erode(kind.astype(np.uint8), np.ones((3, 3), np.uint8)).any():
                mask |= kind
    return mask


def _as_its_picture(mask: Bools, sample: Sample, shape: tuple[int, int]) -> Bools:
    """Turn a mask like its picture if it fits only then, or if `settled` decided so."""
    fits = mask.shape == tuple(shape[:2])
    if sample.mask is None or (fits and "turn" not in sample.mask_needs) or orientation(sample.mask) != 1:
        return mask
    other = turned(mask, orientation(sample.image))
    return other if other.shape == tuple(shape[:2]) else mask


@dataclass(frozen=True)
class _Look:
    """What one mask looks like.

    Attributes:
        inverted: whether it was taken as inverted.
        share: the share of the picture that it covers.
        better_turned: log ratio of the edge strength under its outline when turned like its picture to that
            when left as it is; None if it does not need to be decided.
    """

    inverted: bool
    share: float
    better_turned: float | None


def settled(samples: Sequence[Sample]) -> tuple[list[Sample], list[str]]:
    """Decide how the masks of one category are to be read.

    Whether masks are inverted or not turned like their pictures depends on the tool that wrote them, so what
    most masks of a category show is applied to the unclear ones. Masks that cannot be read or have another
    size than their picture are ignored here.

    Returns:
        The samples with `Sample.mask_needs` set and empty masks of defective samples removed, and sentences
        about what was decided or is doubtful.
    """
    drawn = [sample for sample in samples if sample.is_anomalous and sample.mask is not None]
    with ThreadPoolExecutor(4) as pool:
        looks = {sample: look for sample, look in zip(drawn, pool.map(_look, drawn)) if look is not None}
    found: dict[str, list[Path]] = {key: [] for key in _WARNINGS}
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
    return result, [
        f"{_WARNINGS[key]}: {listed(map(short, paths))}." for key, paths in found.items() if paths
    ]


def _look(sample: Sample) -> _Look | None:
    if sample.mask is None:
        return None
    try:
        mask, inverted = read_mask(sample.mask)
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
    """Mean edge strength of the picture along the mask's outline, where a defect usually has an edge."""
    smooth = cv2.GaussianBlur(image, (0, 0), max(image.shape[:2]) / 256).astype(np.float32)
    slopes = (cv2.Sobel(smooth, cv2.CV_32F, *way) for way in ((1, 0), (0, 1)))
    steep = sum(np.abs(slope).max(axis=2) for slope in slopes)
    outline = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    return float(steep[outline].mean()) + 1e-6


def _habit(better: Iterable[float]) -> bool | None:
    """Whether masks are to be turned, None if unclear, from their `_Look.better_turned`."""
    better = list(better)
    if not better:
        return False
    total, size = sum(better), math.hypot(*better)
    each = all(value * total > 0 and abs(value) > math.log(_CLEARLY) for value in better)
    return total > 0 if each or abs(total) > _OFTEN * size else None
