"""Gradient denoising, equations (12), (13) and Algorithm 1: gradient descent of a picture on the Mahalanobis
distance of its features, alternating with denoising by the diffusion model.

Both repairs are generators that yield every step, for the result, the animation and the live page.

- `gradient_denoising` is the published algorithm: the whole picture moves towards the Gaussian of good parts'
  features, and every N_d steps it is replaced by μ_θ(x, t) at a small fixed t.
- `weighed_repair` changes only anomalous places; all other pixels are exactly preserved. It descends on the
  distances of the anomaly score, between the picture's features and those that the network predicts for it,
  so that parts may have any pose. Every N_d steps x moves half-way to x̂_0. Since gradients do not lead out
  of a large defect, the model can first fill the place from its surroundings, at falling t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffad.method.diffusion import Denoiser, Schedule
from diffad.method.gaussian import ResidualGaussian
from diffad.method.place_gaussian import PlaceGaussian
from diffad.method.scoring import TIMESTEPS, grid_of, noise_for, offset_of, shifted, smooth
from diffad.pictures.arrays import Bools

FILLING = 1 / 3  # share of a weighed repair's steps that fill holes; they cost a fraction of gradient steps
FILLED_TO = 100  # lowest t of filling; the network is trained to fill holes at this t and above
FINEST = 20  # t of the last denoising step
RENEWED = 0.7  # σ of the new noise mixed in between two fillings


@dataclass(frozen=True)
class GradientStep:
    """One step of a repair.

    Attributes:
        index: number of the step.
        x: the picture after the step, [1, 3, size, size] in [−1, 1].
        mahalanobis: mean squared distance per dimension before the step; in a weighed repair, over the places
            under repair and the score's timesteps, as last measured for each.
        denoised: whether the step ended with the diffusion model.
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
    steps: int = 500,
    denoise_every: int = 5,
    step_size: float = 0.02,
    timestep: int = 32,
) -> Iterator[GradientStep]:
    """Algorithm 1 as published.

    Args:
        schedule, denoise: the diffusion model.
        extract: x → standardised features, differentiable.
        gaussian: of good parts' features.
        x_start: the picture, [1, 3, size, size] in [−1, 1].
        steps: N, number of steps.
        denoise_every: N_d, steps between two reverse steps.
        step_size: s in x ← √(1 − s²) x − s g with g of unit standard deviation.
        timestep: t of the reverse steps, index in the full chain.

    Yields:
        Every step, from 1.
    """
    x, t = x_start, torch.tensor([timestep])
    everywhere = torch.ones_like(x[:, :1])
    for index in range(1, steps + 1):
        gradient, distance = _gradient(lambda y: gaussian.squared_mahalanobis(extract(y)), everywhere, x)
        g = gradient / gradient.std().clamp(min=1e-12)
        x = ((1 - step_size**2) ** 0.5 * x - step_size * g).clamp(-1, 1)
        denoising = index % denoise_every == 0
        if denoising:
            with torch.no_grad():
                x = schedule.p_mean_variance(denoise(x, t), x, t, t - 1).mean.clamp(-1, 1)
        yield GradientStep(index, x.detach(), distance, denoising)


def weighed_repair(
    schedule: Schedule,
    denoise: Denoiser,
    extract: Callable[[Tensor], Tensor],
    covariance: ResidualGaussian,
    x_start: Tensor,
    weight: Tensor,
    *,
    steps: int = 90,
    denoise_every: int = 5,
    step_size: float = 0.03,
    timestep: int = 900,
    filling: bool = True,
    seed: int = 0,
) -> Iterator[GradientStep]:
    """Repair a picture where `weight` is above 0.

    Args:
        schedule, denoise: the diffusion model.
        extract: x → standardised features [1, c, g, g], differentiable.
        covariance: of the residual between these and the predicted features, on good pictures.
        x_start: the picture, [1, 3, size, size] in [−1, 1].
        weight: where to repair, [1, 1, size, size] in [0, 1].
        steps: number of steps.
        denoise_every: N_d, gradient steps between two denoising steps.
        step_size: s in x ← x − s g, where g has unit mean square over the weight; falls linearly to a tenth.
        timestep: t of the first filling, which falls geometrically to 100; denoising continues to 20.
        filling: whether the first third of the steps fills the place from its surroundings.
        seed: of the noise.

    Yields:
        Step 0, the unchanged picture, then every step.
    """
    x, holes = x_start, weight > 0
    with torch.no_grad():
        cell = x_start.shape[-1] // extract(x_start).shape[-1]

    def fresh(index: int, t: int) -> Tensor:
        return noise_for(seed + index, t, 0, x_start.shape[1:]).to(x_start)[None]

    def put(drawn: Tensor) -> Tensor:
        return torch.where(holes, (1 - weight) * x_start + weight * drawn, x_start)

    def distance_at(index: int) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """The distance at one of the score's timesteps, in turn, and the weight shifted to its grid."""
        t = TIMESTEPS[index % len(TIMESTEPS)]
        by = offset_of(t, cell)
        distance = _distance_to_expected(schedule, denoise, extract, covariance, x, t, by, fresh(index, t))
        return distance, shifted(weight, by)

    with torch.no_grad():
        looks = [distance_at(index) for index in range(len(TIMESTEPS))]
        distances = [_mean_distance(distance(x), on_grid) for distance, on_grid in looks]
    yield GradientStep(0, x_start, _mean(distances), False)

    fillings = round(FILLING * steps) if filling and timestep > FILLED_TO else 0
    noise = fresh(0, timestep)
    for index in range(1, fillings + 1):
        t = _between(timestep, FILLED_TO, (index - 1) / max(1, fillings - 1))
        drawn, noise = fill(schedule, denoise, x, t, holes, noise)
        noise = (1 - RENEWED**2) ** 0.5 * noise + RENEWED * fresh(index, t)
        x = put(drawn)
        yield GradientStep(index, x, _mean(distances), True)

    coarsest = min(timestep, FILLED_TO)
    for index in range(fillings + 1, steps + 1):
        done = (index - fillings - 1) / (steps - fillings)
        gradient, distances[index % len(distances)] = _gradient(*distance_at(index), x)
        # normalised over the weight, so that the step does not depend on the size of the defect
        power = (gradient**2 * weight).sum() / (3 * weight.sum()).clamp(min=1e-6)
        s = step_size * (1 - 0.9 * done)
        x = (x - s * weight * gradient / power.sqrt().clamp(min=1e-12)).clamp(-1, 1)
        denoising = index % denoise_every == 0 or index == steps  # removes the gradient's grain at the end
        if denoising:
            t = _between(coarsest, FINEST, done)
            drawn, _ = fill(schedule, denoise, x, t, torch.ones_like(holes), fresh(index, t))
            x = put(0.5 * x + 0.5 * drawn)
        yield GradientStep(index, x.detach(), _mean(distances), denoising)


@torch.no_grad()
def _distance_to_expected(
    schedule: Schedule,
    denoise: Denoiser,
    extract: Callable[[Tensor], Tensor],
    covariance: ResidualGaussian,
    x: Tensor,
    t: int,
    by: int,
    noise: Tensor,
) -> Callable[[Tensor], Tensor]:
    """y → squared distances [1, g, g] of y's features to those predicted for x at t, both shifted by `by`."""
    times = torch.full((1,), t)
    x_t = schedule.q_sample(shifted(x, by), times, noise)
    expected = denoise(x_t, times).features.float()
    return lambda y: covariance.squared_mahalanobis(extract(shifted(y, by)) - expected, grid_of(t))


@torch.no_grad()
def fill(
    schedule: Schedule, denoise: Denoiser, x: Tensor, t: int, holes: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Predict the contents of holes.

    Args:
        x: [b, 3, s, s], noised to t in its holes and clean elsewhere.
        t: timestep.
        holes: [b, 1, s, s].
        noise: ε for the holes, shaped as x.

    Returns:
        x̂_0 and the ε that leads from it to x_t. Calling again with this ε at a lower t makes a DDIM step.
    """
    steps = torch.full((len(x),), t)
    x_t = schedule.q_sample(x, steps, noise * holes)
    expected = schedule.predict_x_start(denoise(x_t, steps).noise, x_t, steps)
    alpha_bar = schedule.alpha_bar(steps, x)
    return expected, ((x_t - alpha_bar.sqrt() * expected) * (1 - alpha_bar).rsqrt()).to(x)


def _between(first: int, last: int, share: float) -> int:
    """Geometric interpolation from the first t to the last; a last t above the first counts as the first."""
    return round(first * math.pow(min(last, first) / max(1, first), share))


def repair_weight(anomaly_map: Tensor, low: Tensor | float) -> Tensor:
    """Where to repair, by an anomaly map.

    Args:
        anomaly_map: [..., s, s], σ.
        low: limit of the map, a number or shaped as the map. The weight rises from 0 at this limit to 1 at a
            fifth above it, and areas enclosed by such places have weight 1. The result is slightly dilated
            and blurred.

    Returns:
        [1, 1, s, s] in [0, 1], exactly 0 away from anomalies.
    """
    size = anomaly_map.shape[-1]
    ramp = ((anomaly_map - low) / (0.2 * low)).clamp(0, 1).reshape(1, 1, size, size)
    inside = _enclosed((ramp[0, 0] > 0).cpu().numpy())
    ramp = torch.where(torch.from_numpy(inside).to(ramp.device), 1.0, ramp)
    reach = 2 * round(size * 2 / 256) + 1  # px
    wide = smooth(F.max_pool2d(ramp, reach, stride=1, padding=reach // 2), sigma=1.5)
    return torch.where(wide < 0.01, torch.zeros_like(wide), wide)


def _enclosed(above: Bools) -> Bools:
    """Areas enclosed by regions, bool [s, s]: the map of a large uniform stain is high only along its edge.

    Only holes smaller than the region around them count: a thin ring usually encloses a sound part.
    """
    regions = above.astype(np.uint8)
    outlines, _ = cv2.findContours(regions, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    whole = np.zeros_like(regions)
    for index in range(len(outlines)):
        filled = np.zeros_like(regions)
        cv2.drawContours(filled, outlines, index, 1, cv2.FILLED)
        if filled.sum() < 2 * (filled & regions).sum():
            whole |= filled
    return (whole > 0) & ~above


def _gradient(distance: Callable[[Tensor], Tensor], weight: Tensor, x: Tensor) -> tuple[Tensor, float]:
    """Gradient in x of the weighted sum of squared distances (12), and their weighted mean."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        distances = distance(x)
        gradient = torch.autograd.grad((distances * _places(weight, distances)).sum(), x)[0].float()
    return gradient, _mean_distance(distances.detach(), weight)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _mean_distance(distance: Tensor, weight: Tensor) -> float:
    places = _places(weight, distance)
    return float((distance * places).sum() / places.sum().clamp(min=1e-6))


def _places(weight: Tensor, distance: Tensor) -> Tensor:
    """Average a weight [1, 1, s, s] over the grid of the distances, [1, g, g]."""
    return F.adaptive_avg_pool2d(weight, distance.shape[-1])[:, 0]
