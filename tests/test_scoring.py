"""Maps against formulas in the Gaussian world."""

import numpy as np
import pytest
import torch
from gaussian_world import GaussianWorld, alpha_bar, residual_gaussian, smooth_mean

from diffad.method import scoring
from diffad.method.diffusion import Prediction, Schedule
from diffad.method.gaussian import ResidualGaussian
from diffad.method.image_score import (
    CELLS,
)
from diffad.method.scoring import (
    TIMESTEPS,
    UNSEEN,
    Embedding,
    denoise_all,
    evidence,
    noise_for,
    offset_of,
    pixel_score,
    residual_maps,
    shifted,
    shifted_embeddings,
    smooth,
)

LINEAR = Schedule.linear()

SIZE = 16
PATCH = (slice(4, 8), slice(9, 13))  # y, x of the planted anomaly


@pytest.fixture(scope="module")
def world() -> GaussianWorld:
    """Deviation 0.05 at the left, 0.2 at the right: nothing reaches ±1, places are unequally uncertain."""
    return GaussianWorld.correlated(smooth_mean(SIZE), torch.linspace(0.05, 0.2, SIZE))


@pytest.fixture(scope="module")
def normal(world) -> torch.Tensor:
    return world.sample(24).float()


class Recorded:
    """A denoiser that remembers what it was asked."""

    def __init__(self, denoise) -> None:
        self.denoise, self.calls = denoise, []

    def __call__(self, x_t: torch.Tensor, t: torch.Tensor) -> Prediction:
        self.calls.append((x_t, t))
        return self.denoise(x_t, t)


def stub(x_t: torch.Tensor, t: torch.Tensor) -> Prediction:
    """Elementwise, so that a picture's prediction cannot depend on its neighbours in the batch."""
    level = t.view(-1, 1, 1, 1) / 1000
    return Prediction(
        x_t * level.sqrt(), torch.sigmoid(x_t), level - 3 + 0.1 * x_t, (x_t + level)[:, :, ::4, ::4].tanh()
    )


def pictures(count: int = 3, size: int = SIZE, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def plain(channels: int) -> ResidualGaussian:
    """The identity on every grid: the feature score is the mean square."""
    codes = torch.zeros(3, 1, 1, channels, channels, dtype=torch.int8)
    one = torch.ones(3, 1, 1, channels)
    return ResidualGaussian(torch.eye(channels), codes, one, one)


def of_world(world: GaussianWorld, x: torch.Tensor, timesteps=TIMESTEPS) -> dict[int, Embedding]:
    return shifted_embeddings(world.embed, x, world.embed(x), timesteps)


def of_stub(features: torch.Tensor) -> Embedding:
    return Embedding(features, features)


def coarse(x: torch.Tensor) -> torch.Tensor:
    """What the stub's pictures are compared by, [b, 3, h, w] → [b, 3, h/4, w/4]."""
    return x[..., ::4, ::4]


# -- the grid is laid three times ----------------------------------------------------------------------------


def test_the_default_timesteps_see_the_picture_on_three_grids():
    assert [offset_of(t, 8) for t in TIMESTEPS] == [0, 4, -4]
    assert [offset_of(t, 1) for t in TIMESTEPS] == [0, 0, 0]  # a grid of pixels is not cut anywhere


@pytest.mark.parametrize("by", [-3, 2, 0])
def test_moving_back_undoes_moving_but_for_the_border(by):
    x = pictures(2)
    there = shifted(x, by)
    y = range(max(0, -by), SIZE - max(0, by))
    assert there.shape == x.shape and all(torch.equal(there[:, :, i, i], x[:, :, i + by, i + by]) for i in y)
    inner = (..., slice(4, -4), slice(4, -4))
    assert torch.equal(shifted(there, -by)[inner], x[inner])
    if by:
        assert torch.equal(there[..., -1 if by > 0 else 0, :], there[..., -2 if by > 0 else 1, :])


def test_features_are_asked_for_once_for_every_grid():
    asked = []

    def see(x):
        asked.append(x)
        return Embedding(coarse(x), -coarse(x))

    x = pictures(2)
    first = Embedding(coarse(x), -coarse(x))
    seen = shifted_embeddings(see, x, first, (20, 50, 200, 250, 400, 800))
    assert len(asked) == 2 and sorted(seen) == [-2, 0, 2]
    for by, values in seen.items():
        assert torch.equal(values.features, coarse(shifted(x, by)))
    assert list(shifted_embeddings(see, x, first, (20, 50))) == [0] and len(asked) == 2


def test_the_maps_of_all_timesteps_lie_on_the_picture():
    """Whichever grid saw it: the centre of what stands out is the defect's, to half a pixel."""
    world = GaussianWorld.independent(smooth_mean(32), 0.05)
    broken = world.mean.float()[None].clone()
    broken[..., 10:14, 18:24] += 0.6
    found = evidence(LINEAR, world, broken, of_world(world, broken), perceive=world.perceptual)
    pixel, feature = (
        residual_maps(each, plain(each.shape[3]).squared_mahalanobis, 32, TIMESTEPS) for each in found
    )
    alone, _ = evidence(LINEAR, world, broken, of_world(world, broken), perceive=world.perceptual, kind="rgb")
    y, x = torch.arange(32.0)[:, None], torch.arange(32.0)[None]
    for name, maps in {"pixel": pixel, "feature": feature, "rgb": alone}.items():
        for t, one in zip(TIMESTEPS, maps[0]):
            high = (one - one.median()).clamp(min=0) ** 2
            centre = float((high * y).sum() / high.sum()), float((high * x).sum() / high.sum())
            assert centre == pytest.approx((11.5, 20.5), abs=0.5), (name, t)


# -- the one network call ------------------------------------------------------------------------------------


def test_noise_depends_on_seed_t_and_draw_only():
    noise = noise_for(3, 200, 1, (3, 8, 8))
    torch.manual_seed(5)
    assert torch.equal(noise_for(3, 200, 1, torch.Size((3, 8, 8))), noise)
    others = [noise_for(*key, (3, 8, 8)) for key in ((4, 200, 1), (3, 201, 1), (3, 200, 2))]
    assert all(abs(float((noise * other).mean())) < 0.25 for other in others)  # 3.5 σ of independent noise
    before = torch.get_rng_state()
    noise_for(0, 0, 0, (3,))
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_is_standard_normal():
    noise = torch.stack([noise_for(seed, t, 0, (3, 32, 32)) for seed in range(4) for t in TIMESTEPS])
    assert abs(float(noise.mean())) < 0.02 and float(noise.std()) == pytest.approx(1, abs=0.02)


def test_no_two_noises_of_a_session_are_the_same():
    keys = [
        (seed, t, draw)
        for seed in range(8)
        for t in (0, 1, 20, 200, 400, 991, 992, 999)
        for draw in range(16)
    ]
    assert len({noise_for(*key, (4,)).numpy().tobytes() for key in keys}) == len(keys)


def test_every_timestep_and_draw_is_in_one_call_in_the_stated_order():
    denoise, x = Recorded(stub), pictures(2)
    shown, x_t, t, prediction = denoise_all(LINEAR, denoise, x, (20, 400), seed=7, draws=3, cell=4)
    assert len(denoise.calls) == 1 and denoise.calls[0][0] is x_t
    assert t.tolist() == [20, 20, 20, 400, 400, 400] * 2
    for row, (picture, time, draw) in enumerate(
        (p, t, d) for p in range(2) for t in (20, 400) for d in range(3)
    ):
        there = shifted(x[picture, None], {20: 0, 400: -2}[time])
        assert torch.equal(shown[row], there[0])
        expected = LINEAR.q_sample(there, torch.tensor([time]), noise_for(7, time, draw, x.shape[1:]))
        torch.testing.assert_close(x_t[row], expected[0])
    torch.testing.assert_close(prediction.noise, stub(x_t, t).noise)


def test_evidence_is_one_call_and_has_the_stated_shapes():
    denoise, x = Recorded(stub), pictures(2)
    seen = dict.fromkeys((0, 2, -2), of_stub(torch.zeros(2, 3, 4, 4)))
    pixel, residual = evidence(LINEAR, denoise, x, seen, perceive=coarse, draws=2)
    assert len(denoise.calls) == 1 and len(denoise.calls[0][0]) == 12
    assert pixel.shape == residual.shape == (2, 3, 2, 3, 4, 4)
    maps, _ = evidence(LINEAR, denoise, x, seen, perceive=coarse, draws=2, kind="kl")
    assert maps.shape == (2, 3, SIZE, SIZE)
    assert maps.dtype == pixel.dtype == residual.dtype == torch.float32


def test_a_map_depends_neither_on_the_batch_nor_on_the_other_timesteps():
    x, features = pictures(3), {by: torch.rand(3, 3, 4, 4) for by in (0, 2, -2)}
    seen = {by: of_stub(values) for by, values in features.items()}
    one = {by: of_stub(values[1:2]) for by, values in features.items()}
    for kind in ("perceptual", "uncertainty"):
        settings = {"perceive": coarse, "seed": 2, "draws": 2, "kind": kind}
        pixel, residual = evidence(LINEAR, stub, x, seen, (20, 200, 400), **settings)
        alone = evidence(LINEAR, stub, x[1:2], one, (200,), **settings)
        torch.testing.assert_close(alone[0], pixel[1:2, 1:2])
        torch.testing.assert_close(alone[1], residual[1:2, 1:2])


def test_draws_are_averaged_as_scores_not_as_predictions():
    x, features, covariance = pictures(1), torch.rand(1, 3, 4, 4), plain(3)
    seen = {0: of_stub(features)}
    pixel, residual = evidence(LINEAR, stub, x, seen, (50,), perceive=coarse, draws=3, kind="rgb")
    maps = []
    for draw in range(3):
        t = torch.tensor([50])
        x_t = LINEAR.q_sample(x, t, noise_for(0, 50, draw, x.shape[1:])[None])
        prediction = stub(x_t, t)
        error = (features - prediction.features).square().mean(1)
        maps.append((pixel_score(LINEAR, prediction, x, x_t, t, "rgb"), error))
    mean_pixel, mean_error = (torch.stack(both).mean(0) for both in zip(*maps))
    torch.testing.assert_close(pixel[:, 0], smooth(mean_pixel))
    size_four = residual_maps(residual, covariance.squared_mahalanobis, 4, (50,))
    torch.testing.assert_close(size_four[:, 0], smooth(mean_error))


# -- pixel scores --------------------------------------------------------------------------------------------


def scored(world, x, t_value, kind, stride=4):
    """x_t, t and the score of every picture at one t in the Gaussian world."""
    t = torch.full((len(x),), t_value)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(t_value))
    x_t = LINEAR.q_sample(x, t, noise)
    return x_t, t, pixel_score(LINEAR, world(x_t, t), x, x_t, t, kind, stride)


@pytest.mark.parametrize("t", TIMESTEPS)
def test_uncertainty_score_of_normal_pictures_has_mean_one_where_it_is_seen(world, t, monkeypatch):
    """At the left the world varies four times less than at the right: the score must not tell, unless that
    variation is too small to be seen.
    """
    normal = world.sample(200, seed=1).float()
    variance = world.posterior(normal[:1], torch.tensor([t]))[1].mean(dim=(0, 1, 2))  # by column
    for unseen in (0.0, float(variance.min().sqrt())):
        monkeypatch.setattr(scoring, "UNSEEN", unseen)
        columns = scored(world, normal, t, "uncertainty")[2].mean(dim=(0, 1))
        expected = variance / (variance + unseen**2)
        torch.testing.assert_close(columns.double(), expected, rtol=0.15, atol=0)
        assert float(columns.mean()) == pytest.approx(float(expected.mean()), rel=0.05)


@pytest.mark.parametrize("t", TIMESTEPS)
def test_scores_are_their_formulas(world, normal, t):
    x_t, times, score = scored(world, normal, t, "uncertainty")
    mean, variance = world.posterior(x_t, times)
    error = (normal - mean) ** 2
    expected = (error / (variance + UNSEEN**2)).mean(1)
    torch.testing.assert_close(score.double(), expected, rtol=1e-3, atol=1e-4)
    rgb = scored(world, normal, t, "rgb")[2]
    torch.testing.assert_close(rgb.double(), error.mean(1), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("stride", [1, 4, 20])
def test_kl_score_is_the_schedules_kl_at_its_stride(world, normal, stride):
    for t in (2, 20, 400):
        x_t, times, score = scored(world, normal, t, "kl", stride)
        previous = torch.full_like(times, max(t - stride, -1))
        expected = LINEAR.kl(world(x_t, times), normal, x_t, times, previous)
        torch.testing.assert_close(score, expected.mean(1))


def test_an_unknown_score_is_refused(world, normal):
    for kind in ("ssim", "perceptual"):  # the latter is not of single pixels
        with pytest.raises(ValueError, match="uncertainty, kl, rgb, not"):
            scored(world, normal, 20, kind)


@pytest.mark.parametrize("t", TIMESTEPS)
def test_the_perceptual_residual_is_what_is_seen_of_the_picture_less_of_what_is_drawn(world, normal, t):
    seen = of_world(world, normal, (t,))
    residual, _ = evidence(LINEAR, world, normal, seen, (t,), perceive=world.perceptual, draws=2)
    assert residual.shape == (24, 1, 2, 3, SIZE // 2, SIZE // 2)
    times = torch.full((24,), t)
    shown = shifted(normal, offset_of(t, 2))
    for draw in range(2):
        x_t = LINEAR.q_sample(shown, times, noise_for(0, t, draw, normal.shape[1:]).expand_as(normal))
        mean, _ = world.posterior(x_t, times)  # the ideal x̂_0
        expected = torch.nn.functional.avg_pool2d(shown - mean, 2)
        torch.testing.assert_close(residual[:, 0, draw].double(), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["uncertainty", "kl", "rgb"])
def test_an_anomalous_patch_raises_the_score_there_at_every_timestep(kind):
    world = GaussianWorld.independent(smooth_mean(SIZE), 0.05)
    broken = world.mean.float()[None].clone()
    broken[..., PATCH[0], PATCH[1]] += 0.6
    settings = {"perceive": world.perceptual, "kind": kind}
    pixel, _ = evidence(LINEAR, world, broken, of_world(world, broken), **settings)
    good, _ = evidence(LINEAR, world, world.mean.float()[None], of_world(world, broken), **settings)
    for i in range(len(TIMESTEPS)):
        inside, away = pixel[0, i][PATCH], pixel[0, i][:, :7]
        assert inside.mean() > 4 * good[0, i][PATCH].mean() and inside.min() > away.mean(), TIMESTEPS[i]
        torch.testing.assert_close(away, good[0, i][:, :7])  # pixels of this world know nothing of each other


# -- feature scores ------------------------------------------------------------------------------------------


def test_residuals_are_the_feature_maps_of_the_prediction_error(world, normal):
    seen = of_world(world, normal[:2], (50,))
    _, residual = evidence(LINEAR, world, normal[:2], seen, (50,), perceive=world.perceptual)
    t = torch.tensor([50, 50])
    x_t = LINEAR.q_sample(normal[:2], t, noise_for(0, 50, 0, normal.shape[1:]).expand(2, -1, -1, -1))
    error = world.features(normal[:2].double() - world.posterior(x_t, t)[0])
    torch.testing.assert_close(residual[:, 0, 0].double(), error, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("branch", [0, 1], ids=["pixel", "feature"])
def test_maps_of_normal_pictures_have_mean_one_and_a_patch_stands_out(branch):
    world = GaussianWorld.independent(smooth_mean(SIZE), 0.05)
    x = world.sample(24).float()
    residual = evidence(LINEAR, world, x, of_world(world, x), perceive=world.perceptual)[branch]
    covariance = residual_gaussian([[residual[:, i, 0]] for i in range(3)], SIZE // 2)
    good = residual_maps(residual, covariance.squared_mahalanobis, SIZE, TIMESTEPS)
    assert good.shape == (24, 3, SIZE, SIZE) and float(good.mean()) == pytest.approx(1, abs=0.06)
    broken = x[:1].clone()
    broken[..., PATCH[0], PATCH[1]] += 0.6
    residual = evidence(LINEAR, world, broken, of_world(world, broken), perceive=world.perceptual)[branch]
    maps = residual_maps(residual, covariance.squared_mahalanobis, SIZE, TIMESTEPS)[0]
    assert all(maps[i][PATCH].mean() > 10 and maps[i][:, :7].mean() < 2 for i in range(3))


def test_a_feature_map_lies_where_its_cells_lie():
    """Cell (2, 5) of 8 px covers 16 … 23 and 40 … 47."""
    residual = torch.zeros(1, 1, 1, 3, 8, 8)
    residual[..., 2, 5] = 1
    spot = residual_maps(residual, plain(3).squared_mahalanobis, 64, (20,))[0, 0]
    cells = plain(3).squared_mahalanobis(residual[:, 0, 0])
    enlarged = torch.nn.functional.interpolate(cells[None], size=(64, 64), mode="bicubic")
    torch.testing.assert_close(spot, smooth(enlarged)[0, 0])
    share = spot / spot.sum()
    place = torch.arange(64)
    assert float((share.sum(1) * place).sum()) == pytest.approx(19.5, abs=1e-3)
    assert float((share.sum(0) * place).sum()) == pytest.approx(43.5, abs=1e-3)


# -- smoothing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 16, 64, 256])
def test_smoothing_keeps_constants(size):
    torch.testing.assert_close(
        smooth(torch.full((2, 3, size, size), 0.7)), torch.full((2, 3, size, size), 0.7)
    )


def test_smoothing_keeps_the_total_and_has_the_stated_width():
    spot = torch.zeros(1, 128, 128)
    spot[0, 60, 70] = 5
    for sigma in (4.0, 8.0):  # px of a 256 px picture: half as many here
        spread = smooth(spot, sigma)[0].double()
        assert float(spread.sum()) == pytest.approx(5, rel=1e-5) and spread.min() >= 0
        for axis, centre in ((1, 60), (0, 70)):
            profile, place = spread.sum(axis) / 5, torch.arange(128)
            assert float((profile * place).sum()) == pytest.approx(centre, abs=1e-3)
            width = float((profile * (place - centre) ** 2).sum()) ** 0.5
            assert width == pytest.approx(sigma / 2, rel=0.02)  # the filter ends at 3 σ


def test_smoothing_is_linear_and_turns_with_the_picture():
    maps = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(smooth(3 * maps), 3 * smooth(maps))
    torch.testing.assert_close(smooth(maps.transpose(-1, -2)), smooth(maps).transpose(-1, -2))
    torch.testing.assert_close(smooth(maps.flip(-1)), smooth(maps).flip(-1))


def shown(cells: np.ndarray) -> np.ndarray:
    """As a map of 256 px."""
    return np.kron(cells.reshape(CELLS, CELLS), np.ones((8, 8), np.float32))


def test_alpha_bar_of_the_default_timesteps_is_the_papers():
    assert [round(float(v), 2) for v in alpha_bar(torch.tensor(TIMESTEPS)).flatten()] == [0.99, 0.66, 0.19]
