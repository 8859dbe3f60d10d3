"""Animations that open again, and reels of many frames."""

import sys

import cv2
import numpy as np
import pytest
from PIL import Image, ImageSequence

from diffad.pictures.animation import Reel, animation, has_mp4
from diffad.pictures.reading import DataError


def photograph(height: int = 64, width: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def hill(height: int = 64, width: int = 64, peak: float = 10.0) -> np.ndarray:
    """A smooth bump in the middle, 0 at the border."""
    rows, columns = np.indices((height, width))
    reach = ((rows - height / 2 + 0.5) / height) ** 2 + ((columns - width / 2 + 0.5) / width) ** 2
    return (peak * np.clip(1 - reach * 8, 0, None)).astype(np.float32)


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
