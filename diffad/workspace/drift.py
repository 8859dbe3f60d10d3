"""Whether a category's good parts, or its pictures, are still those that were taught, by day.

Parts that pass are compared with the calibration's good scores up to the same limit, so that real defects,
and how many there are, change nothing. A day counts as changed when the scores differ much (population
stability index) and also more than chance would have it (rank-sum test), or when the middle picture lies
outside the range that was taught. A few outliers move neither. Days of few pictures, none of which says
enough by itself, may do so together.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, tzinfo

import numpy as np

from diffad.pictures.quality import LEAST as LEAST_BEYOND
from diffad.pictures.quality import MEASURES, WORDS
from diffad.workspace.history import History
from diffad.workspace.queries import Filter
from diffad.workspace.record import is_defective

LEAST = 10  # pictures of a day; one with fewer counts together with those after it
MUCH = 0.25  # the population stability index above which scores have changed, by convention
_UNLIKELY = 3.3  # standard deviations of the rank sum, which chance exceeds on 1 day in 1000
_LEANING = 1.28  # likewise, on 1 day in 10 to either side: such days in a row are looked at together
_FIRST = 20  # pictures that the first days need to stand for what was taught
_EXPLAINS = 0.5  # of the way to the edge of the range, from where on a measure may be why scores changed
# Distance from the middle below which no change of a measure counts, in its own units.
_LEAST_CHANGE = np.array([LEAST_BEYOND[name] for name in MEASURES])
_WEEKDAYS = "Mon Tue Wed Thu Fri Sat Sun".split()
_MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()


@dataclass(frozen=True, eq=False)
class Observed:
    """Inspections of one category, the oldest first.

    Attributes:
        times: UTC, s since 1970, float [n].
        scores: σ, float [n].
        good: called good, by the verdict or a person, bool [n].
        passed: the same, and those to look at that no person called defective, bool [n].
        limits: the threshold and the look limit of each, σ, float [n, 2].
        quality: `quality.MEASURES`, NaN where they were not measured, float [n, 6].
    """

    times: np.ndarray
    scores: np.ndarray
    good: np.ndarray
    passed: np.ndarray
    limits: np.ndarray
    quality: np.ndarray


@dataclass(frozen=True, eq=False)
class Reference:
    """What the days are compared with.

    Attributes:
        scores: of good pictures, σ, float [m]; empty if they are not known.
        quality: least, middle and largest value of each of `quality.MEASURES` that was taught, float [6, 3];
            None if it is not known.
        taught: whether they come from teaching, and not from the first days.
    """

    scores: np.ndarray
    quality: np.ndarray | None
    taught: bool = True


@dataclass(frozen=True, eq=False)
class Day:
    """A day, or several with few pictures each, in local time.

    Attributes:
        first, last: the day, or the first and the last of them.
        pictures: all that were inspected.
        good: how many were called good.
        median: of the scores of those, σ; NaN if there are none.
        stability: population stability index of the scores of parts that passed; 0 is no change at all.
        shift: the same scores' rank sum against the reference's, in standard deviations that chance gives it;
            positive if they are higher.
        quality: median of each of `quality.MEASURES`, NaN if none was measured, float [6].
        off: how far those lie from the middle, 1 at the edge of the range that was taught, float [6].
    """

    first: date
    last: date
    pictures: int
    good: int
    median: float
    stability: float
    shift: float
    quality: np.ndarray
    off: np.ndarray

    @property
    def scores_changed(self) -> bool:
        return self.stability > MUCH and abs(self.shift) > _UNLIKELY

    @property
    def leaning(self) -> int:
        """1 or −1 if the scores are rather higher or lower than the reference's, be it by chance; else 0."""
        return int(np.sign(self.shift)) if abs(self.shift) > _LEANING else 0

    @property
    def pictures_changed(self) -> bool:
        return bool((np.abs(np.nan_to_num(self.off)) > 1).any())

    @property
    def changed(self) -> bool:
        return self.scores_changed or self.pictures_changed


@dataclass(frozen=True, eq=False)
class Drift:
    """A category by day, the oldest first, what the days are compared with, and what there is to say."""

    days: tuple[Day, ...]
    reference: Reference
    good_median: float  # of the reference's scores up to the look limit, σ
    since: int | None  # which of the days is the first of a change that lasts; None while all is calm
    sentence: str | None  # likewise


def stability_index(expected: np.ndarray, found: np.ndarray, bins: int) -> float:
    """Population stability index: Σ (p − q) ln(p / q) over bins with equal shares of the expected values.

    Half a value is added to each bin, so that an empty one does not make it infinite.

    Args:
        expected, found: values [m] and [n].
        bins: how many, at most; equal expected values share one.
    """
    edges = np.unique(np.quantile(expected, np.linspace(0, 1, bins + 1)[1:-1]))
    shares = []
    for values in (found, expected):
        counts = np.bincount(np.searchsorted(edges, values, "right"), minlength=len(edges) + 1) + 0.5
        shares.append(counts / counts.sum())
    p, q = shares
    return float(((p - q) * np.log(p / q)).sum())


def rank_shift(expected: np.ndarray, found: np.ndarray) -> float:
    """How much higher the found values rank than the expected ones (Wilcoxon, Mann and Whitney), in standard
    deviations of equally distributed ones. Equal values count half. Both [m] and [n] hold some.
    """
    ranked = np.sort(expected)
    below, upto = (np.searchsorted(ranked, found, side) for side in ("left", "right"))
    m, n = len(expected), len(found)
    excess = float((below + upto).sum()) / 2 - m * n / 2
    _, ties = np.unique(np.concatenate([expected, found]), return_counts=True)
    total = m + n
    variance = m * n / 12 * (total + 1 - float((ties**3 - ties).sum()) / (total * (total - 1)))
    return excess / math.sqrt(variance) if variance > 0 else 0.0


def drift(observed: Observed, reference: Reference, zone: tzinfo | None = None) -> Drift:
    """Compares a category's days with what was taught, or with the first days as far as that is not known.

    Args:
        zone: in which days begin at midnight; None for this machine's.
    """
    groups = _groups(observed.times, zone)
    reference = _completed(reference, observed, [rows for _, _, rows in groups])
    threshold, look = np.median(observed.limits, axis=0) if len(observed.limits) else (math.inf, math.inf)
    expected = reference.scores[reference.scores <= threshold]
    good = reference.scores[reference.scores <= look]
    middle = float(np.median(good)) if good.size else math.nan
    days = tuple(_day(observed, expected, reference, *group) for group in groups)
    found = [observed.scores[rows][observed.passed[rows]] for _, _, rows in groups]
    since = _changed_since(days, expected, found)
    told = None if since is None else sentence(days[since:], reference, middle)
    return Drift(days, reference, middle, since, told)


def category_drift(
    history: History,
    category: str,
    reference: Reference,
    since: float | None = None,
    zone: tzinfo | None = None,
) -> Drift:
    """The same of the inspections that are kept.

    Args:
        since: UTC, s since 1970, as when the category was taught; None for all.
    """
    return drift(observed(history, Filter(category=category, since=since)), reference, zone)


def observed(history: History, chosen: Filter) -> Observed:
    """What is kept of the inspections chosen, which are of one category."""
    names = ("time", "score", "threshold", "look_threshold", "verdict", "correction", "quality")
    rows = history.columns(chosen, *names)
    numbers = np.array([row[:4] for row in rows], np.float64).reshape(-1, 4)
    said = [is_defective(verdict, correction) for *_, verdict, correction, _ in rows]
    verdicts = [row[4] for row in rows]
    good = [not bad if bad is not None else verdict == "good" for bad, verdict in zip(said, verdicts)]
    passed = [not bad if bad is not None else verdict != "anomalous" for bad, verdict in zip(said, verdicts)]
    measured = [json.loads(row[6]) if row[6] else {} for row in rows]
    quality = [[each.get(name, math.nan) for name in MEASURES] for each in measured]
    return Observed(
        numbers[:, 0], numbers[:, 1], np.array(good, bool), np.array(passed, bool), numbers[:, 2:],
        np.array(quality, np.float64).reshape(-1, len(MEASURES)),
    )  # fmt: skip


def sentence(since: Sequence[Day], reference: Reference, good_median: float) -> str:
    """What changed since when, and what to do.

    Args:
        since: the days from the first of the change to the last one.
        good_median: of the reference's good scores, σ; NaN if it is not known.
    """
    off = np.nan_to_num(np.abs(_median([day.off for day in since])))
    which, begin = int(np.argmax(off)), f"Since {_named(since[0].first)} "
    if any(day.pictures_changed for day in since) and not any(day.scores_changed for day in since):
        pictures = _pictures(which, since, reference)
        return f"{begin}{pictures}. Check the light and the camera, or teach 20 new pictures."
    why = f"{_pictures(which, since, reference)}: " if off[which] > _EXPLAINS else ""
    return f"{begin}{why}{_scores(since, good_median)}. Teach 20 new pictures, or check the light."


def _changed_since(days: Sequence[Day], expected: np.ndarray, found: Sequence[np.ndarray]) -> int | None:
    """The first of the days from which on all seem changed, if at least one or all together are.

    Args:
        found: the scores of parts that passed, by day.
    """
    start, leaning = len(days), 0
    while start:
        day = days[start - 1]
        if not day.pictures_changed and day.leaning in (0, -leaning):
            break
        start, leaning = start - 1, leaning or day.leaning
    if any(day.changed for day in days[start:]):
        return start
    if start == len(days):
        return None
    return start if _differ(expected, np.concatenate(found[start:])) else None


def _differ(expected: np.ndarray, found: np.ndarray) -> bool:
    stability, shift = _compared(expected, found)
    return stability > MUCH and abs(shift) > _UNLIKELY


def _compared(expected: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """Stability index and rank shift; no change where there are too few values to tell."""
    least = min(len(found), len(expected))
    if least < LEAST // 2:
        return 0.0, 0.0
    return stability_index(expected, found, min(10, max(2, least // 10))), rank_shift(expected, found)


def _groups(times: np.ndarray, zone: tzinfo | None) -> list[tuple[date, date, slice]]:
    """First and last day and rows of each day or few days; the latest ones wait until there are enough."""
    days = [datetime.fromtimestamp(each, zone).date() for each in times.tolist()]
    found, start = [], 0
    for row in range(1, len(days) + 1):
        ends = row == len(days) or days[row] != days[row - 1]
        if ends and row - start >= LEAST:
            found.append((days[start], days[row - 1], slice(start, row)))
            start = row
    return found


def _completed(reference: Reference, observed: Observed, groups: Sequence[slice]) -> Reference:
    """The reference, where it is not known from the first days."""
    if reference.scores.size and reference.quality is not None:
        return reference
    end = next((rows.stop for rows in groups if rows.stop >= _FIRST), 0)
    scores, quality = reference.scores, reference.quality
    if not scores.size:
        scores = observed.scores[:end][observed.passed[:end]]
    if quality is None and end and not np.isnan(observed.quality[:end]).all(axis=0).any():
        middle = np.nanmedian(observed.quality[:end], axis=0)
        spread = 3 * 1.4826 * np.nanmedian(np.abs(observed.quality[:end] - middle), axis=0)
        quality = np.stack([middle - spread, middle, middle + spread], 1)
    return Reference(scores, quality, taught=False)


def _day(
    observed: Observed, expected: np.ndarray, reference: Reference, first: date, last: date, rows: slice
) -> Day:
    scores, good = observed.scores[rows], observed.good[rows]
    stability, shift = _compared(expected, scores[observed.passed[rows]])
    quality = _median(observed.quality[rows])
    off = np.full(len(MEASURES), math.nan)
    if reference.quality is not None:
        low, middle, high = reference.quality.T
        reach = np.where(quality < middle, middle - low, high - middle)
        off = (quality - middle) / np.maximum(1.1 * reach, _LEAST_CHANGE)
    return Day(
        first, last, len(scores), int(good.sum()), float(_median(scores[good][:, None])[0]), stability, shift,
        quality, off,
    )  # fmt: skip


def _median(values: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    """Of each column [n, m], NaN left out; NaN where nothing else is."""
    columns = np.asarray(values, np.float64).T
    kept = [column[~np.isnan(column)] for column in columns]
    return np.array([np.median(column) if column.size else math.nan for column in kept])


def _pictures(which: int, since: Sequence[Day], reference: Reference) -> str:
    """How the pictures look now, as "pictures are 8 % darker"."""
    less, more, relative = WORDS[MEASURES[which]]
    assert reference.quality is not None
    middle = reference.quality[which, 1]
    change = _median([day.quality for day in since])[which] - middle
    much = f"{abs(change / middle):.0%}".replace("%", " % ") if relative and middle > 0 else ""
    return f"pictures are {much}{less if change < 0 else more}"


def _scores(since: Sequence[Day], before: float) -> str:
    """How good parts score now."""
    after = float(_median([np.array([day.median]) for day in since])[0])
    if math.isnan(after):
        return "hardly any part passes as good"
    went = "rose" if after > before else "fell"
    return f"the median score of good parts {went} from {before:.1f} to {after:.1f}"


def _named(day: date) -> str:
    """As "Tue 24 Nov", whatever the machine's language."""
    return f"{_WEEKDAYS[day.weekday()]} {day.day} {_MONTHS[day.month - 1]}"
