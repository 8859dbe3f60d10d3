"""The evidence sheet: all maps of one inspection in one printable picture."""

from __future__ import annotations

import textwrap
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from diffad.method.fusion import fuse
from diffad.pictures.drawing import ALARM, CALM, INK, LINE, MUTED, WARNING, finite, heatmap, overlay, resized
from diffad.verdicts import VERDICTS

if TYPE_CHECKING:
    from diffad.inspection import Inspection


def evidence_sheet(inspection: Inspection, vmax: float, colormap: str = "inferno") -> npt.NDArray[np.uint8]:
    """Draw all maps of an inspection in one picture.

    The left column shows the picture, the overlay, the fused map and, if there is one, the map of the plain
    features. On the right are rows of pixel maps, feature maps and both together, with a column for each
    timestep, and a colour scale with the threshold.

    Args:
        inspection: the result to draw.
        vmax: the end of the colour scale, σ.
        colormap: one of `drawing.COLORMAPS`.

    Returns:
        uint8 [h, w, 3], at most 1600 px wide.
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

    def place(picture: npt.NDArray[np.uint8], left: int, top: int, text: str) -> None:
        x, y = left + (cell_width - thumb[0]) // 2, top + (cell_height - thumb[1]) // 2
        sheet.paste(Image.fromarray(picture), (x, y))
        draw.rectangle((x - 1, y - 1, x + thumb[0], y + thumb[1]), outline=LINE)
        draw.text((left + cell_width / 2, y + thumb[1] + 6), text, MUTED, _font(13), anchor="ma")

    def place_map(values: np.ndarray, left: int, top: int, name: str = "max") -> None:
        shown = heatmap(resized(finite(values), thumb), vmax, colormap)
        place(shown, left, top, f"{name} {np.nanmax(values):.1f} σ")

    _headline(draw, inspection, margin)
    small = resized(inspection.image, thumb)
    fused = inspection.anomaly_map
    over = overlay(
        resized(inspection.hatched, thumb), resized(finite(fused), thumb), vmax, inspection.map_limit,
        colormap=colormap, contour=inspection.verdict != "good",
    )  # fmt: skip
    place(small, margin, grid_top, "Picture")
    place(over, margin, grid_top + pitch_y, "Overlay")
    place_map(fused, margin, grid_top + 2 * pitch_y, "Fused · max" if cell_width > 130 else "Fused")

    if plain is not None:
        place_map(plain, margin, grid_top + 3 * pitch_y, "Plain features")

    alpha, pixel_maps, feature_maps = inspection.alpha, inspection.pixel_maps, inspection.feature_maps
    middles = [grid_top + row * pitch_y + cell_height / 2 for row in range(3)]
    _name_rows(draw, margin + cell_width + gap + 10, middles, alpha)
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


def _headline(draw: ImageDraw.ImageDraw, inspection: Inspection, margin: int) -> None:
    verdict, _ = VERDICTS[inspection.verdict]
    colour = {"good": CALM, "look": WARNING, "anomalous": ALARM}[inspection.verdict]
    draw.text((margin, margin - 4), verdict, colour, _font(26, bold=True), anchor="lt")
    left = margin + draw.textlength(verdict, _font(26, bold=True)) + 16
    limits = f"look limit {inspection.look_threshold:.2f} σ · threshold {inspection.threshold:.2f} σ"
    numbers = f"score {inspection.score:.2f} σ · {limits}"
    draw.text((left, margin + 17), numbers, MUTED, _font(17), anchor="ls")


def _name_rows(draw: ImageDraw.ImageDraw, left: int, middles: list[float], alpha: float) -> None:
    names = (("Pixels", "how it looks"), ("Features", "what it means"), ("Together", f"α = {alpha:.2f}"))
    for middle, (name, meaning) in zip(middles, names):
        draw.text((left, middle - 2), name, INK, _font(19), anchor="lb")
        draw.text((left, middle + 5), meaning, MUTED, _font(14), anchor="lt")


def _colour_bar(
    draw: ImageDraw.ImageDraw,
    sheet: Image.Image,
    place: tuple[int, int, int],
    vmax: float,
    threshold: float,
    colormap: str,
) -> None:
    left, top, bottom = place
    values = np.linspace(vmax, 0, bottom - top, dtype=np.float32)[:, None].repeat(14, axis=1)
    ramp = heatmap(values, vmax, colormap)
    sheet.paste(Image.fromarray(ramp), (left, top))
    draw.rectangle((left - 1, top - 1, left + 14, bottom), outline=LINE)

    def height_of(value: float) -> float:
        return bottom - 1 - value / vmax * (bottom - 1 - top)

    mark = height_of(min(max(threshold, 0), vmax))  # a threshold outside the scale is marked at its end
    for value in _ticks(vmax):
        y = height_of(value)
        if abs(y - mark) > 20:
            text = "0 · good" if value == 0 else f"{value:g} σ"
            draw.line((left + 15, y, left + 19, y), MUTED)
            draw.text((left + 24, y), text, MUTED, _font(15), anchor="lm")
    draw.line((left - 4, mark, left + 19, mark), "white", 3)
    draw.line((left - 4, mark, left + 19, mark), INK, 1)
    text = f"{threshold:.1f}" if abs(threshold) < 1000 else f"{threshold:.0e}"
    draw.text((left + 24, mark), f"{text} threshold", INK, _font(15), anchor="lm")


def _ticks(vmax: float) -> list[float]:
    """Four to nine round values from 0 to vmax."""
    step = 10 ** np.floor(np.log10(vmax))
    step *= next(part for part in (1, 0.5, 0.2) if vmax / (part * step) >= 4 or part == 0.2)
    return [float(f"{n * step:.6g}") for n in range(int(vmax / step + 1e-6) + 1)]


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    import matplotlib  # for its DejaVu Sans, which has σ and α

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)
