"""Animations of a repair as GIF, WebP or MP4."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from diffad.output import whole
from diffad.pictures.arrays import U8
from diffad.pictures.drawing import shrunk
from diffad.pictures.reading import DataError

FRAME_SIDE = 768  # px; maximum side of a frame
_FRAMES_KEPT = 128


class Reel:
    """Collects frames for `animation`, scaled down to 768 px.

    Memory is bounded for repairs of thousands of steps: only evenly spaced frames and the newest one remain.
    """

    def __init__(self) -> None:
        self._kept: list[U8] = []
        self._newest: U8 | None = None
        self._count, self._stride = 0, 1

    def add(self, image: U8) -> None:
        """Add a frame, uint8 [H, W, 3]."""
        self._newest = shrunk(image, FRAME_SIDE)
        if self._count % self._stride == 0:
            self._kept.append(self._newest)
        if len(self._kept) > _FRAMES_KEPT:
            self._kept, self._stride = self._kept[::2], 2 * self._stride
        self._count += 1

    @property
    def frames(self) -> list[U8]:
        if self._newest is None or self._newest is self._kept[-1]:
            return list(self._kept)
        return [*self._kept, self._newest]


def animation(frames: Sequence[U8], path: str | Path, seconds: float = 4.0) -> Path:
    """Write frames as a looping .gif or .webp, or as an .mp4.

    The first and the last frame are held longer. At most 25 frames per second are used, evenly chosen with
    both ends included. Frames are scaled down to at most 768 px.

    Args:
        frames: uint8 [H, W, 3], all of one size.
        path: the file to write.
        seconds: approximate duration.

    Returns:
        The path.

    Raises:
        DataError: no frames, different sizes, another suffix, a missing folder, or .mp4 without an encoder
            (`has_mp4`).
        OutputError: the file cannot be written.
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
    kept = [shrunk(frames[i], FRAME_SIDE) for i in chosen]
    with whole(path, sync=False) as partial:
        _WRITERS[path.suffix.lower()](kept, partial, durations)
    return path


def check_format(suffix: str) -> None:
    """Raise DataError if `animation` cannot write files with this suffix on this machine."""
    if suffix.lower() not in _WRITERS:
        raise DataError(f"{suffix!r} is no animation format: choose .gif, .webp or .mp4")
    if suffix.lower() == ".mp4" and not has_mp4():
        raise DataError("MP4 needs PyAV with H.264: choose .gif or .webp, or `pip install av`")


def _timing(count: int, seconds: float) -> tuple[list[int], list[int]]:
    """Indices of the frames to show, and their durations in ms (multiples of 10, as GIF needs)."""
    between = min(max(count - 2, 0), int(0.6 * seconds / 0.04))
    shown = min(count, between + 2)
    chosen = [round(i * (count - 1) / max(shown - 1, 1)) for i in range(shown)]
    step = min(
        0.6 * seconds / max(between, 1), seconds / (between + 4)
    )  # the first and last frame are held longer
    rest = seconds - between * step
    ends = [rest] if shown == 1 else [0.4 * rest, *[step] * between, 0.6 * rest]
    clock = np.rint(np.cumsum([0, *ends]) * 100).astype(int) * 10
    return chosen, [max(int(ms), 20) for ms in np.diff(clock)]


def _write_gif(frames: list[U8], path: Path, durations: list[int]) -> None:
    # One palette for all frames, and unchanged pixels keep their dither: no flicker, and small files.
    # MAXCOVERAGE includes extreme colours, so that dithering can reach white. 255 colours leave one for the
    # transparency by which Pillow stores frame differences.
    sample = np.concatenate([frames[round(i)] for i in np.linspace(0, len(frames) - 1, min(len(frames), 6))])
    palette = Image.fromarray(sample).quantize(255, Image.Quantize.MAXCOVERAGE)
    pictures: list[Image.Image] = []
    held = frames[0]  # the colours for which each pixel's index was last chosen
    for frame in frames:
        picture = Image.fromarray(np.ascontiguousarray(frame)).quantize(palette=palette)
        if pictures:
            same = np.all(cv2.absdiff(frame, held) <= 2, axis=-1)  # [H, W]
            picture.paste(pictures[-1], mask=Image.fromarray(same))
            held = np.where(same[..., None], held, frame)
        pictures.append(picture)
    pictures[0].save(path, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)


def _write_webp(frames: list[U8], path: Path, durations: list[int]) -> None:
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
    """Whether this machine can write MP4 with H.264, which PyAV's wheels include."""
    try:
        import av
    except ImportError:
        return False
    return "libx264" in av.codecs_available


def _write_mp4(frames: list[U8], path: Path, durations: list[int]) -> None:
    import av

    height, width = frames[0].shape[:2]
    pad = ((0, height % 2), (0, width % 2), (0, 0))  # H.264 with 4:2:0 colour needs even sides
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
