"""Arrays → pictures: heat maps, overlays, contours, the evidence sheet, animations, the training plot.

Pictures are uint8 [H, W, 3] RGB. Maps are float [H, W] in σ of good parts' maps (about 0 is good). They are
always shown on the absolute scale 0 … vmax, never stretched to their own range, so that good parts look calm.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from functools import cache
from itertools import cycle, zip_longest
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffad.data import DataError
from diffad.inspection import VERDICTS
from diffad.output import whole
from diffad.scoring import fuse

COLORMAPS = ("inferno", "viridis", "cividis", "magma", "gray")

INK, MUTED, LINE, ALARM, WARNING, CALM = "#1b2230", "#667085", "#d5dae2", "#c0311e", "#8a5a00", "#1f56d8"
_LINES = ("#1f56d8", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9")  # apart for colour-blind eyes


# ---------------------------------------------------------------------------------------------------------
# Maps


def heatmap(anomaly_map: np.ndarray, vmax: float, colormap: str = "inferno") -> np.ndarray:
    """Colour a map [H, W] on the absolute scale 0 … vmax, clipped (NaN is 0): uint8 [H, W, 3].

    Raises DataError for an unknown colour map, a vmax that is not positive, or a map that is not [H, W].
    """
    if not 0 < vmax < float("inf"):
        raise DataError(f"the scale ends at {vmax}: give a positive vmax")
    share = np.clip(_finite(anomaly_map) / np.float32(vmax), 0, 1)
    return _colours(colormap)[np.rint(share * 255).astype(np.uint8)]


def overlay(
    image: np.ndarray,
    anomaly_map: np.ndarray,
    vmax: float,
    threshold: float | None = None,
    opacity: float = 0.6,
    colormap: str = "inferno",
    contour: bool = True,
) -> np.ndarray:
    """Lay the heat map over the picture: uint8 [H, W, 3].

    The heat fades in with the value, from nothing at half the threshold (half as far again below a negative
    one) to `opacity` (0..1) at the threshold (without one: from vmax / 8 to vmax / 2), so that good places
    stay the photograph, bit by bit. With a threshold its contour is drawn; `contour=False` leaves it out, as
    in a good part. Raises DataError if picture and map differ in size.
    """
    values = _fitting(image, anomaly_map)
    if threshold is None:
        start, full = vmax / 8, vmax / 2
    else:
        full = min(max(threshold, -1e9), 1e9)  # an infinite one has no half
        start = full - abs(full) / 2
    rise = np.clip((values - start) / max(full - start, 1e-6 * vmax), 0, 1)
    blended = _paint(image, heatmap(values, vmax, colormap), opacity * rise * rise * (3 - 2 * rise))
    return blended if threshold is None or not contour else contours(blended, values, threshold)


def contours(
    image: np.ndarray,
    anomaly_map: np.ndarray,
    threshold: float,
    color: tuple[int, int, int] = (255, 255, 255),
) -> np.ndarray:
    """Draw the line where the map crosses the threshold: uint8 [H, W, 3].

    Thin, antialiased, placed between pixels by linear interpolation, on a wider dark stroke that keeps it
    visible on bright ground. Raises DataError if picture and map differ in size.
    """
    from contourpy import contour_generator

    values = _fitting(image, anomaly_map)
    if min(values.shape) < 2:  # nothing lies between pixels of a line
        return image.copy()
    lines = [np.rint(line * 16).astype(np.int32) for line in contour_generator(z=values).lines(threshold)]
    width = max(1, round((image.shape[0] * image.shape[1]) ** 0.5 / 400))
    drawn = image
    for stroke, paint, opacity in ((3 * width, (0, 0, 0), 0.45), (width, color, 1.0)):
        cover = np.zeros(image.shape[:2], np.uint8)
        cv2.polylines(cover, lines, False, 255, stroke, cv2.LINE_AA, shift=4)  # shift: points in 1/16 pixel
        drawn = _paint(
            drawn, np.broadcast_to(np.uint8(paint), image.shape), cover * np.float32(opacity / 255)
        )
    return drawn


def _paint(image: np.ndarray, paint: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """image + weight · (paint − image), rounded; exactly the image where the weight [H, W] is 0."""
    painted = image.copy()
    touched = weight > 0
    below = image[touched].astype(np.float32)  # [n, 3]
    painted[touched] = np.rint(below + weight[touched, None] * (paint[touched] - below))
    return painted


def _finite(anomaly_map: np.ndarray) -> np.ndarray:
    values = np.asarray(anomaly_map, dtype=np.float32)
    if values.ndim != 2:
        raise DataError(f"a map of shape {values.shape} cannot be drawn: give [H, W]")
    return np.nan_to_num(values)


def _fitting(image: np.ndarray, anomaly_map: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"this is {image.dtype} {image.shape}, not uint8 [H, W, 3]: use read_image first")
    values = _finite(anomaly_map)
    if values.shape != image.shape[:2]:
        raise DataError(f"a map {values.shape} does not fit a picture {image.shape[:2]}: give the same size")
    return values


@cache
def _colours(colormap: str) -> np.ndarray:  # [256, 3]
    if colormap not in COLORMAPS:
        raise DataError(f'unknown colour map "{colormap}": choose one of {", ".join(COLORMAPS)}')
    from matplotlib import colormaps

    return colormaps[colormap](np.arange(256), bytes=True)[:, :3].copy()


def reduced(picture: np.ndarray, longest: int) -> np.ndarray:
    """The picture or map [H, W(, 3)] with its longest side at most `longest` pixels; a small one as it is."""
    height, width = picture.shape[:2]
    if max(height, width) <= longest:
        return picture
    factor = longest / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def png_bytes(image: np.ndarray) -> bytes:
    """Encode uint8 [H, W, 3] or [H, W] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG")
    return buffer.getvalue()


def npy_bytes(values: np.ndarray) -> bytes:
    """Encode an array as NumPy's .npy."""
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


# ---------------------------------------------------------------------------------------------------------
# The evidence sheet


def evidence_sheet(inspection: Any, vmax: float, colormap: str = "inferno") -> np.ndarray:
    """All evidence of one inspection in one printable picture: uint8 [h, w, 3], at most 1600 pixels wide.

    Left: the picture, the overlay, the fused map. Right: a row of pixel maps, a row of feature maps and a row
    of both together, one column per timestep; under the fused map that of the plain features, where there is
    one; a colour scale with the threshold. `inspection` is anything with an Inspection's image, pixel_maps,
    feature_maps, plain_map, anomaly_map, timesteps, threshold, look_threshold, map_limit, verdict, score,
    alpha and weights_in_words.
    """
    height, width = inspection.image.shape[:2]
    margin, gap, names_width, bar_width, caption = 32, 10, 146, 152, 28
    columns = len(inspection.timesteps)
    room = (1600 - 2 * margin - names_width - bar_width - (columns + 1) * gap) // (columns + 1)
    scale = min(min(room, 240) / width, 240 / height)
    thumb = max(1, round(width * scale)), max(1, round(height * scale))  # (width, height)
    cell_width, cell_height = max(thumb[0], 84), max(thumb[1], 48)
    grid_left = margin + cell_width + gap + names_width
    grid_top = margin + 74
    pitch_x, pitch_y = cell_width + gap, cell_height + caption + gap
    bar_left = grid_left + columns * pitch_x + 6
    sheet_width = max(bar_left + bar_width - 16 + margin, 720)
    notes = _notes(sheet_width - 2 * margin, inspection.weights_in_words)
    plain = inspection.plain_map
    grid_bottom = grid_top + (3 if plain is None else 4) * pitch_y - gap
    sheet = Image.new("RGB", (sheet_width, grid_bottom + 16 + 21 * len(notes) + margin - 10), "white")
    draw = ImageDraw.Draw(sheet)

    def place(picture: np.ndarray, left: int, top: int, text: str) -> None:
        x, y = left + (cell_width - thumb[0]) // 2, top + (cell_height - thumb[1]) // 2
        sheet.paste(Image.fromarray(picture), (x, y))
        draw.rectangle((x - 1, y - 1, x + thumb[0], y + thumb[1]), outline=LINE)
        draw.text((left + cell_width / 2, y + thumb[1] + 6), text, MUTED, _font(13), anchor="ma")

    def place_map(values: np.ndarray, left: int, top: int, name: str = "max") -> None:
        shown = heatmap(_resize(_finite(values), thumb), vmax, colormap)
        place(shown, left, top, f"{name} {np.nanmax(values):.1f} σ")

    _headline(draw, inspection, margin)
    small = _resize(inspection.image, thumb)
    fused = inspection.anomaly_map
    over = overlay(
        small, _resize(_finite(fused), thumb), vmax, inspection.map_limit, colormap=colormap,
        contour=inspection.verdict != "good",
    )  # fmt: skip
    place(small, margin, grid_top, "Picture")
    place(over, margin, grid_top + pitch_y, "Overlay")
    place_map(fused, margin, grid_top + 2 * pitch_y, "Fused · max" if cell_width > 130 else "Fused")

    if plain is not None:
        place_map(plain, margin, grid_top + 3 * pitch_y, "Plain features")

    alpha, pixel_maps, feature_maps = inspection.alpha, inspection.pixel_maps, inspection.feature_maps
    names = (("Pixels", "how it looks"), ("Features", "what it means"), ("Together", f"α = {alpha:.2f}"))
    for row, (name, meaning) in enumerate(names):
        middle = grid_top + row * pitch_y + cell_height / 2
        left = margin + cell_width + gap + 10
        draw.text((left, middle - 2), name, INK, _font(19), anchor="lb")
        draw.text((left, middle + 5), meaning, MUTED, _font(14), anchor="lt")
    for column, t in enumerate(inspection.timesteps):
        left = grid_left + column * pitch_x
        draw.text((left + cell_width / 2, grid_top - 10), f"t = {t}", INK, _font(17), anchor="mb")
        pixels, features = pixel_maps[t], feature_maps[t]
        place_map(pixels, left, grid_top)
        place_map(features, left, grid_top + pitch_y)
        place_map(fuse(pixels[None], features[None], alpha, plain), left, grid_top + 2 * pitch_y)

    _colour_bar(
        draw, sheet, (bar_left, grid_top, grid_bottom - caption), vmax, inspection.threshold, colormap
    )
    for line, text in enumerate(notes):
        draw.text((margin, grid_bottom + 16 + 21 * line), text, MUTED, _font(14))
    return np.array(sheet)


def _notes(width: int, weights: str) -> list[str]:
    text = (
        "σ: standard deviations of good parts' maps, about 0 is good. t: noise level, low for fine texture, "
        f"high for large shapes. Together: {weights}. Fused: its mean over t, smoothed."
    )
    return textwrap.wrap(text, max(20, int(width / 7.7)))


def _headline(draw: ImageDraw.ImageDraw, inspection: Any, margin: int) -> None:
    verdict, _ = VERDICTS[inspection.verdict]
    colour = {"good": CALM, "look": WARNING, "anomalous": ALARM}[inspection.verdict]
    draw.text((margin, margin - 4), verdict, colour, _font(26, bold=True), anchor="lt")
    left = margin + draw.textlength(verdict, _font(26, bold=True)) + 16
    limits = f"look limit {inspection.look_threshold:.2f} σ · threshold {inspection.threshold:.2f} σ"
    numbers = f"score {inspection.score:.2f} σ · {limits}"
    draw.text((left, margin + 17), numbers, MUTED, _font(17), anchor="ls")


def _colour_bar(
    draw: ImageDraw.ImageDraw,
    sheet: Image.Image,
    place: tuple[int, int, int],
    vmax: float,
    threshold: float,
    colormap: str,
) -> None:
    left, top, bottom = place
    ramp = heatmap(np.linspace(vmax, 0, bottom - top)[:, None].repeat(14, axis=1), vmax, colormap)
    sheet.paste(Image.fromarray(ramp), (left, top))
    draw.rectangle((left - 1, top - 1, left + 14, bottom), outline=LINE)

    def height_of(value: float) -> float:
        return bottom - 1 - value / vmax * (bottom - 1 - top)

    shown = height_of(min(max(threshold, 0), vmax))  # one beyond the scale stands at its end
    for value in _ticks(vmax):
        y = height_of(value)
        if abs(y - shown) > 20:
            text = "0 · good" if value == 0 else f"{value:g} σ"
            draw.line((left + 15, y, left + 19, y), MUTED)
            draw.text((left + 24, y), text, MUTED, _font(15), anchor="lm")
    draw.line((left - 4, shown, left + 19, shown), "white", 3)
    draw.line((left - 4, shown, left + 19, shown), INK, 1)
    said = f"{threshold:.1f}" if abs(threshold) < 1000 else f"{threshold:.0e}"
    draw.text((left + 24, shown), f"{said} threshold", INK, _font(15), anchor="lm")


def _ticks(vmax: float) -> list[float]:
    """0 and round steps up to vmax, four to nine of them."""
    step = 10 ** np.floor(np.log10(vmax))
    step *= next(part for part in (1, 0.5, 0.2) if vmax / (part * step) >= 4 or part == 0.2)
    return [float(f"{n * step:.6g}") for n in range(int(vmax / step + 1e-6) + 1)]


def _resize(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Picture or map to (width, height): area mean where it shrinks, linear where it grows."""
    shrinks = size[0] < values.shape[1]
    return cv2.resize(values, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    import matplotlib  # its DejaVu Sans has σ and α, and is there wherever diffad is

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


# ---------------------------------------------------------------------------------------------------------
# Animations

FRAME_SIDE = 768  # px; longest side of an animation's frames
_FRAMES_KEPT = 128


class Reel:
    """Frames for `animation` as they come, uint8 [H, W, 3], scaled down to 768 px. Of many, evenly spaced
    ones are kept, and always the newest: a repair of thousands of steps must not fill the memory.
    """

    def __init__(self) -> None:
        self._kept: list[np.ndarray] = []
        self._newest: np.ndarray | None = None
        self._count, self._stride = 0, 1

    def add(self, image: np.ndarray) -> None:
        self._newest = reduced(image, FRAME_SIDE)
        if self._count % self._stride == 0:
            self._kept.append(self._newest)
        if len(self._kept) > _FRAMES_KEPT:
            self._kept, self._stride = self._kept[::2], 2 * self._stride
        self._count += 1

    @property
    def frames(self) -> list[np.ndarray]:
        if self._newest is None or self._newest is self._kept[-1]:
            return list(self._kept)
        return [*self._kept, self._newest]


def animation(frames: Sequence[np.ndarray], path: str | Path, seconds: float = 4.0) -> Path:
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
    kept = [_resize(frames[i], size) if scale < 1 else frames[i] for i in chosen]
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


def _write_gif(frames: list[np.ndarray], path: Path, durations: list[int]) -> None:
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
            same = (cv2.absdiff(frame, held) <= 2).all(axis=-1)  # [H, W]
            picture.paste(pictures[-1], mask=Image.fromarray(same))
            held = np.where(same[..., None], held, frame)
        pictures.append(picture)
    pictures[0].save(path, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)


def _write_webp(frames: list[np.ndarray], path: Path, durations: list[int]) -> None:
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


def _write_mp4(frames: list[np.ndarray], path: Path, durations: list[int]) -> None:
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


# ---------------------------------------------------------------------------------------------------------
# Training


def contact_sheet(pictures: Sequence[np.ndarray], captions: Sequence[str], path: str | Path) -> None:
    """Writes pictures as one PNG, up to four in a row, each under its caption."""
    from matplotlib.figure import Figure

    columns = min(4, len(pictures))
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(2.6 * columns, 3.0 * rows), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for place, picture, caption in zip_longest(places, pictures, captions):
        place.axis("off")
        if picture is not None:
            place.imshow(picture)
            place.set_title(caption, fontsize=8, parse_math=False)
    with whole(path) as partial:
        figure.savefig(partial, dpi=100)


def loss_plot(log: list[dict], path: str | Path) -> None:
    """Draw a training log over the step, one panel a quantity, raw and smoothed; the suffix picks the format.

    log: rows with "step" and numbers under any names; a row may lack some. Raises DataError without numbers.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for row in log for name in row if name != "step"))
    series = {name: _series(log, name) for name in names}
    series = {name: values for name, values in series.items() if len(values)}
    if not series:
        raise DataError('the training log holds no numbers: give rows with "step" and losses')
    columns = min(len(series), 3)
    rows = -(-len(series) // columns)
    figure = Figure(figsize=(4.4 * columns, 2.9 * rows + 0.2), dpi=110, layout="constrained")
    for index, (name, values) in enumerate(series.items()):
        axes = figure.add_subplot(rows, columns, index + 1)
        steps, raw = values.T
        window = max(1, len(raw) // 40)
        padded = np.pad(raw, (window // 2, window - 1 - window // 2), mode="edge")
        axes.plot(steps, raw, color="#9db6e8", linewidth=0.8)
        axes.plot(steps, np.convolve(padded, np.ones(window) / window, "valid"), color=CALM, linewidth=1.8)
        if raw.min() > 0 and raw.max() > 10 * raw.min():
            axes.set_yscale("log")
        axes.set_title(f"{name}, last {raw[-1]:.4g}", loc="left", fontsize=10, color=INK)
        axes.set_xlabel("step", fontsize=9, color=MUTED)
        axes.tick_params(colors=MUTED, labelsize=8)
        axes.grid(color=LINE, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(LINE)
    with whole(path, sync=False) as partial:
        figure.savefig(partial)


def _series(log: list[dict], name: str) -> np.ndarray:  # [n, 2]: step, value
    rows = [
        (row["step"], row[name]) for row in log if "step" in row and isinstance(row.get(name), (int, float))
    ]
    values = np.array(rows, dtype=np.float64).reshape(-1, 2)
    return values[np.isfinite(values).all(axis=1)]


# ---------------------------------------------------------------------------------------------------------
# Ablations


def ablation_plot(table: dict[str, Any], metrics: dict[str, str], path: str | Path) -> None:
    """Draw one table of `ablation.ablate`: a panel per metric, its settings side by side; the suffix of the
    path picks the format.

    A line per series of the table (means over the categories), else one per category and a strong one for
    their mean. Settings that are numbers are joined, others are dots; the shaded one is the default. metrics:
    name in the rows → title.
    """
    from matplotlib.figure import Figure

    rows = table["rows"]
    labels = list(dict.fromkeys(row["label"] for row in rows))
    ticks = [textwrap.fill(label, 9, break_long_words=False) for label in labels]
    figure = Figure(figsize=(12, 3.9), dpi=110, layout="constrained")
    for number, (metric, title) in enumerate(metrics.items(), start=1):
        axes = figure.add_subplot(1, len(metrics), number)
        for x in (labels.index(row["label"]) for row in rows if row["default"]):
            axes.axvspan(x - 0.5, x + 0.5, color="#eef1f6", linewidth=0)
        lines = _ablation_lines(rows, metric)
        for index, ((name, points), colour) in enumerate(zip(lines.items(), cycle(_LINES))):
            strong = name == "mean" or "mean" not in lines
            width, dot = (2.2, 7.5) if strong else (1.1, 5.5)
            style = {"color": INK if name == "mean" else colour, "linewidth": width, "markersize": dot}
            style |= {"marker": "o", "markeredgecolor": "white", "label": name}
            style["zorder"] = (3 if strong else 2) - index / 100  # where lines meet, the first is seen
            for joined in (True, False):
                some = [(labels.index(label), y) for label, x, y in points if (x is not None) is joined]
                if some:
                    axes.plot(*zip(*some), linestyle="-" if joined else "", **style)
        axes.set_title(title, loc="left", fontsize=11, color=INK)
        axes.set_xlabel(table["axis"], fontsize=9, color=MUTED)
        axes.set_xticks(range(len(labels)), ticks)
        axes.set_xlim(-0.5, len(labels) - 0.5)
        top = min(1.0, axes.get_ylim()[1])
        bottom = min(axes.get_ylim()[0], top - 0.1)  # small differences must look small
        axes.set_ylim(bottom, top + 0.03 * (top - bottom))
        axes.tick_params(colors=MUTED, labelsize=8)
        axes.grid(axis="y", color=LINE, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(LINE)
    named: dict[str, Any] = {}
    for handle, name in zip(*axes.get_legend_handles_labels()):
        named.setdefault(name, handle)  # of a line's two pieces the first
    figure.legend(
        named.values(), named, loc="outside lower center", ncols=len(named), frameon=False, fontsize=9,
        labelcolor=INK,
    )  # fmt: skip
    figure.suptitle(table["title"], x=0.01, ha="left", fontsize=13, color=INK)
    with whole(path, sync=False) as partial:
        figure.savefig(partial)


def _ablation_lines(rows: list[dict[str, Any]], metric: str) -> dict[str, list[tuple]]:
    """Points (label, the setting as a number or None, metric) of each line, by its name."""
    lines: dict[str, list[tuple]] = {}
    for row in rows:
        values = row["categories"] | ({"mean": row["mean"]} if len(row["categories"]) > 1 else {})
        for name, numbers in {row["series"]: row["mean"]}.items() if row["series"] else values.items():
            if numbers[metric] is not None:
                lines.setdefault(name, []).append((row["label"], row["value"], numbers[metric]))
    return lines
