"""Compare diffad with other methods on the same pictures and with the same metrics.

The peers are in `peers`. RGB error is the plain reconstruction error of diffad's own network, the score of
AnoDDPM.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from diffad.inspector import Inspector
from diffad.measuring.evaluation import bit_notes
from diffad.measuring.measures import Scored, measure
from diffad.measuring.peers import (
    CORESET_POOL,
    CORESET_RATIO,
    FRE_EPOCHS,
    PEERS,
    Fitted,
    Judge,
    PeerFit,
    checked,
)
from diffad.measuring.stress import robustness_rows
from diffad.measuring.tables import (
    Column,
    Progress,
    Results,
    markdown,
    mean_over_categories,
    step_counter,
    table_rows,
)
from diffad.method.features import FeatureExtractor
from diffad.method.image_score import threshold_for, top_mean
from diffad.method.scoring import denoise_all, pixel_score, smooth
from diffad.pictures.depth import most
from diffad.pictures.geometry import Geometry, to_square, to_uint8
from diffad.pictures.labels import folders_in_words, look_over
from diffad.pictures.masks import check_readable, mask_inside
from diffad.pictures.reading import DataError, read_image
from diffad.pictures.samples import Sample, labelled
from diffad.teaching.robustness import VERDICTS_EACH, robustness

RGB_TIMESTEP = 250  # AnoDDPM's λ, of 1000
COLUMNS: tuple[Column, ...] = (
    ("image AUROC", "image_auroc", "{:.3f}"),
    ("pixel AUROC", "pixel_auroc", "{:.3f}"),
    ("AUPRO", "aupro", "{:.3f}"),
    ("AUPRO@0.05", "aupro_05", "{:.3f}"),
    ("AUPIMO", "aupimo", "{:.3f}"),
    ("wrong when changed", "wrong_when_changed", "{:.1%}"),
    ("fit, s", "fit_seconds", "{:.0f}"),
    ("s / picture", "seconds_per_image", "{:.3f}"),
    ("model, MB", "model_megabytes", "{:.0f}"),
)
_CHANGED = (
    "Wrong when changed: the share of verdicts that reject a changed good test picture which the method "
    "accepts unchanged. Pictures are changed in light, noise, sharpness, compression or position. For every "
    "method the threshold is the score that 1 good part in 100 would exceed by an extreme-value law of its "
    "scores of other good test pictures."
)

Fit = Callable[[str, Tensor], Fitted]  # category, its normal pictures uint8 [n, 3, size, size]


def compare(
    inspector: Inspector,
    samples: Sequence[Sample],
    peers: Sequence[str] = ("padim", "patchcore", "fre"),
    limit: int | None = None,
    minutes: float = 5.0,
    seed: int = 0,
    progress: Progress | None = None,
    stress: int | None = None,
) -> dict[str, Any]:
    """Measure diffad, RGB error and peers on the labelled test samples.

    Args:
        inspector: the model.
        samples: in MVTec layout; all normal training pictures are used.
        peers: names in `PEERS`.
        limit: at most this many good and this many defective test pictures per category, evenly spread over
            the kinds of defect.
        minutes: the longest training of a peer.
        seed: of the noise and of the peers.
        progress: called with (done, total) after every verdict.
        stress: also judge this many good test pictures per category (at most half of them) changed. The other
            good test pictures give the threshold: the score that 1 good part in 100 would exceed.

    Returns:
        A dict, ready for JSON:
        checkpoint, device, size, seed: of the comparison.
        pictures: category → train, good, defective: counts.
        folders: category → a sentence on which folders count as good and as defective.
        categories: category → method → the keys of `measure`, and
            fit_seconds: for methods with diffad's network, the training time that the checkpoint states;
            model_megabytes: memory that the method needs, apart from a picture's own maps;
            stress, wrong_when_changed: if pictures were changed, the result of `robustness` and its "beyond".
        notes: sentences.

    Raises:
        DataError: see `labelled`; also if the model does not know a category, or a category has no normal
            training pictures.
        ValueError: see `peers.checked`.
    """
    peers = checked(peers)
    if peers:
        with warnings.catch_warnings():  # anomalib's about its own parts
            warnings.simplefilter("ignore")
            import anomalib.models  # noqa: F401 - takes seconds, before any clock runs
    groups = labelled(samples, limit)
    inspector.check_knows(groups)
    normal = {name: _normal(samples, name) if peers else [] for name in groups}
    groups, doubts, depths = look_over(groups, [sample for sample in samples if sample.split == "train"])
    training_depths = check_readable(normal)
    depths = {name: most(depths[name], training_depths[name]) for name in groups}
    methods = _methods(inspector, peers, minutes, seed)
    to_change = {name: _to_change(group, stress) for name, group in groups.items()}
    verdicts = sum(len(groups[name]) + VERDICTS_EACH * len(to_change[name]) for name in groups)
    step = step_counter(progress, len(methods) * verdicts)

    categories, pictures, notes = {}, {}, []
    for category, group in groups.items():
        bits = inspector.bits(category, depths[category])
        size = inspector.size_of(category)
        squares = _normal_squares(normal[category], size, bits) if peers else torch.empty(0)
        changed = to_change[category]
        if stress and not changed:
            notes.append(
                f"{category}: too few good test pictures to change some and keep others for the threshold."
            )
        categories[category], remarks = _compared(
            inspector, methods, category, squares, group, changed, bits, seed, step
        )
        notes += [f"{category}: {remark}" for remark in remarks]
        notes += [f"{category}: {note}" for note in bit_notes(bits, depths[category])]
        defective = sum(bool(sample.is_anomalous) for sample in group)
        counts = {"train": len(squares), "good": len(group) - defective, "defective": defective}
        pictures[category] = counts
    notes = [*_about(list(methods)), *([_CHANGED] if any(to_change.values()) else []), *notes]
    return {
        "checkpoint": inspector.name,
        "device": str(inspector.device),
        "size": {name: inspector.size_of(name) for name in groups},
        "seed": seed,
        "pictures": pictures,
        "folders": {name: folders_in_words(group) for name, group in groups.items()},
        "categories": categories,
        "notes": notes + [f"{name}: {note}" for name, some in doubts.items() for note in some],
    }


def comparison_report(result: dict[str, Any]) -> str:
    """The result of `compare` as Markdown: a table per category, one of means if there are several, notes."""
    parts = [f"# {result['checkpoint']} compared with other methods"]
    categories = result["categories"]
    for category, values in categories.items():
        counts = result["pictures"][category]
        about = f"{counts['good']} good and {counts['defective']} defective test pictures"
        learned = f", {counts['train']} normal ones to learn from" if counts["train"] else ""
        parts += [f"## {category}", f"{about}{learned}.", result["folders"][category], _table(values)]
        if changed := {title: of["stress"] for title, of in values.items() if "stress" in of}:
            parts.append(markdown(robustness_rows(changed, head="method")))
    if len(categories) > 1:
        means = {
            title: _means({name: values[title] for name, values in categories.items()})
            for title in next(iter(categories.values()))
        }
        parts += [f"## Mean of {len(categories)} categories", _table(means)]
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in result["notes"])])


def _table(values: Results) -> str:
    columns = [column for column in COLUMNS if any(column[1] in of for of in values.values())]
    return markdown(table_rows(values, columns, head="method", with_mean=False))


def _means(of_categories: Results) -> dict[str, float | None]:
    """One method's means over categories, for the keys of `COLUMNS` that any category has."""
    keys = [key for _, key, _ in COLUMNS if any(key in values for values in of_categories.values())]
    return {key: mean_over_categories(of_categories, key) for key in keys}


def _about(titles: Sequence[str]) -> list[str]:
    about = {
        "diffad": "diffad: default α and timesteps; its fit time, and RGB error's, is the training time that "
        "the checkpoint states, for all its categories together and on the machine that trained it.",
        "RGB error": f"RGB error: squared colour error of x̂₀ at t = {RGB_TIMESTEP} with diffad's network in "
        "one step, smoothed and scored like diffad's maps, not calibrated.",
        "PaDiM": "PaDiM: all channels of the three stages, on the finest stage's grid.",
        "PatchCore": f"PatchCore: stages at strides 8 and 16; {CORESET_RATIO:.0%} of at most {CORESET_POOL} "
        "patches, drawn at random from all of the training pictures.",
        "FRE": f"FRE: linear autoencoder of the features at stride 16, {FRE_EPOCHS} epochs if time allows.",
        "GANomaly": "GANomaly: no map, no pretrained features.",
    }
    return [about[title] for title in titles]


# ---------------------------------------------------------------------------------------------------------
# Methods


def _methods(inspector: Inspector, peers: Sequence[str], minutes: float, seed: int) -> dict[str, Fit]:
    methods: dict[str, Fit] = {
        "diffad": lambda category, _: _diffad(inspector, category, seed),
        "RGB error": lambda category, _: _rgb_error(inspector, category, seed),
    }
    for name in peers:
        title, fit = PEERS[name]
        methods[title] = partial(_peer, fit, inspector.extractor, 60 * minutes)
    return methods


def _peer(fit: PeerFit, extractor: FeatureExtractor, seconds: float, _: str, squares: Tensor) -> Fitted:
    return fit(squares, extractor, seconds)


def _fitted(
    inspector: Inspector, fit: Fit, category: str, squares: Tensor, seed: int
) -> tuple[Fitted, float]:
    """Fit a method to a category; returns it and the seconds that this took."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        started = time.perf_counter()
        fitted = fit(category, squares)
        if inspector.device.type == "cuda":
            torch.cuda.synchronize(inspector.device)
        return fitted, time.perf_counter() - started


def _compared(
    inspector: Inspector,
    methods: Mapping[str, Fit],
    category: str,
    squares: Tensor,
    group: Sequence[Sample],
    changed: Sequence[Sample],
    bits: int | None,
    seed: int,
    step: Callable[..., None],
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Measure every method on one category; returns the values by method, and remarks on their training.

    Args:
        squares: the training pictures, uint8 [n, 3, size, size].
        group: the test pictures.
        changed: the test pictures that are also judged changed.
    """
    size = inspector.size_of(category)
    images = [read_image(sample.image, bits) for sample in changed]
    result: dict[str, dict[str, Any]] = {}
    remarks: list[str] = []
    for title, fit in methods.items():
        fitted, took = _fitted(inspector, fit, category, squares, seed)
        seconds: float | None = took
        if title in ("diffad", "RGB error"):
            minutes = inspector.provenance.get("minutes")
            seconds = 60.0 * minutes if isinstance(minutes, int | float) else None
        scored = []
        for sample in group:
            scored.append(_scored(sample, fitted.judge, size, bits))
            step()
        result[title] = measure(scored)
        result[title] |= {"fit_seconds": seconds, "model_megabytes": _bytes(fitted.state) / 2**20}
        if images:
            others = [
                one.score for one, sample in zip(scored, group) if not one.label and sample not in changed
            ]
            result[title] |= _when_changed(images, fitted.judge, others, seed, step)
        if fitted.note:
            remarks.append(fitted.note)
        del fitted, scored  # both may be large
    return result, remarks


def _diffad(inspector: Inspector, category: str, seed: int) -> Fitted:
    def judge(image: npt.NDArray[np.uint8]) -> tuple[float, np.ndarray]:
        inspection = inspector.inspect(image, category, seed=seed, tile=None)
        height, width = image.shape[:2]
        geometry = Geometry.letterbox(height, width, inspector.size_of(category))
        return inspection.score, inspection.square_map[geometry.inner]

    return Fitted(judge, (inspector.network, inspector.extractor, inspector.profiles[category]))


def _rgb_error(inspector: Inspector, category: str, seed: int) -> Fitted:
    @torch.no_grad()
    def judge(image: npt.NDArray[np.uint8]) -> tuple[float, np.ndarray]:
        tiling = inspector.whole(image, category)
        (tile,) = tiling.tiles
        x_start = tiling.square(image, tile)[None].to(inspector.device)
        schedule = inspector.schedule
        _, x_t, t, prediction = denoise_all(schedule, inspector.network, x_start, (RGB_TIMESTEP,), seed)
        error = smooth(pixel_score(schedule, prediction, x_start, x_t, t, kind="rgb"))[0]
        inner = tiling.to_cells(error.cpu(), tile).numpy()
        return top_mean(inner, tiling.size), inner

    return Fitted(judge, (inspector.network,))


# ---------------------------------------------------------------------------------------------------------
# Pictures and measures


def _normal(samples: Sequence[Sample], category: str) -> list[Sample]:
    """All normal training pictures of a category."""
    some = [sample for sample in samples if sample.category == category and sample.split == "train"]
    if not some:
        raise DataError(f"{category} has no train/good to train peers on: add it, or use --peers none")
    return some


def _normal_squares(samples: Sequence[Sample], size: int, bits: int | None) -> Tensor:
    """uint8 [n, 3, size, size]."""
    return torch.stack([to_uint8(to_square(read_image(s.image, bits), size)[0]) for s in samples])


def _to_change(samples: Sequence[Sample], limit: int | None) -> list[Sample]:
    """Every second good picture, thinned evenly to at most `limit`; the others give the threshold.

    Empty without a limit, or if there are fewer than four good pictures.
    """
    good = [sample for sample in samples if not sample.is_anomalous]
    if not limit or len(good) < 4:
        return []
    second = good[1::2]
    return second[:: -(-len(second) // limit)]


def _when_changed(
    images: Sequence[npt.NDArray[np.uint8]],
    judge: Judge,
    others: Sequence[float],
    seed: int,
    step: Callable[..., None],
) -> dict[str, Any]:
    """How a method judges changed good pictures, with a threshold from the scores of other good ones."""
    threshold = threshold_for(np.array(others))
    found = robustness(images, lambda image: judge(image)[0] > threshold, seed, step)
    return {"stress": found, "wrong_when_changed": found["beyond"]}


def _scored(sample: Sample, judge: Judge, size: int, bits: int | None) -> Scored:
    image = read_image(sample.image, bits)
    started = time.perf_counter()
    score, anomaly_map = judge(image)
    seconds = time.perf_counter() - started
    mask = None if anomaly_map is None else mask_inside(sample, image.shape[:2], size)
    return Scored(
        path=sample.image, label=bool(sample.is_anomalous), score=score, mask=mask, defect=sample.defect,
        anomaly_map=None if mask is None else np.ascontiguousarray(anomaly_map, np.float32), seconds=seconds,
    )  # fmt: skip


def _bytes(state: Any) -> int:
    """Bytes of all tensors in a state of modules, dataclasses, tuples and tensors."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, nn.Module):
        return sum(map(_bytes, (*state.parameters(), *state.buffers())))
    if isinstance(state, tuple):
        return sum(map(_bytes, state))
    return sum(_bytes(getattr(state, field.name)) for field in fields(state)) if is_dataclass(state) else 0
