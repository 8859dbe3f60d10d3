"""A day's pictures: files, archives and folders in, a verdict for each out, one table at the end.

`sources` finds the pictures, `run` judges them one after the other, `rejudged` answers for another threshold
without the network, `measured` says how good the verdicts are where labels are known; `csv_text`, `document`
and `write_zip` are what a person takes away.
"""

from __future__ import annotations

import csv
import io
import json
import math
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

import cv2
import numpy as np

from diffad import __version__, render
from diffad.data import (
    IMAGE_SUFFIXES,
    DataError,
    Sample,
    find_samples,
    picture_files,
    read_image,
    reduced_mask,
    subfolders,
)
from diffad.evaluation import Scored, measure
from diffad.inspection import smallest_region
from diffad.scoring import find_regions, fuse

if TYPE_CHECKING:
    from diffad.inspector import Inspection, Inspector

MAX_PICTURES = 20_000
MAX_UNPACKED = 8 * 2**30  # bytes of pictures in one archive
OVERLAY_PIXELS = 1024  # longest side of the overlays in `write_zip`
COLUMNS = (
    "path", "label", "is_anomalous", "score", "threshold", "category", "category_fits", "regions", "seconds",
    "error",
)  # fmt: skip
_JUNK = {"__MACOSX"}  # what macOS adds to archives

MapOf = Callable[["Row"], np.ndarray]
Claim = Callable[[int], None]  # hears of bytes before they are written; raises DataError if they do not fit


@dataclass(frozen=True)
class Row:
    """What is said of one picture.

    name: its own among the batch. result: `Inspection.to_dict()`, empty where `error` says why there is none.
    size: width and height of the picture, px.
    """

    name: str
    sample: Sample
    result: Mapping[str, Any]
    error: str = ""
    size: tuple[int, int] = (0, 0)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `label` (good, or the kind of defect) only where the folders tell it."""
        label = {"label": self.sample.defect} if self.sample.defect else {}
        return {"path": self.name, **label, **({"error": self.error} if self.error else self.result)}


# ---------------------------------------------------------------------------------------------------------
# Pictures in


def sources(
    paths: Iterable[Path], folder: Path, within: Path | None = None, claim: Claim | None = None
) -> dict[str, Sample]:
    """The pictures of files, `.zip` archives and folders, each under a name of its own, in natural order.

    A file that is given is taken whatever it is; `run` says what is wrong with it. Folders and archives are
    searched through: an MVTec category gives its test pictures with labels and masks, all else every picture.
    Archives are unpacked below `folder`, pictures only. within: nothing outside this folder is taken, however
    a path or a link leads there. claim: what unpacking takes on the disk. Raises DataError for a path outside
    `within`, an archive that is damaged, locked, too large or leads out of itself, no picture at all, or more
    than MAX_PICTURES.
    """
    found: dict[str, Sample] = {}
    paths = list(paths)
    for number, path in enumerate(paths):
        if within is not None:
            path = below(path, within)
        if path.suffix.lower() == ".zip" and path.is_file():
            root = folder / str(number) / path.stem
            unpack(path, root, claim)
            samples: Iterable[Sample] = _tree(root)
        elif path.is_dir():
            root, samples = path, _tree(path)
        else:
            root, samples = path.parent, [Sample(path, path.parent.name)]
        for sample in samples:
            if within is not None:
                if not _is_below(sample.image, within):
                    continue
                if sample.mask is not None and not _is_below(sample.mask, within):
                    sample = replace(sample, mask=None)
            found[_unused(sample.image.relative_to(root), found)] = sample
            if len(found) > MAX_PICTURES:
                raise DataError(f"these are more than {MAX_PICTURES} pictures: give them in several batches")
    if not found:
        names = ", ".join(path.name for path in paths[:3])
        raise DataError(f"there are no pictures in {names}: give PNG, JPEG, TIFF or WebP files, also zipped")
    return found


def below(path: Path, root: Path) -> Path:
    """The path, resolved, if it lies in `root` or below, links and .. followed. Raises DataError if not."""
    try:
        if not path.exists():
            raise DataError("there is no such folder here: choose one from the list")
        if not _is_below(path, root):
            raise DataError("this lies outside the folder that may be read here: choose one from the list")
        return path.resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a zero byte, a loop of links, no permission
        if isinstance(error, DataError):
            raise
        raise DataError("this path cannot be read: choose a folder from the list") from error


def _is_below(path: Path, root: Path) -> bool:
    return path.resolve().is_relative_to(root.resolve())


def _unused(name: Path, taken: Mapping[str, Any]) -> str:
    free, number = name.as_posix(), 1
    while free in taken:
        number += 1
        free = name.with_name(f"{name.stem} ({number}){name.suffix}").as_posix()
    return free


def _tree(folder: Path) -> Iterator[Sample]:
    try:
        labelled = find_samples(folder, split="test") if (folder / "test").is_dir() else []
    except DataError:  # just a folder by that name
        labelled = []
    if labelled:
        yield from labelled
        return
    try:
        yield from (Sample(path, folder.name) for path in picture_files(folder))
        deeper = [each for each in subfolders(folder) if each.name not in _JUNK and not each.is_symlink()]
    except OSError as error:
        raise DataError(f"{folder.name} may not be read: check its permissions") from error
    for each in deeper:
        yield from _tree(each)


def unpack(archive: Path, folder: Path, claim: Claim | None = None) -> None:
    """Unpacks the pictures of a zip archive below `folder`, and nothing else that is in it.

    Raises DataError, see `sources`; the bytes are counted as they come out, not as the archive declares them.
    """
    name, left, count = archive.name, MAX_UNPACKED, 0
    try:
        with zipfile.ZipFile(archive) as opened:
            for entry in opened.infolist():
                path = PurePosixPath(entry.filename.replace("\\", "/"))
                if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
                    raise DataError(f"{name} holds paths that lead out of it: pack it anew")
                if entry.is_dir() or path.suffix.lower() not in IMAGE_SUFFIXES or _is_junk(path, entry):
                    continue
                count += 1
                if count > 2 * MAX_PICTURES:  # each may have its mask
                    raise DataError(f"{name} holds more than {MAX_PICTURES} pictures: give it in parts")
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(entry) as packed, target.open("wb") as file:
                    while chunk := packed.read(1 << 20):
                        left -= len(chunk)
                        if left < 0:
                            limit = MAX_UNPACKED >> 30
                            raise DataError(f"{name} unpacks to more than {limit} GB: give it in parts")
                        if claim is not None:
                            claim(len(chunk))
                        file.write(chunk)
    except DataError:
        raise
    except RuntimeError as error:  # how zipfile says that there is a password, or an unknown packing
        raise DataError(f"{name} is locked or packed in an unusual way: pack it anew as plain zip") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, IndexError, OSError) as error:
        raise DataError(f"{name} is damaged or cannot be unpacked: pack it anew") from error


def _is_junk(path: PurePosixPath, entry: zipfile.ZipInfo) -> bool:
    hidden = any(part.startswith(".") or part in _JUNK for part in path.parts)
    return hidden or stat.S_ISLNK(entry.external_attr >> 16)


# ---------------------------------------------------------------------------------------------------------
# Verdicts


def run(
    inspector: Inspector, pictures: Mapping[str, Sample], category: str | None = None, **settings: Any
) -> Iterator[tuple[Row, Inspection | None]]:
    """Inspects one picture after the other; a Row as each is done, with its inspection for whoever draws.

    category: of all of them; None takes an MVTec folder's own where the model knows it, else recognises each.
    settings go to `Inspector.inspect`. A picture that cannot be used is a row with the reason, and no
    inspection. Raises ValueError for settings out of range.
    """
    for name, sample in pictures.items():
        known = sample.category if sample.split and sample.category in inspector.categories else None
        try:
            inspection = inspector.inspect(sample.image, category=category or known, **settings)
            result = inspection.to_dict()
        except DataError as error:
            yield Row(name, sample, {}, str(error).replace(str(sample.image), name)), None
            continue
        except MemoryError:
            yield Row(name, sample, {}, f"{name} does not fit in memory: scale it down or cut it up"), None
            continue
        height, width = inspection.image.shape[:2]
        yield Row(name, sample, result, "", (width, height)), inspection


def reduced_map(inspection: Inspection) -> np.ndarray:
    """The fused map as small as it is judged, float16 [h, w] of at most 512 px: what `rejudged` wants."""
    maps = inspection.reduced_maps()
    pixel, feature = (np.stack([maps[t][branch] for t in inspection.timesteps]) for branch in (0, 1))
    return fuse(pixel, feature, inspection.alpha).astype(np.float16)


def rejudged(row: Row, threshold: float, map_of: MapOf) -> Row:
    """The row under another threshold, regions found again in its reduced map; no network."""
    if row.error or threshold == row.result["threshold"]:
        return row
    bad = row.result["score"] > threshold
    regions: list[dict[str, Any]] = []
    if bad:
        reduced = map_of(row).astype(np.float32)
        (height, width), (full_width, full_height) = reduced.shape, row.size
        across, down = full_width / width, full_height / height
        smallest = smallest_region(row.result["tile"] or max(row.size)) / (across * down)
        for region in find_regions(reduced, threshold, max(1, round(smallest))):
            x, y, w, h = region.box
            regions.append({
                "box": [round(x * across), round(y * down), round(w * across), round(h * down)],
                "area": round(region.area * across * down), "peak": region.peak, "mean": region.mean,
            })  # fmt: skip
    changed = {"threshold": float(threshold), "is_anomalous": bool(bad), "regions": regions}
    return replace(row, result={**row.result, **changed})


def measured(rows: Iterable[Row], map_of: MapOf) -> dict[str, dict[str, Any]]:
    """`evaluation.measure` of the labelled rows by category; none without a good and a defective picture.

    The maps are the reduced ones. A mask that cannot be used is left out of the pixel metrics, like a missing
    one.
    """
    groups: dict[str, list[Scored]] = {}
    for row in rows:
        label = row.sample.is_anomalous
        if row.error or label is None:
            continue
        reduced = map_of(row).astype(np.float32)
        mask = _mask(row, reduced.shape)
        said = row.result
        scored = Scored(
            row.sample.image, label, said["score"], None if mask is None else reduced, mask,
            said["is_anomalous"], said["threshold"], None, row.sample.defect, said["seconds"],
        )  # fmt: skip
        groups.setdefault(row.sample.category, []).append(scored)
    return {
        category: measure(scored)
        for category, scored in groups.items()
        if len({each.label for each in scored}) == 2
    }


def _mask(row: Row, shape: tuple[int, ...]) -> np.ndarray | None:
    """The row's mask where the reduced map of that shape lies, as `evaluation` brings it there."""
    with suppress(DataError):
        return reduced_mask(row.sample, row.size[::-1], shape)
    return None


# ---------------------------------------------------------------------------------------------------------
# To take away


def csv_text(records: Iterable[Mapping[str, Any]]) -> str:
    """A line for each record (`Row.to_dict`), columns COLUMNS; regions as their number."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({**record, "regions": len(record["regions"]) if "regions" in record else ""})
    return text.getvalue()


def json_text(value: Any) -> str:
    """JSON that every parser reads: NaN and infinity become null."""

    def plain(item: Any) -> Any:
        if isinstance(item, Mapping):
            return {str(key): plain(entry) for key, entry in item.items()}
        if isinstance(item, (list, tuple)):
            return [plain(entry) for entry in item]
        if hasattr(item, "item"):  # a numpy scalar
            item = item.item()
        return None if isinstance(item, float) and not math.isfinite(item) else item

    return json.dumps(plain(value), indent=2, allow_nan=False)


def document(inspector: Inspector, rows: Sequence[Row], **about: Any) -> str:
    """All results as one JSON document that also says by which model they were made."""
    model = {"model": inspector.name, "provenance": inspector.provenance, "diffad": __version__}
    return json_text(model | about | {"pictures": [row.to_dict() for row in rows]})


def write_zip(
    file: Path | BinaryIO, inspector: Inspector, rows: Sequence[Row], map_of: MapOf, **about: Any
) -> None:
    """Writes results.csv, results.json, and for each picture an overlay as PNG (at most 1024 px) and its
    reduced map as `.npy` (float16, σ). A picture that is gone by now has no overlay.
    """
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("results.csv", csv_text(row.to_dict() for row in rows), zipfile.ZIP_DEFLATED)
        archive.writestr("results.json", document(inspector, rows, **about), zipfile.ZIP_DEFLATED)
        for row in rows:
            if row.error:
                continue
            reduced = map_of(row)
            data = io.BytesIO()
            np.save(data, reduced)
            archive.writestr(f"maps/{row.name}.npy", data.getvalue(), zipfile.ZIP_DEFLATED)
            try:
                picture = shown(read_image(row.sample.image), reduced, inspector, row, OVERLAY_PIXELS)
            except DataError:
                continue
            name = row.name if row.name.lower().endswith(".png") else f"{row.name}.png"
            archive.writestr(f"overlays/{name}", render.png_bytes(picture))


def shown(
    image: np.ndarray, reduced: np.ndarray, inspector: Inspector, row: Row, longest: int
) -> np.ndarray:
    """The picture with its heat and contour, uint8 [h, w, 3] with at most `longest` px."""
    small = render.reduced(image, longest)
    heat = cv2.resize(reduced.astype(np.float32), small.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    top, said = inspector.scale_top(row.result["category"]), row.result
    return render.overlay(small, heat, top, said["threshold"], contour=said["is_anomalous"])
