"""What the tests of a server ask of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from diffad.inspector import Inspector
from diffad.ui import serve

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "assets" / "samples"
DEFECTIVE, GOOD = SAMPLES / "gear_broken_tooth.png", SAMPLES / "gear_good.png"
MINUTE = 120.0  # s; a busy machine


@contextmanager
def served(inspector: Inspector, temporary: Path, **settings) -> Iterator[str]:
    """The address of a server in this process, whose files go to `temporary`."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(temporary)
    app = serve({"parts": inspector}, "127.0.0.1", open_browser=False, block=False, **settings)
    try:
        yield app.local_url.rstrip("/")
    finally:
        app.close()
        os.environ.pop("GRADIO_TEMP_DIR")
        if before is not None:
            os.environ["GRADIO_TEMP_DIR"] = before


def call(http: httpx.Client, name: str, **arguments) -> tuple[str, object]:
    """The kind of the last event, and what it carries."""
    posted = http.post(f"/gradio_api/call/v2/{name}", json=arguments)
    assert posted.status_code == 200, posted.text
    stream = http.get(f"/gradio_api/call/v2/{name}/{posted.json()['event_id']}").text
    event, data = stream.strip().split("\n\n")[-1].split("\n")
    return event.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def file(path: str) -> dict:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def upload(http: httpx.Client, path: Path) -> httpx.Response:
    return http.post("/gradio_api/upload", files={"files": (path.name, path.read_bytes())})
