"""What is kept of one inspection."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

Verdict = Literal["good", "look", "anomalous"]
Source = Literal["inspect", "batch", "api", "watch"]
Correction = Literal["", "right", "good", "defective"]
VERDICTS: tuple[Verdict, ...] = ("good", "look", "anomalous")
SOURCES: tuple[Source, ...] = ("inspect", "batch", "api", "watch")
CORRECTIONS: tuple[Correction, ...] = ("", "right", "good", "defective")
_JSON = ("settings", "regions", "notes", "quality")
_SETTINGS = ("alpha", "timesteps", "draws", "seed", "tile", "bits", "recognised", "category_fits")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One inspection, before it is kept.

    Attributes:
        picture: the file's name.
        category, model, model_version: by which it was judged.
        score, threshold, look_threshold: in σ.
        rate: share of good pictures expected above the threshold, in [0, 1].
        time: UTC, s since 1970; None for the moment at which it is kept.
        settings: how it was inspected: alpha, timesteps, draws, seed, tile, and what chose the limits.
        regions: `Region.to_dict` of each, and by `relative` where it lies.
        notes: sentences shown beside the verdict.
        quality: `quality.MEASURES` by name; None if they were not measured.
        seconds: what it took.
        who: the login's name; empty without logins.
    """

    picture: str
    category: str
    model: str
    verdict: Verdict
    score: float
    threshold: float
    look_threshold: float
    rate: float
    model_version: str = ""
    time: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    regions: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    quality: Mapping[str, float] | None = None
    seconds: float = 0.0
    source: Source = "inspect"
    who: str = ""

    def __post_init__(self) -> None:
        """Raises ValueError for a verdict, a source or a number that no inspection has."""
        if self.verdict not in VERDICTS:
            raise ValueError(f'"{self.verdict}" is no verdict: give one of {", ".join(VERDICTS)}')
        if self.source not in SOURCES:
            raise ValueError(f'"{self.source}" is no source: give one of {", ".join(SOURCES)}')
        for name in ("score", "threshold", "look_threshold", "rate", "seconds"):
            if math.isnan(getattr(self, name)):
                raise ValueError(f"the {name} of {self.picture} is no number: inspect it again")

    @classmethod
    def of(
        cls, result: Mapping[str, Any], size: tuple[int, int], picture: str, model: str, **more: Any
    ) -> Record:
        """From what `Inspection.to_dict` says.

        Args:
            size: width and height of the picture, px.
            more: the other attributes; `settings` adds to those in the result.
        """
        settings = {name: result[name] for name in _SETTINGS if name in result} | more.pop("settings", {})
        names = ("category", "verdict", "score", "threshold", "look_threshold", "rate", "notes", "seconds")
        return cls(
            picture=picture, model=model, settings=settings,
            regions=[relative(region, size) for region in result["regions"]],
            **{name: result[name] for name in names}, **more,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Entry(Record):
    """An inspection that is kept.

    Attributes:
        id: never given twice.
        sha256, suffix: of the original, which `files.picture_path` finds.
        token: by which its thumbnail, map and mask are found.
        correction: what a person said: "right" of the verdict, else what the part is; empty if nobody did.
        corrected_at: UTC, s since 1970; None without a correction.
        mask: name of the file in which a person drew the defect; empty if nobody did.
    """

    id: int
    time: float
    sha256: str
    suffix: str
    token: str
    correction: Correction = ""
    corrected_at: float | None = None
    corrected_by: str = ""
    mask: str = ""

    @classmethod
    def of_row(cls, row: Sequence[Any]) -> Entry:
        """From a row with the columns FIELDS, JSON as text."""
        return cls(**{name: _read(name, value) for name, value in zip(FIELDS, row)})

    @property
    def is_defective(self) -> bool | None:
        """What a person said of the part; None if nobody did, or only that it was right to look at it."""
        return is_defective(self.verdict, self.correction)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {name: getattr(self, name) for name in FIELDS if name != "token"}


FIELDS = tuple(each.name for each in fields(Entry))


def is_defective(verdict: str, correction: str) -> bool | None:
    """What a correction says of the part; None if it says nothing."""
    if correction == "right":
        return None if verdict == "look" else verdict == "anomalous"
    return correction == "defective" if correction else None


def relative(region: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """A region with its centre (`where`: x, y) and its `extent` (width, height), as shares of the picture's
    width and height. size: of the picture, px.
    """
    x, y, width, height = region["box"]
    across, down = size
    where = [(x + width / 2) / across, (y + height / 2) / down]
    return {**region, "where": where, "extent": [width / across, height / down]}


def row_of(record: Record) -> dict[str, Any]:
    """Its columns, with JSON as text and nothing that a database cannot hold."""
    values = {each.name: getattr(record, each.name) for each in fields(Record)}
    return {name: _written(name, value) for name, value in values.items()}


def plain_text(text: str) -> str:
    """What a database can hold of a file's name, which need not be Unicode."""
    return text.encode("utf-8", "backslashreplace").decode()


def suffix_of(name: str) -> str:
    """The end of a file's name, in small letters, if it can be part of any file's name; else empty."""
    suffix = Path(name).suffix.lower()
    return suffix if suffix[1:].isascii() and suffix[1:].isalnum() and len(suffix) <= 11 else ""


def _written(name: str, value: Any) -> Any:
    if name in _JSON:
        return None if value is None else json.dumps(value, default=_number)
    if isinstance(value, str):
        return plain_text(value)
    return float(value) if name != "time" or value is not None else None


def _number(value: Any) -> Any:
    """JSON of numpy's scalars and of arrays."""
    return value.tolist()


def _read(name: str, value: Any) -> Any:
    return json.loads(value) if name in _JSON and value is not None else value
