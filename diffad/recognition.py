"""Recognition of a picture's category, and choice of its bit depth, tiling and pose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from diffad.method.features import FeatureExtractor
from diffad.method.profile import Profile
from diffad.method.scoring import Embedding
from diffad.method.tiling import Tiling, smallest_side
from diffad.pictures import quality
from diffad.pictures.arrays import U8
from diffad.pictures.depth import DEPTHS
from diffad.pictures.geometry import to_square, to_uint8
from diffad.pictures.reading import DataError, Decoded

TileSide = int | Literal["auto"] | None  # px; None inspects the picture whole
Turn = Callable[[], AbstractContextManager[None]]  # entered for each use of the networks
# Limit of the median squared Mahalanobis distance per dimension: about 0.7 for parts, good or defective; 3 or
# more for other objects and for parts at another scale.
FITS = 2.0
_FITS_WELL = 1.0  # average distance of good pictures
_WORTH_TILING = 0.2  # minimum gain of tiles over the whole picture, log-likelihood per dimension and place


@dataclass(frozen=True)
class Look:
    """How well a sample of tiles fits the categories.

    Attributes:
        tiling: the tiling examined.
        category: the category that fits best.
        likelihood: median log-likelihood of the tiles under that category.
        gain: log-likelihood ratio of the category to N(0, I), the distribution of standardised features of
        any
            picture; comparable across sizes and bit depths, unlike `likelihood`.
        distance: median squared Mahalanobis distance.
        squares: the tiles, [b, 3, size, size].
        embedding: of the tiles.
    """

    tiling: Tiling
    category: str
    likelihood: float
    gain: float
    distance: float
    squares: Tensor
    embedding: Embedding


@dataclass(frozen=True)
class Recognition:
    """Finds the category, size, bit depth and tiling that fit a picture best, from a few of its tiles.

    Attributes:
        profiles: by category, on `device`.
        extractor: computes the features.
        size: side of the square that the network was trained on, px.
        device: where to compute.
    """

    profiles: Mapping[str, Profile]
    extractor: FeatureExtractor
    size: int
    device: torch.device

    def size_of(self, category: str | None) -> int:
        """Side of the model's square for a category, px; for None, that of the network's training."""
        profile = self.profiles.get(category or "")
        return self.size if profile is None or profile.size is None else profile.size

    def whole(self, image: U8, category: str) -> Tiling:
        """Tiling of a whole picture, uint8 [H, W, 3], of a category, rotated if the category requires it."""
        upright, size = self.profiles[category].upright, self.size_of(category)
        turn = None if upright is None else upright.turn(to_square(image, size)[0])
        return Tiling.whole(image.shape[0], image.shape[1], size, turn)

    def bits(self, category: str | None, found: int | None) -> int | None:
        """Bit depth of a category's camera.

        That of its training pictures; if they were 8-bit files or the category is unknown, that `found` in
        a set of pictures (`reading.common_bits`).
        """
        profile = self.profiles.get(category or "")
        return found if profile is None else profile.bits or found

    def look(
        self,
        decoded: Decoded,
        names: Sequence[str],
        tile: TileSide,
        bits: int | None,
        batch_bits: int | None,
        turn: Turn,
    ) -> tuple[Look, U8, int]:
        """Find the best tiling and category, with each category's bit depth and size.

        Args:
            decoded: the picture.
            names: the categories to consider.
            tile: as in `Inspector.inspect`.
            bits, batch_bits: as in `Inspector.inspect`.
            turn: entered for each use of the networks.

        Returns:
            The best look, and the image and bit depth that it was made with.

        Raises:
            DataError: the picture cannot be tiled as requested.
        """
        by_reading: dict[tuple[int, int], list[str]] = {}
        for name in names:
            used = decoded.bits(bits or self.bits(name, batch_bits))
            by_reading.setdefault((used, self.size_of(name)), []).append(name)
        looks: list[tuple[Look, U8, int]] = []
        refused: DataError | None = None
        for (used, _), some in by_reading.items():
            image = decoded.image(used)
            try:
                looks.append((self.best_look(image, some, tile, turn), image, used))
            except DataError as error:  # these categories do not allow tiles
                refused = error
        best = max(looks, key=lambda each: each[0].gain, default=None)
        if refused is not None and (best is None or best[0].distance >= FITS):
            raise refused
        assert best is not None  # a model knows at least one category
        return best

    def reading_notes(
        self, decoded: Decoded, used: int, category: str, bits: int | None, batch_bits: int | None
    ) -> tuple[str, ...]:
        """Notes on the bit depth with which a picture was read."""
        expected = bits or self.bits(category, batch_bits)
        if decoded.is_plain or used == (expected or DEPTHS[-1]):
            return ()
        value = f"its highest value is {decoded.highest:.6g}"
        if expected is None:
            return (
                f"Read as {used} bits, since {value}: if your camera has more, inspect the picture in a "
                "batch with brighter ones, or say how many (bits, --bits).",
            )
        whose = f"the {expected} bits expected"
        if not bits and self.profiles[category].bits:
            whose = f"the {expected} bits of the pictures that {category} was trained on"
        return (f"Read as {used} bits, since {value}, beyond {whose}: it looks darker than those.",)

    def quality_notes(self, look: Look) -> tuple[str, ...]:
        """Notes on image quality outside the range of the good pictures (`pictures.quality`)."""
        known = self.profiles[look.category].quality
        if known is None or look.distance >= FITS:  # not a known part, which has a note of its own
            return ()
        tiles = zip(to_uint8(look.squares).permute(0, 2, 3, 1).cpu().numpy(), look.tiling.sample())
        values = [quality.measured(square, look.tiling.inside(tile).numpy()) for square, tile in tiles]
        note = quality.note(np.median(values, axis=0), known)
        return (note,) if note else ()

    def best_look(self, image: U8, names: Sequence[str], tile: TileSide, turn: Turn) -> Look:
        """Choose the tiling, and one of several categories of the same size, by how well a few tiles fit."""
        height, width = image.shape[:2]
        size = self.size_of(names[0])
        plain = [
            name for name in names if self.profiles[name].upright is None
        ]  # no pose, so tiles are possible
        if isinstance(tile, int) and tile < max(height, width):
            self._check_not_turned(image, names, plain, turn)
            return self._look_at(image, plain, Tiling.squares(height, width, size, tile), turn)
        whole = self._look_at_whole(image, names, turn)
        if tile != "auto" or whole.distance < _FITS_WELL or not plain:
            return whole
        best = whole
        for side in _sides(height, width, size):
            tiled = self._look_at(image, plain, Tiling.squares(height, width, size, side), turn)
            ahead = _WORTH_TILING if best is whole else 0.0
            if tiled.distance < FITS and tiled.likelihood > best.likelihood + ahead:
                best = tiled
        return best

    def _check_not_turned(self, image: U8, names: Sequence[str], plain: Sequence[str], turn: Turn) -> None:
        """Raise DataError if a picture to be tiled shows a category whose parts are rotated (not `plain`)."""
        if len(plain) == len(names):
            return
        category = names[0]
        if len(names) > 1:
            whole = self._look_at_whole(image, names, turn)
            if plain and (whole.category in plain or whole.distance >= FITS):
                return
            category = whole.category
        raise DataError(
            f"{category} is turned upright for inspection, which is not possible for tiles: inspect it whole"
        )

    def _look_at_whole(self, image: U8, names: Sequence[str], turn: Turn) -> Look:
        """Best look at the whole picture, unrotated for `plain` categories and rotated for the others.

        The latter are only tried if no plain category fits well.
        """
        plain = [name for name in names if self.profiles[name].upright is None]
        as_it_is = Tiling.whole(image.shape[0], image.shape[1], self.size_of(names[0]))
        best = self._look_at(image, plain, as_it_is, turn) if plain else None
        for name in names:
            if name not in plain and (best is None or best.distance >= _FITS_WELL):
                look = self._look_at(image, [name], self.whole(image, name), turn)
                best = look if best is None or look.likelihood > best.likelihood else best
        assert best is not None  # a model knows at least one category
        return best

    @torch.no_grad()
    def _look_at(self, image: U8, names: Sequence[str], tiling: Tiling, turn: Turn) -> Look:
        squares = torch.stack([tiling.square(image, tile) for tile in tiling.sample()]).to(self.device)
        with turn():
            embedding = self.extractor.embed(squares)
            gaussians = {name: self.profiles[name].gaussian for name in names}
            likelihoods = {
                name: float(gaussian.log_likelihood(embedding.features).mean(dim=(1, 2)).median())
                for name, gaussian in gaussians.items()
            }
            name = max(likelihoods, key=likelihoods.__getitem__)
            anything = -0.5 * gaussians[name].project(embedding.features).square().mean(dim=1)
            distances = gaussians[name].squared_mahalanobis(embedding.features).flatten(1)
            distance = float(distances.median(dim=1).values.median())
        gain = likelihoods[name] - float(anything.mean(dim=(1, 2)).median())
        return Look(tiling, name, likelihoods[name], gain, distance, squares, embedding)


def _sides(height: int, width: int, size: int) -> list[int]:
    """Candidate sides of tiles, px: the model's size, doubled repeatedly, and long pictures' short side."""
    short, longest = sorted((height, width))
    sides = [size << k for k in range(16) if 2 * (size << k) <= short]
    if longest > 2 * short:
        sides.append(short)
    smallest = smallest_side(height, width)
    return sorted({max(side, smallest) for side in sides if 2 * side >= smallest})
