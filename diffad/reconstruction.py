"""Gradient denoising (12), (13), Algorithm 1: walk a picture down the Mahalanobis distance of its deep
features, and let the diffusion model remove what the gradient leaves behind. A generator that yields every
step: one loop serves the result, the animation and the live page.

Two variants. As printed (`weight=None`): the whole picture moves, and every N_d steps becomes μ_θ(x, t) at a
small fixed t. Weighed by the anomaly map (`weight`): only what is anomalous moves, the rest is the original
to the last bit; every N_d steps x moves half-way to x̂_0, at a t that falls from coarse to fine, so that
first the part's shape is rebuilt and then its surface.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diffad.diffusion import Denoiser, Schedule
from diffad.gaussian import PlaceGaussian
from diffad.scoring import noise_for, smooth

FINEST = 20  # t of the last pull towards x̂_0, of 1000


class Repair(NamedTuple):
    """x: the picture so far [1, 3, size, size] in [−1, 1]; mahalanobis: mean squared distance per dimension
    before this step's move (weighed like the gradient); denoised: whether this step ended with the diffusion
    model.
    """

    index: int
    x: Tensor
    mahalanobis: float
    denoised: bool


def gradient_denoising(
    schedule: Schedule,
    denoise: Denoiser,
    extract: Callable[[Tensor], Tensor],
    gaussian: PlaceGaussian,
    x_start: Tensor,
    *,
    steps: int = 100,
    denoise_every: int = 5,
    step_size: float = 0.03,
    timestep: int = 600,
    weight: Tensor | None = None,
    seed: int = 0,
) -> Iterator[Repair]:
    """Yields `steps` repairs of x_start [1, 3, size, size] in [−1, 1].

    extract: x → standardised features, differentiable. weight: [1, 1, size, size] in [0, 1], or None for the
    printed algorithm. step_size: s in x ← √(1 − s²) x − s g with g of unit standard deviation; weighed, it
    falls linearly to a tenth. timestep: t of the reverse steps, index in the full chain; weighed, it falls
    geometrically to 20. Raises ValueError for arguments out of range.
    """
    if steps < 1 or denoise_every < 1 or not 0 < step_size < 1 or not 0 <= timestep < schedule.steps:
        raise ValueError(
            "steps and denoise_every are at least 1, step_size lies in (0, 1), timestep in the chain"
        )
    x = x_start
    places = None if weight is None else F.adaptive_avg_pool2d(weight, gaussian.mean.shape[-1])[:, 0]
    for index in range(1, steps + 1):
        gradient, distance = _gradient(extract, gaussian, x, places)  # [1, 3, size, size]
        # weighed, the last step denoises too: the gradient's grain must not stay
        denoising = index % denoise_every == 0 or (weight is not None and index == steps)
        if weight is None:
            g = gradient / gradient.std().clamp(min=1e-12)
            x = ((1 - step_size**2) ** 0.5 * x - step_size * g).clamp(-1, 1)
            if denoising:
                t = torch.tensor([timestep])
                with torch.no_grad():
                    x = schedule.ddpm_step(denoise(x, t), x, t, t - 1).clamp(-1, 1)
        else:
            # unit deviation where it acts: the size of the defect must not change the size of the step
            power = (gradient**2 * weight).sum() / (3 * weight.sum()).clamp(min=1e-6)
            done = (index - 1) / steps
            s = step_size * (1 - 0.9 * done)
            x = (x - s * weight * gradient / power.sqrt().clamp(min=1e-12)).clamp(-1, 1)
            if denoising:
                t = round(timestep * (min(FINEST, timestep) / max(1, timestep)) ** done)  # geometric
                pulled = 0.5 * x + 0.5 * expected(schedule, denoise, x, t, seed + index)
                x = torch.where(weight > 0, (1 - weight) * x_start + weight * pulled, x_start)
        yield Repair(index, x.detach(), distance, denoising)


@torch.no_grad()
def expected(schedule: Schedule, denoise: Denoiser, x: Tensor, t: int, seed: int) -> Tensor:
    """x̂_0 of x noised to t: what the model expects to see, details finer than the noise replaced."""
    steps = torch.full((len(x),), t)
    x_t = schedule.q_sample(x, steps, noise_for(seed, t, 0, x.shape[1:]).to(x))
    return schedule.predict_x_start(denoise(x_t, steps).noise, x_t, steps)


def repair_weight(anomaly_map: Tensor, low: float, high: float) -> Tensor:
    """Where to repair: 0 below `low`, 1 above `high` of the map [..., s, s] in σ, widened and blurred; [1, 1,
    s, s].

    Exactly 0 away from anomalies, so that good places stay as they are.
    """
    size = anomaly_map.shape[-1]
    ramp = ((anomaly_map - low) / (high - low)).clamp(0, 1).reshape(1, 1, size, size)
    reach = 2 * round(size * 6 / 256) + 1  # px; the map's smoothing has blurred the defect's border inwards
    wide = smooth(F.max_pool2d(ramp, reach, stride=1, padding=reach // 2), sigma=3)
    return torch.where(wide < 0.01, torch.zeros_like(wide), wide)


def _gradient(
    extract: Callable[[Tensor], Tensor], gaussian: PlaceGaussian, x: Tensor, places: Tensor | None
) -> tuple[Tensor, float]:
    """∇_x of the squared Mahalanobis distance (12) and its mean over places."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        distance = gaussian.squared_mahalanobis(extract(x))  # [1, grid, grid]
        if places is not None:
            distance = distance * places
        gradient = torch.autograd.grad(distance.sum(), x)[0].float()
    scale = distance.numel() if places is None else float(places.sum().clamp(min=1e-6))
    return gradient, float(distance.detach().sum()) / scale
