"""The only reader and writer of weights: one safetensors file that explains itself.

Tensors are the EMA weights (int8 with a scale for each output channel), the feature standardisation and one
profile a category; the file's metadata holds, as JSON under the key "diffad", the format number, the
configuration and the provenance.
Loading never executes code.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from diffad.depth import DEPTHS
from diffad.diffusion import Schedule
from diffad.gaussian import PlaceGaussian, ResidualGaussian, from_steps, to_steps
from diffad.pose import Upright
from diffad.scoring import PIXEL_SCORES, Calibration, RawMaps, residual_maps
from diffad.unet import UNetConfig

FORMAT = 9
_COVARIANCES = ("residual", "perceptual")


class CheckpointError(ValueError):
    """A weights file that cannot be read, is not diffad's, is damaged, or belongs to a newer version."""


@dataclass(frozen=True)
class Profile:
    """What one category adds to the shared network.

    gaussian: PaDiM's Gaussian of its normal features. residual: the feature residual's. perceptual: that of
    what is seen of the picture and of x̂_0. calibration: score statistics of normal pictures. rehearsal: how
    well artificial defects on some of those were found, and the choices made by that (`profiles.rehearse`).
    upright: how its parts are turned before they are looked at, None: they are seen as they lie. bits: how
    many the values of its pictures had that were no 8-bit files, None if there were none.
    """

    gaussian: PlaceGaussian
    residual: ResidualGaussian
    perceptual: ResidualGaussian
    calibration: Calibration
    rehearsal: Mapping[str, Any] = field(default_factory=dict)
    upright: Upright | None = None
    bits: int | None = None

    def raw_maps(self, pixel: Tensor, residual: Tensor, size: int, timesteps: Sequence[int]) -> RawMaps:
        """Of `scoring.evidence`'s findings, by the distances of this category."""
        if pixel.dim() > 4:  # residuals, not yet maps
            pixel = residual_maps(pixel, self.perceptual.squared_mahalanobis, size, timesteps)
        feature = residual_maps(residual, self.residual.squared_mahalanobis, size, timesteps)
        return RawMaps(pixel, feature, tuple(timesteps))

    def to(self, device: torch.device) -> Profile:
        """The distances on a device; the calibration is small and stays where it is."""
        return replace(
            self,
            gaussian=self.gaussian.to(device),
            residual=self.residual.to(device),
            perceptual=self.perceptual.to(device),
        )


@dataclass(frozen=True)
class Checkpoint:
    """Everything an inspection needs.

    network: the U-Net's state dict (float32 once loaded). schedule: "linear" or "cosine", 1000 steps.
    backbone, feature_mean, feature_std: the frozen features and their standardisation, [c] each.
    pixel_score: the scoring kind the calibration belongs to, and `stride` its step on the respaced chain.
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
    """Write atomically (nobody ever sees half a file), making missing folders; returns the path."""
    tensors = {}
    for name, value in checkpoint.network.items():
        tensors[f"network.{name}"], scale = _stored(value)
        if scale is not None:
            tensors[f"scale.{name}"] = scale
    tensors["features.mean"], tensors["features.std"] = checkpoint.feature_mean, checkpoint.feature_std
    for index, profile in enumerate(checkpoint.profiles.values()):
        gaussian, calibration = profile.gaussian, profile.calibration
        tensors |= {
            f"profile.{index}.gaussian.projection": gaussian.projection.half(),
            f"profile.{index}.gaussian.mean": gaussian.mean.half(),
            f"profile.{index}.gaussian.whitening": _pack(gaussian.whitening).half(),
            f"profile.{index}.calibration.level": calibration.level,
            f"profile.{index}.calibration.moments": calibration.moments,
            f"profile.{index}.calibration.good_places": calibration.good_places.half(),
        }
        for name in _COVARIANCES:
            covariance: ResidualGaussian = getattr(profile, name)
            prefix = f"profile.{index}.{name}."
            tensors[prefix + "common"] = covariance.common.half()
            tensors[prefix + "codes"] = _coded(_pack(covariance.codes, -1))
            for part in ("scale", "diagonal"):
                tensors[prefix + part], tensors[f"{prefix}{part}.ends"] = to_steps(getattr(covariance, part))
    header = {
        "format": FORMAT,
        "config": asdict(checkpoint.config),
        "schedule": checkpoint.schedule,
        "backbone": checkpoint.backbone,
        "pixel_score": checkpoint.pixel_score,
        "stride": checkpoint.stride,
        "categories": [
            {
                "name": name,
                "timesteps": profile.calibration.timesteps,
                "remembered": profile.calibration.remembered,
                "rehearsal": dict(profile.rehearsal),
                "upright": None if profile.upright is None else asdict(profile.upright),
                "bits": profile.bits,
            }
            for name, profile in checkpoint.profiles.items()
        ],
        "provenance": dict(checkpoint.provenance),
    }
    return save_tensors(path, tensors, {"diffad": json.dumps(header)})


def load(path: str | Path) -> Checkpoint:
    """Read a checkpoint onto the CPU. Raises CheckpointError that says what is wrong."""
    tensors, metadata = load_tensors(path)
    if "diffad" not in metadata:
        raise CheckpointError(f"{path} is not a diffad checkpoint; make one with 'diffad train'")
    try:
        header = json.loads(metadata["diffad"])
        if header["format"] > FORMAT:
            raise CheckpointError(
                f"{path} was written by a newer diffad (format {header['format']}); update diffad to read it"
            )
        if header["format"] < FORMAT:
            raise CheckpointError(f"{path} was written by an older diffad; train it again with this one")
        config = UNetConfig(**{**header["config"], "channels": tuple(header["config"]["channels"])})
        Schedule.named(header["schedule"])
        if header["pixel_score"] not in PIXEL_SCORES:
            raise ValueError("unknown pixel score")
        profiles = {}
        for index, category in enumerate(header["categories"]):
            part = {
                name: tensors[f"profile.{index}.{name}"]
                for name in (
                    "gaussian.projection",
                    "gaussian.mean",
                    "gaussian.whitening",
                    "calibration.level",
                    "calibration.moments",
                    "calibration.good_places",
                )
            }
            part = {name: value.float() for name, value in part.items()}
            gaussian = PlaceGaussian(
                part["gaussian.projection"],
                part["gaussian.mean"],
                _unpack(part["gaussian.whitening"], len(part["gaussian.projection"])),
            )
            calibration = Calibration(
                tuple(category["timesteps"]),
                part["calibration.level"],
                part["calibration.moments"],
                tuple(category["remembered"]),
                part["calibration.good_places"],
            )
            profiles[category["name"]] = Profile(
                gaussian,
                *(_covariance(tensors, f"profile.{index}.{name}.") for name in _COVARIANCES),
                calibration,
                category["rehearsal"],
                None if category["upright"] is None else Upright(**category["upright"]),
                _depth(category.get("bits")),  # older files have none
            )
        return Checkpoint(
            config=config,
            network={
                name[8:]: _restored(value, tensors.get(f"scale.{name[8:]}"))
                for name, value in tensors.items()
                if name.startswith("network.")
            },
            backbone=header["backbone"],
            feature_mean=tensors["features.mean"],
            feature_std=tensors["features.std"],
            profiles=profiles,
            schedule=header["schedule"],
            pixel_score=header["pixel_score"],
            stride=header["stride"],
            provenance=header["provenance"],
        )
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError, zlib.error) as error:
        raise CheckpointError(f"{path} is damaged ({error!r}); copy or train it again") from None


def bundled() -> list[Path]:
    """The checkpoints that come with diffad, beside the package in a clone or inside it in a wheel; "parts"
    first.
    """
    for folder in (Path(__file__).parents[1] / "checkpoints", Path(__file__).parent / "checkpoints"):
        if found := sorted(folder.glob("*.safetensors"), key=lambda path: (path.stem != "parts", path.stem)):
            return found
    return []


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Tensors and string metadata into one safetensors file, atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        partial.write_bytes(to_bytes(whole, dict(metadata)))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, on the CPU. Raises CheckpointError if it cannot be read."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({error})") from None


def _covariance(tensors: Mapping[str, Tensor], prefix: str) -> ResidualGaussian:
    scale, diagonal = (
        from_steps(tensors[prefix + part], tensors[f"{prefix}{part}.ends"]) for part in ("scale", "diagonal")
    )
    kept = scale.shape[-1]
    triangle = _decoded(tensors[prefix + "codes"], (*scale.shape[:-1], kept * (kept - 1) // 2))
    return ResidualGaussian(tensors[prefix + "common"].float(), _unpack(triangle, kept, -1), scale, diagonal)


def _depth(bits: int | None) -> int | None:
    if bits not in (None, *DEPTHS):
        raise ValueError(f"{bits} bits")
    return bits


def _pack(triangular: Tensor, offset: int = 0) -> Tensor:
    """Lower triangles [..., d, d] → [..., d(d+1)/2]; offset −1 leaves the diagonal out."""
    rows, columns = torch.tril_indices(*triangular.shape[-2:], offset)
    return triangular[..., rows, columns].contiguous()


def _unpack(packed: Tensor, size: int, offset: int = 0) -> Tensor:
    full = packed.new_zeros(*packed.shape[:-1], size, size)
    rows, columns = torch.tril_indices(size, size, offset)
    full[..., rows, columns] = packed
    return full


def _coded(codes: Tensor) -> Tensor:
    """Small whole numbers in the bits that they need, some 2.3 an entry: int8 [..., n] → uint8 [bytes], a
    zlib stream of Huffman codes.
    """
    coder = zlib.compressobj(strategy=zlib.Z_HUFFMAN_ONLY)
    stream = coder.compress(codes.numpy().tobytes()) + coder.flush()
    return torch.from_numpy(np.frombuffer(stream, dtype=np.uint8).copy())


def _decoded(stream: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`_coded` undone. Raises ValueError for a stream of another length, zlib.error for none."""
    length = math.prod(shape)
    plain = zlib.decompressobj().decompress(stream.numpy().tobytes(), length + 1)
    if len(plain) != length:
        raise ValueError(f"{len(plain)} codes instead of {length}")
    return torch.from_numpy(np.frombuffer(plain, dtype=np.int8).reshape(shape).copy())


def rounded(network: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights as a file gives them back, float32; rounding again changes nothing."""
    return {name: _restored(*_stored(value)) for name, value in network.items()}


def _stored(weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """int8 and a scale for each output channel (fp16), 127 steps to its largest weight; vectors in fp16."""
    if weight.dim() < 2:
        return weight.half(), None
    rows = weight.float().flatten(1)
    scale = (rows.abs().amax(dim=1) / 127).clamp(min=6e-8).half()
    codes = (rows / scale[:, None].float()).round().clamp(-127, 127)
    return codes.to(torch.int8).view_as(weight), scale


def _restored(stored: Tensor, scale: Tensor | None) -> Tensor:
    if scale is None:
        return stored.float()
    return stored.float() * scale.float().view(-1, *(1,) * (stored.dim() - 1))
