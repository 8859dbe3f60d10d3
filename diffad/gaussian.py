"""PaDiM's multivariate Gaussian per place, kept small (Defard et al. 2021; eq. (12) of the paper measures
with it).

Full PaDiM keeps a covariance at every place, gigabytes for a fine grid. Here features pass a fixed orthogonal
projection to `dims` dimensions, the mean stays per place, and a block of neighbouring places shares one
covariance: well under 1 MB.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_CODES = 3  # a factor's entries are kept as whole numbers of −3 … 3, three bits


@dataclass(frozen=True)
class PlaceGaussian:
    """N(μ_p, Σ_B) of the projected features at each place p, Σ shared by the places of block B.

    projection: [dims, channels], rows orthonormal. mean: [dims, grid, grid].
    whitening: L⁻¹ of Σ = L Lᵀ, lower triangular [grid/block, grid/block, dims, dims]. All float32.
    """

    projection: Tensor
    mean: Tensor
    whitening: Tensor

    @staticmethod
    def fit(
        batches: Iterable[Tensor], *, dims: int = 32, block: int = 4, ridge: float = 0.05, seed: int = 0
    ) -> PlaceGaussian:
        """One streaming pass over standardised features [b, channels, grid, grid] of normal pictures.

        ridge is added to Σ's diagonal (features are standardised, so 1 is a typical variance).
        Raises ValueError if there is no picture or the grid does not divide into blocks.
        """
        count, projection = 0, None
        for batch in batches:
            if projection is None:
                channels, grid = batch.shape[1], batch.shape[-1]
                if grid % block:
                    raise ValueError(f"a grid of {grid} does not divide into blocks of {block}")
                projection = orthogonal_projection(channels, min(dims, channels), seed).to(batch.device)
                total = batch.new_zeros(len(projection), grid, grid, dtype=torch.float64)
                outer = 0.0
            z = torch.einsum("dc,bchw->bdhw", projection, batch.float()).double()
            count += len(z)
            total += z.sum(dim=0)
            outer = outer + _outer_by_block(z, block)
        if projection is None:
            raise ValueError("the Gaussian needs at least one normal picture")
        mean = total / count
        covariance = (outer - count * _outer_by_block(mean[None], block)) / max(1, (count - 1) * block**2)
        covariance += ridge * torch.eye(len(projection), dtype=torch.float64, device=covariance.device)
        return PlaceGaussian(projection, mean.float(), inverse_cholesky(covariance).float())

    def squared_mahalanobis(self, features: Tensor) -> Tensor:
        """(f − μ)ᵀ Σ⁻¹ (f − μ) / dims at every place: [b, channels, grid, grid] → [b, grid, grid]; about 1
        where normal.

        Squared, differentiable, divided by the number of dimensions.
        """
        z = torch.einsum("dc,bchw->bdhw", self.projection, features.float()) - self.mean
        blocks = self.whitening.shape[0]
        b, d, grid, _ = z.shape
        cells = z.reshape(b, d, blocks, grid // blocks, blocks, grid // blocks)
        white = torch.einsum("ijed,bdiyjx->beiyjx", self.whitening, cells)
        return white.square().mean(dim=1).reshape(b, grid, grid)

    def log_likelihood(self, features: Tensor) -> Tensor:
        """Log density of every place over dims, up to a constant: [b, grid, grid]; compares categories."""
        log_det = (
            self.whitening.diagonal(dim1=-2, dim2=-1).log().mean(-1)
        )  # −½ log|Σ| / dims, [blocks, blocks]
        repeat = self.mean.shape[-1] // len(log_det)
        log_det = log_det.repeat_interleave(repeat, 0).repeat_interleave(repeat, 1)
        return log_det - 0.5 * self.squared_mahalanobis(features)

    def to(self, device: torch.device) -> PlaceGaussian:
        return PlaceGaussian(self.projection.to(device), self.mean.to(device), self.whitening.to(device))


@dataclass(frozen=True)
class ResidualGaussian:
    """N(0, Σ_B) of the feature residual f(x_0) − f_θ, one full covariance for each block B of places.

    common: L⁻¹ of the covariance of all places, [c, c], float32. In the coordinates z = L⁻¹ r a block's
    inverse factor is diag(diagonal) + scale · codes, codes strictly lower triangular: int8 [n, n, c, c] of
    −3 … 3, scale by row and diagonal float32 [n, n, c]. Three bits an entry move the distances by a few
    per cent and make 1.8 MB in a file of what would be 38 for 16 × 16 blocks of 192 channels.
    """

    common: Tensor
    codes: Tensor
    scale: Tensor
    diagonal: Tensor

    @staticmethod
    def fit(batches: Iterable[Tensor], *, block: int | None = 2, shrinkage: float = 0.1) -> ResidualGaussian:
        """One streaming pass over residuals [b, c, g, g] of normal pictures; block: places a side that share
        a covariance, None for all.

        S is about zero, not the mean: a bias of the network on good pictures is part of what good pictures
        look like. The common Σ is (1 − λ) S + λ diag(S), with λ = shrinkage in [0, 1]: without blocks, 1
        gives the paper's (10) per standardised channel and 0 the full Mahalanobis distance. A block's S is
        mixed with the common Σ as if that were 2 c observations more (the mode of an inverse Wishart law is
        of this form), so that few pictures fall back on what all places have in common. Where good pictures
        vary less than in the median block, as on an even background, as much of the common Σ is added as is
        missing: a speck of dust there is no more than it would be elsewhere. Raises ValueError if there is no
        picture or the grid does not divide into blocks.
        """
        count, scatter = 0, 0.0
        for batch in batches:
            cell = batch.shape[-1] if block is None else block
            if batch.shape[-1] % cell:
                raise ValueError(f"a grid of {batch.shape[-1]} does not divide into blocks of {cell}")
            count += len(batch) * cell**2
            scatter = scatter + _outer_by_block(batch.float(), cell).double()
        if not count:
            raise ValueError("the Gaussian needs at least one normal picture")
        scatter = scatter / count
        overall, channels = scatter.mean(dim=(0, 1)), scatter.shape[-1]
        variance = overall.diagonal()
        only_variances = torch.diag(variance.clamp(min=1e-6 * float(variance.mean()) + 1e-12))
        common = inverse_cholesky((1 - shrinkage) * overall + shrinkage * only_variances)
        eye = torch.eye(channels, dtype=common.dtype, device=common.device)
        if block is None:
            factors = eye[None, None]
        else:
            prior = 2 * channels / (2 * channels + count)
            mixed = (1 - prior) * common @ scatter @ common.T + prior * eye
            variance = mixed.diagonal(dim1=-2, dim2=-1).mean(dim=-1)
            missing = (variance.median() - variance).clamp(min=0)
            factors = inverse_cholesky(mixed + missing[..., None, None] * eye)
        diagonal = factors.diagonal(dim1=-2, dim2=-1)
        below = factors.tril(-1)
        scale = (below.abs().amax(dim=-1) / _CODES).clamp(min=1e-6).half().double()  # as in the file
        codes = (below / scale[..., None]).round().clamp(-_CODES, _CODES).to(torch.int8)
        return ResidualGaussian(common.float(), codes, scale.float(), diagonal.half().float())

    def squared_mahalanobis(self, residual: Tensor) -> Tensor:
        """rᵀ Σ_B⁻¹ r / c at every place: [b, c, g, g] → [b, g, g]; about 1 where normal."""
        b, c, grid, _ = residual.shape
        n, cell = len(self.scale), grid // len(self.scale)
        z = torch.einsum("dc,bchw->bdhw", self.common, residual.float())
        cells = z.reshape(b, c, n, cell, n, cell).permute(2, 4, 1, 0, 3, 5).reshape(n, n, c, b * cell**2)
        # row by row: the codes of all blocks as floats would be 38 MB, which costs more than the products
        mixed = torch.stack([codes.float() @ row for codes, row in zip(self.codes, cells)])
        white = self.scale[..., None] * mixed + self.diagonal[..., None] * cells
        distance = white.square().mean(dim=2).reshape(n, n, b, cell, cell)
        return distance.permute(2, 0, 3, 1, 4).reshape(b, grid, grid)

    def to(self, device: torch.device) -> ResidualGaussian:
        return ResidualGaussian(
            *(part.to(device) for part in (self.common, self.codes, self.scale, self.diagonal))
        )


def orthogonal_projection(channels: int, dims: int, seed: int) -> Tensor:
    """`dims` orthonormal rows in `channels` dimensions, from a seeded CPU generator; float32 [dims,
    channels].
    """
    generator = torch.Generator().manual_seed(seed)
    square, _ = torch.linalg.qr(torch.randn(channels, channels, generator=generator, dtype=torch.float64))
    return square[:, :dims].T.float().contiguous()


def inverse_cholesky(covariance: Tensor) -> Tensor:
    """L⁻¹ of Σ = L Lᵀ for a batch of matrices, lower triangular: |L⁻¹ r|² is the squared Mahalanobis distance
    of r.
    """
    factor = torch.linalg.cholesky(covariance)
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device).expand_as(factor)
    return torch.linalg.solve_triangular(factor, eye, upper=False)


def _outer_by_block(z: Tensor, block: int) -> Tensor:
    """Σ over pictures and over the places of each block of z zᵀ: [b, d, g, g] → [g/block, g/block, d, d]."""
    b, d, grid, _ = z.shape
    cells = z.reshape(b, d, grid // block, block, grid // block, block).permute(2, 4, 1, 0, 3, 5).flatten(3)
    return cells @ cells.transpose(-1, -2)
