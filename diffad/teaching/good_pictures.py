"""Find and read the good pictures of each category, drop duplicates, and turn the parts upright."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from diffad.method.pose import Turn, Upright
from diffad.method.tiling import Tiling
from diffad.pictures.duplicates import Different, first_alike, pairs_in_words, thumbnails, thumbnails_of
from diffad.pictures.geometry import to_float, to_uint8
from diffad.pictures.masks import survey
from diffad.pictures.reading import DataError, read_image
from diffad.pictures.samples import Sample, all_unusable, find_all
from diffad.teaching.forecast import ENOUGH

FEWEST = 8  # different good pictures that a category needs


def normal_paths(sources: Sequence[str | Path]) -> dict[str, list[Path]]:
    """Find the normal training pictures by category, sorted by name, each file once.

    Raises:
        DataError: there are none, or a category has fewer than FEWEST.
    """
    found: dict[str, list[Path]] = {}
    for sample in find_all(sources, "train"):
        found.setdefault(sample.category, []).append(sample.image)
    for category, paths in found.items():
        _check_enough(len(paths), f"{category} has {len(paths)} normal pictures")
    return dict(sorted(found.items()))


def _check_enough(count: int, counted: str) -> None:
    if count < FEWEST:
        raise DataError(f"{counted}; at least {FEWEST} are needed, {ENOUGH} or more are better")


def readable(
    paths: Mapping[str, Sequence[Path]], skip: bool, tell: Callable[[str], None]
) -> tuple[dict[str, list[Path]], dict[str, int | None]]:
    """Check that pictures can be read.

    Args:
        paths: by category.
        skip: leave out unreadable pictures instead of raising an error.
        tell: called with messages about pictures left out and bit depths.

    Returns:
        The readable pictures and their bits (`masks.survey`), both by category.

    Raises:
        DataError: pictures cannot be read (it names them all), or too few are left.
    """
    bits, unusable = survey({name: [Sample(path, name) for path in some] for name, some in paths.items()})
    if unusable and not skip:
        advice = "replace them, or leave them out with --skip-unreadable"
        raise DataError(all_unusable(unusable.values(), advice))
    for reason in unusable.values():
        tell(f"left out: {reason}")
    kept = {name: [path for path in some if path not in unusable] for name, some in paths.items()}
    for name, some in kept.items():
        _check_enough(len(some), f"{name} has {len(some)} normal pictures that can be read")
        if bits[name] is not None:
            tell(f"{name}: {bits[name]}-bit pictures")
    return kept, bits


def told_apart(paths: Sequence[Path]) -> list[str]:
    """File names, with as many parent folders as are needed to tell them apart."""
    names, depth = [path.name for path in paths], 1
    while (twice := Counter(names) - Counter(set(names))) and depth < max(len(path.parts) for path in paths):
        depth += 1
        names = [
            Path(*path.parts[-depth:]).as_posix() if name in twice else name
            for name, path in zip(names, paths)
        ]
    return names


@dataclass(frozen=True)
class GoodPictures:
    """The good pictures of one category, in the model's square.

    Attributes:
        paths: the files.
        bits: of their values, as for `read_image`.
        pictures: uint8 [n, 3, s, s].
        inside: where the pictures are without padding, bool [n, s, s].
        upright: how to turn the parts upright; None if they always have the same orientation.
    """

    paths: list[Path]
    bits: int | None
    pictures: Tensor
    inside: Tensor
    upright: Upright | None = None

    @staticmethod
    def read(paths: Sequence[Path], size: int, bits: int | None) -> GoodPictures:
        """Read pictures without turning them. Raises DataError if one cannot be read."""
        pictures = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
        inside = torch.empty(len(paths), size, size, dtype=torch.bool)
        for picture, where, path in zip(pictures, inside, paths):
            _read_into(picture, where, path, bits)
        return GoodPictures(list(paths), bits, pictures, inside)

    @property
    def size(self) -> int:
        return self.pictures.shape[-1]

    def at(self, size: int) -> GoodPictures:
        """The same pictures, read again at another size and turned upright."""
        return GoodPictures.read(self.paths, size, self.bits).turned_upright()

    def some(self, numbers: Sequence[int], paths: list[Path]) -> GoodPictures:
        """The pictures with these numbers, whose files are `paths`."""
        return replace(self, paths=paths, pictures=self.pictures[numbers], inside=self.inside[numbers])

    def turned_upright(self) -> GoodPictures:
        """Turn the pictures upright, in place, if the parts have no fixed orientation."""
        upright = Upright.fit(self.pictures)
        if upright is not None:
            for picture, where, path in zip(self.pictures, self.inside, self.paths):
                turn = upright.turn(to_float(picture, picture.device))
                _read_into(picture, where, path, self.bits, turn)
        return replace(self, upright=upright)


def load_normal(
    paths: Mapping[str, Sequence[Path]], size: int, bits: Mapping[str, int | None] | None = None
) -> tuple[dict[str, GoodPictures], dict[str, Different]]:
    """Read the pictures of `normal_paths`, without duplicates.

    Args:
        paths: by category.
        size: side of the model's square, px.
        bits: by category, as for `read_image`.

    Returns:
        By category the pictures, and what was found about duplicates.

    Raises:
        DataError: a picture cannot be read, or a category has fewer than FEWEST different ones.
    """
    read, different = {}, {}
    for category, some in paths.items():
        pictures = GoodPictures.read(some, size, (bits or {}).get(category))
        different[category] = each = Different.among(some, thumbnails(pictures.pictures))
        if each.copies:
            counted = f"{category} has {len(some)} normal pictures, but only {len(each.paths)} different ones"
            _check_enough(len(each.paths), f"{counted} ({pairs_in_words(each.copies)})")
            pictures = pictures.some(each.numbers, each.paths)
        read[category] = pictures.turned_upright()
    return read, different


def repetitions(
    different: Mapping[str, Different],
    sources: Sequence[str | Path],
    size: int,
    bits: Mapping[str, int | None],
) -> dict[str, list[str]]:
    """Sentences about duplicates, by category: among the training pictures, and between training and test.

    Args:
        different: the training pictures, from `load_normal`.
        sources: the folders, where test pictures are looked for.
        size: side of the model's square, px.
        bits: by category, as for `read_image`.
    """
    try:
        test = [sample for sample in find_all(sources, "test") if sample.split == "test"]
    except DataError:  # none are needed for training
        test = []
    found: dict[str, list[str]] = {name: [] for name in different}
    for name, each in different.items():
        if count := len(each.copies):
            found[name].append(
                f"{count} of {len(each.paths) + count} training pictures are duplicates of others and were "
                f"left out: {pairs_in_words(each.copies)}."
            )
        beside = [sample.image for sample in test if sample.category == name]
        paths, looks = thumbnails_of(beside, size, bits[name])
        first = first_alike(looks, each.looks)
        if both := [(path, each.paths[number]) for path, number in zip(paths, first) if number >= 0]:
            found[name].append(
                f"{len(both)} of {len(paths)} test pictures are also among the training pictures, so results "
                f"measured on them are too good: {pairs_in_words(both)}."
            )
    return found


def _read_into(
    picture: Tensor, inside: Tensor, path: Path, bits: int | None, turn: Turn | None = None
) -> None:
    image = read_image(path, bits)
    height, width = image.shape[:2]
    tiling = Tiling.whole(height, width, picture.shape[-1], turn)
    (tile,) = tiling.tiles
    picture.copy_(to_uint8(tiling.square(image, tile)))
    inside.copy_(tiling.inside(tile))


def split_held_out(pictures: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Split along the first dimension into pictures for training and 4 to 48 that are held out.

    The split does not depend on the run's seed: otherwise a run that starts from a checkpoint would train on
    pictures that were held out before.
    """
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
    held = min(48, max(4, round(share * len(pictures))))
    return pictures[order[held:]], pictures[order[:held]]
