"""A category over a period: how many were rejected, how often that was right, and where the defects lie."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, tzinfo
from typing import Any

import numpy as np

from diffad.workspace.history import History
from diffad.workspace.queries import Filter
from diffad.workspace.record import is_defective

CELLS = 32  # of the heat map a side
_Z = 1.959964  # standard deviations within which 95 % of a normal distribution lie


@dataclass(frozen=True)
class Share:
    """A share with its Wilson interval, in which the true one lies in 19 of 20 cases.

    Attributes:
        count, of: how many of how many.
        value: in [0, 1]; None of none.
        low, high: in [0, 1]; 0 and 1 of none.
    """

    count: int
    of: int
    value: float | None
    low: float
    high: float


@dataclass(frozen=True)
class Confusion:
    """What people said of the verdicts; only the parts of which somebody said something count.

    Attributes:
        rejected_defective, rejected_good: anomalous by the verdict, and by a person's word.
        passed_defective, passed_good: good by the verdict, likewise.
        looked_defective, looked_good: shown to a person, likewise; "right" of such a part says neither.
    """

    rejected_defective: int = 0
    rejected_good: int = 0
    passed_defective: int = 0
    passed_good: int = 0
    looked_defective: int = 0
    looked_good: int = 0

    @property
    def precision(self) -> Share:
        """Of the rejected parts, those that are defective."""
        return share(self.rejected_defective, self.rejected_defective + self.rejected_good)

    @property
    def recall(self) -> Share:
        """Of the defective parts, those that did not pass: rejected, or shown to a person."""
        found = self.rejected_defective + self.looked_defective
        return share(found, found + self.passed_defective)


@dataclass(frozen=True)
class DayCount:
    """How many pictures a day had, by verdict. day: in local time."""

    day: date
    pictures: int = 0
    rejected: int = 0
    looked_at: int = 0


@dataclass(frozen=True, eq=False)
class Summary:
    """A category's report over a period.

    Attributes:
        pictures: how many were inspected.
        rejected: how many of them were anomalous.
        looked_at: how many were for a person to look at.
        corrected: of how many a person said something.
        regions: how many regions the heat map counts.
        heat: how many regions touch each place, float [32, 32] over the picture's height and width.
        days: those with pictures, the oldest first.
    """

    pictures: int
    rejected: int
    looked_at: int
    corrected: int
    confusion: Confusion
    regions: int
    heat: np.ndarray
    days: tuple[DayCount, ...]


def summary(
    history: History,
    category: str,
    since: float | None = None,
    until: float | None = None,
    zone: tzinfo | None = None,
) -> Summary:
    """The report on a category.

    Args:
        since, until: UTC, s since 1970; since ≤ time < until; None for all.
        zone: in which days begin at midnight; None for this machine's.
    """
    chosen = Filter(category=category, since=since, until=until)
    rows = history.columns(chosen, "time", "verdict", "correction")
    flagged = replace(chosen, verdict=("look", "anomalous"), correction=("", "right", "defective"))
    regions = [region for (text,) in history.columns(flagged, "regions") for region in json.loads(text)]
    heat = heat_map(regions)
    verdicts = [verdict for _, verdict, _ in rows]
    return Summary(
        len(rows), verdicts.count("anomalous"), verdicts.count("look"),
        sum(1 for row in rows if row[2]), confusion((verdict, correction) for _, verdict, correction in rows),
        len(regions), heat, by_day(((time, verdict) for time, verdict, _ in rows), zone),
    )  # fmt: skip


def share(count: int, of: int) -> Share:
    """A share with its 95 % interval (Wilson)."""
    if not of:
        return Share(count, of, None, 0.0, 1.0)
    value, unsure = count / of, _Z**2 / of
    middle = (value + unsure / 2) / (1 + unsure)
    half = math.sqrt(unsure * (value * (1 - value) + unsure / 4)) / (1 + unsure)
    return Share(count, of, value, max(0.0, middle - half), min(1.0, middle + half))


def confusion(said: Iterable[tuple[str, str]]) -> Confusion:
    """Counts verdicts with their corrections."""
    words = {"anomalous": "rejected", "good": "passed", "look": "looked"}
    counts: dict[str, int] = {}
    for verdict, correction in said:
        bad = is_defective(verdict, correction)
        if bad is not None:
            name = f"{words[verdict]}_{'defective' if bad else 'good'}"
            counts[name] = counts.get(name, 0) + 1
    return Confusion(**counts)


def heat_map(regions: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """How many regions' boxes touch each cell of the picture, float [32, 32]. regions: see `record.relative`;
    even the smallest touches one cell.
    """
    heat = np.zeros((CELLS, CELLS))
    for region in regions:
        (x, y), (width, height) = region["where"], region["extent"]
        heat[_cells(y, height), _cells(x, width)] += 1
    return heat


def by_day(verdicts: Iterable[tuple[float, str]], zone: tzinfo | None = None) -> tuple[DayCount, ...]:
    """Counts by day. verdicts: each with its time, UTC, s since 1970."""
    counts: dict[date, list[int]] = {}
    for time, verdict in verdicts:
        day = counts.setdefault(datetime.fromtimestamp(time, zone).date(), [0, 0, 0])
        day[0] += 1
        day[1] += verdict == "anomalous"
        day[2] += verdict == "look"
    return tuple(DayCount(day, *counts[day]) for day in sorted(counts))


def _cells(centre: float, extent: float) -> slice:
    """Those that a box touches along one side; both as shares of the side."""
    first = math.floor(CELLS * (centre - extent / 2) + 1e-6)
    end = math.ceil(CELLS * (centre + extent / 2) - 1e-6)
    first = min(max(first, 0), CELLS - 1)
    return slice(first, min(max(end, first + 1), CELLS))
