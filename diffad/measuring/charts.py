"""Charts of the evaluation report (inline SVG), and the sheet of repaired pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from diffad.measuring.repairs import Repaired
from diffad.pictures.drawing import ALARM, CALM, INK
from diffad.report.rendering import inline_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Colour in the figure → variable of report.css, which also has a value for dark mode.
_COLOURS = {
    "#1b2230": "var(--ink)",
    "#5a6579": "var(--quiet)",
    "#dfe4ec": "var(--line)",
    "#1f56d8": "var(--calm)",
    "#b92d1b": "var(--alarm)",
    "#0f7a6c": "var(--pixel)",
}
_INK, _QUIET, _LINE, _CALM, _ALARM, _PIXEL = _COLOURS
_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 340, 270, 44, 30, 10, 42  # size and margins of a chart, px
_BINS = 32


def roc_chart(values: Mapping[str, Any]) -> Markup:
    """One category's ROC curves of pictures and of pixels, if defined."""
    figure, axes = _axes("ROC", "false positive rate", "true positive rate")
    kinds = {"pixel": _PIXEL, "image": _CALM}
    kinds = {kind: colour for kind, colour in kinds.items() if values["curves"][f"{kind}_roc"]}
    for row, (kind, colour) in enumerate(kinds.items()):
        axes.plot(*np.transpose(values["curves"][f"{kind}_roc"]), color=colour, linewidth=2)
        _label(axes, f"{kind}s {values[f'{kind}_auroc']:.3f}", (1, 0), (-8, 8 + 17 * row), colour, bold=True)
    _number(axes.xaxis, np.linspace(0, 1, 6))
    return inline_svg(figure, "ROC", _COLOURS)


def pro_chart(values: Mapping[str, Any]) -> Markup:
    """One category's per-region overlap up to a false positive rate of 0.3, with a mark at 0.05."""
    figure, axes = _axes("PRO", "false positive rate", "per-region overlap")
    axes.plot(*np.transpose(values["curves"]["pro"]), color=_PIXEL, linewidth=2)
    _label(axes, f"to 0.3: {values['aupro']:.3f}", (1, 0), (-8, 8), _PIXEL, bold=True)
    _number(axes.xaxis, np.linspace(0, 0.3, 7))
    axes.axvline(0.05, color=_QUIET, linewidth=1, dashes=(4, 3))
    _label(axes, f"to 0.05: {values['aupro_05']:.3f}", (0.05 / 0.3, 0), (5, 8), _QUIET)
    return inline_svg(figure, "PRO", _COLOURS)


def score_chart(pictures: Sequence[dict[str, Any]], threshold: float | None) -> Markup:
    """Histograms of the scores of good (upwards) and defective parts (downwards), on an arcsinh scale."""
    good, bad = (
        np.array([one["score"] for one in pictures if (one["defect"] == "good") is label])
        for label in (True, False)
    )
    every = np.concatenate([good, bad])
    unit = abs(float(np.median(every) if threshold is None else threshold)) or 1.0
    mark = None if threshold is None else float(np.arcsinh(threshold / unit))
    places = [*np.arcsinh(every / unit), *([] if mark is None else [mark])]
    low, high = min(places), max(*places, min(places) + 1e-6)
    edges = np.linspace(low, high, _BINS + 1)
    shares = [np.histogram(np.arcsinh(some / unit), edges)[0] / max(1, some.size) for some in (good, bad)]
    tallest = float(np.max(shares))

    figure, axes = _axes("Image scores", "score, σ of good parts", "share of good, of defective")
    axes.grid(False)
    wide = edges[1] - edges[0]
    for share, sign, colour in zip(shares, (1, -1), (_CALM, _ALARM)):
        some = share > 0
        axes.bar(edges[:-1][some] + wide / 2, sign * share[some], 0.9 * wide, color=colour)
    _label(axes, f"{good.size} good", (1, 1), (-4, -12), _CALM, bold=True)
    _label(axes, f"{bad.size} defective", (0, 0), (4, 6), _ALARM, bold=True)
    axes.axhline(0, color=_LINE, linewidth=1)
    axes.set_xlim(low, high)
    axes.set_ylim(-tallest / 0.86, tallest / 0.86)
    axes.set_yticks([-tallest, tallest], [f"{tallest:.0%}"] * 2)
    axes.set_xticks(*_score_ticks(unit, low, high))
    if mark is not None:
        axes.axvline(mark, color=_QUIET, linewidth=1, dashes=(4, 3))
        place = (mark - low) / (high - low)
        _label(axes, f"threshold {threshold:.2f}", (place, 1), (5 if place < 0.5 else -5, -12), _QUIET)
    return inline_svg(figure, "Image scores", _COLOURS)


def _score_ticks(unit: float, low: float, high: float) -> tuple[list[float], list[str]]:
    """Positions and labels of ticks at round scores, far enough apart for the labels."""
    apart = 30 / (_WIDTH - _LEFT - _RIGHT) * (high - low)
    places: list[float] = []
    labels: list[str] = []
    for score in (part * 10.0**power for power in range(-2, 6) for part in (1, 2, 5)):
        place = float(np.arcsinh(score / unit))
        if low <= place <= high and (not places or place >= places[-1] + apart):
            places.append(place)
            labels.append(f"{score:g}")
    return places, labels


def _axes(title: str, x_title: str, y_title: str) -> tuple[Figure, Axes]:
    """A figure whose points are the chart's pixels, and its axes: with a grid, upwards from 0 to 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH / 72, _HEIGHT / 72), frameon=False)
    left, bottom = _LEFT / _WIDTH, _BOTTOM / _HEIGHT
    right, top = 1 - _RIGHT / _WIDTH, 1 - _TOP / _HEIGHT
    axes = figure.add_axes((left, bottom, right - left, top - bottom), frame_on=False)
    quiet: dict[str, Any] = {"color": _QUIET, "fontsize": 11, "ha": "center"}
    figure.text(left, 1 - 16 / _HEIGHT, title, color=_INK, fontsize=13, fontweight="bold")
    figure.text((left + right) / 2, 8 / _HEIGHT, x_title, **quiet)
    figure.text(11 / _WIDTH, (bottom + top) / 2, y_title, rotation=90, va="center", **quiet)
    axes.autoscale(False)
    axes.grid(color=_LINE, linewidth=1)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=6, labelsize=11, labelcolor=_QUIET)
    _number(axes.yaxis, np.linspace(0, 1, 6))
    return figure, axes


def _number(axis: Axis, values: np.ndarray) -> None:
    """Put ticks at these values, the first and last of which are the ends of the axis."""
    axis.set_ticks(values, [f"{value:.2g}" for value in values])
    axis.set_view_interval(values[0], values[-1], ignore=True)


def _label(
    axes: Axes,
    text: str,
    place: tuple[float, float],
    offset: tuple[int, int],
    colour: str,
    bold: bool = False,
) -> None:
    """Put text beside a position in fractions of the axes; to its left if the offset (px) is negative."""
    side = "left" if offset[0] > 0 else "right"
    weight = "bold" if bold else "normal"
    axes.annotate(text, place, offset, "axes fraction", "offset points", ha=side, color=colour,
                  fontsize=11, fontweight=weight)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------


def repair_sheet(repairs: Sequence[Repaired]) -> npt.NDArray[np.uint8]:
    """Draw each repair (before, after, |difference| × 4, scores) on one sheet, uint8 [h, w, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    blocks, rows = min(2, len(repairs)), (len(repairs) + 1) // 2
    height, width = 2.3 * rows + 0.3, 6.1 * blocks  # in; below each panel of 2 in there are 0.3 of text
    figure = Figure(figsize=(width, height), dpi=110)
    grid = figure.add_gridspec(
        rows,
        4 * blocks - 1,
        width_ratios=[1, 1, 1, 0.06, 1, 1, 1][: 4 * blocks - 1],
        left=0.008,
        right=0.992,
        top=1 - 0.3 / height,
        bottom=0.3 / height,
        wspace=0.03,
        hspace=0.15,
    )
    for index, repair in enumerate(repairs):
        row, first = index % rows, 4 * (index // rows)
        change = np.abs(repair.after.astype(np.int16) - repair.before)
        panels = repair.before, repair.after, np.clip(4 * change, 0, 255).astype(np.uint8)
        axes = [figure.add_subplot(grid[row, first + i]) for i in range(3)]
        for one, panel, title in zip(axes, panels, ("before", "after", "|difference| × 4")):
            one.imshow(panel, interpolation="antialiased")
            one.set_axis_off()
            if row == 0:
                one.set_title(title, fontsize=10, color=INK, pad=4)
        name = f"{repair.sample.defect}/{repair.sample.image.name}"
        axes[0].text(0, -0.03, name, transform=axes[0].transAxes, va="top", fontsize=9, color=INK)
        colour = CALM if repair.score_after <= repair.threshold else ALARM
        scores = (
            f"score {repair.score_before:.1f} → {repair.score_after:.1f}  (threshold {repair.threshold:.1f})"
        )
        axes[2].text(
            1, -0.03, scores, transform=axes[2].transAxes, va="top", ha="right", fontsize=9, color=colour
        )
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]
