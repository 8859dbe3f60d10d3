"""Drawing maps: heat maps, overlays and contours; resizing and encoding pictures.

Pictures are uint8 RGB [H, W, 3]. Maps are float [H, W] in σ of good parts' maps (0 is typical of good parts).
They are drawn on the absolute scale 0 to vmax, never stretched to their own range: good parts stay dark.
"""

from __future__ import annotations

import io
from functools import cache

import cv2
import numpy as np
from PIL import Image

from diffad.pictures.arrays import F32, U8, Array, Bools
from diffad.pictures.reading import DataError

COLORMAPS = ("inferno", "viridis", "cividis", "magma", "gray")

INK, MUTED, LINE, ALARM, WARNING, CALM = "#1b2230", "#667085", "#d5dae2", "#c0311e", "#8a5a00", "#1f56d8"


def heatmap(anomaly_map: Array, vmax: float, colormap: str = "inferno") -> U8:
    """Colour a map on the absolute scale 0 to vmax.

    Args:
        anomaly_map: [H, W], clipped to the scale; NaN counts as 0.
        vmax: top of the scale, σ.
        colormap: one of COLORMAPS.

    Returns:
        uint8 [H, W, 3].

    Raises:
        DataError: unknown colour map, vmax not positive, or a map that is not [H, W].
    """
    if not 0 < vmax < float("inf"):
        raise DataError(f"the scale ends at {vmax}: give a positive vmax")
    share = np.clip(finite(anomaly_map) / np.float32(vmax), 0, 1)
    coloured: U8 = _colours(colormap)[np.rint(share * 255).astype(np.uint8)]
    return coloured


def overlay(
    image: U8,
    anomaly_map: Array,
    vmax: float,
    threshold: float | None = None,
    opacity: float = 0.6,
    colormap: str = "inferno",
    contour: bool = True,
) -> U8:
    """Blend a heat map over a picture, so that normal places keep the picture's exact pixels.

    The opacity rises smoothly from 0 at t − |t| / 2 to `opacity` at the threshold t; without a threshold,
    from vmax / 8 to vmax / 2.

    Args:
        image: uint8 [H, W, 3].
        anomaly_map: [H, W], σ.
        vmax, colormap: as in `heatmap`.
        threshold: σ, if any.
        opacity: maximum opacity of the heat map, 0 to 1.
        contour: whether to draw the threshold's contour.

    Returns:
        uint8 [H, W, 3].

    Raises:
        DataError: picture and map differ in size, or as `heatmap`.
    """
    values = _fitting(image, anomaly_map)
    if threshold is None:
        start, full = vmax / 8, vmax / 2
    else:
        full = min(max(threshold, -1e9), 1e9)  # infinity cannot be halved
        start = full - abs(full) / 2
    rise = np.clip((values - start) / max(full - start, 1e-6 * vmax), 0, 1)
    blended = _paint(image, heatmap(values, vmax, colormap), opacity * rise * rise * (3 - 2 * rise))
    return blended if threshold is None or not contour else contours(blended, values, threshold)


def contours(
    image: U8,
    anomaly_map: Array,
    threshold: float,
    color: tuple[int, int, int] = (255, 255, 255),
) -> U8:
    """Draw the contour of the map at the threshold, with subpixel accuracy.

    The thin line in `color` has a wider dark outline, which keeps it visible on bright pictures.

    Returns:
        uint8 [H, W, 3].

    Raises:
        DataError: picture and map differ in size.
    """
    from contourpy import LineType, contour_generator

    values = _fitting(image, anomaly_map)
    if min(values.shape) < 2:  # no contour fits into a single row
        return image.copy()
    generator = contour_generator(z=values, line_type=LineType.Separate)
    lines = [np.rint(np.asarray(line) * 16).astype(np.int32) for line in generator.lines(threshold)]
    width = max(1, round((image.shape[0] * image.shape[1]) ** 0.5 / 400))
    drawn = image
    for stroke, paint, opacity in ((3 * width, (0, 0, 0), 0.45), (width, color, 1.0)):
        cover = np.zeros(image.shape[:2], np.uint8)
        cv2.polylines(cover, lines, False, 255, stroke, cv2.LINE_AA, shift=4)  # shift: points in 1/16 pixel
        drawn = _paint(
            drawn, np.broadcast_to(np.array(paint, np.uint8), image.shape), cover * np.float32(opacity / 255)
        )
    return drawn


def hatched(image: U8, ignored: Bools) -> U8:
    """Hatch a picture where nothing is judged: uint8 [H, W, 3].

    ignored: bool [H, W]. Dark and light stripes at 45°, so that they show on any ground; between them and
    outside the picture stays as it is.
    """
    if not ignored.any():
        return image
    period = max(6, round(max(image.shape[:2]) / 48))
    rows, columns = np.indices(image.shape[:2])
    phase = (rows + columns) % period
    width = max(1, period // 6)
    paint = np.where((phase < width)[..., None], np.uint8(235), np.uint8(40)).astype(np.uint8)
    stripes = ignored & (phase < 2 * width)
    return _paint(image, np.broadcast_to(paint, image.shape), stripes * np.float32(0.75))


def _paint(image: U8, paint: U8, weight: F32) -> U8:
    """image + weight · (paint − image), rounded; the image is unchanged where the weight [H, W] is 0."""
    painted = image.copy()
    touched = weight > 0
    below = image[touched].astype(np.float32)  # [n, 3]
    painted[touched] = np.rint(below + weight[touched, None] * (paint[touched] - below))
    return painted


def finite(anomaly_map: Array) -> F32:
    """A map as float32 with NaN replaced by 0. Raises DataError if it is not [H, W]."""
    values = np.asarray(anomaly_map, dtype=np.float32)
    if values.ndim != 2:
        raise DataError(f"a map of shape {values.shape} cannot be drawn: give [H, W]")
    return np.nan_to_num(values)


def _fitting(image: U8, anomaly_map: Array) -> F32:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"this is {image.dtype} {image.shape}, not uint8 [H, W, 3]: use read_image first")
    values = finite(anomaly_map)
    if values.shape != image.shape[:2]:
        raise DataError(f"a map {values.shape} does not fit a picture {image.shape[:2]}: give the same size")
    return values


@cache
def _colours(colormap: str) -> U8:  # [256, 3]
    if colormap not in COLORMAPS:
        raise DataError(f'unknown colour map "{colormap}": choose one of {", ".join(COLORMAPS)}')
    from matplotlib import colormaps

    return colormaps[colormap](np.arange(256), bytes=True)[:, :3].copy()


def shrunk(picture: Array, longest: int) -> Array:
    """Shrink a picture or map [H, W(, 3)] so that its longest side is at most `longest` pixels."""
    height, width = picture.shape[:2]
    if max(height, width) <= longest:
        return picture
    factor = longest / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def png_bytes(image: U8) -> bytes:
    """Encode uint8 [H, W, 3] or [H, W] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG")
    return buffer.getvalue()


def npy_bytes(values: Array) -> bytes:
    """Encode an array as NumPy's .npy."""
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def resized(values: Array, size: tuple[int, int]) -> Array:
    """Resize a picture or map to (width, height): area mean when shrinking, bilinear when enlarging."""
    shrinks = size[0] < values.shape[1]
    return cv2.resize(values, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
