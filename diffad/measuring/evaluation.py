"""How good is a model? `evaluate` measures detection and localisation, `evaluate_repair` the repairs.

Maps are measured at the model's resolution, in the rectangle that the picture fills in the model's square:
masks go there by nearest neighbour, nothing is cropped and the letterbox padding is not counted; regions of
masks are 8-connected there. Colours (PSNR, SSIM) are compared in the picture's own pixels.

Nothing here is fitted: thresholds, calibration and normalisation come from the checkpoint, and each test
picture is judged alone. `measure` is the same for every source of scores and maps.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from diffad.inspection import checked_timesteps
from diffad.method.image_score import top_mean
from diffad.method.metrics import (
    FEWEST_PIMO_PIXELS,
    PIMO_RATES,
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
from diffad.method.similarity import psnr, ssim
from diffad.pictures.depth import read_in_words
from diffad.pictures.geometry import Geometry, mask_to_square
from diffad.pictures.labels import folders_in_words, look_over
from diffad.pictures.masks import check_readable, mask_inside, mask_of, settled
from diffad.pictures.reading import DataError, read_image
from diffad.pictures.samples import Sample

REPAIR_MARGIN = 8  # pixels at the model's resolution around a defect that a repair may touch
SHOWN_REPAIRS = 10  # a category
_COUNT = "{:d}"  # counts are summed in a table's last row, everything else is averaged

Progress = Callable[[int, int], None]
ANNOUNCED = (0.001, 0.01, 0.05)  # shares of good parts that thresholds are asked for


@dataclass(frozen=True, eq=False)
class Scored:
    """One labelled picture and what a method said of it.

    label: it is defective. anomaly_map: float32 [h, w], high where anomalous, over the picture alone (no
    padding). mask: bool [h, w], empty for good pictures; both are None if a defective picture has no mask.
    verdict: judged defective, against `threshold`. limits: the thresholds that the shares `ANNOUNCED` of
    good parts would exceed. category_right: recognised without being told. What a method does not say is
    None.
    """

    path: Path
    label: bool
    score: float
    anomaly_map: np.ndarray | None = None
    mask: np.ndarray | None = None
    verdict: bool | None = None
    threshold: float | None = None
    category_right: bool | None = None
    defect: str = ""
    seconds: float | None = None
    limits: tuple[float, ...] | None = None


def measure(scored: Sequence[Scored], draws: int = 1000) -> dict[str, Any]:
    """All metrics of one category's pictures, ready for JSON; None where undefined.

    draws: resamples for the intervals; 0 leaves `intervals` empty. Keys:
    image_auroc, image_ap, image_f1, pixel_auroc, pixel_ap, pixel_f1, aupro and aupro_05 (up to a false
    positive rate of 0.3 and of 0.05), aupimo (the mean over the defective pictures): in [0, 1];
    false_alarm_rate, miss_rate: shares of the good pictures
    judged defective and of the defective ones judged good; good_accuracy, defect_recall: the rest to 1;
    category_accuracy; announced: for each of `ANNOUNCED` [rate, false_alarm_rate, miss_rate] at its
    threshold, None if a picture has none; threshold, seconds_per_image: medians; images, defective: counts;
    intervals: 95 % [low, high] of the metrics but F1 by resampling pictures (see `method.metrics`), of the
    rates Wilson's; by_defect: per kind of defect, its pictures against all good ones: images, image_auroc,
    pixel_auroc, aupro, aupimo, miss_rate; curves: points [x, y] of image_roc, pixel_roc and pro (to 0.3).
    """
    values, drawn = _measured(scored, draws)
    return {**values, "intervals": _intervals(values, drawn)}


def evaluate(
    inspector: Any,
    samples: Iterable[Sample],
    alpha: float = 0.5,
    timesteps: Sequence[int] = (20, 200, 400),
    seeds: Sequence[int] = (0,),
    category: str | None = None,
    progress: Progress | None = None,
    keep: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Inspect labelled samples and measure, per category of the samples. The result is ready for JSON.

    Each picture is judged with the profile `category`, else with its own category's if the inspector has
    one, else with the recognised one. Samples without a label are left out, and those for training only tell
    which test pictures are among them. Keys are those of `measure`, and std: standard deviation of each
    metric over the noise `seeds` (n − 1 in the denominator; empty for one seed), while the metrics, their
    intervals and the rates are means over them, and by_defect, curves and pictures come from the first;
    pictures: path, defect, score, anomalous (the verdict) of each; setting; folders: which were taken as good
    and as defective; notes: sentences, among them why a value is None, which masks are doubtful and which
    pictures are there twice.
    progress(done, total) is called after every picture and seed, keep with what `pictures` will hold of it,
    its category and seed.
    Raises DataError before the first inspection if no sample has a label, a file cannot be read or a mask
    is not of its picture's size.
    """
    timesteps, samples = checked_timesteps(timesteps), list(samples)
    learned = [sample for sample in samples if sample.split == "train"]
    groups, doubts, found = look_over(_labelled(samples), learned)
    total, done = len(seeds) * sum(map(len, groups.values())), 0
    result = {}
    for name, group in groups.items():
        profile = _profile(inspector, name, category)
        bits = bits_to_read(inspector, profile, found[name])
        runs = []
        for seed in seeds:
            scored = []
            for sample in group:
                settings = {"alpha": alpha, "timesteps": timesteps, "seed": seed}
                scored.append(_score(inspector, sample, profile, settings, bits))
                if keep is not None:
                    keep({"category": name, "seed": seed, **_told(scored[-1])})
                done += 1
                if progress is not None:
                    progress(done, total)
            runs.append(_measured(scored))
            if len(runs) == 1:
                pictures = list(map(_told, scored))
                notes = _notes(inspector, name, profile, scored, runs[0][0])
                if found[name] is not None:
                    notes.append(read_in_words(bits, found[name]))
            del scored  # the maps
        result[name] = _over_seeds(runs) | {
            "setting": {"model": getattr(inspector, "name", ""), "profile": profile or "recognised",
                        "alpha": alpha, "timesteps": list(timesteps), "seeds": list(seeds),
                        "size": inspector.size_of(profile)},
            "folders": folders_in_words(group),
            "pictures": pictures,
            "notes": notes + doubts[name],
        }
    return result


def _told(one: Scored) -> dict[str, Any]:
    return {"path": str(one.path), "defect": one.defect, "score": float(one.score),
            "anomalous": bool(one.verdict)}


@dataclass(frozen=True, eq=False)
class Repaired:
    """A defective picture before and after its repair, uint8 [H, W, 3], and the image scores."""

    sample: Sample
    before: np.ndarray
    after: np.ndarray
    score_before: float
    score_after: float
    threshold: float


def evaluate_repair(
    inspector: Any,
    samples: Iterable[Sample],
    limit: int | None = None,
    category: str | None = None,
    progress: Progress | None = None,
    show: Callable[[str, list[Repaired]], None] | None = None,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """Repair labelled samples and measure what that does to the defect and to all the rest, per category.

    limit: at most so many good and so many defective pictures a category, evenly over the kinds of defect.
    show: called per category with ten of its defective pictures, chosen likewise before anything is known
    of them. options go to `inspector.repair` (steps, denoise_every, step_size, timestep, method, alpha,
    seed, threshold, ...).

    The score inside a defect is the mean of the 256 highest values of the anomaly map within the mask. Keys:
    fall_median, fall_worst_tenth: its relative fall 1 − after/before, at most 1; half of the pictures and
    nine in ten of them reach these values; a defect that did not score above 0 counts as no fall.
    psnr_outside_median, psnr_outside_worst_tenth (dB), ssim_outside_median: outside the mask, grown by
    `margin` pixels at the model's resolution; feature_distance_outside_median, _worst_tenth: there, mean
    squared difference of the backbone's features in units of their variance (0 unchanged, 2 unrelated).
    judged_good_before, judged_good_after: shares of the defective pictures. psnr_good_median,
    psnr_good_worst, feature_distance_good_median: good pictures, whole. seconds_per_step, steps:
    medians over the pictures that had anything to repair. good, defective: counts; notes: sentences.
    None where a kind of picture is missing.
    Raises DataError if no sample has a label or a file cannot be read.
    """
    groups = {name: settled(group)[0] for name, group in _labelled(samples).items()}
    chosen = {name: _spread([s for s in group if not s.is_anomalous], limit)
              + _spread([s for s in group if s.is_anomalous and s.mask is not None], limit)
              for name, group in groups.items()}
    found = check_readable(chosen)
    total = sum(len(group) for group in chosen.values())
    shared = {key: options[key] for key in ("alpha", "seed", "threshold") if key in options}
    result, done = {}, 0
    for name, group in chosen.items():
        profile = _profile(inspector, name, category)
        bits = bits_to_read(inspector, profile, found[name])
        falls, outside, similar, distant, before_good, after_good = ([] for _ in range(6))
        good, good_distant, per_step, steps = ([] for _ in range(4))
        shown = _spread([s for s in group if s.is_anomalous], SHOWN_REPAIRS) if show else []
        repairs = []
        for sample in group:
            image = read_image(sample.image, bits)
            before = inspector.inspect(image, category=profile, **shared)
            started = time.perf_counter()
            (last,) = deque(inspector.repair(image, category=before.category, **options), maxlen=1)
            if last.index:  # 0: there was nothing to repair
                per_step.append((time.perf_counter() - started) / last.index)
                steps.append(last.index)
            moved = np.square(inspector.features(image) - inspector.features(last.image)).mean(axis=0)
            geometry = Geometry.letterbox(*image.shape[:2], len(before.square_map))
            if not sample.is_anomalous:
                good.append(psnr(image, last.image))
                good_distant.append(_mean_at(moved, geometry, np.zeros(image.shape[:2], bool)))
            else:
                after = inspector.inspect(last.image, category=before.category, **shared)
                mask = mask_of(sample, image.shape[:2])
                inside = mask_to_square(mask, geometry)[geometry.inner]
                high, low = (_inner_map(one, geometry)[inside] for one in (before, after))
                falls.append(_fall(high, low, geometry.size))
                grown = _grown(mask, REPAIR_MARGIN * max(image.shape[:2]) / geometry.size)
                outside.append(psnr(image, last.image, ~grown))
                similar.append(ssim(image, last.image, ~grown))
                distant.append(_mean_at(moved, geometry, grown))
                before_good.append(not before.is_anomalous)
                after_good.append(not after.is_anomalous)
                if sample in shown:
                    repairs.append(Repaired(sample, image, last.image, before.score, after.score,
                                            before.threshold))
            done += 1
            if progress is not None:
                progress(done, total)
        if repairs:
            show(name, repairs)
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
            "feature_distance_outside_median": _median(distant),
            "feature_distance_outside_worst_tenth": _quantile(distant, 0.9),
            "judged_good_before": _mean(before_good),
            "judged_good_after": _mean(after_good),
            "psnr_good_median": _median(good),
            "psnr_good_worst": _quantile(good, 0.0),
            "feature_distance_good_median": _median(good_distant),
            "seconds_per_step": _median(per_step),
            "steps": int(np.median(steps)) if steps else None,
            "good": len(good),
            "defective": len(falls),
            "margin": REPAIR_MARGIN,
            "notes": notes,
        }
    return result


# ---------------------------------------------------------------------------------------------------------
# Tables

EVALUATION_COLUMNS = (  # title, key, form
    ("image AUROC", "image_auroc", "{:.3f}"), ("image AP", "image_ap", "{:.3f}"),
    ("image F1", "image_f1", "{:.3f}"), ("pixel AUROC", "pixel_auroc", "{:.3f}"),
    ("pixel AP", "pixel_ap", "{:.3f}"), ("pixel F1", "pixel_f1", "{:.3f}"),
    ("AUPRO", "aupro", "{:.3f}"), ("AUPRO 0.05", "aupro_05", "{:.3f}"), ("AUPIMO", "aupimo", "{:.3f}"),
    ("false alarms", "false_alarm_rate", "{:.1%}"), ("missed", "miss_rate", "{:.1%}"),
    ("category recognised", "category_accuracy", "{:.1%}"), ("s / picture", "seconds_per_image", "{:.3f}"),
    ("pictures", "images", _COUNT),
)
_CHANGED_COLUMN = ("wrong when changed", "wrong_when_changed", "{:.1%}")
REPAIR_COLUMNS = (
    ("score falls by (median)", "fall_median", "{:.0%}"), ("worst tenth", "fall_worst_tenth", "{:.0%}"),
    ("PSNR outside, dB", "psnr_outside_median", "{:.1f}"),
    ("worst tenth, dB", "psnr_outside_worst_tenth", "{:.1f}"),
    ("SSIM outside", "ssim_outside_median", "{:.3f}"),
    ("feature distance outside", "feature_distance_outside_median", "{:.4f}"),
    ("judged good before", "judged_good_before", "{:.0%}"), ("after", "judged_good_after", "{:.0%}"),
    ("PSNR good, dB", "psnr_good_median", "{:.1f}"), ("worst good, dB", "psnr_good_worst", "{:.1f}"),
    ("s / step", "seconds_per_step", "{:.3f}"), ("defective", "defective", _COUNT), ("good", "good", _COUNT),
)


def evaluation_columns(results: dict[str, dict[str, Any]]) -> tuple[tuple[str, str, str], ...]:
    """Those of `EVALUATION_COLUMNS`, and how many changed good pictures are rejected, where that was measured
    (a category's "stress" is what `stress.stress` found).
    """
    if not any("stress" in values for values in results.values()):
        return EVALUATION_COLUMNS
    place = 1 + [key for _, key, _ in EVALUATION_COLUMNS].index("miss_rate")
    return (*EVALUATION_COLUMNS[:place], _CHANGED_COLUMN, *EVALUATION_COLUMNS[place:])


def evaluation_table(results: dict[str, dict[str, Any]]) -> str:
    """The results of `evaluate` as a Markdown table; several categories get a last row of means."""
    return markdown(table_rows(results, evaluation_columns(results)))


def folders_text(results: dict[str, dict[str, Any]]) -> str:
    """By category, which folders were taken as good and as defective."""
    return "\n".join(f"{name}: {values['folders']}" for name, values in results.items())


def announced_rows(results: dict[str, dict[str, Any]]) -> list[list[str]]:
    """False alarms and missed defects by category at the thresholds of each announced rate, and their means;
    the head first.
    """
    known = {name: values["announced"] for name, values in results.items() if values.get("announced")}
    titles = [f"{title} at {rate:.1%}" for title in ("false alarms", "missed") for rate in ANNOUNCED]
    rows = [["category", *(title.replace(".0%", "%") for title in titles)]]
    for name, announced in known.items():
        rows.append([name, *(_cell(at[kind], "{:.1%}") for kind in (1, 2) for at in announced)])
    if len(known) > 1:
        means = [_mean([at for at in (announced[number][kind] for announced in known.values())
                        if at is not None]) for kind in (1, 2) for number in range(len(ANNOUNCED))]
        rows.append(["mean", *(_cell(mean, "{:.1%}") for mean in means)])
    return rows


def repair_table(results: dict[str, dict[str, Any]]) -> str:
    """The results of `evaluate_repair` as a Markdown table; several categories get a last row of means."""
    return markdown(table_rows(results, REPAIR_COLUMNS))


def table_rows(
    results: dict[str, dict[str, Any]],
    columns: Sequence[tuple[str, str, str]],
    head: str = "category",
    mean: bool = True,
) -> list[list[str]]:
    """The head, a row per entry with ± its deviation over seeds, and for several a last row "mean".

    columns: title, key, format.
    """
    rows = [[head, *(title for title, _, _ in columns)]]
    for name, values in results.items():
        std = values.get("std", {})
        rows.append([name, *(_cell(values.get(key), form, std.get(key)) for _, key, form in columns)])
    if mean and len(results) > 1:
        rows.append(["mean", *(_cell(mean_over_categories(results, key, form == _COUNT), form)
                               for _, key, form in columns)])
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the head first, as a Markdown table with the row "mean" in bold."""
    lines = [list(row) for row in rows]
    lines.insert(1, ["---", *("---:" for _ in rows[0][1:])])
    lines = [["**mean**", *row[1:]] if row[0] == "mean" else row for row in lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def mean_over_categories(results: dict[str, dict[str, Any]], key: str, summed: bool = False) -> Any:
    """The mean (or the sum) of one value over the categories that have it; None if none does."""
    known = [values[key] for values in results.values() if values.get(key) is not None]
    return sum(known) if summed and known else _mean(known)


def mean_interval(results: dict[str, dict[str, Any]], key: str) -> list[float] | None:
    """A 95 % interval of the mean over categories, from each one's own interval.

    The categories' pictures are independent, so the squared distances from value to limit add (Zou and
    Donner's MOVER, 2008). None if a category with this value has no interval.
    """
    known = [values for values in results.values() if values.get(key) is not None]
    if not known or any(key not in values["intervals"] for values in known):
        return None
    centre = _mean([values[key] for values in known])
    limits = np.array([values["intervals"][key] for values in known]) - [[values[key]] for values in known]
    half = np.sqrt(np.square(limits).sum(axis=0)) / len(known)
    return [float(centre - half[0]), float(centre + half[1])]


def _cell(value: float | None, form: str, std: float | None = None) -> str:
    return "–" if value is None else form.format(value) + ("" if std is None else f" ± {form.format(std)}")


# ---------------------------------------------------------------------------------------------------------


def _measured(scored: Sequence[Scored], draws: int = 1000) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The values of `measure` but its intervals, and of each metric its resampled values [draws]."""
    labels = np.array([one.label for one in scored], bool)
    scores = np.array([one.score for one in scored], np.float64)
    seen = np.array([one.mask is not None for one in scored], bool)
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
        values |= {"pixel_auroc": auroc(*every), "pixel_ap": average_precision(*every),
                   "pixel_f1": f1_max(*every), "aupro": aupro(maps, masks),
                   "aupro_05": aupro(maps, masks, 0.05), "aupimo": _aupimo(scored)}
        curves |= {"pixel_roc": roc_curve(*every), "pro": pro_curve(maps, masks)}
        del every
    drawn: dict[str, np.ndarray] = {}
    if draws:
        weights = resamples(labels, draws)
        drawn = {f"image_{name}": drawn_values
                 for name, drawn_values in resampled_image_metrics(scores, labels, weights).items()}
        if maps:
            of_pixels = resampled_pixel_metrics(maps, masks, weights[:, seen])
            drawn["aupro"], drawn["aupro_05"] = of_pixels.pop("aupro")
            drawn |= {f"pixel_{name}": drawn_values for name, drawn_values in of_pixels.items()}
            if values["aupimo"] is not None:
                clear = _clear(scored)
                drawn["aupimo"] = resampled_aupimo(*_maps(itertools.compress(scored, clear)),
                                                   weights[:, clear])
    good_accuracy = _mean([not one.verdict for one in scored if not one.label and one.verdict is not None])
    defect_recall = _mean([one.verdict for one in scored if one.label and one.verdict is not None])
    values |= {
        "false_alarm_rate": None if good_accuracy is None else 1 - good_accuracy,
        "miss_rate": None if defect_recall is None else 1 - defect_recall,
        "good_accuracy": good_accuracy,
        "defect_recall": defect_recall,
        "category_accuracy": _mean([one.category_right for one in scored if one.category_right is not None]),
        "announced": _announced(scored),
        "threshold": _median([one.threshold for one in scored]),
        "seconds_per_image": _median([one.seconds for one in scored]),
        "images": len(scored),
        "defective": int(labels.sum()),
        "by_defect": _by_defect(scored),
        "curves": {name: None if points is None else points.round(6).tolist()
                   for name, points in curves.items()},
    }
    return values, drawn


def _announced(scored: Sequence[Scored]) -> list[list[float | None]] | None:
    if any(one.limits is None for one in scored):
        return None
    return [
        [rate, _mean([one.score > one.limits[i] for one in scored if not one.label]),
         _mean([one.score <= one.limits[i] for one in scored if one.label])]
        for i, rate in enumerate(ANNOUNCED)
    ]


def _maps(scored: Iterable[Scored]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Maps and masks of the pictures that have them."""
    seen = [one for one in scored if one.mask is not None]
    return [one.anomaly_map for one in seen], [one.mask for one in seen]


def _clear(scored: Iterable[Scored]) -> list[bool]:
    """Which have a map and a mask that says what the label says: a small defect's may vanish at the model's
    resolution, and its picture is no good one for that.
    """
    return [one.mask is not None and one.label == bool(one.mask.any()) for one in scored]


def _aupimo(scored: Sequence[Scored]) -> float | None:
    maps, masks = _maps(itertools.compress(scored, _clear(scored)))
    areas = aupimo(maps, masks) if maps else None
    return None if areas is None else float(areas.mean())


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
            "miss_rate": _mean([not one.verdict for one in bad if one.verdict is not None]),
        }
    return result


def _intervals(values: dict[str, Any], drawn: dict[str, np.ndarray]) -> dict[str, list[float]]:
    if not drawn:
        return {}
    # not of F1: the best of all thresholds is better still in a resample, and would lie below the interval
    known = [key for key in drawn if not key.endswith("_f1") and values[key] is not None]
    found = {key: interval(drawn[key]) for key in known}
    counts = {"false_alarm_rate": values["images"] - values["defective"], "miss_rate": values["defective"]}
    return found | {key: rate_interval(values[key], count) for key, count in counts.items()
                    if values[key] is not None}


def _over_seeds(runs: Sequence[tuple[dict[str, Any], dict[str, np.ndarray]]]) -> dict[str, Any]:
    """Means of the runs' metrics with their intervals, and standard deviations; the rest from the first."""
    values, drawn = runs[0]
    numbers = [key for key, value in values.items() if isinstance(value, float)]
    every = {key: [run[key] for run, _ in runs] for key in numbers}
    values = values | {key: _mean(every[key]) for key in numbers}
    # Every seed sees the same draws of pictures, so the mean over seeds has draws of its own.
    drawn = {key: np.mean([of_run[key] for _, of_run in runs], axis=0) for key in drawn}
    intervals = _intervals(values, drawn)
    varying = {*drawn, *intervals} if len(runs) > 1 else {}
    spread = {key: float(np.std(every[key], ddof=1)) for key in every if key in varying}
    return {**values, "intervals": intervals, "std": spread}


def bits_to_read(inspector: Any, profile: str | None, found: int | None) -> int | None:
    """How many bits pictures have that are judged with a profile (None: the recognised category's).
    found: by their own values, None if all are 8-bit files (`labels.look_over`).
    """
    return None if found is None else inspector.bits(profile, found)


def _score(
    inspector: Any, sample: Sample, profile: str | None, settings: dict[str, Any], bits: int | None
) -> Scored:
    image = read_image(sample.image, bits)
    inspection = inspector.inspect(image, **settings)
    recognised = inspection.category
    if profile not in (None, recognised):  # recognised as something else than it is
        inspection = inspector.inspect(image, category=profile, **settings)
    inner = Geometry.letterbox(*image.shape[:2], len(inspection.square_map))
    mask = mask_inside(sample, image.shape[:2], inner.size)
    anomaly_map = None if mask is None else _inner_map(inspection, inner)
    return Scored(
        path=sample.image, label=bool(sample.is_anomalous), score=inspection.score, anomaly_map=anomaly_map,
        mask=mask, verdict=inspection.is_anomalous, threshold=inspection.threshold, defect=sample.defect,
        limits=tuple(inspection.threshold_at(rate) for rate in ANNOUNCED),
        category_right=recognised == sample.category if sample.category in inspector.categories else None,
        seconds=inspection.seconds)


def _inner_map(inspection: Any, geometry: Geometry) -> np.ndarray:
    """The fused map in the rectangle that the picture fills at the model's resolution, float32 [h, w]."""
    return np.ascontiguousarray(inspection.square_map[geometry.inner], np.float32)


def _labelled(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """Samples with a known label that are not for training, by category, in order of appearance."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.is_anomalous is not None and sample.split != "train":
            groups.setdefault(sample.category, []).append(sample)
    if not groups:
        raise DataError("no picture has a label: measuring needs test/good and test/<defect> folders (MVTec)")
    return groups


def _profile(inspector: Any, name: str, category: str | None) -> str | None:
    return category if category is not None else (name if name in inspector.categories else None)


def _fall(before: np.ndarray, after: np.ndarray, size: int = 256) -> float:
    """Relative fall of the mean of the highest values, 256 at a model size of 256, of the pixels inside a
    defect before and after.
    """
    if not before.size:
        return 0.0
    high, low = top_mean(before, size), top_mean(after, size)
    return min(1.0, 1.0 - low / high) if high > 0 else 0.0


def _grown(mask: np.ndarray, margin: float) -> np.ndarray:
    """The mask grown by a disc of `margin` pixels."""
    radius = max(1, round(margin))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return cv2.dilate(mask.astype(np.uint8), disc) > 0


def _mean_at(grid: np.ndarray, geometry: Geometry, hidden: np.ndarray) -> float | None:
    """The mean of a grid [g, g] over the square: its cells in the picture, clear of `hidden` [H, W]."""
    visible = np.zeros((geometry.size, geometry.size), np.float32)
    visible[geometry.inner] = 1
    visible[mask_to_square(hidden, geometry)] = 0
    whole = cv2.resize(visible, grid.shape[::-1], interpolation=cv2.INTER_AREA) > 1 - 1e-6
    return float(grid[whole].mean()) if whole.any() else None


def _spread(samples: list[Sample], limit: int | None) -> list[Sample]:
    """At most `limit` samples: the same number of every kind of defect as far as there are, evenly spaced."""
    if limit is None or len(samples) <= limit:
        return samples
    kinds: dict[str, list[Sample]] = {}
    for sample in samples:
        kinds.setdefault(sample.defect, []).append(sample)
    chosen, left = [], limit
    for number, kind in enumerate(sorted(kinds.values(), key=len)):  # what the rare ones lack the others give
        share = min(len(kind), left // (len(kinds) - number))
        chosen += [kind[int((i + 0.5) * len(kind) / share)] for i in range(share)]
        left -= share
    return [sample for sample in samples if sample in chosen]


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _median(values: Sequence[float | None]) -> float | None:
    return _quantile(values, 0.5)


def _quantile(values: Sequence[float | None], q: float) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.quantile(known, q)) if known else None


def _notes(
    inspector: Any, name: str, profile: str | None, scored: Sequence[Scored], values: dict[str, Any]
) -> list[str]:
    notes = []
    labels = [one.label for one in scored]
    masked = any(one.label and one.mask is not None and one.mask.any() for one in scored)
    unmasked = sum(one.mask is None for one in scored)
    if all(labels):
        notes.append("No good picture: the image metrics and the false alarm rate are undefined.")
    elif not any(labels):
        notes.append("No defective picture: the image and pixel metrics and the miss rate are undefined.")
    elif not masked:
        notes.append("No defective picture has a mask: the pixel metrics are undefined.")
    if unmasked and masked:
        notes.append(f"{unmasked} defective pictures without a mask are left out of the pixel metrics.")
    if profile is None:
        notes.append(f"The model has no category {name!r}: each picture was judged as what it resembles.")
    elif profile != name:
        notes.append(f"Judged with the profile {profile!r}.")
    if values["aupro"] is not None and values["aupimo"] is None and not all(labels):
        low, high = PIMO_RATES
        notes.append(f"AUPIMO needs more good pictures: between its false positive rates, {low:.3%} and "
                     f"{high:.2%}, lie fewer than {FEWEST_PIMO_PIXELS} pixels of all {labels.count(False)}.")
    return notes
