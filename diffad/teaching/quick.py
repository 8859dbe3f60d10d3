"""Teaches a loaded model one more category: statistics of its good pictures, the network stays as it is.

The same statistics as `diffad train --steps 0 --from`, within a running server: every call of the network
takes its turn among the inspections of others, and the work can be cancelled between two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from diffad.inspector import Inspector
from diffad.method.artificial_defects import MEASURED_KINDS, add_defect
from diffad.method.diffusion import Prediction
from diffad.method.nuisances import NUISANCES
from diffad.method.unet import UNet
from diffad.pictures.drawing import overlay
from diffad.pictures.geometry import to_square, to_uint8
from diffad.pictures.reading import DataError, read_image
from diffad.recognition import Turn
from diffad.teaching.categories import Lesson, study
from diffad.teaching.good_pictures import FEWEST, load_normal, readable
from diffad.teaching.recipe import TrainConfig
from diffad.teaching.residuals import Observer, copies_of
from diffad.teaching.robustness import robustness
from diffad.teaching.statistics import LOOKED, SPOILED, Fitted, fit_with

_EXAMPLES = 2  # pictures with an artificial defect of each kind
_EXAMPLE_SIDE = 512  # px, their longest side

Progress = Callable[[float], None]  # called with the share that is done, 0 to 1


@dataclass(frozen=True, eq=False)
class Example:
    """A good picture with an artificial defect, inspected with what was learned.

    Attributes:
        kind: of the defect.
        shown: the picture with its map, uint8 [h, w, 3].
        found: whether the picture is rejected at the usual threshold.
        score: in σ.
    """

    kind: str
    shown: npt.NDArray[np.uint8]
    found: bool
    score: float


def teach(
    inspector: Inspector,
    name: str,
    paths: Sequence[Path],
    *,
    turn: Turn = nullcontext,
    progress: Progress | None = None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> Lesson:
    """Learn a category that the model does not know from pictures of good parts.

    Args:
        inspector: the loaded model; it is not changed (`Inspector.with_profiles`).
        paths: 8 or more different pictures; repeated ones count once.
        turn: `with turn():` encloses each call of the network. What it raises ends the work.
        progress: called after each of these calls.
        tell: called with sentences for the user.

    Raises:
        DataError: for a picture that cannot be read, and for fewer than 8 different ones.
    """
    config = TrainConfig(
        steps=0, unet=inspector.network.config, pixel_score=inspector.pixel_score, stride=inspector.stride
    )  # fmt: skip
    _, bits = readable({name: paths}, skip=False, tell=tell)
    good, _ = load_normal({name: paths}, inspector.size, bits)
    calls = _Counter(turn, progress or (lambda done: None), _rows_for(len(good[name].paths)))
    network = _InTurns(inspector.network, calls)
    observer = Observer(
        network, inspector.extractor, inspector.schedule, inspector.pixel_score, inspector.stride
    )
    return study(observer, config, name, good[name], plain=True, tell=tell)


def learn(inspector: Inspector, name: str, before: Fitted, picture: Path, turn: Turn = nullcontext) -> Fitted:
    """Learn one more good picture of a category, in about a second.

    Args:
        inspector: a model that knows the category.
        before: the category's statistics with their sums.
        turn: as in `teach`.

    Raises:
        DataError: for a picture that cannot be read.
    """
    image = read_image(picture, inspector.bits(name, None))
    tiling = inspector.whole(image, name)
    (tile,) = tiling.tiles
    square = to_uint8(tiling.square(image, tile))
    calls = _Counter(turn, lambda done: None, 1)
    observer = Observer(
        _InTurns(inspector.network, calls), inspector.extractor, inspector.schedule,
        inspector.pixel_score, inspector.stride,
    )  # fmt: skip
    return fit_with(observer, before, square, tiling.inside(tile))


def changes_borne(
    inspector: Inspector,
    name: str,
    pictures: Sequence[tuple[Path, int | None]],
    *,
    turn: Turn = nullcontext,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Which changes of light, noise, sharpness, compression and position a category bears.

    Args:
        inspector: a model that knows the category.
        pictures: good ones, files with their bits.

    Returns:
        See `stress.robustness`.
    """
    total, done = len(pictures) * (1 + len(NUISANCES)), 0

    def rejects(image: npt.NDArray[np.uint8]) -> bool:
        nonlocal done
        rejected = inspector.inspect(image, name, turn=turn).is_anomalous
        done += 1
        if progress is not None:
            progress(done / total)
        return rejected

    return robustness([read_image(path, bits) for path, bits in pictures], rejects)


def examples(
    inspector: Inspector, name: str, paths: Sequence[Path], bits: int | None = None, turn: Turn = nullcontext
) -> list[Example]:
    """Good pictures with artificial defects, two of each kind, as the model judges them; always the same."""
    rng = np.random.default_rng(0)
    wanted = [kind for kind in MEASURED_KINDS for _ in range(_EXAMPLES)]
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, len(wanted)).round().astype(int)]
    squares = [to_square(read_image(path, bits), _EXAMPLE_SIDE) for path in chosen]
    pictures = [to_uint8(square).permute(1, 2, 0).numpy() for square, _ in squares]
    made = []
    for kind, picture, (_, geometry) in zip(wanted, pictures, squares):
        spoiled, _ = add_defect(picture, pictures, kind, rng)
        spoiled = np.ascontiguousarray(spoiled[geometry.inner])
        seen = inspector.inspect(spoiled, name, turn=turn)
        shown = overlay(
            seen.hatched,
            seen.anomaly_map,
            inspector.scale_top(name),
            seen.map_limit,
            contour=seen.is_anomalous,
        )
        made.append(Example(kind, shown, seen.is_anomalous, seen.score))
    return made


def check_name(name: str, taken: Sequence[str]) -> str:
    """The name without spaces around it. Raises DataError for one that cannot be a category's."""
    name = " ".join(name.split())
    if not name:
        raise DataError("give the part a name")
    if (
        len(name) > 60
        or not name.isprintable()
        or any(sign in name for sign in '/\\<>:"|?*')
        or name[0] == "."
    ):
        raise DataError(
            'a name has at most 60 letters, does not begin with a dot, and has none of / \\ < > : " | ? *'
        )
    if name.casefold() in {each.casefold() for each in taken} | {"auto"}:
        raise DataError(f"there is a category {name!r} already: choose another name")
    return name


def check_count(count: int) -> None:
    """Raises DataError for fewer pictures than a category needs."""
    if count < FEWEST:
        raise DataError(f"{count} usable pictures are too few: give at least {FEWEST}, better 30 or more")


def _rows_for(pictures: int) -> int:
    """About how many noised pictures the network is shown for the statistics of as many good pictures."""
    return 3 * pictures * (1 + copies_of(pictures)) + 9 * min(pictures, LOOKED) + 6 * min(pictures, SPOILED)


class _Counter:
    """The share of the expected rows that the network has been shown, never quite 1."""

    def __init__(self, turn: Turn, progress: Progress, expected: int) -> None:
        self.turn, self._progress, self._expected = turn, progress, expected
        self._rows = 0

    def add(self, rows: int) -> None:
        self._rows += rows
        self._progress(min(0.99, self._rows / self._expected))


class _InTurns(UNet):
    """A network whose every call takes its turn and is counted."""

    def __init__(self, network: UNet, calls: _Counter) -> None:
        nn.Module.__init__(self)  # its weights are those of the network inside
        self.config = network.config
        self._network, self._calls = network, calls

    def forward(self, x_t: Tensor, t: Tensor) -> Prediction:
        with self._calls.turn():
            prediction: Prediction = self._network(x_t, t)
        self._calls.add(len(x_t))
        return prediction
