"""Pixel and feature scores at each timestep.

An inspection evaluates all pairs of timestep and noise draw with one network call (`evidence`). α, threshold
and the choice among the computed timesteps are applied later (`Calibration.standardise`, `fuse`) without the
network.

Raw feature scores are squared Mahalanobis distances per component between the picture's features and the
predicted ones. Raw pixel scores are by default those between the perceptual features of the picture and of
x̂_0. Both are about 1 for normal places, and are smoothed at the model's resolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diffad.method.diffusion import Denoiser, Prediction, Schedule

TIMESTEPS = (20, 200, 400)  # ᾱ = 0.994, 0.656, 0.194: the paper's indices 5, 50, 100 of 250
SMOOTHING = 3.0  # σ of the Gaussian filter, px of a 256 px picture
PIXEL_SCORES = ("perceptual", "uncertainty", "kl", "rgb")
# Lower bound on σ of x̂_0, 8 grey values of 255, so that invisible errors do not dominate where the network
# is very certain, as on a uniform background.
UNSEEN = 8 / 127.5
_SHIFTED_FROM, _SHIFTED_BACK_FROM = 100, 300  # t at which the second and the third grid begin


@dataclass(frozen=True)
class RawMaps:
    """Smoothed maps of a batch of pictures, float32, before calibration.

    Attributes:
        pixel, feature: [b, n_t, size, size], about 1 for normal places. Slightly negative values are possible
            in a KL, and in feature maps by bicubic overshoot.
        timesteps: the n_t timesteps.
        plain: maps of the plain features, which have no timestep, [b, size, size]; None if the category has
            none.
    """

    pixel: Tensor
    feature: Tensor
    timesteps: tuple[int, ...]
    plain: Tensor | None = None

    def first(self, count: int) -> RawMaps:
        """The maps of the first `count` pictures."""
        plain = None if self.plain is None else self.plain[:count]
        return RawMaps(self.pixel[:count], self.feature[:count], self.timesteps, plain)

    def scaled(self, factors: Tensor) -> RawMaps:
        """Pixel and feature maps multiplied by each picture's two factors, [b or more, 2]."""
        pixel, feature = factors[: len(self.pixel), :, None, None, None].unbind(dim=1)
        return RawMaps(self.pixel * pixel, self.feature * feature, self.timesteps, self.plain)

    def joined(self, other: RawMaps) -> RawMaps:
        """Combine with the maps of the same pictures at other timesteps, ordered by t."""
        timesteps = self.timesteps + other.timesteps
        order = sorted(range(len(timesteps)), key=timesteps.__getitem__)
        pixel = torch.cat([self.pixel, other.pixel], dim=1)[:, order]
        feature = torch.cat([self.feature, other.feature], dim=1)[:, order]
        return RawMaps(pixel, feature, tuple(sorted(timesteps)), self.plain)


def noise_for(seed: int, t: int, draw: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise for (seed, t, draw), the same on every device and in every batch."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + t * 1_009 + draw) % (1 << 63))
    return torch.randn(tuple(shape), generator=generator)


def grid_of(t: int) -> int:
    """Index of the shifted grid used at a timestep: 0 for t below 100, 1 below 300, otherwise 2."""
    return 0 if t < _SHIFTED_FROM else 1 if t < _SHIFTED_BACK_FROM else 2


def offset_of(t: int, cell: int) -> int:
    """Shift of the picture up and left relative to the features' grid at a timestep, px.

    0 on the first grid, half a place on the second, minus half a place on the third. How visible a defect is
    depends on its position relative to the grid, so the mean over several t averages over three positions.

    cell: px per place of the grid.
    """
    return (0, 1, -1)[grid_of(t)] * (cell // 2)


def shifted(x: Tensor, by: int) -> Tensor:
    """Shift [b, c, h, w] up and left by `by` px (down and right if negative), repeating the edges."""
    if not by:
        return x
    height, width = x.shape[-2:]
    far = F.pad(x, (abs(by),) * 4, mode="replicate")
    return far[..., abs(by) + by :, abs(by) + by :][..., :height, :width]


class Embedding(NamedTuple):
    """Standardised backbone features of pictures, [b, c, g, g] each.

    Attributes:
        features: f, which the network predicts.
        perceptual: φ, for comparing pictures with x̂_0.
    """

    features: Tensor
    perceptual: Tensor


def shifted_embeddings(
    embed: Callable[[Tensor], Embedding], x_start: Tensor, embedding: Embedding, timesteps: Sequence[int]
) -> dict[int, Embedding]:
    """Embeddings of the picture shifted by each `offset_of` the timesteps. embedding: embed(x_start)."""
    cell = x_start.shape[-1] // embedding.features.shape[-1]
    others = sorted({offset_of(t, cell) for t in timesteps} - {0})
    # one by one, since a larger batch is slower on a CPU
    return {0: embedding} | {by: embed(shifted(x_start, by)) for by in others}


def denoise_all(
    schedule: Schedule,
    denoise: Denoiser,
    x_start: Tensor,
    timesteps: Sequence[int],
    seed: int = 0,
    draws: int = 1,
    cell: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Prediction]:
    """Denoise every (picture, t, draw) in one network call, ordered by picture, then t, then draw.

    Args:
        x_start: [b, 3, h, w] in [−1, 1].
        cell: px per place of the features' grid; 1 disables shifts.

    Returns:
        The pictures shifted by `offset_of(t, cell)` and their x_t, both [b·n_t·draws, 3, h, w]; t
        [b·n_t·draws]; the prediction.
    """
    noise = torch.stack(
        [noise_for(seed, t, draw, x_start.shape[1:]) for t in timesteps for draw in range(draws)]
    )
    t = torch.tensor([t for t in timesteps for _ in range(draws)]).repeat(len(x_start))
    by_t = torch.stack([shifted(x_start, offset_of(t, cell)) for t in timesteps], dim=1)
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
    """Score s_t of each pixel for all kinds but "perceptual" (see `evidence`).

    Args:
        prediction: at (x_t, t).
        x_start, x_t: [b, 3, h, w].
        t: [b].
        kind: one of
            - "uncertainty": (x_0 − x̂_0)² / (Var[x_0 | x_t] + UNSEEN²). The standardised error is averaged
            over
              about 3 px before squaring, since a defect changes neighbours together and noise does not;
            - "kl": the paper's KL of a step of `stride`, nats;
            - "rgb": (x_0 − x̂_0)², as in reconstruction methods.

    Returns:
        Mean over the colour channels, float32 [b, h, w].

    Raises:
        ValueError: another kind.
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
    embeddings: Mapping[int, Embedding],
    timesteps: Sequence[int] = TIMESTEPS,
    *,
    perceive: Callable[[Tensor], Tensor],
    seed: int = 0,
    draws: int = 1,
    kind: str = "perceptual",
    stride: int = 4,
) -> tuple[Tensor, Tensor]:
    """Residuals between a batch of pictures and the network's predictions, by one network call.

    Args:
        x_start: [b, 3, size, size] in [−1, 1].
        embeddings: `shifted_embeddings` for these timesteps.
        perceive: picture → its `Embedding.perceptual`, φ.
        seed, draws: of the noise.
        kind: one of PIXEL_SCORES.
        stride: for the kind "kl".

    Returns:
        pixels: for the kind "perceptual", the residuals φ(x_0) − φ(x̂_0), [b, n_t, draws, c, g, g] (a
        perceptual
            distance after Zhang et al. 2018, sensitive to edges and texture rather than grey values); for
            other kinds, raw smoothed maps (`pixel_score`) averaged over the draws, [b, n_t, size, size].
        features: the residuals f(x_0) − f_θ of the picture as shifted for each t, [b, n_t, draws, c, g, g].
    """
    cell = x_start.shape[-1] // embeddings[0].features.shape[-1]
    shown, x_t, t, prediction = denoise_all(schedule, denoise, x_start, timesteps, seed, draws, cell)

    def rows(flat: Tensor) -> Tensor:
        return flat.reshape(len(x_start), len(timesteps), draws, *flat.shape[1:])

    by_t = [embeddings[offset_of(t, cell)] for t in timesteps]
    features = torch.stack([each.features for each in by_t], dim=1)[:, :, None] - rows(prediction.features)
    if kind != "perceptual":
        pixel = rows(pixel_score(schedule, prediction, shown, x_t, t, kind, stride)).mean(dim=2)
        return unshifted(pixel, timesteps, cell), features
    drawn = perceive(schedule.predict_x_start(prediction.noise.float(), x_t.float(), t))
    return torch.stack([each.perceptual for each in by_t], dim=1)[:, :, None] - rows(drawn), features


def residual_maps(
    residual: Tensor, distance: Callable[[Tensor, int], Tensor], size: int, timesteps: Sequence[int]
) -> Tensor:
    """Raw smoothed maps of residuals.

    Args:
        residual: [b, n_t, draws, c, g, g], of `evidence`.
        distance: (residuals [b, c, g, g], grid) → [b, g, g], such as `ResidualGaussian.squared_mahalanobis`.
        size: side of the maps, px.
        timesteps: the n_t timesteps.

    Returns:
        [b, n_t, size, size].
    """
    by_t = [distance(residual[:, i].flatten(0, 1), grid_of(t)) for i, t in enumerate(timesteps)]
    score = torch.stack(by_t, dim=1).unflatten(0, (len(residual), residual.shape[2])).mean(dim=1)
    return unshifted(_enlarged(score, size), timesteps, size // residual.shape[-1])


def plain_map(distance: Tensor, size: int) -> Tensor:
    """Raw smoothed map [b, size, size] of the plain features' distances [b, g, g]."""
    return smooth(_enlarged(distance[:, None], size))[:, 0]


def _enlarged(score: Tensor, size: int) -> Tensor:
    """Enlarge [b, n, g, g] to [b, n, size, size]; bicubic keeps peaks narrow but may overshoot below 0."""
    return F.interpolate(score, size=(size, size), mode="bicubic", align_corners=False)


def unshifted(maps: Tensor, timesteps: Sequence[int], cell: int) -> Tensor:
    """Undo the shifts by `offset_of` in maps [b, n_t, h, w], and smooth them."""
    back = [shifted(maps[:, i : i + 1], -offset_of(t, cell)) for i, t in enumerate(timesteps)]
    return smooth(torch.cat(back, dim=1))


def smooth(maps: Tensor, sigma: float = SMOOTHING) -> Tensor:
    """Gaussian filter of maps [..., h, w] with mirrored borders; sigma in px of a 256 px picture."""
    height, width = (_filter(side, sigma * side / 256).to(maps) for side in maps.shape[-2:])
    return height @ maps @ width.T


@lru_cache(maxsize=32)
def _filter(side: int, sigma: float) -> Tensor:
    """The filter along one axis as a matrix [side, side], which is faster than a convolution."""
    radius = min(math.ceil(3 * sigma), side - 1)
    if radius < 1:
        return torch.eye(side)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    impulses = F.pad(torch.eye(side)[:, None], (radius, radius), mode="reflect")
    return F.conv1d(impulses, (kernel / kernel.sum()).view(1, 1, -1))[:, 0].T.contiguous()
