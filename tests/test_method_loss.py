"""KL divergences and the loss by hand, and in a world whose ideal denoiser is known."""

import numpy as np
import pytest
import torch
from gaussian_world import ALPHA_BAR, GaussianWorld, alpha_bar, smooth_mean
from torch.distributions import Normal, kl_divergence

from diffad.method.diffusion import (
    Prediction,
    Schedule,
    discretized_gaussian_nll,
    hybrid_loss,
)

LINEAR = Schedule.linear()


def pictures(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Uniform in [−1, 1]."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def noise(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def arbitrary(x: torch.Tensor, v: float | None = None) -> Prediction:
    """Some prediction, the same for the same x: nothing ideal about it."""
    spread = torch.linspace(0.1, 0.9, x[0].numel(), dtype=x.dtype).view(x.shape[1:]).expand_as(x)
    variance = spread if v is None else torch.full_like(x, v)
    return Prediction(0.8 * x + 0.1, variance, 3 * spread - 6, x[:, :, ::2, ::2])


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
