"""Image quality: brightness, contrast, colour, sharpness and noise compared with the good pictures.

A picture of unusual quality is not a defective part, but its verdict is less reliable. Each category stores
the range of every measure over its good pictures and their changed copies; a picture outside gets a note.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from diffad.pictures.arrays import F64, U8, Bools

# For each measure: the words for below and above the range, and whether the deviation is given in per cent.
WORDS = {
    "brightness": ("darker", "brighter", True),
    "contrast": ("flatter", "richer in contrast", True),
    "red": ("less red", "redder", False),
    "blue": ("less blue", "bluer", False),
    "sharpness": ("more blurred", "sharper", False),
    "noise": ("smoother", "noisier", False),
}
MEASURES = tuple(WORDS)
# A picture counts as outside if it is beyond the range by this share of its width, and by at least LEAST, in
# the units of `measured`.
_BEYOND = 0.1
LEAST = {"brightness": 2, "contrast": 2, "red": 0.01, "blue": 0.01, "sharpness": 0.02, "noise": 0.5}


def measured(square: U8, inside: Bools) -> F64:
    """Measure a letterboxed picture.

    - brightness, contrast: mean and standard deviation of the luminance, grey values;
    - red, blue: mean of the channel divided by the mean of green;
    - sharpness: standard deviation of the detail removed by a 1 px blur divided by that of a 2 px blur;
    - noise: robust standard deviation of the finest diagonal detail, grey values.

    Args:
        square: uint8 [s, s, 3].
        inside: where the square shows the picture, bool [s, s].

    Returns:
        The values in the order of MEASURES, float64 [6].
    """
    grey = cv2.cvtColor(square, cv2.COLOR_RGB2GRAY).astype(np.float32)
    red, green, blue = square[inside].mean(axis=0, dtype=np.float64)
    fine, coarse = (float((grey - cv2.GaussianBlur(grey, (0, 0), sigma))[inside].std()) for sigma in (1, 2))
    diagonal = (grey[::2, ::2] - grey[1::2, ::2] - grey[::2, 1::2] + grey[1::2, 1::2]) / 2
    noise = float(np.median(np.abs(diagonal[inside[::2, ::2]]))) / 0.6745
    light = grey[inside]
    return np.array([
        light.mean(), light.std(), red / max(green, 1), blue / max(green, 1), fine / max(coarse, 1e-6), noise,
    ], np.float64)  # fmt: skip


def ranges(of_pictures: Iterable[F64]) -> tuple[tuple[float, float, float], ...]:
    """Minimum, median and maximum of each measure over the `measured` values of pictures."""
    values = np.stack(list(of_pictures))
    low, middle, high = np.quantile(values, (0, 0.5, 1), axis=0).tolist()
    return tuple(zip(low, middle, high))


def note(values: F64, known: Sequence[Sequence[float]]) -> str:
    """A sentence naming all measures outside their range, with the deviation from the median; "" if none.

    Args:
        values: of `measured`.
        known: of `ranges`.
    """
    found = []
    for (name, (less, more, relative)), value, (low, middle, high) in zip(WORDS.items(), values, known):
        beyond = max(_BEYOND * (high - low), LEAST[name])
        if not low - beyond <= value <= high + beyond:
            much = f" ({(value - middle) / middle:+.0%})" if relative and middle > 0 else ""
            found.append((less if value < low else more) + much)
    if not found:
        return ""
    words = " and ".join([", ".join(found[:-1]), found[-1]]) if len(found) > 1 else found[0]
    return f"The picture is {words} than any that the good parts were learned from."
