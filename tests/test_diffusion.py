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
    hybrid_loss,
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


# -- KL and loss ---------------------------------------------------------------------------------------------


def reference_kl(prediction: Prediction, x_start: torch.Tensor, x_t: torch.Tensor, t: int, previous: int):
    """The KL of one step in float64, from μ̃ − μ_θ = c (x_0 − x̂_0) and torch.distributions."""
    bar, bar_p = ALPHA_BAR[t], ALPHA_BAR[previous]
    beta = 1 - bar / bar_p
    posterior = (1 - bar_p) / (1 - bar) * beta
    noise, v = prediction.noise.double(), prediction.variance.double()
    x_hat = ((x_t.double() - (1 - bar) ** 0.5 * noise) / bar**0.5).clamp(-1, 1)
    error = bar_p**0.5 * beta / (1 - bar) * (x_start.double() - x_hat)
    log_variance = v * np.log(beta) + (1 - v) * np.log(posterior)
    truth = Normal(torch.zeros_like(error), posterior**0.5)
    return kl_divergence(truth, Normal(error, (log_variance / 2).exp()))


@pytest.mark.parametrize("t, previous", [(1, 0), (2, 0), (4, 0), (8, 4), (20, 16), (400, 396), (999, 979)])
def test_kl_in_float32_equals_float64_also_at_small_t(t, previous):
    world = GaussianWorld.correlated(smooth_mean(8), 0.1)
    x_start = world.sample(4).float()
    times = torch.full((4,), t)
    x_t = LINEAR.q_sample(x_start, times, noise(4, 3, 8, 8).float())
    prediction = world(x_t, times)
    kl = LINEAR.kl(prediction, x_start, x_t, times, torch.full((4,), previous))
    expected = reference_kl(prediction, x_start, x_t, t, previous)
    assert kl.dtype == torch.float32
    torch.testing.assert_close(kl.double(), expected, rtol=2e-3, atol=1e-5)
    assert float(kl.double().mean()) == pytest.approx(float(expected.mean()), rel=1e-3)


def test_kl_lifts_bf16_predictions():
    x_start, t = pictures(3, 3, 4, 4, dtype=torch.float32), torch.tensor([400, 20, 2])
    x_t = LINEAR.q_sample(x_start, t, noise(3, 3, 4, 4).float())
    rounded = Prediction(*(value.bfloat16() for value in arbitrary(x_t)))
    lifted = Prediction(*(value.float() for value in rounded))
    previous = (t - 4).clamp(min=-1)
    kl = LINEAR.kl(rounded, x_start, x_t, t, previous)
    assert kl.dtype == torch.float32
    assert torch.equal(kl, LINEAR.kl(lifted, x_start, x_t, t, previous))


def test_kl_onto_the_clean_picture_is_the_decoders_nll():
    x_start = (pictures(3, 3, 4, 4) * 127.5 + 127.5).round().float() / 127.5 - 1
    t, previous = torch.tensor([0, 2, 30]), torch.tensor([-1, -1, 26])
    x_t = LINEAR.q_sample(x_start, t, noise(3, 3, 4, 4).float())
    prediction = arbitrary(x_t)
    kl = LINEAR.kl(prediction, x_start, x_t, t, previous)
    model = LINEAR.p_mean_variance(prediction, x_t, t, previous)
    torch.testing.assert_close(kl[:2], discretized_gaussian_nll(x_start, model)[:2])
    torch.testing.assert_close(
        kl[2].double(), reference_kl(prediction, x_start, x_t, 30, 26)[2], rtol=1e-3, atol=1e-5
    )


@pytest.fixture
def batch():
    """Eight-bit pictures at timesteps on both sides of the stride: x_start, features, t, noise."""
    x_start = (pictures(6, 3, 4, 4) * 127.5 + 127.5).round().float() / 127.5 - 1
    return (
        x_start,
        noise(6, 3, 2, 2).float(),
        torch.tensor([0, 3, 4, 20, 300, 999]),
        noise(6, 3, 4, 4, seed=8).float(),
    )


def leaves(x_t: torch.Tensor) -> Prediction:
    return Prediction(*(value.detach().clone().requires_grad_() for value in arbitrary(x_t)))


def test_hybrid_loss_is_the_sum_of_its_parts_computed_by_hand(batch):
    x_start, features, t, e = batch
    stride, seen = 4, []

    def denoise(x_t, times):
        seen.append((x_t, times))
        return arbitrary(x_t)

    terms = hybrid_loss(LINEAR, denoise, x_start, features, t, e, stride=stride)
    assert len(seen) == 1 and torch.equal(seen[0][1], t)
    x_t = seen[0][0]
    bar = alpha_bar(t)
    torch.testing.assert_close(x_t.double(), bar.sqrt() * x_start + (1 - bar).sqrt() * e, atol=1e-6, rtol=0)
    prediction = arbitrary(x_t)
    noise_term = ((prediction.noise - e) ** 2).mean()
    feature_term = ((prediction.features - features) ** 2).mean()
    x_hat = ((x_t - (1 - bar).sqrt() * prediction.noise) / bar.sqrt()).clamp(-1, 1)
    uncertainty = (
        -Normal(x_hat, (prediction.x_start_log_variance.double() / 2).exp()).log_prob(x_start).mean()
    )
    uncertainty -= 0.5 * np.log(2 * np.pi)
    kls = [
        reference_kl(prediction, x_start, x_t, int(v), int(v) - stride)[i]
        for i, v in enumerate(t)
        if v >= stride
    ]
    to_clean = LINEAR.p_mean_variance(prediction, x_t, t, torch.full_like(t, -1))
    nll = discretized_gaussian_nll(x_start, to_clean)[t < stride].double()
    vlb = torch.cat([nll, torch.stack(kls)]).mean()
    expected = {"noise": noise_term, "features": feature_term, "vlb": vlb, "uncertainty": uncertainty}
    for name, value in expected.items():
        assert float(terms[name]) == pytest.approx(float(value), rel=1e-3), name
    total = noise_term + feature_term + 0.01 * vlb + 0.05 * uncertainty
    assert float(terms["loss"]) == pytest.approx(float(total), rel=1e-3)


def test_variance_terms_do_not_move_the_mean(batch):
    x_start, features, t, e = batch
    kept = []

    def denoise(x_t, _):
        kept.append(leaves(x_t))
        return kept[-1]

    terms = hybrid_loss(LINEAR, denoise, x_start, features, t, e)
    reaches = {
        "noise": {"noise"},
        "vlb": {"variance"},
        "uncertainty": {"x_start_log_variance"},
        "features": {"features"},
    }
    for term, heads in reaches.items():
        gradients = torch.autograd.grad(terms[term], list(kept[0]), retain_graph=True, allow_unused=True)
        moved = {n for n, g in zip(Prediction._fields, gradients) if g is not None and bool((g != 0).any())}
        assert moved == heads, term
        assert all(g is None or bool(torch.isfinite(g).all()) for g in gradients)
    noise_gradient = torch.autograd.grad(terms["loss"], kept[0].noise)[0]
    torch.testing.assert_close(noise_gradient, 2 * (kept[0].noise - e).detach() / e.numel())


@pytest.fixture
def spoiled(batch):
    """The batch's pictures with their left half changed."""
    shown = batch[0].clone()
    shown[..., :2] = -shown[..., :2].sign() * 0.5
    return shown


def test_a_picture_shown_as_it_is_changes_nothing(batch):
    x_start, features, t, e = batch
    one = hybrid_loss(LINEAR, lambda x_t, _: arbitrary(x_t), x_start, features, t, e)
    two = hybrid_loss(LINEAR, lambda x_t, _: arbitrary(x_t), x_start, features, t, e, shown=x_start.clone())
    assert {k: float(v) for k, v in one.items()} == pytest.approx({k: float(v) for k, v in two.items()})


def test_the_noise_to_be_found_leads_from_the_sound_picture_to_the_one_shown(batch, spoiled):
    """A denoiser that knows the sound picture makes no error; one that believes what it is shown does."""
    x_start, features, t, e = batch
    bar = alpha_bar(t).float()

    def believing(picture):
        def denoise(x_t, _):
            return arbitrary(x_t)._replace(noise=(x_t - bar.sqrt() * picture) / (1 - bar).sqrt())

        return float(hybrid_loss(LINEAR, denoise, x_start, features, t, e, shown=spoiled)["noise"])

    assert believing(x_start) == pytest.approx(0, abs=1e-4)
    # the error of x̂_0 where the signal is stronger than the noise, of ε elsewhere
    weight = torch.minimum(torch.ones_like(bar), bar / (1 - bar))
    expected = (weight * (spoiled - x_start) ** 2).mean()
    assert believing(spoiled) == pytest.approx(float(expected), rel=1e-3)


def test_nothing_is_learned_about_variances_where_a_defect_is_shown(batch, spoiled):
    x_start, features, t, e = batch
    kept = []

    def denoise(x_t, _):
        kept.append(leaves(x_t))
        return kept[-1]

    terms = hybrid_loss(LINEAR, denoise, x_start, features, t, e, shown=spoiled)
    for term, head in (("vlb", kept[0].variance), ("uncertainty", kept[0].x_start_log_variance)):
        gradient = torch.autograd.grad(terms[term], head, retain_graph=True)[0]
        assert not gradient[..., :2].any() and gradient[2:, ..., 2:].any(), term


@pytest.mark.parametrize("t", [12, 100, 400])
def test_hybrid_loss_is_least_at_the_ideal_denoiser(t):
    world = GaussianWorld.correlated(smooth_mean(4), 0.2, stride=10)
    x_start, e = world.sample(3000), noise(3000, 3, 4, 4, seed=2)
    times = torch.full((3000,), t)
    ideal = world(LINEAR.q_sample(x_start, times, e), times)

    def loss(**changed: torch.Tensor) -> dict[str, float]:
        terms = hybrid_loss(
            LINEAR,
            lambda x_t, _: ideal._replace(**changed),
            x_start.float(),
            world.features(x_start).float(),
            times,
            e.float(),
            stride=10,
        )
        return {name: float(value) for name, value in terms.items()}

    least = loss()
    for factor in (0.9, 1.1):
        for term, head in (("noise", "noise"), ("features", "features")):
            changed = loss(**{head: factor * getattr(ideal, head)})
            assert changed[term] > least[term] and changed["loss"] > least["loss"], (term, factor)
    for shift in (-0.3, 0.3):
        changed = loss(x_start_log_variance=ideal.x_start_log_variance + shift)
        assert changed["uncertainty"] > least["uncertainty"] and changed["loss"] > least["loss"]
        assert loss(variance=ideal.variance + shift)["vlb"] > least["vlb"]


def test_holes_of_everything_are_no_holes(batch):
    x_start, features, t, e = batch
    everything = torch.ones_like(x_start[:, :1], dtype=torch.bool)
    one = hybrid_loss(LINEAR, lambda x_t, _: arbitrary(x_t), x_start, features, t, e)
    two = hybrid_loss(LINEAR, lambda x_t, _: arbitrary(x_t), x_start, features, t, e, holes=everything)
    assert {k: float(v) for k, v in one.items()} == pytest.approx({k: float(v) for k, v in two.items()})


def test_a_hole_is_noised_alone_and_counts_as_a_picture(batch):
    """Outside, the network sees √ᾱ x_0 and is not asked; inside, the mean error is the hole's own."""
    x_start, features, t, e = batch
    holes = torch.zeros_like(x_start[:, :1], dtype=torch.bool)
    holes[..., :2] = True
    seen = []

    def denoise(x_t, _):
        seen.append(x_t)
        return arbitrary(x_t)

    noise = float(hybrid_loss(LINEAR, denoise, x_start, features, t, e, holes=holes)["noise"])
    bar = alpha_bar(t).float()
    torch.testing.assert_close(seen[0][..., 2:], (bar.sqrt() * x_start)[..., 2:])
    x_t = LINEAR.q_sample(x_start, t, e)
    torch.testing.assert_close(seen[0][..., :2], x_t[..., :2])
    error = (arbitrary(seen[0]).noise - e)[..., :2].square().mean()
    assert noise == pytest.approx(float(error), rel=1e-4)
