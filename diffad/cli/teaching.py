"""`diffad train` and `diffad samples`."""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

from diffad.cli.common import FINISHED, Refused, check_folder, must_exist
from diffad.cli.console import document, say, training_bar
from diffad.output import OutputError


def train(arguments: argparse.Namespace) -> int:
    from diffad import checkpoint
    from diffad.method.devices import pick_device
    from diffad.method.features import FeatureExtractor
    from diffad.method.unet import UNetConfig
    from diffad.pictures.samples import listed, short
    from diffad.teaching import training
    from diffad.teaching.forecast import in_words
    from diffad.teaching.good_pictures import normal_paths
    from diffad.teaching.recipe import TrainConfig
    from diffad.teaching.state import state_file

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
    categories = normal_paths(arguments.data)
    names = ("steps", "minutes", "batch", "learning_rate", "seed", "licence", "size")
    recipe = {name: getattr(arguments, name) for name in names}
    try:
        pick_device(arguments.device)
        if arguments.backbone:
            recipe["backbone"] = arguments.backbone
            sizes["feature_channels"] = FeatureExtractor(arguments.backbone).channels
        config = TrainConfig(unet=UNetConfig(**sizes), **recipe)
    except ValueError as error:
        raise Refused(str(error)) from error

    started = time.perf_counter()
    first = int(os.environ.get("RANK", "0")) == 0  # under torchrun one process speaks
    if first:  # before hours are spent: a folder that is missing, or two parts in one
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
                say("to go on from here, give the same options and --resume")
            raise
        if first:
            profiles = checkpoint.load(path).profiles
            forecasts = {name: profiles[name].forecast for name in categories}
            put(
                {
                    "checkpoint": str(path),
                    "seconds": round(time.perf_counter() - started, 1),
                    "forecast": forecasts,
                },
                "\n".join(
                    [
                        f"wrote {path}: try it with `diffad inspect PICTURE --checkpoint {path}`",
                        *(
                            f"{name}: parts at any angle, turned upright before they are looked at"
                            for name in categories
                            if profiles[name].upright
                        ),
                        *(in_words(name, values) for name, values in forecasts.items()),
                    ]
                ),
            )
    return FINISHED


def samples(arguments: argparse.Namespace) -> int:
    from diffad.synthetic.parts import CATEGORIES, write_set

    root = arguments.folder
    check_folder(root)
    if root.is_dir() and any(root.iterdir()):
        raise Refused(f"{root} is not empty: name a new folder")
    if not arguments.train + arguments.good + arguments.defective:
        raise Refused("no picture is asked for: give --train, --good or --defective")
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
