"""The Gaussian per place against numpy, an explicit inverse and torch.distributions."""

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

from diffad.method import place_gaussian as by_place
from diffad.method.gaussian import inverse_cholesky
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
