"""Ablations: what each choice of the method is worth, on labelled pictures, from one checkpoint.

Every setting fuses maps of the same noise and the same network answers: of each picture the network is asked
once per timestep and draw, the answers are scored in all ways, and the maps are kept (fp16) until their
category is measured. Labels and masks meet the maps in the metrics only; what has to be fitted is fitted on
training pictures. Pictures are inspected whole, at the model's size.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffad.inspector import Inspector
from diffad.method.calibration import Calibration
from diffad.method.devices import sharing
from diffad.method.diffusion import Prediction
from diffad.method.fusion import branch_weights
from diffad.method.image_score import top_mean
from diffad.method.metrics import aupro, auroc, pixel_auroc
from diffad.method.scoring import TIMESTEPS, RawMaps, denoise_all, evidence, shifted_embeddings
from diffad.pictures.depth import most, read_in_words
from diffad.pictures.labels import folders_in_words, look_over
from diffad.pictures.masks import check_readable, mask_inside
from diffad.pictures.reading import DataError, read_image
from diffad.pictures.samples import Sample, labelled

ALPHA = 0.5  # unless α is what varies
ALPHAS = tuple(i / 10 for i in range(11))
SINGLE_TIMESTEPS = (20, 50, 100, 200, 400, 600)
DRAWS = (1, 2, 4, 8)
# kind, stride of the KL
PIXEL_SCORES = (("rgb", 0), ("kl", 1), ("kl", 4), ("kl", 20), ("uncertainty", 0), ("perceptual", 0))
TRAINING_PICTURES = 24  # on which the pixel scores that a checkpoint does not store are standardised
METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Setting:
    """A map as a weighted sum of kept maps. label: what the rows of tables and the plots' axes call it.
    series: which line of the plot it is on, if a table has several. value: where it is on the line, if it is
    a number. default: how an inspection does it unless told otherwise.
    """

    label: str
    weights: Mapping[str, float]
    series: str = ""
    value: float | None = None
    default: bool = False


@dataclass(frozen=True)
class Table:
    """One ablation. name: for files. title, axis, about: for people; about says what the rows compare."""

    name: str
    title: str
    axis: str
    about: str
    settings: tuple[Setting, ...]


def ablate(
    inspector: Inspector,
    samples: Iterable[Sample],
    singles: Sequence[Inspector] = (),
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure every setting of every table on the labelled test pictures among the samples; ready for JSON.

    samples: MVTec layout; normal pictures of the split "train" serve to standardise pixel scores that the
    checkpoint does not store, without them that table is left out. singles: inspectors trained on one
    category each; the first that knows a category stands for it. limit: at most so many good and so many
    defective pictures a category, evenly spread over the kinds of defects.

    Returns checkpoint, seed, pictures {category: {good, defective}}, folders {category: which were taken as
    good and as defective}, notes [sentences] and tables: a list of
    {name, title, axis, about, rows}, where a row is {label, series, value, default, categories: {category:
    {image_auroc, pixel_auroc, aupro}}, mean: {the same}}; metrics in [0, 1], AUPRO to a false positive rate
    of 0.3, None where undefined. progress(done, total) counts pictures and settings.
    Raises DataError if no test picture has a label, a category is unknown to the model, a file cannot be
    read, or a single model has another size.
    """
    samples = list(samples)
    groups = labelled(samples, limit)
    experts = {name: next((one for one in singles if name in one.categories), None) for name in groups}
    _check(inspector, experts)
    groups, doubts, found = look_over(groups, [sample for sample in samples if sample.split == "train"])
    training = {name: _training_pictures(samples, name, seed) for name in groups}
    learned = check_readable(training)
    found = {name: most(found[name], learned[name]) for name in groups}
    bits = {name: inspector.bits(name, found[name]) for name in groups}
    scores = _pixel_scores(inspector) if any(training.values()) else {}
    tables = _tables(inspector, scores, any(experts.values()))
    settings = {_key(setting): setting for table in tables for setting in table.settings}
    total = sum(map(len, groups.values())) + len(groups) * len(settings)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    measured: dict[str, dict[frozenset, dict[str, float | None]]] = {}
    for name, group in groups.items():
        fitted = _fit(inspector, name, training[name], scores, seed, bits[name])
        maps, masks = [], []
        for sample in group:
            image = read_image(sample.image, bits[name])
            with sharing(inspector.device):
                maps.append(_maps(inspector, image, name, fitted, scores, experts[name], seed))
            masks.append(mask_inside(sample, image.shape[:2], inspector.size_of(name)))
            step()
        labels = [bool(sample.is_anomalous) for sample in group]
        measured[name] = {}
        for key, setting in settings.items():
            if setting.weights.keys() <= maps[0].keys():
                fused = [_fused(one, setting.weights) for one in maps]
                measured[name][key] = _measured(fused, masks, labels, inspector.size_of(name))
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
            *(f"{name}: {read_in_words(bits[name], seen)}" for name, seen in found.items() if seen),
            *(f"{name}: {note}" for name, notes in doubts.items() for note in notes),
        ],
        "tables": [_results(table, measured) for table in tables],
    }


# ---------------------------------------------------------------------------------------------------------
# What is compared


def _tables(inspector: Inspector, scores: Mapping[str, tuple[str, int]], with_singles: bool) -> list[Table]:
    usual = _fusion(ALPHA, TIMESTEPS)
    several = {str(t): (t,) for t in SINGLE_TIMESTEPS}
    several |= {_listed(TIMESTEPS): TIMESTEPS, "all": SINGLE_TIMESTEPS}
    series = {"both branches": ALPHA, "pixel branch": 1.0, "feature branch": 0.0}
    tables = [
        Table(
            "alpha", "Balance of the branches", "α",
            "α: 0 features only, 1 pixels only; at 0.5 a σ of the pixels counts a twentieth of a σ of the "
            "features.",
            tuple(
                Setting(f"{alpha:g}", _fusion(alpha, TIMESTEPS), value=alpha, default=alpha == ALPHA)
                for alpha in ALPHAS
            ),
        ),
        Table(
            "timesteps", "Single timesteps against averages", "t (of several: the mean)",
            f"Each timestep alone and means of several, both branches at α = {ALPHA:g} and either alone.",
            tuple(
                Setting(label, _fusion(alpha, chosen), line, chosen[0] if len(chosen) == 1 else None,
                        default=(alpha, chosen) == (ALPHA, TIMESTEPS))
                for line, alpha in series.items() for label, chosen in several.items()
            ),
        ),
        Table(
            "draws", "Noise draws", "noise draws a timestep",
            "Scores are averaged over so many draws of noise; the calibration is that of one draw.",
            tuple(
                Setting(str(draws), usual if draws == 1 else {f"draws {draws}": 1.0}, value=draws,
                        default=draws == 1)
                for draws in DRAWS
            ),
        ),
        Table(
            "normalisation", "Normalisation of the maps", "normalised by",
            "Each map in standard deviations of good pictures' maps, or of its own values.",
            (
                Setting("good pictures", usual, default=True),
                Setting("its own values", {"per image": 1.0}),
            ),
        ),
    ]  # fmt: skip
    if with_singles:
        both = Setting("one for all", usual, default=True), Setting("one per category", {"single": 1.0})
        about = "The same pictures, judged by one model or by the one trained on that category alone."
        tables.append(Table("single", "One model against one per category", "model", about, both))
    if scores:
        stored = _score_name(inspector.pixel_score, inspector.stride)
        about = (
            f"The pixel branch alone, mean of t = {_listed(TIMESTEPS)}; the checkpoint uses {stored}. "
            f"The KL's variance was learned at a stride of {inspector.stride}."
        )
        rows = (
            Setting(name, _fusion(1.0, TIMESTEPS) if name == stored else {name: 1.0}, default=name == stored)
            for name in dict.fromkeys([*scores, stored])
        )
        tables.append(Table("pixel_scores", "Pixel scores", "pixel score", about, tuple(rows)))
    return tables


def _fusion(alpha: float, timesteps: Sequence[int]) -> dict[str, float]:
    """(11) as weights of the maps of each branch and timestep."""
    pixel, feature = branch_weights(alpha)
    weights = {f"pixel {t}": pixel / len(timesteps) for t in timesteps}
    weights |= {f"feature {t}": feature / len(timesteps) for t in timesteps}
    return {name: weight for name, weight in weights.items() if weight}


def _pixel_scores(inspector: Inspector) -> dict[str, tuple[str, int]]:
    """Name → kind and stride of those whose statistics the checkpoint does not hold."""
    named = {_score_name(kind, stride): (kind, stride) for kind, stride in PIXEL_SCORES}
    named.pop(_score_name(inspector.pixel_score, inspector.stride), None)
    return named


def _score_name(kind: str, stride: int) -> str:
    return f"kl, stride {stride}" if kind == "kl" else kind


def _listed(timesteps: Sequence[int]) -> str:
    return ", ".join(map(str, timesteps))


def _key(setting: Setting) -> frozenset:
    return frozenset(setting.weights.items())


# ---------------------------------------------------------------------------------------------------------
# Maps


class _Answers:
    """The network's answers for one picture: asked once, then scored as often as wanted."""

    @torch.no_grad()
    def __init__(self, inspector: Inspector, image: np.ndarray, category: str, seed: int) -> None:
        self.inspector, self.seed = inspector, seed
        self.tiling = inspector.whole(image, category)
        (self.tile,) = self.tiling.tiles
        self.x_start = self.tiling.square(image, self.tile)[None].to(inspector.device)
        embed = inspector.extractor.embed
        self.cell = inspector.extractor.cell
        self.embeddings = shifted_embeddings(embed, self.x_start, embed(self.x_start), SINGLE_TIMESTEPS)
        self.profile = inspector.profiles[category]
        self.known: dict[tuple[int, int], Prediction] = {}

    @torch.no_grad()
    def ask(self, timesteps: Sequence[int], draws: int = 1) -> None:
        *_, answers = denoise_all(
            self.inspector.schedule, self._denoise, self.x_start, timesteps, self.seed, draws, self.cell
        )
        keys = [(t, draw) for t in timesteps for draw in range(draws)]  # as denoise_all orders its batch
        for index, key in enumerate(keys):
            self.known[key] = Prediction(*(value[index : index + 1] for value in answers))

    def _denoise(self, x_t: Tensor, t: Tensor) -> Prediction:
        """As many at a time as an inspection asks for: less memory, and bf16 rounds alike."""
        size = len(TIMESTEPS)
        parts = [self.inspector.network(*part) for part in zip(x_t.split(size), t.split(size))]
        return Prediction(*(torch.cat(values) for values in zip(*parts)))

    @torch.no_grad()
    def raw(
        self, timesteps: Sequence[int], draws: int = 1, kind: str | None = None, stride: int | None = None
    ) -> RawMaps:
        """Maps from what was asked; by default as the checkpoint scores."""
        rows = [self.known[t, draw] for t in timesteps for draw in range(draws)]
        answers = Prediction(*(torch.cat(values) for values in zip(*rows)))
        found = evidence(
            self.inspector.schedule, lambda x_t, t: answers, self.x_start, self.embeddings, timesteps,
            perceive=self.inspector.extractor.perceptual, seed=self.seed, draws=draws,
            kind=kind or self.inspector.pixel_score,
            stride=self.inspector.stride if stride is None else stride,
        )  # fmt: skip
        return self.profile.raw_maps(*found, self.embeddings[0].features, self.x_start.shape[-1], timesteps)

    def kept(self, maps: Tensor) -> np.ndarray:
        """[1, size, size] → fp16 [h, w], where the picture is."""
        limit = torch.finfo(torch.float16).max
        cells = self.tiling.to_cells(maps[0].cpu(), self.tile)
        return cells.clamp(-limit, limit).half().numpy()


def _maps(
    inspector: Inspector,
    image: np.ndarray,
    category: str,
    fitted: Mapping[str, Calibration],
    scores: Mapping[str, tuple[str, int]],
    expert: Inspector | None,
    seed: int,
) -> dict[str, np.ndarray]:
    """All maps of one picture that settings are made of, fp16 [h, w] in the rectangle that the picture fills
    at the model's resolution.
    """
    answers = _Answers(inspector, image, category, seed)
    answers.ask(TIMESTEPS, max(DRAWS))
    answers.ask([t for t in SINGLE_TIMESTEPS if t not in TIMESTEPS])

    single = answers.profile.calibration.standardise(answers.raw(SINGLE_TIMESTEPS))
    kept = {f"pixel {t}": answers.kept(single.pixel[:, i]) for i, t in enumerate(SINGLE_TIMESTEPS)}
    kept |= {f"feature {t}": answers.kept(single.feature[:, i]) for i, t in enumerate(SINGLE_TIMESTEPS)}
    for draws in DRAWS[1:]:
        standard = answers.profile.calibration.standardise(answers.raw(TIMESTEPS, draws))
        kept[f"draws {draws}"] = answers.kept(_fuse(standard))
    kept["per image"] = answers.kept(_fuse(_by_its_own_values(answers)))
    for name, calibration in fitted.items():
        standard = calibration.standardise(answers.raw(TIMESTEPS, 1, *scores[name]))
        kept[name] = answers.kept(standard.pixel.mean(dim=1))
    if expert is not None:
        other = _Answers(expert, image, category, seed)
        other.ask(TIMESTEPS)
        kept["single"] = other.kept(_fuse(other.profile.calibration.standardise(other.raw(TIMESTEPS))))
    return kept


def _fuse(maps: RawMaps) -> Tensor:
    """(11) at the usual α: [1, n_t, size, size] of both branches → [1, size, size]. Without the plain
    features, where a category has them: it is the network's choices that are compared.
    """
    pixel, feature = branch_weights(ALPHA)
    return pixel * maps.pixel.mean(dim=1) + feature * maps.feature.mean(dim=1)


def _by_its_own_values(answers: _Answers) -> RawMaps:
    """Raw maps, each minus its mean and divided by its standard deviation over the picture, padding apart."""
    inside = answers.tiling.inside(answers.tile).to(answers.x_start.device)

    def normalised(maps: Tensor) -> Tensor:
        there = maps[..., inside]
        mean, std = there.mean(dim=-1)[..., None, None], there.std(dim=-1)[..., None, None]
        return (maps - mean) / std.clamp(min=1e-8)

    raw = answers.raw(TIMESTEPS)
    return RawMaps(normalised(raw.pixel), normalised(raw.feature), TIMESTEPS)


def _fit(
    inspector: Inspector,
    category: str,
    pictures: Sequence[Sample],
    scores: Mapping[str, tuple[str, int]],
    seed: int,
    bits: int | None = None,
) -> dict[str, Calibration]:
    """Statistics of the pixel scores that the checkpoint does not store, from normal training pictures, with
    places weighed as the checkpoint weighs them.
    """
    if not pictures:
        return {}
    maps: dict[str, list[Tensor]] = {name: [] for name in scores}
    for sample in pictures:
        with sharing(inspector.device):
            answers = _Answers(inspector, read_image(sample.image, bits), category, seed)
            answers.ask(TIMESTEPS)
            for name, (kind, stride) in scores.items():
                maps[name].append(answers.raw(TIMESTEPS, 1, kind, stride).pixel.cpu())
    by_place = bool((inspector.profiles[category].calibration.level != 1).any())
    return {
        name: Calibration.fit(RawMaps(torch.cat(some), torch.cat(some), TIMESTEPS), by_place)
        for name, some in maps.items()
    }


def _fused(maps: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    return sum(np.float32(weight) * maps[name].astype(np.float32) for name, weight in weights.items())


# ---------------------------------------------------------------------------------------------------------
# Pictures and results


def _training_pictures(samples: Sequence[Sample], category: str, seed: int) -> list[Sample]:
    normal = [s for s in samples if s.category == category and s.split == "train" and not s.is_anomalous]
    return random.Random(seed).sample(normal, min(TRAINING_PICTURES, len(normal)))


def _check(inspector: Inspector, experts: Mapping[str, Inspector | None]) -> None:
    inspector.check_knows(experts)
    for name, expert in experts.items():
        if expert is not None and expert.size_of(name) != (size := inspector.size_of(name)):
            raise DataError(
                f"{expert.name} works at {expert.size_of(name)} px, {inspector.name} at {size} px: "
                "give models of one size"
            )


def _measured(
    maps: Sequence[np.ndarray], masks: Sequence[np.ndarray | None], labels: Sequence[bool], size: int
) -> dict[str, float | None]:
    drawn = [(one, mask) for one, mask in zip(maps, masks, strict=True) if mask is not None]
    pixels = tuple(zip(*drawn, strict=True))
    return {
        "image_auroc": auroc([top_mean(one, size) for one in maps], labels),
        "pixel_auroc": pixel_auroc(*pixels) if drawn else None,
        "aupro": aupro(*pixels) if drawn else None,
    }


def _results(table: Table, measured: Mapping[str, Mapping[frozenset, dict]]) -> dict[str, Any]:
    """The table with its numbers, over the categories that have every one of its settings."""
    keys = [_key(setting) for setting in table.settings]
    names = [name for name, values in measured.items() if all(key in values for key in keys)]
    rows = []
    for setting, key in zip(table.settings, keys, strict=True):
        values = {name: measured[name][key] for name in names}
        rows.append({
            "label": setting.label, "series": setting.series, "value": setting.value,
            "default": setting.default, "categories": values,
            "mean": {metric: _mean([one[metric] for one in values.values()]) for metric in METRICS},
        })  # fmt: skip
    return {"name": table.name, "title": table.title, "axis": table.axis, "about": table.about, "rows": rows}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _notes(training: Mapping[str, list[Sample]], experts: Mapping[str, Inspector | None]) -> list[str]:
    notes = []
    if bare := [name for name, pictures in training.items() if not pictures]:
        notes.append(
            f"Without train/good nothing standardises other pixel scores: not compared for {', '.join(bare)}."
        )
    if named := [f"{name} by {expert.name}" for name, expert in experts.items() if expert is not None]:
        notes.append(f"One per category: {', '.join(named)}.")
        if left := [name for name, expert in experts.items() if expert is None]:
            notes.append(f"No single model knows {', '.join(left)}: not in that table.")
    return notes


def ablation_report(result: dict[str, Any], plots: Mapping[str, str] | None = None) -> str:
    """The result of `ablate` as Markdown. plots: file names of pictures by table name, shown under each."""
    pictures = ", ".join(
        f"{name} ({count['good']} good, {count['defective']} defective)"
        for name, count in result["pictures"].items()
    )
    lines = [
        f"# Ablations of {result['checkpoint']}", "",
        f"Pictures: {pictures}. Unless it varies: α = {ALPHA:g}, t = {_listed(TIMESTEPS)}, one noise draw, "
        f"seed {result['seed']}. Cells: {' / '.join(METRICS.values())} (to a false positive rate of 0.3); "
        "pictures are scored by the 256 highest px of their maps, which needs no calibration of its own. "
        "**Bold**: as inspected by default.",
        *(f"\n{name}: {folders}" for name, folders in result["folders"].items()),
        *("\n" + note for note in result["notes"]),
    ]  # fmt: skip
    for table in result["tables"]:
        names = list(table["rows"][0]["categories"])
        columns = [*names, "mean"] if len(names) > 1 else names
        lines += ["", f"## {table['title']}", "", table["about"], ""]
        lines += [_line([table["axis"], *columns]), _line(["---", *("---:" for _ in columns)])]
        for row in table["rows"]:
            label = f"{row['label']}, {row['series']}" if row["series"] else row["label"]
            values = row["categories"] | {"mean": row["mean"]}
            cells = [" / ".join(_cell(values[name][metric]) for metric in METRICS) for name in columns]
            lines.append(_line([f"**{label}**" if row["default"] else label, *cells]))
        if plots and table["name"] in plots:
            lines += ["", f"![{table['title']}]({plots[table['name']]})"]
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
