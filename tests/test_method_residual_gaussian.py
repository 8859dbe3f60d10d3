"""The residuals' Gaussian and that of plain features against their formulas."""

import pytest
import torch
from gaussian_world import residual_gaussian, summed

from diffad.method import gaussian as gaussians
from diffad.method.gaussian import (
    PlainGaussian,
    PlainMoments,
    ResidualGaussian,
    from_steps,
    inverse_cholesky,
    to_steps,
)

CHANNELS, GRID, BLOCK, RIDGE = 6, 4, 2, 0.05


def features(count: int = 40, seed: int = 0) -> torch.Tensor:
    """Correlated features whose mean and spread differ from place to place, float32 [count, 6, 4, 4]."""
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(count, CHANNELS, GRID, GRID, generator=generator)
    mix = torch.randn(CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(99)) / 2
    place = torch.arange(GRID * GRID).view(GRID, GRID) / 8
    return torch.einsum("dc,bchw->bdhw", mix + torch.eye(CHANNELS), white) * (0.5 + place) + place


# -- the feature residual's Gaussian -------------------------------------------------------------------------


@pytest.fixture
def rows() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(6, 6, generator=generator, dtype=torch.float64) + torch.eye(6)
    return torch.randn(512, 6, generator=generator, dtype=torch.float64) @ mix + 0.5


def on_a_grid(rows: torch.Tensor) -> torch.Tensor:
    """[16 n, c] → [n, c, 4, 4]: every row a place of some picture."""
    return rows.reshape(-1, 4, 4, rows.shape[1]).permute(0, 3, 1, 2)


def places(field: torch.Tensor) -> torch.Tensor:
    return field.movedim(1, -1).reshape(-1, field.shape[1])


def scatter(rows: torch.Tensor) -> torch.Tensor:
    """Second moment about zero: a bias is part of what good pictures look like."""
    return rows.double().T @ rows.double() / len(rows)


def test_the_identity_gives_the_papers_mean_square():
    residual, one = torch.randn(2, 5, 4, 4), torch.ones(1, 1, 1, 5)
    plain = ResidualGaussian(torch.eye(5), torch.zeros(1, 1, 1, 5, 5, dtype=torch.int8), one, one)
    torch.testing.assert_close(plain.squared_mahalanobis(residual), residual.square().mean(1))


def test_one_covariance_is_the_squared_mahalanobis_distance_per_channel(rows, monkeypatch):
    monkeypatch.setattr(gaussians, "_CODES", 127)  # without the rounding to three bits
    field = on_a_grid(rows)
    expected = torch.einsum("bcyx,cd,bdyx->byx", field, torch.linalg.inv(scatter(rows)), field) / 6
    found = residual_gaussian([field.split(5)], block=4).squared_mahalanobis(field)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)
    assert float(found.mean()) == pytest.approx(1, abs=1e-4)


def test_correlations_of_different_stages_are_shrunk_in_the_common_covariance(rows, monkeypatch):
    monkeypatch.setattr(gaussians, "_CODES", 127)
    field, full = on_a_grid(rows), scatter(rows)
    directions = torch.block_diag(*(torch.linalg.eigh(full[i : i + 3, i : i + 3])[1].T for i in (0, 3)))
    full = directions @ full @ directions.T
    common = (1 - gaussians.SHRINKAGE) * full + gaussians.SHRINKAGE * torch.diag(full.diagonal())
    prior = 12 / (12 + len(rows))  # two observations a channel
    factor = inverse_cholesky((1 - prior) * full + prior * common) @ directions
    weight = torch.tensor([2 / 3, 2 / 3, 2 / 3, 4 / 3, 4 / 3, 4 / 3]).double()  # half for the finest stage
    white = torch.einsum("dc,bcyx->bdyx", factor, field)
    expected = torch.einsum("d,bdyx->byx", weight, white.square()) / 6
    found = residual_gaussian([[field]], block=4, stages=(3, 3)).squared_mahalanobis(field)
    torch.testing.assert_close(found.double(), expected, rtol=0.05, atol=0.02)


def test_a_block_has_its_own_covariance_mixed_with_the_common_one(rows, monkeypatch):
    monkeypatch.setattr("diffad.method.gaussian._CODES", 127)  # without the rounding to three bits
    field = on_a_grid(rows).clone()
    field[:, :, 2:, :2] *= 3  # louder at the lower left
    gaussian = residual_gaussian([[field]], block=2)
    common, count = scatter(places(field)), 4 * len(field)
    prior = 12 / (12 + count)  # two observations a channel
    blocks = field.unfold(2, 2, 2).unfold(3, 2, 2).permute(2, 3, 0, 4, 5, 1).reshape(4, -1, 6)
    mixed = [(1 - prior) * scatter(block) + prior * common for block in blocks]
    variances = [float((torch.linalg.inv(common) @ one).trace()) / 6 for one in mixed]
    least = sorted(variances)[1]  # the lower median
    for number, (one, variance) in enumerate(zip(mixed, variances)):
        one += max(0.0, least - variance) * common
        y, x = 2 * (number // 2), 2 * (number % 2)
        here = field[0, :, y, x]
        expected = here @ torch.linalg.inv(one) @ here / 6
        got = float(gaussian.squared_mahalanobis(field[:1])[0, y, x])
        assert got == pytest.approx(float(expected), rel=0.02)


def test_what_is_usual_at_one_place_is_a_surprise_at_another():
    """In one block channel 2 is ten times as loud as elsewhere, and channel 3 follows channel 1."""
    field = torch.randn(200, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    field[:, 2, :2, :2] *= 10
    field[:, 3, :2, :2] = field[:, 1, :2, :2] + 0.1 * field[:, 3, :2, :2]
    gaussian = residual_gaussian([[field]], block=2)
    loud, torn = torch.zeros(2, 1, 6, 4, 4)
    loud[0, 2] = 5.0
    torn[0, 1], torn[0, 3] = 2.0, -2.0
    inside, outside = gaussian.squared_mahalanobis(loud)[0][[0, 3], [0, 3]].tolist()
    assert inside < 0.2 * outside
    inside, outside = gaussian.squared_mahalanobis(torn)[0][[0, 3], [0, 3]].tolist()
    assert inside > 5 * outside


def test_dust_on_an_even_background_counts_no_more_than_on_the_median_block(rows):
    field = on_a_grid(rows).clone()
    field[:, :, :2, :2] *= 0.01
    gaussian = residual_gaussian([[field]], block=2)
    dust = (5 * rows[0].float()).view(1, 6, 1, 1).expand(1, 6, 4, 4)
    background, *others = gaussian.squared_mahalanobis(dust)[0, ::2, ::2].flatten().tolist()
    assert 0.7 < background / sorted(others)[1] < 1.4


def test_three_bits_change_a_good_pictures_distances_little():
    field = torch.randn(300, 24, 4, 4, generator=torch.Generator().manual_seed(0))
    field[:, 1:] += 0.7 * field[:, :-1]
    coarse = residual_gaussian([[field]], block=2)
    assert int(coarse.codes.abs().max()) == 3 and not coarse.codes.triu().any()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffad.method.gaussian._CODES", 127)
        fine = residual_gaussian([[field]], block=2)
    ratio = coarse.squared_mahalanobis(field) / fine.squared_mahalanobis(field)
    assert float((ratio - 1).abs().mean()) < 0.03


def test_few_pictures_fall_back_on_what_all_places_have_in_common(rows):
    field = on_a_grid(rows)
    alone = residual_gaussian([[field[:1]]], block=2)
    common = residual_gaussian([[field[:1]]], block=4)
    far = alone.squared_mahalanobis(field) / common.squared_mahalanobis(field)
    assert 0.3 < float(far.median()) < 2


def test_a_channel_that_never_moves_breaks_nothing(rows):
    still = on_a_grid(rows).clone()
    still[:, 2] = 0
    for field in (still, torch.zeros(1, 6, 4, 4)):
        for block in (4, 2):
            gaussian = residual_gaussian([[field]], block=block)
            assert bool(torch.isfinite(gaussian.squared_mahalanobis(field)).all())


def test_every_grid_has_covariances_of_its_own():
    """On the second grid channels 1 and 2 move together in one block; nowhere on the first."""
    first, second = torch.randn(2, 300, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    second[:, 1, :2, :2] = second[:, 2, :2, :2] + 0.1 * second[:, 1, :2, :2]
    gaussian = residual_gaussian([[first], [second]], block=2)
    torn = torch.zeros(1, 6, 4, 4)
    torn[0, 1], torn[0, 2] = 2.0, -2.0
    there = [gaussian.squared_mahalanobis(torn, grid)[0] for grid in (0, 1)]
    assert there[1][0, 0] > 5 * there[0][0, 0]
    assert float(there[1][3, 3]) == pytest.approx(float(there[0][3, 3]), rel=0.3)
    for grid, field in enumerate((first, second)):
        assert float(gaussian.squared_mahalanobis(field, grid).mean()) == pytest.approx(1, abs=0.05)


def test_of_a_stage_the_directions_count_that_vary_most_and_the_finest_counts_half():
    """Two stages of 2 and 3 independent channels; the last hardly varies and is not among the 2 kept."""
    deviations = torch.tensor([1.0, 2.0, 3.0, 2.0, 0.5])
    noise = torch.randn(4000, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    field = deviations.view(1, 5, 1, 1) * noise
    gaussian = residual_gaussian([[field]], block=4, stages=(2, 3), kept=2)
    assert gaussian.common.shape == (4, 5)
    ones = torch.eye(5).view(5, 5, 1, 1).expand(5, 5, 4, 4)
    distances = gaussian.squared_mahalanobis(ones).mean(dim=(1, 2)).tolist()
    # a distance is the mean over 4 directions; weights 1/2 and 1, of mean 1: 2/3 and 4/3
    expected = [2 / 3 / 4, 2 / 3 / 4 / 4, 4 / 3 / 4 / 9, 4 / 3 / 4 / 4, 0]
    assert distances == pytest.approx(expected, rel=0.03, abs=0.002)
    assert float(gaussian.squared_mahalanobis(field).mean()) == pytest.approx(1, abs=0.01)


def test_a_picture_is_measured_as_if_it_had_been_left_out(rows, monkeypatch):
    """Woodbury against a second fit without it, for its own residual and for another of the same picture."""
    monkeypatch.setattr("diffad.method.gaussian._CODES", 127)
    field = on_a_grid(rows).clone()[:30]
    field[4] *= 4  # an odd one, which stretches the covariance that it is measured with
    grids, stages = [field, 2 * field.flip(0)], (2, 4)
    gaussian, left_out = ResidualGaussian.fit(summed([[grid] for grid in grids]), stages=stages)
    other = field[:1] + torch.randn(1, 6, 4, 4, generator=torch.Generator().manual_seed(3))
    for index in (0, 4):
        rest = [torch.cat([grid[:index], grid[index + 1 :]]) for grid in grids]
        without = residual_gaussian([[grid] for grid in rest], block=2, stages=stages)
        for number, grid in enumerate(grids):
            own = grid[index : index + 1]
            for residual in (own, other):
                expected = without.squared_mahalanobis(residual, number)
                found = left_out.squared_mahalanobis(residual, own[:, None], number)
                torch.testing.assert_close(found, expected, rtol=0.1, atol=0.05)
        flattered = gaussian.squared_mahalanobis(field[index : index + 1]).mean()
        honest = left_out.squared_mahalanobis(field[index : index + 1], field[index : index + 1, None]).mean()
        assert float(honest) > (1.5 if index == 4 else 1.02) * float(flattered)
    both = left_out.squared_mahalanobis(field[[0, 4]], field[[0, 4], None])
    torch.testing.assert_close(both[1:], left_out.squared_mahalanobis(field[4:5], field[4:5, None]))


def test_a_picture_is_left_out_together_with_its_changed_copy(rows, monkeypatch):
    """Woodbury against a second fit without either: else the copy would vouch for its original."""
    monkeypatch.setattr("diffad.method.gaussian._CODES", 127)
    field = on_a_grid(rows).clone()[:24]
    field[4] *= 4
    copies = field + 0.1 * torch.randn(field.shape, generator=torch.Generator().manual_seed(5))
    _, left_out = ResidualGaussian.fit(summed([[field, copies]]), stages=(2, 4))
    rest = [torch.cat([some[:4], some[5:]]) for some in (field, copies)]
    expected = residual_gaussian([rest], block=2, stages=(2, 4)).squared_mahalanobis(field[4:5])
    own = torch.stack([field[4:5], copies[4:5]], dim=1)
    found = left_out.squared_mahalanobis(field[4:5], own)
    assert float(found.mean()) == pytest.approx(float(expected.mean()), rel=0.1)
    alone = left_out.squared_mahalanobis(field[4:5], field[4:5, None])
    assert float(alone.mean()) < 0.7 * float(expected.mean())


# -- plain features ------------------------------------------------------------------------------------------


def test_plain_features_are_measured_from_the_mean_of_their_place_in_any_batches():
    x = features(60)
    plain, _ = PlainGaussian.fit([x], block=2, stages=(2, 4))
    again, _ = PlainGaussian.fit(x.half().split([7, 53]), block=2, stages=(2, 4))
    torch.testing.assert_close(plain.mean, x.mean(dim=0))
    torch.testing.assert_close(again.mean, plain.mean, rtol=0.01, atol=0.01)
    assert plain.covariance.common.shape == (6, 6)  # all directions of both stages
    assert float(plain.squared_mahalanobis(plain.mean[None]).abs().max()) < 1e-9
    assert float(plain.squared_mahalanobis(x).mean()) == pytest.approx(1, abs=0.15)
    far = plain.mean[None].clone()
    far[:, :, 1, 2] += 20
    there = plain.squared_mahalanobis(far)[0]
    assert there.argmax() == 1 * GRID + 2 and float(there.max()) > 50 and int((there > 1).sum()) == 1


def test_plain_features_of_a_picture_are_measured_as_if_it_and_its_copy_had_been_left_out(monkeypatch):
    monkeypatch.setattr("diffad.method.gaussian._CODES", 127)
    x = features(24)
    x[4] *= 3
    copies = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    rest = [torch.cat([some[:4], some[5:]]) for some in (x, copies)]
    expected, _ = PlainGaussian.fit(rest, block=2, stages=(2, 4))
    plain, left_out = PlainGaussian.fit([x, copies], block=2, stages=(2, 4))
    found = left_out.squared_mahalanobis(x[4:5], torch.stack([x[4:5], copies[4:5]], dim=1))
    assert float(found.mean()) == pytest.approx(float(expected.squared_mahalanobis(x[4:5]).mean()), rel=0.2)
    assert float(plain.squared_mahalanobis(x[4:5]).mean()) < 0.7 * float(found.mean())


def test_residuals_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"stages of \(2, 3\) channels are not the residual's 6"):
        residual_gaussian([[torch.ones(1, 6, 4, 4)]], stages=(2, 3))
    with pytest.raises(ValueError, match="at least one normal picture"):
        residual_gaussian([[torch.ones(1, 6, 4, 4)], []])
    with pytest.raises(ValueError, match="at least one normal picture"):
        residual_gaussian([[]])
    with pytest.raises(ValueError, match="a grid of 4 does not divide into blocks of 3"):
        residual_gaussian([[torch.zeros(1, 6, 4, 4)]], block=3)


# -- what a file keeps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [1.0, 3.0, 1e6])
def test_steps_of_equal_ratio_keep_the_ends_and_are_off_by_half_a_step_at_most(ratio):
    generator = torch.Generator().manual_seed(0)
    values = 0.2 * ratio ** torch.rand(4, 50, generator=generator)
    steps, ends = to_steps(values)
    back = from_steps(steps, ends)
    assert steps.dtype == torch.uint8 and back.dtype == torch.float32 and back.shape == values.shape
    assert float(back.min()) == float(values.min()) and float(back.max()) == float(values.max())
    assert float((back / values).log().abs().max()) <= 0.5001 / 255 * float((ends[1] / ends[0]).log()) + 1e-6
    again = to_steps(back)
    assert torch.equal(again[0], steps) and torch.equal(from_steps(*again), back)


def test_further_pictures_join_the_moments_as_if_they_had_been_there_from_the_start():
    """Of the same coordinates: moments and mean are then sums, which do not depend on the order."""
    x = torch.randn(40, CHANNELS, GRID, GRID, generator=torch.Generator().manual_seed(1)) + 2
    first = PlainMoments.of([x[:30]], block=2, stages=(2, 4))
    more = first.plus(x[30:36]).plus(x[36:])
    cells = x.double() - x.double().mean(dim=0)
    z = torch.einsum("dc,bchw->bdhw", first.moments.common, cells)
    blocks = z.reshape(40, -1, 2, 2, 2, 2).permute(2, 4, 1, 0, 3, 5).flatten(3)  # [n, n, k, b · places]
    expected = blocks @ blocks.transpose(-1, -2) / blocks.shape[-1]
    torch.testing.assert_close(more.moments.second[0], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(more.mean, x.mean(dim=0), rtol=1e-5, atol=1e-5)
    assert more.count == 40 and more.moments.counts == (160,)
    plain, _ = more.fitted()
    assert float(plain.squared_mahalanobis(x).mean()) == pytest.approx(1, abs=0.25)
