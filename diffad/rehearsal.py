"""Artificial defects on normal pictures: what a model can be rehearsed on when no defective part is at hand.

Six kinds, from specks to displaced pieces, after the idea of CutPaste (Li et al. 2021) and DRAEM (Zavrtanik
et al. 2021). Real defects look otherwise: a rehearsal ranks settings and warns of a hopeless case, it does
not replace measured defects.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

KINDS = ("patch", "stain", "displaced", "scratch", "speck", "worn")
_LEAST_CHANGE = 12  # grey values of 255 that a defect must change its pixels by to be seen
_TRIES = 30


def add_defect(
    picture: np.ndarray, others: Sequence[np.ndarray], kind: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(picture with one defect, bool mask [s, s] of what changed visibly); picture uint8 [s, s, 3], is
    not changed.

    others: normal pictures of the same category and size, from which "patch" takes. Raises ValueError for an
    unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is one of {', '.join(KINDS)}, not {kind!r}")
    size = picture.shape[0]
    best, most = (picture.copy(), np.zeros((size, size), bool)), 0
    for _ in range(_TRIES):
        shape = _shape(kind, size, rng)
        spoiled = _spoiled(picture, others, kind, rng)
        soft = cv2.GaussianBlur(shape.astype(np.float32), (0, 0), 0.8 * size / 256)[..., None]
        result = np.rint(picture + soft * (spoiled - picture)).clip(0, 255).astype(np.uint8)
        visible = np.abs(result.astype(np.int16) - picture).max(axis=2) > _LEAST_CHANGE
        closed = cv2.morphologyEx(visible.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8)) > 0
        mask = closed & shape
        if mask.sum() > most:
            best, most = (result, mask), int(mask.sum())
        if mask.sum() > 0.5 * shape.sum():
            break
    return best


def _shape(kind: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random place and outline, bool [size, size]."""
    unit = size / 256
    if kind == "scratch":
        points = np.cumsum(
            np.vstack(
                [
                    rng.uniform(0.15, 0.85, 2) * size,
                    rng.normal(0, 9 * unit, (5, 2)) + rng.normal(0, 8 * unit, 2),
                ]
            ),
            axis=0,
        )
        canvas = np.zeros((size, size), np.uint8)
        cv2.polylines(
            canvas, [np.rint(points).astype(np.int32)], False, 1, max(1, round(rng.uniform(1, 4) * unit))
        )
        return canvas > 0
    radius = (rng.uniform(1.5, 5) if kind == "speck" else rng.uniform(5, 24)) * unit
    centre = rng.uniform(0.12, 0.88, 2) * size
    ripple = cv2.GaussianBlur(rng.normal(size=(size, size)).astype(np.float32), (0, 0), max(1.0, radius / 2))
    ripple /= np.abs(ripple).max()
    stretch, angle = rng.uniform(1, 2), rng.uniform(0, np.pi)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    dy, dx = y - centre[0], x - centre[1]
    along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    return np.hypot(along / stretch, across * stretch) / radius + 0.6 * ripple < 1


def _spoiled(
    picture: np.ndarray, others: Sequence[np.ndarray], kind: str, rng: np.random.Generator
) -> np.ndarray:
    """What the defect's place shows instead, float32 [s, s, 3]."""
    size = picture.shape[0]
    whole = picture.astype(np.float32)
    if kind == "patch":  # from elsewhere in another good part, twice as large: so it shows on a texture too
        other = others[int(rng.integers(len(others)))]
        y, x = rng.integers(0, size // 2 + 1, 2)
        large = cv2.resize(other[y : y + size // 2, x : x + size // 2], (size, size))
        return np.rot90(large, rng.integers(4)).astype(np.float32)
    if kind == "displaced":
        return np.roll(whole, rng.integers(-size // 18, size // 18 + 1, 2), (0, 1))
    if kind == "worn":  # its detail is gone
        return cv2.GaussianBlur(whole, (0, 0), rng.uniform(3, 6) * size / 256) * np.float32(
            rng.uniform(0.8, 1.2)
        )
    other = others[int(rng.integers(len(others)))]  # a colour that the parts know, lighter or darker
    colour = other[tuple(rng.integers(0, size, 2))] * rng.uniform(0.3, 1.7)
    opacity = rng.uniform(0.2, 0.5) if kind == "stain" else rng.uniform(0.4, 0.9)
    return (1 - opacity) * whole + np.float32(opacity) * colour.astype(np.float32)
