"""Leave-one-out maps: raw maps of good pictures as if the Gaussians had been fitted without them.

Maps of pictures that are part of the fit would be too low, and so would the calibration made from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from diffad.method.features import FeatureExtractor
from diffad.method.gaussian import LeftOut, PlainGaussian, PlainLeftOut, ResidualGaussian
from diffad.method.scoring import TIMESTEPS, RawMaps, plain_map, residual_maps
from diffad.pictures.geometry import to_float
from diffad.teaching.residuals import ROWS, Observations, Observer, Sums

_MAPS = 256  # cells per side; maps at least twice as large are thinned out, see `cell_step`


def cell_step(size: int) -> int:
    """The step at which cells of a map with `size` cells per side are kept."""
    return max(1, size // _MAPS)


@dataclass(frozen=True)
class LeftOutMaps:
    """Leave-one-out maps of the calibrated pictures, of their changed copies, and of defects put on them.

    Attributes:
        observer: the networks.
        pictures, copies: uint8 [n, 3, s, s] each.
        inside: where the pictures are without padding, bool [n, s, s].
        own: by branch, the residuals that the first pictures and their copies contributed to the fit
            (`Observations.own`).
        left_out: by branch, distances to the fit without a picture.
        plain: the maps of the plain features; None for a category without them.
    """

    observer: Observer
    pictures: Tensor
    copies: Sequence[Tensor]
    inside: Tensor
    own: Sequence[Tensor]
    left_out: Sequence[LeftOut]
    plain: PlainMaps | None

    def of_copy(self, number: int) -> RawMaps:
        """Maps of the calibrated pictures (number 0) or of one of their changed copies, at TIMESTEPS."""
        origins = range(len(self.own[0]))
        pictures = (self.pictures, *self.copies)[number][: len(origins)]
        if self.observer.kind == "perceptual":
            found: Sequence[Tensor] = [own[:, number, :, None] for own in self.own]
        else:
            found = self.observer.look(pictures, TIMESTEPS)
        return replace(self._maps(found, TIMESTEPS, origins), plain=self._plain(pictures, origins))

    def look(self, pictures: Tensor, timesteps: tuple[int, ...], origins: Sequence[int]) -> RawMaps:
        """Maps of any pictures, without plain maps.

        Args:
            pictures: uint8 [n, 3, s, s].
            origins: the numbers of the calibrated pictures that these are, or were made from.
        """
        parts = []
        for begin in range(0, len(pictures), 2 * ROWS):  # all residuals at once would fill the memory
            rows = slice(begin, begin + 2 * ROWS)
            parts.append(self._maps(self.observer.look(pictures[rows], timesteps), timesteps, origins[rows]))
        pixel, feature = (torch.cat([getattr(part, name) for part in parts]) for name in ("pixel", "feature"))
        return RawMaps(pixel, feature, timesteps)

    def spoiled(self, defects: Tensor, origins: Sequence[int]) -> RawMaps:
        """Maps of pictures with defects at TIMESTEPS, with plain maps; arguments as for `look`."""
        return replace(self.look(defects, TIMESTEPS, origins), plain=self._plain(defects, origins))

    def _maps(self, found: Sequence[Tensor], timesteps: tuple[int, ...], origins: Sequence[int]) -> RawMaps:
        """Maps from both branches' residuals [n, n_t, 1, c, g, g], or from raw maps [n, n_t, s, s]."""
        size, numbers, branches = self.pictures.shape[-1], list(origins), []
        step = cell_step(size)
        for values, own, left_out in zip(found, self.own, self.left_out):
            if values.dim() > 4:
                values = _residual_maps(values, timesteps, left_out, own[numbers], size)
            elif step > 1:
                values = values[..., ::step, ::step]
            branches.append(_levelled(values, self.inside[numbers][:, ::step, ::step]))
        return RawMaps(branches[0], branches[1], timesteps)

    def _plain(self, pictures: Tensor, origins: Sequence[int]) -> Tensor | None:
        return None if self.plain is None else self.plain.maps(pictures, list(origins))


@dataclass(frozen=True)
class PlainMaps:
    """Leave-one-out maps of the plain features.

    Attributes:
        left_out: distances to the Gaussian without a picture.
        own: features of the first pictures and of their copies, fp16 [n, 1 + copies, c, g, g].
        extractor: the backbone.
        inside: where the pictures are without padding, bool [n, s, s].
    """

    left_out: PlainLeftOut
    own: Tensor
    extractor: FeatureExtractor
    inside: Tensor

    @staticmethod
    def of(
        left_out: PlainLeftOut, observed: Observations, extractor: FeatureExtractor, inside: Tensor
    ) -> PlainMaps:
        """Maps of the observed pictures, which are part of the Gaussian's fit."""
        features, (kept, copies) = observed.features, observed.own[0].shape[:2]
        own = torch.stack([torch.cat(features[i::copies]).cpu()[:kept] for i in range(copies)], dim=1)
        return PlainMaps(left_out, own, extractor, inside)

    def maps(self, pictures: Tensor, origins: list[int]) -> Tensor:
        """Raw maps [n, s, s] of pictures uint8 [n, 3, size, size]; origins as for `LeftOutMaps.look`."""
        size = pictures.shape[-1]
        step, maps = cell_step(size), []
        for picture, origin in zip(pictures, origins):
            features = self.extractor(to_float(picture[None], self.extractor.mean.device)).cpu()
            distance = self.left_out.squared_mahalanobis(features, self.own[origin][None])
            maps.append(plain_map(distance, size)[:, ::step, ::step])
        return _levelled(torch.cat(maps)[:, None], self.inside[origins][:, ::step, ::step])[:, 0]


def _residual_maps(
    residuals: Tensor, timesteps: tuple[int, ...], left_out: LeftOut, own: Tensor, size: int
) -> Tensor:
    """Leave-one-out raw maps.

    Args:
        residuals: [n, n_t, 1, c, g, g].
        own: the residuals that the same pictures contributed to the fit, [n, m, 3, c, g, g].

    Returns:
        [n, n_t, size / step, size / step].
    """
    maps, step = [], cell_step(size)
    for begin in range(0, len(residuals), 2 * ROWS):  # all of them in float32 would fill the memory
        rows = slice(begin, begin + 2 * ROWS)

        def distance(residual: Tensor, grid: int, own: Tensor = own[rows]) -> Tensor:
            return left_out.squared_mahalanobis(residual, own[:, :, grid].float(), grid)

        large = residual_maps(residuals[rows].float(), distance, size, timesteps)
        maps.append(large[..., ::step, ::step])
    return torch.cat(maps)


def _levelled(maps: Tensor, inside: Tensor) -> Tensor:
    """Maps [n, n_t, s, s] with the padding, which inspections ignore, set to the mean of the rest."""
    weight = inside[:, None].to(maps)
    mean = (maps * weight).sum(dim=(2, 3), keepdim=True) / weight.sum(dim=(2, 3), keepdim=True)
    return torch.where(inside[:, None], maps, mean)


class Gaussians(NamedTuple):
    """Of a profile: of both branches, and of the plain features, if it has them."""

    perceptual: ResidualGaussian
    residual: ResidualGaussian
    plain: PlainGaussian | None


def left_out_maps(
    sums: Sums,
    observer: Observer,
    observed: Observations,
    pictures: Tensor,
    copies: Sequence[Tensor],
    inside: Tensor,
) -> tuple[Gaussians, LeftOutMaps]:
    """The Gaussians fitted to sums, and the leave-one-out maps of observed pictures that are part of these.

    Args:
        observed: of `pictures` and `copies`, which are as for `LeftOutMaps`.
    """
    (perceptual, pixel), (residual, feature) = sums.perceptual.fitted(), sums.residual.fitted()
    plain_gaussian = plain_maps = None
    if sums.plain is not None:
        plain_gaussian, without = sums.plain.fitted()
        plain_maps = PlainMaps.of(without, observed, observer.extractor, inside)
    maps = LeftOutMaps(observer, pictures, copies, inside, observed.own, (pixel, feature), plain_maps)
    return Gaussians(perceptual, residual, plain_gaussian), maps
