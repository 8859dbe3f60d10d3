"""`diffad inspect` and `diffad repair`."""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffad.cli.common import (
    ANOMALOUS,
    FINISHED,
    LOOK,
    REFUSED,
    UNREADABLE,
    Refused,
    check_folder,
    going_on,
    load_inspector,
    make_folder,
    pictures_of,
    repair_options,
    unreadable,
)
from diffad.cli.console import counter, document, json_text, say, tell, tracked
from diffad.cli.options import (
    ALPHA,
    BITS,
    CATEGORY,
    JSON,
    LOOK_THRESHOLD,
    MODEL,
    REPAIR,
    SEED,
    SOURCES,
    TAUGHT,
    THRESHOLD,
    TILE,
    TIMESTEPS,
    choice,
    command,
    file_path,
    flag,
    option,
    whole,
)
from diffad.output import append, write

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from diffad.cli.options import Commands
    from diffad.inspection import Inspection, RepairStep
    from diffad.inspector import Inspector

_VERDICTS, _TABLES = "results.jsonl", ("results.json", "results.csv")  # files that `inspect` writes
_LONGEST_NAME = 200  # bytes of a result's file name, without its ending


def add_inspect(commands: Commands) -> None:
    command(
        commands, inspect, "inspect pictures and show where they are anomalous", """
A plain folder means all its pictures. An MVTec folder means all pictures below it, inspected as its
categories if the model knows them.""",
        SOURCES, *MODEL, TAUGHT, CATEGORY, ALPHA, TIMESTEPS, SEED, THRESHOLD, LOOK_THRESHOLD,
        option("--draws", "N", whole(1, 16), "noise draws per timestep; more are less noisy and slower", 1),
        TILE, BITS,
        option(
            "--out", "DIR", file_path,
            "write <name>_overlay.png, <name>_map.npy (float32), <name>_evidence.png, results.json and "
            "results.csv there, and each verdict to results.jsonl as soon as it is known",
        ),
        flag("--report", "with --out: also write <name>_report.html, which prints on one A4 page"),
        ("--fail-on", {"choices": ("anomalous", "look"), "help": "exit with 3 if any picture is anomalous; "
         "with look, otherwise with 4 if any is worth a look"}),
        JSON,
    )  # fmt: skip


def inspect(arguments: argparse.Namespace) -> int:
    from diffad import batch

    out = arguments.out
    if arguments.report and not out:
        raise Refused("--report needs a folder to write to: give --out DIR too")
    samples = pictures_of(arguments.sources, out)
    paths = [sample.image for sample in samples]
    endings = ["_overlay.png", "_map.npy", "_evidence.png", *(["_report.html"] if arguments.report else [])]
    names = _output_names(paths, out, endings) if out else [""] * len(paths)
    inspector = load_inspector(arguments)
    make_folder(out)
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
                elif out and inspection is not None:
                    record["files"] = []
                    with going_on(unwritten):
                        try:
                            for file in _evidence(out, name, endings, inspection, inspector):
                                record["files"].append(file.name)
                        except MemoryError:
                            say(f"{row.name} was inspected, but drawing it needs more memory than there is")
                if out:
                    with going_on(unwritten):
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
    from diffad.verdicts import VERDICTS

    word, _ = VERDICTS[record["verdict"]]
    verdict = word.lower() if record["verdict"] == "good" else word.upper()
    count = len(record["regions"])
    regions = f"{count} region{'' if count == 1 else 's'}"
    fits = "" if record.get("category_fits", True) else "?  fits no category"
    limits = f"look limit {record['look_threshold']:.2f}  threshold {record['threshold']:.2f}"
    return (
        f"{verdict:10}  score {record['score']:7.2f}  {limits}  "
        f"{regions}  {record['category']}{fits}  {record['path']}"
    )


def add_repair(commands: Commands) -> None:
    command(
        commands, repair, "repair pictures step by step and write animations of it", "",
        SOURCES, *MODEL, TAUGHT, CATEGORY, ALPHA, SEED, THRESHOLD, TILE, BITS, *REPAIR,
        flag("--stop-at-threshold", "stop as soon as the picture counts as good"),
        choice("--format", ("gif", "webp", "mp4"), "format of the animation"),
        option("--out", "DIR", file_path, "write <name>_repair.gif and <name>_repaired.png there", Path(".")),
        JSON,
    )  # fmt: skip


def repair(arguments: argparse.Namespace) -> int:
    from diffad.pictures.animation import animation, check_format
    from diffad.pictures.drawing import png_bytes
    from diffad.pictures.reading import DataError

    check_format(f".{arguments.format}")
    paths = [sample.image for sample in pictures_of(arguments.sources, arguments.out)]
    endings = (f"_repair.{arguments.format}", "_repaired.png")
    names = _output_names(paths, arguments.out, endings)
    inspector = load_inspector(arguments)
    make_folder(arguments.out)
    records: list[dict[str, Any]] = []
    unwritten: list[Path] = []
    with document(arguments.json) as put:
        for path, name in zip(paths, names, strict=True):
            film, picture = (arguments.out / f"{name}{ending}" for ending in endings)
            started = time.perf_counter()
            try:
                frames, before, last = _repaired(arguments, inspector, path)
            except DataError as error:
                records.append(unreadable(path, error))
                continue
            seconds = time.perf_counter() - started
            with going_on(unwritten):
                animation(frames, film)
                write(picture, png_bytes(last.image), sync=False)
            if unwritten:  # the next repairs would be lost too
                break
            records.append(
                {
                    "path": str(path),
                    "animation": str(film),
                    "repaired": str(picture),
                    "steps": last.index,
                    "score_before": before,
                    "score_after": last.score,
                    "seconds": seconds,
                    "notes": list(last.notes),
                }
            )
            if not arguments.json:
                fall = f"score {before:.2f} → {last.score:.2f}"
                tell(f"{fall}  {last.index} steps  {seconds:.1f} s  {film}", keep_on=True)
                for note in last.notes:
                    tell(f"  {note}", keep_on=True)
        put(records)
    if unwritten:
        return REFUSED
    return UNREADABLE if any("error" in record for record in records) else FINISHED


def _repaired(
    arguments: argparse.Namespace, inspector: Inspector, path: Path
) -> tuple[Sequence[npt.NDArray[np.uint8]], float, RepairStep]:
    """Repair a picture; returns the frames of the animation, the score before, and the last step."""
    from diffad.pictures.animation import Reel

    steps = inspector.repair(
        path,
        arguments.category,
        repair_options(arguments),
        seed=arguments.seed,
        alpha=arguments.alpha,
        threshold=arguments.threshold,
        tile=arguments.tile,
        **({"bits": arguments.bits} if arguments.bits else {}),
    )
    reel, scores = Reel(), []
    with counter(str(path)) as progress:
        for step in steps:
            progress(step.index + 1, step.total + 1)  # the total grows with each round
            reel.add(step.image)
            scores.append(step.score)
    return reel.frames, scores[0], step


def _output_names(paths: Sequence[Path], out: Path, endings: Sequence[str]) -> list[str]:
    """A unique name per picture for files out/<name><ending>: its stem, with its folder's name if necessary.

    No output file overwrites an input. Long names are cut, because file names may have only 255 bytes.

    Raises:
        Refused: nothing can be written to `out`, or a table would overwrite an input.
    """
    check_folder(out)
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
    out: Path, name: str, endings: Sequence[str], inspection: Inspection, inspector: Inspector
) -> Iterator[Path]:
    """Write <name><ending> for each ending; yields each file after it is written."""
    from diffad.pictures.drawing import npy_bytes, overlay, png_bytes
    from diffad.report.document import report
    from diffad.report.sheet import evidence_sheet

    top, bad = inspector.scale_top(inspection.category), inspection.verdict != "good"
    contents = {
        "_overlay.png": lambda: png_bytes(
            overlay(inspection.hatched, inspection.anomaly_map, top, inspection.map_limit, contour=bad)
        ),
        "_map.npy": lambda: npy_bytes(inspection.anomaly_map),
        "_evidence.png": lambda: png_bytes(evidence_sheet(inspection, top)),
        "_report.html": lambda: report(inspection, inspector, name).encode("utf-8", "xmlcharrefreplace"),
    }
    for ending in endings:
        write(out / f"{name}{ending}", contents[ending](), sync=False)
        yield out / f"{name}{ending}"


@contextlib.contextmanager
def _results(out: Path | None, records: list[dict[str, Any]], unwritten: list[Path]) -> Iterator[None]:
    """Write the tables of the records when the context ends, even if it is interrupted."""
    from diffad.batch import csv_file

    try:
        yield
    finally:
        if out and records:  # otherwise keep those of an earlier run
            for name, data in zip(_TABLES, (f"{json_text(records)}\n".encode(), csv_file(records))):
                with going_on(unwritten):
                    write(out / name, data)
        if len(unwritten) > 1:
            say(f"{len(unwritten)} files could not be written, the last of them {unwritten[-1]}")
