"""Verdicts, the limits and regions that they rest on, and the settings that an inspection accepts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from diffad.method.regions import Region, find_regions
from diffad.pictures.arrays import F32, Array
from diffad.pictures.geometry import resize_maps

Verdict = Literal["good", "look", "anomalous"]
VERDICTS: dict[Verdict, tuple[str, str]] = {  # label and symbol
    "good": ("Good", "✓"), "look": ("Look at it", "!"), "anomalous": ("Anomalous", "✕"),
}  # fmt: skip
LOOK_RATE = 0.1  # share of good parts above the default look limit
_MAX_TIMESTEPS = 12
_SMALLEST_REGION = 8  # px in a picture of 256 × 256


def verdict_for(score: float, threshold: float, look_threshold: float) -> Verdict:
    """Verdict for a score, as the page computes it (`judged` in scores.js)."""
    return "anomalous" if score > threshold else "look" if score > look_threshold else "good"


def map_limit_for(verdict: Verdict, threshold: float, look_threshold: float, fused: Array) -> float:
    """Value in σ above which a fused map is outlined, as on the page (`outlinedFrom` in scores.js).

    The look limit for the verdict "look", otherwise the threshold. If a part that is not good has no value
    above that, because its score is due to its excess, half of the map's maximum.
    """
    limit, highest = look_threshold if verdict == "look" else threshold, float(fused.max())
    return limit if verdict == "good" or highest > limit else highest / 2


def smallest_region(shape: tuple[int, int], tile: int | None) -> int:
    """Minimum area of a region in px, equivalent to 8 px in a picture or tile of 256 px.

    Args:
        shape: of the picture.
        tile: side of its tiles; None if it was inspected whole.
    """
    return max(1, round(_SMALLEST_REGION * ((tile or max(shape)) / 256) ** 2))


def regions_above(fused: F32, threshold: float, shape: tuple[int, int], smallest: int) -> tuple[Region, ...]:
    """Regions of a fused map above a threshold, as found by the page (`regionsAbove` in page.js).

    Args:
        fused: on any grid over the picture.
        threshold: σ.
        shape: height and width of the picture.
        smallest: minimum area, px of the picture.

    Returns:
        Regions in px of the picture, highest peak first.
    """
    if fused.size > shape[0] * shape[1]:  # the picture is smaller than the model's square
        fused = resize_maps(fused, shape)
    down, across = (full / own for full, own in zip(shape, fused.shape))
    return tuple(
        replace(region, box=_scaled(region.box, across, down), area=round(region.area * across * down))
        for region in find_regions(fused, threshold, smallest / (across * down))
    )


def _scaled(box: tuple[int, int, int, int], across: float, down: float) -> tuple[int, int, int, int]:
    x, y, width, height = box
    return round(x * across), round(y * down), round(width * across), round(height * down)


def checked_timesteps(timesteps: Sequence[int]) -> tuple[int, ...]:
    """Sorted timesteps without repetitions. Raises ValueError unless there are 1 to 12 from 0 to 999."""
    chosen = tuple(sorted({int(t) for t in timesteps}))
    if not 1 <= len(chosen) <= _MAX_TIMESTEPS or not all(0 <= t <= 999 for t in chosen):
        raise ValueError(f"give 1 to {_MAX_TIMESTEPS} timesteps between 0 and 999, not {list(timesteps)}")
    return chosen


def checked_threshold(threshold: float) -> float:
    """Return the threshold. Raises ValueError for NaN, which no score exceeds."""
    if math.isnan(threshold):
        raise ValueError("a threshold of NaN would call every part good: give a number")
    return float(threshold)


def checked_alpha(alpha: float) -> float:
    """Return α. Raises ValueError outside [0, 1]."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be between 0 and 1, not {alpha}")
    return float(alpha)
