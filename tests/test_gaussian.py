"""The Gaussian per place against numpy, an explicit inverse and torch.distributions."""

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from gaussian_world import residual_gaussian, summed
from torch.distributions import MultivariateNormal

from diffad.method import gaussian as gaussians
from diffad.method import place_gaussian as by_place
from diffad.method.gaussian import (
    PlainGaussian,
    PlainMoments,
    ResidualGaussian,
    from_steps,
    inverse_cholesky,
    to_steps,
)
from diffad.method.place_gaussian import PlaceGaussian, orthogonal_projection

CHANNELS, GRID, BLOCK, RIDGE = 6, 4, 2, 0.05


def features(count: int = 40, seed: int = 0) -> torch.Tensor:
    """Correlated features whose mean and spread differ from place to place, float32 [count, 6, 4, 4]."""
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(count, CHANNELS, GRID, GRID, generator=generator)
    mix = torch.randn(CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(99)) / 2
    place = torch.arange(GRID * GRID).view(GRID, GRID) / 8
    return torch.einsum("dc,bchw->bdhw", mix + torch.eye(CHANNELS), white) * (0.5 + place) + place


def place_by_place(x: torch.Tensor, gaussian: PlaceGaussian, ridge: float = RIDGE, block: int = BLOCK):
    """Mean [d, g, g] and covariance [g, g, d, d] of every place: PaDiM with shared blocks in float64."""
    z = np.einsum("dc,bchw->bdhw", gaussian.projection.double().numpy(), x.double().numpy())
    mean = z.mean(axis=0)
    covariance = np.empty((GRID, GRID, z.shape[1], z.shape[1]))
    for top in range(0, GRID, block):
        for left in range(0, GRID, block):
            own = [
                np.cov(z[:, :, y, x], rowvar=False)
                for y in range(top, top + block)
                for x in range(left, left + block)
            ]
            covariance[top : top + block, left : left + block] = np.mean(own, axis=0) + ridge * np.eye(
                z.shape[1]
            )
    return mean, covariance


def place_gaussian(
    batches: Iterable[torch.Tensor], dims: int = 4, block: int = BLOCK, ridge: float = RIDGE
) -> PlaceGaussian:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_place, "DIMS", dims)
        patch.setattr(by_place, "RIDGE", ridge)
        return PlaceGaussian.fit(batches, block=block)


@pytest.fixture(scope="module")
def fitted() -> PlaceGaussian:
    return place_gaussian([features()])


@pytest.mark.parametrize("block", [1, 2, 4])
def test_fit_is_numpys_covariance_averaged_over_the_block_plus_the_ridge(block):
    gaussian = place_gaussian([features()], block=block)
    mean, covariance = place_by_place(features(), gaussian, block=block)
    np.testing.assert_allclose(gaussian.mean, mean, atol=1e-5)
    factor = gaussian.whitening.double()
    assert factor.shape == (GRID // block, GRID // block, 4, 4)
    precision = (factor.transpose(-1, -2) @ factor).numpy()
    np.testing.assert_allclose(precision, np.linalg.inv(covariance[::block, ::block]), rtol=1e-4, atol=1e-4)
    assert bool((factor.triu(1) == 0).all()) and bool((factor.diagonal(dim1=-2, dim2=-1) > 0).all())


def test_a_stream_of_batches_fits_like_one(fitted):
    streamed = place_gaussian(iter(features().split([7, 1, 20, 12])))
    for name in ("projection", "mean", "whitening"):
        torch.testing.assert_close(getattr(streamed, name), getattr(fitted, name), rtol=1e-5, atol=1e-5)


def test_a_large_offset_does_not_cancel():
    """The streaming sums are float64: features far from zero lose nothing."""
    shifted = place_gaussian([features() + 300])
    plain = place_gaussian([features()])
    torch.testing.assert_close(shifted.whitening, plain.whitening, rtol=1e-3, atol=1e-3)


def test_squared_mahalanobis_is_the_explicit_formula(fitted):
    x = features(5, seed=1)
    mean, covariance = place_by_place(features(), fitted)
    z = np.einsum("dc,bchw->bdhw", fitted.projection.double().numpy(), x.double().numpy()) - mean
    expected = np.einsum("bdyx,yxde,beyx->byx", z, np.linalg.inv(covariance), z) / 4
    np.testing.assert_allclose(fitted.squared_mahalanobis(x), expected, rtol=1e-4)


def test_squared_mahalanobis_is_about_one_on_its_own_data():
    x = features(500)
    distance = place_gaussian([x], dims=CHANNELS, block=1, ridge=1e-6).squared_mahalanobis(x)
    torch.testing.assert_close(distance.mean(0), torch.full((GRID, GRID), 499 / 500), rtol=1e-3, atol=0)
    shared = place_gaussian([x], dims=CHANNELS, block=4, ridge=1e-6).squared_mahalanobis(x)
    assert float(shared.mean()) == pytest.approx(499 / 500, rel=1e-3)


def test_the_mean_is_the_place_of_least_distance(fitted):
    at_mean = torch.einsum("dc,dhw->chw", fitted.projection, fitted.mean)[None]
    assert float(fitted.squared_mahalanobis(at_mean).max()) < 1e-8
    assert float(fitted.squared_mahalanobis(at_mean + 0.1).min()) > 1e-4


def test_gradient_is_the_analytic_one(fitted):
    x = features(2, seed=2).requires_grad_()
    fitted.squared_mahalanobis(x).sum().backward()
    mean, covariance = place_by_place(features(), fitted)
    projection = fitted.projection.double().numpy()
    z = np.einsum("dc,bchw->bdhw", projection, x.detach().double().numpy()) - mean
    expected = np.einsum("dc,yxde,beyx->bcyx", projection, np.linalg.inv(covariance), z) * 2 / 4
    np.testing.assert_allclose(x.grad, expected, rtol=1e-3, atol=1e-4)


def test_log_likelihood_is_torchs_up_to_the_constant(fitted):
    x = features(3, seed=3)
    mean, covariance = (torch.from_numpy(v) for v in place_by_place(features(), fitted))
    z = torch.einsum("dc,bchw->bhwd", fitted.projection.double(), x.double())
    density = MultivariateNormal(mean.permute(1, 2, 0), covariance).log_prob(z)
    expected = density / 4 + 0.5 * np.log(2 * np.pi)
    torch.testing.assert_close(fitted.log_likelihood(x).double(), expected, rtol=1e-4, atol=1e-4)


def test_the_projection_is_orthonormal_and_always_the_same(fitted):
    torch.manual_seed(123)
    projection = orthogonal_projection(CHANNELS, 4)
    assert projection.shape == (4, CHANNELS) and projection.dtype == torch.float32
    torch.testing.assert_close(projection @ projection.T, torch.eye(4), atol=1e-6, rtol=0)
    assert torch.equal(projection, fitted.projection)


def test_no_more_dimensions_than_channels():
    gaussian = PlaceGaussian.fit([features()])
    assert gaussian.projection.shape == (CHANNELS, CHANNELS)
    assert gaussian.squared_mahalanobis(features(2)).shape == (2, GRID, GRID)


def test_one_picture_gives_the_ridge_alone():
    gaussian = place_gaussian([features(1)], block=1, ridge=0.25)
    torch.testing.assert_close(
        gaussian.whitening, 2 * torch.eye(4).expand(GRID, GRID, 4, 4), atol=1e-5, rtol=0
    )


def test_inverse_cholesky_whitens():
    covariance = torch.cov(features(50)[:, :, 0, 0].double().T)
    factor = inverse_cholesky(covariance)
    torch.testing.assert_close(factor @ covariance @ factor.T, torch.eye(CHANNELS, dtype=torch.float64))


def test_state_is_float32(fitted):
    assert {getattr(fitted, name).dtype for name in ("projection", "mean", "whitening")} == {torch.float32}
    assert fitted.squared_mahalanobis(features(1).bfloat16()).dtype == torch.float32


def test_errors():
    with pytest.raises(ValueError, match="at least one normal picture"):
        PlaceGaussian.fit([])
    with pytest.raises(ValueError, match="a grid of 4 does not divide into blocks of 3"):
        PlaceGaussian.fit([features()], block=3)


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
