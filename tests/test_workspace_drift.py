"""Drift is found on the day it was planted, and not where there is none."""

from __future__ import annotations

import math
from datetime import date, datetime, timedelta, timezone
from statistics import NormalDist

import numpy as np
import pytest
from workspace_cases import keep

from diffad.pictures.quality import MEASURES
from diffad.workspace import drift
from diffad.workspace.drift import Observed, Reference, rank_shift, stability_index
from diffad.workspace.history import History
from diffad.workspace.store import Workspace

UTC = timezone.utc
DAY = 86_400.0
FIRST = datetime(2026, 11, 16, 8, tzinfo=UTC).timestamp()  # a Monday
TAUGHT = np.array(
    [(90, 100, 110), (30, 40, 50), (0.9, 1, 1.1), (0.9, 1, 1.1), (0.4, 0.5, 0.6), (1, 2, 3)], float
)  # fmt: skip
MIDDLE = TAUGHT[:, 1]
THRESHOLD, LOOK = 4.33, 3.28  # of scores N(2, 1): 1 in 100 and 1 in 10 good parts lie above


def good_scores(rng: np.random.Generator, count: int = 100) -> np.ndarray:
    return rng.normal(2, 1, count)


def observe(days: list[np.ndarray], quality: list[np.ndarray] | None = None) -> Observed:
    """A day's scores each, judged by the limits, a minute apart. quality: of all pictures of a day."""
    scores = np.concatenate(days)
    times = np.concatenate([FIRST + DAY * n + 60.0 * np.arange(len(day)) for n, day in enumerate(days)])
    looks = [MIDDLE] * len(days) if quality is None else quality
    return Observed(
        times, scores, scores <= LOOK, scores <= THRESHOLD, np.tile([THRESHOLD, LOOK], (len(scores), 1)),
        np.concatenate([np.tile(look, (len(day), 1)) for day, look in zip(days, looks)]),
    )  # fmt: skip


def taught(rng: np.random.Generator, count: int = 100) -> Reference:
    return Reference(good_scores(rng, count), TAUGHT)


# ---------------------------------------------------------------------------------------------------------
# Known answers


def test_the_stability_index_of_known_shares():
    """Half of the expected values lie on each side, but 3 of 4 of those found: Σ (p − q) ln(p / q)."""
    expected, found = np.arange(1000), np.concatenate([np.full(250, 0), np.full(750, 999)])
    by_hand = (0.25 - 0.5) * math.log(0.25 / 0.5) + (0.75 - 0.5) * math.log(0.75 / 0.5)
    assert stability_index(expected, found, 2) == pytest.approx(by_hand, rel=0.01)
    assert stability_index(expected, expected, 10) == 0
    assert stability_index(expected, np.full(50, 999), 10) < 10  # empty bins are no infinity
    assert stability_index(np.ones(20), np.ones(20), 10) == 0  # nor are equal values


def test_the_rank_shift_of_known_ranks():
    """All 3 found above all 2 expected: U = 6 against 3 ± √(3 · 2 · 6 / 12)."""
    assert rank_shift(np.array([1, 2]), np.array([3, 4, 5])) == pytest.approx(3 / math.sqrt(3))
    assert rank_shift(np.array([3, 4, 5]), np.array([1, 2])) == pytest.approx(-3 / math.sqrt(3))
    assert rank_shift(np.ones(9), np.ones(9)) == 0


def test_the_rank_shift_is_standard_normal_without_a_change():
    rng = np.random.default_rng(1)
    found = [rank_shift(rng.normal(size=50).round(1), rng.normal(size=12).round(1)) for _ in range(2000)]
    assert abs(np.mean(found)) < 0.1 and np.std(found) == pytest.approx(1, abs=0.06)


# ---------------------------------------------------------------------------------------------------------
# No drift


@pytest.mark.parametrize("a_day, learned", [(10, 20), (30, 50), (400, 200)])
def test_days_like_the_taught_ones_are_calm(a_day, learned):
    """At most 3 of 500 days and 1 of 100 last days may seem changed by chance; 1 in 1000 is meant to."""
    rng, changed, told = np.random.default_rng(2), 0, 0
    for _ in range(100):
        days = [good_scores(rng, a_day) for _ in range(5)]
        found = drift.drift(observe(days), taught(rng, learned), UTC)
        assert len(found.days) == 5
        changed += sum(day.changed for day in found.days)
        told += found.sentence is not None
    assert changed <= 3 and told <= 1


def test_defects_are_no_drift_however_many_there_are():
    rng = np.random.default_rng(3)
    days = [np.concatenate([good_scores(rng, 60), rng.normal(15, 2, 60)]) for _ in range(5)]
    found = drift.drift(observe(days), taught(rng), UTC)
    assert found.sentence is None and [day.pictures for day in found.days] == [120] * 5


def test_a_strict_threshold_is_no_drift():
    """Of the good parts half are rejected: those that pass are compared with the lower half of the taught."""
    rng = np.random.default_rng(18)
    seen = observe([good_scores(rng, 200) for _ in range(3)])
    seen.limits[:] = 2
    seen.good[:] = seen.passed[:] = seen.scores <= 2
    found = drift.drift(seen, taught(rng, 200), UTC)
    assert found.sentence is None and found.days[0].stability < drift.MUCH
    assert found.good_median == pytest.approx(found.days[0].median, abs=0.25)


def test_single_outliers_are_no_drift():
    rng = np.random.default_rng(4)
    days = [good_scores(rng, 30) for _ in range(5)]
    days[4][:4] = 4.3  # just below the threshold
    days[3][:3] = 900
    quality = [np.tile(MIDDLE, (30, 1)) for _ in range(5)]
    quality[4][:5] = 0
    seen = observe(days)
    seen.quality[:] = np.concatenate(quality)
    assert drift.drift(seen, taught(rng), UTC).sentence is None


def test_a_day_that_was_bad_and_is_over_is_no_drift():
    rng = np.random.default_rng(5)
    days = [good_scores(rng, 60) + (1.5 if n == 2 else 0) for n in range(5)]
    found = drift.drift(observe(days), taught(rng), UTC)
    assert [day.changed for day in found.days] == [False, False, True, False, False]
    assert found.sentence is None


# ---------------------------------------------------------------------------------------------------------
# Drift


@pytest.mark.parametrize("planted", [0, 3, 8, 9])
def test_a_rise_is_found_on_its_day(planted):
    rng = np.random.default_rng(6)
    days = [good_scores(rng, 80) + (1.2 if n >= planted else 0) for n in range(10)]
    found = drift.drift(observe(days), taught(rng), UTC)
    assert [day.changed for day in found.days] == [n >= planted for n in range(10)]
    assert found.since == planted
    named = datetime.fromtimestamp(FIRST + planted * DAY, UTC).strftime("%a %d %b")
    rose = f"rose from {found.good_median:.1f} to 2."
    assert found.sentence.startswith(f"Since {named} the median score of good parts {rose}")
    assert found.sentence.endswith(". Teach 20 new pictures, or check the light.")


def test_the_sentence_says_why_and_since_when():
    rng = np.random.default_rng(7)
    days = [good_scores(rng, 60) + (1.2 if n >= 8 else 0) for n in range(12)]
    darker = MIDDLE * [0.92, 1, 1, 1, 1, 1]
    found = drift.drift(observe(days, [darker if n >= 8 else MIDDLE for n in range(12)]), taught(rng), UTC)
    rose = f"rose from {found.good_median:.1f} to "
    assert found.sentence.startswith(
        f"Since Tue 24 Nov pictures are 8 % darker: the median score of good parts {rose}"
    )


def test_small_days_that_say_too_little_each_say_enough_together():
    ten, fifty = (
        np.array([NormalDist(2, 1).inv_cdf((n + 0.5) / count) for n in range(count)]) for count in (10, 50)
    )
    found = [
        drift.drift(observe([ten] * 6 + [ten + 0.8] * count), Reference(fifty, TAUGHT), UTC)
        for count in (3, 10)
    ]
    assert not any(day.changed for each in found for day in each.days)
    assert [day.leaning for day in found[1].days] == [0] * 6 + [1] * 10
    assert [each.since for each in found] == [None, 6] and found[0].sentence is None
    assert found[1].sentence.startswith("Since Sun 22 Nov the median score of good parts rose from")


def test_a_fall_is_named_so():
    rng = np.random.default_rng(8)
    days = [good_scores(rng, 60) - 1.5 for _ in range(2)]
    assert "fell from" in drift.drift(observe(days), taught(rng), UTC).sentence


@pytest.mark.parametrize("measure, value, words", [
    ("brightness", 120.0, "20 % brighter"), ("contrast", 25.0, "38 % flatter"), ("red", 1.2, "redder"),
    ("blue", 0.8, "less blue"), ("sharpness", 0.3, "more blurred"), ("noise", 4.0, "noisier"),
])  # fmt: skip
def test_pictures_that_left_the_taught_range_are_told_even_if_scores_stay(measure, value, words):
    rng = np.random.default_rng(9)
    look = MIDDLE.copy()
    look[MEASURES.index(measure)] = value
    found = drift.drift(
        observe([good_scores(rng, 30) for _ in range(3)], [MIDDLE, look, look]), taught(rng), UTC
    )
    advice = "Check the light and the camera, or teach 20 new pictures."
    assert found.sentence == f"Since Tue 17 Nov pictures are {words}. {advice}"
    assert not any(day.scores_changed for day in found.days)


def test_where_nothing_is_good_any_more_no_median_is_made_up():
    rng = np.random.default_rng(10)
    days = [good_scores(rng, 50), rng.uniform(LOOK + 0.01, THRESHOLD, 50)]
    found = drift.drift(observe(days), taught(rng), UTC)
    assert found.sentence.startswith("Since Tue 17 Nov hardly any part passes as good. Teach")
    assert math.isnan(found.days[1].median) and found.days[1].good == 0


def test_a_persons_word_counts_more_than_the_verdict():
    rng = np.random.default_rng(11)
    seen = observe([good_scores(rng, 50) + 6 for _ in range(2)])  # all rejected, so nothing can be said
    assert drift.drift(seen, taught(rng), UTC).sentence is None
    seen.good[:] = seen.passed[:] = True  # but they were good
    assert "rose from" in drift.drift(seen, taught(rng), UTC).sentence


# ---------------------------------------------------------------------------------------------------------
# Days and references


def test_days_with_few_pictures_count_together():
    rng = np.random.default_rng(12)
    found = drift.drift(
        observe([good_scores(rng, count) for count in (12, 4, 3, 5, 10, 9)]), taught(rng), UTC
    )
    days = [(day.first.day, day.last.day, day.pictures) for day in found.days]
    assert days == [(16, 16, 12), (17, 19, 12), (20, 20, 10)]  # the last 9 wait
    assert drift.drift(observe([good_scores(rng, 9)]), taught(rng), UTC).days == ()
    none = Observed(
        np.zeros(0), np.zeros(0), np.zeros(0, bool), np.zeros(0, bool), np.zeros((0, 2)), np.zeros((0, 6))
    )
    assert drift.drift(none, taught(rng), UTC).sentence is None


def test_days_begin_at_midnight_where_the_machine_is():
    rng = np.random.default_rng(13)
    seen = observe([good_scores(rng, 20)])  # from 8 UTC
    east = drift.drift(seen, taught(rng), timezone(timedelta(hours=14)))
    west = drift.drift(seen, taught(rng), timezone(timedelta(hours=-9)))
    assert east.days[0].first == date(2026, 11, 16) and west.days[0].first == date(2026, 11, 15)


def test_a_day_tells_what_it_holds():
    scores = np.array([1.0, 2.0, 3.0] * 4 + [4.0, 9.0])
    look = MIDDLE * [1.055, 1, 1, 1, 1, 1]
    (day,) = drift.drift(observe([scores], [look]), Reference(np.arange(20.0), TAUGHT), UTC).days
    assert (day.pictures, day.good, day.median) == (14, 12, 2.0)
    assert day.quality.tolist() == look.tolist() and day.off == pytest.approx([0.5, 0, 0, 0, 0, 0])


def test_without_teaching_the_first_days_are_compared_with():
    rng = np.random.default_rng(14)
    days = [good_scores(rng, 15) + (1.5 if n >= 5 else 0) for n in range(9)]
    quality = [MIDDLE * ([0.8, 1, 1, 1, 1, 1] if n >= 6 else 1) for n in range(9)]
    found = drift.drift(observe(days, quality), Reference(np.zeros(0), None), UTC)
    assert (
        not found.reference.taught
        and len(found.reference.scores) == (days[0] <= THRESHOLD).sum() + (days[1] <= THRESHOLD).sum()
    )
    assert [day.pictures_changed for day in found.days] == [n >= 6 for n in range(9)]
    assert found.sentence.startswith("Since Sat 21 Nov pictures are 20 % darker: the median score of good")


def test_pictures_of_unknown_quality_are_compared_by_score():
    rng = np.random.default_rng(15)
    days = [good_scores(rng, 50) + (1.2 if n else 0) for n in range(2)]
    found = drift.drift(observe(days, [np.full(6, math.nan)] * 2), taught(rng), UTC)
    assert found.sentence.startswith("Since Tue 17 Nov the median score of good parts rose")


def test_the_history_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)
    with Workspace.open(tmp_path) as workspace:
        history = History(workspace)
        measured = dict(zip(MEASURES, MIDDLE.tolist()))
        for number in range(12):
            keep(history, time=FIRST + number, score=float(number), quality=measured)
        for time, verdict in ((20, "anomalous"), (21, "look"), (22, "good"), (23, "good")):
            keep(history, time=FIRST + time, verdict=verdict, score=100.0)
        keep(history, category="bolt")
        keep(history, time=FIRST - 50)
        history.correct(13, "good", "")
        history.correct(14, "right", "")  # to look at: says nothing of the part
        history.correct(15, "defective", "")
        history.correct(16, "right", "")
        found = drift.category_drift(history, "gear", taught(np.random.default_rng(16)), FIRST, UTC)
        seen = drift.observed(history, drift.Filter(category="gear", since=FIRST))
    assert seen.good.tolist() == [True] * 12 + [True, False, False, True]
    assert seen.passed.tolist() == [True] * 12 + [True, True, False, True]
    assert seen.limits[0].tolist() == [5.0, 3.5] and np.isnan(seen.quality[12:]).all()
    assert (found.days[0].pictures, found.days[0].good, found.days[0].median) == (16, 14, 6.5)
    assert found.days[0].quality.tolist() == MIDDLE.tolist()
