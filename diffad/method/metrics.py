"""Metrics of detection and localisation, their curves, and confidence intervals.

Metrics and curves are exact: every distinct score is a threshold, ties are handled, and scores are neither
binned nor transformed. They are None if undefined (nothing normal or nothing anomalous). Regions of masks are
8-connected, at the resolution of maps and masks.

Confidence intervals are bootstrapped over pictures, good and defective ones separately (`resamples`): the
functions `resampled_…` compute a metric for all draws at once, `interval` its central 95 %.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike

from diffad.pictures.arrays import F64, I64, Array, Bools

PIMO_RATES = (1e-5, 1e-4)  # false positive rates between which AUPIMO integrates
FEWEST_PIMO_PIXELS = 30  # minimum pixels of good pictures between those rates, the steps of the curve
_CURVE_POINTS = 120
_THRESHOLDS = 2000  # maximum thresholds of resampled pixel metrics


def auroc(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """Area under the ROC curve: how often an anomalous score exceeds a normal one, ties counting half.

    Args:
        scores: any shape, finite.
        labels: the same shape, true = anomalous.

    Returns:
        A value in [0, 1], or None if one of the two kinds is absent.

    Raises:
        ValueError: a score is not finite, or the shapes differ.
    """
    positive, negative = _split(scores, labels)
    if not positive.size or not negative.size:
        return None
    below = np.searchsorted(negative, positive, "left").sum(dtype=np.int64)
    not_above = np.searchsorted(negative, positive, "right").sum(dtype=np.int64)
    return float((below + not_above) / (2 * positive.size * negative.size))


def average_precision(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """Σ (recall_k − recall_{k−1}) · precision_k over distinct scores, in [0, 1]; arguments as in `auroc`."""
    curve = _precision_counts(scores, labels)
    if curve is None:
        return None
    new, found, false_alarms, total = curve
    return float((new * (found / (found + false_alarms))).sum() / total)


def f1_max(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """The best F1 = 2 TP / (2 TP + FP + FN) of any threshold, in [0, 1]; arguments as in `auroc`."""
    curve = _precision_counts(scores, labels)
    if curve is None:
        return None
    _, found, false_alarms, total = curve
    return float((2 * found / (found + false_alarms + total)).max())


def roc_curve(scores: ArrayLike, labels: ArrayLike) -> F64 | None:
    """Points of the ROC curve, float64 [k, 2]: false and true positive rate, from (0, 0) to (1, 1).

    Points are exact; about 120 of a long curve are kept, evenly spaced. Arguments as in `auroc`.
    """
    positive, negative = _split(scores, labels)
    if not positive.size or not negative.size:
        return None
    thresholds = _thresholds(positive, negative, 20 * _CURVE_POINTS)[::-1]
    rates = [
        (kind.size - np.searchsorted(kind, thresholds, "left")) / kind.size for kind in (negative, positive)
    ]
    return _thinned(np.vstack([[0.0, 0.0], np.stack(rates, axis=1)]))


# -- maps


def pixel_auroc(maps: Sequence[ArrayLike], masks: Sequence[ArrayLike]) -> float | None:
    """`auroc` over the pixels of all pictures. maps: n arrays [h, w], masks: n bool arrays likewise."""
    return auroc(*pixels(maps, masks))


def aupro(maps: Sequence[ArrayLike], masks: Sequence[ArrayLike], max_fpr: float = 0.3) -> float | None:
    """Area under the per-region overlap (PRO) curve for false positive rates up to `max_fpr`, divided by it.

    PRO is the mean over the 8-connected regions of all masks of the share of a region at or above the
    threshold; the rate is over the normal pixels of all pictures. Every distinct value is a threshold. The
    curve starts at (0, 0), is linear between its points and is cut exactly at `max_fpr`.

    Args:
        maps: n arrays [h, w], finite.
        masks: n bool arrays of the same shapes.
        max_fpr: in (0, 1].

    Returns:
        A value in [0, 1], or None without regions or without normal pixels.

    Raises:
        ValueError: max_fpr out of range, or maps and masks that do not fit.
    """
    points = _pro_points(maps, masks, max_fpr)
    return None if points is None else _area_until(points[:, 0], points[:, 1], max_fpr) / max_fpr


def pro_curve(maps: Sequence[ArrayLike], masks: Sequence[ArrayLike], max_fpr: float = 0.3) -> F64 | None:
    """Points of the PRO curve, float64 [k, 2]: false positive rate and PRO, from (0, 0) to `max_fpr`.

    Points are exact; about 120 of a long curve are kept, evenly spaced. Arguments as in `aupro`.
    """
    points = _pro_points(maps, masks, max_fpr)
    if points is None:
        return None
    inside = points[points[:, 0] <= max_fpr]
    at_end = np.interp(max_fpr, *points[len(inside) - 1 : len(inside) + 1].T)
    return _thinned(np.vstack([inside, [max_fpr, at_end]]))


def aupimo(
    maps: Sequence[ArrayLike], masks: Sequence[ArrayLike], rates: tuple[float, float] = PIMO_RATES
) -> F64 | None:
    """Area under the per-image overlap curve (AUPIMO, Bertoldo et al. 2024) of each defective picture.

    The overlap is the share of the picture's defect above a threshold. The rate of a threshold is the mean
    over the good pictures of the share of their pixels at or above it. The overlap at a rate is that of the
    lowest threshold which does not exceed the rate; the area is its mean over the logarithm of the rate.

    Args:
        maps: n arrays [h, w], finite.
        masks: n bool arrays of the same shapes, empty for good pictures.
        rates: lower and upper limit, 0 < rates[0] < rates[1] <= 1.

    Returns:
        float64 [defective pictures] in [0, 1]. None without good or without defective pictures, or if fewer
        than FEWEST_PIMO_PIXELS pixels of good pictures lie between the rates.

    Raises:
        ValueError: rates out of range, or maps and masks that do not fit.
    """
    kinds = _pimo_kinds(maps, masks, rates)
    if kinds is None:
        return None
    good, bad = kinds
    needed = int(np.ceil(rates[1] * len(good) * max(values.size for values in good))) + 1
    highest = np.concatenate([values[-needed:] for values in good])
    overlaps, alarms = _pimo_steps(good, bad, np.unique(np.sort(highest)[-needed:]))
    return (overlaps @ _log_widths(alarms.mean(axis=0), rates)).clip(0, 1)  # clip rounding errors


def pixels(maps: Sequence[ArrayLike], masks: Sequence[ArrayLike]) -> tuple[Array, Array]:
    """Scores and labels of all pixels of all pictures, flattened.

    Raises:
        ValueError: a map and its mask differ in shape, are not [h, w], or a value is not finite.
    """
    maps, masks = _checked(maps, masks)
    return np.concatenate([m.ravel() for m in maps]), np.concatenate([m.ravel() for m in masks])


def _checked(maps: Sequence[ArrayLike], masks: Sequence[ArrayLike]) -> tuple[list[Array], list[Bools]]:
    if len(maps) != len(masks) or len(maps) == 0:
        raise ValueError(f"give a mask for each map, at least one: {len(maps)} maps, {len(masks)} masks")
    arrays: list[Array] = [np.asarray(each) for each in maps]
    areas: list[Bools] = [np.asarray(each, bool) for each in masks]
    for anomaly_map, mask in zip(arrays, areas, strict=True):
        if anomaly_map.shape != mask.shape or anomaly_map.ndim != 2:
            raise ValueError(f"a map {anomaly_map.shape} and its mask {mask.shape} must both be [h, w]")
        if not np.isfinite(anomaly_map).all():
            raise ValueError("scores must be finite: look for NaN or infinity in the maps")
    return arrays, areas


# -- confidence intervals


def resamples(labels: ArrayLike, draws: int = 1000, seed: int = 0) -> I64:
    """Bootstrap draws: how often each of n pictures is drawn, int64 [draws, n].

    Good and defective pictures (labels [n], true = defective) are drawn separately with replacement, as many
    as there are. The same arguments give the same draws.
    """
    labels = np.asarray(labels, bool)
    rng = np.random.default_rng(seed)
    weights = np.zeros((draws, labels.size), np.int64)
    for members in (np.flatnonzero(~labels), np.flatnonzero(labels)):
        if members.size:
            even = np.full(members.size, 1 / members.size)
            weights[:, members] = rng.multinomial(members.size, even, draws)
    return weights


def interval(values: ArrayLike) -> list[float] | None:
    """95 % percentile interval of a metric's resampled values.

    Undefined values (NaN) are ignored; None if all are undefined.
    """
    every = np.asarray(values, np.float64)
    defined = every[np.isfinite(every)]
    return [float(edge) for edge in np.quantile(defined, (0.025, 0.975))] if defined.size else None


def rate_interval(rate: float, count: int) -> list[float]:
    """Wilson's 95 % interval of a rate in `count` trials."""
    z2 = 1.959964**2
    centre = (rate + z2 / (2 * count)) / (1 + z2 / count)
    half = (z2 * (rate * (1 - rate) + z2 / (4 * count)) / count) ** 0.5 / (1 + z2 / count)
    return [max(0.0, centre - half), min(1.0, centre + half)]


def resampled_image_metrics(scores: ArrayLike, labels: ArrayLike, weights: Array) -> dict[str, F64]:
    """auroc, ap and f1 of every draw, exact.

    Args:
        scores, labels: [n], as in `auroc`.
        weights: [draws, n], how often each picture counts.

    Returns:
        float64 [draws] for each metric, NaN if undefined.
    """
    labels = np.asarray(labels, bool)
    order = np.argsort(np.asarray(scores), kind="stable")
    _, starts = np.unique(np.asarray(scores)[order], return_index=True)
    weights, labels = np.asarray(weights, np.float64)[:, order], labels[order]
    counts = (np.add.reduceat(weights * kind, starts, axis=1) for kind in (~labels, labels))
    return _counted(*counts)  # [draws, distinct scores] each


def resampled_pixel_metrics(
    maps: Sequence[ArrayLike],
    masks: Sequence[ArrayLike],
    weights: Array,
    max_fprs: Sequence[float] = (0.3, 0.05),
) -> dict[str, F64]:
    """auroc, ap, f1 and aupro of every draw.

    Exact up to 2000 pixels. For more pixels, 2000 of the scores are used as thresholds, at even ranks of
    anomalous pixels and even logarithms of the false positive rate. The curves are linear between exact
    points, which changes a metric by less than 0.001 and needs one histogram per picture instead of sorting
    all pixels for each draw.

    Args:
        maps, masks: n each, as in `aupro`.
        weights: [draws, n], how often each picture counts, with all its pixels and regions.
        max_fprs: limits of aupro.

    Returns:
        float64 [draws] for each metric, for aupro [len(max_fprs), draws]; NaN if undefined.
    """
    scores, labels = pixels(maps, masks)
    edges = _thresholds(*_split(scores, labels), _THRESHOLDS)
    del scores, labels
    normal, anomalous, overlap, regions = np.zeros((4, len(maps), edges.size))
    for i, (anomaly_map, mask) in enumerate(zip(maps, masks, strict=True)):
        mask = np.asarray(mask, bool)
        bins = np.searchsorted(edges, np.asarray(anomaly_map), "right") - 1  # [h, w]; edge 0 is the minimum
        share, regions[i, 0] = _region_shares(mask)
        normal[i] = np.bincount(bins[~mask], minlength=edges.size)
        anomalous[i] = np.bincount(bins[mask], minlength=edges.size)
        overlap[i] = np.bincount(bins[mask], share, minlength=edges.size)
    drawn = _counted(weights @ normal, weights @ anomalous)
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = (weights @ normal)[:, ::-1].cumsum(axis=1) / (weights @ normal).sum(axis=1, keepdims=True)
        pro = (weights @ overlap)[:, ::-1].cumsum(axis=1) / (weights @ regions[:, :1])
    rate, pro = (np.pad(points, ((0, 0), (1, 0))) for points in (rate, pro))
    drawn["aupro"] = np.array(
        [[_area_until(x, y, limit) / limit for x, y in zip(rate, pro)] for limit in max_fprs]
    )
    return drawn


def resampled_aupimo(
    maps: Sequence[ArrayLike],
    masks: Sequence[ArrayLike],
    weights: Array,
    rates: tuple[float, float] = PIMO_RATES,
) -> F64 | None:
    """The mean of `aupimo` of every draw.

    Exact up to 4000 pixels of good pictures. For more pixels, 2000 of them are used as thresholds, at even
    steps of the logarithm of the rate, which changes a value by less than 0.01.

    Args:
        maps, masks, rates: as in `aupimo`.
        weights: [draws, n], how often each picture counts.

    Returns:
        float64 [draws], NaN for draws without a defective picture; None if `aupimo` is None.
    """
    kinds = _pimo_kinds(maps, masks, rates)
    if kinds is None:
        return None
    good, bad = kinds
    defective = np.array([np.any(mask) for mask in masks])
    pooled = np.sort(np.concatenate(good))
    overlaps, alarms = _pimo_steps(good, bad, _thresholds(pooled[:0], pooled, 2 * _THRESHOLDS))
    of_good, of_bad = weights[:, ~defective], weights[:, defective]
    with np.errstate(invalid="ignore"):
        alarms = of_good @ alarms / of_good.sum(axis=1, keepdims=True)
        overlaps = of_bad @ overlaps / of_bad.sum(axis=1, keepdims=True)
    area: F64 = (overlaps * _log_widths(alarms, rates)).sum(axis=1)
    return area.clip(0, 1)


def _pimo_kinds(
    maps: Sequence[ArrayLike], masks: Sequence[ArrayLike], rates: tuple[float, float]
) -> tuple[list[Array], list[Array]] | None:
    """Sorted values of each good picture and of each defect; None if `aupimo` is None."""
    low, high = rates
    if not 0 < low < high <= 1:
        raise ValueError(f"rates rise from above 0 to at most 1, unlike {low}, {high}")
    maps, masks = _checked(maps, masks)
    good = [np.sort(values, axis=None) for values, mask in zip(maps, masks) if not mask.any()]
    bad = [np.sort(values[mask]) for values, mask in zip(maps, masks) if mask.any()]
    if not bad or sum(values.size for values in good) * (high - low) < FEWEST_PIMO_PIXELS:
        return None
    return good, bad


def _pimo_steps(good: Sequence[Array], bad: Sequence[Array], edges: Array) -> tuple[Array, Array]:
    """Overlaps and rates at the thresholds `edges` (ascending).

    Returns:
        Share of each defect above, [len(bad), k], and of each good picture at or above a threshold,
        [len(good), k], highest threshold first.
    """
    edges = edges[::-1]
    overlaps = [1 - np.searchsorted(values, edges, "right") / values.size for values in bad]
    alarms = [1 - np.searchsorted(values, edges, "left") / values.size for values in good]
    return np.stack(overlaps), np.stack(alarms)


def _log_widths(rate: Array, rates: tuple[float, float]) -> F64:
    """Share of `rates`, on a logarithmic scale, that each step of a rising rate [..., k] covers."""
    before = np.concatenate([np.zeros_like(rate[..., :1]), rate[..., :-1]], axis=-1)
    until, since = (np.log(np.clip(each, *rates)) for each in (rate, before))
    widths: F64 = (until - since) / np.log(rates[1] / rates[0])
    return widths


def _counted(normal: Array, anomalous: Array) -> dict[str, F64]:
    """auroc, ap and f1 [draws] from weighted counts [draws, k] at k distinct ascending scores."""
    new, false_alarms = anomalous[:, ::-1], normal[:, ::-1].cumsum(axis=1)
    found, normals, defects = new.cumsum(axis=1), false_alarms[:, -1:], anomalous.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        below = normals - false_alarms + normal[:, ::-1] / 2  # normal items below an anomalous one
        defined = np.where((normals > 0) & (defects > 0), 1.0, np.nan)[:, 0]
        precision = found / np.maximum(found + false_alarms, 1e-12)
        return {
            "auroc": (new * below).sum(axis=1) / (normals * defects)[:, 0] * defined,
            "ap": (new * precision).sum(axis=1) / defects[:, 0] * defined,
            "f1": (2 * found / (found + false_alarms + defects)).max(axis=1) * defined,
        }


def _split(scores: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    """Sorted anomalous and sorted normal scores."""
    scores, labels = np.asarray(scores), np.asarray(labels, bool)
    if scores.shape != labels.shape:
        raise ValueError(f"scores {scores.shape} and labels {labels.shape} must have the same shape")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite: look for NaN or infinity in the maps")
    return np.sort(scores[labels]), np.sort(scores[~labels])


def _precision_counts(scores: ArrayLike, labels: ArrayLike) -> tuple[Array, Array, Array, int] | None:
    """Counts at each distinct anomalous score, highest first; None if undefined.

    Other thresholds are not needed: between these, recall is constant and precision can only fall.

    Returns:
        New true positives, all true positives and false positives, [k] each; the number of positives.
    """
    positive, negative = _split(scores, labels)
    if not positive.size or not negative.size:
        return None
    values, new = (each[::-1] for each in np.unique(positive, return_counts=True))
    false_alarms = negative.size - np.searchsorted(negative, values, "left")
    return new, np.cumsum(new), false_alarms, positive.size


def _thresholds(positive: Array, negative: Array, count: int) -> Array:
    """At most `count` distinct scores as thresholds, ascending and including the lowest.

    All scores if possible; otherwise half at even ranks of the anomalous scores and half at normal scores
    with even steps in the logarithm of the false positive rate. Both arguments are sorted.
    """
    if positive.size + negative.size <= count:
        return np.unique(np.concatenate([positive, negative]))
    chosen = []
    if positive.size:
        chosen.append(positive[np.linspace(0, positive.size - 1, count // 2).round().astype(int)])
    if negative.size:
        above = np.geomspace(1, negative.size, count // 2).round().astype(int)
        chosen.append(negative[negative.size - above])
    return np.unique(np.concatenate(chosen))


def _region_shares(mask: ArrayLike) -> tuple[Array, int]:
    """1 / area of its region for each pixel of a mask, in row order, and the number of regions."""
    mask = np.asarray(mask, bool)
    count, names = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8, ltype=cv2.CV_32S)
    areas = np.bincount(names.ravel(), minlength=count)
    return 1.0 / areas[names[mask]], count - 1


def _pro_points(maps: Sequence[ArrayLike], masks: Sequence[ArrayLike], max_fpr: float) -> F64 | None:
    """Points (rate, PRO) [k, 2] by rising rate, from (0, 0) to at least `max_fpr`; None if undefined."""
    if not 0 < max_fpr <= 1:
        raise ValueError(f"max_fpr must lie in (0, 1], not {max_fpr}")
    scores, labels = pixels(maps, masks)
    shares, counts = zip(*(_region_shares(mask) for mask in masks), strict=True)
    regions = sum(counts)
    positive, negative = scores[labels], np.sort(scores[~labels])
    if not regions or not negative.size:
        return None
    order = np.argsort(-positive, kind="stable")
    overlap = np.concatenate([[0.0], np.cumsum(np.concatenate(shares)[order])]) / regions
    ascending = np.sort(positive)
    # Thresholds below the first one past max_fpr do not matter, so most normal pixels are skipped.
    needed = min(negative.size, int(max_fpr * negative.size) + 1)
    cut = negative[-needed]
    thresholds = np.unique(np.concatenate([negative[-needed:], ascending[ascending >= cut]]))[::-1]
    rate = (negative.size - np.searchsorted(negative, thresholds, "left")) / negative.size
    pro = overlap[ascending.size - np.searchsorted(ascending, thresholds, "left")]
    return np.vstack([[0.0, 0.0], np.stack([rate, pro], axis=1)])


def _area_until(x: Array, y: Array, end: float) -> float:
    """∫ y dx from 0 to `end` under a polyline with non-decreasing x."""
    inside = int(np.searchsorted(x, end, "right"))  # points with x <= end
    area = float((np.diff(x[:inside]) * (y[1:inside] + y[: inside - 1]) / 2).sum())
    if inside < x.size:
        x0, y0, x1, y1 = x[inside - 1], y[inside - 1], x[inside], y[inside]
        at_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
        area += float((end - x0) * (y0 + at_end) / 2)
    return area


def _thinned(points: Array) -> F64:
    """About _CURVE_POINTS of a curve's points [k, 2], evenly spaced and including both ends."""
    if len(points) <= _CURVE_POINTS:
        return points
    steps = np.abs(np.diff(points, axis=0)) / np.maximum(np.ptp(points, axis=0), 1e-12)
    along = np.concatenate([[0.0], steps.sum(axis=1).cumsum()])
    kept = np.searchsorted(along, np.linspace(0, along[-1], _CURVE_POINTS))
    return points[np.unique(kept)]
