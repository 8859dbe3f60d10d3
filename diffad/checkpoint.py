"""Reading and writing checkpoints, each a single safetensors file.

Its tensors are the averaged weights (int8 with a scale per output channel), the standardisation of the
features and one profile per category. Its metadata contains the format number, the configuration and the
provenance as JSON under the key "diffad". Loading never executes code.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from diffad.method.calibration import Calibration
from diffad.method.diffusion import Schedule
from diffad.method.encoding import coded, decoded, differences, pack, restored, stored, sums, unpack
from diffad.method.gaussian import PlaceGaussian, PlainGaussian, ResidualGaussian, from_steps, to_steps
from diffad.method.image_score import CELLS
from diffad.method.pose import Upright
from diffad.method.profile import Profile
from diffad.method.scoring import PIXEL_SCORES, TIMESTEPS
from diffad.method.unet import UNet, UNetConfig
from diffad.output import write
from diffad.pictures.depth import DEPTHS
from diffad.pictures.quality import MEASURES

FORMAT = 11
_COVARIANCES = ("residual", "perceptual")
_LONGEST_HEADER = 2**22  # characters of JSON


class CheckpointError(ValueError):
    """A checkpoint cannot be read, is damaged, is not diffad's, or has another format version."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained model with the statistics of its categories.

    Attributes:
        config: size of the network.
        network: the U-Net's state dict; float32 once loaded.
        backbone: name of the frozen network that computes the features.
        feature_mean, feature_std: standardisation of the features, [c] each.
        profiles: by category.
        schedule: noise schedule, always "linear" with 1000 steps.
        pixel_score: kind of pixel score that the calibration belongs to, one of PIXEL_SCORES.
        stride: step on the respaced chain for the pixel score "kl".
        provenance: free JSON: data, licence, steps, seed, version, metrics.
    """

    config: UNetConfig
    network: Mapping[str, Tensor]
    backbone: str
    feature_mean: Tensor
    feature_std: Tensor
    profiles: Mapping[str, Profile]
    schedule: str = "linear"
    pixel_score: str = "perceptual"
    stride: int = 4
    provenance: Mapping[str, object] = field(default_factory=dict)


def save(path: str | Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint atomically; missing folders are created. Raises OutputError."""
    tensors = {}
    for name, value in checkpoint.network.items():
        tensors[f"network.{name}"], scale = stored(value)
        if scale is not None:
            tensors[f"scale.{name}"] = scale
    tensors["features.mean"], tensors["features.std"] = checkpoint.feature_mean, checkpoint.feature_std
    for index, profile in enumerate(checkpoint.profiles.values()):
        tensors |= _profile_tensors(profile, f"profile.{index}.")
    header = {
        "format": FORMAT,
        "config": asdict(checkpoint.config),
        "schedule": checkpoint.schedule,
        "backbone": checkpoint.backbone,
        "pixel_score": checkpoint.pixel_score,
        "stride": checkpoint.stride,
        "categories": [_category(name, profile) for name, profile in checkpoint.profiles.items()],
        "provenance": dict(checkpoint.provenance),
    }
    return save_tensors(path, tensors, {"diffad": json.dumps(header)})


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write tensors and string metadata into one safetensors file, atomically. Raises OutputError."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    write(path, to_bytes(copies, dict(metadata)))
    return path


def _profile_tensors(profile: Profile, prefix: str) -> dict[str, Tensor]:
    gaussian, calibration = profile.gaussian, profile.calibration
    tensors = {
        f"{prefix}gaussian.projection": gaussian.projection.half(),
        f"{prefix}gaussian.mean": gaussian.mean.half(),
        f"{prefix}gaussian.whitening": pack(gaussian.whitening).half(),
        f"{prefix}calibration.level": calibration.level,
        f"{prefix}calibration.moments": calibration.moments,
        f"{prefix}calibration.good_maps": coded(differences(calibration.good_maps)),
    }
    for name in _COVARIANCES:
        tensors |= _covariance_tensors(getattr(profile, name), f"{prefix}{name}.")
    if profile.plain is not None:
        assert calibration.plain_moments is not None and calibration.good_plain is not None
        tensors[f"{prefix}plain.mean"] = profile.plain.mean.half()
        tensors |= _covariance_tensors(profile.plain.covariance, f"{prefix}plain.")
        tensors[f"{prefix}plain.moments"] = calibration.plain_moments
        tensors[f"{prefix}plain.good_maps"] = coded(differences(calibration.good_plain))
    return tensors


def _covariance_tensors(covariance: ResidualGaussian, prefix: str) -> dict[str, Tensor]:
    tensors = {
        prefix + "common": covariance.common.half(),
        prefix + "codes": coded(pack(covariance.codes, -1)),
    }
    for part in ("scale", "diagonal"):
        tensors[prefix + part], tensors[f"{prefix}{part}.ends"] = to_steps(getattr(covariance, part))
    return tensors


def _category(name: str, profile: Profile) -> dict[str, Any]:
    """The header's entry for a category."""
    return {
        "name": name,
        "timesteps": profile.calibration.timesteps,
        "remembered": profile.calibration.remembered,
        "good": len(profile.calibration.good_maps),
        "changed": profile.calibration.changed,
        "plain": profile.plain is not None,
        "forecast": dict(profile.forecast),
        "upright": None if profile.upright is None else asdict(profile.upright),
        "bits": profile.bits,
        "quality": profile.quality,
        "size": profile.size,
    }


def bundled() -> list[Path]:
    """The checkpoints distributed with diffad, "parts" first; a wheel has them inside the package."""
    for folder in (Path(__file__).parents[1] / "checkpoints", Path(__file__).parent / "checkpoints"):
        if found := sorted(folder.glob("*.safetensors"), key=lambda path: (path.stem != "parts", path.stem)):
            return found
    return []


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (on the CPU) and metadata of a safetensors file. Raises CheckpointError."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({error})") from None


def load(path: str | Path) -> Checkpoint:
    """Read and validate a checkpoint on the CPU. Raises CheckpointError with the reason."""
    tensors, metadata = load_tensors(path)
    if "diffad" not in metadata:
        raise CheckpointError(f"{path} is not a diffad checkpoint; make one with 'diffad train'")
    try:
        if len(metadata["diffad"]) > _LONGEST_HEADER:
            raise ValueError("its header is too long")
        header = json.loads(metadata["diffad"])
        if type(header["format"]) is not int:
            raise ValueError("its format is not a number")
        if header["format"] > FORMAT:
            raise CheckpointError(
                f"{path} was written by a newer diffad (format {header['format']}); update diffad to read it"
            )
        if header["format"] < FORMAT:
            raise CheckpointError(f"{path} was written by an older diffad; train it again with this one")
        checkpoint = _built(header, tensors)
        if tensors:
            raise ValueError(f"unexpected tensor {next(iter(tensors))}")
        _check(checkpoint)
        return checkpoint
    except CheckpointError:
        raise
    except (
        KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError, ArithmeticError, zlib.error
    ) as error:  # fmt: skip
        reason = str(error) if type(error) is ValueError else repr(error)
        raise CheckpointError(f"{path} is damaged ({reason[:200]}); copy or train it again") from None


def _built(header: Mapping[str, Any], tensors: dict[str, Tensor]) -> Checkpoint:
    """Build a checkpoint, removing the tensors that it uses. Damaged files raise all kinds of errors."""
    config = UNetConfig(**{**header["config"], "channels": tuple(header["config"]["channels"])})
    profiles: dict[str, Profile] = {}
    for index, category in enumerate(header["categories"]):
        if category["name"] in profiles:
            raise ValueError(f"two categories are called {category['name']!r}")
        profiles[category["name"]] = _profile(category, tensors, f"profile.{index}.")
    return Checkpoint(
        config=config,
        network=_network(config, tensors),
        backbone=header["backbone"],
        feature_mean=tensors.pop("features.mean").float(),
        feature_std=tensors.pop("features.std").float(),
        profiles=profiles,
        schedule=header["schedule"],
        pixel_score=header["pixel_score"],
        stride=header["stride"],
        provenance=header["provenance"],
    )


def _profile(category: Mapping[str, Any], tensors: dict[str, Tensor], prefix: str) -> Profile:
    def part(name: str) -> Tensor:
        return tensors.pop(prefix + name).float()

    projection = part("gaussian.projection")
    whitening = unpack(part("gaussian.whitening"), len(projection))
    remembered, good, bits = tuple(category["remembered"]), category["good"], category["bits"]
    _require(bits in (None, *DEPTHS), f"{bits} bits")
    _require(type(good) is int and 0 < good < 2**20, "the number of its good parts is invalid")
    shape = good, 2, len(remembered), CELLS, CELLS
    maps = sums(decoded(tensors.pop(prefix + "calibration.good_maps"), shape))
    calibration = Calibration(
        tuple(category["timesteps"]), part("calibration.level"), part("calibration.moments"),
        remembered, maps, changed=_changed(category["changed"]),
    )  # fmt: skip
    plain = None
    if category["plain"]:
        plain = PlainGaussian(part("plain.mean"), _covariance(tensors, prefix + "plain."))
        maps = sums(decoded(tensors.pop(prefix + "plain.good_maps"), (good, CELLS, CELLS)))
        calibration = replace(calibration, plain_moments=part("plain.moments"), good_plain=maps)
    return Profile(
        gaussian=PlaceGaussian(projection, part("gaussian.mean"), whitening),
        residual=_covariance(tensors, f"{prefix}residual."),
        perceptual=_covariance(tensors, f"{prefix}perceptual."),
        calibration=calibration,
        forecast=category["forecast"],
        upright=None if category["upright"] is None else Upright(**category["upright"]),
        bits=bits,
        quality=_quality(category["quality"]),
        size=category["size"],
        plain=plain,
    )


def _network(config: UNetConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.device("meta"):  # shapes without memory
        shapes = {name: value.shape for name, value in UNet(config).state_dict().items()}
    network = {}
    for name, shape in shapes.items():
        weight = tensors.pop(f"network.{name}")
        scale = tensors.pop(f"scale.{name}") if len(shape) > 1 else None
        if weight.shape != shape or (scale is not None and scale.shape != shape[:1]):
            raise ValueError(
                f"the network's {name} does not have the shape {tuple(shape)} of its configuration"
            )
        network[name] = restored(weight, scale)
    return network


def _covariance(tensors: dict[str, Tensor], prefix: str) -> ResidualGaussian:
    def part(name: str) -> Tensor:
        steps, ends = tensors.pop(prefix + name), tensors.pop(f"{prefix}{name}.ends")
        holds = steps.dtype == torch.uint8 and ends.shape == (2,) and bool(0 < ends[0] <= ends[1] < math.inf)
        _require(holds, f"its quantised {name}, range {ends.tolist()}, is invalid")
        return from_steps(steps, ends)

    scale, diagonal = part("scale"), part("diagonal")
    kept = scale.shape[-1]
    shape = *scale.shape[:-1], kept * (kept - 1) // 2
    triangle = decoded(tensors.pop(prefix + "codes"), shape).view(torch.int8)
    common = tensors.pop(prefix + "common").float()
    return ResidualGaussian(common, unpack(triangle, kept, -1), scale, diagonal)


def _changed(law: Any) -> tuple[float, float] | None:
    if law is None:
        return None
    shift, stretch = law
    sensible = math.isfinite(shift) and 0 < stretch < math.inf
    _require(sensible, "the statistics of its changed good parts are invalid")
    return float(shift), float(stretch)


def _quality(known: Any) -> tuple[tuple[float, float, float], ...] | None:
    if known is None:
        return None
    values = np.array(known, np.float64)
    sensible = values.shape == (len(MEASURES), 3) and bool((np.diff(values) >= 0).all())
    _require(sensible and bool(np.isfinite(values).all()), "the quality range of its pictures is invalid")
    return tuple(tuple(each) for each in values.tolist())


# -- validation


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _check(checkpoint: Checkpoint) -> None:
    """Raise ValueError for parts that are inconsistent or cannot be used."""
    width = checkpoint.config.feature_channels
    Schedule.named(checkpoint.schedule)
    _require(checkpoint.pixel_score in PIXEL_SCORES, "its pixel score is unknown")
    # rejects URLs, from which timm would download
    _require(
        re.fullmatch(r"\w[\w.]{,99}", checkpoint.backbone) is not None, "the name of its backbone is invalid"
    )
    _require(_is_timestep(checkpoint.stride) and checkpoint.stride > 0, "its stride is invalid")
    for name, value in checkpoint.network.items():
        _require(bool(value.isfinite().all()), f"the network's {name} is not finite")
    standard = {"mean": checkpoint.feature_mean, "deviation": checkpoint.feature_std}
    _check_shapes({f"features' {name}": (value, (width,)) for name, value in standard.items()})
    _require(bool((checkpoint.feature_std > 0).all()), "a feature's deviation is not above 0")
    about = checkpoint.provenance
    _require(isinstance(about, dict), "its provenance is not a JSON object")
    for key, kind in (("data", dict), ("licence", str), ("minutes", (int, float))):
        _require(isinstance(about.get(key), (kind, type(None))), f"invalid {key} in its provenance")
    _require(len(checkpoint.profiles) > 0, "it has no categories")
    for name, profile in checkpoint.profiles.items():
        _require(isinstance(name, str) and 0 < len(name) <= 255, "a category's name is empty or too long")
        try:
            _check_profile(profile, width, _grid(profile, checkpoint.config))
        except ValueError as error:
            raise ValueError(f"category {name!r}: {error}") from None


def _grid(profile: Profile, config: UNetConfig) -> int:
    """Side of a category's feature grid in places."""
    return config.feature_grid if profile.size is None else config.checked_size(profile.size) // config.cell


def _check_profile(profile: Profile, width: int, grid: int) -> None:
    gaussian, calibration = profile.gaussian, profile.calibration
    dims, blocks, side = len(gaussian.projection), len(gaussian.whitening), len(calibration.level[0])
    known, remembered = calibration.timesteps, calibration.remembered
    shapes: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        "projection": (gaussian.projection, (dims, width)),
        "mean": (gaussian.mean, (dims, grid, grid)),
        "whitening": (gaussian.whitening, (blocks, blocks, dims, dims)),
        "level": (calibration.level, (2, side, side)),
        "moments": (calibration.moments, (2, 2, len(known))),
    }
    covariances: dict[str, tuple[ResidualGaussian, int]] = {
        name: (getattr(profile, name), len(TIMESTEPS)) for name in _COVARIANCES
    }
    if profile.plain is not None:
        assert calibration.plain_moments is not None  # `_profile` sets both
        covariances["plain"] = profile.plain.covariance, 1
        shapes["plain mean"] = profile.plain.mean, (width, grid, grid)
        shapes["plain moments"] = calibration.plain_moments, (2,)
        _require(bool(calibration.plain_moments[1] > 0), "a deviation of good parts is not above 0")
    for name, (covariance, grids) in covariances.items():
        kept, blocks = len(covariance.common), covariance.scale.shape[1]
        by_place = grids, blocks, blocks, kept
        shapes |= {
            f"{name}'s common part": (covariance.common, (kept, width)),
            f"{name}'s codes": (covariance.codes, (*by_place, kept)),
            f"{name}'s scale": (covariance.scale, by_place),
            f"{name}'s diagonal": (covariance.diagonal, by_place),
        }
        _require(grid % blocks == 0, f"{name}'s blocks do not divide a grid of {grid}")
    _check_shapes(shapes)
    _require(grid % len(gaussian.whitening) == 0, f"the whitening's blocks do not divide a grid of {grid}")
    for timesteps in (known, remembered):
        rising = all(map(_is_timestep, timesteps)) and list(timesteps) == sorted(set(timesteps))
        _require(rising, "its timesteps do not rise within 0 to 999")
    _require(bool((calibration.moments[:, 1] > 0).all()), "a deviation of good parts is not above 0")
    _require(bool((calibration.level > 0).all()), "a level of good parts is not above 0")
    _require(isinstance(profile.forecast, dict), "its forecast is not a JSON object")
    if profile.upright is not None:
        numbers = list(asdict(profile.upright).values())
        plain = all(type(value) in (int, float) and abs(value) <= 4 for value in numbers)
        _require(plain and 0 < profile.upright.scale <= 1, "its upright pose is invalid")


def _check_shapes(parts: Mapping[str, tuple[Tensor, tuple[int, ...]]]) -> None:
    for name, (value, shape) in parts.items():
        fits = value.shape == shape and value.numel() > 0
        _require(fits, f"the {name} has the shape {tuple(value.shape)} instead of {shape}")
        _require(bool(value.isfinite().all()), f"the {name} is not finite")


def _is_timestep(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1000
