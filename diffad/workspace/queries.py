"""Which inspections: a choice of rows in words of the database, with every value as a parameter."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from diffad.workspace.record import FIELDS, plain_text

Sort = Literal["time", "score", "picture", "category", "verdict", "correction", "model", "who"]
_ORDER: dict[str, str] = {
    "time": "time", "score": "score", "picture": "folded", "category": "category",
    "verdict": "CASE verdict WHEN 'good' THEN 0 WHEN 'look' THEN 1 ELSE 2 END",  # by how bad
    "correction": "correction", "model": "model", "who": "who",
}  # fmt: skip
# The columns of `Entry`, read with the picture's suffix.
COLUMNS = ", ".join("pictures.suffix" if name == "suffix" else f"inspections.{name}" for name in FIELDS)
FROM = "FROM inspections JOIN pictures USING (sha256)"


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which inspections; what is None, or an empty text, lets all through.

    Attributes:
        text: part of the picture's file name, in any case.
        category, verdict, correction, model, who: one value, or several of which any may be. A correction of
            "" are the inspections that nobody corrected.
        since, until: UTC, s since 1970; since ≤ time < until.
        score_from, score_to: both included.
    """

    text: str = ""
    category: str | Collection[str] | None = None
    verdict: str | Collection[str] | None = None
    correction: str | Collection[str] | None = None
    model: str | Collection[str] | None = None
    who: str | Collection[str] | None = None
    since: float | None = None
    until: float | None = None
    score_from: float | None = None
    score_to: float | None = None

    def sql(self) -> tuple[str, list[str | float]]:
        """A condition and its parameters."""
        conditions, values = ["1"], list[str | float]()
        for name in ("category", "verdict", "correction", "model", "who"):
            chosen = getattr(self, name)
            if chosen is not None:
                several = [chosen] if isinstance(chosen, str) else list(chosen)
                conditions.append(f"{name} IN ({', '.join('?' * len(several))})")
                values += [plain_text(each) for each in several]
        limits = (
            ("time >= ?", self.since), ("time < ?", self.until),
            ("score >= ?", self.score_from), ("score <= ?", self.score_to),
        )  # fmt: skip
        for condition, limit in limits:
            if limit is not None:
                conditions.append(condition)
                values.append(float(limit))
        if self.text.strip():
            conditions.append(r"folded LIKE ? ESCAPE '\'")
            values.append(f"%{_escaped(folded(self.text.strip()))}%")
        return " AND ".join(conditions), values


def order(sort: str, descending: bool) -> str:
    """Of rows; equal ones by the order in which they were kept. Raises ValueError for an unknown sort."""
    if sort not in _ORDER:
        raise ValueError(f'there is no order by "{sort}": choose one of {", ".join(_ORDER)}')
    direction = "DESC" if descending else "ASC"
    return f"{_ORDER[sort]} {direction}, id {direction}"


def folded(text: str) -> str:
    """Text in the form in which it is searched, whatever its case."""
    return unicodedata.normalize("NFC", plain_text(text).casefold())


def _escaped(text: str) -> str:
    """Text that LIKE takes literally."""
    for sign in ("\\", "%", "_"):
        text = text.replace(sign, f"\\{sign}")
    return text
