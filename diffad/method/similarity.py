"""Similarity of a repaired picture to the original."""

from __future__ import annotations

import cv2
import numpy as np

from diffad.pictures.arrays import F64, U8, Array, Bools


def psnr(image: U8, other: U8, where: Bools | None = None) -> float | None:
    """Peak signal-to-noise ratio of two pictures, dB.

    Args:
        image, other: uint8 [H, W, 3].
        where: pixels to compare, bool [H, W]; None compares all.

    Returns:
        At most 100 dB, so that medians and JSON stay finite; None if `where` is empty.
    """
    difference = image.astype(np.float32) - other.astype(np.float32)
    if where is not None:
        difference = difference[where]
    if not difference.size:
        return None
    error = float(np.mean(np.square(difference), dtype=np.float64))
    return 100.0 if error == 0 else min(100.0, 10.0 * float(np.log10(255.0**2 / error)))


def ssim(image: U8, other: U8, where: Bools | None = None) -> float | None:
    """Structural similarity (Wang et al. 2004) of two pictures.

    Uses Gaussian windows of 11 × 11 px with σ = 1.5 and the mean over channels. Only windows completely
    inside the picture and inside `where` count.

    Args:
        image, other: uint8 [H, W, 3].
        where: pixels to compare, bool [H, W]; None compares all.

    Returns:
        A value in [−1, 1], 1 for equal pictures; None if there is no window.
    """

    def blur(values: F64) -> Array:
        return cv2.GaussianBlur(values, (11, 11), 1.5, borderType=cv2.BORDER_REFLECT_101)

    shown = np.ones(image.shape[:2], np.uint8) if where is None else where.astype(np.uint8)
    inside = cv2.erode(shown, np.ones((11, 11), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
    if not inside.any():
        return None
    x, y = image.astype(np.float64), other.astype(np.float64)
    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (
        (2 * mean_x * mean_y + c1)
        * (2 * covariance + c2)
        / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
    )
    return float(similarity[inside].mean())
