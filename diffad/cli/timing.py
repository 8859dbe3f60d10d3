"""`diffad benchmark`."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from diffad.cli.common import (
    FINISHED,
    Refused,
    load_inspector,
    must_exist,
)
from diffad.cli.console import document, tracked
from diffad.cli.options import (
    JSON,
    MODEL,
    TIMESTEPS,
    command,
    file_path,
    flag,
    option,
    whole,
)
from diffad.method.repair_options import RepairOptions

if TYPE_CHECKING:
    from diffad.cli.options import Commands


def add_benchmark(commands: Commands) -> None:
    command(
        commands, benchmark, "measure how fast a model is on this machine", "",
        *MODEL,
        option("--picture", "FILE", file_path, "the picture to inspect (default: a synthetic part)"),
        option("--category", "NAME", str, "the profile to use (default: the model's first)"),
        TIMESTEPS,
        option("--runs", "N", whole(1, 10**4), "number of inspections to time", 10),
        option("--steps", "N", whole(1, 5000), "number of repair steps to time", RepairOptions.steps),
        flag("--busy", "only time inspections while 0, 1 and 2 other processes keep a core busy"),
        JSON,
    )  # fmt: skip


def benchmark(arguments: argparse.Namespace) -> int:
    import torch

    from diffad.benchmark import benchmark as measured
    from diffad.benchmark import beside
    from diffad.pictures.reading import DataError, read_image
    from diffad.synthetic.parts import DEFECTS, make_part

    if arguments.picture:
        must_exist(arguments.picture)
    started = time.perf_counter()
    inspector = load_inspector(arguments)
    loaded = time.perf_counter() - started
    category = arguments.category or inspector.categories[0]
    kind = category if category in DEFECTS else next(iter(DEFECTS))
    try:
        picture = read_image(arguments.picture or make_part(kind, 0, DEFECTS[kind][0]).image)
    except DataError as error:
        raise Refused(str(error)) from error
    with document(arguments.json) as put:
        about = {
            "checkpoint": inspector.name,
            "parameters": inspector.parameters,
            "size": inspector.size_of(category),
            "timesteps": list(arguments.timesteps),
            "device": str(inspector.device),
            "threads": torch.get_num_threads(),
        }
        asked = inspector, picture, category, arguments.timesteps, arguments.runs
        if arguments.busy:
            rows = beside(*asked, tracked)
            put(about | {"beside": rows}, _beside_table(about, rows))
            return FINISHED
        found = measured(*asked, arguments.steps, tracked)
        about["repair_method"] = found.pop("repair_method")
        rates = {name: found.pop(f"{name}_rate") for name in ("batch", "training")}
        seconds = {"load": loaded} | found
        put(
            about
            | {f"{name}_seconds": value for name, value in seconds.items()}
            | {f"{name}_pictures_per_second": value for name, value in rates.items()},
            "\n".join(
                [
                    ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in about.items()),
                    "",
                    "| what | time |",
                    "| --- | ---: |",
                    *(
                        f"| {name.replace('_', ' ')} | {value * 1000:.1f} ms |"
                        for name, value in seconds.items()
                    ),
                    *(f"| {name} | {value:.1f} pictures a second |" for name, value in rates.items()),
                ]
            ),
        )
    return FINISHED


def _beside_table(about: dict[str, Any], rows: list[dict[str, float]]) -> str:
    return "\n".join(
        [
            ", ".join(f"{name} {value}" for name, value in about.items()),
            "",
            "| busy loops | median | worst | slow-down |",
            "| ---: | ---: | ---: | ---: |",
            *(
                f"| {row['busy_loops']} | {row['median_seconds'] * 1000:.0f} ms "
                f"| {row['worst_seconds'] * 1000:.0f} ms | {row['slowdown']:.2f} |"
                for row in rows
            ),
        ]
    )
