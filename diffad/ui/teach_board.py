"""What the Teach tab shows, as HTML."""

from __future__ import annotations

import base64
import time
from collections.abc import Container, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from markupsafe import Markup

from diffad.inspector import Inspector
from diffad.pictures import drawing
from diffad.report.rendering import data_uri, inline_svg
from diffad.teaching.categories import Lesson
from diffad.teaching.examination import Offered
from diffad.teaching.forecast import in_words as forecast_in_words
from diffad.teaching.quick import Example
from diffad.teaching.robustness import in_words as changes_in_words
from diffad.ui.cards import plural
from diffad.workspace.jobs import Job
from diffad.workspace.taught import TaughtCategory

EMPTY = "Drop 8 to 2,000 pictures of good parts, or a zip of them. Nothing is learned before you press Teach."
_INK, _QUIET, _BARS = "#10182b", "#5a687e", "#c5d2e4"
_COLOURS = {_INK: "var(--ink)", _QUIET: "var(--quiet)", _BARS: "var(--bars)", "#b92d1b": "var(--bad)",
            "#8a5a00": "var(--look)", "#14724a": "var(--good)"}  # fmt: skip
_SHOWN = 400  # previews at most
_PREVIEW = 96  # px


def sentence(text: str, kind: str = "") -> str:
    return f'<p class="teach-says {kind}" role="status">{escape(text)}</p>'


def offered(pictures: Sequence[Offered], left_out: Container[int]) -> str:
    """Previews with remarks; each is a button that leaves the picture out or takes it back."""
    shown = sorted(range(len(pictures)), key=lambda i: not pictures[i].remarks)[:_SHOWN]
    tiles = []
    for number in shown:
        each, out = pictures[number], number in left_out
        remarks = "; ".join(each.remarks)
        image = '<span class="no-picture">✕</span>'
        if each.preview is not None:
            image = f'<img alt="" src="{data_uri(drawing.shrunk(each.preview, _PREVIEW), "jpeg", 80)}">'
        state = "left out" if out else "used"
        label = escape(f"{each.name}, {state}{'; ' + remarks if remarks else ''}")
        tiles.append(
            f'<button type="button" class="offered{" out" if out else ""}{" odd" if remarks else ""}" '
            f'data-offered="{number}" aria-pressed="{str(not out).lower()}" aria-label="{label}" '
            f'title="{label}"'
            f"{' disabled' if each.unusable else ''}>{image}<b>{escape(each.name)}</b>"
            f"<small>{escape(remarks) or state}</small></button>"
        )
    more = len(pictures) - len(shown)
    rest = f'<p class="quiet">and {plural(more, "more picture")} without remarks</p>' if more > 0 else ""
    return f'<div class="offered-grid">{"".join(tiles)}</div>{rest}'


def expectations(
    name: str,
    lesson: Lesson,
    inspector: Inspector,
    made: Sequence[Example],
    changes: Mapping[str, Any] | None,
) -> str:
    """What to expect of a category that was just taught."""
    forecast = lesson.profile.forecast
    score = inspector.scorer(name)
    borne = "Changes of light, noise, sharpness, compression and position are being tried…"
    parts = [
        f"<h3>What to expect of {escape(name)}</h3>",
        f"<p>{escape(forecast_in_words(name, forecast))}</p>",
        f"<p>{escape(changes_in_words(changes))}</p>" if changes else f'<p class="quiet">{borne}</p>',
        f'<div class="teach-charts">{_histogram(score.good, score.threshold(0.1), score.threshold())}'
        f"{_kinds(forecast.get('found_by_kind', {}))}</div>",
    ]
    if made:
        figures = "".join(
            f'<figure class="{"found" if each.found else "missed"}">'
            f'<img alt="" src="{data_uri(drawing.shrunk(each.shown, 160), "jpeg", 85)}">'
            f"<figcaption>{escape(each.kind)}: {'found' if each.found else 'missed'}, {each.score:.1f}"
            "</figcaption></figure>"
            for each in made
        )
        parts.append(f'<h3>Artificial defects on your pictures</h3><div class="examples">{figures}</div>')
    parts.append(_unusual(lesson))
    return "".join(parts)


def _unusual(lesson: Lesson) -> str:
    scores = lesson.unusual | lesson.left_out
    if not scores:
        return ""
    figures = "".join(
        f'<figure><img alt="" src="{_square(lesson, i)}"><figcaption>{escape(_known(lesson.names[i]))}, '
        f"{scores[i]:.1f}{', left out already' if i in lesson.left_out else ''}</figcaption></figure>"
        for i in sorted(scores, key=lambda i: -scores[i])[:12]
    )
    return (
        "<h3>Unusual among the good pictures</h3><p>Are these good parts? If not, leave them out and teach "
        f'again.</p><div class="examples">{figures}</div>'
    )


def _known(name: str) -> str:
    """A kept picture's name without the number before it (`teach_tab._kept`)."""
    number, _, rest = name.partition("-")
    return rest if number.isdigit() and rest else name


def _square(lesson: Lesson, number: int) -> str:
    picture = lesson.pictures[number].permute(1, 2, 0).contiguous().numpy()
    return data_uri(drawing.shrunk(picture, 160), "jpeg", 85)


def _histogram(good: np.ndarray, look: float, threshold: float) -> Markup:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 1.9), frameon=False)
    axes = figure.add_axes((0.03, 0.2, 0.94, 0.62), frame_on=False)
    top = max(1.15 * threshold, float(good.max()) * 1.05)
    axes.hist(good, bins=np.linspace(min(0.0, float(good.min())), top, 40).tolist(), color=_BARS)
    for value, colour, label in ((look, "#8a5a00", "look limit"), (threshold, "#b92d1b", "threshold")):
        axes.axvline(value, color=colour, linewidth=1.5)
        axes.annotate(f"{label} {value:.1f}", (value, 1.02), xycoords=("data", "axes fraction"), color=colour,
                      fontsize=9, ha="right" if label == "look limit" else "left")  # fmt: skip
    axes.set_yticks([])
    axes.tick_params(length=0, labelsize=9, labelcolor=_QUIET)
    figure.text(0.03, 0.93, f"Scores of {len(good)} good pictures, each left out", color=_INK, fontsize=10)
    return inline_svg(figure, f"Scores of good pictures; threshold {threshold:.1f}", _COLOURS)


def _kinds(found: Mapping[str, float]) -> Markup:
    from matplotlib.figure import Figure

    if not found:
        return Markup("")
    figure = Figure(figsize=(3.4, 1.9), frameon=False)
    axes = figure.add_axes((0.28, 0.08, 0.6, 0.74), frame_on=False)
    names = list(found)[::-1]
    shares = [found[name] for name in names]
    axes.barh(names, [1] * len(names), color=_BARS, height=0.5, alpha=0.35)
    axes.barh(names, shares, color="#14724a", height=0.5)
    for row, share in enumerate(shares):
        axes.annotate(f"{share:.0%}", (1.03, row), va="center", fontsize=9, color=_INK)
    axes.set_xlim(0, 1.15)
    axes.set_xticks([])
    axes.tick_params(length=0, labelsize=9, labelcolor=_QUIET)
    figure.text(0.03, 0.93, "Artificial defects found, by kind", color=_INK, fontsize=10)
    said = ", ".join(f"{name} {share:.0%}" for name, share in found.items())
    return inline_svg(figure, f"Artificial defects found: {said}", _COLOURS)


def taught(categories: Sequence[TaughtCategory], damaged: Sequence[str]) -> str:
    """The list of taught categories."""
    if not categories and not damaged:
        return '<p class="quiet">Nothing was taught yet.</p>'
    rows = "".join(
        f"<tr><td><b>{escape(each.name)}</b></td><td>{len(each.about.get('pictures', {}))}</td>"
        f"<td>{escape(str(each.about.get('model', '')))}</td><td>{_day(each.about.get('time'))}</td>"
        f"<td>{escape(str(each.about.get('who', '')))}</td><td>{each.about.get('version', 1)}</td></tr>"
        for each in categories
    )
    heads = "".join(f"<th>{head}</th>" for head in ("name", "pictures", "model", "changed", "by", "version"))
    wrong = "".join(f'<p class="warm">{escape(each)}</p>' for each in damaged)
    return f'<table class="taught"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>{wrong}'


def _day(seconds: Any) -> str:
    known = isinstance(seconds, (int, float))
    return time.strftime("%d %b %Y, %H:%M", time.localtime(seconds)) if known else ""


def job(now: Job | None) -> str:
    """A long training, live."""
    if now is None:
        return ""
    words = {"waiting": "is starting", "running": "is being trained", "paused": "is paused",
             "interrupted": "was interrupted", "finished": "is trained",
             "failed": "could not be trained"}  # fmt: skip
    says = f"{now.request.name} {words[now.status]}: {now.message}" if now.message else words[now.status]
    bar = f'<progress max="1" value="{now.done:.3f}" aria-label="Progress of the training"></progress>'
    picture = ""
    if now.preview is not None:
        data = base64.b64encode(now.preview.read_bytes()).decode()
        picture = (
            '<img alt="A good part and an artificial defect, each with its map" '
            f'src="data:image/png;base64,{data}">'
            '<p class="quiet">A good part and the same with a scratch, each beside what the network cannot '
            "explain of it.</p>"
        )
    return (
        f'<div class="job {now.status}">{sentence(says)}{"" if now.is_over else bar}'
        f"{'' if now.is_over else _loss(now)}{picture}</div>"
    )


def _loss(now: Job) -> str:
    rows = now.log[-400:]
    if len(rows) < 2:
        return ""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 1.2), frameon=False)
    axes = figure.add_axes((0.1, 0.15, 0.88, 0.68), frame_on=False)
    axes.plot([row["seconds"] / 60 for row in rows], [row["loss"] for row in rows], color="#14724a")
    axes.tick_params(length=0, labelsize=8, labelcolor=_QUIET)
    figure.text(0.02, 0.9, f"Loss {rows[-1]['loss']:.3g}, over minutes", color=_INK, fontsize=9)
    return str(inline_svg(figure, f"Loss, now {rows[-1]['loss']:.3g}", _COLOURS))
