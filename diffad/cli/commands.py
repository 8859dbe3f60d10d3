"""What each command of the command line does; `cli.py` says how it is asked for, `console.py` prints.

Everything heavy is imported inside the commands, so that `diffad --help` answers at once.
A command takes the parsed arguments and returns an exit code.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffad.cli.console import counter, document, json_text, say, tell, tracked, training_bar
from diffad.output import OutputError, append, write

if TYPE_CHECKING:
    from diffad.inspector import Inspector
    from diffad.pictures.samples import Sample

FINISHED, UNREADABLE, REFUSED, ANOMALOUS, LOOK, INTERRUPTED = 0, 1, 2, 3, 4, 130
_VERDICTS, _TABLES = "results.jsonl", ("results.json", "results.csv")  # of `inspect`
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
    from diffad import checkpoint
    from diffad.method.devices import pick_device
    from diffad.method.features import FeatureExtractor
    from diffad.method.unet import UNetConfig
    from diffad.pictures.samples import listed, short
    from diffad.teaching import training
    from diffad.teaching.forecast import in_words

    sizes = {"channels": tuple(arguments.channels)} if arguments.channels else {}
    if arguments.start and (sizes or arguments.backbone):
        raise Refused("--channels and --backbone come from the checkpoint given with --from")
    if arguments.out.suffix != ".safetensors":
        raise Refused(f"--out must end in .safetensors, not {arguments.out.name!r}")
    if arguments.out.is_dir():
        raise Refused(f"{arguments.out} is a folder: --out names a file")
    _check_folder(arguments.out.parent)
    for source in (*arguments.data, *filter(None, [arguments.start])):
        _must_exist(source)
    categories = training.normal_paths(arguments.data)
    names = ("steps", "minutes", "batch", "learning_rate", "seed", "licence", "size")
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
            folders = listed(dict.fromkeys(short(path.parent, 2) for path in paths))
            say(f"{name}: {len(paths)} good pictures from {folders}")
    with document(arguments.json) as put, training_bar() as progress:
        try:
            path = training.train(config, arguments.data, arguments.out, resume=arguments.resume,
                                  start_from=arguments.start, device=arguments.device, progress=progress,
                                  skip_unreadable=arguments.skip_unreadable,
                                  tell=say if first else lambda _: None)
        except (KeyboardInterrupt, OutputError):
            if training.state_file(arguments.out).exists():
                say("to go on from here, give the same options and --resume")
            raise
        if first:
            profiles = checkpoint.load(path).profiles
            forecasts = {name: profiles[name].forecast for name in categories}
            put({"checkpoint": str(path), "seconds": round(time.perf_counter() - started, 1),
                 "forecast": forecasts},
                "\n".join([f"wrote {path}: try it with `diffad inspect PICTURE --checkpoint {path}`",
                           *(f"{name}: parts at any angle, turned upright before they are looked at"
                             for name in categories if profiles[name].upright),
                           *(in_words(name, values) for name, values in forecasts.items())]))
    return FINISHED


def inspect(arguments: argparse.Namespace) -> int:
    from diffad import batch

    out = arguments.out
    if arguments.report and not out:
        raise Refused("--report writes into a folder: give --out DIR too")
    samples = _pictures(arguments.sources, out)
    paths = [sample.image for sample in samples]
    endings = ["_overlay.png", "_map.npy", "_evidence.png", *(["_report.html"] if arguments.report else [])]
    names = _output_names(paths, out, endings) if out else [""] * len(paths)
    inspector = _load_inspector(arguments)
    _make_folder(out)
    records: list[dict[str, Any]] = []
    unwritten: list[Path] = []
    with document(arguments.json) as put:
        options = ("timesteps", "alpha", "seed", "draws", "threshold", "look_threshold", "tile")
        settings = {option: getattr(arguments, option) for option in options}
        pictures = {str(sample.image): sample for sample in samples}
        shared = {}
        if arguments.bits:
            settings["bits"] = arguments.bits
        else:
            shared = batch.shared_bits(inspector, pictures, arguments.category)
        if said := batch.bits_in_words(shared):
            say(said)
        rows = batch.run(inspector, pictures, arguments.category, shared, **settings)
        with _results(out, records, unwritten):
            for name, (row, inspection) in tracked(zip(names, rows, strict=True), "inspecting", len(paths)):
                record = row.to_dict()
                if row.error:
                    say(row.error)
                elif out:
                    record["files"] = []
                    with _going_on(unwritten):
                        try:
                            for file in _evidence(out, name, endings, inspection, inspector):
                                record["files"].append(file.name)
                        except MemoryError:
                            say(f"{row.name} is judged, but too large for this machine's memory to be drawn")
                if out:
                    with _going_on(unwritten):
                        append(out / _VERDICTS, json_text(record, indent=None), fresh=not records)
                records.append(record)
                if not (row.error or arguments.json):
                    tell(_verdict(record), keep_on=out)
                    for note in record["notes"]:
                        tell(f"{'':10}  {note}", keep_on=out)
        put(records, f"wrote results to {out}" if out and not unwritten else None)
    if unwritten:
        return REFUSED
    if any("error" in record for record in records):
        return UNREADABLE
    verdicts = {record["verdict"] for record in records}
    if arguments.fail_on and "anomalous" in verdicts:
        return ANOMALOUS
    return LOOK if arguments.fail_on == "look" and "look" in verdicts else FINISHED


def _verdict(record: dict[str, Any]) -> str:
    from diffad.inspection import VERDICTS

    word, _ = VERDICTS[record["verdict"]]
    verdict = word.lower() if record["verdict"] == "good" else word.upper()
    count = len(record["regions"])
    regions = f"{count} region{'' if count == 1 else 's'}"
    fits = "" if record.get("category_fits", True) else "?  fits no category"
    limits = f"look limit {record['look_threshold']:.2f}  threshold {record['threshold']:.2f}"
    return (f"{verdict:10}  score {record['score']:7.2f}  {limits}  "
            f"{regions}  {record['category']}{fits}  {record['path']}")


def repair(arguments: argparse.Namespace) -> int:
    from diffad.pictures.animation import Reel, animation, check_format
    from diffad.pictures.drawing import png_bytes
    from diffad.pictures.reading import DataError

    check_format(f".{arguments.format}")
    paths = [sample.image for sample in _pictures(arguments.sources, arguments.out)]
    endings = (f"_repair.{arguments.format}", "_repaired.png")
    names = _output_names(paths, arguments.out, endings)
    inspector = _load_inspector(arguments)
    _make_folder(arguments.out)
    records: list[dict[str, Any]] = []
    unwritten: list[Path] = []
    with document(arguments.json) as put:
        for path, name in zip(paths, names, strict=True):
            film, picture = (arguments.out / f"{name}{ending}" for ending in endings)
            started = time.perf_counter()
            try:
                repair = inspector.repair(
                    path, category=arguments.category, stop_at_threshold=arguments.stop_at_threshold,
                    seed=arguments.seed, alpha=arguments.alpha, threshold=arguments.threshold,
                    tile=arguments.tile, **_repair_options(arguments),
                    **({"bits": arguments.bits} if arguments.bits else {}))
            except DataError as error:
                records.append(_unreadable(path, error))
                continue
            reel, scores = Reel(), []
            bar = tracked(repair, str(path), arguments.steps + 1)
            for step in bar:
                bar.total = step.total + 1  # grows by a round
                reel.add(step.image)
                scores.append(step.score)
                repaired, steps, notes = step.image, step.index, step.notes
            seconds = time.perf_counter() - started
            with _going_on(unwritten):
                animation(reel.frames, film)
                write(picture, png_bytes(repaired), sync=False)
            if unwritten:  # repairs take long, and nothing would be left of them
                break
            records.append({
                "path": str(path), "animation": str(film), "repaired": str(picture), "steps": steps,
                "score_before": scores[0], "score_after": scores[-1], "seconds": seconds,
                "notes": list(notes)})
            if not arguments.json:
                fall = f"score {scores[0]:.2f} → {scores[-1]:.2f}"
                tell(f"{fall}  {steps} steps  {seconds:.1f} s  {film}", keep_on=True)
                for note in notes:
                    tell(f"  {note}", keep_on=True)
        put(records)
    if unwritten:
        return REFUSED
    return UNREADABLE if any("error" in record for record in records) else FINISHED


def evaluate(arguments: argparse.Namespace) -> int:
    from diffad.measuring.evaluation import (
        announced_rows,
        evaluate,
        evaluate_repair,
        evaluation_table,
        folders_text,
        markdown,
        repair_table,
    )
    from diffad.teaching.stress import robustness_rows
    from diffad.teaching.stress import stress as stress_all

    out = arguments.out
    if arguments.sheet and not (arguments.repair and out):
        raise Refused("--sheet draws repairs into a folder: give --repair and --out DIR too")
    if arguments.limit and not arguments.repair:
        raise Refused("--limit is for the repairs, all pictures are inspected: give --repair too")
    for source in arguments.data:
        _must_exist(source)
    samples = _test_and_training_pictures(arguments.data)
    good = [sample for sample in samples if sample.is_anomalous is False and sample.split != "train"]
    if arguments.stress and not good:
        raise Refused("--stress changes good pictures, and there is none: give folders with test/good")
    if all(sample.is_anomalous is None for sample in samples):
        raise Refused("no picture is labelled: give folders with test/good and test/<defect> (MVTec layout)")
    _make_folder(out)
    inspector = _load_inspector(arguments)
    if arguments.stress and not arguments.category:
        inspector.check_knows({sample.category for sample in good})
    with document(arguments.json) as put:
        settings = {"category": arguments.category, "alpha": arguments.alpha}
        with counter("inspecting") as progress:
            result = evaluate(inspector, samples, timesteps=arguments.timesteps, seeds=arguments.seeds,
                              progress=progress, keep=_keeper(out, "scores.jsonl"), **settings)
        if out and (arguments.stress or arguments.repair):  # which take long
            _write_tables(out, result)
        if arguments.stress:
            with counter("judging changed pictures") as progress:
                changed = stress_all(inspector, good, arguments.stress, progress=progress,
                                     keep=_keeper(out, "verdicts.jsonl"), seed=arguments.seeds[0],
                                     timesteps=arguments.timesteps, **settings)
            for name, values in changed.items():
                result[name] |= {"stress": values, "wrong_when_changed": values["beyond"]}
        tables = [folders_text(result), evaluation_table(result), markdown(announced_rows(result))]
        if arguments.stress:
            tables.append(markdown(robustness_rows(changed)))
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
            _write_tables(out, result)
            _write_pages(out, result, inspector, shown)
    return FINISHED


def ablate(arguments: argparse.Namespace) -> int:
    from diffad.measuring.ablation import METRICS, ablate, ablation_report
    from diffad.pictures.plots import ablation_plot

    for path in arguments.single:
        _must_exist(path)
    out, samples = _labelled_folders(arguments)
    inspector = _load_inspector(arguments)
    singles = [_load_inspector(arguments, path) for path in arguments.single]
    with document(arguments.json) as put:
        with counter("ablating") as progress:
            result = ablate(inspector, samples, singles, arguments.limit, arguments.seed, progress)
        put(result, ablation_report(result))
        if out:
            write(out / "ablation.json", f"{json_text(result)}\n".encode())
            plots = {table["name"]: f"{table['name']}.png" for table in result["tables"]}
            for table in result["tables"]:
                ablation_plot(table, METRICS, out / plots[table["name"]])
            write(out / "ablation.md", _utf8(f"{ablation_report(result, plots)}\n"))
    return FINISHED


def compare(arguments: argparse.Namespace) -> int:
    from diffad.measuring.peers import checked, compare, comparison_report

    try:
        peers = checked(arguments.peers)
    except ValueError as error:
        raise Refused(str(error)) from error
    out, samples = _labelled_folders(arguments)
    inspector = _load_inspector(arguments)
    with document(arguments.json) as put:
        with counter("comparing") as progress:
            result = compare(inspector, samples, peers, arguments.limit, arguments.minutes_each,
                             arguments.seed, progress, arguments.stress)
        report = comparison_report(result)
        put(result, report)
        if out:
            write(out / "comparison.json", f"{json_text(result)}\n".encode())
            write(out / "comparison.md", _utf8(f"{report}\n"))
    return FINISHED


def stress(arguments: argparse.Namespace) -> int:
    from diffad.measuring.evaluation import markdown
    from diffad.teaching.stress import stress, stress_plot, stress_table

    out, samples = _labelled_folders(arguments)
    inspector = _load_inspector(arguments)
    with document(arguments.json) as put:
        with counter("judging changed pictures") as progress:
            result = stress(inspector, samples, arguments.limit, arguments.seed, progress,
                            _keeper(out, "verdicts.jsonl"), arguments.curves,
                            alpha=arguments.alpha, timesteps=arguments.timesteps)
        report = markdown(stress_table(result))
        put(result, report)
        if out:
            write(out / "stress.json", f"{json_text(result)}\n".encode())
            write(out / "stress.md", _utf8(f"{report}\n"))
            if arguments.curves:
                stress_plot(result, out / "stress.png")
    return FINISHED


def benchmark(arguments: argparse.Namespace) -> int:
    import torch

    from diffad.benchmark import benchmark as measured
    from diffad.benchmark import beside
    from diffad.pictures.reading import DataError, read_image
    from diffad.synthetic.parts import DEFECTS, make_part

    if arguments.picture:
        _must_exist(arguments.picture)
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
        about = {
            "checkpoint": inspector.name, "parameters": inspector.parameters,
            "size": inspector.size_of(category), "timesteps": list(arguments.timesteps),
            "device": str(inspector.device), "threads": torch.get_num_threads()}
        asked = inspector, picture, category, arguments.timesteps, arguments.runs
        if arguments.busy:
            rows = beside(*asked, tracked)
            put(about | {"beside": rows}, _beside_table(about, rows))
            return FINISHED
        found = measured(*asked, arguments.steps, tracked)
        about["repair_method"] = found.pop("repair_method")
        rates = {name: found.pop(f"{name}_rate") for name in ("batch", "training")}
        seconds = {"load": loaded} | found
        put(about | {f"{name}_seconds": value for name, value in seconds.items()}
            | {f"{name}_pictures_per_second": value for name, value in rates.items()}, "\n".join([
                ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in about.items()), "",
                "| what | time |", "| --- | ---: |",
                *(f"| {name.replace('_', ' ')} | {value * 1000:.1f} ms |" for name, value in seconds.items()),
                *(f"| {name} | {value:.1f} pictures a second |" for name, value in rates.items())]))
    return FINISHED


def _beside_table(about: dict[str, Any], rows: list[dict[str, float]]) -> str:
    return "\n".join([
        ", ".join(f"{name} {value}" for name, value in about.items()), "",
        "| busy loops | median | worst | slow-down |", "| ---: | ---: | ---: | ---: |",
        *(f"| {row['busy_loops']} | {row['median_seconds'] * 1000:.0f} ms "
          f"| {row['worst_seconds'] * 1000:.0f} ms | {row['slowdown']:.2f} |" for row in rows)])


def samples(arguments: argparse.Namespace) -> int:
    from diffad.synthetic.parts import CATEGORIES, write_set

    root = arguments.folder
    _check_folder(root)
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
    host, port = _free_address(arguments.host, arguments.port)  # before anything heavy is imported
    from diffad.checkpoint import bundled

    paths = arguments.checkpoint or bundled() or [default_checkpoint()]
    if twice := [name for name, count in Counter(path.stem for path in paths).items() if count > 1]:
        raise Refused(f"two models are called {twice[0]}: rename one")
    for path in paths:
        _must_exist(path)
    root = arguments.data_root
    if root and not root.is_dir():
        raise Refused(f"there is no folder {root}: --data-root names a folder")
    from diffad.ui.server import check_mcp, logins, serve

    try:
        if arguments.mcp:
            check_mcp()
        if arguments.auth:
            auth = logins(_text_of(arguments.auth), str(arguments.auth))
            if not auth:
                raise ValueError(f"{arguments.auth} is empty: give lines user:password")
            if os.name == "posix" and arguments.auth.stat().st_mode & 0o007:
                say(f"everybody on this machine may read {arguments.auth}: chmod 600 keeps the passwords")
        else:
            auth = logins(os.environ.get("DIFFAD_AUTH", ""), "DIFFAD_AUTH")
        inspectors = {path.stem: _load_inspector(arguments, path) for path in paths}
        if host in ("0.0.0.0", "::") and not auth:
            say("everybody who reaches this machine can use the page: --auth FILE asks for a login")
        serve(inspectors, host, port, auth=auth or None, data_root=root, max_upload=arguments.max_upload,
              max_storage=arguments.max_storage, max_tiles=arguments.max_tiles, mcp=arguments.mcp)
    except ValueError as error:  # malformed logins, or no MCP here
        raise Refused(str(error)) from error
    except OSError as error:
        if port and "port" in str(error):  # somebody took it meanwhile
            raise Refused(f"port {port} is taken: choose another --port") from error
        raise
    return FINISHED


def _free_address(host: str | None, port: int | None) -> tuple[str | None, int | None]:
    """Host and port as given, or as Gradio's variables say. Raises Refused, before any model is loaded, if
    this machine has no such address or the port is taken.
    """
    host = host or os.environ.get("GRADIO_SERVER_NAME") or None
    given = os.environ.get("GRADIO_SERVER_PORT")
    if given is not None and not (given.isascii() and given.isdecimal() and 1 <= int(given) <= 65535):
        raise Refused(f"GRADIO_SERVER_PORT is {given!r}: set it to a number from 1 to 65535, or to none")
    port = port or (int(given) if given else None)
    try:
        found = socket.getaddrinfo((host or "127.0.0.1").strip("[]"), port or 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Refused(f"there is no address {host}: choose another --host") from error
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as probe:
        if os.name == "posix":  # there it only means that a port may be taken that was just given up
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except PermissionError as error:
            raise Refused(f"port {port} needs an administrator's rights: choose another --port") from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise Refused(f"port {port} is taken: choose another --port") from error
            raise Refused(f"{host} is no address of this machine: choose another --host") from error
    return host, port


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"{path} is no text: give lines user:password in UTF-8") from error


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
    from diffad.pictures.samples import find_all

    for source in arguments.data:
        _must_exist(source)
    samples = find_all(arguments.data)
    _make_folder(arguments.out)
    return arguments.out, samples


def _test_and_training_pictures(data: Sequence[Path]) -> list[Sample]:
    """Of a training folder that is not understood none: nothing is learned here."""
    from diffad.pictures.reading import DataError
    from diffad.pictures.samples import find_all

    try:
        return find_all(data)
    except DataError:
        return find_all(data, split="test")


def _make_folder(out: Path | None) -> None:
    """Before the work, which may take hours. Raises Refused, OSError."""
    if out is not None:
        _check_folder(out)
        out.mkdir(parents=True, exist_ok=True)


def _check_folder(folder: Path) -> None:
    """Raises Refused if it cannot be made, or nothing can be written into it."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise Refused(f"{there} is a file: give the name of a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise Refused(f"nothing may be written into {there}: choose another --out")


def _must_exist(path: Path) -> None:
    if not path.exists():
        raise Refused(f"there is no file or folder {path}: check the path")


def _pictures(sources: Sequence[Path], out: Path | None) -> list[Sample]:
    """The pictures of all sources, each once, in the order given.

    Raises Refused where `out` is one of the sources: the next run would judge what this one writes.
    """
    from diffad.pictures.samples import Sample, find_samples

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
    255 bytes. Raises Refused where nothing can be written.
    """
    _check_folder(out)
    inputs = {path.resolve() for path in paths}
    if inputs & {(out / name).resolve() for name in (_VERDICTS, *_TABLES)}:
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


def _evidence(
    out: Path, name: str, endings: Sequence[str], inspection: Any, inspector: Inspector
) -> Iterator[Path]:
    """Writes <name><ending> for each of the endings of `inspect`; yields each as it is written."""
    from diffad.pictures.drawing import npy_bytes, overlay, png_bytes
    from diffad.report.document import report
    from diffad.report.sheet import evidence_sheet

    top, bad = inspector.scale_top(inspection.category), inspection.verdict != "good"
    contents = {
        "_overlay.png": lambda: png_bytes(
            overlay(inspection.image, inspection.anomaly_map, top, inspection.map_limit, contour=bad)),
        "_map.npy": lambda: npy_bytes(inspection.anomaly_map),
        "_evidence.png": lambda: png_bytes(evidence_sheet(inspection, top)),
        "_report.html": lambda: report(inspection, inspector, name).encode("utf-8", "xmlcharrefreplace"),
    }
    for ending in endings:
        write(out / f"{name}{ending}", contents[ending](), sync=False)
        yield out / f"{name}{ending}"


def _write_tables(out: Path, result: dict[str, Any]) -> None:
    from diffad.measuring.report import markdown_report

    write(out / "results.json", f"{json_text(result)}\n".encode())
    write(out / "results.md", _utf8(markdown_report(result)))


def _write_pages(out: Path, result: dict[str, Any], inspector: Inspector, repairs: dict[str, Any]) -> None:
    from diffad.measuring.report import html_report, repair_sheet
    from diffad.pictures.drawing import png_bytes

    sheets = {name: repair_sheet(shown) for name, shown in repairs.items()}
    for name, sheet in sheets.items():
        write(out / f"{name}_repairs.png", png_bytes(sheet))
    page = html_report(result, inspector, sheets)
    write(out / "report.html", page.encode("utf-8", "xmlcharrefreplace"))
    say(f"wrote results.json, results.md and report.html to {out}")


def _keeper(out: Path | None, name: str) -> Callable[[dict[str, Any]], None] | None:
    """Adds each row to a file of JSON lines, which begins anew with the first; None without a folder."""
    if out is None:
        return None
    fresh = True

    def keep(row: dict[str, Any]) -> None:
        nonlocal fresh
        append(out / name, json_text(row, indent=None), fresh)
        fresh = False

    return keep


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")  # names may hold what is no Unicode


def _unreadable(path: Path, error: ValueError) -> dict[str, str]:
    say(str(error))
    return {"path": str(path), "error": str(error)}


def _repair_options(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("steps", "denoise_every", "step_size", "timestep", "method")
    return {name: getattr(arguments, name) for name in names}


@contextlib.contextmanager
def _results(out: Path | None, records: list[dict[str, Any]], unwritten: list[Path]) -> Iterator[None]:
    """Writes the tables of the records when the context ends, also by an interruption."""
    from diffad.batch import csv_file

    try:
        yield
    finally:
        if out and records:  # else those of an earlier run stay
            for name, data in zip(_TABLES, (f"{json_text(records)}\n".encode(), csv_file(records))):
                with _going_on(unwritten):
                    write(out / name, data)
        if len(unwritten) > 1:
            say(f"{len(unwritten)} files could not be written, the last of them {unwritten[-1]}")


@contextlib.contextmanager
def _going_on(unwritten: list[Path]) -> Iterator[None]:
    """A file that cannot be written ends no run: the first is said, all are counted."""
    try:
        yield
    except OutputError as error:
        if not unwritten:
            say(str(error))
        unwritten.append(error.path)
