"""Image scores from anomaly maps, and thresholds and false alarm rates from the scores of good pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from diffad.pictures.arrays import F32, Bools, Floats

TOP = 256  # highest pixels averaged for the score without calibration: four places of the features' grid
CELLS = 32  # cells per side of the model's square, as many as the features' grid has at 256 px
PEAK = 4  # a map's peak is the mean of its PEAK highest cells (TOP pixels)
LEVEL = CELLS**2 // 4  # a map's level is its LEVEL-th highest cell, the upper quartile
EXCESS_FROM = 20  # excess starts at the EXCESS_FROM-th highest cell of an average good map
CHANGED_RATE = 10  # how many times as many changed good parts as unchanged ones may be rejected


def top_mean(anomaly_map: F32, size: float = 256) -> float:
    """Mean of a map's highest values, the image score without calibration.

    Averages 256 pixels at a model size of 256 px, and the same area at other sizes.
    """
    flat = np.asarray(anomaly_map, dtype=np.float32).ravel()
    top = min(max(1, round(TOP * (size / 256) ** 2)), flat.size)
    return float(np.partition(flat, flat.size - top)[flat.size - top :].mean())


@dataclass(frozen=True, eq=False)
class ImageScore:
    """The image score of an anomaly map in σ: the larger of its peak and its scaled excess.

    The peak, the mean of the PEAK highest cells, detects small strong defects. The excess detects large weak
    ones: it is the sum over cells of the amount above the level of good parts, after subtracting the map's
    own level, since noise, light and compression raise a map everywhere. The excess is scaled so that peak
    and excess have the same extreme-value distribution on good pictures.

    Attributes:
        above: σ above a map's level at which excess starts.
        shift, scale: the scaled excess is shift + scale · excess.
        good, levels: scores and levels of the good pictures, float32 [pictures] each.
        changed: distribution of the scores of changed good pictures (`law_of_changed`), if known.
    """

    above: float
    shift: float
    scale: float
    good: F32
    levels: F32
    changed: tuple[float, float] | None = None

    @staticmethod
    def of(good: F32, changed: tuple[float, float] | None = None) -> ImageScore:
        """Fit to the fused maps of good pictures over CELLS × CELLS cells, float32 [pictures, cells]."""
        ranked = -np.sort(-good, axis=1)
        levels = ranked[:, LEVEL - 1]
        above = float((ranked[:, EXCESS_FROM - 1] - levels).mean())
        partial = ImageScore(above, -math.inf, 0.0, ranked[:, 0], levels)
        excess = np.array([partial._excess(each) for each in ranked])
        peaks = ranked[:, :PEAK].mean(axis=1)
        (peak, peak_scale), (middle, excess_scale) = _gumbel(peaks), _gumbel(excess)
        # the lower limit on the excess's scale matters if good pictures have hardly any excess
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
        """Score a fused map.

        Args:
            anomaly_map: [h, w], without the padding of the model's square.
            size: side of that square in pixels of the map.
        """
        ranked = -np.sort(-cells_of(anomaly_map, size))
        return max(float(ranked[:PEAK].mean()), self.shift + self.scale * self._excess(ranked))

    def _excess(self, ranked: F32) -> float:
        """Excess of cells in descending order, divided by the number of cells of the square."""
        level = float(ranked[min(LEVEL, len(ranked)) - 1])
        return float((ranked - (level + self.above)).clip(min=0).sum()) / CELLS**2


def cells_of(anomaly_map: F32, size: float) -> F32:
    """Means of a map over cells.

    Args:
        anomaly_map: [h, w].
        size: number of pixels that correspond to CELLS cells. Each side has at least one cell and at most as
            many as it has pixels.

    Returns:
        float32 [cells].
    """
    rows, columns = (max(1, min(side, round(CELLS * side / size))) for side in anomaly_map.shape)
    flat = torch.from_numpy(np.ascontiguousarray(anomaly_map, np.float32))[None, None]
    return F.adaptive_avg_pool2d(flat, (rows, columns)).numpy().ravel()


EULER = 0.5772156649015329
SKEWNESS, EXCESS_KURTOSIS = 1.1395470994046486, 2.4  # of the Gumbel distribution


def threshold_for(
    good_scores: Floats, rate: float = 0.01, changed: tuple[float, float] | None = None
) -> float:
    """Score that a share `rate` of good parts is expected to exceed.

    At most CHANGED_RATE times that share of good parts changed in light, noise, sharpness, compression or
    position exceeds it. An image score is nearly a maximum over the picture, so good scores follow an
    extreme-value distribution. A Gumbel distribution is fitted by mean and standard deviation, which
    extrapolates beyond the few dozen good pictures available. `unusual` scores are clipped, so that a single
    outlier does not raise the threshold.

    Args:
        good_scores: image scores of good pictures, [pictures].
        rate: in (0, 1).
        changed: distribution of the scores of changed good parts (`law_of_changed`); None ignores them.

    Raises:
        ValueError: rate outside (0, 1), or no scores.
    """
    checked_rate(rate)
    law = _gumbel(good_scores)
    limit = _exceeded(law, rate)
    if changed is not None and CHANGED_RATE * rate < 1:
        limit = max(limit, _exceeded(_changed(law, changed), CHANGED_RATE * rate))
    return limit


def law_of_changed(good_scores: Floats, changed_scores: Floats) -> tuple[float, float]:
    """Compare the score distribution of changed good pictures with that of unchanged ones.

    Returns:
        The difference of the means in units of the unchanged scores' Gumbel scale, and the ratio of the
        scales. Both are approximately independent of α and the timesteps.
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
    """Return the rate. Raises ValueError unless 0 < rate < 1."""
    if not 0 < rate < 1:
        raise ValueError(f"a share of good parts must be between 0 and 1, not {rate}")
    return rate


def rate_for(good_scores: Floats, score: float, changed: tuple[float, float] | None = None) -> float:
    """Share of good parts expected above `score`, in [0, 1]: the inverse of `threshold_for`."""
    law = _gumbel(good_scores)
    of_changed = 0.0 if changed is None else _exceeding(_changed(law, changed), score) / CHANGED_RATE
    return max(_exceeding(law, score), of_changed)


def rate_bounds(
    good_scores: Floats, score: float, changed: tuple[float, float] | None = None
) -> tuple[float, float]:
    """95 % confidence interval of `rate_for`, given the number of good pictures.

    By the delta method, the score k standard deviations s above the mean of n Gumbel-distributed scores has
    the variance s² (1 + γ₁ k + (γ₂ + 2) k² / 4) / n, with skewness γ₁ = 1.14 and excess kurtosis γ₂ = 2.4.
    The bounds are the rates at 1.96 standard errors to either side.
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
    # the spread of few pictures is uncertain: wider for small samples, at least a twentieth of the mean
    spread = scores.std(ddof=1) * (1 + 1 / scores.size) if scores.size > 1 else 0.0
    return float(scores.mean()), max(float(spread), 0.05 * abs(float(scores.mean())), 1e-6) * math.sqrt(
        6
    ) / math.pi


def unusual(good_scores: Floats, rate: float = 3e-4) -> Bools:
    """Which good scores are outliers, bool [pictures].

    Outliers exceed the score that a share `rate` should exceed by the distribution through the quartiles. At
    the default rate, a set of 8 to 48 scores without outliers has a false one in 3 % of cases.
    """
    scores = np.asarray(good_scores, dtype=np.float64)
    return scores > _usual_end(scores, rate)


def _usual_end(scores: Floats, rate: float = 3e-4) -> float:
    """Score that a share `rate` exceeds in a Gumbel distribution fitted to the quartiles, which outliers do
    not affect.
    """
    low, middle, high = np.quantile(scores, (0.25, 0.5, 0.75))
    scale = (high - low) / (math.log(math.log(4)) - math.log(math.log(4 / 3)))
    mode = middle + scale * math.log(math.log(2))
    return float(mode - scale * math.log(-math.log1p(-rate)))
