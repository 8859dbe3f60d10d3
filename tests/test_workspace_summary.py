"""A category's report adds up, and a login may do what its role says."""

from __future__ import annotations

from datetime import date, timedelta, timezone

import numpy as np
import pytest
from workspace_cases import DAY, START, keep

from diffad.workspace.history import History
from diffad.workspace.record import relative
from diffad.workspace.roles import Login, logins, may
from diffad.workspace.store import Workspace
from diffad.workspace.summary import Confusion, DayCount, by_day, confusion, heat_map, share, summary


@pytest.mark.parametrize("count, of, low, high", [  # from Newcombe 1998, table I
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718),
    (20, 20, 0.8389, 1.0),
])  # fmt: skip
def test_wilsons_interval(count, of, low, high):
    found = share(count, of)
    assert found.value == count / of
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_of_nothing_nothing_is_known():
    assert (share(0, 0).value, share(0, 0).low, share(0, 0).high) == (None, 0, 1)


def test_corrections_make_a_confusion():
    said = (
        [("anomalous", "right")] * 8 + [("anomalous", "good")] * 2 + [("good", "right")] * 5
        + [("good", "defective")] + [("look", "defective")] * 3 + [("look", "good")] * 4 + [("look", "right")]
        + [("anomalous", "defective"), ("good", ""), ("anomalous", "")]
    )  # fmt: skip
    found = confusion(said)
    assert found == Confusion(9, 2, 1, 5, 3, 4)
    assert (found.precision.count, found.precision.of) == (9, 11)
    assert (found.recall.count, found.recall.of) == (12, 13)


def region(box, size=(640, 320)):
    return relative({"box": box}, size)


def test_the_heat_map_counts_regions_where_they_touch():
    heat = heat_map([
        region((0, 0, 320, 160)),  # the upper left quarter
        region((20, 10, 20, 10)),  # one cell exactly, the second of the second row
        region((1, 1, 1, 1)),  # much less than the first cell
        region((630, 315, 10, 5)),  # in the last
        region((639, 0, 20, 10)),  # beyond the edge
    ])  # fmt: skip
    expected = np.zeros((32, 32))
    expected[:16, :16] = 1
    expected[1, 1] = expected[0, 0] = 2
    expected[31, 31] = expected[0, 31] = 1
    assert np.array_equal(heat, expected)
    assert not heat_map([]).any()


def test_days_are_counted_in_local_time():
    times = [(0.0, "good"), (DAY - 1, "look"), (DAY, "anomalous"), (DAY + 1, "good")]
    days = (date(1970, 1, 1), date(1970, 1, 2))
    assert by_day(times, timezone.utc) == (DayCount(days[0], 2, 0, 1), DayCount(days[1], 2, 1, 0))
    east = by_day(times, timezone(timedelta(hours=1)))
    assert east == (DayCount(days[0], 1, 0, 0), DayCount(days[1], 3, 1, 1))


def test_a_category_is_summed_up(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)
    whole = [region((0, 0, 640, 320))]
    with Workspace.open(tmp_path) as workspace:
        history = History(workspace)
        bad = keep(history, verdict="anomalous", regions=whole)
        called_good = keep(history, verdict="anomalous", regions=whole, time=START + DAY)
        keep(history, verdict="look", regions=[*whole, region((0, 0, 20, 10))])
        missed = keep(history)
        keep(history, category="bolt", verdict="anomalous", regions=whole)
        keep(history, time=START + 9 * DAY, verdict="anomalous", regions=whole)
        for id, correction in ((bad, "right"), (called_good, "good"), (missed, "defective")):
            history.correct(id, correction, "anna")
        found = summary(history, "gear", START, START + 9 * DAY, timezone.utc)
    assert (found.pictures, found.rejected, found.looked_at, found.corrected) == (4, 2, 1, 3)
    assert found.confusion == Confusion(rejected_defective=1, rejected_good=1, passed_defective=1)
    assert found.regions == 3 and found.heat[0, 0] == 3 and found.heat[31, 31] == 2
    first = date(2026, 9, 21)
    assert found.days == (DayCount(first, 3, 1, 1), DayCount(first + timedelta(1), 1, 1, 0))


# ---------------------------------------------------------------------------------------------------------
# Roles


def test_lines_name_users_roles_and_passwords():
    lines = "anna:secret\n\n  ben/inspect:a:b/c  \ncarl/correct:p w\ndora/teach:x\n"
    assert logins(lines, "auth.txt") == [
        Login("anna", "secret", "teach"), Login("ben", "a:b/c", "inspect"), Login("carl", "p w", "correct"),
        Login("dora", "x", "teach"),
    ]  # fmt: skip
    assert "secret" not in repr(logins(lines, "auth.txt"))


def test_an_unknown_role_names_the_user_and_never_the_password():
    with pytest.raises(ValueError) as error:
        logins("anna:secret\nben/chief:hidden/word", "auth.txt")
    assert str(error.value) == (
        "auth.txt gives ben an unknown role: write ben/inspect:…, ben/correct:… or ben/teach:…"
    )


@pytest.mark.parametrize("line", ["hidden", ":hidden", "anna:", "/teach:hidden", "anna/hidden"])
def test_a_line_of_another_form_is_not_shown(line):
    with pytest.raises(ValueError) as error:
        logins(f"ben:x\n{line}", "DIFFAD_AUTH")
    assert str(error.value).startswith("DIFFAD_AUTH contains a line that is not user:password or user/role:")
    assert "hidden" not in str(error.value)


def test_a_role_may_what_those_before_it_may():
    allowed = {
        role: [action for action in ("inspect", "correct", "teach", "delete") if may(role, action)]
        for role in ("inspect", "correct", "teach")
    }
    assert allowed == {
        "inspect": ["inspect"], "correct": ["inspect", "correct"],
        "teach": ["inspect", "correct", "teach", "delete"],
    }  # fmt: skip
    for role, action in (("chief", "inspect"), ("teach", "fly")):
        with pytest.raises(ValueError, match="there is no"):
            may(role, action)
