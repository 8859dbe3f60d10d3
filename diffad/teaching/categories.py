"""Learn a category with a trained network: its size, its statistics and its unusual pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from diffad.checkpoint import Checkpoint
from diffad.method.image_score import unusual
from diffad.method.profile import Profile
from diffad.pictures.plots import contact_sheet
from diffad.teaching.good_pictures import GoodPictures, split_held_out, told_apart
from diffad.teaching.recipe import TrainConfig
from diffad.teaching.residuals import Observer
from diffad.teaching.sizes import find_size, in_words
from diffad.teaching.state import Run
from diffad.teaching.statistics import Fitted, fit

_FOREIGN = 1e-8  # a picture whose score so small a share of good pictures would reach is left out
_MOST_FOREIGN = 0.2  # if more of the pictures stand out, they show several kinds of part and all stay
_SHOWN, _LONGEST_NAME = 12, 32  # at most: unusual pictures on a sheet, characters of a name under each


@dataclass(frozen=True, eq=False)
class Lesson:
    """What was learned of a category, and from what.

    Attributes:
        fitted: the profile, with the names of unusual and left-out pictures in its forecast; and its sums.
        pictures, names: of the statistics, those held out first, uint8 [n, 3, s, s].
        unusual, left_out: scores by number among these; nothing was learned from those left out.
        judged: files with their bits, by which the category is to be judged when they are changed.
        aside: whether these are not part of the statistics.
    """

    fitted: Fitted
    pictures: Tensor
    names: list[str]
    unusual: dict[int, float]
    left_out: dict[int, float]
    judged: list[tuple[Path, int | None]]
    aside: bool

    @property
    def profile(self) -> Profile:
        return self.fitted.profile


def study(
    observer: Observer, config: TrainConfig, name: str, good: GoodPictures, plain: bool,
    tell: Callable[[str], None],
) -> Lesson:  # fmt: skip
    """Fit a category's profile for a network, at the size that suits its pictures.

    Args:
        plain: also fit plain features, for a category that the network never learned from.
        tell: called with sentences for the user.
    """
    used, held = split_held_out(torch.arange(len(good.paths)), config.held_out)
    judged = [(good.paths[i], good.bits) for i in held[: config.stressed]]
    aside = config.stressed if len(held) >= 3 * config.stressed else 0
    sizes = {}
    if config.size is None:
        sizes = find_size(
            observer.network, observer.extractor, observer.schedule, good.paths, good.upright, good.bits
        )
    if sizes:
        tell(in_words(name, sizes))
        if sizes["size"] != good.size:
            good = good.at(sizes["size"])
    order = torch.cat([held[aside:], used])
    fitted, odd, left_out = _fitted(
        observer, good.pictures[used], good.pictures[held[aside:]], good.inside[order], plain
    )
    names = told_apart(good.paths)
    names = [names[i] for i in order]
    forecast = {
        **fitted.profile.forecast,
        "unusual": {names[i]: score for i, score in odd.items()},
        "left_out": {names[i]: score for i, score in left_out.items()},
    }
    if sizes:
        forecast["sizes"] = sizes
    profile = replace(fitted.profile, forecast=forecast, upright=good.upright, bits=good.bits)
    return Lesson(
        replace(fitted, profile=profile), good.pictures[order], names, odd, left_out, judged, bool(aside)
    )


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
    """`study` a category in a training.

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
    learned_from = learned_before(base, name)
    config = run.config
    observer = Observer(run.network, run.extractor, run.schedule, config.pixel_score, config.stride)
    lesson = study(observer, config, name, good, config.steps == 0 and learned_from is None, tell)
    if lesson.unusual or lesson.left_out:
        sheet = out.with_name(f"{out.stem}.{name}.unusual.png")
        _show(sheet, lesson)
        tell(f"{name}: its unusual good pictures are shown in {sheet}.")
    profile = replace(lesson.profile, forecast={**lesson.profile.forecast, "duplicates": repeated})
    return Category(profile, lesson.judged, lesson.aside and learned_from in (None, len(good.paths)))


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
    observer: Observer, used: Tensor, held: Tensor, inside: Tensor, plain: bool
) -> tuple[Fitted, dict[int, float], dict[int, float]]:
    """Fit a profile, leaving out pictures that hardly belong to the others, such as a defective part.

    If many pictures stand out, none is left out.

    Args:
        used, held: pictures that the network was trained on, and those held out, uint8 [n, 3, s, s].
        inside: where the pictures are without padding, those held out first, bool [n, s, s].
        plain: see `statistics.fit`.

    Returns:
        The profile with its sums; the scores of unusual good pictures and of those left out, by number,
        counted from the first picture held out.
    """
    # The run's seed is not used: the noise is part of the calibration, and inspections use seed 0.
    fitted, numbers = fit(observer, used, held, inside, plain=plain), torch.arange(len(inside))
    left_out: dict[int, float] = {}
    scores = fitted.profile.calibration.scorer().good
    foreign = torch.zeros(len(inside), dtype=torch.bool)
    foreign[: len(scores)] = torch.from_numpy(unusual(scores, _FOREIGN))
    kept_held, kept_used = ~foreign[: len(held)], ~foreign[len(held) :]
    if 0 < foreign.sum() <= _MOST_FOREIGN * len(scores) and kept_held.sum() >= 2 and kept_used.any():
        left_out = {int(i): float(scores[i]) for i in foreign.nonzero()}
        fitted = fit(observer, used[kept_used], held[kept_held], inside[~foreign], plain=plain)
        numbers = numbers[~foreign]
    scorer = fitted.profile.calibration.scorer()
    # The score reveals local differences, the level differences of the picture as a whole.
    odd = (unusual(scorer.good) | unusual(scorer.levels)).nonzero()[0]
    return fitted, {int(numbers[i]): float(scorer.good[i]) for i in odd}, left_out


def _show(file: Path, lesson: Lesson) -> None:
    """Write a lesson's unusual and left-out pictures as one contact sheet, the highest scores first."""
    scores = lesson.unusual | lesson.left_out
    highest = sorted(scores, key=lambda i: -scores[i])[:_SHOWN]
    captions = [
        f"{lesson.names[i][-_LONGEST_NAME:]}\nscore {scores[i]:.1f}"
        f"{', left out' if i in lesson.left_out else ''}"
        for i in highest
    ]
    contact_sheet([lesson.pictures[i].permute(1, 2, 0).numpy() for i in highest], captions, file)
