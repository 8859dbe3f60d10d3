"""Starts the page in a web server of its own."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from starlette.responses import JSONResponse
from starlette.routing import Route

from diffad import __version__
from diffad.ui.page import build_app

if TYPE_CHECKING:
    from diffad.inspector import Inspector

HERE = Path(__file__).parent
# In the order in which they need each other.
SCRIPTS = ("scores", "page", "viewer", "verdict", "evidence", "player", "measured", "batch")
STYLES = ("page", "batch")


def theme() -> gr.themes.Base:
    """System fonts and greys; `page.css` does the rest."""
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
    auth: Sequence[tuple[str, str]] | None = None,
    data_root: Path | None = None,
    max_upload: int = 200,
    mcp: bool = False,
) -> gr.Blocks:
    """Serves the page and its endpoints for these models until interrupted.

    host: None for GRADIO_SERVER_NAME, or else 127.0.0.1. port: None for GRADIO_SERVER_PORT, or else the first
    free one from 7860. open_browser: None to open one where there is a display. With block=False it returns
    at once; the app has `local_url` and `close()`. auth: who may log in, as (user, password); None for the
    lines user:password of DIFFAD_AUTH, and no login without them. data_root: see `build_app`. max_upload: MB
    a file. mcp: the endpoints are tools for language models too. Raises OSError when a given port is taken,
    ValueError for malformed logins, and for `mcp` where it is not installed.
    """
    if mcp:
        check_mcp()
    if auth is None:
        auth = logins(os.environ.get("DIFFAD_AUTH", ""), "DIFFAD_AUTH")
    app = build_app(inspectors, data_root)
    if open_browser is None:
        open_browser = has_display()
    scripts = ((HERE / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    app.queue(default_concurrency_limit=4, api_open=False)
    app.launch(
        server_name=host, server_port=port, inbrowser=open_browser, share=False, quiet=True,
        prevent_thread_lock=True, run_history=False, enable_monitoring=False, ssr_mode=False,
        footer_links=["api"], state_session_capacity=64, max_file_size=f"{max_upload}mb", theme=theme(),
        css_paths=[HERE / f"{name}.css" for name in STYLES], favicon_path=HERE / "favicon.svg",
        head="".join(f"<script>{script}</script>" for script in scripts),
        auth=list(auth) or None, mcp_server=mcp, show_error=True,
        app_kwargs={
            "routes": [health(app, inspectors)],
            "exception_handlers": {TypeError: misunderstood, KeyError: misunderstood},
        },
        _frontend=False,  # Gradio would give up when a busy machine does not answer it within 3 s
    )
    if app.mcp_error:
        app.close()
        raise ValueError(f"MCP cannot be served: {app.mcp_error}")
    print(f"diffad: {app.local_url} (Ctrl+C ends it)", file=sys.stderr, flush=True)
    if block:
        app.block_thread()
    return app


def check_mcp() -> None:
    """Raises ValueError where it is not installed."""
    if importlib.util.find_spec("mcp") is None:
        raise ValueError('MCP is not installed: pip install "diffad[mcp]"')


def health(app: gr.Blocks, inspectors: Mapping[str, Inspector]) -> Route:
    """`GET /health`, for whoever watches over the server; asks for no login."""
    models = [
        {"model": name, "categories": list(inspector.categories), "parameters": inspector.parameters}
        for name, inspector in inspectors.items()
    ]
    device = str(next(iter(inspectors.values())).device)

    async def answer(request: Any) -> JSONResponse:
        queue = app._queue
        running = sum(job is not None for job in queue.active_jobs)
        return JSONResponse({
            "status": "ok", "version": __version__, "device": device, "models": models,
            "queue": {"waiting": len(queue), "running": running},
        })  # fmt: skip

    return Route("/health", answer)


async def misunderstood(request: Any, error: Exception) -> JSONResponse:
    """A call of no endpoint, or without what it needs, is the caller's mistake and not the server's."""
    return JSONResponse({"detail": f"this call cannot be understood: {error}"}, 400)


def logins(lines: str, source: str) -> list[tuple[str, str]]:
    """User and password of every line user:password. Raises ValueError, naming the source, not the line."""
    found = []
    for line in filter(None, map(str.strip, lines.splitlines())):
        user, colon, password = line.partition(":")
        if not (user and colon and password):
            raise ValueError(f"{source} holds a line that is not user:password: correct it")
        found.append((user, password))
    return found


def has_display() -> bool:
    """Whether a browser opened here would be seen."""
    if sys.platform in ("darwin", "win32"):
        return not os.environ.get("SSH_CONNECTION")
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
