"""Reading and writing checkpoints, each a single safetensors file.

Its tensors are the averaged weights (int8 with a scale per output channel), the standardisation of the
features and one profile per category. Its metadata contains the format number, the configuration and the
provenance as JSON under the key "diffad". Loading never executes code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffad.checkpoint.files import FORMAT, HEADER, header_in, load_tensors, reasons, require, save_tensors
from diffad.checkpoint.profiles import (
    check_profile,
    check_shapes,
    is_timestep,
    profile_from,
    profile_header,
    profile_tensors,
)
from diffad.method.diffusion import Schedule
from diffad.method.encoding import restored, stored
from diffad.method.profile import Profile
from diffad.method.scoring import PIXEL_SCORES
from diffad.method.unet import UNet, UNetConfig


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
        tensors |= profile_tensors(profile, f"profile.{index}.")
    header = {
        "format": FORMAT,
        "config": asdict(checkpoint.config),
        "schedule": checkpoint.schedule,
        "backbone": checkpoint.backbone,
        "pixel_score": checkpoint.pixel_score,
        "stride": checkpoint.stride,
        "categories": [profile_header(name, profile) for name, profile in checkpoint.profiles.items()],
        "provenance": dict(checkpoint.provenance),
    }
    return save_tensors(path, tensors, {HEADER: json.dumps(header)})


def bundled() -> list[Path]:
    """The checkpoints distributed with diffad, "parts" first; a wheel has them inside the package."""
    for folder in (Path(__file__).parents[2] / "checkpoints", Path(__file__).parents[1] / "checkpoints"):
        if found := sorted(folder.glob("*.safetensors"), key=lambda path: (path.stem != "parts", path.stem)):
            return found
    return []


def load(path: str | Path) -> Checkpoint:
    """Read and validate a checkpoint on the CPU. Raises CheckpointError with the reason."""
    tensors, metadata = load_tensors(path)
    with reasons(path):
        header = header_in(path, metadata)
        require("categories" in header, "it holds one category: import it into a workspace")
        checkpoint = _built(header, tensors)
        require(not tensors, f"unexpected tensor {next(iter(tensors), None)}")
        _check(checkpoint)
        return checkpoint


def _built(header: Mapping[str, Any], tensors: dict[str, Tensor]) -> Checkpoint:
    """Build a checkpoint, removing the tensors that it uses. Damaged files raise all kinds of errors."""
    config = UNetConfig(**{**header["config"], "channels": tuple(header["config"]["channels"])})
    profiles: dict[str, Profile] = {}
    for index, category in enumerate(header["categories"]):
        if category["name"] in profiles:
            raise ValueError(f"two categories are called {category['name']!r}")
        profiles[category["name"]] = profile_from(category, tensors, f"profile.{index}.")
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


def _check(checkpoint: Checkpoint) -> None:
    """Raise ValueError for parts that are inconsistent or cannot be used."""
    width = checkpoint.config.feature_channels
    Schedule.named(checkpoint.schedule)
    require(checkpoint.pixel_score in PIXEL_SCORES, "its pixel score is unknown")
    # rejects URLs, from which timm would download
    require(
        re.fullmatch(r"\w[\w.]{,99}", checkpoint.backbone) is not None, "the name of its backbone is invalid"
    )
    require(is_timestep(checkpoint.stride) and checkpoint.stride > 0, "its stride is invalid")
    for name, value in checkpoint.network.items():
        require(bool(value.isfinite().all()), f"the network's {name} is not finite")
    standard = {"mean": checkpoint.feature_mean, "deviation": checkpoint.feature_std}
    check_shapes({f"features' {name}": (value, (width,)) for name, value in standard.items()})
    require(bool((checkpoint.feature_std > 0).all()), "a feature's deviation is not above 0")
    about = checkpoint.provenance
    require(isinstance(about, dict), "its provenance is not a JSON object")
    for key, kind in (("data", dict), ("licence", str), ("minutes", (int, float))):
        require(isinstance(about.get(key), (kind, type(None))), f"invalid {key} in its provenance")
    require(len(checkpoint.profiles) > 0, "it has no categories")
    for name, profile in checkpoint.profiles.items():
        require(isinstance(name, str) and 0 < len(name) <= 255, "a category's name is empty or too long")
        try:
            check_profile(profile, width, _grid(profile, checkpoint.config))
        except ValueError as error:
            raise ValueError(f"category {name!r}: {error}") from None


def _grid(profile: Profile, config: UNetConfig) -> int:
    """Side of a category's feature grid in places."""
    return config.feature_grid if profile.size is None else config.checked_size(profile.size) // config.cell
