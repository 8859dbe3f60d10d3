"""`diffad train` and `diffad samples`."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffad.cli.common import FINISHED, Refused, check_folder, must_exist
from diffad.cli.console import document, say, training_bar
from diffad.cli.options import (
    DATA,
    DEVICE,
    JSON,
    SEED,
    add,
    command,
    file_path,
    flag,
    number_list,
    option,
    real,
    whole,
)
from diffad.output import OutputError

if TYPE_CHECKING:
    from diffad.cli.options import Commands
    from diffad.teaching.recipe import TrainConfig


def add_train(commands: Commands) -> None:
    own = command(
        commands, train, "train a model on good parts", """
DATA: an MVTec category folder (its train/good), a folder of such categories, or a folder of pictures of good
parts, named after the category. A log (JSON lines) and a plot of the loss are written beside the checkpoint.
With several GPUs: torchrun --nproc-per-node N -m diffad train …""",
    )  # fmt: skip
    add(
        own.add_mutually_exclusive_group(required=True),
        option("--minutes", "M", real(0.001, 1_000_000), "training time in minutes"),
        option("--steps", "N", whole(0, 10**9), "training steps; 0 only fits the statistics of good parts"),
    )
    add(
        own,
        DATA,
        ("--out", {"metavar": "FILE", "type": file_path, "required": True, "help": "write *.safetensors"}),
        flag("--skip-unreadable", "leave out pictures that cannot be read, and list them"),
        flag("--resume", "continue an interrupted run; give the same options"),
        option("--from", "CHECKPOINT", file_path, "start from this checkpoint", dest="start"),
        option("--batch", "N", whole(1, 4096), "pictures per step", 16),
        option("--learning-rate", "X", real(1e-9, 1), "highest learning rate", 8e-4),
        SEED, option("--licence", "TEXT", str, "the pictures' licence, kept in the checkpoint", ""),
        option(
            "--size", "PX", whole(32, 1024),
            "side of the square in which pictures are inspected (default: 256, or up to 512 if that finds "
            "small artificial defects better)",
        ),
        option("--channels", "C,C,…", number_list, "width of each level (default: 64,128,192,192)"),
        option("--backbone", "NAME", str, "timm model of the features, downloaded (default: a bundled one)"),
        DEVICE, JSON,
    )  # fmt: skip


def train(arguments: argparse.Namespace) -> int:
    from diffad.pictures.samples import listed, short
    from diffad.teaching import training
    from diffad.teaching.good_pictures import normal_paths
    from diffad.teaching.state import state_file

    config = _recipe(arguments)
    categories = normal_paths(arguments.data)
    started = time.perf_counter()
    first = int(os.environ.get("RANK", "0")) == 0  # under torchrun only one process prints
    if first:  # shows a missing folder, or two kinds of part in one, before hours are spent
        for name, paths in categories.items():
            folders = listed(dict.fromkeys(short(path.parent, 2) for path in paths))
            say(f"{name}: {len(paths)} good pictures from {folders}")
    with document(arguments.json) as put, training_bar() as progress:
        try:
            path = training.train(
                config,
                arguments.data,
                arguments.out,
                resume=arguments.resume,
                start_from=arguments.start,
                device=arguments.device,
                progress=progress,
                skip_unreadable=arguments.skip_unreadable,
                tell=say if first else lambda _: None,
            )
        except (KeyboardInterrupt, OutputError):
            if state_file(arguments.out).exists():
                say("to continue, give the same options and --resume")
            raise
        if first:
            seconds = round(time.perf_counter() - started, 1)
            forecasts, text = _forecasts(path, categories)
            put({"checkpoint": str(path), "seconds": seconds, "forecast": forecasts}, text)
    return FINISHED


def _recipe(arguments: argparse.Namespace) -> TrainConfig:
    """The recipe that the options ask for. Raises Refused if they are not usable."""
    from diffad.method.devices import pick_device
    from diffad.method.features import FeatureExtractor
    from diffad.method.unet import UNetConfig
    from diffad.teaching.recipe import TrainConfig

    sizes: dict[str, Any] = {"channels": tuple(arguments.channels)} if arguments.channels else {}
    if arguments.start and (sizes or arguments.backbone):
        raise Refused("--channels and --backbone come from the checkpoint given with --from")
    if arguments.out.suffix != ".safetensors":
        raise Refused(f"--out must end in .safetensors, not {arguments.out.name!r}")
    if arguments.out.is_dir():
        raise Refused(f"{arguments.out} is a folder: --out names a file")
    check_folder(arguments.out.parent)
    for source in (*arguments.data, *filter(None, [arguments.start])):
        must_exist(source)
    names = ("steps", "minutes", "batch", "learning_rate", "seed", "licence", "size")
    recipe = {name: getattr(arguments, name) for name in names}
    try:
        pick_device(arguments.device)
        if arguments.backbone:
            recipe["backbone"] = arguments.backbone
            sizes["feature_channels"] = FeatureExtractor(arguments.backbone).channels
        return TrainConfig(unet=UNetConfig(**sizes), **recipe)
    except ValueError as error:
        raise Refused(str(error)) from error


def _forecasts(path: Path, categories: Iterable[str]) -> tuple[dict[str, Any], str]:
    """The forecasts of a new checkpoint by category, and all that there is to say about it."""
    from diffad import checkpoint
    from diffad.teaching.forecast import in_words

    profiles = checkpoint.load(path).profiles
    forecasts = {name: profiles[name].forecast for name in categories}
    lines = [f"wrote {path}: try it with `diffad inspect PICTURE --checkpoint {path}`"]
    lines += [
        f"{name}: parts at any angle, which are turned upright before inspection"
        for name in forecasts
        if profiles[name].upright
    ]
    lines += [in_words(name, values) for name, values in forecasts.items()]
    return forecasts, "\n".join(lines)


def add_samples(commands: Commands) -> None:
    command(
        commands, samples, "write a set of synthetic parts with defects and masks", """
DIR gets the MVTec layout, which train and evaluate read. Numbers are per category.""",
        ("folder", {"metavar": "DIR", "type": file_path, "help": "a new or empty folder"}),
        ("--category", {"metavar": "NAME", "action": "append", "help": "only this one (default: all)"}),
        option("--train", "N", whole(0, 10**5), "good parts for training", 200),
        option("--good", "N", whole(0, 10**5), "good parts for testing", 30),
        option("--defective", "N", whole(0, 10**5), "defective parts for testing", 60),
        option("--size", "PX", whole(64, 1024), "side of the pictures", 256),
        SEED, JSON,
    )  # fmt: skip


def samples(arguments: argparse.Namespace) -> int:
    from diffad.synthetic.parts import CATEGORIES, write_set

    root = arguments.folder
    check_folder(root)
    if root.is_dir() and any(root.iterdir()):
        raise Refused(f"{root} is not empty: name a new folder")
    if not arguments.train + arguments.good + arguments.defective:
        raise Refused("all numbers are 0: give --train, --good or --defective")
    with document(arguments.json) as put:
        chosen = list(dict.fromkeys(arguments.category or CATEGORIES))
        numbers = arguments.train, arguments.good, arguments.defective
        write_set(root, chosen, *numbers, arguments.size, arguments.seed)
        count = len(chosen) * sum(numbers)
        put(
            {"folder": str(root), "categories": chosen, "pictures": count},
            f"wrote {count} pictures of {', '.join(chosen)} to {root}",
        )
    return FINISHED
