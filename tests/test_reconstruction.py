"""Gradient denoising in the Gaussian world, with a linear extractor: every gradient is a formula."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from gaussian_world import ALPHA_BAR, BETAS, GaussianWorld, smooth_mean

from diffad.diffusion import Prediction, Schedule
from diffad.gaussian import PlaceGaussian
from diffad.reconstruction import FILLED_TO, FINEST, RENEWED, Repair, fill, gradient_denoising, repair_weight
from diffad.scoring import noise_for

LINEAR = Schedule.linear()
SIZE = 16
PATCH = (..., slice(4, 8), slice(8, 12))  # where the anomaly is planted
WORLD = GaussianWorld.independent(smooth_mean(SIZE), 0.05)
NORMAL = WORLD.mean.float()[None]


@pytest.fixture(scope="module")
def gaussian() -> PlaceGaussian:
    return PlaceGaussian.fit([WORLD.features(WORLD.sample(400)).float()], dims=12, block=2, ridge=1e-4)


@pytest.fixture
def broken() -> torch.Tensor:
    x = NORMAL.clone()
    x[PATCH] += 0.6
    return x


@pytest.fixture
def weight() -> torch.Tensor:
    """1 on the anomaly, ½ on its rim, 0 elsewhere."""
    w = torch.zeros(1, 1, SIZE, SIZE)
    w[..., 3:9, 7:13] = 0.5
    w[PATCH] = 1
    return w


class Recorded:
    """The ideal denoiser, remembering the timesteps it was asked."""

    def __init__(self) -> None:
        self.timesteps: list[int] = []

    def __call__(self, x_t: torch.Tensor, t: torch.Tensor) -> Prediction:
        self.timesteps += t.tolist()
        return WORLD(x_t, t)


def repairs(gaussian: PlaceGaussian, x: torch.Tensor, denoise=WORLD, **options) -> list[Repair]:
    return list(gradient_denoising(LINEAR, denoise, WORLD.features, gaussian, x, **options))


def off(x: torch.Tensor) -> float:
    """Mean distance from the normal picture at the planted anomaly."""
    return float((x - NORMAL)[PATCH].abs().mean())


# -- the weighed variant -------------------------------------------------------------------------------------


def test_a_planted_anomaly_is_removed_and_the_loss_falls(gaussian, broken, weight):
    walk = repairs(gaussian, broken, steps=60, weight=weight)
    losses = [repair.mahalanobis for repair in walk]
    assert off(broken) == pytest.approx(0.6) and off(walk[-1].x) < 0.05  # one σ of this world
    assert losses[-1] < 0.02 * losses[0]
    assert max(losses) == losses[0] and losses[30] < 0.5 * losses[0]


def test_the_gradient_alone_removes_it_too(gaussian, broken, weight):
    """Without the diffusion model, so that a wrong sign could not hide behind it."""
    walk = repairs(gaussian, broken, steps=30, denoise_every=1000, timestep=50, weight=weight)[:-1]
    losses = [repair.mahalanobis for repair in walk]
    assert off(walk[-1].x) < 0.3 and losses[-1] < 0.3 * losses[0]
    assert all(later < earlier for earlier, later in pairwise(losses[:12]))


def test_places_of_weight_zero_stay_to_the_last_bit(gaussian, weight):
    x = WORLD.sample(1, seed=4).float()
    x[PATCH] += 0.6
    outside = (weight == 0).expand_as(x)
    for repair in repairs(gaussian, x, steps=11, weight=weight):
        assert torch.equal(repair.x[outside], x[outside])
        assert bool((repair.x != x)[~outside].any())


def test_a_normal_picture_of_weight_zero_stays_to_the_last_bit(gaussian):
    walk = repairs(gaussian, NORMAL, steps=6, weight=torch.zeros(1, 1, SIZE, SIZE))
    assert len(walk) == 6 and all(torch.equal(repair.x, NORMAL) for repair in walk)


def test_steps_have_the_stated_size_and_fall_to_a_tenth(gaussian, weight):
    """Root mean square of a move where it acts, the defect large or small."""
    x = WORLD.sample(1, seed=4).float() * 0.5
    for where in (weight.round(), torch.ones_like(weight)):  # round(½) = 0
        walk = repairs(gaussian, x, steps=9, denoise_every=1000, step_size=0.03, timestep=50, weight=where)
        moving = [x, *(repair.x for repair in walk[:-1])]  # the last one denoises
        for index, (before, after) in enumerate(pairwise(moving)):
            size = float(((after - before) ** 2 * where).sum() / (3 * where.sum())) ** 0.5
            assert size == pytest.approx(0.03 * (1 - 0.9 * index / 9), rel=1e-3)


def test_a_hole_is_filled_by_a_walk_of_ddim(gaussian, broken, weight):
    """A third of the steps; ε is carried on, half of its power renewed."""
    walk = repairs(gaussian, broken, steps=9, timestep=900, weight=weight, seed=5)
    x, hole, noise = broken, weight > 0, noise_for(5, 900, 0, broken.shape[1:])[None]
    assert [repair.denoised for repair in walk[:4]] == [True, True, True, False]
    for repair, t in zip(walk, (900, 300, FILLED_TO)):
        bar = torch.tensor(ALPHA_BAR[t]).float()
        x_t = bar.sqrt() * x + (1 - bar).sqrt() * hole * noise
        filled = WORLD.posterior(x_t, torch.tensor([t]))[0].float()
        x = torch.where(hole, (1 - weight) * broken + weight * filled, broken)
        torch.testing.assert_close(repair.x, x, atol=1e-4, rtol=0)
        carried = (x_t - bar.sqrt() * filled) / (1 - bar).sqrt()
        fresh = noise_for(5 + repair.index, t, 0, broken.shape[1:])[None]
        noise = (1 - RENEWED**2) ** 0.5 * carried + RENEWED * fresh


def test_a_pull_goes_half_way_to_what_the_model_expects(gaussian, broken, weight):
    """Steps of almost no size leave the pulls alone; a rim of weight ½ keeps half of the original."""
    options = {"steps": 2, "denoise_every": 1, "step_size": 1e-6, "timestep": 80}
    x = broken
    assert FILLED_TO > 80  # nothing is filled
    for repair, t in zip(repairs(gaussian, broken, weight=weight, seed=3, **options), (80, 40)):
        t_ = torch.tensor([t])
        noise = noise_for(3 + repair.index, t, 0, broken.shape[1:])[None]
        expectation = WORLD.posterior(LINEAR.q_sample(x, t_, noise), t_)[0].float()
        x = (1 - weight) * broken + weight * (x + expectation) / 2
        torch.testing.assert_close(repair.x, x, atol=1e-5, rtol=0)


def test_timesteps_fall_geometrically_to_the_finest(gaussian, broken, weight):
    denoise = Recorded()
    repairs(gaussian, broken, denoise, steps=150, denoise_every=1, timestep=600, weight=weight)
    asked = torch.tensor(denoise.timesteps, dtype=torch.float64)
    assert (FILLED_TO, FINEST) == (100, 20) and asked[0] == 600 and 20 <= asked[-1] <= 21
    filling = 600 * (100 / 600) ** (torch.arange(50) / 49)
    pulling = 100 * (20 / 100) ** (torch.arange(100) / 100)
    torch.testing.assert_close(asked, torch.cat([filling, pulling]).double(), atol=0.51, rtol=0)
    denoise = Recorded()
    repairs(gaussian, broken, denoise, steps=4, denoise_every=2, timestep=7, weight=weight)
    assert denoise.timesteps == [7, 7]  # already finer


@pytest.mark.parametrize("t", [60, 400])
def test_a_filling_is_the_posterior_mean_with_its_noise(t, weight):
    """x̂_0 and ε make up the x_t that was asked about: surroundings as they are, holes noised to t."""
    x, noise, holes = WORLD.sample(1).float(), noise_for(9, t, 0, (3, SIZE, SIZE))[None], weight > 0
    bar = ALPHA_BAR[t]
    x_t = bar**0.5 * x + (1 - bar) ** 0.5 * noise * holes
    filled, left = fill(LINEAR, WORLD, x, t, holes, noise)
    expected = WORLD.posterior(x_t, torch.tensor([t]))[0].clamp(-1, 1)
    torch.testing.assert_close(filled.double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(bar**0.5 * filled + (1 - bar) ** 0.5 * left, x_t, atol=1e-5, rtol=0)


def test_model_calls_and_flags_of_the_weighed_variant(gaussian, broken, weight):
    denoise = Recorded()
    walk = repairs(gaussian, broken, denoise, steps=12, denoise_every=5, weight=weight)
    denoised = [repair.index for repair in walk if repair.denoised]
    assert denoised == [1, 2, 3, 4, 5, 10, 12]  # four fillings, two pulls, and one at the end
    assert len(denoise.timesteps) == 7


def test_a_seed_decides_the_weighed_walk(gaussian, broken, weight):
    def end(seed: int) -> torch.Tensor:
        torch.rand(seed + 1)  # the global state must not matter
        return repairs(gaussian, broken, steps=7, weight=weight, seed=seed)[-1].x

    assert torch.equal(end(0), end(0)) and not torch.equal(end(0), end(1))


# -- as printed ----------------------------------------------------------------------------------------------


def algorithm_1(gaussian, x, steps, denoise_every, s, t):
    """By hand in float64: ∇L from precision matrices, μ_θ from the ideal x̂_0 and the textbook posterior."""
    kernel, projection = WORLD.kernel, gaussian.projection.double()
    factor = gaussian.whitening.double()
    precision = (factor.transpose(-1, -2) @ factor).repeat_interleave(2, 0).repeat_interleave(2, 1)
    x = x.double()
    for n in range(1, steps + 1):
        residual = torch.einsum("dc,bchw->bdhw", projection, F.conv2d(x, kernel, stride=2)) - gaussian.mean
        pulled = torch.einsum("hwde,behw->bdhw", precision, residual) * 2 / len(projection)
        g = F.conv_transpose2d(torch.einsum("dc,bdhw->bchw", projection, pulled), kernel, stride=2)
        x = (1 - s**2) ** 0.5 * x - s * g / g.std()
        if n % denoise_every == 0:
            bar, bar_p, beta = ALPHA_BAR[t], ALPHA_BAR[t - 1], BETAS[t]
            x_hat = WORLD.posterior(x, torch.tensor([t]))[0].clamp(-1, 1)
            x = bar_p**0.5 * beta / (1 - bar) * x_hat + (1 - beta) ** 0.5 * (1 - bar_p) / (1 - bar) * x
    return x


@pytest.mark.parametrize("steps", [1, 5, 12])
def test_as_printed_it_is_algorithm_1(gaussian, broken, steps):
    walk = repairs(gaussian, broken, steps=steps, denoise_every=5, step_size=0.02, timestep=32)
    by_hand = algorithm_1(gaussian, broken, steps, 5, 0.02, 32)
    torch.testing.assert_close(walk[-1].x.double(), by_hand, atol=2e-5, rtol=0)


def test_as_printed_it_removes_the_anomaly(gaussian, broken):
    walk = repairs(gaussian, broken, steps=100, step_size=0.03, timestep=32)
    assert off(walk[-1].x) < 0.1 and walk[-1].mahalanobis < 0.1 * walk[0].mahalanobis


def test_as_printed_it_draws_nothing(gaussian, broken):
    first, second = (repairs(gaussian, broken, steps=6, seed=seed)[-1].x for seed in (0, 1))
    assert torch.equal(first, second)


def test_model_calls_and_flags_as_printed(gaussian, broken):
    denoise = Recorded()
    walk = repairs(gaussian, broken, denoise, steps=7, denoise_every=3, timestep=32)
    assert [repair.denoised for repair in walk] == [False, False, True, False, False, True, False]
    assert denoise.timesteps == [32, 32]


# -- both ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighed", [True, False])
def test_the_generator_yields_exactly_its_steps_one_at_a_time(gaussian, broken, weight, weighed):
    asked = []

    def extract(x: torch.Tensor) -> torch.Tensor:
        asked.append(x)
        return WORLD.features(x)

    walk = gradient_denoising(
        LINEAR, WORLD, extract, gaussian, broken, steps=7, weight=weight if weighed else None
    )
    assert asked == []
    first = next(walk)
    assert len(asked) == 1 and first.index == 1
    assert [repair.index for repair in walk] == [2, 3, 4, 5, 6, 7]


def test_the_loss_told_is_the_mean_distance_before_the_move(gaussian, broken, weight):
    for where in (None, weight):
        walk = repairs(gaussian, broken, steps=3, weight=where)
        for repair, x in zip(walk, [broken, *(repair.x for repair in walk)]):
            distance = gaussian.squared_mahalanobis(WORLD.features(x))[0]
            share = torch.ones_like(distance) if where is None else F.avg_pool2d(where, 2)[0, 0]
            told = float((distance * share).sum() / share.sum())
            assert repair.mahalanobis == pytest.approx(told, rel=1e-5)


@pytest.mark.parametrize("weighed", [True, False])
def test_every_repair_is_a_picture(gaussian, weight, weighed):
    """In [−1, 1] even where the features ask for more; detached, float32; the start is left alone."""
    x = NORMAL.clone()
    x[PATCH] = 0.9
    before = x.clone()
    beyond = torch.einsum("dc,bchw->dhw", gaussian.projection, WORLD.features(x + 1))
    everywhere = torch.ones_like(weight)
    outward = PlaceGaussian(gaussian.projection, beyond, gaussian.whitening)
    for repair in repairs(outward, x, steps=8, step_size=0.1, weight=everywhere if weighed else None):
        assert repair.x.shape == x.shape and repair.x.dtype == torch.float32 and not repair.x.requires_grad
        assert float(repair.x.abs().max()) <= 1, repair.index
    assert torch.equal(x, before)


def test_gradients_are_taken_also_where_they_are_switched_off(gaussian, broken, weight):
    with torch.no_grad():
        quiet = repairs(gaussian, broken, steps=6, weight=weight)[-1].x
    assert torch.equal(quiet, repairs(gaussian, broken, steps=6, weight=weight)[-1].x)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"denoise_every": 0},
        {"step_size": 0.0},
        {"step_size": 1.0},
        {"timestep": -1},
        {"timestep": 1000},
    ],
)
def test_arguments_out_of_range_are_refused(gaussian, broken, wrong):
    with pytest.raises(ValueError, match="step_size lies in"):
        repairs(gaussian, broken, **wrong)


# -- where to repair -----------------------------------------------------------------------------------------


@pytest.fixture
def anomaly_map() -> torch.Tensor:
    """A strong anomaly of 24 px, one half-way up a ramp from 2.5 to 3, the rest below; [128, 128]."""
    field = torch.full((128, 128), 1.9)
    field[20:44, 20:44] = 9
    field[80:104, 80:104] = 2.75
    return field


def test_weight_is_zero_away_from_anomalies_and_one_at_a_strong_one(anomaly_map):
    weight = repair_weight(anomaly_map, low=2.5)
    assert weight.shape == (1, 1, 128, 128)
    w = weight[0, 0]
    torch.testing.assert_close(
        w[20:44, 20:44].min(), torch.tensor(1.0), atol=0.04, rtol=0
    )  # to its very border
    torch.testing.assert_close(w[26:38, 26:38], torch.ones(12, 12), atol=1e-5, rtol=0)
    torch.testing.assert_close(w[86:98, 86:98], torch.full((12, 12), 0.5), atol=1e-5, rtol=0)
    away = torch.ones(128, 128, dtype=torch.bool)
    away[10:54, 10:54] = away[70:114, 70:114] = False
    assert bool((w[away] == 0).all())
    assert float(w.min()) == 0 and float(w.max()) <= 1 + 1e-6
    assert float(w[w > 0].min()) >= 0.01  # no tail so faint that it would change good places for nothing


def test_weight_of_a_good_map_is_exactly_zero(anomaly_map):
    assert not bool(repair_weight(anomaly_map.clamp(max=2.49), low=2.5).any())


def test_weight_is_wider_than_the_anomaly_and_falls_off_smoothly(anomaly_map):
    profile = repair_weight(anomaly_map, low=2.5)[0, 0, 32, 44:60]
    assert profile[0] > 0.7 and profile[-1] == 0
    assert bool((profile[1:] <= profile[:-1]).all()) and int(((profile > 0.05) & (profile < 0.95)).sum()) >= 2


@pytest.mark.parametrize("size", [16, 64, 256])
def test_weight_scales_with_the_size(size):
    field = torch.zeros(size, size)
    field[: size // 2, : size // 2] = 10
    share = float(repair_weight(field, 2).mean())
    assert share == pytest.approx(0.25, abs=0.06)
