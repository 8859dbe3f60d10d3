"""What each command of the command line does; `cli.py` says how it is asked for, `console.py` prints.

Everything heavy is imported inside the commands, so that `diffad --help` answers at once.
A command takes the parsed arguments and returns an exit code.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffad.console import counter, document, json_text, say, tell, tracked, training_bar

if TYPE_CHECKING:
    from diffad.data import Sample
    from diffad.inspector import Inspector

FINISHED, UNREADABLE, REFUSED, ANOMALOUS, INTERRUPTED = 0, 1, 2, 3, 130
_LONGEST_NAME = 200  # bytes, of a result's file without its ending


class Refused(ValueError):
    """The command cannot start as it was given; the message says what to change."""


def default_checkpoint() -> Path:
    """The first bundled model. Raises Refused if there is none."""
    from diffad.checkpoint import bundled

    if found := bundled():
        return found[0]
    raise Refused("there is no bundled model here: give --checkpoint FILE")


def train(arguments: argparse.Namespace) -> int:
    from diffad import checkpoint, training
    from diffad.features import FeatureExtractor
    from diffad.profiles import in_words
    from diffad.unet import UNetConfig, pick_device

    given = {"size": arguments.size, "channels": arguments.channels and tuple(arguments.channels)}
    sizes = {key: value for key, value in given.items() if value}
    if arguments.start and (sizes or arguments.backbone):
        raise Refused("--size, --channels and --backbone come from the checkpoint given with --from")
    if arguments.out.suffix != ".safetensors":
        raise Refused(f"--out must end in .safetensors, not {arguments.out.name!r}")
    for source in arguments.data:
        _must_exist(source)
    categories = training.normal_paths(arguments.data)
    names = ("steps", "minutes", "batch", "learning_rate", "seed", "licence")
    recipe = {name: getattr(arguments, name) for name in names}
    try:
        pick_device(arguments.device)
        if arguments.backbone:
            recipe["backbone"] = arguments.backbone
            sizes["feature_channels"] = FeatureExtractor(arguments.backbone).channels
        config = training.TrainConfig(unet=UNetConfig(**sizes), **recipe)
    except ValueError as error:
        raise Refused(str(error)) from error

    started = time.perf_counter()
    first = int(os.environ.get("RANK", "0")) == 0  # under torchrun one process speaks
    if first:  # before hours are spent: a folder that is missing, or two parts in one
        for name, paths in categories.items():
            folders = len({path.parent for path in paths})
            say(f"{name}: {len(paths)} good pictures" + (f" from {folders} folders" if folders > 1 else ""))
    with document(arguments.json) as put, training_bar() as progress:
        try:
            path = training.train(config, arguments.data, arguments.out, resume=arguments.resume,
                                  start_from=arguments.start, device=arguments.device, progress=progress)
        except KeyboardInterrupt:
            if training.state_file(arguments.out).exists():
                say("to go on from here, give the same options and --resume")
            raise
        if first:
            profiles = checkpoint.load(path).profiles
            rehearsals = {name: profiles[name].rehearsal for name in categories}
            put({"checkpoint": str(path), "seconds": round(time.perf_counter() - started, 1),
                 "rehearsal": rehearsals},
                "\n".join([f"wrote {path}: try it with `diffad inspect PICTURE --checkpoint {path}`",
                           *(f"{name}: parts at any angle, turned upright before they are looked at"
                             for name in categories if profiles[name].upright),
                           *(in_words(name, values) for name, values in rehearsals.items())]))
    return FINISHED


def inspect(arguments: argparse.Namespace) -> int:
    from diffad import batch

    samples = _pictures(arguments.sources, arguments.out)
    paths = [sample.image for sample in samples]
    inspector = _load_inspector(arguments)
    endings = ["_overlay.png", "_map.npy", "_evidence.png", *(["_report.html"] if arguments.report else [])]
    if arguments.report and not arguments.out:
        raise Refused("--report writes into a folder: give --out DIR too")
    names = _output_names(paths, arguments.out, endings) if arguments.out else [""] * len(paths)
    records: list[dict[str, Any]] = []
    with document(arguments.json) as put, _results(arguments.out, records):
        options = ("timesteps", "alpha", "seed", "draws", "threshold", "tile")
        rows = batch.run(
            inspector, {str(sample.image): sample for sample in samples}, arguments.category,
            **{option: getattr(arguments, option) for option in options})
        for name, (row, inspection) in tracked(zip(names, rows, strict=True), "inspecting", len(paths)):
            record = row.to_dict()
            if row.error:
                say(row.error)
                records.append(record)
                continue
            if arguments.out:
                files = [arguments.out / f"{name}{ending}" for ending in endings]
                try:
                    _write_evidence(files, inspection, inspector)
                    record["files"] = [file.name for file in files]
                except MemoryError:
                    say(f"{row.name} is judged, but too large for this machine's memory to be drawn")
            records.append(record)
            if not arguments.json:
                verdict = "ANOMALOUS" if record["is_anomalous"] else "good"
                count = len(record["regions"])
                regions = f"{count} region{'' if count == 1 else 's'}"
                fits = "" if record.get("category_fits", True) else "?  fits no category"
                tell(f"{verdict:9}  score {record['score']:7.2f}  threshold {record['threshold']:.2f}  "
                     f"{regions}  {record['category']}{fits}  {row.name}", keep_on=arguments.out)
        put(records, f"wrote results to {arguments.out}" if arguments.out else None)
    if any("error" in record for record in records):
        return UNREADABLE
    anomalous = any(record["is_anomalous"] for record in records)
    return ANOMALOUS if arguments.fail_on_anomaly and anomalous else FINISHED


def reconstruct(arguments: argparse.Namespace) -> int:
    from diffad.data import DataError
    from diffad.render import Reel, animation, png_bytes

    paths = [sample.image for sample in _pictures(arguments.sources, arguments.out)]
    inspector = _load_inspector(arguments)
    endings = (f"_repair.{arguments.format}", "_repaired.png")
    records: list[dict[str, Any]] = []
    with document(arguments.json) as put:
        for path, name in zip(paths, _output_names(paths, arguments.out, endings), strict=True):
            film, picture = (arguments.out / f"{name}{ending}" for ending in endings)
            started = time.perf_counter()
            try:
                repair = inspector.reconstruct(
                    path, category=arguments.category, stop_at_threshold=arguments.stop_at_threshold,
                    seed=arguments.seed, alpha=arguments.alpha, threshold=arguments.threshold,
                    tile=arguments.tile, **_repair_options(arguments))
            except DataError as error:
                records.append(_unreadable(path, error))
                continue
            reel, scores = Reel(), []
            bar = tracked(repair, str(path), arguments.steps + 1)
            for step in bar:
                bar.total = step.total + 1  # grows by a round
                reel.add(step.image)
                scores.append(step.score)
                repaired, steps = step.image, step.index
            seconds = time.perf_counter() - started
            animation(reel.frames, film)
            picture.write_bytes(png_bytes(repaired))
            records.append({
                "path": str(path), "animation": str(film), "repaired": str(picture), "steps": steps,
                "score_before": scores[0], "score_after": scores[-1], "seconds": seconds})
            if not arguments.json:
                fall = f"score {scores[0]:.2f} → {scores[-1]:.2f}"
                tell(f"{fall}  {steps} steps  {seconds:.1f} s  {film}", keep_on=True)
        put(records)
    return UNREADABLE if any("error" in record for record in records) else FINISHED


def evaluate(arguments: argparse.Namespace) -> int:
    from diffad.data import find_all
    from diffad.evaluation import evaluate, evaluate_repair, evaluation_table, repair_table

    out = arguments.out
    if arguments.sheet and not (arguments.repair and out):
        raise Refused("--sheet draws repairs into a folder: give --repair and --out DIR too")
    if arguments.limit and not arguments.repair:
        raise Refused("--limit is for the repairs, all pictures are inspected: give --repair too")
    for source in arguments.data:
        _must_exist(source)
    samples = find_all(arguments.data, split="test")
    if all(sample.is_anomalous is None for sample in samples):
        raise Refused("no picture is labelled: give folders with test/good and test/<defect> (MVTec layout)")
    _make_folder(out)
    inspector = _load_inspector(arguments)
    with document(arguments.json) as put:
        settings = {"category": arguments.category, "alpha": arguments.alpha}
        with counter("inspecting") as progress:
            result = evaluate(inspector, samples, timesteps=arguments.timesteps, seeds=arguments.seeds,
                              progress=progress, **settings)
        tables = [evaluation_table(result)]
        shown: dict[str, Any] = {}
        if arguments.repair:
            with counter("repairing") as progress:
                repaired = evaluate_repair(
                    inspector, samples, limit=arguments.limit, progress=progress, seed=arguments.seeds[0],
                    show=shown.__setitem__ if arguments.sheet else None, **settings,
                    **_repair_options(arguments))
            tables.append(repair_table(repaired))
            for name, values in repaired.items():
                result[name]["repair"] = values
        for name, values in result.items():
            for note in values["notes"] + values.get("repair", {}).get("notes", []):
                say(f"{name}: {note}")
        put(result, "\n\n".join(tables))
        if out:
            _write_evaluation(out, result, inspector, shown)
    return FINISHED


def ablate(arguments: argparse.Namespace) -> int:
    from diffad.ablation import METRICS, ablate, ablation_report
    from diffad.render import ablation_plot

    out, samples = _labelled_folders(arguments)
    inspector = _load_inspector(arguments)
    singles = [_load_inspector(arguments, path) for path in arguments.single]
    with document(arguments.json) as put:
        with counter("ablating") as progress:
            result = ablate(inspector, samples, singles, arguments.limit, arguments.seed, progress)
        plots = {}
        if out:
            for table in result["tables"]:
                plots[table["name"]] = f"{table['name']}.png"
                ablation_plot(table, METRICS, out / plots[table["name"]])
            (out / "ablation.json").write_text(json_text(result) + "\n", encoding="utf-8")
            (out / "ablation.md").write_text(ablation_report(result, plots) + "\n", encoding="utf-8")
        put(result, ablation_report(result))
    return FINISHED


def compare(arguments: argparse.Namespace) -> int:
    from diffad.peers import checked, compare, comparison_report

    try:
        peers = checked(arguments.peers)
    except ValueError as error:
        raise Refused(str(error)) from error
    out, samples = _labelled_folders(arguments)
    inspector = _load_inspector(arguments)
    with document(arguments.json) as put:
        with counter("comparing") as progress:
            result = compare(inspector, samples, peers, arguments.limit, arguments.minutes_each,
                             arguments.seed, progress)
        report = comparison_report(result)
        if out:
            (out / "comparison.json").write_text(json_text(result) + "\n", encoding="utf-8")
            (out / "comparison.md").write_text(report + "\n", encoding="utf-8")
        put(result, report)
    return FINISHED


def benchmark(arguments: argparse.Namespace) -> int:
    import torch

    from diffad.benchmark import benchmark as measured
    from diffad.data import DataError, read_image
    from diffad.synthetic import DEFECTS, make_part

    started = time.perf_counter()
    inspector = _load_inspector(arguments)
    loaded = time.perf_counter() - started
    category = arguments.category or inspector.categories[0]
    kind = category if category in DEFECTS else next(iter(DEFECTS))
    try:
        picture = read_image(arguments.picture or make_part(kind, 0, DEFECTS[kind][0]).image)
    except DataError as error:
        raise Refused(str(error)) from error
    with document(arguments.json) as put:
        found = measured(
            inspector, picture, category, arguments.timesteps, arguments.runs, arguments.steps, tracked)
        about = {
            "checkpoint": inspector.name, "parameters": inspector.parameters, "size": inspector.size,
            "timesteps": list(arguments.timesteps), "repair_method": found.pop("repair_method"),
            "device": str(inspector.device), "threads": torch.get_num_threads()}
        rates = {name: found.pop(f"{name}_rate") for name in ("batch", "training")}
        seconds = {"load": loaded} | found
        put(about | {f"{name}_seconds": value for name, value in seconds.items()}
            | {f"{name}_pictures_per_second": value for name, value in rates.items()}, "\n".join([
                ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in about.items()), "",
                "| what | time |", "| --- | ---: |",
                *(f"| {name.replace('_', ' ')} | {value * 1000:.1f} ms |" for name, value in seconds.items()),
                *(f"| {name} | {value:.1f} pictures a second |" for name, value in rates.items())]))
    return FINISHED


def samples(arguments: argparse.Namespace) -> int:
    from diffad.synthetic import CATEGORIES, write_set

    root = arguments.folder
    if root.is_dir() and any(root.iterdir()):
        raise Refused(f"{root} is not empty: name a new folder")
    if not arguments.train + arguments.good + arguments.defective:
        raise Refused("no picture is asked for: give --train, --good or --defective")
    with document(arguments.json) as put:
        chosen = list(dict.fromkeys(arguments.category or CATEGORIES))
        numbers = arguments.train, arguments.good, arguments.defective
        write_set(root, chosen, *numbers, arguments.size, arguments.seed)
        count = len(chosen) * sum(numbers)
        put({"folder": str(root), "categories": chosen, "pictures": count},
            f"wrote {count} pictures of {', '.join(chosen)} to {root}")
    return FINISHED


def serve(arguments: argparse.Namespace) -> int:
    from diffad.checkpoint import bundled
    from diffad.ui.server import logins, serve

    paths = arguments.checkpoint or bundled() or [default_checkpoint()]
    if twice := [name for name, count in Counter(path.stem for path in paths).items() if count > 1]:
        raise Refused(f"two models are called {twice[0]}: rename one")
    root = arguments.data_root
    if root and not root.is_dir():
        raise Refused(f"there is no folder {root}: --data-root names a folder")
    auth = None
    try:
        if arguments.auth:
            auth = logins(arguments.auth.read_text(encoding="utf-8"), str(arguments.auth))
            if not auth:
                raise ValueError(f"{arguments.auth} is empty: give lines user:password")
            if os.name == "posix" and arguments.auth.stat().st_mode & 0o007:
                say(f"everybody on this machine may read {arguments.auth}: chmod 600 keeps the passwords")
        inspectors = {path.stem: _load_inspector(arguments, path) for path in paths}
        if arguments.host in ("0.0.0.0", "::") and not auth and "DIFFAD_AUTH" not in os.environ:
            say("everybody who reaches this machine can use the page: --auth FILE asks for a login")
        serve(inspectors, arguments.host, arguments.port, auth=auth, data_root=root,
              max_upload=arguments.max_upload, max_storage=arguments.max_storage,
              max_tiles=arguments.max_tiles, mcp=arguments.mcp)
    except ValueError as error:  # malformed logins, or no MCP here
        raise Refused(str(error)) from error
    except OSError as error:
        if arguments.port and "port" in str(error):
            raise Refused(f"port {arguments.port} is taken: choose another --port") from error
        raise
    return FINISHED


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


def _labelled_folders(arguments: argparse.Namespace) -> tuple[Path | None, list[Sample]]:
    """Where to write, and all pictures of DATA, those to train on too."""
    from diffad.data import find_all

    for source in arguments.data:
        _must_exist(source)
    samples = find_all(arguments.data)
    _make_folder(arguments.out)
    return arguments.out, samples


def _make_folder(out: Path | None) -> None:
    """Before the work, which may take hours. Raises Refused, OSError."""
    if out is None:
        return
    if out.exists() and not out.is_dir():
        raise Refused(f"{out} is a file: --out names a folder")
    out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK):
        raise Refused(f"nothing may be written into {out}: choose another --out")


def _must_exist(path: Path) -> None:
    if not path.exists():
        raise Refused(f"there is no file or folder {path}: check the path")


def _pictures(sources: Sequence[Path], out: Path | None) -> list[Sample]:
    """The pictures of all sources, each once, in the order given.

    Raises Refused where `out` is one of the sources: the next run would judge what this one writes.
    """
    from diffad.data import Sample, find_samples

    found: dict[str, Sample] = {}
    for source in sources:
        _must_exist(source)
        if source.is_dir() and out is not None and out.resolve() == source.resolve():
            raise Refused(f"the results would lie among the pictures in {source}: choose another --out")
        for sample in find_samples(source) if source.is_dir() else [Sample(source, "")]:
            found.setdefault(os.path.abspath(sample.image), sample)
    return list(found.values())


def _output_names(paths: Sequence[Path], out: Path, endings: Sequence[str]) -> list[str]:
    """One name per picture for files out/<name><ending>: its stem, after its folder's name where stems meet.

    No two pictures share a name, no file is an input, and long names are cut, since those of files may have
    255 bytes. Makes the folder.
    """
    _make_folder(out)
    inputs = {path.resolve() for path in paths}
    if inputs & {(out / "results.json").resolve(), (out / "results.csv").resolve()}:
        raise Refused(f"the results would overwrite an input in {out}: choose another --out")
    stems = Counter(path.stem.casefold() for path in paths)
    names: list[str] = []
    taken: set[str] = set()
    for path in paths:
        base = path.stem if stems[path.stem.casefold()] == 1 else f"{path.resolve().parent.name}_{path.stem}"
        if len(os.fsencode(base)) > _LONGEST_NAME:
            base = os.fsencode(base)[:_LONGEST_NAME].decode(errors="ignore")
        name, number = base, 1
        while name.casefold() in taken or any((out / f"{name}{end}").resolve() in inputs for end in endings):
            number += 1
            name = f"{base}_{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _write_evidence(files: Sequence[Path], inspection: Any, inspector: Inspector) -> None:
    import numpy as np

    from diffad.render import evidence_sheet, overlay, png_bytes
    from diffad.report import report

    top, bad = inspector.scale_top(inspection.category), inspection.is_anomalous
    overlay_file, map_file, sheet_file, *report_file = files
    shown = overlay(inspection.image, inspection.anomaly_map, top, inspection.threshold, contour=bad)
    overlay_file.write_bytes(png_bytes(shown))
    np.save(map_file, inspection.anomaly_map.astype(np.float32))
    sheet_file.write_bytes(png_bytes(evidence_sheet(inspection, top)))
    for path in report_file:
        page = report(inspection, inspector, path.name[: -len("_report.html")])
        path.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")


def _write_evaluation(
    out: Path, result: dict[str, Any], inspector: Inspector, repairs: dict[str, Any]
) -> None:
    from diffad.evaluation_report import html_report, markdown_report, repair_sheet
    from diffad.render import png_bytes

    (out / "results.json").write_text(json_text(result) + "\n", encoding="utf-8")
    (out / "results.md").write_text(markdown_report(result), encoding="utf-8", errors="backslashreplace")
    sheets = {name: repair_sheet(shown) for name, shown in repairs.items()}
    for name, sheet in sheets.items():
        (out / f"{name}_repairs.png").write_bytes(png_bytes(sheet))
    page = html_report(result, inspector, sheets)
    (out / "report.html").write_text(page, encoding="utf-8", errors="xmlcharrefreplace")
    say(f"wrote results.json, results.md and report.html to {out}")


def _unreadable(path: Path, error: ValueError) -> dict[str, str]:
    say(str(error))
    return {"path": str(path), "error": str(error)}


def _repair_options(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("steps", "denoise_every", "step_size", "timestep", "method")
    return {name: getattr(arguments, name) for name in names}


@contextlib.contextmanager
def _results(out: Path | None, records: list[dict[str, Any]]) -> Iterator[None]:
    """Writes results.json and results.csv of the records when the context ends, also by an interruption."""
    from diffad.batch import csv_text

    try:
        yield
    finally:
        if out and records:  # else those of an earlier run stay
            (out / "results.json").write_text(json_text(records) + "\n", encoding="utf-8")
            (out / "results.csv").write_text(
                csv_text(records), encoding="utf-8", errors="backslashreplace", newline="")
