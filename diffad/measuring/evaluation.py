"""Evaluate a model: inspect labelled pictures and measure detection and localisation.

Maps are measured at the model's resolution, in the rectangle that the picture fills in the model's square.
Masks are resampled to it by nearest neighbour; nothing is cropped, and padding does not count. Regions of
masks are 8-connected at that resolution.

Nothing is fitted: thresholds, calibration and normalisation come from the checkpoint, and every test picture
is judged independently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from diffad.measuring.measures import ANNOUNCED, Scored, mean_of_runs, measured
from diffad.measuring.tables import Progress, step_counter
from diffad.method.metrics import FEWEST_PIMO_PIXELS, PIMO_RATES
from diffad.pictures.depth import read_in_words
from diffad.pictures.geometry import Geometry
from diffad.pictures.labels import folders_in_words, look_over
from diffad.pictures.masks import mask_inside
from diffad.pictures.reading import read_image
from diffad.pictures.samples import Sample, labelled
from diffad.verdicts import checked_timesteps

if TYPE_CHECKING:
    from diffad.inspection import Inspection
    from diffad.inspector import Inspector


def evaluate(
    inspector: Inspector,
    samples: Iterable[Sample],
    alpha: float = 0.5,
    timesteps: Sequence[int] = (20, 200, 400),
    seeds: Sequence[int] = (0,),
    category: str | None = None,
    progress: Progress | None = None,
    keep: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Inspect labelled samples and measure the results by category.

    Args:
        inspector: the model.
        samples: those without a label are left out; training pictures only serve to find test pictures that
            are among them.
        alpha, timesteps: as for `Inspector.inspect`.
        seeds: of the noise. Metrics, their intervals and the rates are means over the seeds; by_defect,
            curves and pictures come from the first seed.
        category: the profile that judges all pictures. With None, the profile is that of the picture's own
            category if the model knows it, otherwise the recognised one.
        progress: called with (done, total) after every picture and seed.
        keep: called after every picture and seed with category, seed and the picture's entry in `pictures`.

    Returns:
        By category, ready for JSON, the keys of `measure`, and
        std: standard deviation of each metric over the seeds (n − 1 in the denominator; empty for one seed).
        pictures: path, defect, score and anomalous (the verdict) of each picture.
        setting: the settings used.
        folders: a sentence on which folders count as good and as defective.
        notes: sentences, for instance on undefined values, doubtful masks and duplicate pictures.

    Raises:
        DataError: no sample has a label, a file cannot be read, or a mask does not have its picture's size;
            raised before the first inspection.
    """
    timesteps, samples = checked_timesteps(timesteps), list(samples)
    training = [sample for sample in samples if sample.split == "train"]
    groups, doubts, depths = look_over(labelled(samples), training)
    step = step_counter(progress, len(seeds) * sum(map(len, groups.values())))
    result = {}
    for name, group in groups.items():
        profile = profile_for(inspector, name, category)
        bits = bits_to_read(inspector, profile, depths[name])
        runs = []
        for seed in seeds:
            scored = []
            for sample in group:
                settings = {"alpha": alpha, "timesteps": timesteps, "seed": seed}
                scored.append(_score(inspector, sample, profile, settings, bits))
                if keep is not None:
                    keep({"category": name, "seed": seed, **_summary(scored[-1])})
                step()
            runs.append(measured(scored))
            if len(runs) == 1:
                pictures = list(map(_summary, scored))
                notes = _notes(inspector, name, profile, scored, runs[0][0])
            del scored  # its maps are large
        notes += bit_notes(bits, depths[name])
        result[name] = mean_of_runs(runs) | {
            "setting": {
                "model": getattr(inspector, "name", ""),
                "profile": profile or "recognised",
                "alpha": alpha,
                "timesteps": list(timesteps),
                "seeds": list(seeds),
                "size": inspector.size_of(profile),
            },
            "folders": folders_in_words(group),
            "pictures": pictures,
            "notes": notes + doubts[name],
        }
    return result


def profile_for(inspector: Inspector, name: str, category: str | None) -> str | None:
    """The profile that judges pictures of the category `name`: `category` if given, otherwise its own.

    None if the model does not know the category and has to recognise each picture.
    """
    return category if category is not None else (name if name in inspector.categories else None)


def bits_to_read(inspector: Inspector, profile: str | None, found: int | None) -> int | None:
    """The bit depth to read pictures with; None for 8-bit files.

    Args:
        profile: the profile that judges them; None for the recognised one.
        found: the bits that their values need (`labels.look_over`); None if all are 8-bit files.
    """
    return None if found is None else inspector.bits(profile, found)


def bit_notes(bits: int | None, found: int | None) -> list[str]:
    """A sentence on how pictures of more than 8 bits were read; none if all are 8-bit files.

    Args:
        bits: the bit depth that was used.
        found: the bits that the values need.
    """
    return [] if bits is None or found is None else [read_in_words(bits, found)]


def inner_map(inspection: Inspection, geometry: Geometry) -> npt.NDArray[np.float32]:
    """The fused map in the rectangle that the picture fills at the model's resolution, float32 [h, w]."""
    return np.ascontiguousarray(inspection.square_map[geometry.inner], np.float32)


def _summary(one: Scored) -> dict[str, Any]:
    return {
        "path": str(one.path),
        "defect": one.defect,
        "score": float(one.score),
        "anomalous": bool(one.verdict),
    }


def _score(
    inspector: Inspector, sample: Sample, profile: str | None, settings: dict[str, Any], bits: int | None
) -> Scored:
    image = read_image(sample.image, bits)
    inspection = inspector.inspect(image, **settings)
    recognised = inspection.category
    if profile not in (None, recognised):  # the score must come from the given profile
        inspection = inspector.inspect(image, category=profile, **settings)
    height, width = image.shape[:2]
    geometry = Geometry.letterbox(height, width, len(inspection.square_map))
    mask = mask_inside(sample, (height, width), geometry.size)
    return Scored(
        path=sample.image,
        label=bool(sample.is_anomalous),
        score=inspection.score,
        anomaly_map=None if mask is None else inner_map(inspection, geometry),
        mask=mask,
        verdict=inspection.is_anomalous,
        threshold=inspection.threshold,
        category_right=recognised == sample.category if sample.category in inspector.categories else None,
        defect=sample.defect,
        seconds=inspection.seconds,
        limits=tuple(inspection.threshold_at(rate) for rate in ANNOUNCED),
    )


def _notes(
    inspector: Inspector, name: str, profile: str | None, scored: Sequence[Scored], values: dict[str, Any]
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
        notes.append(f"The model has no category {name!r}: each picture is judged as the one it resembles.")
    elif profile != name:
        notes.append(f"Judged with the profile {profile!r}.")
    if values["aupro"] is not None and values["aupimo"] is None and not all(labels):
        low, high = PIMO_RATES
        notes.append(
            f"AUPIMO needs more good pictures: fewer than {FEWEST_PIMO_PIXELS} pixels of all "
            f"{labels.count(False)} are between its false positive rates, {low:.3%} and {high:.2%}."
        )
    return notes
