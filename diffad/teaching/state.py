"""A training run, and its state on disk, from which it can be resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffad import checkpoint as checkpoints
from diffad.checkpoint import CheckpointError
from diffad.method.diffusion import Schedule
from diffad.method.features import FeatureExtractor
from diffad.method.unet import UNet
from diffad.teaching.recipe import TrainConfig


@dataclass
class Run:
    """A training run.

    Attributes:
        average: moving average of the network's weights.
        world, rank: number of processes, and this one's number.
        step, seconds: progress so far.
    """

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


def state_file(out: Path) -> Path:
    """The file from which an unfinished run that writes `out` is resumed."""
    return out.with_suffix(".resume.safetensors")


def write_state(run: Run, file: Path, fingerprint: str) -> None:
    """Write a run's state atomically. fingerprint: identifies the recipe and the pictures."""
    tensors = {f"network.{name}": value for name, value in run.network.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in run.average.items()}
    for name, parameter in run.network.named_parameters():
        for key, value in run.optimizer.state.get(parameter, {}).items():
            tensors[f"{key}.{name}"] = value
    tensors |= {"features.mean": run.extractor.mean, "features.std": run.extractor.std}
    progress = json.dumps({"step": run.step, "seconds": run.seconds})
    checkpoints.save_tensors(file, tensors, {"diffad.resume": progress, "fingerprint": fingerprint})


def cut_log(file: Path, step: int) -> None:
    """Remove the steps after `step`, which will be repeated, and an incomplete line from a log."""
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


def read_state(run: Run, file: Path, fingerprint: str) -> None:
    """Restore a run from the file of `write_state`. Raises CheckpointError if it belongs to another run."""
    tensors, metadata = checkpoints.load_tensors(file)
    if metadata.get("fingerprint") != fingerprint:
        raise CheckpointError(
            f"{file} belongs to a run with other settings or pictures; use the same ones, or omit --resume"
        )
    try:
        _restore(run, tensors, metadata)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{file} is damaged ({error!r:.200}); omit --resume") from None


def _restore(run: Run, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
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
