"""Denoising diffusion with learned variance (DDPM, improved DDPM, DDIM), as pure functions of tensors and a
denoiser.

Every timestep is an index 0 … T−1 of the *full* chain (index 0 is the paper's step 1), also on a respaced
chain: a step goes from `t` to `previous` < t, and `previous = -1` is the clean picture (ᾱ = 1). So a stride
is simply t − previous, the network always sees the t that its noise belongs to, and no second set of tables
can disagree with the first.

Shapes: pictures [batch, channel, h, w] in [−1, 1]; t and previous are int64 [batch]. Tables are float64, cast
once. References: Ho et al. 2020 (DDPM), Nichol & Dhariwal 2021 (learned variance, hybrid loss, cosine
schedule), Song et al. 2021 (DDIM), Bao et al. 2022 (Analytic-DPM), Lu et al. 2023 (KL as anomaly score).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Prediction(NamedTuple):
    """What one network call at (x_t, t) returns.

    noise: ε_θ [b, c, h, w]. variance: v in [0, 1], same shape, places log σ² between log β̃ and log β.
    x_start_log_variance: log Var[x_0 | x_t], same shape, the network's own uncertainty about x̂_0. features:
    f_θ(x_t, t) [b, feature_channels, grid, grid], the standardised features of the clean picture; None if the
    denoiser has none.
    """

    noise: Tensor
    variance: Tensor
    x_start_log_variance: Tensor
    features: Tensor | None = None


Denoiser = Callable[[Tensor, Tensor], Prediction]


class Gaussian(NamedTuple):
    """Mean and log-variance of a diagonal Gaussian; both [b, c, h, w] or broadcastable to it."""

    mean: Tensor
    log_variance: Tensor


@dataclass(frozen=True)
class Schedule:
    """Noise schedule: alphas_cumprod[t] = ᾱ_t, float64 [T], strictly falling in (0, 1)."""

    alphas_cumprod: Tensor

    @staticmethod
    def linear(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
        """β_t linear from beta_start to beta_end (Ho et al.); the ends are those of T = 1000 and scale with
        1000/T.
        """
        scale = 1000 / steps
        betas = torch.linspace(scale * beta_start, scale * beta_end, steps, dtype=torch.float64).clamp(
            max=0.999
        )
        return Schedule(torch.cumprod(1 - betas, 0))

    @staticmethod
    def cosine(steps: int = 1000, offset: float = 0.008) -> Schedule:
        """ᾱ_t = cos²((t/T + s)/(1 + s)·π/2), β clipped at 0.999 (Nichol & Dhariwal, eq. 17)."""
        level = (
            torch.cos(
                (torch.arange(steps + 1, dtype=torch.float64) / steps + offset) / (1 + offset) * math.pi / 2
            )
            ** 2
        )
        betas = (1 - level[1:] / level[:-1]).clamp(max=0.999)
        return Schedule(torch.cumprod(1 - betas, 0))

    @staticmethod
    def named(name: str) -> Schedule:
        """"linear" or "cosine", of 1000 steps. Raises ValueError for another name."""
        if name not in ("linear", "cosine"):
            raise ValueError(f"the schedule is linear or cosine, not {name!r}")
        return Schedule.linear() if name == "linear" else Schedule.cosine()

    @property
    def steps(self) -> int:
        return len(self.alphas_cumprod)

    def alpha_bar(self, t: Tensor, like: Tensor) -> Tensor:
        """ᾱ_t as [b, 1, 1, 1] float64 on `like`'s device; 1 for t = −1."""
        table = torch.cat(
            [self.alphas_cumprod, self.alphas_cumprod.new_ones(1)]
        )  # index −1 is the clean picture
        return table.to(like.device)[t.to(like.device)].view(-1, *[1] * (like.ndim - 1))  # [b, 1, 1, 1]

    # -- forward process -------------------------------------------------------------------------------------

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t ~ q(x_t | x_0) = N(√ᾱ_t x_0, (1 − ᾱ_t) I), float32 [b, c, h, w]."""
        alpha_bar = self.alpha_bar(t, x_start)
        return alpha_bar.sqrt().to(x_start.dtype) * x_start + (1 - alpha_bar).sqrt().to(x_start.dtype) * noise

    def q_posterior(self, x_start: Tensor, x_t: Tensor, t: Tensor, previous: Tensor) -> Gaussian:
        """q(x_previous | x_t, x_0) = N(μ̃, β̃ I); its log-variance is the clipped one, see `_log_bounds`."""
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

        β̃ is 0 where previous = −1; it is clipped from below at the full chain's first positive value, that
        of the step 1 → 0, and β with it, so that β̃ ≤ β always holds.
        """
        bar_t, bar_p = self.alpha_bar(t, like), self.alpha_bar(previous, like)
        beta = 1 - bar_t / bar_p
        first, second = self.alphas_cumprod[0], self.alphas_cumprod[1]
        floor = float((1 - first) / (1 - second) * (1 - second / first))
        lower = ((1 - bar_p) / (1 - bar_t) * beta).clamp(min=floor)
        return lower.log(), torch.maximum(beta, lower).log()

    # -- reverse process -------------------------------------------------------------------------------------

    def predict_x_start(self, noise: Tensor, x_t: Tensor, t: Tensor, clip: bool = True) -> Tensor:
        """x̂_0 = (x_t − √(1 − ᾱ_t) ε) / √ᾱ_t, clipped to [−1, 1] unless told otherwise."""
        alpha_bar = self.alpha_bar(t, x_t)
        x_start = (x_t - (1 - alpha_bar).sqrt().to(x_t.dtype) * noise) * alpha_bar.rsqrt().to(x_t.dtype)
        return x_start.clamp(-1, 1) if clip else x_start

    def p_mean_variance(
        self,
        prediction: Prediction,
        x_t: Tensor,
        t: Tensor,
        previous: Tensor,
        *,
        variance: str = "learned_range",
        clip: bool = True,
    ) -> tuple[Gaussian, Tensor]:
        """p_θ(x_previous | x_t) and x̂_0.

        variance="learned_range": log σ² = v log β + (1 − v) log β̃ (Nichol & Dhariwal, eq. 15).
        variance="x_start": σ² = β̃ + c² Var[x_0 | x_t], c the weight of x_0 in μ̃: the optimal reverse
        variance, for any stride, from the predicted uncertainty of x̂_0 (Bao et al., eq. 9).
        """
        x_start = self.predict_x_start(prediction.noise, x_t, t, clip)
        from_start, from_t = self._posterior_coefficients(x_t, t, previous)
        mean = from_start.to(x_t.dtype) * x_start + from_t.to(x_t.dtype) * x_t
        low, high = (bound.to(x_t.dtype) for bound in self._log_bounds(x_t, t, previous))
        if variance == "learned_range":
            log_variance = prediction.variance * high + (1 - prediction.variance) * low
        elif variance == "x_start":
            spread = 2 * from_start.log().to(x_t.dtype) + prediction.x_start_log_variance
            log_variance = torch.logaddexp(low.expand_as(spread), spread)
        else:
            raise ValueError(f"variance is 'learned_range' or 'x_start', not {variance!r}")
        return Gaussian(mean, log_variance), x_start

    def ddpm_step(
        self,
        prediction: Prediction,
        x_t: Tensor,
        t: Tensor,
        previous: Tensor,
        noise: Tensor | None = None,
        **options,
    ) -> Tensor:
        """One reverse step: a sample of p_θ(x_previous | x_t), or its mean if noise is None. No noise onto
        x_0.
        """
        step, _ = self.p_mean_variance(prediction, x_t, t, previous, **options)
        if noise is None:
            return step.mean
        keep = (previous >= 0).to(x_t).view(-1, *[1] * (x_t.ndim - 1))
        return step.mean + keep * (0.5 * step.log_variance).exp() * noise

    def ddim_step(
        self,
        prediction: Prediction,
        x_t: Tensor,
        t: Tensor,
        previous: Tensor,
        *,
        eta: float = 0.0,
        noise: Tensor | None = None,
        clip: bool = True,
    ) -> Tensor:
        """One DDIM step (Song et al., eq. 12): deterministic for eta = 0; eta = 1 has DDPM's variance β̃."""
        x_start = self.predict_x_start(prediction.noise, x_t, t, clip)
        bar_t, bar_p = self.alpha_bar(t, x_t), self.alpha_bar(previous, x_t)
        # ε that belongs to the clipped x̂_0, so that (x̂_0, ε) stay consistent with x_t
        epsilon = (x_t - bar_t.sqrt().to(x_t.dtype) * x_start) * (1 - bar_t).rsqrt().to(x_t.dtype)
        variance = eta**2 * (1 - bar_p) / (1 - bar_t) * (1 - bar_t / bar_p)
        if eta and noise is None:
            raise ValueError("a DDIM step with eta > 0 needs noise")
        x_previous = bar_p.sqrt().to(x_t.dtype) * x_start
        x_previous = x_previous + (1 - bar_p - variance).clamp(min=0).sqrt().to(x_t.dtype) * epsilon
        if noise is not None:
            x_previous = x_previous + variance.sqrt().to(x_t.dtype) * noise
        return x_previous

    def sample_progressive(
        self,
        denoise: Denoiser,
        x_t: Tensor,
        timesteps: Sequence[int],
        *,
        method: str = "ddim",
        generator: torch.Generator | None = None,
        **options,
    ) -> Iterator[tuple[int, Tensor]]:
        """Walk down `timesteps` (strictly falling, ending at the clean picture) and yield (previous,
        x_previous).

        method: "ddim" (deterministic unless eta > 0) or "ddpm" (ancestral); noise is drawn on the CPU from
        `generator`. Raises ValueError for another method or for timesteps that do not fall.
        """
        if method not in ("ddim", "ddpm"):
            raise ValueError(f"method is 'ddim' or 'ddpm', not {method!r}")
        chain = [*timesteps, -1]
        if any(later >= earlier for earlier, later in pairwise(chain)):
            raise ValueError("timesteps must fall strictly and be at least 0")
        for t_value, previous_value in pairwise(chain):
            t = torch.full((len(x_t),), t_value)
            previous = torch.full_like(t, previous_value)
            prediction = denoise(x_t, t.to(x_t.device))
            step = self.ddim_step if method == "ddim" else self.ddpm_step
            noise = None
            if method == "ddpm" or options.get("eta"):
                noise = torch.randn(x_t.shape, generator=generator).to(x_t)
            x_t = step(prediction, x_t, t, previous, noise=noise, **options)
            yield previous_value, x_t

    # -- divergences and loss --------------------------------------------------------------------------------

    def kl(
        self,
        prediction: Prediction,
        x_start: Tensor,
        x_t: Tensor,
        t: Tensor,
        previous: Tensor,
        variance: str = "learned_range",
    ) -> Tensor:
        """One term of the variational bound per value, nats, float32 [b, c, h, w].

        KL( q(x_previous | x_t, x_0) ‖ p_θ(x_previous | x_t) ), or for previous = −1 the decoder's negative
        log-likelihood of the 8-bit picture. Always computed in float32: 1/σ² at small t magnifies rounding.
        """
        prediction = Prediction(*(None if value is None else value.float() for value in prediction))
        x_start, x_t = x_start.float(), x_t.float()
        truth = self.q_posterior(x_start, x_t, t, previous)
        model, _ = self.p_mean_variance(prediction, x_t, t, previous, variance=variance)
        divergence = normal_kl(truth, model)
        clean = (previous < 0).to(x_t.device).view(-1, *[1] * (x_t.ndim - 1))
        if not bool(clean.any()):
            return divergence
        return torch.where(clean, discretized_gaussian_nll(x_start, model), divergence)


def normal_kl(first: Gaussian, second: Gaussian) -> Tensor:
    """KL(first ‖ second) of diagonal Gaussians, nats, elementwise: ½(−1 + log σ₂²/σ₁² + σ₁²/σ₂² + (μ₁ −
    μ₂)²/σ₂²).
    """
    gap = second.log_variance - first.log_variance
    return 0.5 * (
        -1 + gap + torch.exp(-gap) + (first.mean - second.mean) ** 2 * torch.exp(-second.log_variance)
    )


def discretized_gaussian_nll(x_start: Tensor, model: Gaussian) -> Tensor:
    """−log P of 8-bit values under a Gaussian integrated over each value's bin, nats, elementwise.

    x_start holds k/127.5 − 1; bins are 1/127.5 wide, the outermost reach to ±∞.
    """
    scale = torch.exp(-0.5 * model.log_variance)
    upper = (x_start - model.mean + 1 / 255) * scale
    lower = (x_start - model.mean - 1 / 255) * scale
    # log(Φ(upper) − Φ(lower)) on the side where both are small, so that nothing cancels far from the mean
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
    vlb_weight: float = 0.01,
    uncertainty_weight: float = 0.05,
) -> dict[str, Tensor]:
    """ε-MSE + VLB (variance only) + NLL of x̂_0 (uncertainty only) + feature MSE; scalar terms and their sum
    "loss".

    features: f(x_0), standardised, [b, feature_channels, grid, grid]. The VLB term is the KL of a step of
    `stride` on the respaced chain (the full chain leaves log σ² nowhere to go); its gradient, and that of the
    NLL, does not reach the mean (Nichol & Dhariwal, sec. 3.1).

    shown: x_start with artificial defects, which are noised in its stead: ε then is whatever leads from x_0
    to x_t, so that anomalies are removed as noise is (Yao et al. 2024, GLAD). Where the two differ the error
    is that of x̂_0, since ε there is as large as √SNR, and nothing is learned about variances, which shall
    stay those of good parts.

    holes: bool [b, 1, h, w], where there is noise at all. The rest is √ᾱ_t x_0, so that the network learns to
    fill a hole from surroundings that nothing disturbs (after Saharia et al. 2022, Palette); each picture's
    loss is that of its hole, which counts as much as a whole picture, up to tenfold.
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
    loss = noise_loss + feature_loss + vlb_weight * vlb + uncertainty_weight * uncertainty
    return {
        "loss": loss,
        "noise": noise_loss,
        "features": feature_loss,
        "vlb": vlb,
        "uncertainty": uncertainty,
    }
