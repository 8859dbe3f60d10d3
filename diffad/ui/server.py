"""Starts the web server of the page and the endpoints."""

from __future__ import annotations

import asyncio
import atexit
import importlib.util
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import gradio as gr
from fastapi.exceptions import RequestValidationError
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Route

from diffad import __version__
from diffad.ui.access import Access
from diffad.ui.calls import guard
from diffad.ui.files import GB, PREFIX, Storage
from diffad.ui.gate import Gate, misunderstood
from diffad.ui.keeping import Keeping, Limits
from diffad.ui.logins import Logins
from diffad.ui.models import Models
from diffad.ui.page import build_app
from diffad.ui.turns import Turns
from diffad.workspace.history import History
from diffad.workspace.roles import Login, logins
from diffad.workspace.store import Workspace

if TYPE_CHECKING:
    from diffad.inspector import Inspector

STATIC = Path(__file__).with_name("static")
# Each script uses only those before it.
SCRIPTS = (
    "words", "elements", "scores", "page", "page_input", "corrections", "viewer", "verdict", "evidence",
    "player", "measured", "batch_chart", "batch_table", "batch_corrections", "batch", "brush",
    "history_detail", "history", "teach",
)  # fmt: skip
STYLES = ("page", "batch", "history", "teach")
THREADS = 120  # most of them only wait for their turn
SWEPT_EVERY = 600.0  # s


def theme() -> gr.themes.Base:
    """System fonts and greys; page.css does the rest."""
    fonts = ["Inter", "ui-sans-serif", "system-ui", "sans-serif"]
    mono = ["ui-monospace", "Menlo", "Consolas", "monospace"]
    return gr.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        radius_size="md",
        spacing_size="sm",
        text_size="sm",
        font=fonts,
        font_mono=mono,
    )


def serve(
    inspectors: Mapping[str, Inspector],
    host: str | None = None,
    port: int | None = None,
    open_browser: bool | None = None,
    block: bool = True,
    auth: Sequence[Login | tuple[str, str]] | None = None,
    data_root: Path | None = None,
    max_upload: int = 200,
    max_storage: float = 20,
    max_tiles: int = 500,
    mcp: bool = False,
    workspace: Workspace | None = None,
    history_gb: float = 20,
    history_days: float = 0,
) -> gr.Blocks:
    """Serves the page and its endpoints for these models until interrupted.

    Sets GRADIO_TEMP_DIR to a new folder inside the one that it names.

    Args:
        inspectors: by their names in the model list; the first is the default.
        host: the address; None for GRADIO_SERVER_NAME, otherwise 127.0.0.1.
        port: None for GRADIO_SERVER_PORT, otherwise the first free one from 7860.
        open_browser: whether to open a browser; None if there is a display.
        block: False to return at once; the app has `local_url` and `close()`.
        auth: who may log in, and what for; (user, password) may do everything. None for the lines of
            DIFFAD_AUTH (`roles.logins`), and no login if there are none.
        data_root: see `page.build_app`.
        max_upload: largest file, MB.
        max_storage: GB of uploads, results and batches together.
        max_tiles: of one inspection.
        mcp: whether the endpoints are also tools for language models.
        workspace: where inspections are kept; closed by whoever opened it. None keeps nothing.
        history_gb: GB of inspections that are kept; 0 for no limit.
        history_days: how long they are kept; 0 for ever.

    Raises:
        OSError: The given port is taken.
        ValueError: Logins are malformed, or MCP is not installed.
    """
    if mcp:
        check_mcp()
    if auth is None:
        auth = logins(os.environ.get("DIFFAD_AUTH", ""), "DIFFAD_AUTH")
    accounts = [each if isinstance(each, Login) else Login(*each) for each in auth]
    keeping = None
    if workspace is not None:
        keeping = Keeping(History(workspace), Access(accounts), Limits.of(history_gb, history_days))
        atexit.register(keeping.close)
    storage = Storage(uploads_parent(), round(max_storage * GB))
    atexit.register(storage.close)
    os.environ["GRADIO_TEMP_DIR"] = str(storage.files)
    models = Models(inspectors, workspace)
    app = build_app(models, Turns(max_tiles), storage, data_root, keeping)
    guard(app)
    if open_browser is None:
        open_browser = has_display()
    scripts = ((STATIC / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    app.queue(default_concurrency_limit=4, api_open=False)
    app.launch(
        server_name=host,
        server_port=port,
        inbrowser=open_browser,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        footer_links=["api"],
        state_session_capacity=64,
        max_file_size=f"{max_upload}mb",
        theme=theme(),
        max_threads=THREADS,
        css_paths=[STATIC / f"{name}.css" for name in STYLES],
        favicon_path=STATIC / "favicon.svg",
        head="".join(f"<script>{script}</script>" for script in scripts),
        auth=Logins([(each.user, each.password) for each in accounts]) if accounts else None,
        mcp_server=mcp,
        show_error=True,
        app_kwargs={
            "routes": [health(app, models)],
            "exception_handlers": {RequestValidationError: misunderstood},
            "middleware": [Middleware(Gate, blocks=app, storage=storage)],
            "lifespan": tidying(app, storage, keeping),
            "openapi_url": None,  # FastAPI's; the endpoints are described in Gradio's
        },
        _frontend=False,  # Gradio would give up if a busy machine did not answer within 3 s
    )
    if app.mcp_error:
        app.close()
        raise ValueError(f"MCP cannot be served: {app.mcp_error}")
    print(f"diffad: {app.local_url} (Ctrl+C ends it)", file=sys.stderr, flush=True)
    if block:
        _wait(app, storage, keeping)
    return app


def _wait(app: gr.Blocks, storage: Storage, keeping: Keeping | None) -> None:
    """Returns once the server is interrupted, and leaves no files behind."""
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    app.block_thread()
    app.close(verbose=False)
    if keeping is not None:
        keeping.close()
    storage.close()  # at once, because a page that is still open may delay the end of the server


def uploads_parent() -> Path:
    """The parent of servers' folders: GRADIO_TEMP_DIR (but not inside another server's) or the system's."""
    given = Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir()).absolute()
    above = [each.parent for each in (given, *given.parents) if each.name.startswith(PREFIX)]
    return above[-1] if above else given


def tidying(app: gr.Blocks, storage: Storage, keeping: Keeping | None = None) -> Any:
    """The server's lifespan: deletes what is old now and then, and all its own files at the end."""

    async def sweep() -> None:
        while True:
            await asyncio.sleep(SWEPT_EVERY)
            await anyio.to_thread.run_sync(storage.sweep)
            if keeping is not None:
                await anyio.to_thread.run_sync(keeping.tidy)
            for paths in app.temp_file_sets:  # where Gradio would collect every file's name
                paths.clear()

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        task = asyncio.create_task(sweep())
        try:
            yield
        finally:
            task.cancel()
            if keeping is not None:  # while the pictures are still there
                await anyio.to_thread.run_sync(keeping.close)
            storage.close()

    return lifespan


def check_mcp() -> None:
    """Raises ValueError if MCP is not installed."""
    if importlib.util.find_spec("mcp") is None:
        raise ValueError('MCP is not installed: pip install "diffad[mcp]"')


def health(app: gr.Blocks, inspectors: Mapping[str, Inspector]) -> Route:
    """`GET /health`, for monitoring; needs no login."""
    device = str(next(iter(inspectors.values())).device)

    async def answer(request: Any) -> JSONResponse:
        models = [
            {"model": name, "categories": list(inspector.categories), "parameters": inspector.parameters}
            for name, inspector in inspectors.items()
        ]
        queue = app._queue
        running = sum(job is not None for job in queue.active_jobs)
        return JSONResponse({
            "status": "ok", "version": __version__, "device": device, "models": models,
            "queue": {"waiting": len(queue), "running": running},
        })  # fmt: skip

    return Route("/health", answer)


def has_display() -> bool:
    """Whether this machine has a display for a browser."""
    if sys.platform in ("darwin", "win32"):
        return not os.environ.get("SSH_CONNECTION")
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
