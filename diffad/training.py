"""Training: one network for all categories, then a profile for each; resumable at any moment, one process or
many.

The loop is seeded by (seed, step, rank), so a run resumed from its state file draws what it would have drawn.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as distributed
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import diffad
from diffad import checkpoint as checkpoints
from diffad.checkpoint import Checkpoint, CheckpointError, Profile
from diffad.data import DataError, Sample, all_unusable, find_all, read_image, to_float, to_uint8
from diffad.devices import pick_device
from diffad.diffusion import Schedule, hybrid_loss
from diffad.duplicates import Different, first_alike, pairs_in_words, thumbnails, thumbnails_of
from diffad.features import DEFAULT_BACKBONE, FeatureExtractor
from diffad.gaussian import PlaceGaussian
from diffad.masks import survey
from diffad.output import append
from diffad.pose import Turn, Upright
from diffad.profiles import ENOUGH, fit_profile
from diffad.reconstruction import FILLED_TO
from diffad.rehearsal import KINDS, add_defect, random_hole
from diffad.render import contact_sheet
from diffad.scoring import PIXEL_SCORES, unusual
from diffad.sizes import find_size, in_words
from diffad.stress import rehearse_changes
from diffad.tiling import Tiling
from diffad.unet import UNet, UNetConfig

log = logging.getLogger(__name__)
_TIMED = 4  # steps
_FOREIGN = 1e-8  # share of good pictures, below which one that lies so far out is not taken for one of them
_MOST_FOREIGN = 0.2  # share of the pictures, above which they are of several kinds
_SHOWN, _LONGEST_NAME = 12, 32  # unusual pictures in one, at most, and the end of a name under each
FEWEST = 8  # different good pictures of a category
_RANGES = {  # of a recipe's numbers; whole numbers where the limits are
    "steps": (0, 10**9), "minutes": (1e-9, 1e9), "batch": (1, 2**20), "learning_rate": (1e-12, 1.0),
    "warm_up": (1, 10**9), "ema": (0.0, 1.0), "clip": (1e-9, 1e9), "low_t": (0.01, 100.0),
    "spoiled": (0.0, 1.0), "holes": (0.0, 1.0), "shift": (0, 2048), "variants": (1, 1000),
    "held_out": (0.0, 0.5), "stressed": (0, 48), "stride": (1, 999), "seed": (0, 2**53),
}  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """Recipe of one run. Exactly one of steps and minutes rules the learning rate and the end; 0 steps fit
    profiles only.

    batch: pictures a step and process; every category has the same share of them. shift: largest random
    translation, px. variants: different shifts (and turns, see `symmetries`) of each picture. low_t: t =
    T·u^low_t, so 2 favours the timesteps that are scored, 1 is uniform. spoiled: share of the pictures that
    are shown with one to three artificial defects, to be removed like noise. holes: share of the pictures
    that are noised in places only, to learn to fill them (from t = 100 on: below, variances are what counts).
    held_out: share of each category's normal pictures kept from training, which tell how much lower the
    others lie for having been trained on (4 to 48 pictures, the same ones whatever the seed). stressed: of
    those, how many are judged changed in the end (`stress.robustness`); if there are three times as many, the
    statistics are made without them. size: side of the square in which pictures are looked at, px, and
    trained on if there are steps; None: trained on at the network's own size, then looked at as large as it
    takes (`sizes.find_size`).
    """

    steps: int | None = None
    minutes: float | None = None
    unet: UNetConfig = field(default_factory=UNetConfig)
    backbone: str = DEFAULT_BACKBONE
    schedule: str = "linear"
    batch: int = 16
    learning_rate: float = 8e-4
    warm_up: int = 50
    ema: float = 0.999
    clip: float = 1.0
    low_t: float = 2.0
    spoiled: float = 0.5
    holes: float = 0.3
    shift: int = 4
    variants: int = 6
    held_out: float = 0.15
    stressed: int = 4
    pixel_score: str = "perceptual"
    stride: int = 4
    seed: int = 0
    licence: str = ""
    size: int | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give either steps or minutes")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name in ("steps", "minutes"):
                continue
            if not low <= value <= high or (isinstance(low, int) and value != int(value)):
                kind = "a whole number" if isinstance(low, int) else "a number"
                raise ValueError(f"{name} is {kind} from {low} to {high}, not {value}")
        if self.shift >= self.unet.size:
            raise ValueError(f"shift is less than the {self.unet.size} px of a picture, not {self.shift}")
        Schedule.named(self.schedule)
        if self.pixel_score not in PIXEL_SCORES:  # else found out hours later, by the profile
            raise ValueError(f"the pixel score is one of {', '.join(PIXEL_SCORES)}, not {self.pixel_score!r}")
        if self.unet.feature_grid % 4:  # blocks of a profile's covariances
            raise ValueError(f"a size of {self.unet.size} px does not suit: give a multiple of 32")
        if self.size is not None:
            self.unet.checked_size(self.size)


@dataclass
class _Run:
    """What changes while training, and what it needs to go on. step, seconds: done so far."""

    config: TrainConfig
    schedule: Schedule
    extractor: FeatureExtractor
    network: UNet
    average: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    device: torch.device
    world: int
    rank: int
    step: int = 0
    seconds: float = 0.0


def train(
    config: TrainConfig,
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    resume: bool = False,
    start_from: str | Path | None = None,
    device: str = "auto",
    progress: Callable[[dict], None] | None = None,
    save_every: float = 60,
    skip_unreadable: bool = False,
    tell: Callable[[str], None] = log.info,
) -> Path:
    """Train on the normal pictures of `sources` and write the checkpoint `out`; returns its path.

    Beside it: <stem>.log.jsonl (a JSON line every ten steps), <stem>.loss.png, <stem>.<category>.unusual.png
    where good pictures are unusual (see `_fitted`, which leaves some out), and while unfinished
    <stem>.resume.safetensors, written every `save_every` seconds and at an interruption, from which
    `resume=True` goes on. start_from: checkpoint whose network and feature standardisation are the start; its
    profiles are kept only if the network does not change (0 steps). progress: called with {step, seconds,
    eta, done, loss, …} after every step. skip_unreadable: leave out pictures that cannot be read. tell: told
    about the pictures before anything is learned: which are left out, how many bits those of a category have,
    which repeat each other (one of them is taken) and which test pictures beside them are among them; the
    last two are in the profile's rehearsal, too ("duplicates"). Then at which size each category is looked
    at, if others were tried ("sizes" in the rehearsal). Under torchrun every process trains and the
    first one writes.
    Raises DataError, CheckpointError, OutputError.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise CheckpointError(f"the checkpoint's name must end in .safetensors, not {out.name!r}")
    if config.steps == 0 and not start_from:
        raise CheckpointError("0 steps learn statistics for a trained network: start from a checkpoint")
    if config.steps == 0 and resume:
        raise CheckpointError("0 steps resume nothing: give the steps or minutes of the interrupted run")
    if resume and not state_file(out).exists():
        raise CheckpointError(f"there is no unfinished run to go on with ({state_file(out)}): drop --resume")
    base = checkpoints.load(start_from) if start_from else None
    if base:
        config = _continued(config, base)
    if config.size is not None and config.steps != 0:
        config = replace(config, unet=replace(config.unet, size=config.size))
    size = config.size or config.unet.size
    paths, bits = _readable(normal_paths(sources), skip_unreadable, tell)
    pictures, inside, uprights, different = load_normal(paths, size, bits)
    paths = {name: each.paths for name, each in different.items()}
    repeated = _repeated(different, sources, size, bits)
    for name, sentences in repeated.items():
        tell(f"{name}: {' '.join(sentences)}")
    out.parent.mkdir(parents=True, exist_ok=True)  # now, not after hours
    split = {name: split_held_out(images, config.held_out) for name, images in pictures.items()}
    run = _prepare(config, base, [used for used, _ in split.values()], *_join(device))

    if config.steps != 0:
        pool = _Pool(run, [used for used, _ in split.values()])
        _fit_network(run, pool, pictures, out, resume, progress, save_every)
    if run.rank == 0:
        # the profiles must belong to the weights that are stored
        run.network.load_state_dict(checkpoints.rounded(run.average))
        profiles = dict(base.profiles) if base and config.steps == 0 else {}
        to_stress, unseen = {}, {}
        for name, (used, held) in split.items():
            numbers = split_held_out(torch.arange(len(paths[name])), config.held_out)
            aside = config.stressed if len(held) >= 3 * config.stressed else 0
            order = torch.cat(numbers[::-1])[aside:]  # those held out first
            to_stress[name] = [(paths[name][i], bits[name]) for i in numbers[1][: config.stressed]]
            unseen[name] = bool(aside) and _learned_before(base, name) in (None, len(paths[name]))
            there, upright, found = inside[name], uprights[name], {}
            if config.size is None:
                found = find_size(
                    run.network, run.extractor, run.schedule, paths[name], upright, bits[name]
                )
            if found:
                tell(in_words(name, found))
                if found["size"] != size:
                    larger, there, upright = _read_at(paths[name], found["size"], bits[name])
                    used, held = split_held_out(larger, config.held_out)
            plain = config.steps == 0 and not _network_learned(base, name)
            profile, odd, left_out = _fitted(run, used, held[aside:], there[order], plain)
            called = [told_apart(paths[name])[i] for i in order]
            more = {
                "unusual": {called[i]: score for i, score in odd.items()},
                "left_out": {called[i]: score for i, score in left_out.items()},
                "duplicates": repeated.get(name, []),
            }
            if odd or left_out:
                shown = out.with_name(f"{out.stem}.{name}.unusual.png")
                _show(shown, torch.cat([held[aside:], used]), called, odd | left_out, left_out)
                tell(f"{name}: its unusual good pictures are shown in {shown}.")
            if found:
                more["sizes"] = found
            profiles[name] = replace(
                profile, rehearsal=profile.rehearsal | more, upright=upright, bits=bits[name]
            )
        known = base.provenance if base else {}
        kept = {name: known.get("data", {}).get(name) for name in profiles if name not in pictures}
        licences = (each.strip() for each in f"{config.licence};{known.get('licence') or ''}".split(";"))
        provenance = {
            "version": diffad.__version__,
            "data": {name: count for name, count in kept.items() if count is not None}
            | {name: len(images) for name, images in pictures.items()},
            # also of what the network learned from before
            "licence": "; ".join(dict.fromkeys(filter(None, licences))),
            "steps": run.step,
            "pictures_seen": run.step * config.batch * run.world,
            "minutes": round(run.seconds / 60, 1),
            "seed": config.seed,
            "learning_rate": config.learning_rate,
            "started_from": {"name": Path(start_from).stem, **base.provenance} if base else None,
        }
        finished = Checkpoint(
            config.unet, run.network.state_dict(), config.backbone, run.extractor.mean, run.extractor.std,
            profiles, config.schedule, config.pixel_score, config.stride, provenance,
        )  # fmt: skip
        checkpoints.save(out, finished)  # whatever becomes of the rest
        if config.stressed:
            for name, values in rehearse_changes(finished, to_stress, str(run.device)).items():
                changed = {"changed": values | {"held_out": unseen[name]}}
                profiles[name] = replace(profiles[name], rehearsal={**profiles[name].rehearsal, **changed})
            checkpoints.save(out, replace(finished, profiles=profiles))
        if config.steps != 0:
            state_file(out).unlink(missing_ok=True)
    if run.world > 1:
        distributed.barrier()
        distributed.destroy_process_group()
    return out


def _fitted(
    run: _Run, used: Tensor, held: Tensor, inside: Tensor, plain: bool
) -> tuple[Profile, dict[int, float], dict[int, float]]:
    """A category's profile, and by number, those held out first, the scores of its unusual good pictures and
    of those that were left out of it. Left out are pictures that hardly belong with the others, such as a
    defective part among the good ones, unless there are many of them.
    """
    # not with the run's seed: noise is part of what is calibrated, and an inspection's has seed 0
    fit = partial(
        fit_profile, run.network, run.extractor, run.schedule, kind=run.config.pixel_score,
        stride=run.config.stride, plain=plain,
    )  # fmt: skip
    profile, numbers, left_out = fit(used, held, inside), torch.arange(len(inside)), {}
    scores = profile.calibration.scorer().good
    foreign = torch.zeros(len(inside), dtype=torch.bool)
    foreign[: len(scores)] = torch.from_numpy(unusual(scores, _FOREIGN))
    kept_held, kept_used = ~foreign[: len(held)], ~foreign[len(held) :]
    if 0 < foreign.sum() <= _MOST_FOREIGN * len(scores) and kept_held.sum() >= 2 and kept_used.any():
        left_out = {int(i): float(scores[i]) for i in foreign.nonzero()}
        profile, numbers = fit(used[kept_used], held[kept_held], inside[~foreign]), numbers[~foreign]
    scorer = profile.calibration.scorer()
    # in places, or as a whole, which no score counts
    odd = (unusual(scorer.good) | unusual(scorer.levels)).nonzero()[0]
    return profile, {int(numbers[i]): float(scorer.good[i]) for i in odd}, left_out


def _show(
    file: Path, pictures: Tensor, names: Sequence[str], scores: Mapping[int, float], left_out: Container[int]
) -> None:
    """Writes unusual good pictures as one, the highest scores first; pictures: uint8 [n, 3, s, s]."""
    highest = sorted(scores, key=lambda i: -scores[i])[:_SHOWN]
    captions = [
        f"{names[i][-_LONGEST_NAME:]}\nscore {scores[i]:.1f}{', left out' if i in left_out else ''}"
        for i in highest
    ]
    contact_sheet([pictures[i].permute(1, 2, 0).numpy() for i in highest], captions, file)


def _learned_before(base: Checkpoint | None, category: str) -> int | None:
    """How many pictures of a category the network of `base` was trained on, None if on none: of as many, the
    same ones were held out.
    """
    return base.provenance.get("data", {}).get(category) if base else None


def _network_learned(base: Checkpoint, category: str) -> bool:
    """Whether the network of `base` was trained on a category, and not only its statistics were added."""
    return category in base.profiles and base.profiles[category].plain is None


def _continued(config: TrainConfig, base: Checkpoint) -> TrainConfig:
    """The recipe with the base's network. Raises CheckpointError for a size that does not suit that."""
    try:
        return replace(
            config, unet=base.config, backbone=base.backbone, schedule=base.schedule,
            pixel_score=base.pixel_score, stride=base.stride,
        )  # fmt: skip
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def training_rate(unet: UNetConfig, backbone: str, picture: Tensor, device: torch.device) -> float:
    """Pictures a second that a network of this size is trained on; on a CPU once all features are known.
    picture: uint8 [3, size, size].
    """
    config = TrainConfig(steps=_TIMED + 1, unet=unet, backbone=backbone, variants=1)
    pictures = picture.expand(8, -1, -1, -1)  # few, so that the first step has seen nearly all
    run = _prepare(config, None, [pictures], 1, 0, device)
    spent = [run.seconds for _ in _loop(run, _Pool(run, [pictures]))]
    return _TIMED * config.batch / (spent[-1] - spent[0])


def _prepare(
    config: TrainConfig,
    base: Checkpoint | None,
    categories: list[Tensor],
    world: int,
    rank: int,
    device: torch.device,
) -> _Run:
    torch.manual_seed(config.seed)
    network = UNet(config.unet).to(device)
    extractor = FeatureExtractor(config.backbone, config.unet.cell).to(device)
    if extractor.channels != config.unet.feature_channels:
        raise ValueError(f"{config.backbone} has {extractor.channels} channels: set feature_channels to it")
    if base:
        network.load_state_dict(base.network)
        extractor.mean.copy_(base.feature_mean)
        extractor.std.copy_(base.feature_std)
    if not base or config.steps != 0:
        some = torch.cat([pictures[: 512 // len(categories) + 1] for pictures in categories])
        old_mean, old_std = extractor.mean.clone(), extractor.std.clone()
        extractor.fit_standardisation(to_float(batch, device) for batch in some.split(16))
        if base:  # the head goes on predicting the same features in their new units
            head = network.feature_head[-1]
            with torch.no_grad():
                head.weight.mul_((old_std / extractor.std).view(-1, 1, 1, 1))
                head.bias.mul_(old_std).add_(old_mean - extractor.mean).div_(extractor.std)
    return _Run(
        config,
        Schedule.named(config.schedule),
        extractor,
        network,
        {name: value.clone() for name, value in network.state_dict().items()},
        torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=0.01, fused=True),
        device, world, rank,
    )  # fmt: skip


def _fit_network(
    run: _Run, pool: _Pool, pictures: dict[str, Tensor], out: Path, resume: bool,
    progress: Callable[[dict], None] | None, save_every: float,
) -> None:  # fmt: skip
    """The loop with its files: log, state to resume from, loss picture."""
    state, log_file = state_file(out), out.with_suffix(".log.jsonl")
    fingerprint = json.dumps(
        {"config": asdict(run.config), "categories": {k: len(v) for k, v in pictures.items()}}, sort_keys=True
    )
    if resume:
        _read_state(run, state, fingerprint)
        if run.rank == 0:
            _cut_log(log_file, run.step)
    elif run.rank == 0:
        if state.exists():
            log.warning("%s is an unfinished run; it is started over (--resume would go on)", state)
        log_file.unlink(missing_ok=True)
    saved = time.monotonic()
    try:
        for row in _loop(run, pool):
            if run.rank:
                continue
            if row["step"] % 10 == 1:
                append(log_file, json.dumps(row))
            if progress:
                progress(row)
            if time.monotonic() - saved > save_every:
                _write_state(run, state, fingerprint)
                saved = time.monotonic()
    finally:
        if run.rank == 0:
            _write_state(run, state, fingerprint)
    if run.rank == 0 and log_file.exists():
        from diffad.render import loss_plot  # brings matplotlib

        rows = [json.loads(line) for line in log_file.read_text().splitlines()]
        loss_plot(rows, out.with_suffix(".loss.png"))


# -- data ----------------------------------------------------------------------------------------------------


def normal_paths(sources: Sequence[str | Path]) -> dict[str, list[Path]]:
    """Normal training pictures by category, categories in their alphabet's order, each file once. Raises
    DataError if there are none or a category has fewer than FEWEST.
    """
    found: dict[str, list[Path]] = {}
    for sample in find_all(sources, "train"):
        found.setdefault(sample.category, []).append(sample.image)
    for category, paths in found.items():
        _check_enough(len(paths), f"{category} has {len(paths)} normal pictures")
    return dict(sorted(found.items()))


def _check_enough(count: int, said: str) -> None:
    if count < FEWEST:
        raise DataError(f"{said}; at least {FEWEST} are needed, {ENOUGH} or more are better")


def _readable(
    paths: Mapping[str, Sequence[Path]], skip: bool, tell: Callable[[str], None]
) -> tuple[dict[str, list[Path]], dict[str, int | None]]:
    """Those that can be read, and `survey`'s bits. Raises DataError that names the others, unless they are to
    be skipped and enough are left.
    """
    bits, unusable = survey({name: [Sample(path, name) for path in some] for name, some in paths.items()})
    if unusable and not skip:
        advice = "replace them, or leave them out with --skip-unreadable"
        raise DataError(all_unusable(unusable.values(), advice))
    for reason in unusable.values():
        tell(f"left out: {reason}")
    kept = {name: [path for path in some if path not in unusable] for name, some in paths.items()}
    for name, some in kept.items():
        _check_enough(len(some), f"{name} has {len(some)} normal pictures that can be read")
        if bits[name] is not None:
            tell(f"{name}: {bits[name]}-bit pictures")
    return kept, bits


def told_apart(paths: Sequence[Path]) -> list[str]:
    """Their names, each after as many of its folders as tell it from the others."""
    names, deep = [path.name for path in paths], 1
    while (twice := Counter(names) - Counter(set(names))) and deep < max(len(path.parts) for path in paths):
        deep += 1
        names = [
            Path(*path.parts[-deep:]).as_posix() if name in twice else name
            for name, path in zip(names, paths)
        ]
    return names


def load_normal(
    paths: Mapping[str, Sequence[Path]], size: int, bits: Mapping[str, int | None] | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Upright | None], dict[str, Different]]:
    """`normal_paths`' pictures that differ, uint8 [n, 3, size, size], where each lies in the model's square,
    not its padding, bool [n, size, size], how they are turned upright if their parts lie at any angle, and
    which ones they are. bits: by category, as `data.read_image` takes them. Raises DataError for one that
    cannot be read, or if fewer than FEWEST differ.
    """
    pictures, inside, uprights, different = {}, {}, {}, {}
    for category, some in paths.items():
        depth = (bits or {}).get(category)
        pictures[category] = torch.empty(len(some), 3, size, size, dtype=torch.uint8)
        inside[category] = torch.empty(len(some), size, size, dtype=torch.bool)
        for picture, there, path in zip(pictures[category], inside[category], some):
            _read_into(picture, there, path, depth)
        different[category] = each = Different.among(some, thumbnails(pictures[category]))
        if each.copies:
            said = f"{category} has {len(some)} normal pictures, but only {len(each.paths)} different ones"
            _check_enough(len(each.paths), f"{said} ({pairs_in_words(each.copies)})")
            some, pictures[category], inside[category] = (
                each.paths, pictures[category][each.numbers], inside[category][each.numbers]
            )  # fmt: skip
        uprights[category] = _turn_upright(pictures[category], inside[category], some, depth)
    return pictures, inside, uprights, different


def _read_at(paths: Sequence[Path], size: int, bits: int | None) -> tuple[Tensor, Tensor, Upright | None]:
    """One category's pictures, where they lie and how they are turned, as `load_normal` gives them."""
    pictures = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    inside = torch.empty(len(paths), size, size, dtype=torch.bool)
    for picture, there, path in zip(pictures, inside, paths):
        _read_into(picture, there, path, bits)
    return pictures, inside, _turn_upright(pictures, inside, paths, bits)


def _turn_upright(
    pictures: Tensor, inside: Tensor, paths: Sequence[Path], bits: int | None
) -> Upright | None:
    """How these are turned upright; in place, if they are."""
    upright = Upright.fit(pictures)
    if upright is not None:
        for picture, there, path in zip(pictures, inside, paths):
            turn = upright.turn(to_float(picture, picture.device))
            _read_into(picture, there, path, bits, turn)
    return upright


def _repeated(
    different: Mapping[str, Different], sources: Sequence[str | Path], size: int,
    bits: Mapping[str, int | None],
) -> dict[str, list[str]]:
    """Sentences by category about pictures that repeat each other, and about test pictures beside them that
    are among the training pictures.
    """
    try:
        test = [sample for sample in find_all(sources, "test") if sample.split == "test"]
    except DataError:  # there are none, or nothing certain: this is training
        test = []
    found: dict[str, list[str]] = {}
    for name, each in different.items():
        if count := len(each.copies):
            given = len(each.paths) + count
            found.setdefault(name, []).append(
                f"{count} of {given} training pictures show what another one shows, and were left out: "
                f"{pairs_in_words(each.copies)}."
            )
        beside = [sample.image for sample in test if sample.category == name]
        paths, looks = thumbnails_of(beside, size, bits[name])
        first = first_alike(looks, each.looks)
        if both := [(path, each.paths[number]) for path, number in zip(paths, first) if number >= 0]:
            found.setdefault(name, []).append(
                f"{len(both)} of {len(paths)} test pictures are also among the training pictures, so that "
                f"measuring on them flatters: {pairs_in_words(both)}."
            )
    return found


def _read_into(
    picture: Tensor, inside: Tensor, path: Path, bits: int | None, turn: Turn | None = None
) -> None:
    image = read_image(path, bits)
    tiling = Tiling.whole(*image.shape[:2], picture.shape[-1], turn)
    (tile,) = tiling.tiles
    picture.copy_(to_uint8(tiling.square(image, tile)))
    inside.copy_(tiling.inside(tile))


def split_held_out(pictures: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """(for training, held out) of the first dimension; 4 to 48 pictures are held out, the same ones in every
    run: with one's own seed, a run that goes on from a checkpoint would train on what that one held out.
    """
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
    held = min(48, max(4, round(share * len(pictures))))
    return pictures[order[held:]], pictures[order[:held]]


def turned(pictures: Tensor, symmetry: int) -> Tensor:
    """One of the square's eight symmetries: 0 … 3 quarter turns, from 4 on after mirroring; [..., s, s]."""
    return torch.rot90(pictures.flip(-1) if symmetry >= 4 else pictures, symmetry % 4, (-2, -1))


@torch.no_grad()
def symmetries(extractor: FeatureExtractor, pictures: Tensor, device: torch.device) -> tuple[int, ...]:
    """The symmetries that a category allows: turned (see `turned`), its pictures look as before.

    A Gaussian per place of three quarters of the pictures measures the others, as they are and turned; a
    symmetry is allowed that moves their mean distance by less than 30 %. pictures: uint8 [n, 3, s, s].
    """
    few = pictures[:256]
    held = max(2, min(24, len(few) // 4))
    gaussian = PlaceGaussian.fit(extractor(to_float(batch, device)) for batch in few[held:].split(16))

    def distance(symmetry: int) -> float:
        batches = turned(few[:held], symmetry).split(16)
        maps = [gaussian.squared_mahalanobis(extractor(to_float(batch, device))) for batch in batches]
        return float(torch.cat(maps).mean())

    usual = distance(0)
    return (0, *(symmetry for symmetry in range(1, 8) if distance(symmetry) < 1.3 * usual))


class _Pool:
    """Training pictures with their features: `variants` seeded variants of each, shifted and turned.

    The backbone is frozen, so on the CPU the features of a variant are computed once and kept in fp16, as
    long as they fit into a quarter of the memory.
    """

    def __init__(self, run: _Run, categories: list[Tensor]) -> None:
        self.run, self.categories = run, categories
        self.allowed = [symmetries(run.extractor, pictures, run.device) for pictures in categories]
        self.kept: dict[tuple[int, int, int], Tensor] = {}
        cell = run.config.unet.feature_channels * run.config.unet.feature_grid**2 * 2
        self.room = _memory() // 4 // cell if run.device.type == "cpu" else 0

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """x_start [count, 3, s, s] in [−1, 1], the same with artificial defects on some, and the features of
        x_start; every category equally often.
        """
        keys = []
        for number in torch.rand(count, 3, generator=generator, dtype=torch.float64).tolist():
            category = int(number[0] * len(self.categories))
            picture = int(number[1] * len(self.categories[category]))
            keys.append((category, picture, int(number[2] * self.run.config.variants)))
        pictures = torch.stack([self._variant(*key) for key in keys])
        shown = self._spoiled(pictures, [key[0] for key in keys], generator)
        x_start, shown = (to_float(each, self.run.device) for each in (pictures, shown))
        missing = [index for index, key in enumerate(keys) if key not in self.kept]
        found = {}
        if missing:
            with torch.no_grad():
                features = self.run.extractor(x_start[missing])
            found = dict(zip(missing, features))
        for index, values in found.items():
            if len(self.kept) < self.room:
                self.kept[keys[index]] = values.half()
        rows = [found[i] if i in found else self.kept[key].float() for i, key in enumerate(keys)]
        return x_start, shown, torch.stack(rows)

    def _spoiled(self, pictures: Tensor, categories: list[int], generator: torch.Generator) -> Tensor:
        """A copy, uint8 [b, 3, s, s]; patches and colours come from pictures of any category, half of them
        from their own.
        """
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        shown = pictures.clone()
        for index, own in enumerate(categories):
            if rng.random() >= self.run.config.spoiled:
                continue
            picture = pictures[index].permute(1, 2, 0).numpy()
            for _ in range(rng.integers(1, 4)):
                some = self.categories[own if rng.random() < 0.5 else rng.integers(len(self.categories))]
                other = some[rng.integers(len(some))].permute(1, 2, 0).numpy()
                picture, _ = add_defect(picture, [other], KINDS[rng.integers(len(KINDS))], rng)
            shown[index] = torch.from_numpy(picture).permute(2, 0, 1)
        return shown

    def _variant(self, category: int, picture: int, variant: int) -> Tensor:
        """uint8 [3, s, s], shifted (edges repeated) and turned as (category, picture, variant) seed it."""
        image, shift = self.categories[category][picture], self.run.config.shift
        seed = (category * 1_000_003 + picture) * 1_009 + variant
        generator = torch.Generator().manual_seed(seed)
        size = image.shape[-1]
        y, x = torch.randint(0, 2 * shift + 1, (2,), generator=generator).tolist()
        padded = F.pad(image[None].float(), (shift,) * 4, mode="replicate")[0].to(torch.uint8)
        allowed = self.allowed[category]
        which = int(torch.randint(0, len(allowed), (1,), generator=generator))
        return turned(padded[:, y : y + size, x : x + size], allowed[which])


def _memory() -> int:
    """Bytes of this machine's memory; 8 GB where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 8 << 30


# -- the loop ----------------------------------------------------------------------------------------------


def _loop(run: _Run, pool: _Pool) -> Iterator[dict]:
    """Train until the budget is spent; yields a row after every step."""
    config, schedule = run.config, run.schedule
    model = DistributedDataParallel(run.network) if run.world > 1 else run.network
    run.network.train()
    begun = time.monotonic() - run.seconds
    running: dict[str, float] = {}
    while (done := _budget_spent(run, time.monotonic() - begun)) < 1:
        seed = (config.seed * 1_000_003 + run.step) * 1_009 + run.rank
        generator = torch.Generator().manual_seed(seed % (1 << 63))
        x_start, shown, features = pool.draw(config.batch, generator)
        t = (schedule.steps * torch.rand(config.batch, generator=generator) ** config.low_t).long()
        noise = torch.randn(x_start.shape, generator=generator).to(run.device)
        holes = _holes(x_start, t, config.holes, generator).to(run.device)
        warm = min(1.0, (run.step + 1) / config.warm_up)
        for group in run.optimizer.param_groups:
            group["lr"] = config.learning_rate * warm * max(0.01, 0.5 * (1 + math.cos(math.pi * done)))
        terms = hybrid_loss(
            schedule, model, x_start, features, t, noise, stride=config.stride, shown=shown, holes=holes
        )  # fmt: skip
        run.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(run.network.parameters(), config.clip)
        if torch.isfinite(norm):  # one overflowing batch must not spoil the run
            run.optimizer.step()
        # the average spans a tenth of the run so far, until that is longer than `ema` allows
        decay = min(config.ema, 1 - 10 / (run.step + 11))
        with torch.no_grad():
            for name, value in run.network.state_dict().items():
                run.average[name].lerp_(value, 1 - decay)
        run.step += 1
        run.seconds = time.monotonic() - begun
        for name, value in terms.items():
            previous = running.get(name, float(value.detach()))
            running[name] = 0.95 * previous + 0.05 * float(value.detach())
        yield {
            "step": run.step,
            "seconds": round(run.seconds, 1),
            "eta": round(run.seconds * (1 - done) / done) if done > 0.002 else None,
            "done": round(done, 5),
            **{name: round(value, 5) for name, value in running.items()},
        }


def _holes(x_start: Tensor, t: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Where each picture is noised, bool [b, 1, s, s]: everywhere, or for a share of them in a few blobs, as
    repairs ask for.
    """
    rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
    holes = torch.ones_like(x_start[:, :1], dtype=torch.bool, device="cpu")
    for index, picture in enumerate(to_uint8(x_start).permute(0, 2, 3, 1).cpu().numpy()):
        if rng.random() < share and t[index] >= FILLED_TO:
            holes[index, 0] = torch.from_numpy(random_hole(picture, rng))
    return holes


def _budget_spent(run: _Run, seconds: float) -> float:
    """Share of the budget used, in [0, 1]; all processes agree on the first one's clock."""
    if run.config.steps is not None:
        return run.step / run.config.steps
    spent = torch.tensor([seconds / (60 * run.config.minutes)], device=run.device)
    if run.world > 1:
        distributed.broadcast(spent, 0)
    return float(spent)


def _join(device: str) -> tuple[int, int, torch.device]:
    """(processes, own rank, own device), joining torchrun's group if there is one."""
    chosen = pick_device(device)
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return 1, 0, chosen
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return distributed.get_world_size(), distributed.get_rank(), chosen


# -- state of an unfinished run ----------------------------------------------------------------------------


def state_file(out: Path) -> Path:
    """What an unfinished run of `out` goes on from."""
    return out.with_suffix(".resume.safetensors")


def _write_state(run: _Run, file: Path, fingerprint: str) -> None:
    tensors = {f"network.{name}": value for name, value in run.network.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in run.average.items()}
    for name, parameter in run.network.named_parameters():
        for key, value in run.optimizer.state.get(parameter, {}).items():
            tensors[f"{key}.{name}"] = value
    tensors |= {"features.mean": run.extractor.mean, "features.std": run.extractor.std}
    progress = json.dumps({"step": run.step, "seconds": run.seconds})
    checkpoints.save_tensors(file, tensors, {"diffad.resume": progress, "fingerprint": fingerprint})


def _cut_log(file: Path, step: int) -> None:
    """Takes out of a log what comes after this step, which is done again, and a line that a kill cut off."""
    if not file.exists():
        return
    end = 0
    with file.open("r+b") as log:
        for line in log:
            try:
                if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                    break
            except (ValueError, LookupError, TypeError):
                break
            end += len(line)
        log.truncate(end)


def _read_state(run: _Run, file: Path, fingerprint: str) -> None:
    tensors, metadata = checkpoints.load_tensors(file)
    if metadata.get("fingerprint") != fingerprint:
        raise CheckpointError(
            f"{file} belongs to a run with other settings or pictures; give those again, or drop --resume"
        )
    try:
        _restore(run, tensors, metadata)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{file} is damaged ({error!r:.200}); drop --resume") from None


def _restore(run: _Run, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    run.network.load_state_dict({k[8:]: v for k, v in tensors.items() if k.startswith("network.")})
    for name in run.average:
        run.average[name].copy_(tensors[f"average.{name}"])
    for name, parameter in run.network.named_parameters():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            if f"{key}.{name}" in tensors:
                run.optimizer.state[parameter][key] = tensors[f"{key}.{name}"].to(parameter.device)
    run.extractor.mean.copy_(tensors["features.mean"])
    run.extractor.std.copy_(tensors["features.std"])
    progress = json.loads(metadata["diffad.resume"])
    run.step, run.seconds = progress["step"], progress["seconds"]
