"""`diffad evaluate`, `ablate`, `compare`, `stress` and `benchmark`."""

from __future__ import annotations

import argparse
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
from diffad.cli.console import counter, document, json_text, say
from diffad.cli.options import (
    ALPHA,
    DATA,
    JSON,
    LIMIT,
    MODEL,
    REPAIR,
    SEED,
    SEVERAL,
    TIMESTEPS,
    command,
    file_path,
    flag,
    name_list,
    option,
    real,
    seed_list,
    whole,
)
from diffad.output import append, write

if TYPE_CHECKING:
    from diffad.cli.options import Commands
    from diffad.inspector import Inspector
    from diffad.pictures.samples import Sample


def add_evaluate(commands: Commands) -> None:
    command(
        commands, evaluate, "measure a model on labelled pictures", """
DATA: an MVTec category folder (test/good, test/<defect>, ground_truth) or a folder of them. Each picture is
inspected as its folder's category if the model knows it, otherwise as the recognised one.""",
        DATA, *MODEL, option("--category", "NAME", str, "inspect all pictures as this category"),
        ALPHA, TIMESTEPS,
        option("--seeds", "N,N,…", seed_list, "noise seeds; several give means ± deviations", (0,)),
        option(
            "--out", "DIR", file_path,
            "write results.json, results.md and report.html there, and each score to scores.jsonl as soon as "
            "it is known",
        ),
        option(
            "--stress", "N", whole(1, 10**6),
            "also change N good pictures per category in 16 ways, and count how many are then rejected",
        ),
        flag("--repair", "also measure the repair (slow); the options below apply to it"),
        option("--limit", "N", whole(1, 10**6), "with --repair: at most N good and N defective per category"),
        flag("--sheet", "with --out: draw ten repairs per category as <category>_repairs.png"),
        *REPAIR, JSON,
    )  # fmt: skip


def evaluate(arguments: argparse.Namespace) -> int:
    from diffad.measuring.evaluation import evaluate
    from diffad.measuring.tables import announced_rows, evaluation_table, folders_text, markdown

    out = arguments.out
    samples, good = _samples_to_evaluate(arguments)
    make_folder(out)
    inspector = load_inspector(arguments)
    if arguments.stress and not arguments.category:
        inspector.check_knows({sample.category for sample in good})
    with document(arguments.json) as put:
        with counter("inspecting") as progress:
            result = evaluate(
                inspector,
                samples,
                arguments.alpha,
                arguments.timesteps,
                arguments.seeds,
                arguments.category,
                progress,
                _keeper(out, "scores.jsonl"),
            )
        if out and (arguments.stress or arguments.repair):  # which take long
            _write_tables(out, result)
        stressed = [_add_stress(arguments, inspector, good, result)] if arguments.stress else []
        tables = [folders_text(result), evaluation_table(result), markdown(announced_rows(result)), *stressed]
        shown: dict[str, Any] = {}
        if arguments.repair:
            tables.append(_add_repairs(arguments, inspector, samples, result, shown))
        for name, values in result.items():
            for note in values["notes"] + values.get("repair", {}).get("notes", []):
                say(f"{name}: {note}")
        put(result, "\n\n".join(tables))
        if out:
            _write_tables(out, result)
            _write_pages(out, result, inspector, shown)
    return FINISHED


def _samples_to_evaluate(arguments: argparse.Namespace) -> tuple[list[Sample], list[Sample]]:
    """All samples, and the good test samples. Raises Refused if the options do not fit each other or them."""
    if arguments.sheet and not (arguments.repair and arguments.out):
        raise Refused("--sheet draws repairs in a folder: give --repair and --out DIR too")
    if arguments.limit and not arguments.repair:
        raise Refused("--limit applies to repairs only, all pictures are inspected: give --repair too")
    for source in arguments.data:
        must_exist(source)
    samples = _test_and_training_pictures(arguments.data)
    good = [sample for sample in samples if sample.is_anomalous is False and sample.split != "train"]
    if arguments.stress and not good:
        raise Refused("--stress changes good pictures, and there is none: give folders with test/good")
    if all(sample.is_anomalous is None for sample in samples):
        raise Refused("no picture is labelled: give folders with test/good and test/<defect> (MVTec layout)")
    return samples, good


def _add_stress(
    arguments: argparse.Namespace, inspector: Inspector, good: Sequence[Sample], result: dict[str, Any]
) -> str:
    """Judge changed good pictures and add the values to the result; returns them as a table."""
    from diffad.measuring.stress import robustness_rows, stress
    from diffad.measuring.tables import markdown

    with counter("judging changed pictures") as progress:
        changed = stress(
            inspector,
            good,
            arguments.stress,
            arguments.seeds[0],
            progress,
            _keeper(arguments.out, "verdicts.jsonl"),
            category=arguments.category,
            alpha=arguments.alpha,
            timesteps=arguments.timesteps,
        )
    for name, values in changed.items():
        result[name] |= {"stress": values, "wrong_when_changed": values["beyond"]}
    return markdown(robustness_rows(changed))


def _add_repairs(
    arguments: argparse.Namespace, inspector: Inspector, samples: Sequence[Sample], result: dict[str, Any],
    shown: dict[str, Any],
) -> str:  # fmt: skip
    """Measure repairs and add the values to the result; returns them as a table.

    Args:
        shown: gets the repairs to draw, by category, with --sheet.
    """
    from diffad.measuring.repairs import evaluate_repair
    from diffad.measuring.tables import repair_table

    with counter("repairing") as progress:
        repaired = evaluate_repair(
            inspector,
            samples,
            arguments.limit,
            arguments.category,
            progress,
            shown.__setitem__ if arguments.sheet else None,
            repair_options(arguments),
            alpha=arguments.alpha,
            seed=arguments.seeds[0],
        )
    for name, values in repaired.items():
        result[name]["repair"] = values
    return repair_table(repaired)


def add_ablate(commands: Commands) -> None:
    command(
        commands, ablate, "measure what each choice of the method contributes", """
Tables of image AUROC, pixel AUROC and AUPRO over the balance of the branches, timesteps, noise draws,
normalisation, one model against one per category, and pixel scores. DATA: as for evaluate; its train/good
serves to standardise the pixel scores that the checkpoint does not use.""",
        DATA, *MODEL,
        ("--single", {"metavar": "CHECKPOINT", "default": [], **SEVERAL,
                      "help": "models of one category each, to compare with"}),
        LIMIT,
        option("--out", "DIR", file_path, "write ablation.md, ablation.json and a plot of each table there"),
        SEED, JSON,
    )  # fmt: skip


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
            plots = {table["name"]: f"{table['name']}.png" for table in result["tables"]}
            _write_report(out, "ablation", result, ablation_report(result, plots))
            for table in result["tables"]:
                ablation_plot(table, METRICS, out / plots[table["name"]])
    return FINISHED


def add_compare(commands: Commands) -> None:
    command(
        commands, compare, "compare with other methods on the same pictures", """
DATA: MVTec category folders with train/good and test, or folders of them, of categories that the model knows.
The peers are anomalib's models on the same backbone with the same weights (pip install "diffad[peers]").""",
        DATA, *MODEL,
        option(
            "--peers", "NAME,…", name_list, "any of padim, patchcore, fre, ganomaly (needs a GPU), or none",
            ("padim", "patchcore", "fre"),
        ),
        option("--minutes-each", "M", real(0.001, 10_000), "longest training time of each trained peer", 5.0),
        LIMIT,
        option(
            "--stress", "N", whole(1, 10**6),
            "also change N good pictures per category in 16 ways, and count how many each method rejects",
        ),
        SEED, option("--out", "DIR", file_path, "write comparison.md and comparison.json there"), JSON,
    )  # fmt: skip


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
            _write_report(out, "comparison", result, report)
    return FINISHED


def add_stress(commands: Commands) -> None:
    command(
        commands, stress, "measure whether verdicts hold when pictures change as they do in a factory", """
DATA: as for evaluate. Good and defective pictures are inspected unchanged and changed: darker, brighter, lit
unevenly, tinted, with noise, blurred, sharpened, compressed, moved, turned.""",
        DATA, *MODEL, ALPHA, TIMESTEPS, SEED,
        option("--limit", "N", whole(1, 10**6), "at most N good and N defective pictures per category", 8),
        flag("--curves", "also change good pictures by half, twice and four times as much, and plot it"),
        option(
            "--out", "DIR", file_path,
            "write stress.md, stress.json and, with --curves, stress.png there, and each verdict to "
            "verdicts.jsonl as soon as it is known",
        ),
        JSON,
    )  # fmt: skip


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
            _write_report(out, "stress", result, report)
            if arguments.curves:
                stress_plot(result, out / "stress.png")
    return FINISHED


def _labelled_folders(arguments: argparse.Namespace) -> tuple[Path | None, list[Sample]]:
    """The output folder, and all pictures of DATA, including training pictures."""
    from diffad.pictures.samples import find_all

    for source in arguments.data:
        must_exist(source)
    samples = find_all(arguments.data)
    make_folder(arguments.out)
    return arguments.out, samples


def _test_and_training_pictures(data: Sequence[Path]) -> list[Sample]:
    """All pictures of the folders; without training pictures if their folder is not understood."""
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


def _write_report(out: Path, name: str, result: dict[str, Any], report: str) -> None:
    write(out / f"{name}.json", f"{json_text(result)}\n".encode())
    write(out / f"{name}.md", utf8(f"{report}\n"))


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
    """A function that appends rows to a new file of JSON lines; None without a folder."""
    if out is None:
        return None
    fresh = True

    def keep(row: dict[str, Any]) -> None:
        nonlocal fresh
        append(out / name, json_text(row, indent=None), fresh)
        fresh = False

    return keep
