"""Exact colours on an absolute scale, contours at the right place, sheets and animations that open again."""

import io
import sys
from types import SimpleNamespace

import cv2
import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageColor, ImageSequence

from diffad.inspection import map_limit_for, verdict_for
from diffad.method.fusion import fuse, weights_in_words
from diffad.pictures import drawing
from diffad.pictures.animation import Reel, animation, has_mp4
from diffad.pictures.drawing import COLORMAPS, contours, heatmap, overlay, png_bytes, shrunk
from diffad.pictures.plots import loss_plot
from diffad.pictures.reading import DataError
from diffad.report.sheet import evidence_sheet


def photograph(height: int = 64, width: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def hill(height: int = 64, width: int = 64, peak: float = 10.0) -> np.ndarray:
    """A smooth bump in the middle, 0 at the border."""
    rows, columns = np.indices((height, width))
    reach = ((rows - height / 2 + 0.5) / height) ** 2 + ((columns - width / 2 + 0.5) / width) ** 2
    return (peak * np.clip(1 - reach * 8, 0, None)).astype(np.float32)


# -- heat maps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colormap", COLORMAPS)
def test_heatmap_has_the_colours_of_the_scale(colormap):
    values = np.linspace(0, 8, 256, dtype=np.float32)[None].repeat(2, axis=0)
    expected = matplotlib.colormaps[colormap](np.arange(256), bytes=True)[:, :3]
    assert np.array_equal(heatmap(values, 8, colormap)[1], expected)


def test_heatmap_scale_is_absolute_and_clipped():
    low = heatmap(np.full((2, 2), 1.0), 8)
    high = heatmap(np.array([[1.0, 100.0], [-5.0, np.nan]]), 8)
    assert np.array_equal(low[0, 0], high[0, 0])  # the neighbours do not matter
    ends = heatmap(np.array([[8.0, 0.0]]), 8)[0]
    assert np.array_equal(high[0, 1], ends[0])
    assert np.array_equal(high[1], [ends[1], ends[1]])
    assert high.dtype == np.uint8


@pytest.mark.parametrize(
    "wrong", [{"vmax": 0}, {"vmax": np.nan}, {"colormap": "jet"}, {"anomaly_map": np.zeros(3)}]
)
def test_heatmap_refuses(wrong):
    with pytest.raises(DataError):
        heatmap(**{"anomaly_map": np.zeros((4, 4)), "vmax": 8, **wrong})


# -- overlays and contours ----------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [None, 3.0])
def test_overlay_leaves_good_places_alone(threshold):
    image = photograph()
    calm = np.random.default_rng(1).normal(0, 0.3, (64, 64)).clip(-1, 0.99)
    assert np.array_equal(overlay(image, calm, 8, threshold), image)


def test_overlay_blends_by_opacity_where_hot():
    image, hot = photograph(), np.full((64, 64), 6.0)
    heat = heatmap(hot, 8).astype(np.float64)
    assert np.array_equal(overlay(image, hot, 8, opacity=0.6), np.rint(0.4 * image + 0.6 * heat))
    assert np.array_equal(overlay(image, hot, 8, threshold=3.0, opacity=1.0), heat)
    assert np.array_equal(overlay(image, hot, 8, opacity=0.0), image)


@pytest.mark.parametrize("threshold", [5.0, 0.0, -1.0, -1e9, -np.inf, np.inf])
def test_whatever_lies_above_a_threshold_of_any_sign_is_painted_fully(threshold):
    image = photograph()
    near = threshold if np.isfinite(threshold) else 0.0
    values = near + np.linspace(-1.2, 1.2, 64)[None].repeat(64, axis=0) * max(abs(near), 1) / 2
    shown = overlay(image, values, 8, threshold, opacity=1.0, contour=False)
    above = values > threshold
    assert above.any() == (threshold < np.inf) and above.all() == (threshold == -np.inf)
    assert np.array_equal(shown[above], heatmap(values, 8)[above])
    far = values < threshold - abs(threshold) / 2 if threshold < np.inf else ~above
    assert np.array_equal(shown[far], image[far])


def test_overlay_fades_in_without_a_step():
    rising = np.linspace(0, 8, 512)[None].repeat(16, axis=0)
    shown = overlay(np.full((16, 512, 3), 128, np.uint8), rising, 8, opacity=1.0)[8].astype(int)
    assert np.abs(np.diff(shown, axis=0)).max() <= 6
    assert np.array_equal(shown[0], [128] * 3)


def test_contour_lies_where_the_map_crosses_the_threshold():
    """The map is the column number, so 20.25 is crossed a quarter of a pixel to the right of column 20."""
    black = np.zeros((64, 64, 3), np.uint8)
    columns = np.indices((64, 64))[1].astype(np.float32)
    drawn = contours(black, columns, 20.25)[32, :, 0].astype(float)
    assert (drawn * np.arange(64)).sum() / drawn.sum() == pytest.approx(20.25, abs=0.15)
    assert set(np.flatnonzero(drawn > 20)) <= {19, 20, 21}
    assert drawn.max() > 120


def test_contour_of_a_disc_is_a_circle_of_the_right_radius():
    rows, columns = np.indices((200, 200)) - 99.5
    distance = np.hypot(rows, columns).astype(np.float32)
    drawn = contours(np.zeros((200, 200, 3), np.uint8), -distance, -60)[..., 0].astype(float)
    assert (drawn * distance).sum() / drawn.sum() == pytest.approx(60, abs=0.2)
    angles = np.arctan2(rows, columns)[drawn > 60]
    assert len(np.unique(np.floor(angles * 20))) >= 125  # all the way round


@pytest.mark.parametrize("ground", [0, 255])
def test_contour_is_visible_on_black_and_on_white(ground):
    image = np.full((64, 64, 3), ground, np.uint8)
    drawn = contours(image, hill(), 5.0).astype(int)
    assert np.abs(drawn - ground).max() > 80
    far = np.abs(hill() - 5.0) > 3
    assert np.array_equal(drawn[far], image[far])


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (1, 1)])
def test_a_line_of_pixels_has_no_contour(shape):
    image = np.full((*shape, 3), 90, np.uint8)
    rising = np.arange(image[..., 0].size, dtype=float).reshape(shape)
    assert np.array_equal(contours(image, rising, 3), image)


def test_contour_grows_with_the_picture():
    widths = []
    for side in (128, 1600):
        drawn = contours(
            np.zeros((side, side, 3), np.uint8), np.indices((side, side))[1].astype(float), side / 2
        )
        widths.append(drawn[side // 2, :, 0].astype(float).sum() / 255)
    assert widths[0] < 2
    assert 3 < widths[1] < 6


@pytest.mark.parametrize("threshold", [99.0, -99.0, np.inf])
def test_no_crossing_no_contour_and_the_picture_is_not_touched(threshold):
    image = photograph()
    before = image.copy()
    assert np.array_equal(contours(image, hill(), threshold), before)
    contours(image, hill(), 5.0)
    overlay(image, hill(), 8, 5.0)
    assert np.array_equal(image, before)


def test_map_of_another_size_is_refused():
    for draw in (lambda m: overlay(photograph(), m, 8), lambda m: contours(photograph(), m, 3)):
        with pytest.raises(DataError, match="same size"):
            draw(hill(32, 64))
    with pytest.raises(DataError, match="uint8"):
        overlay(photograph() / 255, hill(), 8)


@pytest.mark.parametrize(
    "image", [photograph(20, 30), photograph(20, 30)[..., 0], photograph(20, 30)[:, ::-1]]
)
def test_png_bytes_open_again(image):
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(image)))), image)


# -- evidence sheet -----------------------------------------------------------------------------------------


def inspection(height: int = 64, width: int = 64, timesteps: tuple[int, ...] = (20, 200, 400), **changes):
    maps = {t: hill(height, width, 4 + t / 100) for t in timesteps}
    values = {
        "image": photograph(height, width),
        "pixel_maps": maps,
        "feature_maps": {t: 2 * m for t, m in maps.items()},
        "anomaly_map": hill(height, width, 9.0),
        "timesteps": timesteps,
        "threshold": 3.1,
        "look_threshold": 2.4,
        "plain_map": None,
        "weights_in_words": weights_in_words(0.5),
        "score": 8.6,
        "alpha": 0.5,
    }
    made = SimpleNamespace(**{**values, **changes})
    made.verdict = verdict_for(made.score, made.threshold, made.look_threshold)
    made.map_limit = map_limit_for(made.verdict, made.threshold, made.look_threshold, made.anomaly_map)
    return made


@pytest.mark.parametrize("shape", [(64, 64), (400, 300), (20, 600), (600, 20), (1000, 1400)])
@pytest.mark.parametrize("count", [1, 3, 12])
def test_sheet_of_any_aspect_and_length_stays_printable(shape, count):
    sheet = evidence_sheet(inspection(*shape, timesteps=tuple(range(0, 80 * count, 80))), 8)
    assert sheet.dtype == np.uint8
    assert sheet.ndim == 3
    assert 500 <= sheet.shape[1] <= 1600
    assert sheet.shape[0] <= 1200
    for border in (sheet[:8], sheet[-8:], sheet[:, :8], sheet[:, -8:]):
        assert (border == 255).all()  # nothing is cut off


def test_sheet_shows_every_map_on_one_scale():
    """Flat maps appear as flat tiles of exactly the scale's colour: α-weighed ones too."""
    flat = {
        name: np.full((64, 64), value) for name, value in (("a", 1.0), ("b", 2.0), ("c", 5.0), ("d", 7.0))
    }
    sheet = evidence_sheet(
        inspection(
            timesteps=(20, 400),
            pixel_maps={20: flat["a"], 400: flat["b"]},
            feature_maps={20: flat["c"], 400: flat["d"]},
            anomaly_map=np.full((64, 64), 3.5),
            alpha=0.25,
            threshold=50.0,
        ),
        8,
    )
    low, high = (float(fuse(np.array([[p]]), np.array([[f]]), 0.25)[0]) for p, f in ((1.0, 5.0), (2.0, 7.0)))
    for value in (1.0, 2.0, 5.0, 7.0, low, high, 3.5):
        colour = heatmap(np.full((1, 1), value), 8)[0, 0]
        assert (sheet == colour).all(axis=-1).sum() >= 240 * 240 - 500, value


def test_sheet_takes_only_the_chosen_timesteps_and_tells_the_verdicts_apart():
    several = inspection(timesteps=(20, 200, 400))
    several.timesteps = (200,)
    assert evidence_sheet(several, 8).shape == evidence_sheet(inspection(timesteps=(200,)), 8).shape
    sheets = [evidence_sheet(inspection(score=score), 8) for score in (8.6, 2.7, 1.0)]
    colours = [ImageColor.getrgb(name) for name in (drawing.ALARM, drawing.WARNING, drawing.CALM)]
    shown = [[bool((sheet[:60] == colour).all(axis=-1).any()) for colour in colours] for sheet in sheets]
    assert shown == np.eye(3, dtype=bool).tolist()


@pytest.mark.parametrize(("threshold", "share"), [(-1.0, 0), (0.0, 0), (4.0, 0.5), (8.0, 1), (1e9, 1)])
def test_the_scale_marks_the_threshold_or_the_end_beyond_which_it_lies(threshold, share):
    sheet = evidence_sheet(inspection(threshold=threshold), 8)
    scale = sheet[106:902, -184:]  # a line across it, the longest in this colour
    row = int((scale == (0x1B, 0x22, 0x30)).all(axis=2).sum(axis=1).argmax())
    assert row == pytest.approx((1 - share) * (len(scale) - 1), abs=1.5)


# -- animations ---------------------------------------------------------------------------------------------


def clip(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """A square that wanders over a still ground of gentle colours."""
    rows, columns = np.indices((height, width))
    ground = np.stack([100 + rows, 90 + columns, 120 + 0 * rows], axis=-1).astype(np.uint8)
    frames = [ground.copy() for _ in range(count)]
    for i, frame in enumerate(frames):
        left = round(i * (width - 20) / max(count - 1, 1))
        frame[10:30, left : left + 20] = (220, 80, 40)
    return frames


def read_back(path) -> tuple[list[np.ndarray], list[int]]:
    with Image.open(path) as opened:
        assert opened.info.get("loop", 0) == 0  # for ever
        pairs = [(np.array(f.convert("RGB")), f.info["duration"]) for f in ImageSequence.Iterator(opened)]
    return [frame for frame, _ in pairs], [duration for _, duration in pairs]


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
@pytest.mark.parametrize("count", [2, 5, 30])
def test_animation_opens_again_with_its_timing(tmp_path, suffix, count):
    frames = clip(count)
    path = animation(frames, tmp_path / f"repair{suffix}", seconds=2.0)
    assert path == tmp_path / f"repair{suffix}"
    shown, durations = read_back(path)
    assert len(shown) == count
    assert sum(durations) == pytest.approx(2000, abs=20)
    assert durations[-1] > durations[0]
    assert all(duration < durations[0] for duration in durations[1:-1])
    for frame, expected in zip(shown, frames, strict=True):
        assert np.abs(frame.astype(int) - expected).mean() < 4
        smooth, wanted = (cv2.GaussianBlur(f.astype(np.float32), (0, 0), 2) for f in (frame, expected))
        assert np.abs(smooth - wanted).mean() < 3


def test_gif_does_not_flicker_where_nothing_moves(tmp_path):
    shown, _ = read_back(animation(clip(12), tmp_path / "repair.gif"))
    still = np.stack(shown)[:, 34:]
    assert (still == still[0]).all()
    assert len(np.unique(still[0].reshape(-1, 3), axis=0)) > 50  # and the ground keeps its shades


def test_gif_keeps_white_and_a_rare_accent(tmp_path):
    """A palette of averages would turn white to cream and lose a spot of a thousandth of the area."""
    part = np.full((200, 200, 3), 255, np.uint8)
    part[40:160, 40:160] = 40 + photograph(120, 120) // 4
    part[100:106, 100:106] = (253, 138, 93)
    shown, _ = read_back(animation([part, part[::-1]], tmp_path / "repair.gif"))
    assert np.abs(shown[0][:30].astype(int) - 255).max() <= 2
    assert np.abs(shown[0][100:106, 100:106].mean(axis=(0, 1)) - (253, 138, 93)).max() < 6


def test_many_frames_are_thinned_and_large_ones_scaled(tmp_path):
    frames = clip(300, 20, 1000)
    shown, durations = read_back(animation(frames, tmp_path / "repair.webp", seconds=2.0))
    assert shown[0].shape == (15, 768, 3)
    assert len(shown) <= 50
    assert min(durations) >= 40
    assert sum(durations) == pytest.approx(2000, abs=20)
    for frame, expected in ((shown[0], frames[0]), (shown[-1], frames[-1])):  # both ends are kept
        small = cv2.resize(expected, (768, 15), interpolation=cv2.INTER_AREA)
        assert np.abs(frame.astype(int) - small).mean() < 4


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_one_frame_is_a_picture(tmp_path, suffix):
    with Image.open(animation(clip(1), tmp_path / f"repair{suffix}")) as opened:
        assert opened.size == (64, 48)


def test_mp4_is_h264_of_the_same_length(tmp_path):
    import av

    assert has_mp4()
    frames = clip(10, 47, 63)
    path = animation(frames, tmp_path / "repair.mp4", seconds=2.0)
    with av.open(str(path)) as file:
        (stream,) = file.streams.video
        shown = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert len(shown) / stream.average_rate == pytest.approx(2.0, abs=0.1)
    assert shown[0].shape == (48, 64, 3)  # padded to even sides
    for first, last in ((shown[0], frames[0]), (shown[-1], frames[-1])):
        assert np.abs(first[:47, :63].astype(int) - last).mean() < 8


def test_mp4_without_encoder(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)  # as where it is not installed
    has_mp4.cache_clear()
    assert not has_mp4()
    with pytest.raises(DataError, match=r"choose \.gif or \.webp"):
        animation(clip(3), tmp_path / "repair.mp4")
    has_mp4.cache_clear()


def test_unusable_clips(tmp_path):
    for frames in ([], [photograph(20, 20), photograph(20, 30)], [hill()]):
        with pytest.raises(DataError, match="frames"):
            animation(frames, tmp_path / "repair.gif")
    with pytest.raises(DataError, match=r"\.gif, \.webp or \.mp4"):
        animation(clip(2), tmp_path / "repair.avi")
    with pytest.raises(DataError, match="make it first"):
        animation(clip(2), tmp_path / "nowhere" / "repair.gif")
    assert list(tmp_path.iterdir()) == []


# -- training -----------------------------------------------------------------------------------------------


def test_loss_plot_survives_a_real_log(tmp_path):
    log = [{"step": i, "loss": 1 / (i + 1), "features": 0.5 - i / 500, "note": "text"} for i in range(200)]
    log += [{"step": 200, "loss": float("nan")}, {"step": 201, "learning_rate": 1e-4}, {"time": 3.0}]
    loss_plot(log, tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.width > picture.height > 200
    loss_plot([{"step": 0, "loss": 1.0}], tmp_path / "first.png")
    for empty in ([], [{"step": 1}], [{"step": 1, "loss": float("nan")}]):
        with pytest.raises(DataError, match="no numbers"):
            loss_plot(empty, tmp_path / "none.png")


def test_shrunk_keeps_small_pictures_and_a_row_of_thin_ones():
    assert shrunk(np.zeros((20, 4000, 3), np.uint8), 768).shape == (4, 768, 3)
    assert shrunk(np.zeros((16, 40_000), np.float32), 768).shape == (1, 768)
    small = np.zeros((20, 30, 3), np.uint8)
    assert shrunk(small, 768) is small


# -- reels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 128, 129, 130, 1001, 5001])
def test_a_reel_keeps_evenly_spaced_frames_the_first_and_the_newest(count):
    reel = Reel()
    for number in range(count):
        reel.add(np.full((2, 3, 3), (number // 250, number % 250, 0), np.uint8))
    numbers = [250 * int(frame[0, 0, 0]) + int(frame[0, 0, 1]) for frame in reel.frames]
    if count:
        assert (numbers[0], numbers[-1]) == (0, count - 1)
    assert len(numbers) == count if count <= 128 else 64 < len(numbers) <= 130
    assert len(set(np.diff(numbers)[:-1].tolist())) <= 1  # the last gap is what remains


def test_a_reels_frames_are_small_enough_to_animate(tmp_path):
    reel = Reel()
    for _ in range(3):
        reel.add(np.zeros((900, 1200, 3), np.uint8))
    assert [frame.shape for frame in reel.frames] == [(576, 768, 3)] * 3
    assert animation(reel.frames, tmp_path / "a.gif").exists()
