"""A world with a known answer: x_0 ~ N(m, C), so the ideal denoiser is a formula and needs no training.

Everything is written from the joint Gaussian of x_0, x_previous and x_t and from its own β table, not from
the formulas of `diffad.method.diffusion`, so that agreement means something.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffad.method.diffusion import Prediction
from diffad.method.gaussian import ResidualGaussian, Scatter
from diffad.method.scoring import Embedding

BETAS = np.linspace(1e-4, 0.02, 1000)
ALPHA_BAR = np.append(np.cumprod(1 - BETAS), 1.0)  # index −1 is the clean picture
FIRST_POSTERIOR_VARIANCE = BETAS[1] * BETAS[0] / (1 - ALPHA_BAR[1])  # β̃ of the step 1 → 0


def column(values: np.ndarray | Tensor) -> Tensor:
    """float64 [b] → [b, 1, 1, 1]."""
    return torch.as_tensor(np.asarray(values), dtype=torch.float64).view(-1, 1, 1, 1)


def alpha_bar(t: Tensor) -> Tensor:
    """ᾱ_t of the linear schedule, float64 [b, 1, 1, 1]; 1 for t = −1."""
    return column(ALPHA_BAR[t.cpu().numpy()])


@dataclass(frozen=True)
class GaussianWorld:
    """N(mean, U diag(eigenvalues) Uᵀ) over pictures; callable as a denoiser (x_t, t) → Prediction.

    mean: float64 [c, s, s]. eigenvalues: float64 [n], n = c·s². basis: U [n, n], None if pixels are
    independent. stride: the step for which the predicted v is the ideal one. kernel: the linear feature map,
    invertible, on 2 × 2 patches that do not overlap: [4c, c, 2, 2].
    """

    mean: Tensor
    eigenvalues: Tensor
    basis: Tensor | None
    kernel: Tensor
    stride: int = 4

    @staticmethod
    def independent(mean: Tensor, std: Tensor | float, stride: int = 4) -> GaussianWorld:
        variance = torch.as_tensor(std, dtype=torch.float64).expand_as(mean).flatten() ** 2
        return GaussianWorld(mean.double(), variance, None, _kernel(len(mean)), stride)

    @staticmethod
    def correlated(mean: Tensor, std: Tensor | float, stride: int = 4) -> GaussianWorld:
        """Correlation falls by half with every pixel, and 0.6 between colours."""
        c, s, _ = mean.shape
        near = 0.5 ** (torch.arange(s)[:, None] - torch.arange(s)).abs().double()
        correlation = torch.kron(torch.full((c, c), 0.6).fill_diagonal_(1).double(), torch.kron(near, near))
        scale = torch.as_tensor(std, dtype=torch.float64).expand_as(mean).flatten()
        eigenvalues, basis = torch.linalg.eigh(scale[:, None] * correlation * scale)
        return GaussianWorld(mean.double(), eigenvalues, basis, _kernel(c), stride)

    @property
    def covariance(self) -> Tensor:
        """C, float64 [n, n]."""
        if self.basis is None:
            return torch.diag(self.eigenvalues)
        return self.basis @ torch.diag(self.eigenvalues) @ self.basis.T

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """Pictures of this world, float64 [count, c, s, s]."""
        generator = torch.Generator().manual_seed(seed)
        white = torch.randn(count, self.mean.numel(), generator=generator, dtype=torch.float64)
        coloured = self._from_basis(white * self.eigenvalues.sqrt())
        return self.mean + coloured.view(count, *self.mean.shape)

    def posterior(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """E[x_0 | x_t] and Var[x_0 | x_t] per pixel, float64 [b, c, s, s]."""
        return self._conditional(x_t, t, torch.full_like(t, -1))

    def reverse(self, x_t: Tensor, t: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """E[x_previous | x_t] and Var[x_previous | x_t] per pixel, float64 [b, c, s, s]."""
        return self._conditional(x_t, t, previous)

    def features(self, x: Tensor) -> Tensor:
        """f(x) = W x, [b, c, s, s] → [b, 4c, s/2, s/2], differentiable."""
        return F.conv2d(x, self.kernel.to(x.dtype), stride=2)

    def embed(self, x: Tensor) -> Embedding:
        """As a backbone: what is compared are the colours themselves, means over 2 × 2."""
        return Embedding(self.features(x), self.perceptual(x))

    def perceptual(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2)

    def __call__(self, x_t: Tensor, t: Tensor) -> Prediction:
        bar, previous = alpha_bar(t), (t - self.stride).clamp(min=-1)
        mean, variance = self.posterior(x_t, t)
        noise = (x_t.double() - bar.sqrt() * mean) / (1 - bar).sqrt()
        _, step_variance = self.reverse(x_t, t, previous)
        bar_p = alpha_bar(previous)
        beta = 1 - bar / bar_p
        low = ((1 - bar_p) / (1 - bar) * beta).clamp(min=FIRST_POSTERIOR_VARIANCE).log()
        v = ((step_variance.log() - low) / (beta.log() - low).clamp(min=1e-9)).clamp(0, 1)
        prediction = (noise, v, variance.log(), self.features(mean))
        return Prediction(*(value.to(x_t.dtype) for value in prediction))

    def _conditional(self, x_t: Tensor, t: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """x_p ~ N(√ᾱ_p m, ᾱ_p C + (1 − ᾱ_p) I), x_t = √α x_p + √(1 − α) η: regression of x_p on x_t."""
        bar, bar_p = alpha_bar(t)[..., 0, 0], alpha_bar(previous)[..., 0, 0]  # [b, 1]
        alpha = bar / bar_p
        prior = bar_p * self.eigenvalues + (1 - bar_p)  # [b, n]
        total = alpha * prior + (1 - alpha)
        surprise = self._to_basis((x_t.double() - bar.sqrt()[..., None, None] * self.mean).flatten(1))
        mean = self._from_basis(alpha.sqrt() * prior / total * surprise).view(x_t.shape)
        spectrum = prior * (1 - alpha) / total
        variance = spectrum if self.basis is None else spectrum @ self.basis.T**2
        return bar_p.sqrt()[..., None, None] * self.mean + mean, variance.view(x_t.shape)

    def _to_basis(self, rows: Tensor) -> Tensor:
        return rows if self.basis is None else rows @ self.basis

    def _from_basis(self, rows: Tensor) -> Tensor:
        return rows if self.basis is None else rows @ self.basis.T


def _kernel(channels: int) -> Tensor:
    width = 4 * channels
    weights = torch.randn(width, width, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return (weights / width**0.5 + torch.eye(width)).view(width, channels, 2, 2)


def residual_gaussian(
    grids: Sequence[Iterable[Tensor]], block: int = 2, stages: Sequence[int] | None = None, **settings: Any
) -> ResidualGaussian:
    """Of each grid's batches of residuals. stages: None for a single one with all channels."""
    sums = summed(grids, block)
    stages = stages or (sums[0].mean().shape[-1],)
    return ResidualGaussian.fit(sums, stages=stages, **settings)[0]


def summed(grids: Sequence[Iterable[Tensor]], block: int = 2) -> list[Scatter]:
    sums = []
    for batches in grids:
        sums.append(Scatter(block))
        for batch in batches:
            assert sums[-1].add(batch) is sums[-1]
    return sums


def smooth_mean(size: int, channels: int = 3) -> Tensor:
    """A picture well inside [−1, 1], different in every channel and corner; float64 [c, s, s]."""
    ramp = torch.linspace(0, 1, size, dtype=torch.float64)
    shift = torch.arange(channels, dtype=torch.float64)[:, None, None]
    return 0.3 * torch.sin(3 * ramp[:, None] + shift) * torch.cos(2 * ramp - shift)
