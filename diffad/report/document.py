"""One inspection as a page to hand on: self-contained HTML that prints on one sheet of A4."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import cv2
import numpy as np

from diffad import __version__
from diffad.inspection import VERDICTS
from diffad.method.fusion import fuse
from diffad.pictures import drawing

if TYPE_CHECKING:
    from diffad.inspection import Inspection
    from diffad.inspector import Inspector

REGIONS_LISTED = 4
COLUMNS = 6  # noise levels in the evidence row; of more, these many are chosen evenly
PICTURE_PIXELS = 1100  # longest side of the pictures: some 300 a printed inch
MAP_PIXELS = 256  # longest side of a map
SHEET = Path(__file__).with_name("document.html")


def number(value: float) -> str:
    """A score for people, in three digits."""
    return f"{value:.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f}"


def share_in_words(rate: float, part: str = " good part") -> str:
    """A share of good parts: "about 1 good part in 100". part: empty where it was just said."""
    if rate <= 0.0005:
        return f"fewer than 1{part} in 2000"
    if rate >= 0.995:
        return f"every{part or ' one'}"
    if rate > 0.4:
        return f"{rate:.0%}" + (f" of the{part}s" if part else "")
    return f"about 1{part} in {round(1 / rate)}"


def report(
    inspection: Inspection,
    inspector: Inspector,
    name: str,
    repaired: np.ndarray | None = None,
    repaired_score: float | None = None,
    opacity: float = 0.7,
    colormap: str = "inferno",
    now: datetime | None = None,
) -> str:
    """The page for one picture, as HTML without any reference outside itself.

    name: the picture's, as it shall stand in the title. repaired: uint8 [H, W, 3], with its score. opacity,
    colormap: of the overlay, see `drawing.overlay`. now: the report's date (default: this moment).
    """
    now = now or datetime.now().astimezone()
    word, mark = VERDICTS[inspection.verdict]
    category = _category(inspection)
    date = f"{now.day} {now:%B %Y, %H:%M}"
    values = {
        "title": f"Inspection report: {escape(name)}", "name": escape(name), "date": date,
        "category": category, "kind": inspection.verdict, "word": word, "mark": mark,
        "sentence": _sentence(inspection), "note": _notes(inspection),
        "score": number(inspection.score), "threshold": number(inspection.threshold),
        "look_threshold": number(inspection.look_threshold),
        "figures": _figures(inspection, inspector, repaired, repaired_score, opacity, colormap),
        "regions": _regions(inspection), "histogram": _histogram(inspection),
        "evidence": _evidence(inspection, inspector, colormap), "facts": _facts(inspection, inspector),
        "good": len(inspection.good_scores), "version": __version__,
    }  # fmt: skip
    return Template(SHEET.read_text(encoding="utf-8")).substitute(values)


def _sentence(inspection: Inspection) -> str:
    """The verdict in words: what was found, how rare it is, what the limits mean."""
    count, category, verdict = len(inspection.regions), _category(inspection), inspection.verdict
    low, high = (share_in_words(rate, "").removeprefix("about ") for rate in inspection.rate_bounds)
    limits = f"The threshold is one that {share_in_words(inspection.rate)} would exceed ({high} to {low})"
    look_rate = inspection.rate_above(inspection.look_threshold)
    limits += f", the look limit {share_in_words(look_rate, '')}."
    if verdict == "good":
        return f"Differs from good {category} parts nowhere by more than the look limit allows. {limits}"
    places = f" in {count} place{'s' if count != 1 else ''}" if count else ""
    found = f"Differs from good {category} parts{places}"
    if verdict == "look":
        found = f"Too unusual to pass unseen, too little to be called anomalous. {found}"
    reached = share_in_words(inspection.rate_above(inspection.score))
    return f"{found}: {reached} would score as high. {limits}"


def _notes(inspection: Inspection) -> str:
    """What else must be known: a part that the verdict is not about, then the inspection's own notes."""
    notes = list(inspection.notes)
    if not inspection.category_fits:
        notes.insert(
            0,
            "Unlike any good part of this model: another kind of part, or badly damaged."
            if inspection.recognised
            else f"Unlike a good {inspection.category}: is the category right?",
        )
    return "".join(f'<p class="note">{escape(note)}</p>' for note in notes)


def _category(inspection: Inspection) -> str:
    return escape(inspection.category.replace("_", " "))


# Figures


def _uri(picture: np.ndarray, kind: str = "jpeg") -> str:
    """An RGB picture as a data URI; JPEG for photographs, PNG for maps."""
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    settings = [cv2.IMWRITE_JPEG_QUALITY, 90] if kind == "jpeg" else [cv2.IMWRITE_PNG_COMPRESSION, 6]
    _, data = cv2.imencode(f".{kind}", bgr, settings)
    return f"data:image/{kind};base64," + base64.b64encode(data.tobytes()).decode()


def _figures(
    inspection: Inspection,
    inspector: Inspector,
    repaired: np.ndarray | None,
    repaired_score: float | None,
    opacity: float,
    colormap: str,
) -> str:
    height, width = inspection.image.shape[:2]
    picture = drawing.shrunk(inspection.image, PICTURE_PIXELS)
    heat = cv2.resize(inspection.anomaly_map, picture.shape[1::-1], interpolation=cv2.INTER_AREA)
    top = inspector.scale_top(inspection.category)
    differs = inspection.verdict != "good"
    over = drawing.overlay(picture, heat, top, inspection.map_limit, opacity, colormap, contour=differs)
    marks = "".join(
        f'<b style="left:{100 * x / width:.2f}%;top:{100 * y / height:.2f}%">{index}</b>'
        for index, (x, y, _, _) in enumerate((r.box for r in inspection.regions[:REGIONS_LISTED]), 1)
    )
    found = "where it differs" if differs else "calm"
    parts = [("Part", "as inspected", picture, ""), ("Anomaly map", found, over, marks)]
    if repaired is not None:
        after = "" if repaired_score is None else f", score {number(repaired_score)}"
        parts.append(("Repaired", f"by the model{after}", drawing.shrunk(repaired, PICTURE_PIXELS), ""))
    # Side by side at the same height, as tall as the sheet allows.
    room = (186 - 5 * (len(parts) - 1)) / len(parts)
    wide = min(room, (46 if len(parts) == 3 else 51) * width / height)
    return "".join(
        f'<figure><div class="frame" style="width:{wide:.1f}mm"><img alt="{title}: {caption}" '
        f'src="{_uri(shown)}">{over_it}</div><figcaption><b>{title}</b> {caption}</figcaption></figure>'
        for title, caption, shown, over_it in parts
    )


def _regions(inspection: Inspection) -> str:
    if not inspection.regions:
        limit = "threshold" if inspection.is_anomalous else "look limit"
        return f"<p>No region above the {limit}.</p>"
    rows = "".join(
        f"<tr><th>{index}</th><td>{r.box[0]}, {r.box[1]}</td><td>{r.box[2]} × {r.box[3]}</td>"
        f"<td>{r.area}</td><td>{number(r.mean)}</td><td><b>{number(r.peak)}</b></td></tr>"
        for index, r in enumerate(inspection.regions[:REGIONS_LISTED], 1)
    )
    more = len(inspection.regions) - REGIONS_LISTED
    rest = f"<p>and {more} smaller region{'s' if more > 1 else ''}</p>" if more > 0 else ""
    head = "<th></th><td>left, top px</td><td>size px</td><td>area px²</td><td>mean σ</td><td>peak σ</td>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{rest}"


def _histogram(inspection: Inspection) -> str:
    """SVG: the good parts' scores as bars, the two limits as lines, this part as a dot."""
    width, base, tall = 360, 74, 50
    good = np.asarray(inspection.good_scores, dtype=np.float64)
    top = max(2.5 * float(good.max(initial=0.0)), 1.15 * inspection.threshold, 1e-6)
    low = min(0.0, float(good.min(initial=0.0)), inspection.score, inspection.look_threshold)

    def at(value: float) -> float:
        return 6 + (width - 12) * (min(value, top) - low) / (top - low)

    counts, edges = np.histogram(good, bins=40, range=(low, top))
    bars = "".join(
        f'<rect x="{at(left) + 0.4:.1f}" y="{base - tall * count / counts.max():.1f}" '
        f'width="{at(right) - at(left) - 0.8:.1f}" height="{tall * count / counts.max():.1f}"/>'
        for count, left, right in zip(counts, edges[:-1], edges[1:])
        if count
    )
    line, look, dot = at(inspection.threshold), at(inspection.look_threshold), at(inspection.score)
    anchor = "end" if dot > width - 70 else "start" if dot < 70 else "middle"
    side = "end" if line > width - 90 else "start"
    label = line + (4 if side == "start" else -4)
    beside = side == "start" and look > 72  # else the look limit's name goes below the other
    look_label, look_side, look_y = (look - 4, "end", 15) if beside else (label, side, 26)
    end = min(max(dot, 1), width - 1)
    look_limit = f"look limit {number(inspection.look_threshold)}"
    said = f"this part {number(inspection.score)}{' →' if inspection.score > top else ''}"
    return f"""<svg viewBox="0 0 {width} 98" role="img" aria-label="Scores of good parts and of this part">
<g class="bars">{bars}</g><line class="axis" x1="0" x2="{width}" y1="{base}" y2="{base}"/>
<line class="limit" x1="{line:.1f}" x2="{line:.1f}" y1="8" y2="{base + 4}"/>
<line class="limit look" x1="{look:.1f}" x2="{look:.1f}" y1="8" y2="{base + 4}"/>
<text x="{look_label:.1f}" y="{look_y}" text-anchor="{look_side}">{look_limit}</text>
<text x="{label:.1f}" y="15" text-anchor="{side}">threshold {number(inspection.threshold)}</text>
<circle cx="{dot:.1f}" cy="{base}" r="4.5"/>
<text class="part" x="{end:.1f}" y="92" text-anchor="{anchor}">{said}</text>
</svg>"""


def _evidence(inspection: Inspection, inspector: Inspector, colormap: str) -> str:
    """Pixel row and feature row, a column per noise level and their mean; the fused map; one colour scale."""
    top = inspector.scale_top(inspection.category)
    maps = inspection.grid_maps(MAP_PIXELS)
    chosen = inspection.timesteps
    spread = np.linspace(0, len(chosen) - 1, min(COLUMNS, len(chosen)))
    columns = [chosen[round(i)] for i in spread]
    height, width = next(iter(maps.values()))[0].shape
    # Cells as large as their row allows, two of them and the fused map no taller than the sheet has room for.
    wide = min(21.0, (116.0 - len(columns)) / (len(columns) + 1), 21.0 * width / height)
    fused_wide = min(40.0, 36.0 * width / height)

    def cell(values: np.ndarray, text: str, wide: float = wide) -> str:
        shown = _uri(drawing.heatmap(values, top, colormap), "png")
        return f'<img style="width:{wide:.1f}mm" alt="{text}" title="{text}" src="{shown}">'

    def mean(branch: int) -> np.ndarray:
        return np.mean([maps[t][branch] for t in chosen], axis=0)

    def row(title: str, meaning: str, branch: int) -> str:
        cells = "".join(f"<td>{cell(maps[t][branch], f'{title}, t = {t}')}</td>" for t in columns)
        head = f"<th><b>{title}</b>{meaning}</th>"
        return f'<tr>{head}{cells}<td class="mean">{cell(mean(branch), f"{title}, mean")}</td></tr>'

    plain, without = inspection.grid_plain(MAP_PIXELS), ""
    if plain is not None:
        head = "<th><b>Plain</b>without the network</th>"
        cells = "<td></td>" * len(columns) + f'<td class="mean">{cell(plain, "Plain features")}</td>'
        without = f"<tr>{head}{cells}</tr>"
    fused = fuse(mean(0)[None], mean(1)[None], inspection.alpha, plain)
    heads = "".join(f"<td>t = {t}</td>" for t in columns)
    ramp = _uri(drawing.heatmap(np.linspace(0, top, 64, dtype=np.float32)[None], top, colormap), "png")
    limit = 100 * min(max(inspection.threshold / top, 0), 1)
    return f"""<table class="maps"><thead><tr><th></th>{heads}<td>mean</td></tr></thead>
<tbody>{row("Pixels", "how it looks", 0)}{row("Features", "what it means", 1)}{without}</tbody></table>
<div class="fused" style="width:{max(34.0, fused_wide):.1f}mm">
<p>anomaly map<br>both, α = {inspection.alpha:.2f}<br>{inspection.weights_in_words}</p>
{cell(fused, "Anomaly map", fused_wide)}
<div class="ramp"><img alt="Colour scale" src="{ramp}"><i style="left:{limit:.1f}%"></i></div>
<p class="ends"><span>0 · good</span><span>{top:.0f} σ</span></p></div>"""


# Facts


def _facts(inspection: Inspection, inspector: Inspector) -> str:
    height, width = inspection.image.shape[:2]
    print_ = hashlib.sha256(np.ascontiguousarray(inspection.image).tobytes()).hexdigest()[:16]
    about = inspector.provenance
    data: object = about.get("data", {})
    pictures = data.get(inspection.category) if isinstance(data, dict) else None
    whole = "whole, turned upright" if inspection.turned else "whole"
    cut = whole if inspection.tile is None else f"cut into tiles of {inspection.tile} px"
    learned = f"{pictures} good {_category(inspection)} pictures" if pictures else "good parts only"
    how = "recognised" if inspection.recognised else "given"
    rows: Sequence[tuple[str, str]] = (
        ("Picture", f"{width} × {height} px, inspected {cut}"),
        ("Fingerprint", f"<code>{print_}</code> (SHA-256 of the pixels)"),
        ("Category", f"{_category(inspection)} ({how})"),
        ("Settings", f"α {inspection.alpha:g} ({inspection.weights_in_words}) · "
                     f"t = {', '.join(map(str, inspection.timesteps))} · seed {inspection.seed}"),
        ("Model", f"{escape(inspector.name)}, {inspector.parameters / 1e6:.1f} M parameters, learned from "
                  f"{learned}"),
        ("Licence", escape(str(about.get("licence") or "not stated"))),
    )  # fmt: skip
    return "".join(f"<dt>{term}</dt><dd>{text}</dd>" for term, text in rows)
