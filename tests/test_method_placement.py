"""Every tensor gets to the GPU, shown without one: fake tensors have a device and no values, and refuse to be
mixed as real ones do.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

from diffad import checkpoint, inspector
from diffad.inspector import Inspector
from diffad.measuring import ablation_maps
from diffad.method.calibration import Calibration
from diffad.method.encoding import rounded
from diffad.method.gaussian import ResidualGaussian, Scatter
from diffad.method.place_gaussian import PlaceGaussian
from diffad.method.repair import gradient_denoising, weighed_repair
from diffad.method.repair_options import RepairOptions
from diffad.method.scoring import PIXEL_SCORES, TIMESTEPS, RawMaps, _filter, evidence, shifted_embeddings
from diffad.teaching import statistics as profiles
from diffad.teaching import training
from diffad.teaching.residuals import Observer

CUDA = torch.device("cuda", 0)


class Valueless(TorchFunctionMode):
    """Where code asks a fake tensor for its values it gets some, as an array only from the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if args and isinstance(args[0], FakeTensor):
            if name in ("item", "__float__", "__int__", "__index__"):
                return 0.5 if args[0].is_floating_point() and name != "__int__" else 1
            if name == "__bool__":
                return True
            if name in ("numpy", "__array__"):
                return _noise(args[0])
            if name == "__getitem__":
                _check_index(*args)
        return func(*args, **(kwargs or {}))


def _noise(tensor: Tensor) -> np.ndarray:
    if tensor.device.type != "cpu":
        raise TypeError("only the CPU has arrays: use .cpu() first")
    noise = np.random.default_rng(0).random(tuple(tensor.shape))
    kind = str(tensor.dtype).removeprefix("torch.")
    return (noise * 255 if kind == "uint8" else noise).astype(kind)


def _check_index(tensor: Tensor, index: Any) -> None:
    """A tensor on the CPU takes no index from another device, which fake ones let pass."""
    parts = index if isinstance(index, tuple) else (index,)
    elsewhere = any(isinstance(part, Tensor) and part.device.type != "cpu" for part in parts)
    if tensor.device.type == "cpu" and elsewhere:
        raise RuntimeError("the index is on another device than the CPU")


@pytest.fixture(scope="module")
def fake() -> FakeTensorMode:
    return FakeTensorMode(allow_non_fake_inputs=True)


@pytest.fixture(scope="module")
def placed(fake: FakeTensorMode, bundled_model: Path) -> Inspector:
    """The bundled model as `Inspector` puts it on a GPU."""
    loaded = checkpoint.load(bundled_model)
    with pytest.MonkeyPatch.context() as patch, fake:
        _prepare(patch)
        return Inspector(loaded, "cuda")


@pytest.fixture
def gpu(fake: FakeTensorMode, placed: Inspector, monkeypatch: pytest.MonkeyPatch) -> Iterator[Inspector]:
    """The placed model, while all tensors are fake."""
    _prepare(monkeypatch)
    _filter.cache_clear()
    with fake, Valueless():
        yield placed
    _filter.cache_clear()  # or later tests would smooth with fake tensors


def _prepare(patch: pytest.MonkeyPatch) -> None:
    """What fake tensors do not do: modules take none in exchange for their own, and gradients need a driver;
    they lie where what they are of does.
    """

    def to(module: nn.Module, device: torch.device | None = None, **_: Any) -> nn.Module:
        if device is not None:
            for part in module.modules():
                for name, value in part._parameters.items():
                    if value is not None:
                        part._parameters[name] = nn.Parameter(value.detach().to(device), value.requires_grad)
                for name, value in part._buffers.items():
                    part._buffers[name] = value.to(device)
        return module

    patch.setattr(nn.Module, "to", to)
    patch.setattr(torch.autograd, "grad", lambda of, by: [torch.empty_like(by)])
    for module in (inspector, training):
        patch.setattr(module, "pick_device", lambda name: CUDA)


def pictures(count: int, size: int = 256) -> Tensor:
    """uint8 [count, 3, size, size] on the CPU, as training keeps them."""
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)


def on_gpu(*tensors: Tensor) -> bool:
    return all(tensor.device == CUDA for tensor in tensors)


def test_mixing_devices_is_refused_as_a_gpu_would(gpu):
    there, here = torch.zeros(3, device=CUDA), torch.zeros(3)
    mixtures = {
        "sum": lambda: there + here,
        "in place": lambda: here.add_(there),
        "stack": lambda: torch.stack([there, here]),
        "product": lambda: here @ there,
        "choice": lambda: torch.where(there > 0, here, there),
        "index": lambda: here[there.long()],
    }
    for name, mixed in mixtures.items():
        with pytest.raises(Exception, match="device"):
            pytest.fail(f"not refused: {name}, {mixed()}")
    with pytest.raises(TypeError, match="CPU"):
        there.numpy()
    assert there.cpu().numpy().shape == (3,) and on_gpu(there + 1, there + torch.tensor(2.0))


@pytest.mark.parametrize("kind", PIXEL_SCORES)
def test_an_inspection_stays_on_the_gpu_up_to_its_maps(gpu, kind):
    x_start = torch.zeros(2, 3, 256, 256, device=CUDA)
    seen = gpu.extractor.embed(x_start)
    assert on_gpu(*seen, gpu.extractor.perceptual(x_start))
    profile = gpu.profiles[gpu.categories[0]]
    assert on_gpu(profile.gaussian.log_likelihood(seen.features))
    pixel, feature = evidence(
        gpu.schedule, gpu.network, x_start, shifted_embeddings(gpu.extractor.embed, x_start, seen, TIMESTEPS),
        perceive=gpu.extractor.perceptual, kind=kind, draws=2,
    )  # fmt: skip
    raw = profile.raw_maps(pixel, feature, seen.features, 256, TIMESTEPS)
    standard = profile.calibration.standardise(raw)
    assert on_gpu(pixel, feature, raw.pixel, raw.feature, standard.pixel, standard.feature)


def test_pictures_go_to_the_gpu_and_findings_come_back(gpu):
    picture = np.zeros((300, 400, 3), np.uint8)
    found = gpu.inspect(picture)
    assert found.anomaly_map.shape == (300, 400)
    assert gpu.inspect(picture, category=gpu.categories[0], tile=160).tile == 160
    assert gpu.features(picture).shape == (gpu.extractor.channels, 32, 32)


def test_repairs_stay_on_the_gpu(gpu):
    x_start, weight = torch.zeros(1, 3, 256, 256, device=CUDA), torch.ones(1, 1, 256, 256, device=CUDA)
    profile = gpu.profiles[gpu.categories[0]]
    options = {"steps": 6, "denoise_every": 2}
    weighed = weighed_repair(
        gpu.schedule, gpu.network, gpu.extractor, profile.residual, x_start, weight, **options
    )
    printed = gradient_denoising(
        gpu.schedule, gpu.network, gpu.extractor, profile.gaussian, x_start, **options
    )
    for repairs in (list(weighed), list(printed)):
        assert len(repairs) >= 6 and on_gpu(*(repair.x for repair in repairs))


def test_a_whole_repair_runs_and_its_pictures_come_back(gpu):
    picture = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)  # unlike any good part
    frames = list(gpu.repair(picture, threshold=-1e6, options=RepairOptions(steps=6, method="paper")))
    assert len(frames) > 1 and frames[-1].image.dtype == np.uint8


def test_gaussians_are_fitted_on_the_gpu(gpu):
    batches = [torch.zeros(3, 24, 8, 8, device=CUDA) for _ in range(2)]
    place = PlaceGaussian.fit(batches)
    assert on_gpu(place.projection, place.mean, place.whitening, place.squared_mahalanobis(batches[0]))
    for block, stages in ((2, (8, 16)), (8, (24,))):
        sums = [Scatter(block).add(batches[0]).add(batches[1]) for _ in range(3)]
        fitted, left_out = ResidualGaussian.fit(sums, stages=stages)
        assert on_gpu(fitted.common, fitted.codes, fitted.scale, fitted.diagonal, left_out.factors)
        own = torch.ones_like(batches[0])[:, None]
        assert on_gpu(
            fitted.squared_mahalanobis(batches[0], 1), left_out.squared_mahalanobis(batches[0], own, 2)
        )


def test_a_calibration_takes_maps_from_the_gpu_and_lies_on_the_cpu(gpu):
    maps = RawMaps(*(torch.rand(4, 3, 64, 64, device=CUDA) for _ in range(2)), TIMESTEPS)
    for by_place in (False, True):
        fitted = Calibration.fit(maps, by_place)
        assert {each.device.type for each in (fitted.level, fitted.moments, fitted.good_maps)} == {"cpu"}
        assert on_gpu(fitted.standardise(maps).pixel)
        assert on_gpu(fitted.standardise(maps, torch.ones(4, 2, 32, 32)).feature)


def test_a_category_is_learned_on_the_gpu_and_kept_on_the_cpu(gpu, monkeypatch):
    monkeypatch.setattr(profiles, "SPOILED", 1)
    monkeypatch.setattr(profiles, "LOOKED", 2)
    monkeypatch.setattr(profiles, "CALIBRATION_TIMESTEPS", (0, *TIMESTEPS))
    observer = Observer(gpu.network, gpu.extractor, gpu.schedule)
    profile = profiles.fit(observer, pictures(1), pictures(2)).profile
    kept = profile.gaussian.mean, profile.residual.codes, profile.perceptual.scale
    assert {tensor.device.type for tensor in kept} == {"cpu"}
    assert profile.forecast["defects"] > 0


def test_an_ablation_asks_the_gpu(gpu, monkeypatch):
    monkeypatch.setattr(ablation_maps, "DRAWS", (1, 2))
    # which places lie inside the picture depends on values
    monkeypatch.setattr(ablation_maps, "_by_its_own_values", lambda answers: answers.raw(TIMESTEPS))
    category = gpu.categories[0]
    fitted = {"rgb": gpu.profiles[category].calibration}
    picture = np.zeros((200, 256, 3), np.uint8)
    kept = ablation_maps.kept_maps(gpu, picture, category, fitted, {"rgb": ("rgb", 4)}, None, 0)
    assert {values.shape for values in kept.values()} == {(200, 256)}


def test_training_steps_run_on_the_gpu(gpu, monkeypatch):
    config = training.TrainConfig(steps=2, unet=gpu.network.config, batch=2, spoiled=1.0, holes=1.0)
    monkeypatch.setattr(training, "FeatureExtractor", lambda *_: gpu.extractor)
    monkeypatch.setattr(training, "workers_for", lambda run: 0)
    run = training._prepare(config, None, [pictures(8)], 1, 0, CUDA)

    def backward(loss: Tensor) -> None:
        assert on_gpu(loss) and loss.requires_grad
        for parameter in run.network.parameters():
            parameter.grad = torch.zeros_like(parameter)

    monkeypatch.setattr(Tensor, "backward", backward)
    rows = list(training._loop(run, training.Draws.of(run, [pictures(8)])))
    moments = [state["exp_avg"] for state in run.optimizer.state.values()]
    assert len(rows) == 2 and moments and on_gpu(*moments, *run.network.parameters(), *run.average.values())
    assert on_gpu(*rounded(run.average).values())
