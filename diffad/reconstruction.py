"""Gradient denoising (12), (13), Algorithm 1: walk a picture down the Mahalanobis distance of its deep
features, and let the diffusion model remove what the gradient leaves behind. A generator that yields every
step: one loop serves the result, the animation and the live page.

Two variants. As printed (`weight=None`): the whole picture moves, and every N_d steps becomes μ_θ(x, t) at a
small fixed t. Weighed by the anomaly map (`weight`): only what is anomalous moves, the rest is the original
to the last bit. A gradient does not lead out of a large defect, so first the model draws the place anew from
its surroundings, at a t that falls from coarse to fine; then the gradient works on that, and every N_d steps
x moves half-way to x̂_0.
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

FILLING = 1 / 3  # share of a weighed repair's steps in which holes are filled; others cost several times more
FILLED_TO = 100  # t at which a hole is filled; training teaches it from there on up
FINEST = 20  # t of the last pull towards x̂_0
RENEWED = 0.7  # σ of the noise that is drawn anew between two fillings


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
    steps: int = 90,
    denoise_every: int = 5,
    step_size: float = 0.03,
    timestep: int = 900,
    weight: Tensor | None = None,
    seed: int = 0,
) -> Iterator[Repair]:
    """Yields `steps` repairs of x_start [1, 3, size, size] in [−1, 1].

    extract: x → standardised features, differentiable. weight: [1, 1, size, size] in [0, 1], or None for the
    printed algorithm. step_size: s in x ← √(1 − s²) x − s g with g of unit standard deviation; weighed, it
    falls linearly to a tenth. timestep: t of the reverse steps, index in the full chain; weighed, it falls
    geometrically to 100 while holes are filled, and on to 20. Raises ValueError for arguments out of range.
    """
    if steps < 1 or denoise_every < 1 or not 0 < step_size < 1 or not 0 <= timestep < schedule.steps:
        raise ValueError(
            "steps and denoise_every are at least 1, step_size lies in (0, 1), timestep in the chain"
        )
    if weight is None:
        return _as_printed(
            schedule, denoise, extract, gaussian, x_start, steps, denoise_every, step_size, timestep
        )
    return _weighed(
        schedule, denoise, extract, gaussian, x_start, weight, steps, denoise_every, step_size, timestep, seed
    )


def _as_printed(
    schedule: Schedule,
    denoise: Denoiser,
    extract: Callable[[Tensor], Tensor],
    gaussian: PlaceGaussian,
    x: Tensor,
    steps: int,
    denoise_every: int,
    step_size: float,
    timestep: int,
) -> Iterator[Repair]:
    t = torch.tensor([timestep])
    for index in range(1, steps + 1):
        gradient, distance = _gradient(extract, gaussian, x, None)  # [1, 3, size, size]
        g = gradient / gradient.std().clamp(min=1e-12)
        x = ((1 - step_size**2) ** 0.5 * x - step_size * g).clamp(-1, 1)
        denoising = index % denoise_every == 0
        if denoising:
            with torch.no_grad():
                x = schedule.ddpm_step(denoise(x, t), x, t, t - 1).clamp(-1, 1)
        yield Repair(index, x.detach(), distance, denoising)


def _weighed(
    schedule: Schedule,
    denoise: Denoiser,
    extract: Callable[[Tensor], Tensor],
    gaussian: PlaceGaussian,
    x_start: Tensor,
    weight: Tensor,
    steps: int,
    denoise_every: int,
    step_size: float,
    timestep: int,
    seed: int,
) -> Iterator[Repair]:
    x, holes = x_start, weight > 0
    places = F.adaptive_avg_pool2d(weight, gaussian.mean.shape[-1])[:, 0]

    def fresh(index: int, t: int) -> Tensor:
        return noise_for(seed + index, t, 0, x_start.shape[1:]).to(x_start)[None]

    def put(drawn: Tensor) -> Tensor:
        return torch.where(holes, (1 - weight) * x_start + weight * drawn, x_start)

    fillings = round(FILLING * steps) if timestep > FILLED_TO else 0
    noise = fresh(0, timestep)
    for index in range(1, fillings + 1):
        with torch.no_grad():
            distance = _mean_distance(gaussian.squared_mahalanobis(extract(x)), places)
        t = _between(timestep, FILLED_TO, (index - 1) / max(1, fillings - 1))
        drawn, noise = fill(schedule, denoise, x, t, holes, noise)
        noise = (1 - RENEWED**2) ** 0.5 * noise + RENEWED * fresh(index, t)
        x = put(drawn)
        yield Repair(index, x, distance, True)

    coarsest = min(timestep, FILLED_TO)
    for index in range(fillings + 1, steps + 1):
        gradient, distance = _gradient(extract, gaussian, x, places)  # [1, 3, size, size]
        # unit deviation where it acts: the size of the defect must not change the size of the step
        power = (gradient**2 * weight).sum() / (3 * weight.sum()).clamp(min=1e-6)
        done = (index - fillings - 1) / (steps - fillings)
        s = step_size * (1 - 0.9 * done)
        x = (x - s * weight * gradient / power.sqrt().clamp(min=1e-12)).clamp(-1, 1)
        denoising = index % denoise_every == 0 or index == steps  # the gradient's grain must not stay
        if denoising:
            t = _between(coarsest, FINEST, done)
            drawn, _ = fill(schedule, denoise, x, t, torch.ones_like(holes), fresh(index, t))
            x = put(0.5 * x + 0.5 * drawn)
        yield Repair(index, x.detach(), distance, denoising)


@torch.no_grad()
def fill(
    schedule: Schedule, denoise: Denoiser, x: Tensor, t: int, holes: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """(x̂_0, ε that belongs to it) of x [1, 3, s, s] noised to t in its holes [1, 1, s, s], undisturbed
    elsewhere: what the model expects to see there. Fed with that ε at the next lower t it is a DDIM step.
    """
    steps = torch.full((len(x),), t)
    x_t = schedule.q_sample(x, steps, noise * holes)
    expected = schedule.predict_x_start(denoise(x_t, steps).noise, x_t, steps)
    alpha_bar = schedule.alpha_bar(steps, x)
    return expected, ((x_t - alpha_bar.sqrt() * expected) * (1 - alpha_bar).rsqrt()).to(x)


def _between(first: int, last: int, share: float) -> int:
    """Geometrically from the first t to the last, which is never above it."""
    return round(first * (min(last, first) / max(1, first)) ** share)


def repair_weight(anomaly_map: Tensor, low: Tensor | float) -> Tensor:
    """Where to repair: 0 where the map [..., s, s] in σ is below `low` (of the same shape, or one number), 1
    from a fifth above, a little wider, with a soft rim; [1, 1, s, s].

    Exactly 0 away from anomalies, so that good places stay as they are.
    """
    size = anomaly_map.shape[-1]
    ramp = ((anomaly_map - low) / (0.2 * low)).clamp(0, 1).reshape(1, 1, size, size)
    reach = 2 * round(size * 2 / 256) + 1  # px
    wide = smooth(F.max_pool2d(ramp, reach, stride=1, padding=reach // 2), sigma=1.5)
    return torch.where(wide < 0.01, torch.zeros_like(wide), wide)


def _gradient(
    extract: Callable[[Tensor], Tensor], gaussian: PlaceGaussian, x: Tensor, places: Tensor | None
) -> tuple[Tensor, float]:
    """∇_x of the squared Mahalanobis distance (12) and its mean over places."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        distance = gaussian.squared_mahalanobis(extract(x))  # [1, grid, grid]
        total = distance.sum() if places is None else (distance * places).sum()
        gradient = torch.autograd.grad(total, x)[0].float()
    return gradient, _mean_distance(distance.detach(), places)


def _mean_distance(distance: Tensor, places: Tensor | None) -> float:
    if places is None:
        return float(distance.mean())
    return float((distance * places).sum() / places.sum().clamp(min=1e-6))
