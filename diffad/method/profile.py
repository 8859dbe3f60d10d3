"""Everything that is specific to one category: Gaussians, calibration and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from diffad.method.calibration import Calibration
from diffad.method.gaussian import PlainGaussian, ResidualGaussian
from diffad.method.place_gaussian import PlaceGaussian
from diffad.method.pose import Upright
from diffad.method.scoring import RawMaps, plain_map, residual_maps


@dataclass(frozen=True)
class Profile:
    """Statistics of the good pictures of one category.

    Attributes:
        gaussian: Gaussian of the features by place (PaDiM), which recognises the category.
        residual: Gaussian of the feature residual f(x_0) − f_θ.
        perceptual: Gaussian of the perceptual residual φ(x_0) − φ(x̂_0) (`scoring.evidence`).
        calibration: statistics of the good pictures' maps.
        forecast: results on artificial defects and the settings chosen by them; free JSON.
        upright: pose to which parts are rotated; None leaves them as they are.
        bits: bit depth of the training pictures; None for 8-bit files.
        quality: range of each of `quality.MEASURES` over the good pictures, if known.
        size: side of the model's square in px; None is the size that the network was trained at.
        plain: Gaussian of the features themselves, for a category that the network was not trained on.
        ignored: places that are not judged, bool [s, s] over the model's square (rotated, if parts are);
            None if all are.
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
        """Raw maps by this category's Mahalanobis distances.

        Args:
            pixel, residual: as returned by `scoring.evidence`.
            features: of the picture, [b, c, g, g].
            size: side of the maps, px.
            timesteps: of the evidence.
        """
        if pixel.dim() > 4:  # perceptual residuals rather than maps
            pixel = residual_maps(pixel, self.perceptual.squared_mahalanobis, size, timesteps)
        feature = residual_maps(residual, self.residual.squared_mahalanobis, size, timesteps)
        plain = None if self.plain is None else plain_map(self.plain.squared_mahalanobis(features), size)
        return RawMaps(pixel, feature, tuple(timesteps), plain)

    def to(self, device: torch.device) -> Profile:
        """Move the Gaussians to a device; the small calibration stays on the CPU."""
        return replace(
            self,
            gaussian=self.gaussian.to(device),
            residual=self.residual.to(device),
            perceptual=self.perceptual.to(device),
            plain=None if self.plain is None else self.plain.to(device),
        )
