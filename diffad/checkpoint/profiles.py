"""A category's profile as tensors and as an entry of a header; checks of what an inspection relies on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffad.checkpoint.files import require
from diffad.method.calibration import Calibration
from diffad.method.encoding import coded, decoded, differences, pack, sums, unpack
from diffad.method.gaussian import PlainGaussian, ResidualGaussian, from_steps, to_steps
from diffad.method.image_score import CELLS
from diffad.method.place_gaussian import PlaceGaussian
from diffad.method.pose import Upright
from diffad.method.profile import Profile
from diffad.method.scoring import TIMESTEPS
from diffad.pictures.depth import DEPTHS
from diffad.pictures.quality import MEASURES

_COVARIANCES = ("residual", "perceptual")
_MOST_IGNORED = 1024  # px a side of the mask of ignored places


def profile_tensors(profile: Profile, prefix: str) -> dict[str, Tensor]:
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
    if profile.ignored is not None:
        bits = np.packbits(profile.ignored.cpu().numpy())
        tensors[f"{prefix}ignored"] = torch.from_numpy(bits)
    return tensors


def _covariance_tensors(covariance: ResidualGaussian, prefix: str) -> dict[str, Tensor]:
    tensors = {
        prefix + "common": covariance.common.half(),
        prefix + "codes": coded(pack(covariance.codes, -1)),
    }
    for part in ("scale", "diagonal"):
        tensors[prefix + part], tensors[f"{prefix}{part}.ends"] = to_steps(getattr(covariance, part))
    return tensors


def profile_header(name: str, profile: Profile) -> dict[str, Any]:
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
        "ignored": None if profile.ignored is None else list(profile.ignored.shape),
    }


def profile_from(category: Mapping[str, Any], tensors: dict[str, Tensor], prefix: str) -> Profile:
    def part(name: str) -> Tensor:
        return tensors.pop(prefix + name).float()

    projection = part("gaussian.projection")
    whitening = unpack(part("gaussian.whitening"), len(projection))
    remembered, good, bits = tuple(category["remembered"]), category["good"], category["bits"]
    require(bits in (None, *DEPTHS), f"{bits} bits")
    require(type(good) is int and 0 < good < 2**20, "the number of its good parts is invalid")
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
        ignored=_ignored(category.get("ignored"), tensors, prefix),
    )


def _covariance(tensors: dict[str, Tensor], prefix: str) -> ResidualGaussian:
    def part(name: str) -> Tensor:
        steps, ends = tensors.pop(prefix + name), tensors.pop(f"{prefix}{name}.ends")
        holds = steps.dtype == torch.uint8 and ends.shape == (2,) and bool(0 < ends[0] <= ends[1] < math.inf)
        require(holds, f"its quantised {name}, range {ends.tolist()}, is invalid")
        return from_steps(steps, ends)

    scale, diagonal = part("scale"), part("diagonal")
    kept = scale.shape[-1]
    shape = *scale.shape[:-1], kept * (kept - 1) // 2
    triangle = decoded(tensors.pop(prefix + "codes"), shape).view(torch.int8)
    common = tensors.pop(prefix + "common").float()
    return ResidualGaussian(common, unpack(triangle, kept, -1), scale, diagonal)


def _ignored(shape: Any, tensors: dict[str, Tensor], prefix: str) -> Tensor | None:
    if shape is None:
        return None
    rows, columns = shape
    whole = type(rows) is int and rows == columns and 0 < rows <= _MOST_IGNORED
    require(whole, f"a mask of ignored places is not of {shape}")
    bits = tensors.pop(f"{prefix}ignored")
    require(
        bits.dtype == torch.uint8 and bits.numel() == -(-(rows**2) // 8), "the ignored places are cut off"
    )
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=rows**2).reshape(rows, rows) > 0)


def _changed(law: Any) -> tuple[float, float] | None:
    if law is None:
        return None
    shift, stretch = law
    sensible = math.isfinite(shift) and 0 < stretch < math.inf
    require(sensible, "the statistics of its changed good parts are invalid")
    return float(shift), float(stretch)


def _quality(known: Any) -> tuple[tuple[float, float, float], ...] | None:
    if known is None:
        return None
    values = np.array(known, np.float64)
    sensible = values.shape == (len(MEASURES), 3) and bool((np.diff(values) >= 0).all())
    require(sensible and bool(np.isfinite(values).all()), "the quality range of its pictures is invalid")
    return tuple(tuple(each) for each in values.tolist())


def check_profile(profile: Profile, width: int, grid: int) -> None:
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
        require(bool(calibration.plain_moments[1] > 0), "a deviation of good parts is not above 0")
    for name, (covariance, grids) in covariances.items():
        kept, blocks = len(covariance.common), covariance.scale.shape[1]
        by_place = grids, blocks, blocks, kept
        shapes |= {
            f"{name}'s common part": (covariance.common, (kept, width)),
            f"{name}'s codes": (covariance.codes, (*by_place, kept)),
            f"{name}'s scale": (covariance.scale, by_place),
            f"{name}'s diagonal": (covariance.diagonal, by_place),
        }
        require(grid % blocks == 0, f"{name}'s blocks do not divide a grid of {grid}")
    check_shapes(shapes)
    require(grid % len(gaussian.whitening) == 0, f"the whitening's blocks do not divide a grid of {grid}")
    for timesteps in (known, remembered):
        rising = all(map(is_timestep, timesteps)) and list(timesteps) == sorted(set(timesteps))
        require(rising, "its timesteps do not rise within 0 to 999")
    require(bool((calibration.moments[:, 1] > 0).all()), "a deviation of good parts is not above 0")
    require(bool((calibration.level > 0).all()), "a level of good parts is not above 0")
    require(isinstance(profile.forecast, dict), "its forecast is not a JSON object")
    if profile.upright is not None:
        numbers = list(asdict(profile.upright).values())
        plain = all(type(value) in (int, float) and abs(value) <= 4 for value in numbers)
        require(plain and 0 < profile.upright.scale <= 1, "its upright pose is invalid")


def check_shapes(parts: Mapping[str, tuple[Tensor, tuple[int, ...]]]) -> None:
    for name, (value, shape) in parts.items():
        fits = value.shape == shape and value.numel() > 0
        require(fits, f"the {name} has the shape {tuple(value.shape)} instead of {shape}")
        require(bool(value.isfinite().all()), f"the {name} is not finite")


def is_timestep(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1000
