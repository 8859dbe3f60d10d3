"""What `evaluate` and `evaluate_repair` found, to read and hand on: Markdown, one HTML file, repair sheets.

The HTML holds all that it shows (inline SVG and WebP) and asks no network.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffad import __version__
from diffad.measuring.evaluation import (
    REPAIR_COLUMNS,
    REPAIR_MARGIN,
    Repaired,
    announced_rows,
    evaluation_columns,
    evaluation_table,
    folders_text,
    markdown,
    mean_interval,
    mean_over_categories,
    repair_table,
    table_rows,
)
from diffad.method.nuisances import NUISANCES
from diffad.pictures.drawing import ALARM, CALM, INK, overlay
from diffad.report.sheet import evidence_sheet
from diffad.teaching.stress import robustness_rows, stress_table

_HEADLINES = ("image_auroc", "pixel_auroc", "aupro", "false_alarm_rate", "miss_rate",
              "wrong_when_changed")
CASES = 3  # evidence sheets of each kind
_DEFECT_COLUMNS = (
    ("pictures", "images", "{:d}"), ("image AUROC", "image_auroc", "{:.3f}"),
    ("pixel AUROC", "pixel_auroc", "{:.3f}"), ("AUPRO", "aupro", "{:.3f}"), ("AUPIMO", "aupimo", "{:.3f}"),
    ("missed", "miss_rate", "{:.1%}"),
)
_HOW = (
    "Maps and masks are compared at the model's resolution, in the rectangle that the picture fills there: "
    "masks by nearest neighbour, no crop, no padding counted. Regions of masks are 8-connected at that "
    "resolution. Every distinct value is a threshold (no binning); AUPRO is the area under the mean "
    "per-region overlap up to a false positive rate of 0.3 (and 0.05), divided by that limit. AUPIMO is the "
    "mean over the defective pictures of the share of the defect that is found, at the thresholds that 1 in "
    "100,000 to 1 in 10,000 pixels of the good pictures exceed (the rates' logarithms weigh alike).",
    "Nothing is fitted on test pictures: thresholds and calibration come from normal training pictures and "
    "are stored in the model, and every picture is judged alone. The threshold is the score that 1 good part "
    "in 100 would exceed.",
    "The 95 % intervals are the percentile bootstrap of 1000 resamples of whole "
    "pictures, good among good and defective among defective; Wilson's interval for the rates of false "
    "alarms and misses. The interval of the mean takes the categories as independent. Where no resample can "
    "err (an AUROC of 1), the bootstrap has no width, which is no certainty; F1 has none, since the best "
    "threshold of a resample flatters it. After ± stands the standard "
    "deviation over noise seeds.",
)

_THRESHOLDS = (
    "The good pictures rejected and the defective ones missed, at the thresholds that 0.1, 1 and 5 % of good "
    "parts are announced to exceed."
)


_CHANGED = (
    f"Good pictures changed in {len(NUISANCES)} ways that leave a part good (light, noise, sharpness, "
    "compression, position), each at its usual strength. Wrong when changed is the share of these verdicts "
    "that reject a picture which is accepted as it is: the mean over the changes."
)


def markdown_report(results: dict[str, dict[str, Any]]) -> str:
    """`evaluate`'s results as Markdown; with "repair" in a category, `evaluate_repair`'s, that too."""
    parts = ["# Evaluation", _setting(results), *folders_text(results).split("\n"),
             evaluation_table(results), "## 95 % intervals", markdown(_interval_rows(results)),
             "## Thresholds", _THRESHOLDS, markdown(announced_rows(results)), "## By kind of defect",
             "Each kind's pictures against all good ones of its category."]
    for name, values in results.items():
        if values["by_defect"]:
            parts += [f"### {name}", markdown(_defect_rows(values))]
    if changed := _changed(results):
        parts += ["## Changed pictures", _CHANGED, markdown(robustness_rows(changed)),
                  markdown(stress_table(changed))]
    if repairs := _repairs(results):
        parts += ["## Repair", repair_table(repairs)]
    parts += ["## How it was measured", *_HOW]
    notes = [f"- {name}: {note}" for name, note in _every_note(results)]
    return "\n\n".join([*parts, *(["## Notes", "\n".join(notes)] if notes else [])]) + "\n"


def html_report(
    results: dict[str, dict[str, Any]], inspector: Any, repair_sheets: dict[str, np.ndarray] | None = None
) -> str:
    """One self-contained HTML page of `evaluate`'s results.

    The pictures with the lowest and highest scores are inspected once more for their evidence sheets.
    repair_sheets: by category, from `repair_sheet`.
    """
    names = list(results)
    style = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    body = [
        f"<header><p class=brand>diffad evaluation</p><h1>{escape(inspector.name)} on {_list(names)}</h1>"
        f"<p class=quiet>{escape(_setting(results))}</p>{_folders(results)}</header>",
        _tiles(results),
        _section("Results", _table(_summary_rows(results)), "results"),
        _section("Thresholds", f"<p>{_THRESHOLDS}</p>{_table(announced_rows(results))}", "thresholds"),
    ]
    if changed := _changed(results):
        body.append(_section("Changed pictures", f"<p>{_CHANGED}</p>{_table(robustness_rows(changed))}"
                             "<details class=more><summary>Change by change</summary>"
                             f"{_table(stress_table(changed))}</details>", "changed"))
    if repairs := _repairs(results):
        outside = (f"Outside is outside the mask, grown by {REPAIR_MARGIN} px at the model's resolution; the "
                   "feature distance there is 0 if nothing changed and 2 if all did.")
        body.append(_section("Repair", _table(table_rows(repairs, REPAIR_COLUMNS))
                             + f"<p class=quiet>{outside}</p>", "repair"))
    for name, values in results.items():
        body.append(_category(name, values, inspector, (repair_sheets or {}).get(name)))
    notes = "".join(f"<li>{escape(f'{name}: {note}')}" for name, note in _every_note(results))
    body.append(_section("How it was measured", "".join(f"<p>{escape(text)}</p>" for text in _HOW)
                         + (f"<ul>{notes}</ul>" if notes else ""), "how"))
    body.append(_section("The model", _facts(inspector), "model"))
    links = "".join(f'<a href="#{_anchor(name)}">{_words(name)}</a>' for name in names)
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>diffad evaluation: {escape(inspector.name)}</title><style>{style}</style></head><body>"
        f'<nav><a href="#results">Results</a>{links}<a href="#how">Method</a><a href="#model">Model</a></nav>'
        f"<main>{''.join(body)}</main></body></html>\n"
    )


def repair_sheet(repairs: Sequence[Repaired]) -> np.ndarray:
    """Before, after, |difference| × 4 and the score before → after of each repair; uint8 [h, w, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    blocks, rows = min(2, len(repairs)), (len(repairs) + 1) // 2
    height, width = 2.3 * rows + 0.3, 6.1 * blocks  # in; below each panel of 2 in there are 0.3 of text
    figure = Figure(figsize=(width, height), dpi=110)
    grid = figure.add_gridspec(rows, 4 * blocks - 1, width_ratios=[1, 1, 1, 0.06, 1, 1, 1][: 4 * blocks - 1],
                               left=0.008, right=0.992, top=1 - 0.3 / height, bottom=0.3 / height,
                               wspace=0.03, hspace=0.15)
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
        scores = (f"score {repair.score_before:.1f} → {repair.score_after:.1f}"
                  f"  (threshold {repair.threshold:.1f})")
        axes[2].text(1, -0.03, scores, transform=axes[2].transAxes, va="top", ha="right", fontsize=9,
                     color=colour)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


# ---------------------------------------------------------------------------------------------------------
# Tables and facts


def _setting(results: dict[str, dict[str, Any]]) -> str:
    setting = next(iter(results.values()))["setting"]
    images = sum(values["images"] for values in results.values())
    defective = sum(values["defective"] for values in results.values())
    seeds = setting["seeds"]
    return (f"{images} test pictures, {defective} of them defective; model {setting['model']}, "
            f"{setting['size']} × {setting['size']} px, α = {setting['alpha']:g}, "
            f"t = {', '.join(map(str, setting['timesteps']))}, noise seed{'s' if len(seeds) > 1 else ''} "
            f"{', '.join(map(str, seeds))}; diffad {__version__}.")


def _folders(results: dict[str, dict[str, Any]]) -> str:
    return "".join(f"<p class=quiet>{escape(line)}</p>" for line in folders_text(results).split("\n"))


def _defect_rows(values: dict[str, Any]) -> list[list[str]]:
    return table_rows(values["by_defect"], _DEFECT_COLUMNS, head="defect", mean=False)


def _repairs(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: values["repair"] for name, values in results.items() if "repair" in values}


def _changed(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: values["stress"] for name, values in results.items() if "stress" in values}


def _every_note(results: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    return [(name, note) for name, values in results.items()
            for note in values["notes"] + values.get("repair", {}).get("notes", [])]


def _interval_rows(results: dict[str, dict[str, Any]]) -> list[list[str]]:
    columns = [column for column in evaluation_columns(results)
               if any(column[1] in values["intervals"] for values in results.values())]
    rows = [["category", *(title for title, _, _ in columns)]]
    for name, values in results.items():
        rows.append([name, *(_range(values["intervals"].get(key), form) for _, key, form in columns)])
    if len(results) > 1:
        rows.append(["mean", *(_range(mean_interval(results, key), form) for _, key, form in columns)])
    return rows


def _range(limits: Sequence[float] | None, form: str) -> str:
    return "–" if limits is None else "–".join(form.format(limit) for limit in limits)


def _summary_rows(results: dict[str, dict[str, Any]]) -> list[list[str]]:
    """The table of results with intervals and ± below the values; cells are HTML."""
    columns = evaluation_columns(results)
    rows = table_rows(results, columns)
    for row, name in zip(rows[1:], [*results, None]):
        for i, (_, key, form) in enumerate(columns, 1):
            values = results.get(name, {}) if name else {}
            limits = values.get("intervals", {}).get(key) if name else mean_interval(results, key)
            value, _, std = row[i].partition(" ± ")
            row[i] = value + (f"<small>{_range(limits, form)}</small>" if limits else "")
            row[i] += f"<small>± {std}</small>" if std else ""
    return rows


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th scope=col>{title}" for title in rows[0])
    body = "".join(
        f"<tr{' class=mean' if row[0] == 'mean' else ''}><th scope=row>{_words(row[0])}"
        + "".join(f"<td>{cell}" for cell in row[1:])
        for row in rows[1:])
    return f"<div class=wide tabindex=0><table><thead><tr>{head}<tbody>{body}</table></div>"


def _tiles(results: dict[str, dict[str, Any]]) -> str:
    tiles = []
    for title, key, form in evaluation_columns(results):
        value = mean_over_categories(results, key)
        if key in _HEADLINES and value is not None:
            limits = mean_interval(results, key)
            small = f"<small>95 %: {_range(limits, form)}</small>" if limits else ""
            tiles.append(f"<div><span>{title}</span><b>{form.format(value)}</b>{small}</div>")
    mean = f"<p class=quiet>Means over {len(results)} categories.</p>" if len(results) > 1 else ""
    return f"<div class=tiles>{''.join(tiles)}</div>{mean}"


def _facts(inspector: Any) -> str:
    sizes = sorted({inspector.size_of(name) for name in inspector.categories})
    facts = {"parameters": f"{inspector.parameters:,}",
             "size": " or ".join(f"{size} × {size} px" for size in sizes),
             "categories": ", ".join(inspector.categories), **inspector.provenance}

    def text(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{_words(key)} {text(entry)}" for key, entry in value.items())
        return "–" if value is None else escape({"True": "yes", "False": "no"}.get(str(value), str(value)))

    rows = "".join(f"<dt>{_words(key)}<dd>{text(value)}" for key, value in facts.items())
    return f"<dl>{rows}</dl>"


# ---------------------------------------------------------------------------------------------------------
# A category


def _category(name: str, values: dict[str, Any], inspector: Any, sheet: np.ndarray | None) -> str:
    curves = values["curves"]
    roc = [(kind, f"{kind}s {values[f'{kind}_auroc']:.3f}", curves[f"{kind}_roc"])
           for kind in ("image", "pixel") if curves[f"{kind}_roc"]]
    charts = [_chart("ROC", roc, 1.0, "false positive rate", "true positive rate")]
    if curves["pro"]:
        charts.append(_chart("PRO", [("pixel", f"to 0.3: {values['aupro']:.3f}", curves["pro"])], 0.3,
                             "false positive rate", "per-region overlap", mark=0.05,
                             mark_text=f"to 0.05: {values['aupro_05']:.3f}"))
    charts.append(_histogram(values["pictures"], values["threshold"]))
    parts = [f"<div class=charts>{''.join(charts)}</div>"]
    if values["by_defect"]:
        parts.append(_table(_defect_rows(values)))
    parts += _cases(values, inspector)
    if sheet is not None:
        parts.append("<h3>Repairs, spread over the kinds of defect, not chosen by result</h3>"
                     f"<div class=wide tabindex=0><img class=sheet src={_source(sheet)} alt="
                     '"Before, after and difference of repaired pictures"></div>')
    return _section(_words(name), "".join(parts), _anchor(name))


def _cases(values: dict[str, Any], inspector: Any) -> Iterable[str]:
    """The worst and best pictures: overlay at a glance, evidence sheet when opened."""
    pictures = sorted(values["pictures"], key=lambda picture: picture["score"])
    good = [picture for picture in pictures if picture["defect"] == "good"]
    bad = [picture for picture in pictures if picture["defect"] != "good"]
    worst = bad[:CASES]
    for title, chosen in (
        ("Defective parts with the lowest scores", worst),
        ("Good parts with the highest scores", good[::-1][:CASES]),
        ("Defective parts with the highest scores", [one for one in bad[::-1][:CASES] if one not in worst]),
    ):
        if chosen:
            cards = "".join(_case(picture, values["setting"], inspector) for picture in chosen)
            yield f"<h3>{title}</h3><div class=cases>{cards}</div>"


def _case(picture: dict[str, Any], setting: dict[str, Any], inspector: Any) -> str:
    profile = None if setting["profile"] == "recognised" else setting["profile"]
    inspection = inspector.inspect(picture["path"], category=profile, alpha=setting["alpha"],
                                   timesteps=tuple(setting["timesteps"]), seed=setting["seeds"][0])
    top = inspector.scale_top(inspection.category)
    shown = overlay(inspection.image, inspection.anomaly_map, top, inspection.threshold)
    pair = np.concatenate([_small(inspection.image), _small(shown)], axis=1)
    name = f"{picture['defect']}/{picture['path'].replace(chr(92), '/').rsplit('/', 1)[-1]}"
    right = picture["anomalous"] == (picture["defect"] != "good")
    verdict = ("found" if picture["anomalous"] else "judged good") if right else (
        "false alarm" if picture["anomalous"] else "missed")
    return (f"<details><summary><img src={_source(pair)} alt=\"The picture and its anomaly map\">"
            f"<span>{escape(name)}<br><b>{picture['score']:.2f}</b> σ, threshold {inspection.threshold:.2f}, "
            f"<em class={'calm' if right else 'alarm'}>{verdict}</em></span></summary>"
            f"<div class=wide tabindex=0><img class=sheet src={_source(evidence_sheet(inspection, top))} "
            f'alt="Evidence sheet of {escape(name, quote=True)}"></div></details>')


def _small(image: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(np.ascontiguousarray(image))
    scale = min(200 / picture.height, 1000 / picture.width)
    return np.array(picture.resize([max(1, round(scale * side)) for side in picture.size]))


def _source(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "WEBP", quality=82, method=4)
    return f'"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"'


def _section(title: str, content: str, anchor: str) -> str:
    return f'<section id="{anchor}"><h2>{title}</h2>{content}</section>'


def _anchor(name: str) -> str:
    return "category-" + "".join(c if c.isalnum() else "-" for c in name)


def _words(name: str) -> str:
    return escape(name.replace("_", " "))


def _list(names: Sequence[str]) -> str:
    words = [_words(name) for name in names]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


# ---------------------------------------------------------------------------------------------------------
# Charts

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 340, 270, 44, 30, 10, 42


def _chart(title: str, lines: Sequence[tuple[str, str, Sequence[Sequence[float]]]], x_max: float,
           x_title: str, y_title: str, mark: float | None = None, mark_text: str = "") -> str:
    """Curves (class, label, points) over 0 … x_max and 0 … 1 as SVG, with one vertical mark."""
    def place(x: float, y: float) -> tuple[float, float]:
        return (_LEFT + x / x_max * (_WIDTH - _LEFT - _RIGHT),
                _HEIGHT - _BOTTOM - y * (_HEIGHT - _TOP - _BOTTOM))

    parts = []
    for value in np.linspace(0, x_max, 1 + (5 if x_max == 1 else round(x_max / 0.05))):
        x, bottom = place(float(value), 0)
        parts.append(f'<path class=grid d="M{x:.1f} {_TOP}V{bottom:.1f}"/>'
                     f'<text x="{x:.1f}" y="{bottom + 16:.1f}" text-anchor=middle>{value:.2g}</text>')
    for value in np.linspace(0, 1, 6):
        _, y = place(0, float(value))
        parts.append(f'<path class=grid d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>'
                     f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor=end>{value:.1g}</text>')
    if mark is not None:
        x, _ = place(mark, 0)
        parts.append(f'<path class=mark d="M{x:.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>'
                     f'<text x="{x + 5:.1f}" y="{_HEIGHT - _BOTTOM - 8}">{escape(mark_text)}</text>')
    for number, (kind, label, points) in enumerate(lines):
        path = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in points)
        below = _HEIGHT - _BOTTOM - 8 - 17 * (len(lines) - 1 - number)
        parts.append(f'<polyline class={kind} points="{path}"/>'
                     f'<text class="label {kind}" x="{_WIDTH - _RIGHT - 8}" y="{below}" text-anchor=end>'
                     f"{escape(label)}</text>")
    return _figure(title, x_title, y_title, "".join(parts))


def _histogram(pictures: Sequence[dict[str, Any]], threshold: float | None) -> str:
    """Scores of good parts above the axis, of defective ones below it; beyond the threshold logarithmic."""
    scores = {kind: np.array([p["score"] for p in pictures if (p["defect"] == "good") == (kind == "good")])
              for kind in ("good", "bad")}
    every = np.concatenate(list(scores.values()))
    unit = abs(float(np.median(every) if threshold is None else threshold)) or 1.0
    marks = [] if threshold is None else [threshold]
    low, high = (np.arcsinh(end / unit) for end in (min([*every, *marks]), max([*every, *marks])))
    high = max(high, low + 1e-6)
    left, right, middle = _LEFT, _WIDTH - _RIGHT, (_TOP + _HEIGHT - _BOTTOM) / 2

    def place(score: float) -> float:
        return left + (np.arcsinh(score / unit) - low) / (high - low) * (right - left)

    shares = {kind: np.histogram([place(one) for one in values], 32, (left, right))[0] / max(1, values.size)
              for kind, values in scores.items()}
    tallest = max(float(share.max()) for share in shares.values())
    room, step = (_HEIGHT - _TOP - _BOTTOM) / 2 * 0.86, (right - left) / 32
    parts = []
    for kind, sign, label in (("good", -1, "good"), ("bad", 1, "defective")):
        for i, share in enumerate(shares[kind]):
            if share:
                height = float(share) / tallest * room
                top = middle - height if sign < 0 else middle
                parts.append(f'<rect class={kind} x="{left + i * step + 0.5:.1f}" y="{top:.1f}" '
                             f'width="{step - 1:.1f}" height="{height:.1f}"/>')
        x, anchor = (right - 4, "end") if sign < 0 else (left + 4, "start")
        y = _TOP + 12 if sign < 0 else _HEIGHT - _BOTTOM - 6
        parts.append(f'<text class="label {kind}" x="{x}" y="{y}" text-anchor={anchor}>'
                     f"{scores[kind].size} {label}</text>")
        parts.append(f'<text x="{left - 6}" y="{middle + sign * room + 4:.1f}" text-anchor=end>'
                     f"{tallest:.0%}</text>")
    parts.append(f'<path class=axis d="M{left} {middle}H{right}"/>')
    taken = left - 30.0
    for score in (part * 10.0**power for power in range(-2, 6) for part in (1, 2, 5)):
        x = place(score)
        if taken + 30 <= x <= right:
            parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor=middle>'
                         f"{score:g}</text>")
            taken = x
    for score in marks:
        x = place(score)
        side, anchor = (5, "start") if x < (left + right) / 2 else (-5, "end")
        parts.append(f'<path class=mark d="M{x:.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>'
                     f'<text x="{x + side:.1f}" y="{_TOP + 12}" text-anchor={anchor}>'
                     f"threshold {score:.2f}</text>")
    return _figure("Image scores", "score, σ of good parts", "share of good, of defective", "".join(parts))


def _figure(title: str, x_title: str, y_title: str, inner: str) -> str:
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    return (f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role=img aria-label="{escape(title)}">'
            f'<text class=title x="{_LEFT}" y="16">{escape(title)}</text>{inner}'
            f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 8}" text-anchor=middle>{x_title}</text>'
            f'<text x="11" y="{middle}" text-anchor=middle transform="rotate(-90 11 {middle})">'
            f"{y_title}</text></svg></figure>")
