"""Calibration against its definitions: units of good maps, places, interpolation in t, remembered scores."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffad.method.calibration import Calibration, coarse_maps, place_level
from diffad.method.fusion import fuse
from diffad.method.scoring import RawMaps, smooth

NODES = (20, 100, 200, 400)


def raw_maps(count: int = 16, size: int = 256, seed: int = 0, uneven: bool = True) -> RawMaps:
    """Good maps: a bright ring common to all pictures, blots and grain of each its own, a scale by t."""
    generator = torch.Generator().manual_seed(seed)

    def branch(level: float) -> torch.Tensor:
        grain = torch.rand(count, len(NODES), size, size, generator=generator) ** 2
        coarse = torch.rand(count, 1, size // 16, size // 16, generator=generator)
        own = F.interpolate(coarse, size=(size, size), mode="bilinear")
        y = torch.linspace(-2, 2, size)
        ring = 1 + 3 * uneven * torch.exp(-4 * ((y[:, None] ** 2 + y**2).sqrt() - 1).abs())
        scale = level * torch.tensor([1.0, 3.0, 0.2, 7.0]).view(-1, 1, 1)
        return scale * (smooth(grain) + own) * ring + scale

    return RawMaps(branch(1.0), branch(0.1), NODES)


@pytest.fixture(scope="module")
def good() -> RawMaps:
    return raw_maps()


@pytest.fixture(scope="module")
def calibration(good) -> Calibration:
    return Calibration.fit(good, by_place=True)


def both_branches(maps: RawMaps) -> torch.Tensor:
    return torch.stack([maps.pixel, maps.feature], dim=1)  # [b, 2, n, size, size]


def over_the_others_level(maps: RawMaps) -> torch.Tensor:
    """Every picture's maps over the level of the other pictures, [b, 2, n, size, size]."""
    level = place_level(both_branches(maps))[1]
    size = maps.pixel.shape[-1]
    return both_branches(maps) / F.interpolate(level, (size, size), mode="bilinear")[:, :, None]


def test_moments_are_those_of_maps_over_the_level_of_the_other_pictures(good, calibration):
    even = over_the_others_level(good)
    assert calibration.moments.shape == (2, 2, 4) and calibration.moments.dtype == torch.float32
    torch.testing.assert_close(calibration.moments[:, 0], even.mean(dim=(0, 3, 4)), rtol=1e-4, atol=0)
    values = even.permute(1, 2, 0, 3, 4).flatten(2).numpy()
    tail = np.quantile(values, 0.999, axis=-1)
    sigma = (tail - values.mean(axis=-1)) / 3.09
    np.testing.assert_allclose(calibration.moments[:, 1].numpy(), sigma, rtol=1e-3)


def share_beyond_the_tail(maps: torch.Tensor) -> float:
    return float((maps > 3.09).double().mean())


def test_standardised_good_maps_have_mean_zero_and_one_place_in_a_thousand_above_3_sigma(good, calibration):
    """Nearly: these pictures are part of the level, which flatters them a little."""
    standard = calibration.standardise(good)
    assert standard.timesteps == NODES
    for maps in (standard.pixel, standard.feature):
        assert maps.shape == good.pixel.shape
        for i in range(len(NODES)):
            assert float(maps[:, i].double().mean()) == pytest.approx(0, abs=0.05)
            assert 0.0005 < share_beyond_the_tail(maps[:, i]) < 0.0015


def test_without_a_common_place_they_have_it_exactly():
    maps = raw_maps(6, 64, uneven=False)
    calibration = Calibration.fit(maps, by_place=True)
    torch.testing.assert_close(calibration.level, torch.ones_like(calibration.level), atol=0.02, rtol=0)
    standard = both_branches(replace(calibration, level=torch.ones(2, 32, 32)).standardise(maps)).double()
    torch.testing.assert_close(standard.mean(dim=(0, 3, 4)), torch.zeros(2, 4).double(), atol=0.02, rtol=0)
    for branch in (0, 1):
        for i in range(4):
            assert share_beyond_the_tail(standard[:, branch, i]) == pytest.approx(0.001, abs=0.0004)


def test_normal_maps_are_measured_in_their_own_deviation():
    """For a normal law the tail's σ is the standard deviation."""
    noise = 5 + 2 * torch.randn(4, 1, 256, 256, generator=torch.Generator().manual_seed(1))
    mean, sigma = Calibration.fit(RawMaps(noise, noise, (20,))).moments[0, :, 0].tolist()
    assert mean == pytest.approx(5, abs=0.02) and sigma == pytest.approx(2, rel=0.03)


def test_a_new_picture_is_standardised_by_level_mean_and_deviation(calibration):
    new = raw_maps(1, 256, seed=5)
    standard = calibration.standardise(new)
    level = F.interpolate(calibration.level[:, None], (256, 256), mode="bilinear")[:, 0]
    mean, std = calibration.moments.unbind(1)  # [2, n] each
    for branch, (raw, made) in enumerate(((new.pixel, standard.pixel), (new.feature, standard.feature))):
        expected = (raw[0] / level[branch] - mean[branch, :, None, None]) / std[branch, :, None, None]
        torch.testing.assert_close(made[0], expected, rtol=1e-4, atol=1e-4)


def test_the_unit_of_the_raw_scores_does_not_matter(good, calibration):
    """Of no branch and no timestep: none has a louder say in the level."""
    by_t = torch.tensor([1, 1000, 0.01, 7]).view(-1, 1, 1)
    louder = Calibration.fit(RawMaps(by_t * good.pixel, 0.01 * good.feature, NODES), by_place=True)
    torch.testing.assert_close(louder.level, calibration.level, rtol=1e-4, atol=0)
    for alpha in (0, 0.4, 1):
        np.testing.assert_allclose(
            louder.scorer(alpha, (20, 200)).good, calibration.scorer(alpha, (20, 200)).good, rtol=1e-3
        )


# the level of good maps by place


def uneven_maps(place: float, own: float, count: int = 60) -> torch.Tensor:
    """exp(place + own), normal on a grid of 32: their deviations decide the intraclass correlation."""
    generator = torch.Generator().manual_seed(0)
    common = place * torch.randn(2, 1, 32, 32, generator=generator)
    return (common + own * torch.randn(count, 2, 1, 32, 32, generator=generator)).exp()


def relative_level(maps: torch.Tensor) -> torch.Tensor:
    """The level at power 1 of places that are not very calm, [2, 32, 32]: smoothed mean over its own mean."""
    wide = smooth(maps[:, :, 0], sigma=8).mean(0)
    return wide / wide.mean(dim=(-2, -1), keepdim=True)


def test_places_alike_in_every_good_picture_are_divided_out():
    maps = uneven_maps(place=0.3, own=0.0, count=3)
    level, without = place_level(maps)
    torch.testing.assert_close(level, relative_level(maps))
    torch.testing.assert_close(without, level.expand_as(without))


def test_places_unlike_in_every_good_picture_are_left_alone():
    level, _ = place_level(uneven_maps(place=0.0, own=0.5))
    torch.testing.assert_close(level, torch.ones_like(level), atol=0.02, rtol=0)


@pytest.mark.parametrize("place, own", [(0.2, 0.4), (0.4, 0.4), (0.3, 0.1), (0.3, 0.9)])
def test_between_the_two_the_intraclass_correlation_decides(place, own):
    maps = uneven_maps(place, own)
    level, _ = place_level(maps)
    base = relative_level(maps).log()
    power = (level.log() * base).sum() / base.square().sum()
    assert float(power) == pytest.approx((place**2 / (place**2 + own**2)) ** 0.5, rel=0.05)
    torch.testing.assert_close(level.log(), power * base, atol=0.01, rtol=0)


def test_no_picture_is_part_of_its_own_level():
    maps = uneven_maps(0.3, 0.15, count=5)
    level, without = place_level(maps)
    power = float(level[0].log().abs().sum() / relative_level(maps)[0].log().abs().sum())
    for index in range(5):
        others = torch.cat([maps[:index], maps[index + 1 :]])
        torch.testing.assert_close(without[index, 0], relative_level(others)[0] ** power, rtol=1e-3, atol=0)


def test_one_good_picture_says_nothing_of_places():
    level, without = place_level(uneven_maps(0.5, 0.5, count=1))
    assert bool((level == 1).all()) and bool((without == 1).all())


def test_the_level_stays_well_above_zero_where_good_maps_vanish():
    maps = torch.ones(4, 2, 1, 64, 64)
    maps[..., :32] = 0
    maps[..., :8, :8] = -1e-3  # a KL may be slightly negative
    level, without = place_level(maps)
    # all pictures are alike, so that the power is 1 and the floor of a half is what remains
    assert float(level.min()) == pytest.approx(0.5) and float(without.min()) == pytest.approx(0.5)


# interpolation in t


def standardised_at(calibration: Calibration, t: int) -> np.ndarray:
    """mean and std that are applied at t, [2 branches, 2], read off what becomes of 0 and 1 at level 1."""
    even = replace(calibration, level=torch.ones(2, 2, 2))
    zero, one = (
        even.standardise(RawMaps(torch.full((1, 1, 2, 2), v), torch.full((1, 1, 2, 2), v), (t,)))
        for v in (0.0, 1.0)
    )
    rows = []
    for a, b in ((zero.pixel, one.pixel), (zero.feature, one.feature)):
        std = 1 / (float(b[0, 0, 0, 0]) - float(a[0, 0, 0, 0]))
        rows.append((-float(a[0, 0, 0, 0]) * std, std))
    return np.array(rows)


def test_interpolation_is_exact_at_the_nodes_linear_between_and_constant_beyond(calibration):
    moments = calibration.moments.double().numpy()  # [branch, (mean, std), n]
    for i, t in enumerate(NODES):
        np.testing.assert_allclose(standardised_at(calibration, t), moments[:, :, i], rtol=1e-4)
    np.testing.assert_allclose(
        standardised_at(calibration, 250), 0.75 * moments[:, :, 2] + 0.25 * moments[:, :, 3], rtol=1e-4
    )
    np.testing.assert_allclose(
        standardised_at(calibration, 36), 0.8 * moments[:, :, 0] + 0.2 * moments[:, :, 1], rtol=1e-4
    )
    np.testing.assert_allclose(standardised_at(calibration, 0), moments[:, :, 0], rtol=1e-4)
    np.testing.assert_allclose(standardised_at(calibration, 999), moments[:, :, 3], rtol=1e-4)


def test_several_timesteps_are_standardised_each_by_its_own_moments(calibration):
    maps = torch.rand(2, 3, 8, 8)
    chosen = (400, 20, 250)  # in the caller's order
    together = calibration.standardise(RawMaps(maps, maps, chosen))
    for i, t in enumerate(chosen):
        alone = calibration.standardise(RawMaps(maps[:, i : i + 1], maps[:, i : i + 1], (t,)))
        torch.testing.assert_close(together.pixel[:, i : i + 1], alone.pixel)
        torch.testing.assert_close(together.feature[:, i : i + 1], alone.feature)


def test_one_calibrated_timestep_serves_every_t(good):
    only = Calibration.fit(RawMaps(good.pixel[:, :1], good.feature[:, :1], (20,)), by_place=True)
    for t in (0, 20, 700):
        np.testing.assert_allclose(standardised_at(only, t), only.moments[:, :, 0], rtol=1e-4)
    assert only.scorer(0.5, (300,)).good.shape == (16,)


def real_scores(
    calibration: Calibration, maps: RawMaps, alpha: float, timesteps: tuple[int, ...]
) -> np.ndarray:
    """What an inspection would say of pictures that the level does not know."""
    mean, std = calibration.moments.unbind(1)
    standard = (over_the_others_level(maps) - mean[..., None, None]) / std[..., None, None]
    chosen = [NODES.index(t) for t in timesteps]
    size, scorer = standard.shape[-1], calibration.scorer(alpha, timesteps)
    return np.array([scorer(fuse(*picture[:, chosen].numpy(), alpha), size) for picture in standard])


@pytest.mark.parametrize("alpha", [0, 0.3, 0.5, 1])
@pytest.mark.parametrize("timesteps", [(20,), (20, 200, 400), (100, 400)])
def test_good_scores_are_those_of_the_real_maps(good, calibration, alpha, timesteps):
    """But for the whole numbers in which maps are remembered, a step of which is 6 %."""
    remembered = calibration.scorer(alpha, timesteps).good
    real = real_scores(calibration, good, alpha, timesteps)
    assert remembered.dtype == np.float32 and remembered.shape == (16,)
    np.testing.assert_allclose(remembered, real, rtol=0.04)
    assert float(remembered.mean() / real.mean()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("size, count", [(64, 12), (96, 8), (128, 8), (512, 2)])
def test_good_scores_are_those_of_the_real_maps_at_other_sizes(size, count):
    """The image score and its memory must speak of the same share of the picture at every size."""
    maps = raw_maps(count, size)
    calibration = Calibration.fit(maps, by_place=True)
    remembered = calibration.scorer(0.5, (20, 200)).good
    real = real_scores(calibration, maps, 0.5, (20, 200))
    assert float(remembered.mean() / real.mean()) == pytest.approx(1, abs=0.05)


def test_another_timestep_has_the_good_scores_of_the_nearest_on_its_grid(calibration):
    """The grids change at 100 and 300."""
    for t, like in ((0, 20), (99, 20), (140, 100), (299, 200), (300, 400), (999, 400)):
        known = calibration.scorer(0.5, (like,)).good
        np.testing.assert_array_equal(calibration.scorer(0.5, (t,)).good, known)


def test_more_pictures_may_be_remembered_than_are_looked_at_at_every_timestep(good, calibration):
    some = RawMaps(good.pixel[:6], good.feature[:6], NODES)
    columns = [NODES.index(t) for t in (20, 400)]
    coarse = coarse_maps(RawMaps(good.pixel[:, columns], good.feature[:, columns], (20, 400)))
    fitted = Calibration.fit(some, by_place=True, coarse=coarse)
    assert fitted.timesteps == NODES and fitted.remembered == (20, 400)
    assert fitted.good_maps.shape == (16, 2, 2, 32, 32)
    known = calibration.scorer(0.5, (20, 400)).good  # moments of six pictures are nearly those of sixteen
    np.testing.assert_allclose(fitted.scorer(0.5, (20, 400)).good, known, rtol=0.15)


def test_places_weigh_alike_unless_asked_otherwise(good):
    plain = Calibration.fit(good)
    assert torch.equal(plain.level, torch.ones(2, 1, 1))
    standard = plain.standardise(good)
    mean, std = plain.moments[0].unbind(0)
    expected = (good.pixel - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(standard.pixel, expected)


def test_scores_and_thresholds_are_of_what_is_judged(good):
    """As if the maps themselves had 0 σ wherever nothing is judged, the good ones included."""
    calibration = Calibration.fit(good)
    share = torch.zeros(256, 256)
    share[64:200, :100] = 1
    share[:, 240:] = 0.5
    standard = calibration.standardise(good)
    masked = RawMaps(standard.pixel * (1 - share), standard.feature * (1 - share), NODES)
    scorer = calibration.ignoring(share).scorer(0.5, (20,))
    maps = zip(masked.pixel[:, :1].numpy(), masked.feature[:, :1].numpy())
    real = np.array([scorer(fuse(pixel, feature, 0.5), 256) for pixel, feature in maps])
    np.testing.assert_allclose(scorer.good, real, rtol=0.04)
    assert not np.allclose(scorer.good, calibration.scorer(0.5, (20,)).good, rtol=0.04)
    unmasked = calibration.ignoring(torch.zeros(256, 256))
    assert torch.equal(unmasked.good_maps, calibration.good_maps)


def test_a_further_picture_is_remembered_in_the_units_of_the_others(good):
    calibration = Calibration.fit(good)
    more = calibration.plus(coarse_maps(good.first(3)))
    assert torch.equal(more.good_maps[:16], calibration.good_maps)
    steps = (more.good_maps[16:].int() - calibration.good_maps[:3].int()).abs()
    assert len(more.good_maps) == 19 and int(steps.max()) <= 1  # rounding
    assert torch.equal(more.moments, calibration.moments)
