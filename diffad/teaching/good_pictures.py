"""The good pictures of each category: found, read, each different one once, turned upright."""

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

FEWEST = 8  # different good pictures of a category


def normal_paths(sources: Sequence[str | Path]) -> dict[str, list[Path]]:
    """Normal training pictures by category, sorted by name, each file once.

    Raises DataError if there are none or a category has fewer than FEWEST.
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
    """The pictures that can be read, and their bits (`survey`), by category.

    Raises DataError that names the others, unless they are to be skipped and enough are left.
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
    """Names of files, each with as many of its folders as distinguish it from the others."""
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

    paths, bits: the files, and the bits of their values as `read_image` takes them. pictures: uint8
    [n, 3, s, s]. inside: where each lies in the square and not its padding, bool [n, s, s]. upright: how they
    are turned, if their parts lie at any angle.
    """

    paths: list[Path]
    bits: int | None
    pictures: Tensor
    inside: Tensor
    upright: Upright | None = None

    @staticmethod
    def read(paths: Sequence[Path], size: int, bits: int | None) -> GoodPictures:
        """All of them as they lie. Raises DataError for one that cannot be read."""
        pictures = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
        inside = torch.empty(len(paths), size, size, dtype=torch.bool)
        for picture, where, path in zip(pictures, inside, paths):
            _read_into(picture, where, path, bits)
        return GoodPictures(list(paths), bits, pictures, inside)

    @property
    def size(self) -> int:
        return self.pictures.shape[-1]

    def at(self, size: int) -> GoodPictures:
        """Read again at another size, turned upright."""
        return GoodPictures.read(self.paths, size, self.bits).turned_upright()

    def some(self, numbers: Sequence[int], paths: list[Path]) -> GoodPictures:
        """Those with these numbers, whose files are `paths`."""
        return replace(self, paths=paths, pictures=self.pictures[numbers], inside=self.inside[numbers])

    def turned_upright(self) -> GoodPictures:
        """Turned in place, if the parts lie at any angle."""
        upright = Upright.fit(self.pictures)
        if upright is not None:
            for picture, where, path in zip(self.pictures, self.inside, self.paths):
                turn = upright.turn(to_float(picture, picture.device))
                _read_into(picture, where, path, self.bits, turn)
        return replace(self, upright=upright)


def load_normal(
    paths: Mapping[str, Sequence[Path]], size: int, bits: Mapping[str, int | None] | None = None
) -> tuple[dict[str, GoodPictures], dict[str, Different]]:
    """Read `normal_paths`' pictures and take each different one once, by category.

    Args:
        size: px a side of the model's square.
        bits: by category, as `read_image` takes them.

    Raises:
        DataError: if a picture cannot be read, or fewer than FEWEST of a category differ.
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
    """Sentences by category about pictures that repeat each other, and about test pictures beside them that
    are among the training pictures.
    """
    try:
        test = [sample for sample in find_all(sources, "test") if sample.split == "test"]
    except DataError:  # there are none, or nothing certain: this is training
        test = []
    found: dict[str, list[str]] = {name: [] for name in different}
    for name, each in different.items():
        if count := len(each.copies):
            found[name].append(
                f"{count} of {len(each.paths) + count} training pictures show what another one shows, and "
                f"were left out: {pairs_in_words(each.copies)}."
            )
        beside = [sample.image for sample in test if sample.category == name]
        paths, looks = thumbnails_of(beside, size, bits[name])
        first = first_alike(looks, each.looks)
        if both := [(path, each.paths[number]) for path, number in zip(paths, first) if number >= 0]:
            found[name].append(
                f"{len(both)} of {len(paths)} test pictures are also among the training pictures, so that "
                f"measuring on them flatters: {pairs_in_words(both)}."
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
    """Split along the first dimension: (for training, held out); 4 to 48 pictures are held out.

    They are the same ones in every run, whatever its seed: otherwise a run that starts from a checkpoint
    would train on what that one held out.
    """
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
    held = min(48, max(4, round(share * len(pictures))))
    return pictures[order[held:]], pictures[order[:held]]
