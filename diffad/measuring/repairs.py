"""Evaluate repairs: measure how they change defects and everything around them.

PSNR and SSIM are measured at the picture's own resolution, maps and features at the model's.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from diffad.measuring.evaluation import bits_to_read, inner_map, profile_for
from diffad.measuring.tables import Progress, mean, quantile, step_counter
from diffad.method.image_score import top_mean
from diffad.method.repair_options import RepairOptions
from diffad.method.similarity import psnr, ssim
from diffad.pictures.geometry import Geometry, mask_to_square
from diffad.pictures.masks import check_readable, mask_of, settled
from diffad.pictures.reading import read_image
from diffad.pictures.samples import Sample, labelled, thinned

if TYPE_CHECKING:
    from diffad.inspector import Inspector

REPAIR_MARGIN = 8  # px at the model's resolution around a defect that a repair may change
SHOWN_REPAIRS = 10  # per category


@dataclass(frozen=True, eq=False)
class Repaired:
    """A defective picture before and after its repair, uint8 [H, W, 3], and the image scores."""

    sample: Sample
    before: npt.NDArray[np.uint8]
    after: npt.NDArray[np.uint8]
    score_before: float
    score_after: float
    threshold: float


def evaluate_repair(
    inspector: Inspector,
    samples: Iterable[Sample],
    limit: int | None = None,
    category: str | None = None,
    progress: Progress | None = None,
    show: Callable[[str, list[Repaired]], None] | None = None,
    options: RepairOptions = RepairOptions(),  # noqa: B008 - immutable
    **settings: Any,
) -> dict[str, dict[str, Any]]:
    """Repair labelled samples and measure the changes to the defect and to everything else, by category.

    The score inside a defect is the mean of the 256 highest values of the anomaly map within the mask.

    Args:
        inspector: the model.
        samples: unlabelled samples, training pictures and defective pictures without a mask are left out.
        limit: at most this many good and this many defective pictures per category, evenly spread over the
            kinds of defect.
        category: the profile that judges all pictures, as for `evaluate`.
        progress: called with (done, total) after every picture.
        show: called for each category with ten repaired defective pictures, spread evenly over the kinds of
            defect and not chosen by result.
        options: of each repair.
        settings: passed to `Inspector.repair` (alpha, seed, threshold, …).

    Returns:
        By category, ready for JSON; None where a kind of picture is missing:
        fall_median, fall_worst_tenth: relative fall 1 − after / before of the score inside the defect, at
            most 1: the median, and the value that nine in ten pictures reach. A defect whose score was not
            above 0 counts as no fall.
        psnr_outside_median, psnr_outside_worst_tenth (dB), ssim_outside_median: outside the mask, grown by
            `margin` px at the model's resolution.
        feature_distance_outside_median, feature_distance_outside_worst_tenth: in the same area, the mean
            squared difference of the backbone's features in units of their variance (0 unchanged, 2
            unrelated).
        judged_good_before, judged_good_after: shares of the defective pictures.
        psnr_good_median, psnr_good_worst, feature_distance_good_median: of whole good pictures.
        seconds_per_step, steps: medians over the pictures with something to repair.
        good, defective: counts.
        margin: `REPAIR_MARGIN`.
        notes: sentences.

    Raises:
        DataError: no sample has a label, or a file cannot be read.
    """
    groups = {name: settled(group)[0] for name, group in labelled(samples).items()}
    chosen = {}
    for name, group in groups.items():
        good = [sample for sample in group if not sample.is_anomalous]
        masked = [sample for sample in group if sample.is_anomalous and sample.mask is not None]
        chosen[name] = thinned(good, limit) + thinned(masked, limit)
    depths = check_readable(chosen)
    step = step_counter(progress, sum(map(len, chosen.values())))
    result = {}
    for name, group in chosen.items():
        profile = profile_for(inspector, name, category)
        bits = bits_to_read(inspector, profile, depths[name])
        shown = thinned([sample for sample in group if sample.is_anomalous], SHOWN_REPAIRS) if show else []
        outcomes: list[dict[str, Any]] = []
        repairs: list[Repaired] = []
        for sample in group:
            outcome, repair = _repaired(inspector, sample, profile, bits, options, settings)
            outcomes.append(outcome)
            if repair is not None and sample in shown:
                repairs.append(repair)
            del repair  # its pictures may be large
            step()
        if show is not None and repairs:
            show(name, repairs)
        intact, bad = ([one for one in outcomes if one["label"] is label] for label in (False, True))
        unmasked = sum(bool(sample.is_anomalous) and sample.mask is None for sample in groups[name])
        result[name] = _summary(intact, bad) | {"notes": _notes(intact, bad, unmasked)}
    return result


def _repaired(
    inspector: Inspector,
    sample: Sample,
    profile: str | None,
    bits: int | None,
    options: RepairOptions,
    settings: dict[str, Any],
) -> tuple[dict[str, Any], Repaired | None]:
    """Repair one picture; returns the measured changes and, if it is defective, its pictures."""
    shared = {key: settings[key] for key in ("alpha", "seed", "threshold") if key in settings}
    image = read_image(sample.image, bits)
    before = inspector.inspect(image, category=profile, **shared)
    started = time.perf_counter()
    (last,) = deque(inspector.repair(image, before.category, options, **settings), maxlen=1)
    outcome: dict[str, Any] = {"label": bool(sample.is_anomalous)}
    if last.index:  # 0: there was nothing to repair
        seconds = time.perf_counter() - started
        outcome |= {"steps": last.index, "seconds_per_step": seconds / last.index}
    moved = np.square(inspector.features(image) - inspector.features(last.image)).mean(axis=0)
    height, width = image.shape[:2]
    geometry = Geometry.letterbox(height, width, len(before.square_map))
    if not sample.is_anomalous:
        whole = np.zeros(image.shape[:2], bool)
        outcome |= {"psnr": psnr(image, last.image), "distance": _mean_outside(moved, geometry, whole)}
        return outcome, None
    after = inspector.inspect(last.image, category=before.category, **shared)
    mask = mask_of(sample, image.shape[:2])
    inside = mask_to_square(mask, geometry)[geometry.inner]
    high, low = (inner_map(one, geometry)[inside] for one in (before, after))
    grown = _grown(mask, REPAIR_MARGIN * max(image.shape[:2]) / geometry.size)
    outcome |= {
        "fall": _fall(high, low, geometry.size),
        "psnr": psnr(image, last.image, ~grown),
        "ssim": ssim(image, last.image, ~grown),
        "distance": _mean_outside(moved, geometry, grown),
        "good_before": not before.is_anomalous,
        "good_after": not after.is_anomalous,
    }
    return outcome, Repaired(sample, image, last.image, before.score, after.score, before.threshold)


def _summary(good: Sequence[dict[str, Any]], bad: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def of(outcomes: Sequence[dict[str, Any]], key: str) -> list[Any]:
        return [outcome.get(key) for outcome in outcomes]

    steps = quantile(of([*good, *bad], "steps"))
    return {
        "fall_median": quantile(of(bad, "fall")),
        "fall_worst_tenth": quantile(of(bad, "fall"), 0.1),
        "psnr_outside_median": quantile(of(bad, "psnr")),
        "psnr_outside_worst_tenth": quantile(of(bad, "psnr"), 0.1),
        "ssim_outside_median": quantile(of(bad, "ssim")),
        "feature_distance_outside_median": quantile(of(bad, "distance")),
        "feature_distance_outside_worst_tenth": quantile(of(bad, "distance"), 0.9),
        "judged_good_before": mean(of(bad, "good_before")),
        "judged_good_after": mean(of(bad, "good_after")),
        "psnr_good_median": quantile(of(good, "psnr")),
        "psnr_good_worst": quantile(of(good, "psnr"), 0.0),
        "feature_distance_good_median": quantile(of(good, "distance")),
        "seconds_per_step": quantile(of([*good, *bad], "seconds_per_step")),
        "steps": None if steps is None else int(steps),
        "good": len(good),
        "defective": len(bad),
        "margin": REPAIR_MARGIN,
    }


def _notes(good: Sequence[Any], bad: Sequence[Any], unmasked: int) -> list[str]:
    notes = []
    if unmasked:
        notes.append(f"{unmasked} defective pictures without a mask were left out.")
    if not bad:
        notes.append("No defective picture with a mask: the repair of defects is not measured.")
    if not good:
        notes.append("No good picture: what a repair does to good parts is not measured.")
    return notes


def _fall(before: npt.NDArray[np.float32], after: npt.NDArray[np.float32], size: int = 256) -> float:
    """Relative fall of the score inside a defect.

    Args:
        before, after: the map's values inside the defect, of the same shape.
        size: the model's, px. The score is the mean of the highest values, 256 of them at 256 px.
    """
    if not before.size:
        return 0.0
    high, low = top_mean(before, size), top_mean(after, size)
    return min(1.0, 1.0 - low / high) if high > 0 else 0.0


def _grown(mask: npt.NDArray[np.bool_], margin: float) -> npt.NDArray[np.bool_]:
    """The mask grown by a disc of `margin` pixels."""
    radius = max(1, round(margin))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return cv2.dilate(mask.astype(np.uint8), disc) > 0


def _mean_outside(grid: np.ndarray, geometry: Geometry, hidden: npt.NDArray[np.bool_]) -> float | None:
    """The mean of a grid [g, g] over the cells inside the picture and entirely outside `hidden` [H, W]."""
    visible = np.zeros((geometry.size, geometry.size), np.float32)
    visible[geometry.inner] = 1
    visible[mask_to_square(hidden, geometry)] = 0
    whole = cv2.resize(visible, grid.shape[::-1], interpolation=cv2.INTER_AREA) > 1 - 1e-6
    return float(grid[whole].mean()) if whole.any() else None
