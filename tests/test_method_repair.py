"""Gradient denoising in the Gaussian world, with a linear extractor: every gradient is a formula."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from gaussian_world import ALPHA_BAR, BETAS, GaussianWorld, residual_gaussian, smooth_mean

from diffad.method.diffusion import Prediction, Schedule
from diffad.method.gaussian import ResidualGaussian
from diffad.method.place_gaussian import PlaceGaussian
from diffad.method.repair import (
    FILLED_TO,
    FINEST,
    RENEWED,
    GradientStep,
    fill,
    gradient_denoising,
    repair_weight,
    weighed_repair,
)
from diffad.method.scoring import TIMESTEPS, denoise_all, grid_of, noise_for, shifted

LINEAR = Schedule.linear()
SIZE, CELL = 16, 2
PATCH = (..., slice(4, 8), slice(8, 12))  # where the anomaly is planted
WORLD = GaussianWorld.independent(smooth_mean(SIZE), 0.05)
NORMAL = WORLD.mean.float()[None]


@pytest.fixture(scope="module")
def gaussian() -> PlaceGaussian:
    return PlaceGaussian.fit([WORLD.features(WORLD.sample(400)).float()], block=2)


@pytest.fixture(scope="module")
def covariance() -> ResidualGaussian:
    """Of the features' residual in this world, on the grid of each timestep."""
    x, grids = WORLD.sample(200).float(), []
    for t in TIMESTEPS:
        shown, _, _, prediction = denoise_all(LINEAR, WORLD, x, (t,), cell=CELL)
        grids.append([WORLD.features(shown) - prediction.features])
    return residual_gaussian(grids, block=SIZE // CELL)


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


def repairs(gaussian: PlaceGaussian, x: torch.Tensor, denoise=WORLD, **options) -> list[GradientStep]:
    return list(gradient_denoising(LINEAR, denoise, WORLD.features, gaussian, x, **options))


def walk_of(covariance: ResidualGaussian, x, weight, denoise=WORLD, **options) -> list[GradientStep]:
    untouched, *walk = weighed_repair(LINEAR, denoise, WORLD.features, covariance, x, weight, **options)
    assert untouched.index == 0 and torch.equal(untouched.x, x) and not untouched.denoised
    return walk


def off(x: torch.Tensor) -> float:
    """Mean distance from the normal picture at the planted anomaly."""
    return float((x - NORMAL)[PATCH].abs().mean())


# -- the weighed variant -------------------------------------------------------------------------------------


def test_a_planted_anomaly_is_removed_and_the_loss_falls(covariance, broken, weight):
    walk = walk_of(covariance, broken, weight, steps=60)
    losses = [repair.mahalanobis for repair in walk]
    assert off(broken) == pytest.approx(0.6) and off(walk[-1].x) < 0.05  # one σ of this world
    assert losses[-1] < 0.02 * losses[0]
    assert max(losses) == losses[0] and losses[30] < 0.5 * losses[0]


def test_the_gradient_alone_removes_it_too(covariance, broken, weight):
    """Without the diffusion model, so that a wrong sign could not hide behind it."""
    walk = walk_of(covariance, broken, weight, steps=30, denoise_every=1000, timestep=50)[:-1]
    losses = [repair.mahalanobis for repair in walk]
    assert off(walk[-1].x) < 0.3 and losses[-1] < 0.3 * losses[0]
    assert all(later < earlier for earlier, later in pairwise(losses[2:12]))


def test_places_of_weight_zero_stay_to_the_last_bit(covariance, weight):
    x = WORLD.sample(1, seed=4).float()
    x[PATCH] += 0.6
    outside = (weight == 0).expand_as(x)
    for repair in walk_of(covariance, x, weight, steps=11):
        assert torch.equal(repair.x[outside], x[outside])
        assert bool((repair.x != x)[~outside].any())


def test_a_normal_picture_of_weight_zero_stays_to_the_last_bit(covariance):
    walk = walk_of(covariance, NORMAL, torch.zeros(1, 1, SIZE, SIZE), steps=6)
    assert len(walk) == 6 and all(torch.equal(repair.x, NORMAL) for repair in walk)


def test_steps_have_the_stated_size_and_fall_to_a_tenth(covariance, weight):
    """Root mean square of a move where it acts, the defect large or small."""
    x = WORLD.sample(1, seed=4).float() * 0.5
    for where in (weight.round(), torch.ones_like(weight)):  # round(½) = 0
        walk = walk_of(covariance, x, where, steps=9, denoise_every=1000, step_size=0.03, timestep=50)
        moving = [x, *(repair.x for repair in walk[:-1])]  # the last one denoises
        for index, (before, after) in enumerate(pairwise(moving)):
            size = float(((after - before) ** 2 * where).sum() / (3 * where.sum())) ** 0.5
            assert size == pytest.approx(0.03 * (1 - 0.9 * index / 9), rel=1e-3)


def test_a_hole_is_filled_by_a_walk_of_ddim(covariance, broken, weight):
    """A third of the steps; ε is carried on, half of its power renewed."""
    walk = walk_of(covariance, broken, weight, steps=9, timestep=900, seed=5)
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


def test_a_pull_goes_half_way_to_what_the_model_expects(covariance, broken, weight):
    """Steps of almost no size leave the pulls alone; a rim of weight ½ keeps half of the original."""
    options = {"steps": 2, "denoise_every": 1, "step_size": 1e-6, "timestep": 80}
    x = broken
    assert FILLED_TO > 80  # nothing is filled
    for repair, t in zip(walk_of(covariance, broken, weight, seed=3, **options), (80, 40)):
        t_ = torch.tensor([t])
        noise = noise_for(3 + repair.index, t, 0, broken.shape[1:])[None]
        expectation = WORLD.posterior(LINEAR.q_sample(x, t_, noise), t_)[0].float()
        x = (1 - weight) * broken + weight * (x + expectation) / 2
        torch.testing.assert_close(repair.x, x, atol=1e-5, rtol=0)


def test_timesteps_fall_geometrically_to_the_finest(covariance, broken, weight):
    denoise = Recorded()
    walk_of(covariance, broken, weight, denoise, steps=150, denoise_every=1, timestep=600)
    asked = torch.tensor(denoise.timesteps, dtype=torch.float64)
    assert (FILLED_TO, FINEST) == (100, 20) and 20 <= asked[-1] <= 21
    filling = 600 * (100 / 600) ** (torch.arange(50) / 49)
    pulling = 100 * (20 / 100) ** (torch.arange(100) / 100)
    torch.testing.assert_close(asked[3:53], filling.double(), atol=0.51, rtol=0)
    torch.testing.assert_close(asked[54::2], pulling.double(), atol=0.51, rtol=0)
    # what features are expected
    assert [*asked[:3], *asked[53::2]] == [*TIMESTEPS, *(TIMESTEPS[index % 3] for index in range(51, 151))]
    denoise = Recorded()
    walk_of(covariance, broken, weight, denoise, steps=4, denoise_every=2, timestep=7)
    assert denoise.timesteps == [*TIMESTEPS, 200, 400, 7, 20, 200, 7]  # already finer


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


def test_model_calls_and_flags_of_the_weighed_variant(covariance, broken, weight):
    denoise = Recorded()
    walk = walk_of(covariance, broken, weight, denoise, steps=12, denoise_every=5)
    denoised = [repair.index for repair in walk if repair.denoised]
    assert denoised == [1, 2, 3, 4, 5, 10, 12]  # four fillings, two pulls, and one at the end
    assert len(denoise.timesteps) == 7 + 3 + 8  # and what is expected, at the start and in gradient steps
    denoise = Recorded()
    walk = walk_of(covariance, broken, weight, denoise, steps=6, filling=False)
    assert [repair.denoised for repair in walk] == [False] * 4 + [True] * 2
    assert len(denoise.timesteps) == 2 + 3 + 6


def test_without_filling_what_is_there_is_led_back(covariance, broken, weight):
    walk = walk_of(covariance, broken, weight, steps=60, filling=False)
    assert off(walk[0].x) > 0.5 and off(walk[-1].x) < 0.05


def test_what_leads_is_what_the_network_expects_of_this_picture(covariance, broken, weight):
    """A part that lies elsewhere: the same walk, moved, though no Gaussian of places knows of it."""
    shift = 2 * CELL
    elsewhere = GaussianWorld.independent(torch.roll(WORLD.mean, shift, -1), 0.05)
    x, where = torch.roll(broken, shift, -1), torch.roll(weight, shift, -1)
    walk = walk_of(covariance, x, where, elsewhere, steps=60)
    assert float((walk[-1].x - elsewhere.mean.float())[where.expand_as(x) == 1].abs().mean()) < 0.05


def test_a_seed_decides_the_weighed_walk(covariance, broken, weight):
    def end(seed: int) -> torch.Tensor:
        torch.rand(seed + 1)  # the global state must not matter
        return walk_of(covariance, broken, weight, steps=7, seed=seed)[-1].x

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


def test_model_calls_and_flags_as_printed(gaussian, broken):
    denoise = Recorded()
    walk = repairs(gaussian, broken, denoise, steps=7, denoise_every=3, timestep=32)
    assert [repair.denoised for repair in walk] == [False, False, True, False, False, True, False]
    assert denoise.timesteps == [32, 32]


# -- both ----------------------------------------------------------------------------------------------------


def test_the_generators_yield_exactly_their_steps_one_at_a_time(gaussian, covariance, broken, weight):
    asked = []

    def extract(x: torch.Tensor) -> torch.Tensor:
        asked.append(x)
        return WORLD.features(x)

    printed = gradient_denoising(LINEAR, WORLD, extract, gaussian, broken, steps=7)
    weighed = weighed_repair(LINEAR, WORLD, extract, covariance, broken, weight, steps=7)
    for walk, first in ((printed, 1), (weighed, 0)):
        assert asked == []
        assert next(walk).index == first and len(asked) == (1 if first else 4)
        assert [repair.index for repair in walk] == list(range(first + 1, 8))
        asked.clear()


def test_the_loss_told_is_the_mean_distance_before_the_move(gaussian, covariance, broken, weight):
    walk = repairs(gaussian, broken, steps=3)
    for repair, x in zip(walk, [broken, *(repair.x for repair in walk)]):
        told = float(gaussian.squared_mahalanobis(WORLD.features(x)).mean())
        assert repair.mahalanobis == pytest.approx(told, rel=1e-5)

    def distance(x: torch.Tensor, index: int) -> float:
        t = TIMESTEPS[index % 3]
        by, t_ = (0, 1, -1)[index % 3], torch.tensor([t])
        shown = shifted(x, by)
        noise = noise_for(4 + index, t, 0, x.shape[1:])[None]
        residual = WORLD.features(shown) - WORLD(LINEAR.q_sample(shown, t_, noise), t_).features
        there = covariance.squared_mahalanobis(residual, grid_of(t))[0]
        share = F.avg_pool2d(shifted(weight, by), 2)[0, 0]
        return float((there * share).sum() / share.sum())

    walk = list(
        weighed_repair(
            LINEAR, WORLD, WORLD.features, covariance, broken, weight, steps=6, filling=False, seed=4
        )
    )
    latest = [distance(broken, index) for index in range(3)]
    assert walk[0].mahalanobis == pytest.approx(sum(latest) / 3, rel=1e-4)
    for before, after in pairwise(walk):
        latest[after.index % 3] = distance(before.x, after.index)
        assert after.mahalanobis == pytest.approx(sum(latest) / 3, rel=1e-4)


def test_every_repair_is_a_picture(gaussian, covariance, weight):
    """In [−1, 1] even where the features ask for more; detached, float32; the start is left alone."""
    x = NORMAL.clone()
    x[PATCH] = 0.9
    before = x.clone()
    beyond = torch.einsum("dc,bchw->dhw", gaussian.projection, WORLD.features(x + 1))
    further = PlaceGaussian(gaussian.projection, beyond, gaussian.whitening)
    printed = repairs(further, x, steps=8, step_size=0.1)

    def outward(x_t: torch.Tensor, t: torch.Tensor) -> Prediction:
        return WORLD(x_t, t)._replace(features=WORLD.features(x + 1))

    weighed = walk_of(covariance, x, torch.ones_like(weight), outward, steps=8, step_size=0.1)
    for repair in (*printed, *weighed):
        assert repair.x.shape == x.shape and repair.x.dtype == torch.float32 and not repair.x.requires_grad
        assert float(repair.x.abs().max()) <= 1, repair.index
    assert torch.equal(x, before)


def test_gradients_are_taken_also_where_they_are_switched_off(covariance, broken, weight):
    with torch.no_grad():
        quiet = walk_of(covariance, broken, weight, steps=6)[-1].x
    assert torch.equal(quiet, walk_of(covariance, broken, weight, steps=6)[-1].x)


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


@pytest.mark.parametrize(("ring", "filled"), [(12, True), (4, False)])  # px; the hole is 24 px wide
def test_what_a_wide_ring_encloses_is_repaired_too(ring, filled):
    field = torch.zeros(128, 128)
    field[40 - ring : 64 + ring, 40 - ring : 64 + ring] = 9
    field[40:64, 40:64] = 0
    weight = repair_weight(field, low=2.5)[0, 0]
    assert float(weight[52, 52]) == pytest.approx(float(filled), abs=1e-5)
    field[52, :52] = 0  # and a way out: then nothing is enclosed
    assert float(repair_weight(field, low=2.5)[0, 0, 52, 52]) == 0
