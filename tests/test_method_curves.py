"""Curves and intervals of metrics against hand-computed cases, repeated pictures and other libraries."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics as sklearn_metrics

from diffad.method.metrics import (
    aupro,
    auroc,
    average_precision,
    f1_max,
    interval,
    pixel_auroc,
    pixels,
    pro_curve,
    rate_interval,
    resampled_image_metrics,
    resampled_pixel_metrics,
    resamples,
    roc_curve,
)


def blobs(seed, n=4, size=20, levels=None):
    """Maps that partly follow random masks; few levels make many ties."""
    rng = np.random.default_rng(seed)
    masks = [cv2.GaussianBlur(rng.normal(size=(size, size)), (5, 5), 1.2) > 0.45 for _ in range(n - 1)]
    masks.append(np.zeros((size, size), bool))
    maps = [rng.normal(size=mask.shape) + 1.3 * mask for mask in masks]
    if levels:
        maps = [np.round(m * levels) / levels for m in maps]
    return [m.astype(np.float32) for m in maps], masks


# ---------------------------------------------------------------------------------------------------------
# Curves


@pytest.mark.parametrize("levels", [None, 3])
def test_roc_curve_is_scikit_learns(levels):
    rng = np.random.default_rng(4)
    labels = rng.random(90) < 0.4
    scores = rng.normal(size=90) + labels
    scores = np.round(scores * levels) / levels if levels else scores
    fpr, tpr, _ = sklearn_metrics.roc_curve(labels, scores, drop_intermediate=False)
    assert roc_curve(scores, labels) == pytest.approx(np.stack([fpr, tpr], axis=1), abs=1e-12)
    assert roc_curve(scores, labels & False) is None


def test_long_curves_are_thinned_and_their_points_stay_on_the_curve():
    maps, masks = blobs(11, n=8, size=80)
    scores, labels = pixels(maps, masks)
    fpr, tpr, _ = sklearn_metrics.roc_curve(labels, scores, drop_intermediate=False)
    points = roc_curve(scores, labels)
    assert 60 <= len(points) <= 120 and points[0].tolist() == [0, 0] and points[-1].tolist() == [1, 1]
    every = set(zip(fpr.round(12), tpr.round(12), strict=True))
    assert all((x, y) in every for x, y in points.round(12))
    assert sklearn_metrics.auc(*points.T) == pytest.approx(pixel_auroc(maps, masks), abs=1e-3)


@pytest.mark.parametrize("max_fpr", [0.05, 0.3, 1.0])
def test_pro_curve_has_the_area_of_aupro(max_fpr):
    small, large = blobs(7, levels=2), blobs(12, n=6, size=60)
    for (maps, masks), tolerance in ((small, 1e-12), (large, 2e-3)):
        points = pro_curve(maps, masks, max_fpr)
        assert points[0].tolist() == [0, 0] and points[-1, 0] == max_fpr and len(points) <= 120
        assert (np.diff(points, axis=0) >= 0).all()
        area = sklearn_metrics.auc(*points.T) / max_fpr
        assert area == pytest.approx(aupro(maps, masks, max_fpr), abs=tolerance)
    assert pro_curve([np.ones((4, 4))], [np.zeros((4, 4), bool)]) is None


# ---------------------------------------------------------------------------------------------------------
# Intervals


def test_resamples_draw_good_among_good_and_defective_among_defective():
    labels = np.array([0, 1, 0, 0, 1, 1, 1], bool)
    weights = resamples(labels, 400)
    assert weights.shape == (400, 7)
    assert (weights[:, labels].sum(axis=1) == 4).all() and (weights[:, ~labels].sum(axis=1) == 3).all()
    assert weights.mean(axis=0) == pytest.approx(1, abs=0.2) and weights.max() > 1
    assert (weights == resamples(labels, 400)).all() and (weights != resamples(labels, 400, seed=1)).any()


@pytest.mark.parametrize("levels", [None, 2])
def test_resampled_image_metrics_are_those_of_the_repeated_pictures(levels):
    rng = np.random.default_rng(6)
    labels = np.arange(40) >= 15
    scores = rng.normal(size=40) + labels
    scores = np.round(scores * levels) / levels if levels else scores
    weights = np.vstack([np.ones((1, 40), int), resamples(labels, 5)])
    drawn = resampled_image_metrics(scores, labels, weights)
    for i, counts in enumerate(weights):
        repeated = scores.repeat(counts), labels.repeat(counts)
        for name, metric in (("auroc", auroc), ("ap", average_precision), ("f1", f1_max)):
            assert drawn[name][i] == pytest.approx(metric(*repeated), abs=1e-12), name
    assert np.isnan(resampled_image_metrics(scores, labels & False, weights)["auroc"]).all()


@pytest.mark.parametrize("n, size, tolerance", [(5, 18, 1e-12), (10, 90, 1e-3)])  # 1620 and 81,000 pixels
def test_resampled_pixel_metrics_are_those_of_the_repeated_pictures(n, size, tolerance):
    maps, masks = blobs(8, n=n, size=size)
    weights = np.vstack([np.ones((1, n), int), resamples([mask.any() for mask in masks], 4)])
    drawn = resampled_pixel_metrics(maps, masks, weights, max_fprs=(0.3, 0.05))
    for i, counts in enumerate(weights):
        repeated = [
            [values for values, count in zip(kind, counts, strict=True) for _ in range(count)]
            for kind in (maps, masks)
        ]
        for name, metric in (("auroc", auroc), ("ap", average_precision), ("f1", f1_max)):
            assert drawn[name][i] == pytest.approx(metric(*pixels(*repeated)), abs=tolerance), name
        for row, max_fpr in enumerate((0.3, 0.05)):
            assert drawn["aupro"][row, i] == pytest.approx(aupro(*repeated, max_fpr), abs=tolerance)


def test_intervals_cover_a_known_auroc():
    """Two unit normals one apart have AUROC Φ(1/√2) = 0.7602; 95 % intervals hold it 95 times in 100."""
    labels = np.arange(80) >= 40
    rng = np.random.default_rng(0)
    weights = resamples(labels, 400)
    covered = 0
    for _ in range(200):
        low, high = interval(resampled_image_metrics(rng.normal(size=80) + labels, labels, weights)["auroc"])
        covered += low <= 0.7602 <= high
    assert 0.9 <= covered / 200 <= 0.985


def test_interval_by_hand():
    assert interval(range(1001)) == [25, 975]
    assert interval([0.5, np.nan, 0.5]) == [0.5, 0.5]
    assert interval([np.nan]) is None


@pytest.mark.parametrize("hits, count", [(0, 20), (1, 20), (10, 40), (63, 63)])
def test_rate_interval_is_scipys_wilson(hits, count):
    expected = binomtest(hits, count).proportion_ci(0.95, "wilson")
    assert rate_interval(hits / count, count) == pytest.approx(list(expected), abs=1e-6)
