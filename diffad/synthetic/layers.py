"""Surface layers of a part (`Scene`) and tools for drawing them. Lengths are in half canvas widths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from typing import TypedDict

import cv2
import numpy as np

from diffad.pictures.arrays import F32, Array, Bools


class Fault(TypedDict, total=False):
    """A fault in a part's shape; each category uses its own entries."""

    bite: Array  # gear: material is missing where this [n, n] is at least 0.5
    lean: Sequence[tuple[int, int, float]]  # chip: side, lead, displacement of bent leads
    missing: Sequence[tuple[int, int]]  # chip: side and number of missing leads
    smear: Callable[[Array], Array]  # chip: changes the laser marking [n, n]
    shift: tuple[Array, Array]  # carbon fibre: displacement of the weave in x and y, [n, n] each


@dataclass
class Scene:
    """Surface layers on a supersampled canvas, [n, n] each; the canvas spans −1 to 1."""

    x: Array  # part coordinates, independent of the pose
    y: Array
    part: Bools  # where a defect may be placed
    height: Array  # relief that determines the surface normal
    lift: Array  # additional height that casts shadows but does not affect the normal
    albedo: Array  # [n, n, 3], linear RGB
    metal: Array  # metalness, 0 to 1
    rough: Array  # spread of slopes along the grain
    across: Array  # spread of slopes across the grain
    grain_x: Array  # unit direction of the grain
    grain_y: Array
    gloss: float = 0.05  # specular reflectance of non-metals

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, np.ndarray) and value.dtype == np.float64:
                setattr(self, f.name, value.astype(np.float32))

    def copy(self) -> Scene:
        return deepcopy(self)


def axis(n: int) -> F32:
    """Canvas coordinates of the pixel centres along one side, [n], −1 to 1."""
    return ((np.arange(n, dtype=np.float32) + 0.5) * (2 / n) - 1).astype(np.float32)


def pose(rng: np.random.Generator, n: int, shift: float, turn: float, zoom: float) -> tuple[Array, Array]:
    """Part coordinates x and y of the canvas, [n, n] each, for a small random pose; turn in degrees."""
    dx, dy = rng.uniform(-shift, shift, 2)
    angle = np.deg2rad(rng.uniform(-turn, turn))
    scale = 1 + rng.uniform(-zoom, zoom)
    a = axis(n)
    c, s = np.float32(np.cos(angle) / scale), np.float32(np.sin(angle) / scale)
    u, v = a - np.float32(dx), (a - np.float32(dy))[:, None]
    return c * u + s * v, c * v - s * u


def smooth(low: float, high: float, value: Array) -> Array:
    """Smoothstep: 0 below `low`, 1 above `high`."""
    t = np.clip((value - low) * (1 / (high - low)), 0, 1)
    return t * t * (3 - 2 * t)


def noise(rng: np.random.Generator, n: int, cells_x: float, cells_y: float | None = None) -> Array:
    """Smooth noise [n, n] of about unit deviation, with the given numbers of cells across the canvas."""
    w, h = (max(2, min(n, round(c))) for c in (cells_x, cells_y or cells_x))
    grid = rng.standard_normal((h + 3, w + 3), dtype=np.float32)
    wide = cv2.resize(grid, (n + 3 * n // w + 1, n + 3 * n // h + 1), interpolation=cv2.INTER_CUBIC)
    oy, ox = n // h, n // w
    return np.ascontiguousarray(wide[oy : oy + n, ox : ox + n])


def blur(a: Array, sigma: float) -> Array:
    """Gaussian blur with sigma in half canvas widths; computed at lower resolution if wide."""
    n = a.shape[0]
    pixels = sigma * n / 2
    if pixels > 6:
        k = int(pixels // 3)
        small = cv2.resize(a, (max(8, n // k), max(8, n // k)), interpolation=cv2.INTER_AREA)
        return cv2.resize(cv2.GaussianBlur(small, (0, 0), pixels / k), (n, n), interpolation=cv2.INTER_LINEAR)
    return cv2.GaussianBlur(a, (0, 0), max(pixels, 0.3))


def mix(a: Array, b: Sequence[float] | Array | float, weight: Array) -> None:
    """Blend a towards b by a weight [n, n], in place."""
    if a.ndim == 3:
        a += weight[..., None] * (np.asarray(b, np.float32) - a)
    else:
        a += weight * (np.asarray(b, np.float32) - a)


def distance(inside: Array) -> Array:
    """Distance of each pixel inside (bool [n, n]) to the nearest one outside, half canvas widths."""
    return cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, 5) * np.float32(2 / inside.shape[0])
