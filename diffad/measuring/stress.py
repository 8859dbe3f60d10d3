"""Stress test: judge labelled pictures changed in light, noise, sharpness, compression and position."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from diffad.measuring.evaluation import bits_to_read
from diffad.measuring.tables import Progress, Results, cell, mean, step_counter
from diffad.method.nuisances import NUISANCES, Nuisance
from diffad.output import whole
from diffad.pictures.labels import look_over
from diffad.pictures.reading import read_image
from diffad.pictures.samples import Sample, labelled
from diffad.teaching.robustness import TOLERATED, VERDICTS_EACH, Rejects, judged, robustness, share

if TYPE_CHECKING:
    from diffad.inspector import Inspector

FACTORS = (0.5, 1.0, 2.0, 4.0)  # of a nuisance's usual strength, for the curves of good pictures
_PLOTS_PER_ROW = 4

# the samples, the number of one, its change, strength, whether it is rejected
_OnVerdict = Callable[[Sequence[Sample], int, "Nuisance | None", float, bool], None]


def stress(
    inspector: Inspector,
    samples: Sequence[Sample],
    limit: int | None = 8,
    seed: int = 0,
    progress: Progress | None = None,
    keep: Callable[[dict[str, Any]], None] | None = None,
    curves: bool = False,
    category: str | None = None,
    **settings: Any,
) -> dict[str, dict[str, Any]]:
    """Judge labelled pictures changed by each of `NUISANCES`, against the usual threshold.

    Args:
        inspector: the model.
        samples: labelled pictures.
        limit: at most this many good and this many defective pictures per category; None for all.
        seed: of the changes' noise and directions.
        progress: called with (done, total) after every verdict.
        keep: called with every verdict: category, path, label (defective), change (None if unchanged),
            strength and rejected.
        curves: also judge the good pictures at the other strengths of `FACTORS`.
        category: the profile that judges all pictures; None for each picture's own.
        settings: passed to `Inspector.inspect`.

    Returns:
        By category, the keys of `robustness`, and
        defective: number of defective pictures.
        found: share of these that is rejected unchanged; None without any.
        Each entry of changes also has found (the same when changed) and, with curves,
        curve: [strength, share of good pictures rejected] at `FACTORS`;
        bears: the strength that makes 1 in 20 more good pictures rejected; None if four times the usual
            strength does not.

    Raises:
        DataError: no picture is labelled, one cannot be read, or the model does not know its category.
    """
    groups = labelled(samples, limit)
    inspector.check_knows(groups if category is None else [category])
    groups, _, depths = look_over(groups)
    more = (len(FACTORS) - 1) * len(NUISANCES) if curves else 0  # additional verdicts on a good picture
    every = [sample for some in groups.values() for sample in some]
    step = step_counter(progress, sum(VERDICTS_EACH + more * (not one.is_anomalous) for one in every))

    def on_verdict(
        some: Sequence[Sample], number: int, change: Nuisance | None, strength: float, rejected: bool
    ) -> None:
        sample = some[number]
        if keep is not None:
            keep({
                "category": sample.category, "path": str(sample.image), "label": bool(sample.is_anomalous),
                "change": change and change.name, "strength": strength, "rejected": rejected,
            })  # fmt: skip
        step()

    def rejects(profile: str, image: npt.NDArray[np.uint8]) -> bool:
        return inspector.inspect(image, category=profile, **settings).is_anomalous

    result = {}
    for name, group in groups.items():
        profile = category or name
        bits = bits_to_read(inspector, profile, depths[name])
        result[name] = _stressed(group, bits, partial(rejects, profile), seed, on_verdict, curves)
    return result


def _stressed(
    group: Sequence[Sample], bits: int | None, rejects: Rejects, seed: int, on_verdict: _OnVerdict,
    curves: bool,
) -> dict[str, Any]:  # fmt: skip
    """The result of `stress` for one category."""
    good, bad = ([one for one in group if bool(one.is_anomalous) is kind] for kind in (False, True))
    of_good, of_bad = ([read_image(one.image, bits) for one in some] for some in (good, bad))
    judge_good = partial(judged, of_good, rejects, seed=seed, on_verdict=partial(on_verdict, good))
    judge_bad = partial(judged, of_bad, rejects, seed=seed, on_verdict=partial(on_verdict, bad))
    values = robustness(of_good, rejects, seed, partial(on_verdict, good))
    values |= {"defective": len(bad), "found": share(sum(judge_bad()), len(bad))}
    for change, of in zip(NUISANCES, values["changes"], strict=True):
        of["found"] = share(sum(judge_bad(change, change.strength)), len(bad))
        if curves and good:
            of["curve"] = _curve(change, of["wrong"], judge_good)
            of["bears"] = _bears(of["curve"], values["wrong"])
    return values


def _curve(
    change: Nuisance, usual: float, judge: Callable[[Nuisance, float], list[bool]]
) -> list[list[float]]:
    """[strength, share of pictures rejected] at `FACTORS`; usual: the share at the usual strength."""
    points = []
    for factor in FACTORS:
        strength = factor * change.strength
        points.append([strength, usual if factor == 1 else float(np.mean(judge(change, strength)))])
    return points


def _bears(curve: Sequence[Sequence[float]], wrong: float) -> float | None:
    """The strength at which the share of rejected good pictures exceeds `wrong` + 1 in 20, if it does.

    It is interpolated between the points [strength, share] of the curve.
    """
    before = (0.0, wrong)
    for strength, rejected in curve:
        if rejected > wrong + TOLERATED:
            part = (wrong + TOLERATED - before[1]) / (rejected - before[1])
            return before[0] + max(0.0, part) * (strength - before[0])
        before = (strength, rejected)
    return None


# ---------------------------------------------------------------------------------------------------------
# Tables and plot


def stress_table(result: Results) -> list[list[str]]:
    """Rows of cells, the head first, with a column for each category.

    The rows are the good pictures rejected by each change at its usual strength (in brackets the strength
    that the category tolerates, where curves were measured), the summary of `robustness`, and the defects
    found.
    """

    def count(of: Mapping[str, Any], good: int) -> str:
        bears = f" ({of['bears']:.3g})" if of.get("bears") is not None else ""
        return f"{of['rejected']} of {good}{bears}" if good else "–"

    every = result.values()
    rows = [["good pictures rejected", *result]]
    rows.append(["unchanged", *(count(values, values["good"]) for values in every)])
    for number, change in enumerate(NUISANCES):
        strength = f"{change.name}, {abs(change.strength):g} {change.unit}"
        rows.append([strength, *(count(values["changes"][number], values["good"]) for values in every)])
    rows.append(["wrong when changed", *(cell(values["beyond"], "{:.1%}") for values in every)])
    rows.append(["worst change", *(values["worst"] or "–" for values in every)])
    if any(values.get("defective") for values in every):
        found = [mean(change["found"] for change in values["changes"]) for values in every]
        rows.append(["defects found, unchanged", *(cell(values["found"], "{:.1%}") for values in every)])
        rows.append(["defects found, changed", *(cell(value, "{:.1%}") for value in found)])
    return rows


def robustness_rows(results: Results, head: str = "category") -> list[list[str]]:
    """A row for each category's `robustness`, the head first; several categories get a last row of means."""
    rows = [[head, "rejected as they are", "rejected when changed", "wrong when changed", "worst change"]]
    for name, of in results.items():
        worst = max(of["changes"], key=lambda change: change["newly_rejected"])
        rows.append([
            name, f"{of['rejected']} of {of['good']}", f"{of['changed_rejected']} of {of['verdicts']}",
            cell(of["beyond"], "{:.1%}"),
            f"{of['worst']}: {worst['newly_rejected']} of {of['good']}" if of["worst"] else "–",
        ])  # fmt: skip
    if len(results) > 1 and head == "category":
        rows.append(["mean", "", "", cell(mean(of["beyond"] for of in results.values()), "{:.1%}"), ""])
    return rows


def stress_plot(result: Results, path: Path) -> None:
    """Plot the share of good pictures rejected over the strength of each change, a line for each category.

    Args:
        result: of `stress` with curves.
        path: the picture's file; its ending determines the format.
    """
    from matplotlib.figure import Figure

    rows = -(-len(NUISANCES) // _PLOTS_PER_ROW)
    figure = Figure(figsize=(13, 2.5 * rows), dpi=110, layout="constrained")
    for number, change in enumerate(NUISANCES):
        axes = figure.add_subplot(rows, _PLOTS_PER_ROW, number + 1)
        for name, values in result.items():
            if values["good"]:
                strengths, shares = zip((0.0, values["wrong"]), *values["changes"][number]["curve"])
                axes.plot(np.abs(strengths), shares, marker="o", markersize=4, label=name)
        axes.axvline(abs(change.strength), color="#d5dae2", zorder=0)
        axes.set_ylim(-0.04, 1.04)
        axes.set_title(change.name, loc="left", fontsize=10)
        axes.set_xlabel(change.unit, fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Share of good pictures rejected; the line marks the usual strength", x=0.01, ha="left")
    handles, names = figure.axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=9)
    with whole(path, sync=False) as partial_file:
        figure.savefig(partial_file, format=path.suffix[1:])
