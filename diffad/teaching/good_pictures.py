"""The good pictures of each category: found, read, turned upright, each different one once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
from diffad.teaching.statistics import ENOUGH

FEWEST = 8  # different good pictures of a category


# -- data ----------------------------------------------------------------------------------------------------


def normal_paths(sources: Sequence[str | Path]) -> dict[str, list[Path]]:
    """Normal training pictures by category, categories in their alphabet's order, each file once. Raises
    DataError if there are none or a category has fewer than FEWEST.
    """
    found: dict[str, list[Path]] = {}
    for sample in find_all(sources, "train"):
        found.setdefault(sample.category, []).append(sample.image)
    for category, paths in found.items():
        _check_enough(len(paths), f"{category} has {len(paths)} normal pictures")
    return dict(sorted(found.items()))


def _check_enough(count: int, said: str) -> None:
    if count < FEWEST:
        raise DataError(f"{said}; at least {FEWEST} are needed, {ENOUGH} or more are better")


def readable(
    paths: Mapping[str, Sequence[Path]], skip: bool, tell: Callable[[str], None]
) -> tuple[dict[str, list[Path]], dict[str, int | None]]:
    """Those that can be read, and `survey`'s bits. Raises DataError that names the others, unless they are to
    be skipped and enough are left.
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
    """Their names, each after as many of its folders as tell it from the others."""
    names, deep = [path.name for path in paths], 1
    while (twice := Counter(names) - Counter(set(names))) and deep < max(len(path.parts) for path in paths):
        deep += 1
        names = [
            Path(*path.parts[-deep:]).as_posix() if name in twice else name
            for name, path in zip(names, paths)
        ]
    return names


def load_normal(
    paths: Mapping[str, Sequence[Path]], size: int, bits: Mapping[str, int | None] | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Upright | None], dict[str, Different]]:
    """`normal_paths`' pictures that differ, uint8 [n, 3, size, size], where each lies in the model's square,
    not its padding, bool [n, size, size], how they are turned upright if their parts lie at any angle, and
    which ones they are. bits: by category, as `data.read_image` takes them. Raises DataError for one that
    cannot be read, or if fewer than FEWEST differ.
    """
    pictures, inside, uprights, different = {}, {}, {}, {}
    for category, some in paths.items():
        depth = (bits or {}).get(category)
        pictures[category] = torch.empty(len(some), 3, size, size, dtype=torch.uint8)
        inside[category] = torch.empty(len(some), size, size, dtype=torch.bool)
        for picture, there, path in zip(pictures[category], inside[category], some):
            _read_into(picture, there, path, depth)
        different[category] = each = Different.among(some, thumbnails(pictures[category]))
        if each.copies:
            said = f"{category} has {len(some)} normal pictures, but only {len(each.paths)} different ones"
            _check_enough(len(each.paths), f"{said} ({pairs_in_words(each.copies)})")
            some, pictures[category], inside[category] = (
                each.paths, pictures[category][each.numbers], inside[category][each.numbers]
            )  # fmt: skip
        uprights[category] = _turn_upright(pictures[category], inside[category], some, depth)
    return pictures, inside, uprights, different


def read_at(paths: Sequence[Path], size: int, bits: int | None) -> tuple[Tensor, Tensor, Upright | None]:
    """One category's pictures, where they lie and how they are turned, as `load_normal` gives them."""
    pictures = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    inside = torch.empty(len(paths), size, size, dtype=torch.bool)
    for picture, there, path in zip(pictures, inside, paths):
        _read_into(picture, there, path, bits)
    return pictures, inside, _turn_upright(pictures, inside, paths, bits)


def _turn_upright(
    pictures: Tensor, inside: Tensor, paths: Sequence[Path], bits: int | None
) -> Upright | None:
    """How these are turned upright; in place, if they are."""
    upright = Upright.fit(pictures)
    if upright is not None:
        for picture, there, path in zip(pictures, inside, paths):
            turn = upright.turn(to_float(picture, picture.device))
            _read_into(picture, there, path, bits, turn)
    return upright


def repetitions(
    different: Mapping[str, Different], sources: Sequence[str | Path], size: int,
    bits: Mapping[str, int | None],
) -> dict[str, list[str]]:
    """Sentences by category about pictures that repeat each other, and about test pictures beside them that
    are among the training pictures.
    """
    try:
        test = [sample for sample in find_all(sources, "test") if sample.split == "test"]
    except DataError:  # there are none, or nothing certain: this is training
        test = []
    found: dict[str, list[str]] = {}
    for name, each in different.items():
        if count := len(each.copies):
            given = len(each.paths) + count
            found.setdefault(name, []).append(
                f"{count} of {given} training pictures show what another one shows, and were left out: "
                f"{pairs_in_words(each.copies)}."
            )
        beside = [sample.image for sample in test if sample.category == name]
        paths, looks = thumbnails_of(beside, size, bits[name])
        first = first_alike(looks, each.looks)
        if both := [(path, each.paths[number]) for path, number in zip(paths, first) if number >= 0]:
            found.setdefault(name, []).append(
                f"{len(both)} of {len(paths)} test pictures are also among the training pictures, so that "
                f"measuring on them flatters: {pairs_in_words(both)}."
            )
    return found


def _read_into(
    picture: Tensor, inside: Tensor, path: Path, bits: int | None, turn: Turn | None = None
) -> None:
    image = read_image(path, bits)
    tiling = Tiling.whole(*image.shape[:2], picture.shape[-1], turn)
    (tile,) = tiling.tiles
    picture.copy_(to_uint8(tiling.square(image, tile)))
    inside.copy_(tiling.inside(tile))


def split_held_out(pictures: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """(for training, held out) of the first dimension; 4 to 48 pictures are held out, the same ones in every
    run: with one's own seed, a run that goes on from a checkpoint would train on what that one held out.
    """
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
    held = min(48, max(4, round(share * len(pictures))))
    return pictures[order[held:]], pictures[order[:held]]
