"""How good is a model? Metrics of detection and localisation, then `evaluate` and `evaluate_repair`.

The metrics are exact: every distinct score is a threshold, ties are handled as ties, nothing is binned and
no score is transformed. They return None where they are undefined (nothing normal or nothing anomalous).

Maps are measured at the model's resolution, in the rectangle that the picture fills in the model's square:
masks go there by nearest neighbour, nothing is cropped and the letterbox padding is not counted. Colours
(PSNR, SSIM) are compared in the picture's own pixels.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import cv2
import numpy as np

from diffad.data import DataError, Geometry, Sample, mask_to_square, read_image, read_mask
from diffad.scoring import image_score

REPAIR_MARGIN = 8  # pixels at the model's resolution around a defect that a repair may touch
_COUNT = "{:d}"  # counts are summed in a table's last row, everything else is averaged

Progress = Callable[[int, int], None]


def auroc(scores: Any, labels: Any) -> float | None:
    """Area under the ROC curve in [0, 1]: how often an anomalous score exceeds a normal one, ties half.

    scores: any shape, finite. labels: the same shape, true = anomalous. None if one of the two kinds is
    absent; ValueError if a score is not finite or the shapes differ.
    """
    positive, negative = _split(scores, labels)
    if not positive.size or not negative.size:
        return None
    below = np.searchsorted(negative, positive, "left").sum(dtype=np.int64)
    not_above = np.searchsorted(negative, positive, "right").sum(dtype=np.int64)
    return float((below + not_above) / (2 * positive.size * negative.size))


def average_precision(scores: Any, labels: Any) -> float | None:
    """Σ (recall_k − recall_{k−1}) · precision_k over distinct scores, in [0, 1]; arguments as in `auroc`."""
    curve = _precision_counts(scores, labels)
    if curve is None:
        return None
    new, found, false_alarms, total = curve
    return float((new * (found / (found + false_alarms))).sum() / total)


def f1_max(scores: Any, labels: Any) -> float | None:
    """The best F1 = 2 TP / (2 TP + FP + FN) of any threshold, in [0, 1]; arguments as in `auroc`."""
    curve = _precision_counts(scores, labels)
    if curve is None:
        return None
    _, found, false_alarms, total = curve
    return float((2 * found / (found + false_alarms + total)).max())


def pixel_auroc(maps: Sequence[Any], masks: Sequence[Any]) -> float | None:
    """`auroc` over the pixels of all pictures. maps: n arrays [h, w], masks: n bool arrays likewise."""
    return auroc(*_pixels(maps, masks))


def aupro(maps: Sequence[Any], masks: Sequence[Any], max_fpr: float = 0.3) -> float | None:
    """Area under the per-region overlap (PRO) over false positive rates up to `max_fpr`, divided by it.

    PRO is the mean, over the 8-connected regions of all masks, of the share of a region that lies at or
    above the threshold; the rate is over the normal pixels of all pictures. Every distinct value is a
    threshold, the curve starts at (0, 0), is linear between its points and is cut exactly at `max_fpr`.

    maps: n arrays [h, w], finite. masks: n bool arrays of the same shapes. Returns a value in [0, 1], or
    None without regions or without normal pixels. Raises ValueError unless 0 < max_fpr <= 1.
    """
    if not 0 < max_fpr <= 1:
        raise ValueError(f"max_fpr must lie in (0, 1], not {max_fpr}")
    scores, labels = _pixels(maps, masks)
    weights, regions = [], 0
    for mask in masks:
        count, names = cv2.connectedComponents(np.asarray(mask, np.uint8), connectivity=8, ltype=cv2.CV_32S)
        areas = np.bincount(names.ravel(), minlength=count)
        weights.append((1.0 / areas[names])[np.asarray(mask, bool)])
        regions += count - 1
    positive, negative = scores[labels], np.sort(scores[~labels])
    if not regions or not negative.size:
        return None

    order = np.argsort(-positive, kind="stable")
    overlap = np.concatenate([[0.0], np.cumsum(np.concatenate(weights)[order])]) / regions
    ascending = np.sort(positive)
    # Thresholds below the first one past max_fpr cannot matter, so most normal pixels never enter the curve.
    needed = min(negative.size, int(max_fpr * negative.size) + 1)
    cut = negative[-needed]
    thresholds = np.unique(np.concatenate([negative[-needed:], ascending[ascending >= cut]]))[::-1]
    rate = (negative.size - np.searchsorted(negative, thresholds, "left")) / negative.size
    pro = overlap[ascending.size - np.searchsorted(ascending, thresholds, "left")]
    return _area_until(np.concatenate([[0.0], rate]), np.concatenate([[0.0], pro]), max_fpr) / max_fpr


def psnr(image: np.ndarray, other: np.ndarray, where: np.ndarray | None = None) -> float | None:
    """Peak signal-to-noise ratio in dB of two uint8 pictures [H, W, 3] over the pixels `where` (bool [H, W]).

    Equal pictures count as 100 dB, which keeps medians and JSON finite. None if `where` is empty.
    """
    difference = image.astype(np.float32) - other.astype(np.float32)
    if where is not None:
        difference = difference[where]
    if not difference.size:
        return None
    error = float(np.mean(np.square(difference), dtype=np.float64))
    return 100.0 if error == 0 else min(100.0, 10.0 * float(np.log10(255.0**2 / error)))


def ssim(image: np.ndarray, other: np.ndarray, where: np.ndarray | None = None) -> float | None:
    """Structural similarity (Wang et al. 2004) of two uint8 pictures [H, W, 3], in [−1, 1], 1 for equal ones.

    Gaussian windows of 11×11 with σ = 1.5, the mean over channels; only windows wholly inside the picture and
    inside `where` (bool [H, W]) count. None if there is no such window.
    """

    def blur(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values, (11, 11), 1.5, borderType=cv2.BORDER_REFLECT_101)

    inside = np.ones(image.shape[:2], np.uint8) if where is None else where.astype(np.uint8)
    inside = cv2.erode(inside, np.ones((11, 11), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
    if not inside.any():
        return None
    x, y = image.astype(np.float64), other.astype(np.float64)
    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)
                  / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)))
    return float(similarity[inside].mean())


def evaluate(
    inspector: Any,
    samples: Iterable[Sample],
    alpha: float = 0.5,
    timesteps: Sequence[int] = (20, 200, 400),
    seed: int = 0,
    category: str | None = None,
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """Inspect labelled samples and measure, per category of the samples. The result is ready for JSON.

    Each picture is judged with the profile `category`, else with its own category's if the inspector has
    one, else with the recognised one. Samples without a label are left out. Keys:
    image_auroc, pixel_auroc, aupro (up to a false positive rate of 0.3), image_ap, pixel_ap, image_f1,
    pixel_f1: in [0, 1]; good_accuracy, defect_recall: shares of the good pictures judged good and of the
    defective ones judged defective; category_accuracy: share recognised without being told; threshold;
    seconds_per_image: median; images, defective: counts; notes: sentences, among them why a value is None.
    progress(done, total) is called after every picture.
    Raises DataError if no sample has a label or a file cannot be read.
    """
    groups, total = _labelled(samples)
    result, done = {}, 0
    for name, group in groups.items():
        profile = _profile(inspector, name, category)
        scores, verdicts, thresholds, seconds, right = [], [], [], [], []
        maps, masks, unmasked = [], [], 0
        for sample in group:
            image = read_image(sample.image)
            settings = {"alpha": alpha, "timesteps": tuple(timesteps), "seed": seed}
            inspection = inspector.inspect(image, **settings)
            right.append(inspection.category == name)
            if profile not in (None, inspection.category):  # recognised as something else than it is
                inspection = inspector.inspect(image, category=profile, **settings)
            scores.append(inspection.score)
            verdicts.append(inspection.is_anomalous)
            thresholds.append(inspection.threshold)
            seconds.append(inspection.seconds)
            if sample.is_anomalous and sample.mask is None:
                unmasked += 1
            else:
                geometry = Geometry.letterbox(*image.shape[:2], inspector.size)
                maps.append(inspection.square_map[geometry.inner])
                masks.append(mask_to_square(_mask(sample, image), geometry)[geometry.inner])
            done += 1
            if progress is not None:
                progress(done, total)
        labels = np.array([bool(sample.is_anomalous) for sample in group])
        verdicts = np.array(verdicts, bool)
        pixels = _pixels(maps, masks) if maps else (np.zeros(0), np.zeros(0, bool))
        known = name in inspector.categories
        result[name] = {
            "image_auroc": auroc(scores, labels),
            "pixel_auroc": auroc(*pixels),
            "aupro": aupro(maps, masks) if maps else None,
            "image_ap": average_precision(scores, labels),
            "pixel_ap": average_precision(*pixels),
            "image_f1": f1_max(scores, labels),
            "pixel_f1": f1_max(*pixels),
            "good_accuracy": _mean(~verdicts[~labels]),
            "defect_recall": _mean(verdicts[labels]),
            "category_accuracy": _mean(right) if known else None,
            "threshold": _median(thresholds),
            "seconds_per_image": _median(seconds),
            "images": len(group),
            "defective": int(labels.sum()),
            "notes": _notes(inspector, name, profile, labels, unmasked, pixels[1]),
        }
    return result


def evaluate_repair(
    inspector: Any,
    samples: Iterable[Sample],
    limit: int | None = None,
    category: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """Repair labelled samples and measure what that does to the defect and to all the rest, per category.

    limit: at most so many good and so many defective pictures a category, evenly spread. options go to
    `inspector.reconstruct` (steps, denoise_every, step_size, timestep, method, alpha, seed, threshold, ...).

    The score inside a defect is the mean of the 64 highest values of the anomaly map within the mask. Keys:
    fall_median, fall_worst_tenth: its relative fall 1 − after/before, at most 1; half of the pictures and
    nine in ten of them reach these values; a defect that did not score above 0 counts as no fall.
    psnr_outside_median, psnr_outside_worst_tenth (dB), ssim_outside_median: outside the mask, grown by
    `margin` pixels at the model's resolution. judged_good_before, judged_good_after: shares of the
    defective pictures. psnr_good_median, psnr_good_worst: good pictures, whole. seconds_per_step, steps:
    medians over the pictures that had anything to repair. good, defective: counts; notes: sentences.
    None where a kind of picture is missing.
    Raises DataError if no sample has a label or a file cannot be read.
    """
    groups, _ = _labelled(samples)
    chosen = {name: _spread([s for s in group if not s.is_anomalous], limit)
              + _spread([s for s in group if s.is_anomalous and s.mask is not None], limit)
              for name, group in groups.items()}
    total = sum(len(group) for group in chosen.values())
    shared = {key: options[key] for key in ("alpha", "seed", "threshold") if key in options}
    result, done = {}, 0
    for name, group in chosen.items():
        profile = _profile(inspector, name, category)
        falls, outside, similar, before_good, after_good, good, per_step, steps = ([] for _ in range(8))
        for sample in group:
            image = read_image(sample.image)
            before = inspector.inspect(image, category=profile, **shared)
            started = time.perf_counter()
            (last,) = deque(inspector.reconstruct(image, category=before.category, **options), maxlen=1)
            if last.index:  # 0: there was nothing to repair
                per_step.append((time.perf_counter() - started) / last.index)
                steps.append(last.index)
            if not sample.is_anomalous:
                good.append(psnr(image, last.image))
            else:
                after = inspector.inspect(last.image, category=before.category, **shared)
                mask = _mask(sample, image)
                geometry = Geometry.letterbox(*image.shape[:2], inspector.size)
                inside = mask_to_square(mask, geometry)
                falls.append(_fall(before.square_map[inside], after.square_map[inside]))
                untouched = ~_grown(mask, REPAIR_MARGIN * max(image.shape[:2]) / inspector.size)
                outside.append(psnr(image, last.image, untouched))
                similar.append(ssim(image, last.image, untouched))
                before_good.append(not before.is_anomalous)
                after_good.append(not after.is_anomalous)
            done += 1
            if progress is not None:
                progress(done, total)
        notes = []
        unmasked = sum(bool(s.is_anomalous) and s.mask is None for s in groups[name])
        if unmasked:
            notes.append(f"{unmasked} defective pictures without a mask were left out.")
        if not falls:
            notes.append("No defective picture with a mask: the repair of defects is not measured.")
        if not good:
            notes.append("No good picture: what a repair does to good parts is not measured.")
        result[name] = {
            "fall_median": _median(falls),
            "fall_worst_tenth": _quantile(falls, 0.1),
            "psnr_outside_median": _median(outside),
            "psnr_outside_worst_tenth": _quantile(outside, 0.1),
            "ssim_outside_median": _median(similar),
            "judged_good_before": _mean(before_good),
            "judged_good_after": _mean(after_good),
            "psnr_good_median": _median(good),
            "psnr_good_worst": _quantile(good, 0.0),
            "seconds_per_step": _median(per_step),
            "steps": int(np.median(steps)) if steps else None,
            "good": len(good),
            "defective": len(falls),
            "margin": REPAIR_MARGIN,
            "notes": notes,
        }
    return result


def evaluation_table(results: dict[str, dict[str, Any]]) -> str:
    """The results of `evaluate` as a Markdown table; several categories get a last row of means."""
    return _table(results, (
        ("image AUROC", "image_auroc", "{:.3f}"), ("pixel AUROC", "pixel_auroc", "{:.3f}"),
        ("AUPRO", "aupro", "{:.3f}"), ("image AP", "image_ap", "{:.3f}"), ("pixel AP", "pixel_ap", "{:.3f}"),
        ("image F1", "image_f1", "{:.3f}"), ("good judged good", "good_accuracy", "{:.1%}"),
        ("defects found", "defect_recall", "{:.1%}"), ("category recognised", "category_accuracy", "{:.1%}"),
        ("s / picture", "seconds_per_image", "{:.3f}"), ("pictures", "images", _COUNT),
    ))


def repair_table(results: dict[str, dict[str, Any]]) -> str:
    """The results of `evaluate_repair` as a Markdown table; several categories get a last row of means."""
    return _table(results, (
        ("score falls by (median)", "fall_median", "{:.0%}"),
        ("worst tenth", "fall_worst_tenth", "{:.0%}"),
        ("PSNR outside, dB", "psnr_outside_median", "{:.1f}"),
        ("worst tenth, dB", "psnr_outside_worst_tenth", "{:.1f}"),
        ("SSIM outside", "ssim_outside_median", "{:.3f}"),
        ("judged good before", "judged_good_before", "{:.0%}"),
        ("after", "judged_good_after", "{:.0%}"),
        ("PSNR good, dB", "psnr_good_median", "{:.1f}"),
        ("worst good, dB", "psnr_good_worst", "{:.1f}"),
        ("s / step", "seconds_per_step", "{:.3f}"),
        ("defective", "defective", _COUNT),
        ("good", "good", _COUNT),
    ))


def _split(scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Sorted anomalous and sorted normal scores; all that threshold metrics need."""
    scores, labels = np.asarray(scores), np.asarray(labels, bool)
    if scores.shape != labels.shape:
        raise ValueError(f"scores {scores.shape} and labels {labels.shape} must have the same shape")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite: look for NaN or infinity in the maps")
    return np.sort(scores[labels]), np.sort(scores[~labels])


def _precision_counts(scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, int] | None:
    """Per distinct anomalous score, highest first: new and all true positives, false positives; the total.

    Only those thresholds matter: between them recall stands still while precision can only fall.
    """
    positive, negative = _split(scores, labels)
    if not positive.size or not negative.size:
        return None
    values, new = np.unique(positive, return_counts=True)
    new = new[::-1]
    false_alarms = negative.size - np.searchsorted(negative, values[::-1], "left")
    return new, np.cumsum(new), false_alarms, positive.size


def _pixels(maps: Sequence[Any], masks: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """All pixels of all pictures in one row: scores and labels."""
    if len(maps) != len(masks) or len(maps) == 0:
        raise ValueError(f"give a mask for each map, at least one: {len(maps)} maps, {len(masks)} masks")
    maps, masks = [np.asarray(m) for m in maps], [np.asarray(m, bool) for m in masks]
    for anomaly_map, mask in zip(maps, masks, strict=True):
        if anomaly_map.shape != mask.shape or anomaly_map.ndim != 2:
            raise ValueError(f"a map {anomaly_map.shape} and its mask {mask.shape} must both be [h, w]")
        if not np.isfinite(anomaly_map).all():
            raise ValueError("scores must be finite: look for NaN or infinity in the maps")
    return np.concatenate([m.ravel() for m in maps]), np.concatenate([m.ravel() for m in masks])


def _area_until(x: np.ndarray, y: np.ndarray, end: float) -> float:
    """∫ y dx from 0 to `end` under a polyline with non-decreasing x; vertical pieces add nothing."""
    inside = int(np.searchsorted(x, end, "right"))  # points with x <= end
    area = float((np.diff(x[:inside]) * (y[1:inside] + y[: inside - 1]) / 2).sum())
    if inside < x.size:
        x0, y0, x1, y1 = x[inside - 1], y[inside - 1], x[inside], y[inside]
        at_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
        area += float((end - x0) * (y0 + at_end) / 2)
    return area


def _labelled(samples: Iterable[Sample]) -> tuple[dict[str, list[Sample]], int]:
    """Samples with a known label by category, in order of appearance, and how many there are."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.is_anomalous is not None:
            groups.setdefault(sample.category, []).append(sample)
    if not groups:
        raise DataError("no picture has a label: measuring needs test/good and test/<defect> folders (MVTec)")
    return groups, sum(len(group) for group in groups.values())


def _profile(inspector: Any, name: str, category: str | None) -> str | None:
    return category if category is not None else (name if name in inspector.categories else None)


def _mask(sample: Sample, image: np.ndarray) -> np.ndarray:
    """The defect's mask [H, W] in the picture's geometry, empty without a file."""
    return np.zeros(image.shape[:2], bool) if sample.mask is None else read_mask(sample.mask, image.shape[:2])


def _fall(before: np.ndarray, after: np.ndarray) -> float:
    """Relative fall of the mean of the 64 highest values, of the pixels inside a defect before and after."""
    if not before.size:
        return 0.0
    high, low = image_score(before), image_score(after)
    return min(1.0, 1.0 - low / high) if high > 0 else 0.0


def _grown(mask: np.ndarray, margin: float) -> np.ndarray:
    """The mask grown by a disc of `margin` pixels."""
    radius = max(1, round(margin))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return cv2.dilate(mask.astype(np.uint8), disc) > 0


def _spread(samples: list[Sample], limit: int | None) -> list[Sample]:
    """At most `limit` samples, evenly spaced, so that every kind of defect has its turn."""
    if limit is None or len(samples) <= limit:
        return samples
    return [samples[int((i + 0.5) * len(samples) / limit)] for i in range(limit)]


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _median(values: Sequence[float | None]) -> float | None:
    return _quantile(values, 0.5)


def _quantile(values: Sequence[float | None], q: float) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.quantile(known, q)) if known else None


def _notes(inspector: Any, name: str, profile: str | None, labels: np.ndarray, unmasked: int,
           pixel_labels: np.ndarray) -> list[str]:
    notes = []
    if labels.all():
        notes.append("No good picture: the image metrics and good_accuracy are undefined.")
    elif not labels.any():
        notes.append("No defective picture: the image and pixel metrics and defect_recall are undefined.")
    elif not pixel_labels.any():
        notes.append("No defective picture has a mask: the pixel metrics are undefined.")
    if unmasked and pixel_labels.any():
        notes.append(f"{unmasked} defective pictures without a mask are left out of the pixel metrics.")
    if profile is None:
        notes.append(f"The model has no category {name!r}: each picture was judged as what it resembles.")
    elif profile != name:
        notes.append(f"Judged with the profile {profile!r}.")
    return notes


def _table(results: dict[str, dict[str, Any]], columns: Sequence[tuple[str, str, str]]) -> str:
    def row(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    def cell(value: float | None, form: str) -> str:
        return "–" if value is None else form.format(value)

    lines = [row(["category", *(title for title, _, _ in columns)]),
             row(["---", *("---:" for _ in columns)])]
    for name, values in results.items():
        lines.append(row([name, *(cell(values[key], form) for _, key, form in columns)]))
    if len(results) > 1:
        last = []
        for _, key, form in columns:
            known = [values[key] for values in results.values() if values[key] is not None]
            last.append(cell(sum(known) if form == _COUNT else _mean(known), form))
        lines.append(row(["**mean**", *last]))
    return "\n".join(lines)
