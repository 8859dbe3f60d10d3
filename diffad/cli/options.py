"""Building blocks of the parser: argument types, and options that several commands share."""

from __future__ import annotations

import argparse
import contextlib
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from diffad.cli.common import REFUSED
from diffad.method.repair_options import METHODS, RepairOptions

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction["Parser"]

EXIT_CODES = """\
exit codes:
  0    finished
  1    a picture could not be read; everything else was done (takes precedence over 3 and 4)
  2    wrong options, paths or checkpoint, or a file could not be written
  3    inspect --fail-on: a picture is anomalous
  4    inspect --fail-on look: no picture is anomalous, but one is worth a look
  130  interrupted
"""
Option = tuple[str, dict[str, Any]]  # name and arguments of `add_argument`


class Parser(argparse.ArgumentParser):
    def __init__(self, **settings: Any) -> None:
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(epilog=EXIT_CODES, formatter_class=raw, allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        self.exit(REFUSED, f"diffad: {message} (see: {self.prog} --help)\n")


def command(
    commands: Commands, run: Callable[[argparse.Namespace], int], summary: str, details: str, *options: Option
) -> Parser:
    """Add the command `run`, named after the function."""
    description = f"{summary[0].upper()}{summary[1:]}.{details}"
    own = commands.add_parser(run.__name__, help=summary, description=description)
    own.set_defaults(run=run)
    add(own, *options)
    return own


def add(own: argparse._ActionsContainer, *options: Option) -> None:
    for name, settings in options:
        own.add_argument(name, **settings)


def option(
    name: str, metavar: str, kind: Callable[[str], Any], help: str, default: Any = None, **more: Any
) -> Option:
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    help = help if default in (None, "") else f"{help} (default: {shown})"
    return name, {"metavar": metavar, "type": kind, "help": help, "default": default, **more}


def choice(name: str, choices: Sequence[str], help: str) -> Option:
    """An option with the first choice as its default."""
    return name, {"choices": choices, "default": choices[0], "help": f"{help} (default: {choices[0]})"}


def flag(name: str, help: str) -> Option:
    return name, {"action": "store_true", "help": help}


# ---------------------------------------------------------------------------------------------------------
# Types of arguments


def _number(kind: type[int] | type[float], low: float, high: float) -> Callable[[str], Any]:
    name = "a whole number" if kind is int else "a number"

    def read(text: str) -> int | float:
        with contextlib.suppress(ValueError):
            value = kind(text)
            if low <= value <= high and math.isfinite(value):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {name} from {low} to {high}")

    return read


whole, real = partial(_number, int), partial(_number, float)


def number_list(text: str) -> list[int]:
    if not re.fullmatch(r"\s*\d{1,9}\s*(,\s*\d{1,9}\s*)*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers separated by commas")
    return [int(part) for part in text.split(",")]


def seed_list(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(number_list(text)))


def timestep_list(text: str) -> tuple[int, ...]:
    values = sorted(set(number_list(text)))
    if values[-1] > 999 or len(values) > 12:
        raise argparse.ArgumentTypeError(f"give 1 to 12 timesteps from 0 to 999, not {text}")
    return tuple(values)


def name_list(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(part.strip() for part in text.split(","))


def file_path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def _tile(text: str) -> int | str | None:
    if text in ("auto", "whole"):
        return text if text == "auto" else None
    try:
        side: int = whole(16, 10**6)(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, whole or a side of at least 16 px") from None
    return side


def _bits(text: str) -> int:
    from diffad.pictures.depth import DEPTHS

    if text not in map(str, DEPTHS):
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(map(str, DEPTHS))}")
    return int(text)


# ---------------------------------------------------------------------------------------------------------
# Shared options

SEVERAL: dict[str, Any] = {"nargs": "+", "type": file_path}
SOURCES: Option = ("sources", {"metavar": "SRC", "help": "picture files or folders", **SEVERAL})
DATA: Option = ("data", {"metavar": "DATA", "help": "one or several folders", **SEVERAL})
JSON = flag("--json", "print one JSON document and nothing else on standard output")
DEVICE = option("--device", "NAME", str, "auto (a GPU if there is one), cpu or cuda", "auto")
TAUGHT = option("--workspace", "DIR", file_path, "also know the categories that were taught in it")
WORKSPACE = option(
    "--workspace",
    "DIR",
    file_path,
    "what is remembered (default: DIFFAD_WORKSPACE, else among the user's data)",
)
MODEL = option("--checkpoint", "FILE", file_path, "the model (default: the bundled one)"), DEVICE
CATEGORY = option("--category", "NAME", str, "what the parts are (default: recognised from each picture)")
_LEVELS = "noise levels, 1 to 12 from 0 to 999"
TIMESTEPS = option("--timesteps", "T,T,…", timestep_list, _LEVELS, (20, 200, 400))
SEED = option("--seed", "N", whole(0, 2**53), "random seed", 0)
ALPHA = option(
    "--alpha", "A", real(0, 1),
    "balance of the two branches: 0 features only, 1 pixels only; "
    "at 0.5 a σ of the pixels counts a twentieth of a σ of the features", 0.5,
)  # fmt: skip
THRESHOLD = option(
    "--threshold", "X", real(-1e9, 1e9),
    "a picture is anomalous above this score (default: the score that 1%% of good parts exceed)",
)  # fmt: skip
LOOK_THRESHOLD = option(
    "--look-threshold", "X", real(-1e9, 1e9),
    "a picture is worth a look from this score up to the threshold "
    "(default: the score that 10%% of good parts exceed)",
)  # fmt: skip
TILE = option(
    "--tile", "PX", _tile,
    "cut pictures into overlapping squares with sides of PX, or inspect them whole; auto: use tiles if "
    "a large picture looks like good parts only in tiles", "auto",
)  # fmt: skip
BITS = option(
    "--bits", "N", _bits,
    "bit depth of the camera, for pictures in 16-bit files (default: as in training, otherwise estimated "
    "from the highest value)",
)  # fmt: skip
LIMIT = option("--limit", "N", whole(1, 10**6), "at most N good and N defective pictures per category")
_METHOD_DEFAULTS = "(default: {}, with --method paper {})"
REPAIR = (
    option(
        "--steps", "N", whole(1, 5000),
        "steps of a round, of which there are at most five; for a tiled picture, steps in each of at most "
        "four tiles", RepairOptions.steps,
    ),
    option(
        "--denoise-every", "N", whole(1, 5000), "gradient steps between two denoising steps",
        RepairOptions.denoise_every,
    ),
    option(
        "--step-size", "S", real(1e-6, 0.999),
        "length of a gradient step; with --method weighed, of the first one "
        + _METHOD_DEFAULTS.format(METHODS["weighed"][0], METHODS["paper"][0]),
    ),
    option(
        "--timestep", "T", whole(0, 999),
        "noise level of the denoising steps; with --method weighed, of the first one "
        + _METHOD_DEFAULTS.format(METHODS["weighed"][1], METHODS["paper"][1]),
    ),
    choice("--method", tuple(METHODS), "repair where the map is high, or everywhere as published"),
)  # fmt: skip
