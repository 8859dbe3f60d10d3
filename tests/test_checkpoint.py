"""One file holds the model: what is saved comes back, and nothing but a diffad checkpoint loads."""

import json
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from gaussian_world import residual_gaussian
from safetensors.torch import save_file

from diffad import checkpoint as checkpoints
from diffad.checkpoint import Checkpoint, CheckpointError
from diffad.inspector import Inspector
from diffad.method import encoding
from diffad.method.calibration import Calibration
from diffad.method.gaussian import PlainGaussian
from diffad.method.place_gaussian import PlaceGaussian
from diffad.method.profile import Profile
from diffad.method.scoring import RawMaps
from diffad.method.unet import UNet, UNetConfig
from diffad.teaching.residuals import block

CONFIG = UNetConfig(size=64, channels=(64, 96), feature_channels=12)


@pytest.fixture(scope="module")
def model():
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    features = torch.randn(20, 12, 8, 8, generator=generator)
    maps = torch.rand(5, 2, 64, 64, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffad.method.place_gaussian.DIMS", 6)
        gaussian = PlaceGaussian.fit([features])
    profile = Profile(
        gaussian,
        residual_gaussian([[features]] * 3),
        residual_gaussian([[2 * features]] * 3, block=4),
        Calibration.fit(RawMaps(maps, maps + 1, (20, 200))),
    )
    added = replace(  # to a network that never learned from it
        profile,
        plain=PlainGaussian.fit([features], block=2, stages=(4, 8))[0],
        calibration=Calibration.fit(RawMaps(maps, maps + 1, (20, 200), maps[:, 0])),
    )
    return Checkpoint(
        CONFIG,
        UNet(CONFIG).state_dict(),
        "tf_efficientnet_lite2",
        torch.arange(12.0),
        torch.ones(12),
        {"bolt": profile, "nut / left": added},
        "linear",
        "kl",
        20,
        {"licence": "none", "steps": 3},
    )


@pytest.fixture
def file(model, tmp_path):
    return checkpoints.save(tmp_path / "new" / "folder" / "model.safetensors", model)


def test_what_is_saved_comes_back(model, file):
    loaded = checkpoints.load(file)
    for name in ("config", "backbone", "schedule", "pixel_score", "stride", "provenance"):
        assert getattr(loaded, name) == getattr(model, name), name
    assert list(loaded.profiles) == ["bolt", "nut / left"]
    for name, value in model.network.items():
        # eight bits: half a step of 1/127 of the channel's largest weight, and fp16's rounding of that
        largest = value.flatten(1).abs().amax(1).view(-1, *[1] * (value.dim() - 1)) if value.dim() > 1 else 1
        assert bool(((loaded.network[name] - value).abs() <= (0.5 / 127 + 1e-3) * largest).all()), name
        assert torch.equal(loaded.network[name], encoding.rounded(model.network)[name])
    assert torch.equal(loaded.feature_mean, model.feature_mean)
    before, after = model.profiles["bolt"], loaded.profiles["bolt"]
    for one, other in (
        (after.residual, before.residual),
        (after.perceptual, before.perceptual),
    ):
        for name in ("codes", "scale", "diagonal"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        torch.testing.assert_close(one.common, other.common, rtol=1e-3, atol=1e-3)
    assert after.forecast == before.forecast
    assert after.calibration.timesteps == after.calibration.remembered == (20, 200)
    assert torch.equal(after.calibration.moments, before.calibration.moments)
    assert torch.equal(after.calibration.good_maps, before.calibration.good_maps)
    assert after.plain is after.calibration.good_plain is after.calibration.plain_moments is None
    x = torch.randn(2, 12, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        after.gaussian.squared_mahalanobis(x), before.gaussian.squared_mahalanobis(x), rtol=5e-3, atol=5e-3
    )


def test_plain_features_come_back(model, file):
    before, after = (profiles["nut / left"] for profiles in (model.profiles, checkpoints.load(file).profiles))
    assert torch.equal(after.calibration.good_plain, before.calibration.good_plain)
    assert torch.equal(after.calibration.plain_moments, before.calibration.plain_moments)
    x = torch.randn(2, 12, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        after.plain.squared_mahalanobis(x), before.plain.squared_mahalanobis(x), rtol=1e-2, atol=1e-2
    )
    np.testing.assert_allclose(after.calibration.scorer().good, before.calibration.scorer().good, rtol=1e-6)


def test_the_loaded_network_computes_the_same(model, file):
    first, second = UNet(CONFIG), UNet(CONFIG)
    first.load_state_dict(encoding.rounded(model.network))
    second.load_state_dict(checkpoints.load(file).network)
    x, t = torch.randn(1, 3, 64, 64), torch.tensor([20])
    assert torch.equal(first(x, t).noise, second(x, t).noise)


def test_rounding_twice_is_rounding_once_and_zeros_stay_zero(model):
    once = encoding.rounded(model.network) | {"zero": torch.zeros(3, 2)}
    for name, value in encoding.rounded(once).items():
        assert torch.equal(value, once[name]), name


def test_codes_come_back_and_take_the_bits_that_they_need():
    normal = torch.randn(3, 4, 5000, generator=torch.Generator().manual_seed(0))
    codes = normal.round().clamp(-3, 3).to(torch.int8)
    stream = encoding.coded(codes)
    assert stream.dtype == torch.uint8 and torch.equal(
        encoding.decoded(stream, codes.shape).view(torch.int8), codes
    )
    share = torch.bincount(codes.flatten().long() + 3) / codes.numel()
    entropy = float(-(share * share.log2()).sum())
    assert 8 * len(stream) / codes.numel() < 1.05 * entropy + 0.05
    for shape in ((3, 4, 4999), (3, 4, 5001)):
        with pytest.raises(ValueError, match="codes instead of"):
            encoding.decoded(stream, shape)


def test_maps_come_back_and_take_fewer_bits_by_their_differences():
    steps = torch.randn(6, 32, 32, generator=torch.Generator().manual_seed(0)).cumsum(dim=-1).round()
    codes = (steps + 100).clamp(0, 255).to(torch.uint8)
    differences = encoding.differences(codes)
    assert torch.equal(encoding.sums(differences), codes)
    assert len(encoding.coded(differences)) < 0.6 * len(encoding.coded(codes))


@pytest.mark.parametrize("spoil", [lambda codes: codes[: len(codes) // 2], lambda codes: codes * 0])
def test_damaged_codes_are_told(tmp_path, model, spoil):
    file = checkpoints.save(tmp_path / "m.safetensors", model)
    tensors, metadata = checkpoints.load_tensors(file)
    name = next(name for name in tensors if name.endswith("residual.codes"))
    checkpoints.save_tensors(file, tensors | {name: spoil(tensors[name])}, metadata)
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoints.load(file)


@pytest.mark.parametrize("grid", [32, 64])
def test_a_category_of_the_default_model_costs_three_megabytes(tmp_path, model, grid):
    """At 256 px, and at 512 px."""
    features = torch.randn(40, 192, grid, grid, generator=torch.Generator().manual_seed(0))
    maps = torch.rand(48, 10, 256, 256)
    of_features, of_pixels = block(grid, 2), block(grid, 4)
    profile = Profile(
        PlaceGaussian.fit([features], block=of_pixels),
        residual_gaussian([[features[:4]]] * 3, block=of_features, stages=(24, 48, 120)),
        residual_gaussian([[features[:4]]] * 3, block=of_pixels, stages=(24, 48, 120)),
        Calibration.fit(RawMaps(maps, maps, tuple(range(10))), by_place=True),
        size=8 * grid,
    )
    config = UNetConfig(size=64, channels=(64, 96), feature_channels=192)
    sizes = [
        checkpoints.save(
            tmp_path / f"{count}.safetensors",
            Checkpoint(
                config, {}, "b", torch.zeros(192), torch.ones(192), {str(i): profile for i in range(count)}
            ),
        )
        .stat()
        .st_size
        for count in (1, 2)
    ]
    assert sizes[1] - sizes[0] < 3_500_000


def test_the_file_says_what_it_is(file):
    _, metadata = checkpoints.load_tensors(file)
    header = json.loads(metadata["diffad"])
    assert header["provenance"]["licence"] == "none"
    assert [category["name"] for category in header["categories"]] == ["bolt", "nut / left"]


def test_missing_foreign_damaged_newer_and_older_files_are_refused(file, tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        checkpoints.load(tmp_path / "absent.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        checkpoints.load(tmp_path / "text.safetensors")
    (tmp_path / "empty.safetensors").touch()
    with pytest.raises(CheckpointError, match="not a readable"):
        checkpoints.load(tmp_path / "empty.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a readable"):
        checkpoints.load(tmp_path / "cut.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="not a diffad checkpoint"):
        checkpoints.load(tmp_path / "foreign.safetensors")

    tensors, metadata = checkpoints.load_tensors(file)
    header = json.loads(metadata["diffad"])
    for age, step in (("newer", 1), ("older", -1)):
        other = json.dumps({**header, "format": checkpoints.FORMAT + step})
        checkpoints.save_tensors(tmp_path / f"{age}.safetensors", tensors, {"diffad": other})
        with pytest.raises(CheckpointError, match=f"{age} diffad"):
            checkpoints.load(tmp_path / f"{age}.safetensors")
    del tensors["profile.1.gaussian.mean"]
    checkpoints.save_tensors(tmp_path / "partial.safetensors", tensors, metadata)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoints.load(tmp_path / "partial.safetensors")
    checkpoints.save_tensors(tmp_path / "odd.safetensors", tensors, {"diffad": "[]"})
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoints.load(tmp_path / "odd.safetensors")


def changed(values: dict, path: str, value: object) -> dict:
    """A copy of nested dicts and lists with one value replaced; path: keys and indices with dots between."""
    copy = json.loads(json.dumps(values))
    *keys, last = (int(key) if key.isdigit() else key for key in path.split("."))
    place = copy
    for key in keys:
        place = place[key]
    place[last] = value
    return copy


@pytest.mark.parametrize(("path", "value", "reason"), [
    ("config.size", 10**9, "size is a whole number from 1 to 4096"),
    ("config.size", 2048, "residual's blocks do not divide|the mean has the shape"),
    ("config.size", "64", "size is a whole number"),
    ("config.size", 64.0, "size is a whole number"),
    ("config.size", True, "size is a whole number"),
    ("config.patch", 0, "patch is a whole number"),
    ("config.channels", [64, 0], "channels are multiples"),
    ("config.channels", [64, 128], "network's"),
    ("config.channels", [], "1 to 8 levels"),
    ("config.channels", [64] * 10**5, "1 to 8 levels"),
    ("config.blocks", 10**9, "blocks is a whole number"),
    ("config.blocks", 2, "network."),
    ("config.feature_channels", 13, "network's"),
    ("config.feature_level", 7, "feature_level"),
    ("config.heads", 0, "heads is a whole number"),
    ("config.colour", 1, "colour"),
    ("config", None, "TypeError"),
    ("format", "9", "format"),
    ("format", float("nan"), "format"),
    ("schedule", "steep", "steep"),
    ("schedule", [], "damaged"),
    ("pixel_score", "guess", "pixel score"),
    ("backbone", "hf-hub:someone/model", "backbone"),
    ("backbone", "../model", "backbone"),
    ("backbone", 5, "damaged"),
    ("stride", 0, "stride"),
    ("stride", "4", "stride"),
    ("provenance", [], "provenance"),
    ("provenance", {"data": 3}, "invalid data"),
    ("provenance", {"licence": ["free"]}, "invalid licence"),
    ("categories", {}, "profile.0|unexpected tensor"),
    ("categories.0.name", "nut / left", "two categories are called 'nut / left'"),
    ("categories.0.name", "", "name is empty or too long"),
    ("categories.0.name", "x" * 300, "name is empty or too long"),
    ("categories.0.name", 7, "name is empty or too long"),
    ("categories.0.name", ["bolt"], "damaged"),
    ("categories.0.timesteps", [200, 20], "timesteps do not rise"),
    ("categories.0.timesteps", [20, 20], "timesteps do not rise"),
    ("categories.0.timesteps", [20, 1000], "timesteps do not rise"),
    ("categories.0.timesteps", [20, 200, 400], "moments has the shape"),
    ("categories.0.timesteps", "ab", "timesteps do not rise"),
    ("categories.0.remembered", [20], "codes instead of"),
    ("categories.0.remembered", [], "codes instead of"),
    ("categories.0.good", -1, "number of its good parts"),
    ("categories.0.good", 10**5, "cannot hold"),
    ("categories.0.plain", True, "profile.0.plain.mean"),
    ("categories.0.forecast", 3, "forecast"),
    ("categories.0.upright", {"scale": 0, "x": 0, "y": 0}, "upright"),
    ("categories.0.upright", {"scale": 1, "x": float("inf"), "y": 0}, "upright"),
    ("categories.0.upright", {"scale": 1}, "damaged"),
    ("categories.1", {}, "damaged"),
])  # fmt: skip
def test_a_header_that_lies_is_refused_at_once(path, value, reason, file):
    tensors, metadata = checkpoints.load_tensors(file)
    header = changed(json.loads(metadata["diffad"]), path, value)
    checkpoints.save_tensors(file, tensors, {"diffad": json.dumps(header)})
    refused_at_once(file, reason)


@pytest.mark.parametrize("header", ["[" * 100_000, "{}", "null", "9" * 5000, '"' + "x" * 5_000_000 + '"'])
def test_a_header_that_is_none_is_refused_at_once(header, file):
    checkpoints.save_tensors(file, checkpoints.load_tensors(file)[0], {"diffad": header})
    refused_at_once(file, "damaged")


HALF = torch.float16


@pytest.mark.parametrize(("name", "spoilt", "reason"), [
    ("profile.0.gaussian.projection", torch.zeros(60_000, 1, dtype=HALF), "a triangle has 21 entries"),
    ("profile.0.gaussian.projection", torch.zeros(0, 12, dtype=HALF), "a triangle has"),
    ("profile.0.gaussian.mean", torch.zeros(6, 4, 4), "the mean has the shape"),
    ("profile.0.gaussian.mean", torch.full((6, 8, 8), float("nan")), "the mean is not finite"),
    ("profile.0.gaussian.whitening", torch.zeros(3, 3, 21), "whitening's blocks"),
    ("profile.0.calibration.level", torch.zeros(2, 1, 1), "level of good parts is not above 0"),
    ("profile.0.calibration.level", torch.ones(1, 1, 1), "level has the shape"),
    ("profile.0.calibration.moments", torch.zeros(2, 2, 2), "deviation of good parts is not above 0"),
    ("profile.0.calibration.moments", torch.ones(2, 2, 3), "moments has the shape"),
    ("profile.0.calibration.good_maps", torch.zeros(3, dtype=torch.uint8), "cannot hold"),
    ("profile.0.calibration.good_maps", torch.zeros(10**6, dtype=torch.uint8), "damaged"),
    ("profile.0.residual.common", torch.zeros(5, 12), "residual's codes has the shape"),
    ("profile.0.residual.scale", torch.zeros(1, 1, 1, 10**6, dtype=torch.uint8), "cannot hold"),
    ("profile.0.residual.scale", torch.zeros(3, 4, 4, 12), "quantised"),
    ("profile.0.residual.scale.ends", torch.tensor([1.0, float("inf")]), "quantised"),
    ("profile.0.residual.diagonal.ends", torch.tensor([0.0, 1.0]), "quantised"),
    ("profile.0.residual.codes", torch.zeros(10**6, dtype=torch.uint8), "damaged"),
    ("features.mean", torch.zeros(13), "features' mean has the shape"),
    ("features.std", torch.zeros(12), "deviation is not above 0"),
    ("features.std", torch.full((12,), float("inf")), "features' deviation is not finite"),
    ("network.stem.weight", torch.ones(64, 1, dtype=torch.int8), "network's stem.weight"),
    ("scale.stem.weight", torch.ones(10**6, dtype=HALF), "network's stem.weight"),
    ("scale.stem.weight", torch.full((64,), float("inf"), dtype=HALF), "stem.weight is not finite"),
    ("network.extra", torch.zeros(2), "unexpected tensor network.extra"),
    ("profile.2.gaussian.mean", torch.zeros(2), "unexpected tensor profile.2.gaussian.mean"),
    ("network.stem.bias", None, "network.stem.bias"),
    ("scale.stem.weight", None, "scale.stem.weight"),
])  # fmt: skip
def test_tensors_that_do_not_fit_are_refused_at_once(name, spoilt, reason, file):
    tensors, metadata = checkpoints.load_tensors(file)
    if spoilt is None:
        del tensors[name]
    else:
        tensors[name] = spoilt
    checkpoints.save_tensors(file, tensors, metadata)
    refused_at_once(file, reason)


def test_codes_are_never_unpacked_into_more_than_the_file_can_mean(file):
    """A zlib stream of 1 MB may hold 1 GB; codes take at least a bit."""
    bomb = torch.frombuffer(bytearray(zlib.compress(bytes(10**7))), dtype=torch.uint8)
    with pytest.raises(ValueError, match="cannot hold"):
        encoding.decoded(bomb, (10**7,))


def refused_at_once(file, reason: str) -> None:
    begun = time.thread_time()  # not that of a busy machine
    with pytest.raises(CheckpointError, match=reason) as refused:
        checkpoints.load(file)
    assert time.thread_time() - begun < 0.5
    assert file.name in str(refused.value) and len(str(refused.value)) < 400


def test_features_of_another_backbone_are_refused(model):
    with pytest.raises(CheckpointError, match="not those of the backbone"):
        Inspector(model, "cpu")


def test_a_failed_save_leaves_the_old_file_and_no_litter(model, file, monkeypatch):
    before = file.read_bytes()

    def no_space(*_):
        raise OSError("no space left")

    monkeypatch.setattr("diffad.checkpoint.files.to_bytes", no_space)
    with pytest.raises(OSError, match="no space"):
        checkpoints.save(file, model)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]
