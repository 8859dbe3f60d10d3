"""Tables of results, with means that skip missing values, and the progress of measurements.

A result is the outcome of a measurement for one category or method: values by key, None where undefined. A
table has a row for each result and a column for each key.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Progress = Callable[[int, int], None]  # (steps done, steps in all)
Results = Mapping[str, Mapping[str, Any]]  # category or method → its result
Column = tuple[str, str, str]  # title, key, format

_COUNT = "{:d}"  # the last row has the sum of columns with this format, and the mean of all others
EVALUATION_COLUMNS: tuple[Column, ...] = (
    ("image AUROC", "image_auroc", "{:.3f}"),
    ("image AP", "image_ap", "{:.3f}"),
    ("image F1", "image_f1", "{:.3f}"),
    ("pixel AUROC", "pixel_auroc", "{:.3f}"),
    ("pixel AP", "pixel_ap", "{:.3f}"),
    ("pixel F1", "pixel_f1", "{:.3f}"),
    ("AUPRO", "aupro", "{:.3f}"),
    ("AUPRO 0.05", "aupro_05", "{:.3f}"),
    ("AUPIMO", "aupimo", "{:.3f}"),
    ("false alarms", "false_alarm_rate", "{:.1%}"),
    ("missed", "miss_rate", "{:.1%}"),
    ("wrong when changed", "wrong_when_changed", "{:.1%}"),  # only if measured
    ("category recognised", "category_accuracy", "{:.1%}"),
    ("s / picture", "seconds_per_image", "{:.3f}"),
    ("pictures", "images", _COUNT),
)
DEFECT_COLUMNS: tuple[Column, ...] = (
    ("pictures", "images", _COUNT),
    ("image AUROC", "image_auroc", "{:.3f}"),
    ("pixel AUROC", "pixel_auroc", "{:.3f}"),
    ("AUPRO", "aupro", "{:.3f}"),
    ("AUPIMO", "aupimo", "{:.3f}"),
    ("missed", "miss_rate", "{:.1%}"),
)
REPAIR_COLUMNS: tuple[Column, ...] = (
    ("score falls by (median)", "fall_median", "{:.0%}"),
    ("worst tenth", "fall_worst_tenth", "{:.0%}"),
    ("PSNR outside, dB", "psnr_outside_median", "{:.1f}"),
    ("worst tenth, dB", "psnr_outside_worst_tenth", "{:.1f}"),
    ("SSIM outside", "ssim_outside_median", "{:.3f}"),
    ("feature distance outside", "feature_distance_outside_median", "{:.4f}"),
    ("judged good before", "judged_good_before", "{:.0%}"),
    ("after", "judged_good_after", "{:.0%}"),
    ("PSNR good, dB", "psnr_good_median", "{:.1f}"),
    ("worst good, dB", "psnr_good_worst", "{:.1f}"),
    ("s / step", "seconds_per_step", "{:.3f}"),
    ("defective", "defective", _COUNT),
    ("good", "good", _COUNT),
)


# ---------------------------------------------------------------------------------------------------------
# Numbers


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def quantile(values: Iterable[float | None], q: float = 0.5) -> float | None:
    """A quantile, by default the median, of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return float(np.quantile(known, q)) if known else None


def mean_over_categories(results: Results, key: str) -> float | None:
    """The mean of one value over the results that have it; None if none does."""
    return mean(values.get(key) for values in results.values())


def mean_interval(results: Results, key: str) -> list[float] | None:
    """The 95 % interval [low, high] of the mean over categories, from the categories' own intervals.

    The categories' pictures are independent, so the squared distances from value to limit add up (MOVER, Zou
    and Donner 2008). None if a category with this value has no interval.
    """
    known = [values for values in results.values() if values.get(key) is not None]
    if not known or any(key not in values["intervals"] for values in known):
        return None
    centre = mean(values[key] for values in known)
    limits = np.array([values["intervals"][key] for values in known]) - [[values[key]] for values in known]
    half = np.sqrt(np.square(limits).sum(axis=0)) / len(known)
    return [float(centre - half[0]), float(centre + half[1])]


def step_counter(progress: Progress | None, total: int) -> Callable[..., None]:
    """A function that reports one more step to `progress` with each call; it ignores its arguments."""
    steps = itertools.count(1)

    def step(*_: Any) -> None:
        if progress is not None:
            progress(next(steps), total)

    return step


# ---------------------------------------------------------------------------------------------------------
# Rows of cells, the head first


def cell(value: float | None, form: str, std: float | None = None) -> str:
    """One value as text, with ± its standard deviation if given; a dash for None."""
    return "–" if value is None else form.format(value) + ("" if std is None else f" ± {form.format(std)}")


def table_rows(
    results: Results, columns: Sequence[Column], head: str = "category", with_mean: bool = True
) -> list[list[str]]:
    """A row for each result, with ± the deviation over seeds; several results get a last row "mean"."""
    rows = [[head, *(title for title, _, _ in columns)]]
    for name, values in results.items():
        std = values.get("std", {})
        rows.append([name, *(cell(values.get(key), form, std.get(key)) for _, key, form in columns)])
    if with_mean and len(results) > 1:
        rows.append(["mean", *(_last_cell(results, key, form) for _, key, form in columns)])
    return rows


def _last_cell(results: Results, key: str, form: str) -> str:
    if form == _COUNT:
        return cell(sum(values.get(key) or 0 for values in results.values()), form)
    return cell(mean_over_categories(results, key), form)


def announced_rows(results: Results) -> list[list[str]]:
    """Rows of false alarms and misses at the threshold of each rate in `measures.ANNOUNCED`."""
    known = {name: values["announced"] for name, values in results.items() if values.get("announced")}
    if not known:
        return [["category"]]
    rates = [rate for rate, _, _ in next(iter(known.values()))]
    titles = [f"{title} at {100 * rate:g}%" for title in ("false alarms", "missed") for rate in rates]
    measured = {name: [at[kind] for kind in (1, 2) for at in announced] for name, announced in known.items()}
    rows = [["category", *titles]]
    rows += [[name, *(cell(value, "{:.1%}") for value in values)] for name, values in measured.items()]
    if len(measured) > 1:
        rows.append(["mean", *(cell(mean(column), "{:.1%}") for column in zip(*measured.values()))])
    return rows


# ---------------------------------------------------------------------------------------------------------
# Text


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the head first, as a Markdown table with the row "mean" in bold."""
    lines = [["**mean**", *row[1:]] if row[0] == "mean" else row for row in rows]
    lines.insert(1, ["---", *("---:" for _ in rows[0][1:])])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def evaluation_columns(results: Results) -> list[Column]:
    """`EVALUATION_COLUMNS`, without those on changed pictures if these were not measured."""
    changed = any("stress" in values for values in results.values())
    return [column for column in EVALUATION_COLUMNS if changed or column[1] != "wrong_when_changed"]


def evaluation_table(results: Results) -> str:
    """The results of `evaluate` as a Markdown table; several categories get a last row of means."""
    return markdown(table_rows(results, evaluation_columns(results)))


def repair_table(results: Results) -> str:
    """The results of `evaluate_repair` as a Markdown table; several categories get a last row of means."""
    return markdown(table_rows(results, REPAIR_COLUMNS))


def folders_text(results: Results) -> str:
    """The folders that count as good and as defective, a line for each category."""
    return "\n".join(f"{name}: {values['folders']}" for name, values in results.items())
