"""What one category adds to the shared network: its distances, its calibration, its choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from diffad.method.calibration import Calibration
from diffad.method.gaussian import PlaceGaussian, PlainGaussian, ResidualGaussian
from diffad.method.pose import Upright
from diffad.method.scoring import RawMaps, plain_map, residual_maps


@dataclass(frozen=True)
class Profile:
    """What the good pictures of one category look like.

    Attributes:
        gaussian: PaDiM's Gaussian of the features by place, by which a picture's category is recognised.
        residual: the Gaussian of the features' residual, f(x_0) − f_θ.
        perceptual: the Gaussian of what a backbone sees of the picture less what it sees of x̂_0.
        calibration: statistics of the good pictures' maps.
        forecast: how well artificial defects were found, and the choices made by that; free JSON.
        upright: how parts are turned before they are looked at; None: they are seen as they lie.
        bits: of the pictures' values, if they were no 8-bit files.
        quality: the range of each of `quality.MEASURES` over the pictures, if it is known.
        size: px a side of the model's square in which pictures are looked at; None: that of the network's own
            training.
        plain: the Gaussian of the features themselves, of a category that the network never learned from;
            None: the residuals say all.
        ignored: where nothing is judged, bool [s, s] over the square in which the model sees the part
            (upright, if it is turned); None: everything is judged.
    """

    gaussian: PlaceGaussian
    residual: ResidualGaussian
    perceptual: ResidualGaussian
    calibration: Calibration
    forecast: Mapping[str, Any] = field(default_factory=dict)
    upright: Upright | None = None
    bits: int | None = None
    quality: tuple[tuple[float, float, float], ...] | None = None
    size: int | None = None
    plain: PlainGaussian | None = None
    ignored: Tensor | None = None

    @cached_property
    def judging(self) -> Calibration:
        """The calibration of what is judged, by which scores and thresholds are found."""
        return self.calibration if self.ignored is None else self.calibration.ignoring(self.ignored.float())

    def raw_maps(
        self, pixel: Tensor, residual: Tensor, features: Tensor, size: int, timesteps: Sequence[int]
    ) -> RawMaps:
        """Raw maps by the distances of this category.

        Args:
            pixel, residual: what `scoring.evidence` returns.
            features: of the picture, [b, c, g, g].
            size: px a side of the maps.
            timesteps: of the evidence.
        """
        if pixel.dim() > 4:  # residuals, not yet maps
            pixel = residual_maps(pixel, self.perceptual.squared_mahalanobis, size, timesteps)
        feature = residual_maps(residual, self.residual.squared_mahalanobis, size, timesteps)
        plain = None if self.plain is None else plain_map(self.plain.squared_mahalanobis(features), size)
        return RawMaps(pixel, feature, tuple(timesteps), plain)

    def to(self, device: torch.device) -> Profile:
        """The distances on a device; the calibration is small and stays where it is."""
        return replace(
            self,
            gaussian=self.gaussian.to(device),
            residual=self.residual.to(device),
            perceptual=self.perceptual.to(device),
            plain=None if self.plain is None else self.plain.to(device),
        )
