"""Starts the page in a web server of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr

from diffad.ui.page import build_app

if TYPE_CHECKING:
    from diffad.inspector import Inspector

HERE = Path(__file__).parent


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
) -> gr.Blocks:
    """Serves the page for these models until interrupted.

    host: None for GRADIO_SERVER_NAME, or else 127.0.0.1. port: None for GRADIO_SERVER_PORT, or else the first
    free one from 7860. open_browser: None to open one where there is a display. With block=False it returns
    at once; the app has `local_url` and `close()`. Raises OSError when a given port is taken.
    """
    app = build_app(inspectors)
    if open_browser is None:
        open_browser = has_display()
    script = (HERE / "page.js").read_text(encoding="utf-8")
    app.queue(default_concurrency_limit=4)
    app.launch(
        server_name=host, server_port=port, inbrowser=open_browser, share=False, quiet=True,
        prevent_thread_lock=True, run_history=False, enable_monitoring=False, ssr_mode=False,
        footer_links=["api"], state_session_capacity=200, max_file_size="200mb", theme=theme(),
        css_paths=[HERE / "page.css"], head=f"<script>{script}</script>", favicon_path=HERE / "favicon.svg",
    )
    print(f"diffad: {app.local_url} (Ctrl+C ends it)", file=sys.stderr, flush=True)
    if block:
        app.block_thread()
    return app


def has_display() -> bool:
    """Whether a browser opened here would be seen."""
    if sys.platform in ("darwin", "win32"):
        return not os.environ.get("SSH_CONNECTION")
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
