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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
import torch.distributed as distributed
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import diffad
from diffad import checkpoint as checkpoints
from diffad.checkpoint import Checkpoint, CheckpointError, Profile
from diffad.data import DataError, find_samples, read_image, to_square
from diffad.diffusion import Schedule, hybrid_loss
from diffad.features import DEFAULT_BACKBONE, FeatureExtractor
from diffad.gaussian import PlaceGaussian
from diffad.scoring import (
    CALIBRATION_TIMESTEPS,
    TIMESTEPS,
    Calibration,
    RawMaps,
    evidence,
    feature_maps,
    residual_whitening,
)
from diffad.unet import UNet, UNetConfig, pick_device

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainConfig:
    """Recipe of one run. Exactly one of steps and minutes rules the learning rate and the end; 0 steps fit
    profiles only.

    batch: pictures a step and process. shift: largest random translation, px. flips: random mirroring and
    quarter turns, for textures and parts that may lie anyhow. low_t: t = T·u^low_t, so 2 favours the
    timesteps that are scored, 1 is uniform. held_out: share of each category's normal pictures kept from
    training to calibrate on (4 to 48 pictures). shrinkage: of the feature residual's covariance towards its
    diagonal, see scoring.residual_whitening; 1 is the paper's (10). by_place: divide maps by how hard each
    place is in good pictures, see scoring.place_level.
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
    shift: int = 4
    flips: bool = False
    held_out: float = 0.15
    pixel_score: str = "uncertainty"
    stride: int = 4
    shrinkage: float = 1.0
    by_place: bool = False
    seed: int = 0
    licence: str = ""

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give either steps or minutes")
        if (self.steps or 0) < 0 or (self.minutes is not None and self.minutes <= 0) or self.batch < 1:
            raise ValueError("steps, minutes and batch must be positive")


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
) -> Path:
    """Train on the normal pictures of `sources` and write the checkpoint `out`; returns its path.

    Beside it: <stem>.log.jsonl (a JSON line every ten steps), <stem>.loss.png, and while unfinished
    <stem>.resume.safetensors, written every `save_every` seconds and at an interruption, from which
    `resume=True` goes on. start_from: checkpoint whose network and feature standardisation are the start; its
    profiles are kept only if the network does not change (0 steps). progress: called with {step, seconds,
    eta, done, loss, …} after every step. Under torchrun every process trains and the first one writes.
    Raises DataError, CheckpointError.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise CheckpointError(f"the checkpoint's name must end in .safetensors, not {out.name!r}")
    base = checkpoints.load(start_from) if start_from else None
    if base:
        config = replace(
            config, unet=base.config, backbone=base.backbone, schedule=base.schedule,
            pixel_score=base.pixel_score, stride=base.stride,
        )  # fmt: skip
    pictures = load_normal(sources, config.unet.size)
    split = {name: split_held_out(images, config.held_out, config.seed) for name, images in pictures.items()}
    training_set = torch.cat([used for used, _ in split.values()])
    run = _prepare(config, base, training_set, *_join(device))

    if config.steps != 0:
        _fit_network(run, training_set, pictures, out, resume, progress, save_every)
    if run.rank == 0:
        run.network.load_state_dict(run.average)
        # the profiles must belong to the weights that are stored, which are rounded to fp16
        run.network.load_state_dict({k: v.half().float() for k, v in run.network.state_dict().items()})
        profiles = dict(base.profiles) if base and config.steps == 0 else {}
        for name, (used, held) in split.items():
            profiles[name] = fit_profile(
                run.network, run.extractor, run.schedule, used, held, config, run.device
            )
        provenance = {
            "version": diffad.__version__,
            "data": {name: len(images) for name, images in pictures.items()},
            "licence": config.licence,
            "steps": run.step,
            "pictures_seen": run.step * config.batch * run.world,
            "minutes": round(run.seconds / 60, 1),
            "seed": config.seed,
            "learning_rate": config.learning_rate,
            "shrinkage": config.shrinkage,
            "by_place": config.by_place,
            "started_from": {"name": Path(start_from).stem, **base.provenance} if base else None,
        }
        checkpoints.save(
            out,
            Checkpoint(
                config.unet, run.network.state_dict(), config.backbone, run.extractor.mean, run.extractor.std,
                profiles, config.schedule, config.pixel_score, config.stride, provenance,
            ),
        )  # fmt: skip
        _state_file(out).unlink(missing_ok=True)
    if run.world > 1:
        distributed.barrier()
        distributed.destroy_process_group()
    return out


def _prepare(
    config: TrainConfig,
    base: Checkpoint | None,
    pictures: Tensor,
    world: int,
    rank: int,
    device: torch.device,
) -> _Run:
    torch.manual_seed(config.seed)
    network = UNet(config.unet).to(device)
    extractor = FeatureExtractor(config.backbone, config.unet.feature_grid).to(device)
    if extractor.channels != config.unet.feature_channels:
        raise ValueError(f"{config.backbone} has {extractor.channels} channels: set feature_channels to it")
    if base:
        network.load_state_dict(base.network)
        extractor.mean.copy_(base.feature_mean)
        extractor.std.copy_(base.feature_std)
    else:
        some = pictures[
            torch.randperm(len(pictures), generator=torch.Generator().manual_seed(config.seed))[:512]
        ]
        extractor.fit_standardisation(to_float(batch, device) for batch in some.split(16))
    return _Run(
        config,
        Schedule.linear() if config.schedule == "linear" else Schedule.cosine(),
        extractor,
        network,
        {name: value.clone() for name, value in network.state_dict().items()},
        torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=0.01, fused=True),
        device, world, rank,
    )  # fmt: skip


def _fit_network(
    run: _Run, training_set: Tensor, pictures: dict[str, Tensor], out: Path, resume: bool,
    progress: Callable[[dict], None] | None, save_every: float,
) -> None:  # fmt: skip
    """The loop with its files: log, state to resume from, loss picture."""
    state_file, log_file = _state_file(out), out.with_suffix(".log.jsonl")
    fingerprint = json.dumps(
        {"config": asdict(run.config), "categories": {k: len(v) for k, v in pictures.items()}}, sort_keys=True
    )
    if resume:
        _read_state(run, state_file, fingerprint)
    elif run.rank == 0:
        if state_file.exists():
            log.warning("%s is an unfinished run; it is started over (--resume would go on)", state_file)
        log_file.unlink(missing_ok=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    saved = time.monotonic()
    try:
        for row in _loop(run, training_set):
            if run.rank:
                continue
            if row["step"] % 10 == 1:
                with log_file.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            if progress:
                progress(row)
            if time.monotonic() - saved > save_every:
                _write_state(run, state_file, fingerprint)
                saved = time.monotonic()
    finally:
        if run.rank == 0:
            _write_state(run, state_file, fingerprint)
    if run.rank == 0 and log_file.exists():
        from diffad.render import loss_plot  # brings matplotlib

        rows = [json.loads(line) for line in log_file.read_text().splitlines()]
        loss_plot(rows, out.with_suffix(".loss.png"))


# -- data ----------------------------------------------------------------------------------------------------


def load_normal(sources: Sequence[str | Path], size: int) -> dict[str, Tensor]:
    """Normal training pictures by category: uint8 [n, 3, size, size]. Raises DataError if a category has
    fewer than 8.
    """
    found: dict[str, list[Path]] = {}
    for source in sources:
        for sample in find_samples(Path(source)):
            if (sample.split == "train" and sample.defect == "good") or sample.split == "":
                found.setdefault(sample.category, []).append(sample.image)
    if not found:
        raise DataError(
            "no normal training pictures found: expected <category>/train/good or a folder of pictures"
        )
    pictures = {}
    for category, paths in sorted(found.items()):
        if len(paths) < 8:
            raise DataError(
                f"{category} has {len(paths)} normal pictures; at least 8 are needed, 30 or more are better"
            )
        squares = [to_square(read_image(path), size)[0] for path in paths]
        pictures[category] = torch.stack([to_uint8(square) for square in squares])
    return pictures


def split_held_out(pictures: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """(for training, held out), a seeded split; 4 to 48 pictures are held out."""
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))
    held = min(48, max(4, round(share * len(pictures))))
    return pictures[order[held:]], pictures[order[:held]]


def to_uint8(square: Tensor) -> Tensor:
    return ((square + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_float(pictures: Tensor, device: torch.device) -> Tensor:
    """uint8 [b, 3, s, s] → float32 in [−1, 1] on the device."""
    return pictures.to(device).float() / 127.5 - 1


def augment(pictures: Tensor, config: TrainConfig, generator: torch.Generator) -> Tensor:
    """Random shifts (edges repeated) and, if allowed, mirror images and quarter turns; uint8 [b, 3, s, s]."""
    size, shift = pictures.shape[-1], config.shift
    if shift:
        padded = F.pad(pictures.float(), (shift,) * 4, mode="replicate").to(torch.uint8)
        offsets = torch.randint(0, 2 * shift + 1, (len(pictures), 2), generator=generator).tolist()
        pictures = torch.stack([p[:, y : y + size, x : x + size] for p, (y, x) in zip(padded, offsets)])
    if config.flips:
        turns = torch.randint(0, 8, (len(pictures),), generator=generator).tolist()
        pictures = torch.stack(
            [
                torch.rot90(p.flip(-1) if turn >= 4 else p, turn % 4, (-2, -1))
                for p, turn in zip(pictures, turns)
            ]
        )
    return pictures


# -- the loop ----------------------------------------------------------------------------------------------


def _loop(run: _Run, pictures: Tensor) -> Iterator[dict]:
    """Train until the budget is spent; yields a row after every step."""
    config, schedule = run.config, run.schedule
    model = DistributedDataParallel(run.network) if run.world > 1 else run.network
    run.network.train()
    begun = time.monotonic() - run.seconds
    running: dict[str, float] = {}
    while (done := _budget_spent(run, time.monotonic() - begun)) < 1:
        generator = torch.Generator().manual_seed((config.seed * 1_000_003 + run.step) * 1_009 + run.rank)
        chosen = pictures[torch.randint(0, len(pictures), (config.batch,), generator=generator)]
        x_start = to_float(augment(chosen, config, generator), run.device)
        t = (schedule.steps * torch.rand(config.batch, generator=generator) ** config.low_t).long()
        noise = torch.randn(x_start.shape, generator=generator).to(run.device)
        warm = min(1.0, (run.step + 1) / config.warm_up)
        for group in run.optimizer.param_groups:
            group["lr"] = config.learning_rate * warm * max(0.01, 0.5 * (1 + math.cos(math.pi * done)))
        with torch.no_grad():
            features = run.extractor(x_start)
        terms = hybrid_loss(schedule, model, x_start, features, t, noise, stride=config.stride)
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


def _state_file(out: Path) -> Path:
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


def _read_state(run: _Run, file: Path, fingerprint: str) -> None:
    tensors, metadata = checkpoints.load_tensors(file)
    if metadata.get("fingerprint") != fingerprint:
        raise CheckpointError(
            f"{file} belongs to a run with other settings or pictures; give those again, or drop --resume"
        )
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


# -- profiles ------------------------------------------------------------------------------------------------


@torch.no_grad()
def fit_profile(
    network: UNet,
    extractor: FeatureExtractor,
    schedule: Schedule,
    used: Tensor,
    held: Tensor,
    config: TrainConfig,
    device: torch.device,
) -> Profile:
    """Gaussian of all normal pictures; residual covariance and calibration of the held-out ones, uint8 [n, 3,
    s, s].

    The calibration scores each half of the held-out pictures with the covariance of the other half: scored
    with their own, good pictures would look better than the next good picture will.
    """
    network.eval()
    gaussian = PlaceGaussian.fit(
        extractor(to_float(batch, device)) for batch in torch.cat([used, held]).split(16)
    )
    pixel, residual = [], []
    for picture in held.split(1):
        x_start = to_float(picture, device)
        maps, rest = evidence(
            schedule,
            network,
            x_start,
            extractor(x_start),
            CALIBRATION_TIMESTEPS,
            seed=config.seed,
            kind=config.pixel_score,
            stride=config.stride,
        )
        pixel.append(maps.cpu())
        residual.append(rest.half().cpu())
    pixel, residual = torch.cat(pixel), torch.cat(residual)  # [n, t, s, s], [n, t, 1, c, g, g]

    usual = [index for index, t in enumerate(CALIBRATION_TIMESTEPS) if t <= max(TIMESTEPS)]

    def whitening(rest: Tensor) -> Tensor:
        return residual_whitening(rest[:, usual].float().movedim(3, -1).flatten(0, -2), config.shrinkage)

    halves = (slice(0, None, 2), slice(1, None, 2))
    feature = torch.zeros_like(pixel)
    for own, other in (halves, halves[::-1]):
        factor = whitening(residual[other])
        for index in range(*own.indices(len(residual))):
            feature[index] = feature_maps(residual[index : index + 1].float(), factor, pixel.shape[-1])[0]
    calibration = Calibration.fit(RawMaps(pixel, feature, CALIBRATION_TIMESTEPS), config.by_place)
    return Profile(gaussian.to(torch.device("cpu")), whitening(residual), calibration)
