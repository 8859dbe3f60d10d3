"""Fit a category's profile from its good pictures: Gaussians, calibration, forecast.

Dividing maps by how strongly good parts vary at each place helps some categories and harms others. Real
defects must not influence that choice, so artificial defects on good pictures do (`forecast`). The result is
kept as a forecast until real defects are measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffad.method.calibration import CALIBRATION_TIMESTEPS, Calibration, coarse_maps, place_level
from diffad.method.image_score import law_of_changed
from diffad.method.place_gaussian import PlaceGaussian
from diffad.method.profile import Profile
from diffad.method.scoring import TIMESTEPS, RawMaps
from diffad.pictures.geometry import to_float
from diffad.pictures.quality import measured as measured_quality
from diffad.pictures.quality import ranges
from diffad.teaching.forecast import artificial_defects, fused_maps, judged_artificial_defects
from diffad.teaching.left_out import LeftOutMaps, cell_step, left_out_maps
from diffad.teaching.residuals import (
    PERCEPTUAL_BLOCK,
    ROWS,
    Observer,
    Sums,
    block,
    changed_copies,
    copies_of,
    limits,
)

LOOKED = 24  # calibrated pictures that are measured at all calibrated timesteps
SPOILED = 24  # of these, the pictures that artificial defects are put on


@dataclass(frozen=True)
class Fitted:
    """A category's profile, and the sums from which it can be fitted again with further pictures."""

    profile: Profile
    sums: Sums


@torch.no_grad()
def fit(
    observer: Observer, used: Tensor, held: Tensor, inside: Tensor | None = None, *, plain: bool = False
) -> Fitted:
    """Fit the profile of one category.

    The Gaussians are fitted on all pictures and on changed copies of each (`nuisances.random_copy`), at each
    timestep's grid, so that changes of light, noise, compression and position do not count as defects. The
    first 192 pictures are then calibrated, each with statistics that exclude it and its copies
    (`LeftOutMaps`). The maps of pictures that the network was trained on are raised to the level of those
    held out. Above 256 px fewer pictures are fitted and calibrated (`limits`), to bound time and memory.

    Args:
        observer: the networks.
        used: pictures that the network was trained on, uint8 [n, 3, s, s].
        held: pictures held out of the training, at least 2.
        inside: where the pictures are without padding, those held out first, bool [n, s, s]; None means
            everywhere.
        plain: also fit a Gaussian of the features themselves. It serves categories that the network was not
            trained on, where its predictions reproduce some defects.
    """
    observer.network.eval()
    extractor = observer.extractor
    pictures = torch.cat([held, used])
    inside = torch.ones_like(pictures[:, 0], dtype=torch.bool) if inside is None else inside
    grid = pictures.shape[-1] // extractor.cell
    fitted, calibrated = limits(grid)
    copies = [changed_copies(pictures[:fitted], number) for number in range(copies_of(len(pictures)))]

    observed = observer.observe(pictures[:fitted], copies, calibrated)
    others = (extractor(to_float(batch, observer.device)) for batch in pictures[fitted:].split(ROWS))
    gaussian = PlaceGaussian.fit(chain(observed.features, others), block=block(grid, PERCEPTUAL_BLOCK))
    sums = observed.moments(extractor.stage_channels, plain)
    gaussians, maps = left_out_maps(sums, observer, observed, pictures, copies, inside)
    calibration, forecast = _calibrated(maps, len(held))
    quality = ranges(
        measured_quality(picture.permute(1, 2, 0).numpy(), where.numpy())
        for some in (pictures, *copies)
        for picture, where in zip(some[:fitted], inside)
    )
    profile = Profile(
        gaussian.to(torch.device("cpu")), gaussians.residual, gaussians.perceptual, calibration, forecast,
        quality=quality, size=pictures.shape[-1], plain=gaussians.plain,
    )  # fmt: skip
    return Fitted(profile, sums)


@torch.no_grad()
def fit_with(observer: Observer, before: Fitted, picture: Tensor, inside: Tensor) -> Fitted:
    """Fit a profile again with one more good picture, which takes a few calls of the network.

    Its residuals and those of its changed copies join the sums, and its leave-one-out map joins those by
    which scores are calibrated. The remembered maps of the other pictures, and how they are brought to σ,
    stay as they are: one picture among many hardly moves them.

    Args:
        observer: the networks that the profile was fitted with.
        before: what to add to.
        picture: uint8 [3, s, s], at the profile's size and pose.
        inside: where it is without padding, bool [s, s].
    """
    observer.network.eval()
    pictures, where = picture[None], inside[None]
    profile, calibration = before.profile, before.profile.calibration
    known = len(calibration.good_maps)
    copies = [changed_copies(pictures, number) for number in range(copies_of(known + 1))]
    observed = observer.observe(pictures, copies, 1)
    sums = before.sums.plus(observed)
    gaussians, maps = left_out_maps(sums, observer, observed, pictures, copies, where)
    return Fitted(
        replace(
            profile, residual=gaussians.residual, perceptual=gaussians.perceptual, plain=gaussians.plain,
            calibration=calibration.plus(coarse_maps(maps.of_copy(0))),
            forecast={**profile.forecast, "good": known + 1},
        ),
        sums,
    )  # fmt: skip


def _calibrated(maps: LeftOutMaps, held: int) -> tuple[Calibration, dict[str, Any]]:
    """The calibration, by place or not, that finds more artificial defects; and its forecast."""
    good = _GoodMaps.measured(maps, held)
    calibration = good.calibration(by_place=False)
    forecast: dict[str, Any] = {"by_place": False, "defects": 0}
    defects, masks, kinds, origins = artificial_defects(
        maps.pictures[:SPOILED], maps.inside, maps.pictures[held:]
    )
    if kinds:
        step = cell_step(maps.pictures.shape[-1])
        masks = [mask[::step, ::step] for mask in masks]
        spoiled = maps.spoiled(defects, origins).scaled(good.raised[origins])
        either = []
        for by_place in (False, True):
            candidate = good.calibration(by_place=True) if by_place else calibration
            levels = good.levels if by_place else None
            judged = judged_artificial_defects(
                candidate.standardise(good.maps.first(SPOILED), None if levels is None else levels[:SPOILED]),
                candidate.standardise(spoiled, None if levels is None else levels[origins]),
                masks,
                kinds,
                candidate.scorer(),
            )
            either.append((judged | {"by_place": by_place}, candidate))
        forecast, calibration = max(either, key=lambda pair: pair[0]["worth"])
    return calibration, forecast | {"good": len(good.maps.pixel)}


@dataclass(frozen=True)
class _GoodMaps:
    """Raw maps of the calibrated pictures, from which calibrations are made.

    Attributes:
        maps: at TIMESTEPS.
        looked: those of the first pictures, at all calibrated timesteps.
        coarse: over coarse cells.
        changed: the same for each set of changed copies.
        levels: `place_level` for each picture, computed from the others.
        raised: factors [n, 2] that all these maps were multiplied by (see `_raised`).
    """

    maps: RawMaps
    looked: RawMaps
    coarse: RawMaps
    changed: Sequence[RawMaps]
    levels: Tensor
    raised: Tensor

    @staticmethod
    def measured(maps: LeftOutMaps, held: int) -> _GoodMaps:
        """Measure the maps. held: the number of pictures, from the first, that were held out."""
        good = maps.of_copy(0)
        raised = _raised(good, held)
        good = good.scaled(raised)
        rest = tuple(t for t in CALIBRATION_TIMESTEPS if t not in TIMESTEPS)
        some = maps.pictures[: min(LOOKED, len(good.pixel))]
        looked = maps.look(some, rest, range(len(some))).scaled(raised)
        coarse = coarse_maps(good)
        changed = [
            coarse_maps(maps.of_copy(number).scaled(raised)) for number in range(1, 1 + len(maps.copies))
        ]
        # The level for each picture excludes that picture.
        _, levels = place_level(torch.stack([coarse.pixel, coarse.feature], dim=1))
        return _GoodMaps(good, good.first(LOOKED).joined(looked), coarse, changed, levels, raised)

    def calibration(self, by_place: bool) -> Calibration:
        """Fit a calibration. by_place: divide maps by the level of good maps at each place."""
        fit = Calibration.fit(self.looked, by_place, self.coarse)
        score, cells = fit.scorer(), self.coarse.pixel.shape[-1]
        standard = [fit.standardise(maps, self.levels if by_place else None) for maps in self.changed]
        scores = [score(fused, cells) for maps in standard for fused in fused_maps(maps)]
        return replace(fit, changed=law_of_changed(score.good, np.array(scores)))


def _raised(good: RawMaps, held: int) -> Tensor:
    """Factors [n, 2 (pixel, feature)] that raise the maps of trained pictures to the level of unseen ones.

    They are 1 for the first `held` pictures. For the others they are the ratio of a typical picture held out
    to a typical one of theirs, at least 1.
    """
    factors = torch.ones(len(good.pixel), 2)
    if held < len(good.pixel):
        for branch, maps in enumerate((good.pixel, good.feature)):
            means = maps.mean(dim=(2, 3))  # [n, n_t]
            typical = means[:held].quantile(0.5, dim=0) / means[held:].quantile(0.5, dim=0)
            factors[held:, branch] = typical.mean().clamp(min=1)
    return factors
