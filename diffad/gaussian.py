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

_COMMON_SHARE = 0.3  # of the whole grid's covariance in a block's
_SMALLEST = 0.02  # eigenvalue of a block's covariance in units of the common one: less is chance


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
    """N(0, Σ_p) of the feature residual f(x_0) − f_θ: one covariance for all places, and in each block of
    places the few directions in which it differs most.

    whitening: L⁻¹ of the common Σ, [c, c]. In the coordinates z = L⁻¹ r, a block's precision is
    base · 1 + Σ_k excess_k v_k v_kᵀ. directions v: [B, B, c, k], orthonormal; excess: [B, B, k]; base:
    [B, B]. All float32.
    """

    whitening: Tensor
    directions: Tensor
    excess: Tensor
    base: Tensor

    @staticmethod
    def fit(residuals: Tensor, shrinkage: float = 1.0, blocks: int = 1, rank: int = 0) -> ResidualGaussian:
        """From residuals [n, c, g, g] of normal pictures; blocks divides g.

        S is about zero, not the mean: a bias of the network on good pictures is part of what good pictures
        look like. The common Σ is (1 − λ) S + λ diag(S), with λ = shrinkage in [0, 1]: 1 and rank 0 give the
        paper's (10) per standardised channel, 0 the full Mahalanobis distance. A block's S is mixed with 30 %
        of the common one, since it has seen little.
        """
        n, c, grid, _ = residuals.shape
        cell = grid // blocks
        scatter = 0.0
        for part in residuals.split(16):  # little by little: half a gigabyte otherwise
            scatter = scatter + _outer_by_block(part.float(), cell).double()
        scatter = scatter / (n * cell**2)
        common = scatter.mean(dim=(0, 1))
        variance = common.diagonal()
        diagonal = torch.diag(variance.clamp(min=1e-6 * float(variance.mean()) + 1e-12))
        whitening = inverse_cholesky((1 - shrinkage) * common + shrinkage * diagonal)
        directions = common.new_zeros(blocks, blocks, c, rank)
        excess = common.new_zeros(blocks, blocks, rank)
        base = common.new_ones(blocks, blocks)
        if rank:
            mixed = (1 - _COMMON_SHARE) * scatter + _COMMON_SHARE * common
            values, vectors = torch.linalg.eigh(whitening @ mixed @ whitening.T)
            logs = values.clamp(min=_SMALLEST).log()
            order = (logs - logs.mean(dim=-1, keepdim=True)).abs().argsort(dim=-1, descending=True)
            logs = torch.gather(logs, -1, order)
            base = torch.exp(-logs[..., rank:].mean(dim=-1))
            excess = torch.exp(-logs[..., :rank]) - base[..., None]
            chosen = order[..., None, :rank].expand(*vectors.shape[:-1], rank)
            directions = torch.gather(vectors, -1, chosen)
        return ResidualGaussian(whitening.float(), directions.float(), excess.float(), base.float())

    def squared_mahalanobis(self, residual: Tensor) -> Tensor:
        """rᵀ Σ_p⁻¹ r / c at every place: [b, c, g, g] → [b, g, g]; about 1 where normal."""
        b, c, grid, _ = residual.shape
        blocks = len(self.base)
        z = torch.einsum("dc,bchw->bdhw", self.whitening, residual.float())
        cells = z.reshape(b, c, blocks, grid // blocks, blocks, grid // blocks)
        distance = self.base[None, :, None, :, None] * cells.square().sum(dim=1)
        along = torch.einsum("ijck,bciyjx->bkiyjx", self.directions, cells).square()
        distance = distance + torch.einsum("ijk,bkiyjx->biyjx", self.excess, along)
        return distance.reshape(b, grid, grid) / c

    def to(self, device: torch.device) -> ResidualGaussian:
        return ResidualGaussian(
            *(part.to(device) for part in (self.whitening, self.directions, self.excess, self.base))
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
