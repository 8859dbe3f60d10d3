"""Finding sample pictures in folders: MVTec trees and plain folders, with their labels and masks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffad.pictures.reading import IMAGE_SUFFIXES, DataError, log

_NAMED = 20  # at most this many unusable files are named in one message

LAYOUT = (
    "expected an MVTec category (train/good, test/<defect>, ground_truth/<defect>), "
    "a folder of such categories, or a folder of pictures"
)
GOOD_NAMES = frozenset(  # folders of good parts, normalised by `plain`
    "defectfree good goodparts gut gutteile io nodefect normal ok okay okparts pass passed".split()
)


@dataclass(frozen=True)
class Sample:
    """A picture file and its labels.

    Attributes:
        image: the picture file.
        category: name of the kind of part.
        split: "train", "test" or "" (plain folder).
        defect: "good", the defect's name or "" (unknown).
        mask: the mask file, if any.
        mask_needs: corrections for reading the mask, "invert" and "turn" (by the picture's EXIF orientation);
            see `masks.settled`.
    """

    image: Path
    category: str
    split: str = ""
    defect: str = ""
    mask: Path | None = None
    mask_needs: frozenset[str] = frozenset()

    @property
    def is_anomalous(self) -> bool | None:
        """Whether the part is defective; None if unknown."""
        return None if self.defect == "" else self.defect != "good"


def find_samples(root: str | Path, split: str | None = None) -> list[Sample]:
    """List the pictures of an MVTec category, a folder of categories, a plain folder, or one file.

    - Good parts are in train/<one of GOOD_NAMES>, or in train itself if it has no subfolders, and in
      test/<one of GOOD_NAMES>; defective ones are in test/<defect>.
    - A mask is ground_truth/<defect>/<stem>_mask.png or <stem>.png, or <stem>_mask.png beside the picture;
      other formats work too. Masks are not listed as pictures.
    - Plain folders are not searched recursively. For them and for single files, the category is the name of
      the folder (of its parent if it is called `good` or `train`), and split and defect are "".
    - Folder names and suffixes may be in any case, with -, _ or space between words.

    Args:
        root: the folder or file.
        split: "train" or "test" to list only that split; pictures without a split are always listed. The
            other split is not checked.

    Returns:
        Samples by category, split, defect and name, in natural order ("2" before "10").

    Raises:
        DataError: there are no pictures, or the label of some cannot be determined.
    """
    root = Path(root)
    if split not in (None, "train", "test"):
        raise DataError(f'unknown split "{split}": choose "train" or "test"')
    try:
        samples = list(_samples(root, split))
    except DataError:
        raise
    except (PermissionError, ValueError) as error:  # ValueError: a zero byte in the path
        path = getattr(error, "filename", None) or root
        raise DataError(f"{path} may not be read: check the path and its permissions") from error
    if not samples and not root.is_dir():
        raise DataError(f"there is no file or folder {root}: check the path")
    if not samples:
        kind = f"no {split} pictures" if split and any(_samples(root, None)) else "no pictures"
        held = f" (it holds the {_folders(subfolders(root))})" if subfolders(root) else ""
        raise DataError(f"{kind} in {root}{held}: {LAYOUT}")
    return samples


def find_all(roots: Iterable[str | Path], split: str | None = None) -> list[Sample]:
    """`find_samples` of several folders, each picture only once.

    Otherwise a picture reached by two paths could be both trained on and held out.
    """
    found: dict[Path, Sample] = {}
    for root in roots:
        for sample in find_samples(root, split):
            found.setdefault(sample.image.resolve(), sample)
    return list(found.values())


def labelled(samples: Iterable[Sample], limit: int | None = None) -> dict[str, list[Sample]]:
    """The labelled test pictures by category, in their order.

    Args:
        samples: any samples; training pictures and those without a label are left out.
        limit: keep at most this many good and this many defective pictures per category (`thinned`).

    Raises:
        DataError: no picture has a label.
    """
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.split != "train" and sample.is_anomalous is not None:
            groups.setdefault(sample.category, []).append(sample)
    if not groups:
        raise DataError("no picture has a label: measuring needs test/good and test/<defect> folders (MVTec)")
    result = {}
    for name, group in groups.items():
        good, bad = ([one for one in group if one.is_anomalous is label] for label in (False, True))
        kept = {*thinned(good, limit), *thinned(bad, limit)}
        result[name] = [one for one in group if one in kept]
    return result


def thinned(samples: list[Sample], limit: int | None) -> list[Sample]:
    """At most `limit` of the samples, in their order; None keeps all.

    Defect kinds are kept in equal numbers as far as possible, evenly spaced within each kind.
    """
    if limit is None or len(samples) <= limit:
        return samples
    kinds: dict[str, list[Sample]] = {}
    for sample in samples:
        kinds.setdefault(sample.defect, []).append(sample)
    chosen, left = [], limit
    for number, kind in enumerate(
        sorted(kinds.values(), key=len)
    ):  # rare kinds first: the others get the rest
        share = min(len(kind), left // (len(kinds) - number))
        chosen += [kind[int((i + 0.5) * len(kind) / share)] for i in range(share)]
        left -= share
    return [sample for sample in samples if sample in chosen]


def all_unusable(reasons: Iterable[str], advice: str) -> str:
    """Join reasons why files cannot be used ("what: advice") into one sentence with common advice."""
    every = list(reasons)
    if len(every) == 1:
        return every[0]
    # each reason's own advice follows its last colon
    named = [reason.rpartition(": ")[0] for reason in every[:_NAMED]]
    more = len(every) - len(named)
    rest = f"; and {more} more" if more else ""
    return f"{len(every)} files cannot be used: {'; '.join(named)}{rest}: {advice}"


def is_good_name(name: str) -> bool:
    """Whether a folder of this name holds good parts (GOOD_NAMES, compared by `plain`)."""
    return plain(name) in GOOD_NAMES


def plain(name: str) -> str:
    """Normalise a folder name for comparison: lower case, without spaces and punctuation."""
    return re.sub(r"[\W_]+", "", name.casefold())


def named(parent: Path, name: str) -> list[Path]:
    """Subfolders of `parent` with that name, compared by `plain`."""
    return [folder for folder in subfolders(parent) if plain(folder.name) == plain(name)]


def _samples(root: Path, split: str | None) -> Iterator[Sample]:
    if root.is_file():
        yield Sample(root, _folder_name(root.parent))
    elif _is_category(root):
        yield from _category_samples(root, split)
    elif root.is_dir():
        categories = [folder for folder in subfolders(root) if _is_readable_category(folder)]
        if categories and (beside := picture_files(root)) and split != "test":
            log.warning(
                "pictures beside the category folders in %s are ignored (%d): move them into a folder of "
                "their own", root, len(beside),
            )  # fmt: skip
        for folder in categories:
            yield from _category_samples(folder, split)
        if not categories:
            yield from (Sample(path, _folder_name(root)) for path in pictures_and_masks(root))


def _category_samples(folder: Path, split: str | None) -> Iterator[Sample]:
    category = _folder_name(folder)
    if (beside := picture_files(folder)) and split != "test":
        log.warning(
            "pictures beside train and test in %s are ignored (%d): move them into one of these, or into a "
            "folder of their own", folder, len(beside),
        )  # fmt: skip
    if split != "test":
        for train in named(folder, "train"):
            for good in _good_folders(train):
                yield from (Sample(path, category, "train", "good") for path in pictures_and_masks(good))
    if split != "train":
        for test in named(folder, "test"):
            for defect in _labelled_folders(test):
                yield from _test_samples(defect, folder, category)


def _good_folders(train: Path) -> list[Path]:
    """The folders of good parts in a folder `train`. Raises DataError if none can be identified."""
    folders, beside = subfolders(train), picture_files(train)
    if not folders:
        return [train]
    good = [folder for folder in folders if is_good_name(folder.name)]
    if not good:
        raise DataError(
            f"{train} holds the {_folders(folders)}: call the one with good parts {train.name}/good (or ok, "
            "normal, pass), and take the others out"
        )
    if left := [each for each in folders if each not in good]:
        log.warning(
            "only good parts are used for training: in %s the %s ignored", train, _folders(left, "is", "are")
        )
    if beside:
        log.warning("pictures beside the folders in %s are ignored (%d)", train, len(beside))
    return good


def _labelled_folders(test: Path) -> list[Path]:
    """The folders in a folder `test`, one per label. Raises DataError if the pictures are not in them."""
    folders, beside = subfolders(test), picture_files(test)
    if beside and not folders:
        raise DataError(
            f"{test} holds pictures without a label: move them into {test.name}/good and {test.name}/<defect>"
        )
    if beside:
        log.warning("pictures beside the folders in %s are ignored (%d)", test, len(beside))
    for folder in folders:
        if (deeper := subfolders(folder)) and not picture_files(folder):
            raise DataError(
                f"{folder} holds the {_folders(deeper)} and no pictures: move the pictures into "
                f"{test.name}/good and {test.name}/<defect>"
            )
    return folders


def _test_samples(defect: Path, folder: Path, category: str) -> Iterator[Sample]:
    pictures = pictures_and_masks(defect)
    if is_good_name(defect.name):
        yield from (Sample(path, category, "test", "good") for path in pictures)
        return
    drawn = _drawn(
        list(pictures),
        [
            file
            for truth in named(folder, "ground_truth")
            for each in named(truth, defect.name)
            for file in picture_files(each)
        ],
    )
    for path, beside in pictures.items():
        yield Sample(path, category, "test", defect.name, drawn.get(path, beside))


def _drawn(pictures: Sequence[Path], files: Sequence[Path]) -> dict[Path, Path]:
    """The mask of each picture that has one among the files; exact names take precedence."""
    files = sorted(files, key=lambda file: file.suffix.lower() != ".png")[
        ::-1
    ]  # later entries win below: PNG, then the first in order
    exact = {file.stem: file for file in files}
    found = {}
    for path in pictures:
        if mask := exact.get(f"{path.stem}_mask") or exact.get(path.stem):
            found[path] = mask
    taken = set(found.values())
    free = {masked(file.stem) or file.stem.casefold(): file for file in files if file not in taken}
    return {
        path: found.get(path) or free[path.stem.casefold()]
        for path in pictures
        if path in found or path.stem.casefold() in free
    }


def pictures_and_masks(folder: Path) -> dict[Path, Path | None]:
    """A folder's pictures, each with the mask <stem>_mask beside it, if any (in any case)."""
    files = picture_files(folder)
    stems = {file.stem.casefold() for file in files}
    masks = {masked(file.stem): file for file in files if masked(file.stem) in stems}
    taken = set(masks.values())
    return {file: masks.get(file.stem.casefold()) for file in files if file not in taken}


def masked(stem: str) -> str | None:
    """The lower-case stem of the picture that a mask with this stem belongs to; None if it is no mask."""
    match = re.fullmatch(r"(.+)[-_. ]masks?", stem.casefold())
    return match and match[1]


def _folders(folders: Sequence[Path], *verbs: str) -> str:
    names = listed([f"'{folder.name}'" for folder in folders])
    return " ".join([f"folder{'s' * (len(folders) > 1)} {names}", *verbs[len(folders) > 1 :][:1]])


def short(path: Path, parts: int = 3) -> str:
    """The last parts of a path, by default split, label and file name."""
    return "/".join(path.parts[-parts:])


def listed(words: Iterable[str], limit: int = 10) -> str:
    """Join the first `limit` words and say how many more there are."""
    words = list(words)
    more = [f"and {len(words) - limit} more"] if len(words) > limit else []
    return ", ".join([*words[:limit], *more])


def _is_category(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    return bool(named(folder, "test")) or any(not _is_category(train) for train in named(folder, "train"))


def _is_readable_category(folder: Path) -> bool:
    try:
        return _is_category(folder)
    except PermissionError:  # such as lost+found
        log.warning("%s may not be read and is left out: check its permissions if it is wanted", folder)
        return False


def _folder_name(folder: Path) -> str:
    """Category of a plain folder: its name, or that of its parent if it is only called `good` or `train`."""
    parts = folder.parts if _tells(folder.name) and folder.name != ".." else folder.resolve().parts
    return next((part for part in reversed(parts) if _tells(part)), folder.name)


def _tells(name: str) -> bool:
    return plain(name) not in {"", "train", *GOOD_NAMES}


def subfolders(parent: Path) -> list[Path]:
    return [path for path in _children(parent) if path.is_dir()]


def picture_files(parent: Path) -> list[Path]:
    return [path for path in _children(parent) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]


def _children(parent: Path) -> list[Path]:
    """Entries of a folder that are not hidden, in natural order; none if the folder does not exist."""
    if not parent.is_dir():
        return []
    return sorted((path for path in parent.iterdir() if not path.name.startswith(".")), key=_natural)


def _natural(path: Path) -> tuple[list[tuple[str, int]], str]:
    parts = re.split(r"(\d+)", path.name.casefold())  # text and digits alternate, text first
    return [(part, 0) if i % 2 == 0 else ("", int(part)) for i, part in enumerate(parts)], path.name
