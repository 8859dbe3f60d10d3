"""Drift and report of a category as HTML, with charts that follow the page's colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from datetime import date, tzinfo
from html import escape
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from markupsafe import Markup
from PIL import Image

from diffad.pictures import drawing
from diffad.pictures.quality import MEASURES
from diffad.report.rendering import data_uri, inline_svg
from diffad.ui import cards
from diffad.workspace.drift import Drift, Reference, category_drift
from diffad.workspace.history import History
from diffad.workspace.queries import Filter
from diffad.workspace.summary import CELLS, Share, Summary, summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from diffad.inspector import Inspector

# As drawn → the colours of page.css, which has others in dark mode.
_COLOURS = {
    "#10182b": "var(--ink)", "#5a687e": "var(--quiet)", "#e1e6ee": "var(--line)", "#2152d9": "var(--accent)",
    "#b4500a": "var(--warm)", "#eef2f7": "var(--sunk)",
}  # fmt: skip
_INK, _QUIET, _LINE, _ACCENT, _WARM, _SUNK = _COLOURS
_TALL, _LEFT, _RIGHT, _TOP, _BOTTOM = 150, 38, 8, 26, 24  # of a chart and its margins, px
_SHOWN = ("brightness", "sharpness", "noise")
_UNITS = {"brightness": "grey values", "sharpness": "of detail", "noise": "grey values"}
_HEAT_PIXELS = 360  # longest side of the picture under the heat map


def drift_html(history: History, category: str, inspector: Inspector | None, zone: tzinfo | None) -> str:
    """A category's days against what was taught.

    Args:
        inspector: the model that was taught the category; None if it is not served.
        zone: in which days begin at midnight.
    """
    found = category_drift(history, category, _reference(category, inspector), zone=zone)
    if not found.days:
        return '<p class="quiet">There are too few inspections to compare days: 10 a day will do.</p>'
    days = cards.plural(len(found.days), "day")
    calm = f"No drift in {days}: good parts score as they did, and the pictures look as before."
    kind = "drift-said warm" if found.sentence else "drift-said"
    taught, first = "the good pictures that were taught", "the first days, as what was taught is not known"
    about = (
        f"By day, against {taught if found.reference.taught else first}. "
        "A day with fewer than 10 pictures counts with the next."
    )
    said = f'<p class="{kind}">{escape(found.sentence or calm)}</p><p class="quiet">{about}</p>'
    charts = "".join(f'<div class="{name}">{svg}</div>' for name, svg in _charts(found))
    return f'{said}<div class="drift-charts">{charts}</div>'


def _reference(category: str, inspector: Inspector | None) -> Reference:
    if inspector is None:
        return Reference(np.zeros(0), None)
    quality = inspector.profiles[category].quality
    return Reference(inspector.scorer(category).good, None if quality is None else np.array(quality))


def _charts(found: Drift) -> list[tuple[str, Markup]]:
    scores = found.reference.scores
    band = tuple(np.quantile(scores, (0.1, 0.5, 0.9)).tolist()) if scores.size else None
    medians = [day.median for day in found.days]
    charts = [("wide", _chart("Median score of good parts, σ", found, medians, band, 520))]
    for name in _SHOWN:
        row = MEASURES.index(name)
        quality = found.reference.quality
        known = None if quality is None else tuple(quality[row].tolist())
        values = [float(day.quality[row]) for day in found.days]
        charts.append(("narrow", _chart(f"{name.capitalize()}, {_UNITS[name]}", found, values, known, 240)))
    return charts


def _chart(
    title: str, found: Drift, values: Sequence[float], band: tuple[float, ...] | None, wide: int
) -> Markup:
    """Values by day as steps on the band from low to high, with the middle as a line."""
    figure, axes = _axes(title, wide)
    days = found.days
    if band is not None:
        axes.axhspan(band[0], band[2], color=_SUNK)
        axes.axhline(band[1], color=_QUIET, linewidth=1, dashes=(4, 3))
    since = len(days) if found.since is None else found.since
    for begin, end, colour in ((0, since, _ACCENT), (since, len(days), _WARM)):
        places = [place for day in range(begin, end) for place in (day - 0.4, day + 0.4, math.nan)]
        heights = [height for value in values[begin:end] for height in (value, value, math.nan)]
        if places:
            axes.plot(places, heights, color=colour, linewidth=3, solid_capstyle="butt")
    axes.plot(range(len(days)), values, color=_QUIET, linewidth=0.7)
    reached = [value for value in (*values, *(band or ())) if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(reached), max(reached)
    room = max(0.08 * (high - low), 1e-3)
    axes.set_ylim(low - room, high + room)
    axes.set_xlim(-0.6, max(len(days) - 0.4, 0.6))
    axes.set_yticks([low, high], [f"{low:.3g}", f"{high:.3g}"])
    ends = sorted({0, len(days) - 1})
    axes.set_xticks(ends, [_date(days[end].last) for end in ends])
    axes.get_xticklabels()[0].set_horizontalalignment("left")
    axes.get_xticklabels()[-1].set_horizontalalignment("right" if len(ends) > 1 else "left")
    last = next((value for value in reversed(values) if math.isfinite(value)), math.nan)
    return inline_svg(figure, f"{title}: {cards.plural(len(days), 'day')}, the last {last:.3g}", _COLOURS)


def _axes(title: str, wide: int) -> tuple[Figure, Axes]:
    """A figure whose points are the chart's pixels, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(wide / 72, _TALL / 72), frameon=False)
    left, bottom = _LEFT / wide, _BOTTOM / _TALL
    axes = figure.add_axes(
        (left, bottom, 1 - _RIGHT / wide - left, 1 - _TOP / _TALL - bottom), frame_on=False
    )
    figure.text(0, 1 - 13 / _TALL, title, color=_INK, fontsize=11)
    axes.tick_params(length=0, pad=4, labelsize=10, labelcolor=_QUIET)
    axes.axhline(0, color=_LINE, linewidth=0)
    return figure, axes


def _date(day: date) -> str:
    return f"{day.day} {'Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec'.split()[day.month - 1]}"


def report_html(
    history: History, category: str, since: float | None, until: float | None, zone: tzinfo | None
) -> str:
    """A category over a period: counts, how often people agreed, where defects lie."""
    found = summary(history, category, since, until, zone)
    if not found.pictures:
        return '<p class="quiet">No inspection of this category in this period.</p>'
    heat = _heat(history, category, found, since, until)
    return f'<div class="report-parts">{_counts(found)}{_agreement(found)}{heat}</div>'


def _counts(found: Summary) -> str:
    good = found.pictures - found.rejected - found.looked_at
    rows = (("inspected", found.pictures), ("anomalous", found.rejected), ("to look at", found.looked_at),
            ("good", good), ("corrected", found.corrected))  # fmt: skip
    cells = "".join(
        f"<tr><th scope='row'>{name}</th><td>{count}</td>"
        f"<td class='quiet'>{_of(count, found.pictures)}</td></tr>"
        for name, count in rows
    )
    busiest = max(found.days, key=lambda day: day.pictures)
    days = f"{cards.plural(len(found.days), 'day')}, at most {busiest.pictures} on {_date(busiest.day)}"
    return f"<div><table>{cells}</table><p class='quiet'>{days}</p></div>"


def _of(count: int, total: int) -> str:
    return "" if count == total else f"{100 * count / total:.1f} %"


def _agreement(found: Summary) -> str:
    """What people's corrections come to."""
    c = found.confusion
    rows = (
        ("rejected", c.rejected_good, c.rejected_defective),
        ("looked at", c.looked_good, c.looked_defective),
        ("passed", c.passed_good, c.passed_defective),
    )
    cells = "".join(
        f"<tr><th scope='row'>{name}</th><td>{good}</td><td>{bad}</td></tr>" for name, good, bad in rows
    )
    shares = (("of the rejected are defective", c.precision), ("of the defective were not passed", c.recall))
    told = "".join(f"<p><b>{_share(share)}</b> {words}</p>" for words, share in shares)
    return (
        "<div><table><thead><tr><td></td><th scope='col'>good</th><th scope='col'>defective</th></tr></thead>"
        f"{cells}</table>{told}<p class='quiet'>Only parts of which somebody said something count.</p></div>"
    )


def _share(share: Share) -> str:
    if share.value is None:
        return "–"
    return f"{share.value:.0%} ({share.low:.0%} to {share.high:.0%}, {share.count} of {share.of})".replace(
        "%", " %"
    )


def _heat(history: History, category: str, found: Summary, since: float | None, until: float | None) -> str:
    """Where the regions lie, over the newest picture."""
    if not found.regions:
        return '<div><p class="quiet">No defect was found, so there is no map of where they lie.</p></div>'
    chosen = Filter(category=category, since=since, until=until)
    picture: Any = None
    for entry in history.find(chosen, limit=5)[0]:
        with suppress(OSError), Image.open(history.thumbnail_path(entry)) as thumbnail:
            picture = np.asarray(thumbnail.convert("L").convert("RGB"))
            break
    if picture is None:
        picture = np.full((160, 160, 3), 128, np.uint8)
    factor = _HEAT_PIXELS / max(picture.shape[:2])
    size = (round(picture.shape[1] * factor), round(picture.shape[0] * factor))
    large = np.asarray(drawing.resized(picture, size), np.uint8)
    enlarged = drawing.resized(found.heat.astype(np.float32), size)
    heat = np.asarray(cv2.GaussianBlur(enlarged, (0, 0), _HEAT_PIXELS / CELLS), np.float32)
    drawn = drawing.overlay(large, heat, max(float(heat.max()), 1e-6), opacity=0.8, contour=False)
    words = f"{cards.plural(found.regions, 'region')}, at most {found.heat.max():.0f} at one place"
    return (
        f'<figure><img alt="Where the defects lie" src="{data_uri(drawn, "webp", 80)}">'
        f'<figcaption class="quiet">Where they lie: {words}</figcaption></figure>'
    )
