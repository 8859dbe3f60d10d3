"""The only reader and writer of weights: one safetensors file that explains itself.

Tensors are the EMA weights (int8 with a scale for each output channel), the feature standardisation and one
profile a category; the file's metadata holds, as JSON under the key "diffad", the format number, the
configuration and the provenance.
Loading never executes code.
"""

from __future__ import annotations

import json
import math
import re
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

from diffad.method.calibration import Calibration
from diffad.method.diffusion import Schedule
from diffad.method.gaussian import PlaceGaussian, PlainGaussian, ResidualGaussian, from_steps, to_steps
from diffad.method.image_score import CELLS
from diffad.method.pose import Upright
from diffad.method.scoring import PIXEL_SCORES, TIMESTEPS, RawMaps, plain_map, residual_maps
from diffad.method.unet import UNet, UNetConfig
from diffad.output import write
from diffad.pictures.depth import DEPTHS
from diffad.pictures.quality import MEASURES

FORMAT = 11
_COVARIANCES = ("residual", "perceptual")
_LONGEST_HEADER = 2**22  # characters


class CheckpointError(ValueError):
    """A weights file that cannot be read, is not diffad's, is damaged, or belongs to a newer version."""


@dataclass(frozen=True)
class Profile:
    """What one category adds to the shared network.

    gaussian: PaDiM's Gaussian of its normal features. residual: the feature residual's. perceptual: that of
    what is seen of the picture and of x̂_0. calibration: score statistics of normal pictures. forecast: how
    well artificial defects on some of those were found, and the choices made by that.
    upright: how its parts are turned before they are looked at, None: they are seen as they lie. bits: how
    many the values of its pictures had that were no 8-bit files, None if there were none. quality: the range
    of each of `quality.MEASURES` over its pictures, None if it is not known. size: side of the model's square
    in which it is looked at, px, None: that of the network's own training. plain: of the features
    themselves, for a category that the network never learned from, None: its residuals say all.
    """

    gaussian: PlaceGaussian
    residual: ResidualGaussian
    perceptual: ResidualGaussian
    calibration: Calibration
    forecast: Mapping[str, Any] = field(default_factory=dict)
    upright: Upright | None = None
    bits: int | None = None
    quality: tuple[tuple[float, float, float], ...] | None = None
    size: int | None = None
    plain: PlainGaussian | None = None

    def raw_maps(
        self, pixel: Tensor, residual: Tensor, features: Tensor, size: int, timesteps: Sequence[int]
    ) -> RawMaps:
        """Of `scoring.evidence`'s findings and the features [b, c, g, g], by the distances of this
        category.
        """
        if pixel.dim() > 4:  # residuals, not yet maps
            pixel = residual_maps(pixel, self.perceptual.squared_mahalanobis, size, timesteps)
        feature = residual_maps(residual, self.residual.squared_mahalanobis, size, timesteps)
        plain = None if self.plain is None else plain_map(self.plain.squared_mahalanobis(features), size)
        return RawMaps(pixel, feature, tuple(timesteps), plain)

    def to(self, device: torch.device) -> Profile:
        """The distances on a device; the calibration is small and stays where it is."""
        return replace(
            self,
            gaussian=self.gaussian.to(device),
            residual=self.residual.to(device),
            perceptual=self.perceptual.to(device),
            plain=None if self.plain is None else self.plain.to(device),
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
            f"profile.{index}.calibration.good_maps": _coded(_differences(calibration.good_maps)),
        }
        for name in _COVARIANCES:
            tensors |= _covariance_tensors(getattr(profile, name), f"profile.{index}.{name}.")
        if profile.plain is not None:
            tensors[f"profile.{index}.plain.mean"] = profile.plain.mean.half()
            tensors |= _covariance_tensors(profile.plain.covariance, f"profile.{index}.plain.")
            tensors[f"profile.{index}.plain.moments"] = calibration.plain_moments
            tensors[f"profile.{index}.plain.good_maps"] = _coded(_differences(calibration.good_plain))
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
                "good": len(profile.calibration.good_maps),
                "changed": profile.calibration.changed,
                "plain": profile.plain is not None,
                "forecast": dict(profile.forecast),
                "upright": None if profile.upright is None else asdict(profile.upright),
                "bits": profile.bits,
                "quality": profile.quality,
                "size": profile.size,
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
        if len(metadata["diffad"]) > _LONGEST_HEADER:
            raise ValueError("its header is too long")
        header = json.loads(metadata["diffad"])
        if type(header["format"]) is not int:
            raise ValueError("its format is no number")
        if header["format"] > FORMAT:
            raise CheckpointError(
                f"{path} was written by a newer diffad (format {header['format']}); update diffad to read it"
            )
        if header["format"] < FORMAT:
            raise CheckpointError(f"{path} was written by an older diffad; train it again with this one")
        checkpoint = _built(header, tensors)
        if tensors:
            raise ValueError(f"{next(iter(tensors))} belongs to no part of it")
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
    """From a file's parts; takes out the tensors that it needs. Damaged ones raise errors of all kinds."""
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
    whitening = _unpack(part("gaussian.whitening"), len(projection))
    remembered, good = tuple(category["remembered"]), category["good"]
    _require(type(good) is int and 0 < good < 2**20, "its good parts have no number")
    shape = good, 2, len(remembered), CELLS, CELLS
    maps = _sums(_decoded(tensors.pop(prefix + "calibration.good_maps"), shape))
    calibration = Calibration(
        tuple(category["timesteps"]), part("calibration.level"), part("calibration.moments"),
        remembered, maps, changed=_changed(category["changed"]),
    )  # fmt: skip
    plain = None
    if category["plain"]:
        plain = PlainGaussian(part("plain.mean"), _covariance(tensors, prefix + "plain."))
        maps = _sums(_decoded(tensors.pop(prefix + "plain.good_maps"), (good, CELLS, CELLS)))
        calibration = replace(calibration, plain_moments=part("plain.moments"), good_plain=maps)
    return Profile(
        PlaceGaussian(projection, part("gaussian.mean"), whitening),
        *(_covariance(tensors, f"{prefix}{name}.") for name in _COVARIANCES),
        calibration,
        category["forecast"],
        None if category["upright"] is None else Upright(**category["upright"]),
        _depth(category["bits"]),
        _quality(category["quality"]),
        category["size"],
        plain,
    )


def _network(config: UNetConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.device("meta"):  # shapes without memory
        shapes = {name: value.shape for name, value in UNet(config).state_dict().items()}
    network = {}
    for name, shape in shapes.items():
        stored = tensors.pop(f"network.{name}")
        scale = tensors.pop(f"scale.{name}") if len(shape) > 1 else None
        if stored.shape != shape or (scale is not None and scale.shape != shape[:1]):
            raise ValueError(f"the network's {name} has not the shape {tuple(shape)} of its configuration")
        network[name] = _restored(stored, scale)
    return network


# What an inspection relies on


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _check(checkpoint: Checkpoint) -> None:
    """Raises ValueError for parts that do not fit together, or with which nothing could be inspected."""
    width = checkpoint.config.feature_channels
    Schedule.named(checkpoint.schedule)
    _require(checkpoint.pixel_score in PIXEL_SCORES, "its pixel score is unknown")
    # no address from which something would be fetched
    _require(re.fullmatch(r"\w[\w.]{,99}", checkpoint.backbone) is not None, "its backbone has no name")
    _require(_is_timestep(checkpoint.stride) and checkpoint.stride > 0, "its stride is no number of steps")
    for name, value in checkpoint.network.items():
        _require(bool(value.isfinite().all()), f"the network's {name} is not finite")
    standard = {"mean": checkpoint.feature_mean, "deviation": checkpoint.feature_std}
    _check_shapes({f"features' {name}": (value, (width,)) for name, value in standard.items()})
    _require(bool((checkpoint.feature_std > 0).all()), "a feature's deviation is not above 0")
    about = checkpoint.provenance
    _require(isinstance(about, dict), "its provenance is no JSON object")
    for key, kind in (("data", dict), ("licence", str), ("minutes", (int, float))):
        _require(isinstance(about.get(key), (kind, type(None))), f"its provenance has odd {key}")
    _require(len(checkpoint.profiles) > 0, "it knows no category")
    for name, profile in checkpoint.profiles.items():
        _require(isinstance(name, str) and 0 < len(name) <= 255, "a category's name is empty or too long")
        try:
            _check_profile(profile, width, _grid(profile, checkpoint.config))
        except ValueError as error:
            raise ValueError(f"category {name!r}: {error}") from None


def _grid(profile: Profile, config: UNetConfig) -> int:
    """Places a side of what a category is looked at on."""
    return config.feature_grid if profile.size is None else config.checked_size(profile.size) // config.cell


def _check_profile(profile: Profile, width: int, grid: int) -> None:
    gaussian, calibration = profile.gaussian, profile.calibration
    dims, blocks, side = len(gaussian.projection), len(gaussian.whitening), len(calibration.level[0])
    known, remembered = calibration.timesteps, calibration.remembered
    shapes = {
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
        _require(rising, "its timesteps do not rise from 0 to 999")
    _require(bool((calibration.moments[:, 1] > 0).all()), "a deviation of good parts is not above 0")
    _require(bool((calibration.level > 0).all()), "a level of good parts is not above 0")
    _require(isinstance(profile.forecast, dict), "its forecast is no JSON object")
    if profile.upright is not None:
        numbers = list(asdict(profile.upright).values())
        plain = all(type(value) in (int, float) and abs(value) <= 4 for value in numbers)
        _require(plain and 0 < profile.upright.scale <= 1, "how it is turned upright makes no sense")


def _check_shapes(parts: Mapping[str, tuple[Tensor, tuple[int, ...]]]) -> None:
    for name, (value, shape) in parts.items():
        fits = value.shape == shape and value.numel() > 0
        _require(fits, f"the {name} has the shape {tuple(value.shape)} instead of {shape}")
        _require(bool(value.isfinite().all()), f"the {name} is not finite")


def _is_timestep(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1000


def bundled() -> list[Path]:
    """The checkpoints that come with diffad, beside the package in a clone or inside it in a wheel; "parts"
    first.
    """
    for folder in (Path(__file__).parents[1] / "checkpoints", Path(__file__).parent / "checkpoints"):
        if found := sorted(folder.glob("*.safetensors"), key=lambda path: (path.stem != "parts", path.stem)):
            return found
    return []


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Tensors and string metadata into one safetensors file, atomically. Raises OutputError."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    write(path, to_bytes(stored, dict(metadata)))
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


def _covariance_tensors(covariance: ResidualGaussian, prefix: str) -> dict[str, Tensor]:
    tensors = {prefix + "common": covariance.common.half(),
               prefix + "codes": _coded(_pack(covariance.codes, -1))}
    for part in ("scale", "diagonal"):
        tensors[prefix + part], tensors[f"{prefix}{part}.ends"] = to_steps(getattr(covariance, part))
    return tensors


def _covariance(tensors: dict[str, Tensor], prefix: str) -> ResidualGaussian:
    scale, diagonal = (
        _from_steps(tensors.pop(prefix + part), tensors.pop(f"{prefix}{part}.ends"))
        for part in ("scale", "diagonal")
    )
    kept = scale.shape[-1]
    shape = *scale.shape[:-1], kept * (kept - 1) // 2
    triangle = _decoded(tensors.pop(prefix + "codes"), shape).view(torch.int8)
    common = tensors.pop(prefix + "common").float()
    return ResidualGaussian(common, _unpack(triangle, kept, -1), scale, diagonal)


def _from_steps(steps: Tensor, ends: Tensor) -> Tensor:
    if steps.dtype != torch.uint8 or ends.shape != (2,) or not 0 < ends[0] <= ends[1] < math.inf:
        raise ValueError(f"there are no steps between {ends.tolist()}")
    return from_steps(steps, ends)


def _depth(bits: int | None) -> int | None:
    if bits not in (None, *DEPTHS):
        raise ValueError(f"{bits} bits")
    return bits


def _changed(law: Any) -> tuple[float, float] | None:
    if law is None:
        return None
    shift, stretch = law
    if not (math.isfinite(shift) and 0 < stretch < math.inf):
        raise ValueError("how its changed good parts lie makes no sense")
    return float(shift), float(stretch)


def _quality(known: Any) -> tuple[tuple[float, float, float], ...] | None:
    if known is None:
        return None
    values = np.array(known, np.float64)
    if values.shape != (len(MEASURES), 3) or not np.isfinite(values).all() or (np.diff(values) < 0).any():
        raise ValueError("its pictures' quality makes no sense")
    return tuple(tuple(each) for each in values.tolist())


def _pack(triangular: Tensor, offset: int = 0) -> Tensor:
    """Lower triangles [..., d, d] → [..., d(d+1)/2]; offset −1 leaves the diagonal out."""
    rows, columns = torch.tril_indices(*triangular.shape[-2:], offset)
    return triangular[..., rows, columns].contiguous()


def _unpack(packed: Tensor, size: int, offset: int = 0) -> Tensor:
    """`_pack` undone. Raises ValueError for another number of entries."""
    entries = size * (size + 1) // 2 + offset * size
    if packed.shape[-1] != entries:
        raise ValueError(f"a triangle has {packed.shape[-1]} entries instead of {entries}")
    full = packed.new_zeros(*packed.shape[:-1], size, size)
    rows, columns = torch.tril_indices(size, size, offset)
    full[..., rows, columns] = packed
    return full


def _differences(codes: Tensor) -> Tensor:
    """Of neighbours along the last dimension, modulo 256: maps are smooth, and these take fewer bits."""
    return torch.cat([codes[..., :1], codes[..., 1:] - codes[..., :-1]], dim=-1)


def _sums(differences: Tensor) -> Tensor:
    """`_differences` undone."""
    return differences.cumsum(dim=-1, dtype=torch.uint8)


def _coded(codes: Tensor) -> Tensor:
    """Small whole numbers in the bits that they need: int8 or uint8 of any shape → uint8 [bytes], a zlib
    stream of Huffman codes. A covariance's take some 2.3 an entry, differences of maps some 4.
    """
    coder = zlib.compressobj(strategy=zlib.Z_HUFFMAN_ONLY)
    stream = coder.compress(codes.numpy().tobytes()) + coder.flush()
    return torch.from_numpy(np.frombuffer(stream, dtype=np.uint8).copy())


def _decoded(stream: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`_coded` undone, uint8. Raises ValueError for a stream of another length, zlib.error for none."""
    length = math.prod(shape)
    if length > 8 * stream.numel():  # a code has at least a bit: no more memory than that
        raise ValueError(f"{stream.numel()} bytes cannot hold {length} codes")
    plain = zlib.decompressobj().decompress(stream.numpy().tobytes(), length + 1)
    if len(plain) != length:
        raise ValueError(f"{len(plain)} codes instead of {length}")
    return torch.from_numpy(np.frombuffer(plain, dtype=np.uint8).reshape(shape).copy())


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
