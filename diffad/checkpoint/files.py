"""Safetensors files with a header of our own: reading, writing, and what can be wrong with them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from diffad.output import write

FORMAT = 11
HEADER = "diffad"  # the key of the metadata under which the header is
_LONGEST_HEADER = 2**22  # characters of JSON


class CheckpointError(ValueError):
    """A checkpoint cannot be read, is damaged, is not diffad's, or has another format version."""


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write tensors and string metadata into one safetensors file, atomically. Raises OutputError."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    write(path, to_bytes(copies, dict(metadata)))
    return path


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


def load_header(path: str | Path) -> dict[str, Any]:
    """The header alone, unchecked but for its format. Raises CheckpointError."""
    if not Path(path).is_file():
        raise CheckpointError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({error})") from None
    with reasons(path):
        return header_in(path, metadata)


def header_in(path: str | Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The header among a file's metadata. Raises CheckpointError and, within `reasons`, ValueError."""
    if HEADER not in metadata:
        raise CheckpointError(f"{path} is not a diffad checkpoint; make one with 'diffad train'")
    if len(metadata[HEADER]) > _LONGEST_HEADER:
        raise ValueError("its header is too long")
    header: dict[str, Any] = json.loads(metadata[HEADER])
    if type(header["format"]) is not int:
        raise ValueError("its format is not a number")
    if header["format"] > FORMAT:
        raise CheckpointError(
            f"{path} was written by a newer diffad (format {header['format']}); update diffad to read it"
        )
    if header["format"] < FORMAT:
        raise CheckpointError(f"{path} was written by an older diffad; train it again with this one")
    return header


@contextmanager
def reasons(path: str | Path) -> Iterator[None]:
    """Whatever a damaged file causes while it is read becomes a CheckpointError with the reason."""
    try:
        yield
    except CheckpointError:
        raise
    except (
        KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError, ArithmeticError, zlib.error
    ) as error:  # fmt: skip
        reason = str(error) if type(error) is ValueError else repr(error)
        raise CheckpointError(f"{path} is damaged ({reason[:200]}); copy or train it again") from None


def require(holds: bool, otherwise: str) -> None:
    """Raises ValueError unless it holds."""
    if not holds:
        raise ValueError(otherwise)
