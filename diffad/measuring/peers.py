"""What people would pick instead, measured on the same pictures by the same code.

PaDiM, PatchCore, FRE and GANomaly are anomalib's own models, driven without its trainer, with its scores, its
smoothing and its default settings. All of them see the model's letterboxed squares, learn from all normal
training pictures of one category and, GANomaly apart, from the features of diffad's backbone with the same
weights. `RGB error` is plain reconstruction error with diffad's own network, as AnoDDPM scores.

anomalib is an optional extra and is imported only here, inside the functions that need it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffad.inspector import Inspector
from diffad.measuring.evaluation import Scored, markdown, mean_over_categories, measure
from diffad.method.features import FeatureExtractor
from diffad.method.image_score import threshold_for, top_mean
from diffad.method.scoring import denoise_all, pixel_score, smooth
from diffad.pictures.depth import most, read_in_words
from diffad.pictures.geometry import Geometry, to_float, to_square, to_uint8
from diffad.pictures.labels import folders_in_words, look_over
from diffad.pictures.masks import check_readable, mask_inside
from diffad.pictures.reading import DataError, read_image
from diffad.pictures.samples import Sample, labelled
from diffad.teaching.stress import VERDICTS_EACH, robustness, robustness_rows

RGB_TIMESTEP = 250  # AnoDDPM's λ, of 1000
CORESET_RATIO = 0.1  # anomalib's default
CORESET_POOL = 40_000  # patches from which PatchCore's bank is chosen; all would take hours on a CPU
FRE_EPOCHS = 220
BATCH = 32  # anomalib's default for training
COLUMNS = (
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
    "Wrong when changed: good test pictures that a method accepts as they are and rejects changed, in light, "
    "noise, sharpness, compression or position. One rule for all: the threshold is the score that 1 good "
    "part in 100 would exceed by an extreme-value law of that method's scores of other good test pictures."
)
_ANOMALIB = 'the peers come from anomalib: pip install "anomalib>=2.7,<3", or compare with --peers none'

Judge = Callable[[np.ndarray], tuple[float, "np.ndarray | None"]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Fitted:
    """A method ready to judge one category.

    judge: picture uint8 [H, W, 3] → image score, map float32 [h, w] over the picture alone at the model's
    resolution (None if the method has none). state: the modules and tensors that judging needs. note: what
    its training came to, "" if there was none.
    """

    judge: Judge
    state: tuple[Any, ...]
    note: str = ""


def checked(names: Sequence[str]) -> tuple[str, ...]:
    """The peers' names, each once. Raises ValueError for unknown ones, or if anomalib is not installed."""
    if unknown := [name for name in names if name not in PEERS]:
        raise ValueError(f"there is no peer {', '.join(unknown)}: choose from {', '.join(PEERS)}, or none")
    if names and find_spec("anomalib") is None:
        raise ValueError(_ANOMALIB)
    return tuple(dict.fromkeys(names))


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
    """diffad, RGB error and `peers` (names of `PEERS`) on the labelled test samples, ready for JSON.

    limit: at most so many good and so many defective test pictures a category, evenly spread; the training
    pictures are always all used. minutes: a peer with a training loop stops after so long. stress: at most so
    many good test pictures a category are also judged changed; the threshold is then the score that 1 good
    part in 100 would exceed by the method's scores of other good test pictures, at least half of them.

    categories: by category and method all of `measure`, fit_seconds (with diffad's network what its
    checkpoint says that it was trained for, None if it does not), model_megabytes (what judging a picture
    needs in memory besides the picture's own maps), and where pictures were changed stress, what `robustness`
    says of that, and wrong_when_changed, its "beyond". folders: which were taken as good and as defective.
    notes: sentences.
    progress(done, total) is called after every verdict.
    Raises DataError as `labelled`, for a category that the model does not know or that has no normal
    training pictures, ValueError as `checked`.
    """
    peers = checked(peers)
    if peers:
        with warnings.catch_warnings():  # anomalib's about its own parts
            warnings.simplefilter("ignore")
            import anomalib.models  # noqa: F401 - takes seconds, before any clock runs
    groups = labelled(samples, limit)
    inspector.check_knows(groups)
    normal = {name: _normal(samples, name) if peers else [] for name in groups}
    groups, doubts, found = look_over(groups, [sample for sample in samples if sample.split == "train"])
    learned = check_readable(normal)
    found = {name: most(found[name], learned[name]) for name in groups}
    methods: dict[str, Callable[[str, Tensor], Fitted]] = {
        "diffad": lambda category, _: _diffad(inspector, category, seed),
        "RGB error": lambda category, _: _rgb_error(inspector, category, seed),
    }
    for name in peers:
        title, fit = PEERS[name]
        methods[title] = lambda _, squares, fit=fit: fit(squares, inspector.extractor, 60 * minutes)

    changed = {name: _to_change(group, stress) for name, group in groups.items()}
    total = len(methods) * sum(len(groups[name]) + VERDICTS_EACH * len(changed[name]) for name in groups)
    done = 0

    def step(*_: Any) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    categories, pictures, notes = {}, {}, []
    for category, group in groups.items():
        bits = inspector.bits(category, found[category])
        size = inspector.size_of(category)
        squares = _normal_squares(normal[category], size, bits) if peers else torch.empty(0)
        images = [read_image(sample.image, bits) for sample in changed[category]]
        if stress and not images:
            notes.append(f"{category}: too few good test pictures to put some aside and change others.")
        categories[category] = {}
        for title, fit in methods.items():
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                started = time.perf_counter()
                fitted = fit(category, squares)
                if inspector.device.type == "cuda":
                    torch.cuda.synchronize(inspector.device)
                seconds = time.perf_counter() - started
            if title in ("diffad", "RGB error"):
                trained = inspector.provenance.get("minutes")
                seconds = None if trained is None else 60.0 * trained
            scored = []
            for sample in group:
                scored.append(_scored(sample, fitted.judge, size, bits))
                step()
            categories[category][title] = measure(scored) | {
                "fit_seconds": seconds,
                "model_megabytes": _bytes(fitted.state) / 2**20,
            }
            if images:
                aside = [one.score for one, kept in zip(scored, group)
                         if not one.label and kept not in changed[category]]
                categories[category][title] |= _when_changed(images, fitted.judge, aside, seed, step)
            if fitted.note:
                notes.append(f"{category}: {fitted.note}")
            del fitted, scored
        if found[category] is not None:
            notes.append(f"{category}: {read_in_words(bits, found[category])}")
        defective = sum(bool(sample.is_anomalous) for sample in group)
        pictures[category] = {
            "train": len(squares), "good": len(group) - defective, "defective": defective
        }  # fmt: skip
    return {
        "checkpoint": inspector.name,
        "device": str(inspector.device),
        "size": {name: inspector.size_of(name) for name in groups},
        "seed": seed,
        "pictures": pictures,
        "folders": {name: folders_in_words(group) for name, group in groups.items()},
        "categories": categories,
        "notes": [*_about(list(methods)), *([_CHANGED] if any(changed.values()) else []), *notes,
                  *(f"{name}: {note}" for name, some in doubts.items() for note in some)],
    }


def comparison_report(result: dict[str, Any]) -> str:
    """The result of `compare` as Markdown: a table per category, for several one of means, and the notes."""
    lines = [f"# What people would pick instead of {result['checkpoint']}"]
    for category, values in result["categories"].items():
        counts = result["pictures"][category]
        about = f"{counts['good']} good and {counts['defective']} defective test pictures"
        learned = f", {counts['train']} normal ones to learn from" if counts["train"] else ""
        lines += ["", f"## {category}", "", f"{about}{learned}.", "", result["folders"][category]]
        lines += ["", _table(values)]
        if changed := {title: of["stress"] for title, of in values.items() if "stress" in of}:
            lines += ["", markdown(robustness_rows(changed, head="method"))]
    categories = result["categories"]
    if len(categories) > 1:
        every = [of for values in categories.values() for of in values.values()]
        keys = [key for _, key, _ in COLUMNS if any(key in of for of in every)]
        means = {
            title: {
                key: mean_over_categories({name: values[title] for name, values in categories.items()}, key)
                for key in keys
            }
            for title in next(iter(categories.values()))
        }
        lines += ["", f"## Mean of {len(categories)} categories", "", _table(means)]
    return "\n".join([*lines, "", *(f"- {note}" for note in result["notes"])])


def _table(values: dict[str, dict[str, Any]]) -> str:
    def cell(value: float | None, form: str) -> str:
        return "–" if value is None else form.format(value)

    known = [column for column in COLUMNS if any(column[1] in of for of in values.values())]
    rows = [["method", *(title for title, _, _ in known)]]
    rows += [[name, *(cell(of.get(key), form) for _, key, form in known)] for name, of in values.items()]
    return markdown(rows)


def _about(titles: Sequence[str]) -> list[str]:
    about = {
        "diffad": "diffad: α and timesteps as by default; its fit, and RGB error's, is the training that the "
        "checkpoint reports, for all its categories together, wherever that was.",
        "RGB error": f"RGB error: squared colour error of x̂₀ at t = {RGB_TIMESTEP} with diffad's network in "
        "one step, smoothed and scored as diffad's maps, not calibrated.",
        "PaDiM": "PaDiM: all channels of the three stages, on the finest stage's grid.",
        "PatchCore": f"PatchCore: stages at strides 8 and 16; {CORESET_RATIO:.0%} of at most {CORESET_POOL} "
        "patches, drawn at random from all of the training pictures.",
        "FRE": f"FRE: linear autoencoder of the features at stride 16, {FRE_EPOCHS} epochs if time allows.",
        "GANomaly": "GANomaly: has no map; no pretrained features.",
    }
    return [about[title] for title in titles]


# ---------------------------------------------------------------------------------------------------------
# With diffad's network


def _diffad(inspector: Inspector, category: str, seed: int) -> Fitted:
    def judge(image: np.ndarray) -> tuple[float, np.ndarray]:
        inspection = inspector.inspect(image, category, seed=seed, tile=None)
        geometry = Geometry.letterbox(*image.shape[:2], inspector.size_of(category))
        return inspection.score, inspection.square_map[geometry.inner]

    return Fitted(judge, (inspector.network, inspector.extractor, inspector.profiles[category]))


def _rgb_error(inspector: Inspector, category: str, seed: int) -> Fitted:
    @torch.no_grad()
    def judge(image: np.ndarray) -> tuple[float, np.ndarray]:
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
# anomalib's models: normal pictures uint8 [n, 3, size, size], backbone, seconds for training → Fitted


def padim(squares: Tensor, extractor: FeatureExtractor, seconds: float) -> Fitted:
    """Defard et al. 2021: a Gaussian of the features at every place."""
    from anomalib.models.image.padim.torch_model import PadimModel

    stages = _Stages(extractor, (1, 2, 3))
    model = PadimModel(
        extractor.backbone_name, stages.layers, pre_trained=False, n_features=extractor.channels
    )
    _show(model, stages, squares)
    model.fit()
    return Fitted(_judge(model, extractor, squares.shape[-1]), (model,))


def patchcore(squares: Tensor, extractor: FeatureExtractor, seconds: float) -> Fitted:
    """Roth et al. 2022: distance to the nearest of the training pictures' most different patches."""
    from anomalib.models.components.dimensionality_reduction import SparseRandomProjection
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    stages = _Stages(extractor, (2, 3))
    model = PatchcoreModel(stages.layers, extractor.backbone_name, pre_trained=False)
    _show(model, stages, squares)
    patches = torch.vstack(model.embedding_store)
    model.embedding_store.clear()
    pool = patches[torch.randperm(len(patches))[:CORESET_POOL].to(patches.device)]
    draws = np.random.RandomState(torch.initial_seed() % 2**32)  # its default is a seed of nobody's
    projected = SparseRandomProjection(eps=0.9, random_state=draws).fit(pool).transform(pool)
    model.memory_bank = pool[coreset(projected, CORESET_RATIO)]
    return Fitted(_judge(model, extractor, squares.shape[-1]), (model,))


def coreset(patches: Tensor, ratio: float) -> Tensor:
    """Greedy k-centres: indices of max(1, int(ratio · n)) of the patches [n, c], each the farthest from those
    before.

    The same choice as anomalib's KCenterGreedy, but with squared distances by a matrix product, which is an
    order of magnitude faster.
    """
    squares = patches.square().sum(dim=1)
    nearest = torch.full_like(squares, torch.inf)
    chosen = [torch.randint(len(patches), (1,), device=patches.device)[0]]
    for _ in range(int(ratio * len(patches)) - 1):
        centre = chosen[-1]
        distance = torch.addmv(squares, patches, patches[centre], alpha=-2) + squares[centre]
        nearest = torch.minimum(nearest, distance)
        chosen.append(nearest.argmax())
    return torch.stack(chosen)


def fre(squares: Tensor, extractor: FeatureExtractor, seconds: float) -> Fitted:
    """Ndiour et al. 2023: reconstruction error of a linear autoencoder of deep features."""
    from anomalib.models.image.fre.torch_model import FREModel

    device = extractor.mean.device
    cells = (squares.shape[-1] // 16 // 2) ** 2  # of the stage at stride 16, pooled by 2
    model = FREModel(
        extractor.backbone_name, 3, extractor.stage_channels[-1] * cells, pre_trained=False,
        pooling_kernel_size=2,
    )  # fmt: skip
    model.feature_extractor = _Stages(extractor, (3,))
    model.to(device)
    with torch.no_grad():
        features = torch.cat([model.get_features(batch)[0] for batch in _batches(squares, device)])
    optimiser = torch.optim.Adam(model.fre_model.parameters(), lr=1e-3)
    epochs, started = 0, time.perf_counter()
    while epochs < FRE_EPOCHS and time.perf_counter() - started < seconds:
        for batch in features[torch.randperm(len(features)).to(device)].split(BATCH):
            optimiser.zero_grad()
            F.mse_loss(model.fre_model(batch), batch).backward()
            optimiser.step()
        epochs += 1
    judge = _judge(model, extractor, squares.shape[-1])
    return Fitted(judge, (model,), f"FRE was trained for {epochs} epochs.")


def ganomaly(squares: Tensor, extractor: FeatureExtractor, seconds: float) -> Fitted:
    """Akçay et al. 2018: a GAN's distance between a picture's code and its reconstruction's."""
    from anomalib.models.image.ganomaly.loss import DiscriminatorLoss, GeneratorLoss
    from anomalib.models.image.ganomaly.torch_model import GanomalyModel

    device, size = extractor.mean.device, squares.shape[-1]
    model = GanomalyModel((size, size), num_input_channels=3, n_features=64, latent_vec_size=100)
    model.to(device).train()
    generator_loss, discriminator_loss = GeneratorLoss(), DiscriminatorLoss()
    optimisers = [
        torch.optim.Adam(part.parameters(), lr=2e-4, betas=(0.5, 0.999))
        for part in (model.generator, model.discriminator)
    ]
    steps, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        some = torch.randint(len(squares), (BATCH,))
        real, fake, code, code_again = model(to_float(squares[some], device))
        judged = model.discriminator(real)[0]
        loss = generator_loss(code, code_again, real, fake, judged.detach(), model.discriminator(fake)[0])
        optimisers[0].zero_grad()
        loss.backward()
        optimisers[0].step()
        optimisers[1].zero_grad()
        discriminator_loss(judged, model.discriminator(fake.detach())[0]).backward()
        optimisers[1].step()
        steps += 1
    model.eval()

    @torch.no_grad()
    def judge(image: np.ndarray) -> tuple[float, None]:
        square, _ = to_square(image, size)
        return float(model(square[None].to(device)).pred_score), None

    return Fitted(judge, (model.generator,), f"GANomaly was trained for {steps} steps of {BATCH} pictures.")


PEERS = {
    "padim": ("PaDiM", padim),
    "patchcore": ("PatchCore", patchcore),
    "fre": ("FRE", fre),
    "ganomaly": ("GANomaly", ganomaly),
}


class _Stages(nn.Module):
    """diffad's backbone in the place of anomalib's: normalised pictures → layer → features, float32.

    layers: timm's numbers of the stages, 1, 2, 3 at strides 4, 8, 16.
    """

    def __init__(self, extractor: FeatureExtractor, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.extractor, self.layers = extractor, layers

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        x = ((x + 1) / 2 - self.extractor.input_mean) / self.extractor.input_std
        stages = self.extractor.network(x.contiguous(memory_format=torch.channels_last))
        return {layer: stages[layer - 1].contiguous() for layer in self.layers}


def _show(model: nn.Module, stages: _Stages, squares: Tensor) -> None:
    """All pictures once, through diffad's backbone; in training mode anomalib's models collect them."""
    device = stages.extractor.mean.device
    model.feature_extractor = stages
    model.to(device).train()
    with torch.no_grad():
        for batch in _batches(squares, device):
            model(batch)


def _batches(squares: Tensor, device: torch.device) -> Iterator[Tensor]:
    return map(partial(to_float, device=device), squares.split(BATCH))


def _judge(model: nn.Module, extractor: FeatureExtractor, size: int) -> Judge:
    """anomalib's own score and map of one picture."""
    device = extractor.mean.device
    model.eval()

    @torch.no_grad()
    def judge(image: np.ndarray) -> tuple[float, np.ndarray]:
        square, geometry = to_square(image, size)
        said = model(square[None].to(device))
        return float(said.pred_score), said.anomaly_map[0, 0].cpu().numpy()[geometry.inner]

    return judge


# ---------------------------------------------------------------------------------------------------------
# Pictures and measures


def _normal(samples: Sequence[Sample], category: str) -> list[Sample]:
    """All normal training pictures of a category."""
    some = [sample for sample in samples if sample.category == category and sample.split == "train"]
    if not some:
        raise DataError(f"{category} has no train/good to learn from: add it, or compare with --peers none")
    return some


def _normal_squares(samples: Sequence[Sample], size: int, bits: int | None) -> Tensor:
    """uint8 [n, 3, size, size]."""
    return torch.stack([to_uint8(to_square(read_image(s.image, bits), size)[0]) for s in samples])


def _to_change(samples: Sequence[Sample], limit: int | None) -> list[Sample]:
    """Every second good picture, evenly thinned to at most `limit`; none without one, or if there are fewer
    than four good ones: the others give the threshold.
    """
    good = [sample for sample in samples if not sample.is_anomalous]
    second = good[1::2] if limit and len(good) >= 4 else []
    return second[:: -(-len(second) // limit)] if second else []


def _when_changed(
    images: Sequence[np.ndarray], judge: Judge, aside: Sequence[float], seed: int, step: Callable[..., None]
) -> dict[str, Any]:
    """How a method bears changes of good pictures, against the threshold from scores of others."""
    threshold = threshold_for(np.array(aside))
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
    """Of all tensors in modules, dataclasses, tuples and in the state itself."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, nn.Module):
        return sum(map(_bytes, (*state.parameters(), *state.buffers())))
    if isinstance(state, tuple):
        return sum(map(_bytes, state))
    return sum(_bytes(getattr(state, field.name)) for field in fields(state)) if is_dataclass(state) else 0
