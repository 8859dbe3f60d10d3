"""Repair of one picture: rounds of gradient denoising where its map is high, until the score is normal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Protocol, TypedDict

import cv2
import numpy as np
import torch
from torch import Tensor

from diffad.inspection import Inspection, RepairStep
from diffad.method.diffusion import Schedule
from diffad.method.features import FeatureExtractor
from diffad.method.image_score import threshold_for
from diffad.method.profile import Profile
from diffad.method.repair import GradientStep, gradient_denoising, repair_weight, weighed_repair
from diffad.method.repair_options import RepairOptions
from diffad.method.tiling import Tile
from diffad.method.unet import UNet
from diffad.pictures.arrays import F32, U8, Bools
from diffad.pictures.geometry import resize_maps

_REPAIRED_TILES, _ROUNDS = 4, 5  # maximum number of rounds for a tiled picture and for a whole one
_SCORED_EVERY = 5  # steps
_ORDINARY = 0.1  # further rounds follow until this share of good parts has a higher score
# Places are repaired from this share of the threshold, and of the defect's peak, since around a strong defect
# the map is high where the part is sound.
_REPAIRED_FROM, _REPAIRED_SHARE = 0.6, 0.3


class _Numbers(TypedDict):
    steps: int
    denoise_every: int
    step_size: float
    timestep: int


class Model(Protocol):
    """The part of `Inspector` that a repair uses."""

    schedule: Schedule
    network: UNet
    extractor: FeatureExtractor
    profiles: Mapping[str, Profile]
    device: torch.device

    def fused_square(self, x: Tensor, first: Inspection) -> F32:
        """See `Inspector.fused_square`."""


class Repair:
    """Iterates over the steps of a repair; step 0 is the unchanged picture.

    A weighed repair ends as soon as the score is at most the median of good parts. While fewer than 1 in 10
    good parts have a higher score, another round of `steps` follows where the map is still high, up to five
    rounds. Each round first fills the place from its surroundings, unless the previous round did not lower
    the score: then it uses gradient steps only, and if the score is not lowered either, the repair ends. The
    last step has the best picture that was scored, so the result is never worse than the original.

    In a tiled picture, the tiles around the highest places of the map are repaired in one round each: all
    anomalous places, at most four (only the highest one with the method "paper").
    """

    def __init__(self, model: Model, first: Inspection, options: RepairOptions) -> None:
        """first: the inspection of the unchanged picture, whose settings apply to the repair."""
        self._model, self._first, self._options = model, first, options
        self._tiling = first._tiling
        self._weighed, self._tiled = options.method == "weighed", first.tile is not None
        rounds = 1 if not self._weighed else _REPAIRED_TILES if self._tiled else _ROUNDS
        self._most, self._total, self._index, self._scored_at = options.steps * rounds, options.steps, 0, 0
        self._usual = float(np.median(first.good_scores))
        # in a tiled picture, only anomalous places get further rounds
        ordinary = math.inf if self._tiled else first.threshold_at(_ORDINARY)
        self._enough = max(1.0, min(first.threshold, ordinary))
        self._picture, self._fused, self._score = first.image, first._fused_map, first.score
        self._repaired = np.zeros(self._fused.shape, dtype=bool)
        self._redraws = True  # whether a round begins by filling its place
        self._tile, self._weight = _place_to_repair(first, self._fused, self._repaired, self._weighed)

    def __iter__(self) -> Iterator[RepairStep]:
        first = self._first
        done = self._ends() or (self._weighed and self._weight is None)
        walk, distance = self._walk()
        yield RepairStep(
            0, self._total, self._picture, self._score, distance, first.anomaly_map, done, first.notes
        )
        while not done:
            for step in self._round(walk):
                yield step
                done = step.done
            if not done:
                walk, _ = self._walk()

    def _ends(self) -> bool:
        """Whether the score is low enough to end the repair."""
        stops = self._options.stop_at_threshold and self._score <= self._first.threshold
        return stops or (self._weighed and self._score <= self._usual)

    def _walk(self) -> tuple[Iterator[GradientStep], float]:
        """The steps of a round, and the Mahalanobis distance before the first one."""
        model, options = self._model, self._options
        profile = model.profiles[self._first.category]
        assert options.step_size is not None and options.timestep is not None  # set on creation
        numbers: _Numbers = {
            "steps": options.steps, "denoise_every": options.denoise_every,
            "step_size": options.step_size, "timestep": options.timestep,
        }  # fmt: skip
        self._x_start = x_start = self._square(self._picture)
        if self._weight is None:
            with torch.no_grad():
                distance = float(profile.gaussian.squared_mahalanobis(model.extractor(x_start)).mean())
            return gradient_denoising(
                model.schedule, model.network, model.extractor, profile.gaussian, x_start, **numbers
            ), distance
        walk = weighed_repair(
            model.schedule, model.network, model.extractor, profile.residual, x_start,
            self._weight.to(model.device), filling=self._redraws, seed=self._first.seed + self._index,
            **numbers,
        )  # fmt: skip
        return walk, next(walk).mahalanobis

    def _round(self, walk: Iterator[GradientStep]) -> Iterator[RepairStep]:
        tile, steps = self._tile, self._options.steps
        before, untouched = self._picture[tile.box], self._fused[tile.cells]
        share = resize_maps(tile.weight, before.shape[:2])[..., None]
        best = self._score, self._picture, self._fused
        for step in walk:
            self._index += 1
            anomaly_map, last = None, step.index == steps
            image = self._changed(step.x, before, share)
            # scoring costs as much as a step, and between denoising steps the gradient's grain distorts it
            if last or (step.denoised and self._index - self._scored_at >= _SCORED_EVERY):
                self._rate(image, untouched)
                if self._score < best[0]:
                    best = self._score, image, self._fused
                if last and self._weighed:
                    self._score, image, self._fused = best
                anomaly_map = resize_maps(self._fused, self._picture.shape[:2])
            done = self._index == self._most or self._ends()
            if last and not done:
                done = not self._goes_on_from(image)
            yield RepairStep(
                self._index, self._total, image, self._score, step.mahalanobis, anomaly_map, done,
                self._first.notes,
            )  # fmt: skip
            if done:
                return

    def _goes_on_from(self, image: U8) -> bool:
        """Prepare the next round on this picture; False if there is none."""
        lowered = image is not self._picture
        if self._tiled:  # a tile has only one round
            self._repaired[self._tile.cells] |= self._tile.weight > 0.5
        self._picture = image
        self._tile, self._weight = _place_to_repair(
            self._first, self._fused, self._repaired, self._weighed, above=self._enough
        )
        goes_on = self._weight is not None and (lowered or self._redraws or self._tiled)
        self._redraws = self._tiled or lowered
        self._total += self._options.steps if goes_on else 0
        return goes_on

    def _changed(self, x: Tensor, before: U8, share: F32) -> U8:
        """Apply the tile's change at the picture's resolution. before: the tile's pixels so far."""
        change = self._tiling.to_pixels((x - self._x_start)[0].cpu(), self._tile)
        changed = before + 127.5 * share * change.permute(1, 2, 0).numpy()
        image = self._picture.copy()
        image[self._tile.box] = np.clip(np.rint(changed), 0, 255).astype(np.uint8)
        return image

    def _rate(self, image: U8, untouched: F32) -> None:
        """Update map and score for a picture. untouched: the map of the tile's cells before the round.

        The final picture is scored rather than x, since rounding and resampling change the score, too.
        """
        self._scored_at = self._index
        tile = self._tile
        square = torch.from_numpy(self._model.fused_square(self._square(image), self._first))
        here = self._tiling.to_cells(square, tile).numpy()
        if self._first._ignored is not None:
            here *= 1 - self._first._ignored[tile.cells]
        self._fused = self._fused.copy()
        self._fused[tile.cells] = untouched + tile.weight * (here - untouched)
        self._score = self._tiling.score(self._fused, self._first.scorer)

    def _square(self, picture: U8) -> Tensor:
        return self._tiling.square(picture, self._tile)[None].to(self._model.device)


def _share_of_unchanged(first: Inspection) -> float:
    """Ratio of the threshold for unchanged good parts alone to the threshold with changed ones.

    The tolerance for changed parts says nothing about how strong this part's defects are.
    """
    alone, both = threshold_for(first.good_scores), first.scorer.threshold()
    return alone / both if 0 < alone < both else 1.0


def _place_to_repair(
    first: Inspection, fused: F32, repaired: Bools, weighed: bool, above: float = -math.inf
) -> tuple[Tile, Tensor | None]:
    """Choose where to repair.

    Args:
        first: inspection of the unchanged picture.
        fused: current fused map.
        repaired: cells that are not to be repaired again.
        weighed: whether only anomalous places are repaired.
        above: repair only if the score is above this.

    Returns:
        The tile around the highest place (the whole picture if it was not tiled), and the weight of its
        anomalous places, [1, 1, size, size]; None if there is nothing to repair, or if not `weighed`.
    """
    tiling = first._tiling
    left = np.where(repaired, np.float32(0), fused)
    row, column = np.unravel_index(left.argmax(), left.shape)
    tile = tiling.tiles[0] if first.tile is None else tiling.around(int(row), int(column))
    # the lower limit prevents repairing everything if the threshold is set below the scores of good parts
    high = max(first.threshold * _share_of_unchanged(first), 1.0)
    if not weighed or tiling.score(left, first.scorer) <= above:
        return tile, None
    square = tiling.from_cells(left[tile.cells], tile).numpy()
    count, labels = cv2.connectedComponents((square > _REPAIRED_FROM * high).astype(np.uint8))
    peaks = np.array([0.0, *(square[labels == label].max() for label in range(1, count))])
    low = np.maximum(_REPAIRED_FROM * high, _REPAIRED_SHARE * peaks[labels]).astype(np.float32)
    weight = repair_weight(torch.from_numpy(square), torch.from_numpy(low))
    return tile, weight if weight.any() else None
