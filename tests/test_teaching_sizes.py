"""A category has its own size: inspected, recognised, stored and found by it."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from diffad import checkpoint as checkpoints
from diffad.checkpoint import CheckpointError
from diffad.inspector import Inspector
from diffad.method.artificial_defects import add_small_defect
from diffad.method.diffusion import Schedule
from diffad.method.features import FeatureExtractor
from diffad.method.repair_options import RepairOptions
from diffad.method.unet import UNet, UNetConfig
from diffad.synthetic.parts import make_part
from diffad.teaching.recipe import TrainConfig
from diffad.teaching.residuals import block, limits
from diffad.teaching.sizes import find_size, in_words, sizes_for, smallest_that_finds
from diffad.teaching.training import train

pytestmark = pytest.mark.usefixtures("quick_statistics")
SMALL = UNetConfig(size=64, channels=(64, 64), feature_channels=192)


def config(**changes):
    return TrainConfig(
        **{"steps": 6, "unet": SMALL, "batch": 4, "warm_up": 2, "shift": 2, "stressed": 0, **changes}
    )


def write(folder, kind, size):
    folder.mkdir()
    for seed in range(10):
        Image.fromarray(make_part(kind, seed, size=size).image).save(folder / f"{seed}.png")
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model that knows gears at 64 px."""
    root = tmp_path_factory.mktemp("small")
    return train(config(), [write(root / "gear", "gear", 64)], root / "small.safetensors")


@pytest.fixture(scope="module")
def both(small, tmp_path_factory):
    """The same, and leather at 96 px."""
    root = tmp_path_factory.mktemp("both")
    folder = write(root / "leather", "leather", 128)
    said = []
    out = train(
        config(steps=0, size=96), [folder], root / "both.safetensors", start_from=small, tell=said.append
    )
    assert not any("inspected at" in one for one in said)  # it was given
    return out


def test_a_category_is_inspected_at_its_own_size(small, both):
    model, old = (Inspector.load(path, device="cpu") for path in (both, small))
    assert checkpoints.load(both).profiles["leather"].size == 96 and model.size == 64
    assert (model.size_of("leather"), model.size_of("gear"), model.size_of(None)) == (96, 64, 64)
    leather, gear = (make_part(kind, 77, size=128).image for kind in ("leather", "gear"))
    fine = model.inspect(leather, "leather")
    assert fine.square_map.shape == (96, 96) and fine.anomaly_map.shape == (128, 128)
    assert next(iter(fine.grid_maps().values()))[0].shape == (96, 96)
    coarse, before = model.inspect(gear, "gear"), old.inspect(gear, "gear")
    assert coarse.square_map.shape == (64, 64)
    assert (coarse.score, coarse.threshold) == (before.score, before.threshold)
    assert model.whole(leather, "leather").size == 96


def test_categories_of_several_sizes_are_recognised(both):
    model = Inspector.load(both, device="cpu")
    for kind in ("leather", "gear"):
        found = [model.inspect(make_part(kind, seed, size=128).image) for seed in range(70, 74)]
        assert [one.category for one in found] == [kind] * 4
        assert all(one.recognised and len(one.square_map) == model.size_of(kind) for one in found)


def test_tiles_and_repairs_have_the_categorys_size(both):
    model = Inspector.load(both, device="cpu")
    part = np.tile(make_part("leather", 78, size=128).image, (2, 2, 1))
    tiled = model.inspect(part, "leather", tile=128)
    assert tiled.tile == 128 and tiled._tiling.size == 96
    steps = list(model.repair(part[:128, :128], "leather", options=RepairOptions(steps=2, method="paper")))
    assert steps[-1].done and steps[-1].image.shape == (128, 128, 3)


@pytest.mark.parametrize("size", [80, 2048, 0, "96", 96.0, True])
def test_a_file_with_an_odd_size_is_refused(both, tmp_path, size):
    tensors, metadata = checkpoints.load_tensors(both)
    header = json.loads(metadata["diffad"])
    header["categories"][1]["size"] = size
    odd = checkpoints.save_tensors(tmp_path / "odd.safetensors", tensors, {"diffad": json.dumps(header)})
    with pytest.raises(CheckpointError, match="give a multiple of 32 up to 1024"):
        checkpoints.load(odd)


@pytest.mark.parametrize("size", [80, 1056, 0])
def test_a_size_that_does_not_suit_is_refused_before_anything_is_learned(size):
    with pytest.raises(ValueError, match=f"a size of {size} px does not suit: give a multiple of 32 up to"):
        config(size=size)


def test_training_goes_on_at_another_size(small, tmp_path):
    folder = write(tmp_path / "gear", "gear", 128)
    out = train(config(steps=1, size=96), [folder], tmp_path / "m.safetensors", start_from=small)
    model = checkpoints.load(out)
    assert model.config == replace(SMALL, size=96) and model.profiles["gear"].size == 96


def weave(seed, threads=16, size=128):
    """Cloth of so many threads a side, each a little off."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] * threads / size + rng.uniform(0, 2, (2, 1, 1))
    over = (np.floor(x) + np.floor(y)) % 2
    light = np.where(over, np.sin(np.pi * (x % 1)), 0.7 * np.sin(np.pi * (y % 1)))
    grain = cv2.GaussianBlur(rng.normal(size=(size, size)), (0, 0), 0.7) * 8
    return np.clip(40 + 150 * light + grain, 0, 255).astype(np.uint8)


def test_no_size_is_tried_beyond_the_pictures_own_or_512_px():
    usual = UNetConfig()
    for longest, sizes in (
        (256, [256]), (383, [256]), (384, [256, 384]), (512, [256, 384, 512]), (4000, [256, 384, 512])
    ):  # fmt: skip
        assert sizes_for(usual, longest) == sizes
    assert sizes_for(SMALL, 100) == [64, 96]
    assert sizes_for(UNetConfig(size=512), 4000) == [512]
    assert sizes_for(UNetConfig(size=160), 4000) == [160, 320]  # 240 is no multiple of 32


def test_a_larger_size_must_be_clearly_better():
    def find(*worth_and_aupro):
        known = dict(zip((256, 384, 512), worth_and_aupro))
        chosen, tried = smallest_that_finds(
            list(known), lambda size: dict(zip(("worth", "aupro"), known[size]))
        )
        return chosen, list(tried)

    every = [256, 384, 512]
    assert find((0.90, 0.9), (0.91, 0.9), (0.94, 0.9)) == (256, every)
    assert find((0.60, 0.6), (0.91, 0.9), (0.92, 0.9)) == (384, every)
    assert find((0.60, 0.6), (0.75, 0.8), (0.92, 0.9)) == (512, every)
    assert find((0.60, 0.6), (0.60, 0.5), (0.92, 0.9)) == (512, every)
    assert find((0.60, 0.8), (0.75, 0.7), (0.92, 0.7)) == (256, every)  # shown where there is no defect
    assert find((0.96, 0.9), (1, 1), (1, 1)) == (256, [256])  # what cannot be clearly better is not paid for
    assert find((0.60, 0.8), (0.96, 0.9), (1, 1)) == (384, [256, 384])


def test_words_name_every_size_that_was_tried():
    tried = {"256": {"found": 0.62, "aupro": 0.7, "seconds": 0.12},
             "384": {"found": 0.91, "aupro": 0.9, "seconds": 0.28}}  # fmt: skip
    assert in_words("bracket", {"size": 384, "defects": 24, "tried": tried}) == (
        "bracket: inspected at 384 px: of 24 small artificial defects 91% were found (AUPRO 0.90), "
        "62% at 256 px (AUPRO 0.70); 0.28 s per inspection."
    )


def test_finer_grids_have_as_many_blocks_and_fewer_pictures():
    assert [block(grid, least) for grid in (8, 32) for least in (4, 2)] == [4, 2, 4, 2]
    for grid in range(32, 129, 4):
        for least, most in ((4, 8), (2, 16)):
            assert grid % block(grid, least) == 0 and grid // block(grid, least) <= most
    assert [64 // block(64, least) for least in (4, 2)] == [8, 16]
    assert limits(8) == limits(32) == (768, 192)
    assert limits(64) == (192, 96) and limits(128) == (48, 24)


def test_a_small_defect_is_as_small_as_in_a_picture_of_that_size():
    part = make_part("gear", 3, size=256).image
    rng = np.random.default_rng(0)
    for kind in ("speck", "scratch", "stain"):
        spoiled, mask = add_small_defect(part, kind, 64, rng)
        y, x = np.nonzero(mask)
        assert 0 < len(y) and max(np.ptp(y), np.ptp(x)) < 64
        changed = np.abs(spoiled.astype(int) - part).max(axis=2) > 0
        assert changed[mask].all() and changed.sum() <= 64 * 64
    wide = np.repeat(part[:40], 2, axis=1)  # no square of 64 px has room
    assert add_small_defect(wide, "speck", 64, rng)[1].shape == (40, 512)


def written(folder, picture):
    folder.mkdir()
    for seed in range(12):
        Image.fromarray(picture(seed)).convert("RGB").save(folder / f"{seed}.png")
    return sorted(folder.iterdir())


def coarse(seed):
    """A disc, always the same but for some grain: nothing on it is hard to find at 128 px."""
    disc = cv2.circle(np.full((192, 192), 60, np.float64), (96, 96), 60, 180, -1)
    grain = np.random.default_rng(seed).normal(0, 1.5, disc.shape)
    return (cv2.GaussianBlur(disc, (0, 0), 6) + grain).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("picture", "size", "larger"), [(weave, 64, True), (coarse, 128, False)])
def test_a_fine_texture_is_looked_at_larger_and_a_coarse_part_is_not(tmp_path, picture, size, larger):
    torch.manual_seed(0)
    network, extractor = UNet(replace(SMALL, size=size)), FeatureExtractor()
    paths = written(tmp_path / "part", picture)
    found = find_size(network, extractor, Schedule.linear(), paths)
    assert (found["size"] > size) == larger
    assert list(found["tried"])[:2] == ([str(size), str(size * 3 // 2)] if larger else [str(size)])
    assert found["good"] == 12 and found["defects"] == 24
