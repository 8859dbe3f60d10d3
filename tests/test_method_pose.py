"""Parts at any angle: the pose that is found, the way into the square and back, inspection and repair."""

import math

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from diffad import checkpoint as checkpoints
from diffad.inspector import Inspector
from diffad.method.image_score import ImageScore
from diffad.method.pose import Pose, Turn, Upright, find_pose
from diffad.method.repair_options import RepairOptions
from diffad.method.tiling import Tiling
from diffad.pictures.geometry import to_square, to_uint8
from diffad.pictures.reading import DataError, read_image
from diffad.teaching.recipe import TrainConfig
from diffad.teaching.training import train

HEIGHT, WIDTH = 300, 360
HEAVY, LIGHT = 34, 6  # half the width of a wedge at its ends, px
LENGTH = 200


def wedge(angle, centre=(180, 150), spot=None, shadow=0.0):
    """A dark wedge, its heavy end at -LENGTH/2 along the axis, on a bright ground: uint8 [HEIGHT, WIDTH, 3].
    spot: (along, across) of a white dot on it. shadow: grey values of a soft one beside it.
    """
    axis = np.array([math.cos(angle), math.sin(angle)])
    side = np.array([-axis[1], axis[0]])
    half = LENGTH / 2
    corners = np.array([(-half, -HEAVY), (half, -LIGHT), (half, LIGHT), (-half, HEAVY)])
    points = np.array(centre) + corners @ np.stack([axis, side])
    outline = np.rint(points * 16).astype(np.int32)
    ground = np.full((HEIGHT, WIDTH, 3), 190, np.uint8)
    if shadow:
        dark = np.zeros((HEIGHT, WIDTH), np.float32)
        cv2.fillPoly(dark, [outline + 16 * 12], 1.0, shift=4)
        dark = cv2.GaussianBlur(dark, (0, 0), 16)
        ground = np.rint(ground - shadow * dark[..., None]).astype(np.uint8)
    cv2.fillPoly(ground, [outline], (70, 80, 90), lineType=cv2.LINE_AA, shift=4)
    if spot is not None:
        x, y = np.array(centre) + spot[0] * axis + spot[1] * side
        cv2.circle(ground, (round(x * 16), round(y * 16)), 7 * 16, (250, 250, 250), -1, cv2.LINE_AA, 4)
    return ground


def square(image, size=256):
    return to_square(image, size)[0]


def apart(one, other):
    return abs((one - other + math.pi) % (2 * math.pi) - math.pi)


def squares(angles, **drawn):
    return torch.stack([to_uint8(square(wedge(angle, **drawn))) for angle in angles])


ANGLES = np.linspace(0, 2 * math.pi, 23, endpoint=False)


@pytest.mark.parametrize("angle", [-2.8, -1.3, 0.0, 0.6, 2.2])
@pytest.mark.parametrize("shadow", [0.0, 60.0])
def test_axis_direction_and_centroid_are_found(angle, shadow):
    pose = find_pose(square(wedge(angle, centre=(170, 160), shadow=shadow)))
    assert apart(pose.angle, angle) < math.radians(2)
    # of a trapezium along its axis, from the middle towards the heavy end
    along = -LENGTH / 6 * (HEAVY - LIGHT) / (HEAVY + LIGHT)
    expected = np.array([170, 160]) + along * np.array([math.cos(angle), math.sin(angle)])
    scale = 2 / WIDTH
    assert (pose.x, pose.y) == pytest.approx((expected - [WIDTH / 2, HEIGHT / 2]) * scale, abs=0.02)
    assert (pose.left, pose.right) == pytest.approx(
        ((-LENGTH / 2 - along) * scale, (LENGTH / 2 - along) * scale), abs=0.03
    )
    assert -pose.top == pytest.approx(pose.bottom, abs=0.02)


def test_what_has_no_pose_shows_none():
    ground = np.full((256, 256, 3), 190, np.uint8)
    disc = cv2.circle(ground.copy(), (120, 130), 60, (60, 60, 60), -1)
    rng = np.random.default_rng(0)
    grain = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    cut_off = wedge(0.0, centre=(60, 150))
    for picture in (ground, disc, grain, cut_off):
        assert find_pose(square(picture)) is None


def test_only_parts_that_lie_at_many_angles_are_turned():
    assert isinstance(Upright.fit(squares(ANGLES)), Upright)
    assert Upright.fit(squares(0.4 + 0.02 * np.sin(ANGLES))) is None  # alike already
    some = squares(ANGLES)
    some[::4] = 190
    assert Upright.fit(some) is None  # a quarter shows none
    # what lies still is most of the picture: turned, the pictures are less alike
    still = np.broadcast_to(np.linspace(-90, 60, WIDTH)[None, :, None], (HEIGHT, WIDTH, 3))
    shaded = [np.clip(wedge(angle) + still, 0, 255).astype(np.uint8) for angle in ANGLES]
    shaded = torch.stack([to_uint8(square(picture)) for picture in shaded])
    assert all(find_pose(picture / 127.5 - 1) for picture in shaded.float())
    assert Upright.fit(shaded) is None
    grain = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8)
    assert Upright.fit(grain) is None


def test_turned_parts_lie_alike_whole_and_in_the_middle():
    upright = Upright.fit(squares(ANGLES))
    shown = []
    for angle, centre in ((0.3, (180, 150)), (2.0, (190, 160)), (-1.7, (165, 140))):
        image = wedge(angle, centre)
        shown.append(upright.turn(square(image)).square(image, 256))
        pose = find_pose(shown[-1])
        assert apart(pose.angle, 0) < math.radians(1)
        assert (pose.x + (pose.left + pose.right) / 2, pose.y) == pytest.approx((0, 0), abs=0.02)
        assert shown[-1].shape == (3, 256, 256)
        whole = (shown[-1] + 1) * 127.5
        torch.testing.assert_close(whole, whole.round(), atol=1e-3, rtol=0)
    for other in shown[1:]:
        assert float((shown[0] - other).abs().mean()) * 127.5 < 2


def test_long_parts_are_scaled_until_they_fit():
    """A part as long as the picture's diagonal, which is level nowhere."""
    diagonal = Pose(0.8, 0.0, 0.0, -1.3, 1.3, -0.1, 0.1)
    corners = np.full((300, 300, 3), 190, np.uint8)
    pictures = []
    for flip in (False, True) * 6:
        image = cv2.line(corners.copy(), (20, 20), (280, 280), (60, 60, 60), 16)
        pictures.append(to_uint8(square(image[:, ::-1].copy() if flip else image)))
    upright = Upright.fit(torch.stack(pictures))
    assert upright.scale * 1.23 == pytest.approx(0.95, abs=0.03)
    assert upright.scale * diagonal.right > 0.95  # and no smaller than that


@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_back_undoes_forth(scale):
    turn = Turn(0.7, 0.1, -0.05, Upright(scale, -0.1, 0.02))
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, 128),) * 2, indexing="ij")
    maps = torch.stack([torch.exp(-8 * (x**2 + y**2)), torch.exp(-20 * ((x - 0.2) ** 2 + (y + 0.3) ** 2))])
    forth = turn.forth(maps)
    torch.testing.assert_close(turn.back(forth), maps, atol=0.02, rtol=0)
    assert float((forth - maps).abs().max()) > 0.3
    # the centroid comes to lie where it belongs, a quarter of a turn away from what lay across
    spot = torch.exp(-800 * ((x - 0.1) ** 2 + (y + 0.05) ** 2))
    row, column = divmod(int(turn.forth(spot).argmax()), 128)
    assert (x[0, column], y[row, 0]) == pytest.approx((-0.1, 0.02), abs=0.02)
    ahead = torch.exp(-800 * ((x - 0.1 - 0.2 * math.cos(0.7)) ** 2 + (y + 0.05 - 0.2 * math.sin(0.7)) ** 2))
    row, column = divmod(int(turn.forth(ahead).argmax()), 128)
    assert (x[0, column], y[row, 0]) == pytest.approx((-0.1 + 0.2 * scale, 0.02), abs=0.02)
    seen = float(turn.back(torch.ones(1, 128, 128)).mean())
    assert 0.7 < seen < 0.95 if scale == 1 else seen > 0.97


def test_maps_and_changes_of_a_turned_picture_come_back_to_their_pixels():
    image = wedge(0.9)
    turn = Upright(1.0, -0.05, 0.0).turn(square(image))
    tiling = Tiling.whole(HEIGHT, WIDTH, 256, turn)
    (tile,) = tiling.tiles
    inside = tiling.inside(tile)
    assert 0.6 < float(inside.float().mean()) < float(tiling_inside(HEIGHT, WIDTH)) + 0.01
    x = tiling.square(image, tile)
    back = tiling.to_pixels(x, tile).permute(1, 2, 0).numpy()
    seen = tiling.to_pixels(torch.ones(1, 256, 256), tile)[0].numpy() > 0.999
    assert float(np.abs(back * 127.5 + 127.5 - image)[seen].mean()) < 2
    assert float(np.abs(back[~seen]).max()) <= 1  # nothing was seen there, so nothing changes much
    peak = np.zeros(tiling.shape, np.float32)
    peak[120:124, 60:64] = 1
    there = tiling.from_cells(peak, tile)
    again = tiling.to_cells(there, tile).numpy()
    assert np.unravel_index(again.argmax(), again.shape) == pytest.approx((121.5, 61.5), abs=1.5)
    assert again.sum() == pytest.approx(peak.sum(), rel=0.1)


@pytest.mark.parametrize("resampling", [Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
@pytest.mark.parametrize("size", [384, 512, 1024])
def test_a_turned_part_looks_the_same_whatever_the_size_of_its_picture(size, resampling):
    """Lanczos and bicubic are near enough to each other's inverse for grey values to stay."""
    small = to_uint8(square(wedge(0.9, spot=(20, 0)))).permute(1, 2, 0).numpy()
    large = np.asarray(Image.fromarray(small).resize((size, size), resampling))
    turn = Upright(1.0, -0.05, 0.0).turn(square(small))
    there, here = (turn.square(picture, 256) * 127.5 for picture in (large, small))
    assert float((there - here).abs().mean()) < 0.25
    assert float((there - here).abs().max()) < 16  # at the outline, of 120 grey values


def test_nothing_is_raised_where_a_turned_picture_has_no_pixels_of_its_own():
    """At the rim the backbone sees the picture's mirror image; what is found there is not the part's."""
    image = wedge(0.9)
    turn = Upright(1.0, -0.05, 0.0).turn(square(image))
    tiling = Tiling.whole(HEIGHT, WIDTH, 256, turn)
    (tile,) = tiling.tiles
    cells = tiling.to_cells(torch.full((256, 256), 5.0), tile).numpy()
    rim = np.concatenate([cells[:4].ravel(), cells[-4:].ravel(), cells[:, :4].ravel(), cells[:, -4:].ravel()])
    assert rim.max() == 0
    assert cells[100:110, 120:130].min() == pytest.approx(5)


def test_what_is_shrunk_to_be_turned_is_scored_by_as_much_of_the_part():
    """A map over the picture, whose defect the model saw at half its length: four times the pixels."""
    heat = np.random.default_rng(0).random((256, 256)).astype(np.float32)
    half = Tiling.whole(256, 256, 256, Turn(0.3, 0.0, 0.0, Upright(0.5, 0.0, 0.0)))
    peak = ImageScore(0.0, -math.inf, 0.0, np.zeros(1), np.zeros(1))
    for tiling, side in ((half, 16), (Tiling.whole(256, 256, 256), 8)):
        cells = heat.reshape(256 // side, side, 256 // side, side).mean(axis=(1, 3))
        assert tiling.score(heat, peak) == pytest.approx(np.sort(cells.ravel())[-4:].mean(), rel=1e-5)


def tiling_inside(height, width):
    tiling = Tiling.whole(height, width, 256)
    return tiling.inside(tiling.tiles[0]).float().mean()


@pytest.fixture(scope="module")
def wedges(bundled_model, quick_statistics, tmp_path_factory):
    """Statistics of wedges at many angles; their grain differs, so that there is something to measure."""
    folder = tmp_path_factory.mktemp("data") / "wedge"
    folder.mkdir()
    for index, angle in enumerate(ANGLES[::2]):
        Image.fromarray(grained(wedge(angle), index)).save(folder / f"{index}.png")
    out = folder.parent / "wedge.safetensors"
    return train(TrainConfig(steps=0, stressed=0, size=128), [folder], out, start_from=bundled_model)


def grained(image, seed):
    grain = np.random.default_rng(seed).normal(0, 4, image.shape)
    return np.clip(np.rint(image + grain), 0, 255).astype(np.uint8)


def test_a_defect_of_a_turned_part_is_shown_where_it_is(wedges):
    profiles = checkpoints.load(wedges).profiles
    assert profiles["wedge"].upright is not None and profiles["gear"].upright is None
    inspector = Inspector.load(wedges, device="cpu")
    for angle, spot in ((0.5, (70, 0)), (-2.0, (-60, 10))):
        found = inspector.inspect(grained(wedge(angle, spot=spot), 99))
        assert found.category == "wedge" and found.is_anomalous and found.turned
        axis = np.array([math.cos(angle), math.sin(angle)])
        x, y = np.array([180, 150]) + spot[0] * axis + spot[1] * np.array([-axis[1], axis[0]])
        row, column = np.unravel_index(found.anomaly_map.argmax(), found.anomaly_map.shape)
        assert math.hypot(row - y, column - x) < 14
    good = inspector.inspect(grained(wedge(1.1), 98), "wedge")
    assert not good.is_anomalous
    one_tile = inspector.inspect(grained(wedge(1.1), 98), "wedge", tile=WIDTH)  # no less than the whole
    assert one_tile.score == pytest.approx(good.score, abs=1e-3)
    gear = inspector.inspect(read_image("assets/samples/gear_good.png"))
    assert gear.category == "gear" and not gear.turned
    assert math.isfinite(inspector.inspect(np.full((64, 64, 3), 90, np.uint8), "wedge").score)


def test_turned_parts_are_never_cut_into_tiles(wedges):
    inspector = Inspector.load(wedges, device="cpu")
    image = grained(wedge(0.5), 96)
    for category in ("wedge", None):  # given or recognised
        with pytest.raises(DataError, match=r"wedge is turned upright .*: inspect it whole"):
            inspector.inspect(image, category, timesteps=(200,), tile=256)
    large = np.asarray(Image.fromarray(image).resize((3 * image.shape[1], 3 * image.shape[0])))
    found = inspector.inspect(large, "wedge", timesteps=(200,))
    assert (found.tile, found.turned) == (None, True)
    sheet = inspector.inspect(read_image("assets/samples/leather_good.png"), timesteps=(200,), tile=200)
    assert (sheet.category, sheet.tile) == ("leather", 200)


def test_a_repair_of_a_turned_part_leaves_the_rest_to_the_last_bit(wedges):
    """And no part worse than it was, as one that the network never learned from may be while it is drawn."""
    inspector = Inspector.load(wedges, device="cpu")
    image = grained(wedge(0.5, spot=(60, 0)), 97)
    steps = list(inspector.repair(image, "wedge", options=RepairOptions(steps=12)))
    assert steps[-1].score <= steps[0].score
    changed = np.logical_or.reduce([(step.image != image).any(axis=2) for step in steps])
    x, y = np.array([180, 150]) + 60 * np.array([math.cos(0.5), math.sin(0.5)])
    assert changed[round(y), round(x)]
    assert changed.mean() < 0.15 and not changed[:, :150].any()  # the heavy end is sound


@pytest.mark.parametrize("angle", [0.4, 2.1, 4.0])
def test_what_is_ignored_of_a_part_turns_with_it(angle):
    """A mask of the part in its upright pose covers it wherever it lies."""
    image = wedge(angle)
    pose = find_pose(square(image))
    tiling = Tiling.whole(*image.shape[:2], 256, Turn.of(pose, Upright(0.8, 0.0, 0.0)))
    upright = to_uint8(tiling.square(image, tiling.tiles[0])).float().mean(dim=0)
    part = image.mean(axis=2)
    background = part[0, 0]
    covered = tiling.ignored_cells((upright - background).abs() > 30) > 0.5
    expected = cv2.resize(np.abs(part - background), covered.shape[::-1], interpolation=cv2.INTER_AREA) > 30
    assert expected.sum() > 500 and (covered & expected).sum() > 0.9 * (covered | expected).sum()
