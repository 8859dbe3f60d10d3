"""Denoising diffusion with learned variance (improved DDPM), as pure functions of tensors and a denoiser.

Timesteps are always indices 0 to T−1 of the full chain (index 0 is step 1 in the papers), also on a respaced
chain: a step goes from `t` to `previous` < t, and `previous = -1` is the clean picture (ᾱ = 1). The stride is
t − previous, and no second set of tables is needed.

Shapes: pictures [batch, channel, h, w] in [−1, 1]; t and previous are int64 [batch]. Tables are float64 and
cast where used. References: Ho et al. 2020 (DDPM), Nichol & Dhariwal 2021 (learned variance, hybrid loss), Lu
et al. 2023 (KL as anomaly score).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_VLB_WEIGHT, _UNCERTAINTY_WEIGHT = 0.01, 0.05  # in the loss


class Prediction(NamedTuple):
    """Output of one network call at (x_t, t).

    Attributes:
        noise: ε_θ [b, c, h, w].
        variance: v in [0, 1], same shape, interpolates log σ² between log β̃ and log β.
        x_start_log_variance: log Var[x_0 | x_t], same shape, the predicted uncertainty of x̂_0.
        features: f_θ(x_t, t) [b, feature_channels, grid, grid], the predicted standardised features of the
            clean picture.
    """

    noise: Tensor
    variance: Tensor
    x_start_log_variance: Tensor
    features: Tensor


Denoiser = Callable[[Tensor, Tensor], Prediction]


class Gaussian(NamedTuple):
    """Mean and log-variance of a diagonal Gaussian; both [b, c, h, w] or broadcastable to it."""

    mean: Tensor
    log_variance: Tensor


@dataclass(frozen=True)
class Schedule:
    """Noise schedule: alphas_cumprod[t] = ᾱ_t, float64 [T], strictly falling in (0, 1)."""

    alphas_cumprod: Tensor
    _tables: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @staticmethod
    def linear() -> Schedule:
        """β_t linear from 1e-4 to 0.02 in 1000 steps (Ho et al.)."""
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        return Schedule(torch.cumprod(1 - betas, 0))

    @staticmethod
    def named(name: str) -> Schedule:
        """The schedule of that name. Raises ValueError for other names than "linear"."""
        if name != "linear":
            raise ValueError(f"the schedule is linear, not {name!r}")
        return Schedule.linear()

    @property
    def steps(self) -> int:
        return len(self.alphas_cumprod)

    def alpha_bar(self, t: Tensor, like: Tensor) -> Tensor:
        """ᾱ_t as [b, 1, 1, 1] float64 on `like`'s device; 1 for t = −1."""
        if like.device not in self._tables:
            table = torch.cat([self.alphas_cumprod, self.alphas_cumprod.new_ones(1)])  # for t = −1
            self._tables[like.device] = table.to(like.device)
        return self._tables[like.device][t.to(like.device)].view(-1, *[1] * (like.ndim - 1))

    # -- forward process -------------------------------------------------------------------------------------

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t ~ q(x_t | x_0) = N(√ᾱ_t x_0, (1 − ᾱ_t) I), float32 [b, c, h, w]."""
        alpha_bar = self.alpha_bar(t, x_start)
        return alpha_bar.sqrt().to(x_start.dtype) * x_start + (1 - alpha_bar).sqrt().to(x_start.dtype) * noise

    def q_posterior(self, x_start: Tensor, x_t: Tensor, t: Tensor, previous: Tensor) -> Gaussian:
        """q(x_previous | x_t, x_0) = N(μ̃, β̃ I), with the log-variance clipped as in `_log_bounds`."""
        from_start, from_t = self._posterior_coefficients(x_start, t, previous)
        mean = from_start.to(x_t.dtype) * x_start + from_t.to(x_t.dtype) * x_t
        return Gaussian(mean, self._log_bounds(x_start, t, previous)[0].to(x_t.dtype))

    def _posterior_coefficients(self, like: Tensor, t: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of x_0 and x_t in μ̃, float64 [b, 1, 1, 1]."""
        bar_t, bar_p = self.alpha_bar(t, like), self.alpha_bar(previous, like)
        alpha = bar_t / bar_p  # α of the stride
        return bar_p.sqrt() * (1 - alpha) / (1 - bar_t), alpha.sqrt() * (1 - bar_p) / (1 - bar_t)

    def _log_bounds(self, like: Tensor, t: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """log β̃ and log β of the stride, float64 [b, 1, 1, 1].

        β̃ is 0 for previous = −1, so it is clipped from below at the full chain's smallest positive value,
        that of the step 1 → 0. β is clipped likewise, so that β̃ ≤ β.
        """
        bar_t, bar_p = self.alpha_bar(t, like), self.alpha_bar(previous, like)
        beta = 1 - bar_t / bar_p
        first, second = self.alphas_cumprod[0], self.alphas_cumprod[1]
        floor = float((1 - first) / (1 - second) * (1 - second / first))
        lower = ((1 - bar_p) / (1 - bar_t) * beta).clamp(min=floor)
        return lower.log(), torch.maximum(beta, lower).log()

    # -- reverse process -------------------------------------------------------------------------------------

    def predict_x_start(self, noise: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x̂_0 = (x_t − √(1 − ᾱ_t) ε) / √ᾱ_t, clipped to [−1, 1]."""
        alpha_bar = self.alpha_bar(t, x_t)
        x_start = (x_t - (1 - alpha_bar).sqrt().to(x_t.dtype) * noise) * alpha_bar.rsqrt().to(x_t.dtype)
        return x_start.clamp(-1, 1)

    def p_mean_variance(self, prediction: Prediction, x_t: Tensor, t: Tensor, previous: Tensor) -> Gaussian:
        """p_θ(x_previous | x_t), with log σ² = v log β + (1 − v) log β̃ (Nichol & Dhariwal, eq. 15)."""
        x_start = self.predict_x_start(prediction.noise, x_t, t)
        from_start, from_t = self._posterior_coefficients(x_t, t, previous)
        mean = from_start.to(x_t.dtype) * x_start + from_t.to(x_t.dtype) * x_t
        low, high = (bound.to(x_t.dtype) for bound in self._log_bounds(x_t, t, previous))
        return Gaussian(mean, prediction.variance * high + (1 - prediction.variance) * low)

    # -- divergences and loss --------------------------------------------------------------------------------

    def kl(self, prediction: Prediction, x_start: Tensor, x_t: Tensor, t: Tensor, previous: Tensor) -> Tensor:
        """One term of the variational bound for each value, nats, float32 [b, c, h, w].

        KL( q(x_previous | x_t, x_0) ‖ p_θ(x_previous | x_t) ), or for previous = −1 the decoder's negative
        log-likelihood of the 8-bit picture. Computed in float32, since 1/σ² at small t magnifies rounding.
        """
        prediction = Prediction(*(value.float() for value in prediction))
        x_start, x_t = x_start.float(), x_t.float()
        truth = self.q_posterior(x_start, x_t, t, previous)
        model = self.p_mean_variance(prediction, x_t, t, previous)
        divergence = normal_kl(truth, model)
        clean = (previous < 0).to(x_t.device).view(-1, *[1] * (x_t.ndim - 1))
        if not bool(clean.any()):
            return divergence
        return torch.where(clean, discretized_gaussian_nll(x_start, model), divergence)


def normal_kl(first: Gaussian, second: Gaussian) -> Tensor:
    """KL(first ‖ second) of diagonal Gaussians, nats, elementwise.

    ½ (−1 + log σ₂²/σ₁² + σ₁²/σ₂² + (μ₁ − μ₂)²/σ₂²)
    """
    gap = second.log_variance - first.log_variance
    return 0.5 * (
        -1 + gap + torch.exp(-gap) + (first.mean - second.mean) ** 2 * torch.exp(-second.log_variance)
    )


def discretized_gaussian_nll(x_start: Tensor, model: Gaussian) -> Tensor:
    """−log P of 8-bit values under a Gaussian integrated over each value's bin, nats, elementwise.

    x_start holds k/127.5 − 1; bins are 1/127.5 wide, and the outermost ones extend to ±∞.
    """
    scale = torch.exp(-0.5 * model.log_variance)
    upper = (x_start - model.mean + 1 / 255) * scale
    lower = (x_start - model.mean - 1 / 255) * scale
    # log(Φ(upper) − Φ(lower)), mirrored to the tail where both are small, which avoids cancellation
    flip = lower > 0
    upper, lower = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
    at_top, at_bottom = x_start > 0.999, x_start < -0.999
    top, bottom = torch.where(flip, at_bottom, at_top), torch.where(flip, at_top, at_bottom)
    log_upper = torch.where(top, torch.zeros_like(upper), torch.special.log_ndtr(upper))
    log_lower = torch.special.log_ndtr(lower)
    inside = log_upper + torch.log(-torch.expm1((log_lower - log_upper).clamp(max=-1e-6)))
    return -torch.where(bottom, log_upper, inside)


def hybrid_loss(
    schedule: Schedule,
    denoise: Denoiser,
    x_start: Tensor,
    features: Tensor,
    t: Tensor,
    noise: Tensor,
    *,
    stride: int = 4,
    shown: Tensor | None = None,
    holes: Tensor | None = None,
) -> dict[str, Tensor]:
    """Training loss: ε-MSE + VLB (variance only) + NLL of x̂_0 (uncertainty only) + feature MSE.

    VLB and NLL do not contribute gradients to the mean (Nichol & Dhariwal, sec. 3.1).

    Args:
        x_start: clean pictures x_0, [b, c, h, w] in [−1, 1].
        features: f(x_0), standardised, [b, feature_channels, grid, grid].
        t: int64 [b].
        noise: ε, shaped as x_start.
        stride: length of the step in the VLB term; at 1 the bounds of log σ² nearly coincide.
        shown: x_start with artificial defects, which is noised instead of it. The target ε still leads from
            x_0 to x_t, so that the network removes anomalies like noise (Yao et al. 2024, GLAD). Where the
            two differ, ε is scaled by √SNR; there the loss is that of x̂_0, and variances are not trained,
            so that they remain those of good parts.
        holes: bool [b, 1, h, w], where noise is added. The rest is √ᾱ_t x_0, so that the network learns to
            fill holes from clean surroundings (after Saharia et al. 2022, Palette). The loss is averaged over
            the holes of each picture, at most tenfold that over the picture.

    Returns:
        The scalar terms "noise", "features", "vlb", "uncertainty", and their weighted sum "loss".
    """
    shown = x_start if shown is None else shown
    share = torch.ones_like(x_start[:, :1])
    if holes is not None:
        noise, share = noise * holes, holes / holes.float().mean(dim=(1, 2, 3), keepdim=True).clamp(min=0.1)
    x_t = schedule.q_sample(shown, t, noise)
    prediction = denoise(x_t, t)
    feature_loss = F.mse_loss(prediction.features.float(), features)
    sound = share * (shown == x_start).all(dim=1, keepdim=True).to(x_start)
    alpha_bar = schedule.alpha_bar(t, x_start)
    snr = (alpha_bar / (1 - alpha_bar)).to(x_start.dtype)
    error = prediction.noise.float() - (noise + snr.sqrt() * (shown - x_start))
    noise_loss = (torch.maximum(sound, share * (1 / snr).clamp(max=1)) * error.square()).mean()

    frozen = prediction._replace(noise=prediction.noise.detach())
    vlb = (sound * schedule.kl(frozen, x_start, x_t, t, (t - stride).clamp(min=-1))).mean()
    x_hat = schedule.predict_x_start(frozen.noise.float(), x_t, t)
    log_variance = prediction.x_start_log_variance.float()
    standard = (x_start - x_hat) ** 2 * torch.exp(-log_variance)
    uncertainty = 0.5 * (sound * (standard + log_variance)).mean()
    loss = noise_loss + feature_loss + _VLB_WEIGHT * vlb + _UNCERTAINTY_WEIGHT * uncertainty
    terms = {"noise": noise_loss, "features": feature_loss, "vlb": vlb, "uncertainty": uncertainty}
    return {"loss": loss, **terms}
