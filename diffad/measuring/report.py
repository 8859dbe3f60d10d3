"""The evaluation report, as Markdown and as a self-contained HTML file (inline SVG and WebP)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from diffad import __version__
from diffad.measuring.charts import pro_chart, roc_chart, score_chart
from diffad.measuring.repairs import REPAIR_MARGIN
from diffad.measuring.stress import robustness_rows, stress_table
from diffad.measuring.tables import (
    DEFECT_COLUMNS,
    REPAIR_COLUMNS,
    Results,
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
from diffad.pictures.drawing import overlay
from diffad.report.rendering import data_uri, render, words
from diffad.report.sheet import evidence_sheet

if TYPE_CHECKING:
    from diffad.inspector import Inspector

CASES = 3  # evidence sheets of each kind
WEBP_QUALITY = 82
_TEMPLATE = Path(__file__).with_suffix(".html")
_HEADLINES = {"image_auroc", "pixel_auroc", "aupro", "false_alarm_rate", "miss_rate", "wrong_when_changed"}
_HOW = (
    "Maps and masks are compared at the model's resolution, in the rectangle that the picture fills there: "
    "masks by nearest neighbour, no crop, no padding counted. Regions of masks are 8-connected at that "
    "resolution. Every distinct value is a threshold (no binning); AUPRO is the area under the mean "
    "per-region overlap up to a false positive rate of 0.3 (and 0.05), divided by that limit. AUPIMO is the "
    "share of a defect that is found, averaged over the defective pictures and over the thresholds that 1 in "
    "100,000 to 1 in 10,000 pixels of the good pictures exceed (on a logarithmic scale).",
    "Nothing is fitted on test pictures: thresholds and calibration come from normal training pictures and "
    "are stored in the model, and every picture is judged independently. The threshold is the score that 1 "
    "good part in 100 would exceed.",
    "The 95 % intervals are percentile bootstrap intervals from 1000 resamples of whole pictures, good and "
    "defective ones resampled separately; the rates of false alarms and misses have Wilson's intervals. "
    "The interval of a mean treats the categories as independent. If no resample has an error (an AUROC of "
    "1), the bootstrap interval has no width, although the value is not certain. F1 has no interval, because "
    "each resample has its own best threshold. The value after ± is the standard deviation over noise seeds.",
)
_THRESHOLDS = (
    "The shares of good pictures rejected and of defective ones missed, at the thresholds that nominally "
    "0.1, 1 and 5 % of good parts exceed."
)
_CHANGED = (
    f"Good pictures are changed in {len(NUISANCES)} ways that leave a part good (light, noise, sharpness, "
    "compression, position), each at its usual strength. Wrong when changed is the share of the verdicts on "
    "changed pictures that reject a picture which is accepted unchanged."
)


def markdown_report(results: Results) -> str:
    """The results of `evaluate` as Markdown.

    Args:
        results: by category; with the results of `evaluate_repair` as "repair" and of `stress` as "stress",
            if measured.
    """
    parts = [
        "# Evaluation",
        _setting(results),
        *folders_text(results).split("\n"),
        evaluation_table(results),
        "## 95 % intervals",
        markdown(_interval_rows(results)),
        "## Thresholds",
        _THRESHOLDS,
        markdown(announced_rows(results)),
        "## By kind of defect",
        "Each kind's pictures against all good ones of its category.",
    ]
    for name, values in results.items():
        if values["by_defect"]:
            parts += [f"### {name}", markdown(_defect_rows(values))]
    if changed := _part(results, "stress"):
        parts += ["## Changed pictures", _CHANGED]
        parts += [markdown(robustness_rows(changed)), markdown(stress_table(changed))]
    if repairs := _part(results, "repair"):
        parts += ["## Repair", repair_table(repairs)]
    parts += ["## How it was measured", *_HOW]
    if notes := _notes(results):
        parts += ["## Notes", "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def html_report(
    results: Results, inspector: Inspector, repair_sheets: dict[str, np.ndarray] | None = None
) -> str:
    """The results of `evaluate` as one self-contained HTML page.

    The pictures with the lowest and highest scores are inspected again for their evidence sheets.

    Args:
        results: as for `markdown_report`.
        inspector: the model that was evaluated.
        repair_sheets: by category, from `charts.repair_sheet`.
    """
    sheets = repair_sheets or {}
    changed, repairs = _part(results, "stress"), _part(results, "repair")
    return render(
        _TEMPLATE,
        model=inspector.name,
        names=_listed([words(name) for name in results]),
        setting=_setting(results),
        folders=folders_text(results).split("\n"),
        tiles=_tiles(results),
        summary=_summary_rows(results),
        about_thresholds=_THRESHOLDS,
        announced=announced_rows(results),
        about_changed=_CHANGED,
        changed=changed and robustness_rows(changed),
        changes=changed and stress_table(changed),
        repairs=repairs and table_rows(repairs, REPAIR_COLUMNS),
        repair_margin=REPAIR_MARGIN,
        categories=[_category(name, values, inspector, sheets.get(name)) for name, values in results.items()],
        how=_HOW,
        notes=_notes(results),
        facts=_facts(inspector),
    )


# ---------------------------------------------------------------------------------------------------------
# Tables and facts


def _setting(results: Results) -> str:
    setting = next(iter(results.values()))["setting"]
    images = sum(values["images"] for values in results.values())
    defective = sum(values["defective"] for values in results.values())
    seeds = setting["seeds"]
    return (
        f"{images} test pictures, {defective} of them defective; model {setting['model']}, "
        f"{setting['size']} × {setting['size']} px, α = {setting['alpha']:g}, "
        f"t = {', '.join(map(str, setting['timesteps']))}, noise seed{'s' if len(seeds) > 1 else ''} "
        f"{', '.join(map(str, seeds))}; diffad {__version__}."
    )


def _part(results: Results, key: str) -> dict[str, Any]:
    """One key's value by category, for the categories that have it."""
    return {name: values[key] for name, values in results.items() if key in values}


def _notes(results: Results) -> list[str]:
    return [
        f"{name}: {note}"
        for name, values in results.items()
        for note in values["notes"] + values.get("repair", {}).get("notes", [])
    ]


def _defect_rows(values: Mapping[str, Any]) -> list[list[str]]:
    return table_rows(values["by_defect"], DEFECT_COLUMNS, head="defect", with_mean=False)


def _interval_rows(results: Results) -> list[list[str]]:
    columns = [
        column
        for column in evaluation_columns(results)
        if any(column[1] in values["intervals"] for values in results.values())
    ]
    rows = [["category", *(title for title, _, _ in columns)]]
    for name, values in results.items():
        rows.append([name, *(_range(values["intervals"].get(key), form) for _, key, form in columns)])
    if len(results) > 1:
        rows.append(["mean", *(_range(mean_interval(results, key), form) for _, key, form in columns)])
    return rows


def _range(limits: Sequence[float] | None, form: str) -> str:
    return "–" if limits is None else "–".join(form.format(limit) for limit in limits)


def _summary_rows(results: Results) -> list[list[Any]]:
    """The table of results, in which a cell is a list of lines: value, interval, deviation over seeds."""
    columns = evaluation_columns(results)
    rows: list[list[Any]] = table_rows(results, columns)
    for row, values in zip(rows[1:], [*results.values(), None]):
        for i, (_, key, form) in enumerate(columns, 1):
            limits = mean_interval(results, key) if values is None else values["intervals"].get(key)
            value, _, std = row[i].partition(" ± ")
            row[i] = [value]
            if limits:
                row[i].append(_range(limits, form))
            if std:
                row[i].append(f"± {std}")
    return rows


def _tiles(results: Results) -> list[tuple[str, str, str]]:
    """Title, value and interval of each headline figure."""
    tiles = []
    for title, key, form in evaluation_columns(results):
        value = mean_over_categories(results, key)
        if key in _HEADLINES and value is not None:
            limits = mean_interval(results, key)
            tiles.append((title, form.format(value), _range(limits, form) if limits else ""))
    return tiles


def _facts(inspector: Inspector) -> list[tuple[str, str]]:
    """Facts about the model, as (name, value)."""

    def text(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{words(key)} {text(entry)}" for key, entry in value.items())
        return "–" if value is None else {"True": "yes", "False": "no"}.get(str(value), str(value))

    sizes = sorted({inspector.size_of(name) for name in inspector.categories})
    facts = {
        "parameters": f"{inspector.parameters:,}",
        "size": " or ".join(f"{size} × {size} px" for size in sizes),
        "categories": ", ".join(inspector.categories),
        **inspector.provenance,
    }
    return [(words(name), text(value)) for name, value in facts.items()]


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


# ---------------------------------------------------------------------------------------------------------
# A category


def _category(
    name: str, values: Mapping[str, Any], inspector: Inspector, sheet: np.ndarray | None
) -> dict[str, Any]:
    charts = [roc_chart(values)]
    if values["curves"]["pro"]:
        charts.append(pro_chart(values))
    charts.append(score_chart(values["pictures"], values["threshold"]))
    return {
        "name": name,
        "anchor": "category-" + "".join(c if c.isalnum() else "-" for c in name),
        "charts": charts,
        "defects": _defect_rows(values) if values["by_defect"] else [],
        "cases": [
            (title, [_case(picture, values["setting"], inspector) for picture in pictures])
            for title, pictures in _extremes(values["pictures"])
        ],
        "repairs": "" if sheet is None else data_uri(sheet, "webp", WEBP_QUALITY),
    }


def _extremes(pictures: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The pictures with the most extreme scores, with a heading for each kind; none appears twice."""
    ranked = sorted(pictures, key=lambda picture: picture["score"])
    good = [picture for picture in ranked if picture["defect"] == "good"]
    bad = [picture for picture in ranked if picture["defect"] != "good"]
    lowest = bad[:CASES]
    highest = [picture for picture in bad[::-1][:CASES] if picture not in lowest]
    return [
        ("Defective parts with the lowest scores", lowest),
        ("Good parts with the highest scores", good[::-1][:CASES]),
        ("Defective parts with the highest scores", highest),
    ]


def _case(picture: dict[str, Any], setting: dict[str, Any], inspector: Inspector) -> dict[str, Any]:
    """One picture of the report: a thumbnail with its overlay, and the evidence sheet."""
    profile = None if setting["profile"] == "recognised" else setting["profile"]
    settings = {"alpha": setting["alpha"], "timesteps": tuple(setting["timesteps"])}
    settings["seed"] = setting["seeds"][0]
    inspection = inspector.inspect(picture["path"], category=profile, **settings)
    top = inspector.scale_top(inspection.category)
    shown = overlay(inspection.hatched, inspection.anomaly_map, top, inspection.threshold)
    pair = np.concatenate([_small(inspection.image), _small(shown)], axis=1)
    file = picture["path"].replace("\\", "/").rsplit("/", 1)[-1]
    defective = picture["defect"] != "good"
    found, passed = ("found", "missed") if defective else ("false alarm", "judged good")
    return {
        "name": f"{picture['defect']}/{file}",
        "pair": data_uri(pair, "webp", WEBP_QUALITY),
        "sheet": data_uri(evidence_sheet(inspection, top), "webp", WEBP_QUALITY),
        "score": f"{picture['score']:.2f}",
        "threshold": f"{inspection.threshold:.2f}",
        "right": picture["anomalous"] == defective,
        "verdict": found if picture["anomalous"] else passed,
    }


def _small(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    picture = Image.fromarray(np.ascontiguousarray(image))
    scale = min(200 / picture.height, 1000 / picture.width)
    return np.array(picture.resize([max(1, round(scale * side)) for side in picture.size]))
