"""The public object, with the bundled model on its own kind of pictures."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffad import inspection as inspection_module
from diffad.checkpoint import CheckpointError
from diffad.inspector import Inspector
from diffad.method.calibration import from_codes
from diffad.method.fusion import branch_weights, fuse
from diffad.method.image_score import ImageScore, threshold_for
from diffad.method.nuisances import NUISANCES
from diffad.method.repair import weighed_repair
from diffad.method.repair_options import RepairOptions
from diffad.pictures.reading import DataError
from diffad.repairing import _place_to_repair
from diffad.synthetic.parts import CATEGORIES, make_part

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "parts.safetensors"
DEFECTIVE = make_part("gear", seed=90_001, defect="dent")
GOOD = make_part("gear", seed=90_001)


@pytest.fixture(scope="module")
def defective(inspector):
    return inspector.inspect(DEFECTIVE.image)


def test_a_defect_is_found_where_it_is_and_a_good_part_is_good(inspector, defective):
    assert defective.is_anomalous
    assert defective.score > defective.threshold
    y, x = np.unravel_index(defective.anomaly_map.argmax(), defective.anomaly_map.shape)
    rows, columns = np.nonzero(DEFECTIVE.mask)
    assert rows.min() - 8 <= y <= rows.max() + 8
    assert columns.min() - 8 <= x <= columns.max() + 8
    good = inspector.inspect(GOOD.image)
    assert not good.is_anomalous
    assert good.score < 0.5 * defective.score
    assert not good.regions


def test_every_category_is_recognised(inspector):
    for category in CATEGORIES:
        for seed in (90_100, 90_101):
            inspection = inspector.inspect(make_part(category, seed).image, timesteps=(200,))
            assert (inspection.category, inspection.recognised) == (category, True)
            assert inspection.category_fits
    assert not inspector.inspect(GOOD.image, "chip", timesteps=(200,)).recognised


def test_a_picture_of_something_else_does_not_fit(inspector):
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    assert not inspector.inspect(noise, timesteps=(200,)).category_fits


def test_maps_have_the_pictures_own_geometry_and_regions_lie_in_it(inspector):
    wide = np.asarray(Image.fromarray(DEFECTIVE.image).resize((640, 480)))
    inspection = inspector.inspect(wide)
    for maps in (inspection.pixel_maps, inspection.feature_maps):
        assert set(maps) == {20, 200, 400}
        assert all(m.shape == (480, 640) and m.dtype == np.float32 for m in maps.values())
    assert inspection.anomaly_map.shape == (480, 640)
    assert inspection.image.shape == (480, 640, 3)
    for region in inspection.regions:
        x, y, width, height = region.box
        assert 0 <= x and x + width <= 640 and 0 <= y and y + height <= 480
        inside = inspection.anomaly_map[y : y + height, x : x + width]
        assert region.peak == inside.max() > inspection.threshold


def test_the_same_seed_gives_the_same_maps_whatever_else_is_in_the_batch(inspector, defective):
    again = inspector.inspect(DEFECTIVE.image)
    assert np.array_equal(again.anomaly_map, defective.anomaly_map)
    more = inspector.inspect(DEFECTIVE.image, timesteps=(5, 20, 100, 200, 300, 400, 600))
    for t in (20, 200, 400):
        np.testing.assert_allclose(more.pixel_maps[t], defective.pixel_maps[t], rtol=0.05, atol=0.1)
        np.testing.assert_allclose(more.feature_maps[t], defective.feature_maps[t], rtol=0.05, atol=0.1)
    other = inspector.inspect(DEFECTIVE.image, seed=1)
    assert not np.array_equal(other.anomaly_map, defective.anomaly_map)


def test_weighing_otherwise_needs_no_network(inspector, defective, monkeypatch):
    monkeypatch.setattr(inspector, "network", None)
    monkeypatch.setattr(inspector, "extractor", None)
    pixels = defective.fused(alpha=1, timesteps=(20,))
    np.testing.assert_allclose(pixels.anomaly_map, defective.pixel_maps[20], rtol=1e-6)
    meaning = defective.fused(alpha=0)
    expected = np.mean(list(defective.feature_maps.values()), axis=0)
    np.testing.assert_allclose(meaning.anomaly_map, expected, rtol=1e-5, atol=1e-5)
    assert meaning.score == pytest.approx(meaning.scorer(expected, 256), rel=1e-5)
    assert meaning.threshold == pytest.approx(inspector.threshold(defective.category, alpha=0))
    assert not defective.fused(threshold=1e6).is_anomalous
    assert defective.fused(threshold=1e6, look_threshold=1e6).regions == ()
    between = (defective.score + float(defective.anomaly_map.max())) / 2  # some pixels are above it
    assert not defective.fused(threshold=between).is_anomalous
    assert defective.fused(threshold=between, look_threshold=between).regions == ()
    for order in ((400, 200, 20), (20, 20, 400, 200, 400)):
        kept = defective.fused(threshold=5.0).fused(timesteps=order)
        assert (kept.timesteps, kept.threshold, kept.score) == ((20, 200, 400), 5.0, defective.score)
    back = meaning.fused(alpha=0.5)
    assert back.score == defective.score
    assert back.threshold == defective.threshold
    with pytest.raises(ValueError, match="was not computed"):
        defective.fused(timesteps=(77,))


def test_two_limits_make_three_verdicts(inspector, defective):
    """The usual look limit is what 1 good part in 10 exceeds; it is never above the threshold."""
    assert defective.look_threshold == defective.threshold_at(0.1) < defective.threshold
    assert defective.rate_above(defective.look_threshold) == pytest.approx(0.1)
    score, limit = defective.score, defective.look_threshold
    for threshold, look, verdict in (
        (score - 1, limit, "anomalous"), (score, limit, "look"), (score + 1, score - 1, "look"),
        (score + 1, score, "good"), (score + 1, score + 9, "good"), (score - 1, score + 9, "anomalous"),
    ):  # fmt: skip
        judged = defective.fused(threshold=threshold, look_threshold=look)
        assert (judged.verdict, judged.is_anomalous) == (verdict, verdict == "anomalous")
        assert judged.look_threshold == min(look, threshold)
        said = judged.to_dict()
        assert (said["verdict"], said["look_threshold"]) == (verdict, judged.look_threshold)
        assert bool(judged.regions) == (verdict != "good")
    # A person must see where to look: the same places as if the look limit were the threshold.
    between = defective.fused(threshold=score + 1, look_threshold=2.0)
    assert between.regions == defective.fused(threshold=2.0).regions
    # Moved below the look limit the threshold takes it along, and back.
    low = defective.fused(threshold=1.0)
    assert low.look_threshold == 1.0 and low.fused(threshold=9.0).look_threshold == limit
    # Other weights bring their own look limit, unless one is given; the same weights leave it.
    assert defective.fused(alpha=0).look_threshold == inspector.threshold("gear", alpha=0, rate=0.1)
    assert defective.fused(alpha=0, look_threshold=1.5).look_threshold == 1.5
    assert defective.fused(look_threshold=1.5).fused(threshold=9.0).look_threshold == 1.5
    found = inspector.inspect(GOOD.image, "gear", threshold=900.0, look_threshold=-5.0)
    assert (found.threshold, found.look_threshold, found.verdict) == (900.0, -5.0, "look")


def test_timesteps_are_a_set(inspector):
    """In whatever order and however often they are given."""
    found = inspector.inspect(DEFECTIVE.image, "gear", timesteps=(20, 400), tile=None)
    other = inspector.inspect(DEFECTIVE.image, "gear", timesteps=(400, 20, 400), tile=None)
    assert found.timesteps == other.timesteps == other.computed_timesteps == (20, 400)
    assert np.array_equal(found.anomaly_map, other.anomaly_map)
    assert found.to_dict() == other.to_dict() | {"seconds": found.seconds}
    assert found.to_dict()["pixel_weight"] == pytest.approx(1 / 21)  # a twentieth of the features' share
    assert [found.fused(alpha).pixel_weight for alpha in (0, 1)] == [0, 1]
    many = 7 * [400, 20]  # more than may be given, were they counted singly
    assert inspector.threshold("gear", timesteps=many) == found.threshold
    assert inspector.rate("gear", 3.0, timesteps=many) == inspector.rate("gear", 3.0, timesteps=(20, 400))


def test_what_a_page_is_sent_gives_the_score_and_the_good_scores_without_us(inspector):
    """The score from the reduced maps, and the good parts' scores from their evidence, at any α and t."""
    inspection = inspector.inspect(DEFECTIVE.image[:200], timesteps=(20, 100, 400), tile=None)
    maps, (codes, nearest, plain) = inspection.grid_maps(), inspection.good_evidence()
    good = from_codes(torch.from_numpy(codes)).numpy()
    assert plain is None and len(nearest) == 3
    assert all(branch.shape == (200, 256) and branch.dtype == np.float32 for t in maps for branch in maps[t])
    assert (inspection.scored_size, inspection.tile, inspection.chances) == (256, None, 1)
    for alpha, chosen in ((0.5, (20, 100, 400)), (0.2, (100,)), (1, (20, 400))):
        fused = inspection.fused(alpha, chosen)
        of_pixel, of_feature = branch_weights(alpha)
        heat = np.mean([of_pixel * maps[t][0] + of_feature * maps[t][1] for t in chosen], axis=0)
        at = [nearest[inspection.computed_timesteps.index(t)] for t in chosen]
        cells = of_pixel * good[:, 0, at].mean(axis=1) + of_feature * good[:, 1, at].mean(axis=1)
        scorer = ImageScore.of(cells.reshape(len(cells), -1))
        assert fused.score == pytest.approx(scorer(heat, 256), rel=1e-5)
        np.testing.assert_allclose(scorer.good, fused.good_scores, rtol=1e-4, atol=1e-4)
        assert fused.threshold_at() == inspector.threshold(fused.category, alpha, chosen)
        assert fused.rate == pytest.approx(0.01, rel=1e-3)


def test_weighing_otherwise_fuses_the_maps_once(defective, monkeypatch):
    calls = []
    monkeypatch.setattr(inspection_module, "fuse", lambda *a: calls.append(a) or fuse(*a))
    other = defective.fused(alpha=0.3)
    _ = other.score, other.anomaly_map, other.square_map, other.regions, other.to_dict()
    assert len(calls) == 1


def test_an_inspection_does_not_change(defective):
    with pytest.raises(dataclasses.FrozenInstanceError):
        defective.score = 0.0


def test_threshold_and_rate_are_inverse_and_hold_for_good_parts(inspector):
    category = "gear"
    scores = inspector.good_scores(category)
    assert len(scores) >= 4
    assert scores.mean() < inspector.threshold(category)
    for rate in (0.2, 0.05, 0.001):
        assert inspector.rate(category, inspector.threshold(category, rate=rate)) == pytest.approx(
            rate, rel=1e-3
        )
    assert inspector.threshold(category, rate=0.001) > inspector.threshold(category, rate=0.1)


def test_what_is_no_threshold_or_share_is_refused(inspector):
    found = inspector.inspect(np.full((64, 64, 3), 90, np.uint8), "gear")
    with pytest.raises(ValueError, match="NaN"):
        found.fused(threshold=float("nan"))
    for rate in (0, 1, 1.5, -1):
        for ask in (found.threshold_at, lambda rate: inspector.threshold("gear", rate=rate)):
            with pytest.raises(ValueError, match="between 0 and 1"):
                ask(rate)


def test_one_network_call_for_all_timesteps_and_draws(inspector, monkeypatch):
    calls = []
    forward = type(inspector.network).forward

    def counted(self, x_t, t):
        calls.append(len(t))
        return forward(self, x_t, t)

    monkeypatch.setattr(type(inspector.network), "forward", counted)
    inspector.inspect(GOOD.image, timesteps=(20, 100, 200, 400), draws=2)
    assert calls == [8]


def test_paths_pictures_and_arrays_are_the_same_picture(inspector, defective, tmp_path):
    file = tmp_path / "part.png"
    Image.fromarray(DEFECTIVE.image).save(file)
    for source in (file, str(file), Image.open(file)):
        assert inspector.inspect(source).score == defective.score


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"category": "spoon"}, "no category 'spoon'"),
        ({"timesteps": ()}, "1 to 12 timesteps"),
        ({"timesteps": (20, 1000)}, "between 0 and 999"),
        ({"alpha": 1.5}, "alpha lies between"),
        ({"draws": 0}, "draws"),
        ({"threshold": float("nan")}, "NaN"),
        ({"look_threshold": float("nan")}, "NaN"),
        ({"tile": 8}, "at least 16"),
    ],
)
def test_settings_out_of_range_are_refused(inspector, settings, message):
    with pytest.raises(ValueError, match=message):
        inspector.inspect(GOOD.image, **settings)


def test_a_broken_picture_or_model_is_refused(inspector, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(DataError):
        inspector.inspect(tmp_path / "broken.png")
    with pytest.raises(CheckpointError):
        Inspector.load(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="no device"):
        Inspector.load(CHECKPOINT, device="cuda:77")


@pytest.fixture(scope="module")
def repair(inspector):
    return list(inspector.repair(DEFECTIVE.image, options=RepairOptions(steps=40)))


def test_a_repair_lowers_the_score_and_leaves_the_rest_as_it_was(repair, defective):
    steps = repair
    assert [step.index for step in steps] == list(range(len(steps)))
    assert steps[0].total == 40 and len(steps) <= 201  # other rounds where it is still high
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


def test_a_repair_may_stop_at_the_threshold(inspector, defective, monkeypatch):
    """Scores of every step as planted."""
    monkeypatch.setattr("diffad.repairing._SCORED_EVERY", 1)
    levels = defective.threshold + 0.5, defective.threshold - 0.1, 0.1
    planted = iter(levels)
    monkeypatch.setattr(Inspector, "fused_square", lambda *_: spot(next(planted)))
    options = RepairOptions(steps=3, denoise_every=1, stop_at_threshold=True)
    steps = list(inspector.repair(DEFECTIVE.image, options=options))
    assert [step.done for step in steps] == [False, False, True]
    assert steps[-1].score == pytest.approx(levels[1])


@pytest.mark.parametrize("levels, best, end", [
    ((40, 35, 44, 50, 45, 41), 0, 6),  # worse than before, twice: no third round
    ((40, 35, 44, 2, 1.8, 0.7), 6, 6),  # led back where drawing anew was in vain
    ((4, 3.5, 4, 3, 1.8, 2.6, 2.2, 1.3, 1.8, 1.5, 1.4, 1.6, 1.25, 1.2, 1.22), 14, 15),  # no sixth round
    ((0.95, 0.7, 0.98), 2, 3),  # ordinary, as one good part in ten is not: no second round
    ((0.95, 0.9, 0.98, 0.85, 0.8, 0.7), 6, 6),  # below the threshold, but not yet ordinary
    ((1.3, 0.05), 2, 2),  # as good as a good part: nothing more to do
])  # fmt: skip
def test_a_repair_ends_with_the_best_that_it_scored(inspector, defective, monkeypatch, levels, best, end):
    """Scores of every step as planted, in thresholds."""
    monkeypatch.setattr("diffad.repairing._SCORED_EVERY", 1)
    unit = threshold_for(defective.good_scores)  # by the law of good pictures as they are
    planted = (level * unit for level in levels)
    monkeypatch.setattr(Inspector, "fused_square", lambda *_: spot(next(planted)))
    options = RepairOptions(steps=3, denoise_every=1)
    steps = list(inspector.repair(DEFECTIVE.image, options=options))
    assert defective.score > 4 * defective.threshold
    assert steps[-1].index == end and next(planted, None) is None
    assert steps[-1].score == steps[best].score == min(step.score for step in steps)
    assert np.array_equal(steps[-1].image, steps[best].image)
    assert np.array_equal(steps[-1].anomaly_map, steps[best].anomaly_map)


@pytest.mark.parametrize("levels, drawn", [
    ((40, 40, 40), [True, False]),
    ((3, 2.5, 2, 1.8, 1.6), [True] * 5),
    ((40, 2, 1.8, 1.6, 1.4), [True, False, True, True, True]),
])  # fmt: skip
def test_a_place_is_drawn_anew_until_that_is_in_vain(inspector, monkeypatch, levels, drawn):
    """The score of each round's end as planted, in thresholds."""
    threshold, asked = inspector.threshold("gear"), []
    planted = (level * threshold for level in levels)
    monkeypatch.setattr(Inspector, "fused_square", lambda *_: spot(next(planted)))

    def walk(*arguments, filling, **options):
        asked.append(filling)
        return weighed_repair(*arguments, filling=filling, **options)

    monkeypatch.setattr("diffad.repairing.weighed_repair", walk)
    list(inspector.repair(DEFECTIVE.image, options=RepairOptions(steps=1)))
    assert asked == drawn


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


@pytest.mark.parametrize("size", [384, 512])
@pytest.mark.parametrize("resampling", [Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
def test_the_same_part_in_a_larger_picture_gets_the_same_verdict(inspector, size, resampling):
    """What the model sees keeps the sharpness of the picture, whatever its size (2.7 apart with a bilinear
    filter, of a threshold of 3.7)."""
    part = Image.fromarray(make_part("gear", seed=11).image)
    small, large = (
        inspector.inspect(np.asarray(picture), "gear", tile=None)
        for picture in (part, part.resize((size, size), resampling))
    )
    assert large.score == pytest.approx(small.score, abs=0.6)
    assert not small.is_anomalous and not large.is_anomalous


@pytest.mark.parametrize("change", ["darker", "tint", "grey noise", "JPEG 95", "shift 3"])
def test_a_good_part_stays_good_as_a_factory_changes_its_picture(inspector, change):
    nuisance = next(each for each in NUISANCES if each.name == change)
    changed = nuisance.apply(GOOD.image, nuisance.strength, np.random.default_rng(0))
    assert not inspector.inspect(changed, "gear").is_anomalous
    dent = nuisance.apply(DEFECTIVE.image, nuisance.strength, np.random.default_rng(0))
    assert inspector.inspect(dent, "gear").is_anomalous


def test_a_picture_that_is_off_as_a_whole_says_so_beside_the_verdict(inspector):
    dark = inspector.inspect(np.rint(GOOD.image * 0.5).astype(np.uint8), "gear")
    assert any(note.startswith("The picture is darker (-4") for note in dark.notes)
    assert not inspector.inspect(GOOD.image, "gear").notes
