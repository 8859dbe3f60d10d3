"""From an anomaly map to a score, and from good pictures' scores to a threshold and a rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from diffad.pictures.arrays import F32, Bools, Floats

TOP = 256  # pixels whose mean is the image score without calibration: four places of the features' grid
CELLS = 32  # cells a side of the model's square; as many as places of the features' grid at 256 px
PEAK = 4  # cells whose mean is a map's peak, TOP pixels
LEVEL = CELLS**2 // 4  # the level of a map is its LEVEL-th highest cell: a quarter of them lie above
EXCESS_FROM = 20  # what lies above the EXCESS_FROM-th highest cell of a usual good map is excess
CHANGED_RATE = 10  # how many times as many changed good parts may be rejected (`threshold_for`)


def top_mean(anomaly_map: F32, size: float = 256) -> float:
    """Mean of the highest values of a map: of 256 pixels at a model size of 256, of the same area at others.

    It is the image score of what has no calibration.
    """
    flat = np.asarray(anomaly_map, dtype=np.float32).ravel()
    top = min(max(1, round(TOP * (size / 256) ** 2)), flat.size)
    return float(np.partition(flat, flat.size - top)[flat.size - top :].mean())


@dataclass(frozen=True, eq=False)
class ImageScore:
    """How an anomaly map becomes a score, in σ: the higher of its peak and its excess.

    The peak is the mean of the PEAK highest cells, for what is small and strong. The excess is how far cells
    lie above those of good parts, summed over the picture, for what is wide and weak; before that the map's
    own level is subtracted, since noise, light and compression raise a map everywhere. Excess is brought to
    the units of peaks by the extreme-value laws of both on good pictures: an excess that 1 good picture in
    900 has counts as the peak that 1 in 900 has.

    Attributes:
        above: σ over the level above which there is excess.
        shift, scale: score = shift + scale · excess.
        good, levels: the scores and the levels of the good pictures, float32 [pictures] each.
        changed: how scores of changed good pictures are distributed (`law_of_changed`).
    """

    above: float
    shift: float
    scale: float
    good: F32
    levels: F32
    changed: tuple[float, float] | None = None

    @staticmethod
    def of(good: F32, changed: tuple[float, float] | None = None) -> ImageScore:
        """From the fused maps of good pictures over CELLS × CELLS cells, float32 [pictures, cells]."""
        ranked = -np.sort(-good, axis=1)
        levels = ranked[:, LEVEL - 1]
        above = float((ranked[:, EXCESS_FROM - 1] - levels).mean())
        partial = ImageScore(above, -math.inf, 0.0, ranked[:, 0], levels)
        excess = np.array([partial._excess(each) for each in ranked])
        peaks = ranked[:, :PEAK].mean(axis=1)
        (peak, peak_scale), (middle, excess_scale) = _gumbel(peaks), _gumbel(excess)
        # where good pictures have hardly any excess: a peak higher by its own scale is no less usual
        scale = peak_scale / max(excess_scale, peak_scale * PEAK / CELLS**2)
        shift = peak - scale * middle
        scores = np.maximum(peaks, shift + scale * excess).astype(np.float32)
        return ImageScore(above, shift, scale, scores, levels, changed)

    def threshold(self, rate: float = 0.01) -> float:
        """See `threshold_for`."""
        return threshold_for(self.good, rate, self.changed)

    def rate(self, score: float) -> float:
        """See `rate_for`."""
        return rate_for(self.good, score, self.changed)

    def rate_bounds(self, score: float) -> tuple[float, float]:
        """See `rate_bounds`."""
        return rate_bounds(self.good, score, self.changed)

    def __call__(self, anomaly_map: F32, size: float) -> float:
        """The score of a fused map [h, w], which does not show the padding of the model's square.

        size: how many of its pixels make a side of that square.
        """
        ranked = -np.sort(-cells_of(anomaly_map, size))
        return max(float(ranked[:PEAK].mean()), self.shift + self.scale * self._excess(ranked))

    def _excess(self, ranked: F32) -> float:
        """The sum of what lies above, over cells sorted from the highest, divided by a square's cells."""
        level = float(ranked[min(LEVEL, len(ranked)) - 1])
        return float((ranked - (level + self.above)).clip(min=0).sum()) / CELLS**2


def cells_of(anomaly_map: F32, size: float) -> F32:
    """Means of a map [h, w] over cells, of which `size` pixels hold CELLS, float32 [cells].

    There is at least one cell along a side, and no more than pixels.
    """
    rows, columns = (max(1, min(side, round(CELLS * side / size))) for side in anomaly_map.shape)
    flat = torch.from_numpy(np.ascontiguousarray(anomaly_map, np.float32))[None, None]
    return F.adaptive_avg_pool2d(flat, (rows, columns)).numpy().ravel()


EULER = 0.5772156649015329
SKEWNESS, EXCESS_KURTOSIS = 1.1395470994046486, 2.4  # of Gumbel's law


def threshold_for(
    good_scores: Floats, rate: float = 0.01, changed: tuple[float, float] | None = None
) -> float:
    """Score that a share `rate` of good parts would exceed.

    Of good parts changed in light, noise, sharpness, compression or position at most CHANGED_RATE times that
    share exceeds it. An image score is nearly a maximum over the picture, so good scores follow an
    extreme-value law; Gumbel's is fitted by mean and standard deviation, which reaches beyond the few dozen
    good pictures at hand. `unusual` scores are cut at the value where unusual ones begin: how bright one
    speck of dust is must not decide which defects pass.

    Args:
        good_scores: image scores of good pictures, [pictures].
        rate: in (0, 1), otherwise ValueError is raised.
        changed: how changed good parts score (`law_of_changed`); None: they do not count.
    """
    checked_rate(rate)
    law = _gumbel(good_scores)
    limit = _exceeded(law, rate)
    if changed is not None and CHANGED_RATE * rate < 1:
        limit = max(limit, _exceeded(_changed(law, changed), CHANGED_RATE * rate))
    return limit


def law_of_changed(good_scores: Floats, changed_scores: Floats) -> tuple[float, float]:
    """How the scores of changed good pictures differ from those of good pictures as they are.

    Returns by how many scales of the latter's extreme-value law the mean is higher, and how many times as
    wide the law is. In these units it holds, approximately, at any α and timesteps.
    """
    (mean, scale), (changed_mean, changed_scale) = _gumbel(good_scores), _gumbel(changed_scores)
    return (changed_mean - mean) / scale, changed_scale / scale


def _changed(law: tuple[float, float], changed: tuple[float, float]) -> tuple[float, float]:
    mean, scale = law
    return mean + changed[0] * scale, changed[1] * scale


def _exceeded(law: tuple[float, float], rate: float) -> float:
    mean, scale = law
    return mean + scale * (-math.log(-math.log1p(-rate)) - EULER)


def _exceeding(law: tuple[float, float], score: float) -> float:
    mean, scale = law
    exponent = -((score - mean) / scale + EULER)
    return 1.0 if exponent > 50 else -math.expm1(-math.exp(exponent))


def checked_rate(rate: float) -> float:
    """Raises ValueError unless 0 < rate < 1."""
    if not 0 < rate < 1:
        raise ValueError(f"a share of good parts lies between 0 and 1, not {rate}")
    return rate


def rate_for(good_scores: Floats, score: float, changed: tuple[float, float] | None = None) -> float:
    """Share of good parts expected above `score`, in [0, 1]: the inverse of `threshold_for`."""
    law = _gumbel(good_scores)
    of_changed = 0.0 if changed is None else _exceeding(_changed(law, changed), score) / CHANGED_RATE
    return max(_exceeding(law, score), of_changed)


def rate_bounds(
    good_scores: Floats, score: float, changed: tuple[float, float] | None = None
) -> tuple[float, float]:
    """A 95 % interval of `rate_for`, as far as the number of good pictures goes.

    A threshold k standard deviations s above the mean of n scores after Gumbel's law has the variance
    s² (1 + γ₁ k + (γ₂ + 2) k² / 4) / n by the delta method, with the law's skewness γ₁ = 1.14 and excess
    kurtosis γ₂ = 2.4; the bounds are the shares at 1.96 of its roots to either side.
    """
    mean, scale = _gumbel(good_scores)
    spread = scale * math.pi / math.sqrt(6)
    k = (score - mean) / spread
    error = spread * math.sqrt((1 + SKEWNESS * k + (EXCESS_KURTOSIS + 2) * k**2 / 4) / len(good_scores))
    low, high = (rate_for(good_scores, score + side * 1.96 * error, changed) for side in (1, -1))
    return low, high


def _gumbel(good_scores: Floats) -> tuple[float, float]:
    scores = np.asarray(good_scores, dtype=np.float64)
    if scores.size == 0:
        raise ValueError("a threshold needs at least one good score")
    scores = np.minimum(scores, _usual_end(scores))
    # a spread from few pictures is uncertain: wider for small samples, never below a twentieth of the level
    spread = scores.std(ddof=1) * (1 + 1 / scores.size) if scores.size > 1 else 0.0
    return float(scores.mean()), max(float(spread), 0.05 * abs(float(scores.mean())), 1e-6) * math.sqrt(
        6
    ) / math.pi


def unusual(good_scores: Floats, rate: float = 3e-4) -> Bools:
    """Which good scores lie above what a share `rate` would exceed by the law of the others, bool [pictures].

    At 3 in 10,000 they are worth a look. Of 8 to 48 scores that follow the law, one or more is called unusual
    in 3 of 100 cases.
    """
    scores = np.asarray(good_scores, dtype=np.float64)
    return scores > _usual_end(scores, rate)


def _usual_end(scores: Floats, rate: float = 3e-4) -> float:
    """What a share `rate` of good scores would exceed by Gumbel's law through their quartiles.

    A few odd pictures cannot move the quartiles.
    """
    low, middle, high = np.quantile(scores, (0.25, 0.5, 0.75))
    scale = (high - low) / (math.log(math.log(4)) - math.log(math.log(4 / 3)))
    mode = middle + scale * math.log(math.log(2))
    return float(mode - scale * math.log(-math.log1p(-rate)))
