"""Letterboxing pictures into the model's square input, and mapping results back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from diffad.pictures.arrays import F32, I64, U8, Bools
from diffad.pictures.reading import DataError, size_text

_Maps = TypeVar("_Maps", torch.Tensor, F32)


@dataclass(frozen=True)
class Geometry:
    """Placement of a height × width picture in the model's size × size square.

    The picture, scaled to inner_height × inner_width, starts at (top, left); edge padding fills the rest.
    Pixels are areas (half-pixel centres, `align_corners=False`): row coordinate y in the picture, where row i
    has its centre at i + ½, maps to top + y · inner_height / height in the square, and columns likewise.
    """

    height: int
    width: int
    size: int
    top: int
    left: int
    inner_height: int
    inner_width: int

    @classmethod
    def letterbox(cls, height: int, width: int, size: int) -> Geometry:
        """The largest centred placement that keeps the aspect ratio, rounded to whole pixels."""
        longest = max(height, width)
        inner_height = max(1, (2 * height * size + longest) // (2 * longest))  # rounded half up
        inner_width = max(1, (2 * width * size + longest) // (2 * longest))
        top, left = (size - inner_height) // 2, (size - inner_width) // 2
        return cls(height, width, size, top, left, inner_height, inner_width)

    @property
    def inner(self) -> tuple[slice, slice]:
        """Rows and columns of the square covered by the picture."""
        rows = slice(self.top, self.top + self.inner_height)
        return rows, slice(self.left, self.left + self.inner_width)

    def to_picture(self, maps: _Maps) -> _Maps:
        """Crop the padding from maps of the square and resize them to the picture (`resize_maps`).

        Args:
            maps: [..., size, size], tensor or array.

        Returns:
            float32 [..., height, width], tensor or array as given.

        Raises:
            DataError: the maps do not have this geometry's size.
        """
        if tuple(maps.shape[-2:]) != (self.size, self.size):
            shape = tuple(maps.shape)
            raise DataError(f"maps of shape {shape} do not fit: give [..., {self.size}, {self.size}]")
        return resize_maps(maps[(..., *self.inner)], (self.height, self.width))


def resize_maps(maps: _Maps, shape: tuple[int, int]) -> _Maps:
    """Resize maps [..., h, w] to float32 [..., *shape]; returns a tensor or an array, as given.

    Bilinear with half-pixel centres, antialiased when shrinking.
    """
    if isinstance(maps, np.ndarray):
        return resize_maps(torch.from_numpy(np.array(maps, dtype=np.float32)), shape).numpy()
    resized = maps.float()
    if tuple(maps.shape[-2:]) != tuple(shape):
        flat = resized.reshape(-1, 1, *maps.shape[-2:])
        flat = F.interpolate(flat, tuple(shape), mode="bilinear", antialias=True)
        resized = flat.reshape(*maps.shape[:-2], *shape)
    return resized.contiguous()


def to_square(image: U8, size: int) -> tuple[torch.Tensor, Geometry]:
    """Letterbox a picture into the model's square.

    Lanczos resampling with antialiasing keeps most of the sharpness at any scale, so that a part photographed
    larger does not look blurred to the model. The padding repeats the picture's edge. A picture of exactly
    size × size is not resampled.

    Args:
        image: uint8 [H, W, 3].
        size: side of the square, px.

    Returns:
        The square, float32 [3, size, size] in [−1, 1] (value / 127.5 − 1), and its geometry.

    Raises:
        DataError: the picture is not uint8 [H, W, 3].
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"this is {image.dtype} {image.shape}, not uint8 [H, W, 3]: use read_image first")
    geometry = Geometry.letterbox(image.shape[0], image.shape[1], size)
    inner = Image.fromarray(np.ascontiguousarray(image))
    inner = inner.resize((geometry.inner_width, geometry.inner_height), Image.Resampling.LANCZOS)
    bottom = size - geometry.top - geometry.inner_height
    right = size - geometry.left - geometry.inner_width
    padded = np.pad(np.asarray(inner), ((geometry.top, bottom), (geometry.left, right), (0, 0)), mode="edge")
    square = torch.from_numpy(padded.astype(np.float32) / 127.5 - 1)  # [size, size, 3]
    return square.permute(2, 0, 1).contiguous(), geometry


def to_uint8(square: torch.Tensor) -> torch.Tensor:
    """Convert float values in [−1, 1] to uint8."""
    return ((square + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_float(pictures: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Convert uint8 [b, 3, s, s] to float32 in [−1, 1] on the device."""
    return pictures.to(device).float() / 127.5 - 1


def mask_to_square(mask: Bools, geometry: Geometry) -> Bools:
    """Letterbox a mask like its picture (`to_square`), by nearest neighbour.

    Args:
        mask: bool [H, W].
        geometry: of the picture.

    Returns:
        bool [size, size], False in the padding.

    Raises:
        DataError: the mask does not have the picture's size.
    """
    check_mask_fits(mask, (geometry.height, geometry.width))
    rows = nearest(geometry.inner_height, geometry.height)
    columns = nearest(geometry.inner_width, geometry.width)
    square = np.zeros((geometry.size, geometry.size), dtype=bool)
    square[geometry.inner] = mask[np.ix_(rows, columns)]
    return square


def check_mask_fits(mask: Bools, shape: tuple[int, ...], name: str | Path = "the mask") -> None:
    """Raise DataError if a mask [H, W] differs in size from its picture of this shape."""
    if mask.shape != tuple(shape[:2]):
        raise DataError(
            f"{name} is {size_text(mask.shape)}, but its picture is {size_text(shape)}: "
            "give a mask of the picture's own size"
        )


def nearest(inner: int, outer: int) -> I64:
    """Nearest-neighbour indices for resizing `outer` pixels to `inner`, in exact integers: int64 [inner]."""
    return (2 * np.arange(inner) + 1) * outer // (2 * inner)
