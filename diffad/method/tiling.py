"""How a picture is cut up for the model: whole, in a letterbox, or in overlapping squares with blended maps.

Maps lie on a grid over the picture alone. For a picture inspected whole it is the rectangle that the picture
fills in the model's square. For a tiled one it has at most `GRID` cells a side, so that memory stays bounded,
and at least `TILE_CELLS` cells (or one for each pixel) along a tile: maps are smoothed over σ = 1/64 of a
tile, and a coarser grid would flatten their peaks. Both together limit how small tiles may be.
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
from diffad.pictures.arrays import F32, U8, Array
from diffad.pictures.geometry import Geometry, resize_maps, to_square
from diffad.pictures.reading import MIN_SIDE, DataError

GRID = 1024  # cells; longest side of a tiled picture's maps
_RIM = 8  # px of the square, a place of the features' grid
TILE_CELLS = 64  # the fewest cells along a tile, unless it has fewer pixels


@dataclass(frozen=True)
class Tile:
    """One piece of a picture.

    box: its rows and columns in the picture; cells: the same in the grid. weight: float32 over its cells; the
    weights of all tiles of a picture sum to one in every cell.
    """

    box: tuple[slice, slice]
    cells: tuple[slice, slice]
    weight: F32


@dataclass(frozen=True)
class Tiling:
    """The tiles of a picture.

    Attributes:
        height, width: of the picture, px.
        size: px a side of the model's square, to which each tile is brought.
        side: of the tiles in px; None if the whole picture is one tile.
        cells: of the grid, along a tile.
        shape: of the grid.
        turn: what a whole picture is turned by for the model; the grid is that of the picture as it is.
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
        """Squares of `side` px that overlap by a quarter or more, cut where the picture is narrower.

        The whole picture if one square covers it. Raises DataError for tiles too small for the grid.
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
        """All of them, row by row."""
        return tuple(
            Tile((rows, columns), (cell_rows, cell_columns), np.outer(down, across))
            for rows, cell_rows, down in self._spans(self.height, self.shape[0])
            for columns, cell_columns, across in self._spans(self.width, self.shape[1])
        )

    @property
    def chances(self) -> float:
        """Area of the picture in tiles, overlap not counted: so many chances it has for a false alarm."""
        if self.side is None:
            return 1.0
        return max(1.0, self.height / self.side) * max(1.0, self.width / self.side)

    @property
    def scored_size(self) -> float:
        """Cells along the model's square, from which a score derives how much of it a map covers.

        More than `cells` if the picture was scaled down in the square to be turned.
        """
        return self.cells if self.turn is None else self.cells / self.turn.upright.scale

    def score(self, fused: F32, score: ImageScore) -> float:
        """The image score of the worst tile of a map over the grid."""
        return max(score(fused[tile.cells], self.scored_size) for tile in self.tiles)

    def sample(self, most: int = 5) -> list[Tile]:
        """A handful of tiles from all over the picture, always the same."""
        last = len(self.tiles) - 1
        return [self.tiles[i] for i in dict.fromkeys(np.linspace(0, last, most).round().astype(int).tolist())]

    def around(self, row: int, column: int) -> Tile:
        """The tile with this cell in its middle, or as near to it as the picture allows.

        Its weight is one, except for a cosine ramp along the quarter next to borders inside the picture.
        """
        spans = [
            self._place(centre - self.cells // 2, length, grid)
            for centre, length, grid in zip((row, column), (self.height, self.width), self.shape, strict=True)
        ]
        (rows, cell_rows), (columns, cell_columns) = spans
        down, across = _ramp(cell_rows, self.shape[0]), _ramp(cell_columns, self.shape[1])
        return Tile((rows, columns), (cell_rows, cell_columns), np.outer(down, across))

    def square(self, image: U8, tile: Tile) -> torch.Tensor:
        """The tile of uint8 [height, width, 3] in the model's square: float32 [3, size, size] in [−1, 1]."""
        if self.turn is not None:
            return self.turn.square(image, self.size)
        return to_square(image[tile.box], self.size)[0]

    def to_cells(self, maps: torch.Tensor, tile: Tile) -> torch.Tensor:
        """Maps of a tile's square [..., size, size] in σ → [..., its rows of cells, its columns of cells].

        0 where a turned square does not show the picture (`inside`).
        """
        if self.turn is not None:
            maps = self.turn.back(torch.where(self.inside(tile).to(maps.device), maps, 0.0))
        rows, columns = (span.stop - span.start for span in tile.cells)
        return resize_maps(maps[(..., *self._geometry(tile).inner)], (rows, columns))

    def to_pixels(self, change: torch.Tensor, tile: Tile) -> torch.Tensor:
        """A change of a tile's square [..., size, size] → of its pixels, float32 [..., rows, columns]."""
        return self._geometry(tile).to_picture(change if self.turn is None else self.turn.back(change))

    def from_cells(self, cells: F32, tile: Tile) -> torch.Tensor:
        """A map over the tile's cells in its square, float32 [size, size]."""
        square = torch.from_numpy(letterboxed(cells, self._geometry(tile)))
        return square if self.turn is None else self.turn.forth(square)

    def inside(self, tile: Tile) -> torch.Tensor:
        """Where the tile's square shows the picture, bool [size, size].

        In a turned square the picture's rim does not count, up to a place of the features' grid: there the
        backbone sees the mirror image beyond it.
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

    def _spans(self, length: int, grid: int) -> Iterator[tuple[slice, slice, Array]]:
        """Along one axis: px, cells and weights [cells] of every tile."""
        if self.side is None or self.side >= length or self.cells >= grid:
            yield slice(0, length), slice(0, grid), np.ones(grid, dtype=np.float32)
            return
        step = self.cells * 3 // 4 - 1  # one cell less, for rounding: the overlap stays a quarter
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
        """Px and cells of the tile that starts at a cell, moved into the picture."""
        if self.side is None or self.side >= length or self.cells >= grid:
            return slice(0, length), slice(0, grid)
        start = min(max(start, 0), grid - self.cells)
        first = round(start * (length - self.side) / (grid - self.cells))
        return slice(first, first + self.side), slice(start, start + self.cells)


def letterboxed(cells: F32, geometry: Geometry) -> F32:
    """A map over the picture alone [h, w] in the model's square [size, size], its edge repeated around it."""
    inner = resize_maps(cells, (geometry.inner_height, geometry.inner_width))
    below = geometry.size - geometry.top - geometry.inner_height
    right = geometry.size - geometry.left - geometry.inner_width
    return np.pad(inner, ((geometry.top, below), (geometry.left, right)), mode="edge")


def smallest_side(height: int, width: int) -> int:
    """The smallest side of tiles, in px, for a picture of height × width."""
    return max(MIN_SIDE, math.ceil(max(height, width) * TILE_CELLS / GRID))


def _ramp(span: slice, grid: int) -> F32:
    """One, falling to zero along the outer quarters that do not lie on the picture's border."""
    count = span.stop - span.start
    rising = np.sin(np.pi / 2 * np.clip((np.arange(count) + 0.5) / (count / 4), 0, 1)) ** 2
    ramp = np.ones(count)
    if span.start > 0:
        ramp *= rising
    if span.stop < grid:
        ramp *= rising[::-1]
    return ramp.astype(np.float32)
