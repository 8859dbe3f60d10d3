"""Does a verdict hold when light, noise, sharpness, compression or position of a picture change?

`robustness` judges the good pictures of one category by any verdict; `stress` does so for an inspector and
for defective pictures too, `forecast_changes` for a checkpoint that was just trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from diffad.method.nuisances import NUISANCES, Nuisance
from diffad.output import whole
from diffad.pictures.labels import look_over
from diffad.pictures.reading import read_image
from diffad.pictures.samples import Sample, labelled

if TYPE_CHECKING:
    from diffad.checkpoint import Checkpoint
    from diffad.inspector import Inspector

VERDICTS_EACH = 1 + len(NUISANCES)  # of `robustness` on a picture
FACTORS = (0.5, 1.0, 2.0, 4.0)  # of a nuisance's usual strength, at which curves of good pictures are judged
_REJECTED = 0.05  # share of additionally rejected good pictures up to which a category withstands a change
_NAMED = 3  # changes in a sentence, at most

Progress = Callable[[int, int], None]
Rejects = Callable[[npt.NDArray[np.uint8]], bool]  # the verdict on a picture uint8 [H, W, 3]
# number of the picture, change, strength, whether it is rejected
OnVerdict = Callable[[int, "Nuisance | None", float, bool], None]


def robustness(
    pictures: Sequence[npt.NDArray[np.uint8]],
    rejects: Rejects,
    seed: int = 0,
    on_verdict: OnVerdict | None = None,
) -> dict[str, Any]:
    """Judge good pictures of one category as they are and changed by each of `NUISANCES`.

    Args:
        pictures: uint8 [H, W, 3] each.
        rejects: the verdict.
        seed: of the changes' noise and directions.
        on_verdict: called after every verdict; without change and with strength 0 for a picture as it is.

    Returns, ready for JSON:
        good: number of pictures.
        rejected: how many of them are rejected as they are.
        verdicts: number of verdicts on changed pictures.
        changed_rejected: how many of these reject.
        newly_rejected: how many of those are on pictures that are accepted as they are.
        wrong: share of the pictures rejected as they are; None without a picture.
        beyond: newly rejected share of all verdicts on changed pictures; None without a picture.
        worst: the change that newly rejects most pictures; None if none does.
        changes: for each nuisance name, strength, unit, rejected, newly_rejected (counts), wrong and beyond
            (their shares).
    """
    judge = partial(_judged, pictures, rejects, seed=seed, on_verdict=on_verdict)
    as_they_are = judge()
    count = len(pictures)
    changes: list[dict[str, Any]] = []
    for change in NUISANCES:
        verdicts = judge(change, change.strength)
        newly = sum(now and not before for now, before in zip(verdicts, as_they_are, strict=True))
        changes.append({
            "name": change.name, "strength": change.strength, "unit": change.unit,
            "rejected": sum(verdicts), "newly_rejected": newly,
            "wrong": _part(sum(verdicts), count), "beyond": _part(newly, count),
        })  # fmt: skip
    newly = sum(change["newly_rejected"] for change in changes)
    worst = max(changes, key=lambda change: change["newly_rejected"])
    return {
        "good": count, "rejected": sum(as_they_are), "verdicts": len(NUISANCES) * count,
        "changed_rejected": sum(change["rejected"] for change in changes), "newly_rejected": newly,
        "wrong": _part(sum(as_they_are), count), "beyond": _part(newly, len(NUISANCES) * count),
        "worst": worst["name"] if newly else None, "changes": changes,
    }  # fmt: skip


def _judged(
    pictures: Sequence[npt.NDArray[np.uint8]], rejects: Rejects, change: Nuisance | None = None,
    strength: float = 0.0, *, seed: int, on_verdict: OnVerdict | None = None,
) -> list[bool]:  # fmt: skip
    verdicts = []
    for number, image in enumerate(pictures):
        rng = np.random.default_rng((seed, number))
        verdicts.append(bool(rejects(image if change is None else change.apply(image, strength, rng))))
        if on_verdict is not None:
            on_verdict(number, change, strength, verdicts[-1])
    return verdicts


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
    """Judge labelled pictures changed by each of `NUISANCES`, by category, against the usual threshold.

    Args:
        limit: of good and of defective pictures of a category, each; None: all.
        seed: of the changes' noise and directions.
        progress: called with (done, total) after every verdict.
        keep: called with every verdict: category, path, label (defective), change (None: as it is), strength
            and rejected.
        curves: also judge the good pictures at the other strengths of `FACTORS`.
        category: the profile to judge all pictures by; None: each one's own.
        settings: of `Inspector.inspect`.

    Returns:
        By category the keys of `robustness`, and defective (count) and found (share of the defective pictures
        that is rejected as they are, None without one). Each of changes also has found (of the defective
        pictures when changed), and with curves curve ([strength, share of good pictures rejected] at
        `FACTORS`) and bears (the strength at which 1 good picture in 20 more is rejected than unchanged; None
        if not even four times the usual one does that).

    Raises:
        DataError: if no picture is labelled, one cannot be read, or the model does not know its category.
    """
    groups = labelled(samples, limit)
    inspector.check_knows(groups if category is None else [category])
    groups, _, depths = look_over(groups)
    more = (len(FACTORS) - 1) * len(NUISANCES) if curves else 0  # verdicts on a good picture
    every = [sample for some in groups.values() for sample in some]
    total = sum(VERDICTS_EACH + more * (not sample.is_anomalous) for sample in every)
    done, result = 0, {}

    def on_verdict(
        some: Sequence[Sample], number: int, change: Nuisance | None, strength: float, rejected: bool
    ) -> None:
        nonlocal done
        done += 1
        sample = some[number]
        if keep is not None:
            keep(
                {
                    "category": sample.category,
                    "path": str(sample.image),
                    "label": bool(sample.is_anomalous),
                    "change": change and change.name,
                    "strength": strength,
                    "rejected": rejected,
                }
            )
        if progress is not None:
            progress(done, total)

    for name, group in groups.items():
        profile = category or name
        bits = None if depths[name] is None else inspector.bits(profile, depths[name])

        def rejects(image: npt.NDArray[np.uint8], profile: str = profile) -> bool:
            return inspector.inspect(image, category=profile, **settings).is_anomalous

        good, bad = ([one for one in group if bool(one.is_anomalous) is kind] for kind in (False, True))
        of_good, of_bad = ([read_image(one.image, bits) for one in some] for some in (good, bad))
        values = robustness(of_good, rejects, seed, partial(on_verdict, good))
        judge_good = partial(_judged, of_good, rejects, seed=seed, on_verdict=partial(on_verdict, good))
        judge_bad = partial(_judged, of_bad, rejects, seed=seed, on_verdict=partial(on_verdict, bad))
        values |= {"defective": len(bad), "found": _part(sum(judge_bad()), len(bad))}
        for change, of in zip(NUISANCES, values["changes"], strict=True):
            of["found"] = _part(sum(judge_bad(change, change.strength)), len(bad))
            if curves and good:
                of["curve"] = _curve(change, of["wrong"], judge_good)
                of["bears"] = _bears(of["curve"], values["wrong"])
        result[name] = values
    return result


def _curve(
    change: Nuisance, usual: float, judge: Callable[[Nuisance, float], list[bool]]
) -> list[list[float]]:
    """[strength, share of pictures rejected] at `FACTORS`; usual: the share at the usual strength."""
    points = []
    for factor in FACTORS:
        strength = factor * change.strength
        points.append([strength, usual if factor == 1 else float(np.mean(judge(change, strength)))])
    return points


def forecast_changes(
    checkpoint: Checkpoint, pictures: Mapping[str, Sequence[tuple[Path, int | None]]], device: str
) -> dict[str, dict[str, Any]]:
    """`robustness` of a checkpoint's categories, measured as by those who load it.

    pictures: good ones by category, files with their bits. Raises DataError.
    """
    from diffad.inspector import Inspector

    inspector = Inspector(checkpoint, device)

    def rejects(name: str, image: npt.NDArray[np.uint8]) -> bool:
        return inspector.inspect(image, name).is_anomalous

    return {
        name: robustness([read_image(path, bits) for path, bits in some], partial(rejects, name))
        for name, some in pictures.items()
    }


def in_words(values: Mapping[str, Any]) -> str:
    """A sentence about the `robustness` of a category.

    held_out, if among its keys: whether the model learned from none of these pictures.
    """
    newly, verdicts = values["newly_rejected"], values["verdicts"]
    bears = "bears" if newly <= _REJECTED * verdicts else "does not bear all"
    sentence = f"It {bears} changes of light, noise, sharpness, compression and position: "
    sentence += f"{newly or 'none'} of {verdicts} changed good pictures rejected"
    worst = sorted(values["changes"], key=lambda change: -change["newly_rejected"])[:_NAMED]
    if names := [change["name"] for change in worst if change["newly_rejected"]]:
        more = sum(change["newly_rejected"] > 0 for change in values["changes"]) > len(names)
        sentence += f" ({'most by ' if more else ''}{', '.join(names)})"
    if values["rejected"]:
        sentence += f", beside {values['rejected']} of {values['good']} rejected as they are"
    if "held_out" in values:
        flatters = "they are among those learned from, which flatters"
        sentence += f"; {'held out' if values['held_out'] else flatters}"
    return f"{sentence}."


def _bears(curve: Sequence[Sequence[float]], wrong: float) -> float | None:
    """The strength at which the share of rejected good pictures exceeds `wrong` + 1 in 20, if it ever does.

    It is interpolated between the points [strength, share] of a curve.
    """
    before = (0.0, wrong)
    for strength, share in curve:
        if share > wrong + _REJECTED:
            part = (wrong + _REJECTED - before[1]) / (share - before[1])
            return before[0] + max(0.0, part) * (strength - before[0])
        before = (strength, share)
    return None


def stress_table(result: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Rows of cells, the head first, a column for each category.

    Good pictures rejected by each change at its usual strength, with the strength that the category bears in
    brackets where curves were judged; then the summary of `robustness`, and the defects found.
    """

    def cell(of: Mapping[str, Any], good: int) -> str:
        bears = f" ({of['bears']:.3g})" if of.get("bears") is not None else ""
        return f"{of['rejected']} of {good}{bears}" if good else "–"

    every = result.values()
    rows = [["good pictures rejected", *result]]
    rows.append(["unchanged", *(cell(values, values["good"]) for values in every)])
    for number, change in enumerate(NUISANCES):
        strength = f"{change.name}, {abs(change.strength):g} {change.unit}"
        rows.append([strength, *(cell(values["changes"][number], values["good"]) for values in every)])
    rows.append(["wrong when changed", *(_share(values["beyond"]) for values in every)])
    rows.append(["worst change", *(values["worst"] or "–" for values in every)])
    if any(values.get("defective") for values in every):
        rows.append(["defects found, unchanged", *(_share(values["found"]) for values in every)])
        rows.append(
            [
                "defects found, changed",
                *(_share(_mean([change["found"] for change in values["changes"]])) for values in every),
            ]
        )
    return rows


def robustness_rows(results: Mapping[str, Mapping[str, Any]], head: str = "category") -> list[list[str]]:
    """A row for each category's `robustness`, the head first, and for several categories their mean."""
    rows = [[head, "rejected as they are", "rejected when changed", "wrong when changed", "worst change"]]
    for name, of in results.items():
        worst = max(of["changes"], key=lambda change: change["newly_rejected"])
        rows.append([
            name, f"{of['rejected']} of {of['good']}", f"{of['changed_rejected']} of {of['verdicts']}",
            _share(of["beyond"]),
            f"{of['worst']}: {worst['newly_rejected']} of {of['good']}" if of["worst"] else "–",
        ])  # fmt: skip
    if len(results) > 1 and head == "category":
        rows.append(["mean", "", "", _share(_mean([of["beyond"] for of in results.values()])), ""])
    return rows


def stress_plot(result: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Plot the share of good pictures rejected over the strength of each nuisance, a line for each category.

    result: of `stress` with curves.
    """
    from matplotlib.figure import Figure

    columns = 4
    figure = Figure(figsize=(13, 2.5 * -(-len(NUISANCES) // columns)), dpi=110, layout="constrained")
    for number, change in enumerate(NUISANCES):
        axes = figure.add_subplot(-(-len(NUISANCES) // columns), columns, number + 1)
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
    with whole(path, sync=False) as partial:
        figure.savefig(partial, format=path.suffix[1:])


def _part(count: int, of: int) -> float | None:
    return count / of if of else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
