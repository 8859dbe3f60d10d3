"""Plots of training losses and ablations, and contact sheets."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import cycle, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from diffad.output import whole
from diffad.pictures.arrays import F64, U8
from diffad.pictures.drawing import CALM, INK, LINE, MUTED
from diffad.pictures.reading import DataError

_LINES = (
    "#1f56d8",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#8a6d00",
    "#56b4e9",
)  # distinguishable for colour-blind readers
_Point = tuple[str, float | None, float]  # label, the setting if it is a number, metric


def contact_sheet(pictures: Sequence[U8], captions: Sequence[str], path: str | Path) -> None:
    """Write pictures with captions as one PNG, up to four per row."""
    from matplotlib.figure import Figure

    columns = min(4, len(pictures))
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(2.6 * columns, 3.0 * rows), layout="constrained")
    for axes, picture, caption in zip_longest(
        figure.subplots(rows, columns, squeeze=False).ravel(), pictures, captions
    ):
        axes.axis("off")
        if picture is not None:
            axes.imshow(picture)
            axes.set_title(caption, fontsize=8, parse_math=False)
    with whole(path) as partial:
        figure.savefig(partial, dpi=100)


def loss_plot(log: list[dict[str, Any]], path: str | Path) -> None:
    """Plot a training log: one panel per quantity over the step, raw and smoothed.

    Args:
        log: rows with "step" and numbers under any names; a row may lack some.
        path: the file to write; its suffix selects the format.

    Raises:
        DataError: the log holds no numbers.
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
        axes.grid(color=LINE, linewidth=0.6)
        _quiet(axes)
    with whole(path, sync=False) as partial:
        figure.savefig(partial)


def _series(log: list[dict[str, Any]], name: str) -> F64:  # [n, 2]: step, value
    rows = [
        (row["step"], row[name]) for row in log if "step" in row and isinstance(row.get(name), (int, float))
    ]
    values = np.array(rows, dtype=np.float64).reshape(-1, 2)
    return values[np.isfinite(values).all(axis=1)]


def ablation_plot(table: dict[str, Any], metrics: dict[str, str], path: str | Path) -> None:
    """Plot one table of `ablation.ablate`: one panel per metric, settings along the axis.

    A panel has one line per series of the table (means over categories) or, without series, one per category
    and a bold one for their mean. Numeric settings are joined by lines, others are dots. The default setting
    is shaded.

    Args:
        table: one of the result's tables.
        metrics: titles by name in the rows.
        path: the file to write; its suffix selects the format.
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
            style: dict[str, Any] = {
                "color": INK if name == "mean" else colour, "linewidth": width, "markersize": dot,
                "marker": "o", "markeredgecolor": "white", "label": name,
                "zorder": (3 if strong else 2) - index / 100,  # where lines meet, the first is on top
            }  # fmt: skip
            for joined in (True, False):
                some = [(labels.index(label), y) for label, x, y in points if (x is not None) is joined]
                if some:
                    axes.plot(*zip(*some), linestyle="-" if joined else "", **style)
        axes.set_title(title, loc="left", fontsize=11, color=INK)
        axes.set_xlabel(table["axis"], fontsize=9, color=MUTED)
        axes.set_xticks(range(len(labels)), ticks)
        axes.set_xlim(-0.5, len(labels) - 0.5)
        top = min(1.0, axes.get_ylim()[1])
        bottom = min(axes.get_ylim()[0], top - 0.1)  # keep small differences small
        axes.set_ylim(bottom, top + 0.03 * (top - bottom))
        axes.grid(axis="y", color=LINE, linewidth=0.6)
        _quiet(axes)
    named: dict[str, Any] = {}
    for handle, name in zip(*axes.get_legend_handles_labels()):
        named.setdefault(name, handle)  # a series with numeric and other settings has two handles
    figure.legend(
        named.values(), named, loc="outside lower center", ncols=len(named), frameon=False, fontsize=9,
        labelcolor=INK,
    )  # fmt: skip
    figure.suptitle(table["title"], x=0.01, ha="left", fontsize=13, color=INK)
    with whole(path, sync=False) as partial:
        figure.savefig(partial)


def _quiet(axes: Any) -> None:
    axes.tick_params(colors=MUTED, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)


def _ablation_lines(rows: list[dict[str, Any]], metric: str) -> dict[str, list[_Point]]:
    """Points of each line, by name."""
    lines: dict[str, list[_Point]] = {}
    for row in rows:
        values = row["categories"] | ({"mean": row["mean"]} if len(row["categories"]) > 1 else {})
        for name, numbers in {row["series"]: row["mean"]}.items() if row["series"] else values.items():
            if numbers[metric] is not None:
                lines.setdefault(name, []).append((row["label"], row["value"], numbers[metric]))
    return lines
