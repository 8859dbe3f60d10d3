"""A category's profile from its normal pictures: Gaussian, covariances of what the network cannot explain,
calibration, rehearsal.

Whether maps are divided by how hard each place is suits some categories and spoils others. No real defect
may decide that, so artificial ones on held-out normal pictures do (`rehearse`); what they say is kept, as the
only forecast there is before defects are measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffad.checkpoint import Profile
from diffad.data import to_float
from diffad.diffusion import Schedule
from diffad.features import FeatureExtractor
from diffad.gaussian import PatchGaussian, PlaceGaussian, ResidualGaussian
from diffad.metrics import aupro, auroc
from diffad.rehearsal import REHEARSED_KINDS, add_defect
from diffad.scoring import (
    CALIBRATION_TIMESTEPS,
    TIMESTEPS,
    Calibration,
    RawMaps,
    denoise_all,
    evidence,
    feature_maps,
    fuse,
    image_score,
    moved_features,
    offset_of,
    threshold_for,
    x_start_error,
)
from diffad.unet import UNet

FITTED = 768  # training pictures that the covariance is fitted on, at most
REHEARSED = 24  # held-out pictures that carry artificial defects
_DEFECTS_EACH = 2
_ROWS = 4  # pictures a network call; a CPU is slower with more


@dataclass(frozen=True)
class Evidence:
    """Raw pixel maps [n, n_t, s, s] and fp16 feature residuals [n, n_t, c, g, g] of n pictures; inside: bool
    [n, s, s], where the picture is and not its padding; CPU.
    """

    pixel: Tensor
    residual: Tensor
    inside: Tensor

    def maps(self, covariance: ResidualGaussian, timesteps: tuple[int, ...]) -> RawMaps:
        """What lies in the padding is set to the picture's mean: no inspection looks there."""
        # picture by picture: the residuals of all in float32 would fill the memory
        size = self.pixel.shape[-1]
        feature = [
            feature_maps(one[None, :, None].float(), covariance, size, timesteps) for one in self.residual
        ]
        pixel, features = (_levelled(maps, self.inside) for maps in (self.pixel, torch.cat(feature)))
        return RawMaps(pixel, features, timesteps)


def _levelled(maps: Tensor, inside: Tensor) -> Tensor:
    """Maps [n, n_t, s, s] with each one's mean inside [n, s, s] everywhere else."""
    there = inside[:, None].to(maps)
    mean = (maps * there).sum(dim=(2, 3), keepdim=True) / there.sum(dim=(2, 3), keepdim=True)
    return torch.where(inside[:, None], maps, mean)


@torch.no_grad()
def fit_profile(
    network: UNet,
    extractor: FeatureExtractor,
    schedule: Schedule,
    used: Tensor,
    held: Tensor,
    inside: Tensor | None = None,
    *,
    kind: str = "patches",
    stride: int = 4,
    seed: int = 0,
) -> Profile:
    """The profile of one category. used: uint8 [n, 3, s, s], normal pictures that the network was trained on;
    held: held out of that, at least 2. inside: bool [n, s, s], where those are and not their padding (None:
    everywhere).

    The Gaussian is of all pictures. The covariances are of those used (networks of this kind do not overfit
    in the time they are given): of the feature residual at every timestep and its grid, of the errors by
    patches at one of them for each picture. The calibration is of the held-out ones.
    """
    network.eval()
    device = next(network.parameters()).device
    known = [extractor(to_float(batch, device)).half() for batch in used[:FITTED].split(_ROWS)]
    others = torch.cat([used[FITTED:], held]).split(_ROWS)
    gaussian = PlaceGaussian.fit(chain(known, (extractor(to_float(batch, device)) for batch in others)))

    errors: list[Tensor] = []

    def residuals(index: int, t: int) -> Iterator[Tensor]:
        for number, batch in enumerate(used[:FITTED].split(_ROWS)):
            x_start = to_float(batch, device)
            cell = x_start.shape[-1] // extractor.grid
            shown, x_t, times, prediction = denoise_all(schedule, network, x_start, (t,), seed, cell=cell)
            if number % len(TIMESTEPS) == index:  # patches are few numbers: a look at each is enough
                errors.append(x_start_error(schedule, prediction, shown, x_t, times).half().cpu())
            yield (extractor(shown) if offset_of(t, cell) else known[number].float()) - prediction.features

    covariance = ResidualGaussian.fit(
        [residuals(index, t) for index, t in enumerate(TIMESTEPS)], stages=extractor.stage_channels
    ).to(torch.device("cpu"))
    patches = PatchGaussian.fit(errors)
    on_device = patches.to(device)

    def look(pictures: Tensor, inside: Tensor, timesteps: tuple[int, ...]) -> Evidence:
        pixel, residual = [], []
        for picture in pictures.split(1):
            x_start = to_float(picture, device)
            features = moved_features(extractor, x_start, extractor(x_start), timesteps)
            maps, rest = evidence(
                schedule, network, x_start, features, timesteps,
                seed=seed, kind=kind, stride=stride, patches=on_device,
            )  # fmt: skip
            pixel.append(maps.cpu())
            residual.append(rest[:, :, 0].half().cpu())
        return Evidence(torch.cat(pixel), torch.cat(residual), inside)

    if inside is None:
        inside = torch.ones_like(held[:, 0], dtype=torch.bool)
    good = look(held, inside, CALIBRATION_TIMESTEPS)
    defects, masks, kinds, origins = artificial_defects(held[:REHEARSED], inside, used, seed)
    columns = [CALIBRATION_TIMESTEPS.index(t) for t in TIMESTEPS]
    best: dict[str, Any] = {"by_place": False, "good": len(held), "defects": 0}
    if kinds:
        usual = Evidence(
            good.pixel[:REHEARSED, columns], good.residual[:REHEARSED, columns], inside[:REHEARSED]
        )
        spoiled = look(defects, inside[origins], TIMESTEPS)
        rehearsed = usual.maps(covariance, TIMESTEPS), spoiled.maps(covariance, TIMESTEPS)
        either = [rehearse(*rehearsed, masks, kinds, by) | {"by_place": by} for by in (False, True)]
        best = max(either, key=lambda result: result["worth"])
    calibration = Calibration.fit(good.maps(covariance, CALIBRATION_TIMESTEPS), best["by_place"])
    return Profile(gaussian.to(torch.device("cpu")), covariance, patches, calibration, best)


def artificial_defects(
    held: Tensor, inside: Tensor, used: Tensor, seed: int
) -> tuple[Tensor, list[np.ndarray], list[str], list[int]]:
    """Two defects on copies of each held-out picture: uint8 [n, 3, s, s], masks bool [s, s] without what lies
    in the padding, kinds, and the pictures' numbers. Fewer where one hardly shows, none on pictures that are
    all but black.
    """
    rng = np.random.default_rng(seed)
    others = [picture.permute(1, 2, 0).numpy() for picture in used[:96]]  # enough to take patches from
    pictures, masks, kinds, origins = [], [], [], []
    for index in range(_DEFECTS_EACH * len(held)):
        kind = REHEARSED_KINDS[index % len(REHEARSED_KINDS)]
        origin = index // _DEFECTS_EACH
        spoiled, mask = add_defect(held[origin].permute(1, 2, 0).numpy(), others, kind, rng)
        mask = mask & inside[origin].numpy()
        if mask.sum() * 256**2 >= 12 * mask.size:  # smaller ones are nothing that anyone could find
            pictures.append(torch.from_numpy(spoiled).permute(2, 0, 1))
            masks.append(mask)
            kinds.append(kind)
            origins.append(origin)
    return torch.stack(pictures) if pictures else held[:0], masks, kinds, origins


def rehearse(
    good: RawMaps,
    spoiled: RawMaps,
    masks: list[np.ndarray],
    kinds: list[str],
    by_place: bool,
) -> dict:
    """How artificial defects are told from good pictures at α = 0.5 and one false alarm in 100.

    Keys: worth (mean of image AUROC and AUPRO, by which settings are chosen), image_auroc, aupro, found
    (share above the threshold), found_by_kind, good, defects (counts).
    """
    calibration = Calibration.fit(good, by_place)
    fused = [
        fuse(pixel.numpy(), feature.numpy(), 0.5)
        for maps in (calibration.standardise(good), calibration.standardise(spoiled))
        for pixel, feature in zip(maps.pixel, maps.feature)
    ]
    count, size = len(good.pixel), good.pixel.shape[-1]
    scores = np.array([image_score(anomaly_map, size) for anomaly_map in fused])
    labels = np.arange(len(fused)) >= count
    nothing = np.zeros((size, size), bool)
    image, pixel = auroc(scores, labels), aupro(fused, [nothing] * count + masks)
    found = scores[count:] > threshold_for(calibration.good_scores())
    return {
        "worth": (image + pixel) / 2,
        "image_auroc": image,
        "aupro": pixel,
        "found": float(found.mean()),
        "found_by_kind": {
            kind: float(found[[each == kind for each in kinds]].mean()) for kind in dict.fromkeys(kinds)
        },
        "good": count,
        "defects": len(masks),
    }


def in_words(category: str, rehearsal: Mapping[str, Any]) -> str:
    """What may be expected of a category, in a few honest sentences."""
    good = rehearsal["good"]
    few = f" With {good} held-out good pictures take the threshold as a guess." if good < 20 else ""
    odd = [f"{name} ({score:.1f})" for name, score in rehearsal.get("unusual", {}).items()]
    if odd:
        few += (
            f" Unusual among the held-out good pictures: {', '.join(odd)}. Look at them, and train again "
            "without those that are not good."
        )
    if not rehearsal["defects"]:
        return (
            f"{category}: its pictures are too dark for artificial defects to show, so that there is no "
            f"forecast: measure with `diffad evaluate`.{few}"
        )
    share = rehearsal["found"]
    judgement = (
        "good enough to try" if share >= 0.8
        else "it will miss subtle defects" if share >= 0.5
        else "it misses most of them: train longer, or with more pictures"
    )  # fmt: skip
    weak = [kind for kind, found in rehearsal["found_by_kind"].items() if found < 0.5]
    missed = f"; most often missed: {', '.join(weak)}" if weak else ""
    return (
        f"{category}: of {rehearsal['defects']} artificial defects {share:.0%} were found at 1 false alarm "
        f"in 100 (image AUROC {rehearsal['image_auroc']:.2f}, AUPRO {rehearsal['aupro']:.2f}), "
        f"{judgement}{missed}. Real defects may be harder: measure with `diffad evaluate`.{few}"
    )
