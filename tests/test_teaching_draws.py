"""What a training step is shown: turns, shares of categories, defects and holes, from any process."""

import sys

import numpy as np
import pytest
import torch
from small_training import config

from diffad.method.features import FeatureExtractor
from diffad.method.unet import UNetConfig
from diffad.pictures.geometry import to_float
from diffad.synthetic.parts import make_part
from diffad.teaching.draws import Draws, Features, holes_in, symmetries, turned
from diffad.teaching.training import _prepare

pytestmark = pytest.mark.usefixtures("quick_statistics")


@pytest.fixture(scope="module")
def extractor():
    return FeatureExtractor()


def noise_pictures(tilt):
    """Grain of its own on every picture, and a gradient common to all."""
    generator = torch.Generator().manual_seed(0)
    grain = torch.randint(90, 130, (24, 3, 64, 64), generator=generator)
    return (grain + tilt * torch.arange(64)).clamp(0, 255).to(torch.uint8)


def test_pictures_may_be_turned_only_where_that_leaves_them_as_they_are(extractor):
    """Grain looks alike from everywhere. Lit from one side, it may at most be mirrored across that light."""
    cpu = torch.device("cpu")
    assert symmetries(extractor, noise_pictures(0), cpu) == tuple(range(8))
    lit = noise_pictures(2)
    upside_down = next(s for s in range(8) if torch.equal(turned(lit, s), lit.flip(-2)))
    assert symmetries(extractor, lit, cpu) == (0, upside_down)


def test_turned_gives_the_eight_symmetries_of_the_square():
    picture = torch.arange(9).view(1, 3, 3)
    all_of_them = {tuple(turned(picture, symmetry).flatten().tolist()) for symmetry in range(8)}
    assert len(all_of_them) == 8 and torch.equal(turned(picture, 0), picture)


def test_every_category_has_its_share_and_features_belong_to_their_pictures(extractor):
    categories = [noise_pictures(0)[:4], (noise_pictures(0) // 4)]  # few bright ones, many dark ones
    settings = config(unet=UNetConfig(size=64, channels=(64, 64), feature_channels=192), variants=2, batch=8)
    run = _prepare(settings, None, categories, 1, 0, torch.device("cpu"))
    draws, features = Draws.of(run, categories), Features(run)
    bright = 0
    for step in range(10):
        draw = draws[step]
        x_start = to_float(torch.from_numpy(draw.pictures), run.device)
        bright += int((x_start.mean(dim=(1, 2, 3)) > -0.5).sum())
        torch.testing.assert_close(features(draw.keys, x_start), run.extractor(x_start), rtol=0.05, atol=0.05)
    assert 28 <= bright <= 52
    assert len(features.kept) <= 2 * (4 + 24)  # kept: two variants of each picture


def test_half_of_the_pictures_are_shown_with_defects_and_the_same_ones_again():
    pictures = noise_pictures(0)[:6] // 2
    draws = Draws(config(batch=40), [pictures], [(0, 1)])
    draw, again, other = draws[1], draws[1], Draws(config(batch=40), [pictures], [(0, 1)], rank=1)[1]
    changed = (draw.pictures != draw.shown).any(axis=1).mean(axis=(1, 2))  # share of each picture
    assert 12 <= (changed > 0).sum() <= 28 and changed.max() < 0.9
    assert again.keys == draw.keys and all(map(np.array_equal, draw[1:], again[1:]))
    assert other.keys != draw.keys and not np.array_equal(other.noise, draw.noise)
    clean = Draws(config(spoiled=0.0), [pictures], [(0,)])[2]
    assert np.array_equal(clean.pictures, clean.shown)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")
def test_other_processes_draw_what_this_one_would():
    draws = Draws(config(), [noise_pictures(0)[:6]], [(0, 1)])
    batches = draws.batches(3, workers=2)
    for step in (3, 4, 5, 6):
        here, drawn = draws[step], next(batches)
        assert drawn.keys == here.keys and all(map(np.array_equal, drawn[1:], here[1:]))


def test_a_share_of_the_pictures_is_noised_in_holes_where_noise_hides_much():
    """The same ones for the same seed; everything at small t, where variances are learned."""
    parts = np.stack([make_part("gear", seed, size=64).image for seed in (1, 2)])
    pictures = torch.from_numpy(parts).permute(0, 3, 1, 2).repeat(32, 1, 1, 1)
    t = torch.tensor([99, 100, 999, 400]).repeat_interleave(2).repeat(8)

    def holes(share):
        return holes_in(pictures, t, share, np.random.default_rng(7))

    assert torch.equal(holes(0.3), holes(0.3)) and holes(0.0).all()
    whole = holes(1.0).flatten(1).all(dim=1)
    assert torch.equal(whole, t < 100)
    area = holes(1.0)[t >= 100].float().mean(dim=(1, 2, 3))
    assert 0.0005 < area.min() and area.max() < 0.6 and 0.02 < area.mean() < 0.3
    assert 0.1 < (~holes(0.3).flatten(1).all(dim=1))[t >= 100].float().mean() < 0.5
