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
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as distributed
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import diffad
from diffad import checkpoint as checkpoints
from diffad.checkpoint import Checkpoint, CheckpointError, Profile
from diffad.method.artificial_defects import random_hole
from diffad.method.devices import pick_device
from diffad.method.diffusion import Schedule, hybrid_loss
from diffad.method.features import FeatureExtractor
from diffad.method.image_score import unusual
from diffad.method.repair import FILLED_TO
from diffad.method.unet import UNet, UNetConfig
from diffad.output import append
from diffad.pictures.geometry import to_float, to_uint8
from diffad.pictures.plots import contact_sheet
from diffad.teaching.good_pictures import (
    load_normal,
    normal_paths,
    read_at,
    readable,
    repetitions,
    split_held_out,
    told_apart,
)
from diffad.teaching.pool import Pool
from diffad.teaching.recipe import TrainConfig
from diffad.teaching.sizes import find_size, in_words
from diffad.teaching.state import Run, cut_log, read_state, state_file, write_state
from diffad.teaching.statistics import fit_profile
from diffad.teaching.stress import forecast_changes

log = logging.getLogger(__name__)
_TIMED = 4  # steps
_FOREIGN = 1e-8  # share of good pictures, below which one that lies so far out is not taken for one of them
_MOST_FOREIGN = 0.2  # share of the pictures, above which they are of several kinds
_SHOWN, _LONGEST_NAME = 12, 32  # unusual pictures in one, at most, and the end of a name under each


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
    last two are in the profile's forecast, too ("duplicates"). Then at which size each category is looked
    at, if others were tried ("sizes" in the forecast). Under torchrun every process trains and the
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
    paths, bits = readable(normal_paths(sources), skip_unreadable, tell)
    pictures, inside, uprights, different = load_normal(paths, size, bits)
    paths = {name: each.paths for name, each in different.items()}
    repeated = repetitions(different, sources, size, bits)
    for name, sentences in repeated.items():
        tell(f"{name}: {' '.join(sentences)}")
    out.parent.mkdir(parents=True, exist_ok=True)  # now, not after hours
    split = {name: split_held_out(images, config.held_out) for name, images in pictures.items()}
    run = _prepare(config, base, [used for used, _ in split.values()], *_join(device))

    if config.steps != 0:
        pool = Pool(run, [used for used, _ in split.values()])
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
                    larger, there, upright = read_at(paths[name], found["size"], bits[name])
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
                profile, forecast=profile.forecast | more, upright=upright, bits=bits[name]
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
            for name, values in forecast_changes(finished, to_stress, str(run.device)).items():
                changed = {"changed": values | {"held_out": unseen[name]}}
                profiles[name] = replace(profiles[name], forecast={**profiles[name].forecast, **changed})
            checkpoints.save(out, replace(finished, profiles=profiles))
        if config.steps != 0:
            state_file(out).unlink(missing_ok=True)
    if run.world > 1:
        distributed.barrier()
        distributed.destroy_process_group()
    return out


def _fitted(
    run: Run, used: Tensor, held: Tensor, inside: Tensor, plain: bool
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
    spent = [run.seconds for _ in _loop(run, Pool(run, [pictures]))]
    return _TIMED * config.batch / (spent[-1] - spent[0])


def _prepare(
    config: TrainConfig,
    base: Checkpoint | None,
    categories: list[Tensor],
    world: int,
    rank: int,
    device: torch.device,
) -> Run:
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
    return Run(
        config,
        Schedule.named(config.schedule),
        extractor,
        network,
        {name: value.clone() for name, value in network.state_dict().items()},
        torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=0.01, fused=True),
        device, world, rank,
    )  # fmt: skip


def _fit_network(
    run: Run, pool: Pool, pictures: dict[str, Tensor], out: Path, resume: bool,
    progress: Callable[[dict], None] | None, save_every: float,
) -> None:  # fmt: skip
    """The loop with its files: log, state to resume from, loss picture."""
    state, log_file = state_file(out), out.with_suffix(".log.jsonl")
    fingerprint = json.dumps(
        {"config": asdict(run.config), "categories": {k: len(v) for k, v in pictures.items()}}, sort_keys=True
    )
    if resume:
        read_state(run, state, fingerprint)
        if run.rank == 0:
            cut_log(log_file, run.step)
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
                write_state(run, state, fingerprint)
                saved = time.monotonic()
    finally:
        if run.rank == 0:
            write_state(run, state, fingerprint)
    if run.rank == 0 and log_file.exists():
        from diffad.pictures.plots import loss_plot

        rows = [json.loads(line) for line in log_file.read_text().splitlines()]
        loss_plot(rows, out.with_suffix(".loss.png"))


# -- the loop ----------------------------------------------------------------------------------------------


def _loop(run: Run, pool: Pool) -> Iterator[dict]:
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


def _budget_spent(run: Run, seconds: float) -> float:
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
