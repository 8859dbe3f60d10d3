"""Finding duplicate pictures, also when saved again, in another format or at another size.

Pictures are compared as grey thumbnails. After blurring they must agree to within a grey level everywhere,
which survives compression and scaling but does not hold for two photographs of different parts, even in the
same fixture. What the blur removes must be similar too; otherwise pictures of pure grain would all match.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffad.pictures.arrays import F32, I64, U8, Bools
from diffad.pictures.geometry import to_square, to_uint8
from diffad.pictures.reading import DataError, read_image
from diffad.pictures.samples import listed, short

SIDE = 64  # px a side of a thumbnail
_SOFT = 1.25  # σ of the blur, px of a thumbnail
# Limits for two pictures to count as the same:
_APART = 0.75  # root mean square difference of blurred thumbnails, grey levels
_ANYWHERE = 3.0  # largest difference of blurred thumbnails, grey levels
_GRAIN = 0.3  # squared difference of what the blur removed over the sum of both squares; 1 if unrelated


def thumbnails(squares: Tensor) -> F32:
    """Grey thumbnails, float32 [n, SIDE, SIDE], of square pictures, uint8 [n, 3, s, s]."""
    small = [F.adaptive_avg_pool2d(part.float().mean(dim=1), SIDE) for part in squares.split(64)]
    return torch.cat(small).numpy()


def thumbnail(image: U8, size: int = 4 * SIDE) -> F32:
    """Thumbnail, float32 [SIDE, SIDE], of a picture, uint8 [H, W, 3], letterboxed to `size` px."""
    return np.asarray(thumbnails(to_uint8(to_square(image, size)[0])[None])[0])


def thumbnails_of(
    paths: Sequence[Path], size: int = 4 * SIDE, bits: int | None = None
) -> tuple[list[Path], F32]:
    """The files that can be read and their thumbnails, float32 [n, SIDE, SIDE]. bits: see `read_image`."""

    def look(path: Path) -> F32 | None:
        try:
            return thumbnail(read_image(path, bits), size)
        except DataError:
            return None

    with ThreadPoolExecutor(4) as pool:  # decoders release the interpreter's lock
        looks = list(pool.map(look, paths))
    known = [(path, small) for path, small in zip(paths, looks) if small is not None]
    return [path for path, _ in known], np.array([small for _, small in known]).reshape(-1, SIDE, SIDE)


@dataclass(frozen=True)
class Different:
    """The distinct pictures of a list.

    Attributes:
        paths: their files.
        looks: their thumbnails, float32 [n, SIDE, SIDE].
        numbers: their indices in the list.
        copies: each other picture with the earlier one that it repeats.
    """

    paths: list[Path]
    looks: F32
    numbers: list[int]
    copies: list[tuple[Path, Path]]

    @classmethod
    def among(cls, paths: Sequence[Path], looks: F32) -> Different:
        """Keep the first of pictures that show the same."""
        first = first_alike(looks)
        numbers = [number for number, one in enumerate(first) if number == one]
        copies = [(paths[number], paths[one]) for number, one in enumerate(first) if number != one]
        return cls([paths[number] for number in numbers], looks[numbers], numbers, copies)


def first_alike(looks: F32, known: F32 | None = None) -> I64:
    """Index of the first known thumbnail that shows the same picture as each given one.

    Args:
        looks: float32 [n, SIDE, SIDE].
        known: float32 [m, SIDE, SIDE]; None compares `looks` with themselves, so that a picture without an
            earlier duplicate gets its own index.

    Returns:
        int64 [n], −1 where there is none.
    """
    among = known is None
    if known is None:
        known = looks
    found = np.arange(len(looks)) if among else np.full(len(looks), -1)
    if not len(looks) or not len(known):
        return found
    middle = known.mean(axis=0)
    (soft, grain), (known_soft, known_grain) = _parts(looks, middle), _parts(known, middle)
    # a matrix product preselects the few candidate pairs
    near = _squares(soft)[:, None] + _squares(known_soft) - 2 * soft @ known_soft.T
    near = near < 1.1 * _APART**2 * soft.shape[1]  # 1.1 allows for rounding
    open_ = np.ones(len(looks), bool)
    for number in range(len(known)):
        rows = np.flatnonzero(near[:, number] & open_)
        if among:
            if found[number] != number:
                continue
            rows = rows[rows > number]
        alike = _alike(soft[rows] - known_soft[number], grain[rows], known_grain[number])
        found[rows[alike]] = number
        open_[rows[alike]] = False
    return found


def pairs_in_words(pairs: Iterable[tuple[Path, Path]]) -> str:
    """List at most ten of the pairs and say how many more there are."""
    return listed(f"{short(one)} = {short(two)}" for one, two in pairs)


def _parts(looks: F32, middle: F32) -> tuple[F32, F32]:
    """Split thumbnails [n, SIDE, SIDE] into a blurred part and what the blur removed.

    Returns:
        The blurred part minus that of `middle` [SIDE, SIDE] at half resolution, float32 [n, SIDE² / 4], and
        the removed part, float32 [n, SIDE²].
    """
    soft = np.array([cv2.GaussianBlur(each, (0, 0), _SOFT) for each in looks], np.float32)
    halved = soft - cv2.GaussianBlur(middle, (0, 0), _SOFT)  # small numbers keep products exact
    halved = halved.reshape(-1, SIDE // 2, 2, SIDE // 2, 2).mean(axis=(2, 4))
    return halved.reshape(len(soft), -1), (looks - soft).reshape(len(soft), -1)


def _squares(rows: F32) -> F32:
    return np.asarray(np.einsum("ij,ij->i", rows, rows))


def _alike(apart: F32, grain: F32, known: F32) -> Bools:
    """Whether pictures show the same as a known one, bool [n].

    apart: differences of the blurred parts, [n, a]. grain, known: what the blur removed, [n, b] and [b].
    """
    level: Bools = _squares(apart) <= _APART**2 * apart.shape[1]
    level &= np.abs(apart).max(axis=1, initial=0) <= _ANYWHERE
    level &= _squares(grain - known) <= _GRAIN * (_squares(grain) + _squares(known[None])) + 1e-3
    return level
