"""Looks over pictures that are offered as good ones, before anything is learned from them.

Files that cannot be read, pictures that repeat others, and pictures that differ from the rest as a whole:
in size, shape, light, sharpness or noise. Nothing is refused here; a person decides what stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from diffad.pictures.drawing import shrunk
from diffad.pictures.duplicates import first_alike, thumbnail
from diffad.pictures.geometry import to_square, to_uint8
from diffad.pictures.quality import LEAST, MEASURES, WORDS, measured
from diffad.pictures.reading import DataError, decode, size_text

_SQUARE = 256  # px, in which pictures are measured
_SHOWN = 160  # px, the longest side of a preview
_FAR = 4.0  # robust standard deviations from the median that make a picture odd,
_LEAST = 5  # if these are more than that many of `quality.LEAST`
_ASPECT = 0.05  # relative difference of aspect ratios that counts as another shape
_SMALLER = 0.5  # of the usual longest side, below which a picture has too few pixels


@dataclass(frozen=True, eq=False)
class Offered:
    """One picture that is offered as a good one.

    Attributes:
        name: how the person knows it.
        path: the file.
        preview: uint8 [h, w, 3], at most 160 px a side; None if the file cannot be read.
        remarks: what is odd about it, in short sentences without a full stop; none if nothing is.
        unusable: it cannot be read, or repeats another one, so nothing is learned from it.
    """

    name: str
    path: Path
    preview: npt.NDArray[np.uint8] | None
    remarks: tuple[str, ...] = ()
    unusable: bool = False


@dataclass(frozen=True, eq=False)
class _Look:
    shape: tuple[int, int]
    bits: int
    look: npt.NDArray[np.float32]
    quality: npt.NDArray[np.float64]
    preview: npt.NDArray[np.uint8]


def examine(
    files: Mapping[str, Path],
    known: Mapping[str, npt.NDArray[np.float32]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Offered]:
    """Look over pictures offered as good ones, all at once.

    Args:
        files: by the name that each is shown under.
        known: thumbnails (`duplicates.thumbnails`, [n, SIDE, SIDE]) of pictures that must not be among them,
            by a description such as "a test picture".
        progress: called with (done, total) as pictures are read.

    Returns:
        One `Offered` for each file, in the given order.
    """
    names = list(files)
    looks: list[_Look | DataError] = []
    with ThreadPoolExecutor(4) as pool:  # decoders release the interpreter's lock
        for done, look in enumerate(pool.map(_looked_at, files.values()), 1):
            looks.append(look)
            if progress is not None:
                progress(done, len(names))
    offered = [
        Offered(name, files[name], None, (str(look).replace(str(files[name]), Path(name).name),), True)
        if isinstance(look, DataError)
        else Offered(name, files[name], look.preview)
        for name, look in zip(names, looks)
    ]
    read = [number for number, look in enumerate(looks) if isinstance(look, _Look)]
    readable = [look for look in looks if isinstance(look, _Look)]
    if not readable:
        return offered
    thumbnails = np.stack([look.look for look in readable])
    repeated = _repeated([names[number] for number in read], thumbnails, known or {})
    remarks = [_shape_remarks(readable), _quality_remarks(readable)]
    for place, number in enumerate(read):
        odd = tuple(remark for kind in remarks for remark in kind[place])
        copy = repeated[place]
        offered[number] = replace(offered[number], remarks=(copy, *odd) if copy else odd, unusable=bool(copy))
    return offered


def in_words(offered: Sequence[Offered]) -> str:
    """What was found, in a sentence or two."""
    usable = sum(not each.unusable for each in offered)
    unread = sum(each.preview is None for each in offered)
    copies = len(offered) - usable - unread
    odd = sum(bool(each.remarks) and not each.unusable for each in offered)
    parts = [f"{usable} of {len(offered)} pictures can be learned from"]
    if unread:
        parts.append(f"{unread} cannot be read")
    if copies:
        parts.append(f"{copies} {'repeats another one' if copies == 1 else 'repeat others'}")
    if odd:
        parts.append(
            "1 differs from the rest: look at it" if odd == 1 else f"{odd} differ from the rest: look at them"
        )
    return "; ".join(parts) + "."


def _looked_at(path: Path) -> _Look | DataError:
    try:
        decoded = decode(path)
        bits = decoded.bits(None)
        image = decoded.image(bits)
    except DataError as error:
        return error
    square, geometry = to_square(image, _SQUARE)
    inside = np.zeros((_SQUARE, _SQUARE), bool)
    inside[geometry.inner] = True
    quality = measured(to_uint8(square).permute(1, 2, 0).numpy(), inside)
    return _Look(image.shape[:2], bits, thumbnail(image), quality, shrunk(image, _SHOWN))


def _repeated(
    names: Sequence[str], looks: npt.NDArray[np.float32], known: Mapping[str, npt.NDArray[np.float32]]
) -> list[str]:
    """For each picture what it repeats, as a remark; empty if nothing."""
    remarks = [
        f"shows the same as {names[one]}" if one != number else ""
        for number, one in enumerate(first_alike(looks))
    ]
    for description, others in known.items():
        for number, one in enumerate(first_alike(looks, others)):
            if one >= 0 and not remarks[number]:
                remarks[number] = f"is {description}"
    return remarks


def _shape_remarks(looks: Sequence[_Look]) -> list[list[str]]:
    """Pictures of another shape, or with far fewer pixels, than most."""
    ratios = np.array([width / height for height, width in (look.shape for look in looks)])
    longest = np.array([max(look.shape) for look in looks])
    usual, usual_longest = float(np.median(ratios)), float(np.median(longest))
    remarks = []
    for look, ratio, long in zip(looks, ratios, longest):
        found = []
        if abs(ratio / usual - 1) > _ASPECT:
            found.append(f"another shape ({size_text(look.shape)})")
        elif long < _SMALLER * usual_longest:
            found.append(f"far fewer pixels ({size_text(look.shape)})")
        remarks.append(found)
    return remarks


def _quality_remarks(looks: Sequence[_Look]) -> list[list[str]]:
    """Pictures whose light, colour, sharpness or noise differs from that of most."""
    values = np.stack([look.quality for look in looks])
    middle = np.median(values, axis=0)
    spread = 1.4826 * np.median(np.abs(values - middle), axis=0)
    remarks = []
    for row in values:
        found = []
        for name, value, usual, width in zip(MEASURES, row, middle, spread):
            less, more, relative = WORDS[name]
            if abs(value - usual) > max(_FAR * width, _LEAST * LEAST[name]):
                much = f" ({value / usual - 1:+.0%})" if relative and usual > 0 else ""
                found.append(f"{less if value < usual else more} than most{much}")
        remarks.append(found)
    return remarks
