"""The sums that a category's Gaussians are fitted to, as a file: lower triangles in half precision."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from diffad.checkpoint import CheckpointError, load_tensors, save_tensors
from diffad.method.encoding import pack, unpack
from diffad.method.gaussian import Moments, PlainMoments
from diffad.teaching.residuals import Sums

_KEY = "diffad.sums"
_BRANCHES = ("perceptual", "residual", "plain")


def save_sums(path: Path, sums: Sums) -> None:
    """Write the sums atomically. Raises OutputError."""
    tensors: dict[str, Tensor] = {}
    counts: dict[str, object] = {}
    for name in _BRANCHES:
        part = getattr(sums, name)
        if part is None:
            continue
        if isinstance(part, PlainMoments):
            tensors["plain.mean"], counts["pictures"], part = part.mean, part.count, part.moments
        tensors[f"{name}.common"], tensors[f"{name}.weight"] = part.common.float(), part.weight.float()
        tensors[f"{name}.second"], counts[name] = pack(part.second).half(), part.counts
    save_tensors(path, tensors, {_KEY: json.dumps(counts)})


def load_sums(path: Path) -> Sums:
    """Read `save_sums`' file. Raises CheckpointError."""
    tensors, metadata = load_tensors(path)
    try:
        counts = json.loads(metadata[_KEY])
        moments = {name: _moments(name, tensors, counts[name]) for name in _BRANCHES if name in counts}
        plain = None
        if "plain" in moments:
            plain = PlainMoments(tensors["plain.mean"].float(), moments["plain"], int(counts["pictures"]))
        return Sums(moments["perceptual"], moments["residual"], plain)
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged ({error})") from None


def _moments(name: str, tensors: dict[str, Tensor], counts: list[int]) -> Moments:
    common = tensors[f"{name}.common"].double()
    below = unpack(tensors[f"{name}.second"].double(), len(common))
    second = below + below.transpose(-1, -2) - torch.diag_embed(below.diagonal(dim1=-2, dim2=-1))
    if second.shape[0] != len(counts) or not bool(second.isfinite().all()):
        raise ValueError("its moments are invalid")
    return Moments(common, tensors[f"{name}.weight"].double(), second, tuple(map(int, counts)))
