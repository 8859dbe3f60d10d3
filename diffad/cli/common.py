"""Shared by the commands: exit codes, loading the model, checking folders, finding pictures.

A command takes the parsed arguments and returns an exit code. Heavy modules are imported inside the commands,
so that `diffad --help` is fast.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from diffad.cli.console import say
from diffad.output import OutputError

if TYPE_CHECKING:
    from diffad.inspector import Inspector
    from diffad.method.repair_options import RepairOptions
    from diffad.pictures.samples import Sample

FINISHED, UNREADABLE, REFUSED, ANOMALOUS, LOOK, INTERRUPTED = 0, 1, 2, 3, 4, 130


class Refused(ValueError):
    """The command cannot start with these arguments; the message says what to change."""


def default_checkpoint() -> Path:
    """The first bundled model. Raises Refused if there is none."""
    from diffad.checkpoint import bundled

    if found := bundled():
        return found[0]
    raise Refused("there is no bundled model: give --checkpoint FILE")


# ---------------------------------------------------------------------------------------------------------
# Input and output


def load_inspector(arguments: argparse.Namespace, path: Path | None = None) -> Inspector:
    from diffad.inspector import Inspector

    path = path or arguments.checkpoint or default_checkpoint()
    try:
        inspector = Inspector.load(path, device=arguments.device)
    except ValueError as error:  # CheckpointError, or a device that is not there
        raise Refused(str(error)) from error
    if folder := getattr(arguments, "workspace", None):
        inspector = _with_taught(inspector, folder)
    category = getattr(arguments, "category", None)
    if category is not None and category not in inspector.categories:
        raise Refused(
            f"the model {inspector.name} has no category {category!r}: choose "
            f"{', '.join(inspector.categories)}"
        )
    return inspector


def _with_taught(inspector: Inspector, folder: Path) -> Inspector:
    """With the categories that a workspace has for this model."""
    from diffad.workspace.store import Workspace, WorkspaceError
    from diffad.workspace.taught import Taught

    try:
        with Workspace.open(folder, lock=False) as opened:
            return Taught(opened).attached(inspector, inspector.profiles)
    except WorkspaceError as error:
        raise Refused(str(error)) from error


def make_folder(out: Path | None) -> None:
    """Make the output folder, before any long work. Raises Refused or OSError if that fails."""
    if out is not None:
        check_folder(out)
        out.mkdir(parents=True, exist_ok=True)


def check_folder(folder: Path) -> None:
    """Raise Refused if the folder cannot be made or written to."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise Refused(f"{there} is a file: give the name of a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise Refused(f"{there} is not writable: choose another --out")


def must_exist(path: Path) -> None:
    if not path.exists():
        raise Refused(f"there is no file or folder {path}: check the path")


def pictures_of(sources: Sequence[Path], out: Path | None) -> list[Sample]:
    """The pictures of all sources, each once, in the order given.

    Raises:
        Refused: a source does not exist, or is also the output folder, whose results the next run would
            inspect.
    """
    from diffad.pictures.samples import Sample, find_samples

    found: dict[str, Sample] = {}
    for source in sources:
        must_exist(source)
        if source.is_dir() and out is not None and out.resolve() == source.resolve():
            raise Refused(f"the results would end up among the pictures in {source}: choose another --out")
        for sample in find_samples(source) if source.is_dir() else [Sample(source, "")]:
            found.setdefault(os.path.abspath(sample.image), sample)
    return list(found.values())


def utf8(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")  # file names may contain invalid Unicode


def unreadable(path: Path, error: ValueError) -> dict[str, str]:
    say(str(error))
    return {"path": str(path), "error": str(error)}


def repair_options(arguments: argparse.Namespace) -> RepairOptions:
    from diffad.method.repair_options import RepairOptions

    names = [field.name for field in fields(RepairOptions)]
    given = {name: value for name, value in vars(arguments).items() if name in names and value is not None}
    return RepairOptions(**given)


@contextlib.contextmanager
def going_on(unwritten: list[Path]) -> Iterator[None]:
    """Continue when a file cannot be written: reports the first such file and collects all in `unwritten`."""
    try:
        yield
    except OutputError as error:
        if not unwritten:
            say(str(error))
        unwritten.append(error.path)
