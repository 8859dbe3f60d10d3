"""The command line `diffad`: options and help; each group of commands has a file beside this one."""

from __future__ import annotations

import argparse
import contextlib
import math
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from diffad import __version__
from diffad.cli.common import FINISHED, INTERRUPTED, REFUSED, Refused
from diffad.cli.console import leave_stdout, say
from diffad.cli.inspecting import inspect, repair
from diffad.cli.measuring import ablate, benchmark, compare, evaluate, stress
from diffad.cli.serving import serve
from diffad.cli.teaching import samples, train
from diffad.method.repair_options import METHODS, RepairOptions
from diffad.output import OutputError

EXIT_CODES = """\
exit codes:
  0    finished
  1    a picture could not be read; everything else was done (comes before 3 and 4)
  2    wrong options, paths or checkpoint, or a file could not be written
  3    inspect --fail-on found an anomalous picture
  4    inspect --fail-on look found none, but one to look at
  130  interrupted
"""
_Option = tuple[str, dict[str, Any]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (EXIT_CODES); expected errors become one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that cannot be printed must not end the run
            stream.reconfigure(errors="backslashreplace")
    try:
        arguments = _parser().parse_args(argv)
        with _terminated_like_interrupted():
            code: int = arguments.run(arguments)
            return code
    except SystemExit as stop:  # argparse: --help, --version or a wrong option
        return stop.code if isinstance(stop.code, int) else REFUSED
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        leave_stdout()
        return FINISHED
    except (Refused, OutputError) as error:
        say(str(error))
        return REFUSED
    except OSError as error:
        say(f"{error.filename or 'the system'}: {error.strerror or error}")
        return REFUSED
    except (MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        say("there is not enough memory for this: give smaller pictures, or a smaller --batch or --size")
        return REFUSED
    except ValueError as error:
        from diffad.checkpoint import CheckpointError
        from diffad.pictures.reading import DataError

        if not isinstance(error, (CheckpointError, DataError)):
            raise
        say(str(error))
        return REFUSED


def _is_lack_of_memory(error: Exception) -> bool:
    """Python's own, or torch's, which has no class for it on the CPU."""
    message = str(error).lower()
    return isinstance(error, MemoryError) or ("memory" in message and "allocate" in message)


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, as Ctrl+C does: what is done so far is written, and a training can go
    on.
    """
    try:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **settings: Any) -> None:
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(epilog=EXIT_CODES, formatter_class=raw, allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        self.exit(REFUSED, f"diffad: {message} (see: {self.prog} --help)\n")


def _number(kind: type, low: float, high: float) -> Callable[[str], Any]:
    name = "a whole number" if kind is int else "a number"

    def read(text: str) -> Any:
        with contextlib.suppress(ValueError):
            value = kind(text)
            if low <= value <= high and math.isfinite(value):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {name} from {low} to {high}")

    return read


def _whole_numbers(text: str) -> list[int]:
    if not re.fullmatch(r"\s*\d{1,9}\s*(,\s*\d{1,9}\s*)*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers with commas between")
    return [int(part) for part in text.split(",")]


def _seeds(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_whole_numbers(text)))


def _timesteps(text: str) -> tuple[int, ...]:
    values = sorted(set(_whole_numbers(text)))
    if values[-1] > 999 or len(values) > 12:
        raise argparse.ArgumentTypeError(f"give 1 to 12 timesteps from 0 to 999, not {text}")
    return tuple(values)


def _names(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(part.strip() for part in text.split(","))


def _tile(text: str) -> int | str | None:
    if text in ("auto", "whole"):
        return text if text == "auto" else None
    try:
        side: int = _number(int, 16, 10**6)(text)
        return side
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, whole or a side of at least 16 px") from None


def _bits(text: str) -> int:
    from diffad.pictures.depth import DEPTHS

    if text not in map(str, DEPTHS):
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(map(str, DEPTHS))}")
    return int(text)


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="diffad", description="Finds, shows and repairs defects in pictures of parts.")
    parser.add_argument("--version", action="version", version=f"diffad {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True, parser_class=_Parser)

    def command(run: Callable[[Any], int], summary: str, details: str = "") -> argparse.ArgumentParser:
        description = f"{summary[0].upper()}{summary[1:]}.{details}"
        own = commands.add_parser(run.__name__, help=summary, description=description)
        own.set_defaults(run=run)
        return own

    def option(
        name: str, metavar: str, kind: Callable[[str], Any], help: str, default: Any = None
    ) -> _Option:
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        help = help if default in (None, "") else f"{help} (default: {shown})"
        return name, {"metavar": metavar, "type": kind, "help": help, "default": default}

    def choice(name: str, choices: Sequence[str], help: str) -> _Option:
        return name, {"choices": choices, "default": choices[0], "help": f"{help} (default: {choices[0]})"}

    def flag(name: str, help: str) -> _Option:
        return name, {"action": "store_true", "help": help}

    def add(own: Any, *options: _Option) -> None:
        for name, settings in options:
            own.add_argument(name, **settings)

    whole, real = partial(_number, int), partial(_number, float)
    several = {"nargs": "+", "type": _path}
    sources = "sources", {"metavar": "SRC", "help": "picture files or folders of them", **several}
    data = "data", {"metavar": "DATA", "help": "one or several folders", **several}
    as_json = flag("--json", "print one JSON document and nothing else on standard output")
    device = option("--device", "NAME", str, "auto (a GPU if there is one), cpu or cuda", "auto")
    model = option("--checkpoint", "FILE", _path, "the model (default: the bundled one)"), device
    category = option("--category", "NAME", str, "what the parts are (default: recognised from each picture)")
    levels = "noise levels, 1 to 12 from 0 to 999"
    timesteps = option("--timesteps", "T,T,…", _timesteps, levels, (20, 200, 400))
    seed = option("--seed", "N", whole(0, 2**53), "seed of everything random", 0)
    alpha = option(
        "--alpha",
        "A",
        real(0, 1),
        "balance of the two branches: 0 features only, 1 pixels only; "
        "at 0.5 a σ of the pixels counts a twentieth of a σ of the features",
        0.5,
    )
    threshold = option(
        "--threshold",
        "X",
        real(-1e9, 1e9),
        "a picture is anomalous above this score (default: what 1%% of good parts exceed)",
    )
    look = option(
        "--look-threshold",
        "X",
        real(-1e9, 1e9),
        "a picture is one to look at above this score, "
        "up to the threshold (default: what 10%% of good parts exceed)",
    )
    tile = option(
        "--tile",
        "PX",
        _tile,
        "cut pictures into overlapping squares of that side, or inspect "
        "them whole; auto: tiles if large pictures look like good parts only in pieces",
        "auto",
    )
    bits = option(
        "--bits",
        "N",
        _bits,
        "bits that the camera has, of pictures in files of 16 (default: as "
        "in training, else what the highest value asks for)",
    )
    of_repairs = (
        option(
            "--steps",
            "N",
            whole(1, 5000),
            "steps of a round, of which there are five at most; of a "
            "picture in tiles, of each of four tiles at most",
            RepairOptions.steps,
        ),
        option(
            "--denoise-every",
            "N",
            whole(1, 5000),
            "gradient steps between two denoising steps",
            RepairOptions.denoise_every,
        ),
        option(
            "--step-size",
            "S",
            real(1e-6, 0.999),
            "length of a gradient step; weighed, of the first "
            f"(default: {METHODS['weighed'][0]}, paper {METHODS['paper'][0]})",
        ),
        option(
            "--timestep",
            "T",
            whole(0, 999),
            "noise level of the denoising steps; weighed, of the first "
            f"(default: {METHODS['weighed'][1]}, paper {METHODS['paper'][1]})",
        ),
        choice("--method", tuple(METHODS), "act where the map is high, or everywhere as published"),
    )

    own = command(
        train,
        "train a model on good parts",
        """
DATA: an MVTec category folder (its train/good), a folder of such categories, or a folder of pictures of good
parts, which names their category. Beside the checkpoint appear its log (JSON lines) and a plot of the loss.
For several GPUs: torchrun --nproc-per-node N -m diffad train …""",
    )
    add(
        own.add_mutually_exclusive_group(required=True),
        option("--minutes", "M", real(0.001, 1_000_000), "training time in minutes"),
        option("--steps", "N", whole(0, 10**9), "training steps; 0 only fits the statistics of good parts"),
    )
    add(
        own,
        data,
        ("--out", {"metavar": "FILE", "type": _path, "required": True, "help": "write *.safetensors"}),
        flag("--skip-unreadable", "leave out pictures that cannot be read, and say which"),
        flag("--resume", "go on with an interrupted run; give the same options"),
        ("--from", {"dest": "start", "metavar": "CHECKPOINT", "type": _path, "help": "start from this one"}),
        option("--batch", "N", whole(1, 4096), "pictures a step", 16),
        option("--learning-rate", "X", real(1e-9, 1), "the highest", 8e-4),
        seed,
        option("--licence", "TEXT", str, "the pictures' licence, kept in the checkpoint", ""),
        option(
            "--size",
            "PX",
            whole(32, 1024),
            "side of the square in which pictures are looked at "
            "(default: 256, or up to 512 if small artificial defects are found better so)",
        ),
        option("--channels", "C,C,…", _whole_numbers, "width of each level (default: 64,128,192,192)"),
        option("--backbone", "NAME", str, "timm model of the features, fetched (default: a bundled one)"),
        device,
        as_json,
    )

    own = command(
        inspect,
        "judge pictures and show where they are anomalous",
        """
A folder is taken whole: a plain folder's pictures, or all pictures of an MVTec tree, which are judged as its
categories if the model knows them.""",
    )
    add(
        own,
        sources,
        *model,
        category,
        alpha,
        timesteps,
        seed,
        threshold,
        look,
        option("--draws", "N", whole(1, 16), "noise draws a timestep; more are calmer, slower", 1),
        tile,
        bits,
        option(
            "--out",
            "DIR",
            _path,
            "write <name>_overlay.png, <name>_map.npy (float32), "
            "<name>_evidence.png, results.json and results.csv there; each verdict "
            "is in results.jsonl as soon as it is given",
        ),
        flag("--report", "with --out: also <name>_report.html, a page to hand on, which prints on one A4"),
        (
            "--fail-on",
            {
                "choices": ("anomalous", "look"),
                "help": "exit with 3 if any picture is anomalous; look: else with 4 if any is one to look at",
            },
        ),
        as_json,
    )

    own = command(repair, "repair pictures step by step and write the animations")
    add(
        own,
        sources,
        *model,
        category,
        alpha,
        seed,
        threshold,
        tile,
        bits,
        *of_repairs,
        flag("--stop-at-threshold", "stop as soon as the picture counts as good"),
        choice("--format", ("gif", "webp", "mp4"), "kind of animation"),
        option("--out", "DIR", _path, "write <name>_repair.gif and _repaired.png there", Path(".")),
        as_json,
    )

    own = command(
        evaluate,
        "measure a model on labelled pictures",
        """
DATA: an MVTec category folder (test/good, test/<defect>, ground_truth) or a folder of them. Each picture is
judged as its folder's category if the model knows it, else as the recognised one.""",
    )
    add(
        own,
        data,
        *model,
        option("--category", "NAME", str, "judge all of them as this"),
        alpha,
        timesteps,
        option("--seeds", "N,N,…", _seeds, "noise seeds; of several, means and standard deviations", (0,)),
        option(
            "--out",
            "DIR",
            _path,
            "write results.json, results.md and report.html there; each score "
            "is in scores.jsonl as soon as it is known",
        ),
        option(
            "--stress",
            "N",
            whole(1, 10**6),
            "also change N good pictures a category in 16 ways, and count how many are rejected then",
        ),
        flag("--repair", "also measure the repair, which is slow; the options below are its own"),
        option("--limit", "N", whole(1, 10**6), "with --repair: at most N good and N defective a category"),
        flag("--sheet", "with --out: draw ten repairs a category, <category>_repairs.png"),
        *of_repairs,
        as_json,
    )

    own = command(
        ablate,
        "measure what each choice of the method is worth",
        """
Tables of image AUROC, pixel AUROC and AUPRO over the balance of the branches, timesteps, noise draws,
normalisation, one model against one per category, and pixel scores. DATA: as for evaluate; its train/good
serves to standardise the pixel scores that the checkpoint does not use.""",
    )
    add(
        own,
        data,
        *model,
        (
            "--single",
            {
                "metavar": "CHECKPOINT",
                "help": "models of one category each, to compare with",
                "default": [],
                **several,
            },
        ),
        option("--limit", "N", whole(1, 10**6), "take at most N good and N defective pictures a category"),
        option("--out", "DIR", _path, "write ablation.md, ablation.json and a plot of each table there"),
        seed,
        as_json,
    )

    own = command(
        compare,
        "measure what people would pick instead, on the same pictures",
        """
DATA: MVTec category folders with train/good and test, or folders of them, of categories that the model knows.
The peers are anomalib's models on the same backbone with the same weights (pip install "diffad[peers]").""",
    )
    add(
        own,
        data,
        *model,
        option(
            "--peers",
            "NAME,…",
            _names,
            "of padim, patchcore, fre, ganomaly (which wants a GPU), or none",
            ("padim", "patchcore", "fre"),
        ),
        option("--minutes-each", "M", real(0.001, 10_000), "longest training of a peer that is trained", 5.0),
        option("--limit", "N", whole(1, 10**6), "take at most N good and N defective pictures a category"),
        option(
            "--stress",
            "N",
            whole(1, 10**6),
            "also change N good pictures a category in 16 ways, and count how many each method rejects then",
        ),
        seed,
        option("--out", "DIR", _path, "write comparison.md and comparison.json there"),
        as_json,
    )

    own = command(
        stress,
        "measure whether verdicts survive what a factory does to its pictures",
        """
DATA: as for evaluate. Good and defective pictures are judged as they are and changed: darker, brighter, lit
unevenly, tinted, with noise, blurred, sharpened, compressed, moved, turned.""",
    )
    add(
        own,
        data,
        *model,
        alpha,
        timesteps,
        seed,
        option("--limit", "N", whole(1, 10**6), "take at most N good and N defective pictures a category", 8),
        flag("--curves", "judge good pictures at a half, two and four times each strength too, and draw it"),
        option(
            "--out",
            "DIR",
            _path,
            "write stress.md, stress.json and, with --curves, stress.png there; "
            "each verdict is in verdicts.jsonl as soon as it is given",
        ),
        as_json,
    )

    own = command(benchmark, "measure how fast a model is on this machine")
    add(
        own,
        *model,
        option("--picture", "FILE", _path, "the picture to use (default: a synthetic part)"),
        option("--category", "NAME", str, "the profile to use (default: the model's first)"),
        timesteps,
        option("--runs", "N", whole(1, 10**4), "inspections to time", 10),
        option("--steps", "N", whole(1, 5000), "repair steps to time", RepairOptions.steps),
        flag("--busy", "time inspections beside 0, 1 and 2 programs that never rest, and nothing else"),
        as_json,
    )

    own = command(
        samples,
        "write a set of synthetic parts with defects and masks",
        """
The layout is MVTec's, so that DIR serves train and evaluate. Numbers are for each category.""",
    )
    add(
        own,
        ("folder", {"metavar": "DIR", "type": _path, "help": "a new or empty folder"}),
        ("--category", {"metavar": "NAME", "action": "append", "help": "only this one (default: all)"}),
        option("--train", "N", whole(0, 10**5), "good parts to train on", 200),
        option("--good", "N", whole(0, 10**5), "good parts to test on", 30),
        option("--defective", "N", whole(0, 10**5), "defective parts to test on", 60),
        option("--size", "PX", whole(64, 1024), "side of the pictures", 256),
        seed,
        as_json,
    )

    own = command(
        serve,
        "open the inspection page in the browser",
        """
The same address answers programs: named endpoints (see the README) and, without login, GET /health.
A login is asked for where --auth or the environment variable DIFFAD_AUTH names who may enter. Roles are
inspect, correct (verdicts too) and teach (everything; the default).
Inspections are kept in the workspace: --workspace, else DIFFAD_WORKSPACE, else the user's data folder.""",
    )
    add(
        own,
        (
            "--checkpoint",
            {"metavar": "FILE", "help": "one or several models (default: the bundled ones)", **several},
        ),
        device,
        option("--host", "NAME", str, "address to listen on (default: GRADIO_SERVER_NAME, else 127.0.0.1)"),
        option("--port", "N", whole(1, 65535), "default: GRADIO_SERVER_PORT, else a free one from 7860"),
        option("--auth", "FILE", _path, "lines user:password or user/role:password; see below"),
        option("--data-root", "DIR", _path, "folder below which a batch may read this machine's files"),
        option("--max-upload", "MB", whole(1, 100_000), "largest file that is taken", 200),
        option("--max-storage", "GB", real(0.1, 100_000), "for uploads, results and batches together", 20.0),
        option(
            "--max-tiles",
            "N",
            whole(1, 10**6),
            "largest inspection that is taken; the default takes any picture",
            500,
        ),
        option("--workspace", "DIR", _path, "where inspections are kept, by one server at a time"),
        flag("--no-history", "keep nothing"),
        option("--history-gb", "GB", real(0, 100_000), "drop the oldest inspections beyond; 0 never", 20.0),
        option("--history-days", "N", real(0, 100_000), "drop older inspections; 0 never", 0.0),
        flag("--mcp", 'offer the endpoints as tools to language models (pip install "diffad[mcp]")'),
    )
    return parser
