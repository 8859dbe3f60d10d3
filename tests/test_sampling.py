"""Sampling: walking down the chain from noise arrives in the world whose ideal denoiser is known."""

from collections import deque
from collections.abc import Iterable

import pytest
import torch
from gaussian_world import GaussianWorld, smooth_mean
from test_diffusion import LINEAR, arbitrary, noise, pictures


def respaced(count: int) -> list[int]:
    return torch.linspace(999, 0, count).round().int().tolist()


def last(walk: Iterable[tuple[int, torch.Tensor]]) -> torch.Tensor:
    return deque(walk, maxlen=1).pop()[1]


def start(world: GaussianWorld, count: int, seed: int = 3) -> torch.Tensor:
    return noise(count, *world.mean.shape, seed=seed)


def assert_world(x: torch.Tensor, world: GaussianWorld, tolerance: float) -> None:
    """Mean within 5 standard errors + tolerance/4 σ, covariance within `tolerance` of its Frobenius norm."""
    std = world.covariance.diagonal().sqrt().view(world.mean.shape)
    assert ((x.mean(0) - world.mean).abs() / std).max() < 5 / len(x) ** 0.5 + tolerance / 4
    error = torch.linalg.norm(torch.cov(x.flatten(1).T) - world.covariance) / torch.linalg.norm(
        world.covariance
    )
    assert error < tolerance


def test_ancestral_sampling_with_the_exact_variance_is_exact_at_any_respacing():
    """Independent pixels: every reverse kernel is Gaussian and diagonal, so 30 steps serve like 1000."""
    world = GaussianWorld.independent(smooth_mean(2), torch.linspace(0.1, 0.5, 12).double().view(3, 2, 2))
    walk = LINEAR.sample_progressive(
        world,
        start(world, 20_000),
        respaced(30),
        method="ddpm",
        variance="x_start",
        clip=False,
        generator=torch.Generator().manual_seed(0),
    )
    assert_world(last(walk), world, 0.04)


def test_ancestral_sampling_reproduces_the_correlations():
    world = GaussianWorld.correlated(smooth_mean(4), 0.2, stride=10)
    walk = LINEAR.sample_progressive(
        world,
        start(world, 3000),
        respaced(100),
        method="ddpm",
        variance="x_start",
        generator=torch.Generator().manual_seed(0),
    )
    assert_world(last(walk), world, 0.1)


def test_ancestral_sampling_of_the_full_chain_with_the_learned_range():
    world = GaussianWorld.independent(smooth_mean(2), 0.25, stride=1)
    walk = LINEAR.sample_progressive(
        world,
        start(world, 3000),
        range(999, -1, -1),
        method="ddpm",
        generator=torch.Generator().manual_seed(0),
    )
    assert_world(last(walk), world, 0.1)


def test_ddim_reproduces_mean_and_covariance_in_fifty_steps():
    world = GaussianWorld.correlated(smooth_mean(4), 0.3)
    assert_world(last(LINEAR.sample_progressive(world, start(world, 3000), respaced(50))), world, 0.15)


def test_ddim_is_deterministic_and_leaves_the_global_generator_alone():
    world = GaussianWorld.correlated(smooth_mean(4), 0.3)
    x_t = start(world, 2)
    before = torch.get_rng_state()
    first, second = (last(LINEAR.sample_progressive(world, x_t, respaced(20))) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(torch.get_rng_state(), before)


def test_ddim_with_an_eta_is_sampled_with_noise():
    """Leaving the noise out would silently give pictures that vary too little."""
    world = GaussianWorld.independent(smooth_mean(2), 0.3)
    generator = torch.Generator().manual_seed(0)
    walk = LINEAR.sample_progressive(world, start(world, 1000), respaced(250), eta=1.0, generator=generator)
    x = last(walk)
    assert float(x.var(0).mean().sqrt()) == pytest.approx(0.3, rel=0.1)


def test_ancestral_sampling_depends_on_the_generator_only():
    world = GaussianWorld.independent(smooth_mean(2), 0.3)

    def run(seed: int) -> torch.Tensor:
        torch.randn(seed + 3)  # the global state must not matter
        generator = torch.Generator().manual_seed(seed)
        return last(
            LINEAR.sample_progressive(
                world, start(world, 2), respaced(10), method="ddpm", generator=generator
            )
        )

    assert torch.equal(run(0), run(0)) and not torch.equal(run(0), run(1))


def test_sampling_yields_every_step_and_asks_once_a_step():
    asked = []

    def denoise(x, t):
        asked.append(t.tolist())
        return arbitrary(x)

    walk = list(LINEAR.sample_progressive(denoise, noise(2, 3, 4, 4), [700, 300, 5]))
    assert [previous for previous, _ in walk] == [300, 5, -1]
    assert asked == [[700, 700], [300, 300], [5, 5]]


@pytest.mark.parametrize("timesteps", [[5, 9], [9, 9, 3], [9, 3, -1], [-1]])
def test_timesteps_must_fall(timesteps):
    with pytest.raises(ValueError, match="fall"):
        list(LINEAR.sample_progressive(arbitrary, pictures(1, 3, 4, 4), timesteps))


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="ddim"):
        list(LINEAR.sample_progressive(arbitrary, pictures(1, 3, 4, 4), [9], method="euler"))
