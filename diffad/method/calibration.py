"""Calibration: statistics of good pictures' maps, which standardise raw maps to σ and yield image scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from diffad.method.fusion import PIXEL_TRUST, PLAIN_WEIGHT, weighed
from diffad.method.image_score import (
    CELLS,
    CHANGED_RATE,
    EULER,
    EXCESS_FROM,
    EXCESS_KURTOSIS,
    LEVEL,
    PEAK,
    SKEWNESS,
    ImageScore,
)
from diffad.method.scoring import TIMESTEPS, RawMaps, grid_of, smooth

# denser where the scores change quickly; no interpolation across two grids (`grid_of`)
CALIBRATION_TIMESTEPS = (0, 20, 50, 99, 100, 200, 299, 300, 400, 600, 800, 999)
_ZERO = 48  # the code of 0 σ
_STEPS = 16  # codes per unit of asinh σ
_COARSE = 64  # cells per side of good pictures' maps while statistics are fitted
_TAIL = 3.09  # σ; one value in a thousand of a normal distribution is higher
_LEVEL_GRID = 32  # cells per side of `Calibration.level`


@dataclass(frozen=True)
class Calibration:
    """Distribution of the maps of a category's good pictures.

    Standardised maps are in σ of the good pictures' maps: 0 is the average place of a good picture, for every
    timestep and branch. Tensors are float32 unless stated otherwise.

    Attributes:
        timesteps: the n calibrated t, rising; other t are interpolated.
        level: mean of good maps at each place relative to their overall mean, [2 (pixel, feature), g, g]; raw
            maps are divided by it (`place_level`).
        moments: of the divided maps, [2, 2 (mean, σ), n]. σ is fitted to the tail, so that one place in a
            thousand of good pictures is above 3.09 σ as in a normal distribution; otherwise the branch with
            the heavier tail would dominate.
        remembered: the m timesteps of `good_maps`; another t uses the nearest one on its grid.
        good_maps: standardised maps of good pictures, uint8 [pictures, 2, m, CELLS, CELLS] (`to_codes`), from
            which their image scores at any α and timesteps are computed without the network.
        plain_moments: mean and σ of the maps of the plain features, [2]; None without plain features.
        good_plain: as `good_maps`, of the plain features, uint8 [pictures, CELLS, CELLS]; None likewise.
        changed: distribution of the scores of changed copies of good pictures (`law_of_changed`); None if
            unknown.
    """

    timesteps: tuple[int, ...]
    level: Tensor
    moments: Tensor
    remembered: tuple[int, ...]
    good_maps: Tensor
    plain_moments: Tensor | None = None
    good_plain: Tensor | None = None
    changed: tuple[float, float] | None = None

    @staticmethod
    def fit(maps: RawMaps, by_place: bool = False, coarse: RawMaps | None = None) -> Calibration:
        """Fit the statistics.

        Args:
            maps: raw maps [b, n, size, size] of b ≥ 1 good pictures at the timesteps to calibrate.
            by_place: divide by `place_level`; otherwise the level is 1 everywhere.
            coarse: `coarse_maps` of these pictures followed by more, at some of the timesteps, from which
                level and remembered maps are computed; None uses `maps`.
        """
        coarse = coarse_maps(maps) if coarse is None else coarse
        both = torch.stack([maps.pixel, maps.feature], dim=1).float()  # [b, 2, n, size, size]
        small = torch.stack([coarse.pixel, coarse.feature], dim=1).float()  # [more, 2, m, cells, cells]
        level = torch.ones(2, 1, 1)
        if by_place:
            level, without = place_level(small)
            both = both / _to_size(without[: len(both)], both.shape[-1])[:, :, None]
            small = small / _to_size(without, small.shape[-1])[:, :, None]
        mean = both.double().mean(dim=(0, 3, 4))
        std = _tail_deviation(both.permute(1, 2, 0, 3, 4).flatten(2), mean)  # [2, n]
        moments = torch.stack([mean, std], dim=1).float()  # [2, 2, n]
        at = [maps.timesteps.index(t) for t in coarse.timesteps]
        standard = (small - moments[None, :, 0, at, None, None]) / moments[None, :, 1, at, None, None]
        plain_moments = good_plain = None
        if coarse.plain is not None:
            wide = coarse.plain if maps.plain is None else maps.plain
            middle = wide.double().mean()
            plain_moments = torch.stack([middle, _tail_deviation(wide.flatten(), middle)]).float().cpu()
            good_plain = to_codes(_to_cells((coarse.plain - plain_moments[0]) / plain_moments[1]))
        return Calibration(
            maps.timesteps, level.cpu(), moments.cpu(), coarse.timesteps, to_codes(_to_cells(standard)),
            plain_moments, good_plain,
        )  # fmt: skip

    def _interpolation(self, timesteps: Sequence[int]) -> Tensor:
        """Weights [len(timesteps), n] of linear interpolation in t, constant outside the calibrated range."""
        known = torch.tensor(self.timesteps, dtype=torch.float32)
        t = torch.tensor(timesteps, dtype=torch.float32).clamp(known[0], known[-1])
        right = torch.searchsorted(known, t).clamp(1, max(1, len(known) - 1))
        if len(known) == 1:
            return torch.ones(len(t), 1)
        fraction = (t - known[right - 1]) / (known[right] - known[right - 1])
        weights = torch.zeros(len(t), len(known))
        rows = torch.arange(len(t))
        weights[rows, right - 1], weights[rows, right] = 1 - fraction, fraction
        return weights

    def standardise(self, maps: RawMaps, levels: Tensor | None = None) -> RawMaps:
        """(s / level − mean) / σ per timestep and branch, in the shapes given.

        Args:
            maps: raw maps.
            levels: a level for each picture instead of `level`, [b, 2, g, g].
        """
        weights = self._interpolation(maps.timesteps)
        mean, std = (self.moments @ weights.T).unbind(dim=1)  # [2, n_t] each
        mean, std = (value.to(maps.pixel.device)[:, :, None, None] for value in (mean, std))
        levels = self.level[None] if levels is None else levels
        levels = _to_size(levels.to(maps.pixel.device), maps.pixel.shape[-1])  # [b or 1, 2, size, size]
        pixel, feature = maps.pixel / levels[:, :1], maps.feature / levels[:, 1:]
        plain = maps.plain
        if plain is not None and self.plain_moments is not None:
            plain = (plain - self.plain_moments[0].item()) / self.plain_moments[1].item()
        return RawMaps((pixel - mean[0]) / std[0], (feature - mean[1]) / std[1], maps.timesteps, plain)

    def scorer(self, alpha: float = 0.5, timesteps: Sequence[int] = TIMESTEPS) -> ImageScore:
        """The image score of maps fused at this α and these timesteps."""
        codes = self.good_maps[:, :, self.nearest(timesteps)]
        pixel, feature = from_codes(codes).mean(dim=2).unbind(dim=1)
        plain = None if self.good_plain is None else from_codes(self.good_plain).numpy()
        fused = weighed(pixel.numpy(), feature.numpy(), alpha, plain)
        return ImageScore.of(fused.reshape(len(fused), -1), self.changed)

    def plus(self, coarse: RawMaps) -> Calibration:
        """With the `coarse_maps` of further good pictures, at the remembered timesteps.

        They are standardised as before.
        """
        maps = self.standardise(coarse)
        codes = to_codes(_to_cells(torch.stack([maps.pixel, maps.feature], dim=1)))
        plain = self.good_plain
        if plain is not None and maps.plain is not None:
            plain = torch.cat([plain, to_codes(_to_cells(maps.plain))])
        return replace(self, good_maps=torch.cat([self.good_maps, codes]), good_plain=plain)

    def ignoring(self, share: Tensor) -> Calibration:
        """The calibration of maps that are multiplied by 1 − share at each place, float32 [s, s] in [0, 1].

        A place that is ignored has 0 σ in every map, good ones included, so that thresholds fit the rest.
        """
        kept = 1 - F.adaptive_avg_pool2d(share[None, None], CELLS)[0, 0]
        plain = None if self.good_plain is None else to_codes(from_codes(self.good_plain) * kept)
        return replace(self, good_maps=to_codes(from_codes(self.good_maps) * kept), good_plain=plain)

    def nearest(self, timesteps: Sequence[int]) -> list[int]:
        """Index of the `remembered` timestep that is used for each of these.

        Averaging several t of one grid then repeats a map, which makes good scores slightly too high: maps of
        neighbouring t are similar but not equal.
        """
        return [
            min(
                range(len(self.remembered)),
                key=lambda i: (abs(grid_of(self.remembered[i]) - grid_of(t)), abs(self.remembered[i] - t)),
            )
            for t in timesteps
        ]


def _tail_deviation(values: Tensor, mean: Tensor) -> Tensor:
    """σ of values [..., n] such that one in a thousand is above mean + 3.09 σ; float64 [...]."""
    above = max(1, values.shape[-1] // 1000)
    return ((values.topk(above, dim=-1).values[..., -1].double() - mean) / _TAIL).clamp(min=1e-8)


def to_codes(maps: Tensor) -> Tensor:
    """Encode maps in σ as uint8 of the same shape, in steps of 0.06 σ near 0 and of 6 % at high values."""
    return (maps.float().asinh() * _STEPS + _ZERO).round().clamp(0, 255).to(torch.uint8).cpu()


def from_codes(codes: Tensor) -> Tensor:
    """Inverse of `to_codes`, float32; encoding the result again gives the same codes."""
    return ((codes.float() - _ZERO) / _STEPS).sinh()


def _to_cells(maps: Tensor) -> Tensor:
    """Average square maps [..., s, s] over CELLS × CELLS cells; smaller maps are repeated."""
    flat = F.adaptive_avg_pool2d(maps.reshape(-1, 1, *maps.shape[-2:]), CELLS)
    return flat.reshape(*maps.shape[:-2], CELLS, CELLS)


def coarse_maps(maps: RawMaps) -> RawMaps:
    """Average maps over 64 × 64 cells; smaller maps keep their size."""
    cells = min(_COARSE, maps.pixel.shape[-1])
    pixel, feature = (F.adaptive_avg_pool2d(branch, cells) for branch in (maps.pixel, maps.feature))
    plain = None if maps.plain is None else F.adaptive_avg_pool2d(maps.plain, cells)
    return RawMaps(pixel, feature, maps.timesteps, plain)


def place_level(both: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of good pictures' maps at each place, relative to their overall mean.

    Edges and lettering of a part in a fixed position have high values in every good picture and would mask
    defects elsewhere; a part in varying positions has no such places. The relative mean is therefore raised
    to the power √ICC, where ICC is the intraclass correlation of log maps, i.e. the share of their variance
    explained by the place: 1 if all good pictures are high at the same places, 0 (no correction) if not.

    Args:
        both: raw maps of both branches, [b, 2, n, size, size].

    Returns:
        The level [2, g, g], and for each picture the level computed from the other pictures, [b, 2, g, g],
        which keeps the calibration unbiased on its own pictures.
    """
    overall = both.mean(dim=(0, 3, 4), keepdim=True).clamp(min=1e-12)
    relative = (both / overall).mean(dim=2)  # [b, 2, size, size]
    maps = F.adaptive_avg_pool2d(relative, min(_LEVEL_GRID, both.shape[-1]))  # [b, 2, g, g]
    count = len(maps)
    if count < 2:
        return torch.ones_like(maps[0]), torch.ones_like(maps)
    logs = maps.clamp(min=1e-6).log()
    within = logs.var(dim=0).mean(dim=(1, 2))  # [2]
    between = (logs.mean(dim=0).var(dim=(1, 2)) - within / count).clamp(min=0)
    power = (between / (between + within).clamp(min=1e-12)).sqrt()[:, None, None]
    wide = smooth(maps, sigma=8)

    def level(mean: Tensor) -> Tensor:  # the lower limit keeps noise low at calm places
        return (mean / mean.mean(dim=(-2, -1), keepdim=True)).clamp(min=0.5) ** power

    return level(wide.mean(dim=0)), level((wide.sum(dim=0) - wide) / (count - 1))


def _to_size(grid: Tensor, size: int) -> Tensor:
    """Resize maps [..., g, g] to [..., size, size], bilinear."""
    flat = F.interpolate(
        grid.reshape(-1, 1, *grid.shape[-2:]), (size, size), mode="bilinear", align_corners=False
    )
    return flat.reshape(*grid.shape[:-2], size, size)


# Constants that the page's scripts need to compute scores as `ImageScore` does.
RULE = {
    "cells": CELLS, "peak": PEAK, "level": LEVEL, "excess_from": EXCESS_FROM,
    "plain_weight": PLAIN_WEIGHT, "pixel_trust": PIXEL_TRUST, "steps": _STEPS, "zero": _ZERO,
    "changed_rate": CHANGED_RATE,
    "euler": EULER, "skewness": SKEWNESS, "excess_kurtosis": EXCESS_KURTOSIS,
}  # fmt: skip
