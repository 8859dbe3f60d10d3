"""Compact Gaussians of residuals, and of all of the features, by place (after PaDiM, Defard et al. 2021).

PaDiM stores a covariance for every place, which takes gigabytes on a fine grid. Here a block of neighbouring
places shares one covariance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import accumulate

import torch
from torch import Tensor

SHRINKAGE = 0.1  # λ, by which a residual's common covariance is shrunk to its diagonal
KEPT = 48  # maximum directions kept of a stage's residual
_FINEST = 0.5  # weight of a direction of the finest stage; other stages have 1
_CODES = 3  # entries of factors are quantised to integers from −3 to 3


class Scatter:
    """Accumulates Σ r rᵀ of residuals per block of places, in batches of pictures.

    Attributes:
        block: places per side of a block.
        count: observations per block.
    """

    def __init__(self, block: int) -> None:
        self.block, self.count = block, 0
        self._total: Tensor | None = None

    def add(self, residual: Tensor) -> Scatter:
        """Add residuals [b, c, g, g]; returns self. Raises ValueError if g is not divisible into blocks."""
        if residual.shape[-1] % self.block:
            raise ValueError(f"a grid of {residual.shape[-1]} does not divide into blocks of {self.block}")
        self.count += len(residual) * self.block**2
        products = outer_by_block(residual.float(), self.block)
        self._total = (
            products if self._total is None else self._total.add_(products)
        )  # in place to save memory
        return self

    def mean(self) -> Tensor:
        """Second moment about zero per block, float64 [n, n, c, c]. Raises ValueError without data."""
        if self._total is None:
            raise ValueError("the Gaussian needs at least one normal picture")
        return self._total.double() / self.count


@dataclass(frozen=True)
class ResidualGaussian:
    """N(0, Σ_B) of a residual r, either f(x_0) − f_θ or φ(x_0) − φ(x̂_0) (see `scoring.evidence`).

    Each block B of places has a full covariance on each of the g shifted grids (`scoring.grid_of`). In the
    coordinates z = L⁻¹ P r, the inverse factor of a block's covariance is diag(diagonal) + scale · codes.
    This quantisation changes distances by a few per cent and reduces 15 MB to 0.5 MB in a file, for 16 × 16
    blocks with 120 directions.

    Attributes:
        common: L⁻¹ P, float32 [k, c], where P selects k directions of the c channels and L Lᵀ is the
            covariance of all places in these directions.
        codes: strictly lower triangular integers from −3 to 3, int8 [g, n, n, k, k].
        scale: per row, float32 [g, n, n, k], quantised to 256 values (`to_steps`).
        diagonal: shape and quantisation as `scale`.
    """

    common: Tensor
    codes: Tensor
    scale: Tensor
    diagonal: Tensor

    @staticmethod
    def fit(
        grids: Sequence[Scatter], *, stages: Sequence[int], kept: int = KEPT
    ) -> tuple[ResidualGaussian, LeftOut]:
        """Fit the Gaussian of normal pictures' residuals.

        The second moment S is about zero, so that a bias of the network on good pictures counts as normal.
        The common Σ is (1 − λ) S + λ diag(S), with λ = SHRINKAGE. The S of a block is mixed with the common Σ
        as if that were 2 k further observations (the mode of an inverse Wishart posterior), so that with few
        pictures the common Σ prevails. Blocks where good pictures vary less than in the median block, such as
        an even background, get a multiple of the common Σ added to reach the median variance; otherwise a
        speck of dust there would count far more than elsewhere.

        Args:
            grids: sums of the residuals, one per grid.
            stages: channels of each stage of the backbone, finest first. Directions of the finest stage have
                half the weight.
            kept: maximum number of directions per stage, those of largest variance; otherwise the many
                channels of coarse stages would dominate.

        Returns:
            The Gaussian, and its leave-one-out distances for the pictures that it was fitted to.

        Raises:
            ValueError: a grid has no pictures, or the stages do not match the residual's channels.
        """
        return Moments.of(grids, stages=stages, kept=kept).fitted()

    def squared_mahalanobis(self, residual: Tensor, grid: int = 0) -> Tensor:
        """rᵀ Σ_B⁻¹ r / k at every place, about 1 for normal residuals.

        Args:
            residual: [b, c, g, g].
            grid: index of the grid.

        Returns:
            [b, g, g].
        """
        b, _, side, _ = residual.shape
        codes, scale, diagonal = self.codes[grid], self.scale[grid], self.diagonal[grid]
        cells = _by_block(self.common, residual, len(scale))
        n, cell = len(scale), side // len(scale)
        # row by row, since converting all codes to float at once costs more than the products
        mixed = torch.stack([code.float() @ cell_row for code, cell_row in zip(codes, cells)])
        white = scale[..., None] * mixed + diagonal[..., None] * cells
        distance = white.square().mean(dim=2).reshape(n, n, b, cell, cell)
        return distance.permute(2, 0, 3, 1, 4).reshape(b, side, side)

    def to(self, device: torch.device) -> ResidualGaussian:
        return ResidualGaussian(
            *(part.to(device) for part in (self.common, self.codes, self.scale, self.diagonal))
        )


@dataclass(frozen=True)
class Moments:
    """What a `ResidualGaussian` is fitted to: second moments in its coordinates z = L⁻¹ P r.

    Further pictures can be added to them without the pictures that they were made from.

    Attributes:
        common: L⁻¹ P, float64 [k, c].
        weight: of each direction, [k].
        second: mean of z zᵀ per grid and block, float64 [g, n, n, k, k].
        counts: observations per block, for each grid.
    """

    common: Tensor
    weight: Tensor
    second: Tensor
    counts: tuple[int, ...]

    @staticmethod
    def of(grids: Sequence[Scatter], *, stages: Sequence[int], kept: int = KEPT) -> Moments:
        """The moments of normal pictures' residuals; see `ResidualGaussian.fit`."""
        moments = [grid.mean() for grid in grids]
        overall = reduce(torch.add, (moment.mean(dim=(0, 1)) for moment in moments)) / len(moments)
        rows, weight = _kept(overall, stages, kept)  # [k, c], [k]
        overall = rows @ overall @ rows.T
        variance = overall.diagonal()
        only_variances = torch.diag(variance.clamp(min=1e-6 * float(variance.mean()) + 1e-12))
        common = inverse_cholesky((1 - SHRINKAGE) * overall + SHRINKAGE * only_variances) @ rows
        second = torch.stack([common @ moment @ common.T for moment in moments])
        return Moments(common, weight, second, tuple(grid.count for grid in grids))

    def plus(self, grids: Sequence[Scatter]) -> Moments:
        """With the residuals of further pictures, one sum per grid. The coordinates stay as they are."""
        second, counts = [], []
        for own, count, grid in zip(self.second, self.counts, grids, strict=True):
            more = self.common @ grid.mean().to(self.common.device) @ self.common.T
            second.append((count * own + grid.count * more) / (count + grid.count))
            counts.append(count + grid.count)
        return replace(self, second=torch.stack(second), counts=tuple(counts))

    def fitted(self) -> tuple[ResidualGaussian, LeftOut]:
        """The Gaussian, and its leave-one-out distances for the pictures behind it."""
        common, weight = self.common, self.weight
        eye = torch.eye(len(common)).to(common)
        factors, prior_count = [], 2 * len(common)
        for second, count in zip(self.second, self.counts):
            prior = prior_count / (prior_count + count)
            mixed = (1 - prior) * second + prior * eye
            variance = mixed.diagonal(dim1=-2, dim2=-1).mean(dim=-1)
            missing = (variance.median() - variance).clamp(min=0)
            factors.append(inverse_cholesky(mixed + missing[..., None, None] * eye))
        exact = torch.stack(factors)
        factor = exact * weight.sqrt()[:, None]
        below = factor.tril(-1)
        # quantised as in a file
        scale = from_steps(*to_steps((below.abs().amax(dim=-1) / _CODES).clamp(min=1e-6)))
        diagonal = from_steps(*to_steps(factor.diagonal(dim1=-2, dim2=-1)))
        codes = (below / scale[..., None]).round().clamp(-_CODES, _CODES).to(torch.int8)
        gaussian = ResidualGaussian(common.float(), codes, scale, diagonal)
        observations = tuple(prior_count + count for count in self.counts)
        return gaussian, LeftOut(gaussian, exact.float(), weight.float(), observations)

    def to(self, device: torch.device) -> Moments:
        common, weight, second = (part.to(device) for part in (self.common, self.weight, self.second))
        return Moments(common, weight, second, self.counts)


@dataclass(frozen=True)
class LeftOut:
    """Leave-one-out distances of a `ResidualGaussian` for the pictures that it was fitted to.

    In-sample distances are too small: by 40 % in 120 dimensions with 30 pictures. By Woodbury's identity no
    second fit is needed: with N observations, including the prior's, N Σ − Z Zᵀ remains without a picture's
    residuals Z in a block. (The common Σ is kept, as it hardly changes.)

    Attributes:
        gaussian: the fitted Gaussian.
        factors: L⁻¹ of each Σ before quantisation and weighting, float32 [g, n, n, k, k].
        weight: of each direction, [k]: one value for the finest stage's directions, which come first, and
            one for all others.
        observations: N for each grid.
    """

    gaussian: ResidualGaussian
    factors: Tensor
    weight: Tensor
    observations: tuple[int, ...]

    def squared_mahalanobis(self, residual: Tensor, own: Tensor, grid: int = 0) -> Tensor:
        """As `ResidualGaussian.squared_mahalanobis`, with each picture left out of the fit.

        Args:
            residual: [b, c, g, g], which may be of the picture with a defect, or at another t.
            own: [b, m, c, g, g], the m residuals by which each picture contributed to the fit: its own and
                those of its changed copies.
            grid: index of the grid.
        """
        b, _, side, _ = residual.shape
        factor, total = self.factors[grid], self.observations[grid]
        n, cell = len(factor), side // len(factor)

        def white(of: Tensor) -> Tensor:  # [b · m, c, g, g] → [n, n, b, k, m · places]
            cells = factor @ _by_block(self.gaussian.common, of, n)
            return cells.reshape(*cells.shape[:-1], b, -1).transpose(2, 3)

        measured, fitted = white(residual), white(own.flatten(0, 1))

        def gain(rows: slice) -> Tensor:
            """Increase of the distance over the first directions, [n, n, b, places].

            Since L is lower triangular, these directions alone form a Mahalanobis distance too.
            """
            of, by = measured[..., rows, :], fitted[..., rows, :]
            left = total * torch.eye(by.shape[-1]).to(by) - by.transpose(-1, -2) @ by
            root, failed = torch.linalg.cholesky_ex(left)
            lever = torch.linalg.solve_triangular(root, by.transpose(-1, -2) @ of, upper=False)
            lever = torch.where(failed[..., None, None] > 0, 0.0, lever)
            share = by.shape[-1] / total
            return (1 - share) * lever.square().sum(dim=-2) - share * of.square().sum(dim=-2)

        finest = int((self.weight == self.weight[0]).sum())
        first, every = gain(slice(finest)), gain(slice(None))
        gained = (self.weight[0] * first + self.weight[-1] * (every - first)) / len(self.weight)
        gained = gained.reshape(n, n, b, cell, cell).permute(2, 0, 3, 1, 4).reshape(b, side, side)
        return self.gaussian.squared_mahalanobis(residual, grid) + gained

    def to(self, device: torch.device) -> LeftOut:
        return LeftOut(
            self.gaussian.to(device), self.factors.to(device), self.weight.to(device), self.observations
        )


@dataclass(frozen=True)
class PlainGaussian:
    """Gaussian of the features themselves by place, as in PaDiM, without the network's prediction.

    Attributes:
        mean: float32 [c, g, g].
        covariance: of the deviation from the mean, with all directions, on one grid.
    """

    mean: Tensor
    covariance: ResidualGaussian

    @staticmethod
    def fit(
        batches: Sequence[Tensor], *, block: int, stages: Sequence[int]
    ) -> tuple[PlainGaussian, PlainLeftOut]:
        """Fit the Gaussian.

        Args:
            batches: standardised features [b, c, g, g] of normal pictures, of any dtype.
            block: places per side that share a covariance.
            stages: as in `ResidualGaussian.fit`, as are the errors.

        Returns:
            The Gaussian, and its leave-one-out distances for these pictures.
        """
        return PlainMoments.of(batches, block=block, stages=stages).fitted()

    def squared_mahalanobis(self, features: Tensor) -> Tensor:
        """Squared distance per direction at every place, about 1 if normal: [b, c, g, g] → [b, g, g]."""
        return self.covariance.squared_mahalanobis(features.float() - self.mean)

    def to(self, device: torch.device) -> PlainGaussian:
        return PlainGaussian(self.mean.to(device), self.covariance.to(device))


@dataclass(frozen=True)
class PlainMoments:
    """What a `PlainGaussian` is fitted to: the mean of `count` pictures, and moments about it."""

    mean: Tensor
    moments: Moments
    count: int

    @staticmethod
    def of(batches: Sequence[Tensor], *, block: int, stages: Sequence[int]) -> PlainMoments:
        """See `PlainGaussian.fit`."""
        count = sum(map(len, batches))
        mean = reduce(torch.add, (batch.float().sum(dim=0) for batch in batches)) / count
        scatter = Scatter(block)
        for batch in batches:
            scatter.add(batch.float() - mean)
        return PlainMoments(mean, Moments.of([scatter], stages=stages, kept=max(stages)), count)

    def plus(self, features: Tensor) -> PlainMoments:
        """With the features [b, c, g, g] of further pictures."""
        apart = features.to(self.mean) - self.mean
        count = self.count + len(apart)
        step = apart.sum(dim=0) / count  # by which the mean moves
        block = self.mean.shape[-1] // self.moments.second.shape[1]
        moments = self.moments.plus([Scatter(block).add(apart)])
        common = moments.common
        moved = common @ outer_by_block(step[None], block).to(common) @ common.T
        second = moments.second - count * moved / moments.counts[0]
        return PlainMoments(self.mean + step, replace(moments, second=second), count)

    def fitted(self) -> tuple[PlainGaussian, PlainLeftOut]:
        """The Gaussian, and its leave-one-out distances for the pictures behind it."""
        covariance, left_out = self.moments.fitted()
        plain = PlainGaussian(self.mean, covariance)
        return plain, PlainLeftOut(plain, left_out, self.count)

    def to(self, device: torch.device) -> PlainMoments:
        return PlainMoments(self.mean.to(device), self.moments.to(device), self.count)


@dataclass(frozen=True)
class PlainLeftOut:
    """Leave-one-out distances of a `PlainGaussian` for the `count` pictures that it was fitted to."""

    plain: PlainGaussian
    left_out: LeftOut
    count: int

    def squared_mahalanobis(self, features: Tensor, own: Tensor) -> Tensor:
        """As `PlainGaussian.squared_mahalanobis`, with each picture left out of the fit.

        own: [b, m, c, g, g], the features by which each picture contributed to the fit.
        """
        own, mean = own.float(), self.plain.mean
        without = (self.count * mean - own.sum(dim=1)) / (self.count - own.shape[1])
        return self.left_out.squared_mahalanobis(features.float() - without, own - mean)

    def to(self, device: torch.device) -> PlainLeftOut:
        return PlainLeftOut(self.plain.to(device), self.left_out.to(device), self.count)


def _by_block(common: Tensor, residual: Tensor, blocks: int) -> Tensor:
    """Residuals [b, c, g, g] in the common coordinates by block: [n, n, k, b · places]."""
    b, _, side, _ = residual.shape
    cell = side // blocks
    z = torch.einsum("dc,bchw->bdhw", common, residual.float())
    cells = z.reshape(b, -1, blocks, cell, blocks, cell).permute(2, 4, 1, 0, 3, 5)
    return cells.reshape(blocks, blocks, -1, b * cell**2)


def _kept(covariance: Tensor, stages: Sequence[int], kept: int) -> tuple[Tensor, Tensor]:
    """The directions kept, orthonormal rows [k, c], and their weights, [k] with mean 1."""
    if sum(stages) != len(covariance):
        raise ValueError(f"stages of {tuple(stages)} channels are not the residual's {len(covariance)}")
    parts = [stage[:, -kept:].T for stage in (
        torch.linalg.eigh(covariance[end - size : end, end - size : end]).eigenvectors
        for size, end in zip(stages, accumulate(stages))
    )]  # fmt: skip
    weight = torch.ones(sum(len(part) for part in parts)).to(covariance)
    weight[: len(parts[0])] = _FINEST
    return torch.block_diag(*parts), weight / weight.mean()


def to_steps(values: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise positive values in 255 logarithmic steps: uint8, and the minimum and maximum, float32 [2]."""
    ends = torch.stack([values.min(), values.max()]).float()
    low, high = ends.double().log().unbind()
    steps = 255 * (values.double().log() - low) / (high - low).clamp(min=1e-9)
    return steps.round().clamp(0, 255).to(torch.uint8), ends


def from_steps(steps: Tensor, ends: Tensor) -> Tensor:
    """Inverse of `to_steps`, float32; quantising the result again changes nothing."""
    low, high = ends.double().log().unbind()
    return (low + steps.double() / 255 * (high - low)).exp().float()


def inverse_cholesky(covariance: Tensor) -> Tensor:
    """L⁻¹ of Σ = L Lᵀ for a batch of matrices, lower triangular, so that |L⁻¹ r|² = rᵀ Σ⁻¹ r."""
    factor = torch.linalg.cholesky(covariance)
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device).expand_as(factor)
    inverse: Tensor = torch.linalg.solve_triangular(factor, eye, upper=False)
    return inverse


def outer_by_block(z: Tensor, block: int) -> Tensor:
    """Sum of z zᵀ over pictures and the places of each block: [b, d, g, g] → [g/block, g/block, d, d]."""
    b, d, grid, _ = z.shape
    cells = z.reshape(b, d, grid // block, block, grid // block, block).permute(2, 4, 1, 0, 3, 5).flatten(3)
    return cells @ cells.transpose(-1, -2)
