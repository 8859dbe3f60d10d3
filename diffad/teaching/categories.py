"""Learn a category with a trained network: its size, its statistics and its unusual pictures."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from diffad.checkpoint import Checkpoint
from diffad.method.image_score import unusual
from diffad.method.profile import Profile
from diffad.pictures.plots import contact_sheet
from diffad.teaching.good_pictures import GoodPictures, split_held_out, told_apart
from diffad.teaching.sizes import find_size, in_words
from diffad.teaching.state import Run
from diffad.teaching.statistics import fit_profile

_FOREIGN = 1e-8  # a picture whose score so small a share of good pictures would reach is left out
_MOST_FOREIGN = (
    0.2  # if a larger share of the pictures were to be left out, all are kept: several kinds of part
)
_SHOWN, _LONGEST_NAME = 12, 32  # at most: unusual pictures on a sheet, characters of a name under each


class Category(NamedTuple):
    """A category's profile, and good pictures with which to test it under changes.

    Attributes:
        profile: the fitted profile.
        judged: the test pictures: files and their bits.
        unseen: whether neither the network nor the profile has seen these pictures.
    """

    profile: Profile
    judged: list[tuple[Path, int | None]]
    unseen: bool


def learn_category(
    run: Run, base: Checkpoint | None, name: str, good: GoodPictures, repeated: list[str], out: Path,
    tell: Callable[[str], None],
) -> Category:  # fmt: skip
    """Fit a category's profile for the network of a run.

    Writes <stem of out>.<name>.unusual.png if good pictures are unusual.

    Args:
        run: the training.
        base: the checkpoint that the run started from, if any.
        name: the category.
        good: its good pictures.
        repeated: sentences about duplicate pictures, kept in the forecast.
        out: the checkpoint's file.
        tell: called with messages for the user.
    """
    config = run.config
    used, held = split_held_out(torch.arange(len(good.paths)), config.held_out)
    judged = [(good.paths[i], good.bits) for i in held[: config.stressed]]
    aside = config.stressed if len(held) >= 3 * config.stressed else 0
    learned_from = learned_before(base, name)
    sizes = {}
    if config.size is None:
        sizes = find_size(run.network, run.extractor, run.schedule, good.paths, good.upright, good.bits)
    if sizes:
        tell(in_words(name, sizes))
        if sizes["size"] != good.size:
            good = good.at(sizes["size"])
    order = torch.cat([held[aside:], used])
    plain = config.steps == 0 and learned_from is None
    profile, odd, left_out = _fitted(
        run, good.pictures[used], good.pictures[held[aside:]], good.inside[order], plain
    )
    names = told_apart(good.paths)
    names = [names[i] for i in order]
    if odd or left_out:
        sheet = out.with_name(f"{out.stem}.{name}.unusual.png")
        _show(sheet, good.pictures[order], names, odd | left_out, left_out)
        tell(f"{name}: its unusual good pictures are shown in {sheet}.")
    forecast = {
        **profile.forecast,
        "unusual": {names[i]: score for i, score in odd.items()},
        "left_out": {names[i]: score for i, score in left_out.items()},
        "duplicates": repeated,
    }
    if sizes:
        forecast["sizes"] = sizes
    profile = replace(profile, forecast=forecast, upright=good.upright, bits=good.bits)
    return Category(profile, judged, bool(aside) and learned_from in (None, len(good.paths)))


def learned_before(base: Checkpoint | None, category: str) -> int | None:
    """The number of pictures of a category that the network of `base` was trained on; 0 if unknown.

    None if it was never trained on the category, even if the checkpoint has statistics of it. If the number
    equals that of the pictures at hand, the same pictures were held out then.
    """
    if base is None or category not in base.profiles or base.profiles[category].plain is not None:
        return None
    return pictures_in(base.provenance).get(category, 0)


def pictures_in(provenance: Mapping[str, object]) -> dict[str, int]:
    """The number of good training pictures by category, as far as a model's provenance states it."""
    data = provenance.get("data")
    known = data.items() if isinstance(data, dict) else ()
    return {str(name): count for name, count in known if isinstance(count, int)}


def _fitted(
    run: Run, used: Tensor, held: Tensor, inside: Tensor, plain: bool
) -> tuple[Profile, dict[int, float], dict[int, float]]:
    """Fit a profile, leaving out pictures that hardly belong to the others, such as a defective part.

    If many pictures stand out, none is left out.

    Args:
        used, held: pictures that the network was trained on, and those held out, uint8 [n, 3, s, s].
        inside: where the pictures are without padding, those held out first, bool [n, s, s].
        plain: see `statistics.fit_profile`.

    Returns:
        The profile; the scores of unusual good pictures and of those left out, by number, counted from the
        first picture held out.
    """
    # The run's seed is not used: the noise is part of the calibration, and inspections use seed 0.
    fit = partial(
        fit_profile, run.network, run.extractor, run.schedule, kind=run.config.pixel_score,
        stride=run.config.stride, plain=plain,
    )  # fmt: skip
    profile, numbers = fit(used, held, inside), torch.arange(len(inside))
    left_out: dict[int, float] = {}
    scores = profile.calibration.scorer().good
    foreign = torch.zeros(len(inside), dtype=torch.bool)
    foreign[: len(scores)] = torch.from_numpy(unusual(scores, _FOREIGN))
    kept_held, kept_used = ~foreign[: len(held)], ~foreign[len(held) :]
    if 0 < foreign.sum() <= _MOST_FOREIGN * len(scores) and kept_held.sum() >= 2 and kept_used.any():
        left_out = {int(i): float(scores[i]) for i in foreign.nonzero()}
        profile, numbers = fit(used[kept_used], held[kept_held], inside[~foreign]), numbers[~foreign]
    scorer = profile.calibration.scorer()
    # The score reveals local differences, the level differences of the picture as a whole.
    odd = (unusual(scorer.good) | unusual(scorer.levels)).nonzero()[0]
    return profile, {int(numbers[i]): float(scorer.good[i]) for i in odd}, left_out


def _show(
    file: Path, pictures: Tensor, names: Sequence[str], scores: Mapping[int, float], left_out: Container[int]
) -> None:
    """Write the unusual good pictures, of uint8 [n, 3, s, s], as a contact sheet, highest scores first."""
    highest = sorted(scores, key=lambda i: -scores[i])[:_SHOWN]
    captions = [
        f"{names[i][-_LONGEST_NAME:]}\nscore {scores[i]:.1f}{', left out' if i in left_out else ''}"
        for i in highest
    ]
    contact_sheet([pictures[i].permute(1, 2, 0).numpy() for i in highest], captions, file)
