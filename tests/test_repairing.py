"""Repairs with the bundled model: what they change, and when they end."""

import numpy as np
import pytest

from diffad.inspector import Inspector
from diffad.method.image_score import threshold_for
from diffad.method.repair import GradientStep
from diffad.method.repair_options import RepairOptions
from diffad.repairing import _place_to_repair
from diffad.synthetic.parts import make_part

DEFECTIVE = make_part("gear", seed=90_001, defect="dent")
GOOD = make_part("gear", seed=90_001)


@pytest.fixture(scope="module")
def defective(inspector):
    return inspector.inspect(DEFECTIVE.image)


@pytest.fixture(scope="module")
def repair(inspector):
    """Of one round."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffad.repairing._ROUNDS", 1)
        return list(inspector.repair(DEFECTIVE.image, options=RepairOptions(steps=20)))


def test_a_repair_lowers_the_score_and_leaves_the_rest_as_it_was(repair, defective):
    steps = repair
    assert [step.index for step in steps] == list(range(len(steps)))
    assert steps[0].total == 20 and len(steps) <= 21
    ended = steps[-1].score <= np.median(defective.good_scores)  # as good as a good part
    assert ended or steps[-1].total == len(steps) - 1
    assert [step.done for step in steps] == [False] * (len(steps) - 1) + [True]
    assert np.array_equal(steps[0].image, DEFECTIVE.image)
    assert steps[0].score == defective.score
    assert steps[-1].score < 0.6 * defective.score
    away = defective.anomaly_map < 0.25 * defective.threshold
    for step in (steps[1], steps[-1]):
        difference = step.image.astype(int) - DEFECTIVE.image
        assert np.abs(difference[away]).mean() < 0.5
    changed = np.abs(steps[-1].image.astype(int) - DEFECTIVE.image).max(axis=-1) > 8
    assert changed[DEFECTIVE.mask].any()


def test_a_repair_is_scored_as_the_picture_that_it_gives(inspector, repair):
    last = repair[-1]
    again = inspector.inspect(last.image, DEFECTIVE.category)
    assert last.score == pytest.approx(again.score, rel=1e-3)
    np.testing.assert_allclose(last.anomaly_map, again.anomaly_map, atol=0.02)


def test_a_good_part_comes_out_as_it_went_in(inspector):
    steps = list(inspector.repair(GOOD.image, options=RepairOptions(steps=10)))
    assert steps[-1].done
    mse = np.mean((steps[-1].image.astype(float) - GOOD.image) ** 2)
    assert mse == 0 or 10 * np.log10(255**2 / mse) > 40


def test_a_hole_is_as_wide_as_its_own_defect_asks(defective):
    """Around a strong defect the map is high where the part is sound; a weak one elsewhere has its own."""
    field = np.zeros((256, 256), np.float32)
    field[40:100, 40:100], field[60:80, 60:80] = 8, 40  # high around the strong one
    field[180:190, 180:190] = 8  # a weak defect, as high as that
    _, weight = _place_to_repair(defective, field, np.zeros_like(field, dtype=bool), weighed=True)
    assert weight[0, 0, 70, 70] > 0.99 and weight[0, 0, 185, 185] > 0.99
    assert weight[0, 0, 45, 45] == 0 and weight[0, 0, 230, 30] == 0
    assert _place_to_repair(defective, field * 0, np.zeros_like(field, dtype=bool), weighed=True)[1] is None


def spot(height: float) -> np.ndarray:
    """A map that scores just so: calm but for four cells."""
    field = np.zeros((256, 256), np.float32)
    field[64:80, 64:80] = height
    return field


@pytest.fixture
def drawn(monkeypatch):
    """Of every round whether it began by drawing its place anew. In place of the network's steps every step
    darkens what moves a little.
    """
    asked = []

    def walk(schedule, denoise, extract, covariance, x_start, weight, *, steps, denoise_every, filling, **_):
        asked.append(filling)
        for index in range(steps + 1):
            yield GradientStep(index, x_start - 0.01 * index * weight, 1.0, index % denoise_every == 0)

    monkeypatch.setattr("diffad.repairing.weighed_repair", walk)
    return asked


def test_a_repair_may_stop_at_the_threshold(inspector, defective, drawn, monkeypatch):
    """Scores of every fifth step as planted."""
    levels = defective.threshold + 0.5, defective.threshold - 0.1, 0.1
    planted = iter(levels)
    monkeypatch.setattr(Inspector, "fused_square", lambda *_: spot(next(planted)))
    options = RepairOptions(steps=15, stop_at_threshold=True)
    steps = list(inspector.repair(DEFECTIVE.image, options=options))
    assert [step.done for step in steps] == [False] * 10 + [True]
    assert steps[-1].score == pytest.approx(levels[1])


@pytest.mark.parametrize("levels, best, end", [
    ((40, 35, 44, 50, 45, 41), 0, 30),  # worse than before, twice: no third round
    ((40, 35, 44, 2, 1.8, 0.7), 30, 30),  # led back where drawing anew was in vain
    ((4, 3.5, 4, 3, 1.8, 2.6, 2.2, 1.3, 1.8, 1.5, 1.4, 1.6, 1.25, 1.2, 1.22), 70, 75),  # no sixth round
    ((0.95, 0.7, 0.98), 10, 15),  # ordinary, as one good part in ten is not: no second round
    ((0.95, 0.9, 0.98, 0.85, 0.8, 0.7), 30, 30),  # below the threshold, but not yet ordinary
    ((1.3, 0.05), 10, 10),  # as good as a good part: nothing more to do
])  # fmt: skip
def test_a_repair_ends_with_the_best_that_it_scored(
    inspector, defective, drawn, monkeypatch, levels, best, end
):
    """Scores of every fifth step as planted, in thresholds."""
    unit = threshold_for(defective.good_scores)  # by the law of good pictures as they are
    planted = (level * unit for level in levels)
    monkeypatch.setattr(Inspector, "fused_square", lambda *_: spot(next(planted)))
    steps = list(inspector.repair(DEFECTIVE.image, options=RepairOptions(steps=15)))
    assert defective.score > 4 * defective.threshold
    assert steps[-1].index == end and next(planted, None) is None
    assert steps[-1].score == steps[best].score == min(step.score for step in steps)
    assert np.array_equal(steps[-1].image, steps[best].image)
    assert np.array_equal(steps[-1].anomaly_map, steps[best].anomaly_map)


@pytest.mark.parametrize("levels, expected", [
    ((40, 40, 40), [True, False]),
    ((3, 2.5, 2, 1.8, 1.6), [True] * 5),
    ((40, 2, 1.8, 1.6, 1.4), [True, False, True, True, True]),
])  # fmt: skip
def test_a_place_is_drawn_anew_until_that_is_in_vain(inspector, drawn, monkeypatch, levels, expected):
    """The score of each round's end as planted, in thresholds."""
    threshold = inspector.threshold("gear")
    planted = (level * threshold for level in levels)
    monkeypatch.setattr(Inspector, "fused_square", lambda *_: spot(next(planted)))

    list(inspector.repair(DEFECTIVE.image, options=RepairOptions(steps=3)))
    assert drawn == expected


def test_the_printed_algorithm_moves_the_whole_picture(inspector):
    printed = RepairOptions(steps=5, method="paper", step_size=0.02, timestep=32)
    steps = list(inspector.repair(DEFECTIVE.image, options=printed))
    assert len(steps) == 6
    usual = list(inspector.repair(DEFECTIVE.image, options=RepairOptions(steps=5, method="paper")))
    assert np.array_equal(usual[-1].image, steps[-1].image)
    assert (steps[-1].image != DEFECTIVE.image).mean() > 0.5


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0},
        {"step_size": 1.0},
        {"step_size": 0.0},
        {"timestep": 1000},
        {"timestep": -1},
        {"method": "magic"},
        {"denoise_every": 0},
    ],
)
def test_repair_settings_are_checked_before_the_first_step(inspector, settings):
    with pytest.raises(ValueError, match=r"steps|method"):
        inspector.repair(DEFECTIVE.image, options=RepairOptions(**settings))
