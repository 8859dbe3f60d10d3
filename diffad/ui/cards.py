"""Inspections as data for the browser, and the HTML that the scripts fill. Independent of Gradio.

Colours are in page.css, so the HTML is the same for the light and the dark theme.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from diffad.pictures import drawing
from diffad.report.rendering import data_uri

if TYPE_CHECKING:
    from diffad.inspection import Inspection
    from diffad.inspector import Inspector

VIEW_PIXELS = 1600  # longest side of the picture in the viewer
LOSSLESS = 512 * 512  # px; larger pictures go to the viewer as JPEG
STEPS = 2**16 - 1  # quantisation steps of a map that is sent to the browser


def base64_of(values: np.ndarray) -> str:
    """The array's bytes in base64."""
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def plural(count: int, word: str) -> str:
    """Such as "1 step" and "2 steps"."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


# One inspection for the browser


def part(inspection: Inspection, top: float, device: str) -> dict[str, Any]:
    """All data of an inspection that page.js needs: picture, maps, and the good parts' maps.

    `maps` are the pixel maps of all computed timesteps, then the feature maps, then the plain features' map
    if the category has one: uint16 [maps, height, width], in steps of 1/65535 of each map's range above its
    lowest value. For `good`, see `Inspection.good_evidence`.

    Args:
        inspection: the result.
        top: the end of the colour scale, σ.
        device: name of the device that computed it.
    """
    height, width = inspection.image.shape[:2]
    small = drawing.shrunk(inspection.hatched, VIEW_PIXELS)
    kind, level = ("png", 1) if small.shape[0] * small.shape[1] <= LOSSLESS else ("jpeg", 92)
    good, nearest, good_plain = inspection.good_evidence()
    return {
        "picture": data_uri(small, kind, level), "size": [width, height],
        "timesteps": list(inspection.computed_timesteps),
        "category": inspection.category, "recognised": inspection.recognised,
        "fits": inspection.category_fits, "notes": list(inspection.notes), "top": top,
        "seconds": inspection.seconds, "device": device,
        "scored_size": inspection.scored_size, "chances": inspection.chances,
        "changed": inspection.scorer.changed, "windows": inspection.windows,
        "smallest": inspection.smallest_region,
        "good": {
            "shape": good.shape, "nearest": nearest, "data": base64_of(good),
            "plain": None if good_plain is None else base64_of(good_plain),
        },
        "prepared": preparation_in_words(inspection),
        "maps": _maps(inspection),
    }  # fmt: skip


def _maps(inspection: Inspection) -> dict[str, Any]:
    grid_maps, plain = inspection.grid_maps(), inspection.grid_plain()
    every = [grid_maps[t][branch] for branch in (0, 1) for t in inspection.computed_timesteps]
    maps = np.stack(every if plain is None else [*every, plain])
    lowest = maps.min(axis=(1, 2))
    step = np.maximum((maps.max(axis=(1, 2)) - lowest) / STEPS, 1e-9)
    steps = np.rint((maps - lowest[:, None, None]) / step[:, None, None]).astype("<u2")
    return {
        "height": maps.shape[1], "width": maps.shape[2], "lowest": lowest.tolist(), "step": step.tolist(),
        "data": base64_of(steps),
    }  # fmt: skip


def preparation_in_words(inspection: Inspection) -> str:
    """How the picture was prepared for the model; empty if it was not changed."""
    if inspection.turned:
        return "turned upright for the model"
    return "" if inspection.tile is None else f"cut into tiles of {inspection.tile} px"


def colormaps() -> dict[str, str]:
    """The 256 RGB entries of each colour map in base64, by name."""
    ramp = np.arange(256, dtype=np.float32)[None]
    return {name: base64_of(drawing.heatmap(ramp, 255, name)) for name in drawing.COLORMAPS}


# Templates that the scripts fill. They contain no values, so Gradio never renders them again, and divider,
# zoom and player keep their state.

VIEWER = """
<div class="stage blank">
  <canvas role="img" aria-label="The inspected picture with its anomaly map"></canvas>
  <div class="divider" role="slider" tabindex="0" aria-label="Picture against anomaly map"
    aria-valuemin="0" aria-valuemax="100" aria-valuenow="34"></div>
  <span class="readout" hidden></span><span class="seen-as" hidden></span>
</div>"""

REGIONS = '<div class="regions-slot"></div>'
PROBE = '<div class="probe-slot" aria-live="off"></div>'
SCALE = """
<div class="bar scale-slot" hidden>
  <canvas role="img" aria-label="Colour scale"></canvas><i></i><i class="look"></i><p></p>
</div>"""

PLAYER = """
<div class="player" data-state="empty" data-view="repaired">
  <div class="film">
    <div class="screen">
      <img class="now" alt="The repaired picture"><img class="first" alt="The picture before">
      <canvas class="changed" role="img" aria-label="Difference from the picture before"></canvas>
      <span class="cut"></span>
      <input type="range" min="0" max="100" step="0.5" value="50" aria-label="Before against after">
    </div>
    <div class="reel"><div class="strip"></div><p class="message" aria-live="polite"></p>
      <button type="button" class="plain-button begin" hidden>Repair this part</button></div>
    <div class="plot"></div>
  </div>
  <div class="transport">
    <button class="play">▶ Play</button>
    <span class="views">
      <button class="before-after" data-view="compare" aria-pressed="false">Before / after</button>
      <button class="difference" data-view="difference" aria-pressed="false">Difference</button>
    </span>
    <input type="range" min="0" max="1" value="0" aria-label="Frame"><span class="caption"></span>
  </div>
</div>"""

ENLARGED = """
<dialog id="enlarged" aria-label="One map of the evidence, large">
  <header><h3></h3><p class="value" aria-live="off"></p>
    <button class="previous" aria-label="Previous map">‹</button>
    <button class="next" aria-label="Next map">›</button>
    <button class="close" aria-label="Close">✕</button></header>
  <div class="plates">
    <div class="plate large-map"><canvas role="img" aria-label="The map"></canvas></div>
    <div class="plate large-picture"><img alt="The same place in the picture"></div>
  </div>
  <div class="large-profile"></div>
</dialog>"""

# What a person says of a verdict: a key, what is said, and its words; corrections.js fills and hears it.
SAID = {
    "right": ("Y", "Right"),
    "good": ("G", "Wrong: it is good"),
    "defective": ("B", "Wrong: it is defective"),
}
CORRECTION = f"""
<div class="correction" role="group" aria-label="Is the verdict right?" hidden>
  <span class="quiet">Is it right?</span>{
    "".join(
        f'<button type="button" class="plain-button" data-correction="{said}" data-key="{key}" '
        f'aria-keyshortcuts="{key}" aria-pressed="false" title="{words} ({key})">{words}</button>'
        for said, (key, words) in SAID.items()
    )
}<span class="said quiet" role="status"></span>
</div>"""

SHORTCUTS = """
<dialog id="shortcuts" aria-label="How to read the page, and its keys">
  <form method="dialog"><h3>How to read this page</h3><button aria-label="Close">✕</button></form>
  <p>A model trained on good parts only removes noise of several levels <b>t</b> from the picture: low levels
  show fine texture, high ones large shapes. Differences from its prediction, in pixels and in deep features,
  are measured in <b>σ</b>, standard deviations of good parts' maps: about 0 on a good part. <b>α</b> balances
  the two branches: 0 features only, 1 pixels only; at 0.5 a σ of the pixels counts a twentieth of a σ of the
  features.</p>
  <p>The <b>score</b> summarises the map. Above the <b>threshold</b> a part is anomalous; between the
  <b>look limit</b> and the threshold somebody should look at it. Both limits come from good parts, and an
  anomaly is a difference from those, not necessarily a fault.</p>
  <h3>Keyboard</h3>
  <dl>
    <dt><kbd>←</kbd> <kbd>→</kbd></dt><dd>previous or next sample, or picture of the batch</dd>
    <dt><kbd>Ctrl</kbd> <kbd>V</kbd></dt><dd>inspect the picture in the clipboard</dd>
    <dt><kbd>1</kbd> … <kbd>9</kbd></dt><dd>zoom to a region</dd>
    <dt><kbd>0</kbd></dt><dd>the whole picture</dd>
    <dt><kbd>R</kbd></dt><dd>repair</dd>
    <dt><kbd>Y</kbd> <kbd>G</kbd> <kbd>B</kbd></dt><dd>the verdict is right; wrong, it is good; wrong, it is
      defective (again: take it back)</dd>
    <dt><kbd>Space</kbd></dt><dd>play or pause the repair</dd>
    <dt><kbd>D</kbd></dt><dd>what the repair changed</dd>
    <dt><kbd>Esc</kbd></dt><dd>close what is open</dd>
    <dt><kbd>?</kbd></dt><dd>this help</dd>
  </dl>
  <p class="quiet">In a large map the arrow keys move through the evidence. Pinch or use Ctrl and the wheel to
  zoom the picture; after a click the wheel alone is enough. Drag moves it, double-click shows all.</p>
</dialog>"""


def verdict(sentence: str) -> str:
    """The place of the verdict, which shows a sentence until there is a part."""
    waiting = escape(sentence)
    return f"""
<div class="empty" data-waiting="{waiting}"><p>{waiting}</p></div><div class="verdict-slot" hidden></div>
<div class="unseen" role="status"></div>"""


def row_head(title: str, explanation: str) -> str:
    return f'<div class="row-head"><b>{title}</b><span>{explanation}</span></div>'


def empty_sheet() -> str:
    """The evidence table before there is a part: only the heads of its rows."""
    rows = (("Pixels", "how it looks"), ("Features", "what it means"), ("Together", "weighed by α"))
    cells = '<div class="no-map"></div>' * 4
    heads = "".join(f'<span class="t-head quiet">{text}</span>' for text in ("fine", "", "coarse", "mean"))
    body = "".join(row_head(*row) + cells for row in rows)
    sheet = f'<div class="sheet waiting" style="--columns:4"><span></span>{heads}{body}</div>'
    return f'<div class="sheet-slot">{sheet}</div>'


def thumbnails(samples: Sequence[Path]) -> str:
    """A button for each sample picture; files are named <category>_<defect>.png."""
    buttons = []
    for path in samples:
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if picture is None:
            continue
        uri = data_uri(drawing.shrunk(np.asarray(picture, np.uint8)[..., ::-1], 96), "png", 1)
        name = escape(path.stem.replace("_", " "))
        buttons.append(
            f'<button data-sample="{escape(path.name)}" title="{name}" aria-label="Inspect {name}">'
            f'<img alt="" src="{uri}"></button>'
        )
    return f'<div class="samples">{"".join(buttons)}</div>'


# Header


def header(inspector: Inspector) -> str:
    size = f"{inspector.parameters / 1e6:.1f} M parameters"
    facts = [escape(inspector.name), size, inspector.device.type.upper()]
    licence = escape(str(inspector.provenance.get("licence", "")))
    return f"""
<header class="brand"><h1>diffad</h1><p class="facts" title="{licence}">{" · ".join(facts)}</p>
<button id="keys-button" aria-label="Help and keys" title="Help and keys">?</button></header>"""
