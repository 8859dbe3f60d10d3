"""Between a picture and the square that a model sees: scaled, letterboxed, and maps back."""

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

# ---------------------------------------------------------------------------------------------------------
# The model's square and the way back


@dataclass(frozen=True)
class Geometry:
    """Where a picture of height × width lies in the model's square of size × size.

    The picture, scaled to inner_height × inner_width, starts at (top, left); edge padding fills the rest.
    Pixels are areas (half-pixel centres, `align_corners=False`): the point y in the picture, with the centre
    of row i at i + ½, lies at top + y · inner_height / height in the square; the same holds for columns.
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
        """The largest centred place that keeps the aspect, up to rounding to whole pixels."""
        longest = max(height, width)
        inner_height = max(1, (2 * height * size + longest) // (2 * longest))  # rounded half up
        inner_width = max(1, (2 * width * size + longest) // (2 * longest))
        top, left = (size - inner_height) // 2, (size - inner_width) // 2
        return cls(height, width, size, top, left, inner_height, inner_width)

    @property
    def inner(self) -> tuple[slice, slice]:
        """Rows and columns of the square that the picture covers."""
        rows = slice(self.top, self.top + self.inner_height)
        return rows, slice(self.left, self.left + self.inner_width)

    def to_picture(self, maps: _Maps) -> _Maps:
        """Maps [..., size, size] → float32 [..., height, width], of the same kind (tensor or array) as given.

        The padding is cut off and the rest resampled bilinearly, with antialiasing where it shrinks.
        Raises DataError if the maps do not have this geometry's size.
        """
        if tuple(maps.shape[-2:]) != (self.size, self.size):
            shape = tuple(maps.shape)
            raise DataError(f"maps of shape {shape} do not fit: give [..., {self.size}, {self.size}]")
        return resize_maps(maps[(..., *self.inner)], (self.height, self.width))


def resize_maps(maps: _Maps, shape: tuple[int, int]) -> _Maps:
    """Maps [..., h, w] → float32 [..., *shape], of the same kind (tensor or array) as given.

    Bilinear with half-pixel centres, antialiased where it shrinks.
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
    """Letterbox uint8 [H, W, 3] into the model's square: float32 [3, size, size] in [-1, 1], its geometry.

    Resampling is Lanczos's with antialiasing and half-pixel centres, which keeps most of the sharpness
    whatever the size: a part photographed larger must not look blurred beside the ones that the model knows.
    The padding repeats the picture's edge. A picture of exactly size × size comes out as value / 127.5 − 1,
    untouched.
    Raises DataError for anything but uint8 [H, W, 3].
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
    """float [-1, 1] → uint8."""
    return ((square + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_float(pictures: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 [b, 3, s, s] → float32 in [−1, 1] on the device."""
    return pictures.to(device).float() / 127.5 - 1


def mask_to_square(mask: Bools, geometry: Geometry) -> Bools:
    """Bring a mask bool [H, W] into `to_square`'s square: bool [size, size], nearest, False in the padding.

    Raises DataError if the mask does not have the picture's size.
    """
    check_mask_fits(mask, (geometry.height, geometry.width))
    rows = nearest(geometry.inner_height, geometry.height)
    columns = nearest(geometry.inner_width, geometry.width)
    square = np.zeros((geometry.size, geometry.size), dtype=bool)
    square[geometry.inner] = mask[np.ix_(rows, columns)]
    return square


def check_mask_fits(mask: Bools, shape: tuple[int, ...], name: str | Path = "the mask") -> None:
    """Raises DataError if the mask [H, W] does not have its picture's height and width."""
    if mask.shape != tuple(shape[:2]):
        raise DataError(
            f"{name} is {size_text(mask.shape)}, but its picture is {size_text(shape)}: "
            "give a mask of the picture's own size"
        )


def nearest(inner: int, outer: int) -> I64:
    """For each of `inner` pixels the one of `outer` pixels under its centre, in exact integers."""
    return (2 * np.arange(inner) + 1) * outer // (2 * inner)
