"""Metrics against hand-computed cases, slow obvious versions and other libraries; evaluate against a toy."""

from __future__ import annotations

import json
from itertools import pairwise
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torchmetrics.functional.classification import binary_auroc, binary_average_precision
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from diffad.data import DataError, Geometry, Sample
from diffad.evaluation import (
    aupro,
    auroc,
    average_precision,
    evaluate,
    evaluate_repair,
    evaluation_table,
    f1_max,
    pixel_auroc,
    psnr,
    repair_table,
    ssim,
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
        sklearn_metrics.average_precision_score(labels, scores), abs=1e-12)
    precision, recall, _ = sklearn_metrics.precision_recall_curve(labels, scores)
    best = (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()
    assert f1_max(scores, labels) == pytest.approx(best, abs=1e-9)

    # torchmetrics squashes what lies outside [0, 1] with a sigmoid, so it gets the ranks instead.
    ranks = torch.from_numpy(np.unique(scores, return_inverse=True)[1] / scores.size)
    target = torch.from_numpy(labels.astype(np.int64))
    assert auroc(scores, labels) == pytest.approx(float(binary_auroc(ranks, target)), abs=1e-5)
    assert average_precision(scores, labels) == pytest.approx(
        float(binary_average_precision(ranks, target)), abs=1e-5)


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
    assert pixel_auroc(maps, masks) == pytest.approx(
        sklearn_metrics.roc_auc_score(labels, scores), abs=1e-12)
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
        np.concatenate(masks).ravel(), np.concatenate(maps).ravel(), drop_intermediate=False)
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


# ---------------------------------------------------------------------------------------------------------
# Colours


def noisy_pair():
    rng = np.random.default_rng(2)
    image = cv2.GaussianBlur(rng.integers(0, 256, (48, 60, 3), np.uint8), (7, 7), 2)
    return image, np.clip(image + rng.normal(0, 9, image.shape), 0, 255).astype(np.uint8)


def test_psnr():
    image, other = noisy_pair()
    tensors = [torch.from_numpy(x).float() for x in (image, other)]
    expected = peak_signal_noise_ratio(*tensors, data_range=255.0)
    assert psnr(image, other) == pytest.approx(float(expected), abs=1e-4)
    assert psnr(image, image) == 100.0
    assert psnr(np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)) == 0.0
    where = np.zeros(image.shape[:2], bool)
    assert psnr(image, other, where) is None
    where[5:9] = True
    changed = other.copy()
    changed[~where] = 0
    assert psnr(image, changed, where) == psnr(image[5:9], other[5:9])


def test_ssim():
    image, other = noisy_pair()
    tensors = [torch.from_numpy(x).permute(2, 0, 1)[None].double() for x in (image, other)]
    _, everywhere = structural_similarity_index_measure(
        *tensors, sigma=1.5, data_range=255.0, return_full_image=True)
    whole_windows = everywhere[..., 5:-5, 5:-5]  # torchmetrics averages over reflected borders too
    assert ssim(image, other) == pytest.approx(float(whole_windows.mean()), abs=1e-5)
    assert ssim(image, image) == pytest.approx(1.0)
    where = np.zeros(image.shape[:2], bool)
    where[:, :30] = True
    changed = other.copy()
    changed[~where] = 0
    assert ssim(image, changed, where) == pytest.approx(ssim(image[:, :30], other[:, :30]), abs=1e-9)
    assert ssim(image, other, np.zeros_like(where)) is None


# ---------------------------------------------------------------------------------------------------------
# evaluate and evaluate_repair with a toy inspector: the anomaly is how much redder than grey a pixel is.


class ToyInspector:
    categories = ("nut", "ring")
    size = 64

    def __init__(self, touched: int = 0):
        self.touched = touched  # grey levels that a repair changes outside the defect
        self.asked: list[str | None] = []

    def inspect(self, image, category=None, timesteps=(20,), alpha=0.5, seed=0, threshold=None):
        self.asked.append(category)
        redness = (image[..., 0].astype(np.float32) - image[..., 1]) / 10
        geometry = Geometry.letterbox(*image.shape[:2], self.size)
        shape = (geometry.inner_width, geometry.inner_height)
        inner = cv2.resize(redness, shape, interpolation=cv2.INTER_AREA)
        padded = np.zeros((self.size, self.size), np.float32)
        padded[geometry.inner] = inner
        padded[: geometry.top], padded[:, : geometry.left] = 99, 99  # must never count
        score = float(np.sort(inner.ravel())[-64:].mean())
        limit = 3.0 if threshold is None else threshold
        return SimpleNamespace(
            image=image, category=category or self.recognise(image), recognised=category is None, score=score,
            threshold=limit, is_anomalous=score > limit, square_map=padded, seconds=0.25)

    def recognise(self, image):
        return "nut" if image[..., 2].mean() < 128 else "ring"

    def reconstruct(self, image, category=None, steps=4, **options):
        for index in range(steps + 1):
            rest = index / steps
            red = image[..., 0].astype(np.float32)
            frame = image.copy()
            frame[..., 0] = np.round(red + (image[..., 1] - red) * 0.75 * rest) + self.touched * rest
            yield SimpleNamespace(index=index, total=steps, image=frame, done=index == steps)


def write_part(folder, stem, kind, shape=(64, 64), blue=60, depth=60):
    """A grey part; kind other than good adds a red square of 16 pixels and its mask."""
    image = np.full((*shape, 3), 100, np.uint8)
    image[..., 2] = blue
    path = folder / "test" / kind / f"{stem}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = None
    if kind != "good":
        defect = np.zeros(shape, np.uint8)
        defect[20:36, 24:40] = 255
        image[defect > 0, 0] += np.uint8(depth)
        mask = folder / "ground_truth" / kind / f"{stem}_mask.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(mask), defect)
    cv2.imwrite(str(path), image[..., ::-1])
    return Sample(path, folder.name, "test", kind, mask)


@pytest.fixture
def parts(tmp_path):
    nut, ring = tmp_path / "nut", tmp_path / "ring"
    return [
        write_part(nut, "0", "good"), write_part(nut, "1", "good"),
        write_part(nut, "0", "scratch"), write_part(nut, "1", "scratch", depth=20),
        write_part(ring, "0", "good", shape=(128, 96), blue=200),
        write_part(ring, "0", "dent", shape=(128, 96), blue=200),
        Sample(nut / "test" / "good" / "0.png", "nut"),  # nobody said what it is
    ]


def test_evaluate(parts):
    calls = []
    inspector = ToyInspector()
    result = evaluate(inspector, parts, progress=lambda done, total: calls.append((done, total)))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert list(result) == ["nut", "ring"] and calls == [(i + 1, 6) for i in range(6)]
    nut = result["nut"]
    assert nut["images"] == 4 and nut["defective"] == 2 and nut["notes"] == []
    for metric in ("image_auroc", "pixel_auroc", "aupro", "image_ap", "pixel_ap", "image_f1", "good_accuracy",
                   "category_accuracy"):
        assert nut[metric] == 1.0, metric
    assert nut["defect_recall"] == 0.5  # the faint one scores 2, below the threshold of 3
    assert nut["threshold"] == 3.0 and nut["seconds_per_image"] == 0.25
    assert result["ring"]["pixel_auroc"] > 0.99  # letterboxed, shrunk twice
    table = evaluation_table(result)
    assert table.count("\n") == 4 and "**mean**" in table and "75.0%" in table  # recall: 50 % and 100 %


def test_evaluate_judges_as_told(parts):
    inspector = ToyInspector()
    evaluate(inspector, parts[4:6])
    assert inspector.asked == [None, None]  # both recognised: nothing left to ask
    inspector.asked.clear()
    result = evaluate(inspector, parts[4:6], category="nut")
    assert inspector.asked == [None, "nut", None, "nut"] and "nut" in result["ring"]["notes"][0]
    assert result["ring"]["category_accuracy"] == 1.0
    inspector.asked.clear()
    blind = ToyInspector()
    blind.recognise = lambda image: "nut"
    result = evaluate(blind, parts[:6])
    assert [result[name]["category_accuracy"] for name in ("nut", "ring")] == [1.0, 0.0]
    assert result["ring"]["image_auroc"] == 1.0 and blind.asked[-4:] == [None, "ring"] * 2
    stranger = [Sample(s.image, "gear", s.split, s.defect, s.mask) for s in parts[:4]]
    result = evaluate(inspector, stranger)["gear"]
    assert set(inspector.asked) == {None}
    assert result["category_accuracy"] is None and len(result["notes"]) == 1


def test_evaluate_with_a_kind_missing_explains_each_none(parts):
    good = evaluate(ToyInspector(), parts[:2])["nut"]
    assert good["image_auroc"] is good["pixel_auroc"] is good["aupro"] is good["defect_recall"] is None
    assert good["good_accuracy"] == 1.0 and "defective" in good["notes"][0]
    bad = evaluate(ToyInspector(), parts[2:4])["nut"]
    assert bad["image_auroc"] is bad["good_accuracy"] is None and bad["pixel_auroc"] == 1.0
    unmasked = [Sample(s.image, s.category, s.split, s.defect) for s in parts[:4]]
    none = evaluate(ToyInspector(), unmasked)["nut"]
    assert none["image_auroc"] == 1.0 and none["pixel_auroc"] is None and "mask" in none["notes"][0]
    assert "–" in evaluation_table({"nut": none})
    with pytest.raises(DataError, match="label"):
        evaluate(ToyInspector(), parts[6:])


def test_masks_and_maps_meet_at_the_models_resolution(tmp_path, monkeypatch):
    """A defect in a wide, large picture lies on the same pixels of map and mask, and padding never counts."""
    seen = {}

    class Spy(ToyInspector):
        size = 32

    monkeypatch.setattr(
        "diffad.evaluation.aupro", lambda maps, masks: seen.update(map=maps[0], mask=masks[0]))
    evaluate(Spy(), [write_part(tmp_path / "nut", "0", "scratch", shape=(96, 160))])
    assert seen["map"].shape == seen["mask"].shape == (19, 32)
    centre = [np.average(np.indices((19, 32))[axis], weights=seen["map"]) for axis in (0, 1)]
    expected = [np.indices((19, 32))[axis][seen["mask"]].mean() for axis in (0, 1)]
    assert centre == pytest.approx(expected, abs=0.5)


def test_evaluate_repair(parts):
    result = evaluate_repair(ToyInspector(), parts, steps=3)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    nut = result["nut"]
    assert (nut["good"], nut["defective"], nut["steps"], nut["notes"]) == (2, 2, 3, [])
    assert nut["fall_median"] == pytest.approx(0.75) and nut["fall_worst_tenth"] == pytest.approx(0.75)
    assert nut["psnr_outside_median"] == nut["psnr_good_worst"] == 100.0
    assert nut["ssim_outside_median"] == pytest.approx(1.0)
    assert nut["judged_good_before"] == 0.5 and nut["judged_good_after"] == 1.0
    assert nut["seconds_per_step"] > 0
    table = repair_table(result)
    assert "75%" in table and "100.0" in table and "**mean**" in table


def test_evaluate_repair_sees_what_is_spoiled_outside_the_mask(parts):
    result = evaluate_repair(ToyInspector(touched=12), parts)["nut"]
    expected = 10 * np.log10(255**2 / (12**2 / 3))  # one channel of three moved by 12
    assert result["psnr_outside_median"] == pytest.approx(expected, abs=1e-6)
    assert result["psnr_good_median"] == pytest.approx(expected, abs=1e-6)
    assert result["fall_worst_tenth"] < 0.75


def test_evaluate_repair_limit_spreads_over_the_kinds(tmp_path):
    folder = tmp_path / "nut"
    depths = {"a": 40, "b": 60}
    samples = [write_part(folder, str(i), kind, depth=depths[kind]) for kind in depths for i in range(4)]
    seen, kinds = [], []

    class Spy(ToyInspector):
        def reconstruct(self, image, **options):
            seen.append(options)
            kinds.append(image.max() - 100)
            return super().reconstruct(image, **options)

    result = evaluate_repair(Spy(), samples, limit=2, threshold=0.5)["nut"]
    assert result["defective"] == len(seen) == 2 and result["good"] == 0
    assert kinds == [40, 60]
    assert result["psnr_good_median"] is None and "good" in result["notes"][0]
    assert result["judged_good_after"] == 0.0  # the threshold reached both the inspection and the repair
    assert all(options["threshold"] == 0.5 for options in seen)
