"""What history.js asks for and gets: filters from the browser, rows and one inspection for it."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import tzinfo
from typing import TYPE_CHECKING, Any, cast, get_args
from zoneinfo import ZoneInfo

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from diffad.inspector import SCALE_TOP
from diffad.pictures import drawing
from diffad.pictures.reading import DataError, read_image
from diffad.report.rendering import data_uri
from diffad.ui import cards
from diffad.ui.layout import AUTO
from diffad.workspace.events import Event
from diffad.workspace.history import History
from diffad.workspace.queries import Filter, Sort
from diffad.workspace.record import CORRECTIONS, VERDICTS, Entry

if TYPE_CHECKING:
    from diffad.inspector import Inspector

PAGE = 50  # rows
SHOWN_PIXELS = 1024  # longest side of the picture in the detail
MASK_BYTES = 8 * 2**20
_SOURCES = {"inspect": "Inspect", "batch": "a batch", "api": "a program", "watch": "a watched folder"}
_WORDS = {"right": "right", "good": "wrong, it is good", "defective": "wrong, it is defective"}


def filter_of(asked: Mapping[str, Any]) -> Filter:
    """Which inspections the browser asks for; whatever is malformed is left out."""
    verdict, correction = asked.get("verdict"), asked.get("correction")
    corrections: Sequence[str] | None = {"none": ("",), "any": CORRECTIONS[1:]}.get(str(correction))
    if correction in CORRECTIONS[1:]:
        corrections = (str(correction),)
    return Filter(
        text=_text(asked.get("text")), category=_text(asked.get("category")) or None,
        verdict=str(verdict) if verdict in VERDICTS else None, correction=corrections,
        who=_text(asked.get("who")) or None,
        since=_number(asked.get("since")), until=_number(asked.get("until")),
        score_from=_number(asked.get("score_from")), score_to=_number(asked.get("score_to")),
    )  # fmt: skip


def sort_of(asked: Mapping[str, Any]) -> tuple[Sort, bool]:
    """By what the rows are sorted, and whether downwards."""
    sort = asked.get("sort")
    return cast("Sort", sort) if sort in get_args(Sort) else "time", asked.get("down") is not False


def zone_of(asked: Mapping[str, Any]) -> tzinfo | None:
    """The browser's time zone; None for the server's."""
    with suppress(Exception):  # names that are none raise many kinds of errors
        return ZoneInfo(_text(asked.get("zone")))
    return None


def row(history: History, entry: Entry) -> dict[str, Any]:
    """What the list shows of an inspection."""
    thumbnail = ""
    with suppress(OSError):
        data = history.thumbnail_path(entry).read_bytes()
        thumbnail = f"data:image/webp;base64,{base64.b64encode(data).decode()}"
    names = ("id", "time", "picture", "category", "verdict", "score", "threshold", "look_threshold",
             "correction", "who", "source")  # fmt: skip
    return {name: getattr(entry, name) for name in names} | {
        "thumbnail": thumbnail, "noted": len(entry.notes),
    }  # fmt: skip


def detail(history: History, entry: Entry, inspector: Inspector | None) -> dict[str, Any]:
    """All that is shown of one inspection.

    Args:
        inspector: of its model, if it is still served.
    """
    picture, size = _picture(history, entry)
    known = inspector is not None and entry.category in inspector.categories
    top = inspector.scale_top(entry.category) if inspector is not None and known else SCALE_TOP
    return row(history, entry) | {
        "uri": picture, "size": size, "map": _map(history, entry), "mask": _mask(history, entry), "top": top,
        "notes": list(entry.notes), "regions": len(entry.regions), "facts": facts(entry), "served": known,
        "events": [
            {"time": event.time, "who": event.who, "text": told(event)}
            for event in history.events(entry.id, ("correct", "undo", "rejudge"))
        ],
    }  # fmt: skip


def facts(entry: Entry) -> list[tuple[str, str]]:
    """How it was inspected, in words."""
    settings = entry.settings
    limits, asked = settings.get("limits", {}), settings.get("asked", {})
    names = {"threshold": "threshold", "look": "look limit"}
    own = [name for key, name in names.items() if limits.get(key) is not None]
    rate = limits.get("rate")
    chosen = [
        f"1 good part in {round(1 / rate)} rejected" if rate and "threshold" not in own else "",
        f"own {' and '.join(own)}" if own else "",
    ]
    tile = settings.get("tile")
    levels = ", ".join(map(str, settings.get("timesteps", ())))
    draws = asked.get("draws", 1)
    return [
        ("Category", f"{entry.category} ({'recognised' if settings.get('recognised') else 'chosen'})"),
        ("Model", entry.model),
        ("α", f"{settings.get('alpha', 0.5):.2f}"),
        ("Noise levels", f"t = {levels}" + (f", {draws} draws" if draws > 1 else "")),
        ("Limits", ", ".join(filter(None, chosen)) or "as computed"),
        ("Picture", (f"tiles of {tile} px" if tile else "whole") + f", {settings.get('bits', 8)} bits"),
        ("From", _SOURCES[entry.source]),
    ]  # fmt: skip


def told(event: Event) -> str:
    """An event about an inspection, in words."""
    before, after = event.detail["before"], event.detail["after"]
    if event.action == "rejudge":
        scores = f"score {before['score']:.2f} → {after['score']:.2f}"
        return f"judged by other settings: {scores}, {after['verdict']}"
    said = after["correction"]
    words = f"said: {_WORDS[said]}" if said else "took it back"
    drawn = said and after["mask"] and after["mask"] != before["mask"]
    return words + (", and drew the defect" if drawn else "") + (" (undo)" if event.action == "undo" else "")


def link_of(entry: Entry, inspector: Inspector) -> dict[str, Any]:
    """The parameters of the page's address that set the controls as they were (`link.controls_of`), and
    `off`: the timesteps that did not count.
    """
    asked, limits = entry.settings.get("asked", {}), entry.settings.get("limits", {})
    timesteps = asked.get("timesteps") or entry.settings.get("timesteps") or list(inspector.timesteps)
    usual = tuple(timesteps) == tuple(inspector.timesteps)
    tile = {"auto": AUTO, None: "whole"}.get(asked.get("tile", AUTO), asked.get("tile"))
    given = {
        "model": entry.model, "category": asked.get("category"), "alpha": entry.settings.get("alpha"),
        "low": None if usual else min(timesteps), "high": None if usual else max(timesteps),
        "count": None if usual else len(timesteps), "draws": asked.get("draws"), "tile": tile,
        "threshold": limits.get("threshold"), "rate": limits.get("rate"), "look": limits.get("look"),
        "look-rate": limits.get("look_rate"),
    }  # fmt: skip
    link = {name: str(value) for name, value in given.items() if value is not None}
    counted = entry.settings.get("timesteps") or timesteps
    return link | {"id": entry.id, "kind": entry.category, "off": [t for t in timesteps if t not in counted]}


def mask_of(uri: Any, size: tuple[int, int]) -> np.ndarray | None:
    """A drawn mask, uint8 [H, W], in the picture's size; None if nothing is drawn.

    Args:
        uri: of a PNG, opaque where the defect is, as the browser drew it.
        size: width and height of the picture, px.

    Raises:
        DataError: This is no drawing.
    """
    begin = "data:image/png;base64,"
    if not isinstance(uri, str) or not uri.startswith(begin) or len(uri) > MASK_BYTES:
        raise DataError("this drawing cannot be read: draw it again")
    try:
        with Image.open(io.BytesIO(base64.b64decode(uri[len(begin) :], validate=True))) as drawn:
            if max(drawn.size) > SHOWN_PIXELS:
                raise DataError("this drawing is too large: draw it again")
            opaque = np.asarray(drawn.convert("RGBA"))[..., 3]
    except (ValueError, OSError, UnidentifiedImageError) as error:
        raise DataError("this drawing cannot be read: draw it again") from error
    if not (opaque > 127).any():
        return None
    return cv2.resize((opaque > 127).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)


def picture_size(history: History, entry: Entry) -> tuple[int, int]:
    """Width and height of an inspection's picture, px. Raises DataError if it is gone."""
    height, width = read_image(history.picture_path(entry)).shape[:2]
    return width, height


def _picture(history: History, entry: Entry) -> tuple[str, list[int]]:
    """The picture as a data URI, and its size; the thumbnail's if the original is gone."""
    try:
        image = read_image(history.picture_path(entry), bits=entry.settings.get("bits"))
    except (DataError, OSError, TypeError):
        with suppress(OSError), Image.open(history.thumbnail_path(entry)) as small:
            shown = np.asarray(small.convert("RGB"))
            return data_uri(shown, "webp", 80), [shown.shape[1], shown.shape[0]]
        return "", [1, 1]
    height, width = image.shape[:2]
    return data_uri(np.asarray(drawing.shrunk(image, SHOWN_PIXELS), np.uint8), "jpeg", 92), [width, height]


def _map(history: History, entry: Entry) -> dict[str, Any] | None:
    """The map in 255 steps of σ from its lowest to its highest value."""
    try:
        values = history.anomaly_map(entry)
    except (OSError, ValueError):
        return None
    low, high = float(values.min()), float(values.max())
    step = max((high - low) / 255, 1e-9)
    codes = np.rint((values - low) / step).astype(np.uint8)
    return {
        "width": values.shape[1], "height": values.shape[0], "lowest": low, "step": step,
        "data": cards.base64_of(codes),
    }  # fmt: skip


def _mask(history: History, entry: Entry) -> str | None:
    """The drawn defect as a PNG's data URI, small, 255 where it is."""
    path = history.mask_path(entry)
    if path is None:
        return None
    with suppress(OSError), Image.open(path) as mask:
        return data_uri(np.asarray(drawing.shrunk(np.asarray(mask), SHOWN_PIXELS), np.uint8), "png", 1)
    return None


def _text(value: Any) -> str:
    return value[:300] if isinstance(value, str) else ""


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and math.isfinite(value) else None
