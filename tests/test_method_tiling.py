"""Big and long pictures: tiles, their blending, and what an inspection makes of them."""

from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from diffad.method.fusion import branch_weights
from diffad.method.repair_options import RepairOptions
from diffad.method.tiling import GRID, TILE_CELLS, Tiling, smallest_side
from diffad.pictures.geometry import Geometry
from diffad.pictures.reading import DataError
from diffad.synthetic.parts import make_part

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "parts.safetensors"
SHAPES = [
    (3000, 4000, 256), (3000, 4000, 512), (3000, 4000, 1024), (3000, 4000, 2999), (9000, 12000, 750),
    (256, 1024, 256), (200, 1000, 300), (1000, 200, 200), (513, 511, 500), (257, 300, 256), (100, 90, 33),
]  # fmt: skip


@pytest.fixture(scope="module")
def leather():
    """A sheet of 512 × 256 px at the scale of the training pictures, two different pieces, and one cut."""
    good = [make_part("leather", seed=seed).image for seed in (90_500, 90_501)]
    cut = make_part("leather", seed=90_501, defect="cut")
    mask = np.zeros((512, 256), bool)
    mask[256:] = cut.mask
    return np.concatenate(good), np.concatenate([good[0], cut.image]), mask


@pytest.fixture(scope="module")
def defective(inspector, leather):
    return inspector.inspect(leather[1], "leather", tile=256)


# -- geometry ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "side"), SHAPES)
@pytest.mark.parametrize("size", [256, 32])
def test_weights_sum_to_one_and_tiles_cover_the_picture_with_overlap(height, width, side, size):
    tiling = Tiling.squares(height, width, size, side)
    assert max(tiling.shape) <= GRID + 1
    assert tiling.cells >= min(TILE_CELLS, size, side)
    total = np.zeros(tiling.shape)
    covered = np.zeros((height, width), bool)
    for tile in tiling.tiles:
        for span, length in zip(tile.box, (height, width)):  # less than a cell is not worth another tile
            assert 0 <= span.stop - span.start - min(side, length) <= side / tiling.cells
        covered[tile.box] = True
        assert tile.weight.min() > 0
        total[tile.cells] += tile.weight
    assert covered.all()
    np.testing.assert_allclose(total, 1, atol=1e-6)
    for axis in (0, 1):
        starts = sorted({tile.box[axis].start for tile in tiling.tiles})
        assert all(b - a <= 0.75 * side for a, b in pairwise(starts))


@pytest.mark.parametrize(("height", "width", "side"), SHAPES)
def test_cells_lie_over_their_own_pixels(height, width, side):
    tiling = Tiling.squares(height, width, 256, side)
    for tile in tiling.tiles:
        for axis, length in enumerate((height, width)):
            scale = tiling.shape[axis] / length
            assert tile.box[axis].start * scale == pytest.approx(tile.cells[axis].start, abs=1)
            assert tile.box[axis].stop * scale == pytest.approx(tile.cells[axis].stop, abs=1)


@pytest.mark.parametrize("side", [300, 301, 5000])
def test_one_tile_that_covers_everything_is_the_whole_picture(side):
    whole, tiled = Tiling.whole(200, 300, 256), Tiling.squares(200, 300, 256, side)
    assert tiled == whole
    (tile,) = tiled.tiles
    assert (tile.weight == 1).all()
    assert tile.box == (slice(0, 200), slice(0, 300))
    maps = torch.randn(2, 3, 256, 256)
    assert torch.equal(tiled.to_cells(maps, tile), maps[(..., *Geometry.letterbox(200, 300, 256).inner)])


def test_tiles_too_small_for_their_picture_are_refused_with_the_size_that_will_do():
    least = smallest_side(9000, 12000)
    with pytest.raises(DataError, match=f"12000 × 9000 px: give at least {least}"):
        Tiling.squares(9000, 12000, 256, least - 1)
    assert len(Tiling.squares(9000, 12000, 256, least).tiles) < 500  # bounded time as well


@pytest.mark.parametrize("place", [(0, 0), (400, 700), (767, 1023), (0, 512)])
def test_a_tile_around_a_place_holds_it_and_fades_only_inside_the_picture(place):
    tiling = Tiling.squares(3000, 4000, 256, 1024)
    tile = tiling.around(*(min(at, length - 1) for at, length in zip(place, tiling.shape)))
    inside = [min(at, length - 1) - span.start for at, length, span in zip(place, tiling.shape, tile.cells)]
    assert tile.weight[tuple(inside)] == 1
    for axis in (0, 1):
        first, last = tile.weight.take(0, axis), tile.weight.take(-1, axis)
        assert (first.max() < 0.01) == (tile.cells[axis].start > 0)
        assert (last.max() < 0.01) == (tile.cells[axis].stop < tiling.shape[axis])


# -- inspections ---------------------------------------------------------------------------------------------


def test_tiles_all_alike_leave_no_seam(inspector):
    """Nothing in a uniform picture: the blended map has no step that one tile's own map lacks."""
    grey = np.full((256, 900, 3), 120, np.uint8)
    tiled = inspector.inspect(grey, "leather", timesteps=(200,), tile=256)
    alone = inspector.inspect(grey[:, :256], "leather", timesteps=(200,), tile=None)
    assert len(tiled._tiling.tiles) == 5
    for maps in ("pixel_maps", "feature_maps"):
        blended, own = getattr(tiled, maps)[200], getattr(alone, maps)[200]
        assert own.min() - 0.5 <= blended.min() and blended.max() <= own.max() + 0.5
        assert np.abs(np.diff(blended, axis=1)).max() <= 1.2 * np.abs(np.diff(own, axis=1)).max()


def test_chances_are_the_tiles_worth_of_picture():
    assert Tiling.whole(900, 300, 256).chances == 1
    assert Tiling.squares(512, 256, 256, 128).chances == 8
    assert Tiling.squares(512, 100, 256, 128).chances == 4  # narrower than a tile


def test_where_one_tile_lies_alone_its_map_is_that_of_the_piece(inspector, leather):
    piece = inspector.inspect(leather[1][:256], "leather", timesteps=(200,), tile=None)
    tiled = inspector.inspect(leather[1], "leather", timesteps=(200,), tile=256)
    alone = tiled._tiling.tiles[1].box[0].start
    for maps in ("pixel_maps", "feature_maps"):
        mine, own = getattr(tiled, maps)[200][:alone], getattr(piece, maps)[200][:alone]
        np.testing.assert_allclose(mine, own, rtol=0.05, atol=0.3)  # bf16 differs with the batch
        assert np.abs(mine - own).mean() < 0.05


def test_a_tile_as_large_as_the_picture_is_the_whole_inspection(inspector):
    image = make_part("gear", seed=90_001, defect="dent").image[:200]
    whole, tiled = (inspector.inspect(image, timesteps=(200,), tile=tile) for tile in (None, 256))
    assert tiled.tile is None
    assert np.array_equal(whole.anomaly_map, tiled.anomaly_map)
    assert (whole.score, whole.threshold) == (tiled.score, tiled.threshold)


def test_a_defect_is_found_where_it_is_at_its_own_size(inspector, leather, defective):
    good, _, mask = leather
    assert not inspector.inspect(good[:, ::-1][:300], "leather", tile=None).tile
    assert defective.tile == defective.to_dict()["tile"] == 256
    assert defective.is_anomalous
    assert defective.anomaly_map.shape == mask.shape
    assert mask[np.unravel_index(defective.anomaly_map.argmax(), mask.shape)]
    x, y, width, height = defective.regions[0].box
    assert mask[y : y + height, x : x + width].sum() > 0.5 * mask.sum()
    again = inspector.inspect(leather[1], "leather", tile=256)
    assert np.array_equal(again.anomaly_map, defective.anomaly_map)


def test_the_score_comes_from_reduced_maps_and_those_are_bounded(defective):
    maps = defective.grid_maps()
    weights = branch_weights(0.5)
    fused = np.mean([np.tensordot(weights, both, 1) for both in maps.values()], axis=0)
    assert fused.shape == (512, 256)
    tops = [
        defective.scorer(fused[top:bottom, left:right], defective.scored_size)
        for top, left, bottom, right in defective.windows
    ]
    assert len(tops) == len(defective._tiling.tiles) > 1
    assert defective.score == pytest.approx(max(tops), rel=1e-5)
    small = defective.grid_maps(100)
    assert all(branch.shape == (100, 50) for both in small.values() for branch in both)
    other = defective.fused(alpha=0.2, timesteps=(20, 400))
    tiles = [other.scorer(other.anomaly_map[tile.box], 256) for tile in other._tiling.tiles]
    assert other.score == pytest.approx(max(tiles), rel=1e-5)
    assert other.fused(0.5, (20, 200, 400)).threshold == pytest.approx(defective.threshold)


def test_the_threshold_keeps_its_meaning_however_many_tiles(inspector, defective):
    """Pictures made of so many independent tiles, each with scores after the good parts' law, are rejected at
    the rate that was asked for.
    """
    assert defective.chances == 2
    whole = inspector.threshold("leather")
    assert defective.threshold > whole
    # the law of one tile, from the inspector's own rate, by inversion: scores of many good pictures
    shares = np.random.default_rng(0).uniform(size=(4000, 2))
    levels = np.linspace(0, whole + 20, 151)
    rates = np.array([inspector.scorer("leather").rate(level) for level in levels])
    scores = np.interp(shares, rates[::-1], levels[::-1]).max(axis=1)
    for rate in (0.2, 0.05, 0.01):
        limit = defective.threshold_at(rate)
        assert np.mean(scores > limit) == pytest.approx(rate, rel=0.25)
        assert defective.fused(threshold=limit).rate == pytest.approx(rate, rel=1e-3)


@pytest.mark.parametrize(
    ("category", "size", "pieces", "expected"),
    [
        ("leather", 256, 2, 256),
        ("carbon_fibre", 256, 3, 256),
        ("leather", 512, 2, 512),
        ("leather", 512, 1, None),
        ("gear", 1024, 1, None),
        ("chip", 768, 1, None),
    ],
)
def test_textures_are_tiled_at_the_scale_of_training_and_parts_stay_whole(
    inspector, category, size, pieces, expected
):
    image = np.tile(make_part(category, seed=90_502, size=size).image, (pieces, pieces, 1))
    look = inspector._recognition.best_look(image, inspector.categories, "auto", nullcontext)
    assert (look.tiling.side, look.category) == (expected, category)


def test_a_long_strip_is_tiled_at_its_own_width(inspector):
    strip = np.tile(make_part("leather", seed=90_503).image, (1, 3, 1))
    for picture in (strip, np.rot90(strip).copy()):
        look = inspector._recognition.best_look(picture, inspector.categories, "auto", nullcontext)
        assert look.tiling.side == 256


def test_what_fits_no_category_stays_whole(inspector):
    noise = np.random.default_rng(0).integers(0, 256, (600, 700, 3), dtype=np.uint8)
    look = inspector._recognition.best_look(noise, inspector.categories, "auto", nullcontext)
    assert look.tiling.side is None


def test_progress_counts_tiles_and_may_end_the_inspection(inspector, leather):
    seen = []
    inspector.inspect(leather[0], "leather", (200,), tile=256, progress=lambda *done: seen.append(done))
    assert seen[-1] == (3, 3)

    def leave(done, total):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        inspector.inspect(leather[0], "leather", (200,), tile=256, progress=leave)


@pytest.mark.parametrize("tile", [0, 15, 256.0, "256", True])
def test_odd_tiles_are_refused(inspector, leather, tile):
    with pytest.raises(ValueError, match="tile is None"):
        inspector.inspect(leather[0], tile=tile)


# -- repair --------------------------------------------------------------------------------------------------


def test_the_tile_with_the_defect_is_repaired_and_the_rest_left_alone(inspector, leather, defective):
    _, image, mask = leather
    options = RepairOptions(steps=8, denoise_every=4)
    steps = list(inspector.repair(image, "leather", options, tile=256))
    assert [step.index for step in steps] == list(range(len(steps)))
    assert steps[0].total == 8 and len(steps) - 1 <= steps[-1].total <= 4 * 8  # a round for a tile
    assert [step.done for step in steps] == [False] * (len(steps) - 1) + [True]
    assert steps[0].score == defective.score
    assert steps[-1].score < 0.8 * steps[0].score
    assert steps[-1].anomaly_map.shape == mask.shape
    calm = defective.anomaly_map < 0.25 * defective.threshold
    changed = np.abs(steps[-1].image.astype(int) - image).max(axis=-1)
    assert changed[calm].mean() < 0.5
    assert (changed[mask] > 8).any()


def test_the_printed_algorithm_repairs_the_highest_tile(inspector, leather):
    *_, last = inspector.repair(leather[1], "leather", RepairOptions(steps=2, method="paper"), tile=256)
    changed = np.abs(last.image.astype(int) - leather[1]).max(axis=-1)
    assert last.index == last.total == 2
    assert (changed[leather[2]] > 0).any()
    assert not changed[:200].any()  # the other tile


def test_ignored_places_are_those_of_the_picture_however_it_is_cut():
    """A mask over the model's square covers the same part of a picture, whole or in tiles."""
    ignored = torch.zeros(128, 128, dtype=torch.bool)
    ignored[32:64, :64] = True  # of a picture twice as wide as high: its upper half, on the left
    for tiling in (Tiling.whole(300, 600, 256), Tiling.squares(300, 600, 256, 256)):
        share = tiling.ignored_cells(ignored)
        height, width = tiling.shape
        assert share.shape == tiling.shape and share.dtype == np.float32
        expected = np.zeros(tiling.shape, np.float32)
        expected[: height // 2, : width // 2] = 1
        assert np.abs(share - expected).mean() < 0.02 and share[5, 5] == 1 and share[-5, -5] == 0
