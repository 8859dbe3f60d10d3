"""Artificial defects on normal pictures, for training and for measuring without defective parts.

Eight kinds, from specks to bent pieces, after the idea of CutPaste (Li et al. 2021) and DRAEM (Zavrtanik et
al. 2021). Real defects look different: results on artificial ones rank settings and reveal hopeless cases,
but do not replace measurements on real defects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from diffad.pictures.arrays import F32, F64, I64, U8, Bools

# The last three kinds replace texture by the same texture on textured parts, which leaves nothing to find.
# They are used for training but not for measuring.
MEASURED_KINDS = ("patch", "stain", "scratch", "speck", "worn")
KINDS = (*MEASURED_KINDS, "displaced", "missing", "bent")
_LEAST_CHANGE = 12  # minimum change of a visible defect, grey values of 255; more on coarse grain
_TRIES = 12
_GRID = 32  # cells per side of the grid on which a defect's place is drawn


def add_defect(picture: U8, others: Sequence[U8], kind: str, rng: np.random.Generator) -> tuple[U8, Bools]:
    """Put one defect on a copy of a picture.

    Args:
        picture: uint8 [s, s, 3], is not changed.
        others: good pictures of the same size, from which patches and colours are taken.
        kind: one of KINDS.
        rng: random generator.

    Returns:
        The defective picture, and the mask of visible changes, bool [s, s].

    Raises:
        ValueError: unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is one of {', '.join(KINDS)}, not {kind!r}")
    size = picture.shape[0]
    best, most = (picture.copy(), np.zeros((size, size), bool)), 0
    fine = picture - cv2.GaussianBlur(picture, (0, 0), 2 * size / 256).astype(np.float32)
    least = max(_LEAST_CHANGE, float(fine.std()))
    centres = _likely_centres(picture)
    for _ in range(_TRIES):
        shape = _shape(kind, size, centres, rng)
        spoiled = _spoiled(picture, others, kind, rng)
        soft = cv2.GaussianBlur(shape.astype(np.float32), (0, 0), 0.8 * size / 256)[..., None]
        result = np.rint(picture + soft * (spoiled - picture)).clip(0, 255).astype(np.uint8)
        visible = np.abs(result.astype(np.int16) - picture).max(axis=2) > least
        closed = cv2.morphologyEx(visible.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8)) > 0
        mask = closed & shape
        if mask.sum() > most:
            best, most = (result, mask), int(mask.sum())
        if mask.sum() > 0.5 * shape.sum():
            break
    return best


def add_small_defect(picture: U8, kind: str, side: int, rng: np.random.Generator) -> tuple[U8, Bools]:
    """`add_defect` within a random square of `side` px, so that the defect is small relative to the picture.

    Args:
        picture: uint8 [h, w, 3], is not changed.
        kind: one of KINDS.
        side: px.
        rng: random generator.

    Returns:
        The defective picture, and the mask of visible changes, bool [h, w].
    """
    spoiled, mask = picture.copy(), np.zeros(picture.shape[:2], bool)
    side = min(side, *picture.shape[:2])
    room: I64 = np.array(mask.shape) - side
    centres = _likely_centres(picture)
    cell = np.unravel_index(rng.choice(centres.size, p=centres.ravel()), centres.shape)
    place = (np.array(cell) + rng.uniform(size=2)) / _GRID * mask.shape - side / 2
    places = np.rint(place).clip(0, room), np.rint(rng.uniform(size=2) * room)
    here, far = (
        (slice(y, y + side), slice(x, x + side)) for y, x in (each.astype(int).tolist() for each in places)
    )
    spoiled[here], mask[here] = add_defect(picture[here], [picture[far]], kind, rng)
    return spoiled, mask


def random_hole(picture: U8, rng: np.random.Generator) -> Bools:
    """One to three random shapes, bool [s, s], like those that a repair fills in a picture [s, s, 3]."""
    centres = _likely_centres(picture)
    shapes = [_shape("hole", len(picture), centres, rng) for _ in range(rng.integers(1, 4))]
    hole: Bools = np.logical_or.reduce(shapes)
    return hole


def _likely_centres(picture: U8) -> F64:
    """Probability of each grid cell to be a defect's centre, float64 [32, 32].

    Nine of ten defects are placed on the part, which is what differs in colour from the picture's border.
    """
    rim = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    apart = np.abs(picture.astype(np.float32) - np.median(rim, axis=0)).max(axis=2)
    part = cv2.resize(apart, (_GRID, _GRID), interpolation=cv2.INTER_AREA) > 2 * _LEAST_CHANGE
    inside = np.zeros((_GRID, _GRID))
    inside[2:-2, 2:-2] = 1
    on_part = inside * part
    weights: F64 = inside / inside.sum()
    if on_part.sum() > 20:
        weights = 0.1 * weights + 0.9 * on_part / on_part.sum()
    return weights


def _shape(kind: str, size: int, centres: F64, rng: np.random.Generator) -> Bools:
    """A defect's area at a random place, bool [size, size]."""
    unit = size / 256
    cell = np.unravel_index(rng.choice(centres.size, p=centres.ravel()), centres.shape)
    centre = (np.array(cell) + rng.uniform(size=2)) * size / _GRID
    if kind == "scratch":
        steps = rng.normal(0, 9 * unit, (5, 2)) + rng.normal(0, 8 * unit, 2)
        points = np.cumsum(np.vstack([centre, steps]), axis=0)[:, ::-1]
        canvas = np.zeros((size, size), np.uint8)
        cv2.polylines(
            canvas, [np.rint(points).astype(np.int32)], False, 1, max(1, round(rng.uniform(1, 4) * unit))
        )
        return canvas > 0
    least, most = {"speck": (1.5, 5), "hole": (6, 50)}.get(kind, (5, 40))
    radius = math.exp(rng.uniform(math.log(least), math.log(most))) * unit
    waves = max(4, round(size / max(1.0, radius)))
    ripple = cv2.resize(rng.normal(size=(waves, waves)).astype(np.float32), (size, size))
    ripple = ripple / np.abs(ripple).max()
    stretch, angle = rng.uniform(1, 2), rng.uniform(0, np.pi)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    dy, dx = y - centre[0], x - centre[1]
    along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    shape: Bools = np.hypot(along / stretch, across * stretch) / radius + 0.6 * ripple < 1
    return shape


def _spoiled(picture: U8, others: Sequence[U8], kind: str, rng: np.random.Generator) -> F32:
    """The picture that shows inside the defect's area, float32 [s, s, 3]."""
    size = picture.shape[0]
    whole = picture.astype(np.float32)
    if kind == "patch":  # from another good part, enlarged twice so that it is visible on a texture too
        other = others[int(rng.integers(len(others)))]
        y, x = rng.integers(0, size // 2 + 1, 2)
        large = cv2.resize(other[y : y + size // 2, x : x + size // 2], (size, size))
        return np.rot90(large, int(rng.integers(4))).astype(np.float32)
    if kind == "displaced":
        return np.roll(whole, rng.integers(-size // 18, size // 18 + 1, 2), (0, 1))
    if kind == "missing":  # shows a distant place of the same picture
        far = rng.uniform(0.25, 0.75, 2) * size
        return np.roll(whole, np.rint(far).astype(int), (0, 1))
    if kind == "bent":
        coarse = rng.normal(size=(2, 32, 32)).astype(np.float32)
        flow = [cv2.resize(cv2.GaussianBlur(part, (0, 0), 1.5), (size, size)) for part in coarse]
        flow = [part / np.abs(part).max() * np.float32(rng.uniform(4, 12) * size / 256) for part in flow]
        y, x = np.mgrid[:size, :size].astype(np.float32)
        bent = cv2.remap(whole, x + flow[0], y + flow[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(bent, np.float32)
    if kind == "worn":  # blurred
        worn = cv2.GaussianBlur(whole, (0, 0), rng.uniform(3, 6) * size / 256)
        return np.asarray(worn * np.float32(rng.uniform(0.8, 1.2)), np.float32)
    other = others[int(rng.integers(len(others)))]  # a colour of the parts, lighter or darker
    colour = other[tuple(rng.integers(0, size, 2))] * rng.uniform(0.3, 1.7)
    opacity = rng.uniform(0.2, 0.5) if kind == "stain" else rng.uniform(0.4, 0.9)
    spoiled: F32 = (1 - opacity) * whole + np.float32(opacity) * colour.astype(np.float32)
    return spoiled
