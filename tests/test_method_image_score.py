"""Fusion, the score of a picture, its threshold and rate against definitions."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from diffad.method.calibration import from_codes, to_codes
from diffad.method.fusion import PIXEL_TRUST, branch_weights, fuse, weights_in_words
from diffad.method.gaussian import ResidualGaussian
from diffad.method.image_score import (
    CELLS,
    CHANGED_RATE,
    PEAK,
    ImageScore,
    law_of_changed,
    rate_bounds,
    rate_for,
    threshold_for,
    top_mean,
    unusual,
)


def plain(channels: int) -> ResidualGaussian:
    """The identity on every grid: the feature score is the mean square."""
    codes = torch.zeros(3, 1, 1, channels, channels, dtype=torch.int8)
    one = torch.ones(3, 1, 1, channels)
    return ResidualGaussian(torch.eye(channels), codes, one, one)


# -- fusion and image score ----------------------------------------------------------------------------------


def test_fusion_is_the_weighed_mean_over_timesteps():
    rng = np.random.default_rng(0)
    pixel, feature = rng.normal(size=(2, 3, 5, 5))
    np.testing.assert_allclose(fuse(pixel, feature, 1), pixel.mean(0))
    np.testing.assert_allclose(fuse(pixel, feature, 0), feature.mean(0))
    for alpha in (0.25, 0.8):
        w = branch_weights(alpha)
        expected = sum(w[0] * p + w[1] * f for p, f in zip(pixel, feature)) / 3  # (11), term by term
        np.testing.assert_allclose(fuse(pixel, feature, alpha), expected)


def test_at_a_half_a_deviation_of_the_pixels_counts_for_their_trust():
    pixel, feature = branch_weights(0.5)
    assert pixel / feature == pytest.approx(PIXEL_TRUST)
    assert PIXEL_TRUST == 1 / 20  # "a twentieth", say all who explain α
    shares = [branch_weights(alpha) for alpha in np.linspace(0, 1, 21)]
    assert all(sum(pair) == pytest.approx(1) for pair in shares)
    assert all(one[0] < other[0] for one, other in pairwise(shares))


def good_maps(count: int = 48, seed: int = 0) -> np.ndarray:
    """Fused maps of good pictures, whose levels differ and that have a few bright places [count, 1024]."""
    rng = np.random.default_rng(seed)
    levels = rng.uniform(-0.3, 0.3, (count, 1))
    return (levels + rng.gumbel(0, 0.4, (count, CELLS**2))).astype(np.float32)


def shown(cells: np.ndarray) -> np.ndarray:
    """As a map of 256 px."""
    return np.kron(cells.reshape(CELLS, CELLS), np.ones((8, 8), np.float32))


def test_a_score_is_the_same_of_a_map_and_of_its_cells():
    good = good_maps()
    score = ImageScore.of(good)
    assert score.good.shape == (48,) and score.good.dtype == np.float32
    for cells, known in zip(good[:6], score.good):
        assert score(shown(cells), 256) == pytest.approx(known, rel=1e-5)
        assert score(cells.reshape(CELLS, CELLS), CELLS) == pytest.approx(known, rel=1e-5)


def test_a_small_strong_defect_scores_by_its_peak_and_a_wide_weak_one_by_its_excess():
    good = good_maps()
    score = ImageScore.of(good)
    small, wide = good[0].copy(), good[0].copy()
    small[500:504] = 30
    assert score(shown(small), 256) == pytest.approx(30)
    wide[300:450] += 1.7  # lower than many a good part's highest places
    peak = np.sort(wide)[-PEAK:].mean()
    assert peak < threshold_for(score.good) < score(shown(wide), 256)


def test_an_excess_counts_as_the_peak_that_as_few_good_parts_have():
    good = good_maps()
    score = ImageScore.of(good)
    ranked = -np.sort(-good, axis=1)
    peaks = ranked[:, :PEAK].mean(axis=1)
    excesses = np.array([score._excess(each) for each in ranked])
    for excess in np.linspace(excesses.min(), 3 * excesses.max(), 7):
        as_peak = score.shift + score.scale * excess
        assert rate_for(peaks, as_peak) == pytest.approx(rate_for(excesses, excess), rel=1e-6, abs=1e-12)


def test_a_map_that_is_raised_everywhere_has_no_more_excess():
    """As by noise: only its peak rises with it."""
    good = good_maps()
    score = ImageScore.of(good)
    cells = -np.sort(-good[0])
    assert score._excess(cells + 2) == pytest.approx(score._excess(cells), rel=1e-4, abs=1e-6)
    higher = max(cells[:PEAK].mean() + 2, score(shown(good[0]), 256))
    assert score(shown(good[0] + 2), 256) == pytest.approx(higher)
    wide = good[0] + 2 * (np.arange(CELLS**2) < CELLS**2 // 5)
    assert score._excess(-np.sort(-wide)) > 4 * score._excess(cells)


def test_padding_that_a_map_does_not_show_hardly_moves_a_score():
    """Of a picture half as high as wide, good maps are known in the square, with the mean for padding."""
    score = ImageScore.of(good_maps())
    half = good_maps(1, seed=3)[0].reshape(CELLS, CELLS)[: CELLS // 2]
    padded = np.vstack([half, np.full_like(half, half.mean())])
    assert score(half, CELLS) == pytest.approx(score(padded, CELLS), rel=0.1)


@pytest.mark.parametrize("good", [np.zeros((1, CELLS**2), np.float32), np.ones((9, CELLS**2), np.float32)])
def test_good_maps_without_any_spread_still_give_finite_scores(good):
    score = ImageScore.of(good)
    assert np.isfinite(score.good).all()
    assert 0 < score(shown(good[0] + np.eye(CELLS, dtype=np.float32).ravel()), 256) < 1e6


def test_maps_are_remembered_within_six_per_cent():
    values = torch.cat([torch.linspace(-8, 8, 999), torch.tensor([0.0, 40.0, 9000.0, -9000.0])])
    again = from_codes(to_codes(values))
    assert (again - values)[:999].abs().max() < 0.26
    assert (((again - values).abs() <= 0.032 * (1 + values.square()).sqrt())[:-2]).all()
    assert again[-2] > 1000 and again[-1] < -5 and again[-4] == 0
    assert torch.equal(from_codes(to_codes(again)), again)


def test_plain_features_make_half_of_a_map():
    maps = np.random.default_rng(0).normal(size=(2, 3, 8, 8))
    plain = np.full((8, 8), 5.0)
    for alpha in (0, 0.5, 1):
        both = fuse(*maps, alpha)
        np.testing.assert_allclose(fuse(*maps, alpha, plain), (both + 5) / 2)
    assert weights_in_words(0, plain=True) == "pixels 0 %, features 50 %, plain features 50 %"


def test_top_mean_is_the_mean_of_the_highest():
    flat = np.arange(400, dtype=np.float32)
    np.random.default_rng(0).shuffle(flat)
    assert top_mean(flat.reshape(20, 20)) == pytest.approx(np.arange(144, 400).mean())
    assert top_mean(flat.reshape(20, 20), size=16) == 399
    assert top_mean(np.array([[1.0, 2.0], [3.0, 6.0]])) == 3  # fewer than 256


# -- threshold -----------------------------------------------------------------------------------------------


def gumbel_scores(location: float, scale: float, count: int = 100_000) -> np.ndarray:
    """Gumbel's quantiles at even probabilities."""
    return location - scale * np.log(-np.log((np.arange(count) + 0.5) / count))


@pytest.mark.parametrize("rate", [0.5, 0.05, 0.01, 0.001])
def test_threshold_is_gumbels_quantile(rate):
    expected = 2 - 0.3 * math.log(-math.log(1 - rate))
    # of so many scores 3 in 10,000 are unusual, rightly by the law
    assert threshold_for(gumbel_scores(2, 0.3), rate) == pytest.approx(expected, rel=0.01)
    few = gumbel_scores(2, 0.3, 400)  # none is: the moments alone
    scale = math.sqrt(6) / math.pi * few.std(ddof=1) * (1 + 1 / 400)
    exact = few.mean() + scale * (-math.log(-math.log(1 - rate)) - np.euler_gamma)
    assert threshold_for(few, rate) == pytest.approx(exact, rel=1e-9)


def test_rate_is_gumbels_tail():
    scores = gumbel_scores(2, 0.3)
    for score in (1.5, 2.0, 3.0, 4.0):
        assert rate_for(scores, score) == pytest.approx(1 - math.exp(-math.exp(-(score - 2) / 0.3)), rel=0.06)


@pytest.mark.parametrize("scores", [[1.0, 1.4, 0.9, 1.1], [2.0], [0.0, 0.0, 0.0], [-1.0, 0.5]])
def test_rate_and_threshold_are_inverses(scores):
    scores = np.array(scores, dtype=np.float32)
    for rate in (0.9, 0.5, 0.1, 0.01, 1e-4, 1e-9):
        assert rate_for(scores, threshold_for(scores, rate)) == pytest.approx(rate, rel=1e-4)


def test_rate_falls_and_threshold_rises():
    scores = np.array([1.0, 1.4, 0.9, 1.1])
    rates = [rate_for(scores, score) for score in np.linspace(-200, 200, 401)]
    assert all(later <= earlier for earlier, later in pairwise(rates))
    assert rates[0] == 1 and 0 <= rates[-1] < 1e-12
    thresholds = [threshold_for(scores, rate) for rate in (0.9, 0.5, 0.1, 0.01, 1e-4)]
    assert thresholds == sorted(thresholds) and thresholds[0] < scores.max() < thresholds[-1]


def test_threshold_follows_the_scores():
    scores = np.array([1.0, 1.4, 0.9, 1.1])
    wide = threshold_for(3 * scores)
    assert wide == pytest.approx(3 * threshold_for(scores))
    assert threshold_for(np.array([1.0])) > 1  # one good picture: some margin all the same
    assert threshold_for(scores) > threshold_for(np.tile(scores, 50))  # few pictures are less certain
    plain = scores.mean() + scores.std(ddof=1) * 6**0.5 / math.pi * (
        -math.log(-math.log(0.99)) - np.euler_gamma
    )
    assert plain < threshold_for(scores) < 1.5 * plain


def test_unusual_scores_lie_beyond_the_law_of_the_others():
    usual = 3 + 0.5 * -np.log(-np.log((np.arange(40) + 0.5) / 40))  # the law's own quantiles
    assert not unusual(usual).any()
    with_odd = np.append(usual, [9.0, 3.2, 12.0, 8.5])
    assert unusual(with_odd).nonzero()[0].tolist() == [40, 42, 43]
    assert np.array_equal(unusual(7 * with_odd - 5), unusual(with_odd))


def test_how_bright_a_speck_of_dust_is_does_not_move_the_threshold():
    usual = 3 + 0.5 * -np.log(-np.log((np.arange(40) + 0.5) / 40))
    limits = [threshold_for(np.append(usual, odd)) for odd in ((), (9.0,), (9000.0,))]
    assert limits[0] < limits[1] == limits[2] < limits[0] + 1
    assert rate_for(np.append(usual, 9.0), 5.0) == rate_for(np.append(usual, 9000.0), 5.0)


@pytest.mark.parametrize("count", [12, 30, 192])
def test_the_true_rate_lies_within_its_bounds_in_nineteen_of_twenty_cases(count):
    rng = np.random.default_rng(count)
    held, widths = [], []
    for _ in range(400):
        scores = rng.gumbel(2, 0.5, count)
        threshold = threshold_for(scores)
        low, high = rate_bounds(scores, threshold)
        assert low < 0.01 < high  # what is announced
        held.append(low <= 1 - math.exp(-math.exp(-(threshold - 2) / 0.5)) <= high)
        widths.append(high / low)
    assert 0.88 <= np.mean(held) <= 0.99
    assert np.median(widths) < {12: 400, 30: 40, 192: 5}[count]


@pytest.mark.parametrize("changed", [(0.5, 1.0), (4.0, 1.5), (-2.0, 3.0), (3.0, 0.8)])
def test_a_threshold_also_holds_for_changed_parts_of_which_more_may_be_rejected(changed):
    scores = np.random.default_rng(1).gumbel(2, 0.5, 60)
    # its own law moved as `changed` says: the mean by some scales, then every distance from it stretched
    middle, scale = scores.mean(), scores.std(ddof=1) * (1 + 1 / 60) * 6**0.5 / math.pi
    copies = middle + changed[0] * scale + changed[1] * (scores - middle)
    assert law_of_changed(scores, copies) == pytest.approx(changed, rel=1e-6)
    for rate in (1e-4, 0.01, 0.05, 0.099, 0.1, 0.3):
        limit = threshold_for(scores, rate, changed)
        alone, of_copies = threshold_for(scores, rate), -math.inf
        if rate < 0.1:
            of_copies = threshold_for(copies, CHANGED_RATE * rate)
        assert limit == pytest.approx(max(alone, of_copies))
        assert rate_for(scores, limit, changed) == pytest.approx(rate)
    low, high = rate_bounds(scores, threshold_for(scores, 0.01, changed), changed)
    assert low < 0.01 < high
    other = 3 * scores - 7  # in another unit
    assert threshold_for(other, 0.01, changed) == pytest.approx(3 * threshold_for(scores, 0.01, changed) - 7)


def test_good_scores_are_seldom_called_unusual():
    draws = np.random.default_rng(0).gumbel(size=(1000, 40))
    assert 0.01 < np.mean([unusual(scores).any() for scores in draws]) < 0.06


def test_a_threshold_needs_a_good_score():
    for ask in (lambda: threshold_for(np.array([])), lambda: rate_for(np.array([]), 1.0)):
        with pytest.raises(ValueError, match="at least one good score"):
            ask()
