"""Metrics against hand-computed cases, slow obvious versions and other libraries."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    binary_precision_recall_curve,
)

from diffad.method.metrics import (
    aupimo,
    aupro,
    auroc,
    average_precision,
    f1_max,
    pixel_auroc,
    pixels,
    resampled_aupimo,
    resamples,
)

# ---------------------------------------------------------------------------------------------------------
# Slow and obvious


def slow_auroc(scores, labels):
    pairs = [(p > n) + (p == n) / 2 for p in scores[labels] for n in scores[~labels]]
    return sum(pairs) / len(pairs)


def flood_regions(mask):
    """8-connected regions as lists of (row, column), by flood fill."""
    left, regions = {(y, x) for y, x in zip(*np.nonzero(mask), strict=True)}, []
    while left:
        todo, region = [left.pop()], []
        while todo:
            y, x = todo.pop()
            region.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            todo += near
        regions.append(region)
    return regions


def slow_aupro(maps, masks, max_fpr):
    """One threshold after another, region by region, as the definition reads."""
    regions = [(m, region) for m, mask in zip(maps, masks, strict=True) for region in flood_regions(mask)]
    normal = np.concatenate([m[~mask] for m, mask in zip(maps, masks, strict=True)])
    points = [(0.0, 0.0)]
    for threshold in sorted({float(v) for m in maps for v in m.ravel()}, reverse=True):
        overlaps = [np.mean([m[place] >= threshold for place in region]) for m, region in regions]
        points.append((np.mean(normal >= threshold), np.mean(overlaps)))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 >= max_fpr or x1 == x0:
            continue
        end = min(x1, max_fpr)
        area += (end - x0) * (y0 + y0 + (y1 - y0) * (end - x0) / (x1 - x0)) / 2
    return area / max_fpr


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
# Ranks


def test_auroc_by_hand():
    assert auroc([1, 2, 3, 4], [0, 0, 1, 1]) == 1.0
    assert auroc([4, 3, 2, 1], [0, 0, 1, 1]) == 0.0
    assert auroc([1, 3, 2, 4], [0, 0, 1, 1]) == 0.75  # 3 of 4 pairs in order
    assert auroc([5, 5, 5, 5], [0, 0, 1, 1]) == 0.5
    assert auroc([1, 2, 2, 3], [0, 0, 1, 1]) == 0.875  # one tie of four pairs


def test_average_precision_and_f1_by_hand():
    scores, labels = [4, 3, 2, 1], [1, 0, 1, 0]
    assert average_precision(scores, labels) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert f1_max(scores, labels) == pytest.approx(0.8)  # threshold 2: precision 2/3, recall 1
    assert average_precision([1, 1, 1, 1], labels) == 0.5  # all tied: one threshold


@pytest.mark.parametrize("levels", [None, 2])
def test_ranks_agree_with_pairs_scikit_learn_and_torchmetrics(levels):
    rng = np.random.default_rng(3)
    labels = rng.random(300) < 0.3
    scores = 40 * (rng.normal(size=300) + labels)  # far outside [0, 1]
    scores = np.round(scores / 40 * levels) * 40 / levels if levels else scores
    assert auroc(scores, labels) == pytest.approx(slow_auroc(scores, labels), abs=1e-12)
    assert auroc(scores, labels) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), abs=1e-12)
    assert average_precision(scores, labels) == pytest.approx(
        sklearn_metrics.average_precision_score(labels, scores), abs=1e-12
    )
    precision, recall, _ = sklearn_metrics.precision_recall_curve(labels, scores)
    best = (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()
    assert f1_max(scores, labels) == pytest.approx(best, abs=1e-9)

    # torchmetrics squashes what lies outside [0, 1] with a sigmoid, so it gets the ranks instead.
    ranks = torch.from_numpy(np.unique(scores, return_inverse=True)[1] / scores.size)
    target = torch.from_numpy(labels.astype(np.int64))
    assert auroc(scores, labels) == pytest.approx(float(binary_auroc(ranks, target)), abs=1e-5)
    assert average_precision(scores, labels) == pytest.approx(
        float(binary_average_precision(ranks, target)), abs=1e-5
    )
    precision, recall, _ = binary_precision_recall_curve(ranks, target)
    best = (2 * precision * recall / (precision + recall).clamp(min=1e-12)).max()
    assert f1_max(scores, labels) == pytest.approx(float(best), abs=1e-5)


def test_only_the_order_of_scores_counts():
    rng = np.random.default_rng(0)
    labels = rng.random(200) < 0.5
    scores = rng.normal(size=200) + labels
    for metric in (auroc, average_precision, f1_max):
        assert metric(np.exp(5 * scores), labels) == metric(scores, labels)


def test_undefined_is_none_and_not_finite_is_refused():
    for metric in (auroc, average_precision, f1_max):
        assert metric([1.0, 2.0], [0, 0]) is None
        assert metric([1.0, 2.0], [1, 1]) is None
        with pytest.raises(ValueError, match="finite"):
            metric([1.0, np.nan], [0, 1])
        with pytest.raises(ValueError, match="shape"):
            metric([1.0, 2.0, 3.0], [0, 1])


# ---------------------------------------------------------------------------------------------------------
# Pixels


def test_pixel_auroc_is_auroc_of_all_pixels_of_all_pictures():
    maps, masks = blobs(1, levels=3)
    maps[0], masks[0] = maps[0][:11], masks[0][:11]  # pictures need not share a shape
    scores = np.concatenate([m.ravel() for m in maps])
    labels = np.concatenate([m.ravel() for m in masks])
    assert pixel_auroc(maps, masks) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), abs=1e-12)
    ranks = torch.from_numpy(np.unique(scores, return_inverse=True)[1] / scores.size)
    target = torch.from_numpy(labels.astype(np.int64))
    assert pixel_auroc(maps, masks) == pytest.approx(float(binary_auroc(ranks, target)), abs=1e-5)
    for own, of_sklearn in zip(pixels(maps, masks), (scores, labels), strict=True):
        assert (own == of_sklearn).all()
    with pytest.raises(ValueError, match="mask"):
        pixel_auroc(maps, masks[1:])
    with pytest.raises(ValueError, match=r"\[h, w\]"):
        pixel_auroc([maps[1]], [masks[0]])


def test_aupro_by_hand():
    mask = np.zeros((4, 5), bool)
    mask[0, 0], mask[2:, 3:] = True, True  # regions of one and of four pixels; 15 normal pixels
    anomaly_map = np.zeros((4, 5), np.float32)
    anomaly_map[0, 0] = 9  # the small region is found at once
    anomaly_map[1, :3] = 8  # then three false alarms: rate 0.2
    anomaly_map[2, 3:] = 7  # then half of the large one
    # PRO: ½ up to the rate 0.2, then ¾ there; afterwards a straight line to (1, 1), the tie of all zeros.
    up_to_03 = 0.2 * 0.5 + 0.1 * (0.75 + 0.5 * 0.25 * 0.1 / 0.8)
    assert aupro([anomaly_map], [mask], 0.3) == pytest.approx(up_to_03 / 0.3, abs=1e-12)
    assert aupro([anomaly_map], [mask], 0.2) == pytest.approx(0.5, abs=1e-12)
    assert aupro([anomaly_map], [mask], 0.1) == pytest.approx(0.5, abs=1e-12)
    assert aupro([mask * 1.0], [mask], 0.3) == pytest.approx(1.0)
    assert aupro([anomaly_map * 0], [mask], 0.3) == pytest.approx(0.15)  # the diagonal


def test_aupro_regions_are_8_connected_and_weigh_the_same():
    mask = np.zeros((6, 6), bool)
    mask[0, 0] = mask[1, 1] = True  # one region: they touch at a corner
    mask[4:, 3:] = True
    anomaly_map = np.zeros((6, 6), np.float32)
    anomaly_map[0, 0] = 1
    # Without false alarms PRO is (½ + 0) / 2; were the corner two regions, it would be (1 + 0 + 0) / 3.
    assert aupro([anomaly_map], [mask], 1e-6) == pytest.approx(0.25, abs=1e-4)


@pytest.mark.parametrize("levels", [None, 1, 3])
@pytest.mark.parametrize("max_fpr", [0.05, 0.3, 1.0])
def test_aupro_agrees_with_the_slow_version(levels, max_fpr):
    maps, masks = blobs(7, levels=levels)
    assert aupro(maps, masks, max_fpr) == pytest.approx(slow_aupro(maps, masks, max_fpr), abs=1e-9)


@pytest.mark.parametrize("max_fpr", [0.1, 0.3, 1.0])
def test_aupro_of_one_region_is_the_partial_auroc(max_fpr):
    maps, _ = blobs(5, n=2, levels=4)
    mask = np.zeros(maps[0].shape, bool)
    mask[3:9, 4:15] = True
    maps = [maps[0] + mask, maps[1]]
    masks = [mask, np.zeros_like(mask)]
    fpr, tpr, _ = sklearn_metrics.roc_curve(
        np.concatenate(masks).ravel(), np.concatenate(maps).ravel(), drop_intermediate=False
    )
    grid = np.linspace(0, max_fpr, 200_001)
    expected = np.interp(grid, fpr, tpr).mean()  # ties of rate differ only on a null set
    assert aupro(maps, masks, max_fpr) == pytest.approx(expected, abs=1e-4)
    if max_fpr == 1.0:
        assert aupro(maps, masks, 1.0) == pytest.approx(pixel_auroc(maps, masks), abs=1e-12)


def test_aupro_undefined_or_out_of_range():
    ones = np.ones((4, 4), bool)
    assert aupro([ones * 1.0], [~ones]) is None
    assert aupro([ones * 1.0], [ones]) is None
    for wrong in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="max_fpr"):
            aupro([ones * 1.0], [~ones], wrong)


def slow_aupimo(maps, masks, rates, steps=4000):
    """Rate after rate: of all thresholds that do not exceed it, the one that shows most of each defect."""
    good = [m for m, mask in zip(maps, masks, strict=True) if not mask.any()]
    thresholds = np.nextafter(np.unique(np.concatenate([m.ravel() for m in maps])), np.float32(np.inf))
    alarms = np.mean([[np.mean(m >= t) for t in thresholds] for m in good], axis=0)
    found = np.array(
        [
            [np.mean(m[mask] >= t) for t in thresholds]
            for m, mask in zip(maps, masks, strict=True)
            if mask.any()
        ]
    )
    logs = np.log(rates[0]) + (np.arange(steps) + 0.5) / steps * np.log(rates[1] / rates[0])
    return np.mean([found[:, alarms <= rate].max(axis=1) for rate in np.exp(logs)], axis=0)


def with_good(seed, good=2, size=20, levels=None):
    """Three pictures with random masks, and good ones of different sizes."""
    maps, masks = blobs(seed, size=size, levels=levels)
    for number in range(1, good):
        more, empty = blobs(seed + 100 + number, n=1, size=size + 3 * number, levels=levels)
        maps, masks = maps + more, masks + empty
    return maps, masks


@pytest.mark.parametrize("levels", [None, 3])
def test_aupimo_agrees_with_the_slow_version(levels):
    maps, masks = with_good(21, good=3, levels=levels)
    for rates in ((0.01, 0.1), (0.05, 0.5)):
        area = aupimo(maps, masks, rates)
        assert area.shape == (3,)
        assert area == pytest.approx(slow_aupimo(maps, masks, rates), abs=2e-3)


def test_aupimo_by_hand():
    """Good values 1 … 100; from a rate of 0.01 to 0.1 one more of them is passed at each hundredth."""
    good = np.arange(1.0, 101).reshape(10, 10)
    mask = np.zeros((10, 10), bool)
    mask[0, :4] = True
    nothing = np.zeros((10, 10), bool)

    def area(*defect):
        bad = np.full((10, 10), 1000.0)  # what lies beside a defect is no defect and no good picture either
        bad[0, :4] = defect
        return aupimo([good] * 4 + [bad], [nothing] * 4 + [mask], (0.01, 0.1))[0]

    assert area(200, 200, 200, 200) == pytest.approx(1)
    assert area(90, 50, 0, 0) == 0  # 90 is passed at 0.1 only, which is the end
    # at a rate r in [0.05, 0.06) the values 96 … 100 are passed, so that 95.5 lies above: to the end
    assert area(95.5, 0, 0, 0) == pytest.approx(np.log(0.1 / 0.05) / np.log(10) / 4)
    assert area(95, 0, 0, 0) == pytest.approx(np.log(0.1 / 0.06) / np.log(10) / 4)  # a tie is not above
    assert area(200, 95.5, 95.5, 0) == pytest.approx((1 + 2 * np.log10(2)) / 4)


def test_aupimo_is_none_where_a_curve_would_have_too_few_steps():
    maps, masks = with_good(3, good=2, size=100)  # 20,609 pixels of good pictures
    few = 29.5 / 20_609
    assert aupimo(maps, masks, (1e-3, 1e-3 + few)) is None
    assert resampled_aupimo(maps, masks, np.ones((1, 5)), (1e-3, 1e-3 + few)) is None
    assert aupimo(maps, masks, (1e-3, 1e-3 + 31 / 20_609)) is not None
    assert aupimo(maps[:3], masks[:3], (0.1, 0.5)) is None  # no good picture
    assert aupimo(maps[3:], masks[3:], (0.1, 0.5)) is None  # no defective one
    with pytest.raises(ValueError, match="rates rise"):
        aupimo(maps, masks, (0.0, 0.5))


@pytest.mark.parametrize("good, size, tolerance", [(3, 20, 1e-12), (8, 90, 0.01)])
def test_resampled_aupimo_is_that_of_the_repeated_pictures(good, size, tolerance):
    maps, masks = with_good(5, good=good, size=size)
    maps[3] = maps[3] + 2  # nearly all alarms are one picture's, which some draws lack
    rates = (0.01, 0.1) if good == 3 else (1e-3, 1e-2)
    weights = np.vstack([np.ones((1, len(maps)), int), resamples([mask.any() for mask in masks], 6, seed=2)])
    drawn = resampled_aupimo(maps, masks, weights, rates)
    for value, counts in zip(drawn, weights, strict=True):
        repeated = [
            [one for one, count in zip(kind, counts, strict=True) for _ in range(count)]
            for kind in (maps, masks)
        ]
        assert value == pytest.approx(aupimo(*repeated, rates).mean(), abs=tolerance)


def test_aupimo_is_anomalibs():
    """Theirs has thresholds at even steps of the score, which come near every value if they are many."""
    theirs = pytest.importorskip("anomalib.metrics.pimo.functional", reason="anomalib is an optional extra")
    maps, masks = blobs(31, n=13, size=48)
    for number in range(9):  # ten good pictures
        maps, masks = [*maps, maps[12] + np.float32(0.01 * number)], [*masks, masks[12]]
    stacked = torch.from_numpy(np.stack(maps)), torch.from_numpy(np.stack(masks))
    rates = 1e-3, 1e-2
    *_, areas, _ = theirs.aupimo_scores(*stacked, num_thresholds=20_000, fpr_bounds=rates)
    assert aupimo(maps, masks, rates) == pytest.approx(areas[~areas.isnan()].numpy(), abs=0.01)
