"""All metrics of one category, from the scores and maps of any method.

Nothing is fitted here: verdicts and maps are compared with labels and masks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffad.measuring.tables import mean, quantile
from diffad.method.metrics import (
    aupimo,
    aupro,
    auroc,
    average_precision,
    f1_max,
    interval,
    pixel_auroc,
    pixels,
    pro_curve,
    rate_interval,
    resampled_aupimo,
    resampled_image_metrics,
    resampled_pixel_metrics,
    resamples,
    roc_curve,
)

ANNOUNCED = (0.001, 0.01, 0.05)  # nominal shares of good parts above a threshold, which are verified

Draws = dict[str, npt.NDArray[np.float64]]  # metric → its value in each resample, float64 [draws]


@dataclass(frozen=True, eq=False)
class Scored:
    """One labelled picture and a method's result for it; None for values that the method does not give.

    Attributes:
        path: the picture's file.
        label: whether it is defective.
        score: the image score, higher for anomalous pictures.
        anomaly_map: float32 [h, w], higher at anomalies, without padding.
        mask: bool [h, w] like the map, empty for good pictures. Map and mask are both None if a defective
            picture has no mask.
        verdict: whether the picture is judged defective, against `threshold`.
        category_right: whether the category was recognised correctly.
        defect: the kind of defect, or "good".
        seconds: duration of the inspection.
        limits: the thresholds that the shares `ANNOUNCED` of good parts would exceed.
    """

    path: Path
    label: bool
    score: float
    anomaly_map: npt.NDArray[np.float32] | None = None
    mask: npt.NDArray[np.bool_] | None = None
    verdict: bool | None = None
    threshold: float | None = None
    category_right: bool | None = None
    defect: str = ""
    seconds: float | None = None
    limits: tuple[float, ...] | None = None


def measure(scored: Sequence[Scored], draws: int = 1000) -> dict[str, Any]:
    """All metrics of one category's pictures, ready for JSON; None where undefined.

    Args:
        scored: the pictures.
        draws: number of resamples for the intervals; with 0, `intervals` is empty.

    Returns:
        image_auroc, image_ap, image_f1, pixel_auroc, pixel_ap, pixel_f1: in [0, 1].
        aupro, aupro_05: up to a false positive rate of 0.3 and of 0.05, in [0, 1].
        aupimo: the mean over the defective pictures, in [0, 1].
        false_alarm_rate, miss_rate: shares of the good pictures judged defective and of the defective ones
            judged good; good_accuracy, defect_recall: the rest to 1.
        category_accuracy: share of the pictures whose category was recognised correctly.
        announced: for each of `ANNOUNCED` [rate, false_alarm_rate, miss_rate] at its threshold; None if a
            picture has no such thresholds.
        threshold, seconds_per_image: medians.
        images, defective: counts.
        by_defect: for each kind of defect, its pictures against all good ones: images, image_auroc,
            pixel_auroc, aupro, aupimo, miss_rate.
        curves: points [x, y] of image_roc, pixel_roc and pro (to 0.3).
        intervals: 95 % intervals [low, high]: of the metrics except F1 by resampling pictures (see
            `method.metrics`), of false_alarm_rate and miss_rate by Wilson's method.
    """
    values, drawn = measured(scored, draws)
    return {**values, "intervals": _intervals(values, drawn)}


def measured(scored: Sequence[Scored], draws: int = 1000) -> tuple[dict[str, Any], Draws]:
    """The values of `measure` without the intervals, and the resampled values for computing these."""
    labels = np.array([one.label for one in scored], bool)
    scores = np.array([one.score for one in scored], np.float64)
    maps, masks = _maps(scored)
    values: dict[str, Any] = {
        "image_auroc": auroc(scores, labels),
        "image_ap": average_precision(scores, labels),
        "image_f1": f1_max(scores, labels),
        **dict.fromkeys(("pixel_auroc", "pixel_ap", "pixel_f1", "aupro", "aupro_05", "aupimo")),
    }
    curves = {"image_roc": roc_curve(scores, labels), "pixel_roc": None, "pro": None}
    if maps:
        every = pixels(maps, masks)
        values |= {
            "pixel_auroc": auroc(*every),
            "pixel_ap": average_precision(*every),
            "pixel_f1": f1_max(*every),
            "aupro": aupro(maps, masks),
            "aupro_05": aupro(maps, masks, 0.05),
            "aupimo": _aupimo(scored),
        }
        curves |= {"pixel_roc": roc_curve(*every), "pro": pro_curve(maps, masks)}
        del every  # frees memory for the resampling
    drawn = _drawn(scored, draws, values["aupimo"] is not None) if draws else {}
    values |= _rates(scored)
    values |= {
        "threshold": quantile(one.threshold for one in scored),
        "seconds_per_image": quantile(one.seconds for one in scored),
        "images": len(scored),
        "defective": int(labels.sum()),
        "by_defect": _by_defect(scored),
        "curves": {
            name: None if points is None else points.round(6).tolist() for name, points in curves.items()
        },
    }
    return values, drawn


def mean_of_runs(runs: Sequence[tuple[dict[str, Any], Draws]]) -> dict[str, Any]:
    """Combine several runs on the same pictures, from `measured`, into the result of `measure`.

    Metrics and rates are means over the runs, with intervals of these means. The key std is added: the
    standard deviation of each metric (n − 1 in the denominator; empty for one run). Everything else comes
    from the first run.
    """
    values, drawn = runs[0]
    every = {key: [run[key] for run, _ in runs] for key, value in values.items() if isinstance(value, float)}
    values = values | {key: mean(of_runs) for key, of_runs in every.items()}
    # Every run resamples the same pictures, so the mean over runs has a value in each resample.
    drawn = {key: np.mean([of_run[key] for _, of_run in runs], axis=0) for key in drawn}
    intervals = _intervals(values, drawn)
    varying = {*drawn, *intervals} if len(runs) > 1 else {}
    spread = {key: float(np.std(every[key], ddof=1)) for key in every if key in varying}
    return {**values, "intervals": intervals, "std": spread}


# ---------------------------------------------------------------------------------------------------------


def _maps(scored: Iterable[Scored]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Maps and masks of the pictures that have them."""
    pairs = [
        (one.anomaly_map, one.mask) for one in scored if one.anomaly_map is not None and one.mask is not None
    ]
    return [anomaly_map for anomaly_map, _ in pairs], [mask for _, mask in pairs]


def _consistent(scored: Iterable[Scored]) -> list[bool]:
    """Which pictures have a map and a mask that agrees with the label.

    The mask of a small defect may vanish at the model's resolution, but its picture must not count as good.
    """
    return [one.mask is not None and one.label == bool(one.mask.any()) for one in scored]


def _aupimo(scored: Sequence[Scored]) -> float | None:
    maps, masks = _maps(itertools.compress(scored, _consistent(scored)))
    areas = aupimo(maps, masks) if maps else None
    return None if areas is None else float(areas.mean())


def _drawn(scored: Sequence[Scored], draws: int, with_aupimo: bool) -> Draws:
    labels = np.array([one.label for one in scored], bool)
    weights = resamples(labels, draws)
    of_images = resampled_image_metrics([one.score for one in scored], labels, weights)
    drawn = {f"image_{name}": of_draws for name, of_draws in of_images.items()}
    maps, masks = _maps(scored)
    if maps:
        masked = np.array([one.mask is not None for one in scored], bool)
        of_pixels = resampled_pixel_metrics(maps, masks, weights[:, masked])
        drawn["aupro"], drawn["aupro_05"] = of_pixels.pop("aupro")
        drawn |= {f"pixel_{name}": of_draws for name, of_draws in of_pixels.items()}
    if with_aupimo:
        consistent = _consistent(scored)
        chosen = _maps(itertools.compress(scored, consistent))
        if (values := resampled_aupimo(*chosen, weights[:, consistent])) is not None:
            drawn["aupimo"] = values
    return drawn


def _rates(scored: Sequence[Scored]) -> dict[str, Any]:
    good_accuracy = mean(not one.verdict for one in scored if not one.label and one.verdict is not None)
    defect_recall = mean(one.verdict for one in scored if one.label)
    return {
        "false_alarm_rate": None if good_accuracy is None else 1 - good_accuracy,
        "miss_rate": None if defect_recall is None else 1 - defect_recall,
        "good_accuracy": good_accuracy,
        "defect_recall": defect_recall,
        "category_accuracy": mean(one.category_right for one in scored),
        "announced": _announced(scored),
    }


def _announced(scored: Sequence[Scored]) -> list[list[float | None]] | None:
    known = [(one.score, one.label, one.limits) for one in scored if one.limits is not None]
    if len(known) < len(scored):
        return None
    return [
        [
            rate,
            mean(score > limits[i] for score, label, limits in known if not label),
            mean(score <= limits[i] for score, label, limits in known if label),
        ]
        for i, rate in enumerate(ANNOUNCED)
    ]


def _by_defect(scored: Sequence[Scored]) -> dict[str, dict[str, Any]]:
    good = [one for one in scored if not one.label]
    result = {}
    for defect in dict.fromkeys(one.defect for one in scored if one.label):
        bad = [one for one in scored if one.label and one.defect == defect]
        maps, masks = _maps(good + bad)
        result[defect] = {
            "images": len(bad),
            "image_auroc": auroc([one.score for one in good + bad], [one.label for one in good + bad]),
            "pixel_auroc": pixel_auroc(maps, masks) if maps else None,
            "aupro": aupro(maps, masks) if maps else None,
            "aupimo": _aupimo(good + bad),
            "miss_rate": mean(not one.verdict for one in bad if one.verdict is not None),
        }
    return result


def _intervals(values: dict[str, Any], drawn: Draws) -> dict[str, list[float] | None]:
    if not drawn:
        return {}
    # F1 gets no interval: each resample has its own best threshold, so the interval would be biased upwards.
    known = [key for key in drawn if not key.endswith("_f1") and values[key] is not None]
    found: dict[str, list[float] | None] = {key: interval(drawn[key]) for key in known}
    counts = {"false_alarm_rate": values["images"] - values["defective"], "miss_rate": values["defective"]}
    return found | {
        key: rate_interval(values[key], count) for key, count in counts.items() if values[key] is not None
    }
