"""Frames of a repair as GIF, WebP or MP4."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from diffad.output import whole
from diffad.pictures.arrays import U8, Array
from diffad.pictures.drawing import resized, shrunk
from diffad.pictures.reading import DataError

# ---------------------------------------------------------------------------------------------------------
# Animations

FRAME_SIDE = 768  # px; longest side of an animation's frames
_FRAMES_KEPT = 128


class Reel:
    """Frames for `animation` as they come, uint8 [H, W, 3], scaled down to 768 px. Of many, evenly spaced
    ones are kept, and always the newest: a repair of thousands of steps must not fill the memory.
    """

    def __init__(self) -> None:
        self._kept: list[Array] = []
        self._newest: Array | None = None
        self._count, self._stride = 0, 1

    def add(self, image: U8) -> None:
        self._newest = shrunk(image, FRAME_SIDE)
        if self._count % self._stride == 0:
            self._kept.append(self._newest)
        if len(self._kept) > _FRAMES_KEPT:
            self._kept, self._stride = self._kept[::2], 2 * self._stride
        self._count += 1

    @property
    def frames(self) -> list[Array]:
        if self._newest is None or self._newest is self._kept[-1]:
            return list(self._kept)
        return [*self._kept, self._newest]


def animation(frames: Sequence[Array], path: str | Path, seconds: float = 4.0) -> Path:
    """Write frames uint8 [H, W, 3] of one size as a looping .gif or .webp, or an .mp4; returns the path.

    It lasts about `seconds`; the first and the last frame are held longer. At most 25 frames a second are
    kept (evenly chosen, ends included), and a longest side above 768 pixels is scaled down to 768.
    Raises DataError for no frames, different sizes, another suffix or a missing folder, and for .mp4 where
    there is no encoder (`has_mp4`), OutputError if it cannot be written.
    """
    path = Path(path)
    if len(frames) == 0:
        raise DataError("there are no frames to animate: give at least one")
    if any(frame.shape != frames[0].shape or frame.dtype != np.uint8 for frame in frames):
        raise DataError("the frames differ in size or are not uint8: give pictures of one size")
    check_format(path.suffix)
    if not path.parent.is_dir():
        raise DataError(f"the folder {path.parent} does not exist: make it first")
    chosen, durations = _timing(len(frames), seconds)
    height, width = frames[0].shape[:2]
    scale = FRAME_SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    kept = [resized(frames[i], size) if scale < 1 else frames[i] for i in chosen]
    with whole(path, sync=False) as partial:
        _WRITERS[path.suffix.lower()](kept, partial, durations)
    return path


def check_format(suffix: str) -> None:
    """Raises DataError if `animation` cannot write files with this suffix here."""
    if suffix.lower() not in _WRITERS:
        raise DataError(f"{suffix!r} is no animation format: choose .gif, .webp or .mp4")
    if suffix.lower() == ".mp4" and not has_mp4():
        raise DataError("MP4 needs PyAV with H.264: choose .gif or .webp, or `pip install av`")


def _timing(count: int, seconds: float) -> tuple[list[int], list[int]]:
    """Which of `count` frames to show, and each one's ms: multiples of 10 (GIF's clock), in sum `seconds`."""
    between = min(max(count - 2, 0), int(0.6 * seconds / 0.04))
    shown = min(count, between + 2)
    chosen = [round(i * (count - 1) / max(shown - 1, 1)) for i in range(shown)]
    step = min(0.6 * seconds / max(between, 1), seconds / (between + 4))  # the ends last longer than a step
    rest = seconds - between * step
    ends = [rest] if shown == 1 else [0.4 * rest, *[step] * between, 0.6 * rest]
    clock = np.rint(np.cumsum([0, *ends]) * 100).astype(int) * 10
    return chosen, [max(int(ms), 20) for ms in np.diff(clock)]


def _write_gif(frames: list[Array], path: Path, durations: list[int]) -> None:
    # One palette for the clip, and what does not change keeps its dither: no flicker, and small files.
    # Maximum coverage spans the extremes, so that dithering reaches white and rare accents; 255 colours leave
    # one for the transparency with which Pillow stores differences.
    sample = np.concatenate([frames[round(i)] for i in np.linspace(0, len(frames) - 1, min(len(frames), 6))])
    palette = Image.fromarray(sample).quantize(255, Image.Quantize.MAXCOVERAGE)
    pictures: list[Image.Image] = []
    held = frames[0]  # the colours that each pixel's index was last chosen for
    for frame in frames:
        picture = Image.fromarray(np.ascontiguousarray(frame)).quantize(palette=palette)
        if pictures:
            same = np.all(cv2.absdiff(frame, held) <= 2, axis=-1)  # [H, W]
            picture.paste(pictures[-1], mask=Image.fromarray(same))
            held = np.where(same[..., None], held, frame)
        pictures.append(picture)
    pictures[0].save(path, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)


def _write_webp(frames: list[Array], path: Path, durations: list[int]) -> None:
    pictures = [Image.fromarray(np.ascontiguousarray(frame)) for frame in frames]
    pictures[0].save(
        path,
        "WEBP",
        save_all=True,
        append_images=pictures[1:],
        duration=durations,
        loop=0,
        quality=90,
        method=4,
    )


@cache
def has_mp4() -> bool:
    """Whether this machine can write MP4: PyAV's wheels bring H.264, which every browser and player knows."""
    try:
        import av
    except ImportError:
        return False
    return "libx264" in av.codecs_available


def _write_mp4(frames: list[Array], path: Path, durations: list[int]) -> None:
    import av

    height, width = frames[0].shape[:2]
    pad = ((0, height % 2), (0, width % 2), (0, 0))  # H.264 halves the colour's resolution: even sides
    clock = np.rint(np.cumsum([0, *durations]) / 40).astype(int)
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as file:
        stream = file.add_stream("libx264", rate=25, options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        for picture, ticks in zip(frames, np.diff(clock), strict=True):
            padded = np.ascontiguousarray(np.pad(picture, pad, mode="edge"))
            for _ in range(max(ticks, 1)):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(padded, format="rgb24")))
        file.mux(stream.encode())


_WRITERS = {".gif": _write_gif, ".webp": _write_webp, ".mp4": _write_mp4}
