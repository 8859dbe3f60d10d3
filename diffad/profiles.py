"""A category's profile from its normal pictures: Gaussian, covariances of what the network cannot explain,
calibration, rehearsal.

Whether maps are divided by how hard each place is suits some categories and spoils others. No real defect
may decide that, so artificial ones on normal pictures do (`rehearse`); what they say is kept, as the
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
from diffad.gaussian import LeftOut, PatchGaussian, PlaceGaussian, ResidualGaussian
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
    pixel_score,
    place_level,
    placed,
    reduced_maps,
    threshold_for,
    x_start_error,
)
from diffad.unet import UNet

FITTED = 768  # pictures that the covariances are fitted on, at most
CALIBRATED = 192  # of them, whose scores are remembered
_LOOKED = 24  # of those, seen at all calibrated timesteps
REHEARSED = 24  # of those, that carry artificial defects
_DEFECTS_EACH = 2
_NAMED = 5  # unusual pictures, at most
_ROWS = 4  # pictures a network call; a CPU is slower with more


@dataclass(frozen=True)
class Evidence:
    """Raw pixel maps [n, n_t, s, s] and fp16 feature residuals [n, n_t, c, g, g] of n pictures. own: fp16
    [n, 3, c, g, g], the residuals by which each, or the good picture that it was made of, is part of the
    covariance. inside: bool [n, s, s], where the picture is and not its padding. All on the CPU.
    """

    pixel: Tensor
    residual: Tensor
    timesteps: tuple[int, ...]
    own: Tensor
    inside: Tensor

    def maps(self, left_out: LeftOut) -> RawMaps:
        """As if no picture were part of the covariance. What lies in the padding is set to the picture's
        mean: no inspection looks there.
        """
        feature = []
        for rows in torch.arange(len(self.pixel)).split(2 * _ROWS):  # all in float32 would fill the memory
            own = self.own[rows].float()

            def distance(residual: Tensor, grid: int, own: Tensor = own) -> Tensor:
                return left_out.squared_mahalanobis(residual, own[:, grid], grid)

            residual = self.residual[rows, :, None].float()
            feature.append(feature_maps(residual, distance, self.pixel.shape[-1], self.timesteps))
        pixel, features = (_levelled(maps, self.inside) for maps in (self.pixel, torch.cat(feature)))
        return RawMaps(pixel, features, self.timesteps)


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
    held: held out of that, at least 2. inside: bool [n, s, s], where those held out, then those used, are and
    not their padding (None: everywhere).

    The Gaussian and the covariances of feature residuals are of all pictures, at every timestep on its grid;
    that of the errors by patches of those used, each at one of the timesteps. The calibration is of the first
    192, measured as if they were not among those that the covariances are fitted on (`LeftOut`). That the
    network was trained on some is allowed for by raising their maps to those of the pictures held out.
    """
    network.eval()
    device = next(network.parameters()).device
    pictures = torch.cat([held, used])
    inside = torch.ones_like(pictures[:, 0], dtype=torch.bool) if inside is None else inside
    known = [extractor(to_float(batch, device)).half() for batch in pictures[:FITTED].split(_ROWS)]
    others = pictures[FITTED:].split(_ROWS)
    gaussian = PlaceGaussian.fit(chain(known, (extractor(to_float(batch, device)) for batch in others)))
    cell = pictures.shape[-1] // extractor.grid
    errors: list[Tensor] = []  # of pictures used
    # by timestep, of the first pictures: errors (or their pixel score) and residuals
    first: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in TIMESTEPS]

    def residuals(index: int, t: int) -> Iterator[Tensor]:
        for number, batch in enumerate(pictures[:FITTED].split(_ROWS)):
            begin, x_start = number * _ROWS, to_float(batch, device)
            shown, x_t, times, prediction = denoise_all(schedule, network, x_start, (t,), seed, cell=cell)
            features = extractor(shown) if offset_of(t, cell) else known[number].float()
            residual = features - prediction.features
            error = x_start_error(schedule, prediction, shown, x_t, times)
            # patches are few numbers: a look at each picture is enough
            turn = [i for i in range(len(batch)) if begin + i >= len(held) and (begin + i) % 3 == index]
            if turn:
                errors.append(error[turn].half().cpu())
            if begin < CALIBRATED:
                if kind != "patches":  # else the score waits for the errors' covariance
                    error = pixel_score(schedule, prediction, shown, x_t, times, kind, stride)
                for kept, values in zip(first[index], (error, residual)):
                    kept.append(values[: CALIBRATED - begin].half().cpu())
            yield residual

    covariance, left_out = (
        fitted.to(torch.device("cpu"))
        for fitted in ResidualGaussian.fit_own(
            [residuals(index, t) for index, t in enumerate(TIMESTEPS)], stages=extractor.stage_channels
        )
    )
    patches = PatchGaussian.fit(errors)
    on_device = patches.to(device)

    def look(pictures: Tensor, timesteps: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Raw pixel maps and fp16 residuals."""
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
        return torch.cat(pixel), torch.cat(residual)

    def scored(batch: Tensor) -> Tensor:
        raw = on_device.score(batch.to(device)).cpu() if kind == "patches" else batch.float()
        return raw[:, None]

    own = torch.stack([torch.cat(kept) for _, kept in first], dim=1)  # [n, 3, c, g, g]
    seen = [torch.cat([scored(batch) for batch in kept]) for kept, _ in first]
    pixel = torch.cat([placed(maps, (t,), cell) for t, maps in zip(TIMESTEPS, seen)], dim=1)
    good = Evidence(pixel, own, TIMESTEPS, own, inside[: len(own)]).maps(left_out)
    raised = _raised(good, len(held))
    good = _scaled(good, raised)
    rest = tuple(t for t in CALIBRATION_TIMESTEPS if t not in TIMESTEPS)
    looked = Evidence(*look(pictures[:_LOOKED], rest), rest, own[:_LOOKED], inside[:_LOOKED]).maps(left_out)
    looked = _together(_first(good, _LOOKED), _scaled(looked, raised))
    reduced = reduced_maps(good)
    calibration = Calibration.fit(looked, False, reduced)
    choice: dict[str, Any] = {"by_place": False, "defects": 0}
    defects, masks, kinds, origins = artificial_defects(pictures[:REHEARSED], inside, used, seed)
    if kinds:
        spoiled = Evidence(*look(defects, TIMESTEPS), TIMESTEPS, own[origins], inside[origins]).maps(left_out)
        spoiled = _scaled(spoiled, raised[origins])
        # nor is a picture part of the level that it is judged by
        _, levels = place_level(torch.stack([reduced.pixel, reduced.feature], dim=1))
        either = []
        for by_place in (False, True):
            each = Calibration.fit(looked, True, reduced) if by_place else calibration
            standard = (
                each.standardise(maps, levels[rows] if by_place else None)
                for maps, rows in ((_first(good, REHEARSED), slice(REHEARSED)), (spoiled, origins))
            )
            judged = rehearse(*standard, masks, kinds, threshold_for(each.good_scores()))
            either.append((judged | {"by_place": by_place}, each))
        choice, calibration = max(either, key=lambda judged: judged[0]["worth"])
    choice = choice | {"good": len(own)}
    return Profile(gaussian.to(torch.device("cpu")), covariance, patches, calibration, choice)


def _raised(good: RawMaps, held: int) -> Tensor:
    """How much higher a typical picture lies that the network was not trained on than one that it was, the
    factor by which the maps of the latter are raised: [n, 2 (pixel, feature)], 1 for the first `held` and at
    least 1.
    """
    factors = torch.ones(len(good.pixel), 2)
    if held < len(good.pixel):
        for branch, maps in enumerate((good.pixel, good.feature)):
            means = maps.mean(dim=(2, 3))  # [n, n_t]
            typical = means[:held].quantile(0.5, dim=0) / means[held:].quantile(0.5, dim=0)
            factors[held:, branch] = typical.mean().clamp(min=1)
    return factors


def _scaled(maps: RawMaps, factors: Tensor) -> RawMaps:
    pixel, feature = factors[: len(maps.pixel), :, None, None, None].unbind(dim=1)
    return RawMaps(maps.pixel * pixel, maps.feature * feature, maps.timesteps)


def _first(maps: RawMaps, count: int) -> RawMaps:
    return RawMaps(maps.pixel[:count], maps.feature[:count], maps.timesteps)


def _together(one: RawMaps, two: RawMaps) -> RawMaps:
    """Of the same pictures at different timesteps: all, rising."""
    timesteps = one.timesteps + two.timesteps
    order = sorted(range(len(timesteps)), key=timesteps.__getitem__)
    pixel, feature = (
        torch.cat(both, dim=1)[:, order] for both in ((one.pixel, two.pixel), (one.feature, two.feature))
    )
    return RawMaps(pixel, feature, tuple(sorted(timesteps)))


def artificial_defects(
    pictures: Tensor, inside: Tensor, used: Tensor, seed: int
) -> tuple[Tensor, list[np.ndarray], list[str], list[int]]:
    """Two defects on copies of each picture: uint8 [n, 3, s, s], masks bool [s, s] without what lies
    in the padding, kinds, and the pictures' numbers. Fewer where one hardly shows, none on pictures that are
    all but black.
    """
    rng = np.random.default_rng(seed)
    others = [picture.permute(1, 2, 0).numpy() for picture in used[:96]]  # enough to take patches from
    spoiled, masks, kinds, origins = [], [], [], []
    for index in range(_DEFECTS_EACH * len(pictures)):
        kind = REHEARSED_KINDS[index % len(REHEARSED_KINDS)]
        origin = index // _DEFECTS_EACH
        picture, mask = add_defect(pictures[origin].permute(1, 2, 0).numpy(), others, kind, rng)
        mask = mask & inside[origin].numpy()
        if mask.sum() * 256**2 >= 12 * mask.size:  # smaller ones are nothing that anyone could find
            spoiled.append(torch.from_numpy(picture).permute(2, 0, 1))
            masks.append(mask)
            kinds.append(kind)
            origins.append(origin)
    return torch.stack(spoiled) if spoiled else pictures[:0], masks, kinds, origins


def rehearse(
    good: RawMaps, spoiled: RawMaps, masks: list[np.ndarray], kinds: list[str], threshold: float
) -> dict:
    """How artificial defects are told from good pictures at α = 0.5, from standardised maps.

    Keys: worth (mean of image AUROC and AUPRO, by which settings are chosen), image_auroc, aupro, found
    (share above the threshold), found_by_kind, good, defects (counts).
    """
    fused = [
        fuse(pixel.numpy(), feature.numpy(), 0.5)
        for maps in (good, spoiled)
        for pixel, feature in zip(maps.pixel, maps.feature)
    ]
    count, size = len(good.pixel), good.pixel.shape[-1]
    scores = np.array([image_score(anomaly_map, size) for anomaly_map in fused])
    labels = np.arange(len(fused)) >= count
    nothing = np.zeros((size, size), bool)
    image, pixel = auroc(scores, labels), aupro(fused, [nothing] * count + masks)
    found = scores[count:] > threshold
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
    few = f" With {good} good pictures take the threshold as a guess." if good < 20 else ""
    odd = sorted(rehearsal.get("unusual", {}).items(), key=lambda item: -item[1])
    odd = [f"{name} ({score:.1f})" for name, score in odd[:_NAMED]]
    if odd:
        few += (
            f" Unusual among the good pictures: {', '.join(odd)}. Look at them, and train again "
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
