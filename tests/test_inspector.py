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
from diffad.method.image_score import ImageScore
from diffad.method.nuisances import NUISANCES
from diffad.pictures.reading import DataError
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
    rate = inspector.scorer("gear", timesteps=many).rate(3)
    assert rate == inspector.scorer("gear", timesteps=(20, 400)).rate(3)


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
    scores = inspector.scorer(category).good
    assert len(scores) >= 4
    assert scores.mean() < inspector.threshold(category)
    for rate in (0.2, 0.05, 0.001):
        assert inspector.scorer(category).rate(inspector.threshold(category, rate=rate)) == pytest.approx(
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
        ({"alpha": 1.5}, "alpha must be between"),
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
