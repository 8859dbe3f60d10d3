"""Ablations: what each choice of the method contributes, on labelled pictures and from one checkpoint.

All settings use the same noise and the same network outputs; the maps are kept (fp16) until their category
is measured. Labels and masks are used only in the metrics; whatever must be fitted is fitted on training
pictures.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from diffad.inspector import Inspector
from diffad.measuring import ablation_maps
from diffad.measuring.ablation_settings import ALPHA, Table, listed, other_pixel_scores, tables
from diffad.measuring.evaluation import bit_notes
from diffad.measuring.tables import Progress, cell, markdown, mean_over_categories, step_counter
from diffad.method.devices import sharing
from diffad.method.image_score import top_mean
from diffad.method.metrics import aupro, auroc, pixel_auroc
from diffad.method.scoring import TIMESTEPS
from diffad.pictures.depth import most
from diffad.pictures.labels import folders_in_words, look_over
from diffad.pictures.masks import check_readable, mask_inside
from diffad.pictures.reading import DataError, read_image
from diffad.pictures.samples import Sample, labelled

TRAINING_PICTURES = 24  # used to standardise pixel scores that the checkpoint does not store
METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}

Measured = dict[frozenset[tuple[str, float]], dict[str, "float | None"]]  # key of a setting → metrics


def ablate(
    inspector: Inspector,
    samples: Iterable[Sample],
    singles: Sequence[Inspector] = (),
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure every setting of every table on the labelled test pictures.

    Args:
        inspector: the model.
        samples: in MVTec layout. Normal pictures of the split "train" are used to standardise pixel scores
            that the checkpoint does not store; without them that table is left out.
        singles: inspectors trained on one category each; the first that knows a category is used for it.
        limit: at most this many good and this many defective pictures per category, evenly spread over the
            kinds of defect.
        seed: of the noise, and of the choice of training pictures.
        progress: called with (done, total), counting pictures and settings.

    Returns:
        A dict, ready for JSON:
        checkpoint, seed: as given.
        pictures: category → good, defective: counts.
        folders: category → a sentence on which folders count as good and as defective.
        notes: sentences.
        tables: a list of {name, title, axis, about, rows}, where a row is {label, series, value, default,
            categories: {category: {image_auroc, pixel_auroc, aupro}}, mean: {the same}}. Metrics are in
            [0, 1], AUPRO up to a false positive rate of 0.3; None where undefined.

    Raises:
        DataError: no test picture has a label, the model does not know a category, a file cannot be read, or
            a single model has another size.
    """
    samples = list(samples)
    groups = labelled(samples, limit)
    experts = {name: next((one for one in singles if name in one.categories), None) for name in groups}
    _check(inspector, experts)
    groups, doubts, depths = look_over(groups, [sample for sample in samples if sample.split == "train"])
    training = {name: _training_pictures(samples, name, seed) for name in groups}
    training_depths = check_readable(training)
    depths = {name: most(depths[name], training_depths[name]) for name in groups}
    bits = {name: inspector.bits(name, depths[name]) for name in groups}
    scores = other_pixel_scores(inspector) if any(training.values()) else {}
    compared = tables(inspector, scores, any(experts.values()))
    weights = {setting.key: setting.weights for table in compared for setting in table.settings}
    step = step_counter(progress, sum(map(len, groups.values())) + len(groups) * len(weights))

    measured: dict[str, Measured] = {}
    for name, group in groups.items():
        fitted = ablation_maps.fit(inspector, name, training[name], scores, seed, bits[name])
        maps, masks = [], []
        for sample in group:
            image = read_image(sample.image, bits[name])
            with sharing(inspector.device):
                maps.append(
                    ablation_maps.kept_maps(inspector, image, name, fitted, scores, experts[name], seed)
                )
            masks.append(mask_inside(sample, image.shape[:2], inspector.size_of(name)))
            step()
        labels = [bool(sample.is_anomalous) for sample in group]
        measured[name] = {}
        for key, of_maps in weights.items():
            if of_maps.keys() <= maps[0].keys():
                fused = [ablation_maps.fused(one, of_maps) for one in maps]
                measured[name][key] = _metrics(fused, masks, labels, inspector.size_of(name))
            step()

    return {
        "checkpoint": inspector.name,
        "seed": seed,
        "pictures": {
            name: {
                "good": sum(not sample.is_anomalous for sample in group),
                "defective": sum(bool(sample.is_anomalous) for sample in group),
            }
            for name, group in groups.items()
        },
        "folders": {name: folders_in_words(group) for name, group in groups.items()},
        "notes": [
            *_notes(training, experts),
            *(f"{name}: {note}" for name in groups for note in bit_notes(bits[name], depths[name])),
            *(f"{name}: {note}" for name, notes in doubts.items() for note in notes),
        ],
        "tables": [_results(table, measured) for table in compared],
    }


def _training_pictures(samples: Sequence[Sample], category: str, seed: int) -> list[Sample]:
    normal = [s for s in samples if s.category == category and s.split == "train" and not s.is_anomalous]
    return random.Random(seed).sample(normal, min(TRAINING_PICTURES, len(normal)))


def _check(inspector: Inspector, experts: Mapping[str, Inspector | None]) -> None:
    inspector.check_knows(experts)
    for name, expert in experts.items():
        if expert is not None and expert.size_of(name) != (size := inspector.size_of(name)):
            raise DataError(
                f"{expert.name} works at {expert.size_of(name)} px, {inspector.name} at {size} px: "
                "use models of the same size"
            )


def _metrics(
    maps: Sequence[np.ndarray], masks: Sequence[np.ndarray | None], labels: Sequence[bool], size: int
) -> dict[str, float | None]:
    masked = [(one, mask) for one, mask in zip(maps, masks, strict=True) if mask is not None]
    pixels = tuple(zip(*masked, strict=True))
    return {
        "image_auroc": auroc([top_mean(one, size) for one in maps], labels),
        "pixel_auroc": pixel_auroc(*pixels) if masked else None,
        "aupro": aupro(*pixels) if masked else None,
    }


def _results(table: Table, measured: Mapping[str, Measured]) -> dict[str, Any]:
    """The table with its numbers, over the categories that have every one of its settings."""
    keys = [setting.key for setting in table.settings]
    names = [name for name, values in measured.items() if all(key in values for key in keys)]
    rows = []
    for setting in table.settings:
        values = {name: measured[name][setting.key] for name in names}
        rows.append(
            {
                "label": setting.label,
                "series": setting.series,
                "value": setting.value,
                "default": setting.default,
                "categories": values,
                "mean": {metric: mean_over_categories(values, metric) for metric in METRICS},
            }
        )
    return {"name": table.name, "title": table.title, "axis": table.axis, "about": table.about, "rows": rows}


def _notes(training: Mapping[str, list[Sample]], experts: Mapping[str, Inspector | None]) -> list[str]:
    notes = []
    if bare := [name for name, pictures in training.items() if not pictures]:
        notes.append(f"Other pixel scores need train/good and are not compared for {', '.join(bare)}.")
    if named := [f"{name} by {expert.name}" for name, expert in experts.items() if expert is not None]:
        notes.append(f"One per category: {', '.join(named)}.")
        if left := [name for name, expert in experts.items() if expert is None]:
            notes.append(f"No single model knows {', '.join(left)}, which that table leaves out.")
    return notes


def ablation_report(result: dict[str, Any], plots: Mapping[str, str] | None = None) -> str:
    """The result of `ablate` as Markdown.

    Args:
        plots: by table name, the file of the plot to show below the table.
    """
    pictures = ", ".join(
        f"{name} ({count['good']} good, {count['defective']} defective)"
        for name, count in result["pictures"].items()
    )
    setting = (
        f"Pictures: {pictures}. Unless it varies: α = {ALPHA:g}, t = {listed(TIMESTEPS)}, one noise draw, "
        f"seed {result['seed']}. Cells: {' / '.join(METRICS.values())} (up to a false positive rate of 0.3); "
        "a picture's score is the mean of the 256 highest values of its map, which needs no calibration. "
        "**Bold**: the default."
    )
    parts = [f"# Ablations of {result['checkpoint']}", setting]
    parts += [f"{name}: {folders}" for name, folders in result["folders"].items()]
    parts += result["notes"]
    for table in result["tables"]:
        parts += [f"## {table['title']}", table["about"], _markdown(table)]
        if plots and table["name"] in plots:
            parts.append(f"![{table['title']}]({plots[table['name']]})")
    return "\n\n".join(parts)


def _markdown(table: dict[str, Any]) -> str:
    names = list(table["rows"][0]["categories"])
    columns = [*names, "mean"] if len(names) > 1 else names
    rows = [[table["axis"], *columns]]
    for row in table["rows"]:
        label = f"{row['label']}, {row['series']}" if row["series"] else row["label"]
        values = row["categories"] | {"mean": row["mean"]}
        cells = [" / ".join(cell(values[name][metric], "{:.3f}") for metric in METRICS) for name in columns]
        rows.append([f"**{label}**" if row["default"] else label, *cells])
    return markdown(rows)
