"""Tiling of pictures for the model: one letterboxed tile, or overlapping square tiles with blended maps.

Maps are on a grid that covers only the picture. For a picture inspected whole, it is the rectangle that the
picture fills in the model's square. For a tiled picture, it has at most `GRID` cells per side, which bounds
memory, and at least `TILE_CELLS` cells (or one per pixel) along a tile: maps are smoothed with σ = 1/64 of a
tile, and a coarser grid would flatten their peaks. Together these limits determine the smallest allowed
tiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F

from diffad.method.image_score import ImageScore
from diffad.method.pose import Turn
from diffad.pictures.arrays import F32, U8
from diffad.pictures.geometry import Geometry, resize_maps, to_square
from diffad.pictures.reading import MIN_SIDE, DataError

GRID = 1024  # cells, maximum side of a tiled picture's maps
_RIM = 8  # px of the square, one place of the features' grid
TILE_CELLS = 64  # minimum cells along a tile, unless it has fewer pixels


@dataclass(frozen=True)
class Tile:
    """One tile of a picture.

    Attributes:
        box: its rows and columns in the picture.
        cells: its rows and columns in the grid.
        weight: blending weight of each of its cells, float32; the weights of all tiles sum to 1 in each cell.
    """

    box: tuple[slice, slice]
    cells: tuple[slice, slice]
    weight: F32


@dataclass(frozen=True)
class Tiling:
    """The tiles of a picture.

    Attributes:
        height, width: of the picture, px.
        size: side of the model's square, px, to which each tile is resized.
        side: of the tiles in px; None if the whole picture is one tile.
        cells: grid cells along a tile.
        shape: rows and columns of the grid.
        turn: rotation of a whole picture to its normalised pose; the grid is that of the unrotated picture.
    """

    height: int
    width: int
    size: int
    side: int | None
    cells: int
    shape: tuple[int, int]
    turn: Turn | None = None

    @classmethod
    def whole(cls, height: int, width: int, size: int, turn: Turn | None = None) -> Tiling:
        """The whole picture as one tile."""
        inner = Geometry.letterbox(height, width, size)
        return cls(height, width, size, None, size, (inner.inner_height, inner.inner_width), turn)

    @classmethod
    def squares(cls, height: int, width: int, size: int, side: int) -> Tiling:
        """Square tiles of `side` px, overlapping by at least a quarter and cropped to the picture.

        Returns the whole picture as one tile if it is not larger. Raises DataError if the tiles are too
        small.
        """
        longest = max(height, width)
        if side >= longest:
            return cls.whole(height, width, size)
        if side < smallest_side(height, width):
            raise DataError(
                f"tiles of {side} px are too small for a picture of {width} × {height} px: "
                f"give at least {smallest_side(height, width)}"
            )
        cells = min(size, side, GRID * side // longest)
        rows, columns = (max(1, round(length * cells / side)) for length in (height, width))
        return cls(height, width, size, side, cells, (rows, columns))

    @cached_property
    def tiles(self) -> tuple[Tile, ...]:
        """All tiles, row by row."""
        return tuple(
            Tile((rows, columns), (cell_rows, cell_columns), np.outer(down, across))
            for rows, cell_rows, down in self._spans(self.height, self.shape[0])
            for columns, cell_columns, across in self._spans(self.width, self.shape[1])
        )

    @property
    def chances(self) -> float:
        """Area of the picture in tiles without overlap, i.e. the number of chances of a false alarm."""
        if self.side is None:
            return 1.0
        return max(1.0, self.height / self.side) * max(1.0, self.width / self.side)

    @property
    def scored_size(self) -> float:
        """Side of the model's square in cells, the `size` argument of `ImageScore`.

        Larger than `cells` if the part was scaled down to be rotated.
        """
        return self.cells if self.turn is None else self.cells / self.turn.upright.scale

    def score(self, fused: F32, score: ImageScore) -> float:
        """The highest image score of all tiles of a fused map over the grid."""
        return max(score(fused[tile.cells], self.scored_size) for tile in self.tiles)

    def sample(self, most: int = 5) -> list[Tile]:
        """At most `most` tiles, evenly spaced over the picture."""
        last = len(self.tiles) - 1
        return [self.tiles[i] for i in dict.fromkeys(np.linspace(0, last, most).round().astype(int).tolist())]

    def around(self, row: int, column: int) -> Tile:
        """The tile centred at a cell, moved into the picture if necessary.

        Its weight is 1, with a cosine ramp to 0 over the outer quarter towards borders inside the picture.
        """
        spans = [
            self._place(centre - self.cells // 2, length, grid)
            for centre, length, grid in zip((row, column), (self.height, self.width), self.shape, strict=True)
        ]
        (rows, cell_rows), (columns, cell_columns) = spans
        down, across = _ramp(cell_rows, self.shape[0]), _ramp(cell_columns, self.shape[1])
        return Tile((rows, columns), (cell_rows, cell_columns), np.outer(down, across))

    def square(self, image: U8, tile: Tile) -> torch.Tensor:
        """A tile of a picture, uint8 [height, width, 3], in the model's square: float32 [3, size, size]."""
        if self.turn is not None:
            return self.turn.square(image, self.size)
        return to_square(image[tile.box], self.size)[0]

    def to_cells(self, maps: torch.Tensor, tile: Tile) -> torch.Tensor:
        """Resample maps of a tile's square, [..., size, size] in σ, to the tile's cells.

        The result is 0 where a rotated square does not show the picture (`inside`).
        """
        if self.turn is not None:
            maps = self.turn.back(torch.where(self.inside(tile).to(maps.device), maps, 0.0))
        rows, columns = (span.stop - span.start for span in tile.cells)
        return resize_maps(maps[(..., *self._geometry(tile).inner)], (rows, columns))

    def to_pixels(self, change: torch.Tensor, tile: Tile) -> torch.Tensor:
        """Resample a change of a tile's square, [..., size, size], to the tile's pixels, float32."""
        return self._geometry(tile).to_picture(change if self.turn is None else self.turn.back(change))

    def from_cells(self, cells: F32, tile: Tile) -> torch.Tensor:
        """Resample a map over the tile's cells to its square, float32 [size, size]."""
        square = torch.from_numpy(letterboxed(cells, self._geometry(tile)))
        return square if self.turn is None else self.turn.forth(square)

    def inside(self, tile: Tile) -> torch.Tensor:
        """Where the tile's square shows the picture, bool [size, size].

        In a rotated square, one place of the features' grid along the picture's border is excluded, since the
        features there depend on the mirrored padding.
        """
        shown = torch.zeros(self.size, self.size)
        shown[self._geometry(tile).inner] = 1
        if self.turn is not None:
            missing = 1 - self.turn.forth(shown)[None]
            shown = 1 - F.max_pool2d(missing, 2 * _RIM + 1, stride=1, padding=_RIM)[0]
        return shown > 0.5

    def ignored_cells(self, ignored: torch.Tensor) -> F32:
        """Share of each cell that is not judged, float32 on the grid.

        ignored: bool [s, s] over the square in which the model sees the whole picture (`Profile.ignored`).
        """
        whole = self if self.side is None else Tiling.whole(self.height, self.width, self.size)
        share = resize_maps(ignored.float(), (self.size, self.size))
        cells: F32 = resize_maps(whole.to_cells(share, whole.tiles[0]), self.shape).numpy()
        return cells.clip(0, 1)

    def _geometry(self, tile: Tile) -> Geometry:
        height, width = (span.stop - span.start for span in tile.box)
        return Geometry.letterbox(height, width, self.size)

    def _spans(self, length: int, grid: int) -> Iterator[tuple[slice, slice, F32]]:
        """Pixels, cells and weights [cells] of every tile along one axis."""
        if self.side is None or self.side >= length or self.cells >= grid:
            yield slice(0, length), slice(0, grid), np.ones(grid, dtype=np.float32)
            return
        step = self.cells * 3 // 4 - 1  # one less, so that the overlap is at least a quarter after rounding
        count = math.ceil((grid - self.cells) / step) + 1
        starts = np.linspace(0, grid - self.cells, count).round().astype(int).tolist()
        window = np.sin(np.pi * (np.arange(self.cells) + 0.5) / self.cells) ** 2  # raised cosine
        total = np.zeros(grid)
        for start in starts:
            total[start : start + self.cells] += window
        for start in starts:
            px, cells = self._place(start, length, grid)
            yield px, cells, (window / total[cells]).astype(np.float32)

    def _place(self, start: int, length: int, grid: int) -> tuple[slice, slice]:
        """Pixels and cells of the tile that starts at a cell, moved into the picture."""
        if self.side is None or self.side >= length or self.cells >= grid:
            return slice(0, length), slice(0, grid)
        start = min(max(start, 0), grid - self.cells)
        first = round(start * (length - self.side) / (grid - self.cells))
        return slice(first, first + self.side), slice(start, start + self.cells)


def letterboxed(cells: F32, geometry: Geometry) -> F32:
    """Place a map over the picture [h, w] in the model's square [size, size], padded by its edge values."""
    inner = resize_maps(cells, (geometry.inner_height, geometry.inner_width))
    below = geometry.size - geometry.top - geometry.inner_height
    right = geometry.size - geometry.left - geometry.inner_width
    return np.pad(inner, ((geometry.top, below), (geometry.left, right)), mode="edge")


def smallest_side(height: int, width: int) -> int:
    """Minimum side of tiles, px, for a picture of height × width."""
    return max(MIN_SIDE, math.ceil(max(height, width) * TILE_CELLS / GRID))


def _ramp(span: slice, grid: int) -> F32:
    """1, falling to 0 over the outer quarters except at the picture's border."""
    count = span.stop - span.start
    rising = np.sin(np.pi / 2 * np.clip((np.arange(count) + 0.5) / (count / 4), 0, 1)) ** 2
    ramp = np.ones(count)
    if span.start > 0:
        ramp *= rising
    if span.stop < grid:
        ramp *= rising[::-1]
    return ramp.astype(np.float32)
