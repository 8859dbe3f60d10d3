"""The Gaussian of the features by place, by which a category is recognised (after PaDiM; used in eq. (12)).

It has one mean per place after a fixed orthogonal projection to 32 dimensions, a covariance per block of
places, and takes less than 1 MB.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffad.method.gaussian import inverse_cholesky, outer_by_block

DIMS = 32  # maximum dimensions of the projected features
RIDGE = 0.05  # added to a covariance's diagonal; features are standardised, so 1 is a typical variance


@dataclass(frozen=True)
class PlaceGaussian:
    """N(μ_p, Σ_B) of the projected features at each place p; the places of block B share Σ_B.

    Attributes (float32):
        projection: [dims, channels], rows orthonormal.
        mean: [dims, grid, grid].
        whitening: L⁻¹ of Σ = L Lᵀ, lower triangular [grid/block, grid/block, dims, dims].
    """

    projection: Tensor
    mean: Tensor
    whitening: Tensor

    @staticmethod
    def fit(batches: Iterable[Tensor], *, block: int = 4) -> PlaceGaussian:
        """Fit in one streaming pass.

        Args:
            batches: standardised features [b, channels, grid, grid] of normal pictures.
            block: places per side that share a covariance.

        Raises:
            ValueError: no pictures, or the grid is not divisible into blocks.
        """
        count, projection = 0, None
        for batch in batches:
            if projection is None:
                channels, grid = batch.shape[1], batch.shape[-1]
                if grid % block:
                    raise ValueError(f"a grid of {grid} does not divide into blocks of {block}")
                projection = orthogonal_projection(channels, min(DIMS, channels)).to(batch.device)
                dims, blocks = len(projection), grid // block
                total = batch.new_zeros(dims, grid, grid, dtype=torch.float64)
                outer = batch.new_zeros(blocks, blocks, dims, dims, dtype=torch.float64)
            z = torch.einsum("dc,bchw->bdhw", projection, batch.float()).double()
            count += len(z)
            total += z.sum(dim=0)
            outer += outer_by_block(z, block)
        if projection is None:
            raise ValueError("the Gaussian needs at least one normal picture")
        mean = total / count
        covariance = (outer - count * outer_by_block(mean[None], block)) / max(1, (count - 1) * block**2)
        covariance += RIDGE * torch.eye(len(projection), dtype=torch.float64, device=covariance.device)
        return PlaceGaussian(projection, mean.float(), inverse_cholesky(covariance).float())

    def squared_mahalanobis(self, features: Tensor) -> Tensor:
        """(f − μ)ᵀ Σ⁻¹ (f − μ) / dims at every place, about 1 for normal features; differentiable.

        features: [b, channels, grid, grid]. Returns [b, grid, grid].
        """
        z = self.project(features) - self.mean
        blocks = self.whitening.shape[0]
        b, d, grid, _ = z.shape
        cells = z.reshape(b, d, blocks, grid // blocks, blocks, grid // blocks)
        white = torch.einsum("ijed,bdiyjx->beiyjx", self.whitening, cells)
        return white.square().mean(dim=1).reshape(b, grid, grid)

    def project(self, features: Tensor) -> Tensor:
        """Project features [b, channels, grid, grid] to [b, dims, grid, grid]."""
        return torch.einsum("dc,bchw->bdhw", self.projection, features.float())

    def log_likelihood(self, features: Tensor) -> Tensor:
        """Log density per dimension at every place, up to a constant, [b, grid, grid]."""
        # −½ log|Σ| / dims, [blocks, blocks]
        log_det = self.whitening.diagonal(dim1=-2, dim2=-1).log().mean(-1)
        repeat = self.mean.shape[-1] // len(log_det)
        log_det = log_det.repeat_interleave(repeat, 0).repeat_interleave(repeat, 1)
        return log_det - 0.5 * self.squared_mahalanobis(features)

    def to(self, device: torch.device) -> PlaceGaussian:
        return PlaceGaussian(self.projection.to(device), self.mean.to(device), self.whitening.to(device))


def orthogonal_projection(channels: int, dims: int) -> Tensor:
    """A fixed matrix with orthonormal rows, float32 [dims, channels]."""
    generator = torch.Generator().manual_seed(0)
    square: Tensor
    square, _ = torch.linalg.qr(torch.randn(channels, channels, generator=generator, dtype=torch.float64))
    return square[:, :dims].T.float().contiguous()
