"""Places and shapes of defects on a scene: blobs and strokes on the canvas."""

from __future__ import annotations

import cv2
import numpy as np

from diffad.pictures.arrays import F32, F64, Array, Bools
from diffad.synthetic.layers import Scene, distance, mix, noise, smooth


def canvas_place(scene: Scene, x: float, y: float) -> tuple[float, float]:
    """Canvas coordinates of a place in part coordinates."""
    n = scene.x.shape[0]
    away = np.abs(scene.x - np.float32(x)) + np.abs(scene.y - np.float32(y))
    row, col = np.unravel_index(np.argmin(away), (n, n))
    return (col + 0.5) * 2 / n - 1, (row + 0.5) * 2 / n - 1


def inner_area(scene: Scene, margin: float) -> Bools:
    """Where a defect may be centred, bool [n, n]: at least `margin` inside the part, off the border."""
    part = scene.part.copy()
    part[[0, -1]] = False
    part[:, [0, -1]] = False
    inside: Bools = distance(part) > margin
    edge = int(0.06 * len(inside))
    inside[:edge], inside[-edge:], inside[:, :edge], inside[:, -edge:] = False, False, False, False
    return inside


def random_place(rng: np.random.Generator, allowed: Bools) -> tuple[float, float]:
    """A random place, in canvas coordinates, where `allowed` is true."""
    n = allowed.shape[0]
    step = max(1, n // 256)
    rows, cols = np.nonzero(allowed[step // 2 :: step, step // 2 :: step])
    if len(rows) == 0:
        return 0.0, 0.0
    i = int(rng.integers(len(rows)))
    return ((int(cols[i]) * step + 0.5) * 2 / n - 1, (int(rows[i]) * step + 0.5) * 2 / n - 1)


def blob(
    rng: np.random.Generator,
    n: int,
    at: tuple[float, float],
    radius: float,
    ragged: float = 0.35,
    soft: float = 0.25,
    squeeze: float = 1.0,
) -> F32:
    """An irregular blob, float32 [n, n], 1 inside and 0 outside."""
    angle, reach = rng.uniform(0, np.pi), radius * (1 + soft + 1.1 * ragged)
    half = int(np.ceil(reach * n / 2)) + 1
    col, row = round((at[0] + 1) * n / 2 - 0.5), round((at[1] + 1) * n / 2 - 0.5)
    a = np.arange(-half, half + 1, dtype=np.float32) * np.float32(2 / n / radius)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    r = np.hypot(c * a + s * a[:, None], (c * a[:, None] - s * a) * np.float32(squeeze))
    cells = reach / radius
    wave = 0.6 * noise(rng, len(a), 1.3 * cells) + 0.35 * noise(rng, len(a), 3.2 * cells)
    r += np.float32(ragged) * np.clip(wave, -1.1, 1.1) * np.minimum(r, 1)
    spot = 1 - smooth(1 - soft, 1 + soft, r)
    canvas = np.zeros((n, n), np.float32)
    top, left = row - half, col - half
    y0, y1, x0, x1 = max(top, 0), min(top + len(a), n), max(left, 0), min(left + len(a), n)
    if y0 < y1 and x0 < x1:
        canvas[y0:y1, x0:x1] = spot[y0 - top : y1 - top, x0 - left : x1 - left]
    return canvas


def path(
    rng: np.random.Generator,
    at: tuple[float, float],
    angle: float,
    length: float,
    bend: float,
    jag: float = 0.0,
) -> F64:
    """A curve [24, 2] in canvas coordinates centred at `at`; bend is its total turn in radians."""
    k = 24
    shake = np.convolve(rng.standard_normal(k + 2), [0.3, 0.4, 0.3], "valid")
    turn = angle + bend * (np.linspace(-0.5, 0.5, k)) + jag * shake
    steps = np.stack([np.cos(turn), np.sin(turn)], axis=1) * length / k
    points = np.cumsum(steps, axis=0)
    return np.asarray(points - points.mean(axis=0) + at)


def stroke(n: int, points: Array, width: Array | float, soft: float = 0.0025) -> F32:
    """Draw a curve, [n, n] from 0 to 1, with a width along it in half canvas widths."""
    canvas = np.zeros((n, n), np.uint8)
    pixels = ((points + 1) * n / 2 - 0.5) * 16
    widths = np.broadcast_to(width, len(points)) * n / 2
    for p, q, w in zip(pixels[:-1], pixels[1:], widths[:-1], strict=True):
        start, end = tuple(map(int, np.rint(p))), tuple(map(int, np.rint(q)))
        cv2.line(canvas, start, end, 255, max(1, round(float(w))), cv2.LINE_AA, 4)
    soft_line = cv2.GaussianBlur(canvas.astype(np.float32) / 255, (0, 0), max(0.5, soft * n / 2))
    return np.asarray(soft_line, np.float32)


def taper(k: int, width: float) -> F64:
    """Widths along a curve of k points that tapers towards both ends."""
    return np.asarray(width * np.sqrt(np.clip(np.sin(np.linspace(0.08, np.pi - 0.08, k)), 0, 1)))


def finish(scene: Scene, roughness: float, weight: Array) -> None:
    """Blend the surface to an isotropic roughness by a weight [n, n], in place."""
    mix(scene.rough, roughness, weight)
    mix(scene.across, roughness, weight)
