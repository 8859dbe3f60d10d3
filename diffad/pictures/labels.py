"""Checks of a labelled set before it is measured: folder labels, doubtful masks and duplicate pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffad.pictures.arrays import F32
from diffad.pictures.depth import most
from diffad.pictures.duplicates import first_alike, pairs_in_words, thumbnail, thumbnails_of
from diffad.pictures.masks import mask_of, settled
from diffad.pictures.reading import DataError, decode
from diffad.pictures.samples import (
    GOOD_NAMES,
    Sample,
    all_unusable,
    is_good_name,
    listed,
    named,
    picture_files,
    plain,
    short,
    subfolders,
)

_NOT = {"no", "non", "not", "kein", "nicht", "un"}  # words that negate "good"
_NEARLY_MASK = re.compile(r"(.+)[-_. ](annotation|ground_?truth|gt|labels?|msk|seg\w*)", re.IGNORECASE)


def look_over(
    groups: Mapping[str, Sequence[Sample]], training: Iterable[Sample] = ()
) -> tuple[dict[str, list[Sample]], dict[str, list[str]], dict[str, int | None]]:
    """Decode every picture and mask once and check them, before long work begins.

    Args:
        groups: samples by category.
        training: pictures that the model may have learned from; unreadable ones are ignored.

    Returns:
        By category: the samples with their masks `settled`; sentences about doubtful masks and about pictures
        that are there twice or also among the training pictures; and the bit depth (see `masks.survey`).

    Raises:
        DataError: naming all files that cannot be used.
    """
    training, result, notes, bits = list(training), {}, {}, {}
    unusable: list[str] = []
    for name, group in groups.items():
        result[name], of_masks = settled(group)
        with ThreadPoolExecutor(4) as pool:  # decoders release the interpreter's lock
            looks = list(pool.map(_look, result[name]))
        unusable += [look.wrong for look in looks if look.wrong]
        bits[name] = most(*(look.bits for look in looks))
        if not unusable:
            learned = [sample.image for sample in training if sample.category == name]
            seen = np.array([look.thumbnail for look in looks])
            notes[name] = of_masks + stray_masks(group) + _repeats(result[name], seen, learned)
    if unusable:
        raise DataError(all_unusable(unusable, "replace or remove them"))
    return result, notes, bits


class _Look(NamedTuple):
    """One sample once decoded. wrong: why it cannot be used, if so."""

    thumbnail: F32 | None = None
    bits: int | None = None
    wrong: str = ""


def _look(sample: Sample) -> _Look:
    try:
        decoded = decode(sample.image)
        mask_of(sample, decoded.values.shape)
    except DataError as error:
        return _Look(wrong=str(error))
    return _Look(thumbnail(decoded.image(decoded.bits())), decoded.own_bits)


def folders_in_words(samples: Iterable[Sample]) -> str:
    """Which folders of one category were taken as good and as defective, and which of the latter may be good
    by their name.
    """
    folders = {short(sample.image.parent, 2): bool(sample.is_anomalous) for sample in samples}
    good, bad = ([name for name, of in folders.items() if of == defective] for defective in (False, True))
    text = f"good: {', '.join(good) or 'none'} · defective: {', '.join(bad) or 'none'}"
    if nearly := [name for name in bad if resembles_good(name.rsplit("/", 1)[-1])]:
        text += f" · named like good, but counted as defective: {', '.join(nearly)} (rename it if it is good)"
    return text


def resembles_good(name: str) -> bool:
    """Whether a folder counted as defective may be meant as good, such as "OK-2024" or "goood"."""
    words = set(re.findall(r"[^\W\d_]+", name.casefold()))
    if is_good_name(name) or words & _NOT:
        return False
    close = get_close_matches(plain(name), GOOD_NAMES, n=3, cutoff=0.8)
    return bool(words & GOOD_NAMES) or any(match[0] == plain(name)[0] for match in close)


def stray_masks(samples: Sequence[Sample]) -> list[str]:
    """Sentences about files that may be masks but were not recognised, if defective pictures lack masks."""
    lacking = [sample for sample in samples if sample.is_anomalous and sample.mask is None and sample.split]
    if not lacking:
        return []
    used = {sample.mask for sample in samples}
    roots = dict.fromkeys(sample.image.parents[2] for sample in lacking)
    stray = [
        file
        for root in roots
        for truth in named(root, "ground_truth")
        for folder in (truth, *subfolders(truth))
        if not is_good_name(folder.name)
        for file in picture_files(folder)
        if file not in used
    ]
    notes = []
    if stray:
        notes.append(
            "Taken as no picture's mask, by name or folder (a mask is called "
            f"ground_truth/<defect>/<picture>_mask.png): {listed(map(short, stray))}."
        )
    stems = {sample.image.with_suffix("").name.casefold() for sample in lacking}
    beside = [
        sample.image
        for sample in lacking
        if (match := _NEARLY_MASK.fullmatch(sample.image.stem)) and match[1].casefold() in stems
    ]
    if beside:
        notes.append(
            "Counted as defective pictures, but masks by their names (call them <picture>_mask): "
            f"{listed(map(short, beside))}."
        )
    return notes


def _repeats(samples: Sequence[Sample], looks: F32, learned: Sequence[Path]) -> list[str]:
    """Sentences about duplicate pictures.

    Args:
        samples: one category's samples.
        looks: `thumbnails` of their pictures.
        learned: training pictures of the category.
    """
    notes = []
    pairs = [
        (samples[first], sample)
        for sample, first in zip(samples, first_alike(looks))
        if samples[first] is not sample
    ]
    for across, said in (
        (True, "are among the good and among the defective ones, so that one label is wrong"),
        (False, "show what another one shows and tell nothing more"),
    ):
        some = [
            (two.image, one.image) for one, two in pairs if (one.is_anomalous != two.is_anomalous) == across
        ]
        if some:
            notes.append(f"{len(some)} of {len(samples)} test pictures {said}: {pairs_in_words(some)}.")
    paths, known = thumbnails_of(learned)
    found = [
        (sample.image, paths[first])
        for sample, first in zip(samples, first_alike(looks, known))
        if first >= 0
    ]
    if found:
        notes.append(
            f"{len(found)} of {len(samples)} test pictures are also in train, so that these numbers "
            f"flatter: {pairs_in_words(found)}."
        )
    return notes
