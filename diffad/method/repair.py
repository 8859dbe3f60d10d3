"""Gradient denoising (12), (13), Algorithm 1: walk a picture down the Mahalanobis distance of its deep
features, and let the diffusion model remove what the gradient leaves behind.

Both repairs are generators that yield every step: one loop serves result, animation and live page.
`gradient_denoising` is the algorithm as printed: the whole picture moves towards the Gaussian of good parts'
features at each place, and every N_d steps it becomes μ_θ(x, t) at a small fixed t. `weighed_repair` moves
only what is anomalous; the rest stays the original to the last bit. It moves towards the features that the
network expects of this very picture, by the distances of the anomaly score, so that a part may lie at any
angle. Every N_d steps x moves half-way to x̂_0. Since a gradient does not lead out of a large defect, the
model can first draw the place anew from its surroundings, at a t that falls from coarse to fine.
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
from diffad.method.gaussian import PlaceGaussian, ResidualGaussian
from diffad.method.scoring import TIMESTEPS, grid_of, noise_for, offset_of, shifted, smooth
from diffad.pictures.arrays import Bools

FILLING = 1 / 3  # share of a weighed repair's steps in which holes are filled; others cost several times more
FILLED_TO = 100  # t at which a hole is filled; training teaches it from there on up
FINEST = 20  # t of the last pull towards x̂_0
RENEWED = 0.7  # σ of the noise that is drawn anew between two fillings


@dataclass(frozen=True)
class GradientStep:
    """One step of a repair.

    x: the picture so far, [1, 3, size, size] in [−1, 1]. mahalanobis: mean squared distance per dimension
    before this step's move; if weighed, over the places that move and the score's timesteps, each as last
    measured. denoised: whether this step ended with the diffusion model.
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
    """Algorithm 1 as printed; yields `steps` repairs.

    Args:
        extract: x → standardised features, differentiable.
        x_start: [1, 3, size, size] in [−1, 1].
        denoise_every: N_d, steps between two reverse steps.
        step_size: s in x ← √(1 − s²) x − s g with g of unit standard deviation.
        timestep: t of the reverse steps, index in the full chain.
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
    """Yields the picture as it is, then `steps` repairs of it where `weight` is above 0.

    Args:
        extract: x → standardised features [1, c, g, g], differentiable.
        covariance: of the residual between these and the predicted ones, on good pictures.
        x_start: [1, 3, size, size] in [−1, 1].
        weight: [1, 1, size, size] in [0, 1].
        denoise_every: N_d, steps between two pulls towards x̂_0.
        step_size: s in x ← x − s g with g of unit mean square where it acts; falls linearly to a tenth.
        timestep: t of the first filling, falls geometrically to 100; pulls go on from there to 20.
        filling: whether the first third of the steps draws the place anew.
    """
    x, holes = x_start, weight > 0
    with torch.no_grad():
        cell = x_start.shape[-1] // extract(x_start).shape[-1]

    def fresh(index: int, t: int) -> Tensor:
        return noise_for(seed + index, t, 0, x_start.shape[1:]).to(x_start)[None]

    def put(drawn: Tensor) -> Tensor:
        return torch.where(holes, (1 - weight) * x_start + weight * drawn, x_start)

    def distance_at(index: int) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """x → squared distances [1, g, g] to what the network expects now, and the weight on their grid.

        The score's three timesteps take turns.
        """
        t = TIMESTEPS[index % len(TIMESTEPS)]
        times = torch.full((1,), t)
        by = offset_of(t, cell)
        with torch.no_grad():
            x_t = schedule.q_sample(shifted(x, by), times, fresh(index, t))
            expected = denoise(x_t, times).features.float()

        def distance(y: Tensor) -> Tensor:
            return covariance.squared_mahalanobis(extract(shifted(y, by)) - expected, grid_of(t))

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
        # unit deviation where it acts: the size of the defect must not change the size of the step
        power = (gradient**2 * weight).sum() / (3 * weight.sum()).clamp(min=1e-6)
        s = step_size * (1 - 0.9 * done)
        x = (x - s * weight * gradient / power.sqrt().clamp(min=1e-12)).clamp(-1, 1)
        denoising = index % denoise_every == 0 or index == steps  # the gradient's grain must not stay
        if denoising:
            t = _between(coarsest, FINEST, done)
            drawn, _ = fill(schedule, denoise, x, t, torch.ones_like(holes), fresh(index, t))
            x = put(0.5 * x + 0.5 * drawn)
        yield GradientStep(index, x.detach(), _mean(distances), denoising)


@torch.no_grad()
def fill(
    schedule: Schedule, denoise: Denoiser, x: Tensor, t: int, holes: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """(x̂_0, ε) of x [1, 3, s, s] noised to t in its holes [1, 1, s, s] and undisturbed elsewhere.

    x̂_0 is what the model expects in the holes, ε the noise that leads from it to x_t. Called again with this
    ε at the next lower t it makes a DDIM step.
    """
    steps = torch.full((len(x),), t)
    x_t = schedule.q_sample(x, steps, noise * holes)
    expected = schedule.predict_x_start(denoise(x_t, steps).noise, x_t, steps)
    alpha_bar = schedule.alpha_bar(steps, x)
    return expected, ((x_t - alpha_bar.sqrt() * expected) * (1 - alpha_bar).rsqrt()).to(x)


def _between(first: int, last: int, share: float) -> int:
    """Geometrically from the first t to the last, which is never above it."""
    return round(first * math.pow(min(last, first) / max(1, first), share))


def repair_weight(anomaly_map: Tensor, low: Tensor | float) -> Tensor:
    """Where to repair, [1, 1, s, s] in [0, 1]; exactly 0 away from anomalies, so that good places stay.

    The weight is 0 where the map [..., s, s] in σ is below `low` (of the same shape, or one number) and 1
    from a fifth above it, also in what such places enclose; a little wider, with a soft rim.
    """
    size = anomaly_map.shape[-1]
    ramp = ((anomaly_map - low) / (0.2 * low)).clamp(0, 1).reshape(1, 1, size, size)
    inside = _enclosed((ramp[0, 0] > 0).cpu().numpy())
    ramp = torch.where(torch.from_numpy(inside).to(ramp.device), 1.0, ramp)
    reach = 2 * round(size * 2 / 256) + 1  # px
    wide = smooth(F.max_pool2d(ramp, reach, stride=1, padding=reach // 2), sigma=1.5)
    return torch.where(wide < 0.01, torch.zeros_like(wide), wide)


def _enclosed(above: Bools) -> Bools:
    """What regions enclose, bool [s, s]: the map of a wide even stain shows only its rim.

    Only holes smaller than the region around them count: inside a thin ring around a part's own middle all is
    sound.
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
    """∇_x of the weighed sum of squared Mahalanobis distances (12), x → [1, g, g], and their mean."""
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
    """[1, 1, s, s] → [1, g, g]."""
    return F.adaptive_avg_pool2d(weight, distance.shape[-1])[:, 0]
