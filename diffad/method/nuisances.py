"""Harmless changes of pictures: light, colour, noise, sharpness, compression and position.

Pictures from a factory vary like this from day to day. Statistics are fitted to good pictures and to a
`random_copy` of each, so that verdicts do not depend on these changes; `NUISANCES` are the single changes by
which that is tested. Pictures are uint8 RGB [H, W, 3]. Lengths are in pixels of a picture whose longest side
is 256.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from diffad.pictures.arrays import U8, Array

Change = Callable[[Array, float, np.random.Generator], Array]


@dataclass(frozen=True)
class Nuisance:
    """One kind of change.

    Attributes:
        name: shown in reports.
        strength: the usual strength, which must not make a good part anomalous; 0 is (nearly) no change.
        unit: of the strength.
        apply: (picture, strength, rng) → changed copy, uint8 [H, W, 3].
    """

    name: str
    strength: float
    unit: str
    apply: Change


def _rounded(values: Array) -> Array:
    return np.rint(values).clip(0, 255).astype(np.uint8)


def _unit(picture: Array) -> float:
    """Pixels of this picture per pixel of a 256 px picture."""
    return float(max(picture.shape[:2]) / 256)


def _gain(picture: Array, percent: float, rng: np.random.Generator) -> Array:
    return _rounded(picture * np.float32(1 + percent / 100))


def _ramp(angle: float) -> Change:
    """Light gradient from −strength to +strength per cent across the picture, towards `angle` (degrees)."""

    def apply(picture: Array, percent: float, rng: np.random.Generator) -> Array:
        rows, columns = (np.linspace(-1, 1, count, dtype=np.float32) for count in picture.shape[:2])
        along = columns * np.cos(np.radians(angle)) + rows[:, None] * np.sin(np.radians(angle))
        return _rounded(picture * (1 + percent / 100 * along / np.abs(along).max())[..., None])

    return apply


def _tint(picture: Array, percent: float, rng: np.random.Generator) -> Array:
    return _rounded(picture * (1 + percent / 100 * np.array([1, 0, -1], np.float32)))


def _noise(picture: Array, sigma: float, rng: np.random.Generator) -> Array:
    return _rounded(picture + rng.normal(0, sigma, picture.shape))


def _grey_noise(picture: Array, sigma: float, rng: np.random.Generator) -> Array:
    return _rounded(picture + rng.normal(0, sigma, (*picture.shape[:2], 1)))


def _blur(picture: Array, sigma: float, rng: np.random.Generator) -> Array:
    return cv2.GaussianBlur(picture, (0, 0), sigma * _unit(picture)) if sigma > 0 else picture.copy()


def _sharpen(picture: Array, amount: float, rng: np.random.Generator) -> Array:
    soft = cv2.GaussianBlur(picture, (0, 0), _unit(picture)).astype(np.float32)
    return _rounded(picture + amount * (picture - soft))


def _encoded(suffix: str, setting: int, whole_colour: bool = False) -> Change:
    """A copy compressed in a lossy format; its strength is 100 − quality."""

    def apply(picture: Array, strength: float, rng: np.random.Generator) -> Array:
        settings = [setting, max(1, round(100 - strength))]
        if whole_colour:
            settings += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
        _, data = cv2.imencode(suffix, picture[..., ::-1], settings)
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
        assert decoded is not None  # it was just encoded
        return np.ascontiguousarray(decoded[..., ::-1])

    return apply


def _shift(picture: Array, pixels: float, rng: np.random.Generator) -> Array:
    angle = rng.uniform(0, 2 * np.pi)
    return _moved(picture, pixels * np.cos(angle), pixels * np.sin(angle), 0.0)


def _turn(picture: Array, degrees: float, rng: np.random.Generator) -> Array:
    return _moved(picture, 0.0, 0.0, degrees * rng.choice((-1, 1)))


def _moved(picture: Array, x: float, y: float, degrees: float) -> Array:
    """Shift a picture by whole pixels and rotate it about its centre; uncovered areas are mirrored."""
    height, width = picture.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1)
    matrix[:, 2] += np.rint(np.array([x, y]) * _unit(picture))
    border = cv2.BORDER_REFLECT_101
    return cv2.warpAffine(picture, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=border)


_jpeg = _encoded(".jpg", cv2.IMWRITE_JPEG_QUALITY)
_webp = _encoded(".webp", cv2.IMWRITE_WEBP_QUALITY)
_COMPRESSIONS = _jpeg, _encoded(".jpg", cv2.IMWRITE_JPEG_QUALITY, whole_colour=True), _webp
NUISANCES = (
    Nuisance("darker", -10, "% light", _gain),
    Nuisance("brighter", 10, "% light", _gain),
    Nuisance("light across", 5, "% light", _ramp(0)),
    Nuisance("light down", 5, "% light", _ramp(90)),
    Nuisance("tint", 2, "% of a channel", _tint),
    Nuisance("noise", 2, "grey values", _noise),
    Nuisance("grey noise", 2, "grey values", _grey_noise),
    Nuisance("blur", 0.7, "px", _blur),
    Nuisance("sharpening", 0.5, "of what a blur of 1 px takes", _sharpen),
    Nuisance("JPEG 95", 5, "below quality 100", _jpeg),
    Nuisance("JPEG 90", 10, "below quality 100", _jpeg),
    Nuisance("JPEG 75", 25, "below quality 100", _jpeg),
    Nuisance("WebP 80", 20, "below quality 100", _webp),
    Nuisance("shift 3", 3, "px", _shift),
    Nuisance("shift 5", 5, "px", _shift),
    Nuisance("turn", 2, "degrees", _turn),
)


def random_copy(picture: Array, rng: np.random.Generator) -> U8:
    """The picture, uint8 [H, W, 3], as it might look on another day.

    Moved, relit, tinted, blurred or sharpened, with noise, and compressed, each by a random amount.
    """
    x, y = rng.uniform(-4, 4, 2)
    changed = _moved(picture, x, y, rng.uniform(-2, 2)).astype(np.float32)
    changed *= (1 + rng.uniform(-0.1, 0.1)) * (1 + rng.uniform(-0.03, 0.03, 3)).astype(np.float32)
    changed = _ramp(rng.uniform(0, 360))(changed, rng.uniform(0, 5), rng)
    if rng.random() < 0.5:
        changed = _blur(changed, rng.uniform(0.3, 1), rng)
    else:
        changed = _sharpen(changed, rng.uniform(0, 0.7), rng)
    noise = _noise if rng.random() < 0.5 else _grey_noise
    changed = noise(changed, np.exp(rng.uniform(np.log(0.5), np.log(4))), rng)
    compress = _COMPRESSIONS[rng.integers(len(_COMPRESSIONS))]
    return compress(changed, rng.uniform(3, 40), rng)
