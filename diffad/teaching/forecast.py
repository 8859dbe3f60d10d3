"""A forecast of how well a category will be inspected, measured on artificial defects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffad.method.artificial_defects import MEASURED_KINDS, add_defect
from diffad.method.fusion import fuse
from diffad.method.image_score import ImageScore
from diffad.method.metrics import aupro, auroc
from diffad.method.scoring import RawMaps
from diffad.teaching.robustness import in_words as changes_in_words

ENOUGH = 30  # good pictures; with fewer, the threshold is only a guess
_DEFECTS_EACH = 2
_PATCH_SOURCES = 96  # most pictures that patches and colours are taken from
_SMALLEST = 12  # px² in a picture of 256 × 256; smaller defects are not counted
_NAMED = 5  # most unusual pictures named in a sentence


def artificial_defects(
    pictures: Tensor, inside: Tensor, used: Tensor
) -> tuple[Tensor, list[np.ndarray], list[str], list[int]]:
    """Make two copies of each picture, each with one artificial defect; the same ones in every run.

    Args:
        pictures: good pictures, uint8 [n, 3, s, s].
        inside: where the pictures are without padding, bool [n or more, s, s].
        used: good pictures from which patches and colours are taken, uint8 [m, 3, s, s].

    Returns:
        The defective pictures uint8 [k, 3, s, s], their masks bool [s, s] without the padding, their kinds,
        and the numbers of the original pictures. Defects that hardly show are left out, so k can be below
        2n; it is 0 for nearly black pictures.
    """
    rng = np.random.default_rng(0)
    sources = [picture.permute(1, 2, 0).numpy() for picture in used[:_PATCH_SOURCES]]
    spoiled, masks, kinds, origins = [], [], [], []
    for index in range(_DEFECTS_EACH * len(pictures)):
        kind = MEASURED_KINDS[index % len(MEASURED_KINDS)]
        origin = index // _DEFECTS_EACH
        picture, mask = add_defect(pictures[origin].permute(1, 2, 0).numpy(), sources, kind, rng)
        mask = mask & inside[origin].numpy()
        if mask.sum() * 256**2 >= _SMALLEST * mask.size:
            spoiled.append(torch.from_numpy(picture).permute(2, 0, 1))
            masks.append(mask)
            kinds.append(kind)
            origins.append(origin)
    return torch.stack(spoiled) if spoiled else pictures[:0], masks, kinds, origins


def fused_maps(maps: RawMaps) -> list[np.ndarray]:
    """Fuse standardised maps at α = 0.5: a map [s, s] of each picture."""
    return [
        fuse(pixel.numpy(), feature.numpy(), 0.5, None if maps.plain is None else maps.plain[i].numpy())
        for i, (pixel, feature) in enumerate(zip(maps.pixel, maps.feature))
    ]


def judged_artificial_defects(
    good: RawMaps, spoiled: RawMaps, masks: list[npt.NDArray[np.bool_]], kinds: list[str], score: ImageScore
) -> dict[str, Any]:
    """Measure how well artificial defects are distinguished from good pictures at α = 0.5.

    Args:
        good: standardised maps of good pictures.
        spoiled: standardised maps of pictures with defects.
        masks: where each defect is, bool [s, s].
        kinds: the kind of each defect.
        score: the image score at α = 0.5.

    Returns:
        image_auroc, aupro: in [0, 1].
        worth: the mean of the two, by which settings are chosen.
        found: the share of defects above the threshold; found_by_kind: the same by kind of defect.
        good, defects: counts.
    """
    fused = fused_maps(good) + fused_maps(spoiled)
    count, size = len(good.pixel), good.pixel.shape[-1]
    scores = np.array([score(anomaly_map, size) for anomaly_map in fused])
    no_defect = np.zeros((size, size), bool)
    image_auroc = auroc(scores, np.arange(len(fused)) >= count)
    overlap = aupro(fused, [no_defect] * count + masks)
    assert image_auroc is not None and overlap is not None  # there are good pictures and defects
    found = scores[count:] > score.threshold()
    return {
        "worth": (image_auroc + overlap) / 2,
        "image_auroc": image_auroc,
        "aupro": overlap,
        "found": float(found.mean()),
        "found_by_kind": {
            kind: float(found[[each == kind for each in kinds]].mean()) for kind in dict.fromkeys(kinds)
        },
        "good": count,
        "defects": len(masks),
    }


def in_words(category: str, forecast: Mapping[str, Any]) -> str:
    """The forecast of a category in a few sentences."""
    remarks = _remarks(forecast)
    if not forecast["defects"]:
        return (
            f"{category}: there is no forecast, because the pictures are too dark for artificial defects: "
            f"measure with `diffad evaluate`.{remarks}"
        )
    share, few = forecast["found"], forecast["good"] < ENOUGH
    if share >= 0.8:
        judgement = "a promising first guess" if few else "good enough to try"
    elif share >= 0.5:
        judgement = "it will miss subtle defects"
    else:
        judgement = "it misses most of them: train longer, or with more pictures"
    weak = [kind for kind, found in forecast["found_by_kind"].items() if found < 0.5]
    missed = f"; most often missed: {', '.join(weak)}" if weak else ""
    return (
        f"{category}: of {forecast['defects']} artificial defects {share:.0%} were found at 1 false alarm "
        f"in 100 (image AUROC {forecast['image_auroc']:.2f}, AUPRO {forecast['aupro']:.2f}), "
        f"{judgement}{missed}. Real defects may be harder: measure with `diffad evaluate`.{remarks}"
    )


def _remarks(forecast: Mapping[str, Any]) -> str:
    """Sentences about the training pictures, each after a space."""
    sentences = [changes_in_words(forecast["changed"])] if "changed" in forecast else []
    if forecast["good"] < ENOUGH:
        sentences.append(
            f"With only {forecast['good']} good pictures the threshold is a guess: {ENOUGH} or more are "
            "better."
        )
    sentences += forecast.get("duplicates", ())
    if unusual := _highest_first(forecast.get("unusual", {})):
        sentences.append(
            f"Unusual among the good pictures: {', '.join(unusual[:_NAMED])}. Look at them, and train again "
            "without any that show a defect."
        )
    if left_out := _highest_first(forecast.get("left_out", {})):
        sentences.append(
            "Left out of the statistics, because they differ too much from the other pictures: "
            f"{', '.join(left_out)}."
        )
    return "".join(f" {sentence}" for sentence in sentences)


def _highest_first(scores: Mapping[str, float]) -> list[str]:
    ranked = sorted(scores.items(), key=lambda item: -item[1])
    return [f"{name} ({score:.1f})" for name, score in ranked]
