"""The U-Net's size, wiring and ranges."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diffad.method import features as features_module
from diffad.method import unet as unet_module
from diffad.method.diffusion import Schedule, hybrid_loss
from diffad.method.unet import UNet, UNetConfig, autocast, timestep_embedding

SMALL = UNetConfig(size=32, patch=2, channels=(32, 64), feature_channels=5, feature_level=1)


@pytest.fixture(scope="module", autouse=True)
def float32_throughout():
    """Known answers need exact arithmetic, also on processors that have bf16."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (unet_module, features_module):
            patch.setattr(module, "autocast", lambda _: torch.autocast("cpu", enabled=False))
        yield


HEADS = ("noise", "variance", "x_start_log_variance", "features")


def perturbed(config: UNetConfig = SMALL) -> UNet:
    """A network whose zero-initialised layers are not zero, as after some training."""
    torch.manual_seed(0)
    network = UNet(config)
    for parameter in network.parameters():
        if not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.1)
    return network


def pictures(count: int = 2, size: int = 32, seed: int = 0) -> torch.Tensor:
    """Smooth patterns with some grain, in [−1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=generator) * 2 - 1
    smooth = F.interpolate(coarse, size=(size, size), mode="bicubic")
    return (smooth + 0.1 * torch.randn(count, 3, size, size, generator=generator)).clamp(-1, 1)


def test_the_default_network_is_as_small_as_it_says():
    network = UNet()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 256, 256), torch.tensor([20]))
    flop = counter.get_total_flops()
    assert parameters <= 10e6 and flop <= 16e9
    found = re.search(r"([\d.]+) M parameters and takes ([\d.]+) GFLOP", " ".join(UNetConfig.__doc__.split()))
    assert [float(number) for number in found.groups()] == [round(parameters / 1e6, 1), round(flop / 1e9, 1)]


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        UNetConfig(size=32, patch=4, channels=(64, 32, 64), blocks=2, feature_channels=7, feature_level=2),
        UNetConfig(size=16, patch=2, channels=(32,), feature_channels=3, feature_level=0),
        UNetConfig(size=32, patch=1, channels=(32, 32), feature_channels=4, feature_level=0, heads=2),
    ],
    ids=["two levels", "three levels, two blocks", "one level", "no patches"],
)
def test_shapes_of_all_heads(config):
    prediction = UNet(config)(torch.randn(2, 3, config.size, config.size), torch.tensor([3, 999]))
    for head in HEADS[:3]:
        assert getattr(prediction, head).shape == (2, 3, config.size, config.size), head
    grid = config.size // config.patch // 2**config.feature_level
    assert prediction.features.shape == (2, config.feature_channels, grid, grid)
    assert config.feature_grid == grid


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_ranges_of_all_heads(scale):
    network = perturbed()
    with torch.no_grad():
        network.pixel_head[-1].weight.mul_(scale)
        prediction = network(scale * torch.randn(2, 3, 32, 32), torch.tensor([0, 500]))
    assert all(bool(torch.isfinite(value).all()) for value in prediction)
    assert 0 <= prediction.variance.min() and prediction.variance.max() <= 1
    log_variance = prediction.x_start_log_variance
    assert log_variance.min() >= -11 and log_variance.max() <= 1 and log_variance.std() > 0


def test_bf16_stays_inside_the_network(monkeypatch):
    """float32 comes out, close to what float32 throughout would give."""
    network, x_t, t = perturbed(), pictures(), torch.tensor([5, 500])
    with torch.no_grad():
        exact = network(x_t, t)
        monkeypatch.setattr(unet_module, "autocast", lambda _: torch.autocast("cpu", torch.bfloat16))
        rounded = network(x_t, t)
    for head, precise, coarse in zip(HEADS, exact, rounded):
        assert coarse.dtype == torch.float32, head
        assert 0 < float((coarse - precise).norm() / precise.norm()) < 0.05, head
    # the identity that the gain adds is not rounded: ε at small t hangs on it
    nn.init.zeros_(network.pixel_head[-1].weight)
    nn.init.zeros_(network.pixel_head[-1].bias)
    nn.init.zeros_(network.gain.weight)
    nn.init.constant_(network.gain.bias, 0.75)
    assert torch.equal(network(x_t, t).noise, 0.75 * x_t)


def test_channels_of_the_pixel_head_go_where_they_belong():
    network = UNet(SMALL)
    last = network.pixel_head[-1]
    nn.init.zeros_(last.weight)
    with torch.no_grad():  # 9 channels, each of patch² values: three of noise, of variance, of uncertainty
        last.bias.copy_(torch.arange(9).repeat_interleave(SMALL.patch**2) / 10)
        prediction = network(pictures(), torch.tensor([1, 2]))
    level = torch.arange(9).view(3, 3, 1, 1) / 10
    torch.testing.assert_close(prediction.noise, level[0].expand(2, 3, 32, 32))
    torch.testing.assert_close(prediction.variance, torch.sigmoid(level[1]).expand(2, 3, 32, 32))
    torch.testing.assert_close(prediction.x_start_log_variance, (level[2] - 3).expand(2, 3, 32, 32))


def test_gain_passes_x_t_on_as_noise():
    network, x_t = UNet(SMALL), torch.randn(2, 3, 32, 32)
    nn.init.zeros_(network.pixel_head[-1].weight)
    nn.init.zeros_(network.pixel_head[-1].bias)
    nn.init.constant_(network.gain.bias, 0.75)
    torch.testing.assert_close(network(x_t, torch.tensor([7, 8])).noise, 0.75 * x_t)


def test_patches_keep_their_places():
    """A change of one pixel shows most at that pixel, and before the attention only near it."""
    network = UNet(SMALL)  # blocks and attention start as nothing: skips and convolutions alone
    x = pictures(1).requires_grad_()
    prediction = network(x, torch.tensor([9]))
    for y, x_ in ((5, 20), (26, 3)):
        reach = (
            torch.autograd.grad(prediction.noise[0, :, y, x_].sum(), x, retain_graph=True)[0]
            .abs()
            .sum((0, 1))
        )
        rows, columns = reach.sum(1), reach.sum(0)
        centre = (
            (rows * torch.arange(32)).sum() / rows.sum(),
            (columns * torch.arange(32)).sum() / columns.sum(),
        )
        assert abs(float(centre[0]) - y) < 3 and abs(float(centre[1]) - x_) < 3


def test_details_pass_by_the_coarse_levels():
    network = perturbed()
    nn.init.zeros_(network.shrink[0].weight)  # nothing of the picture reaches the coarse level
    with torch.no_grad():
        first, second = (network(pictures(seed=seed), torch.tensor([20, 20])) for seed in (0, 1))
    assert float((first.noise - second.noise).abs().mean()) > 0.1
    torch.testing.assert_close(first.features, second.features)


def test_the_timestep_matters_to_every_head():
    network, x_t = perturbed(), pictures()
    early, late = (network(x_t, torch.full((2,), t)) for t in (20, 400))
    for head in HEADS:
        assert bool((getattr(early, head) - getattr(late, head)).abs().mean() > 1e-3), head


def test_a_prediction_does_not_depend_on_the_batch():
    network, x_t, t = perturbed(), pictures(3), torch.tensor([20, 200, 400])
    with torch.no_grad():
        together, alone = network(x_t, t), network(x_t[1:2], t[1:2])
    for head in HEADS:
        torch.testing.assert_close(getattr(together, head)[1:2], getattr(alone, head), atol=1e-5, rtol=1e-4)


def test_the_loss_reaches_every_parameter():
    network = perturbed()
    x, features = pictures(4), torch.randn(4, 5, 8, 8)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([2, 50, 300, 900])
    hybrid_loss(Schedule.linear(), network, x, features, t, noise)["loss"].backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()), name
        assert bool(parameter.grad.any()), name


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"size": 100}, "size 100 is not divisible by 32"),
        ({"size": 250, "patch": 2, "channels": (32, 32)}, "size 250 is not divisible by 4"),
        ({"channels": (32, 64)}, "32 stem channels cannot carry the 48 values"),
        ({"channels": (64, 100)}, "multiples of 32"),
        ({"channels": (64, 0)}, "multiples of 32 from 32"),
        ({"channels": (64, -32)}, "multiples of 32 from 32"),
        ({"channels": (64, 999_999_968)}, "to 4096, not 64, 999999968"),
        ({"channels": ()}, "1 to 8 levels, not of 0"),
        ({"channels": (64,) * 9}, "1 to 8 levels, not of 9"),
        ({"channels": (64,)}, "none of the 1 levels"),
        ({"size": 0}, r"^size .* 1 .* 4096"),
        ({"patch": 0}, r"^patch .* 1 .* 64"),
        ({"blocks": 0}, r"^blocks .* 1 .* 16"),
        ({"feature_channels": 0}, "^feature_channels "),
    ],
)
def test_a_wrong_configuration_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig(**wrong)


@pytest.mark.parametrize("wrong", [{"feature_level": 4}, {"feature_level": -1}, {"heads": 5}, {"heads": 0}])
def test_a_configuration_that_cannot_be_built_is_refused(wrong):
    """Not first by an IndexError inside the network, or by features that are silently None."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        UNetConfig(**wrong)


def test_timestep_embedding_is_sines_and_cosines():
    embedding = timestep_embedding(torch.tensor([0, 3, 999]), 8)
    assert embedding.shape == (3, 8) and embedding.dtype == torch.float32
    assert embedding[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    angle = torch.tensor([3.0, 0.3, 0.03, 0.003])
    torch.testing.assert_close(embedding[1], torch.cat([angle.cos(), angle.sin()]))


def test_no_two_timesteps_look_alike():
    embedding = timestep_embedding(torch.arange(1000), 64)
    distance = torch.cdist(embedding, embedding) + 9 * torch.eye(1000)
    assert float(distance.min()) > 0.1


def test_autocast_restores_itself():
    conv, x = nn.Conv2d(3, 3, 1), torch.rand(1, 3, 4, 4)
    with autocast(torch.device("cpu")):
        assert conv(x).dtype in (torch.bfloat16, torch.float32)  # bf16 only where the processor has it
    assert conv(x).dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
