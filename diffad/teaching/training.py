"""Training: one network for all categories, then a profile for each.

A run can be interrupted and resumed at any time, and use one process or several (torchrun).
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import diffad
from diffad import checkpoint as checkpoints
from diffad.checkpoint import Checkpoint, CheckpointError
from diffad.method.devices import pick_device
from diffad.method.diffusion import Schedule, hybrid_loss
from diffad.method.encoding import rounded
from diffad.method.features import FeatureExtractor
from diffad.method.unet import UNet, UNetConfig
from diffad.output import append
from diffad.pictures.geometry import to_float
from diffad.pictures.plots import loss_plot
from diffad.teaching.categories import learn_category, pictures_in
from diffad.teaching.draws import Draw, Draws, Features, workers_for
from diffad.teaching.good_pictures import (
    GoodPictures,
    load_normal,
    normal_paths,
    readable,
    repetitions,
    split_held_out,
)
from diffad.teaching.recipe import TrainConfig
from diffad.teaching.robustness import forecast_changes
from diffad.teaching.state import Run, cut_log, read_state, state_file, write_state

log = logging.getLogger(__name__)
_TIMED = 4  # steps in `training_rate`


def train(
    config: TrainConfig,
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    resume: bool = False,
    start_from: str | Path | None = None,
    device: str = "auto",
    progress: Callable[[dict[str, Any]], bool | None] | None = None,
    snapshot: Callable[[Run], None] | None = None,
    save_every: float = 60,
    skip_unreadable: bool = False,
    tell: Callable[[str], None] = log.info,
) -> Path:
    """Train on the normal pictures of `sources` and write the checkpoint `out`.

    Besides the checkpoint, a run writes <stem>.log.jsonl (a JSON line every ten steps), <stem>.loss.png,
    <stem>.<category>.unusual.png if good pictures are unusual, and <stem>.resume.safetensors until it is
    finished. Under torchrun every process trains, and the first one writes.

    Args:
        config: the recipe.
        sources: folders of pictures, see `samples.find_all`.
        out: the checkpoint's file, *.safetensors.
        resume: continue an interrupted run.
        start_from: a checkpoint to start from: its network, its standardisation of features and, if the
            network does not change (0 steps), its profiles.
        device: "auto", "cpu" or "cuda".
        progress: called with {step, seconds, eta, done, loss, …} after every step. In a single process, True
            ends the training there: the model is finished as it is.
        snapshot: called with the run whenever its state has been written.
        save_every: seconds between saved states; a state is also saved when the run is interrupted.
        skip_unreadable: leave out pictures that cannot be read.
        tell: called with messages for the user: before the training, which pictures are left out, their bit
            depth, duplicates, and test pictures among them; after it, the size at which each category is
            inspected and where its unusual pictures are shown.

    Returns:
        The path of the checkpoint.

    Raises:
        DataError: pictures are missing, too few or cannot be read.
        CheckpointError: the request makes no sense, or a checkpoint or state cannot be used.
        OutputError: a file cannot be written.
    """
    out = Path(out)
    _check_request(config, out, resume, start_from)
    base = checkpoints.load(start_from) if start_from else None
    config = _continued(config, base)
    size = config.size or config.unet.size
    paths, bits = readable(normal_paths(sources), skip_unreadable, tell)
    good, different = load_normal(paths, size, bits)
    repeated = repetitions(different, sources, size, bits)
    for name, sentences in repeated.items():
        if sentences:
            tell(f"{name}: {' '.join(sentences)}")
    out.parent.mkdir(parents=True, exist_ok=True)  # fail now rather than after hours
    used = [split_held_out(each.pictures, config.held_out)[0] for each in good.values()]
    run = _prepare(config, base, used, *_join(device))
    if config.steps != 0:
        counts = {name: len(each.paths) for name, each in good.items()}
        _fit_network(run, Draws.of(run, used), counts, out, resume, progress, snapshot, save_every)
    if run.rank == 0:
        _write_checkpoint(run, base, start_from, good, repeated, out, tell)
    if run.world > 1:
        distributed.barrier()
        distributed.destroy_process_group()
    return out


def _check_request(config: TrainConfig, out: Path, resume: bool, start_from: str | Path | None) -> None:
    if out.suffix != ".safetensors":
        raise CheckpointError(f"the checkpoint's name must end in .safetensors, not {out.name!r}")
    if config.steps == 0 and not start_from:
        raise CheckpointError("with 0 steps only statistics are fitted: start from a checkpoint")
    if config.steps == 0 and resume:
        raise CheckpointError(
            "with 0 steps there is nothing to resume: give the steps or minutes of the interrupted run"
        )
    if resume and not state_file(out).exists():
        raise CheckpointError(f"there is no unfinished run to resume ({state_file(out)}): omit --resume")


def _write_checkpoint(
    run: Run, base: Checkpoint | None, start_from: str | Path | None, good: Mapping[str, GoodPictures],
    repeated: Mapping[str, list[str]], out: Path, tell: Callable[[str], None],
) -> None:  # fmt: skip
    """Fit every category's profile and write the checkpoint; then test robustness and write it again."""
    config = run.config
    run.network.load_state_dict(rounded(run.average))  # profiles must match the stored, rounded weights
    learned = {
        name: learn_category(run, base, name, each, repeated[name], out, tell) for name, each in good.items()
    }
    profiles = dict(base.profiles) if base and config.steps == 0 else {}
    profiles |= {name: each.profile for name, each in learned.items()}
    counts = {name: len(each.paths) for name, each in good.items()}
    finished = Checkpoint(
        config.unet, run.network.state_dict(), config.backbone, run.extractor.mean, run.extractor.std,
        profiles, pixel_score=config.pixel_score, stride=config.stride,
        provenance=_provenance(run, base, start_from, counts, profiles),
    )  # fmt: skip
    checkpoints.save(out, finished)  # now, because the next step may fail
    if config.stressed:
        judged = {name: each.judged for name, each in learned.items()}
        for name, values in forecast_changes(finished, judged, str(run.device)).items():
            changed = values | {"held_out": learned[name].unseen}
            forecast = {**profiles[name].forecast, "changed": changed}
            profiles[name] = replace(profiles[name], forecast=forecast)
        checkpoints.save(out, replace(finished, profiles=profiles))
    if config.steps != 0:
        state_file(out).unlink(missing_ok=True)


def _provenance(
    run: Run, base: Checkpoint | None, start_from: str | Path | None, counts: Mapping[str, int],
    categories: Iterable[str],
) -> dict[str, Any]:  # fmt: skip
    """Where a model comes from. counts: good pictures by category. categories: all that the model knows."""
    config, before = run.config, base.provenance if base else {}
    known = pictures_in(before)
    kept = {name: known[name] for name in categories if name in known and name not in counts}
    # The pictures of the checkpoint that the run started from keep their licences.
    licences = [each.strip() for each in f"{config.licence};{before.get('licence') or ''}".split(";")]
    return {
        "version": diffad.__version__,
        "data": {**kept, **counts},
        "licence": "; ".join(dict.fromkeys(filter(None, licences))),
        "steps": run.step,
        "pictures_seen": run.step * config.batch * run.world,
        "minutes": round(run.seconds / 60, 1),
        "seed": config.seed,
        "learning_rate": config.learning_rate,
        "started_from": {"name": Path(start_from).stem, **before} if start_from else None,
    }


def _continued(config: TrainConfig, base: Checkpoint | None) -> TrainConfig:
    """The recipe with the network of `base`, to be trained at the recipe's size.

    Raises:
        CheckpointError: the size does not suit the network.
    """
    if base:
        try:
            config = replace(
                config, unet=base.config, backbone=base.backbone, pixel_score=base.pixel_score,
                stride=base.stride,
            )  # fmt: skip
        except ValueError as error:
            raise CheckpointError(str(error)) from error
    if config.size is not None and config.steps != 0:
        config = replace(config, unet=replace(config.unet, size=config.size))
    return config


def training_rate(unet: UNetConfig, backbone: str, picture: Tensor, device: torch.device) -> float:
    """The speed of training in pictures per second, on a CPU after all features have been computed.

    Args:
        unet, backbone: the networks.
        picture: uint8 [3, size, size].
        device: where to train.
    """
    config = TrainConfig(steps=_TIMED + 1, unet=unet, backbone=backbone, variants=1)
    pictures = picture.expand(8, -1, -1, -1)  # so few that nearly all features are known after the first step
    run = _prepare(config, None, [pictures], 1, 0, device)
    spent = [run.seconds for _ in _loop(run, Draws.of(run, [pictures]))]
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
        raise ValueError(
            f"{config.backbone} has {extractor.channels} channels: feature_channels must be the same"
        )
    if base:
        network.load_state_dict(base.network)
        extractor.mean.copy_(base.feature_mean)
        extractor.std.copy_(base.feature_std)
    if not base or config.steps != 0:
        some = torch.cat([pictures[: 512 // len(categories) + 1] for pictures in categories])
        mean, std = extractor.mean.clone(), extractor.std.clone()
        extractor.fit_standardisation(to_float(batch, device) for batch in some.split(16))
        if base:
            _rescale_head(network, mean, std, extractor)
    return Run(
        config,
        Schedule.linear(),
        extractor,
        network,
        {name: value.clone() for name, value in network.state_dict().items()},
        torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=0.01, fused=True),
        device, world, rank,
    )  # fmt: skip


@torch.no_grad()
def _rescale_head(network: UNet, mean: Tensor, std: Tensor, extractor: FeatureExtractor) -> None:
    """Convert the head's predictions to the new standardisation. mean, std: the old one, [c] each."""
    head = network.feature_head[-1]
    assert isinstance(head, nn.Conv2d) and head.bias is not None
    head.weight.mul_((std / extractor.std).view(-1, 1, 1, 1))
    head.bias.mul_(std).add_(mean - extractor.mean).div_(extractor.std)


def _fit_network(
    run: Run, draws: Draws, counts: Mapping[str, int], out: Path, resume: bool,
    progress: Callable[[dict[str, Any]], bool | None] | None, snapshot: Callable[[Run], None] | None,
    save_every: float,
) -> None:  # fmt: skip
    """Run the training loop and write its log, states and loss plot. counts: pictures by category."""
    state, log_file = state_file(out), out.with_suffix(".log.jsonl")
    fingerprint = json.dumps({"config": asdict(run.config), "categories": counts}, sort_keys=True)
    if resume:
        read_state(run, state, fingerprint)
        if run.rank == 0:
            cut_log(log_file, run.step)
    elif run.rank == 0:
        if state.exists():
            log.warning(
                "%s is an unfinished run; it starts again from the beginning (--resume would continue it)",
                state,
            )
        log_file.unlink(missing_ok=True)
    saved = time.monotonic()
    try:
        for row in _loop(run, draws):
            if run.rank:
                continue
            if row["step"] % 10 == 1:
                append(log_file, json.dumps(row))
            if progress and progress(row) and run.world == 1:
                break
            if time.monotonic() - saved > save_every:
                write_state(run, state, fingerprint)
                if snapshot:
                    snapshot(run)
                saved = time.monotonic()
    finally:
        if run.rank == 0:
            write_state(run, state, fingerprint)
    if run.rank == 0 and log_file.exists():
        rows = [json.loads(line) for line in log_file.read_text().splitlines()]
        loss_plot(rows, out.with_suffix(".loss.png"))


# ---------------------------------------------------------------------------------------------------------
# The loop


def _loop(run: Run, draws: Draws) -> Iterator[dict[str, Any]]:
    """Train until the budget is spent; yields a row of the log after every step."""
    model = DistributedDataParallel(run.network) if run.world > 1 else run.network
    run.network.train()
    features, batches = Features(run), draws.batches(run.step, workers_for(run))
    begun = time.monotonic() - run.seconds
    running: dict[str, float] = {}
    while (done := _budget_spent(run, time.monotonic() - begun)) < 1:
        terms = _step(run, model, next(batches), features, done)
        _average(run)
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


def _step(run: Run, model: nn.Module, draw: Draw, features: Features, done: float) -> dict[str, Tensor]:
    """Take one step of the optimiser; returns the loss and its terms. done: share of the budget used."""
    config = run.config
    x_start, shown = (to_float(torch.from_numpy(each), run.device) for each in (draw.pictures, draw.shown))
    noise, holes = (torch.from_numpy(each).to(run.device) for each in (draw.noise, draw.holes))
    warm = min(1.0, (run.step + 1) / config.warm_up)
    for group in run.optimizer.param_groups:
        group["lr"] = config.learning_rate * warm * max(0.01, 0.5 * (1 + math.cos(math.pi * done)))
    terms = hybrid_loss(
        run.schedule, model, x_start, features(draw.keys, x_start), torch.from_numpy(draw.t), noise,
        stride=config.stride, shown=shown, holes=holes,
    )  # fmt: skip
    run.optimizer.zero_grad(set_to_none=True)
    terms["loss"].backward()
    norm = torch.nn.utils.clip_grad_norm_(run.network.parameters(), config.clip)
    if torch.isfinite(norm):  # one overflowing batch must not ruin the run
        run.optimizer.step()
    return terms


@torch.no_grad()
def _average(run: Run) -> None:
    """Update the average of the weights, which spans a tenth of the run so far, limited by `ema`.

    `torch.optim.swa_utils.AveragedModel` does the same except for the first step, which it copies.
    """
    decay = min(run.config.ema, 1 - 10 / (run.step + 11))
    for name, value in run.network.state_dict().items():
        run.average[name].lerp_(value, 1 - decay)


def _budget_spent(run: Run, seconds: float) -> float:
    """Share of the budget used, from 0 to 1; all processes use the clock of the first."""
    if run.config.steps is not None:
        return run.step / run.config.steps
    assert run.config.minutes is not None  # a recipe has one of the two
    spent = torch.tensor([seconds / (60 * run.config.minutes)], device=run.device)
    if run.world > 1:
        distributed.broadcast(spent, 0)
    return float(spent)


def _join(device: str) -> tuple[int, int, torch.device]:
    """Join torchrun's group if there is one; returns (number of processes, own rank, own device)."""
    chosen = pick_device(device)
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return 1, 0, chosen
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return distributed.get_world_size(), distributed.get_rank(), chosen
