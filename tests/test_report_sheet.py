"""The evidence sheet: every map on one scale, and of any aspect printable."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import ImageColor

from diffad.method.fusion import fuse, weights_in_words
from diffad.pictures import drawing
from diffad.pictures.drawing import heatmap
from diffad.report.sheet import evidence_sheet
from diffad.verdicts import map_limit_for, verdict_for


def photograph(height: int = 64, width: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def hill(height: int = 64, width: int = 64, peak: float = 10.0) -> np.ndarray:
    """A smooth bump in the middle, 0 at the border."""
    rows, columns = np.indices((height, width))
    reach = ((rows - height / 2 + 0.5) / height) ** 2 + ((columns - width / 2 + 0.5) / width) ** 2
    return (peak * np.clip(1 - reach * 8, 0, None)).astype(np.float32)


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
    made.hatched = made.image
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
