"""`diffad evaluate`, `ablate`, `compare`, `stress` and `benchmark`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffad.cli.common import (
    FINISHED,
    Refused,
    load_inspector,
    make_folder,
    must_exist,
    repair_options,
    utf8,
)
from diffad.cli.console import counter, document, json_text, say, tracked
from diffad.output import append, write

if TYPE_CHECKING:
    from diffad.inspector import Inspector
    from diffad.pictures.samples import Sample


def evaluate(arguments: argparse.Namespace) -> int:
    from diffad.measuring.evaluation import evaluate
    from diffad.measuring.repairs import evaluate_repair
    from diffad.measuring.stress import robustness_rows
    from diffad.measuring.stress import stress as stress_all
    from diffad.measuring.tables import (
        announced_rows,
        evaluation_table,
        folders_text,
        markdown,
        repair_table,
    )

    out = arguments.out
    if arguments.sheet and not (arguments.repair and out):
        raise Refused("--sheet draws repairs into a folder: give --repair and --out DIR too")
    if arguments.limit and not arguments.repair:
        raise Refused("--limit is for the repairs, all pictures are inspected: give --repair too")
    for source in arguments.data:
        must_exist(source)
    samples = _test_and_training_pictures(arguments.data)
    good = [sample for sample in samples if sample.is_anomalous is False and sample.split != "train"]
    if arguments.stress and not good:
        raise Refused("--stress changes good pictures, and there is none: give folders with test/good")
    if all(sample.is_anomalous is None for sample in samples):
        raise Refused("no picture is labelled: give folders with test/good and test/<defect> (MVTec layout)")
    make_folder(out)
    inspector = load_inspector(arguments)
    if arguments.stress and not arguments.category:
        inspector.check_knows({sample.category for sample in good})
    with document(arguments.json) as put:
        settings = {"category": arguments.category, "alpha": arguments.alpha}
        with counter("inspecting") as progress:
            result = evaluate(
                inspector,
                samples,
                timesteps=arguments.timesteps,
                seeds=arguments.seeds,
                progress=progress,
                keep=_keeper(out, "scores.jsonl"),
                **settings,
            )
        if out and (arguments.stress or arguments.repair):  # which take long
            _write_tables(out, result)
        if arguments.stress:
            with counter("judging changed pictures") as progress:
                changed = stress_all(
                    inspector,
                    good,
                    arguments.stress,
                    progress=progress,
                    keep=_keeper(out, "verdicts.jsonl"),
                    seed=arguments.seeds[0],
                    timesteps=arguments.timesteps,
                    **settings,
                )
            for name, values in changed.items():
                result[name] |= {"stress": values, "wrong_when_changed": values["beyond"]}
        tables = [folders_text(result), evaluation_table(result), markdown(announced_rows(result))]
        if arguments.stress:
            tables.append(markdown(robustness_rows(changed)))
        shown: dict[str, Any] = {}
        if arguments.repair:
            with counter("repairing") as progress:
                repaired = evaluate_repair(
                    inspector,
                    samples,
                    limit=arguments.limit,
                    progress=progress,
                    seed=arguments.seeds[0],
                    show=shown.__setitem__ if arguments.sheet else None,
                    options=repair_options(arguments),
                    **settings,
                )
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
        must_exist(path)
    out, samples = _labelled_folders(arguments)
    inspector = load_inspector(arguments)
    singles = [load_inspector(arguments, path) for path in arguments.single]
    with document(arguments.json) as put:
        with counter("ablating") as progress:
            result = ablate(inspector, samples, singles, arguments.limit, arguments.seed, progress)
        put(result, ablation_report(result))
        if out:
            write(out / "ablation.json", f"{json_text(result)}\n".encode())
            plots = {table["name"]: f"{table['name']}.png" for table in result["tables"]}
            for table in result["tables"]:
                ablation_plot(table, METRICS, out / plots[table["name"]])
            write(out / "ablation.md", utf8(f"{ablation_report(result, plots)}\n"))
    return FINISHED


def compare(arguments: argparse.Namespace) -> int:
    from diffad.measuring.comparison import compare, comparison_report
    from diffad.measuring.peers import checked

    try:
        peers = checked(arguments.peers)
    except ValueError as error:
        raise Refused(str(error)) from error
    out, samples = _labelled_folders(arguments)
    inspector = load_inspector(arguments)
    with document(arguments.json) as put:
        with counter("comparing") as progress:
            result = compare(
                inspector,
                samples,
                peers,
                arguments.limit,
                arguments.minutes_each,
                arguments.seed,
                progress,
                arguments.stress,
            )
        report = comparison_report(result)
        put(result, report)
        if out:
            write(out / "comparison.json", f"{json_text(result)}\n".encode())
            write(out / "comparison.md", utf8(f"{report}\n"))
    return FINISHED


def stress(arguments: argparse.Namespace) -> int:
    from diffad.measuring.stress import stress, stress_plot, stress_table
    from diffad.measuring.tables import markdown

    out, samples = _labelled_folders(arguments)
    inspector = load_inspector(arguments)
    with document(arguments.json) as put:
        with counter("judging changed pictures") as progress:
            result = stress(
                inspector,
                samples,
                arguments.limit,
                arguments.seed,
                progress,
                _keeper(out, "verdicts.jsonl"),
                arguments.curves,
                alpha=arguments.alpha,
                timesteps=arguments.timesteps,
            )
        report = markdown(stress_table(result))
        put(result, report)
        if out:
            write(out / "stress.json", f"{json_text(result)}\n".encode())
            write(out / "stress.md", utf8(f"{report}\n"))
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


def _labelled_folders(arguments: argparse.Namespace) -> tuple[Path | None, list[Sample]]:
    """Where to write, and all pictures of DATA, those to train on too."""
    from diffad.pictures.samples import find_all

    for source in arguments.data:
        must_exist(source)
    samples = find_all(arguments.data)
    make_folder(arguments.out)
    return arguments.out, samples


def _test_and_training_pictures(data: Sequence[Path]) -> list[Sample]:
    """Of a training folder that is not understood none: nothing is learned here."""
    from diffad.pictures.reading import DataError
    from diffad.pictures.samples import find_all

    try:
        return find_all(data)
    except DataError:
        return find_all(data, split="test")


def _write_tables(out: Path, result: dict[str, Any]) -> None:
    from diffad.measuring.report import markdown_report

    write(out / "results.json", f"{json_text(result)}\n".encode())
    write(out / "results.md", utf8(markdown_report(result)))


def _write_pages(out: Path, result: dict[str, Any], inspector: Inspector, repairs: dict[str, Any]) -> None:
    from diffad.measuring.charts import repair_sheet
    from diffad.measuring.report import html_report
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
