"""Diffusion against Bayes' formula, numerical integrals and a world whose ideal denoiser is known."""

import numpy as np
import pytest
import torch
from gaussian_world import ALPHA_BAR, BETAS, FIRST_POSTERIOR_VARIANCE, GaussianWorld, alpha_bar, smooth_mean
from torch.distributions import Normal, kl_divergence

from diffad.method.diffusion import (
    Gaussian,
    Prediction,
    Schedule,
    discretized_gaussian_nll,
    normal_kl,
)

LINEAR = Schedule.linear()

STEPS = [(999, 998), (500, 496), (400, 380), (20, 16), (4, 0), (1, 0), (0, -1), (3, -1)]  # (t, previous)


def pictures(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Uniform in [−1, 1]."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def noise(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def steps() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(STEPS).unbind(dim=1)


def arbitrary(x: torch.Tensor, v: float | None = None) -> Prediction:
    """Some prediction, the same for the same x: nothing ideal about it."""
    spread = torch.linspace(0.1, 0.9, x[0].numel(), dtype=x.dtype).view(x.shape[1:]).expand_as(x)
    variance = spread if v is None else torch.full_like(x, v)
    return Prediction(0.8 * x + 0.1, variance, 3 * spread - 6, x[:, :, ::2, ::2])


# -- schedules -----------------------------------------------------------------------------------------------


def test_linear_schedule_is_hos():
    table = LINEAR.alphas_cumprod
    assert table.dtype == torch.float64 and LINEAR.steps == 1000
    np.testing.assert_allclose(table, ALPHA_BAR[:-1], rtol=1e-12)
    assert float(table[0]) == pytest.approx(1 - 1e-4, rel=1e-12)
    assert float(table[-1]) == pytest.approx(4.04e-5, rel=1e-2)
    assert [round(float(table[t]), 3) for t in (20, 201, 401)] == [0.994, 0.654, 0.192]  # the paper's
    assert [round(float(table[t]), 3) for t in (200, 400)] == [0.656, 0.194]  # this project's


def test_the_schedule_falls_strictly_from_clean_to_noise():
    table = LINEAR.alphas_cumprod
    assert len(table) == 1000 and 0 < table[-1] < 1e-3 and 0.98 < table[0] < 1
    assert bool((table[1:] < table[:-1]).all())


def test_a_file_may_name_the_linear_schedule_only():
    assert torch.equal(Schedule.named("linear").alphas_cumprod, LINEAR.alphas_cumprod)
    with pytest.raises(ValueError, match="linear, not 'cosine'"):
        Schedule.named("cosine")


def test_alpha_bar_gathers_in_float64_and_is_one_at_the_clean_picture():
    level = LINEAR.alpha_bar(torch.tensor([999, 0, -1]), pictures(3, 3, 4, 4, dtype=torch.float32))
    assert level.shape == (3, 1, 1, 1) and level.dtype == torch.float64
    assert level.flatten().tolist() == [LINEAR.alphas_cumprod[999], LINEAR.alphas_cumprod[0], 1]


# -- forward process -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0, 20, 400, 999])
def test_q_sample_moments(t):
    x_start = pictures(1, 3, 4, 4).expand(20_000, -1, -1, -1)
    x_t = LINEAR.q_sample(x_start, torch.full((20_000,), t), noise(*x_start.shape))
    variance = 1 - ALPHA_BAR[t]
    error = 5 * (variance / 20_000) ** 0.5
    torch.testing.assert_close(x_t.mean(0), ALPHA_BAR[t] ** 0.5 * x_start[0], atol=error, rtol=0)
    assert float(x_t.var(0).mean()) == pytest.approx(variance, rel=0.01)


def test_q_sample_keeps_float32():
    x_start = pictures(2, 3, 4, 4, dtype=torch.float32)
    assert LINEAR.q_sample(x_start, torch.tensor([3, 900]), torch.ones_like(x_start)).dtype == torch.float32


def test_q_posterior_is_bayes():
    t, previous = steps()
    x_start, x_t = pictures(len(t), 3, 4, 4), noise(len(t), 3, 4, 4)
    posterior = LINEAR.q_posterior(x_start, x_t, t, previous)
    inner = previous >= 0
    bar_p = LINEAR.alphas_cumprod[previous[inner]].view(-1, 1, 1, 1)
    alpha = LINEAR.alphas_cumprod[t[inner]].view(-1, 1, 1, 1) / bar_p
    precision = 1 / (1 - bar_p) + alpha / (
        1 - alpha
    )  # of x_p ~ N(√ᾱ_p x_0, 1 − ᾱ_p) given x_t ~ N(√α x_p, 1 − α)
    evidence = bar_p.sqrt() / (1 - bar_p) * x_start[inner] + alpha.sqrt() / (1 - alpha) * x_t[inner]
    torch.testing.assert_close(posterior.mean[inner], evidence / precision)
    torch.testing.assert_close(posterior.log_variance[inner], -precision.log())
    torch.testing.assert_close(posterior.mean[~inner], x_start[~inner])  # onto the clean picture


def test_q_posterior_is_hos_on_the_full_chain():
    """The textbook form for stride 1, as the method sheet prints it."""
    t = np.array([1, 20, 999])
    x_start, x_t = pictures(3, 3, 4, 4), noise(3, 3, 4, 4)
    posterior = LINEAR.q_posterior(x_start, x_t, torch.tensor(t), torch.tensor(t - 1))
    bar, bar_p, beta = (torch.tensor(v).view(-1, 1, 1, 1) for v in (ALPHA_BAR[t], ALPHA_BAR[t - 1], BETAS[t]))
    mean = bar_p.sqrt() * beta / (1 - bar) * x_start + (1 - beta).sqrt() * (1 - bar_p) / (1 - bar) * x_t
    torch.testing.assert_close(posterior.mean, mean)
    torch.testing.assert_close(posterior.log_variance, ((1 - bar_p) / (1 - bar) * beta).log())


def test_clipped_posterior_variance_of_the_last_step_is_the_first_positive_one():
    x = pictures(3, 3, 4, 4)
    last = LINEAR.q_posterior(x, x, torch.tensor([0, 1, 19]), torch.tensor([-1, -1, -1]))
    expected = torch.full((3, 1, 1, 1), float(np.log(FIRST_POSTERIOR_VARIANCE)), dtype=torch.float64)
    torch.testing.assert_close(last.log_variance, expected)
    assert FIRST_POSTERIOR_VARIANCE == pytest.approx(5.453e-5, rel=1e-3)
    first_positive = LINEAR.q_posterior(x[:1], x[:1], torch.tensor([1]), torch.tensor([0]))
    torch.testing.assert_close(first_positive.log_variance, expected[:1])


# -- divergences ---------------------------------------------------------------------------------------------


def test_kl_of_equal_gaussians_is_zero():
    same = Gaussian(noise(2, 3, 4, 4), noise(2, 3, 4, 4, seed=2))
    assert normal_kl(same, same).abs().max() == 0


def test_kl_is_that_of_torch():
    first = Gaussian(noise(2, 3, 4, 4), noise(2, 3, 4, 4, seed=2))
    second = Gaussian(noise(2, 3, 4, 4, seed=3), noise(2, 3, 4, 4, seed=4))
    expected = kl_divergence(*(Normal(g.mean, (g.log_variance / 2).exp()) for g in (first, second)))
    torch.testing.assert_close(normal_kl(first, second), expected)


VALUES = (torch.arange(256, dtype=torch.float64) / 127.5 - 1).view(1, 256)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 2e-4)])
def test_discretised_bins_sum_to_one(dtype, tolerance):
    mean = torch.tensor([-1.4, -1, -0.31, 0, 0.5, 1, 1.2]).view(-1, 1, 1)
    log_variance = torch.tensor([-12.0, -9.8, -6, -2, 1]).view(-1, 1)
    nll = discretized_gaussian_nll(VALUES.to(dtype), Gaussian(mean.to(dtype), log_variance.to(dtype)))
    total = nll.double().neg().exp().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), atol=tolerance, rtol=0)


def test_discretised_nll_is_the_integral_over_the_bin():
    values = VALUES[0, [1, 40, 100, 128, 254]]
    mean, std = (
        torch.tensor([-0.9, -0.6, -0.2, 0.01, 0.95]).double(),
        torch.tensor([0.2, 0.1, 0.03, 0.5, 0.08]).double(),
    )
    grid = values[:, None] + torch.linspace(-1, 1, 4001).double() / 255
    integral = torch.trapezoid(Normal(mean[:, None], std[:, None]).log_prob(grid).exp(), grid, dim=1)
    nll = discretized_gaussian_nll(values, Gaussian(mean, 2 * std.log()))
    torch.testing.assert_close(nll, -integral.log(), atol=1e-6, rtol=1e-6)
    for value, sign in ((-1.0, 1), (1.0, -1)):  # the outermost bins reach to infinity
        nll = discretized_gaussian_nll(torch.tensor(value).double(), Gaussian(mean, 2 * std.log()))
        tail = Normal(sign * mean, std).cdf(torch.tensor(-1 + 1 / 255).double())
        near = tail > 1e-12
        assert int(near.sum()) >= 2
        torch.testing.assert_close(nll[near], -tail.log()[near], rtol=1e-5, atol=1e-6)


def test_discretised_nll_far_from_the_mean_is_finite_and_right():
    """A hundred and more σ away only the nearer edge of the bin counts."""
    x = torch.tensor([-1.0, 1, 0.2, -0.2, 1, -1])
    mean = torch.tensor([1.0, -1, -0.9, 0.9, 1, -1], requires_grad=True)
    log_variance = torch.full_like(x, float(np.log(FIRST_POSTERIOR_VARIANCE))).requires_grad_()
    nll = discretized_gaussian_nll(x, Gaussian(mean, log_variance))
    distance = ((x - mean).abs().double() - 1 / 255) / FIRST_POSTERIOR_VARIANCE**0.5
    expected = -torch.special.log_ndtr(-distance)
    torch.testing.assert_close(nll[:4].detach().double(), expected[:4].detach(), rtol=1e-4, atol=0)
    assert float(nll[4].detach()) == pytest.approx(
        float(expected[4].detach()), rel=1e-3
    )  # on the spot the outer bin has Φ(½ bin/σ)
    nll.sum().backward()
    assert bool(torch.isfinite(mean.grad).all() and torch.isfinite(log_variance.grad).all())
    slope = -(x - mean.detach())[:4] / FIRST_POSTERIOR_VARIANCE
    torch.testing.assert_close(mean.grad[:4], slope, rtol=0.02, atol=0)


def test_discretised_nll_is_finite_for_every_variance_that_a_schedule_allows():
    x = torch.tensor([-1.0, 0, 1])
    for log_variance in (-12.0, -9.8, 1.0, 8.0):  # the schedule's floor is −9.8
        mean = torch.tensor([0.7, 0.7, -0.7], requires_grad=True)
        nll = discretized_gaussian_nll(x, Gaussian(mean, torch.tensor(log_variance)))
        nll.sum().backward()
        assert bool(torch.isfinite(nll).all() and torch.isfinite(mean.grad).all()), log_variance


# -- reverse process -----------------------------------------------------------------------------------------


def test_predict_x_start_inverts_q_sample():
    t = torch.tensor([0, 20, 400, 999])
    x_start, e = pictures(4, 3, 4, 4), noise(4, 3, 4, 4)
    torch.testing.assert_close(LINEAR.predict_x_start(e, LINEAR.q_sample(x_start, t, e), t), x_start)


def test_predict_x_start_clips():
    x_t, t = 3 * noise(1, 3, 4, 4), torch.tensor([20])
    free = x_t / ALPHA_BAR[20] ** 0.5
    torch.testing.assert_close(LINEAR.predict_x_start(torch.zeros_like(x_t), x_t, t), free.clamp(-1, 1))
    assert free.abs().max() > 1


def test_learned_range_lies_between_the_posterior_variance_and_beta():
    t, previous = steps()
    x_t = noise(len(t), 3, 4, 4)
    low, high, middle = (
        LINEAR.p_mean_variance(arbitrary(x_t, v), x_t, t, previous).log_variance for v in (0.0, 1.0, 0.25)
    )
    posterior = LINEAR.q_posterior(x_t, x_t, t, previous).log_variance
    torch.testing.assert_close(low, posterior.expand_as(low))
    torch.testing.assert_close(high, (1 - alpha_bar(t) / alpha_bar(previous)).log().expand_as(high))
    torch.testing.assert_close(middle, 0.25 * high + 0.75 * low)


def test_the_ideal_prediction_gives_the_exact_reverse_step():
    world = GaussianWorld.correlated(smooth_mean(4), 0.3, stride=20)
    t = torch.tensor([400, 100, 30])
    x_t = LINEAR.q_sample(world.sample(3), t, noise(3, 3, 4, 4))
    step = LINEAR.p_mean_variance(world(x_t, t), x_t, t, t - 20)
    mean, variance = world.reverse(x_t, t, t - 20)
    torch.testing.assert_close(step.log_variance, variance.log())
    torch.testing.assert_close(step.mean, mean)
