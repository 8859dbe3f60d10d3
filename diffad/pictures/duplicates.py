"""The same picture twice: exact copies, and what saving again, another format or another size make of one.

Pictures are compared as grey thumbnails in two ways. Softened, they must agree to a fraction of a grey level,
everywhere: that bears compression and scaling, and no two photographs of different parts do it, not even on
one fixture. What softening removes must be alike too, or pictures of plain grain would all be the same.
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

from diffad.pictures.arrays import F32, I64, U8, Array, Bools
from diffad.pictures.geometry import to_square, to_uint8
from diffad.pictures.reading import DataError, read_image
from diffad.pictures.samples import listed, short

SIDE = 64  # of a thumbnail
_SOFT = 1.25  # σ of the softening, px of a thumbnail
_APART = 0.75  # grey levels, root mean square of the difference of softened thumbnails
_ANYWHERE = 3.0  # grey levels, the greatest difference in them
_GRAIN = 0.3  # squared difference of what softening removed, as a share of both squares; 1 if unrelated


def thumbnails(squares: Tensor) -> F32:
    """uint8 [n, 3, s, s] → grey, float32 [n, SIDE, SIDE]."""
    small = [F.adaptive_avg_pool2d(part.float().mean(dim=1), SIDE) for part in squares.split(64)]
    return torch.cat(small).numpy()


def thumbnail(image: U8, size: int = 4 * SIDE) -> F32:
    """Of a picture uint8 [H, W, 3] in a model's square of that size: float32 [SIDE, SIDE]."""
    return np.asarray(thumbnails(to_uint8(to_square(image, size)[0])[None])[0])


def thumbnails_of(
    paths: Sequence[Path], size: int = 4 * SIDE, bits: int | None = None
) -> tuple[list[Path], Array]:
    """The files that can be read (bits: see `read_image`), and their thumbnails [n, SIDE, SIDE]."""

    def look(path: Path) -> Array | None:
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
    """Pictures that differ. paths; looks: their thumbnails [n, SIDE, SIDE]; numbers: of each among those
    given; copies: the others, each with the one that it repeats.
    """

    paths: list[Path]
    looks: F32
    numbers: list[int]
    copies: list[tuple[Path, Path]]

    @classmethod
    def among(cls, paths: Sequence[Path], looks: F32) -> Different:
        """Of those that repeat each other the first stays."""
        first = first_alike(looks)
        numbers = [number for number, one in enumerate(first) if number == one]
        copies = [(paths[number], paths[one]) for number, one in enumerate(first) if number != one]
        return cls([paths[number] for number in numbers], looks[numbers], numbers, copies)


def first_alike(looks: F32, known: F32 | None = None) -> I64:
    """For each thumbnail [n, SIDE, SIDE] the number of the first of the known ones [m, SIDE, SIDE] that shows
    the same picture, −1 if none does: int [n].

    Without known ones: the number of the first among themselves, of the picture itself if it is that.
    """
    among = known is None
    if known is None:
        known = looks
    found = np.arange(len(looks)) if among else np.full(len(looks), -1)
    if not len(looks) or not len(known):
        return found
    middle = known.mean(axis=0)
    (soft, grain), (known_soft, known_grain) = _parts(looks, middle), _parts(known, middle)
    # a matrix product finds the few pairs that are worth a closer look
    near = _squares(soft)[:, None] + _squares(known_soft) - 2 * soft @ known_soft.T
    near = near < 1.1 * _APART**2 * soft.shape[1]  # rounding
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
    """At most ten of the pairs, and how many more there are."""
    return listed(f"{short(one)} = {short(two)}" for one, two in pairs)


def _parts(looks: F32, middle: F32) -> tuple[Array, Array]:
    """Each look blurred, halved and without the middle's; and what the blur removed.

    Both float32, [n, SIDE² / 4] and [n, SIDE²].
    """
    soft = np.array([cv2.GaussianBlur(each, (0, 0), _SOFT) for each in looks], np.float32)
    halved = soft - cv2.GaussianBlur(middle, (0, 0), _SOFT)  # small numbers: exact products
    halved = halved.reshape(-1, SIDE // 2, 2, SIDE // 2, 2).mean(axis=(2, 4))
    return halved.reshape(len(soft), -1), (looks - soft).reshape(len(soft), -1)


def _squares(rows: F32) -> F32:
    return np.asarray(np.einsum("ij,ij->i", rows, rows))


def _alike(apart: F32, grain: F32, known: F32) -> Bools:
    """bool [n]. apart [n, a]: of the softened ones; grain [n, b], known [b]: what softening removed."""
    level: Bools = _squares(apart) <= _APART**2 * apart.shape[1]
    level &= np.abs(apart).max(axis=1, initial=0) <= _ANYWHERE
    level &= _squares(grain - known) <= _GRAIN * (_squares(grain) + _squares(known[None])) + 1e-3
    return level
