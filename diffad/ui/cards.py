"""What the page shows, as HTML, SVG and small pictures. Knows results, not Gradio.

Every function takes an `Inspection` (or plain numbers) and returns a string or a JSON-able value; the colours
come from `page.css`, so one string serves the light and the dark page.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from diffad import render

if TYPE_CHECKING:
    from diffad.inspector import Inspection, Inspector

VIEW_PIXELS = 512  # longest side of the picture in the viewer
CELL_PIXELS = 176  # longest side of a map in the evidence sheet
REGIONS_SHOWN = 6


def reduced(picture: np.ndarray, longest: int) -> np.ndarray:
    """The picture or map [H, W(, 3)] with its longest side at most `longest` pixels; a small one as it is."""
    height, width = picture.shape[:2]
    if max(height, width) <= longest:
        return picture
    factor = longest / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def png_uri(picture: np.ndarray) -> str:
    """A data URI of an RGB or grey picture as lossless PNG, encoded for speed rather than size."""
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) if picture.ndim == 3 else picture
    _, data = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return "data:image/png;base64," + base64.b64encode(data.tobytes()).decode()


def number(value: float) -> str:
    """A score for people, in three digits."""
    return f"{value:.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f}"


def plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def rate_in_words(rate: float) -> str:
    """What a threshold means: the share of good parts that it rejects, in words."""
    if rate <= 0.0005:
        return "rejects fewer than 1 good part in 2000"
    if rate >= 0.995:
        return "rejects every good part"
    if rate > 0.4:
        return f"rejects {rate:.0%} of the good parts"
    return f"rejects about 1 good part in {round(1 / rate)}"


# The verdict


def verdict(inspection: Inspection, device: str) -> str:
    """The card's inside: judgement, numbers, where the part lies among good ones."""
    bad = inspection.is_anomalous
    word, mark = ("Anomalous", "✕") if bad else ("Good", "✓")
    how = "recognised" if inspection.recognised else "chosen"
    took = f"{seconds(inspection.seconds)} on {escape(device)}"
    facts = f"score <b>{number(inspection.score)}</b> · threshold <b>{number(inspection.threshold)}</b>"
    if bad:
        facts += f" · {plural(len(inspection.regions), 'region')}"
    note = ""
    if not inspection.category_fits:
        note = '<p class="note">Unlike any part this model knows: the verdict may mean nothing.</p>'
    return f"""
<div class="verdict {"bad" if bad else "good"}" data-score="{inspection.score:.4f}">
  <div class="judgement">
    <h2><span class="mark" aria-hidden="true"><i>{mark}</i></span>{word}</h2>
    <p>{facts}</p>
    <p class="quiet">{escape(inspection.category)} ({how}) · {took}</p>
    {note}
  </div>
  {histogram(inspection.good_scores, inspection.threshold, inspection.score)}
</div>"""


def seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def histogram(good_scores: np.ndarray, threshold: float, score: float) -> str:
    """SVG: the good parts' scores as bars, the threshold as a line, this part as a dot."""
    width, base, tall = 460, 66, 44
    good_scores = np.asarray(good_scores, dtype=np.float64)
    # From the good parts alone, so that the axis rests while the threshold is moved.
    top = max(2.5 * float(good_scores.max(initial=0.0)), 1.1 * threshold, 1e-6)
    low = min(0.0, float(good_scores.min(initial=0.0)), score)

    def at(value: float) -> float:
        return 8 + (width - 16) * (min(value, top) - low) / (top - low)

    counts, edges = np.histogram(good_scores, bins=48, range=(low, top))
    unit = tall / max(1, counts.max(initial=1))
    bars = "".join(
        f'<rect x="{at(left) + 0.5:.1f}" y="{base - count * unit:.1f}" '
        f'width="{at(right) - at(left) - 1:.1f}" height="{count * unit:.1f}"/>'
        for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True)
        if count
    )
    dot, line = at(score), at(threshold)
    anchor = "end" if dot > width - 60 else "start" if dot < 60 else "middle"
    caption_x = width - 2 if anchor == "end" else 2 if anchor == "start" else dot
    caption = f"this part {number(score)}{' →' if score > top else ''}"
    return f"""
<svg class="histogram" viewBox="0 0 {width} 88" role="img" aria-label="Scores of good parts, threshold
 {number(threshold)}, this part {number(score)}">
  <g class="bars">{bars}</g>
  <line class="axis" x1="0" x2="{width}" y1="{base}" y2="{base}"/>
  <line class="limit" x1="{line:.1f}" x2="{line:.1f}" y1="12" y2="{base + 4}"/>
  <text class="quiet" x="{line + 5:.1f}" y="19">threshold</text>
  <text class="quiet" x="2" y="19">good parts</text>
  <circle class="part" cx="{dot:.1f}" cy="{base}" r="5.5"/>
  <text class="part" x="{caption_x:.1f}" y="83" text-anchor="{anchor}">{caption}</text>
</svg>"""


# Picture, map and regions


def overlay(inspection: Inspection, vmax: float, opacity: float, colormap: str) -> dict[str, Any]:
    """What the viewer lays over the picture: the heat as a PNG data URI and a numbered mark per region."""
    picture = reduced(inspection.image, VIEW_PIXELS)
    heat = cv2.resize(inspection.anomaly_map, picture.shape[1::-1], interpolation=cv2.INTER_AREA)
    height, width = inspection.image.shape[:2]
    marks = [
        {
            "left": region.box[0] / width,
            "top": region.box[1] / height,
            "width": region.box[2] / width,
            "height": region.box[3] / height,
        }
        for region in inspection.regions[:REGIONS_SHOWN]
    ]
    shown = render.overlay(picture, heat, vmax, inspection.threshold, opacity, colormap)
    return {"heat": png_uri(shown), "marks": marks}


def regions(inspection: Inspection) -> str:
    """A table: box, area, peak and mean of every region above the threshold, largest peak first."""
    if not inspection.regions:
        return '<p class="quiet empty-regions">No region above the threshold.</p>'
    rows = "".join(
        f'<tr data-region="{i}"><th>{i + 1}</th><td>{r.box[2]} × {r.box[3]} px</td>'
        f"<td>at {r.box[0]}, {r.box[1]}</td>"
        f"<td>{r.area} px²</td><td>{number(r.mean)}</td><td><b>{number(r.peak)}</b></td></tr>"
        for i, r in enumerate(inspection.regions[:REGIONS_SHOWN])
    )
    more = len(inspection.regions) - REGIONS_SHOWN
    rest = f'<p class="quiet">and {plural(more, "smaller region")}</p>' if more > 0 else ""
    head = "<tr><th></th><td>size</td><td>place</td><td>area</td><td>mean</td><td>peak σ</td></tr>"
    return f'<table class="regions"><thead>{head}</thead><tbody>{rows}</tbody></table>{rest}'


# Evidence


def cell(anomaly_map: np.ndarray, vmax: float, colormap: str, kind: str, name: str, out: bool = False) -> str:
    """One map of the evidence sheet."""
    small = reduced(np.asarray(anomaly_map, dtype=np.float32), CELL_PIXELS)
    picture = png_uri(render.heatmap(small, vmax, colormap))
    title = f"{name}: highest {number(float(small.max()))} σ, mean {number(float(small.mean()))} σ"
    return (
        f'<div class="cell {kind}{" out" if out else ""}" title="{title}">'
        f'<img alt="{title}" decoding="sync" draggable="false" src="{picture}"></div>'
    )


def mean_map(maps: dict[int, np.ndarray], chosen: Sequence[int]) -> np.ndarray:
    return np.mean([reduced(maps[t], CELL_PIXELS) for t in chosen], axis=0)


def row_head(title: str, explanation: str) -> str:
    return f'<div class="row-head"><b>{title}</b><span>{explanation}</span></div>'


def evidence(
    inspection: Inspection, chosen: Sequence[int], vmax: float, colormap: str, point: tuple[int, int]
) -> str:
    """Pixel row and feature row, a column per computed t and the mean; a head takes its column in or out.

    `point` (x, y) in the picture's pixels is marked in every map.
    """
    computed = sorted(inspection.pixel_maps)
    parts = ["<span></span>"]
    parts += [
        f'<button class="t-head" data-t="{t}" aria-pressed="{"true" if t in chosen else "false"}" '
        f'title="Take t = {t} in, or leave it out">{"t = " if len(computed) < 7 else ""}{t}</button>'
        for t in computed
    ]
    parts.append('<span class="t-head mean">mean</span>')
    for kind, title, explanation, maps in (
        ("pixel", "Pixels", "how it looks", inspection.pixel_maps),
        ("feature", "Features", "what it means", inspection.feature_maps),
    ):
        parts.append(row_head(title, explanation))
        parts += [
            cell(maps[t], vmax, colormap, kind, f"{title} at t = {t}", t not in chosen) for t in computed
        ]
        parts.append(cell(mean_map(maps, chosen), vmax, colormap, f"{kind} mean", f"{title}, mean"))
    height, width = inspection.image.shape[:2]
    spot = f'data-x="{(point[0] + 0.5) / width:.4f}" data-y="{(point[1] + 0.5) / height:.4f}"'
    return f'<div class="sheet" {spot} style="--columns:{len(computed) + 1}">{"".join(parts)}</div>'


def empty_sheet() -> str:
    """The sheet before there is a picture: what its rows will say."""
    rows = (("Pixels", "how it looks"), ("Features", "what it means"), ("Together", "weighed by α"))
    cells = '<div class="no-map"></div>' * 4
    heads = "".join(f'<span class="t-head quiet">{text}</span>' for text in ("fine", "", "coarse", "mean"))
    body = "".join(row_head(*row) + cells for row in rows)
    return f'<div class="sheet waiting" style="--columns:4"><span></span>{heads}{body}</div>'


def together(raw: Inspection, inspection: Inspection, vmax: float, colormap: str) -> str:
    """The third row: each computed column weighed by the present α, in the corner the anomaly map itself."""
    alpha = inspection.alpha
    parts = [row_head("Together", f"{alpha:.2f} of pixels,<br>{1 - alpha:.2f} of features")]
    computed = sorted(raw.pixel_maps)
    for t in computed:
        pixel, feature = (reduced(maps[t], CELL_PIXELS) for maps in (raw.pixel_maps, raw.feature_maps))
        weighed = alpha * pixel + (1 - alpha) * feature
        parts.append(
            cell(weighed, vmax, colormap, "both", f"Together at t = {t}", t not in inspection.timesteps)
        )
    parts.append(cell(inspection.anomaly_map, vmax, colormap, "fused", "Anomaly map"))
    return (
        f'<div class="sheet" style="--columns:{len(computed) + 1}">{"".join(parts)}'
        f'<span class="corner">anomaly map</span></div>'
    )


def colour_bar(inspection: Inspection, vmax: float, colormap: str) -> str:
    """The one scale of every map on the page, with the threshold on it."""
    scale = render.heatmap(np.linspace(vmax, 0, 64, dtype=np.float32)[:, None].repeat(2, 1), vmax, colormap)
    limit = 100 * min(max(inspection.threshold / vmax, 0), 1)
    ticks = "".join(
        f'<span style="bottom:{100 * value / vmax:.1f}%">{value:.0f}</span>'
        for value in np.linspace(0, vmax, 5)[1:-1]
    )
    return (
        f'<div class="bar"><img alt="Colour scale from good, 0 σ, to {vmax:.0f} σ" src="{png_uri(scale)}">'
        f'<i style="bottom:{limit:.1f}%" title="threshold {number(inspection.threshold)}"></i>'
        f'<span style="bottom:100%">{vmax:.0f} σ</span>{ticks}<span style="bottom:0">good</span></div>'
    )


def probe(raw: Inspection, limit: float, x: int, y: int) -> str:
    """What both branches say at one pixel of the picture: a sentence, and both values against t."""
    computed = sorted(raw.pixel_maps)
    pixels = [float(raw.pixel_maps[t][y, x]) for t in computed]
    features = [float(raw.feature_maps[t][y, x]) for t in computed]
    seen_pixels, seen_features = np.mean(pixels) > limit, np.mean(features) > limit
    reading = {
        (True, True): "Pixels and features both see it.",
        (True, False): "Pixels see it, features hardly do: a matter of surface or colour.",
        (False, True): "Features see it, pixels hardly do: the model can paint it, but not here.",
        (False, False): "Both are calm, as on a good part.",
    }[bool(seen_pixels), bool(seen_features)]
    return f"""
<div class="probe">
  <p>At ({x}, {y}): {say("features", computed, features)}, {say("pixels", computed, pixels)}. {reading}</p>
  {profile(computed, pixels, features, limit)}
</div>"""


def say(name: str, timesteps: Sequence[int], values: Sequence[float]) -> str:
    """Words for one branch's values: flat, or its highest with its t."""
    low, high = min(values), max(values)
    if len(values) == 1 or high - low < max(0.5, 0.25 * abs(high)):
        where = "" if len(values) == 1 else " at every noise level"
        return f"{name} {number(sum(values) / len(values))} σ{where}"
    return f"{name} {number(high)} σ at t = {timesteps[int(np.argmax(values))]} (lowest {number(low)})"


def profile(
    timesteps: Sequence[int], pixels: Sequence[float], features: Sequence[float], limit: float
) -> str:
    """SVG: both values against t, the threshold dashed."""
    width, height = 220, 64
    top = max(*pixels, *features, limit, 1e-6) * 1.1
    first, last = timesteps[0], timesteps[-1]

    def point(t: int, value: float) -> str:
        x = 30 + (width - 84) * ((t - first) / (last - first) if last > first else 0.5)
        return f"{x:.1f},{height - 16 - (height - 24) * max(value, 0) / top:.1f}"

    def curve(kind: str, values: Sequence[float]) -> tuple[str, float]:
        points = [point(t, value) for t, value in zip(timesteps, values, strict=True)]
        dots = "".join('<circle cx="{}" cy="{}" r="2.2"/>'.format(*p.split(",")) for p in points)
        _, end_y = points[-1].split(",")
        return f'<g class="{kind}"><polyline points="{" ".join(points)}"/>{dots}</g>', float(end_y)

    (pixel_line, pixel_y), (feature_line, feature_y) = curve("pixel", pixels), curve("feature", features)
    if abs(pixel_y - feature_y) < 12:  # keep the two names from lying on each other
        middle, sign = (pixel_y + feature_y) / 2, 1 if pixel_y >= feature_y else -1
        pixel_y, feature_y = middle + 6 * sign, middle - 6 * sign
    limit_y = point(first, limit).split(",")[1]
    name_x = width - 46
    return f"""
<svg class="profile" viewBox="0 0 {width} {height}" role="img" aria-label="Scores against the noise level">
  <line class="limit" x1="22" x2="{width - 50}" y1="{limit_y}" y2="{limit_y}"/>
  <line class="axis" x1="22" x2="{width - 50}" y1="{height - 15}" y2="{height - 15}"/>
  {pixel_line}{feature_line}
  <text class="pixel" x="{name_x}" y="{pixel_y + 3:.1f}">pixels</text>
  <text class="feature" x="{name_x}" y="{feature_y + 3:.1f}">features</text>
  <text class="quiet" x="30" y="{height - 3}" text-anchor="middle">{first}</text>
  <text class="quiet" x="{width - 54}" y="{height - 3}" text-anchor="middle">t = {last}</text>
  <text class="quiet" x="0" y="10">{ceil(top)} σ</text>
</svg>"""


def strongest_point(inspection: Inspection) -> tuple[int, int]:
    """(x, y) of the map's highest value, in the picture's pixels."""
    y, x = np.unravel_index(int(np.argmax(inspection.anomaly_map)), inspection.anomaly_map.shape)
    return int(x), int(y)


def plain(inspection: Inspection, name: str) -> dict[str, Any]:
    """What the viewer needs once for every picture: the picture, its size and name, and a place for the
    divider that leaves the regions on the map's side."""
    height, width = inspection.image.shape[:2]
    left = min((100 * r.box[0] / width for r in inspection.regions[:REGIONS_SHOWN]), default=100.0)
    return {
        "picture": png_uri(reduced(inspection.image, VIEW_PIXELS)), "size": [width, height], "name": name,
        "cut": min(max(left - 6, 4), 34),
    }


# The two parts that `page.js` fills. Their templates hold no value, so that Gradio never draws them anew and
# the divider and the player stay where the person left them.

VIEWER = """
<div class="stage blank">
  <img class="plain" alt="The inspected picture"><img class="heat" alt="The picture with its anomaly map">
  <div class="marks"></div><div class="divider"></div>
  <input type="range" min="0" max="100" step="0.1" value="34" aria-label="Picture against anomaly map">
</div>"""

PLAYER = """
<div class="player" data-state="empty">
  <div class="film">
    <div class="screen">
      <img class="now" alt="The repaired picture"><img class="first" alt="The picture before">
    </div>
    <div><div class="strip"></div><p class="message" aria-live="polite"></p></div>
    <div class="plot"></div>
  </div>
  <div class="transport">
    <button class="play">▶ Play</button>
    <button class="before-after" aria-pressed="false">Before / after</button>
    <input type="range" min="0" max="1" value="0" aria-label="Frame"><span class="caption"></span>
  </div>
</div>"""


def thumbnails(samples: Sequence[Path]) -> str:
    """A row of buttons, one a sample picture; files are named <category>_<defect>.png."""
    buttons = []
    for path in samples:
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if picture is None:
            continue
        uri = png_uri(reduced(picture[..., ::-1], 96))
        name = escape(path.stem.replace("_", " "))
        buttons.append(
            f'<button data-sample="{escape(path.name)}" title="{name}" aria-label="Inspect {name}">'
            f'<img alt="" src="{uri}"></button>'
        )
    return f'<div class="samples">{"".join(buttons)}</div>'


# Header, samples, emptiness


def header(inspector: Inspector) -> str:
    size = f"{inspector.parameters / 1e6:.1f} M parameters"
    facts = [escape(inspector.name), size, inspector.device.type.upper()]
    licence = escape(str(inspector.provenance.get("licence", "")))
    return f"""
<header class="brand"><h1>diffad</h1><p>what a good part would not have</p>
<p class="facts" title="{licence}">{" · ".join(facts)}</p></header>"""


def empty(sentence: str) -> str:
    return f'<div class="empty"><p>{escape(sentence)}</p></div>'
