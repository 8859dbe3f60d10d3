"""Robustness: do verdicts hold when light, noise, sharpness, compression or position of a picture change?

`robustness` judges good pictures of one category with any verdict function; `forecast_changes` does so for a
checkpoint that has just been trained. `measuring.stress` measures labelled test sets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from diffad.method.nuisances import NUISANCES, Nuisance
from diffad.pictures.reading import read_image

if TYPE_CHECKING:
    from diffad.checkpoint import Checkpoint

VERDICTS_EACH = 1 + len(NUISANCES)  # verdicts of `robustness` per picture
TOLERATED = 0.05  # share of additionally rejected good pictures up to which a category tolerates a change
_NAMED = 3  # most changes named in a sentence

Rejects = Callable[[npt.NDArray[np.uint8]], bool]  # the verdict on a picture uint8 [H, W, 3]
# number of the picture, change, strength, whether it is rejected
OnVerdict = Callable[[int, "Nuisance | None", float, bool], None]


def robustness(
    pictures: Sequence[npt.NDArray[np.uint8]],
    rejects: Rejects,
    seed: int = 0,
    on_verdict: OnVerdict | None = None,
) -> dict[str, Any]:
    """Judge good pictures of one category as they are, and changed by each of `NUISANCES`.

    Args:
        pictures: uint8 [H, W, 3] each.
        rejects: the verdict function.
        seed: of the changes' noise and directions.
        on_verdict: called after every verdict; with None and strength 0 for an unchanged picture.

    Returns:
        A dict, ready for JSON:
        good: number of pictures.
        rejected: number of pictures rejected unchanged.
        verdicts: number of verdicts on changed pictures.
        changed_rejected: number of these that reject.
        newly_rejected: number of these that reject a picture which is accepted unchanged.
        wrong: share of the pictures rejected unchanged; None without pictures.
        beyond: share newly rejected of all verdicts on changed pictures; None without pictures.
        worst: the change that newly rejects most pictures; None if none does.
        changes: for each nuisance name, strength, unit, rejected, newly_rejected (counts), wrong and beyond
            (their shares).
    """
    judge = partial(judged, pictures, rejects, seed=seed, on_verdict=on_verdict)
    unchanged = judge()
    count = len(pictures)
    changes: list[dict[str, Any]] = []
    for change in NUISANCES:
        verdicts = judge(change, change.strength)
        newly = sum(now and not before for now, before in zip(verdicts, unchanged, strict=True))
        changes.append({
            "name": change.name, "strength": change.strength, "unit": change.unit,
            "rejected": sum(verdicts), "newly_rejected": newly,
            "wrong": share(sum(verdicts), count), "beyond": share(newly, count),
        })  # fmt: skip
    newly = sum(change["newly_rejected"] for change in changes)
    worst = max(changes, key=lambda change: change["newly_rejected"])
    return {
        "good": count, "rejected": sum(unchanged), "verdicts": len(NUISANCES) * count,
        "changed_rejected": sum(change["rejected"] for change in changes), "newly_rejected": newly,
        "wrong": share(sum(unchanged), count), "beyond": share(newly, len(NUISANCES) * count),
        "worst": worst["name"] if newly else None, "changes": changes,
    }  # fmt: skip


def judged(
    pictures: Sequence[npt.NDArray[np.uint8]], rejects: Rejects, change: Nuisance | None = None,
    strength: float = 0.0, *, seed: int, on_verdict: OnVerdict | None = None,
) -> list[bool]:  # fmt: skip
    """Whether each picture is rejected, unchanged or changed at a strength; arguments as for `robustness`."""
    verdicts = []
    for number, image in enumerate(pictures):
        rng = np.random.default_rng((seed, number))
        verdicts.append(bool(rejects(image if change is None else change.apply(image, strength, rng))))
        if on_verdict is not None:
            on_verdict(number, change, strength, verdicts[-1])
    return verdicts


def share(count: int, total: int) -> float | None:
    """count / total; None if the total is 0."""
    return count / total if total else None


def forecast_changes(
    checkpoint: Checkpoint, pictures: Mapping[str, Sequence[tuple[Path, int | None]]], device: str
) -> dict[str, dict[str, Any]]:
    """The `robustness` of a checkpoint's categories, measured by an inspector that loads it.

    Args:
        pictures: good pictures by category: files and their bits.
        device: as for `Inspector`.

    Raises:
        DataError: a picture cannot be read.
    """
    from diffad.inspector import Inspector

    inspector = Inspector(checkpoint, device)

    def rejects(name: str, image: npt.NDArray[np.uint8]) -> bool:
        return inspector.inspect(image, name).is_anomalous

    return {
        name: robustness([read_image(path, bits) for path, bits in some], partial(rejects, name))
        for name, some in pictures.items()
    }


def in_words(values: Mapping[str, Any]) -> str:
    """A sentence about the `robustness` of a category.

    Args:
        values: from `robustness`; held_out, if given, tells whether the model has not seen these pictures.
    """
    newly, verdicts = values["newly_rejected"], values["verdicts"]
    tolerates = "tolerates" if newly <= TOLERATED * verdicts else "does not tolerate all"
    sentence = f"It {tolerates} changes of light, noise, sharpness, compression and position: "
    sentence += f"{newly or 'none'} of {verdicts} changed good pictures rejected"
    worst = sorted(values["changes"], key=lambda change: -change["newly_rejected"])[:_NAMED]
    if names := [change["name"] for change in worst if change["newly_rejected"]]:
        more = sum(change["newly_rejected"] > 0 for change in values["changes"]) > len(names)
        sentence += f" ({'mostly by ' if more else ''}{', '.join(names)})"
    if values["rejected"]:
        sentence += f", apart from {values['rejected']} of {values['good']} rejected unchanged"
    if "held_out" in values:
        sentence += "; held out" if values["held_out"] else "; measured on training pictures, so optimistic"
    return f"{sentence}."
