"""The command line: `diffad train · inspect · reconstruct · evaluate · benchmark · samples · serve`.

Everything heavy is imported inside the commands, so that `diffad --help` answers at once. With --json,
standard output is exactly one JSON document; progress, warnings and what libraries print go to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import math
import os
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from diffad import __version__

if TYPE_CHECKING:
    import numpy as np

    from diffad.inspector import Inspector

FINISHED, UNREADABLE, REFUSED, ANOMALOUS, INTERRUPTED = 0, 1, 2, 3, 130
EXIT_CODES = """\
exit codes:
  0    finished
  1    a picture could not be read; everything else was done
  2    wrong options, paths or checkpoint, or the system refused
  3    inspect --fail-on-anomaly found an anomalous picture
  130  interrupted
"""
FRAME_SIDE = 768  # px; longest side of an animation's frames
_Item = TypeVar("_Item")
_Option = tuple[str, dict[str, Any]]


class Refused(ValueError):
    """The command cannot start as it was given; the message says what to change."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (EXIT_CODES); expected errors become one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that cannot be printed must not end the run
            stream.reconfigure(errors="backslashreplace")
    try:
        arguments = _parser().parse_args(argv)
        return arguments.run(arguments)
    except SystemExit as stop:  # argparse: --help, --version or a wrong option
        return stop.code if isinstance(stop.code, int) else REFUSED
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left, as in `diffad inspect … | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINISHED
    except OSError as error:
        _say(f"{error.filename or 'the system'}: {error.strerror or error}")
        return REFUSED
    except ValueError as error:
        from diffad.checkpoint import CheckpointError
        from diffad.data import DataError

        if not isinstance(error, (Refused, CheckpointError, DataError)):
            raise
        _say(str(error))
        return REFUSED


def default_checkpoint() -> Path:
    """The first bundled model. Raises Refused if there is none."""
    from diffad.checkpoint import bundled

    if found := bundled():
        return found[0]
    raise Refused("there is no bundled model here: give --checkpoint FILE")


# ---------------------------------------------------------------------------------------------------------
# Commands


def train(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from diffad import training
    from diffad.features import FeatureExtractor
    from diffad.unet import UNetConfig, pick_device

    given = {"size": arguments.size, "channels": arguments.channels and tuple(arguments.channels)}
    sizes = {key: value for key, value in given.items() if value}
    if arguments.start and (sizes or arguments.backbone):
        raise Refused("--size, --channels and --backbone come from the checkpoint given with --from")
    if arguments.out.suffix != ".safetensors":
        raise Refused(f"--out must end in .safetensors, not {arguments.out.name!r}")
    for source in arguments.data:
        _must_exist(source)
    names = ("steps", "minutes", "batch", "learning_rate", "flips", "by_place", "shrinkage", "seed",
             "licence")
    recipe = {name: getattr(arguments, name) for name in names}
    try:
        pick_device(arguments.device)
        if arguments.backbone:
            recipe["backbone"] = arguments.backbone
            sizes["feature_channels"] = FeatureExtractor(arguments.backbone).channels
        config = training.TrainConfig(unet=UNetConfig(**sizes), **recipe)
    except ValueError as error:
        raise Refused(str(error)) from error

    bar = tqdm(total=1.0, disable=None, bar_format="{percentage:3.0f}%|{bar:30}| {postfix}")
    last_line = -math.inf

    def progress(row: dict[str, Any]) -> None:
        nonlocal last_line
        left = "" if row["eta"] is None else f"  {row['eta'] / 60:.1f} min left"
        line = f"step {row['step']}  loss {row['loss']:.4f}{left}"
        if not bar.disable:
            bar.n = min(1.0, row["done"])
            bar.set_postfix_str(line)
        elif time.monotonic() - last_line > 30:  # into a log: now and then a line
            _print(line)
            last_line = time.monotonic()

    started = time.perf_counter()
    with _document(arguments) as put, bar:
        try:
            path = training.train(config, arguments.data, arguments.out, resume=arguments.resume,
                                  start_from=arguments.start, device=arguments.device, progress=progress)
        except KeyboardInterrupt:
            _say("to go on from here, give the same options and --resume")
            raise
        if int(os.environ.get("RANK", "0")) == 0:  # under torchrun one process speaks
            put({"checkpoint": str(path), "seconds": round(time.perf_counter() - started, 1)},
                f"wrote {path}: try it with `diffad inspect PICTURE --checkpoint {path}`")
    return FINISHED


def inspect(arguments: argparse.Namespace) -> int:
    from diffad.data import DataError

    paths = _pictures(arguments.sources)
    inspector = _load_inspector(arguments)
    endings = ("_overlay.png", "_map.npy", "_evidence.png")
    names = _output_names(paths, arguments.out, endings) if arguments.out else [""] * len(paths)
    records: list[dict[str, Any]] = []
    with _document(arguments) as put:
        for path, name in _progress(list(zip(paths, names, strict=True)), "inspecting"):
            try:
                inspection = inspector.inspect(
                    path, category=arguments.category, timesteps=arguments.timesteps, alpha=arguments.alpha,
                    seed=arguments.seed, draws=arguments.draws, threshold=arguments.threshold)
            except DataError as error:
                records.append(_unreadable(path, error))
                continue
            record = {"path": str(path), **inspection.to_dict()}
            if arguments.out:
                top = inspector.scale_top(inspection.category)
                _write_evidence([arguments.out / f"{name}{ending}" for ending in endings], inspection, top)
                record["files"] = [f"{name}{ending}" for ending in endings]
            records.append(record)
            if not arguments.json:
                verdict = "ANOMALOUS" if record["is_anomalous"] else "good"
                count = len(record["regions"])
                _print(f"{verdict:9}  score {record['score']:7.2f}  threshold {record['threshold']:.2f}  "
                       f"{count} region{'' if count == 1 else 's'}  {record['category']}  {path}", sys.stdout)
        if arguments.out:
            (arguments.out / "results.json").write_text(_json(records) + "\n", encoding="utf-8")
            _write_csv(arguments.out / "results.csv", records)
        put(records, f"wrote results to {arguments.out}" if arguments.out else None)
    if any("error" in record for record in records):
        return UNREADABLE
    anomalous = any(record["is_anomalous"] for record in records)
    return ANOMALOUS if arguments.fail_on_anomaly and anomalous else FINISHED


def reconstruct(arguments: argparse.Namespace) -> int:
    from diffad.data import DataError
    from diffad.render import animation, png_bytes

    paths = _pictures(arguments.sources)
    inspector = _load_inspector(arguments)
    endings = (f"_repair.{arguments.format}", "_repaired.png")
    records: list[dict[str, Any]] = []
    with _document(arguments) as put:
        for path, name in zip(paths, _output_names(paths, arguments.out, endings), strict=True):
            film, picture = (arguments.out / f"{name}{ending}" for ending in endings)
            started = time.perf_counter()
            try:
                repair = inspector.reconstruct(
                    path, category=arguments.category, stop_at_threshold=arguments.stop_at_threshold,
                    seed=arguments.seed, alpha=arguments.alpha, threshold=arguments.threshold,
                    **_repair_options(arguments))
            except DataError as error:
                records.append(_unreadable(path, error))
                continue
            frames, scores = [], []
            for step in _progress(repair, str(path), arguments.steps + 1):
                frames.append(_frame(step.image))
                scores.append(step.score)
                repaired, steps = step.image, step.index
            seconds = time.perf_counter() - started
            animation(frames, film)
            picture.write_bytes(png_bytes(repaired))
            records.append({
                "path": str(path), "animation": str(film), "repaired": str(picture), "steps": steps,
                "score_before": scores[0], "score_after": scores[-1], "seconds": seconds})
            if not arguments.json:
                fall = f"score {scores[0]:.2f} → {scores[-1]:.2f}"
                _print(f"{fall}  {steps} steps  {seconds:.1f} s  {film}", sys.stdout)
        put(records)
    return UNREADABLE if any("error" in record for record in records) else FINISHED


def evaluate(arguments: argparse.Namespace) -> int:
    from diffad.data import DataError, find_samples
    from diffad.evaluation import evaluate, evaluate_repair, evaluation_table, repair_table

    samples = []
    for source in arguments.data:
        _must_exist(source)
        samples += find_samples(source, split="test")
    if all(sample.is_anomalous is None for sample in samples):
        raise Refused("no picture is labelled: give folders with test/good and test/<defect> (MVTec layout)")
    inspector = _load_inspector(arguments)
    with _document(arguments) as put:
        try:
            settings = {name: getattr(arguments, name) for name in ("category", "alpha", "seed")}
            with _counter("inspecting") as progress:
                result = evaluate(
                    inspector, samples, timesteps=arguments.timesteps, progress=progress, **settings)
            tables = [evaluation_table(result)]
            if arguments.repair:
                with _counter("repairing") as progress:
                    repaired = evaluate_repair(
                        inspector, samples, limit=arguments.limit, progress=progress, **settings,
                        **_repair_options(arguments))
                tables.append(repair_table(repaired))
                for name, values in repaired.items():
                    result[name]["repair"] = values
        except DataError as error:  # numbers over fewer pictures than were given would mislead
            _say(str(error))
            return UNREADABLE
        for name, values in result.items():
            for note in values["notes"] + values.get("repair", {}).get("notes", []):
                _say(f"{name}: {note}")
        put(result, "\n\n".join(tables))
    return FINISHED


def benchmark(arguments: argparse.Namespace) -> int:
    import torch

    import diffad.inspector  # noqa: F401 - before the clock starts
    from diffad.synthetic import DEFECTS, make_part

    started = time.perf_counter()
    inspector = _load_inspector(arguments)
    loaded = time.perf_counter() - started
    category = arguments.category or inspector.categories[0]
    kind = category if category in DEFECTS else next(iter(DEFECTS))
    picture = arguments.picture or make_part(kind, 0, DEFECTS[kind][0]).image

    def once() -> float:
        begun = time.perf_counter()
        inspector.inspect(picture, category=category, timesteps=arguments.timesteps).to_dict()
        return time.perf_counter() - begun

    with _document(arguments) as put:
        first = once()
        with _timed(inspector) as parts:
            whole = statistics.median(once() for _ in _progress(range(arguments.runs), "inspecting"))
        features, network = (statistics.median(seconds) for seconds in parts)
        for method in ("weighed", "paper"):  # the first does nothing where it finds nothing
            begun = time.perf_counter()
            repair = inspector.reconstruct(picture, category=category, steps=arguments.steps, method=method)
            marks = [time.perf_counter() - begun for _ in _progress(repair, "repairing", arguments.steps + 1)]
            if len(marks) > 1:
                break
        seconds = {
            "load": loaded, "first_inspection": first, "inspection": whole, "features": features,
            "network": network, "rest": max(0.0, whole - features - network),
            "repair_first_frame": marks[1], "repair_step": (marks[-1] - marks[0]) / (len(marks) - 1)}
        about = {
            "checkpoint": inspector.name, "parameters": inspector.parameters, "size": inspector.size,
            "timesteps": list(arguments.timesteps), "repair_method": method,
            "device": str(inspector.device), "threads": torch.get_num_threads()}
        put(about | {f"{name}_seconds": value for name, value in seconds.items()}, "\n".join([
            ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in about.items()), "",
            "| what | time |", "| --- | ---: |",
            *(f"| {name.replace('_', ' ')} | {value * 1000:.1f} ms |" for name, value in seconds.items())]))
    return FINISHED


def samples(arguments: argparse.Namespace) -> int:
    from diffad.synthetic import CATEGORIES, write_set

    root = arguments.folder
    if root.is_dir() and any(root.iterdir()):
        raise Refused(f"{root} is not empty: name a new folder")
    with _document(arguments) as put:
        chosen = arguments.category or list(CATEGORIES)
        numbers = arguments.train, arguments.good, arguments.defective
        write_set(root, chosen, *numbers, arguments.size, arguments.seed)
        count = len(chosen) * sum(numbers)
        put({"folder": str(root), "categories": chosen, "pictures": count},
            f"wrote {count} pictures of {', '.join(chosen)} to {root}")
    return FINISHED


def serve(arguments: argparse.Namespace) -> int:
    from diffad.checkpoint import bundled
    from diffad.ui import serve

    paths = [arguments.checkpoint] if arguments.checkpoint else bundled() or [default_checkpoint()]
    inspectors = {path.stem: _load_inspector(arguments, path) for path in paths}
    serve(inspectors, arguments.host, arguments.port)
    return FINISHED


# ---------------------------------------------------------------------------------------------------------
# Options


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


def _timesteps(text: str) -> tuple[int, ...]:
    values = sorted(set(_whole_numbers(text)))
    if values[-1] > 999 or len(values) > 12:
        raise argparse.ArgumentTypeError(f"give 1 to 12 timesteps from 0 to 999, not {text}")
    return tuple(values)


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

    def option(name: str, metavar: str, kind: Callable, help: str, default: Any = None) -> _Option:
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
    alpha = option("--alpha", "A", real(0, 1), "weight of the pixel score; the rest is the features'", 0.5)
    threshold = option("--threshold", "X", real(-1e9, 1e9),
                       "a picture is anomalous above this score (default: what 1%% of good parts exceed)")
    repair = (
        option("--steps", "N", whole(1, 5000), "gradient steps", 100),
        option("--denoise-every", "N", whole(1, 5000), "gradient steps between two denoising steps", 5),
        option("--step-size", "S", real(1e-6, 0.999), "length of a gradient step; weighed, of the first "
               "(default: 0.03, paper 0.02)"),
        option("--timestep", "T", whole(0, 999), "noise level of the denoising steps; weighed, of the first "
               "(default: 600, paper 32)"),
        choice("--method", ("weighed", "paper"), "act where the map is high, or everywhere as published"),
    )

    own = command(train, "train a model on good parts", """
DATA: an MVTec category folder (its train/good), a folder of such categories, or a folder of pictures of good
parts, which names their category. Beside the checkpoint appear its log (JSON lines) and a plot of the loss.
For several GPUs: torchrun --nproc-per-node N -m diffad train …""")
    add(own.add_mutually_exclusive_group(required=True),
        option("--minutes", "M", real(0.001, 1_000_000), "train for so long"),
        option("--steps", "N", whole(0, 10**9), "train so many steps; 0 only learns the look of good parts"))
    add(own, data,
        ("--out", {"metavar": "FILE", "type": _path, "required": True, "help": "write *.safetensors"}),
        flag("--resume", "go on with an interrupted run; give the same options"),
        ("--from", {"dest": "start", "metavar": "CHECKPOINT", "type": _path, "help": "start from this one"}),
        option("--batch", "N", whole(1, 4096), "pictures a step", 16),
        option("--learning-rate", "X", real(1e-9, 1), "the highest", 8e-4),
        flag("--flips", "also mirror and turn pictures: for textures and parts that may lie anyhow"),
        flag("--by-place", "for parts that always lie alike, with places that are hard in every good picture "
             "(lettering, leads, teeth): weigh each place by how hard it is"),
        option("--shrinkage", "X", _number(float, 0, 1), "1 treats feature channels as independent, as "
               "published; less accounts for their correlation", 1.0),
        seed,
        option("--licence", "TEXT", str, "the pictures' licence, kept in the checkpoint", ""),
        option("--size", "PX", whole(32, 2048), "side of the model's square (default: 256)"),
        option("--channels", "C,C,…", _whole_numbers, "width of each level (default: 64,128,192,192)"),
        option("--backbone", "NAME", str, "timm model of the features, fetched (default: a bundled one)"),
        device, as_json)

    own = command(inspect, "judge pictures and show where they are anomalous", """
A folder is taken whole: a plain folder's pictures, or all pictures of an MVTec tree.""")
    add(own, sources, *model, category, alpha, timesteps, seed,
        threshold, option("--draws", "N", whole(1, 16), "noise draws a timestep; more are calmer, slower", 1),
        option("--out", "DIR", _path, "write <name>_overlay.png, <name>_map.npy (float32), "
                                      "<name>_evidence.png, results.json and results.csv there"),
        flag("--fail-on-anomaly", "exit with 3 if any picture is anomalous"), as_json)

    own = command(reconstruct, "repair pictures step by step and write the animations")
    add(own, sources, *model, category, alpha, seed, threshold, *repair,
        flag("--stop-at-threshold", "stop as soon as the picture counts as good"),
        choice("--format", ("gif", "webp"), "kind of animation"),
        option("--out", "DIR", _path, "write <name>_repair.gif and _repaired.png there", Path(".")), as_json)

    own = command(evaluate, "measure a model on labelled pictures", """
DATA: an MVTec category folder (test/good, test/<defect>, ground_truth) or a folder of them. Each picture is
judged as its folder's category if the model knows it, else as the recognised one.""")
    add(own, data, *model, option("--category", "NAME", str, "judge all of them as this"), alpha, timesteps,
        seed, flag("--repair", "also measure the repair, which is slow; the options below are its own"),
        option("--limit", "N", whole(1, 10**6), "repair at most N good and N defective pictures a category"),
        *repair, as_json)

    own = command(benchmark, "measure how fast a model is on this machine")
    add(own, *model, option("--picture", "FILE", _path, "the picture to use (default: a synthetic part)"),
        option("--category", "NAME", str, "the profile to use (default: the model's first)"), timesteps,
        option("--runs", "N", whole(1, 10**4), "inspections to time", 10),
        option("--steps", "N", whole(1, 5000), "repair steps to time", 20), as_json)

    own = command(samples, "write a set of synthetic parts with defects and masks", """
The layout is MVTec's, so that DIR serves train and evaluate. Numbers are for each category.""")
    add(own, ("folder", {"metavar": "DIR", "type": _path, "help": "a new or empty folder"}),
        ("--category", {"metavar": "NAME", "action": "append", "help": "only this one (default: all)"}),
        option("--train", "N", whole(0, 10**5), "good parts to train on", 200),
        option("--good", "N", whole(0, 10**5), "good parts to test on", 30),
        option("--defective", "N", whole(0, 10**5), "defective parts to test on", 60),
        option("--size", "PX", whole(64, 1024), "side of the pictures", 256), seed, as_json)

    own = command(serve, "open the inspection page in the browser")
    add(own, option("--checkpoint", "FILE", _path, "the model (default: all bundled ones)"), device,
        option("--host", "NAME", str, "address to listen on (default: GRADIO_SERVER_NAME, else 127.0.0.1)"),
        option("--port", "N", whole(1, 65535), "default: GRADIO_SERVER_PORT, else a free one from 7860"))
    return parser


# ---------------------------------------------------------------------------------------------------------
# Input and output


def _load_inspector(arguments: argparse.Namespace, path: Path | None = None) -> Inspector:
    from diffad.inspector import Inspector

    path = path or arguments.checkpoint or default_checkpoint()
    try:
        inspector = Inspector.load(path, device=arguments.device)
    except ValueError as error:  # CheckpointError, or a device that is not there
        raise Refused(str(error)) from error
    category = getattr(arguments, "category", None)
    if category is not None and category not in inspector.categories:
        raise Refused(f"the model {inspector.name} has no category {category!r}: choose "
                      f"{', '.join(inspector.categories)}")
    return inspector


def _must_exist(path: Path) -> None:
    if not path.exists():
        raise Refused(f"there is no file or folder {path}: check the path")


def _pictures(sources: Sequence[Path]) -> list[Path]:
    """The picture files of all sources, each once, in the order given."""
    from diffad.data import find_samples

    found: dict[str, Path] = {}
    for source in sources:
        _must_exist(source)
        for path in [sample.image for sample in find_samples(source)] if source.is_dir() else [source]:
            found.setdefault(os.path.abspath(path), path)
    return list(found.values())


def _output_names(paths: Sequence[Path], out: Path, endings: Sequence[str]) -> list[str]:
    """One name per picture for files out/<name><ending>: its stem, after its folder's name where stems meet.

    No two pictures share a name and no file is an input. Makes the folder.
    """
    if out.exists() and not out.is_dir():
        raise Refused(f"{out} is a file: --out names a folder")
    out.mkdir(parents=True, exist_ok=True)
    inputs = {path.resolve() for path in paths}
    if inputs & {(out / "results.json").resolve(), (out / "results.csv").resolve()}:
        raise Refused(f"the results would overwrite an input in {out}: choose another --out")
    stems = Counter(path.stem.casefold() for path in paths)
    names: list[str] = []
    taken: set[str] = set()
    for path in paths:
        base = path.stem if stems[path.stem.casefold()] == 1 else f"{path.resolve().parent.name}_{path.stem}"
        name, number = base, 1
        while name.casefold() in taken or any((out / f"{name}{end}").resolve() in inputs for end in endings):
            number += 1
            name = f"{base}_{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _write_evidence(files: Sequence[Path], inspection: Any, top: float) -> None:
    import numpy as np

    from diffad.render import evidence_sheet, overlay, png_bytes

    overlay_file, map_file, sheet_file = files
    shown = overlay(inspection.image, inspection.anomaly_map, top, inspection.threshold)
    overlay_file.write_bytes(png_bytes(shown))
    np.save(map_file, inspection.anomaly_map.astype(np.float32))
    sheet_file.write_bytes(png_bytes(evidence_sheet(inspection, top)))


def _write_csv(path: Path, records: Sequence[dict[str, Any]]) -> None:
    columns = ("path", "category", "score", "threshold", "is_anomalous", "regions", "seconds", "error")
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        for record in records:
            writer.writerow({**record, "regions": len(record["regions"]) if "regions" in record else ""})


def _unreadable(path: Path, error: ValueError) -> dict[str, str]:
    _say(str(error))
    return {"path": str(path), "error": str(error)}


def _repair_options(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("steps", "denoise_every", "step_size", "timestep", "method")
    return {name: getattr(arguments, name) for name in names}


def _frame(image: np.ndarray) -> np.ndarray:
    """A frame no larger than the animation will be: a hundred full photographs would not fit in memory."""
    import cv2

    scale = FRAME_SIDE / max(image.shape[:2])
    if scale >= 1:
        return image
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


@contextlib.contextmanager
def _timed(inspector: Inspector) -> Iterator[tuple[list[float], list[float]]]:
    """Collects the seconds of every call of the backbone and of the network while the context is open."""
    import torch

    def now() -> float:
        if inspector.device.type == "cuda":
            torch.cuda.synchronize(inspector.device)
        return time.perf_counter()

    seconds: tuple[list[float], list[float]] = ([], [])
    hooks = []
    for module, spent in zip((inspector._extractor, inspector._network), seconds, strict=True):
        hooks.append(module.register_forward_pre_hook(lambda *_, spent=spent: spent.append(-now())))
        hooks.append(module.register_forward_hook(lambda *_, spent=spent: spent.append(spent.pop() + now())))
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _document(arguments: argparse.Namespace) -> Iterator[Callable[..., None]]:
    """Yields put(value, text), which prints one of them; with --json nothing else reaches standard output."""
    out = sys.stdout

    def put(value: Any, text: str | None = None) -> None:
        if arguments.json:
            print(_json(value), file=out, flush=True)
        elif text is not None:
            print(text, file=out, flush=True)

    with contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext():
        yield put


def _json(value: Any) -> str:
    """JSON that every parser reads: NaN and infinity become null."""
    def plain(item: Any) -> Any:
        if isinstance(item, dict):
            return {str(key): plain(entry) for key, entry in item.items()}
        if isinstance(item, (list, tuple)):
            return [plain(entry) for entry in item]
        if hasattr(item, "item"):  # a numpy scalar
            item = item.item()
        return None if isinstance(item, float) and not math.isfinite(item) else item

    return json.dumps(plain(value), indent=2, allow_nan=False)


def _progress(items: Iterable[_Item], what: str, total: int | None = None) -> Iterable[_Item]:
    from tqdm import tqdm

    return tqdm(items, desc=what, total=total, leave=False, disable=None)


@contextlib.contextmanager
def _counter(what: str) -> Iterator[Callable[[int, int], None]]:
    from tqdm import tqdm

    with tqdm(desc=what, leave=False, disable=None) as bar:
        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def _say(message: str) -> None:
    _print(f"diffad: {' '.join(message.split())}")


def _print(line: str, file: Any = None) -> None:
    from tqdm import tqdm

    tqdm.write(line, file=file or sys.stderr)  # goes above a progress bar instead of through it
