"""`diffad serve`."""

from __future__ import annotations

import argparse
import errno
import os
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from diffad.cli.common import FINISHED, Refused, default_checkpoint, load_inspector, must_exist

if TYPE_CHECKING:
    from diffad.cli.options import Commands
    from diffad.workspace.store import Workspace
from diffad.cli.console import say
from diffad.cli.options import DEVICE, SEVERAL, command, file_path, flag, option, real, whole


def add_serve(commands: Commands) -> None:
    command(
        commands, serve, "open the inspection page in the browser", """
Programs use the same address: named endpoints (see the README) and, without a login, GET /health.
A login is required if --auth or the environment variable DIFFAD_AUTH lists users. Roles are inspect, correct
(verdicts too) and teach (everything; the default).
The workspace is --workspace, else DIFFAD_WORKSPACE, else a folder among the user's data.""",
        ("--checkpoint", {"metavar": "FILE", "help": "one or several models (default: the bundled ones)",
                          **SEVERAL}),
        DEVICE,
        option("--host", "NAME", str, "address to listen on (default: GRADIO_SERVER_NAME, else 127.0.0.1)"),
        option("--port", "N", whole(1, 65535), "default: GRADIO_SERVER_PORT, else a free one from 7860"),
        option("--auth", "FILE", file_path, "file of lines user:password or user/role:password"),
        option("--data-root", "DIR", file_path, "folder below which a batch may read this machine's files"),
        option("--max-upload", "MB", whole(1, 100_000), "largest file that can be uploaded", 200),
        option("--max-storage", "GB", real(0.1, 100_000), "for uploads, results and batches together", 20.0),
        option("--max-tiles", "N", whole(1, 10**6), "most tiles of an inspection", 500),
        option("--workspace", "DIR", file_path, "what is remembered, by one server at a time"),
        flag("--no-history", "keep no inspection"),
        option("--history-gb", "GB", real(0, 100_000), "drop the oldest inspections beyond; 0: never", 20.0),
        option("--history-days", "N", real(0, 100_000), "drop older inspections; 0: never", 0.0),
        flag("--mcp", 'offer the endpoints as tools to language models (pip install "diffad[mcp]")'),
    )  # fmt: skip


def serve(arguments: argparse.Namespace) -> int:
    host, port = _free_address(arguments.host, arguments.port)  # before anything heavy is imported
    from diffad.checkpoint import bundled

    paths = arguments.checkpoint or bundled() or [default_checkpoint()]
    if twice := [name for name, count in Counter(path.stem for path in paths).items() if count > 1]:
        raise Refused(f"two models are named {twice[0]}: rename one")
    for path in paths:
        must_exist(path)
    root = arguments.data_root
    if root and not root.is_dir():
        raise Refused(f"there is no folder {root}: --data-root names a folder")
    try:
        with _workspace(arguments) as workspace:  # also before any model is loaded
            _serve(arguments, host, port, paths, workspace)
    except ValueError as error:  # malformed logins, no MCP here, or a workspace that cannot be used
        raise Refused(str(error)) from error
    except OSError as error:
        if port and "port" in str(error):  # taken in the meantime
            raise Refused(f"port {port} is taken: choose another --port") from error
        raise
    return FINISHED


def _serve(
    arguments: argparse.Namespace, host: str | None, port: int | None, paths: list[Path],
    workspace: Workspace | None,
) -> None:  # fmt: skip
    """Serves until interrupted. Raises ValueError and OSError."""
    from diffad.ui.server import check_mcp, serve
    from diffad.workspace.roles import logins

    if arguments.mcp:
        check_mcp()
    if arguments.auth:
        auth = logins(_text_of(arguments.auth), str(arguments.auth))
        if not auth:
            raise ValueError(f"{arguments.auth} is empty: give lines user:password or user/role:password")
        if os.name == "posix" and arguments.auth.stat().st_mode & 0o007:
            say(f"everybody on this machine may read {arguments.auth}: chmod 600 keeps the passwords")
    else:
        auth = logins(os.environ.get("DIFFAD_AUTH", ""), "DIFFAD_AUTH")
    inspectors = {path.stem: load_inspector(arguments, path) for path in paths}
    if host in ("0.0.0.0", "::") and not auth:
        say("everybody who reaches this machine can use the page: --auth FILE asks for a login")
    serve(
        inspectors,
        host,
        port,
        auth=auth or None,
        data_root=arguments.data_root,
        max_upload=arguments.max_upload,
        max_storage=arguments.max_storage,
        max_tiles=arguments.max_tiles,
        mcp=arguments.mcp,
        workspace=workspace,
        history_gb=arguments.history_gb,
        history_days=arguments.history_days,
    )


@contextmanager
def _workspace(arguments: argparse.Namespace) -> Iterator[Workspace | None]:
    """The workspace, open; None if nothing is to be kept. Raises WorkspaceError."""
    if arguments.no_history:
        yield None
        return
    from diffad.workspace.store import Workspace, default_folder

    with Workspace.open(arguments.workspace or default_folder()) as workspace:
        yield workspace


def _free_address(host: str | None, port: int | None) -> tuple[str | None, int | None]:
    """Host and port as given, or from Gradio's environment variables, checked before any model is loaded.

    Raises:
        Refused: this machine has no such address, or the port is taken.
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
        if os.name == "posix":  # on POSIX this allows a port that was closed just now
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except PermissionError as error:
            raise Refused(f"port {port} needs administrator rights: choose another --port") from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise Refused(f"port {port} is taken: choose another --port") from error
            raise Refused(f"{host} is no address of this machine: choose another --host") from error
    return host, port


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"{path} is not a text file: give lines user:password in UTF-8") from error
