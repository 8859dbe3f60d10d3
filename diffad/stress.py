"""Does a verdict hold? Good pictures changed as a factory changes them, and defective ones changed alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffad.data import Sample, labelled, read_image
from diffad.labels import look_over
from diffad.nuisances import NUISANCES, Nuisance
from diffad.output import whole

if TYPE_CHECKING:
    from diffad.inspector import Inspector

FACTORS = (0.5, 1.0, 2.0, 4.0)  # of a nuisance's usual strength, at which good pictures are judged
_REJECTED = 0.05  # share of good pictures whose rejection ends what a category bears

Progress = Callable[[int, int], None]


def stress(
    inspector: Inspector,
    samples: Sequence[Sample],
    limit: int | None = 8,
    seed: int = 0,
    progress: Progress | None = None,
    **settings: Any,
) -> dict[str, dict[str, Any]]:
    """Judge labelled pictures changed by each of `NUISANCES`, by category, against the usual threshold.

    limit: at most so many good and so many defective pictures a category. seed: of the changes' noise and
    directions. settings go to `Inspector.inspect`. progress(done, total) is called after every verdict.

    Keys of a category: good, defective: counts; wrong, found: shares of the good pictures rejected and of the
    defective ones rejected, unchanged; changes: a dict a nuisance with name, strength, unit, wrong and found
    at the usual strength, beyond: wrong less those that are wrong unchanged, bears: the strength at which
    1 good picture in 20 more than unchanged is rejected, None if not even four times the usual one does that;
    curve: [strength, wrong] at `FACTORS`. Shares lie in [0, 1], None where there is no such picture.
    Raises DataError if no picture is labelled, cannot be read, or the model does not know its category.
    """
    groups = labelled(samples, limit)
    inspector.check_knows(groups)
    groups, _, depths = look_over(groups)
    each = 1 + len(NUISANCES) * len(FACTORS), 1 + len(NUISANCES)  # verdicts a good and a defective picture
    total = sum(each[bool(sample.is_anomalous)] for group in groups.values() for sample in group)
    done = 0

    def rejected(category: str, image: np.ndarray) -> bool:
        nonlocal done
        verdict = inspector.inspect(image, category=category, **settings).is_anomalous
        done += 1
        if progress is not None:
            progress(done, total)
        return verdict

    result = {}
    for category, group in groups.items():
        bits = inspector.bits(category, depths[category])
        pictures = [(read_image(sample.image, bits), bool(sample.is_anomalous)) for sample in group]
        good, bad = ([image for image, anomalous in pictures if anomalous is kind] for kind in (False, True))

        def share(images: list[np.ndarray], change: Nuisance | None, strength: float, of: str = category):
            """Of the pictures rejected once they are changed."""
            verdicts = []
            for number, image in enumerate(images):
                rng = np.random.default_rng((seed, number))
                verdicts.append(rejected(of, image if change is None else change.apply(image, strength, rng)))
            return float(np.mean(verdicts)) if verdicts else None

        wrong, found = share(good, None, 0), share(bad, None, 0)
        changes = []
        for change in NUISANCES:
            curve = [[factor * change.strength, share(good, change, factor * change.strength)]
                     for factor in FACTORS]
            usual = curve[FACTORS.index(1.0)][1]
            changes.append({
                "name": change.name, "strength": change.strength, "unit": change.unit, "wrong": usual,
                "beyond": None if usual is None else max(0.0, usual - wrong),
                "found": share(bad, change, change.strength),
                "bears": None if usual is None else _bears(curve, wrong), "curve": curve,
            })  # fmt: skip
        result[category] = {
            "good": len(good), "defective": len(bad), "wrong": wrong, "found": found, "changes": changes,
        }  # fmt: skip
    return result


def _bears(curve: Sequence[Sequence[float]], wrong: float) -> float | None:
    """The strength at which the share of rejected good pictures passes `wrong` + 1 in 20, between the points
    of a curve [strength, share], from 0 on; None if it never does.
    """
    before = (0.0, wrong)
    for strength, share in curve:
        if share > wrong + _REJECTED:
            part = (wrong + _REJECTED - before[1]) / (share - before[1])
            return before[0] + max(0.0, part) * (strength - before[0])
        before = (strength, share)
    return None


def stress_table(result: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Rows of cells, the head first: good pictures rejected by each change at its usual strength, category by
    category, with the strength that each bears in brackets; last the mean and the largest over all changes.
    """
    def cell(change: Mapping[str, Any]) -> str:
        if change["wrong"] is None:
            return "–"
        bears = "" if change["bears"] is None else f" ({change['bears']:.3g})"
        return f"{change['wrong']:.0%}{bears}"

    rows = [["good pictures rejected", *result]]
    rows.append(["unchanged", *(_share(values["wrong"]) for values in result.values())])
    for number, change in enumerate(NUISANCES):
        strength = f"{change.name}, {abs(change.strength):g} {change.unit}"
        rows.append([strength, *(cell(values["changes"][number]) for values in result.values())])
    rows.append(["mean, beyond unchanged", *(
        _share(_mean([change["beyond"] for change in values["changes"]])) for values in result.values())])
    rows.append(["defects found, unchanged", *(_share(values["found"]) for values in result.values())])
    rows.append(["defects found, changed", *(
        _share(_mean([change["found"] for change in values["changes"]])) for values in result.values())])
    return rows


def stress_plot(result: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """A panel a nuisance: the share of good pictures rejected over its strength, a line a category."""
    from matplotlib.figure import Figure

    columns = 4
    figure = Figure(figsize=(13, 2.5 * -(-len(NUISANCES) // columns)), dpi=110, layout="constrained")
    for number, change in enumerate(NUISANCES):
        axes = figure.add_subplot(-(-len(NUISANCES) // columns), columns, number + 1)
        for name, values in result.items():
            points = [(0.0, values["wrong"]), *values["changes"][number]["curve"]]
            if values["wrong"] is not None:
                strengths, shares = zip(*points)
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
    with whole(path, sync=False) as partial:
        figure.savefig(partial, format=path.suffix[1:])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
