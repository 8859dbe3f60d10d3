"""`diffad workspace` and `diffad mask`: taught categories from the command line."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from diffad.cli.common import FINISHED, Refused
from diffad.cli.console import document
from diffad.cli.options import JSON, WORKSPACE, command, file_path, flag

if TYPE_CHECKING:
    from collections.abc import Callable

    from diffad.cli.options import Commands
    from diffad.workspace.store import Workspace
    from diffad.workspace.taught import Taught


def add_workspace(commands: Commands) -> None:
    command(
        commands, workspace, "list, export, import or remove categories taught on the page", """
list; export NAME FILE (a zip with statistics and good pictures); import FILE; remove NAME. All but list need
the workspace for themselves: stop its server first.""",
        ("action", {"choices": ("list", "export", "import", "remove")}),
        ("arguments", {"nargs": "*", "metavar": "NAME | FILE"}),
        WORKSPACE, JSON,
    )  # fmt: skip


def add_mask(commands: Commands) -> None:
    command(
        commands, mask, "ignore places of a taught category", """
FILE: a picture of the part's aspect, white where nothing is to be judged; parts that are turned upright are
masked in their upright pose.""",
        ("category", {"metavar": "CATEGORY"}),
        ("file", {"metavar": "FILE", "type": file_path, "nargs": "?"}),
        flag("--clear", "judge everything again"), WORKSPACE,
    )  # fmt: skip


def workspace(arguments: argparse.Namespace) -> int:
    from diffad.workspace.store import WorkspaceError
    from diffad.workspace.taught import Taught

    action, given = arguments.action, arguments.arguments
    wanted = {"list": 0, "export": 2, "import": 1, "remove": 1}[action]
    if len(given) != wanted:
        usage = {"list": "", "export": " NAME FILE", "import": " FILE", "remove": " NAME"}[action]
        raise Refused(f"give: diffad workspace {action}{usage}")
    try:
        alone = action not in ("list", "export")
        with _opened(arguments, lock=alone) as opened, document(arguments.json) as put:
            taught = Taught(opened)
            if action == "export":
                put({"file": str(taught.export(given[0], given[1]))}, f"{given[0]} → {given[1]}")
            elif action == "import":
                found = taught.import_from(given[0])
                put({"name": found.name}, f"{found.name} was imported")
            elif action == "remove":
                taught.remove(given[0])
                put({"removed": given[0]}, f"{given[0]} was removed")
            else:
                _list(taught, put)
    except WorkspaceError as error:
        raise Refused(str(error)) from error
    return FINISHED


def _list(taught: Taught, put: Callable[..., None]) -> None:
    found = taught.all()
    rows = [
        {
            "name": each.name, "pictures": len(each.pictures), "model": each.about.get("model"),
            "network": each.network, "version": each.about.get("version"), "time": each.about.get("time"),
            "who": each.about.get("who"),
        }
        for each in found
    ]  # fmt: skip
    lines = [
        f"{row['name']:24}  {row['pictures']:5} pictures  {row['model']}  "
        f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(float(row['time'] or 0)))}"
        for row in rows
    ]
    damaged = taught.damaged()
    put({"categories": rows, "damaged": damaged}, "\n".join([*lines, *damaged]) or "nothing was taught yet")


def mask(arguments: argparse.Namespace) -> int:
    import numpy as np
    import torch

    from diffad.pictures.geometry import Geometry, mask_to_square
    from diffad.pictures.masks import read_mask
    from diffad.workspace.taught import Taught

    if arguments.clear == (arguments.file is not None):
        raise Refused("give the mask's FILE, or --clear")
    try:
        with _opened(arguments, lock=True) as opened:
            taught, ignored = Taught(opened), None
            if arguments.file is not None:
                marked, _ = read_mask(arguments.file)
                size = taught.load(arguments.category).profile.size or 256
                square = mask_to_square(marked, Geometry.letterbox(marked.shape[0], marked.shape[1], size))
                ignored = torch.from_numpy(np.ascontiguousarray(square))
            taught.ignore(arguments.category, ignored, "command line")
    except ValueError as error:  # WorkspaceError, or a mask that cannot be read
        raise Refused(str(error)) from error
    return FINISHED


def _opened(arguments: argparse.Namespace, lock: bool) -> Workspace:
    from diffad.workspace.store import Workspace, default_folder

    return Workspace.open(arguments.workspace or default_folder(), lock=lock)
