"""Pictures of more than 8 bits in every kind of file."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

FACTORS = {8: 1, 10: 4, 12: 16, 14: 64, 16: 257}  # what an 8-bit value becomes


SAMPLES = Path(__file__).parents[1] / "assets" / "samples"


def deep(picture: np.ndarray, bits: int) -> np.ndarray:
    return picture.astype(np.uint16) * np.uint16(FACTORS[bits])


def opencv(suffix: str, values: np.ndarray) -> bytes:
    codes = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    return cv2.imencode(suffix, cv2.cvtColor(values, codes[values.shape[2]]))[1].tobytes()


def saved(path: Path, content: bytes | Image.Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content.save(path)
    return path


def assert_alike(image: np.ndarray, picture: np.ndarray, tolerance: int = 1) -> None:
    expected = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=-1)
    assert image.dtype == np.uint8 and image.shape == expected.shape
    assert np.abs(image.astype(int) - expected.astype(int)).max() <= tolerance
