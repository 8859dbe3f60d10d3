"""A picture as a whole: light, contrast, colour, sharpness and noise, against those of the good pictures.

A picture that is off as a whole is not a defective part, and a verdict about it is worth less. So a category
keeps the range of each measure over its good pictures and their changed copies, and a picture outside says so
in a sentence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from diffad.pictures.arrays import F64, U8, Array, Bools

# Of each measure: what lies below and above the range, and whether the excess is given in per cent.
WORDS = {
    "brightness": ("darker", "brighter", True),
    "contrast": ("flatter", "richer in contrast", True),
    "red": ("less red", "redder", False),
    "blue": ("less blue", "bluer", False),
    "sharpness": ("more blurred", "sharper", False),
    "noise": ("smoother", "noisier", False),
}
MEASURES = tuple(WORDS)
_BEYOND = 0.1  # share of a range's width by which a picture must lie outside it
# and at least by this much, in the units of `measured`
LEAST = {"brightness": 2, "contrast": 2, "red": 0.01, "blue": 0.01, "sharpness": 0.02, "noise": 0.5}


def measured(square: U8, inside: Bools) -> F64:
    """MEASURES of a picture uint8 [s, s, 3] where it lies in the model's square, bool [s, s]: float64 [6].

    brightness, contrast: mean and standard deviation of the luminance, grey values. red, blue: the mean of
    that channel over that of green. sharpness: what a blur of 1 px takes away, as a share of what one of 2 px
    takes. noise: standard deviation of the finest diagonal detail, robustly, grey values.
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


def ranges(of_pictures: Iterable[Array]) -> tuple[tuple[float, float, float], ...]:
    """Least, median and largest value of each measure over pictures' `measured`."""
    values = np.stack(list(of_pictures))
    low, middle, high = np.quantile(values, (0, 0.5, 1), axis=0).tolist()
    return tuple(zip(low, middle, high))


def note(values: Array, known: Sequence[Sequence[float]]) -> str:
    """A sentence that names all measures outside their range, with the distance from the middle good picture;
    empty if there are none.
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
