"""Inspections are found by all that is known of them, by many people at once, and among many."""

from __future__ import annotations

import random
import threading
import time
from typing import get_args

import pytest
from workspace_cases import DAY, START, fill, keep, questions

from diffad.workspace.history import CategoryCount, History
from diffad.workspace.queries import Filter, Sort
from diffad.workspace.store import Workspace


@pytest.fixture
def history(tmp_path):
    with Workspace.open(tmp_path) as workspace:
        yield History(workspace)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Six inspections, one a day, only to be read."""
    with Workspace.open(tmp_path_factory.mktemp("several")) as workspace:
        history = History(workspace)
        keep_six(history)
        yield history


def keep_six(history: History) -> None:
    rows = [
        ("Gear_1.png", "gear", "good", 1.0, "anna"), ("gear%2.png", "gear", "look", 4.0, "anna"),
        ("GEAR-3.png", "gear", "anomalous", 9.0, "ben"), ("Öse.png", "bolt", "good", 2.0, ""),
        ("bolt'; DROP TABLE inspections; --.png", "bolt", "anomalous", 6.0, "ben"),
        ("bolt\\6.png", "bolt", "good", 2.0, "ben"),
    ]  # fmt: skip
    for number, (picture, category, verdict, score, who) in enumerate(rows):
        keep(
            history, grey=number, picture=picture, category=category, verdict=verdict, score=score, who=who,
            time=START + DAY * number, model="new" if number > 3 else "old",
        )  # fmt: skip
    history.correct(3, "right", "anna")
    history.correct(5, "good", "anna")


@pytest.mark.parametrize("chosen, ids", [
    (Filter(), [1, 2, 3, 4, 5, 6]), (Filter(text="gear"), [1, 2, 3]), (Filter(text=" GEAR_"), [1]),
    (Filter(text="%"), [2]), (Filter(text="\\"), [6]), (Filter(text="öSE"), [4]),
    (Filter(text="'; drop"), [5]),
    (Filter(category="gear"), [1, 2, 3]), (Filter(category="gear' OR '1"), []), (Filter(category=()), []),
    (Filter(verdict=("look", "anomalous")), [2, 3, 5]), (Filter(correction=""), [1, 2, 4, 6]),
    (Filter(correction={"right", "good"}), [3, 5]), (Filter(model="old"), [1, 2, 3, 4]),
    (Filter(who=""), [4]), (Filter(since=START + DAY, until=START + 3 * DAY), [2, 3]),
    (Filter(score_from=2.0, score_to=6.0), [2, 4, 5, 6]),
    (Filter(text="gear", category="gear", verdict="good", who="anna", score_to=1), [1]),
])  # fmt: skip
def test_what_is_chosen_is_found(several, chosen, ids):
    found, total = several.find(chosen, descending=False)
    assert [entry.id for entry in found] == ids and total == len(ids)
    assert [row[0] for row in several.columns(chosen, "id")] == ids


@pytest.mark.parametrize("sort, ids", [
    ("time", [1, 2, 3, 4, 5, 6]), ("score", [1, 4, 6, 2, 5, 3]), ("picture", [5, 6, 2, 3, 1, 4]),
    ("category", [4, 5, 6, 1, 2, 3]), ("verdict", [1, 4, 6, 2, 3, 5]), ("who", [4, 1, 2, 3, 5, 6]),
    ("correction", [1, 2, 4, 6, 5, 3]), ("model", [5, 6, 1, 2, 3, 4]),
])  # fmt: skip
def test_rows_are_sorted_and_come_by_pages(several, sort, ids):
    assert [entry.id for entry in several.find(sort=sort, descending=False)[0]] == ids
    assert [entry.id for entry in several.find(sort=sort)[0]] == ids[::-1]
    page, total = several.find(sort=sort, descending=False, limit=2, offset=3)
    assert [entry.id for entry in page] == ids[3:5] and total == 6
    assert several.find(sort=sort, limit=None)[1] == 6


def test_only_known_orders_reach_the_database(several):
    with pytest.raises(ValueError, match='there is no order by "id; DROP TABLE events": choose one of time,'):
        several.find(sort="id; DROP TABLE events")
    for sort in get_args(Sort):
        several.find(sort=sort)


def test_what_there_is_is_counted(several):
    assert several.categories() == [
        CategoryCount("bolt", 3, START + 5 * DAY), CategoryCount("gear", 3, START + 2 * DAY)
    ]  # fmt: skip
    counts = several.counts()
    assert counts.total == 6 and counts.verdicts == {"good": 3, "look": 1, "anomalous": 2}
    assert counts.corrections == {"": 4, "right": 1, "good": 1}


# ---------------------------------------------------------------------------------------------------------
# Many


def test_20_threads_keep_find_correct_and_delete_at_once(history):
    kept, failed = [], []

    def work(number):
        rng = random.Random(number)
        try:
            for turn in range(6):
                id = keep(history, grey=rng.randrange(8), who=str(number))
                history.correct(id, "right", str(number))
                entries, total = history.find(Filter(who=str(number)), limit=None)
                assert len(entries) == total == turn + 1 - turn // 2 and id in {entry.id for entry in entries}
                if turn % 2:
                    assert history.delete([id], str(number)) == 1
                else:
                    kept.append(id)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    entries, total = history.find(limit=None)
    assert sorted(entry.id for entry in entries) == sorted(kept) and total == 60
    for entry in entries:
        assert history.picture_path(entry).is_file() and history.map_path(entry).is_file()
    assert history.sweep(0) == 0
    actions = [event.action for event in history.events(limit=None)]
    assert actions.count("correct") == 120 and actions.count("delete") == 60


def test_100_000_inspections_are_answered_at_once(history):
    """Within a second on a busy core, the first time too; tests/workspace_cases.py prints the times."""
    fill(history.workspace, 100_000)
    for name, ask in questions(history, 100_000).items():
        start = time.perf_counter()
        ask()
        assert time.perf_counter() - start < 1, name
    assert history.find()[1] == 100_000 and history.find(Filter(text="l_9999"))[1] == 11
    assert history.find(Filter(verdict="anomalous"))[1] == 5000
    assert history.delete(range(1, 1202), "anna") == 1201 and history.find()[1] == 98_799
