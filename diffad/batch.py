"""Inspect many pictures: a verdict for each, and one table of all.

`run` inspects the pictures one after the other, `rejudged` applies other limits without running the network,
and `measured` compares the verdicts with known labels. `csv_file`, `document` and `write_zip` export results.
"""

from __future__ import annotations

import csv
import io
import json
import math
import zipfile
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import cv2
import numpy as np
import numpy.typing as npt

from diffad import __version__
from diffad.inspection import Inspection
from diffad.measuring.measures import Scored, measure
from diffad.method.fusion import fuse
from diffad.pictures import drawing
from diffad.pictures.intake import unused
from diffad.pictures.labels import folders_in_words, stray_masks
from diffad.pictures.masks import mask_on_grid, settled
from diffad.pictures.reading import DataError, common_bits, may_be_deep, read_image
from diffad.pictures.samples import Sample, listed, short
from diffad.verdicts import map_limit_for, regions_above, smallest_region, verdict_for

if TYPE_CHECKING:
    from diffad.inspector import Inspector

OVERLAY_PIXELS = 1024  # longest side of an overlay in `write_zip`
COLUMNS = (
    "path", "label", "verdict", "is_anomalous", "score", "threshold", "look_threshold", "category",
    "category_fits", "regions", "seconds", "bits", "notes", "error", "files",
)  # fmt: skip
# Spreadsheets treat a cell as a formula if it begins with one of these signs (Japanese ones also with a
# full-width sign), some also if blanks or control characters come first.
_FORMULA, _CONTROL = tuple("=+-@＝＋－＠"), ("\t", "\r", "\n")

MapOf = Callable[["Row"], np.ndarray]


@dataclass(frozen=True)
class Row:
    """The outcome for one picture.

    Attributes:
        name: unique within the batch.
        sample: the file, and the label that its folders give it.
        result: `Inspection.to_dict()`; empty if the picture could not be inspected.
        error: why there is no result; otherwise empty.
        size: width and height of the picture, px.
    """

    name: str
    sample: Sample
    result: Mapping[str, Any]
    error: str = ""
    size: tuple[int, int] = (0, 0)

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON-ready values, with `label` (good, or the kind of defect) where it is known."""
        label = {"label": self.sample.defect} if self.sample.defect else {}
        return {"path": self.name, **label, **({"error": self.error} if self.error else self.result)}


# ---------------------------------------------------------------------------------------------------------
# Verdicts


def shared_bits(
    inspector: Inspector, pictures: Mapping[str, Sample], category: str | None = None
) -> dict[str, int]:
    """Estimate the cameras' bit depths from the highest value in each set (`reading.common_bits`).

    A set is an MVTec category; all pictures outside MVTec folders form one set.

    Returns:
        Picture name → bits. Left out are 8-bit pictures, and those whose depth the model already knows.
    """
    sets: dict[str, list[str]] = {}
    for name, sample in pictures.items():
        if not may_be_deep(sample.image):
            continue
        known = _category_of(inspector, sample, category)
        names = inspector.categories if known is None else (known,)
        if any(inspector.bits(each, None) is None for each in names):
            sets.setdefault(sample.category if sample.split else "", []).append(name)
    found: dict[str, int] = {}
    for members in sets.values():
        if (bits := common_bits([pictures[name].image for name in members])) is not None:
            found |= dict.fromkeys(members, bits)
    return found


def bits_in_words(shared: Mapping[str, int]) -> str:
    """A sentence for the user about `shared_bits`; empty if there is nothing to say."""
    found = sorted(set(shared.values()))
    if not found or found == [16]:
        return ""
    listed = " or ".join(map(str, found))
    return (
        f"Pictures of more than 8 bits are read as {listed} bits, estimated from their highest value: "
        "if your camera has more, set its bit depth (bits, --bits)."
    )


def _category_of(inspector: Inspector, sample: Sample, category: str | None) -> str | None:
    return category or (sample.category if sample.split and sample.category in inspector.categories else None)


def run(
    inspector: Inspector,
    pictures: Mapping[str, Sample],
    category: str | None = None,
    shared: Mapping[str, int] | None = None,
    **settings: Any,
) -> Iterator[tuple[Row, Inspection | None]]:
    """Inspect one picture after the other.

    Args:
        category: the category of all pictures. With None, the category is that of the picture's MVTec folder
            if the model knows it; otherwise it is recognised.
        shared: bit depths from `shared_bits`.
        settings: passed to `Inspector.inspect`.

    Yields:
        The row of each picture, and its inspection for drawing. A picture that cannot be used gets a row
        with the reason, and None.

    Raises:
        ValueError: a setting is out of range.
    """
    for name, sample in pictures.items():
        known = _category_of(inspector, sample, category)
        own: dict[str, Any] = {"batch_bits": shared[name]} if shared and name in shared else {}
        if sample.image.is_dir():  # a folder without read permission, listed in place of its pictures
            yield Row(name, sample, {}, f"{name} may not be read: check its permissions"), None
            continue
        try:
            inspection = inspector.inspect(sample.image, category=known, **settings, **own)
            result = inspection.to_dict()
        except DataError as error:
            yield Row(name, sample, {}, str(error).replace(str(sample.image), name)), None
            continue
        except MemoryError:
            yield Row(name, sample, {}, f"{name} does not fit in memory: scale it down or cut it up"), None
            continue
        height, width = inspection.image.shape[:2]
        yield Row(name, sample, result, "", (width, height)), inspection


def grid_map(inspection: Inspection) -> npt.NDArray[np.float16]:
    """The fused map for `rejudged`, float16 [h, w], at most 512 px per side."""
    maps = inspection.grid_maps()
    pixel, feature = (np.stack([maps[t][branch] for t in inspection.timesteps]) for branch in (0, 1))
    return fuse(pixel, feature, inspection.alpha, inspection.grid_plain()).astype(np.float16)


def rejudged(row: Row, threshold: float, look_threshold: float, map_of: MapOf) -> Row:
    """The row under another threshold or look limit, with its regions found again in the grid map."""
    look_threshold = min(look_threshold, threshold)
    if row.error or (threshold, look_threshold) == (row.result["threshold"], row.result["look_threshold"]):
        return row
    verdict = verdict_for(row.result["score"], threshold, look_threshold)
    regions: list[dict[str, Any]] = []
    if verdict != "good":
        shape, fused = row.size[::-1], map_of(row).astype(np.float32)
        limit = map_limit_for(verdict, threshold, look_threshold, fused)
        smallest = smallest_region(shape, row.result["tile"])
        found = regions_above(fused, limit, shape, smallest)
        regions = [region.to_dict() for region in found]
    changed = {
        "threshold": float(threshold), "look_threshold": float(look_threshold), "verdict": verdict,
        "is_anomalous": verdict == "anomalous", "regions": regions,
    }  # fmt: skip
    return replace(row, result={**row.result, **changed})


def measured(rows: Iterable[Row], map_of: MapOf) -> dict[str, dict[str, Any]]:
    """Compare the verdicts with the labels: `measures.measure` by category.

    Categories that lack good or defective pictures are left out. A mask that cannot be used counts as
    missing in the pixel metrics.

    Returns:
        By category the keys of `measure`, and the `folders` and `notes` of `evaluation.evaluate`.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if not row.error and row.sample.is_anomalous is not None:
            groups.setdefault(row.sample.category, []).append(row)
    result = {}
    for category, group in groups.items():
        if len({row.sample.is_anomalous for row in group}) == 2:
            given = [row.sample for row in group]
            samples, notes = settled(given)
            group = [replace(row, sample=sample) for row, sample in zip(group, samples)]
            scored = [_scored(row, map_of) for row in group]
            useless = [
                row.sample.mask
                for row, one in zip(group, scored)
                if row.sample.mask is not None and one.mask is None
            ]
            if useless:
                notes.append(
                    f"Masks that are damaged or do not have the picture's size count as missing: "
                    f"{listed(map(short, useless))}."
                )
            about = {"folders": folders_in_words(samples), "notes": notes + stray_masks(given)}
            result[category] = measure(scored) | about
    return result


def _scored(row: Row, map_of: MapOf) -> Scored:
    on_grid, result = map_of(row).astype(np.float32), row.result
    mask = _mask(row, on_grid.shape)
    return Scored(
        path=row.sample.image,
        label=bool(row.sample.is_anomalous),
        score=result["score"],
        anomaly_map=None if mask is None else on_grid,
        mask=mask,
        verdict=result["is_anomalous"],
        threshold=result["threshold"],
        defect=row.sample.defect,
        seconds=result["seconds"],
    )


def _mask(row: Row, shape: tuple[int, int]) -> np.ndarray | None:
    """The row's mask on a grid [h, w] over the picture; None if there is no usable mask."""
    with suppress(DataError):
        return mask_on_grid(row.sample, row.size[::-1], shape)
    return None


# ---------------------------------------------------------------------------------------------------------
# Exported files


def csv_file(records: Iterable[Mapping[str, Any]]) -> bytes:
    """A CSV file for spreadsheets, with a line for each record (`Row.to_dict`) and the columns `COLUMNS`.

    The regions column holds their number; all notes share a cell, and so do all files. The file is UTF-8
    with a byte-order mark, text is quoted, and no cell can be mistaken for a formula.
    """

    def shown(record: Mapping[str, Any]) -> dict[str, Any]:
        regions = len(record["regions"]) if "regions" in record else ""
        return {**record, "regions": regions, "notes": " ".join(record.get("notes", ()))}

    return spreadsheet(COLUMNS, map(shown, records))


def spreadsheet(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    """A CSV file whose text is quoted and in which no cell can be mistaken for a formula."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(row.get(column, "")) for column in columns] for row in rows)
    return text.getvalue().encode("utf-8-sig", "backslashreplace")


def _cell(value: Any) -> Any:
    """A cell's content. Text that looks like a formula gets an apostrophe in front, which keeps it text."""
    if isinstance(value, (list, tuple)):
        value = "; ".join(map(str, value))
    if isinstance(value, str) and (value[:1] in _CONTROL or value.lstrip()[:1] in _FORMULA):
        return f"'{value}"
    return value


def json_text(value: Any, indent: int | None = 2) -> str:
    """Strictly valid JSON: NaN and infinity become null. With an indent of None it is one line."""

    def plain(item: Any) -> Any:
        if isinstance(item, Mapping):
            return {str(key): plain(entry) for key, entry in item.items()}
        if isinstance(item, (list, tuple)):
            return [plain(entry) for entry in item]
        if hasattr(item, "item"):  # a numpy scalar
            item = item.item()
        return None if isinstance(item, float) and not math.isfinite(item) else item

    return json.dumps(plain(value), indent=indent, allow_nan=False)


def document(inspector: Inspector, records: Sequence[Mapping[str, Any]], **about: Any) -> str:
    """All results (`Row.to_dict`) and the model that made them, as one JSON document."""
    model = {"model": inspector.name, "provenance": inspector.provenance, "diffad": __version__}
    return json_text(model | about | {"pictures": records})


def write_zip(
    file: Path | BinaryIO, inspector: Inspector, rows: Sequence[Row], map_of: MapOf, **about: Any
) -> None:
    """Write a zip file with results.csv, results.json, and an overlay and grid map of each picture.

    Overlays are PNG of at most 1024 px, maps `.npy` (float16, σ); the results list both. A picture whose file
    has been deleted in the meantime has no overlay.
    """
    records, names = [], {row.name for row in rows}
    with zipfile.ZipFile(file, "w") as archive:
        for row in rows:
            records.append(row.to_dict())
            if not row.error:
                records[-1]["files"] = _write_evidence(archive, inspector, row, map_of(row), names)
        archive.writestr("results.csv", csv_file(records), zipfile.ZIP_DEFLATED)
        archive.writestr("results.json", document(inspector, records, **about), zipfile.ZIP_DEFLATED)


def _write_evidence(
    archive: zipfile.ZipFile, inspector: Inspector, row: Row, on_grid: np.ndarray, taken: Container[str]
) -> list[str]:
    """Add a picture's map and overlay to the archive.

    Args:
        taken: the names of all pictures, which no other picture's overlay may use.

    Returns:
        The names of both files in the archive.
    """
    png = row.name.lower().endswith(".png")
    overlay = row.name if png else unused(Path(f"{row.name}.png"), taken)
    names = f"maps/{row.name}.npy", f"overlays/{overlay}"
    files = [name.encode("utf-8", "replace").decode() for name in names]  # names may contain invalid Unicode
    archive.writestr(files[0], drawing.npy_bytes(on_grid), zipfile.ZIP_DEFLATED)
    try:
        image = read_image(row.sample.image, row.result["bits"])
    except DataError:
        return files[:1]
    ignored = inspector.ignored(image, row.result["category"])
    hatched = image if ignored is None else drawing.hatched(image, ignored)
    picture = shown(hatched, on_grid, inspector, row, OVERLAY_PIXELS)
    archive.writestr(files[1], drawing.png_bytes(picture))
    return files


def shown(
    image: npt.NDArray[np.uint8], on_grid: np.ndarray, inspector: Inspector, row: Row, longest: int
) -> npt.NDArray[np.uint8]:
    """The picture with its heat map and contour, uint8 [h, w, 3], at most `longest` px per side."""
    small = drawing.shrunk(image, longest)
    heat = np.asarray(
        cv2.resize(on_grid.astype(np.float32), small.shape[1::-1], interpolation=cv2.INTER_LINEAR),
        np.float32,
    )
    result = row.result
    top = inspector.scale_top(result["category"])
    limit = map_limit_for(result["verdict"], result["threshold"], result["look_threshold"], heat)
    return drawing.overlay(small, heat, top, limit, contour=result["verdict"] != "good")
