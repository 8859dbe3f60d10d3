"""The inspection report: self-contained HTML that prints on one A4 page."""

from __future__ import annotations

import hashlib
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from diffad import __version__
from diffad.method.fusion import fuse
from diffad.pictures import drawing
from diffad.report.rendering import data_uri, inline_svg, number, render, words
from diffad.verdicts import VERDICTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from diffad.inspection import Inspection
    from diffad.inspector import Inspector

REGIONS_LISTED = 4
COLUMNS = 6  # noise levels shown at most, spread evenly
PICTURE_PIXELS = 1100  # longest side of a picture, about 300 px per printed inch
MAP_PIXELS = 256  # longest side of a map
_TEMPLATE = Path(__file__).with_name("document.html")
_PART_COLOURS = {"good": "#14724a", "look": "#8a5a00", "anomalous": "#b92d1b"}


def share_in_words(rate: float, part: str = " good part") -> str:
    """A share of good parts in words, such as "about 1 good part in 100".

    Args:
        rate: the share, in [0, 1].
        part: what is counted, with a leading space; empty if the sentence has already named it.
    """
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
    repaired: npt.NDArray[np.uint8] | None = None,
    repaired_score: float | None = None,
    opacity: float = 0.7,
    colormap: str = "inferno",
    now: datetime | None = None,
) -> str:
    """The report on one picture, as HTML without external references.

    Args:
        inspection: the result to report.
        inspector: the inspector that made it.
        name: the picture's name, for the title.
        repaired: the repaired picture, uint8 [H, W, 3], if there is one.
        repaired_score: the score of the repaired picture.
        opacity, colormap: of the overlay, see `drawing.overlay`.
        now: the report's date; by default the current time.
    """
    now = now or datetime.now().astimezone()
    word, mark = VERDICTS[inspection.verdict]
    height, width = inspection.image.shape[:2]
    figures = _figures(inspection, inspector, repaired, repaired_score, opacity, colormap)
    # The figures are side by side, all of the same height, as tall as the page allows (mm).
    room = (186 - 5 * (len(figures) - 1)) / len(figures)
    wide = min(room, (46 if len(figures) == 3 else 51) * width / height)
    return render(
        _TEMPLATE,
        inspection=inspection,
        name=name,
        date=f"{now.day} {now:%B %Y, %H:%M}",
        word=word,
        mark=mark,
        sentence=_sentence(inspection),
        notes=_notes(inspection),
        figures=figures,
        figures_wide=f"{wide:.1f}",
        regions=inspection.regions[:REGIONS_LISTED],
        more_regions=len(inspection.regions) - REGIONS_LISTED,
        histogram=_histogram(inspection),
        evidence=_evidence(inspection, inspector, colormap),
        facts=_facts(inspection, inspector),
        good=len(inspection.good_scores),
        version=__version__,
    )


def _sentence(inspection: Inspection) -> str:
    """The verdict in words: what was found, how rare it is among good parts, and what the limits mean."""
    count, category, verdict = len(inspection.regions), words(inspection.category), inspection.verdict
    low, high = (share_in_words(rate, "").removeprefix("about ") for rate in inspection.rate_bounds)
    limits = f"The threshold is one that {share_in_words(inspection.rate)} would exceed ({high} to {low})"
    look_rate = inspection.rate_above(inspection.look_threshold)
    limits += f", the look limit {share_in_words(look_rate, '')}."
    if verdict == "good":
        return f"No difference from good {category} parts exceeds the look limit. {limits}"
    places = f" in {count} place{'s' if count != 1 else ''}" if count else ""
    found = f"Differs from good {category} parts{places}"
    if verdict == "look":
        found = f"Worth a look, but not anomalous. {found}"
    reached = share_in_words(inspection.rate_above(inspection.score))
    return f"{found}: {reached} would score as high. {limits}"


def _notes(inspection: Inspection) -> list[str]:
    """The inspection's notes, preceded by a warning if the picture does not fit the category."""
    if inspection.category_fits:
        return list(inspection.notes)
    if inspection.recognised:
        warning = "Unlike any good part of this model: another kind of part, or badly damaged."
    else:
        warning = f"Unlike a good {inspection.category}: is the category right?"
    return [warning, *inspection.notes]


# ---------------------------------------------------------------------------------------------------------
# Figures


def _figures(
    inspection: Inspection,
    inspector: Inspector,
    repaired: npt.NDArray[np.uint8] | None,
    repaired_score: float | None,
    opacity: float,
    colormap: str,
) -> list[dict[str, Any]]:
    """The part, its overlay with numbered regions, and its repair if there is one."""
    height, width = inspection.image.shape[:2]
    picture = drawing.shrunk(inspection.image, PICTURE_PIXELS)
    hatched = drawing.shrunk(inspection.hatched, PICTURE_PIXELS)
    heat = np.asarray(
        cv2.resize(inspection.anomaly_map, picture.shape[1::-1], interpolation=cv2.INTER_AREA), np.float32
    )
    top = inspector.scale_top(inspection.category)
    differs = inspection.verdict != "good"
    over = drawing.overlay(hatched, heat, top, inspection.map_limit, opacity, colormap, contour=differs)
    corners = [region.box[:2] for region in inspection.regions[:REGIONS_LISTED]]
    marks = [(f"{100 * x / width:.2f}", f"{100 * y / height:.2f}") for x, y in corners]
    figures = [("Part", "as inspected", picture, []),
               ("Anomaly map", "where it differs" if differs else "no difference", over, marks)]  # fmt: skip
    if repaired is not None:
        after = "" if repaired_score is None else f", score {number(repaired_score)}"
        figures.append(("Repaired", f"by the model{after}", drawing.shrunk(repaired, PICTURE_PIXELS), []))
    return [
        {"title": title, "caption": caption, "source": data_uri(shown, "jpeg", 90), "marks": marks}
        for title, caption, shown, marks in figures
    ]


def _histogram(inspection: Inspection) -> Markup:
    """A histogram of the good parts' scores, with both limits as lines and this part as a dot."""
    from matplotlib.figure import Figure

    width, height, base, tall = 360, 98, 74, 50
    good = np.asarray(inspection.good_scores, dtype=np.float64)
    top = max(2.5 * float(good.max(initial=0.0)), 1.15 * inspection.threshold, 1e-6)
    low = min(0.0, float(good.min(initial=0.0)), inspection.score, inspection.look_threshold)
    counts, edges = np.histogram(good, bins=40, range=(low, top))

    figure = Figure(figsize=(width / 72, height / 72), frameon=False)
    axes = figure.add_axes((6 / width, 0, 1 - 12 / width, 1), frame_on=False)
    axes.set_axis_off()
    axes.set_xlim(low, top)
    unit = max(1, counts.max()) / tall  # counts per px
    axes.set_ylim(-(height - base) * unit, base * unit)
    axes.bar(edges[:-1], counts, np.diff(edges) * 0.9, align="edge", color="#b8c7dd")
    axes.axhline(0, color="#c9d2de", linewidth=1)
    for limit, dashes in ((inspection.threshold, (3, 2)), (inspection.look_threshold, (1, 2))):
        axes.plot([limit] * 2, [-4 * unit, (base - 8) * unit], color="#10182b", linewidth=1, dashes=dashes)
    _name_limits(figure, axes, inspection)
    colour = _PART_COLOURS[inspection.verdict]
    dot = min(inspection.score, top)
    axes.plot([dot] * 2, [0, 0], color=colour, linewidth=9, solid_capstyle="round")
    place = axes.transData.transform((dot, 0))[0] / figure.dpi * 72
    side = "right" if place > width - 70 else "left" if place < 70 else "center"
    text = f"this part {number(inspection.score)}{' →' if inspection.score > top else ''}"
    figure.text(place / width, 6 / height, text, ha=side, fontsize=9.4, fontweight="bold", color=colour)
    return inline_svg(figure, "Scores of good parts and of this part")


def _name_limits(figure: Figure, axes: Axes, inspection: Inspection) -> None:
    """Label the two limits: on either side if there is room, otherwise one below the other."""
    line, look = (
        axes.transData.transform((limit, 0))[0] / figure.dpi * 72
        for limit in (inspection.threshold, inspection.look_threshold)
    )
    width, height = 72 * figure.get_size_inches()
    side = "right" if line > width - 90 else "left"
    label = line + (4 if side == "left" else -4)
    apart = side == "left" and look > 72
    for text, x, ha, down in (
        (f"threshold {number(inspection.threshold)}", label, side, 15),
        (f"look limit {number(inspection.look_threshold)}", look - 4 if apart else label,
         "right" if apart else side, 15 if apart else 26),
    ):  # fmt: skip
        figure.text(x / width, 1 - down / height, text, ha=ha, fontsize=9.4, color="#4c5a70")


def _evidence(inspection: Inspection, inspector: Inspector, colormap: str) -> dict[str, Any]:
    """The maps as a table, a row per branch and a column per noise level and their mean, with the fused map
    and the colour scale.
    """
    top = inspector.scale_top(inspection.category)
    maps = inspection.grid_maps(MAP_PIXELS)
    chosen = inspection.timesteps
    spread = np.linspace(0, len(chosen) - 1, min(COLUMNS, len(chosen)))
    columns = [chosen[round(i)] for i in spread]
    pixels, features = (np.mean([maps[t][branch] for t in chosen], axis=0) for branch in (0, 1))
    plain = inspection.grid_plain(MAP_PIXELS)

    def shown(values: np.ndarray, text: str) -> dict[str, str]:
        return {"text": text, "source": data_uri(drawing.heatmap(values, top, colormap), "png", 6)}

    rows: list[dict[str, Any]] = [
        {
            "title": title,
            "meaning": meaning,
            "maps": [*(shown(maps[t][branch], f"{title}, t = {t}") for t in columns),
                     shown(mean, f"{title}, mean")],
        }
        for branch, (title, meaning, mean) in enumerate(
            (("Pixels", "how it looks", pixels), ("Features", "what it means", features))
        )
    ]  # fmt: skip
    if plain is not None:
        only_mean = [None] * len(columns) + [shown(plain, "Plain features")]
        rows.append({"title": "Plain", "meaning": "without the network", "maps": only_mean})
    # Widths in mm: cells fill their row, and neither they nor the fused map are taller than the page allows.
    height, width = pixels.shape
    wide = min(21.0, (116.0 - len(columns)) / (len(columns) + 1), 21.0 * width / height)
    fused_wide = min(40.0, 36.0 * width / height)
    ramp = drawing.heatmap(np.linspace(0, top, 64, dtype=np.float32)[None], top, colormap)
    return {
        "timesteps": columns,
        "rows": rows,
        "wide": f"{wide:.1f}",
        "fused": shown(fuse(pixels[None], features[None], inspection.alpha, plain), "Anomaly map"),
        "fused_wide": f"{fused_wide:.1f}",
        "fused_room": f"{max(34.0, fused_wide):.1f}",
        "ramp": data_uri(ramp, "png", 6),
        "limit": f"{100 * min(max(inspection.threshold / top, 0), 1):.1f}",
        "top": f"{top:.0f}",
    }


def _facts(inspection: Inspection, inspector: Inspector) -> list[tuple[str, str]]:
    """The report's list of facts, as (term, text)."""
    height, width = inspection.image.shape[:2]
    fingerprint = hashlib.sha256(np.ascontiguousarray(inspection.image).tobytes()).hexdigest()[:16]
    category = words(inspection.category)
    data: object = inspector.provenance.get("data", {})
    pictures = data.get(inspection.category) if isinstance(data, dict) else None
    whole = "whole, turned upright" if inspection.turned else "whole"
    cut = whole if inspection.tile is None else f"cut into tiles of {inspection.tile} px"
    learned = f"{pictures} good {category} pictures" if pictures else "good parts only"
    timesteps = ", ".join(map(str, inspection.timesteps))
    return [
        ("Picture", f"{width} × {height} px, inspected {cut}"),
        ("Fingerprint", Markup("<code>{}</code> (SHA-256 of the pixels)").format(fingerprint)),
        ("Category", f"{category} ({'recognised' if inspection.recognised else 'given'})"),
        ("Settings", f"α {inspection.alpha:g} ({inspection.weights_in_words}) · t = {timesteps} · "
                     f"seed {inspection.seed}"),
        ("Model", f"{inspector.name}, {inspector.parameters / 1e6:.1f} M parameters, learned from {learned}"),
        ("Licence", str(inspector.provenance.get("licence") or "not stated")),
    ]  # fmt: skip
