"""Profiles: artificial defects are what they claim, the forecast measures them, the choice follows it."""

import numpy as np
import pytest
import torch

from diffad.method.artificial_defects import KINDS, _likely_centres, add_defect
from diffad.method.calibration import Calibration
from diffad.method.image_score import CELLS, ImageScore, threshold_for
from diffad.method.metrics import aupro, auroc
from diffad.method.scoring import TIMESTEPS, RawMaps
from diffad.synthetic.parts import make_part
from diffad.teaching import residuals
from diffad.teaching import statistics as profiles
from diffad.teaching.forecast import artificial_defects, in_words, judged_artificial_defects
from diffad.teaching.robustness import robustness


@pytest.fixture(scope="module")
def parts():
    return [make_part("gear", seed, size=128).image for seed in range(6)]


def gears(count):
    """uint8 [count, 3, 64, 64]: the bundled network takes any size, and small ones are quickly learned."""
    parts = [make_part("gear", seed, size=64).image for seed in range(count)]
    return torch.stack([torch.from_numpy(part).permute(2, 0, 1) for part in parts])


def fit_profile(network, extractor, schedule, used, held, kind="perceptual"):
    return profiles.fit(residuals.Observer(network, extractor, schedule, kind), used, held).profile


@pytest.mark.parametrize("kind", KINDS)
def test_a_defect_changes_its_mask_visibly_and_nothing_far_from_it(parts, kind):
    before = parts[0].copy()
    spoiled, mask = add_defect(parts[0], parts[1:], kind, np.random.default_rng(3))
    assert np.array_equal(parts[0], before)  # the picture given is not written to
    change = np.abs(spoiled.astype(int) - before).max(axis=2)
    assert mask.any() and np.median(change[mask]) > 12
    y, x = np.nonzero(mask)
    away = np.ones_like(mask)
    away[max(0, y.min() - 12) : y.max() + 13, max(0, x.min() - 12) : x.max() + 13] = False
    # what lies outside is at most the invisible remainder of the outline
    assert (change[away] > 0).mean() < 0.2 and np.median(change[away]) == 0


def test_nine_defects_of_ten_lie_on_the_part_and_anywhere_on_a_texture():
    part = np.full((128, 128, 3), 230, np.uint8)
    part[32:96, 48:80] = 60  # an eighth of the picture
    chances = _likely_centres(part)
    assert chances.sum() == pytest.approx(1) and chances[8:24, 12:20].sum() > 0.9
    texture = np.random.default_rng(0).integers(100, 110, (128, 128, 3)).astype(np.uint8)
    assert np.unique(_likely_centres(texture)[2:-2, 2:-2]).size == 1


def test_defects_are_seeded_and_an_unknown_kind_is_refused(parts):
    one, two = (add_defect(parts[0], parts[1:], "stain", np.random.default_rng(5))[0] for _ in range(2))
    assert np.array_equal(one, two)
    with pytest.raises(ValueError, match="kind is one of"):
        add_defect(parts[0], parts[1:], "rust", np.random.default_rng(0))


def test_every_held_out_picture_carries_two_defects_of_changing_kinds(parts):
    pictures = torch.stack([torch.from_numpy(part).permute(2, 0, 1) for part in parts])
    inside = torch.ones(3, *pictures.shape[-2:], dtype=torch.bool)
    inside[:, :, 112:] = False
    spoiled, masks, kinds, origins = artificial_defects(pictures[:3], inside, pictures[3:])
    assert len(spoiled) == len(masks) == len(kinds) == len(origins) <= 6
    for one, mask, origin in zip(spoiled, masks, origins):
        assert mask.any() and (one != pictures[origin]).any()
        assert not mask[:, 112:].any()  # nobody looks for a defect in the padding
    assert len(set(kinds)) >= 5


def maps(seed, count, lift=0.0, mask=None):
    """Raw maps of noise, lifted inside the mask."""
    noise = torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    if mask is not None:
        noise = noise + lift * torch.from_numpy(mask)
    return RawMaps(noise, noise.clone(), (20, 200, 400))


def test_a_defect_that_stands_out_is_found_and_one_that_does_not_is_missed():
    mask = np.zeros((64, 64), bool)
    mask[20:30, 20:30] = True
    masks, kinds = [mask] * 8, ["speck", "stain"] * 4
    calibration = Calibration.fit(maps(0, 8))
    score = calibration.scorer()
    good, clear, hidden = map(calibration.standardise, (maps(0, 8), maps(1, 8, 5.0, mask), maps(1, 8)))
    clear = judged_artificial_defects(good, clear, masks, kinds, score)
    hidden = judged_artificial_defects(good, hidden, masks, kinds, score)
    assert clear["image_auroc"] == clear["found"] == 1.0 and clear["aupro"] > 0.99
    assert clear["found_by_kind"] == {"speck": 1.0, "stain": 1.0}
    assert hidden["found"] < 0.3 and hidden["aupro"] < 0.4 and hidden["image_auroc"] < 0.8
    assert clear["worth"] == pytest.approx((clear["image_auroc"] + clear["aupro"]) / 2)


def test_the_forecast_agrees_with_the_metrics_on_its_own_maps():
    mask = np.zeros((64, 64), bool)
    mask[5:25, 30:50] = True
    good, bad = maps(2, 6), maps(3, 6, 0.4, mask)
    score = ImageScore.of(np.zeros((8, CELLS**2), np.float32))
    result = judged_artificial_defects(good, bad, [mask] * 6, ["worn"] * 6, score)
    raw = [one.mean(dim=0).numpy() for both in (good, bad) for one in both.pixel]
    scores = [score(one, 64) for one in raw]
    labels = [False] * 6 + [True] * 6
    assert result["image_auroc"] == pytest.approx(auroc(scores, labels))
    assert result["found"] == np.mean(np.array(scores[6:]) > threshold_for(score.good))
    assert result["aupro"] == pytest.approx(aupro(raw, [np.zeros_like(mask)] * 6 + [mask] * 6))


def test_words_follow_the_numbers():
    forecast = {
        "image_auroc": 0.9, "aupro": 0.8, "found": 0.3, "good": 6, "defects": 12, "worth": 0.85,
        "found_by_kind": {"speck": 0.0, "stain": 0.6},
    }  # fmt: skip
    weak = in_words("bracket", forecast)
    assert weak.startswith("bracket: of 12 artificial defects 30% were found")
    assert "misses most of them" in weak and "most often missed: speck" in weak and "guess" in weak
    strong = in_words("bracket", forecast | {"found": 0.95, "good": 40, "found_by_kind": {"stain": 1.0}})
    assert "good enough to try" in strong and "missed" not in strong and "guess" not in strong
    few = in_words("bracket", forecast | {"found": 1.0, "good": 29})
    assert "good enough" not in few and "With only 29 good pictures the threshold is a guess" in few
    assert "guess" not in in_words("bracket", forecast | {"good": 30})
    assert "unusual" not in (weak + strong).lower()
    changed = robustness([np.full((32, 32, 3), 99, np.uint8)], lambda image: image.mean() < 90)
    for pictures in (forecast, forecast | {"defects": 0}):  # too dark for defects, or not
        said = in_words("bracket", pictures | {"changed": changed})
        assert "`diffad evaluate`. It does not tolerate all changes of light" in said
        assert "1 of 16 changed good pictures rejected (darker). With only 6 good" in said
    odd = in_words("bracket", forecast | {"unusual": {"a.png": 5.71, "b.png": 4.0}})
    assert "Unusual" in odd and "a.png (5.7), b.png (4.0)" in odd


def test_the_profile_keeps_the_better_choice(monkeypatch, parts, inspector):
    asked = []

    def judged(good, spoiled, masks, kinds, threshold):
        asked.append(threshold)
        return {"worth": 0.4 + 0.1 * len(asked), "found": 0.5}  # the second is by place

    monkeypatch.setattr(profiles, "judged_artificial_defects", judged)
    pictures = gears(5)
    profile = fit_profile(
        inspector.network, inspector.extractor, inspector.schedule, pictures[:3], pictures[3:]
    )
    assert len(asked) == 2
    assert profile.forecast["by_place"] and bool((profile.calibration.level != 1).any())


def test_pictures_that_are_all_but_black_have_a_profile_without_a_forecast(inspector):
    pictures = torch.randint(0, 6, (5, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    pictures = pictures.to(torch.uint8)
    profile = fit_profile(
        inspector.network, inspector.extractor, inspector.schedule, pictures[:3], pictures[3:]
    )
    assert profile.forecast == {"by_place": False, "good": 5, "defects": 0}
    assert bool(torch.isfinite(profile.calibration.moments).all())
    said = in_words("coal", profile.forecast | {"unusual": {"a.png": 5.71}})
    assert "too dark" in said and "no forecast" in said and "5 good pictures" in said
    assert "a.png (5.7)" in said


def test_a_profile_has_seen_every_picture_on_every_grid(monkeypatch, inspector):
    looks, honest = [], residuals.evidence

    def spy(schedule, network, x_start, seen, timesteps, **settings):
        looks.append((len(x_start), timesteps, sorted(seen), settings["kind"]))
        return honest(schedule, network, x_start, seen, timesteps, **settings)

    monkeypatch.setattr(residuals, "evidence", spy)
    pictures = gears(5)
    profile = fit_profile(
        inspector.network, inspector.extractor, inspector.schedule, pictures[:3], pictures[3:]
    )
    # four pictures and four copies of each, then the fifth and its copies
    fitted = [(count, (t,), [-4, 0, 4], "perceptual") for count in 5 * [4] + 5 * [1] for t in TIMESTEPS]
    assert looks[:30] == fitted
    assert all(count == 1 and len(timesteps) > 1 for count, timesteps, *_ in looks[30:])
    assert len(profile.calibration.good_maps) == 5 and profile.plain is None
    assert profile.residual.codes.shape == (3, 4, 4, 120, 120)  # 24, 48 and 48 of 120 channels
    assert profile.perceptual.codes.shape == (3, 2, 2, 120, 120)


def test_a_profile_of_another_pixel_score_is_in_its_units(inspector):
    """The paper's KL has a calibration of its own; what is compared by features does not change."""
    pictures = gears(5)
    parts = inspector.network, inspector.extractor, inspector.schedule, pictures[:3], pictures[3:]
    usual, kl = (fit_profile(*parts, kind=kind) for kind in ("perceptual", "kl"))
    assert torch.equal(usual.residual.codes, kl.residual.codes)
    (pixel, feature), (pixel_kl, feature_kl) = usual.calibration.moments, kl.calibration.moments
    at = usual.calibration.timesteps.index(200)
    assert float(pixel_kl[0, at]) < 0.1 * float(pixel[0, at])
    torch.testing.assert_close(feature, feature_kl, rtol=0.01, atol=1e-3)  # batches differ, and so rounding


def test_a_profile_knows_how_changed_copies_of_its_pictures_score(monkeypatch, inspector):
    pictures = gears(8)
    parts = inspector.network, inspector.extractor, inspector.schedule, pictures[:6], pictures[6:]

    def changed(copy):
        monkeypatch.setattr(profiles, "copies_of", lambda count: 1)
        monkeypatch.setattr(residuals, "random_copy", copy)
        return fit_profile(*parts).calibration

    shift, stretch = changed(lambda image, rng: image).changed
    assert abs(shift) < 0.2 and 0.8 < stretch < 1.25  # no more than what codes round off

    def spotted(image, rng):  # each copy somewhere else
        image = image.copy()
        y, x = rng.integers(5, 50, 2)
        image[y : y + 3, x : x + 3] = 255
        return image

    calibration = changed(spotted)
    assert calibration.changed[0] > 3
    score = calibration.scorer()
    assert score.threshold() > threshold_for(score.good)  # the law of the pictures as they are
    assert score.threshold(0.1) == threshold_for(score.good, 0.1)
