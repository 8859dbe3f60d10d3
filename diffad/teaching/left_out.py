"""Raw maps of good pictures as if they had been left out of the Gaussians that are fitted on them.

Otherwise the Gaussians would flatter the pictures that they are made of, and with them the calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffad.method.features import FeatureExtractor
from diffad.method.gaussian import LeftOut, PlainGaussian, PlainLeftOut
from diffad.method.scoring import TIMESTEPS, RawMaps, plain_map, residual_maps
from diffad.pictures.geometry import to_float
from diffad.teaching.residuals import FEATURE_BLOCK, ROWS, Observations, Observer, block

_MAPS = 256  # cells a side; of maps with at least twice as many only every step-th cell is kept


def cell_step(size: int) -> int:
    """Every how many-th cell of a map with `size` cells a side is kept."""
    return max(1, size // _MAPS)


@dataclass(frozen=True)
class LeftOutMaps:
    """Maps of the calibrated pictures, of their copies, and of pictures with defects made of them.

    pictures, copies: uint8 [n, 3, s, s] each. inside: where they are and not their padding, bool [n, s, s].
    own: by branch, the residuals with which the first pictures and their copies are part of the fit
    (`Observations.own`). left_out: by branch. plain: None for a category without plain features.
    """

    observer: Observer
    pictures: Tensor
    copies: Sequence[Tensor]
    inside: Tensor
    own: Sequence[Tensor]
    left_out: Sequence[LeftOut]
    plain: PlainMaps | None

    def of_copy(self, number: int) -> RawMaps:
        """Of the calibrated pictures (number 0) or of one of their changed copies, at TIMESTEPS."""
        origins = range(len(self.own[0]))
        pictures = (self.pictures, *self.copies)[number][: len(origins)]
        if self.observer.kind == "perceptual":
            found: Sequence[Tensor] = [own[:, number, :, None] for own in self.own]
        else:
            found = self.observer.look(pictures, TIMESTEPS)
        return replace(self._maps(found, TIMESTEPS, origins), plain=self._plain(pictures, origins))

    def look(self, pictures: Tensor, timesteps: tuple[int, ...], origins: Sequence[int]) -> RawMaps:
        """Of any pictures, uint8 [n, 3, s, s], without plain maps. origins: the numbers of the calibrated
        pictures that these are, or were made of.
        """
        parts = []
        for begin in range(0, len(pictures), 2 * ROWS):  # all residuals at once would fill the memory
            rows = slice(begin, begin + 2 * ROWS)
            parts.append(self._maps(self.observer.look(pictures[rows], timesteps), timesteps, origins[rows]))
        pixel, feature = (torch.cat([getattr(part, name) for part in parts]) for name in ("pixel", "feature"))
        return RawMaps(pixel, feature, timesteps)

    def spoiled(self, defects: Tensor, origins: Sequence[int]) -> RawMaps:
        """Of pictures with defects at TIMESTEPS, with plain maps. origins: as of `look`."""
        return replace(self.look(defects, TIMESTEPS, origins), plain=self._plain(defects, origins))

    def _maps(self, found: Sequence[Tensor], timesteps: tuple[int, ...], origins: Sequence[int]) -> RawMaps:
        """Of both branches' residuals [n, n_t, 1, c, g, g], or of raw maps [n, n_t, s, s]."""
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
    """Maps of the plain features as if no picture were part of their Gaussian.

    own: features of the first pictures and of their copies, fp16 [n, 1 + copies, c, g, g].
    """

    left_out: PlainLeftOut
    own: Tensor
    extractor: FeatureExtractor
    inside: Tensor

    @staticmethod
    def fit(observed: Observations, extractor: FeatureExtractor, inside: Tensor) -> PlainMaps:
        features, (kept, copies) = observed.features, observed.own[0].shape[:2]
        places = block(features[0].shape[-1], FEATURE_BLOCK)
        _, left_out = PlainGaussian.fit(features, block=places, stages=extractor.stage_channels)
        own = torch.stack([torch.cat(features[i::copies]).cpu()[:kept] for i in range(copies)], dim=1)
        return PlainMaps(left_out.to(torch.device("cpu")), own, extractor, inside)

    def maps(self, pictures: Tensor, origins: list[int]) -> Tensor:
        """Raw maps [n, s, s] of uint8 [n, 3, size, size]; origins as of `LeftOutMaps.look`."""
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
    """Raw maps [n, n_t, size / step, size / step] of residuals [n, n_t, 1, c, g, g] of pictures that are part
    of the fit by own [n, m, 3, c, g, g].
    """
    maps, step = [], cell_step(size)
    for begin in range(0, len(residuals), 2 * ROWS):  # all in float32 would fill the memory
        rows = slice(begin, begin + 2 * ROWS)

        def distance(residual: Tensor, grid: int, own: Tensor = own[rows]) -> Tensor:
            return left_out.squared_mahalanobis(residual, own[:, :, grid].float(), grid)

        large = residual_maps(residuals[rows].float(), distance, size, timesteps)
        maps.append(large[..., ::step, ::step])
    return torch.cat(maps)


def _levelled(maps: Tensor, inside: Tensor) -> Tensor:
    """Maps [n, n_t, s, s] with their own mean in the padding, which no inspection looks at."""
    weight = inside[:, None].to(maps)
    mean = (maps * weight).sum(dim=(2, 3), keepdim=True) / weight.sum(dim=(2, 3), keepdim=True)
    return torch.where(inside[:, None], maps, mean)
