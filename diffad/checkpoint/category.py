"""One category as a file of its own, beside the network that it belongs to."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffad.checkpoint.files import (
    FORMAT,
    HEADER,
    CheckpointError,
    header_in,
    load_header,
    load_tensors,
    reasons,
    require,
    save_tensors,
)
from diffad.checkpoint.profiles import check_profile, profile_from, profile_header, profile_tensors
from diffad.method.profile import Profile

_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Category:
    """A category that was taught to a network.

    Attributes:
        name: by which people choose it.
        profile: the statistics of its good pictures.
        network: `Inspector.network_id` of the network that these belong to.
        cell: px of a place of the network's feature map.
        about: free JSON: the pictures it was learned from, when and by whom.
    """

    name: str
    profile: Profile
    network: str
    cell: int
    about: Mapping[str, Any] = field(default_factory=dict)


def save_category(path: str | Path, category: Category) -> Path:
    """Write a category atomically. Raises OutputError."""
    header = {
        "format": FORMAT,
        "network": category.network,
        "cell": category.cell,
        "category": profile_header(category.name, category.profile),
        "about": dict(category.about),
    }
    return save_tensors(path, profile_tensors(category.profile, "profile."), {HEADER: json.dumps(header)})


def load_category(path: str | Path) -> Category:
    """Read and validate a category on the CPU. Raises CheckpointError with the reason."""
    tensors, metadata = load_tensors(path)
    with reasons(path):
        header = header_in(path, metadata)
        name, network, about = named(path, header)
        cell = header["cell"]
        profile = profile_from(header["category"], tensors, "profile.")
        require(not tensors, f"unexpected tensor {next(iter(tensors), None)}")
        require(type(cell) is int and 0 < cell <= 256, "the cells of its network are invalid")
        require(profile.size is not None and profile.size % cell == 0, "its size is invalid")
        check_profile(profile, profile.gaussian.projection.shape[1], (profile.size or 0) // cell)
        return Category(name, profile, network, cell, about)


def read_about(path: str | Path) -> tuple[str, str, dict[str, Any]]:
    """Name, network and `about` of a category, without its statistics. Raises CheckpointError."""
    header = load_header(path)
    with reasons(path):
        return named(path, header)


def named(path: str | Path, header: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """Name, network and `about` in a header. Raises CheckpointError, and ValueError within `reasons`."""
    if "category" not in header:
        raise CheckpointError(f"{path} is a model, not a category: start diffad with --checkpoint {path}")
    name, network, about = header["category"]["name"], header["network"], header["about"]
    require(isinstance(name, str) and 0 < len(name) <= 255, "its name is empty or too long")
    require(isinstance(network, str) and _ID.fullmatch(network) is not None, "its network is unknown")
    require(isinstance(about, dict), "what it says about itself is no JSON object")
    return name, network, about
