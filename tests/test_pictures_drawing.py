"""Exact colours on an absolute scale, contours at the right place."""

import io

import matplotlib
import numpy as np
import pytest
from PIL import Image

from diffad.pictures.drawing import COLORMAPS, contours, heatmap, overlay, png_bytes, shrunk
from diffad.pictures.plots import loss_plot
from diffad.pictures.reading import DataError


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
