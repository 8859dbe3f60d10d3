"""Per-timestep pixel and feature scores, their calibration, fusion (11), image score, threshold and regions.

One inspection: all (t, draw) pairs are one batch and one network call (`evidence`). What it returns is kept,
so that α, threshold and the choice among the computed timesteps act afterwards (`Calibration.standardise`,
`fuse`) without a network.

Units. Raw pixel scores are squared Mahalanobis distances per component between what a backbone sees of the
picture and of x̂_0 (or what other kind a checkpoint names), raw feature scores those between the picture's
features and the predicted ones: about 1 where normal. Both are smoothed at the model's resolution.
Standardised scores are in σ of the good pictures' maps: 0 is a good picture's average place, whatever the
timestep and branch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffad.diffusion import Denoiser, Prediction, Schedule

TIMESTEPS = (20, 200, 400)  # ᾱ = 0.994, 0.656, 0.194: the paper's indices 5, 50, 100 of 250
# closer where the scores change fast, and none between two grids (`grid_of`)
CALIBRATION_TIMESTEPS = (0, 20, 50, 99, 100, 200, 299, 300, 400, 600, 800, 999)
SMOOTHING = 3.0  # σ of the Gaussian filter in px of a 256 px picture
TOP = 256  # pixels whose mean is the image score, four places of the features' grid
# What a σ of the pixel branch counts for beside one of the features: pixels tell less, everywhere. How much
# less is not left to artificial defects: the network is taught to remove them, which flatters its pixels.
PIXEL_TRUST = 0.05
PIXEL_SCORES = ("perceptual", "uncertainty", "kl", "rgb")
# σ of x̂_0 that nobody would see, 8 grey values of 255: where the network is surer than that, as on an even
# background, errors too small to be seen would outshine defects.
UNSEEN = 8 / 127.5
_MOVED_FROM, _MOVED_BACK_FROM = 100, 300  # t
CELLS = 32  # a side of the model's square, by which a score is found; as many as places of the features' grid
PEAK = 4  # cells whose mean is a map's peak, TOP pixels
LEVEL = CELLS**2 // 4  # the level of a map is its LEVEL-th highest cell: a quarter of them lie above
EXCESS_FROM = 20  # what lies above the EXCESS_FROM-th highest cell of a usual good map is excess
# Of good parts changed in light, noise, sharpness, compression or position, 10 times as
# many may be rejected.
CHANGED_RATE = 10
# Network and plain features count alike in a category whose parts the network never learned from.
PLAIN_WEIGHT = 0.5
_ZERO = 48  # the code of 0 σ
_STEPS = 16  # whole numbers to a unit of asinh σ, in which good pictures' maps are remembered
_REDUCED = 64  # cells a side, at which good pictures are kept while statistics are fitted
_TAIL = 3.09  # σ that one value in a thousand of a normal law exceeds
_LEVEL_GRID = 32  # cells a side of the level of good maps by place


@dataclass(frozen=True)
class RawMaps:
    """pixel: [b, n_t, size, size] ≥ 0 (KL may be slightly below); feature: [b, n_t, size, size] ≥ 0 (but for
    the swing of its enlargement); plain: [b, size, size], likewise, of the features alone, which no timestep
    and no network has a part in, None where a category does without; smoothed, float32.
    """

    pixel: Tensor
    feature: Tensor
    timesteps: tuple[int, ...]
    plain: Tensor | None = None


def noise_for(seed: int, t: int, draw: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise of one (seed, t, draw), from its own CPU generator: the same on every device, in
    every batch.
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + t * 1_009 + draw) % (1 << 63))
    return torch.randn(tuple(shape), generator=generator)


def grid_of(t: int) -> int:
    """Which of the three grids the picture is looked at on at a timestep: 0 below 100, 1 below 300, 2."""
    return 0 if t < _MOVED_FROM else 1 if t < _MOVED_BACK_FROM else 2


def offset_of(t: int, cell: int) -> int:
    """By how many px the picture is moved (up and left) under the features' grid at a timestep; cell: px of a
    place of that grid.

    Not at all on the first grid, by half a place on the second, half a place back on the third: what a defect
    shows depends on how places cut it, and the mean over low, middle and high t has seen three cuts.
    """
    return (0, 1, -1)[grid_of(t)] * (cell // 2)


def moved(x: Tensor, by: int) -> Tensor:
    """[b, c, h, w] moved up and left by so many px (down and right if negative), edges repeated."""
    if not by:
        return x
    height, width = x.shape[-2:]
    far = F.pad(x, (abs(by),) * 4, mode="replicate")
    return far[..., abs(by) + by :, abs(by) + by :][..., :height, :width]


class Seen(NamedTuple):
    """A picture through the backbone, standardised, [b, c, g, g] each. features: what the network predicts.
    perceptual: by which the picture is compared with x̂_0.
    """

    features: Tensor
    perceptual: Tensor


def seen_moved(
    see: Callable[[Tensor], Seen], x_start: Tensor, seen: Seen, timesteps: Sequence[int]
) -> dict[int, Seen]:
    """The picture at each `offset_of` the timesteps. seen: see(x_start)."""
    cell = x_start.shape[-1] // seen.features.shape[-1]
    others = sorted({offset_of(t, cell) for t in timesteps} - {0})
    # one after the other: on a CPU a larger batch is slower
    return {0: seen} | {by: see(moved(x_start, by)) for by in others}


def denoise_all(
    schedule: Schedule,
    denoise: Denoiser,
    x_start: Tensor,
    timesteps: Sequence[int],
    seed: int = 0,
    draws: int = 1,
    cell: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Prediction]:
    """One network call for every (picture, t, draw): the pictures as they were shown, each moved by
    `offset_of(t, cell)`, and their x_t, both [b·n_t·draws, 3, h, w], t [b·n_t·draws] and the prediction.

    x_start [b, 3, h, w] in [−1, 1]; the order is picture, then t, then draw. cell: 1 moves nothing.
    """
    noise = torch.stack(
        [noise_for(seed, t, draw, x_start.shape[1:]) for t in timesteps for draw in range(draws)]
    )
    t = torch.tensor([t for t in timesteps for _ in range(draws)]).repeat(len(x_start))
    by_t = torch.stack([moved(x_start, offset_of(t, cell)) for t in timesteps], dim=1)
    shown = by_t.repeat_interleave(draws, dim=1).flatten(0, 1)
    x_t = schedule.q_sample(shown, t, noise.to(x_start).repeat(len(x_start), 1, 1, 1))
    return shown, x_t, t, denoise(x_t, t)


def pixel_score(
    schedule: Schedule,
    prediction: Prediction,
    x_start: Tensor,
    x_t: Tensor,
    t: Tensor,
    kind: str,
    stride: int = 4,
) -> Tensor:
    """s_t per pixel, a mean over the colour channels, float32 [b, h, w]; for "perceptual" see `evidence`.

    "uncertainty": (x_0 − x̂_0)² / (Var[x_0 | x_t] + UNSEEN²), the KL's error term for a stride so long that
    what the network cannot know is all of its variance; the standardised error is averaged over some 3 px
    before it is squared, since a defect shifts neighbours together and noise does not. "kl": the paper's KL
    (nats) of a step of `stride` with the learned-range variance. "rgb": (x_0 − x̂_0)² alone, as
    reconstruction methods score. Raises ValueError for another kind.
    """
    if kind == "kl":
        return schedule.kl(prediction, x_start, x_t, t, (t - stride).clamp(min=-1)).mean(dim=1)
    error = x_start.float() - schedule.predict_x_start(prediction.noise.float(), x_t.float(), t)
    if kind == "rgb":
        return error.square().mean(dim=1)
    if kind == "uncertainty":
        standard = error * torch.rsqrt(prediction.x_start_log_variance.float().exp() + UNSEEN**2)
        return smooth(standard, sigma=1).square().mean(dim=1)
    raise ValueError(f"a score of single pixels is one of {', '.join(PIXEL_SCORES[1:])}, not {kind!r}")


def evidence(
    schedule: Schedule,
    denoise: Denoiser,
    x_start: Tensor,
    seen: Mapping[int, Seen],
    timesteps: Sequence[int] = TIMESTEPS,
    *,
    perceive: Callable[[Tensor], Tensor],
    seed: int = 0,
    draws: int = 1,
    kind: str = "perceptual",
    stride: int = 4,
) -> tuple[Tensor, Tensor]:
    """What the network cannot explain of a batch of pictures, by one network call: (pixels, features).

    x_start [b, 3, size, size] in [−1, 1]; seen: `seen_moved` for these timesteps; perceive: a picture → its
    `Seen.perceptual`. features are the residuals f(x_0) − f_θ [b, n_t, draws, c, g, g], of the picture as it
    was moved for each t. So are the pixels by the kind "perceptual": φ(x_0) − φ(x̂_0), what a backbone sees
    of the picture and of what the network draws instead (φ after Zhang et al. 2018: a change of edges and
    grain, not of grey values). By the other kinds (`pixel_score`) they are raw smoothed maps
    [b, n_t, size, size], averaged over the draws.
    """
    cell = x_start.shape[-1] // seen[0].features.shape[-1]
    shown, x_t, t, prediction = denoise_all(schedule, denoise, x_start, timesteps, seed, draws, cell)

    def rows(flat: Tensor) -> Tensor:
        return flat.unflatten(0, (len(x_start), len(timesteps), draws))

    here = [seen[offset_of(t, cell)] for t in timesteps]
    features = torch.stack([each.features for each in here], dim=1)[:, :, None] - rows(prediction.features)
    if kind != "perceptual":
        pixel = rows(pixel_score(schedule, prediction, shown, x_t, t, kind, stride)).mean(dim=2)
        return placed(pixel, timesteps, cell), features
    drawn = perceive(schedule.predict_x_start(prediction.noise.float(), x_t.float(), t))
    return torch.stack([each.perceptual for each in here], dim=1)[:, :, None] - rows(drawn), features


def residual_maps(
    residual: Tensor, distance: Callable[[Tensor, int], Tensor], size: int, timesteps: Sequence[int]
) -> Tensor:
    """Raw smoothed maps [b, n_t, size, size] of `evidence`'s residuals. distance: of residuals [b, c, g, g]
    on one of the grids, [b, g, g], as a category's `ResidualGaussian.squared_mahalanobis`.
    """
    by_t = [distance(residual[:, i].flatten(0, 1), grid_of(t)) for i, t in enumerate(timesteps)]
    score = torch.stack(by_t, dim=1).unflatten(0, (len(residual), residual.shape[2])).mean(dim=1)
    return placed(_enlarged(score, size), timesteps, size // residual.shape[-1])


def plain_map(distance: Tensor, size: int) -> Tensor:
    """Raw smoothed map [b, size, size] of the plain features' distances [b, g, g]."""
    return smooth(_enlarged(distance[:, None], size))[:, 0]


def _enlarged(score: Tensor, size: int) -> Tensor:
    """[b, n, g, g] → [b, n, size, size], bicubic: peaks stay narrow, and may swing below 0 beside."""
    return F.interpolate(score, size=(size, size), mode="bicubic", align_corners=False)


def placed(maps: Tensor, timesteps: Sequence[int], cell: int) -> Tensor:
    """Maps [b, n_t, h, w] of pictures that were moved as `offset_of` says: moved back, and smoothed."""
    back = [moved(maps[:, i : i + 1], -offset_of(t, cell)) for i, t in enumerate(timesteps)]
    return smooth(torch.cat(back, dim=1))


def smooth(maps: Tensor, sigma: float = SMOOTHING) -> Tensor:
    """Gaussian filter of the last two dimensions; sigma in px of a 256 px picture; borders mirrored. [..., h,
    w].
    """
    height, width = (_filter(side, sigma * side / 256).to(maps) for side in maps.shape[-2:])
    return height @ maps @ width.T


@lru_cache(maxsize=32)
def _filter(side: int, sigma: float) -> Tensor:
    """The filter along one side as a matrix [side, side]: a product is several times faster than a thin
    convolution.
    """
    radius = min(math.ceil(3 * sigma), side - 1)
    if radius < 1:
        return torch.eye(side)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    impulses = F.pad(torch.eye(side)[:, None], (radius, radius), mode="reflect")
    return F.conv1d(impulses, (kernel / kernel.sum()).view(1, 1, -1))[:, 0].T.contiguous()


@dataclass(frozen=True)
class Calibration:
    """What good pictures look like to the scores. All float32.

    timesteps: the n calibrated t, rising; other t are interpolated between them. level: [2 (pixel, feature),
    g, g], how high good maps lie at each place, relative to their mean; raw maps are divided by it (see
    `place_level`). moments: [2, 2 (mean, σ), n] of the raw smoothed maps so divided; σ is measured at the
    tail, so that one place in a thousand of good pictures lies above 3.09 σ, as a normal law has it: the
    branch whose good maps have the heavier tail must not drown the other. good_maps: the standardised maps of
    good pictures over CELLS × CELLS cells, uint8 [pictures, 2, m, CELLS, CELLS] (see `to_codes`): enough to
    know their image scores at any α and any timesteps without the network. remembered: the m timesteps of
    those; another has, in its own units, the values of the nearest on its grid. plain_moments [2 (mean, σ)]
    and good_plain uint8 [pictures, CELLS, CELLS]: the same of the plain features, None without. changed: how
    the scores of changed copies of good pictures lie (see `law_of_changed`), None if that is unknown.
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
    def fit(maps: RawMaps, by_place: bool = False, reduced: RawMaps | None = None) -> Calibration:
        """From raw maps [b, n, size, size] of b ≥ 1 good pictures at the timesteps to calibrate.

        by_place: divide by `place_level`; otherwise the level is 1 everywhere. reduced: the `reduced_maps` of
        these pictures, and of more after them, at some of the timesteps: level and remembered places come
        from those. None: of these at all timesteps.
        """
        reduced = reduced_maps(maps) if reduced is None else reduced
        both = torch.stack([maps.pixel, maps.feature], dim=1).float()  # [b, 2, n, size, size]
        small = torch.stack([reduced.pixel, reduced.feature], dim=1).float()  # [more, 2, m, cells, cells]
        level = torch.ones(2, 1, 1)
        if by_place:
            level, without = place_level(small)
            both = both / _to_size(without[: len(both)], both.shape[-1])[:, :, None]
            small = small / _to_size(without, small.shape[-1])[:, :, None]
        mean = both.double().mean(dim=(0, 3, 4))
        std = _tail_deviation(both.permute(1, 2, 0, 3, 4).flatten(2), mean)  # [2, n]
        moments = torch.stack([mean, std], dim=1).float()  # [2, 2, n]
        at = [maps.timesteps.index(t) for t in reduced.timesteps]
        standard = (small - moments[None, :, 0, at, None, None]) / moments[None, :, 1, at, None, None]
        plain_moments = good_plain = None
        if reduced.plain is not None:
            wide = reduced.plain if maps.plain is None else maps.plain
            middle = wide.double().mean()
            plain_moments = torch.stack([middle, _tail_deviation(wide.flatten(), middle)]).float().cpu()
            good_plain = to_codes(_to_cells((reduced.plain - plain_moments[0]) / plain_moments[1]))
        return Calibration(
            maps.timesteps, level.cpu(), moments.cpu(), reduced.timesteps, to_codes(_to_cells(standard)),
            plain_moments, good_plain,
        )  # fmt: skip

    def _interpolation(self, timesteps: Sequence[int]) -> Tensor:
        """Weights [len(timesteps), n] of linear interpolation in t, constant beyond the calibrated range."""
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
        """(s / level − mean) / std per t and branch: the same shapes in σ of good pictures. levels: one for
        each picture instead of `level`, [b, 2, g, g].
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
        """How maps are scored at this α and these timesteps."""
        codes = self.good_maps[:, :, self.nearest(timesteps)]
        pixel, feature = from_codes(codes).mean(dim=2).unbind(dim=1)
        plain = None if self.good_plain is None else from_codes(self.good_plain).numpy()
        fused = weighed(pixel.numpy(), feature.numpy(), alpha, plain)
        return ImageScore.of(fused.reshape(len(fused), -1), self.changed)

    def good_scores(self, alpha: float = 0.5, timesteps: Sequence[int] = TIMESTEPS) -> np.ndarray:
        """Image scores of the good pictures at this α and these timesteps, float32 [pictures]."""
        return self.scorer(alpha, timesteps).good

    def nearest(self, timesteps: Sequence[int]) -> list[int]:
        """Which of the `remembered` timesteps stands for each of these in `good_maps`. The mean over several
        t of a grid is then that of one: a little high for good pictures, since such maps are alike but not
        the same.
        """
        return [
            min(
                range(len(self.remembered)),
                key=lambda i: (abs(grid_of(self.remembered[i]) - grid_of(t)), abs(self.remembered[i] - t)),
            )
            for t in timesteps
        ]


def _tail_deviation(values: Tensor, mean: Tensor) -> Tensor:
    """σ of values [..., n] by their tail: one in a thousand lies above mean + 3.09 σ; float64 [...]."""
    above = max(1, values.shape[-1] // 1000)
    return ((values.topk(above, dim=-1).values[..., -1].double() - mean) / _TAIL).clamp(min=1e-8)


def to_codes(maps: Tensor) -> Tensor:
    """Maps in σ in whole numbers, uint8 of the same shape: 16 to a unit of asinh σ, so that a step is 0.06 σ
    where maps are calm and 6 % where they are high.
    """
    return (maps.float().asinh() * _STEPS + _ZERO).round().clamp(0, 255).to(torch.uint8).cpu()


def from_codes(codes: Tensor) -> Tensor:
    """`to_codes` undone, float32; coding again changes nothing."""
    return ((codes.float() - _ZERO) / _STEPS).sinh()


def _to_cells(maps: Tensor) -> Tensor:
    """Square maps [..., s, s] → [..., CELLS, CELLS], means; repeated where there are fewer."""
    flat = F.adaptive_avg_pool2d(maps.reshape(-1, 1, *maps.shape[-2:]), CELLS)
    return flat.reshape(*maps.shape[:-2], CELLS, CELLS)


def reduced_maps(maps: RawMaps) -> RawMaps:
    """Means of maps over 64 × 64 cells: of pixels where those are fewer."""
    cells = min(_REDUCED, maps.pixel.shape[-1])
    pixel, feature = (F.adaptive_avg_pool2d(branch, cells) for branch in (maps.pixel, maps.feature))
    plain = None if maps.plain is None else F.adaptive_avg_pool2d(maps.plain, cells)
    return RawMaps(pixel, feature, maps.timesteps, plain)


def place_level(both: Tensor) -> tuple[Tensor, Tensor]:
    """How high the maps of good pictures lie at each place, relative to their mean: [2, g, g], and for each
    picture the same from the other pictures [b, 2, g, g], so that calibration does not flatter the pictures
    it is made of.

    Edges and lettering of a part that lies still are hard in every good picture, and a defect elsewhere
    drowns in them; a part that turns has no such places. So the relative mean is raised to the power √ICC,
    where ICC, the intraclass correlation of log maps, is the share of their variance that the place explains:
    1 if all good pictures light up at the same places, 0 (no correction) if each does elsewhere. both: raw
    maps [b, 2, n, size, size].
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

    def level(mean: Tensor) -> Tensor:  # never below a half: a calm place must not turn noise into evidence
        return (mean / mean.mean(dim=(-2, -1), keepdim=True)).clamp(min=0.5) ** power

    return level(wide.mean(dim=0)), level((wide.sum(dim=0) - wide) / (count - 1))


def _to_size(grid: Tensor, size: int) -> Tensor:
    """Maps [..., 2, g, g] → [..., 2, size, size], bilinear."""
    flat = F.interpolate(
        grid.reshape(-1, 1, *grid.shape[-2:]), (size, size), mode="bilinear", align_corners=False
    )
    return flat.reshape(*grid.shape[:-2], size, size)


def branch_weights(alpha: float) -> tuple[float, float]:
    """Weights of the pixel and the feature branch in (11), which sum to 1: as α PIXEL_TRUST to 1 − α.

    α is the balance of the two branches: 0 features only, 1 pixels only; at 0.5 a σ of the pixels counts a
    twentieth (PIXEL_TRUST) of a σ of the features, which makes weights of 0.048 and 0.952.
    """
    pixel, feature = alpha * PIXEL_TRUST, 1 - alpha
    return pixel / (pixel + feature), feature / (pixel + feature)


def weights_in_words(alpha: float, plain: bool = False) -> str:
    """The branches' true shares, such as "pixels 4.8 %, features 95.2 %"; the page says the same. plain:
    whether the category has the plain features.
    """
    rest = 1 - PLAIN_WEIGHT if plain else 1.0
    pixel, feature = (f"{round(100 * rest * weight, 1):g}" for weight in branch_weights(alpha))
    added = f", plain features {100 * PLAIN_WEIGHT:g} %" if plain else ""
    return f"pixels {pixel} %, features {feature} %{added}"


def fuse(
    pixel: np.ndarray, feature: np.ndarray, alpha: float, plain: np.ndarray | None = None
) -> np.ndarray:
    """(11): mean over t of the two branches, `weighed`; standardised maps [n_t, h, w] → [h, w]. plain:
    [h, w], if the category has it.
    """
    return weighed(pixel.mean(axis=0), feature.mean(axis=0), alpha, plain)


def weighed(
    pixel: np.ndarray, feature: np.ndarray, alpha: float, plain: np.ndarray | None = None
) -> np.ndarray:
    """Both branches by `branch_weights(α)`; with the plain features, these make half (PLAIN_WEIGHT)."""
    of_pixel, of_feature = branch_weights(alpha)
    fused = of_pixel * pixel + of_feature * feature
    return fused if plain is None else (1 - PLAIN_WEIGHT) * fused + PLAIN_WEIGHT * plain


def top_mean(anomaly_map: np.ndarray, size: float = 256) -> float:
    """Mean of the highest values of a map: 256 pixels at a model size of 256, the same area at others. The
    image score of what has no calibration.
    """
    flat = np.asarray(anomaly_map, dtype=np.float32).ravel()
    top = min(max(1, round(TOP * (size / 256) ** 2)), flat.size)
    return float(np.partition(flat, flat.size - top)[flat.size - top :].mean())


# What the browser needs to score as `ImageScore` does.
RULE = {
    "cells": CELLS, "peak": PEAK, "level": LEVEL, "excess_from": EXCESS_FROM,
    "plain_weight": PLAIN_WEIGHT, "pixel_trust": PIXEL_TRUST, "steps": _STEPS, "zero": _ZERO,
    "changed_rate": CHANGED_RATE,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class ImageScore:
    """How an anomaly map becomes a score, in σ: the higher of its peak and its excess, each being surprising
    in its own way.

    peak: the mean of the PEAK highest cells, for what is small and strong. excess: by how much cells lie
    above what they do on good parts, summed up over the picture, for what is wide and weak. Before that the
    map's own level is taken off: noise, light and compression raise a map everywhere. Excess is brought to
    the units of peaks by the extreme-value laws of both on good pictures: an excess that 1 good picture in
    900 has counts as the peak that 1 in 900 has.

    above: σ over the level from where on there is excess. shift, scale: score = shift + scale · excess.
    good, levels: the scores and the levels of the good pictures, float32 [pictures] each. changed: how scores
    of changed good pictures lie (see `law_of_changed`).
    """

    above: float
    shift: float
    scale: float
    good: np.ndarray
    levels: np.ndarray
    changed: tuple[float, float] | None = None

    @staticmethod
    def of(good: np.ndarray, changed: tuple[float, float] | None = None) -> ImageScore:
        """From the fused maps of good pictures over CELLS × CELLS cells, float32 [pictures, cells]."""
        ranked = -np.sort(-good, axis=1)
        levels = ranked[:, LEVEL - 1]
        above = float((ranked[:, EXCESS_FROM - 1] - levels).mean())
        partial = ImageScore(above, -math.inf, 0.0, ranked[:, 0], levels)
        excess = np.array([partial._excess(each) for each in ranked])
        peaks = ranked[:, :PEAK].mean(axis=1)
        (peak, peak_scale), (middle, excess_scale) = _gumbel(peaks), _gumbel(excess)
        # where good pictures have hardly any excess: a peak higher by its own scale is no less usual
        scale = peak_scale / max(excess_scale, peak_scale * PEAK / CELLS**2)
        shift = peak - scale * middle
        scores = np.maximum(peaks, shift + scale * excess).astype(np.float32)
        return ImageScore(above, shift, scale, scores, levels, changed)

    def threshold(self, rate: float = 0.01) -> float:
        """See `threshold_for`."""
        return threshold_for(self.good, rate, self.changed)

    def rate(self, score: float) -> float:
        """See `rate_for`."""
        return rate_for(self.good, score, self.changed)

    def rate_bounds(self, score: float) -> tuple[float, float]:
        """See `rate_bounds`."""
        return rate_bounds(self.good, score, self.changed)

    def __call__(self, anomaly_map: np.ndarray, size: float) -> float:
        """The score of a fused map [h, w]. size: how many of its pixels make the side of the model's square,
        whose padding the map does not show.
        """
        ranked = -np.sort(-cells_of(anomaly_map, size))
        return max(float(ranked[:PEAK].mean()), self.shift + self.scale * self._excess(ranked))

    def _excess(self, ranked: np.ndarray) -> float:
        """Of cells, highest first: the mean over a square's cells of what lies above."""
        level = float(ranked[min(LEVEL, len(ranked)) - 1])
        return float((ranked - (level + self.above)).clip(min=0).sum()) / CELLS**2


def cells_of(anomaly_map: np.ndarray, size: float) -> np.ndarray:
    """Means of a map [h, w] over cells, of which `size` pixels hold CELLS, float32 [cells]; at least one
    along a side, and no more than pixels.
    """
    cells = [max(1, min(side, round(CELLS * side / size))) for side in anomaly_map.shape]
    flat = torch.from_numpy(np.ascontiguousarray(anomaly_map, np.float32))[None, None]
    return F.adaptive_avg_pool2d(flat, cells).numpy().ravel()


_EULER = 0.5772156649015329
_SKEWNESS, _EXCESS_KURTOSIS = 1.1395470994046486, 2.4  # of Gumbel's law


def threshold_for(
    good_scores: np.ndarray, rate: float = 0.01, changed: tuple[float, float] | None = None
) -> float:
    """Score that a share `rate` of good parts would exceed, and of good parts changed in light, noise,
    sharpness, compression or position at most CHANGED_RATE times that share.

    An image score is nearly a maximum over the picture, so good scores follow an extreme-value law; Gumbel's
    is fitted by mean and standard deviation, which reaches beyond the few dozen good pictures at hand. The
    `unusual` among them count as if they lay where those begin: how bright one speck of dust is must not
    decide which defects pass. changed: where changed good parts lie (see `law_of_changed`); None leaves them
    out of account. Raises ValueError unless 0 < rate < 1.
    """
    checked_rate(rate)
    law = _gumbel(good_scores)
    limit = _exceeded(law, rate)
    if changed is not None and CHANGED_RATE * rate < 1:
        limit = max(limit, _exceeded(_changed(law, changed), CHANGED_RATE * rate))
    return limit


def law_of_changed(good_scores: np.ndarray, changed_scores: np.ndarray) -> tuple[float, float]:
    """How the scores of changed good pictures lie beside those of good pictures as they are: by how many
    scales of the extreme-value law of the latter the mean is higher, and how many times as wide the law is.
    So it holds, about, at any α and timesteps.
    """
    (mean, scale), (changed_mean, changed_scale) = _gumbel(good_scores), _gumbel(changed_scores)
    return (changed_mean - mean) / scale, changed_scale / scale


def _changed(law: tuple[float, float], changed: tuple[float, float]) -> tuple[float, float]:
    mean, scale = law
    return mean + changed[0] * scale, changed[1] * scale


def _exceeded(law: tuple[float, float], rate: float) -> float:
    mean, scale = law
    return mean + scale * (-math.log(-math.log1p(-rate)) - _EULER)


def _exceeding(law: tuple[float, float], score: float) -> float:
    mean, scale = law
    exponent = -((score - mean) / scale + _EULER)
    return 1.0 if exponent > 50 else -math.expm1(-math.exp(exponent))


def checked_rate(rate: float) -> float:
    """Raises ValueError unless 0 < rate < 1."""
    if not 0 < rate < 1:
        raise ValueError(f"a share of good parts lies between 0 and 1, not {rate}")
    return rate


def rate_for(
    good_scores: np.ndarray, score: float, changed: tuple[float, float] | None = None
) -> float:
    """Share of good parts expected above `score`, in [0, 1]: the inverse of `threshold_for`."""
    law = _gumbel(good_scores)
    of_changed = 0.0 if changed is None else _exceeding(_changed(law, changed), score) / CHANGED_RATE
    return max(_exceeding(law, score), of_changed)


def rate_bounds(
    good_scores: np.ndarray, score: float, changed: tuple[float, float] | None = None
) -> tuple[float, float]:
    """Between which shares of good parts expected above `score` the true one lies in 19 of 20 cases, as far
    as the number of good pictures goes: few leave the law's tail a guess.

    A threshold k standard deviations s above the mean of n scores after Gumbel's law has the variance
    s² (1 + γ₁ k + (γ₂ + 2) k² / 4) / n by the delta method, with the law's skewness γ₁ = 1.14 and excess
    kurtosis γ₂ = 2.4; the bounds are the shares at 1.96 of its roots to either side.
    """
    mean, scale = _gumbel(good_scores)
    spread = scale * math.pi / math.sqrt(6)
    k = (score - mean) / spread
    error = spread * math.sqrt((1 + _SKEWNESS * k + (_EXCESS_KURTOSIS + 2) * k**2 / 4) / len(good_scores))
    low, high = (rate_for(good_scores, score + side * 1.96 * error, changed) for side in (1, -1))
    return low, high


def _gumbel(good_scores: np.ndarray) -> tuple[float, float]:
    scores = np.asarray(good_scores, dtype=np.float64)
    if scores.size == 0:
        raise ValueError("a threshold needs at least one good score")
    scores = np.minimum(scores, _usual_end(scores))
    # a spread from few pictures is uncertain: wider for small samples, never below a twentieth of the level
    spread = scores.std(ddof=1) * (1 + 1 / scores.size) if scores.size > 1 else 0.0
    return float(scores.mean()), max(float(spread), 0.05 * abs(float(scores.mean())), 1e-6) * math.sqrt(
        6
    ) / math.pi


def unusual(good_scores: np.ndarray, rate: float = 3e-4) -> np.ndarray:
    """Which good scores lie where hardly a share `rate` should by the law of the others, bool [pictures]: at
    3 in 10,000 worth a look. Of 8 to 48 scores that follow the law, some is called so in 3 of 100 cases.
    """
    scores = np.asarray(good_scores, dtype=np.float64)
    return scores > _usual_end(scores, rate)


def _usual_end(scores: np.ndarray, rate: float = 3e-4) -> float:
    """What a share `rate` of good scores would exceed by Gumbel's law through the quartiles, which a few odd
    pictures cannot move.
    """
    low, middle, high = np.quantile(scores, (0.25, 0.5, 0.75))
    scale = (high - low) / (math.log(math.log(4)) - math.log(math.log(4 / 3)))
    mode = middle + scale * math.log(math.log(2))
    return float(mode - scale * math.log(-math.log1p(-rate)))


@dataclass(frozen=True)
class Region:
    """A connected part of the map above the threshold. box: x, y, width, height in px; area in px; peak, mean
    in σ.
    """

    box: tuple[int, int, int, int]
    area: int
    peak: float
    mean: float

    def to_dict(self) -> dict:
        """JSON-able."""
        return {"box": list(self.box), "area": self.area, "peak": self.peak, "mean": self.mean}


def find_regions(anomaly_map: np.ndarray, threshold: float, min_area: float = 1) -> tuple[Region, ...]:
    """8-connected components of map > threshold with at least `min_area` px, highest peak first."""
    above = (anomaly_map > threshold).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
    regions = []
    for label in range(1, count):
        x, y, width, height, area = (int(value) for value in stats[label])
        if area >= min_area:
            values = anomaly_map[y : y + height, x : x + width][
                labels[y : y + height, x : x + width] == label
            ]
            regions.append(Region((x, y, width, height), area, float(values.max()), float(values.mean())))
    return tuple(sorted(regions, key=lambda region: -region.peak))
